package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
)

// TestGenerationsTellOfConfirmation: what is confirmed is active in its generation's status
// too, and what waits for a confirmation is said to who asks for the next stage.
func TestGenerationsTellOfConfirmation(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		b.declare(rollout(bocage.RolloutSpec{ConfirmSeconds: 60}))
		p := b.start()
		b.settle()
		s.apiApp.Spec.Provides[0].Port = 9000
		b.declare(s.apiApp)
		b.settle()
		if g := get[*bocage.Generation](b, "", "g2"); g.Status.Stage != bocage.StageConfirming || g.Status.ConfirmBy.IsZero() {
			t.Fatalf("before: %+v", g.Status)
		}
		if _, err := p.Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "promote"}); err == nil || !strings.Contains(err.Error(), "bocage policy confirm") {
			t.Errorf("promote: %v", err)
		}
		if _, err := p.Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "confirm"}); err != nil {
			t.Fatal(err)
		}
		b.settle()
		if g := get[*bocage.Generation](b, "", "g2"); g.Status.Stage != bocage.StageActive || !g.Status.ConfirmBy.IsZero() {
			t.Errorf("confirmed: %+v", g.Status)
		}
		if g := get[*bocage.Generation](b, "", "g1"); g.Status.Stage != bocage.StageSuperseded {
			t.Errorf("the one before: %+v", g.Status)
		}
	})
}

// TestHistoryKeepsWhatWasAppliedWhileHeld: what was declared while a rollback held it is
// named when it comes into force, and after a start too; numbers and times have one order.
func TestHistoryKeepsWhatWasAppliedWhileHeld(t *testing.T) {
	for _, restart := range []bool{false, true} {
		inBubble(t, func(b *bench) {
			s := newShop()
			b.declare(s.all()...)
			p := b.start()
			b.settle()
			s.apiApp.Spec.Provides[0].Port = 9000
			b.declare(s.apiApp)
			b.settle()
			if _, err := p.Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "rollback"}); err != nil {
				t.Fatal(err)
			}
			b.settle()
			s.dbApp.Spec.Provides[0].Port = 9001
			b.declare(s.dbApp)
			b.settle()
			b.wait(time.Minute)
			b.declare(&bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "db"}, Spec: bocage.QuarantineSpec{Workload: "shop/db"}})
			b.settle()
			b.wait(time.Minute)
			if restart {
				b.stop()
				s.webApp.Spec.Consumes[0].Interface = "http"
				b.declare(s.webApp)
				b.start()
				b.settle()
				p = b.rooms[0]
			}
			if _, err := p.Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "confirm"}); err != nil {
				t.Fatal(err)
			}
			b.settle()
			all, active := b.generations()
			changed := all[active[0]].Status.Changed
			for _, want := range []string{"Application shop/api", "Application shop/db"} {
				if !slices.Contains(changed, want) {
					t.Errorf("restart %v: %s changed %v, not %s", restart, active[0], changed, want)
				}
			}
			if restart && !slices.Contains(changed, "Application shop/web") {
				t.Errorf("what was declared while no controller ran is not among %v", changed)
			}
			var list []*bocage.Generation
			for _, g := range all {
				list = append(list, g)
			}
			slices.SortFunc(list, func(x, y *bocage.Generation) int { return int(x.Status.Number) - int(y.Status.Number) })
			for i, g := range list[1:] {
				if g.Status.Compiled.Before(list[i].Status.Compiled) {
					t.Errorf("restart %v: %s is from %s, %s from %s", restart, list[i].Name, list[i].Status.Compiled, g.Name, g.Status.Compiled)
				}
				if len(g.Status.Changed) == 0 {
					t.Errorf("restart %v: nothing changed with %s (%s)", restart, g.Name, g.Status.Stage)
				}
			}
		})
	}
}
