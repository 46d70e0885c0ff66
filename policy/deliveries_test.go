package policy

import (
	"fmt"
	"strings"
	"testing"

	"bocage.dev/bocage"
)

// An agent that has a ruleset is told the next by how it differs, also by a controller
// that never gave it anything; what it makes of that is what another one is given
// whole.
func TestAmendments(t *testing.T) {
	inBubble(t, func(b *bench) {
		first := b.start()
		s := newShop()
		b.declare(s.all()...)
		b.settle()
		held := map[string]*bocage.Ruleset{"h1": b.ruleset("h1"), "h2": b.ruleset("h2")}
		amended, whole := 0, 0
		take := func(p *Policy) {
			t.Helper()
			for host, rs := range held {
				q := Question{Have: rs.Generation, Base: rs.Generation}
				if _, err := p.Answer(b.ctx, host, q); err != nil { // as every agent asks now and then
					t.Fatal(err)
				}
				a, err := p.Answer(b.ctx, host, q)
				if err != nil {
					t.Fatal(err)
				}
				switch {
				case len(a.Amendment) > 0:
					amended++
					payload, ok := strings.CutPrefix(string(a.Amendment), bocage.SignedAmendment+":")
					amendment, err := DecodeAmendment([]byte(payload))
					if err != nil || !ok {
						t.Fatalf("%s: %v", payload, err)
					}
					after, err := rs.Amend(amendment)
					if err != nil {
						t.Fatal(err)
					}
					held[host] = after()
				case len(a.Ruleset) > 0:
					whole++
					held[host] = b.open(host, bocage.SignedRuleset, a.Ruleset)
				}
				want := b.ruleset(host)
				if got := held[host]; got.Digest != want.Digest || got.ContentDigest() != want.Digest || got.Generation != want.Generation || encoded(t, got) != encoded(t, want) {
					t.Fatalf("%s has\n%s\nwant\n%s", host, encoded(t, held[host]), encoded(t, want))
				}
			}
		}
		change := func(o ...bocage.Resource) {
			t.Helper()
			b.declare(o...)
			b.settle()
		}
		more := *s.apiApp
		more.Spec.Provides = append([]bocage.Provide{{Name: "admin", Port: 9090, To: s.apiApp.Spec.Provides[0].To}}, more.Spec.Provides...)
		web := *s.webApp
		web.Spec.Consumes = append([]bocage.Consume{{Service: "api", Interface: "admin"}}, web.Spec.Consumes...)
		change(&more, &web)
		take(first)
		quarantine := &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "q"}, Spec: bocage.QuarantineSpec{Workload: "shop/web"}}
		change(quarantine)
		take(first)
		// Another controller, which gave nobody anything, is asked before and after.
		second := b.start()
		b.settle()
		take(second)
		b.remove(quarantine)
		b.settle()
		take(second)
		change(s.apiApp, s.webApp)
		take(first)
		if amended < 6 || whole > 2 {
			t.Errorf("%d amendments and %d whole rulesets", amended, whole)
		}
	})
}

// What is remembered of what hosts were given is bounded, and the longest unused goes.
func TestGivenIsBounded(t *testing.T) {
	var g deliveries
	large := func(host string) *bocage.Ruleset {
		return &bocage.Ruleset{Host: host, Generation: 1, Rules: make([]bocage.Rule, deliveredRows/3)}
	}
	for _, host := range []string{"a", "b"} {
		g.note(nil, large(host))
	}
	if g.of("a", 1) == nil || g.of("a", 2) != nil {
		t.Error("what is remembered is another generation's")
	}
	g.note(nil, large("c"))
	if g.of("b", 1) != nil || g.of("a", 1) == nil || g.of("c", 1) == nil || g.rows > deliveredRows {
		t.Errorf("%d rows of %d hosts are remembered", g.rows, g.order.Len())
	}
	g.note(g.of("a", 1), &bocage.Ruleset{Host: "a", Generation: 2})
	if g.of("a", 1) == nil {
		t.Error("an answer that was lost cannot be given again")
	}
	if g.of("a", 2) == nil || g.of("a", 1) != nil {
		t.Error("what a host has is not what it said")
	}
	if g.order.Len() != len(g.hosts) || g.rows > deliveredRows {
		t.Errorf("%d rows of %d hosts are remembered", g.rows, g.order.Len())
	}
}

// Peers that many rulesets have together count once, and for as long as any has them.
func TestGivenCountsWhatIsShared(t *testing.T) {
	var g deliveries
	peers := func() []bocage.Peer { return make([]bocage.Peer, deliveredRows/3/4) } // a quarter of all there is room for
	cut := func(host string, generation uint64, of []bocage.Peer) *bocage.Ruleset {
		return &bocage.Ruleset{Host: host, Generation: generation, Peers: of}
	}
	first := peers()
	for i := range 100 {
		g.note(nil, cut(fmt.Sprint("h", i), 1, first))
	}
	if g.order.Len() != 100 || !g.hasRoom() {
		t.Errorf("%d of 100 hosts of one whole are remembered, by %d rows", g.order.Len(), g.rows)
	}
	// Each keeps another whole from being forgotten.
	for i := range uint64(10) {
		g.note(nil, cut(fmt.Sprint("h", i), 2+i, peers()))
	}
	if g.rows > deliveredRows || g.order.Len() > 5 || g.order.Len() == 0 {
		t.Errorf("%d hosts are remembered, by %d rows", g.order.Len(), g.rows)
	}
	for g.order.Len() > 0 {
		g.forget(g.order.Front())
	}
	if g.rows != 0 || len(g.shared) != 0 {
		t.Errorf("%d rows and %d lists of nobody", g.rows, len(g.shared))
	}
}
