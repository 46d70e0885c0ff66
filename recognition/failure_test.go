package recognition

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/silence"
	"bocage.dev/bocage/store"
	streammem "bocage.dev/bocage/stream/mem"
)

// sick is a store whose writes fail or hang.
type sick struct {
	store.Store
	full, hung atomic.Bool
}

func (s *sick) Apply(ctx context.Context, ops ...store.Op) (store.Revision, error) {
	if s.hung.Load() {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	if s.full.Load() {
		return 0, store.ErrFull
	}
	return s.Store.Apply(ctx, ops...)
}

func TestSickStoreStallsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		ill := &sick{Store: s.store}
		r, _ := s.run(func(c *Config) { c.Store = ill })
		for name, fault := range map[string]*atomic.Bool{"full": &ill.full, "hung": &ill.hung} {
			fault.Store(true)
			before := r.Stats().Processed
			began := time.Now()
			for n := range 200 {
				s.send("h1", bocage.Batch{Flows: s.scanOf("dev/red", "shop/web", 1+n*100, 100)})
			}
			s.until(name+": all records folded", func() bool { return r.Stats().Processed == before+20_000 })
			if took := time.Since(began); took > time.Second {
				t.Errorf("%s: folding waited %s for the store", name, took)
			}
			time.Sleep(time.Minute)
			fault.Store(false)
			time.Sleep(20 * time.Second)
			s.until(name+": the incident to be written", func() bool {
				all := s.incidents()
				return len(all) == 1 && r.writer.waiting() == 0 && all[0].Status.Evidence[0].Count == int(r.Stats().Processed)
			})
		}
	})
}

// A replica that starts again, from its checkpoint or from nothing, neither
// doubles an incident nor takes anything back.
func TestRestartAndReplayChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		r, stop := s.run(nil)
		s.send("h1", bocage.Batch{Flows: s.scanOf("dev/red", "shop/web", 1, 500), Inspections: s.exploitOf("shop/web", "shop/api")})
		time.Sleep(2 * time.Second)
		s.send("h1", bocage.Batch{Engagements: s.engagementOf("dev/red", "shop/db", bocage.DepthLogin, nil)})
		s.caughtUp(r)
		stop()
		state := func() string {
			text := ""
			for _, i := range s.incidents() {
				i.ResourceVersion = ""
				encoded, _ := json.Marshal(i)
				text += string(encoded) + "\n"
			}
			return text
		}
		want := state()
		if strings.Count(want, "\n") != 2 {
			t.Fatal(want)
		}
		_, at, err := s.store.List(t.Context(), "resources/", "", 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, node := range []string{"c1", "c2", "c1"} { // its own checkpoint, none, its own
			r, stop = s.run(func(c *Config) { c.Node = node })
			s.caughtUp(r)
			time.Sleep(5 * time.Second)
			stop()
			if got := state(); got != want {
				t.Fatalf("node %s:\n got %s\nwant %s", node, got, want)
			}
		}
		w, err := s.store.Watch(t.Context(), "resources/", at)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case e := <-w.Events():
			t.Errorf("a replay wrote %s", e.Key)
		default:
		}
		// Evidence after the restart goes on in the same incident.
		s.run(nil)
		s.send("h1", bocage.Batch{Flows: s.scanOf("dev/red", "shop/cache", 1, 100)})
		s.until("the incident to grow", func() bool {
			return len(s.incidents()) == 2 && strings.Contains(state(), "scanned 2 addresses and 500 ports")
		})
	})
}

// Two replicas on one log write the same, once.
func TestReplicasAgree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		s.run(nil)
		s.run(func(c *Config) { c.Node = "c2" })
		for n := range 20 {
			s.send("h1", bocage.Batch{Flows: s.scanOf("dev/red", "shop/web", 1+n*50, 50)})
			s.send("h2", bocage.Batch{Inspections: s.exploitOf("shop/web", "shop/db")})
			time.Sleep(300 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		all := s.incidents()
		if len(all) != 2 || len(s.conditions()) != 2 {
			t.Fatalf("%d incidents, conditions %v", len(all), s.conditions())
		}
		for _, i := range all {
			if n := i.Status.Evidence[0].Count; n != 1000 && n != 20 {
				t.Errorf("%s: seen %d times", i.Status.Title, n)
			}
		}
	})
}

