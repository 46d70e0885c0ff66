package bocage

import (
	"fmt"
	"slices"
	"strings"
)

// Sighting is a workload that a host saw from outside: what its container runtime
// and its links say of it. An agent tells controllers what it sees, and they make
// Workloads of that which this host may vouch for.
type Sighting struct {
	// Source is where it was seen: the path of a runtime's socket.
	Source    string            `json:"source"`
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Spec      WorkloadSpec      `json:"spec"`
	Image     string            `json:"image,omitempty"`
	Digest    string            `json:"digest,omitempty"`
	// Stopped says that it ended a moment ago. It may come back as itself; what it
	// had may be another's at once.
	Stopped bool `json:"stopped,omitempty"`
}

// NamespacedName returns "namespace/name".
func (s *Sighting) NamespacedName() string { return s.Namespace + "/" + s.Name }

// Sightings is everything that a host sees.
type Sightings struct {
	// Sources are all that the host has: what another one saw is gone. Of those,
	// Known are told of in full: what they do not show any more is gone.
	Sources   []string   `json:"sources"`
	Known     []string   `json:"known"`
	Sightings []Sighting `json:"sightings"`
	// Ungoverned says of what runs without an enforcement point in front of it what
	// it is and why.
	Ungoverned []string `json:"ungoverned,omitempty"`
	// Failing says which sources cannot be read, why, and what to do.
	Failing []string `json:"failing,omitempty"`
}

// AssuranceOfSighted is that of a workload whose host says, by what its runtime
// says, who it is.
const AssuranceOfSighted = "L2"

// Bounds on what one host may tell.
const (
	MostSightings  = 4096
	MostUngoverned = 64
)

// SightingName is the name of a workload that a host discovered: it ends in the
// host's own, so that no host speaks for another's, and nobody's declaration is
// meant by chance.
func SightingName(name, host string) string { return name + "." + host }

// Workload makes the declaration that the sighting stands for on the host that
// saw it. Faults say why it stands for none.
func (s *Sighting) Workload(host string) (*Workload, Faults) {
	var faults Faults
	if !strings.HasSuffix(s.Name, SightingName("", host)) {
		faults.Add("metadata.name", "%q is not a name that host %s may give: those end in %q", s.Name, host, SightingName("", host))
	}
	w := &Workload{TypeMeta: TypeMeta{APIVersion: APIVersion, Kind: "Workload"},
		ObjectMeta: ObjectMeta{Namespace: s.Namespace, Name: s.Name, Labels: s.Labels}, Spec: s.Spec,
		Status: WorkloadStatus{Assurance: AssuranceOfSighted, VouchedBy: host, Image: printable(s.Image), Digest: printable(s.Digest)}}
	w.Spec.Host = host
	if w.Spec.Interface == "" || w.Spec.Instance == "" {
		faults.Add("spec", "a host vouches for what stands behind an interface, and for one instance of it")
	}
	if w.Spec.Orchestrator != "" {
		faults.Add("spec.orchestrator", "%q is not for a host to say: it opens what nobody declares", w.Spec.Orchestrator)
	}
	for key := range s.Labels {
		if prefix, _, found := strings.Cut(key, "/"); found && reservedPrefix(prefix) {
			faults.Add("metadata.labels["+key+"]", "is not for a host to give: %s is the system's", prefix)
		}
	}
	return w, append(faults, w.Validate()...)
}

// reservedPrefix says whether labels with a prefix are those of the system or of
// Kubernetes, by which privileges are given.
func reservedPrefix(prefix string) bool {
	for _, reserved := range []string{"bocage.dev", "kubernetes.io", "k8s.io"} {
		if prefix == reserved || strings.HasSuffix(prefix, "."+reserved) {
			return true
		}
	}
	return false
}

// printable keeps what a person can read of a text, and little of it.
func printable(s string) string {
	const most = 512
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s[:min(len(s), most)])
}

// Permits says what of a workload the bounds forbid.
func (p *Placeable) Permits(w *Workload) Faults {
	var faults Faults
	if len(p.Namespaces) > 0 && !slices.Contains(p.Namespaces, w.Namespace) {
		faults.Add("metadata.namespace", "host %s may place nothing in %s (its spec.mayPlace)", w.Spec.Host, w.Namespace)
	}
	for i, a := range w.Spec.Addresses {
		within := len(p.Addresses) == 0
		for _, prefix := range p.Addresses {
			within = within || prefix.Contains(a)
		}
		if !within {
			faults.Add(fmt.Sprintf("spec.addresses[%d]", i), "%s is not among the addresses of host %s (its spec.mayPlace)", a, w.Spec.Host)
		}
	}
	return faults
}
