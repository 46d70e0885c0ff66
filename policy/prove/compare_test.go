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

// TestCompareNamesMissesNothing compares two random policies by what names open: every
// flow that is open by one name before or after and not the other time is covered by a
// change that says so.
func TestCompareNamesMissesNothing(t *testing.T) {
	differ := 0
	rapid.Check(t, func(t *rapid.T) {
		one, other := policytest.Draw(t), policytest.Draw(t)
		for _, in := range []*compile.Input{&one, &other} {
			if rapid.IntRange(0, 3).Draw(t, "names") > 0 {
				policytest.DrawNames(t, in)
			}
		}
		other.Workloads = one.Workloads
		before, after := compile.Compile(one).Ruleset(), compile.Compile(other).Ruleset()
		if same := prove.Compare(after, after); len(same) > 0 {
			t.Fatalf("a policy differs from itself: %v", same)
		}
		changes := prove.Compare(before, after)
		name := rapid.SampledFrom([]bocage.DomainName{"api.example.com", "example.com", "db.example.net", "y.example.com", "x.b.example.com"}).Draw(t, "name")
		policytest.Flows(func(f bocage.Flow) {
			f.At = policytest.Now
			_, bare := before.Decide(f)
			_, then := before.DecideNamed(f, name)
			_, now := after.DecideNamed(f, name)
			_, bareNow := after.Decide(f)
			if then.Would.Allowed() == now.Would.Allowed() || then == bare && now == bareNow || then.Code == bocage.ReasonQuarantine || now.Code == bocage.ReasonQuarantine {
				return
			}
			differ++
			if !slices.ContainsFunc(changes, func(c bocage.ReachChange) bool {
				return c.Before.Allowed() == then.Would.Allowed() && c.After.Allowed() == now.Would.Allowed() && c.Ports.Contains(f.DestinationPort) &&
					(c.Protocol == f.Protocol || c.Protocol == bocage.ProtocolAny)
			}) {
				t.Fatalf("%s as %s: was %s (%s), is %s (%s), and no change says so: %v\n%s\nand then\n%s", f, name, then.Would, then.Code, now.Would, now.Code, changes, policytest.Describe(one), policytest.Describe(other))
			}
		})
	})
	if differ == 0 {
		t.Error("no name ever made a difference")
	}
}
