package policy

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
)

// twoPeople declares a shop of which a guardrail, an address group that it names and
// an exception from it came last, where two people decide about guardrails:
//
//	g1 the shop, with the guardrail pci
//	g2 the database listens on 5433
//	g3 the guardrail tp, the group that it names, and an exception from it
//	g4 the guardrail pci is gone
func twoPeople(b *bench) (*shop, []*agent) {
	b.t.Helper()
	b.before = func(p *Policy) { p.twoPerson = true }
	s := newShop()
	s.dbApp.Spec.Provides[0].To = bocage.Selector{}
	s.webApp.Spec.Consumes = append(s.webApp.Spec.Consumes, bocage.Consume{Service: "db"})
	b.declare(append(s.all(), rollout(bocage.RolloutSpec{}))...)
	b.start()
	b.start()
	b.settle()
	agents := b.agents("h1", "h2")
	step := func(want string) {
		b.t.Helper()
		b.settle()
		b.poll(agents...)
		b.wantActive(want)
	}
	s.dbApp.Spec.Provides[0].Port = 5433
	b.declare(s.dbApp)
	step("g2")
	workload := func(name string) bocage.Side {
		return bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"app": name}}}
	}
	b.declare(
		&bocage.AddressGroup{ObjectMeta: bocage.ObjectMeta{Name: "far"}, Spec: bocage.AddressGroupSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}},
		&bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "tp"}, Spec: bocage.GuardrailSpec{
			Never:      []bocage.CellMatch{{From: workload("web"), To: workload("api")}, {From: workload("api"), To: workload("db")}, {To: bocage.Side{AddressGroups: []string{"far"}}}},
			Exceptions: bocage.ExceptionTerms{Allowed: true}}},
		&bocage.Exception{ObjectMeta: bocage.ObjectMeta{Name: "e"}, Spec: bocage.ExceptionSpec{Guardrail: "tp",
			Match: bocage.CellMatch{From: workload("api"), To: workload("db")}, Until: time.Now().Add(24 * time.Hour)}},
	)
	step("g3")
	b.remove(s.guardrail)
	step("g4")
	return s, agents
}

// TestRollbackKeepsGuardrails: where two people decide about guardrails no one person
// puts one out of force, or back into it, by going back; all else goes back at once.
func TestRollbackKeepsGuardrails(t *testing.T) {
	inBubble(t, func(b *bench) {
		s, agents := twoPeople(b)
		web, api := agents[0], agents[1]
		for _, number := range []uint64{0, 2} {
			_, err := b.rooms[0].Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "rollback", Generation: number})
			if err == nil || !strings.Contains(err.Error(), "in guardrails and what decides their reach only") {
				t.Errorf("back to generation %d, which differs in guardrails only: %v", number, err)
			}
		}
		b.wantActive("g4")
		status, err := b.rooms[1].Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "rollback", Generation: 1})
		if err != nil || status.Stage != bocage.StageRolledBack || status.Active != 5 ||
			!strings.Contains(status.Conditions[0].Message, "with the guardrails, exceptions and scopes that were in force") {
			t.Fatalf("rollback: %+v, %v", status, err)
		}
		check := func(when string) {
			t.Helper()
			b.settle()
			b.poll(agents...)
			for _, flow := range []struct {
				from, to string
				port     uint16
				allowed  bool
				what     string
			}{
				{apiIP, dbIP, 5432, true, "the policy of generation 1, with the exception from tp"},
				{apiIP, dbIP, 5433, false, "what is declared"},
				{webIP, apiIP, 8080, false, "tp"},
				{webIP, dbIP, 5432, true, "pci is gone"},
			} {
				a := api
				if flow.from == webIP {
					a = web
				}
				if a.allows(flow.from, flow.to, flow.port) != flow.allowed {
					t.Errorf("%s: %s to %s %d is not as it was: %s", when, flow.from, flow.to, flow.port, flow.what)
				}
			}
		}
		check("after the rollback")
		b.again()
		check("after a restart")
		// Going back from there leaves them, too; and what is newer than the rollback waits.
		s.apiApp.Spec.Provides[0].Port = 8081
		b.declare(s.apiApp)
		check("while something else is declared")
		if _, err := b.rooms[0].Rollout(b.ctx, "bob", bocage.RolloutRequest{Action: "rollback", Generation: 3}); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.poll(agents...)
		if web.allows(webIP, apiIP, 8080) || !web.allows(webIP, dbIP, 5433) {
			t.Error("another rollback: a guardrail came back, or went, or the rest stayed")
		}
		if _, err := b.rooms[0].Rollout(b.ctx, "bob", bocage.RolloutRequest{Action: "confirm"}); err != nil {
			t.Fatal(err)
		}
		b.settle()
		b.poll(agents...)
		if web.allows(webIP, apiIP, 8081) || !api.allows(apiIP, dbIP, 5433) {
			t.Error("what is declared is not in force again")
		}
		b.stage(bocage.StageActive)
	})
}

