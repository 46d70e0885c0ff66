package simulate

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/policytest"
)

// named is small with an application that consumes names, and one that consumes a
// prefix and all that is outside.
func named() compile.Input {
	in := small()
	api := in.Applications[0]
	api.Spec.Consumes = append(api.Spec.Consumes, bocage.Consume{External: bocage.External{Name: "api.example.com"}, Port: 443},
		bocage.Consume{External: bocage.External{Name: "*.example.org"}, Port: 8443, Protocol: "UDP"})
	web := in.Applications[1]
	web.Spec.Consumes = append(web.Spec.Consumes, bocage.Consume{External: bocage.ExternalPrefix(netip.MustParsePrefix("0.0.0.0/0")), Port: 80})
	in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "bad"}, Spec: bocage.GuardrailSpec{
		Never: []bocage.CellMatch{{To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}}}}})
	return in
}

func TestNamedAnswers(t *testing.T) {
	s, out := Compile(named())
	for _, f := range out.Findings() {
		if f.Rejected {
			t.Errorf("%s: %s", f.Object, f.Message)
		}
	}
	for _, test := range []struct {
		probe                             bocage.SimulateProbe
		verdict, reason, decider, missing string
	}{
		{bocage.SimulateProbe{From: "shop/api", To: "api.example.com", Port: 443}, "allow", "rule", "spec.consumes[2].external", "withdraw Application shop/api spec.consumes[2]"},
		{bocage.SimulateProbe{From: "shop/api", To: "API.Example.com.", Port: 443}, "allow", "rule", "spec.consumes[2].external", "to refuse it"},
		{bocage.SimulateProbe{From: "shop/api", To: "a.b.example.org", Port: 8443, Protocol: "UDP"}, "allow", "rule", "spec.consumes[3].external", "to refuse it"},
		{bocage.SimulateProbe{From: "shop/api", To: "example.org", Port: 8443, Protocol: "UDP"}, "deny", "default-deny", "", "external: example.org"},
		{bocage.SimulateProbe{From: "shop/api", To: "api.example.com", Port: 444}, "deny", "default-deny", "", "port: 444"},
		{bocage.SimulateProbe{From: "shop/db", To: "api.example.com", Port: 443}, "deny", "default-deny", "", "external: api.example.com"},
		// All that is outside, and what else is known of an address.
		{bocage.SimulateProbe{From: "shop/web", To: "other.example.com", Port: 80}, "allow", "rule", "spec.consumes[1].external", ""},
		{bocage.SimulateProbe{From: "shop/api", To: "192.0.2.9", Name: "api.example.com", Port: 443}, "allow", "rule", "spec.consumes[2].external", ""},
		{bocage.SimulateProbe{From: "shop/api", To: "192.0.2.9", Port: 443}, "deny", "default-deny", "", ""},
		{bocage.SimulateProbe{From: "shop/api", To: "198.51.100.9", Name: "api.example.com", Port: 443}, "deny", "guardrail", "spec.never[0]", ""},
		{bocage.SimulateProbe{From: "shop/api", To: "127.0.0.1", Name: "api.example.com", Port: 443}, "deny", "default-deny", "", ""},
		{bocage.SimulateProbe{From: "shop/api", To: "dev/web", Name: "api.example.com", Port: 443}, "deny", "default-deny", "", ""},
		{bocage.SimulateProbe{From: "198.51.100.1", To: "api.example.com", Port: 443}, "deny", "", "", ""},
	} {
		a := s.Answer(test.probe)
		if a.Error != "" || a.Verdict != test.verdict || test.reason != "" && a.Reason != test.reason || !strings.HasPrefix(test.decider, a.Decision.Field) ||
			a.Decision.Field == "" && test.decider != "" || !strings.Contains(a.Missing, test.missing) {
			t.Errorf("%+v\nanswered %+v", test.probe, a)
		}
	}
	for _, test := range []struct {
		probe bocage.SimulateProbe
		say   string
	}{
		{bocage.SimulateProbe{From: "shop/api", To: "*.example.org", Port: 443}, "is a pattern of names"},
		{bocage.SimulateProbe{From: "shop/api", To: "192.0.2.1", Name: "*.example.org", Port: 443}, "is a pattern of names"},
		{bocage.SimulateProbe{From: "shop/api", To: "192.0.2.1", Name: "no name", Port: 443}, "name: "},
		{bocage.SimulateProbe{From: "api.example.com", To: "shop/api", Port: 443}, "from: "},
		{bocage.SimulateProbe{From: "shop/api", To: "nobody", Port: 443}, "neither an address nor a workload"},
	} {
		if a := s.Answer(test.probe); !strings.Contains(a.Error, test.say) {
			t.Errorf("%+v\nanswered %+v, want %q", test.probe, a, test.say)
		}
	}
}

