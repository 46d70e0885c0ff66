package bocage

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
)

// NetworkPolicyAPIVersion is the group and version of NetworkPolicy.
const NetworkPolicyAPIVersion = "networking.k8s.io/v1"

// NetworkPolicy is Kubernetes' own (networking.k8s.io/v1), taken as it is:
// field names, defaults and meaning are upstream's.
type NetworkPolicy struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       NetworkPolicySpec   `json:"spec"`
	Status     NetworkPolicyStatus `json:"status,omitzero"`
}

// NetworkPolicySpec is the declaration.
type NetworkPolicySpec struct {
	// PodSelector picks the workloads of the policy's namespace that it isolates.
	PodSelector Selector `json:"podSelector"`
	// Ingress lists what may come in; PolicyTypes says whether it counts.
	Ingress []NetworkPolicyIngressRule `json:"ingress,omitempty"`
	// Egress lists what may go out.
	Egress []NetworkPolicyEgressRule `json:"egress,omitempty"`
	// PolicyTypes are Ingress, Egress or both. Without any, Ingress always, and
	// Egress if there are egress rules.
	PolicyTypes []string `json:"policyTypes,omitempty"`
}

// NetworkPolicyIngressRule allows what matches both lists; an empty list
// matches everything.
type NetworkPolicyIngressRule struct {
	Ports []NetworkPolicyPort `json:"ports,omitempty"`
	From  []NetworkPolicyPeer `json:"from,omitempty"`
}

// NetworkPolicyEgressRule allows what matches both lists; an empty list
// matches everything.
type NetworkPolicyEgressRule struct {
	Ports []NetworkPolicyPort `json:"ports,omitempty"`
	To    []NetworkPolicyPeer `json:"to,omitempty"`
}

// NetworkPolicyPort is a protocol with a port, a range of ports, or the name of
// a port of the destination.
type NetworkPolicyPort struct {
	// Protocol is TCP (the default), UDP or SCTP.
	Protocol string `json:"protocol,omitempty"`
	// Port is a number or a name; none is every port of the protocol.
	Port *IntOrString `json:"port,omitempty"`
	// EndPort makes a range with a numeric Port.
	EndPort *int32 `json:"endPort,omitempty"`
}

// NetworkPolicyPeer is who is on the other side: workloads by label, in the
// policy's namespace or in those that NamespaceSelector picks, or a block of
// addresses.
type NetworkPolicyPeer struct {
	PodSelector       *Selector `json:"podSelector,omitempty"`
	NamespaceSelector *Selector `json:"namespaceSelector,omitempty"`
	IPBlock           *IPBlock  `json:"ipBlock,omitempty"`
}

// IPBlock is a CIDR without some CIDRs inside it.
type IPBlock struct {
	CIDR   string   `json:"cidr"`
	Except []string `json:"except,omitempty"`
}

// NetworkPolicyStatus is what the system says of it.
type NetworkPolicyStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// IntOrString is a port's number or name, as Kubernetes writes either.
type IntOrString struct {
	// Name is set if it was written as text.
	Name string
	// Number is what counts if Name is empty.
	Number int32
}

func (v IntOrString) String() string {
	if v.Name != "" {
		return v.Name
	}
	return strconv.Itoa(int(v.Number))
}

// MarshalJSON writes a number or a text.
func (v IntOrString) MarshalJSON() ([]byte, error) {
	if v.Name != "" {
		return json.Marshal(v.Name)
	}
	return json.Marshal(v.Number)
}

// UnmarshalJSON reads a number or a text.
func (v *IntOrString) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte(`"`)) {
		*v = IntOrString{}
		return json.Unmarshal(data, &v.Name)
	}
	*v = IntOrString{}
	if err := json.Unmarshal(data, &v.Number); err != nil {
		return fmt.Errorf("%s is neither a port number nor the name of a port", data)
	}
	return nil
}

// Validate implements Resource: it refuses what Kubernetes refuses.
func (p *NetworkPolicy) Validate() Faults { return validateMeta(&p.ObjectMeta, true) }
