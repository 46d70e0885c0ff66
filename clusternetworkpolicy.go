package bocage

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// ClusterNetworkPolicyAPIVersion is the group and version of ClusterNetworkPolicy.
const ClusterNetworkPolicyAPIVersion = "policy.networking.k8s.io/v1alpha2"

// ClusterNetworkPolicyLaterVersion has the same fields and meaning, and is stricter
// about networks: no bits may be set beyond their length.
const ClusterNetworkPolicyLaterVersion = "policy.networking.k8s.io/v1beta1"

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
	// DestinationNamedPort is the name of a port of the destination. An empty one is
	// taken, as upstream does, and names no port.
	DestinationNamedPort *string `json:"destinationNamedPort,omitempty"`
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

// Limits of a ClusterNetworkPolicy.
const (
	mostClusterRules    = 25 // of a direction
	mostClusterPeers    = 25 // of a rule; also of its protocols, networks and domain names
	mostClusterPriority = 1000
	longestClusterRule  = 100 // characters of a rule's name
	longestCIDR         = 43  // characters
)

// domainName is what domainNames takes, the odd range of letters included.
var domainName = regexp.MustCompile(`^(\*\.)?([a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$`)

// Validate implements Resource: it refuses what Kubernetes refuses, and what it
// would keep without any implementation being able to act on it: selectors that
// cannot be read, and domain names in rules that do not accept.
func (p *ClusterNetworkPolicy) Validate() Faults {
	faults := validateMeta(&p.ObjectMeta, false)
	spec := &p.Spec
	if spec.Tier != TierAdmin && spec.Tier != TierBaseline {
		faults.Add("spec.tier", "%q is not Admin or Baseline", spec.Tier)
	}
	switch {
	case spec.Priority == nil:
		faults.Add("spec.priority", "is needed: 0 to %d, the lowest first", mostClusterPriority)
	case *spec.Priority < 0 || *spec.Priority > mostClusterPriority:
		faults.Add("spec.priority", "%d is not from 0 to %d", *spec.Priority, mostClusterPriority)
	}
	subject := exactlyOne(part{"namespaces", spec.Subject.Namespaces != nil}, part{"pods", spec.Subject.Pods != nil})
	subject = append(subject, validateSelectors(spec.Subject.Namespaces, spec.Subject.Pods, nil)...)
	faults = append(faults, subject.Under("spec.subject")...)
	faults = append(faults, counted(len(spec.Ingress), 0, mostClusterRules, "rules").Under("spec.ingress")...)
	for i := range spec.Ingress {
		faults = append(faults, spec.Ingress[i].validate().Under(fmt.Sprintf("spec.ingress[%d]", i))...)
	}
	faults = append(faults, counted(len(spec.Egress), 0, mostClusterRules, "rules").Under("spec.egress")...)
	for i := range spec.Egress {
		at := fmt.Sprintf("spec.egress[%d]", i)
		faults = append(faults, spec.Egress[i].validate().Under(at)...)
		if p.APIVersion == ClusterNetworkPolicyLaterVersion {
			faults = append(faults, spec.Egress[i].unmasked().Under(at)...)
		}
	}
	return faults
}

// unmasked finds fault with networks that have bits set beyond their length.
func (r *ClusterNetworkPolicyEgressRule) unmasked() Faults {
	var faults Faults
	for i, peer := range r.To {
		for j, text := range peer.Networks {
			if prefix, err := netip.ParsePrefix(text); err == nil && prefix != prefix.Masked() {
				faults.Add(fmt.Sprintf("to[%d].networks[%d]", i, j), "%s has bits set beyond its length: write %s", text, prefix.Masked())
			}
		}
	}
	return faults
}

func (r *ClusterNetworkPolicyIngressRule) validate() Faults {
	faults := validateClusterRule(r.Name, r.Action, r.Protocols)
	faults = append(faults, counted(len(r.From), 1, mostClusterPeers, "peers").Under("from")...)
	for i, peer := range r.From {
		found := exactlyOne(part{"namespaces", peer.Namespaces != nil}, part{"pods", peer.Pods != nil})
		found = append(found, validateSelectors(peer.Namespaces, peer.Pods, nil)...)
		faults = append(faults, found.Under(fmt.Sprintf("from[%d]", i))...)
	}
	return faults
}

func (r *ClusterNetworkPolicyEgressRule) validate() Faults {
	faults := validateClusterRule(r.Name, r.Action, r.Protocols)
	faults = append(faults, counted(len(r.To), 1, mostClusterPeers, "peers").Under("to")...)
	byName := slices.ContainsFunc(r.Protocols, func(p ClusterNetworkPolicyProtocol) bool { return p.DestinationNamedPort != nil })
	for i := range r.To {
		at := fmt.Sprintf("to[%d]", i)
		faults = append(faults, r.To[i].validate().Under(at)...)
		if byName && (r.To[i].Nodes != nil || r.To[i].Networks != nil || r.To[i].DomainNames != nil) {
			faults.Add(at, "nodes, networks and domain names have no named ports: write the rule's ports as numbers")
		}
		if r.To[i].DomainNames != nil && r.Action != ActionAccept {
			faults.Add(at+".domainNames", "domain names are for Accept rules only: deny with a later, wider rule")
		}
	}
	return faults
}

