package bocage

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Guardrail is a corporate rule over all applications: what must never be
// reachable, what an allowed flow owes, and what the platform grants to all.
type Guardrail struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       GuardrailSpec   `json:"spec"`
	Status     GuardrailStatus `json:"status,omitzero"`
}

// GuardrailSpec is the declaration. Match narrows Never, Separate and Require to
// the cells it covers; everything else stands by itself.
type GuardrailSpec struct {
	Description string    `json:"description,omitempty"`
	Match       CellMatch `json:"match,omitzero"`
	// Never refuses every matching cell; no contract can open it. Each entry is
	// intersected with Match.
	Never []CellMatch `json:"never,omitempty"`
	// Require adds duties to every allowed cell in Match.
	Require *Duties `json:"require,omitempty"`
	// Grant allows cells without any application's contract.
	Grant []CellMatch `json:"grant,omitempty"`
	// Separate refuses cells in Match between workloads that differ in a label.
	Separate *Separate `json:"separate,omitempty"`
	// Protect names cells that no threat condition and no response may refuse;
	// only a person's Quarantine may.
	Protect []CellMatch `json:"protect,omitempty"`
	// BlastRadius bounds what can be reached from somewhere, hop by hop.
	BlastRadius *BlastRadius `json:"blastRadius,omitempty"`
	// Disposition of what Never and Separate refuse: drop (the default), reject
	// or decoy.
	Disposition string `json:"disposition,omitempty"`
	// Exceptions says who may be excepted from Never, Require and Separate. The
	// zero value admits no Exception.
	Exceptions ExceptionTerms `json:"exceptions,omitzero"`
}

// Separate refuses flows between workloads that have different values of a label. A
// workload without the label differs from all that have it.
type Separate struct {
	// By is the label's key. "namespace" and "zone" stand for the built-in labels
	// bocage.dev/namespace and bocage.dev/zone.
	By string `json:"by"`
}

// Label returns the key of the label, with the built-in ones written out.
func (s Separate) Label() string {
	switch s.By {
	case "namespace":
		return LabelNamespace
	case "zone":
		return LabelZone
	}
	return s.By
}

// BlastRadius bounds, for each workload in From, the workloads that it can reach
// in so many hops along allowed flows.
type BlastRadius struct {
	From Side `json:"from,omitzero"`
	// MaxHops limits the number of hops; 0 is no limit.
	MaxHops int `json:"maxHops,omitempty"`
	// MaxWeight bounds the sum of the weights of what is reached: 1 for each
	// workload, or the number in its label bocage.dev/weight.
	MaxWeight int `json:"maxWeight"`
	// LeastWeight is what a workload counts at least, whatever its label says. Whoever
	// labels workloads could otherwise make what they reach weigh nothing.
	LeastWeight int `json:"leastWeight,omitempty"`
}

// ExceptionTerms says on which terms a guardrail admits exceptions.
type ExceptionTerms struct {
	Allowed bool `json:"allowed,omitempty"`
	// Max is the longest time that one may last, such as 72h; empty means no limit.
	Max string `json:"max,omitempty"`
	// Approvers are who may approve one: names of people, or "group:NAME". None
	// means that nobody has to.
	Approvers []string `json:"approvers,omitempty"`
}

// Longest returns Max as a duration; 0 means no limit.
func (t ExceptionTerms) Longest() time.Duration {
	longest, err := time.ParseDuration(t.Max)
	if err != nil {
		return 0
	}
	return longest
}

// CellMatch picks cells: who, to whom, over what. Empty parts match everything.
type CellMatch struct {
	From Side `json:"from,omitzero"`
	To   Side `json:"to,omitzero"`
	// Ports lists destination ports; none means every protocol and port.
	Ports []PortMatch `json:"ports,omitempty"`
}

// PortMatch is a protocol with a range of ports.
type PortMatch struct {
	Port     uint16 `json:"port,omitempty"`
	EndPort  uint16 `json:"endPort,omitempty"`
	Protocol string `json:"protocol,omitempty"`
}