// TestRollbackBeforeItIsConfirmed: guardrails that a rollback keeps, and nobody has
// confirmed, still go back by themselves.
func TestRollbackBeforeItIsConfirmed(t *testing.T) {
	for _, confirmed := range []bool{false, true} {
		inBubble(t, func(b *bench) {
			s, agents := twoPeople(b)
			b.declare(rollout(bocage.RolloutSpec{ConfirmSeconds: 600}))
			b.settle()
			b.declare(&bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "bad"}, Spec: bocage.GuardrailSpec{Never: []bocage.CellMatch{{}}}})
			b.settle()
			b.poll(agents...)
			b.stage(bocage.StageConfirming)
			status, err := b.rooms[0].Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "rollback", Generation: 1})
			if err != nil || !strings.Contains(status.Conditions[0].Message, "go back too") || status.Deadline.IsZero() {
				t.Fatalf("rollback: %+v, %v", status, err)
			}
			b.settle()
			b.poll(agents...)
			if agents[1].allows(apiIP, dbIP, 5432) {
				t.Error("one person put a guardrail out of force")
			}
			if confirmed {
				if _, err := b.rooms[0].Rollout(b.ctx, "bob", bocage.RolloutRequest{Action: "confirm"}); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			time.Sleep(11 * time.Minute)
			b.settle()
			b.poll(agents...)
			// With the word what is declared is in force; without, what was rolled back to,
			// and of the guardrails those that were there before.
			declared := agents[1].allows(apiIP, dbIP, s.dbApp.Spec.Provides[0].Port)
			if back := agents[1].allows(apiIP, dbIP, 5432); declared || back == confirmed {
				t.Errorf("confirmed %v: declared %v, rolled back %v: not as somebody, or nobody, wanted it", confirmed, declared, back)
			}
			if !confirmed {
				b.again()
				b.settle()
				b.poll(agents...)
				if !agents[1].allows(apiIP, dbIP, 5432) {
					t.Error("after a restart it is something else")
				}
				b.stage(bocage.StageRolledBack)
			}
		})
	}
}

// TestRollbackOfWhatNobodyConfirmed: a rollback does not undo itself once the time is
// over in which what it left was to be confirmed.
func TestRollbackOfWhatNobodyConfirmed(t *testing.T) {
	inBubble(t, func(b *bench) {
		s, agents := twoPeople(b)
		b.declare(rollout(bocage.RolloutSpec{ConfirmSeconds: 600}))
		b.settle()
		s.apiApp.Spec.Provides[0].Port = 8081
		b.declare(s.apiApp)
		b.settle()
		b.poll(agents...)
		b.stage(bocage.StageConfirming)
		status, err := b.rooms[0].Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "rollback", Generation: 1})
		if err != nil || !status.Deadline.IsZero() {
			t.Fatalf("rollback: %+v, %v", status, err)
		}
		for range 2 {
			b.settle()
			b.poll(agents...)
			if api := agents[1]; !api.allows(apiIP, dbIP, 5432) || api.allows(apiIP, dbIP, 5433) {
				t.Error("it is not as in generation 1")
			}
			b.stage(bocage.StageRolledBack)
			time.Sleep(11 * time.Minute)
		}
	})
}
