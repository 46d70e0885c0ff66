package bocage

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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
	Protocol NetworkProtocol `json:"protocol,omitempty"`
	// Port is a number or a name; none is every port of the protocol.
	Port *IntOrString `json:"port,omitempty"`
	// EndPort makes a range with a numeric Port.
	EndPort *int32 `json:"endPort,omitempty"`
}

// NetworkProtocol is the name of a transport protocol. Not to write one is to mean
// TCP; to write an empty one is a mistake, as it is to Kubernetes.
type NetworkProtocol string

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *NetworkProtocol) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		return errors.New("is empty: name TCP, UDP or SCTP, or leave it out to mean TCP")
	}
	*p = NetworkProtocol(text)
	return nil
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

// Policy types of a NetworkPolicy.
const (
	PolicyTypeIngress = "Ingress"
	PolicyTypeEgress  = "Egress"
)

// Default writes down what a policy means where it says nothing, as Kubernetes does
// before it keeps one: its types, and the protocol of its ports.
func (p *NetworkPolicy) Default() {
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []string{PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, PolicyTypeEgress)
		}
	}
	for _, rule := range p.Spec.Ingress {
		defaultProtocols(rule.Ports)
	}
	for _, rule := range p.Spec.Egress {
		defaultProtocols(rule.Ports)
	}
}

func defaultProtocols(ports []NetworkPolicyPort) {
	for i := range ports {
		if ports[i].Protocol == "" {
			ports[i].Protocol = "TCP"
		}
	}
}

// Validate implements Resource: it refuses what Kubernetes refuses.
func (p *NetworkPolicy) Validate() Faults {
	faults := validateMeta(&p.ObjectMeta, true)
	faults = append(faults, validateLabelSelector(&p.Spec.PodSelector).Under("spec.podSelector")...)
	for i, rule := range p.Spec.Ingress {
		faults = append(faults, validateNetworkPolicyRule(rule.Ports, rule.From, "from").Under(fmt.Sprintf("spec.ingress[%d]", i))...)
	}
	for i, rule := range p.Spec.Egress {
		faults = append(faults, validateNetworkPolicyRule(rule.Ports, rule.To, "to").Under(fmt.Sprintf("spec.egress[%d]", i))...)
	}
	if len(p.Spec.PolicyTypes) > 2 {
		faults.Add("spec.policyTypes", "has %d entries: at most Ingress and Egress", len(p.Spec.PolicyTypes))
		return faults
	}
	for i, t := range p.Spec.PolicyTypes {
		if t != PolicyTypeIngress && t != PolicyTypeEgress {
			faults.Add(fmt.Sprintf("spec.policyTypes[%d]", i), "%q is not Ingress or Egress", t)
		}
	}
	return faults
}

// Warnings are about what Kubernetes takes and warns of: CIDRs with bits beyond their
// length, which say no more than without them, and IPv6 in another form than RFC 5952's.
// They are about a policy that is valid.
func (p *NetworkPolicy) Warnings() Faults {
	var warnings Faults
	add := func(direction string, i int, list string, j int, field, text string) {
		if warning := cidrWarning(text); warning != "" {
			warnings.Add(fmt.Sprintf("spec.%s[%d].%s[%d].ipBlock.%s", direction, i, list, j, field), "%s", warning)
		}
	}
	look := func(direction string, i int, list string, peers []NetworkPolicyPeer) {
		for j, peer := range peers {
			if peer.IPBlock == nil {
				continue
			}
			add(direction, i, list, j, "cidr", peer.IPBlock.CIDR)
			for k, text := range peer.IPBlock.Except {
				add(direction, i, list, j, fmt.Sprintf("except[%d]", k), text)
			}
		}
	}
	for i, rule := range p.Spec.Ingress {
		look("ingress", i, "from", rule.From)
	}
	for i, rule := range p.Spec.Egress {
		look("egress", i, "to", rule.To)
	}
	return warnings
}

// cidrWarning is in Kubernetes' words (GetWarningsForCIDR of k8s.io/apimachinery).
func cidrWarning(text string) string {
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return ""
	case prefix != prefix.Masked():
		return fmt.Sprintf("CIDR value %q is ambiguous in this context (should be %q or %q?)", text, prefix.Masked(), netip.PrefixFrom(prefix.Addr(), prefix.Addr().BitLen()))
	case prefix.Addr().Is6() && prefix.String() != text:
		return fmt.Sprintf("IPv6 CIDR value %q should be in RFC 5952 canonical format (%q)", text, prefix)
	}
	return ""
}

func validateNetworkPolicyRule(ports []NetworkPolicyPort, peers []NetworkPolicyPeer, list string) Faults {
	var faults Faults
	for i, port := range ports {
		faults = append(faults, port.validate().Under(fmt.Sprintf("ports[%d]", i))...)
	}
	for i, peer := range peers {
		faults = append(faults, peer.validate().Under(fmt.Sprintf("%s[%d]", list, i))...)
	}
	return faults
}

