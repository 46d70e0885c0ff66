package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
)

func rollout(spec bocage.RolloutSpec) *bocage.Rollout {
	return &bocage.Rollout{ObjectMeta: bocage.ObjectMeta{Name: bocage.RolloutName}, Spec: spec}
}

// again kills every room and starts as many anew.
func (b *bench) again() {
	b.t.Helper()
	n := len(b.rooms)
	b.stop()
	for range n {
		b.start()
	}
	b.settle()
}

// agent is a host as its agent would have it.
type agent struct {
	b                         *bench
	host                      string
	q                         Question
	enforced, safe, candidate *bocage.Ruleset
	confirmed                 uint64
	differs                   int64
	revertedFrom              uint64
	refuses                   uint64 // a generation that it cannot apply
	ready                     []bocage.Condition
}

// poll asks, takes what is new, goes back where nobody confirmed, and reports.
func (a *agent) poll() {
	a.b.t.Helper()
	for range 4 {
		answer := a.b.ask(a.host, a.q)
		a.q.Shown, a.q.Proved = answer.Prove, 0
		if answer.Empty() {
			break
		}
		if answer.Prove {
			a.q.Proved = max(a.q.Have, a.q.Confirmed)
			continue
		}
		if len(answer.Confirm) > 0 {
			a.confirmed = uint64(len(answer.Confirm)) // only that there is one
			a.q.Confirmed = a.b.confirmed(answer.Confirm)
			if a.enforced != nil && a.enforced.Generation <= a.q.Confirmed {
				a.safe = a.enforced
			}
		}
		if len(answer.Ruleset) > 0 {
			rs := a.b.open(a.host, bocage.SignedRuleset, answer.Ruleset)
			if rs.Generation <= a.q.Have {
				a.b.t.Fatalf("%s has generation %d and gets %d", a.host, a.q.Have, rs.Generation)
			}
			a.q.Have, a.q.Left = rs.Generation, 0
			if rs.Generation == a.refuses {
				a.ready = []bocage.Condition{{Type: bocage.ConditionReady, Status: "False", Reason: notApplied, ObservedGeneration: int64(rs.Generation), Message: "no room"}}
				continue
			}
			a.ready = nil
			a.enforced = rs
			if rs.ConfirmBy.IsZero() {
				a.safe = rs
			}
			if a.candidate != nil && a.candidate.Generation <= rs.Generation {
				a.candidate, a.q.Candidate = nil, 0
			}
		}
		if len(answer.Candidate) > 0 {
			a.candidate = a.b.open(a.host, bocage.SignedCandidate, answer.Candidate)
			if a.candidate.Generation <= a.q.Have {
				a.b.t.Fatalf("%s has generation %d and is to evaluate %d", a.host, a.q.Have, a.candidate.Generation)
			}
			a.q.Candidate = a.candidate.Generation
		}
		if answer.NoCandidate {
			a.candidate, a.q.Candidate = nil, 0
		}
	}
	if a.enforced != nil && !a.enforced.ConfirmBy.IsZero() && a.enforced.Generation > a.q.Confirmed && !time.Now().Before(a.enforced.ConfirmBy) {
		a.revertedFrom, a.enforced = a.enforced.Generation, a.safe.WithRefusals(a.enforced)
		a.q.Left = a.revertedFrom
	}
	h := &bocage.Host{ObjectMeta: bocage.ObjectMeta{Name: a.host, Generation: 1}, Status: bocage.HostStatus{LastSeen: time.Now(),
		CandidateDiffers: a.differs, RevertedFrom: a.revertedFrom, Conditions: a.ready, Candidate: a.q.Candidate}}
	if a.enforced != nil {
		h.Status.Generation = a.enforced.Generation
	}
	a.b.declare(h)
	a.b.settle()
}

func (a *agent) allows(source, destination string, port uint16) bool {
	a.b.t.Helper()
	v, _ := a.enforced.Decide(flowOf(source, destination, port))
	return v.Allowed()
}

func (b *bench) agents(hosts ...string) []*agent {
	var out []*agent
	for _, host := range hosts {
		a := &agent{b: b, host: host}
		a.poll()
		out = append(out, a)
	}
	for _, a := range out {
		a.poll()
	}
	return out
}

func (b *bench) poll(agents ...*agent) {
	for _, a := range agents {
		a.poll()
	}
}

func (b *bench) stage(want string) bocage.RolloutStatus {
	b.t.Helper()
	status := get[*bocage.Rollout](b, "", bocage.RolloutName).Status
	if status.Stage != want {
		b.t.Fatalf("the rollout is in stage %q (%+v), want %s", status.Stage, status, want)
	}
	return status
}

