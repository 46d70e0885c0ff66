package bocage

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Workload is one protected thing with an interface: a container, a virtual
// machine, a process in a namespace. The host that it is placed on vouches for
// it; nothing inside it is asked.
type Workload struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       WorkloadSpec   `json:"spec"`
	Status     WorkloadStatus `json:"status,omitzero"`
}

// WorkloadSpec places a workload.
type WorkloadSpec struct {
	// Host is the host that it runs on.
	Host string `json:"host"`
	// Interface is the name of the host's side of its interface, or of the host's
	// wire that the workload is at the inside of.
	Interface string `json:"interface,omitempty"`
	// MAC is the workload's own hardware address. Frames with another one are spoofed. For
	// a workload behind a router it must be left out, since it is not seen on the wire.
	MAC string `json:"mac,omitempty"`
	// Addresses are the workload's own. Packets with another source are spoofed.
	Addresses []netip.Addr `json:"addresses"`
	// MoreInterfaces are those that it has besides Interface.
	MoreInterfaces []WorkloadInterface `json:"moreInterfaces,omitempty"`
	// Instance identifies what runs, such as the ID of a container, where the name of an
	// interface is not enough, because another container may get the same name. Its host
	// sets it.
	Instance string `json:"instance,omitempty"`
	// Ports are the named ports that it listens on, for policies that say a name.
	Ports []NamedPort `json:"ports,omitempty"`
	// Orchestrator is "kubernetes" for a Pod: its flows are accepted unless a policy decides
	// otherwise, as in Kubernetes. Empty: its flows are refused unless somebody allows them.
	Orchestrator string `json:"orchestrator,omitempty"`
}

// WorkloadInterface is one of several interfaces of a workload.
type WorkloadInterface struct {
	Interface string `json:"interface"`
	MAC       string `json:"mac,omitempty"`
	// Addresses are those of the workload's that are on this interface; the rest are
	// on its first one.
	Addresses []netip.Addr `json:"addresses"`
}

// Interfaces lists where the workload is connected, with the addresses of each. A
// workload without an interface is connected nowhere that a host knows of.
func (s *WorkloadSpec) Interfaces() []WorkloadInterface {
	if s.Interface == "" {
		return nil
	}
	first := WorkloadInterface{Interface: s.Interface, MAC: s.MAC, Addresses: slices.Clone(s.Addresses)}
	for _, more := range s.MoreInterfaces {
		first.Addresses = slices.DeleteFunc(first.Addresses, func(a netip.Addr) bool { return slices.Contains(more.Addresses, a) })
	}
	return append([]WorkloadInterface{first}, s.MoreInterfaces...)
}

// OrchestratorKubernetes is the WorkloadSpec.Orchestrator of a Pod.
const OrchestratorKubernetes = "kubernetes"

// NamedPort is a port that a workload listens on.
type NamedPort struct {
	Name string `json:"name"`
	Port uint16 `json:"port"`
	// Protocol is TCP (the default), UDP or SCTP.
	Protocol string `json:"protocol,omitempty"`
}

// WorkloadStatus is what is known of it.
type WorkloadStatus struct {
	// Identity is its number, given once.
	Identity Identity `json:"identity,omitempty"`
	// SPIFFEID is its name in the trust domain.
	SPIFFEID string `json:"spiffeID,omitempty"`
	// Assurance is how its identity is vouched for, L0 to L5; empty is L1, an
	// address that is pinned to a port.
	Assurance string `json:"assurance,omitempty"`
	// VouchedBy is the host that discovered it; empty: a person declared it.
	VouchedBy string `json:"vouchedBy,omitempty"`
	// VouchedLabels are the keys of those labels that the host gave it. The others
	// are people's, and stay.
	VouchedLabels []string `json:"vouchedLabels,omitempty"`
	// Image is the name of what it was started from, Digest what that was.
	Image      string      `json:"image,omitempty"`
	Digest     string      `json:"digest,omitempty"`
	Conditions []Condition `json:"conditions,omitempty"`
}

// AssuranceOfDeclared is the level of a workload about which nothing else is known.
const AssuranceOfDeclared = "L1"

// AllLabels returns the workload's labels with those that every workload carries,
// in no zone.
func (w *Workload) AllLabels() map[string]string { return w.LabelsIn("") }

