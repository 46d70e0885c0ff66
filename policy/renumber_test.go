package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
)

// backup is what a store holds.
func (b *bench) backup() []store.Entry {
	b.t.Helper()
	entries, _, err := b.store.List(b.ctx, "", "", 0, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	return entries
}

// restore starts as many rooms as there were on what a store held.
func (b *bench) restore(backup []store.Entry) {
	b.t.Helper()
	n := len(b.rooms)
	b.stop()
	if err := b.store.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.store = mem.New()
	for _, e := range backup {
		if _, err := store.Put(b.ctx, b.store, e.Key, e.Value, store.Absent); err != nil {
			b.t.Fatal(err)
		}
	}
	for range n {
		b.start()
	}
	b.settle()
}

// TestStoreRestored puts an older store in the place of what hosts were given from: they
// come to what it holds, by numbers above all that they had, and a number never means
// two contents.
func TestStoreRestored(t *testing.T) {
	for _, by := range []string{"controllers", "hosts"} {
		for _, spec := range []bocage.RolloutSpec{{}, {ConfirmSeconds: 60}, {ShadowSeconds: 30, Canary: []string{"h1"}, CanarySeconds: 30, ConfirmSeconds: 60, MostNewlyRefused: -1}} {
			t.Run(fmt.Sprintf("%s/%d/%d", by, spec.ShadowSeconds, spec.ConfirmSeconds), func(t *testing.T) {
				inBubble(t, func(b *bench) { restored(b, by, spec) })
			})
		}
	}
}

func restored(b *bench, by string, spec bocage.RolloutSpec) {
	s := newShop()
	b.declare(s.all()...)
	b.start()
	b.start()
	b.settle()
	agents := b.agents("h1", "h2")
	b.declare(rollout(spec))
	b.settle()
	through := func(port uint16) {
		b.t.Helper()
		s.apiApp.Spec.Provides[0].Port = port
		b.declare(s.apiApp)
		b.settle()
		for range 4 {
			b.poll(agents...)
			if p := b.rooms[0]; !p.served.Load().record.ConfirmBy.IsZero() {
				if _, err := p.Rollout(b.ctx, "jane", bocage.RolloutRequest{Action: actionConfirm}); err != nil {
					b.t.Fatal(err)
				}
			}
			b.wait(31 * time.Second)
		}
		b.poll(agents...)
		for _, a := range agents {
			if !a.allows(webIP, apiIP, port) {
				b.t.Fatalf("%s does not allow port %d", a.host, port)
			}
		}
	}
	through(9001)
	backup := b.backup()
	for port := uint16(9002); port < 9006; port++ {
		through(port)
	}
	s.apiApp.Spec.Provides[0].Port = 9006 // in shadow, where there is one
	b.declare(s.apiApp)
	b.settle()
	b.poll(agents...)
	given := map[string]string{} // by host and generation
	highest := uint64(0)
	note := func() {
		for _, a := range agents {
			for _, rs := range []*bocage.Ruleset{a.enforced, a.candidate} {
				if rs == nil {
					continue
				}
				at := fmt.Sprint(a.host, " ", rs.Generation)
				if content := rs.ContentDigest(); given[at] == "" {
					given[at] = content
				} else if given[at] != content {
					b.t.Errorf("%s: two contents", at)
				}
				highest = max(highest, rs.Generation)
			}
		}
	}
	note()
	lost := highest
	if known := b.rooms[0].Numbered(); by == "controllers" {
		b.before = func(p *Policy) { p.numbered.Store(known) }
	}
	b.restore(backup)

	// Nobody's mere word counts.
	before, _, err := readRecord(b.ctx, b.store)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, q := range []Question{{Have: 1 << 30}, {Have: 1 << 30, Proves: true, Shown: true}, {Have: 1 << 30, Proves: true, Shown: true, Proved: 1 << 29}, {Confirmed: 1 << 30}} {
		if _, err := b.rooms[0].Answer(b.ctx, "h1", q); err == nil || !strings.Contains(err.Error(), "ruleset*") {
			b.t.Errorf("%+v is answered with %v", q, err)
		}
	}
	if after, _, err := readRecord(b.ctx, b.store); err != nil || after.Number != before.Number {
		b.t.Errorf("by what hosts say numbering went from %d to %d (%v)", before.Number, after.Number, err)
	}

	for _, a := range agents {
		a.q.Proves = true
	}
	for range 3 {
		b.poll(agents...)
		note()
		b.settle()
	}
	for _, a := range agents {
		if a.enforced.Generation <= lost || !a.allows(webIP, apiIP, 9001) || a.allows(webIP, apiIP, 9005) {
			b.t.Errorf("%s enforces generation %d, which allows 9001: %v, 9005: %v; up to %d were given", a.host, a.enforced.Generation,
				a.allows(webIP, apiIP, 9001), a.allows(webIP, apiIP, 9005), lost)
		}
	}
	// And it goes on: a change comes, and stays only if it is confirmed.
	for port := uint16(9010); port < 9013; port++ {
		through(port)
		note()
	}
	if spec.ConfirmSeconds > 0 {
		s.apiApp.Spec.Provides[0].Port = 9020
		b.declare(s.apiApp)
		b.settle()
		for range 8 {
			b.poll(agents...)
			note()
			b.wait(31 * time.Second)
		}
		b.poll(agents...)
		for _, a := range agents {
			if a.allows(webIP, apiIP, 9020) || !a.allows(webIP, apiIP, 9012) {
				b.t.Errorf("%s keeps what nobody confirmed", a.host)
			}
		}
	}
	if p := b.rooms[0]; p.Counters().Failures > 20 {
		b.t.Errorf("%d attempts failed", p.Counters().Failures)
	}
}

// TestMirrorTakesWhatIsThere: a store that was restored may count on above what it
// counted before, so that what is there looks older than what is known.
func TestMirrorTakesWhatIsThere(t *testing.T) {
	s, m := newShop(), newMirror()
	entry := func(o bocage.Resource, at store.Revision) store.Entry {
		t.Helper()
		kind := kindOfObject(o)
		value, err := store.EncodeObject(kind, o)
		if err != nil {
			t.Fatal(err)
		}
		return store.Entry{Key: kind.Key(o.Meta().Namespace, o.Meta().Name), Value: value, Revision: at}
	}
	backup := []store.Entry{entry(s.apiApp, 10), entry(s.dbApp, 11)}
	m.replace(backup, 20)
	s.apiApp.Spec.Provides[0].Port = 9001
	lost := entry(s.apiApp, 30)
	m.put(lost.Key, lost.Value, lost.Revision)
	m.reached(30)
	s.dbApp.Spec.Provides[0].Port = 9002
	own := entry(s.dbApp, 1001) // this process's own write, which the list came before
	m.put(own.Key, own.Value, own.Revision)
	m.replace(backup, 1000)
	ports := map[string]uint16{}
	for _, a := range m.view().input.Applications {
		ports[a.Name] = a.Spec.Provides[0].Port
	}
	if ports["api"] != 8080 || ports["db"] != 9002 {
		t.Errorf("it has %v", ports)
	}
}

// TestConfirmedTooLate: nobody is there to end the canary's stage, so that it goes back
// by itself before the others would. What a person confirms then, it is given again.
func TestConfirmedTooLate(t *testing.T) {
	inBubble(t, func(b *bench) {
		s := newShop()
		b.declare(s.all()...)
		b.declare(rollout(bocage.RolloutSpec{Canary: []string{"h1"}, CanarySeconds: 30, ConfirmSeconds: 60, MostNewlyRefused: -1}))
		b.start()
		b.settle()
		agents := b.agents("h1", "h2")
		s.apiApp.Spec.Provides[0].Port = 9001
		b.declare(s.apiApp)
		b.settle()
		b.poll(agents...)
		b.stop()
		b.wait(80 * time.Second) // of the 90 that the canary has
		b.start()
		b.wait(2 * time.Second)
		b.stage(bocage.StageCanary) // nobody knows how it went there
		b.poll(agents...)
		b.wait(2 * time.Second)
		b.stage(bocage.StageConfirming)
		b.poll(agents...)
		b.wait(20 * time.Second)
		b.poll(agents...)
		if h1, h2 := agents[0], agents[1]; h1.allows(webIP, apiIP, 9001) || !h2.allows(webIP, apiIP, 9001) {
			t.Fatalf("h1 enforces generation %d, h2 %d", h1.enforced.Generation, h2.enforced.Generation)
		}
		if _, err := b.rooms[0].Rollout(b.ctx, "jane", bocage.RolloutRequest{Action: actionConfirm}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			b.poll(agents...)
		}
		for _, a := range agents {
			if !a.allows(webIP, apiIP, 9001) {
				t.Errorf("%s does not enforce what was confirmed, but generation %d", a.host, a.enforced.Generation)
			}
		}
		// Who says that it went back again is not believed.
		before, _, err := readRecord(b.ctx, b.store)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := b.rooms[0].Answer(b.ctx, "h1", Question{Have: before.Hosts["h1"][0], Left: before.Hosts["h1"][0], Confirmed: before.ConfirmedUpTo}); err != nil {
				t.Fatal(err)
			}
			b.settle()
		}
		if after, _, err := readRecord(b.ctx, b.store); err != nil || after.Number != before.Number {
			t.Errorf("numbering went from %d to %d (%v)", before.Number, after.Number, err)
		}
	})
}
