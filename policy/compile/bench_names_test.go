package compile_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
)

// BenchmarkNamesForAll100k is a site of 100,000 workloads and 10,000 policies in which
// a ClusterNetworkPolicy lets everybody reach so many names: a compilation from
// nothing, what it leaves in the heap, edits of an Application and of the names, the
// part of one host, and the proofs. BOCAGE_BENCH_WORKLOADS makes the site smaller.
func BenchmarkNamesForAll100k(b *testing.B) {
	workloads := 100_000
	if n, err := strconv.Atoi(os.Getenv("BOCAGE_BENCH_WORKLOADS")); err == nil {
		workloads = n
	}
	for _, names := range []int{0, 50, 1_000} {
		b.Run(fmt.Sprint(names), func(b *testing.B) {
			for b.Loop() {
				benchmarkNames(b, workloads, names)
			}
		})
	}
}

func benchmarkNames(b *testing.B, workloads, names int) {
	in := withNamesForAll(variedSite(workloads, max(workloads/10, 500)), names)
	m := newMeasured(b)
	live := func() uint64 { runtime.GC(); runtime.GC(); return heap() }
	before := live()
	compiler := compile.NewCompiler()
	var out compile.Output
	m.measure("full", func() compile.Output {
		out = compiler.Compile(in)
		return out
	})
	besides := func(name string, do func()) { // of what was compiled
		m.measure(name, func() compile.Output {
			do()
			return out
		})
	}
	b.ReportMetric(float64(live()-before)/(1<<20), "compiled-MiB")
	var rs *bocage.Ruleset
	besides("flat", func() { rs = out.Ruleset() })
	b.ReportMetric(float64(live()-before)/(1<<20), "flat-MiB")
	b.ReportMetric(float64(len(rs.Rules)), "rules")
	b.ReportMetric(float64(len(rs.Groups)), "groups")
	var cutter *compile.Cutter
	besides("cutter", func() { cutter = compile.NewCutter(rs, in) })
	var part *bocage.Ruleset
	besides("cut", func() { part = cutter.Cut(cutter.Hosts()[0]) })
	text, err := json.Marshal(part.Rules)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(len(part.Rules)), "host-rules")
	b.ReportMetric(float64(len(text))/(1<<10), "host-rules-KiB")
	if os.Getenv("BOCAGE_BENCH_PROVE") != "" {
		var proofs []bocage.Proof
		besides("prove", func() { proofs = prove.Prove(in, rs) })
		for _, p := range proofs {
			if !p.Holds {
				b.Fatalf("%s: %s", p.Statement, p.Counterexample)
			}
		}
		b.ReportMetric(float64(live()-before)/(1<<20), "proved-MiB")
	}
	rs, cutter, part = nil, nil, nil
	r := rand.New(rand.NewPCG(3, 4))
	for n := range 40 {
		in = editApplication(in, r, func(a *bocage.Application) { a.Spec.Provides[0].Port = uint16(20_000 + n) })
		m.measure("application", func() compile.Output { return compiler.Compile(in) })
		if names > 0 && n%4 == 0 {
			in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies[:clusterPolicies:clusterPolicies], namesForAll(names, n/4%2)...)
			m.measure("names", func() compile.Output { return compiler.Compile(in) })
		}
	}
	m.report()
}

// withNamesForAll adds ClusterNetworkPolicies that let everybody reach so many names.
func withNamesForAll(in compile.Input, names int) compile.Input {
	in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies[:clusterPolicies:clusterPolicies], namesForAll(names, 0)...)
	return in
}

// namesForAll accepts names, the last but so many.
func namesForAll(names, less int) []*bocage.ClusterNetworkPolicy {
	priority, rest := int32(100), names-less
	p := &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: "names"}, Spec: bocage.ClusterNetworkPolicySpec{
		Tier: bocage.TierAdmin, Priority: &priority, Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{}}}}
	port := bocage.ClusterNetworkPolicyPort{Number: new(int32)}
	*port.Number = 443
	for n := 0; n < rest; {
		rule := bocage.ClusterNetworkPolicyEgressRule{Action: bocage.ActionAccept,
			Protocols: []bocage.ClusterNetworkPolicyProtocol{{TCP: &bocage.ClusterNetworkPolicyTransport{DestinationPort: &port}}}}
		for len(rule.To) < 25 && n < rest {
			var peer bocage.ClusterNetworkPolicyEgressPeer
			for ; len(peer.DomainNames) < 25 && n < rest; n++ {
				peer.DomainNames = append(peer.DomainNames, fmt.Sprintf("n%d.example.com", n))
			}
			rule.To = append(rule.To, peer)
		}
		p.Spec.Egress = append(p.Spec.Egress, rule)
	}
	if names == 0 {
		return nil
	}
	return []*bocage.ClusterNetworkPolicy{p}
}
