package policytest

import (
	"fmt"
	"slices"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

var (
	portNames = []string{"web", "db"}
	// words lie over workloads as well as outside; each block has a part to except.
	words = KubernetesWords{
		Namespaces: namespaces,
		Ports:      ports,
		PortNames:  portNames,
		Blocks: []bocage.IPBlock{
			{CIDR: "0.0.0.0/0", Except: []string{"10.0.0.0/8"}}, {CIDR: "10.0.0.0/30", Except: []string{"10.0.0.1/32"}},
			{CIDR: "10.0.0.0/8", Except: []string{"10.0.0.4/30"}}, {CIDR: "203.0.113.0/24", Except: []string{"203.0.113.128/25"}},
			{CIDR: "::/0", Except: []string{"fd00::1/128"}}, {CIDR: "fd00::/64", Except: []string{"fd00::/127"}},
		},
		Domains:           []string{"api.example.com", "*.EXAMPLE.com.", "example.com", "*.example.net", "*.b.example.com"},
		Selector:          drawSelector,
		NamespaceSelector: drawNamespaceSelector,
	}
)

// KubernetesWords are what drawn policies in Kubernetes' own words can say.
type KubernetesWords struct {
	Namespaces []string
	// Ports are in ascending order: ranges begin and end at them.
	Ports     []uint16
	PortNames []string
	// Blocks are taken with and without what they except, and as networks.
	Blocks []bocage.IPBlock
	// Domains are names outside; without any, no peer is named so.
	Domains []string
	// Selector picks workloads and nodes, NamespaceSelector namespaces.
	Selector, NamespaceSelector func(*rapid.T) bocage.Selector
}

// drawKubernetes makes policies in Kubernetes' own words.
func drawKubernetes(t *rapid.T, in *compile.Input) {
	in.NetworkPolicies = words.NetworkPolicies(t, 3)
	in.ClusterNetworkPolicies = words.ClusterNetworkPolicies(t, 3)
}

// NetworkPolicies makes up to so many of them, all valid.
func (w KubernetesWords) NetworkPolicies(t *rapid.T, most int) []*bocage.NetworkPolicy {
	var out []*bocage.NetworkPolicy
	for i := range rapid.IntRange(0, most).Draw(t, "network policies") {
		p := &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Namespace: rapid.SampledFrom(w.Namespaces).Draw(t, "namespace"), Name: fmt.Sprintf("np%d", i)}}
		p.Spec.PodSelector = w.Selector(t)
		p.Spec.PolicyTypes = rapid.SampledFrom([][]string{nil, {}, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}}).Draw(t, "types")
		for range rapid.IntRange(0, 2).Draw(t, "ingress") {
			p.Spec.Ingress = append(p.Spec.Ingress, bocage.NetworkPolicyIngressRule{Ports: w.networkPorts(t), From: w.networkPeers(t)})
		}
		for range rapid.IntRange(0, 2).Draw(t, "egress") {
			p.Spec.Egress = append(p.Spec.Egress, bocage.NetworkPolicyEgressRule{Ports: w.networkPorts(t), To: w.networkPeers(t)})
		}
		out = append(out, p)
	}
	return out
}

func (w KubernetesWords) networkPorts(t *rapid.T) []bocage.NetworkPolicyPort {
	var out []bocage.NetworkPolicyPort
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		p := bocage.NetworkPolicyPort{Protocol: rapid.SampledFrom([]bocage.NetworkProtocol{"", "TCP", "UDP", "SCTP"}).Draw(t, "protocol")}
		switch rapid.IntRange(0, 3).Draw(t, "port") {
		case 0:
			p.Port = &bocage.IntOrString{Name: rapid.SampledFrom(w.PortNames).Draw(t, "name")}
		case 1:
			p.Port = &bocage.IntOrString{Number: int32(rapid.SampledFrom(w.Ports).Draw(t, "number"))}
		case 2:
			first, last := w.span(t, 0)
			p.Port, p.EndPort = &bocage.IntOrString{Number: first}, &last
		}
		out = append(out, p)
	}
	return out
}

// span makes a range of ports that ends so many of the known ports later at least.
func (w KubernetesWords) span(t *rapid.T, later int) (first, last int32) {
	i := rapid.IntRange(0, len(w.Ports)-1-later).Draw(t, "first")
	return int32(w.Ports[i]), int32(w.Ports[rapid.IntRange(i+later, len(w.Ports)-1).Draw(t, "last")])
}

func (w KubernetesWords) networkPeers(t *rapid.T) []bocage.NetworkPolicyPeer {
	var out []bocage.NetworkPolicyPeer
	for range rapid.IntRange(0, 2).Draw(t, "peers") {
		var p bocage.NetworkPolicyPeer
		kind := rapid.IntRange(0, 3).Draw(t, "peer")
		if kind == 0 {
			block := rapid.SampledFrom(w.Blocks).Draw(t, "block")
			block.Except = slices.Clone(block.Except)
			if rapid.Bool().Draw(t, "whole") {
				block.Except = nil
			}
			p.IPBlock = &block
		}
		if kind == 1 || kind == 3 {
			s := w.Selector(t)
			p.PodSelector = &s
		}
		if kind == 2 || kind == 3 {
			s := w.NamespaceSelector(t)
			p.NamespaceSelector = &s
		}
		out = append(out, p)
	}
	return out
}