// wait lets virtual time pass.
func (b *bench) wait(d time.Duration) {
	time.Sleep(d)
	b.settle()
}

// TestRollout follows a change through all stages, with every controller killed
// and started again in each of them.
func TestRollout(t *testing.T) {
	for _, rooms := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d controllers", rooms), func(t *testing.T) {
			inBubble(t, func(b *bench) {
				s := newShop()
				b.declare(s.all()...)
				b.declare(rollout(bocage.RolloutSpec{ShadowSeconds: 60, Canary: []string{"h1"}, CanarySeconds: 60, ConfirmSeconds: 60, MostNewlyRefused: -1}))
				for range rooms {
					b.start()
				}
				b.settle()
				agents := b.agents("h1", "h2")
				h1, h2 := agents[0], agents[1]
				b.stage(bocage.StageActive)
				before := h2.enforced.Generation

				s.apiApp.Spec.Provides[0].Port = 9000
				b.declare(s.apiApp)
				b.settle()
				b.poll(agents...)
				status := b.stage(bocage.StageShadow)
				if h1.candidate == nil || h1.candidate.Generation != status.Generation || h1.enforced.Generation != before || status.Active != before {
					t.Fatalf("in shadow: %+v, evaluates %v", status, h1.candidate)
				}
				if !h1.allows(webIP, apiIP, 8080) || h1.allows(webIP, apiIP, 9000) {
					t.Error("the shadow decides already")
				}
				b.condition(get[*bocage.Application](b, "shop", "api").Status.Conditions, bocage.ConditionEnforced, "False", bocage.StageShadow)
				b.condition(get[*bocage.Application](b, "shop", "web").Status.Conditions, bocage.ConditionEnforced, "True", "AllHosts")
				b.again()
				if now := b.stage(bocage.StageShadow); now.Generation != status.Generation || !now.Deadline.Equal(status.Deadline) {
					t.Errorf("a restart changes the stage: %+v, was %+v", now, status)
				}

				// Today is today, in shadow too: a quarantine, and a new workload.
				q := &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "db"}, Spec: bocage.QuarantineSpec{Workload: "shop/db"}}
				b.declare(q)
				synctest.Wait()
				b.poll(agents...)
				if h2.allows(apiIP, dbIP, 5432) || !h2.allows(webIP, apiIP, 8080) || h2.candidate == nil || len(h2.candidate.Refused) != 1 {
					t.Error("a quarantine waits for the rollout")
				}
				b.remove(q)
				b.wait(30 * time.Second)
				b.stage(bocage.StageShadow)
				b.wait(31 * time.Second)
				status = b.stage(bocage.StageCanary)
				b.poll(agents...)
				if !h1.allows(webIP, apiIP, 9000) || h2.allows(webIP, apiIP, 9000) || !h2.allows(webIP, apiIP, 8080) {
					t.Error("in canary: h1 should have the new one, h2 the old one")
				}
				if h1.candidate != nil || h2.candidate != nil || h1.enforced.ConfirmBy.IsZero() {
					t.Errorf("in canary: evaluate %v and %v; confirm by %s", h1.candidate, h2.candidate, h1.enforced.ConfirmBy)
				}
				b.again()
				b.stage(bocage.StageCanary)
				b.wait(61 * time.Second)
				b.stage(bocage.StageCanary) // since nothing was heard from the canary lately
				b.poll(agents...)
				b.wait(2 * time.Second)
				status = b.stage(bocage.StageConfirming)
				b.poll(agents...)
				if !h1.allows(webIP, apiIP, 9000) || !h2.allows(webIP, apiIP, 9000) || h2.enforced.ConfirmBy.IsZero() {
					t.Error("it is not in force everywhere, to be confirmed")
				}
				b.again()
				b.stage(bocage.StageConfirming)
				answered, err := b.rooms[0].Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "confirm"})
				if err != nil || answered.Stage != bocage.StageActive {
					t.Fatalf("confirm: %+v, %v", answered, err)
				}
				b.settle()
				b.poll(agents...)
				b.wait(2 * time.Minute)
				b.poll(agents...)
				b.again()
				b.poll(agents...)
				b.stage(bocage.StageActive)
				for _, a := range agents {
					if a.revertedFrom != 0 || !a.allows(webIP, apiIP, 9000) {
						t.Errorf("%s went back from a confirmed generation", a.host)
					}
				}
				b.condition(get[*bocage.Application](b, "shop", "api").Status.Conditions, bocage.ConditionEnforced, "True", "AllHosts")
			})
		})
	}
}

