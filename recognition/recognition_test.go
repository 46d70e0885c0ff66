package recognition

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
	storemem "bocage.dev/bocage/store/mem"
	streammem "bocage.dev/bocage/stream/mem"
)

// shop is a small data center on one store and one log.
type shop struct {
	t     testing.TB
	store store.Store
	log   *streammem.Log
	ids   map[string]bocage.Identity
	boots map[string]uint64 // sequence by source and boot
	last  map[string][]byte // digest by source and boot
}

func newShop(t testing.TB, workloads ...string) *shop {
	s := &shop{t: t, store: storemem.New(), log: streammem.NewLog(1 << 30),
		ids: map[string]bocage.Identity{}, boots: map[string]uint64{}, last: map[string][]byte{}}
	if len(workloads) == 0 {
		workloads = []string{"shop/web", "shop/api", "shop/db", "shop/cache", "shop/client", "dev/red", "dev/blue"}
	}
	for i, name := range workloads {
		s.workload(name, bocage.Identity(20+i))
	}
	return s
}

func (s *shop) workload(name string, id bocage.Identity) {
	namespace, short, _ := strings.Cut(name, "/")
	kind, _ := bocage.KindNamed("Workload")
	host := "h1"
	if name == "shop/db" {
		host = "h2"
	}
	w := &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: short},
		Spec:   bocage.WorkloadSpec{Host: host, Addresses: []netip.Addr{s.address(id)}},
		Status: bocage.WorkloadStatus{Identity: id}}
	if _, err := store.PutObject(s.t.Context(), s.store, kind, w, store.AnyRevision); err != nil {
		s.t.Fatal(err)
	}
	s.ids[name] = id
}

func (s *shop) address(id bocage.Identity) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 1, byte(id >> 8), byte(id)})
}

// open reads the tests' envelope, which is the batch's JSON, unsigned.
func openPlain(envelope []byte) (*bocage.Batch, error) {
	var b bocage.Batch
	if err := json.Unmarshal(envelope, &b); err != nil {
		return nil, errors.New("not signed")
	}
	return &b, nil
}

// batch numbers and chains a batch of a host, as its agent does.
func (s *shop) batch(host string, b bocage.Batch) (id string, envelope []byte) {
	b.Source, b.Boot = "spiffe://bocage.test/agent/"+host, cmp.Or(b.Boot, "boot1")
	key := b.Source + b.Boot
	s.boots[key]++
	b.Sequence, b.Sent = s.boots[key], time.Now().UTC()
	b.Previous = s.last[key]
	envelope, err := json.Marshal(&b)
	if err != nil {
		s.t.Fatal(err)
	}
	sum := sha256.Sum256(envelope)
	s.last[key] = sum[:]
	return fmt.Sprintf("%s-%s-%d", host, b.Boot, b.Sequence), envelope
}

func (s *shop) send(host string, b bocage.Batch) {
	id, envelope := s.batch(host, b)
	s.append(host, id, envelope)
}

func (s *shop) append(host, id string, envelope []byte) {
	if _, err := s.log.Append(s.t.Context(), "events."+host, id, envelope); err != nil {
		s.t.Fatal(err)
	}
}

// scanOf are refused contacts of a workload with ports of another.
func (s *shop) scanOf(from, to string, first, ports int) []byte {
	var out []byte
	for n := range ports {
		e := bocage.FlowEvent{Time: time.Now(), Kind: bocage.EventRefused, Source: s.ids[from], Destination: s.ids[to],
			SourcePort: 40000, DestinationPort: uint16(first + n), Protocol: bocage.ProtocolTCP, Verdict: bocage.VerdictDrop,
			Would: bocage.VerdictDrop, Reason: bocage.ReasonDefaultDeny, Remote: s.address(s.ids[to])}
		out, _ = e.AppendBinary(out)
	}
	return out
}

func (s *shop) exploitOf(from, to string) []bocage.InspectionEvent {
	return []bocage.InspectionEvent{{Time: time.Now(), Source: s.ids[from], Destination: s.ids[to], Profile: "web",
		Signature: 2034647, Title: "Apache log4j RCE Attempt", Category: "Attempted Administrator Privilege Gain",
		Severity: 1, Blocked: true, Technique: "T1190",
		Flow: bocage.Flow{Source: s.address(s.ids[from]), Destination: s.address(s.ids[to]), DestinationPort: 8080, Protocol: bocage.ProtocolTCP}}}
}

