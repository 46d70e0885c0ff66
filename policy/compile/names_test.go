package compile_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/policytest"
)

// TestNamesAgreeWithJudge gives random policies an Application for every namespace
// that consumes names at common ports, and ClusterNetworkPolicies that accept them,
// and holds what is opened by name against the second opinion.
func TestNamesAgreeWithJudge(t *testing.T) {
	heard := []bocage.DomainName{"api.example.com"}
	opened, over := 0, map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		policytest.DrawNames(t, &in)
		most, narrow := rapid.SampledFrom([]int{0, 1 << 30}).Draw(t, "most spelled out"), rapid.SampledFrom(narrows).Draw(t, "narrow")
		rs := compile.NewCompilerNarrow(most, narrow).Compile(in).Ruleset()
		judge := explain.NewJudge(in)
		moments := policytest.Moments()
		keep, n := rapid.IntRange(0, 4).Draw(t, "sample"), 0
		policytest.Flows(func(f bocage.Flow) {
			if n++; n%5 != keep || rs.Lookup(f.Source).Workload == "" || rs.Lookup(f.Destination).Workload != "" {
				return
			}
			f.At = moments[n%len(moments)]
			_, bare := rs.Decide(f)
			verdict, reason := rs.DecideNamed(f, heard...)
			g := judge.JudgeNamed(f, heard...)
			if verdict != g.Verdict || reason.Would != g.Would || reason.Code != g.Code {
				t.Fatalf("%s at %s: compiled says %s (%s, would %s), the objects say %s (%s, would %s)\n%s", f, f.At.Sub(policytest.Now),
					verdict, reason.Code, reason.Would, g.Verdict, g.Code, g.Would, policytest.Describe(in))
			}
			if bare == reason {
				return
			}
			opened++
			d, _ := rs.Decision(reason.Decision)
			refused, _ := rs.Decision(bare.Decision)
			over[fmt.Sprintf("%s over %s, final %v", d.Code, refused.Code, refused.Final)]++
			var owed bocage.Duties
			if d.Duties != nil {
				owed = *d.Duties
			}
			if owed != g.Owed || d.Log != g.Log || !sameAuthors(d.By, g.By) {
				t.Fatalf("%s at %s: compiled owes %+v by %v, the objects ask for %+v by %v\n%s", f, f.At.Sub(policytest.Now), owed, d.By, g.Owed, g.By, policytest.Describe(in))
			}
		})
	})
	for _, kind := range []string{"rule over default-deny, final false", "rule over kubernetes, final false", "kubernetes over default-deny, final false",
		"kubernetes over kubernetes, final false", "kubernetes over kubernetes, final true"} {
		if over[kind] == 0 {
			t.Errorf("no name was opened by %s", kind)
		}
	}
	t.Logf("%d flows opened by name: %v", opened, over)
}

