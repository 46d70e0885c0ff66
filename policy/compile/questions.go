package compile

import (
	"net/netip"
	"slices"
	"strconv"

	"bocage.dev/bocage"
)

type label struct{ key, value string }

// asked is what all declarations together ask about workloads: two that answer
// everything alike are one to policy.
type asked struct {
	values  map[label]bool        // is this label this value?
	exists  map[string]bool       // is this label there?
	which   map[string]bool       // what is this label's value?
	ports   map[string]bool       // which ports have this name?
	blocks  map[netip.Prefix]bool // is an address in here?
	lengths []int                 // of blocks, longest first
}

func questions(in *admitted) *asked {
	q := &asked{values: map[label]bool{}, exists: map[string]bool{}, which: map[string]bool{}, ports: map[string]bool{}, blocks: map[netip.Prefix]bool{}}
	for _, a := range in.applications {
		q.selector(&a.Spec.Workload)
		for i := range a.Spec.Provides {
			q.selector(&a.Spec.Provides[i].To)
		}
	}
	for _, g := range in.guardrails {
		if spec := g.InForce(); spec != nil {
			q.guardrail(spec)
		}
	}
	for _, e := range in.exceptions {
		q.match(&e.Spec.Match)
	}
	for _, s := range in.scopes {
		q.selector(&s.Spec.Workload)
	}
	for _, d := range in.decoys {
		q.selector(d.Spec.For.Workload)
		q.selector(d.Spec.From.Workload)
	}
	for _, r := range in.responses {
		q.response(&r.Spec)
	}
	for _, t := range in.threatConditions {
		if t.Spec.Zone != "" {
			q.values[label{bocage.LabelZone, t.Spec.Zone}] = true
		}
	}
	in.askKubernetes(q)
	slices.Sort(q.lengths)
	slices.Reverse(q.lengths)
	return q
}

func (q *asked) guardrail(spec *bocage.GuardrailSpec) {
	q.match(&spec.Match)
	for _, list := range [][]bocage.CellMatch{spec.Never, spec.Grant, spec.Protect} {
		for i := range list {
			q.match(&list[i])
		}
	}
	if spec.BlastRadius != nil {
		q.selector(spec.BlastRadius.From.Workload)
	}
	if spec.Separate != nil {
		q.which[spec.Separate.Label()] = true
	}
	q.duties(spec.Require)
}

func (q *asked) response(spec *bocage.ResponseSpec) {
	q.selector(spec.When.Workloads.Workload)
	for _, list := range [][]bocage.ResponseCell{spec.Then.RefuseFrom, spec.Then.RefuseTo} {
		for i := range list {
			q.selector(list[i].Peer.Workload)
		}
	}
	q.duties(spec.Then.Require)
}

// duties asks how identities are vouched for, where a duty depends on it.
func (q *asked) duties(d *bocage.Duties) {
	if d != nil && d.Assurance != "" {
		q.which[bocage.LabelAssurance] = true
	}
}

// port asks what ports the workloads have under a name.
func (q *asked) port(name string) { q.ports[name] = true }

// block asks which workloads have an address in a prefix.
func (q *asked) block(prefix netip.Prefix) {
	if prefix = canonicalPrefix(prefix); prefix.IsValid() && !q.blocks[prefix] {
		q.blocks[prefix] = true
		if !slices.Contains(q.lengths, prefix.Bits()) {
			q.lengths = append(q.lengths, prefix.Bits())
		}
	}
}

func (q *asked) match(m *bocage.CellMatch) {
	q.selector(m.From.Workload)
	q.selector(m.To.Workload)
}

func (q *asked) selector(s *bocage.Selector) {
	if s == nil {
		return
	}
	for key, value := range s.MatchLabels {
		q.values[label{key, value}] = true
	}
	for _, r := range s.MatchExpressions {
		for _, value := range r.Values {
			q.values[label{r.Key, value}] = true
		}
		if len(r.Values) == 0 {
			q.exists[r.Key] = true
		}
	}
}

// answers appends what the workload answers, sorted: equal answers make
// workloads of one namespace equal before every declaration.
func (q *asked) answers(pairs []string, w *bocage.Workload, zone string) []string {
	answer := func(key, value string) {
		switch {
		case q.which[key] || q.values[label{key, value}]:
			pairs = append(pairs, key+"="+value)
		case q.exists[key]:
			pairs = append(pairs, key)
		}
	}
	for key, value := range w.Labels {
		if !inherent(key) {
			answer(key, value)
		}
	}
	answer(bocage.LabelName, w.Name)
	answer(bocage.LabelHost, w.Spec.Host)
	answer(bocage.LabelAssurance, assuranceOf(w))
	if zone != "" {
		answer(bocage.LabelZone, zone)
	}
	for _, p := range w.Spec.Ports {
		if q.ports[p.Name] {
			pairs = append(pairs, "port "+p.Name+"="+protocolName(p.Protocol)+"/"+strconv.Itoa(int(p.Port)))
		}
	}
	if w.Spec.Orchestrator != "" {
		pairs = append(pairs, "orchestrator "+w.Spec.Orchestrator)
	}
	slices.Sort(pairs)
	return slices.Compact(pairs)
}

// inherent reports whether a label is one that every workload carries by what it
// is, whatever its own labels claim.
func inherent(key string) bool {
	switch key {
	case bocage.LabelNamespace, bocage.LabelName, bocage.LabelHost, bocage.LabelZone, bocage.LabelAssurance:
		return true
	}
	return false
}

func assuranceOf(w *bocage.Workload) string {
	if w.Status.Assurance == "" {
		return bocage.AssuranceOfDeclared
	}
	return w.Status.Assurance
}

// protocolName completes the protocol of a named port.
func protocolName(s string) string {
	if s == "" {
		return bocage.ProtocolTCP.String()
	}
	return s
}

// blockAt returns the longest block that somebody asks for and that holds the
// address, or an invalid one: the shorter ones follow from it.
func (q *asked) blockAt(address netip.Addr) netip.Prefix {
	for _, bits := range q.lengths {
		if block, err := address.Prefix(bits); err == nil && q.blocks[block] {
			return block
		}
	}
	return netip.Prefix{}
}
