package prove_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
	"bocage.dev/bocage/policy/prove"
)

// TestFollowingProvesTheSame lets a Prover follow changes of everything that it
// remembers something of, with rulesets that keep what was declared and with some of
// which decisions were lost, and compares what holds with what a new one finds.
func TestFollowingProvesTheSame(t *testing.T) {
	failed := 0
	rapid.Check(t, func(t *rapid.T) {
		in, other := policytest.Draw(t), policytest.Draw(t)
		var prover prove.Prover
		for step := range 5 {
			out := compile.Compile(in).Ruleset()
			if step > 0 && rapid.IntRange(0, 2).Draw(t, "opened") == 0 {
				out = opened(out)
			}
			have, want := prover.Prove(in, out), prove.Prove(in, out)
			if len(have) != len(want) {
				t.Fatalf("step %d: %d proofs, from nothing %d", step, len(have), len(want))
			}
			for i := range want {
				if have[i].Holds != want[i].Holds || have[i].By != want[i].By {
					t.Fatalf("step %d: %s (%s) holds: %v, from nothing: %v (%s%s)\n%s", step, have[i].Statement, have[i].By, have[i].Holds, want[i].Holds,
						have[i].Counterexample, want[i].Counterexample, policytest.Describe(in))
				}
				if !want[i].Holds {
					failed++
				}
			}
			switch rapid.IntRange(0, 6).Draw(t, "changes") {
			case 0:
				in.Applications = slices.Concat(in.Applications[:len(in.Applications)/2], other.Applications[len(other.Applications)/2:])
			case 1:
				in.Guardrails = other.Guardrails
			case 2:
				in.Exceptions, in.AddressGroups = other.Exceptions, other.AddressGroups
			case 3:
				in.Zones = other.Zones
			case 4:
				in.Workloads = other.Workloads
			case 5:
				in.ThreatConditions, in.Quarantines = other.ThreatConditions, other.Quarantines
			case 6:
				in.Applications, other.Applications = other.Applications, in.Applications
			}
		}
	})
	if failed == 0 {
		t.Fatal("no proof ever failed: nothing was compared but what holds anyhow")
	}
}

// opened is a ruleset that lets everything through that it refused.
func opened(rs *bocage.Ruleset) *bocage.Ruleset {
	out := rs.Copy()
	out.Decisions = slices.Clone(rs.Decisions)
	for i := range out.Decisions {
		if d := &out.Decisions[i]; !d.Verdict.Allowed() {
			d.Verdict, d.Code = bocage.VerdictAllow, bocage.ReasonRule
		}
	}
	return out
}
