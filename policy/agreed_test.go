package policy

import (
	"net/netip"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// enforces says whether what nobody declares is refused at an address.
func (b *bench) enforces(host, address string) bool {
	b.t.Helper()
	verdict, _ := b.ruleset(host).Decide(flowOf(webIP, address, 9999))
	return !verdict.Allowed()
}

// TestWhatWaits: what a second person has to agree to changes nothing before, whatever
// waits beside it does not either, and its author is told.
func TestWhatWaits(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		group := &bocage.AddressGroup{ObjectMeta: bocage.ObjectMeta{Name: "far"},
			Spec: bocage.AddressGroupSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}}
		never := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "far"}, Spec: bocage.GuardrailSpec{
			Never: []bocage.CellMatch{{To: bocage.Side{AddressGroups: []string{"far"}}}}}}
		byZone := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "zones"}, Spec: bocage.GuardrailSpec{Separate: &bocage.Separate{By: "zone"}}}
		zone := &bocage.Zone{ObjectMeta: bocage.ObjectMeta{Name: "a"}, Spec: bocage.ZoneSpec{Hosts: []string{"h1"}}}
		b.declare(append(s.all(), group, never, byZone, zone)...)
		b.start()
		b.settle()
		refused := func(when, to string, port uint16, want bocage.ReasonCode) {
			t.Helper()
			if _, code := b.decide(webIP, to, port, "h1"); code != want {
				t.Errorf("%s: %s %d is %s, want %s", when, to, port, code, want)
			}
		}
		before := func(when string) {
			t.Helper()
			refused(when, "198.51.100.7", 443, bocage.ReasonGuardrail)
			refused(when, apiIP, 8080, bocage.ReasonGuardrail) // in another zone
			if !b.enforces("h2", apiIP) {
				t.Errorf("%s: the scope is not enforced", when)
			}
		}
		before("at first")
		generations, _ := b.generations()

		kept := s.scope.Spec
		s.scope.Spec.Mode, s.scope.Status.Approved = bocage.ModeObserve, &kept
		s.scope.Status.Approval = &bocage.Approval{Generation: s.scope.Generation, Author: "alice", Reason: "it takes guardrails out of force"}
		were := group.Spec
		group.Spec.Addresses, group.Status.Approved = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, &were
		group.Status.Approval = &bocage.Approval{Generation: group.Generation, Author: "alice"}
		hosts := zone.Spec
		zone.Spec.Hosts, zone.Status.Approved = []string{"h1", "h2"}, &hosts
		zone.Status.Approval = &bocage.Approval{Generation: zone.Generation, Author: "alice"}
		b.declare(s.scope, group, zone)
		b.settle()
		before("while it waits")
		if now, _ := b.generations(); len(now) != len(generations) {
			t.Errorf("what waits made a generation: %v", now)
		}
		c := b.condition(get[*bocage.Scope](b, "", "shop").Status.Conditions, bocage.ConditionAccepted, "False", compile.NotApproved)
		if want := "spec: what was approved before stays in force until somebody other than its author approves this, since it takes guardrails out of force: bocage approve scope shop"; c.Message != want || c.ObservedGeneration != 2 {
			t.Errorf("its author is told %+v", c)
		}
		b.condition(get[*bocage.AddressGroup](b, "", "far").Status.Conditions, bocage.ConditionAccepted, "False", compile.NotApproved)
		b.condition(get[*bocage.Zone](b, "", "a").Status.Conditions, bocage.ConditionAccepted, "False", compile.NotApproved)

		// A restart, or something else that changes, does not bring it into force.
		b.again()
		s.dbApp.Spec.Provides[0].Port = 5433
		b.declare(s.dbApp)
		b.settle()
		before("with something else")
		// One that nobody ever agreed to is not there; and it can go.
		other := &bocage.Zone{ObjectMeta: bocage.ObjectMeta{Name: "0"}, Spec: bocage.ZoneSpec{Hosts: []string{"h1", "h2"}},
			Status: bocage.ZoneStatus{Approval: &bocage.Approval{Author: "alice"}}}
		b.declare(other)
		b.settle()
		before("with a zone that is new")
		b.condition(get[*bocage.Zone](b, "", "0").Status.Conditions, bocage.ConditionCompiled, "False", compile.NotApproved)
		b.remove(other)
		b.settle()
		before("without it")

		approve := func(o bocage.Resource) {
			t.Helper()
			c, _ := bocage.ConsentOf(o)
			o.Meta().Generation--
			(*c.Approval).Generation = o.Meta().Generation + 1
			c.Keep(nil)
			b.declare(o)
		}
		approve(s.scope)
		approve(group)
		approve(zone)
		b.settle()
		if b.enforces("h2", apiIP) {
			t.Error("the scope is enforced still")
		}
		refused("approved", "198.51.100.7", 443, bocage.ReasonDefaultDeny)
		refused("approved", apiIP, 8080, bocage.ReasonRule)
		b.condition(get[*bocage.Scope](b, "", "shop").Status.Conditions, bocage.ConditionAccepted, "True", "Accepted")
	})
}

// TestRollbackKeepsReach: where two people decide, one who goes back does not change
// whom guardrails reach either.
func TestRollbackKeepsReach(t *testing.T) {
	for _, two := range []bool{true, false} {
		inBubble(t, func(b *bench) {
			b.before = func(p *Policy) { p.twoPerson = two }
			s := newShop()
			s.scope.Spec.Mode = bocage.ModeObserve
			group := func(name, prefix string) *bocage.AddressGroup {
				return &bocage.AddressGroup{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.AddressGroupSpec{Addresses: []netip.Prefix{netip.MustParsePrefix(prefix)}}}
			}
			far, near := group("far", "198.51.100.0/24"), group("near", "192.0.2.0/24")
			s.webApp.Spec.Consumes = append(s.webApp.Spec.Consumes, bocage.Consume{External: bocage.External{Prefix: netip.MustParsePrefix("203.0.113.0/24")}, Port: 443})
			never := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "far"}, Spec: bocage.GuardrailSpec{
				Never: []bocage.CellMatch{{To: bocage.Side{AddressGroups: []string{"far"}}}}}}
			b.declare(append(s.all(), far, near, never, rollout(bocage.RolloutSpec{}))...)
			b.start()
			b.settle()
			agents := b.agents("h1", "h2")
			far.Spec.Addresses = append(far.Spec.Addresses, netip.MustParsePrefix("203.0.113.0/24"))
			s.scope.Spec.Mode = bocage.ModeEnforce
			s.dbApp.Spec.Provides[0].Port = 5433
			b.declare(far, s.scope, s.dbApp)
			b.settle()
			b.poll(agents...)
			if _, err := b.rooms[0].Rollout(b.ctx, "ann", bocage.RolloutRequest{Action: "rollback"}); err != nil {
				t.Fatal(err)
			}
			b.settle()
			b.poll(agents...)
			if !agents[1].allows(apiIP, dbIP, 5432) || two && agents[1].allows(apiIP, dbIP, 5433) {
				t.Errorf("two people %v: it did not go back", two)
			}
			if agents[0].allows(webIP, "203.0.113.7", 443) == two {
				t.Errorf("two people %v: the guardrail reaches another address group", two)
			}
			if b.enforces("h2", apiIP) != two {
				t.Errorf("two people %v: the scope enforces %v", two, !two)
			}
		})
	}
}