// A guardrail refuses all that shop opens, but for an exception from it that means some
// addresses outside; and a name is accepted. What is owed towards anywhere outside is
// owed towards the name, whoever refuses addresses.
func TestAcceptedNameOwesWhatIsRefused(t *testing.T) {
	in := shop()
	first, later := int32(1), int32(2)
	shopOnly := bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{MatchLabels: map[string]string{bocage.LabelNamespaceName: "shop"}}}
	policy := func(name string, priority *int32, rule bocage.ClusterNetworkPolicyEgressRule) *bocage.ClusterNetworkPolicy {
		return &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.ClusterNetworkPolicySpec{
			Tier: bocage.TierAdmin, Priority: priority, Subject: shopOnly, Egress: []bocage.ClusterNetworkPolicyEgressRule{rule}}}
	}
	in.ClusterNetworkPolicies = []*bocage.ClusterNetworkPolicy{
		policy("names", &first, bocage.ClusterNetworkPolicyEgressRule{Action: bocage.ActionAccept,
			To: []bocage.ClusterNetworkPolicyEgressPeer{{DomainNames: []string{"api.example.com"}}}}),
		policy("outside", &later, bocage.ClusterNetworkPolicyEgressRule{Action: bocage.ActionDeny,
			To: []bocage.ClusterNetworkPolicyEgressPeer{{Networks: []string{"0.0.0.0/0"}}}}),
	}
	excepted := netip.MustParsePrefix("203.0.113.0/24")
	in.Guardrails = []*bocage.Guardrail{
		{ObjectMeta: bocage.ObjectMeta{Name: "closed"}, Spec: bocage.GuardrailSpec{
			Never: []bocage.CellMatch{{From: bocage.Side{Namespaces: []string{"shop"}}}}, Exceptions: bocage.ExceptionTerms{Allowed: true}}},
		{ObjectMeta: bocage.ObjectMeta{Name: "kept"}, Spec: bocage.GuardrailSpec{Require: &bocage.Duties{Witness: true}}},
	}
	in.Exceptions = []*bocage.Exception{{ObjectMeta: bocage.ObjectMeta{Name: "some"}, Spec: bocage.ExceptionSpec{Guardrail: "closed", Reason: "some",
		Match: bocage.CellMatch{To: bocage.Side{External: []netip.Prefix{excepted}}}, Until: after(time.Hour)}}}
	rs, judge := compile.Compile(in).Ruleset(), explain.NewJudge(in)
	for _, test := range []struct {
		to    string
		opens bool
	}{{"203.0.113.7", true}, {"198.51.100.7", false}} {
		f := bocage.Flow{Source: address(0), Destination: netip.MustParseAddr(test.to), DestinationPort: 443, Protocol: bocage.ProtocolTCP, At: policytest.Now}
		_, reason := rs.DecideNamed(f, "api.example.com")
		g := judge.JudgeNamed(f, "api.example.com")
		d, _ := rs.Decision(reason.Decision)
		var owed bocage.Duties
		if d.Duties != nil {
			owed = *d.Duties
		}
		if reason.Would.Allowed() != test.opens || reason.Would != g.Would {
			t.Errorf("%s: compiled says %s by %v, the objects %s by %v", test.to, reason.Would, d.By, g.Would, g.By)
		}
		if test.opens && (owed != g.Owed || !owed.Witness || !sameAuthors(d.By, g.By)) {
			t.Errorf("%s: compiled owes %+v by %v, the objects ask for %+v by %v", test.to, owed, d.By, g.Owed, g.By)
		}
	}
}

// TestNamesThatComeLater has names come and go one after the other, so that their order
// and that of their numbers are not the same, while a guardrail asks for something
// towards addresses outside, which any of them may have.
func TestNamesThatComeLater(t *testing.T) {
	in := shop()
	in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "kept"}, Spec: bocage.GuardrailSpec{
		Match:   bocage.CellMatch{To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}},
		Require: &bocage.Duties{Log: "full"}}}}
	compiler := compile.NewCompiler()
	compiler.Compile(in)
	for _, names := range [][]string{{"m"}, {"m", "c"}, {"m", "c", "x"}, {"c", "x", "a"}, {"x", "a", "b", "y"}, {"b"}, {"b", "a", "z", "c"}} {
		web := *in.Applications[0]
		web.Spec.Consumes = []bocage.Consume{{Service: "api"}}
		for _, name := range names {
			web.Spec.Consumes = append(web.Spec.Consumes, bocage.Consume{External: bocage.External{Name: bocage.DomainName(name + ".example.com")}, Port: 443})
		}
		in.Applications = []*bocage.Application{&web, in.Applications[1]}
		have, want := compiler.Compile(in), compile.Compile(in)
		compareJSON(t, fmt.Sprint(names), have.Ruleset(), want.Ruleset())
		for _, name := range names {
			f := bocage.Flow{Source: address(0), Destination: netip.MustParseAddr("203.0.113.7"), DestinationPort: 443, Protocol: bocage.ProtocolTCP, At: policytest.Now}
			_, reason := have.Ruleset().DecideNamed(f, bocage.DomainName(name+".example.com"))
			if d, _ := have.Ruleset().Decision(reason.Decision); !d.Verdict.Allowed() || !d.Log {
				t.Errorf("%v: towards %s it is %s and log is %v", names, name, d.Verdict, d.Log)
			}
		}
	}
}
