package policytest

import (
	"fmt"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

var (
	portNames = []string{"web", "db"}
	// blocks lie over workloads as well as outside; each has a part to except.
	blocks = [][2]string{{"0.0.0.0/0", "10.0.0.0/8"}, {"10.0.0.0/30", "10.0.0.1/32"}, {"10.0.0.0/8", "10.0.0.4/30"},
		{"203.0.113.0/24", "203.0.113.128/25"}, {"::/0", "fd00::1/128"}, {"fd00::/64", "fd00::/127"}}
)

// drawKubernetes makes policies in Kubernetes' own words.
func drawKubernetes(t *rapid.T, in *compile.Input) {
	for i := range rapid.IntRange(0, 3).Draw(t, "network policies") {
		in.NetworkPolicies = append(in.NetworkPolicies, drawNetworkPolicy(t, i))
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "cluster network policies") {
		in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies, drawClusterNetworkPolicy(t, i))
	}
}

func drawNetworkPolicy(t *rapid.T, i int) *bocage.NetworkPolicy {
	p := &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Namespace: rapid.SampledFrom(namespaces).Draw(t, "namespace"), Name: fmt.Sprintf("np%d", i)}}
	p.Spec.PodSelector = drawSelector(t)
	p.Spec.PolicyTypes = rapid.SampledFrom([][]string{nil, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}}).Draw(t, "types")
	for range rapid.IntRange(0, 2).Draw(t, "ingress") {
		p.Spec.Ingress = append(p.Spec.Ingress, bocage.NetworkPolicyIngressRule{Ports: drawNetworkPorts(t), From: drawNetworkPeers(t)})
	}
	for range rapid.IntRange(0, 2).Draw(t, "egress") {
		p.Spec.Egress = append(p.Spec.Egress, bocage.NetworkPolicyEgressRule{Ports: drawNetworkPorts(t), To: drawNetworkPeers(t)})
	}
	return p
}

func drawNetworkPorts(t *rapid.T) []bocage.NetworkPolicyPort {
	var out []bocage.NetworkPolicyPort
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		p := bocage.NetworkPolicyPort{Protocol: rapid.SampledFrom(protocols[:3]).Draw(t, "protocol")}
		switch rapid.IntRange(0, 3).Draw(t, "port") {
		case 0:
			p.Port = &bocage.IntOrString{Name: rapid.SampledFrom(portNames).Draw(t, "name")}
		case 1:
			p.Port = &bocage.IntOrString{Number: int32(rapid.SampledFrom(ports).Draw(t, "number"))}
		case 2:
			i := rapid.IntRange(0, len(ports)-1).Draw(t, "first")
			last := int32(ports[rapid.IntRange(i, len(ports)-1).Draw(t, "last")])
			p.Port, p.EndPort = &bocage.IntOrString{Number: int32(ports[i])}, &last
		}
		out = append(out, p)
	}
	return out
}

