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
	"bocage.dev/bocage/policy/policytest"
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
	words       = policytest.KubernetesWords{
		Namespaces: namespaces,
		Ports:      []uint16{1, 53, 80, 81, 443, 8080, 65535},
		PortNames:  []string{"web", "dns", "none"},
		Blocks: []bocage.IPBlock{
			{CIDR: "10.0.0.0/8", Except: []string{"10.0.0.0/30"}}, {CIDR: "0.0.0.0/0", Except: []string{"10.0.0.4/31", "192.0.2.128/25"}},
			{CIDR: "192.0.2.0/24"}, {CIDR: "10.0.0.0/30"}, {CIDR: "10.0.0.4/31"}, {CIDR: "10.0.0.1/32"}, {CIDR: "192.0.2.128/25"},
			{CIDR: "0.0.0.0/0"}, {CIDR: "::/0"}, {CIDR: "2001:db8::/32", Except: []string{"2001:db8::/64"}},
		},
		Domains:           []string{"*.example.org"},
		Selector:          drawSelector,
		NamespaceSelector: drawSelector,
	}
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
		for _, name := range words.PortNames[:rapid.IntRange(0, 2).Draw(t, "named ports")] {
			w.Spec.Ports = append(w.Spec.Ports, bocage.NamedPort{Name: name,
				Port: rapid.SampledFrom(words.Ports).Draw(t, "port"), Protocol: rapid.SampledFrom([]string{"", "TCP", "UDP", "SCTP"}).Draw(t, "protocol")})
		}
		c.Workloads = append(c.Workloads, w)
	}
	c.NetworkPolicies = words.NetworkPolicies(t, 5)
	c.ClusterNetworkPolicies = words.ClusterNetworkPolicies(t, 4)
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
	pure := !slices.ContainsFunc(c.Workloads, func(w *bocage.Workload) bool { return w.Spec.Orchestrator != bocage.OrchestratorKubernetes })
	cells := 0
	for _, from := range ends {
		for _, to := range ends {
			if from.workload != nil && from.workload == to.workload {
				continue
			}
			for _, kind := range kinds {
				cells++
				f := kubernetes.Flow{Source: from.address, Destination: to.address, From: from.workload, To: to.workload, Protocol: kind.protocol, Port: kind.port}
				plain := evaluator.Evaluate(f)
				// Among Pods and what is outside, all is open that nobody closes, as upstream
				// has it; rulesets have no say where both ends are outside.
				if open := !plain.Egress.Outcome.Denies() && !plain.Ingress.Outcome.Denies(); pure && plain.Allows != (open && (f.From != nil || f.To != nil)) {
					t.Fatalf("%v: allowed %v (egress %v, ingress %v)", f, plain.Allows, plain.Egress, plain.Ingress)
				}
				compareCell(t, ruleset, f, plain)
				if to.workload != nil || plain.Allows || len(ruleset.Names) == 0 {
					continue
				}
				f.Patterns = []bocage.DomainName{"*.example.org"}
				if named := evaluator.Evaluate(f); named.Allows {
					plain = named
				}
				compareCell(t, ruleset, f, plain, "www.example.org")
			}
		}
	}
	return cells
}

func compareCell(t *rapid.T, ruleset *bocage.Ruleset, f kubernetes.Flow, r kubernetes.Result, heard ...bocage.DomainName) {
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
	_, reason := ruleset.DecideNamed(flow, heard...)
	decision, known := ruleset.Decision(reason.Decision)
	if !known || reason.Would != verdict || reason.Code != code || !slices.Equal(decision.By, by) {
		t.Fatalf("%s: compiled %s %s by %v, evaluated %s %s by %v (egress %v, ingress %v)", flow,
			reason.Would, reason.Code, decision.By, verdict, code, by, r.Egress, r.Ingress)
	}
}