// drawNamespaceSelector picks namespaces by the labels that workloads have too,
// or by name.
func drawNamespaceSelector(t *rapid.T) bocage.Selector {
	if rapid.Bool().Draw(t, "by name") {
		return bocage.Selector{MatchLabels: map[string]string{bocage.LabelNamespaceName: rapid.SampledFrom(namespaces).Draw(t, "namespace")}}
	}
	key := rapid.SampledFrom(labelKeys).Draw(t, "key")
	if rapid.Bool().Draw(t, "excluded") {
		return bocage.Selector{MatchExpressions: []bocage.Requirement{{Key: key, Operator: "NotIn", Values: labelPairs[key][:1]}}}
	}
	return bocage.Selector{MatchLabels: map[string]string{key: labelPairs[key][0]}}
}

// ClusterNetworkPolicies makes up to so many of them, all valid, in both tiers;
// some have one priority.
func (w KubernetesWords) ClusterNetworkPolicies(t *rapid.T, most int) []*bocage.ClusterNetworkPolicy {
	var out []*bocage.ClusterNetworkPolicy
	for i := range rapid.IntRange(0, most).Draw(t, "cluster network policies") {
		p := &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("cnp%d", i)}}
		priority := int32(rapid.IntRange(0, 2).Draw(t, "priority"))
		p.Spec.Tier, p.Spec.Priority = rapid.SampledFrom([]string{bocage.TierAdmin, bocage.TierBaseline}).Draw(t, "tier"), &priority
		p.Spec.Subject.Namespaces, p.Spec.Subject.Pods = w.namespacesOrPods(t)
		for range rapid.IntRange(0, 3).Draw(t, "ingress") {
			rule := bocage.ClusterNetworkPolicyIngressRule{Action: drawAction(t), Protocols: w.clusterProtocols(t, true)}
			for range rapid.IntRange(1, 2).Draw(t, "peers") {
				var peer bocage.ClusterNetworkPolicyIngressPeer
				peer.Namespaces, peer.Pods = w.namespacesOrPods(t)
				rule.From = append(rule.From, peer)
			}
			p.Spec.Ingress = append(p.Spec.Ingress, rule)
		}
		for range rapid.IntRange(0, 3).Draw(t, "egress") {
			rule := bocage.ClusterNetworkPolicyEgressRule{Action: drawAction(t)}
			inside := true
			for range rapid.IntRange(1, 2).Draw(t, "peers") {
				peer, within := w.egressPeer(t, rule.Action)
				rule.To, inside = append(rule.To, peer), inside && within
			}
			rule.Protocols = w.clusterProtocols(t, inside)
			p.Spec.Egress = append(p.Spec.Egress, rule)
		}
		out = append(out, p)
	}
	return out
}

// egressPeer also says whether it means workloads, which alone have named ports.
func (w KubernetesWords) egressPeer(t *rapid.T, action string) (peer bocage.ClusterNetworkPolicyEgressPeer, inside bool) {
	switch kind := rapid.IntRange(0, 5).Draw(t, "peer"); {
	case kind == 0:
		s := w.Selector(t)
		peer.Nodes = &s
	case kind == 1:
		peer.Networks = []string{rapid.SampledFrom(w.Blocks).Draw(t, "network").CIDR}
	case kind == 2 && action == bocage.ActionAccept && len(w.Domains) > 0:
		at := rapid.IntRange(0, len(w.Domains)-1).Draw(t, "domain")
		peer.DomainNames = w.Domains[at:rapid.IntRange(at+1, len(w.Domains)).Draw(t, "domains")]
	default:
		inside = true
		peer.Namespaces, peer.Pods = w.namespacesOrPods(t)
	}
	return peer, inside
}

func drawAction(t *rapid.T) string {
	return rapid.SampledFrom([]string{bocage.ActionAccept, bocage.ActionDeny, bocage.ActionPass}).Draw(t, "action")
}

func (w KubernetesWords) namespacesOrPods(t *rapid.T) (*bocage.Selector, *bocage.NamespacedPod) {
	namespaces := bocage.Selector{}
	if rapid.Bool().Draw(t, "some namespaces") {
		namespaces = w.NamespaceSelector(t)
	}
	if rapid.Bool().Draw(t, "whole namespaces") {
		return &namespaces, nil
	}
	pods := w.Selector(t)
	return nil, &bocage.NamespacedPod{NamespaceSelector: namespaces, PodSelector: &pods}
}

// clusterProtocols makes what of a flow is matched; named ports only where every
// peer is inside.
func (w KubernetesWords) clusterProtocols(t *rapid.T, named bool) []bocage.ClusterNetworkPolicyProtocol {
	var out []bocage.ClusterNetworkPolicyProtocol
	for range rapid.IntRange(0, 2).Draw(t, "protocols") {
		if named && rapid.IntRange(0, 2).Draw(t, "named") == 0 {
			out = append(out, bocage.ClusterNetworkPolicyProtocol{DestinationNamedPort: new(rapid.SampledFrom(w.PortNames).Draw(t, "name"))})
			continue
		}
		first, last := w.span(t, 1)
		port := &bocage.ClusterNetworkPolicyPort{Number: &first}
		if rapid.Bool().Draw(t, "range") {
			port = &bocage.ClusterNetworkPolicyPort{Range: &bocage.ClusterNetworkPolicyPortRange{Start: first, End: last}}
		}
		transport := &bocage.ClusterNetworkPolicyTransport{DestinationPort: port}
		switch rapid.IntRange(0, 3).Draw(t, "protocol") {
		case 0:
			out = append(out, bocage.ClusterNetworkPolicyProtocol{UDP: transport})
		case 1:
			out = append(out, bocage.ClusterNetworkPolicyProtocol{SCTP: transport})
		default:
			out = append(out, bocage.ClusterNetworkPolicyProtocol{TCP: transport})
		}
	}
	return out
}