// TestUnconfirmed lets a confirmation be missed: agents and controllers go back.
func TestUnconfirmed(t *testing.T) {
	for _, dead := range []bool{false, true} {
		t.Run(fmt.Sprintf("controllers dead %v", dead), func(t *testing.T) {
			inBubble(t, func(b *bench) {
				s := newShop()
				b.declare(s.all()...)
				b.declare(rollout(bocage.RolloutSpec{ConfirmSeconds: 60}))
				b.start()
				b.start()
				b.settle()
				agents := b.agents("h1", "h2")
				s.apiApp.Spec.Provides[0].Port = 9000
				b.declare(s.apiApp)
				b.settle()
				b.poll(agents...)
				if !agents[0].allows(webIP, apiIP, 9000) {
					t.Fatal("the change is not in force")
				}
				b.stage(bocage.StageConfirming)
				q := &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "db"}, Spec: bocage.QuarantineSpec{Workload: "shop/db"}}
				b.declare(q)
				b.settle()
				b.poll(agents...)
				if dead {
					b.stop()
				}
				b.wait(70 * time.Second)
				if dead {
					for _, a := range agents { // as the agents do, alone
						a.enforced = a.safe.WithRefusals(a.enforced)
					}
					b.start()
					b.start()
					b.settle()
				}
				b.poll(agents...)
				b.poll(agents...)
				for _, a := range agents {
					if a.allows(webIP, apiIP, 9000) || !a.allows(webIP, apiIP, 8080) || a.allows(apiIP, dbIP, 5432) {
						t.Errorf("%s did not go back, or set the quarantined free: %+v", a.host, a.enforced)
					}
				}
				b.stage(bocage.StageRolledBack)
				c := b.condition(get[*bocage.Application](b, "shop", "api").Status.Conditions, bocage.ConditionEnforced, "False", "Held")
				if !strings.Contains(c.Message, "nobody confirmed") {
					t.Errorf("held: %s", c.Message)
				}
				b.again()
				b.stage(bocage.StageRolledBack)
				if _, err := b.rooms[1].Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "confirm"}); err != nil {
					t.Fatal(err)
				}
				b.settle()
				b.stage(bocage.StageConfirming) // what is declared comes again
			})
		})
	}
}

// TestRollback goes back to an older policy, with today's inventory, until a
// person lets go.
func TestRollback(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		b.start()
		b.start()
		b.settle()
		agents := b.agents("h1", "h2")
		for _, port := range []uint16{9001, 9002, 9003} {
			s.apiApp.Spec.Provides[0].Port = port
			b.declare(s.apiApp)
			b.settle()
		}
		b.wantActive("g4")
		b.poll(agents...)
		status, err := b.rooms[1].Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "rollback"})
		if err != nil || status.Stage != bocage.StageRolledBack || status.Active != 5 {
			t.Fatalf("rollback: %+v, %v", status, err)
		}
		b.settle()
		b.poll(agents...)
		if !agents[0].allows(webIP, apiIP, 9002) || agents[0].allows(webIP, apiIP, 9003) {
			t.Error("it did not go back by one")
		}
		if g := get[*bocage.Generation](b, "", "g4"); g.Status.Stage != bocage.StageRolledBack || g.Status.Active {
			t.Errorf("the generation that was left: %+v", g.Status)
		}
		if status, err = b.rooms[0].Rollout(b.ctx, "bob", bocage.RolloutRequest{Action: "rollback", Generation: 1}); err != nil || status.Active != 6 {
			t.Fatalf("rollback to g1: %+v, %v", status, err)
		}
		b.settle()
		b.again()
		b.wantActive("g6")
		c := b.condition(get[*bocage.Application](b, "shop", "api").Status.Conditions, bocage.ConditionEnforced, "False", "Held")
		if !strings.Contains(c.Message, "rolled back to g1 by bob") {
			t.Errorf("held: %s", c.Message)
		}
		b.condition(get[*bocage.Application](b, "shop", "api").Status.Conditions, bocage.ConditionDegraded, "True", "Held")
		// The inventory is today's, and so is who is cut off.
		more := *s.web
		more.Name, more.Spec.Interface, more.Status.Identity = "web2", "veth-web2", s.web.Status.Identity+9
		more.Spec.Addresses = slices.Clone(s.web.Spec.Addresses)
		more.Spec.Addresses[0] = more.Spec.Addresses[0].Next().Next().Next()
		b.declare(&more, &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "q"}, Spec: bocage.QuarantineSpec{Workload: "shop/web"}})
		b.settle()
		b.poll(agents...)
		if !agents[0].allows(more.Spec.Addresses[0].String(), apiIP, 8080) || agents[0].allows(webIP, apiIP, 8080) {
			t.Error("today's inventory and quarantines wait for the rollback to end")
		}
		// What is declared now waits.
		s.apiApp.Spec.Provides[0].Port = 9004
		b.declare(s.apiApp)
		b.settle()
		b.poll(agents...)
		if agents[0].allows(more.Spec.Addresses[0].String(), apiIP, 9004) {
			t.Error("a new declaration came into force while held")
		}
		if _, err := b.rooms[0].Rollout(b.ctx, "bob", bocage.RolloutRequest{Action: "confirm"}); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.poll(agents...)
		if !agents[0].allows(more.Spec.Addresses[0].String(), apiIP, 9004) {
			t.Error("confirm does not let go")
		}
		for _, bad := range []bocage.RolloutRequest{{Action: "rollback", Generation: 4711}, {Action: "promote"}, {Action: "confirm"}, {Action: "dance"}} {
			// The fault is the request's: the API answers so.
			var faults bocage.Faults
			if _, err := b.rooms[0].Rollout(b.ctx, "bob", bad); !errors.As(err, &faults) {
				t.Errorf("%+v is answered with %v", bad, err)
			}
		}
		// Old generations can be asked, after a restart too.
		b.again()
		o, err := b.rooms[0].recall(b.ctx, 2)
		if err != nil {
			t.Fatal(err)
		}
		if v, _ := o.output.Ruleset().Decide(flowOf(webIP, apiIP, 9001)); !v.Allowed() {
			t.Errorf("generation 2 says %s", v)
		}
		if g := get[*bocage.Generation](b, "", "g2"); g.Status.Digest != o.output.Ruleset().Digest {
			t.Errorf("generation 2 compiles to %s, and was %s", o.output.Ruleset().Digest, g.Status.Digest)
		}
		if _, err := b.rooms[0].recall(b.ctx, 4711); !errors.Is(err, errNotKept) {
			t.Errorf("what never was: %v", err)
		}
	})
}