func (p NetworkPolicyPort) validate() Faults {
	var faults Faults
	switch p.Protocol {
	case "", "TCP", "UDP", "SCTP":
	default:
		faults.Add("protocol", "%q is not TCP, UDP or SCTP", p.Protocol)
	}
	switch {
	case p.Port == nil:
		if p.EndPort != nil {
			faults.Add("endPort", "a range needs its first port: set port too")
		}
	case p.Port.Name != "":
		if fault := PortNameFault(p.Port.Name); fault != "" {
			faults.Add("port", "%q is not the name of a port: it %s", p.Port.Name, fault)
		}
		if p.EndPort != nil {
			faults.Add("endPort", "a range cannot begin at the named port %q: write its number", p.Port.Name)
		}
	default:
		if !isPort(p.Port.Number) {
			faults.Add("port", "%d is not a port: 1 to 65535, or a name", p.Port.Number)
		}
		if p.EndPort != nil && *p.EndPort < p.Port.Number {
			faults.Add("endPort", "%d is less than port %d", *p.EndPort, p.Port.Number)
		}
		if p.EndPort != nil && !isPort(*p.EndPort) {
			faults.Add("endPort", "%d is not a port: 1 to 65535", *p.EndPort)
		}
	}
	return faults
}

func isPort(n int32) bool { return 1 <= n && n <= 65535 }

// PortNameFault says what keeps a text from being an IANA service name (RFC
// 6335), which is what a port may be called; "" if nothing does.
func PortNameFault(name string) string {
	letter := false
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z':
			letter = true
		case '0' <= c && c <= '9' || c == '-':
		default:
			return "has other characters than a-z, 0-9 and '-'"
		}
	}
	switch {
	case len(name) > 15:
		return "is longer than 15 characters"
	case !letter:
		return "has no letter: write a number without quotes"
	case strings.Contains(name, "--"):
		return "has two '-' in a row"
	case strings.HasPrefix(name, "-") || strings.HasSuffix(name, "-"):
		return "begins or ends with '-'"
	}
	return ""
}

func (p NetworkPolicyPeer) validate() Faults {
	var faults Faults
	if p.PodSelector != nil {
		faults = append(faults, validateLabelSelector(p.PodSelector).Under("podSelector")...)
	}
	if p.NamespaceSelector != nil {
		faults = append(faults, validateLabelSelector(p.NamespaceSelector).Under("namespaceSelector")...)
	}
	switch {
	case p.IPBlock != nil:
		faults = append(faults, p.IPBlock.validate().Under("ipBlock")...)
		if p.PodSelector != nil || p.NamespaceSelector != nil {
			faults.Add("", "an ipBlock stands alone: write the selectors as a peer of their own")
		}
	case p.PodSelector == nil && p.NamespaceSelector == nil:
		faults.Add("", "names nobody: set podSelector, namespaceSelector, both, or ipBlock ({} selects everything)")
	}
	return faults
}

func (b IPBlock) validate() Faults {
	var faults Faults
	if b.CIDR == "" {
		faults.Add("cidr", "is needed, such as 192.0.2.0/24 or 2001:db8::/64")
		return faults
	}
	whole, fault := parseCIDR(b.CIDR)
	if fault != "" {
		faults.Add("cidr", "%q %s", b.CIDR, fault)
	}
	for i, text := range b.Except {
		at := fmt.Sprintf("except[%d]", i)
		part, fault := parseCIDR(text)
		switch {
		case fault != "":
			faults.Add(at, "%q %s", text, fault)
		case whole.IsValid() && (!whole.Contains(part.Addr()) || part.Bits() <= whole.Bits()):
			faults.Add(at, "%s is not a part of %s, smaller than it", text, b.CIDR)
		}
	}
	return faults
}

// parseCIDR reads a CIDR. Bits beyond its length mean nothing: Kubernetes took them
// until 1.36, and clusters keep them. What different software reads differently is
// refused, as since then: leading zeros and IPv4-mapped addresses. It says what is
// wrong, or "".
func parseCIDR(text string) (netip.Prefix, string) {
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return netip.Prefix{}, "is not a CIDR such as 192.0.2.0/24 or 2001:db8::/64"
	case prefix.Addr().Is4In6():
		return netip.Prefix{}, "is an IPv4 address written as IPv6: write it as IPv4"
	}
	return prefix, ""
}

// validateLabelSelector checks a selector as Kubernetes does, which has an eye on
// the values of expressions too.
func validateLabelSelector(s *Selector) Faults {
	faults := s.Validate()
	for i, r := range s.MatchExpressions {
		for j, value := range r.Values {
			if !isLabelValue(value) {
				faults.Add(fmt.Sprintf("matchExpressions[%d].values[%d]", i, j), "%q is not a label value: at most 63 letters, digits, '-', '_' or '.', starting and ending with a letter or digit", value)
			}
		}
	}
	return faults
}

// mostAnnotations bounds the bytes of an object's annotations, keys and values.
const mostAnnotations = 256 << 10

// ValidateAnnotations checks annotations as Kubernetes does: their keys are those
// of labels, in any case. It is for what is being declared. No Validate asks for it:
// policy does not cease to hold because an older version took a key.
func ValidateAnnotations(annotations map[string]string) Faults {
	var faults Faults
	size := 0
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		size += len(key) + len(annotations[key])
		if len(validateLabelKey(strings.ToLower(key))) > 0 {
			faults.Add("metadata.annotations["+key+"]", "%q is not an annotation's key: an optional DNS name and '/', then at most 63 letters, digits, '-', '_' or '.'", key)
		}
	}
	if size > mostAnnotations {
		faults.Add("metadata.annotations", "%d bytes are more than %d", size, mostAnnotations)
	}
	return faults
}
