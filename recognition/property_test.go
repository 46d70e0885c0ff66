package recognition

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/stream"
)

// concluded folds messages without a store and returns what would be written, as
// text: the final incidents, and who is held how.
func concluded(s *shop, messages []opened) string {
	cfg, err := Config{Store: s.store, Log: s.log, Bundle: openPlain}.complete()
	if err != nil {
		s.t.Fatal(err)
	}
	l := newLedger(cfg.Store, cfg.Logger)
	for _, c := range chapters() {
		if _, err := l.load(s.t.Context(), c); err != nil {
			s.t.Fatal(err)
		}
	}
	books := newCounts()
	f := newFold(cfg, l, &books)
	final := map[string]*post{}
	var end time.Time
	for _, m := range messages {
		f.message(m)
		end = m.message.Time
		for _, p := range f.posts(end, true) {
			final[p.name] = p
		}
	}
	var out []string
	for name, p := range final {
		if p.into != "" {
			continue
		}
		status, err := json.Marshal(p.status)
		if err != nil {
			s.t.Fatal(err)
		}
		levels := ""
		for _, id := range slices.Sorted(maps.Keys(p.answers)) {
			level, _ := p.answers[id].level(end)
			levels += fmt.Sprintf(" %d:%s", id, level)
		}
		out = append(out, fmt.Sprintf("%s%s %s", name, levels, status))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// attack is a history with several attackers: a scanner who engages a decoy, a
// workload that attacks another, which then attacks a third, an outsider.
func (s *shop) attack(at time.Time) [][]byte {
	var out [][]byte
	put := func(host string, b bocage.Batch) {
		_, envelope := s.batch(host, b)
		out = append(out, envelope)
	}
	stamp := func(from, to string, n int, port uint16, change func(*bocage.FlowEvent)) []byte {
		e := bocage.FlowEvent{Time: at.Add(time.Duration(len(out))*time.Second + time.Duration(n)*time.Millisecond), Kind: bocage.EventRefused,
			Source: s.ids[from], Destination: s.ids[to], SourcePort: 40000, DestinationPort: port, Protocol: bocage.ProtocolTCP,
			Verdict: bocage.VerdictDrop, Would: bocage.VerdictDrop, Reason: bocage.ReasonDefaultDeny, Remote: s.address(s.ids[to])}
		if change != nil {
			change(&e)
		}
		b, _ := e.AppendBinary(nil)
		return b
	}
	for part := range 6 {
		var flows []byte
		for n := range 40 {
			flows = append(flows, stamp("dev/red", []string{"shop/web", "shop/db", "shop/api"}[part%3], n, uint16(1+part*40+n), nil)...)
		}
		put("h1", bocage.Batch{Flows: flows})
		if part%3 == 1 {
			put("h2", bocage.Batch{Flows: flows}) // the other witness
		}
	}
	inspection := func(from, to string, offset time.Duration) []bocage.InspectionEvent {
		found := s.exploitOf(from, to)
		found[0].Time = at.Add(offset)
		return found
	}
	put("h1", bocage.Batch{Inspections: inspection("shop/web", "shop/api", 10*time.Second)})
	put("h2", bocage.Batch{Inspections: inspection("shop/api", "shop/db", 20*time.Second)})
	for depth, name := range []bocage.Depth{bocage.DepthTouch, bocage.DepthProbe, bocage.DepthLogin} {
		met := s.engagementOf("dev/red", "shop/db", name, map[string]string{"user": "root"})
		met[0].Time = at.Add(time.Duration(30+depth) * time.Second)
		put("h1", bocage.Batch{Engagements: met})
	}
	outside := bocage.InspectionEvent{Time: at.Add(40 * time.Second), Destination: s.ids["shop/web"], Source: bocage.IdentityWorld, Severity: 2, Signature: 9,
		Title: "odd request", Flow: bocage.Flow{Source: netip.MustParseAddr("203.0.113.9"), Destination: s.address(s.ids["shop/web"])}}
	put("h1", bocage.Batch{Inspections: []bocage.InspectionEvent{outside}})
	var probes []byte
	for n := range 30 {
		probes = append(probes, stamp("", "shop/web", n, uint16(n+1), func(e *bocage.FlowEvent) {
			e.Source, e.Direction, e.Remote = bocage.IdentityWorld, bocage.DirectionTo, netip.MustParseAddr("203.0.113.9")
		})...)
	}
	put("h1", bocage.Batch{Flows: probes})
	return out
}

// messages gives envelopes the places of a log, a millisecond apart.
func messages(envelopes [][]byte, at time.Time) []opened {
	out := make([]opened, len(envelopes))
	for i, envelope := range envelopes {
		out[i].message = stream.Message{Subject: "events.h1", Sequence: uint64(i + 1), Time: at.Add(time.Duration(i) * time.Millisecond)}
		out[i].batch, out[i].err = openPlain(envelope)
	}
	return out
}

func TestOrderAndRepetitionChangeNothing(t *testing.T) {
	s := newShop(t)
	at := time.Date(2026, 3, 1, 9, 10, 0, 0, time.UTC)
	envelopes := s.attack(at)
	want := concluded(s, messages(envelopes, at))
	if got := strings.Count(want, "\n") + 1; got != 3 {
		t.Fatalf("%d incidents:\n%s", got, want)
	}
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 7))
		mixed := slices.Clone(envelopes)
		for range random.IntN(10) { // some come again
			mixed = append(mixed, envelopes[random.IntN(len(envelopes))])
		}
		random.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		if got := concluded(s, messages(mixed, at)); got != want {
			t.Fatalf("seed %d:\n got %s\nwant %s", seed, got, want)
		}
	}
}

