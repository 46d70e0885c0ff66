package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// TestUsageOfGoneControllers: what controllers counted that are gone becomes one book, no
// hit is lost or counted twice, and one that comes back goes on from where it was.
func TestUsageOfGoneControllers(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.declare(newShop().all()...)
		ago := func(d time.Duration) time.Time { return time.Now().Add(-d).UTC().Truncate(time.Second) }
		day := 24 * time.Hour
		put := func(name string, until time.Time, hits int64, object string) {
			t.Helper()
			value, err := json.Marshal(useBook{Until: until, Uses: []use{{useKey{"Application", "shop", object},
				bocage.Usage{Field: "spec.provides[0]", Hits: hits, FirstSeen: until.Add(-day), LastSeen: until}}}})
			if err == nil {
				value, err = compress(value)
			}
			if err == nil {
				_, err = store.Put(b.ctx, b.store, usageKey+"/"+name, value, store.Absent)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		put("gone", ago(8*day), 1000, "api")
		put("long", ago(80*day), 20_000, "api")
		put("away", ago(7*day-20*time.Minute), 300_000, "api")
		put("old", ago(9*day), 5, "deleted") // of an object that is gone, too
		var mu sync.Mutex                    // guards asked
		asked := map[string][]time.Time{}
		count := func(instance string) *Policy {
			b.before = func(p *Policy) {
				p.node, p.instance = instance, instance
				p.usage = func(_ context.Context, since, until time.Time) ([]DecisionUse, error) {
					mu.Lock()
					defer mu.Unlock()
					asked[instance] = append(asked[instance], since)
					_, reason := p.inForce().output.Ruleset().Decide(flowOf(webIP, apiIP, 8080))
					return []DecisionUse{{Decision: reason.Decision, Generation: uint32(p.inForce().number), Hits: 1, First: since, Last: until}}, nil
				}
			}
			return b.start()
		}
		check := func(when string, want int64, keys ...string) {
			t.Helper()
			b.wait(2*usageEvery + time.Second)
			mu.Lock()
			for _, times := range asked {
				want += int64(len(times))
			}
			mu.Unlock()
			counts, err := b.rooms[0].readUses(b.ctx)
			if err != nil {
				t.Fatal(err)
			}
			var total int64
			for _, u := range counts.all().Uses {
				if u.useKey == (useKey{"Application", "shop", "api"}) {
					total += u.Hits
				}
			}
			if total != want {
				t.Errorf("%s: %d hits are kept, want %d", when, total, want)
			}
			// What others counted in the same moment is told a minute later.
			if u := get[*bocage.Application](b, "shop", "api").Status.Usage; len(u) != 1 || u[0].Hits > want || u[0].Hits < want-int64(len(b.rooms)) {
				t.Errorf("%s: usage %+v, want %d hits", when, u, want)
			}
			entries, _, err := b.store.List(b.ctx, usageKey, "", 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			var left []string
			for _, e := range entries {
				left = append(left, strings.TrimPrefix(e.Key, usageKey+"/"))
			}
			if fmt.Sprint(left) != fmt.Sprint(keys) {
				t.Errorf("%s: left are %q, want %q", when, left, keys)
			}
		}
		count("one")
		count("two")
		b.settle()
		check("at first", 321_000, "-gone", "away", "one", "two")
		count("gone")
		b.settle()
		check("one came back", 321_000, "-gone", "away", "gone", "one", "two")
		mu.Lock()
		if since := asked["gone"][0]; since.IsZero() || since.After(ago(7*day)) {
			t.Errorf("it counts from %s on", since)
		}
		mu.Unlock()
		b.wait(20 * time.Minute)
		check("the last is gone", 321_000, "-gone", "gone", "one", "two")
		for _, p := range b.rooms {
			counts, err := p.readUses(b.ctx)
			if err != nil || len(counts.gone.Folded) != 4 || len(counts.gone.Uses) != 1 {
				t.Errorf("the common book: %+v, %v", counts.gone, err)
			}
		}
	})
}