// Duties are what an allowed flow owes. Those of all authors are joined: the strictest of
// each counts, profiles add up, and no author can remove another's.
type Duties struct {
	// Inspect names the InspectionProfile that the flow is steered through. In a
	// decision, several are joined by "+".
	Inspect string `json:"inspect,omitempty"`
	// Log is "full" to keep each flow in full detail.
	Log string `json:"log,omitempty"`
	// Verify names the protocol that the flow must speak, such as tls or http.
	// In a decision, several are joined by "+": the flow would have to speak all.
	Verify string `json:"verify,omitempty"`
	// Rate is the most new flows a second, such as 20/s, from each source to each
	// destination, counted where they pass an enforcement point (see Limit).
	Rate string `json:"rate,omitempty"`
	// Whole asks that packets are not fragmented: IP fragments are refused.
	Whole bool `json:"whole,omitempty"`
	// Witness asks that the enforcement points of both ends report the flow.
	Witness bool `json:"witness,omitempty"`
	// Provenance asks for a tag that proves where the connection comes from.
	Provenance bool `json:"provenance,omitempty"`
	// Assurance is the lowest assurance level, L0 to L5, that the identities of both
	// workloads must have (see WorkloadStatus.Assurance). Other flows are refused.
	Assurance string `json:"assurance,omitempty"`
}

// Empty reports whether nothing is owed.
func (d Duties) Empty() bool { return d == Duties{} }

// RatePerSecond returns Rate as a number; 0 is no limit.
func (d Duties) RatePerSecond() int {
	n, err := strconv.Atoi(strings.TrimSuffix(d.Rate, "/s"))
	if err != nil {
		return 0
	}
	return n
}

// List names the duties, as "name" or "name=value", in the order of the fields.
func (d Duties) List() []string {
	var out []string
	for _, duty := range []struct{ name, value string }{{"inspect", d.Inspect}, {"log", d.Log}, {"verify", d.Verify}, {"rate", d.Rate}} {
		if duty.value != "" {
			out = append(out, duty.name+"="+duty.value)
		}
	}
	if d.Whole {
		out = append(out, "whole")
	}
	if d.Witness {
		out = append(out, "witness")
	}
	if d.Provenance {
		out = append(out, "provenance")
	}
	if d.Assurance != "" {
		out = append(out, "assurance="+d.Assurance)
	}
	return out
}

// AssuranceLevel parses L0 to L5; false if s is none of these.
func AssuranceLevel(s string) (int, bool) {
	if len(s) != 2 || s[0] != 'L' || s[1] < '0' || s[1] > '5' {
		return 0, false
	}
	return int(s[1] - '0'), true
}

func (d Duties) validate() Faults {
	var faults Faults
	if d.Empty() {
		faults.Add("", "requires nothing: name inspect, log, verify, rate, whole, witness, provenance or assurance")
	}
	if d.Log != "" && d.Log != "full" {
		faults.Add("log", "%q is not \"full\"", d.Log)
	}
	if d.Inspect != "" && !isDNSSubdomain(d.Inspect) {
		faults.Add("inspect", "%q is not the name of an InspectionProfile", d.Inspect)
	}
	if d.Verify != "" && !slices.Contains(AppProtocolNames(), d.Verify) {
		faults.Add("verify", "%q is not one of %s", d.Verify, strings.Join(AppProtocolNames(), ", "))
	}
	if d.Rate != "" && !rateForm.MatchString(d.Rate) {
		faults.Add("rate", "%q is not a rate such as 20/s, of 1 to 999999 new flows a second", d.Rate)
	}
	if _, known := AssuranceLevel(d.Assurance); d.Assurance != "" && !known {
		faults.Add("assurance", "%q is not one of L0 to L5", d.Assurance)
	}
	return faults
}

var rateForm = regexp.MustCompile(`^[1-9][0-9]{0,5}/s$`)

// GuardrailStatus is what the system says of it.
type GuardrailStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
	// Approval says which generation of the declaration a second person approved, if two
	// people have to decide on guardrails; else nil.
	Approval *Approval `json:"approval,omitempty"`
	Usage    []Usage   `json:"usage,omitempty"`
}

