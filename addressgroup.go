package bocage

import "net/netip"

// AddressGroup names addresses outside the inventory, so that many declarations
// share one list.
type AddressGroup struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       AddressGroupSpec   `json:"spec"`
	Status     AddressGroupStatus `json:"status,omitzero"`
}

// AddressGroupSpec is the declaration.
type AddressGroupSpec struct {
	Description string         `json:"description,omitempty"`
	Addresses   []netip.Prefix `json:"addresses"`
}

// AddressGroupStatus is what the system says of it.
type AddressGroupStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
	// Approval says what a second person has to agree to, or did, where two decide
	// on what takes something out of guardrails' reach. None means that nobody has to.
	Approval *Approval `json:"approval,omitempty"`
	// Approved is the declaration that stays in force while a newer one waits.
	Approved *AddressGroupSpec `json:"approved,omitempty"`
}

// Validate implements Resource.
func (g *AddressGroup) Validate() Faults {
	faults := validateMeta(&g.ObjectMeta, false)
	if len(g.Spec.Addresses) == 0 {
		faults.Add("spec.addresses", "needs at least one CIDR")
	}
	return append(faults, validatePrefixes(g.Spec.Addresses).Under("spec.addresses")...)
}