// PolicyTests may hold about names, too.
func TestNamedCases(t *testing.T) {
	s, _ := Compile(named())
	for _, test := range []struct {
		c      bocage.PolicyTestCase
		passed bool
		got    string
	}{
		{bocage.PolicyTestCase{From: "shop/api", To: "API.example.com.", Port: 443, Expect: bocage.PolicyExpectation{Reach: bocage.ReachAllow, By: "Application shop/api"}}, true, "allow (rule)"},
		{bocage.PolicyTestCase{From: "shop/db", To: "api.example.com", Port: 443, Expect: bocage.PolicyExpectation{Reach: bocage.ReachAllow}}, false, "refuse by drop (default-deny)"},
		{bocage.PolicyTestCase{FromAll: &bocage.Side{Workload: &bocage.Selector{}}, To: "api.example.com", Port: 443, Expect: bocage.PolicyExpectation{Reach: bocage.ReachRefuse}}, false, "allow (rule)"},
	} {
		if faults := (&bocage.PolicyTest{ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: "t"}, Spec: bocage.PolicyTestSpec{Cases: []bocage.PolicyTestCase{test.c}}}).Validate(); len(faults) > 0 {
			t.Errorf("%+v: %s", test.c, faults)
		}
		r := s.testCase(test.c)
		if r.Passed != test.passed || !strings.Contains(r.Got, test.got) {
			t.Errorf("%+v: %+v", test.c, r)
		}
	}
	for _, to := range []string{"*.example.com", "nobody"} {
		bad := bocage.PolicyTestCase{From: "shop/api", To: to, Port: 443, Expect: bocage.PolicyExpectation{Reach: bocage.ReachAllow}}
		if faults := (&bocage.PolicyTest{ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: "t"}, Spec: bocage.PolicyTestSpec{Cases: []bocage.PolicyTestCase{bad}}}).Validate(); len(faults) != 1 {
			t.Errorf("to %s: %s", to, faults)
		}
		if r := s.testCase(bad); r.Passed || !strings.HasPrefix(r.Got, "to: ") {
			t.Errorf("to %s: %+v", to, r)
		}
	}
}

// A name that a ClusterNetworkPolicy accepts goes before what Kubernetes refuses later.
func TestAnswersByAcceptedNames(t *testing.T) {
	in := named()
	one, two := int32(1), int32(2)
	everyone := bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{}}
	outside := []bocage.ClusterNetworkPolicyEgressPeer{{Networks: []string{"0.0.0.0/0", "::/0"}}}
	in.ClusterNetworkPolicies = []*bocage.ClusterNetworkPolicy{
		{ObjectMeta: bocage.ObjectMeta{Name: "allowlist"}, Spec: bocage.ClusterNetworkPolicySpec{Tier: bocage.TierAdmin, Priority: &one, Subject: everyone,
			Egress: []bocage.ClusterNetworkPolicyEgressRule{
				{Action: bocage.ActionAccept, To: []bocage.ClusterNetworkPolicyEgressPeer{{DomainNames: []string{"*.cloud.example", "cloud.example"}}}},
				{Action: bocage.ActionDeny, To: outside}}}},
		{ObjectMeta: bocage.ObjectMeta{Name: "late"}, Spec: bocage.ClusterNetworkPolicySpec{Tier: bocage.TierAdmin, Priority: &two, Subject: everyone,
			Egress: []bocage.ClusterNetworkPolicyEgressRule{{Action: bocage.ActionAccept, To: []bocage.ClusterNetworkPolicyEgressPeer{{DomainNames: []string{"late.example"}}}}}}},
	}
	s, _ := Compile(in)
	for _, test := range []struct {
		probe                             bocage.SimulateProbe
		verdict, reason, decider, missing string
	}{
		{bocage.SimulateProbe{From: "shop/api", To: "a.cloud.example", Port: 443}, "allow", "kubernetes", "spec.egress[0]", "take *.cloud.example out of ClusterNetworkPolicy allowlist spec.egress[0]"},
		{bocage.SimulateProbe{From: "shop/db", To: "192.0.2.9", Name: "cloud.example", Port: 1}, "allow", "kubernetes", "spec.egress[0]", "take cloud.example out of"},
		{bocage.SimulateProbe{From: "shop/db", To: "192.0.2.9", Port: 1}, "deny", "kubernetes", "spec.egress[1]", "networks"},
		{bocage.SimulateProbe{From: "shop/db", To: "late.example", Port: 443}, "deny", "kubernetes", "spec.egress[1]", "domainNames:"},
		{bocage.SimulateProbe{From: "shop/api", To: "api.example.com", Port: 443}, "deny", "kubernetes", "spec.egress[1]", "domainNames:"},
		{bocage.SimulateProbe{From: "shop/api", To: "198.51.100.9", Name: "cloud.example", Port: 443}, "deny", "guardrail", "spec.never[0]", ""},
	} {
		a := s.Answer(test.probe)
		if a.Error != "" || a.Verdict != test.verdict || a.Reason != test.reason || a.Decision.Field != test.decider || !strings.Contains(a.Missing, test.missing) {
			t.Errorf("%+v\nanswered %+v", test.probe, a)
		}
	}
}

