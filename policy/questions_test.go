package policy

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/explain"
)

// TestExplainWhatWas asks under a generation that is over, for a recorded event,
// and for a moment to come.
func TestExplainWhatWas(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		p := b.start()
		b.settle()
		q := bocage.ExplainQuery{From: "shop/web", To: "shop/api", Port: 8080, Protocol: bocage.ProtocolTCP}
		was, err := p.Explain(b.ctx, q)
		if err != nil || was.Verdict != bocage.VerdictAllow || was.Generation != 1 {
			t.Fatalf("at first: %+v, %v", was, err)
		}
		s.apiApp.Spec.Provides[0].Port = 8090
		b.declare(s.apiApp)
		b.settle()
		explainAs := func(generation uint64, decision bocage.DecisionID) bocage.Explanation {
			t.Helper()
			asked := q
			asked.Generation, asked.Decision = generation, decision
			e, err := p.Explain(b.ctx, asked)
			if err != nil {
				t.Fatalf("generation %d, decision %s: %v", generation, decision, err)
			}
			return e
		}
		// That a store does not answer does not mean that a generation is not kept.
		gone, cancel := context.WithCancel(b.ctx)
		cancel()
		early := q
		early.Generation, early.Decision = 1, was.Reason.Decision
		if e, err := p.Explain(gone, early); !errors.Is(err, context.Canceled) {
			t.Errorf("for somebody who has left: %+v, %v", e, err)
		}
		if e := explainAs(0, 0); e.Verdict != bocage.VerdictDrop || e.Generation != 2 {
			t.Errorf("now: %s under generation %d", e.Verdict, e.Generation)
		}
		if e := explainAs(1, 0); e.Verdict != bocage.VerdictAllow || e.Generation != 1 || e.Decider != was.Decider {
			t.Errorf("under generation 1: %s under %d by %s", e.Verdict, e.Generation, e.Decider)
		}
		// The event of then, told by what is kept of its generation.
		if e := explainAs(1, was.Reason.Decision); e.Verdict != bocage.VerdictAllow || e.Decider != was.Decider || layer(e, "recorded") != "" {
			t.Errorf("the event: %s by %s, %q", e.Verdict, e.Decider, layer(e, "recorded"))
		}
		// And by what is in force, where its generation is not known.
		if e := explainAs(0, was.Reason.Decision); e.Verdict != bocage.VerdictAllow || e.Decider != was.Decider || !strings.Contains(layer(e, "recorded"), "decided by "+was.Reason.Decision.String()) {
			t.Errorf("the event without generation: %s by %s, %q", e.Verdict, e.Decider, layer(e, "recorded"))
		}
		if e := explainAs(77, was.Reason.Decision); e.Decider != was.Decider || !strings.Contains(layer(e, "recorded"), "generation 77 is not kept") {
			t.Errorf("the event of a generation that is not kept: %q", layer(e, "recorded"))
		}
		for _, bad := range []bocage.ExplainQuery{{Generation: 77}, {Decision: 12345}} {
			bad.From, bad.To, bad.Port = q.From, q.To, q.Port
			if _, err := p.Explain(b.ctx, bad); err == nil {
				t.Errorf("%+v is answered", bad)
			}
		}

		// In an hour the quarantine is over, and says so today.
		b.declare(&bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "web"},
			Spec: bocage.QuarantineSpec{Workload: "shop/web", Until: time.Now().Add(time.Hour)}})
		b.settle()
		q.Port = 8090
		if e := explainAs(0, 0); e.Verdict != bocage.VerdictDrop || e.Reason.Code != bocage.ReasonQuarantine {
			t.Errorf("in quarantine: %s (%s)", e.Verdict, e.Reason.Code)
		}
		q.At = time.Now().Add(2 * time.Hour)
		if e := explainAs(0, 0); e.Verdict != bocage.VerdictAllow || layer(e, explain.LayerQuarantine) != "neither end is cut off" || layer(e, explain.LayerCheck) != "" {
			t.Errorf("in two hours: %s, %v", e.Verdict, e.Layers)
		}
	})
}

func layer(e bocage.Explanation, name string) string {
	for _, l := range e.Layers {
		if l.Name == name {
			return l.Result
		}
	}
	return ""
}
