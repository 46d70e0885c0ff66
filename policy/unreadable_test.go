package policy

import (
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// spoil writes what cannot be read in an object's place, as a newer version or a
// damaged disk might leave it.
func (b *bench) spoil(o bocage.Resource) {
	b.t.Helper()
	key := kindOfObject(o).Key(o.Meta().Namespace, o.Meta().Name)
	if _, err := store.Put(b.ctx, b.store, key, []byte(`{"apiVersion":"bocage.dev/v1","spec":{"never":"of another form"}}`), store.AnyRevision); err != nil {
		b.t.Fatal(err)
	}
}

// told reports whether people were told of something about an object.
func (b *bench) told(kind, name, reason, what string) bool {
	for _, e := range b.events() {
		if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && e.Reason == reason && strings.Contains(e.Message, what) {
			return true
		}
	}
	return false
}

// refusedByGuardrail checks that web still does not reach db, although a contract
// of both would allow it.
func (b *bench) refusedByGuardrail(when string) {
	b.t.Helper()
	if v, c := b.decide(webIP, dbIP, 5432, "h1", "h2"); v != bocage.VerdictDrop || c != bocage.ReasonGuardrail {
		b.t.Errorf("%s: web to db gets %s (%s)", when, v, c)
	}
}

// TestUnreadableGuardrail shows that a guardrail which nobody can read any more
// goes on to hold: at once, while other things change, after a restart, and after
// a restart of a controller that never saw it whole.
func TestUnreadableGuardrail(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		s.dbApp.Spec.Provides[0].To = bocage.Selector{} // anybody, so that only the guardrail stands between
		s.webApp.Spec.Consumes = append(s.webApp.Spec.Consumes, bocage.Consume{Service: "db"})
		b.declare(s.all()...)
		p := b.start()
		b.settle()
		b.wantActive("g1")
		b.refusedByGuardrail("before")

		b.spoil(s.guardrail)
		b.settle()
		b.wantActive("g1")
		b.refusedByGuardrail("spoilt")
		if !b.told("Guardrail", "pci", "Unreadable", "stays in force") {
			t.Errorf("nobody was told: %+v", b.events())
		}
		if p.mirror.countUnreadable() != 1 {
			t.Errorf("%d are counted", p.mirror.countUnreadable())
		}
		// Everything else goes on, and its status is told; nothing overwrites what
		// cannot be read.
		s.apiApp.Spec.Provides[0].Port = 8081
		b.declare(s.apiApp)
		b.settle()
		b.wantActive("g2")
		b.refusedByGuardrail("while another contract changed")
		if v, _ := b.decide(webIP, apiIP, 8081, "h1", "h2"); v != bocage.VerdictAllow {
			t.Errorf("the other contract: %s", v)
		}
		entry, err := b.store.Get(b.ctx, kindOfObject(s.guardrail).Key("", "pci"))
		if err != nil || !strings.Contains(string(entry.Value), "another form") {
			t.Errorf("it was overwritten: %s %v", entry.Value, err)
		}

		b.stop()
		p = b.start()
		b.settle()
		b.wantActive("g2")
		b.refusedByGuardrail("after a restart")
		s.apiApp.Spec.Provides[0].Port = 8082
		b.declare(s.apiApp)
		b.settle()
		b.wantActive("g3")
		b.refusedByGuardrail("after a restart and a change")

		// Written again it is as any other, and deleted it is gone.
		b.declare(s.guardrail)
		b.settle()
		if p.mirror.countUnreadable() != 0 {
			t.Errorf("%d are counted after it was mended", p.mirror.countUnreadable())
		}
		b.refusedByGuardrail("mended")
		b.spoil(s.guardrail)
		b.settle()
		b.remove(s.guardrail)
		b.settle()
		if v, _ := b.decide(webIP, dbIP, 5432, "h1", "h2"); v != bocage.VerdictAllow {
			t.Errorf("deleted, and still %s", v)
		}
		if p.mirror.countUnreadable() != 0 {
			t.Errorf("%d are counted after it was deleted", p.mirror.countUnreadable())
		}
	})
}

// TestUnreadableFromTheFirst shows that nothing new comes into force while there is
// an object of which nothing is known, but for quarantines; and that a controller
// which begins with one publishes nothing.
func TestUnreadableFromTheFirst(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.spoil(s.guardrail)
		b.declare(s.web, s.api, s.db, s.webApp, s.apiApp, s.dbApp, s.scope)
		b.start()
		b.settle()
		if _, active := b.generations(); len(active) != 0 {
			t.Fatalf("%v came into force without a guardrail that nobody can read", active)
		}
		g := get[*bocage.Generation](b, "", "g1")
		b.condition(g.Status.Conditions, bocage.ConditionProved, "False", "Unreadable")
		b.declare(s.guardrail)
		b.settle()
		b.wantActive("g2")
		b.taken(2, "h1", "h2")
		b.settle()

		other := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "other"}, Spec: s.guardrail.Spec}
		b.spoil(other)
		s.apiApp.Spec.Provides[0].Port = 8081
		b.declare(s.apiApp)
		b.settle()
		b.wantActive("g2")
		if v, _ := b.decide(webIP, apiIP, 8081, "h1", "h2"); v == bocage.VerdictAllow {
			t.Error("the new contract came into force")
		}
		if !b.told("Guardrail", "other", "Unreadable", "nothing new comes into force") {
			t.Errorf("nobody was told: %+v", b.events())
		}
		b.declare(&bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "api"}, Spec: bocage.QuarantineSpec{Workload: "shop/api"}})
		b.settle()
		if v, c := b.decide(webIP, apiIP, 8080, "h1", "h2"); v != bocage.VerdictDrop || c != bocage.ReasonQuarantine {
			t.Errorf("quarantined meanwhile: %s (%s)", v, c)
		}
		b.stop()
		b.start()
		b.settle()
		if v, _ := b.decide(webIP, apiIP, 8081, "h1", "h2"); v == bocage.VerdictAllow {
			t.Error("the new contract came into force after a restart")
		}
		b.remove(other)
		b.remove(&bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "api"}})
		b.settle()
		if v, c := b.decide(webIP, apiIP, 8081, "h1", "h2"); v != bocage.VerdictAllow {
			t.Errorf("once the unreadable is gone: %s (%s)", v, c)
		}
	})
}