// LabelsIn returns the workload's labels with those that every workload carries.
// zone is the name of the Zone that its host stands in; empty is none.
func (w *Workload) LabelsIn(zone string) map[string]string {
	labels := make(map[string]string, len(w.Labels)+5)
	for k, v := range w.Labels {
		labels[k] = v
	}
	delete(labels, LabelZone)
	labels[LabelNamespace], labels[LabelName], labels[LabelHost] = w.Namespace, w.Name, w.Spec.Host
	if zone != "" {
		labels[LabelZone] = zone
	}
	labels[LabelAssurance] = AssuranceOfDeclared
	if w.Status.Assurance != "" {
		labels[LabelAssurance] = w.Status.Assurance
	}
	return labels
}

// Validate implements Resource.
func (w *Workload) Validate() Faults {
	faults := validateMeta(&w.ObjectMeta, true)
	if !isDNSSubdomain(w.Spec.Host) {
		faults.Add("spec.host", "%q is not a host's name", w.Spec.Host)
	}
	if len(w.Spec.Interface) > 15 {
		faults.Add("spec.interface", "%q is longer than the 15 characters of a Linux interface", w.Spec.Interface)
	}
	faults = append(faults, validateMAC(w.Spec.MAC).Under("spec.mac")...)
	faults = append(faults, w.Spec.validateMore().Under("spec")...)
	if len(w.Spec.Instance) > 253 || strings.ContainsFunc(w.Spec.Instance, func(r rune) bool { return r <= ' ' || r > '~' }) {
		faults.Add("spec.instance", "%.80q is not a name of at most 253 printable characters", w.Spec.Instance)
	}
	if len(w.Spec.Addresses) == 0 {
		faults.Add("spec.addresses", "needs at least one address")
	}
	if o := w.Spec.Orchestrator; o != "" && o != OrchestratorKubernetes {
		faults.Add("spec.orchestrator", "%q is not %q", o, OrchestratorKubernetes)
	}
	for i, p := range w.Spec.Ports {
		at := fmt.Sprintf("spec.ports[%d]", i)
		if !isDNSLabel(p.Name) {
			faults.Add(at+".name", "%q is not a lower-case DNS label", p.Name)
		}
		faults = append(faults, validatePorts(p.Port, 0, p.Protocol).Under(at)...)
	}
	for i, a := range w.Spec.Addresses {
		if !a.IsValid() || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() || a.Zone() != "" || a.Is4In6() {
			faults.Add(fmt.Sprintf("spec.addresses[%d]", i), "%q is not a unicast address", a)
		}
	}
	return faults
}

func validateMAC(text string) Faults {
	var faults Faults
	if text == "" {
		return nil
	}
	if mac, err := net.ParseMAC(text); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		faults.Add("", "%q is not a unicast MAC such as 02:00:00:00:00:01", text)
	}
	return faults
}

// validateMore checks further interfaces against the first and each other.
func (s *WorkloadSpec) validateMore() Faults {
	var faults Faults
	if s.Interface == "" && len(s.MoreInterfaces) > 0 {
		faults.Add("interface", "is empty and there are more")
	}
	names, taken := []string{s.Interface}, map[netip.Addr]bool{}
	for i, more := range s.MoreInterfaces {
		at := fmt.Sprintf("moreInterfaces[%d]", i)
		if !interfaceName.MatchString(more.Interface) {
			faults.Add(at+".interface", "%q is not a name of 1 to 15 characters without spaces, slashes and colons", more.Interface)
		} else if slices.Contains(names, more.Interface) {
			faults.Add(at+".interface", "%q is another of its interfaces too", more.Interface)
		}
		names = append(names, more.Interface)
		faults = append(faults, validateMAC(more.MAC).Under(at+".mac")...)
		for j, a := range more.Addresses {
			if !slices.Contains(s.Addresses, a) || taken[a] {
				faults.Add(fmt.Sprintf("%s.addresses[%d]", at, j), "%s is not among spec.addresses, or is on two interfaces", a)
			}
			taken[a] = true
		}
	}
	return faults
}

// Host is a machine with an agent.
type Host struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       HostSpec   `json:"spec,omitzero"`
	Status     HostStatus `json:"status,omitzero"`
}

// HostSpec is what people say of a host.
type HostSpec struct {
	// Addresses are the host's own, for policies that mean the host itself.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// MayPlace bounds the workloads that the host may discover: otherwise a compromised
	// host could give any identity to its guests.
	MayPlace Placeable `json:"mayPlace,omitzero"`
	// Wires are pairs of its interfaces between which it is inline.
	Wires []Wire `json:"wires,omitempty"`
}

// Placeable bounds the workloads that a host discovers.
type Placeable struct {
	// Namespaces are those that they may be in; none: any.
	Namespaces []string `json:"namespaces,omitempty"`
	// Addresses are those that they may have; none: any.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
}

