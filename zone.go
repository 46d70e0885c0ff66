package bocage

import "fmt"

// Zone is a part of the data center that fails or is attacked together.
// Workloads on its hosts carry the label bocage.dev/zone with its name.
type Zone struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       ZoneSpec   `json:"spec"`
	Status     ZoneStatus `json:"status,omitzero"`
}

// ZoneSpec is the declaration.
type ZoneSpec struct {
	Description string `json:"description,omitempty"`
	// Hosts are the names of the hosts that stand in it. Of two zones that name
	// one host, the first by name has it.
	Hosts []string `json:"hosts,omitempty"`
}

// ZoneStatus is what the system says of it.
type ZoneStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
	// Approval says what a second person has to agree to, or did, where two decide
	// on what takes something out of guardrails' reach. None means that nobody has to.
	Approval *Approval `json:"approval,omitempty"`
	// Approved is the declaration that stays in force while a newer one waits.
	Approved *ZoneSpec `json:"approved,omitempty"`
}

// ZonesOfHosts tells the zone of each host that some zone lists: of several the
// first by name, in whatever order they are given.
func ZonesOfHosts(zones []*Zone) map[string]string {
	of := map[string]string{}
	for _, z := range zones {
		for _, host := range z.Spec.Hosts {
			if first, known := of[host]; !known || z.Name < first {
				of[host] = z.Name
			}
		}
	}
	return of
}

// Validate implements Resource.
func (z *Zone) Validate() Faults {
	faults := validateMeta(&z.ObjectMeta, false)
	if !isLabelValue(z.Name) {
		faults.Add("metadata.name", "%q is longer than the 63 characters of a label's value", z.Name)
	}
	for i, host := range z.Spec.Hosts {
		if !isDNSSubdomain(host) {
			faults.Add(fmt.Sprintf("spec.hosts[%d]", i), "%q is not a host's name", host)
		}
	}
	return faults
}