// Workloads that were attacked and then attack are one incident, named after the
// first; whom many attack joins none of them.
func TestChainIsOneIncidentAndHubIsNot(t *testing.T) {
	s := newShop(t)
	at := time.Date(2026, 3, 1, 9, 10, 0, 0, time.UTC)
	attack := func(from, to string, after time.Duration) []byte {
		found := s.exploitOf(from, to)
		found[0].Time = at.Add(after)
		_, envelope := s.batch("h1", bocage.Batch{Inspections: found})
		return envelope
	}
	chain := [][]byte{attack("dev/red", "shop/web", 0), attack("shop/web", "shop/api", time.Minute), attack("shop/api", "shop/db", 2*time.Minute)}
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}, {1, 0, 2}} {
		var mixed [][]byte
		for _, i := range order {
			mixed = append(mixed, chain[i])
		}
		got := concluded(s, messages(mixed, at))
		if strings.Contains(got, "\n") && !strings.Contains(got, "dev/red attacked shop/web") {
			t.Errorf("order %v: %s", order, got)
		}
		for _, who := range []string{"dev/red attacked shop/web", "; then shop/web attacked shop/api", "; then shop/api attacked shop/db"} {
			if !strings.Contains(got, who) {
				t.Errorf("order %v: no %q in %s", order, who, got)
			}
		}
	}
	hub := [][]byte{attack("dev/red", "shop/web", 0), attack("dev/blue", "shop/web", 0), attack("shop/client", "shop/web", 0),
		attack("shop/cache", "shop/web", 0), attack("shop/web", "shop/api", time.Minute)}
	if got := strings.Count(concluded(s, messages(hub, at)), "\n") + 1; got != 5 {
		t.Errorf("%d incidents around a hub", got)
	}
	if got := strings.Count(concluded(s, messages(hub[:2], at)), "\n") + 1; got != 2 {
		t.Errorf("a common victim joined two attackers")
	}
}

// A day of an ordinary shop: retries, deploys, health checks, name service, a
// broken client, a new policy, spoofing by leases, mild alerts, kept-back batches.
func TestOrdinaryDayHasNoIncident(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		for n := range 40 {
			s.workload(fmt.Sprintf("shop/replica%d", n), bocage.Identity(100+n))
		}
		r, stop := s.run(nil)
		random := rand.New(rand.NewPCG(3, 4))
		for minute := range 24 * 60 {
			s.send("h1", s.ordinary(minute, random))
			time.Sleep(time.Minute)
		}
		s.caughtUp(r)
		for _, i := range s.incidents() {
			t.Errorf("incident: %s", i.Status.Title)
		}
		if c := s.conditions(); len(c) > 0 {
			t.Errorf("conditions: %v", c)
		}
		if stats := r.Stats(); stats.Processed == 0 || stats.Shed+stats.Lost+stats.Rejected > 0 {
			t.Errorf("accounts: %+v", stats)
		}
		stop()
	})
}