func (s *shop) engagementOf(from, to string, depth bocage.Depth, detail map[string]string) []bocage.EngagementEvent {
	return []bocage.EngagementEvent{{Time: time.Now(), Source: s.ids[from], Destination: s.ids[to], Decoy: "ssh", Session: "s1",
		Depth: depth, Detail: detail}}
}

// run starts a recognizer and stops it at the end of the test, or earlier.
func (s *shop) run(change func(*Config)) (r *Recognizer, stop func()) {
	cfg := Config{Store: s.store, Log: s.log, Bundle: openPlain, Node: "c1",
		UpdateEvery: 20 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			s.t.Errorf("Run returned %v", err)
		}
	}
	s.t.Cleanup(stop)
	return r, stop
}

func (s *shop) incidents() []*bocage.Incident {
	kind, _ := bocage.KindNamed("Incident")
	objects, _, err := store.Objects(s.t.Context(), s.store, kind)
	if err != nil {
		s.t.Fatal(err)
	}
	var out []*bocage.Incident
	for _, o := range objects {
		out = append(out, o.(*bocage.Incident))
	}
	return out
}

func (s *shop) conditions() map[string]*bocage.ThreatCondition {
	kind, _ := bocage.KindNamed("ThreatCondition")
	objects, _, err := store.Objects(s.t.Context(), s.store, kind)
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[string]*bocage.ThreatCondition{}
	for _, o := range objects {
		c := o.(*bocage.ThreatCondition)
		out[c.Spec.Workload] = c
	}
	return out
}

// until waits, in the bubble's time, for something that a watch or a batch brings about.
func (s *shop) until(what string, ok func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			for _, i := range s.incidents() {
				text, _ := json.MarshalIndent(i.Status, "", " ")
				s.t.Logf("%s: %s", i.Name, text)
			}
			s.t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// caughtUp waits until everything in the log was folded and written.
func (s *shop) caughtUp(r *Recognizer) {
	s.t.Helper()
	_, last, err := s.log.Bounds(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	s.until("the end of the log", func() bool { return r.sequence.Load() >= last && r.writer.waiting() == 0 })
}

func TestScanBecomesOneWatchedIncident(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		r, _ := s.run(nil)
		sent := time.Now()
		s.send("h1", bocage.Batch{Flows: s.scanOf("dev/red", "shop/web", 1, 500)})
		s.until("an incident", func() bool { return len(s.incidents()) == 1 })
		if took := time.Since(sent); took > 100*time.Millisecond {
			t.Errorf("the first incident took %s", took)
		}
		s.send("h1", bocage.Batch{Flows: s.scanOf("dev/red", "shop/db", 1, 500)})
		s.caughtUp(r)
		s.until("the second target in the title", func() bool {
			return s.incidents()[0].Status.Title == "dev/red scanned 2 addresses and 500 ports of shop"
		})
		all := s.incidents()
		if len(all) != 1 {
			t.Fatalf("%d incidents", len(all))
		}
		i := all[0]
		if i.Status.Severity != "medium" || i.Status.Phase != "open" || !strings.HasPrefix(i.Name, "inc-") ||
			len(i.Status.Evidence) != 1 || i.Status.Evidence[0].Count != 1000 || i.Status.Techniques[0] != "T1046" ||
			i.Status.Entities[0] != (bocage.Entity{Type: "workload", Name: "dev/red", Role: "attacker"}) {
			t.Errorf("incident: %+v", i)
		}
		if !strings.HasPrefix(i.Status.Evidence[0].Records[0], "spiffe://bocage.test/agent/h1/boot1/1/") {
			t.Errorf("records: %v", i.Status.Evidence[0].Records)
		}
		red := s.conditions()["dev/red"]
		if len(s.conditions()) != 1 || red == nil || red.Spec.Level != bocage.LevelWatch || red.Spec.Incident != i.Name ||
			time.Until(red.Spec.Expires) < 9*time.Minute {
			t.Errorf("conditions: %v", s.conditions())
		}
		if faults := append(i.Validate(), red.Validate()...); faults != nil {
			t.Error(faults)
		}
	})
}

func TestExploitQuarantinesTheAttackerAndHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		s.run(func(c *Config) {
			c.QuarantineTTL, c.Linger, c.Idle = 1500*time.Millisecond, time.Millisecond, 2*time.Second
		})
		s.send("h1", bocage.Batch{Inspections: s.exploitOf("shop/web", "shop/api")})
		s.until("the quarantine of web", func() bool {
			c := s.conditions()["shop/web"]
			return c != nil && c.Spec.Level == bocage.LevelQuarantine
		})
		s.until("the incident to be contained", func() bool { return len(s.incidents()) == 1 && s.incidents()[0].Status.Phase == "contained" })
		if len(s.conditions()) != 1 {
			t.Errorf("somebody besides the attacker is held: %v", s.conditions())
		}
		i := s.incidents()[0]
		if i.Status.Severity != "high" || i.Status.ThreatConditions[0] != s.conditions()["shop/web"].Name ||
			i.Status.Title != "shop/web attacked shop/api with “Apache log4j RCE Attempt” (signature 2034647) and was blocked" {
			t.Errorf("incident: %+v", i.Status)
		}
		s.until("the condition to be gone", func() bool { return len(s.conditions()) == 0 })
		s.until("the incident to be closed", func() bool { return s.incidents()[0].Status.Phase == "closed" })
	})
}

// TestReleaseByAPersonHolds: what a person lifts stays lifted, also while
// evidence of the same moment trickles in, until there is new evidence.
func TestReleaseByAPersonHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		s.run(func(c *Config) { c.QuarantineTTL = 10 * time.Minute })
		s.send("h1", bocage.Batch{Inspections: s.exploitOf("shop/web", "shop/api")})
		s.until("the quarantine of web", func() bool { return s.conditions()["shop/web"] != nil })
		kind, _ := bocage.KindNamed("ThreatCondition")
		if _, err := store.Delete(t.Context(), s.store, kind.Key("", s.conditions()["shop/web"].Name), store.AnyRevision); err != nil {
			t.Fatal(err)
		}
		held := func(during time.Duration) bool {
			for end := time.Now().Add(during); time.Now().Before(end); {
				<-time.After(100 * time.Millisecond)
				if s.conditions()["shop/web"] != nil {
					return true
				}
			}
			return false
		}
		if held(3 * time.Second) {
			t.Error("the condition came back by itself")
		}
		s.send("h1", bocage.Batch{Inspections: s.exploitOf("shop/web", "shop/api")})
		if held(3 * time.Second) {
			t.Error("the condition came back with what trickled in")
		}
		<-time.After(trickle)
		s.send("h1", bocage.Batch{Inspections: s.exploitOf("shop/web", "shop/api")})
		s.until("a new quarantine", func() bool { return s.conditions()["shop/web"] != nil })
	})
}

func TestEngagementClimbsTheLadder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		s.run(nil)
		level := func() bocage.Level {
			if c := s.conditions()["dev/red"]; c != nil {
				return c.Spec.Level
			}
			return ""
		}
		s.send("h1", bocage.Batch{Engagements: s.engagementOf("dev/red", "shop/db", bocage.DepthTouch, nil)})
		s.until("a watch", func() bool { return level() == bocage.LevelWatch && s.incidents()[0].Status.Severity == "low" })
		s.send("h1", bocage.Batch{Engagements: s.engagementOf("dev/red", "shop/db", bocage.DepthLogin, map[string]string{"user": "ro\x00ot\n{victims}"})})
		s.until("a quarantine", func() bool { return level() == bocage.LevelQuarantine && s.incidents()[0].Status.Severity == "high" })
		s.send("h1", bocage.Batch{Engagements: s.engagementOf("dev/red", "shop/db", bocage.DepthCommand, map[string]string{"command": "uname -a"})})
		s.until("a critical incident", func() bool { return s.incidents()[0].Status.Severity == "critical" })
		if i := s.incidents(); len(i) != 1 || i[0].Status.Title != "dev/red gave commands to decoy ssh in the place of shop/db: command “uname -a”" {
			t.Errorf("%d incidents: %s", len(i), i[0].Status.Title)
		}
		for _, e := range s.incidents()[0].Status.Evidence {
			if strings.ContainsAny(e.Text, "\x00\n{") {
				t.Errorf("an attacker's text got through: %q", e.Text)
			}
		}
	})
}
