package compile_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestSelectorsThatNobodyAskedMeanwhile asks a selector, then no longer, and again when
// workloads have joined that it does not pick.
func TestSelectorsThatNobodyAskedMeanwhile(t *testing.T) {
	workload := func(n int, app string) *bocage.Workload {
		return &bocage.Workload{
			ObjectMeta: bocage.ObjectMeta{Namespace: "n", Name: app, Labels: map[string]string{"app": app}},
			Spec:       bocage.WorkloadSpec{Host: "h", Interface: app, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})}},
			Status:     bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(n)},
		}
	}
	policy := []*bocage.NetworkPolicy{{ObjectMeta: bocage.ObjectMeta{Namespace: "n", Name: "p"}, Spec: bocage.NetworkPolicySpec{
		PodSelector: bocage.Selector{MatchLabels: map[string]string{"app": "a"}}, Ingress: []bocage.NetworkPolicyIngressRule{{}}}}}
	in := compile.Input{Generation: 1, Now: policytest.Now, NetworkPolicies: policy, Workloads: []*bocage.Workload{workload(1, "a")}}
	compiler := compile.NewCompiler()
	compiler.Compile(in)
	in.NetworkPolicies = nil
	compiler.Compile(in)
	in.Workloads = append(in.Workloads, workload(2, "b"))
	compiler.Compile(in)
	in.NetworkPolicies = policy
	compareJSON(t, "all", compiler.Compile(in).Ruleset(), compile.Compile(in).Ruleset())
}

// TestIdleFollowsTheInvited lets a provider invite by label from everywhere, has
// workloads and consumers come, go and change, and compares whom it is told of who does
// not consume with what is told from nothing.
func TestIdleFollowsTheInvited(t *testing.T) {
	told := 0
	rapid.Check(t, func(t *rapid.T) {
		in := compile.Input{Generation: 1, Now: policytest.Now}
		workload := func(n int) *bocage.Workload {
			at := func(what string, of ...string) string { return rapid.SampledFrom(of).Draw(t, what) }
			return &bocage.Workload{
				ObjectMeta: bocage.ObjectMeta{Namespace: fmt.Sprintf("n%d", n%7), Name: fmt.Sprintf("%s%d", at("name", "v", "w"), n), Labels: map[string]string{
					"app": fmt.Sprintf("app%d", n/2), "tier": at("tier", "web", "web", "db")}},
				Spec:   bocage.WorkloadSpec{Host: "h", Interface: fmt.Sprint(n), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})}},
				Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(n)},
			}
		}
		const workloads = 60
		for n := range workloads {
			in.Workloads = append(in.Workloads, workload(n))
		}
		application := func(n int) *bocage.Application {
			a := &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: fmt.Sprintf("n%d", n%7), Name: fmt.Sprintf("app%d", n)}, Spec: bocage.ApplicationSpec{
				Workload: bocage.Selector{MatchLabels: map[string]string{"app": fmt.Sprintf("app%d", n)}}}}
			if rapid.Bool().Draw(t, "consumes") {
				a.Spec.Consumes = []bocage.Consume{{Service: "n0/provider", Interface: "main"}}
			}
			return a
		}
		provider := &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: "n0", Name: "provider"}, Spec: bocage.ApplicationSpec{
			Workload: bocage.Selector{MatchLabels: map[string]string{"app": "app0"}},
			Provides: []bocage.Provide{{Name: "main", Port: 443, To: bocage.Selector{MatchLabels: map[string]string{"tier": "web"}}, ToNamespaces: []string{"*"}}}}}
		in.Applications = []*bocage.Application{provider}
		for n := range workloads / 2 {
			in.Applications = append(in.Applications, application(n))
		}
		compiler := compile.NewCompiler()
		for step := range 12 {
			if step > 0 {
				switch at := rapid.IntRange(0, len(in.Workloads)-1).Draw(t, "which"); rapid.IntRange(0, 4).Draw(t, "edit") {
				case 0:
					in.Workloads = slices.Delete(slices.Clone(in.Workloads), at, at+1)
				case 1:
					in.Workloads = append(slices.Clone(in.Workloads), workload(workloads+step))
				case 2:
					in.Workloads = replaced(in.Workloads, at, workload(int(in.Workloads[at].Spec.Addresses[0].As4()[3])))
				case 3:
					n := rapid.IntRange(1, len(in.Applications)-1).Draw(t, "application")
					in.Applications = replaced(in.Applications, n, application(n-1))
				default:
					in.Applications = replaced(in.Applications, 0, provider)
					if rapid.Bool().Draw(t, "silent") {
						in.Applications = in.Applications[1:]
						compiler.Compile(in)
						in.Applications = append([]*bocage.Application{provider}, in.Applications...)
					}
				}
			}
			have, want := asJSON(t, compiler.Compile(in).Findings()), asJSON(t, compile.Compile(in).Findings())
			if have != want {
				t.Fatalf("following tells\n%s\nfrom nothing it is\n%s", have, want)
			}
			if stale := compiler.Stale(); stale != "" {
				t.Fatal(stale)
			}
			if strings.Contains(have, "more let in to") {
				told++
			}
		}
	})
	if told == 0 {
		t.Error("nobody is ever told of many")
	}
}
