package bocage

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// PolicyTest states what policy must decide, so that a change which breaks it is
// seen before it is in force.
type PolicyTest struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       PolicyTestSpec   `json:"spec"`
	Status     PolicyTestStatus `json:"status,omitzero"`
}

// PolicyTestSpec is the declaration.
type PolicyTestSpec struct {
	Cases []PolicyTestCase `json:"cases"`
	// Blocks keeps a new generation from coming into force if a case that holds under the
	// present one fails under the new one, unless a kind that overrules the owners of
	// namespaces, such as a Guardrail, decided so.
	Blocks bool `json:"blocks,omitempty"`
}

// PolicyTestCase is one flow, or all flows between two sides, with what is
// expected of it.
type PolicyTestCase struct {
	Name string `json:"name,omitempty"`
	// From and To are "namespace/name" of a workload or an address. To may be a DNS name,
	// which stands for an external address with this name about which nothing specific is
	// declared.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// FromAll and ToAll pick ends by namespace, label or address instead: the
	// case must hold for every pair.
	FromAll *Side  `json:"fromAll,omitempty"`
	ToAll   *Side  `json:"toAll,omitempty"`
	Port    uint16 `json:"port,omitempty"`
	// Protocol is TCP unless said otherwise.
	Protocol string `json:"protocol,omitempty"`
	// At is the moment to decide for; zero is now.
	At     time.Time         `json:"at,omitzero"`
	Expect PolicyExpectation `json:"expect"`
	// Because says why, for the person whose change breaks it.
	Because string `json:"because,omitempty"`
}

// PolicyExpectation is the expected result. Empty parts are not compared.
type PolicyExpectation struct {
	// Reach is allow or refuse.
	Reach string `json:"reach"`
	// Disposition of what is refused: drop, reject or decoy.
	Disposition string `json:"disposition,omitempty"`
	// Duties must all be owed, by name, or "name=value": inspect, log=full.
	Duties []string `json:"duties,omitempty"`
	// By is the object that must have decided, as "Kind namespace/name".
	By string `json:"by,omitempty"`
}

// Values of PolicyExpectation.Reach.
const (
	ReachAllow  = "allow"
	ReachRefuse = "refuse"
)

// PolicyTestStatus is what the system says of it.
type PolicyTestStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
	// Failed lists the cases that do not hold under the generation in force.
	Failed []string `json:"failed,omitempty"`
}

// Validate implements Resource.
func (t *PolicyTest) Validate() Faults {
	faults := validateMeta(&t.ObjectMeta, true)
	if len(t.Spec.Cases) == 0 {
		faults.Add("spec.cases", "needs at least one case")
	}
	for i, c := range t.Spec.Cases {
		faults = append(faults, c.validate().Under(fmt.Sprintf("spec.cases[%d]", i))...)
	}
	return faults
}

func (c PolicyTestCase) validate() Faults {
	var faults Faults
	for _, end := range []struct {
		field, name string
		all         *Side
	}{{"from", c.From, c.FromAll}, {"to", c.To, c.ToAll}} {
		switch {
		case (end.name == "") == (end.all == nil):
			faults.Add(end.field, "needs either %s or %sAll", end.field, end.field)
		case end.all != nil:
			faults = append(faults, end.all.Validate().Under(end.field+"All")...)
		case !IsWorkloadName(end.name):
			_, err := netip.ParseAddr(end.name)
			if name, wrong := ParseDomainName(end.name); err != nil && wrong == nil && end.field == "to" {
				if _, pattern := name.Wildcard(); pattern {
					faults.Add(end.field, "%s is a pattern of names: name one of them", name)
				}
				continue
			}
			if err != nil && end.field == "to" {
				faults.Add(end.field, "%q is neither namespace/name of a workload, nor an address, nor a DNS name", end.name)
			} else if err != nil {
				faults.Add(end.field, "%q is neither namespace/name of a workload nor an address", end.name)
			}
		}
	}
	faults = append(faults, validatePorts(c.Port, 0, c.Protocol)...)
	if !slices.Contains([]string{ReachAllow, ReachRefuse}, c.Expect.Reach) {
		faults.Add("expect.reach", "%q is neither allow nor refuse", c.Expect.Reach)
	}
	if c.Expect.Reach == ReachAllow && c.Expect.Disposition != "" {
		faults.Add("expect.disposition", "only what is refused has one")
	}
	return append(faults, validateDisposition(c.Expect.Disposition).Under("expect.disposition")...)
}
