package compile_test

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestFollowsOtherQuestions has guardrails and policies ask workloads for other labels
// from step to step, so that subjects take other keys, are divided, and become one, all
// at once; what follows has to be what comes from nothing.
func TestFollowsOtherQuestions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := compile.Input{Now: policytest.Now}
		values := []string{"a", "b", "c"}
		keys := []string{"app", "team", "tier", bocage.LabelName, bocage.LabelHost, bocage.LabelZone, bocage.LabelNamespace}
		for i := range rapid.IntRange(2, 14).Draw(t, "workloads") {
			w := &bocage.Workload{
				ObjectMeta: bocage.ObjectMeta{Namespace: rapid.SampledFrom([]string{"m", "n"}).Draw(t, "namespace"), Name: fmt.Sprintf("w%d", i), Labels: map[string]string{}},
				Spec: bocage.WorkloadSpec{Host: rapid.SampledFrom(values).Draw(t, "host"), Interface: fmt.Sprintf("v%d", i),
					Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)})}},
				Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
			}
			for _, key := range keys[:3] {
				if rapid.IntRange(0, 3).Draw(t, "has") > 0 {
					w.Labels[key] = rapid.SampledFrom(values).Draw(t, key)
				}
			}
			if rapid.Bool().Draw(t, "port") {
				w.Spec.Ports = []bocage.NamedPort{{Name: "web", Port: uint16(rapid.IntRange(80, 81).Draw(t, "number"))}}
			}
			in.Workloads = append(in.Workloads, w)
		}
		in.Zones = []*bocage.Zone{{ObjectMeta: bocage.ObjectMeta{Name: "a"}, Spec: bocage.ZoneSpec{Hosts: []string{"a", "b"}}}}
		selector := func() *bocage.Selector {
			s := &bocage.Selector{}
			for range rapid.IntRange(1, 2).Draw(t, "requirements") {
				r := bocage.Requirement{Key: rapid.SampledFrom(keys).Draw(t, "key"), Operator: rapid.SampledFrom([]string{"In", "NotIn", "Exists", "DoesNotExist"}).Draw(t, "operator")}
				if r.Operator == "In" || r.Operator == "NotIn" {
					r.Values = rapid.SliceOfNDistinct(rapid.SampledFrom(append([]string{"w0", "w1", "m"}, values...)), 1, 2, rapid.ID[string]).Draw(t, "values")
				}
				s.MatchExpressions = append(s.MatchExpressions, r)
			}
			return s
		}
		side := func() bocage.Side { return bocage.Side{Workload: selector()} }
		guardrail := func(i int) *bocage.Guardrail {
			g := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("g%d", i)}}
			switch rapid.IntRange(0, 3).Draw(t, "says") {
			case 0:
				g.Spec.Never = []bocage.CellMatch{{From: side(), To: side()}}
			case 1:
				g.Spec.Grant = []bocage.CellMatch{{From: side(), To: side(), Ports: []bocage.PortMatch{{Port: 443}}}}
			case 2:
				g.Spec.Match, g.Spec.Require = bocage.CellMatch{From: side()}, &bocage.Duties{Log: "full"}
			default:
				g.Spec.Separate = &bocage.Separate{By: rapid.SampledFrom(keys[:3]).Draw(t, "by")}
			}
			return g
		}
		policy := func(i int) *bocage.NetworkPolicy {
			port := bocage.NetworkPolicyPort{Port: &bocage.IntOrString{Name: rapid.SampledFrom([]string{"web", "other"}).Draw(t, "name")}}
			return &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Namespace: "n", Name: fmt.Sprintf("p%d", i)}, Spec: bocage.NetworkPolicySpec{
				PodSelector: *selector(), Ingress: []bocage.NetworkPolicyIngressRule{{From: []bocage.NetworkPolicyPeer{{PodSelector: selector()}}, Ports: []bocage.NetworkPolicyPort{port}}}}}
		}
		most := rapid.SampledFrom([]int{0, 1 << 30}).Draw(t, "most spelled out")
		narrow := rapid.SampledFrom(narrows).Draw(t, "narrow")
		compiler := compile.NewCompilerOfHands(most, narrow, rapid.IntRange(1, 2).Draw(t, "hands"))
		var pool []*bocage.Guardrail // also those that come back as they were
		for step := range rapid.IntRange(2, 8).Draw(t, "steps") {
			in.Generation++
			for range rapid.IntRange(1, 2).Draw(t, "edits") {
				switch rapid.IntRange(0, 6).Draw(t, "edit") {
				case 0, 1:
					pool = append(pool, guardrail(rapid.IntRange(0, 3).Draw(t, "which")))
					in.Guardrails = mixed(t, in.Guardrails, pool[len(pool)-1:])
				case 2, 3:
					if len(pool) > 0 {
						in.Guardrails = mixed(t, in.Guardrails, []*bocage.Guardrail{rapid.SampledFrom(pool).Draw(t, "again")})
					}
				case 4:
					in.NetworkPolicies = mixed(t, in.NetworkPolicies, []*bocage.NetworkPolicy{policy(rapid.IntRange(0, 1).Draw(t, "policy"))})
				case 5:
					if len(in.Workloads) == 0 {
						continue
					}
					w := *rapid.SampledFrom(in.Workloads).Draw(t, "workload")
					w.Labels = map[string]string{"app": rapid.SampledFrom(values).Draw(t, "app")}
					in.Workloads = mixed(t, in.Workloads, []*bocage.Workload{&w})
				default:
					z := *in.Zones[0]
					z.Spec.Hosts = rapid.SliceOfNDistinct(rapid.SampledFrom(values), 0, 3, rapid.ID[string]).Draw(t, "hosts")
					in.Zones = []*bocage.Zone{&z}
				}
			}
			want, have := compile.NewCompilerNarrow(most, narrow).Compile(in), compiler.Compile(in)
			if a, b := wholeOutput(t, want), wholeOutput(t, have); a != b {
				t.Fatalf("step %d: following gives\n%s\nfrom nothing it is\n%s\n%s", step, b, a, policytest.Describe(in))
			}
			if a, b := asJSON(t, want.Findings()), asJSON(t, have.Findings()); a != b {
				t.Fatalf("step %d: following tells\n%s\nfrom nothing it is\n%s\n%s", step, b, a, policytest.Describe(in))
			}
		}
	})
}
