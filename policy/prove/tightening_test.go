package prove_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
	"bocage.dev/bocage/policy/prove"
)

// TestConditionsOnlyTighten shows of conditions and quarantines that come that they give
// nobody more, and cut off nobody who is protected.
func TestConditionsOnlyTighten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		if rapid.Bool().Draw(t, "names") {
			policytest.DrawNames(t, &in)
		}
		more := in
		more.ThreatConditions, more.Quarantines = slices.Clone(in.ThreatConditions), slices.Clone(in.Quarantines)
		for i := range rapid.IntRange(0, 3).Draw(t, "conditions") {
			c := policytest.DrawThreat(t, 100+i)
			c.Name = fmt.Sprintf("more-%d", i)
			more.ThreatConditions = append(more.ThreatConditions, c)
		}
		for i := range rapid.IntRange(0, 2).Draw(t, "quarantines") {
			q := policytest.DrawQuarantine(t, 100+i)
			q.Name = fmt.Sprintf("more-%d", i)
			more.Quarantines = append(more.Quarantines, q)
		}
		before, now := compile.Compile(in).Ruleset(), compile.Compile(more).Ruleset()
		for _, p := range prove.Failed(prove.Tightening(before, more, now)) {
			t.Fatalf("%s: %s\n%s\nand then\n%s", p.Statement, p.Counterexample, policytest.Describe(in), policytest.Describe(more))
		}
	})
}

// TestWhatIsShownToTighten changes anything, and holds against flows what is said to
// give nobody more.
func TestWhatIsShownToTighten(t *testing.T) {
	shown, tried := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		in, from := policytest.Draw(t), policytest.Draw(t)
		if rapid.Bool().Draw(t, "names") {
			policytest.DrawNames(t, &in)
			policytest.DrawNames(t, &from)
		}
		now := in
		now.Applications = someOf(t, in.Applications, from.Applications)
		now.Guardrails = someOf(t, in.Guardrails, from.Guardrails)
		now.Scopes = someOf(t, in.Scopes, from.Scopes)
		now.Exceptions = someOf(t, in.Exceptions, from.Exceptions)
		now.Responses = someOf(t, in.Responses, from.Responses)
		now.ThreatConditions = someOf(t, in.ThreatConditions, from.ThreatConditions)
		now.Quarantines = someOf(t, in.Quarantines, from.Quarantines)
		now.NetworkPolicies = someOf(t, in.NetworkPolicies, from.NetworkPolicies)
		now.ClusterNetworkPolicies = someOf(t, in.ClusterNetworkPolicies, from.ClusterNetworkPolicies)
		known := rapid.SliceOfDistinct(rapid.SampledFrom([]bocage.DomainName{"api.example.com", "x.b.example.com", "example.com", "db.example.net"}),
			func(n bocage.DomainName) bocage.DomainName { return n }).Draw(t, "known")
		before, after := compile.Compile(in).Ruleset(), compile.Compile(now).Ruleset()
		tried++
		if p := prove.Tightening(before, now, after)[0]; !p.Holds {
			if p.Counterexample == "" {
				t.Fatal("no counterexample")
			}
			return
		}
		shown++
		policytest.Flows(func(f bocage.Flow) {
			if f.At.Before(in.Now) {
				return
			}
			had, was := before.DecideNamed(f, known...)
			has, is := after.DecideNamed(f, known...)
			a, _ := before.Decision(was.Decision)
			b, _ := after.Decision(is.Decision)
			if is.Would.Allowed() && !was.Would.Allowed() || has.Allowed() && !had.Allowed() {
				t.Fatalf("%s at %s: it was %s (would %s), and is %s (would %s)\n%s\nand then\n%s", f.String()+fmt.Sprint(" as ", known), f.At.Sub(in.Now), had, was.Would, has, is.Would,
					policytest.Describe(in), policytest.Describe(now))
			}
			if is.Would.Allowed() && a.Duties != nil && (b.Duties == nil || a.Log && !b.Log || a.Duties.Whole && !b.Duties.Whole || a.Duties.Inspect != "" && b.Duties.Inspect == "") {
				t.Fatalf("%s at %s: it owed %+v, and owes %+v", f, f.At.Sub(in.Now), a.Duties, b.Duties)
			}
		})
	})
	t.Logf("%d of %d changes were shown to tighten", shown, tried)
	if tried > 50 && shown == 0 {
		t.Error("nothing is ever shown to tighten")
	}
}

