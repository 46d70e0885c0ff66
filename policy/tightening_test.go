package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
	"bocage.dev/bocage/policy/prove"
)

// slowly makes proofs of a room take until they are let through, one by one, or the
// room is stopped.
func (b *bench) slowly(p *Policy) (let chan<- struct{}) {
	through, stopped := make(chan struct{}), make(chan struct{})
	b.stopping = append(b.stopping, stopped)
	p.prove = func(in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
		select {
		case <-through:
		case <-stopped:
		}
		return prove.Prove(in, rs)
	}
	return through
}

func condition(name, workload string, level bocage.Level, lasts time.Duration) *bocage.ThreatCondition {
	return &bocage.ThreatCondition{ObjectMeta: bocage.ObjectMeta{Name: name},
		Spec: bocage.ThreatConditionSpec{Workload: workload, Level: level, Reason: "test", Expires: time.Now().Add(lasts)}}
}

// logs reports whether a flow is kept in full detail.
func (b *bench) logs(from, to string, port uint16) bool {
	rs := b.ruleset("h1")
	_, r := rs.Decide(flowOf(from, to, port))
	d, _ := rs.Decision(r.Decision)
	return d.Log
}

// TestTighteningGoesAhead holds up every proof: what tightens is in force all the same,
// what opens something is not.
func TestTighteningGoesAhead(t *testing.T) {
	inBubble(t, func(b *bench) {
		s, p := b.startShop()
		let := b.slowly(p)
		wants := func(v bocage.Verdict, code bocage.ReasonCode, from, to string, port uint16) {
			t.Helper()
			if verdict, c := b.decide(from, to, port, "h2"); verdict != v || c != code {
				t.Fatalf("%s -> %s %d: %s (%s), want %s (%s)", from, to, port, verdict, c, v, code)
			}
		}
		wants(bocage.VerdictAllow, bocage.ReasonRule, apiIP, dbIP, 5432)
		worse := condition("db", "shop/db", bocage.LevelQuarantine, time.Hour)
		b.declare(worse)
		synctest.Wait() // no proof is over, and no timer has run
		wants(bocage.VerdictDrop, bocage.ReasonQuarantine, apiIP, dbIP, 5432)
		b.wantActive("g2")
		g := get[*bocage.Generation](b, "", "g2")
		b.condition(g.Status.Conditions, bocage.ConditionProved, "Unknown", reasonProving)
		if len(g.Status.Proofs) != 1 || !g.Status.Proofs[0].Holds {
			t.Errorf("shown before: %v", g.Status.Proofs)
		}

		b.settle()
		// While that is being proved, something is opened, which waits, and more is closed.
		s.apiApp.Spec.Provides[0].Port = 8081
		b.declare(s.apiApp, condition("web", "shop/web", bocage.LevelWatch, time.Hour))
		b.settle()
		wants(bocage.VerdictDrop, bocage.ReasonDefaultDeny, webIP, apiIP, 8081)
		wants(bocage.VerdictAllow, bocage.ReasonRule, webIP, apiIP, 8080)
		if !b.logs(webIP, apiIP, 8080) {
			t.Error("a second condition waits for the proof of the first")
		}
		b.declare(&bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "api"}, Spec: bocage.QuarantineSpec{Workload: "shop/api"}})
		synctest.Wait()
		wants(bocage.VerdictDrop, bocage.ReasonQuarantine, webIP, apiIP, 8080)
		b.remove(&bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "api"}})
		b.settle()
		wants(bocage.VerdictDrop, bocage.ReasonQuarantine, webIP, apiIP, 8080) // that opens something

		for range 6 {
			let <- struct{}{}
			b.settle()
			if v, _ := b.decide(webIP, apiIP, 8081, "h1", "h2"); v == bocage.VerdictAllow {
				break
			}
		}
		wants(bocage.VerdictAllow, bocage.ReasonRule, webIP, apiIP, 8081)
		wants(bocage.VerdictDrop, bocage.ReasonQuarantine, apiIP, dbIP, 5432)
		b.condition(get[*bocage.Generation](b, "", "g2").Status.Conditions, bocage.ConditionProved, "True", "Proved")
		_, active := b.generations()
		newest := get[*bocage.Generation](b, "", active[0])
		b.condition(newest.Status.Conditions, bocage.ConditionProved, "True", "Proved")
		if c := p.Counters(); c.Ahead < 2 || c.Refuted != 0 {
			t.Errorf("counted: %+v", c)
		}

		// A condition that ends by itself does so, whatever is being proved.
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		wants(bocage.VerdictAllow, bocage.ReasonRule, apiIP, dbIP, 5432)
	})
}