// InForce returns the declaration that counts. If two people have to decide, that is the
// last approved one; nil if none was approved yet.
func (g *Guardrail) InForce() *GuardrailSpec {
	if g.Status.Approval.Waits(g.Generation) {
		return g.Status.Approval.Approved
	}
	return &g.Spec
}

// Validate implements Resource.
func (g *Guardrail) Validate() Faults {
	faults := validateMeta(&g.ObjectMeta, false)
	faults = append(faults, g.Spec.Match.validate().Under("spec.match")...)
	for i, m := range g.Spec.Never {
		faults = append(faults, m.validate().Under(fmt.Sprintf("spec.never[%d]", i))...)
	}
	for i, m := range g.Spec.Grant {
		at := fmt.Sprintf("spec.grant[%d]", i)
		faults = append(faults, m.validate().Under(at)...)
	}
	if r := g.Spec.Require; r != nil {
		faults = append(faults, r.validate().Under("spec.require")...)
	}
	for i, m := range g.Spec.Protect {
		faults = append(faults, m.validate().Under(fmt.Sprintf("spec.protect[%d]", i))...)
	}
	if s := g.Spec.Separate; s != nil {
		faults = append(faults, validateLabelKey(s.Label()).Under("spec.separate.by")...)
	}
	if b := g.Spec.BlastRadius; b != nil {
		faults = append(faults, b.validate().Under("spec.blastRadius")...)
	}
	faults = append(faults, validateDisposition(g.Spec.Disposition).Under("spec.disposition")...)
	faults = append(faults, g.Spec.Exceptions.validate().Under("spec.exceptions")...)
	if s := g.Spec; len(s.Never) == 0 && s.Require == nil && len(s.Grant) == 0 && s.Separate == nil && len(s.Protect) == 0 && s.BlastRadius == nil {
		faults.Add("spec", "declares nothing: use never, require, grant, separate, protect or blastRadius")
	}
	return faults
}

func (b BlastRadius) validate() Faults {
	faults := b.From.Validate().Under("from")
	if len(b.From.Data) > 0 {
		faults.Add("from.data", "data classes belong to offered interfaces, and this is where flows come from")
	}
	if b.MaxHops < 0 || b.MaxHops > 64 {
		faults.Add("maxHops", "%d is not between 0 and 64", b.MaxHops)
	}
	if b.MaxWeight < 0 {
		faults.Add("maxWeight", "is negative")
	}
	if b.LeastWeight < 0 || b.LeastWeight > HeaviestWorkload {
		faults.Add("leastWeight", "%d is not between 0 and %d", b.LeastWeight, HeaviestWorkload)
	}
	return faults
}

func (t ExceptionTerms) validate() Faults {
	var faults Faults
	if t.Max != "" {
		if longest, err := time.ParseDuration(t.Max); err != nil || longest <= 0 {
			faults.Add("max", "%q is not a time such as 72h or 30m", t.Max)
		}
	}
	if !t.Allowed && (t.Max != "" || len(t.Approvers) > 0) {
		faults.Add("allowed", "is not true, so nothing else here counts: set it, or remove the rest")
	}
	for i, approver := range t.Approvers {
		if !approverForm.MatchString(approver) {
			faults.Add(fmt.Sprintf("approvers[%d]", i), "%q is neither a person's name nor group:NAME", approver)
		}
	}
	return faults
}

var approverForm = regexp.MustCompile(`^(group:)?[A-Za-z0-9][-A-Za-z0-9_.@/:+]{0,252}$`)

// everything reports whether the match narrows nothing.
func (m CellMatch) everything() bool {
	return m.From.everyone() && m.To.everyone() && len(m.Ports) == 0
}

func (m CellMatch) validate() Faults {
	faults := append(m.From.Validate().Under("from"), m.To.Validate().Under("to")...)
	if len(m.From.Data) > 0 {
		faults.Add("from.data", "data classes belong to offered interfaces: put it under to")
	}
	for i, p := range m.Ports {
		faults = append(faults, validatePorts(p.Port, p.EndPort, p.Protocol).Under(fmt.Sprintf("ports[%d]", i))...)
	}
	return faults
}
