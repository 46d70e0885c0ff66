package prove_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
	"bocage.dev/bocage/policy/prove"
)

func TestWhatIsCompiledIsProved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		if rapid.Bool().Draw(t, "names") {
			policytest.DrawNames(t, &in)
		}
		for _, p := range prove.Failed(prove.Prove(in, compile.Compile(in).Ruleset())) {
			t.Fatalf("%s (%s): %s\n%s", p.Statement, p.By, p.Counterexample, policytest.Describe(in))
		}
	})
}

// TestSpoiledRulesetsFail spoils one thing in a ruleset that matters: some proof
// has to notice.
func TestSpoiledRulesetsFail(t *testing.T) {
	in := policytest.Site(100)
	in.ThreatConditions = []*bocage.ThreatCondition{{ObjectMeta: bocage.ObjectMeta{Name: "t"}, Spec: bocage.ThreatConditionSpec{
		Workload: "ns0/w3", Level: bocage.LevelDeepen, Profile: "sql", Expires: policytest.Now.Add(1e9)}}}
	in.Workloads[7].Labels["env"] = "test"
	decisionOf := func(rs *bocage.Ruleset, match func(bocage.Decision) bool) *bocage.Decision {
		i := slices.IndexFunc(rs.Decisions, match)
		if i < 0 {
			t.Fatal("the site has no such decision")
		}
		return &rs.Decisions[i]
	}
	for _, test := range []struct {
		name, statement string
		spoil           func(rs *bocage.Ruleset)
	}{
		{"a refusal becomes an allow", "Guardrail pci never allows", func(rs *bocage.Ruleset) {
			decisionOf(rs, func(d bocage.Decision) bool { return d.Code == bocage.ReasonGuardrail }).Verdict = bocage.VerdictAllow
		}},
		{"a duty to inspect is lost", "inspected with sql", func(rs *bocage.Ruleset) {
			d := decisionOf(rs, func(d bocage.Decision) bool {
				return d.Verdict == bocage.VerdictInspect && !slices.ContainsFunc(d.By, func(r bocage.Ref) bool { return r.Kind == "ThreatCondition" })
			})
			d.Verdict, d.Profile = bocage.VerdictAllow, 0
		}},
		{"a duty to log is lost", "kept in full detail", func(rs *bocage.Ruleset) {
			decisionOf(rs, func(d bocage.Decision) bool {
				return d.Log && d.Until.IsZero() && slices.ContainsFunc(d.By, func(r bocage.Ref) bool { return r.Field == "spec.require.log" })
			}).Log = false
		}},
		{"default allows", "open nothing", func(rs *bocage.Ruleset) {
			decisionOf(rs, func(d bocage.Decision) bool { return d.ID == rs.Default }).Verdict = bocage.VerdictAllow
		}},
		{"enforcement is lifted", "open nothing", func(rs *bocage.Ruleset) { rs.Groups[3].Enforce = false }},
		{"a peer is lost", "every workload", func(rs *bocage.Ruleset) { rs.Peers = slices.Delete(rs.Peers, 5, 6) }},
		{"a decision is lost", "every workload", func(rs *bocage.Ruleset) { rs.Decisions = rs.Decisions[1:] }},
		{"rules overlap", "every workload", func(rs *bocage.Ruleset) {
			r := rs.Rules[0]
			r.Ports.Last = 65535
			rs.Rules = slices.Insert(rs.Rules, 0, r, rs.Rules[0])
		}},
		{"a rule is lost", "one flow at a time", func(rs *bocage.Ruleset) {
			i := slices.IndexFunc(rs.Rules, func(r bocage.Rule) bool { return r.Ports.First == 8080 })
			rs.Rules[i].Ports = bocage.PortRange{First: 8081, Last: 8081}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			rs := compile.Compile(in).Ruleset()
			if failed := prove.Failed(prove.Prove(in, rs)); len(failed) > 0 {
				t.Fatalf("fails unspoiled: %v", failed)
			}
			rs = compile.Compile(in).Ruleset() // without the index of the first
			test.spoil(rs)
			failed := prove.Failed(prove.Prove(in, rs))
			if !slices.ContainsFunc(failed, func(p bocage.Proof) bool {
				return strings.Contains(p.Statement, test.statement) && p.Counterexample != ""
			}) {
				t.Fatalf("no proof about %q fails: %v", test.statement, failed)
			}
			for _, p := range failed {
				t.Logf("%s: %s", p.Statement, p.Counterexample)
			}
		})
	}
}

func BenchmarkProve(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in := policytest.Site(n)
			rs := compile.Compile(in).Ruleset()
			for b.Loop() {
				if failed := prove.Failed(prove.Prove(in, rs)); len(failed) > 0 {
					b.Fatal(failed)
				}
			}
		})
	}
}
