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

// TestCompareMissesNothing compares two random policies: every flow whose verdict
// differs is covered by a change, and a policy does not differ from itself.
func TestCompareMissesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one := policytest.Draw(t)
		other := policytest.Draw(t)
		other.Workloads = one.Workloads // who is who stays; what is declared changes
		before, after := compile.Compile(one).Ruleset(), compile.Compile(other).Ruleset()
		if same := prove.Compare(before, before); len(same) > 0 {
			t.Fatalf("a policy differs from itself: %v", same)
		}
		changes := prove.Compare(before, after)
		policytest.Flows(func(f bocage.Flow) {
			f.At = policytest.Now
			_, then := before.Decide(f)
			_, now := after.Decide(f)
			if then.Would == now.Would || then.Code == bocage.ReasonQuarantine || now.Code == bocage.ReasonQuarantine {
				return
			}
			if !slices.ContainsFunc(changes, func(c bocage.ReachChange) bool {
				return c.Before == then.Would && c.After == now.Would && c.Ports.Contains(f.DestinationPort) &&
					(c.Protocol == f.Protocol || c.Protocol == bocage.ProtocolAny)
			}) {
				t.Fatalf("%s: was %s, is %s, and no change says so: %v", f, then.Would, now.Would, changes)
			}
		})
	})
}