// someOf leaves some objects out and takes some others in.
func someOf[T bocage.Resource](t *rapid.T, list, other []T) []T {
	if rapid.IntRange(0, 3).Draw(t, "same") > 0 {
		return list
	}
	var out []T
	for _, o := range list {
		if rapid.Bool().Draw(t, "stays") {
			out = append(out, o)
		}
	}
	for _, o := range other {
		there := slices.ContainsFunc(out, func(x T) bool { return x.Meta().NamespacedName() == o.Meta().NamespacedName() })
		if !there && rapid.Bool().Draw(t, "comes") {
			out = append(out, o)
		}
	}
	return out
}

// TestSpoiledTighteningFails spoils one thing in a ruleset that tightens: that has to
// be noticed before it is in force.
func TestSpoiledTighteningFails(t *testing.T) {
	in := policytest.Site(100)
	in.Workloads[7].Labels["env"] = "test"
	in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "lifeline"}, Spec: bocage.GuardrailSpec{
		Protect: []bocage.CellMatch{{From: sideOf("env", "test")}}}})
	tight := in
	tight.ThreatConditions = []*bocage.ThreatCondition{{ObjectMeta: bocage.ObjectMeta{Name: "t"}, Spec: bocage.ThreatConditionSpec{
		Workload: "ns0/w3", Level: bocage.LevelDeepen, Profile: "sql", Expires: policytest.Now.Add(time.Hour)}}}
	before := compile.Compile(in).Ruleset()
	concerned := func(rs *bocage.Ruleset) bocage.Group { return rs.Lookup(in.Workloads[3].Spec.Addresses[0]).Group }
	decisionOf := func(rs *bocage.Ruleset, match func(bocage.Decision) bool) *bocage.Decision {
		for _, r := range rs.Rules {
			if g := concerned(rs); r.From == g || r.To == g {
				if i := slices.IndexFunc(rs.Decisions, func(d bocage.Decision) bool { return d.ID == r.Decision && match(d) }); i >= 0 {
					return &rs.Decisions[i]
				}
			}
		}
		t.Fatal("nobody has such a decision")
		return nil
	}
	for _, test := range []struct {
		name  string
		spoil func(rs *bocage.Ruleset)
	}{
		{"a refusal becomes an allow", func(rs *bocage.Ruleset) {
			decisionOf(rs, func(d bocage.Decision) bool { return !d.Verdict.Allowed() }).Verdict = bocage.VerdictAllow
		}},
		{"a rule allows more ports", func(rs *bocage.Ruleset) {
			i := slices.IndexFunc(rs.Rules, func(r bocage.Rule) bool {
				d, _ := rs.Decision(r.Decision)
				return r.To == concerned(rs) && d.Verdict.Allowed()
			})
			rs.Rules[i].Ports.First--
		}},
		{"the default allows", func(rs *bocage.Ruleset) {
			rs.Decisions[slices.IndexFunc(rs.Decisions, func(d bocage.Decision) bool { return d.ID == rs.Default })].Verdict = bocage.VerdictAllow
		}},
		{"enforcement is lifted", func(rs *bocage.Ruleset) { rs.Groups[3].Enforce = false }},
		{"a peer is lost", func(rs *bocage.Ruleset) { rs.Peers = slices.Delete(rs.Peers, 5, 6) }},
		{"a peer is somebody else", func(rs *bocage.Ruleset) { rs.Peers[5].Group = concerned(rs) }},
		{"somebody protected is cut off", func(rs *bocage.Ruleset) {
			d := bocage.Decision{ID: 4711, Verdict: bocage.VerdictDrop, Code: bocage.ReasonQuarantine, By: []bocage.Ref{{Kind: "ThreatCondition", Name: "t"}}}
			rs.Decisions = append(rs.Decisions, d)
			rs.Refused = append(rs.Refused, bocage.Refusal{Identity: in.Workloads[7].Status.Identity, Decision: d.ID})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			rs := compile.Compile(tight).Ruleset()
			if failed := prove.Failed(prove.Tightening(before, tight, rs)); len(failed) > 0 {
				t.Fatalf("fails unspoiled: %v", failed)
			}
			rs = compile.Compile(tight).Ruleset() // without the index of the first
			test.spoil(rs)
			failed := prove.Failed(prove.Tightening(before, tight, rs.Copy()))
			if len(failed) == 0 || failed[0].Counterexample == "" {
				t.Fatal("nothing fails")
			}
			t.Logf("%s: %s", failed[0].Statement, failed[0].Counterexample)
		})
	}
}

