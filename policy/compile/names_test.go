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
		for _, namespace := range []string{"shop", "pay", "dev"} {
			app := &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: "names"}}
			for _, port := range []uint16{1, 22, 80, 443} {
				app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{
					External: bocage.External{Name: rapid.SampledFrom(policytest.Names).Draw(t, "name")}, Port: port, EndPort: port + 4})
			}
			in.Applications = append(in.Applications, app)
		}
		oweAndExcept(t, &in)
		rankNames(t, &in)
		rs := compile.CompileSpelling(in, rapid.SampledFrom([]int{0, 1 << 30}).Draw(t, "most spelled out")).Ruleset()
		judge := explain.NewJudge(in)
		moments := policytest.Moments()
		keep, n := rapid.IntRange(0, 19).Draw(t, "sample"), 0
		policytest.Flows(func(f bocage.Flow) {
			if n++; n%20 != keep || rs.Lookup(f.Source).Workload == "" || rs.Lookup(f.Destination).Workload != "" {
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

// oweAndExcept adds a guardrail that asks something of flows to addresses outside, and
// an exception from it that means all of them, some, more, or everyone.
func oweAndExcept(t *rapid.T, in *compile.Input) {
	outside := func(label string) bocage.Side {
		prefix := rapid.SampledFrom([]string{"", "0.0.0.0/0", "203.0.113.0/24", "203.0.113.128/25", "::ffff:203.0.113.0/120"}).Draw(t, label)
		if prefix == "" {
			return bocage.Side{}
		}
		return bocage.Side{External: []netip.Prefix{netip.MustParsePrefix(prefix)}}
	}
	in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "outside"}, Spec: bocage.GuardrailSpec{
		Match: bocage.CellMatch{To: outside("owed to")}, Require: &bocage.Duties{Witness: true}, Exceptions: bocage.ExceptionTerms{Allowed: true}}})
	in.Exceptions = append(in.Exceptions, &bocage.Exception{ObjectMeta: bocage.ObjectMeta{Name: "outside"}, Spec: bocage.ExceptionSpec{
		Guardrail: "outside", Reason: "drawn", Match: bocage.CellMatch{To: outside("excepted to")}, Until: policytest.Now.Add(2 * time.Minute)}})
}

// rankNames adds ClusterNetworkPolicies of both tiers that accept names, and deny or
// pass what is outside, in all orders; some stand in one place with others.
func rankNames(t *rapid.T, in *compile.Input) {
	words := []string{"api.example.com", "*.EXAMPLE.com.", "example.com", "*.b.example.com"}
	networks := []string{"0.0.0.0/0", "203.0.113.0/24", "203.0.113.128/25"}
	for i := range rapid.IntRange(0, 4).Draw(t, "ranked") {
		p := &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("ranked%d", i)}}
		priority := int32(rapid.IntRange(0, 2).Draw(t, "priority"))
		p.Spec.Tier, p.Spec.Priority = rapid.SampledFrom([]string{bocage.TierAdmin, bocage.TierAdmin, bocage.TierBaseline}).Draw(t, "tier"), &priority
		p.Spec.Subject.Namespaces = &bocage.Selector{}
		if rapid.Bool().Draw(t, "one namespace") {
			p.Spec.Subject.Namespaces.MatchLabels = map[string]string{bocage.LabelNamespaceName: rapid.SampledFrom([]string{"shop", "pay", "dev"}).Draw(t, "namespace")}
		}
		for range rapid.IntRange(1, 4).Draw(t, "rules") {
			rule := bocage.ClusterNetworkPolicyEgressRule{Action: bocage.ActionAccept}
			if rapid.Bool().Draw(t, "names") {
				at := rapid.IntRange(0, len(words)-1).Draw(t, "from")
				rule.To = append(rule.To, bocage.ClusterNetworkPolicyEgressPeer{DomainNames: words[at:rapid.IntRange(at+1, len(words)).Draw(t, "to")]})
			} else {
				rule.Action = rapid.SampledFrom([]string{bocage.ActionDeny, bocage.ActionDeny, bocage.ActionPass}).Draw(t, "action")
			}
			if rule.To == nil || rapid.IntRange(0, 7).Draw(t, "mixed") == 0 {
				rule.To = append(rule.To, bocage.ClusterNetworkPolicyEgressPeer{Networks: []string{rapid.SampledFrom(networks).Draw(t, "network")}})
			}
			if port := int32(rapid.SampledFrom([]int{0, 22, 80, 443}).Draw(t, "port")); port > 0 {
				rule.Protocols = []bocage.ClusterNetworkPolicyProtocol{{TCP: &bocage.ClusterNetworkPolicyTransport{DestinationPort: &bocage.ClusterNetworkPolicyPort{Number: &port}}}}
			}
			p.Spec.Egress = append(p.Spec.Egress, rule)
		}
		if faults := p.Validate(); len(faults) > 0 {
			t.Fatalf("%s", faults)
		}
		in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies, p)
	}
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
