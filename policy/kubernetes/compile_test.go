package kubernetes_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/kubernetes"
)

// cluster is a small world in which everything that policies can mean is there:
// labels, named ports, nodes, addresses in and out of blocks, Pods and others.
type cluster struct {
	kubernetes.Objects
	outside []netip.Addr
}

var (
	labelKeys   = []string{"app", "tier"}
	labelValues = []string{"a", "b", ""}
	namespaces  = []string{"x", "y", "z"}
	blocks      = []string{"10.0.0.0/8", "10.0.0.0/30", "10.0.0.4/31", "10.0.0.1/32", "192.0.2.0/24", "192.0.2.128/25", "0.0.0.0/0", "::/0", "2001:db8::/32"}
	portNames   = []string{"web", "dns", "none"}
	portNumbers = []int32{1, 53, 80, 81, 443, 8080, 65535}
)

func drawCluster(t *rapid.T, least, most int) cluster {
	var c cluster
	for _, name := range namespaces[:2] { // the third is never declared
		c.Namespaces = append(c.Namespaces, &bocage.Namespace{ObjectMeta: bocage.ObjectMeta{Name: name, Labels: drawLabels(t)}})
	}
	for i := range 2 {
		c.Hosts = append(c.Hosts, &bocage.Host{
			ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("node%d", i), Labels: drawLabels(t)},
			Spec:       bocage.HostSpec{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i*128)})}},
		})
	}
	mixed := rapid.Bool().Draw(t, "others than Pods")
	for i := range rapid.IntRange(least, most).Draw(t, "workloads") {
		w := &bocage.Workload{
			ObjectMeta: bocage.ObjectMeta{Namespace: rapid.SampledFrom(namespaces).Draw(t, "namespace"), Name: fmt.Sprintf("w%d", i), Labels: drawLabels(t)},
			Spec: bocage.WorkloadSpec{Host: fmt.Sprintf("node%d", rapid.IntRange(0, 2).Draw(t, "node")),
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}},
			Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
		}
		switch six := netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1)); rapid.IntRange(0, 5).Draw(t, "family") {
		case 0:
			w.Spec.Addresses = []netip.Addr{six}
		case 1:
			w.Spec.Addresses = append(w.Spec.Addresses, six)
		}
		if !mixed || rapid.Bool().Draw(t, "Pod") {
			w.Spec.Orchestrator = bocage.OrchestratorKubernetes
		}
		for _, name := range portNames[:rapid.IntRange(0, 2).Draw(t, "named ports")] {
			w.Spec.Ports = append(w.Spec.Ports, bocage.NamedPort{Name: name,
				Port: uint16(rapid.SampledFrom(portNumbers).Draw(t, "port")), Protocol: rapid.SampledFrom([]string{"", "TCP", "UDP"}).Draw(t, "protocol")})
		}
		c.Workloads = append(c.Workloads, w)
	}
	for i := range rapid.IntRange(0, 5).Draw(t, "network policies") {
		c.NetworkPolicies = append(c.NetworkPolicies, drawNetworkPolicy(t, i))
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "cluster network policies") {
		c.ClusterNetworkPolicies = append(c.ClusterNetworkPolicies, drawClusterNetworkPolicy(t, i))
	}
	for _, text := range []string{"192.0.2.1", "192.0.2.129", "192.0.2.77", "10.0.0.250", "203.0.113.9", "2001:db8::ffff", "2001:dead::1"} {
		c.outside = append(c.outside, netip.MustParseAddr(text))
	}
	return c
}

func drawLabels(t *rapid.T) map[string]string {
	labels := map[string]string{}
	for _, key := range labelKeys {
		if rapid.IntRange(0, 2).Draw(t, "has label") > 0 {
			labels[key] = rapid.SampledFrom(labelValues).Draw(t, "value")
		}
	}
	return labels
}