// TestAbort ends rollouts that would hurt.
func TestAbort(t *testing.T) {
	for name, story := range map[string]struct {
		spec   bocage.RolloutSpec
		before func(p *Policy)
		hurt   func(b *bench, agents []*agent)
		reason string
	}{
		"recorded flows": {
			spec: bocage.RolloutSpec{ShadowSeconds: 60},
			before: func(p *Policy) {
				p.edges = func(context.Context) ([]bocage.Edge, error) {
					return []bocage.Edge{{Source: "shop/web", Destination: "shop/api", Protocol: bocage.ProtocolTCP, DestinationPort: 8080, Flows: 9, Replied: 9}}, nil
				}
			},
			reason: "NewlyRefused",
		},
		"reports of the shadow": {
			spec:   bocage.RolloutSpec{ShadowSeconds: 60},
			hurt:   func(_ *bench, agents []*agent) { agents[0].differs = 3 },
			reason: "NewlyRefused",
		},
		"a canary that cannot apply it": {
			spec: bocage.RolloutSpec{Canary: []string{"h1"}, CanarySeconds: 60},
			hurt: func(b *bench, agents []*agent) {
				agents[0].refuses = get[*bocage.Rollout](b, "", bocage.RolloutName).Status.Generation
			},
			reason: "NotApplied",
		},
		"a canary whose agent dies": {
			spec: bocage.RolloutSpec{Canary: []string{"h1"}, CanarySeconds: 60},
			hurt: func(b *bench, agents []*agent) {
				agents[0].poll()
				agents[0].ready = []bocage.Condition{{Type: bocage.ConditionReady, Status: "Unknown", Reason: "Silent"}}
				agents[0].poll()
				b.stage(bocage.StageCanary)
				b.wait(61 * time.Second)
			},
			reason: "CanaryLost",
		},
		"a canary that never was": {
			spec:   bocage.RolloutSpec{Canary: []string{"h1", "h9"}, CanarySeconds: 60},
			hurt:   func(b *bench, agents []*agent) { b.poll(agents...); b.wait(61 * time.Second) },
			reason: "CanaryLost",
		},
		"a canary that does not take it": {
			spec:   bocage.RolloutSpec{Canary: []string{"h1"}, CanarySeconds: 60},
			hurt:   func(b *bench, _ []*agent) { b.wait(61 * time.Second) },
			reason: "CanaryLost",
		},
		"a host that cannot apply it": {
			spec: bocage.RolloutSpec{ConfirmSeconds: 60},
			hurt: func(b *bench, agents []*agent) {
				agents[1].refuses = get[*bocage.Rollout](b, "", bocage.RolloutName).Status.Active
			},
			reason: "RolledBack",
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				s := newShop()
				b.declare(s.all()...)
				b.declare(rollout(story.spec))
				b.before = story.before
				b.start()
				b.settle()
				agents := b.agents("h1", "h2")
				s.apiApp.Spec.Provides[0].Port = 9000
				b.declare(s.apiApp)
				b.settle()
				if story.hurt != nil {
					story.hurt(b, agents)
				}
				b.poll(agents...)
				b.poll(agents...)
				stage := bocage.StageEnded
				if story.reason == "RolledBack" {
					stage = bocage.StageRolledBack
				}
				b.stage(stage)
				b.condition(get[*bocage.Rollout](b, "", bocage.RolloutName).Status.Conditions, bocage.ConditionReady, "False", story.reason)
				agents[0].refuses, agents[1].refuses, agents[0].differs = 0, 0, 0
				b.poll(agents...)
				for _, a := range agents {
					if !a.allows(webIP, apiIP, 8080) || a.allows(webIP, apiIP, 9000) {
						t.Errorf("%s has the candidate, or nothing", a.host)
					}
				}
				b.again()
				b.wait(5 * time.Minute)
				b.stage(stage)
				b.condition(get[*bocage.Application](b, "shop", "api").Status.Conditions, bocage.ConditionEnforced, "False", "Held")
				// Taking the declaration back makes peace.
				s.apiApp.Spec.Provides[0].Port = 8080
				b.declare(s.apiApp)
				b.settle()
				if story.reason != "RolledBack" {
					b.stage(bocage.StageActive)
				}
				events := b.events()
				if !slices.ContainsFunc(events, func(e *bocage.ObjectEvent) bool {
					return e.Weight == "Warning" && strings.HasPrefix(e.InvolvedObject.Name, "g")
				}) {
					t.Errorf("nobody is told: %v", events)
				}
			})
		})
	}
}