// Answers to probes with a name are those of DecideNamed.
func TestNamedAnswersAgreeWithTheRuleset(t *testing.T) {
	in := named()
	s, out := Compile(in)
	rs := out.Ruleset()
	names := []string{"api.example.com", "x.example.org", "example.org", "other.test"}
	addresses := []string{"192.0.2.1", "203.0.113.7", "198.51.100.3", "127.0.0.1", "10.0.0.3", "224.0.0.1"}
	allowed := 0
	for _, w := range in.Workloads {
		for _, name := range names {
			for _, to := range addresses {
				for _, port := range []uint16{80, 443, 8443} {
					for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP} {
						probe := bocage.SimulateProbe{From: w.Namespace + "/" + w.Name, To: to, Name: name, Port: port, Protocol: protocol.String()}
						f := bocage.Flow{Source: w.Spec.Addresses[0], Destination: netip.MustParseAddr(to), Protocol: protocol, DestinationPort: port, At: policytest.Now}
						_, want := rs.DecideNamed(f, bocage.DomainName(name))
						got := s.Verdict(probe)
						if (got.Verdict == "allow") != want.Would.Allowed() || got.Reason != want.Code.String() {
							t.Errorf("%+v\nanswered %+v, want %+v", probe, got, want)
						}
						if _, plain := rs.Decide(f); plain != want {
							allowed++
						}
					}
				}
			}
		}
	}
	if allowed == 0 || !slices.ContainsFunc(rs.Names, func(n bocage.Name) bool { return n.Name == "*.example.org" }) {
		t.Errorf("%d answers by names", allowed)
	}
}

// However one asks about a flow to a name, by a probe, for an explanation or of the judge,
// who knows of no tables, the answer is the same; an explanation tells of every other
// address what it gets there; and what is advised does turn the verdict.
func TestEverybodyAgreesOnNames(t *testing.T) {
	counts, drawn := map[string]int{}, 0
	rapid.Check(t, func(t *rapid.T) {
		drawn++
		in := policytest.Draw(t)
		policytest.DrawNames(t, &in)
		s, out := Compile(in)
		rs, judge := out.Ruleset(), explain.NewJudge(in)
		if most := rapid.IntRange(0, 3).Draw(t, "said once"); most > 0 {
			rs = policytest.Share(rs, func(bocage.GroupPair) bool { return rapid.IntRange(1, 4).Draw(t, "pair") < most })
			s = New(in, rs)
		}
		name := rapid.SampledFrom([]bocage.DomainName{"api.example.com", "x.b.example.com", "example.com", "db.example.net"}).Draw(t, "name")
		port := rapid.SampledFrom([]uint16{2, 22, 80, 443, 9000}).Draw(t, "port")
		advised := 0
		for _, workload := range s.Workloads() {
			probe := bocage.SimulateProbe{From: workload, To: string(name), Port: port}
			a := s.Verdict(probe)
			if a.Error != "" {
				t.Fatalf("%+v: %s", probe, a.Error)
			}
			q, _ := s.question(probe)
			f := bocage.Flow{Source: q.from.Address, Destination: q.to.Address, DestinationPort: port, Protocol: bocage.ProtocolTCP, At: in.Now}
			somewhere := judge.Somewhere(f.Destination, name)
			e, g := somewhere.ExplainNamed(rs, f, name), judge.JudgeNamed(f, name)
			if (a.Verdict == "allow") != e.Reason.Would.Allowed() || a.Reason != e.Reason.Code.String() || g.Would != e.Reason.Would || g.Code != e.Reason.Code || g.Verdict != e.Verdict ||
				slices.ContainsFunc(e.Layers, func(l bocage.Layer) bool { return l.Name == explain.LayerCheck }) {
				t.Fatalf("%s to %s/%d: the probe says %s (%s), the explanation %s (%s), the judge %s (%s)\n%+v\n%s", workload, name, port,
					a.Verdict, a.Reason, e.Reason.Would, e.Reason.Code, g.Would, g.Code, e.Layers, policytest.Describe(in))
			}
			counts[e.Reason.Would.String()+" "+e.Reason.Code.String()]++
			counts["elsewhere"] += s.checkElsewhere(t, judge, f, name, e.Reason)
			if advised < 3 {
				advised++
				advice := somewhere.AdviseNamed(f, name)
				if advice.Text != e.Missing || strings.Contains(advice.Text, f.Destination.String()) {
					t.Fatalf("%s to %s/%d: advises %q, the explanation %q", workload, name, port, advice.Text, e.Missing)
				}
				for _, steps := range [][]explain.Step{advice.Steps, advice.Otherwise} {
					var changes []explain.Change
					for _, step := range steps {
						changes = append(changes, step.Change)
					}
					after := explain.NewJudge(explain.Apply(in, changes)).JudgeNamed(f, name)
					enforced := e.Verdict.Allowed() && !e.Reason.Would.Allowed() && !after.Verdict.Allowed()
					if len(steps) > 0 && after.Would.Allowed() == e.Reason.Would.Allowed() && !enforced {
						t.Fatalf("%s to %s/%d, %s (%s): what is advised does not turn it:\n%s\n%s", workload, name, port, e.Reason.Would, e.Reason.Code, advice.Text, policytest.Describe(in))
					}
				}
				if len(advice.Steps) == 0 {
					counts["hopeless"]++
				}
			}
		}
	})
	for _, kind := range []string{"allow rule", "allow kubernetes", "drop default-deny", "drop guardrail", "elsewhere"} {
		if counts[kind] == 0 && drawn >= 100 { // a few say nothing of what is drawn
			t.Errorf("nothing of the kind %q was drawn: %v", kind, counts)
		}
	}
	t.Log(counts)
}