func drawSelector(t *rapid.T) bocage.Selector {
	var s bocage.Selector
	switch rapid.IntRange(0, 4).Draw(t, "selector") {
	case 0:
	case 1:
		s.MatchLabels = map[string]string{rapid.SampledFrom([]string{"app", "tier", bocage.LabelNamespaceName}).Draw(t, "key"): rapid.SampledFrom([]string{"a", "b", "x", "z"}).Draw(t, "value")}
	default:
		r := bocage.Requirement{Key: rapid.SampledFrom(labelKeys).Draw(t, "key"), Operator: rapid.SampledFrom([]string{"In", "NotIn", "Exists", "DoesNotExist"}).Draw(t, "operator")}
		if r.Operator == "In" || r.Operator == "NotIn" {
			r.Values = labelValues[:rapid.IntRange(1, 3).Draw(t, "values")]
		}
		s.MatchExpressions = []bocage.Requirement{r}
	}
	return s
}

func maybe[T any](t *rapid.T, draw func(*rapid.T) T) *T {
	if rapid.Bool().Draw(t, "there") {
		v := draw(t)
		return &v
	}
	return nil
}

func drawNetworkPolicy(t *rapid.T, i int) *bocage.NetworkPolicy {
	p := &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Namespace: rapid.SampledFrom(namespaces).Draw(t, "namespace"), Name: fmt.Sprintf("np%d", i)}}
	p.Spec.PodSelector = drawSelector(t)
	p.Spec.PolicyTypes = rapid.SampledFrom([][]string{nil, {}, {"Ingress"}, {"Egress"}, {"Ingress", "Egress"}}).Draw(t, "policy types")
	for range rapid.IntRange(0, 2).Draw(t, "ingress rules") {
		p.Spec.Ingress = append(p.Spec.Ingress, bocage.NetworkPolicyIngressRule{Ports: drawPorts(t), From: drawPeers(t)})
	}
	for range rapid.IntRange(0, 2).Draw(t, "egress rules") {
		p.Spec.Egress = append(p.Spec.Egress, bocage.NetworkPolicyEgressRule{Ports: drawPorts(t), To: drawPeers(t)})
	}
	return p
}

func drawPorts(t *rapid.T) []bocage.NetworkPolicyPort {
	var out []bocage.NetworkPolicyPort
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		p := bocage.NetworkPolicyPort{Protocol: rapid.SampledFrom([]string{"", "TCP", "UDP", "SCTP"}).Draw(t, "protocol")}
		switch rapid.IntRange(0, 3).Draw(t, "port form") {
		case 0:
		case 1:
			p.Port = &bocage.IntOrString{Name: rapid.SampledFrom(portNames).Draw(t, "name")}
		case 2:
			p.Port = &bocage.IntOrString{Number: rapid.SampledFrom(portNumbers).Draw(t, "port")}
		default:
			n := rapid.IntRange(0, len(portNumbers)-1).Draw(t, "first")
			p.Port = &bocage.IntOrString{Number: portNumbers[n]}
			p.EndPort = &portNumbers[rapid.IntRange(n, len(portNumbers)-1).Draw(t, "last")]
		}
		out = append(out, p)
	}
	return out
}

func drawPeers(t *rapid.T) []bocage.NetworkPolicyPeer {
	var out []bocage.NetworkPolicyPeer
	for range rapid.IntRange(0, 2).Draw(t, "peers") {
		var p bocage.NetworkPolicyPeer
		switch rapid.IntRange(0, 3).Draw(t, "peer form") {
		case 0:
			block := rapid.SampledFrom([]*bocage.IPBlock{
				{CIDR: "10.0.0.0/8", Except: []string{"10.0.0.0/30"}}, {CIDR: "0.0.0.0/0", Except: []string{"10.0.0.4/31", "192.0.2.128/25"}},
				{CIDR: "192.0.2.0/24"}, {CIDR: "10.0.0.1/32"}, {CIDR: "0.0.0.0/0"}, {CIDR: "::/0"}, {CIDR: "2001:db8::/32", Except: []string{"2001:db8::/64"}},
			}).Draw(t, "block")
			p.IPBlock = block
		case 1:
			s := drawSelector(t)
			p.PodSelector, p.NamespaceSelector = &s, maybe(t, drawSelector)
		default:
			s := drawSelector(t)
			p.NamespaceSelector, p.PodSelector = &s, maybe(t, drawSelector)
		}
		out = append(out, p)
	}
	return out
}

