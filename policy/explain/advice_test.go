package explain_test

import (
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/policytest"
)

// TestAdviceTurnsTheVerdict follows the advice on drawn flows: the objects as
// they then are say the opposite, to a judge that never saw them otherwise and
// to the compiler.
func TestAdviceTurnsTheVerdict(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		judge := explain.NewJudge(in)
		const every = 997
		keep := rapid.IntRange(0, every-1).Draw(t, "sample")
		n := 0
		policytest.Flows(func(f bocage.Flow) {
			if n++; n%every != keep {
				return
			}
			before := judge.Judge(f)
			if before.ToItself() {
				return // no enforcement point sees it, and rulesets have no cell for it
			}
			advice := judge.Advise(f)
			if advice.Text == "" {
				t.Fatalf("%s: no text", f)
			}
			if len(advice.Steps) == 0 {
				if before.Would.Allowed() || f.DestinationPort != 0 {
					t.Fatalf("%s (%s, %s): no advice but %q\n%s", f, before.Would, before.Code, advice.Text, policytest.Describe(in))
				}
				return
			}
			for _, steps := range [][]explain.Step{advice.Steps, advice.Otherwise} {
				if len(steps) > 0 {
					follow(t, in, f, before, steps)
				}
			}
		})
	})
}

func follow(t *rapid.T, in compile.Input, f bocage.Flow, before explain.Judgement, steps []explain.Step) {
	var changes []explain.Change
	for _, s := range steps {
		if s.Text == "" {
			t.Fatalf("%s: a step without text", f)
		}
		if !s.Change.Delete {
			if faults := s.Change.Object.Validate(); len(faults) > 0 {
				t.Fatalf("%s: %q makes an object that is not valid: %v", f, s.Text, faults)
			}
		}
		changes = append(changes, s.Change)
	}
	changed := explain.Apply(in, changes)
	after := explain.NewJudge(changed).Judge(f)
	_, reason := compile.Compile(changed).Ruleset().Decide(f)
	switch steps[0].Change.Object.(type) {
	case *bocage.Scope: // observed before, refused afterwards
		if after.Verdict.Allowed() {
			t.Fatalf("%s: still %s after %q\n%s", f, after.Verdict, steps[0].Text, policytest.Describe(in))
		}
	default:
		if after.Would.Allowed() == before.Would.Allowed() || reason.Would.Allowed() == before.Would.Allowed() {
			t.Fatalf("%s: was %s (%s), after %d steps it is %s (%s), compiled %s; the first is %q\n%s", f, before.Would, before.Code, len(steps), after.Would, after.Code,
				reason.Would, steps[0].Text, policytest.Describe(in))
		}
	}
}
