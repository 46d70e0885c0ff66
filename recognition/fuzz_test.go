package recognition

import (
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/stream"
)

// Whatever a signed batch holds, it is folded, described and merged.
func FuzzBatch(f *testing.F) {
	s := newShop(f)
	_, scan := s.batch("h1", bocage.Batch{Flows: s.scanOf("dev/red", "shop/web", 1, 20), Inspections: s.exploitOf("shop/web", "shop/api"),
		Engagements: s.engagementOf("dev/red", "shop/db", bocage.DepthCommand, map[string]string{"command": "x"}), Lost: map[string]uint64{"a": 1}})
	f.Add(scan)
	f.Add([]byte(`{"source":"","sequence":18446744073709551615,"flows":"AAAA","lost":{"":18446744073709551615}}`))
	f.Add([]byte(`{"inspections":[{"severity":-1,"blocked":true}],"engagements":[{"depth":"touch"}]}`))
	cfg, err := Config{Store: s.store, Log: s.log, Bundle: openPlain}.complete()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, envelope []byte) {
		books := newCounts()
		fold := newFold(cfg, newLedger(cfg.Store, cfg.Logger), &books)
		for n := range uint64(2) {
			o := opened{message: stream.Message{Subject: "events.h1", Sequence: n + 1, Time: time.Unix(1e9, 0)}}
			if o.batch, o.err = openPlain(envelope); o.batch != nil {
				o.batch.Sequence += n
			}
			fold.message(o)
		}
		fold.tick(time.Unix(1e9+100, 0))
		for _, p := range fold.posts(time.Unix(1e9+100, 0), true) {
			if len(p.status.Title) > maxText || len(p.status.Evidence) > maxEvidence || len(p.status.Entities) > maxEntities {
				t.Errorf("out of bounds: %+v", p.status)
			}
			again := merge(p.status, p.status)
			again.Phase = p.status.Phase
			if !equal(again, p.status) {
				t.Errorf("joined with itself:\n%+v\n%+v", p.status, again)
			}
		}
	})
}