// checkElsewhere holds what is told of other addresses against the ruleset and the judge.
func (s *Simulator) checkElsewhere(t *rapid.T, judge *explain.Judge, f bocage.Flow, name bocage.DomainName, usual bocage.Reason) int {
	told := s.Elsewhere(f, name, true)
	_, bare := s.rs.Decide(f)
	listed := map[netip.Prefix]bocage.Reason{}
	more := map[bocage.Reason]int{}
	for _, e := range told {
		if len(e.Addresses) == 0 && (e.Reason != bare || bare == usual) {
			t.Fatalf("%s without the name: told %+v, the ruleset says %+v", f, e, bare)
		}
		for _, p := range e.Addresses {
			listed[p] = e.Reason
		}
		more[e.Reason] = e.More
	}
	for i, p := range s.rs.Peers {
		at, some := s.somebody(p.Prefix)
		if !some || at.peer != int32(i) || !s.isOutside(at) || at.Address.Is4() != f.Source.Is4() {
			continue
		}
		there := f
		there.Destination = at.Address
		_, want := s.rs.DecideNamed(there, name)
		if g := judge.JudgeNamed(there, name); g.Would != want.Would || g.Code != want.Code {
			t.Fatalf("%s as %s: the judge says %s (%s), the ruleset %+v", there, name, g.Would, g.Code, want)
		}
		got, is := listed[p.Prefix]
		if !is && want != usual && more[want] == 0 || is && got != want {
			t.Fatalf("%s as %s: told %+v (%v), the ruleset says %+v; usually %+v", there, name, got, is, want, usual)
		}
	}
	return len(listed)
}

// Whatever is asked of names gets an answer or an error that says which part is wrong.
func FuzzNamedProbes(f *testing.F) {
	for _, seed := range [][2]string{{"api.example.com", ""}, {"*.example.org", ""}, {"192.0.2.1", "API.Example.com."}, {"shop/db", "a.b.example.org"}, {"::ffff:192.0.2.1", "x.y"}, {"..", "1.2"}, {"shop.", "*."}} {
		f.Add(seed[0], seed[1], uint16(443))
	}
	in := named()
	s, out := Compile(in)
	rs := out.Ruleset()
	judge := explain.NewJudge(in)
	f.Fuzz(func(t *testing.T, to, name string, port uint16) {
		probe := bocage.SimulateProbe{From: "shop/api", To: to, Name: name, Port: port}
		a := s.Answer(probe)
		q, err := s.question(probe)
		if (err != nil) != (a.Error != "") {
			t.Fatalf("%+v: %+v, %v", probe, a, err)
		}
		if err != nil || q.name == "" {
			return
		}
		flow := bocage.Flow{Source: q.from.Address, Destination: q.to.Address, DestinationPort: port, Protocol: bocage.ProtocolTCP, At: in.Now}
		if g := judge.JudgeNamed(flow, q.name); (a.Verdict == "allow") != g.Would.Allowed() || a.Reason != g.Code.String() {
			t.Fatalf("%+v: answered %+v, the judge says %s (%s)", probe, a, g.Would, g.Code)
		}
		if e := judge.ExplainNamed(rs, flow, q.name); e.Reason.Code.String() != a.Reason {
			t.Fatalf("%+v: answered %+v, explained as %+v", probe, a, e.Reason)
		}
	})
}
