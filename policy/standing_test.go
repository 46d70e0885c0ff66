package policy

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
)

// bounded is the shop with a grant to all of namespace shop, and a bound that this keeps
// exactly.
func boundedShop() (s *shop, radius *bocage.Guardrail, red *bocage.Workload) {
	s = newShop()
	every := bocage.Side{Namespaces: []string{"shop"}}
	radius = &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "radius"}, Spec: bocage.GuardrailSpec{
		Grant:       []bocage.CellMatch{{From: every, To: every, Ports: []bocage.PortMatch{{Port: 4444}}}},
		BlastRadius: &bocage.BlastRadius{From: every, MaxWeight: 2}}}
	red = &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "red", Labels: map[string]string{"app": "red"}},
		Spec:   bocage.WorkloadSpec{Host: "h1", Interface: "veth-red", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}},
		Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + 9}}
	return s, radius, red
}

// TestWhoJoinsHoldsNothingBack breaks a bound by a workload that joins: it is in force and
// told of, and keeps back nothing but what makes that worse.
func TestWhoJoinsHoldsNothingBack(t *testing.T) {
	inBubble(t, func(b *bench) {
		s, radius, red := boundedShop()
		b.declare(append(s.all(), radius)...)
		p := b.start()
		b.settle()
		b.joined("h1", "h2")
		b.settle()
		held := func() string {
			what, why := p.Held(context.Background(), 0)
			return what + why
		}
		wantHeld := func(want string) {
			t.Helper()
			if got := held(); want == "" && got != "" || !strings.Contains(got, want) {
				t.Fatalf("held: %q, want %q", got, want)
			}
		}
		allowed := func(from, to string, port uint16, hosts ...string) bool {
			v, _ := b.decide(from, to, port, hosts...)
			return v.Allowed()
		}
		wantHeld("")
		if said := p.Fault(); said != "" {
			t.Fatal(said)
		}

		b.declare(red)
		b.settle()
		wantHeld("")
		if !allowed("10.0.0.9", webIP, 4444, "h1") {
			t.Error("who joined is not in force")
		}
		if err := p.Fault(); !strings.Contains(err, "does not hold") {
			t.Errorf("what does not hold is not said: %v", err)
		}
		c := b.condition(get[*bocage.Guardrail](b, "", "radius").Status.Conditions, bocage.ConditionProved, "False", "ProofFailed")
		if !strings.Contains(c.Message, "only changes that make this worse") {
			t.Error(c.Message)
		}
		b.condition(get[*bocage.Guardrail](b, "", "radius").Status.Conditions, bocage.ConditionDegraded, "True", "ProofFailed")
		b.condition(get[*bocage.Workload](b, "shop", "red").Status.Conditions, bocage.ConditionDegraded, "True", "BlastRadius")
		_, active := b.generations()
		g := get[*bocage.Generation](b, "", active[0])
		b.condition(g.Status.Conditions, bocage.ConditionProved, "False", "ProofFailed")
		if !slices.ContainsFunc(g.Status.Proofs, func(f bocage.Proof) bool { return f.Standing && len(f.Workloads) == 4 }) {
			t.Errorf("proofs: %+v", g.Status.Proofs)
		}
		if !slices.ContainsFunc(b.events(), func(e *bocage.ObjectEvent) bool {
			return e.InvolvedObject.Kind == "Guardrail" && e.InvolvedObject.Name == "radius" && e.Reason == "ProofFailed"
		}) {
			t.Error("there is no event")
		}

		// What tightens, and what has nothing to do with it, comes into force.
		never := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "apart"}, Spec: bocage.GuardrailSpec{Never: []bocage.CellMatch{{
			From: bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"app": "red"}}}, To: bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"app": "db"}}}}}}}
		b.declare(never)
		b.settle()
		wantHeld("")
		if allowed("10.0.0.9", dbIP, 4444, "h1", "h2") {
			t.Error("a never is not in force")
		}
		outside := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "dns"}, Spec: bocage.GuardrailSpec{Grant: []bocage.CellMatch{{
			From: bocage.Side{Namespaces: []string{"shop"}}, To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("192.0.2.53/32")}}, Ports: []bocage.PortMatch{{Port: 53}}}}}}
		b.declare(outside)
		b.settle()
		wantHeld("")
		if !allowed(webIP, "192.0.2.53", 53, "h1") {
			t.Error("an unrelated grant is not in force")
		}

		// What makes it worse does not, and says so.
		b.remove(never)
		b.settle()
		wantHeld("") // three can be reached along the other ways in any case
		loose := *radius
		loose.Spec.BlastRadius = &bocage.BlastRadius{From: radius.Spec.BlastRadius.From, MaxWeight: 1}
		b.declare(&loose)
		b.settle()
		wantHeld("is kept back")
		if allowed(webIP, dbIP, 5433, "h1", "h2") {
			t.Error("open")
		}
		b.declare(radius)
		b.settle()
		wantHeld("")

		// A restart forgets nothing of it.
		b.again()
		b.settle()
		p = b.rooms[0]
		if err := p.Fault(); !strings.Contains(err, "does not hold") {
			t.Errorf("after a restart: %v", err)
		}
		b.condition(get[*bocage.Workload](b, "shop", "red").Status.Conditions, bocage.ConditionDegraded, "True", "BlastRadius")

		b.remove(red)
		b.settle()
		wantHeld("")
		if err := p.Fault(); err != "" {
			t.Errorf("who broke it has gone: %v", err)
		}
		b.condition(get[*bocage.Guardrail](b, "", "radius").Status.Conditions, bocage.ConditionProved, "True", "Proved")
		b.condition(get[*bocage.Workload](b, "shop", "web").Status.Conditions, bocage.ConditionDegraded, "False", "AsPromised")
	})
}