// Automation cuts off a share of a namespace at most, and says where it stopped.
func TestShareOfQuarantines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		for n := range 5 { // ten workloads in shop: two may be cut off
			s.workload(fmt.Sprintf("shop/more%d", n), bocage.Identity(100+n))
		}
		s.run(func(c *Config) { c.QuarantineTTL = time.Minute })
		attackers := []string{"shop/web", "shop/api", "shop/db", "shop/cache", "dev/red", "dev/blue"}
		for _, name := range attackers {
			s.send("h1", bocage.Batch{Inspections: s.exploitOf(name, "shop/client")})
			time.Sleep(time.Second)
		}
		levels := map[bocage.Level]int{}
		for name, c := range s.conditions() {
			space, _, _ := strings.Cut(name, "/")
			if space == "shop" {
				levels[c.Spec.Level]++
			} else {
				levels["dev "+c.Spec.Level]++
			}
		}
		if levels[bocage.LevelQuarantine] != 2 || levels[bocage.LevelRestrict] != 2 || levels["dev quarantine"] != 1 || levels["dev restrict"] != 1 {
			t.Errorf("levels: %v", levels)
		}
		notes := 0
		for _, i := range s.incidents() {
			for _, note := range i.Status.Notes {
				notes++
				if !strings.Contains(note, "restricted and not quarantined: automation may cut off ") {
					t.Errorf("note: %s", note)
				}
			}
		}
		if notes != 3 {
			t.Errorf("%d notes", notes)
		}
	})
}

// While evidence arrives a condition is extended, never shortened or weakened;
// then it ends by itself, the lower rung after the higher.
func TestConditionsExtendAndEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		s.run(func(c *Config) { c.QuarantineTTL = time.Minute })
		s.send("h1", bocage.Batch{Flows: s.scanOf("shop/web", "shop/db", 1, 100)})
		time.Sleep(time.Second)
		watch := s.conditions()["shop/web"]
		if watch == nil || watch.Spec.Level != bocage.LevelWatch {
			t.Fatalf("conditions: %v", s.conditions())
		}
		var expires time.Time
		writes := 0
		for range 120 {
			s.send("h1", bocage.Batch{Inspections: s.exploitOf("shop/web", "shop/api")})
			time.Sleep(time.Second)
			c := s.conditions()["shop/web"]
			if c.Spec.Level != bocage.LevelQuarantine || c.Spec.Expires.Before(expires) || time.Until(c.Spec.Expires) < 20*time.Second {
				t.Fatalf("condition: %+v", c.Spec)
			}
			if !c.Spec.Expires.Equal(expires) {
				writes++
			}
			expires = c.Spec.Expires
		}
		if writes > 15 {
			t.Errorf("%d generations of policy for one attack", writes)
		}
		last := time.Now().Add(-time.Second)
		time.Sleep(58 * time.Second)
		if c := s.conditions()["shop/web"]; c.Spec.Level != bocage.LevelQuarantine {
			t.Errorf("a minute after the last attack is not over: %+v", c.Spec)
		}
		time.Sleep(4 * time.Second)
		c := s.conditions()["shop/web"]
		if c.Spec.Level != bocage.LevelWatch || c.Spec.Expires.Before(last.Add(7*time.Minute)) {
			t.Errorf("after the quarantine: %+v", c.Spec)
		}
		if got := s.incidents()[0].Status.Phase; got != phaseOpen {
			t.Errorf("phase %s", got)
		}
		time.Sleep(10 * time.Minute)
		if c := s.conditions(); len(c) != 0 {
			t.Errorf("conditions: %v", c)
		}
		time.Sleep(time.Hour)
		if got := s.incidents()[0].Status.Phase; got != phaseClosed {
			t.Errorf("phase %s", got)
		}
		// What comes later is another incident.
		s.send("h1", bocage.Batch{Inspections: s.exploitOf("shop/web", "shop/api")})
		s.until("a second incident", func() bool { return len(s.incidents()) == 2 })
	})
}

