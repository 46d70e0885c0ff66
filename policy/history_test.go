package policy

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
)

// TestGenerationsTellHowTheyFared: a generation that did not simply come into force says
// what happened to it, and who did it.
func TestGenerationsTellHowTheyFared(t *testing.T) {
	ask := func(b *bench, who, action string) {
		t.Helper()
		if _, err := b.rooms[0].Rollout(b.ctx, who, bocage.RolloutRequest{Action: action}); err != nil {
			t.Fatal(err)
		}
		b.settle()
	}
	shadow, confirm := bocage.RolloutSpec{ShadowSeconds: 60}, bocage.RolloutSpec{ConfirmSeconds: 60}
	for name, story := range map[string]struct {
		spec                           bocage.RolloutSpec
		happens                        func(b *bench, s *shop, h1 *agent)
		stage, status, reason, message string
	}{
		"ended by itself": {shadow, func(b *bench, _ *shop, h1 *agent) { h1.differs = 3; h1.poll(); b.settle() },
			bocage.StageEnded, "False", "NewlyRefused", "would refuse 3 kinds of flow"},
		"rolled back on its way": {shadow, func(b *bench, _ *shop, _ *agent) { ask(b, "ann", "rollback") },
			bocage.StageRolledBack, "False", "RolledBack", "rolled back by ann, before it was in force everywhere"},
		"replaced on its way": {shadow, func(b *bench, s *shop, _ *agent) {
			s.apiApp.Spec.Provides[0].Port = 9001
			b.declare(s.apiApp)
			b.settle()
		}, bocage.StageSuperseded, "False", "Superseded", "replaced by generation 4 before it was in force everywhere"},
		"promoted": {shadow, func(b *bench, _ *shop, _ *agent) { ask(b, "bob", "promote") },
			bocage.StageActive, "True", "Promoted", "promoted by bob from the stage Shadow"},
		"confirmed": {confirm, func(b *bench, _ *shop, _ *agent) { ask(b, "ann", "confirm") },
			bocage.StageActive, "True", "Confirmed", "confirmed by ann"},
		"nobody confirmed": {confirm, func(b *bench, _ *shop, _ *agent) { b.wait(61 * time.Second) },
			bocage.StageRolledBack, "False", "Unconfirmed", "nobody confirmed generation 3 by"},
		"rolled back in force": {confirm, func(b *bench, _ *shop, _ *agent) { ask(b, "ann", "rollback") },
			bocage.StageRolledBack, "False", "RolledBack", "rolled back by ann"},
		"replaced unconfirmed": {confirm, func(b *bench, s *shop, _ *agent) {
			s.apiApp.Spec.Provides[0].Port = 9001
			b.declare(s.apiApp)
			b.settle()
		}, bocage.StageSuperseded, "False", "Superseded", "replaced by generation 4 before anybody confirmed it"},
		"withdrawn": {shadow, func(b *bench, s *shop, _ *agent) {
			s.apiApp.Spec.Provides[0].Port = 8081
			b.declare(s.apiApp)
			b.settle()
		}, bocage.StageSuperseded, "False", "Superseded", "withdrawn: what is declared is generation 2 again"},
		"replaced unconfirmed, by the way of another": {bocage.RolloutSpec{ShadowSeconds: 600, ConfirmSeconds: 600}, func(b *bench, s *shop, _ *agent) {
			ask(b, "ann", "promote")
			s.apiApp.Spec.Provides[0].Port = 9001
			b.declare(s.apiApp)
			b.settle()
			if g := get[*bocage.Generation](b, "", "g4"); g.Status.Stage != bocage.StageShadow {
				b.t.Fatalf("g4 is in the stage %s", g.Status.Stage)
			}
			joined := *s.web
			joined.Name, joined.Labels = "queue", map[string]string{"app": "queue"}
			joined.Spec.Interface, joined.Spec.Addresses = "veth-queue", []netip.Addr{netip.MustParseAddr("10.0.0.9")}
			joined.Status.Identity += 9
			b.declare(&joined)
			b.settle()
		}, bocage.StageSuperseded, "False", "Superseded", "replaced by generation 5 before anybody confirmed it"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				s := newShop()
				b.declare(s.all()...)
				b.start()
				b.settle()
				agents := b.agents("h1", "h2")
				s.apiApp.Spec.Provides[0].Port = 8081
				b.declare(s.apiApp)
				b.settle()
				b.declare(rollout(story.spec))
				b.settle()
				b.wantActive("g2")
				s.apiApp.Spec.Provides[0].Port = 9000
				b.declare(s.apiApp)
				b.settle()
				b.poll(agents...)
				story.happens(b, s, agents[0])
				g := get[*bocage.Generation](b, "", "g3")
				c := b.condition(g.Status.Conditions, bocage.ConditionRolledOut, story.status, story.reason)
				if g.Status.Stage != story.stage || !strings.Contains(c.Message, story.message) {
					t.Errorf("%s: %q, want %s: %q", g.Status.Stage, c.Message, story.stage, story.message)
				}
				if c := conditionOf(get[*bocage.Generation](b, "", "g1").Status.Conditions, bocage.ConditionRolledOut); c.Type != "" {
					t.Errorf("the first one simply made way for the next: %+v", c)
				}
				b.again() // who takes over does not say it anew
				again := get[*bocage.Generation](b, "", "g3")
				if d := conditionOf(again.Status.Conditions, bocage.ConditionRolledOut); d != c {
					t.Errorf("said %+v, and then %+v", c, d)
				}
			})
		})
	}
}