// TestTighteningOfAnother lets one of two controllers go ahead, with the inventory of a
// moment ago: the other one knows what that is.
func TestTighteningOfAnother(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		for range 2 {
			p := b.start()
			b.settle()
			b.slowly(p)
		}
		newcomer := *s.web
		newcomer.Name, newcomer.Spec.Interface = "web-2", "veth-web-2"
		newcomer.Spec.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.9")}
		newcomer.Status.Identity = bocage.IdentityFirst + 9
		b.declare(&newcomer)
		b.settle()
		b.declare(condition("db", "shop/db", bocage.LevelQuarantine, time.Hour))
		b.settle()
		if v, c := b.decide(apiIP, dbIP, 5432, "h1", "h2"); v != bocage.VerdictDrop || c != bocage.ReasonQuarantine { // both rooms are asked
			t.Fatalf("tightened: %s (%s)", v, c)
		}
		if v, _ := b.decide("10.0.0.9", apiIP, 8080, "h1", "h2"); v == bocage.VerdictAllow {
			t.Error("the newcomer is in force before its proof")
		}
	})
}

// TestProofsWithoutEnd changes declarations faster than they can be proved, while
// conditions come: all of it comes into force in turn.
func TestProofsWithoutEnd(t *testing.T) {
	inBubble(t, func(b *bench) {
		s, p := b.startShop()
		let := b.slowly(p)
		reached := uint16(8080)
		for i := range uint16(8) {
			s.apiApp.Spec.Provides[0].Port = 9000 + i
			b.declare(s.apiApp)
			b.settle()
			b.declare(condition("web", "shop/web", bocage.LevelWatch, time.Hour+time.Duration(i)*time.Minute))
			b.settle()
			let <- struct{}{}
			b.settle()
			for port := 9000 + i; port > reached; port-- {
				if v, _ := b.decide(webIP, apiIP, port, "h1", "h2"); v == bocage.VerdictAllow {
					reached = port
				}
			}
			if v, _ := b.decide(webIP, apiIP, reached, "h1", "h2"); v != bocage.VerdictAllow || !b.logs(webIP, apiIP, reached) {
				t.Fatalf("after %d changes: %s", i+1, v)
			}
		}
		if reached < 9005 {
			t.Errorf("of 8 changes, the last in force is %d", reached)
		}
	})
}

// TestProofFailsAfterwards keeps what tightens in force although a proof of it fails
// then, tells it, and goes on when the condition is over.
func TestProofFailsAfterwards(t *testing.T) {
	inBubble(t, func(b *bench) {
		s, p := b.startShop()
		p.prove = func(in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
			proofs := prove.Prove(in, rs)
			if len(in.ThreatConditions) > 0 && in.ThreatConditions[0].Spec.Expires.After(in.Now) {
				proofs[0].Holds, proofs[0].Counterexample = false, "shop/web lost its way"
			}
			return proofs
		}
		b.declare(condition("db", "shop/db", bocage.LevelQuarantine, time.Minute))
		b.settle()
		b.wantActive("g2")
		if v, c := b.decide(apiIP, dbIP, 5432, "h1", "h2"); v != bocage.VerdictDrop || c != bocage.ReasonQuarantine {
			t.Errorf("tightened: %s (%s)", v, c)
		}
		c := b.condition(get[*bocage.Generation](b, "", "g2").Status.Conditions, bocage.ConditionProved, "False", "ProofFailed")
		if !strings.Contains(c.Message, "lost its way") {
			t.Error(c.Message)
		}
		if !slices.ContainsFunc(b.events(), func(e *bocage.ObjectEvent) bool {
			return e.Reason == "ProofFailed" && e.InvolvedObject.Name == "g2" && strings.Contains(e.Message, "stays in force")
		}) {
			t.Errorf("told: %v", b.events())
		}
		if c := p.Counters(); c.Refuted != 1 {
			t.Errorf("counted: %+v", c)
		}
		// What opens something is held back as long as its proofs fail.
		s.apiApp.Spec.Provides[0].Port = 8081
		b.declare(s.apiApp)
		b.settle()
		if v, _ := b.decide(webIP, apiIP, 8081, "h1", "h2"); v == bocage.VerdictAllow {
			t.Error("opened against a proof")
		}
		time.Sleep(time.Minute)
		b.settle()
		for _, f := range []bocage.Flow{flowOf(webIP, apiIP, 8081), flowOf(apiIP, dbIP, 5432)} {
			if v, r := b.ruleset("h2").Decide(f); v != bocage.VerdictAllow {
				t.Errorf("when it is over: %s %s (%s)", f, v, r.Code)
			}
		}
	})
}