func drawClusterNetworkPolicy(t *rapid.T, i int) *bocage.ClusterNetworkPolicy {
	priority := rapid.Int32Range(0, 2).Draw(t, "priority")
	p := &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("cnp%d", i)}}
	p.Spec.Tier = rapid.SampledFrom([]string{bocage.TierAdmin, bocage.TierBaseline}).Draw(t, "tier")
	p.Spec.Priority = &priority
	p.Spec.Subject.Namespaces, p.Spec.Subject.Pods = drawWho(t)
	actions := rapid.SampledFrom([]string{bocage.ActionAccept, bocage.ActionDeny, bocage.ActionPass})
	for range rapid.IntRange(0, 3).Draw(t, "ingress rules") {
		r := bocage.ClusterNetworkPolicyIngressRule{Action: actions.Draw(t, "action"), Protocols: drawProtocols(t, true)}
		for range rapid.IntRange(1, 2).Draw(t, "peers") {
			var peer bocage.ClusterNetworkPolicyIngressPeer
			peer.Namespaces, peer.Pods = drawWho(t)
			r.From = append(r.From, peer)
		}
		p.Spec.Ingress = append(p.Spec.Ingress, r)
	}
	for range rapid.IntRange(0, 3).Draw(t, "egress rules") {
		r := bocage.ClusterNetworkPolicyEgressRule{Action: actions.Draw(t, "action")}
		named := true
		for range rapid.IntRange(1, 2).Draw(t, "peers") {
			var peer bocage.ClusterNetworkPolicyEgressPeer
			switch rapid.IntRange(0, 5).Draw(t, "peer form") {
			case 0:
				s := drawSelector(t)
				peer.Nodes, named = &s, false
			case 1:
				peer.Networks, named = []string{rapid.SampledFrom(blocks).Draw(t, "network")}, false
			case 2:
				if r.Action == bocage.ActionAccept {
					peer.DomainNames, named = []string{"*.example.org"}, false
					break
				}
				fallthrough
			default:
				peer.Namespaces, peer.Pods = drawWho(t)
			}
			r.To = append(r.To, peer)
		}
		r.Protocols = drawProtocols(t, named)
		p.Spec.Egress = append(p.Spec.Egress, r)
	}
	return p
}

func drawWho(t *rapid.T) (*bocage.Selector, *bocage.NamespacedPod) {
	namespace, pod := drawSelector(t), drawSelector(t)
	if rapid.Bool().Draw(t, "whole namespaces") {
		return &namespace, nil
	}
	return nil, &bocage.NamespacedPod{NamespaceSelector: namespace, PodSelector: &pod}
}

func drawProtocols(t *rapid.T, named bool) []bocage.ClusterNetworkPolicyProtocol {
	var out []bocage.ClusterNetworkPolicyProtocol
	for range rapid.IntRange(0, 2).Draw(t, "protocols") {
		var p bocage.ClusterNetworkPolicyProtocol
		n := rapid.IntRange(0, len(portNumbers)-2).Draw(t, "port")
		port := &bocage.ClusterNetworkPolicyPort{Number: &portNumbers[n]}
		if rapid.Bool().Draw(t, "range") {
			port = &bocage.ClusterNetworkPolicyPort{Range: &bocage.ClusterNetworkPolicyPortRange{Start: portNumbers[n], End: portNumbers[n+1]}}
		}
		transport := &bocage.ClusterNetworkPolicyTransport{DestinationPort: port}
		switch rapid.IntRange(0, 3).Draw(t, "protocol") {
		case 0:
			p.UDP = transport
		case 1:
			p.SCTP = transport
		case 2:
			if named {
				p.DestinationNamedPort = rapid.SampledFrom(portNames).Draw(t, "name")
				break
			}
			fallthrough
		default:
			p.TCP = transport
		}
		out = append(out, p)
	}
	return out
}

