package policy

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"bocage.dev/bocage"
)

// TestClocksThatDifferALittle has something end, and something begin, while the clocks
// of two controllers are seconds apart: each happens once, not again and again until the
// slower one is as far, and everybody is told the same.
func TestClocksThatDifferALittle(t *testing.T) {
	for _, ahead := range []time.Duration{-9 * time.Second, -time.Millisecond, 9 * time.Second} {
		t.Run(fmt.Sprint(ahead), func(t *testing.T) {
			inBubble(t, func(b *bench) {
				s := newShop()
				b.declare(s.all()...)
				b.declare(&bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "api"},
					Spec: bocage.QuarantineSpec{Workload: "shop/api", Until: time.Now().Add(time.Minute)}})
				b.start()
				b.before = func(p *Policy) { p.now = func() time.Time { return time.Now().Add(ahead) } }
				b.start()
				b.settle()
				before, _, err := readRecord(b.ctx, b.store)
				if err != nil {
					t.Fatal(err)
				}
				if v, _ := b.decide(webIP, apiIP, 8080, "h2"); v.Allowed() {
					t.Fatal("who is quarantined is reached")
				}
				b.wait(75 * time.Second)
				after, _, err := readRecord(b.ctx, b.store)
				if err != nil {
					t.Fatal(err)
				}
				if after.Number != before.Number+1 {
					t.Errorf("a quarantine that ended made %d generations", after.Number-before.Number)
				}
				if v, _ := b.decide(webIP, apiIP, 8080, "h1", "h2"); !v.Allowed() {
					t.Error("the quarantine goes on")
				}
				b.ask("h1", Question{})
			})
		})
	}
}

// TestReplayInAStageOfAnothersClock has a stage begin by a clock that is ahead: recorded
// flows are replayed once in it, and it ends.
func TestReplayInAStageOfAnothersClock(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		b.declare(rollout(bocage.RolloutSpec{ShadowSeconds: 20}))
		var read atomic.Int64
		edges := func(context.Context) ([]bocage.Edge, error) { read.Add(1); return nil, nil }
		b.before = func(p *Policy) {
			p.edges, p.now = edges, func() time.Time { return time.Now().Add(9 * time.Second) }
		}
		b.start()
		b.settle()
		s.apiApp.Spec.Provides[0].Port = 9000
		b.declare(s.apiApp)
		b.settle()
		b.stage(bocage.StageShadow)
		b.stop()
		read.Store(0)
		b.before = func(p *Policy) { p.edges = edges }
		b.start()
		b.settle()
		if n := read.Load(); n != 1 {
			t.Errorf("the recorded flows were read %d times", n)
		}
		b.wait(40 * time.Second)
		b.stage(bocage.StageActive)
	})
}

// TestTimeGoesBack has a clock that was hours ahead set right: what it took as ended is
// in force again, at once where the room is told, else when it looks at the clock.
func TestTimeGoesBack(t *testing.T) {
	for _, isTold := range []bool{true, false} {
		t.Run(fmt.Sprint(isTold), func(t *testing.T) {
			inBubble(t, func(b *bench) {
				var ahead atomic.Int64
				ahead.Store(int64(3 * time.Hour))
				s := newShop()
				b.declare(s.all()...)
				b.declare(&bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "api"},
					Spec: bocage.QuarantineSpec{Workload: "shop/api", Until: time.Now().Add(time.Hour)}})
				b.before = func(p *Policy) { p.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } }
				p := b.start()
				b.settle()
				if v, _ := b.decide(webIP, apiIP, 8080, "h1", "h2"); !v.Allowed() {
					t.Fatal("by a clock that is ahead the quarantine has not ended")
				}
				ahead.Store(0)
				if isTold {
					p.TimeMoved()
					b.settle()
				} else {
					b.wait(longestSleep + time.Second)
				}
				if v, _ := b.decide(webIP, apiIP, 8080, "h2"); v.Allowed() {
					t.Error("the time went back, and who is quarantined is reached")
				}
				b.wait(time.Hour)
				if v, _ := b.decide(webIP, apiIP, 8080, "h1", "h2"); !v.Allowed() {
					t.Error("the quarantine does not end")
				}
			})
		})
	}
}

// TestUsageIsCountedWhenTheTimeWentBack: what was counted by a clock that was hours ahead
// does not put off what is counted next.
func TestUsageIsCountedWhenTheTimeWentBack(t *testing.T) {
	inBubble(t, func(b *bench) {
		var ahead, counted atomic.Int64
		ahead.Store(int64(3 * time.Hour))
		b.declare(newShop().all()...)
		b.before = func(p *Policy) {
			p.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
			p.usage = func(_ context.Context, since, until time.Time) ([]DecisionUse, error) {
				if !since.Before(until) {
					t.Errorf("asked for what was from %s to %s", since, until)
				}
				counted.Add(1)
				return nil, nil
			}
		}
		b.start()
		b.settle()
		b.wait(2 * usageEvery)
		ahead.Store(0)
		if counted.Swap(0) == 0 {
			t.Fatal("nothing is counted")
		}
		b.wait(3*usageEvery + time.Second)
		if n := counted.Load(); n < 2 || n > 4 {
			t.Errorf("counted %d times in three minutes", n)
		}
	})
}