func drawNetworkPeers(t *rapid.T) []bocage.NetworkPolicyPeer {
	var out []bocage.NetworkPolicyPeer
	for range rapid.IntRange(0, 2).Draw(t, "peers") {
		var p bocage.NetworkPolicyPeer
		kind := rapid.IntRange(0, 3).Draw(t, "peer")
		if kind == 0 {
			block := rapid.SampledFrom(blocks).Draw(t, "block")
			p.IPBlock = &bocage.IPBlock{CIDR: block[0]}
			if rapid.Bool().Draw(t, "except") {
				p.IPBlock.Except = block[1:]
			}
		}
		if kind == 1 || kind == 3 {
			s := drawSelector(t)
			p.PodSelector = &s
		}
		if kind == 2 || kind == 3 {
			s := drawNamespaceSelector(t)
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

func drawClusterNetworkPolicy(t *rapid.T, i int) *bocage.ClusterNetworkPolicy {
	p := &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("cnp%d", i)}}
	priority := int32(rapid.IntRange(0, 2).Draw(t, "priority"))
	p.Spec.Tier, p.Spec.Priority = rapid.SampledFrom([]string{bocage.TierAdmin, bocage.TierBaseline}).Draw(t, "tier"), &priority
	p.Spec.Subject.Namespaces, p.Spec.Subject.Pods = drawNamespacesOrPods(t)
	for range rapid.IntRange(0, 2).Draw(t, "ingress") {
		rule := bocage.ClusterNetworkPolicyIngressRule{Action: drawAction(t), Protocols: drawClusterProtocols(t, true)}
		for range rapid.IntRange(1, 2).Draw(t, "peers") {
			var peer bocage.ClusterNetworkPolicyIngressPeer
			peer.Namespaces, peer.Pods = drawNamespacesOrPods(t)
			rule.From = append(rule.From, peer)
		}
		p.Spec.Ingress = append(p.Spec.Ingress, rule)
	}
	for range rapid.IntRange(0, 2).Draw(t, "egress") {
		rule := bocage.ClusterNetworkPolicyEgressRule{Action: drawAction(t)}
		inside := true
		for range rapid.IntRange(1, 2).Draw(t, "peers") {
			var peer bocage.ClusterNetworkPolicyEgressPeer
			switch rapid.IntRange(0, 3).Draw(t, "peer") {
			case 0:
				s := drawSelector(t)
				peer.Nodes, inside = &s, false
			case 1:
				peer.Networks, inside = []string{rapid.SampledFrom(blocks).Draw(t, "network")[0]}, false
			default:
				peer.Namespaces, peer.Pods = drawNamespacesOrPods(t)
			}
			rule.To = append(rule.To, peer)
		}
		rule.Protocols = drawClusterProtocols(t, inside)
		p.Spec.Egress = append(p.Spec.Egress, rule)
	}
	return p
}

func drawAction(t *rapid.T) string {
	return rapid.SampledFrom([]string{bocage.ActionAccept, bocage.ActionDeny, bocage.ActionPass}).Draw(t, "action")
}

func drawNamespacesOrPods(t *rapid.T) (*bocage.Selector, *bocage.NamespacedPod) {
	namespaces := bocage.Selector{}
	if rapid.Bool().Draw(t, "some namespaces") {
		namespaces = drawNamespaceSelector(t)
	}
	if rapid.Bool().Draw(t, "whole namespaces") {
		return &namespaces, nil
	}
	pods := drawSelector(t)
	return nil, &bocage.NamespacedPod{NamespaceSelector: namespaces, PodSelector: &pods}
}

// drawClusterProtocols makes what of a flow is matched; named ports only where
// every peer is inside.
func drawClusterProtocols(t *rapid.T, named bool) []bocage.ClusterNetworkPolicyProtocol {
	var out []bocage.ClusterNetworkPolicyProtocol
	for range rapid.IntRange(0, 2).Draw(t, "protocols") {
		if named && rapid.IntRange(0, 2).Draw(t, "named") == 0 {
			out = append(out, bocage.ClusterNetworkPolicyProtocol{DestinationNamedPort: rapid.SampledFrom(portNames).Draw(t, "name")})
			continue
		}
		i := rapid.IntRange(0, len(ports)-2).Draw(t, "first")
		number := int32(ports[i])
		port := &bocage.ClusterNetworkPolicyPort{Number: &number}
		if rapid.Bool().Draw(t, "range") {
			last := ports[rapid.IntRange(i+1, len(ports)-1).Draw(t, "last")]
			port = &bocage.ClusterNetworkPolicyPort{Range: &bocage.ClusterNetworkPolicyPortRange{Start: number, End: int32(last)}}
		}
		transport := &bocage.ClusterNetworkPolicyTransport{DestinationPort: port}
		if rapid.Bool().Draw(t, "udp") {
			out = append(out, bocage.ClusterNetworkPolicyProtocol{UDP: transport})
		} else {
			out = append(out, bocage.ClusterNetworkPolicyProtocol{TCP: transport})
		}
	}
	return out
}