func TestForkGapAndForgery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		r, _ := s.run(nil)
		for range 3 {
			s.send("h1", bocage.Batch{Flows: s.scanOf("shop/web", "shop/db", 1, 1)})
		}
		s.batch("h1", bocage.Batch{}) // sealed and never sent
		s.send("h1", bocage.Batch{Lost: map[string]uint64{"spool-full": 7}})
		s.append("h1", "forged", []byte("forged"))
		s.caughtUp(r)
		time.Sleep(time.Minute)
		stats := r.Stats()
		for _, kind := range []string{silence.KindGap, silence.KindBlind, silence.KindUnsigned} {
			if stats.Evidence[kind] != 1 {
				t.Errorf("%d pieces of evidence of %s", stats.Evidence[kind], kind)
			}
		}
		if stats.Lost != 7 || stats.Rejected != 1 || len(s.incidents()) != 0 {
			t.Errorf("accounts %+v, %d incidents", stats, len(s.incidents()))
		}
		// A second process with h1's key and number tells another story.
		s.boots["spiffe://bocage.test/agent/h1boot1"] = 2
		id, envelope := s.batch("h1", bocage.Batch{Flows: s.scanOf("shop/api", "shop/db", 1, 1)})
		s.append("h1", id+"x", envelope)
		s.until("an incident", func() bool { return len(s.incidents()) == 1 })
		i := s.incidents()[0]
		if i.Status.Entities[0] != (bocage.Entity{Type: "host", Name: "h1", Role: "attacker"}) || i.Status.Techniques[0] != "T1562" {
			t.Errorf("%+v", i.Status)
		}
		if len(s.conditions()) != 0 {
			t.Error("a host was held")
		}
	})
}

// A stolen host speaks for its own guests only: it cannot have others' cut off.
func TestForeignEventsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		r, _ := s.run(nil)
		s.send("h2", bocage.Batch{Flows: s.scanOf("shop/web", "shop/api", 1, 200), Inspections: s.exploitOf("shop/web", "shop/api"),
			Engagements: s.engagementOf("shop/web", "shop/api", bocage.DepthCommand, nil)})
		s.send("h3", bocage.Batch{Inspections: s.exploitOf("shop/web", "shop/db")})
		s.caughtUp(r)
		if len(s.incidents()) != 0 || len(s.conditions()) != 0 || r.Stats().Evidence[silence.KindForeign] != 203 {
			t.Errorf("%d incidents, conditions %v, %+v", len(s.incidents()), s.conditions(), r.Stats())
		}
	})
}

// Every workload attacks at once: memory, writes and conditions stay bounded.
func TestFloodOfAttackers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		for n := range 400 {
			s.workload(fmt.Sprintf("crowd/w%d", n), bocage.Identity(1000+n))
		}
		r, _ := s.run(nil)
		for n := range 400 {
			name := fmt.Sprintf("crowd/w%d", n)
			s.send("h1", bocage.Batch{Flows: s.scanOf(name, "shop/web", 1, 50), Inspections: s.exploitOf(name, "shop/web")})
		}
		s.caughtUp(r)
		if n := len(s.incidents()); n != 400 {
			t.Errorf("%d incidents", n)
		}
		quarantined := 0
		for _, c := range s.conditions() {
			if c.Spec.Level == bocage.LevelQuarantine {
				quarantined++
			}
		}
		if quarantined != 80 {
			t.Errorf("%d of 400 are quarantined", quarantined)
		}
		if _, held := s.conditions()["shop/web"]; held {
			t.Error("the victim is held")
		}
	})
}

func TestMetricsAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		r, _ := s.run(nil)
		s.send("h1", bocage.Batch{Flows: append(s.scanOf("dev/red", "shop/web", 1, 100), 1, 2, 3), Lost: map[string]uint64{"ring": 5}})
		s.caughtUp(r)
		registry := prometheus.NewRegistry()
		registry.MustRegister(r.Collector())
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		sums := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				sums[f.GetName()] += m.GetCounter().GetValue()
			}
		}
		offered := sums["bocage_recognition_records_offered_total"]
		if parts := sums["bocage_recognition_records_processed_total"] + sums["bocage_recognition_records_shed_total"] +
			sums["bocage_recognition_records_lost_total"]; offered != 106 || parts != offered {
			t.Errorf("offered %g, processed, shed and lost %g", offered, parts)
		}
	})
}

// A log that begins anew, after everything in it was lost, is read whole.
func TestNewLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		r, stop := s.run(nil)
		for range 5 {
			s.send("h1", bocage.Batch{Flows: s.scanOf("shop/web", "shop/db", 1, 1)})
		}
		s.caughtUp(r)
		stop()
		s.log = streammem.NewLog(1 << 30)
		s.send("h1", bocage.Batch{Flows: s.scanOf("dev/red", "shop/db", 1, 100)})
		s.run(nil)
		s.until("an incident", func() bool { return len(s.incidents()) == 1 })
	})
}

func BenchmarkFold(b *testing.B) {
	s := newShop(b)
	cfg, err := Config{Store: s.store, Log: s.log, Bundle: openPlain}.complete()
	if err != nil {
		b.Fatal(err)
	}
	books := newCounts()
	f := newFold(cfg, newLedger(cfg.Store, cfg.Logger), &books)
	var flows []byte
	for n := range 1000 { // 98 % allowed, 2 % refused, of many sources
		e := bocage.FlowEvent{Time: time.Now(), Kind: bocage.EventStart, Source: bocage.Identity(100 + n%700), Destination: bocage.Identity(2000 + n%90),
			SourcePort: 40000, DestinationPort: 8080, Protocol: bocage.ProtocolTCP, Verdict: bocage.VerdictAllow, Would: bocage.VerdictAllow,
			Reason: bocage.ReasonRule, Remote: s.address(20)}
		if n%50 == 0 {
			e.Kind, e.Verdict, e.Would, e.Reason = bocage.EventRefused, bocage.VerdictDrop, bocage.VerdictDrop, bocage.ReasonDefaultDeny
		}
		flows, _ = e.AppendBinary(flows)
	}
	_, envelope := s.batch("h1", bocage.Batch{Flows: flows})
	open := func() *bocage.Batch {
		batch, err := openPlain(envelope)
		if err != nil {
			b.Fatal(err)
		}
		return batch
	}
	for name, decode := range map[string]bool{"decoded": false, "from JSON": true} {
		b.Run(name, func(b *testing.B) {
			batch := open()
			for n := 0; b.Loop(); n++ {
				if decode {
					batch = open()
				}
				batch.Sequence = uint64(n + 1)
				o := opened{batch: batch}
				o.message.Time = time.Now()
				f.message(o)
			}
			b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkReaction is the time from an attack's batch in the log to the
// attacker's threat condition in the store, both in memory.
func BenchmarkReaction(b *testing.B) {
	s := newShop(b)
	for n := range b.N {
		s.workload(fmt.Sprintf("crowd/w%d", n), bocage.Identity(10_000+n))
	}
	r, stop := s.run(nil)
	s.send("h1", bocage.Batch{})
	s.caughtUp(r)
	w, err := s.store.Watch(b.Context(), "resources/threatconditions/", 0)
	if err != nil {
		b.Fatal(err)
	}
	took := make([]time.Duration, 0, b.N)
	b.ResetTimer()
	for n := range b.N {
		id, envelope := s.batch("h1", bocage.Batch{Inspections: s.exploitOf(fmt.Sprintf("crowd/w%d", n), "shop/web")})
		began := time.Now()
		s.append("h1", id, envelope)
		<-w.Events()
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
	stop()
}