// TestTighteningThatBreaksSomething waits for its proofs like everything else.
func TestTighteningThatBreaksSomething(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(b *bench, p *Policy)
	}{
		{"protect", func(_ *bench, p *Policy) {
			p.tightens = func(before *bocage.Ruleset, in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
				proofs := prove.Tightening(before, in, rs)
				proofs[0].Holds, proofs[0].Counterexample = false, "shop/api -> shop/db is cut"
				return proofs
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(b *bench) {
				_, p := b.startShop()
				test.spoil(b, p)
				b.slowly(p)
				b.declare(condition("db", "shop/db", bocage.LevelQuarantine, time.Hour))
				b.settle()
				if v, _ := b.decide(apiIP, dbIP, 5432, "h2"); v != bocage.VerdictAllow {
					t.Errorf("in force before its proofs: %s", v)
				}
			})
		})
	}
}

// TestTighteningWhileATestFails lets conditions go ahead although a PolicyTest that blocks
// fails: without them too, or because of them, which no owner keeps out.
func TestTighteningWhileATestFails(t *testing.T) {
	inBubble(t, func(b *bench) {
		_, p := b.startShop()
		b.slowly(p)
		b.declare(&bocage.PolicyTest{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "reports"}, Spec: bocage.PolicyTestSpec{Blocks: true,
			Cases: []bocage.PolicyTestCase{{Name: "web reaches db", From: "shop/web", To: "shop/db", Port: 5432, Expect: bocage.PolicyExpectation{Reach: bocage.ReachAllow}}}}})
		b.settle()
		b.declare(condition("web", "shop/web", bocage.LevelWatch, time.Hour))
		b.settle()
		if !b.logs(webIP, apiIP, 8080) {
			t.Error("the first condition waits")
		}
		b.declare(condition("db", "shop/db", bocage.LevelQuarantine, time.Hour))
		b.settle()
		if v, c := b.decide(apiIP, dbIP, 5432, "h1", "h2"); v != bocage.VerdictDrop || c != bocage.ReasonQuarantine {
			t.Errorf("the second condition waits: %s (%s)", v, c)
		}
		b.declare(&bocage.PolicyTest{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "orders"}, Spec: bocage.PolicyTestSpec{Blocks: true,
			Cases: []bocage.PolicyTestCase{{Name: "web reaches api", From: "shop/web", To: "shop/api", Port: 8080, Expect: bocage.PolicyExpectation{Reach: bocage.ReachAllow}}}}})
		b.settle()
		b.declare(condition("api", "shop/api", bocage.LevelQuarantine, time.Hour))
		b.settle()
		if v, c := b.decide(webIP, apiIP, 8080, "h1", "h2"); v != bocage.VerdictDrop || c != bocage.ReasonQuarantine {
			t.Errorf("the third condition waits for a test: %s (%s)", v, c)
		}
	})
}

// TestTighteningOfBothHoldsUpNothing has each of two controllers let a condition go ahead
// while both prove an opening: what they proved comes into force all the same.
func TestTighteningOfBothHoldsUpNothing(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		var lets []chan<- struct{}
		for _, slow := range []int{2, 1} { // each is slow with the condition that the other one is to see to
			p := b.start()
			b.settle()
			lets = append(lets, b.slowly(p))
			p.tightens = func(before *bocage.Ruleset, in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
				if len(in.ThreatConditions) == slow {
					time.Sleep(time.Second)
				}
				return prove.Tightening(before, in, rs)
			}
		}
		s.apiApp.Spec.Provides[0].Port = 8081
		b.declare(s.apiApp)
		b.settle()
		for _, name := range []string{"one", "two"} {
			b.declare(condition(name, "shop/web", map[string]bocage.Level{"one": bocage.LevelWatch, "two": bocage.LevelDeepen}[name], time.Hour))
			b.wait(5 * time.Second)
		}
		for _, p := range b.rooms {
			if n := p.Counters().Ahead; n == 0 {
				t.Error("a controller let nothing go ahead")
			}
		}
		for _, let := range lets {
			let <- struct{}{}
		}
		b.settle()
		if v, _ := b.decide(webIP, apiIP, 8081, "h1", "h2"); v != bocage.VerdictAllow || !b.logs(webIP, apiIP, 8081) {
			t.Errorf("what was proved is not in force: %s", v)
		}
	})
}