// TestRollbackMeansWhatStood goes back by one: to what was in force, not to a
// candidate that came to nothing, and not twice because somebody was faster.
func TestRollbackMeansWhatStood(t *testing.T) {
	for name, end := range map[string]func(b *bench, s *shop, h1 *agent){
		"a candidate that was left for another": func(b *bench, _ *shop, _ *agent) { b.stage(bocage.StageShadow) },
		"a candidate whose rollout ended": func(b *bench, _ *shop, h1 *agent) {
			h1.differs = 3
			h1.poll()
			b.stage(bocage.StageEnded)
			h1.differs = 0
			_, err := b.rooms[0].Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "rollback"})
			if err == nil || !strings.Contains(err.Error(), "its rollout ended") {
				b.t.Errorf("a rollback of what came to nothing: %v", err)
			}
			b.wantActive("g2")
		},
		"a candidate that a person ended": func(b *bench, _ *shop, _ *agent) {
			status, err := b.rooms[0].Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "rollback"})
			if err != nil || status.Stage != bocage.StageRolledBack {
				b.t.Fatalf("rollback: %+v, %v", status, err)
			}
			if _, err := b.rooms[0].Rollout(b.ctx, "bob", bocage.RolloutRequest{Action: "rollback"}); err == nil || !strings.Contains(err.Error(), "ann") {
				b.t.Errorf("somebody else was faster: %v", err)
			}
			if _, err := b.rooms[0].Rollout(b.ctx, "bob", bocage.RolloutRequest{Action: "confirm"}); err != nil {
				b.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				s := newShop()
				b.declare(s.all()...)
				b.start()
				b.start()
				b.settle()
				agents := b.agents("h1", "h2")
				declare := func(port uint16) {
					s.apiApp.Spec.Provides[0].Port = port
					b.declare(s.apiApp)
					b.settle()
					b.poll(agents...)
				}
				declare(9001)
				b.wantActive("g2")
				b.declare(rollout(bocage.RolloutSpec{ShadowSeconds: 60, MostNewlyRefused: 0}))
				b.settle()
				declare(9002)
				end(b, s, agents[0])
				declare(9001)
				b.stage(bocage.StageActive)
				q := &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "q"}, Spec: bocage.QuarantineSpec{Workload: "shop/db"}}
				b.declare(q) // what is in force is newer than what came to nothing
				b.settle()
				b.remove(q)
				b.settle()
				b.again()
				if _, err := b.rooms[1].Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "rollback"}); err != nil {
					t.Fatal(err)
				}
				b.settle()
				b.poll(agents...)
				if a := agents[0]; !a.allows(webIP, apiIP, 8080) || a.allows(webIP, apiIP, 9001) || a.allows(webIP, apiIP, 9002) {
					t.Error("it did not go back to what was in force before")
				}
			})
		})
	}
}