// TestCompiledAsEvaluated compares every cell of random clusters: the compiled
// tables against the evaluator, verdict, reason and authors.
func TestCompiledAsEvaluated(t *testing.T) {
	cells := 0
	rapid.Check(t, func(t *rapid.T) {
		var kinds []traffic
		for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolSCTP} {
			for _, port := range []uint16{1, 53, 79, 80, 81, 443, 8080, 65535} {
				kinds = append(kinds, traffic{protocol, port})
			}
		}
		cells += drawCluster(t, 1, 8).compare(t, append(kinds, traffic{protocol: bocage.ProtocolICMP}))
	})
	t.Logf("%d cells", cells)
	if !t.Failed() && cells < 200_000 {
		t.Errorf("%d cells are too few to mean much", cells)
	}
}

// TestManyCompiledAsEvaluated does the same for more workloads than the compiler
// writes down pair by pair.
func TestManyCompiledAsEvaluated(t *testing.T) {
	cells := 0
	rapid.Check(t, func(t *rapid.T) {
		kinds := rapid.SampledFrom([][]traffic{{{bocage.ProtocolTCP, 80}, {bocage.ProtocolICMP, 0}}, {{bocage.ProtocolUDP, 53}}, {{bocage.ProtocolSCTP, 443}}}).Draw(t, "traffic")
		cells += drawCluster(t, 40, 100).compare(t, kinds)
	})
	t.Logf("%d cells", cells)
}

type traffic struct {
	protocol bocage.Protocol
	port     uint16
}

// compare goes through all pairs of addresses, those of one workload apart (see
// kubernetes.Flow), and counts the cells.
func (c cluster) compare(t *rapid.T, kinds []traffic) int {
	for _, p := range c.NetworkPolicies {
		if faults := p.Validate(); len(faults) > 0 {
			t.Fatalf("%s: %v", p.Name, faults)
		}
	}
	for _, p := range c.ClusterNetworkPolicies {
		if faults := p.Validate(); len(faults) > 0 {
			t.Fatalf("%s: %v", p.Name, faults)
		}
	}
	ruleset := compile.Compile(compile.Input{Namespaces: c.Namespaces, Workloads: c.Workloads, Hosts: c.Hosts,
		NetworkPolicies: c.NetworkPolicies, ClusterNetworkPolicies: c.ClusterNetworkPolicies}).Ruleset()
	evaluator := kubernetes.NewEvaluator(c.Objects)
	type end struct {
		address  netip.Addr
		workload *bocage.Workload
	}
	var ends []end
	for _, w := range c.Workloads {
		for _, a := range w.Spec.Addresses {
			ends = append(ends, end{a, w})
		}
	}
	for _, a := range c.outside {
		ends = append(ends, end{a, nil})
	}
	cells := 0
	for _, from := range ends {
		for _, to := range ends {
			if from.workload != nil && from.workload == to.workload {
				continue
			}
			for _, kind := range kinds {
				cells++
				f := kubernetes.Flow{Source: from.address, Destination: to.address, From: from.workload, To: to.workload, Protocol: kind.protocol, Port: kind.port}
				compareCell(t, ruleset, f, evaluator.Evaluate(f))
			}
		}
	}
	return cells
}

func compareCell(t *rapid.T, ruleset *bocage.Ruleset, f kubernetes.Flow, r kubernetes.Result) {
	verdict, code, by := bocage.VerdictDrop, bocage.ReasonDefaultDeny, []bocage.Ref(nil)
	switch {
	case r.Refuses:
		code, by = bocage.ReasonKubernetes, r.By
	case r.Allows:
		verdict, code, by = bocage.VerdictAllow, bocage.ReasonKubernetes, r.By
	case len(r.Withheld) > 0:
		code, by = bocage.ReasonKubernetes, r.Withheld
	}
	flow := bocage.Flow{Source: f.Source, Destination: f.Destination, Protocol: f.Protocol, DestinationPort: f.Port}
	_, reason := ruleset.Decide(flow)
	decision, known := ruleset.Decision(reason.Decision)
	if !known || reason.Would != verdict || reason.Code != code || !slices.Equal(decision.By, by) {
		t.Fatalf("%s: compiled %s %s by %v, evaluated %s %s by %v (egress %v, ingress %v)", flow,
			reason.Would, reason.Code, decision.By, verdict, code, by, r.Egress, r.Ingress)
	}
}