// TestTighteningWithoutEnd has conditions come faster than they can go ahead: what
// nobody confirms goes back all the same.
func TestTighteningWithoutEnd(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		b.declare(rollout(bocage.RolloutSpec{ConfirmSeconds: 60}))
		p := b.start()
		b.settle()
		s.apiApp.Spec.Provides[0].Port = 8081
		b.declare(s.apiApp)
		b.settle()
		if v, _ := b.decide(webIP, apiIP, 8081, "h1"); v != bocage.VerdictAllow {
			t.Fatal(v)
		}
		p.tightens = func(before *bocage.Ruleset, in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
			time.Sleep(time.Second)
			return prove.Tightening(before, in, rs)
		}
		p.prove = func(in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
			time.Sleep(2 * time.Second)
			return prove.Prove(in, rs)
		}
		for i := range 180 {
			b.declare(condition("web", "shop/web", bocage.LevelWatch, time.Hour+time.Duration(i)*time.Minute))
			time.Sleep(500 * time.Millisecond)
		}
		if v, _ := b.decide(webIP, apiIP, 8081, "h1"); v == bocage.VerdictAllow {
			t.Error("what nobody confirmed is still in force")
		}
		if !b.logs(webIP, apiIP, 8080) {
			t.Error("the condition is not in force")
		}
	})
}

// TestWhatWentAheadIsKept asks, after a restart, for the generation that went ahead
// while something else was declared.
func TestWhatWentAheadIsKept(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		b.declare(condition("web", "shop/web", bocage.LevelWatch, time.Hour))
		p := b.start()
		b.settle()
		b.slowly(p)
		s.apiApp.Spec.Provides[0].Port = 8081
		b.declare(s.apiApp)
		b.settle()
		b.declare(condition("db", "shop/db", bocage.LevelQuarantine, time.Hour), condition("web", "shop/web", bocage.LevelDeepen, 2*time.Hour))
		b.settle()
		_, active := b.generations()
		g := get[*bocage.Generation](b, "", active[0])
		if g.Status.Number < 2 {
			t.Fatalf("nothing went ahead: %v", active)
		}
		b.stop()
		p = b.start()
		b.settle()
		o, err := p.recall(b.ctx, g.Status.Number)
		if err != nil {
			t.Fatal(err)
		}
		if o.output.Digest() != g.Status.Digest || len(o.input.ThreatConditions) != 2 {
			t.Errorf("%s is kept with %d conditions, and compiles to %s instead of %s", g.Name, len(o.input.ThreatConditions), o.output.Digest(), g.Status.Digest)
		}
	})
}

// TestTightenedSnapshot holds what is made of a snapshot against one from scratch.
func TestTightenedSnapshot(t *testing.T) {
	for _, n := range []int{3, 63, 64, 65, 5000} {
		in := policytest.Site(n)
		from := func(in compile.Input) *snapshot { return (&snapshot{chunks: []*chunk{{}}}).tightened(in) }
		before := from(in)
		in.ThreatConditions = []*bocage.ThreatCondition{condition("a", "ns0/w1", bocage.LevelWatch, time.Hour), condition("b", "ns0/w2", bocage.LevelWatch, time.Hour)}
		more := before.tightened(in)
		if more.hash == before.hash || more.hash != from(in).hash {
			t.Errorf("%d workloads: two more conditions are %s, of %s, and from scratch %s", n, more.name(), before.name(), from(in).name())
		}
		in.ThreatConditions = []*bocage.ThreatCondition{condition("b", "ns0/w2", bocage.LevelDeepen, time.Hour)}
		if less := more.tightened(in); less.hash == more.hash || less.hash != from(in).hash {
			t.Errorf("%d workloads: another condition is %s", n, less.name())
		}
		in.ThreatConditions = nil
		if none := more.tightened(in); none.hash != before.hash {
			t.Errorf("%d workloads: no condition is %s, before %s", n, none.name(), before.name())
		}
	}
}