// Validate returns the faults of the bounds.
func (p *Placeable) Validate() Faults {
	faults := Side{Namespaces: p.Namespaces}.Validate()
	return append(faults, validatePrefixes(p.Addresses).Under("addresses")...)
}

// HostStatus is what its agent last reported.
type HostStatus struct {
	Version    string `json:"version,omitempty"`
	Kernel     string `json:"kernel,omitempty"`
	Generation uint64 `json:"generation,omitempty"` // in force in the kernel
	// Since is when it came into force.
	Since    time.Time `json:"since,omitzero"`
	LastSeen time.Time `json:"lastSeen,omitzero"`
	// Ports counts the enforcement points that the agent keeps.
	Ports int `json:"ports"`
	// RefusedProfiles are the profiles that the host's inspection engine does not accept,
	// with the engine's message.
	RefusedProfiles map[string]string `json:"refusedProfiles,omitempty"`
	// Sessions are the live connections by which the host is administered. A ruleset that
	// would cut one is not put in force there, unless the risk is accepted.
	Sessions []AdministratorSession `json:"sessions,omitempty"`
	// Failsafe are the host's own interfaces that no enforcement point is put on, whatever
	// policy says.
	Failsafe []FailsafeEntry `json:"failsafe,omitempty"`
	// RiskAccepted is who has accepted that rulesets may cut sessions, and until when.
	RiskAccepted RiskAcceptance `json:"riskAccepted,omitzero"`
	// Candidate is the generation that is evaluated in shadow, CandidateDiffers the number
	// of flows that it would have decided differently so far.
	Candidate        uint64 `json:"candidate,omitempty"`
	CandidateDiffers int64  `json:"candidateDiffers,omitempty"`
	// RevertedFrom is a generation that was not confirmed in time, so that the agent went
	// back by itself.
	RevertedFrom uint64      `json:"revertedFrom,omitempty"`
	Conditions   []Condition `json:"conditions,omitempty"`
}

// Validate implements Resource.
func (h *Host) Validate() Faults {
	faults := append(validateMeta(&h.ObjectMeta, false), validateWires(h.Spec.Wires)...)
	faults = append(faults, h.Spec.MayPlace.Validate().Under("spec.mayPlace")...)
	for i, a := range h.Spec.Addresses {
		if !a.IsValid() || a.IsMulticast() || a.IsUnspecified() || a.Zone() != "" || a.Is4In6() {
			faults.Add(fmt.Sprintf("spec.addresses[%d]", i), "%q is not a unicast address", a)
		}
	}
	return faults
}

// Generation records one compilation: what went in, what came out, what was
// proved. Its name is "g" and the number.
type Generation struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Status     GenerationStatus `json:"status,omitzero"`
}

// GenerationStatus is the record.
type GenerationStatus struct {
	Number   uint64    `json:"number"`
	Digest   string    `json:"digest"`
	Active   bool      `json:"active"`
	Compiled time.Time `json:"compiled"`
	// Duration is the time that the compilation took, in seconds.
	Duration float64 `json:"durationSeconds"`
	Objects  int     `json:"objects"`
	Peers    int     `json:"peers"`
	Groups   int     `json:"groups"`
	Rules    int     `json:"rules"`
	Proofs   []Proof `json:"proofs,omitempty"`
	// Stage is the stage of its rollout.
	Stage string `json:"stage,omitempty"`
	// ConfirmBy is when agents go back unless it is confirmed.
	ConfirmBy time.Time `json:"confirmBy,omitzero"`
	// Changed lists the objects that differ from the generation before, as
	// "Kind namespace/name", at most 100 of them.
	Changed    []string    `json:"changed,omitempty"`
	Conditions []Condition `json:"conditions,omitempty"`
}

// Proof is one statement that was checked over all pairs of a generation.
type Proof struct {
	// Statement says what was to be shown, for people.
	Statement string `json:"statement"`
	By        Ref    `json:"by"`
	Holds     bool   `json:"holds"`
	// Counterexample is a flow that breaks the statement.
	Counterexample string `json:"counterexample,omitempty"`
	// Workloads are those from which more can be reached than a blast radius admits, as
	// "namespace/name", not more than 50 of them.
	Workloads []string `json:"workloads,omitempty"`
	// Standing says that the statement was no better kept by what was in force before, with
	// the same workloads: it keeps back only what makes it worse.
	Standing bool `json:"standing,omitempty"`
}

// Validate implements Resource.
func (g *Generation) Validate() Faults { return validateMeta(&g.ObjectMeta, false) }
