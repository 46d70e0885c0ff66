package policy

import (
	"testing"

	"bocage.dev/bocage"
)

// A decision says today what its guardrails ask for today; an event of a generation
// before is told with what they asked for then.
func TestDecisionsOfOtherGenerations(t *testing.T) {
	var p Policy
	says := func(id bocage.DecisionID, field string) []bocage.Decision {
		return []bocage.Decision{{ID: id, By: []bocage.Ref{{Kind: "Guardrail", Name: "g", Field: field}}}}
	}
	p.formerDecisions.remember(says(7, "spec.require.log"), 10)
	p.candidateDecisions.remember(says(7, "spec.require.rate"), 12)
	p.candidateDecisions.remember(says(8, "spec.require.verify"), 12)
	for _, c := range []struct {
		generation uint32
		id         bocage.DecisionID
		want       string
	}{
		{3, 7, "spec.require.log"},
		{10, 7, "spec.require.log"},
		{12, 7, "spec.require.rate"},
		{13, 7, "spec.require.log"}, // nothing newer is known
		{12, 8, "spec.require.verify"},
		{1, 8, "spec.require.verify"},
		{10, 9, ""},
		{10, 0, ""},
	} {
		got := ""
		if d, ok := p.Decision(c.generation, c.id); ok {
			got = d.By[0].Field
		}
		if got != c.want {
			t.Errorf("decision %s in generation %d is by %q, want %q", c.id, c.generation, got, c.want)
		}
	}
	// Events carry the low half of a generation's number.
	p.formerDecisions.remember(says(7, "spec.require.witness"), 1<<32+5)
	if d, _ := p.Decision(1<<32-3, 7); d.By[0].Field != "spec.require.witness" {
		t.Errorf("before the numbers began anew: %v", d.By)
	}
}