func (p *ClusterNetworkPolicyEgressPeer) validate() Faults {
	faults := exactlyOne(part{"namespaces", p.Namespaces != nil}, part{"pods", p.Pods != nil}, part{"nodes", p.Nodes != nil}, part{"networks", p.Networks != nil}, part{"domainNames", p.DomainNames != nil})
	faults = append(faults, validateSelectors(p.Namespaces, p.Pods, p.Nodes)...)
	if p.Networks != nil {
		faults = append(faults, counted(len(p.Networks), 1, mostClusterPeers, "CIDRs").Under("networks")...)
		for i, text := range p.Networks {
			at := fmt.Sprintf("networks[%d]", i)
			prefix, err := netip.ParsePrefix(text)
			switch {
			case utf8.RuneCountInString(text) > longestCIDR || err != nil || prefix.Addr().Is4In6():
				faults.Add(at, "%q is not a CIDR such as 10.0.0.0/8 or fd00::/8", text)
			case slices.Contains(p.Networks[:i], text):
				faults.Add(at, "%q is there twice", text)
			}
		}
	}
	if p.DomainNames != nil {
		faults = append(faults, counted(len(p.DomainNames), 1, mostClusterPeers, "names").Under("domainNames")...)
		for i, name := range p.DomainNames {
			at := fmt.Sprintf("domainNames[%d]", i)
			switch {
			case !domainName.MatchString(name):
				faults.Add(at, "%q is not a domain name such as example.org or *.example.org", name)
			case slices.Contains(p.DomainNames[:i], name):
				faults.Add(at, "%q is there twice", name)
			}
		}
	}
	return faults
}

// validateClusterRule checks what rules of both directions have.
func validateClusterRule(name, action string, protocols []ClusterNetworkPolicyProtocol) Faults {
	var faults Faults
	if utf8.RuneCountInString(name) > longestClusterRule {
		faults.Add("name", "is longer than %d characters", longestClusterRule)
	}
	if action != ActionAccept && action != ActionDeny && action != ActionPass {
		faults.Add("action", "%q is not Accept, Deny or Pass", action)
	}
	if protocols == nil {
		return faults
	}
	faults = append(faults, counted(len(protocols), 1, mostClusterPeers, "protocols").Under("protocols")...)
	for i, p := range protocols {
		found := exactlyOne(part{"tcp", p.TCP != nil}, part{"udp", p.UDP != nil}, part{"sctp", p.SCTP != nil}, part{"destinationNamedPort", p.DestinationNamedPort != nil})
		found = append(found, p.TCP.validate().Under("tcp")...)
		found = append(found, p.UDP.validate().Under("udp")...)
		found = append(found, p.SCTP.validate().Under("sctp")...)
		faults = append(faults, found.Under(fmt.Sprintf("protocols[%d]", i))...)
	}
	return faults
}

func (t *ClusterNetworkPolicyTransport) validate() Faults {
	var faults Faults
	switch {
	case t == nil:
	case t.DestinationPort == nil:
		faults.Add("", "says nothing: set destinationPort, a range from 1 to 65535 for every port")
	default:
		port := t.DestinationPort
		found := exactlyOne(part{"number", port.Number != nil}, part{"range", port.Range != nil})
		if port.Number != nil && !isPort(*port.Number) {
			found.Add("number", "%d is not a port: 1 to 65535", *port.Number)
		}
		if r := port.Range; r != nil {
			if !isPort(r.Start) {
				found.Add("range.start", "%d is not a port: 1 to 65535", r.Start)
			}
			if !isPort(r.End) {
				found.Add("range.end", "%d is not a port: 1 to 65535", r.End)
			}
			if r.Start >= r.End {
				found.Add("range", "start %d must be less than end %d: write one port as number", r.Start, r.End)
			}
		}
		faults = found.Under("destinationPort")
	}
	return faults
}

// validateSelectors checks the selectors of a subject or a peer; nil ones are not set.
func validateSelectors(namespaces *Selector, pods *NamespacedPod, nodes *Selector) Faults {
	var faults Faults
	if namespaces != nil {
		faults = append(faults, validateLabelSelector(namespaces).Under("namespaces")...)
	}
	if nodes != nil {
		faults = append(faults, validateLabelSelector(nodes).Under("nodes")...)
	}
	if pods != nil {
		faults = append(faults, validateLabelSelector(&pods.NamespaceSelector).Under("pods.namespaceSelector")...)
		if pods.PodSelector == nil {
			faults.Add("pods.podSelector", "is needed: {} selects every Pod of the namespaces")
		} else {
			faults = append(faults, validateLabelSelector(pods.PodSelector).Under("pods.podSelector")...)
		}
	}
	return faults
}

// counted finds fault with a list that is too short or too long.
func counted(n, least, most int, what string) Faults {
	var faults Faults
	if n < least || n > most {
		faults.Add("", "has %d %s: %d to %d", n, what, least, most)
	}
	return faults
}

// part is a field of which exactly one may be set.
type part struct {
	name string
	set  bool
}

func exactlyOne(parts ...part) Faults {
	var names, set []string
	for _, p := range parts {
		names = append(names, p.name)
		if p.set {
			set = append(set, p.name)
		}
	}
	var faults Faults
	switch {
	case len(set) == 0:
		faults.Add("", "is empty: set exactly one of %s", strings.Join(names, ", "))
	case len(set) > 1:
		faults.Add("", "sets %s: exactly one of them may be set", strings.Join(set, " and "))
	}
	return faults
}