// ordinary is a minute of it.
func (s *shop) ordinary(minute int, random *rand.Rand) bocage.Batch {
	var b bocage.Batch
	put := func(e bocage.FlowEvent) {
		e.Time = time.Now()
		if e.Protocol == 0 {
			e.Protocol = bocage.ProtocolTCP
		}
		if e.SourcePort == 0 {
			e.SourcePort = 32768 + uint16(random.IntN(28000))
		}
		b.Flows, _ = e.AppendBinary(b.Flows)
	}
	allowed := func(from, to bocage.Identity, port uint16, replied bool) {
		e := bocage.FlowEvent{Kind: bocage.EventStart, Source: from, Destination: to, DestinationPort: port, Verdict: bocage.VerdictAllow,
			Would: bocage.VerdictAllow, Reason: bocage.ReasonRule, Remote: s.address(to)}
		put(e)
		e.Kind, e.Replied, e.Closed = bocage.EventEnd, replied, true
		put(e)
	}
	refused := func(from, to bocage.Identity, port uint16, protocol bocage.Protocol) {
		put(bocage.FlowEvent{Kind: bocage.EventRefused, Source: from, Destination: to, DestinationPort: port, Protocol: protocol,
			Verdict: bocage.VerdictDrop, Would: bocage.VerdictDrop, Reason: bocage.ReasonDefaultDeny, Remote: s.address(to), Packets: 3})
	}
	id := s.ids
	for range 20 {
		allowed(id["shop/client"], id["shop/web"], 443, true)
		allowed(id["shop/web"], id["shop/api"], 8080, minute%60 > 1) // a deploy each hour: nobody answers for two minutes
		allowed(id["shop/api"], id["shop/db"], 5432, true)
	}
	for n := range 40 { // health checks of everything
		allowed(id["shop/cache"], bocage.Identity(100+n), 8086, true)
	}
	refused(id["shop/web"], id["dev/blue"], 6379, 0) // a client with an old address, for ever
	for n := range 3 {                               // a policy that misses a service of three replicas and their metrics
		refused(id["shop/api"], bocage.Identity(100+n), 9000, 0)
		refused(id["shop/api"], bocage.Identity(100+n), 9100, 0)
	}
	for range 5 { // late answers of a name server
		put(bocage.FlowEvent{Kind: bocage.EventRefused, Source: id["shop/cache"], Destination: id["shop/client"], SourcePort: 53,
			DestinationPort: 33000 + uint16(random.IntN(20000)), Protocol: bocage.ProtocolUDP, Verdict: bocage.VerdictDrop, Reason: bocage.ReasonDefaultDeny})
	}
	if minute > 600 && minute < 640 { // several workloads whose policy is new
		for n := range 10 {
			for service, port := range []uint16{5432, 6379, 8080, 4317} {
				refused(bocage.Identity(110+n), bocage.Identity(130+service), port, 0)
			}
			refused(bocage.Identity(110+n), id["shop/db"], 53, bocage.ProtocolUDP)
		}
	}
	for n := range 3 { // public time servers, refused
		put(bocage.FlowEvent{Kind: bocage.EventRefused, Source: id["shop/db"], Destination: bocage.IdentityWorld, DestinationPort: 123,
			Protocol: bocage.ProtocolUDP, Verdict: bocage.VerdictDrop, Reason: bocage.ReasonDefaultDeny,
			Remote: netip.AddrFrom4([4]byte{162, 159, byte(minute % 50), byte(n)})})
	}
	for n := range 2 { // two neighbours that are down
		put(bocage.FlowEvent{Kind: bocage.EventRefused, Source: id["shop/web"], Destination: bocage.IdentityWorld, Verdict: bocage.VerdictAllow,
			Would: bocage.VerdictAllow, Reason: bocage.ReasonDarkAddress, Remote: netip.AddrFrom4([4]byte{10, 1, 9, byte(n)})})
	}
	if minute%30 == 0 {
		put(bocage.FlowEvent{Kind: bocage.EventRefused, Source: id["shop/db"], Destination: id["shop/api"], Verdict: bocage.VerdictDrop,
			Reason: bocage.ReasonSpoofed, Remote: s.address(id["shop/api"])})
		b.Inspections = append(b.Inspections, bocage.InspectionEvent{Time: time.Now(), Source: id["shop/web"], Destination: id["shop/api"],
			Signature: 2210054, Title: "SURICATA STREAM excessive retransmissions", Category: "Generic Protocol Command Decode", Severity: 3})
		b.Inspections = append(b.Inspections, bocage.InspectionEvent{Time: time.Now(), Source: id["shop/client"], Destination: id["shop/web"],
			Signature: 2013028, Title: "curl User-Agent", Category: "Attempted Information Leak", Severity: 2})
	}
	// What the Internet does all day: one address, some ports, refused.
	for n := range 4 {
		put(bocage.FlowEvent{Kind: bocage.EventRefused, Direction: bocage.DirectionTo, Source: bocage.IdentityWorld, Destination: id["shop/web"],
			DestinationPort: uint16(random.IntN(30000)), Verdict: bocage.VerdictDrop, Reason: bocage.ReasonDefaultDeny,
			Remote: netip.AddrFrom4([4]byte{45, 83, byte(minute / 20), byte(n)})})
	}
	return b
}

// Joining what is stored with anything that was known earlier changes nothing, and
// from any earlier state the final one is reached.
func TestMergeTakesNothingBack(t *testing.T) {
	s := newShop(t)
	cfg, err := Config{Store: s.store, Log: s.log, Bundle: openPlain}.complete()
	if err != nil {
		t.Fatal(err)
	}
	l := newLedger(cfg.Store, cfg.Logger)
	for _, c := range chapters() {
		if _, err := l.load(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	books := newCounts()
	f := newFold(cfg, l, &books)
	at := time.Date(2026, 3, 1, 9, 10, 0, 0, time.UTC)
	known := map[string][]bocage.IncidentStatus{}
	for _, m := range messages(s.attack(at), at) {
		f.message(m)
		for _, p := range f.posts(m.message.Time, true) {
			if p.into == "" {
				known[p.name] = append(known[p.name], p.status)
			}
		}
	}
	for name, states := range known {
		final := states[len(states)-1]
		for i, earlier := range states {
			for direction, got := range map[string]bocage.IncidentStatus{"back": merge(final, earlier), "forth": merge(earlier, final)} {
				got.Phase = final.Phase
				if !equal(got, final) {
					t.Errorf("%s, state %d of %d, %s:\n got %+v\nwant %+v", name, i, len(states), direction, got, final)
				}
			}
		}
	}
}
