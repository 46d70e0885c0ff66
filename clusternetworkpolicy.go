package bocage

// ClusterNetworkPolicyAPIVersion is the group and version of ClusterNetworkPolicy.
const ClusterNetworkPolicyAPIVersion = "policy.networking.k8s.io/v1alpha2"

// ClusterNetworkPolicy is the Kubernetes network policy working group's own
// (policy.networking.k8s.io), taken as it is: rules of an administrator in two
// tiers, before and after every NetworkPolicy.
type ClusterNetworkPolicy struct {
	TypeMeta   `json:",inline"`
	ObjectMeta `json:"metadata"`
	Spec       ClusterNetworkPolicySpec   `json:"spec"`
	Status     ClusterNetworkPolicyStatus `json:"status,omitzero"`
}

// Tiers of a ClusterNetworkPolicy.
const (
	TierAdmin    = "Admin"    // decides before NetworkPolicies
	TierBaseline = "Baseline" // decides what no NetworkPolicy decided
)

// Actions of a ClusterNetworkPolicy's rule.
const (
	ActionAccept = "Accept"
	ActionDeny   = "Deny"
	ActionPass   = "Pass" // leaves the decision to the next tier
)

// ClusterNetworkPolicySpec is the declaration.
type ClusterNetworkPolicySpec struct {
	// Tier is Admin or Baseline.
	Tier string `json:"tier"`
	// Priority orders the policies of a tier, 0 to 1000, the lowest first. It must
	// be given: a missing one is nil.
	Priority *int32                            `json:"priority"`
	Subject  ClusterNetworkPolicySubject       `json:"subject"`
	Ingress  []ClusterNetworkPolicyIngressRule `json:"ingress,omitempty"`
	Egress   []ClusterNetworkPolicyEgressRule  `json:"egress,omitempty"`
}

// ClusterNetworkPolicySubject is whom the policy is about: exactly one part is set.
type ClusterNetworkPolicySubject struct {
	Namespaces *Selector      `json:"namespaces,omitempty"`
	Pods       *NamespacedPod `json:"pods,omitempty"`
}

// NamespacedPod picks workloads by their namespace's labels and their own.
type NamespacedPod struct {
	// NamespaceSelector picks namespaces; empty is all of them.
	NamespaceSelector Selector `json:"namespaceSelector"`
	// PodSelector must be given; empty is every workload of those namespaces.
	PodSelector *Selector `json:"podSelector"`
}

// ClusterNetworkPolicyIngressRule gives what comes from any of From an action.
type ClusterNetworkPolicyIngressRule struct {
	Name      string                            `json:"name,omitempty"`
	Action    string                            `json:"action"`
	From      []ClusterNetworkPolicyIngressPeer `json:"from"`
	Protocols []ClusterNetworkPolicyProtocol    `json:"protocols,omitempty"`
}

// ClusterNetworkPolicyEgressRule gives what goes to any of To an action.
type ClusterNetworkPolicyEgressRule struct {
	Name      string                           `json:"name,omitempty"`
	Action    string                           `json:"action"`
	To        []ClusterNetworkPolicyEgressPeer `json:"to"`
	Protocols []ClusterNetworkPolicyProtocol   `json:"protocols,omitempty"`
}

// ClusterNetworkPolicyIngressPeer is a source: exactly one part is set.
type ClusterNetworkPolicyIngressPeer struct {
	Namespaces *Selector      `json:"namespaces,omitempty"`
	Pods       *NamespacedPod `json:"pods,omitempty"`
}

// ClusterNetworkPolicyEgressPeer is a destination: exactly one part is set.
type ClusterNetworkPolicyEgressPeer struct {
	Namespaces *Selector      `json:"namespaces,omitempty"`
	Pods       *NamespacedPod `json:"pods,omitempty"`
	// Nodes picks hosts by label.
	Nodes *Selector `json:"nodes,omitempty"`
	// Networks are CIDRs.
	Networks []string `json:"networks,omitempty"`
	// DomainNames are names, "*.example.org" included; Accept rules only.
	DomainNames []string `json:"domainNames,omitempty"`
}

// ClusterNetworkPolicyProtocol is what of a flow is matched: exactly one part
// is set.
type ClusterNetworkPolicyProtocol struct {
	TCP  *ClusterNetworkPolicyTransport `json:"tcp,omitempty"`
	UDP  *ClusterNetworkPolicyTransport `json:"udp,omitempty"`
	SCTP *ClusterNetworkPolicyTransport `json:"sctp,omitempty"`
	// DestinationNamedPort is the name of a port of the destination.
	DestinationNamedPort string `json:"destinationNamedPort,omitempty"`
}

// ClusterNetworkPolicyTransport narrows a protocol to ports; none is all of them.
type ClusterNetworkPolicyTransport struct {
	DestinationPort *ClusterNetworkPolicyPort `json:"destinationPort,omitempty"`
}

// ClusterNetworkPolicyPort is one port or a range.
type ClusterNetworkPolicyPort struct {
	Number *int32                         `json:"number,omitempty"`
	Range  *ClusterNetworkPolicyPortRange `json:"range,omitempty"`
}

// ClusterNetworkPolicyPortRange is a closed interval.
type ClusterNetworkPolicyPortRange struct {
	Start int32 `json:"start"`
	End   int32 `json:"end"`
}

// ClusterNetworkPolicyStatus is what the system says of it.
type ClusterNetworkPolicyStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// Validate implements Resource: it refuses what Kubernetes refuses.
func (p *ClusterNetworkPolicy) Validate() Faults { return validateMeta(&p.ObjectMeta, false) }