// TestOpenedBehindAStandIn opens a group to everybody that only some could reach before:
// those who could must not stand for those who could not.
func TestOpenedBehindAStandIn(t *testing.T) {
	const target, other = bocage.GroupWorld + 1, bocage.GroupWorld + 2
	site := func(rules ...bocage.Rule) *bocage.Ruleset {
		return &bocage.Ruleset{Default: 1, Rules: rules,
			Decisions: []bocage.Decision{{ID: 1, Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny}, {ID: 2, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule}},
			Groups:    []bocage.GroupInfo{{Group: target, Name: "target", Enforce: true}, {Group: other, Name: "other", Enforce: true}},
			Peers: []bocage.Peer{{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Identity: bocage.IdentityFirst, Group: target},
				{Prefix: netip.MustParsePrefix("10.0.0.2/32"), Identity: bocage.IdentityFirst + 1, Group: other}}}
	}
	allow := func(from, to bocage.Group) bocage.Rule {
		return bocage.Rule{From: from, To: to, Protocol: bocage.ProtocolTCP, Ports: bocage.PortRange{First: 80, Last: 80}, Decision: 2}
	}
	for _, test := range []struct {
		name   string
		before []bocage.Rule
		after  bocage.Rule
		holds  bool
	}{
		{"to it", []bocage.Rule{allow(bocage.GroupWorld, target), allow(target, target)}, allow(bocage.GroupAny, target), false},
		{"from it", []bocage.Rule{allow(target, bocage.GroupWorld), allow(target, target)}, allow(target, bocage.GroupAny), false},
		{"to anybody", []bocage.Rule{allow(bocage.GroupWorld, bocage.GroupWorld)}, allow(bocage.GroupAny, bocage.GroupAny), false},
		{"to all who could", []bocage.Rule{allow(bocage.GroupWorld, target), allow(target, target), allow(other, target)}, allow(bocage.GroupAny, target), true},
	} {
		proofs := prove.Tightening(site(test.before...), compile.Input{Now: policytest.Now}, site(test.after))
		if p := proofs[0]; p.Holds != test.holds {
			t.Errorf("%s: %t: %s", test.name, p.Holds, p.Counterexample)
		}
	}
}

func sideOf(key, value string) bocage.Side {
	return bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{key: value}}}
}

// BenchmarkTightening shows that a condition on one workload of many only tightens.
func BenchmarkTightening(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := policytest.Site(n)
			compiler := compile.NewCompiler()
			before := compiler.Compile(in).Ruleset()
			in.ThreatConditions = []*bocage.ThreatCondition{{ObjectMeta: bocage.ObjectMeta{Name: "t"}, Spec: bocage.ThreatConditionSpec{
				Workload: "ns0/w3", Level: bocage.LevelRestrict, Profile: "sql", Expires: policytest.Now.Add(time.Hour)}}}
			now := compiler.Compile(in).Ruleset()
			for b.Loop() {
				if failed := prove.Failed(prove.Tightening(before, in, now)); len(failed) > 0 {
					b.Fatal(failed)
				}
			}
			b.ReportMetric(float64(len(now.Rules)), "rules")
		})
	}
}
