package prove_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
)

// consuming is an Application that consumes n names, each at a port of its own or all at one.
func consuming(n int, apart bool) *bocage.Application {
	app := &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: "row", Name: "a"}, Spec: bocage.ApplicationSpec{Workload: *picking("place", "0").Workload}}
	for i := range n {
		port := uint16(443)
		if apart {
			port = uint16(1000 + 2*i)
		}
		app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{External: bocage.External{Name: bocage.DomainName(fmt.Sprintf("n%d.example.com", i))}, Port: port})
	}
	return app
}

// refusing has a Guardrail refuse n prefixes outside.
func refusing(n int) *bocage.Guardrail {
	g := &bocage.Guardrail{ObjectMeta: named("outside")}
	for i := range n {
		g.Spec.Never = append(g.Spec.Never, bocage.CellMatch{To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("198.51.%d.0/24", i))}}})
	}
	return g
}

// TestCompareManyNames compares by many names, at many ports, towards many prefixes: what
// that costs grows as they do, and not as their product does. Allocations are counted, for
// they are the same on a busy machine.
func TestCompareManyNames(t *testing.T) {
	for _, test := range []struct {
		names, prefixes int
		apart           bool
		most            float64
	}{{400, 0, true, 10000}, {400, 0, false, 1300}, {100, 10, true, 10000}, {400, 10, false, 20000}} {
		in := chain(3)
		in.Guardrails = append(in.Guardrails, refusing(test.prefixes))
		before := compile.Compile(in).Ruleset()
		in.Applications = append(in.Applications, consuming(test.names, test.apart))
		after := compile.Compile(in).Ruleset()
		var changes []bocage.ReachChange
		allocated := testing.AllocsPerRun(1, func() { changes = prove.Compare(before, after) })
		if allocated > test.most {
			t.Errorf("%+v: %.0f allocations", test, allocated)
		}
		if len(changes) != test.names {
			t.Errorf("%+v: %d changes, the first: %+v", test, len(changes), changes[:min(len(changes), 3)])
		}
		ways := map[string]bool{}
		for _, c := range changes {
			ways[fmt.Sprint(c.To, c.Protocol, c.Ports)] = c.Before == bocage.VerdictDrop && c.After == bocage.VerdictAllow && c.From == "row place=0"
		}
		for _, c := range in.Applications[0].Spec.Consumes {
			if way := fmt.Sprint(c.External.Name, bocage.ProtocolTCP, bocage.PortRange{First: c.Port, Last: c.Port}); !ways[way] {
				t.Fatalf("%+v: %s does not open: %v", test, way, changes[:min(len(changes), 3)])
			}
		}
	}
}

// TestCompareWhatNoNameMeans has a policy accept names before one that refuses addresses
// of which some can be no name's: of those nothing is said.
func TestCompareWhatNoNameMeans(t *testing.T) {
	policy := func(name string, priority int32, action string, peer bocage.ClusterNetworkPolicyEgressPeer) *bocage.ClusterNetworkPolicy {
		return &bocage.ClusterNetworkPolicy{ObjectMeta: named(name), Spec: bocage.ClusterNetworkPolicySpec{
			Tier: bocage.TierAdmin, Priority: &priority, Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{}},
			Egress: []bocage.ClusterNetworkPolicyEgressRule{{Action: action, To: []bocage.ClusterNetworkPolicyEgressPeer{peer}}}}}
	}
	in := compile.Input{Generation: 1, Now: now}
	for _, name := range []string{"web", "db"} {
		w := workload("shop", name, len(in.Workloads)+1, map[string]string{"app": name})
		w.Spec.Orchestrator = "kubernetes"
		in.Workloads = append(in.Workloads, w)
	}
	in.ClusterNetworkPolicies = []*bocage.ClusterNetworkPolicy{policy("refuse", 20, bocage.ActionDeny,
		bocage.ClusterNetworkPolicyEgressPeer{Networks: []string{"169.254.169.254/32", "203.0.113.0/24", "0.0.0.0/0"}})}
	before := compile.Compile(in).Ruleset()
	in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies, policy("accept", 10, bocage.ActionAccept,
		bocage.ClusterNetworkPolicyEgressPeer{DomainNames: []string{"api.example.com"}}))
	after := compile.Compile(in).Ruleset()
	opens := 0
	for _, c := range prove.Compare(before, after) {
		if !strings.Contains(c.To, "api.example.com") {
			continue
		}
		opens++
		if strings.Contains(c.To, "169.254") {
			t.Errorf("a name opens what it cannot mean: %+v", c)
		}
	}
	if opens == 0 {
		t.Error("the name opens nothing")
	}
	for _, address := range []string{"169.254.169.254", "203.0.113.7"} {
		f := bocage.Flow{Source: in.Workloads[0].Spec.Addresses[0], Destination: netip.MustParseAddr(address), Protocol: bocage.ProtocolTCP, DestinationPort: 443, At: now}
		if verdict, reason := after.DecideNamed(f, "api.example.com"); reason.Would.Allowed() != (address == "203.0.113.7") {
			t.Errorf("%s is decided %s: %+v", f, verdict, reason)
		}
	}
}

// TestCompareSaysNothingOfNobody adds a machine to a cluster of Pods: rules about anybody
// become others, and nobody gets anything by them but who is told by himself.
func TestCompareSaysNothingOfNobody(t *testing.T) {
	pod := func(name string, number int) *bocage.Workload {
		w := workload("shop", name, number, map[string]string{"app": name})
		w.Spec.Orchestrator = "kubernetes"
		return w
	}
	in := compile.Input{Generation: 1, Now: now, Workloads: []*bocage.Workload{pod("web", 1), pod("db", 2)}}
	before := compile.Compile(in).Ruleset()
	in.Workloads = append(slices.Clone(in.Workloads), workload("shop", "vm", 3, map[string]string{"app": "vm"}))
	changes := prove.Compare(before, compile.Compile(in).Ruleset())
	for _, c := range changes {
		if c.From == prove.Everyone || c.To == prove.Everyone || c.After.Allowed() {
			t.Errorf("nobody gets that: %+v", c)
		}
	}
	if len(changes) != 2 { // the machine's address and the Pods, either way
		t.Errorf("%+v", changes)
	}
}

// BenchmarkProveNames proves, from nothing, what names meet at prefixes that a Guardrail
// refuses, each name at a port of its own.
func BenchmarkProveNames(b *testing.B) {
	for _, size := range []struct{ names, prefixes int }{{100, 4}, {1000, 4}, {1000, 40}} {
		b.Run(fmt.Sprintf("%d names, %d prefixes", size.names, size.prefixes), func(b *testing.B) {
			in := chain(3)
			in.Guardrails = append(in.Guardrails, refusing(size.prefixes))
			in.Applications = append(in.Applications, consuming(size.names, true))
			rs := compile.Compile(in).Ruleset()
			for b.Loop() {
				if failed := prove.Failed(prove.Prove(in, rs)); len(failed) > 0 {
					b.Fatal(failed)
				}
			}
		})
	}
}