// TestRemovingTheGrantPasses deletes what a broken bound counts.
func TestRemovingTheGrantPasses(t *testing.T) {
	inBubble(t, func(b *bench) {
		s, radius, red := boundedShop()
		b.declare(append(s.all(), radius)...)
		p := b.start()
		b.settle()
		b.joined("h1", "h2")
		b.settle()
		b.declare(red)
		b.settle()
		b.remove(radius)
		b.settle()
		if v, _ := b.decide(webIP, dbIP, 4444, "h1", "h2"); v.Allowed() {
			t.Error("the grant is still in force")
		}
		if what, _ := p.Held(context.Background(), 0); what != "" || p.Fault() != "" {
			t.Errorf("%s, %v", what, p.Fault())
		}
	})
}

// TestWeightsAreProvedAgain relabels a workload, which changes no rule.
func TestWeightsAreProvedAgain(t *testing.T) {
	inBubble(t, func(b *bench) {
		s, radius, _ := boundedShop()
		b.declare(append(s.all(), radius)...)
		p := b.start()
		b.settle()
		b.joined("h1", "h2")
		b.settle()
		for _, test := range []struct {
			weight string
			broken bool
			reason string
		}{{"9223372036854775807", true, "WeightUnreadable"}, {"1", false, "Accepted"}, {"abc", false, "WeightUnreadable"}, {"1000000", true, "Accepted"}, {"0", false, "Accepted"}} {
			s.db.Labels = map[string]string{"app": "db", bocage.LabelWeight: test.weight}
			b.declare(s.db)
			b.settle()
			if err := p.Fault(); (err != "") != test.broken {
				t.Errorf("weight %s: %v", test.weight, err)
			}
			status := map[bool]string{true: "False", false: "True"}[test.broken]
			if c := conditionOf(get[*bocage.Guardrail](b, "", "radius").Status.Conditions, bocage.ConditionProved); c.Status != status {
				t.Errorf("weight %s: %+v", test.weight, c)
			}
			if conditions := get[*bocage.Workload](b, "shop", "db").Status.Conditions; test.reason != "Accepted" || len(conditions) > 0 {
				b.condition(conditions, bocage.ConditionAccepted, "True", test.reason)
			}
		}
	})
}

// TestExceptionThatBreaksABound is kept back when it is declared, not when it begins; and
// nothing else is kept back once it is gone.
func TestExceptionThatBreaksABound(t *testing.T) {
	inBubble(t, func(b *bench) {
		s, radius, red := boundedShop()
		db := bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"app": "db"}}}
		radius.Spec.Never = []bocage.CellMatch{{To: db}, {From: db}}
		radius.Spec.Exceptions.Allowed = true
		b.declare(append(s.all(), radius, red)...)
		p := b.start()
		b.settle()
		exception := &bocage.Exception{ObjectMeta: bocage.ObjectMeta{Name: "night"}, Spec: bocage.ExceptionSpec{Guardrail: "radius",
			Match: bocage.CellMatch{Ports: []bocage.PortMatch{{Port: 4444}}}, From: time.Now().Add(20 * time.Second).UTC(), Until: time.Now().Add(time.Hour).UTC()}}
		b.declare(exception)
		b.settle()
		what, why := p.Held(context.Background(), 0)
		if !strings.Contains(what, "is kept back") || !strings.Contains(why, "when Exception night begins") {
			t.Fatalf("held: %q, %q", what, why)
		}
		b.condition(get[*bocage.Exception](b, "", "night").Status.Conditions, bocage.ConditionEnforced, "False", "Blocked")
		b.wait(30 * time.Second)
		if v, _ := b.decide(webIP, dbIP, 4444, "h1", "h2"); v.Allowed() {
			t.Error("it opens what it may not")
		}
		b.condition(get[*bocage.Exception](b, "", "night").Status.Conditions, bocage.ConditionEnforced, "False", "Blocked")
		b.remove(exception)
		b.settle()
		if what, why := p.Held(context.Background(), 0); what != "" {
			t.Errorf("%s: %s", what, why)
		}
	})
}

// joined declares hosts whose agents have reported.
func (b *bench) joined(names ...string) {
	for _, name := range names {
		b.declare(&bocage.Host{ObjectMeta: bocage.ObjectMeta{Name: name}, Status: bocage.HostStatus{LastSeen: time.Now().UTC()}})
	}
}
