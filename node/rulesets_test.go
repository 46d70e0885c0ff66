package node

import (
	"testing"

	"bocage.dev/bocage"
)

// TestWithoutInspection checks that flows whose profile the engine does not have
// follow the profile's fail mode instead of passing unseen.
func TestWithoutInspection(t *testing.T) {
	ruleset := &bocage.Ruleset{
		Profiles: []bocage.Profile{{Number: 1, Name: "had"}, {Number: 2, Name: "closed"}, {Number: 3, Name: "open", FailOpen: true}},
		Decisions: []bocage.Decision{
			{ID: 1, Verdict: bocage.VerdictInspect, Profile: 1}, {ID: 2, Verdict: bocage.VerdictInspect, Profile: 2},
			{ID: 3, Verdict: bocage.VerdictInspect, Profile: 3}, {ID: 4, Verdict: bocage.VerdictAllow},
		},
	}
	changed := withoutInspection(ruleset, func(p bocage.Profile) bool { return p.Number > 1 })
	want := []bocage.Verdict{bocage.VerdictInspect, bocage.VerdictDrop, bocage.VerdictAllow, bocage.VerdictAllow}
	for i, d := range changed.Decisions {
		if d.Verdict != want[i] {
			t.Errorf("decision %d: %s, want %s", d.ID, d.Verdict, want[i])
		}
	}
	if ruleset.Decisions[1].Verdict != bocage.VerdictInspect {
		t.Error("the ruleset itself was changed")
	}
	if same := withoutInspection(ruleset, func(bocage.Profile) bool { return false }); same != ruleset {
		t.Error("with every profile there the ruleset was copied")
	}
}