// TestProofsOfWhatWasReplaced tells of a generation that went ahead and was replaced
// that there will be no proofs, or that one failed.
func TestProofsOfWhatWasReplaced(t *testing.T) {
	inBubble(t, func(b *bench) {
		_, p := b.startShop()
		let := make(chan struct{})
		stopped := make(chan struct{})
		b.stopping = append(b.stopping, stopped)
		p.prove = func(in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
			select {
			case <-let:
			case <-stopped:
			}
			proofs := prove.Prove(in, rs)
			if len(in.ThreatConditions) == 1 {
				proofs[0].Holds, proofs[0].Counterexample = false, "shop/web lost its way"
			}
			return proofs
		}
		for i, name := range []string{"a", "b", "c"} {
			b.declare(condition(name, "shop/web", []bocage.Level{bocage.LevelWatch, bocage.LevelDeepen, bocage.LevelQuarantine}[i], time.Hour))
			b.settle()
		}
		b.wantActive("g4")
		b.condition(get[*bocage.Generation](b, "", "g2").Status.Conditions, bocage.ConditionProved, "Unknown", reasonProving)
		b.condition(get[*bocage.Generation](b, "", "g3").Status.Conditions, bocage.ConditionProved, "Unknown", reasonReplaced)
		let <- struct{}{}
		b.settle()
		b.condition(get[*bocage.Generation](b, "", "g2").Status.Conditions, bocage.ConditionProved, "False", "ProofFailed")
		if !slices.ContainsFunc(b.events(), func(e *bocage.ObjectEvent) bool {
			return e.Reason == "ProofFailed" && e.InvolvedObject.Name == "g2" && strings.Contains(e.Message, "replaced since")
		}) {
			t.Errorf("told: %v", b.events())
		}
		let <- struct{}{}
		b.settle()
		b.condition(get[*bocage.Generation](b, "", "g4").Status.Conditions, bocage.ConditionProved, "True", "Proved")
		if c := p.Counters(); c.Refuted != 1 {
			t.Errorf("counted: %+v", c)
		}
	})
}

// TestWhatTightens tells conditions that only tighten from others.
func TestWhatTightens(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	spec := func(change func(*bocage.ThreatConditionSpec)) *bocage.ThreatCondition {
		c := &bocage.ThreatCondition{ObjectMeta: bocage.ObjectMeta{Name: "c"}, Spec: bocage.ThreatConditionSpec{
			Workload: "shop/db", Level: bocage.LevelDeepen, Profile: "sql", Expires: now.Add(time.Hour)}}
		change(&c.Spec)
		return c
	}
	was := spec(func(*bocage.ThreatConditionSpec) {})
	for _, test := range []struct {
		name   string
		is     *bocage.ThreatCondition
		worse  bool
		anyhow bool // if there was none before
	}{
		{"the same", spec(func(*bocage.ThreatConditionSpec) {}), true, true},
		{"rises", spec(func(s *bocage.ThreatConditionSpec) { s.Level = bocage.LevelQuarantine }), true, true},
		{"falls", spec(func(s *bocage.ThreatConditionSpec) { s.Level = bocage.LevelWatch }), false, true},
		{"lasts longer", spec(func(s *bocage.ThreatConditionSpec) { s.Expires = now.Add(2 * time.Hour) }), true, true},
		{"ends sooner", spec(func(s *bocage.ThreatConditionSpec) { s.Expires = now.Add(time.Minute) }), false, true},
		{"is over", spec(func(s *bocage.ThreatConditionSpec) { s.Expires = now }), false, false},
		{"is about another", spec(func(s *bocage.ThreatConditionSpec) { s.Workload = "shop/api" }), false, true},
		{"is about everybody", spec(func(s *bocage.ThreatConditionSpec) { s.Workload, s.All = "", true }), false, true},
		{"looks for something else", spec(func(s *bocage.ThreatConditionSpec) { s.Profile = "web" }), false, true},
		{"makes no sense", spec(func(s *bocage.ThreatConditionSpec) { s.Level = "panic" }), false, false},
	} {
		if worse := risen(was, test.is, now); worse != test.worse {
			t.Errorf("%s: %t", test.name, worse)
		}
		if anyhow := risen(nil, test.is, now); anyhow != test.anyhow {
			t.Errorf("%s, from nothing: %t", test.name, anyhow)
		}
	}
	until := func(d time.Duration) *bocage.Quarantine {
		q := &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "q"}, Spec: bocage.QuarantineSpec{Workload: "shop/db"}}
		if d != 0 {
			q.Spec.Until = now.Add(d)
		}
		return q
	}
	for _, test := range []struct {
		was, is *bocage.Quarantine
		want    bool
	}{
		{nil, until(0), true}, {nil, until(time.Hour), true}, {nil, until(-time.Hour), false},
		{until(0), until(time.Hour), false}, {until(time.Hour), until(0), true},
		{until(time.Hour), until(time.Minute), false}, {until(time.Minute), until(time.Hour), true},
	} {
		if got := prolonged(test.was, test.is, now); got != test.want {
			t.Errorf("%v, then %v: %t", test.was, test.is, got)
		}
	}
}
