package dataplane

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
)

// photograph reads every byte of every map that outlives a process.
func (p *plane) photograph() map[string]string {
	p.t.Helper()
	picture := map[string]string{}
	for name, m := range mapsOf(p.objects) {
		switch m.Type() {
		case ebpf.RingBuf:
			picture[name] = p.ringPositions(m)
			continue
		}
		hash := sha256.New()
		var rows []string
		var key any
		for {
			next, err := m.NextKeyBytes(key)
			must(p.t, err)
			if next == nil {
				break
			}
			key = next
			var value any
			if m.Type() == ebpf.PerCPUArray {
				var perCPU [][]byte
				err = m.Lookup(key, &perCPU)
				value = perCPU
			} else {
				value, err = m.LookupBytes(key)
			}
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				continue
			}
			must(p.t, err)
			rows = append(rows, fmt.Sprintf("%x %x", key, value))
		}
		slices.Sort(rows)
		for _, row := range rows {
			fmt.Fprintln(hash, row)
		}
		picture[name] = fmt.Sprintf("%d rows %s", len(rows), hex.EncodeToString(hash.Sum(nil)[:8]))
	}
	return picture
}

// ringPositions reads how far a ring buffer was written and read: its first two
// pages, behind the data.
func (p *plane) ringPositions(m *ebpf.Map) string {
	p.t.Helper()
	var c Counters
	c, err := p.Counters()
	must(p.t, err)
	return fmt.Sprint(m.MaxEntries(), c.Offered, c.Lost)
}

// stranger is an address that no workload has.
var stranger = netip.MustParseAddr("10.77.0.9")

// A question is answered as the enforcement points would act just then, of random
// packets under random rulesets, and leaves every byte of every map as it was.
func TestRootTraceAgreesAndTouchesNothing(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.FlowEntries = 1024 }) // all is photographed
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	r := rand.New(rand.NewPCG(1, 2))
	rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), limitedUDP(21, 22)}, a, b)
	owe(rs, "1/s")
	must(t, p.Apply(rs))
	// Nothing but what the test sends: no neighbour discovery either.
	for _, w := range []*workload{a, b} {
		p.in(func() error { return exec.Command("ip", "link", "set", w.link, "down").Run() })
	}
	outcomes := map[Outcome]int{}
	tracked := map[Tracking]int{}
	for i := range 80 {
		from, to := a, b
		if r.IntN(3) == 0 {
			from, to = b, a
		}
		f := frame{from: [6]byte(from.mac), to: gatewayMAC(from), source: from.v4, dst: to.v4, protocol: bocage.ProtocolTCP,
			sport: uint16(40000 + r.IntN(3)), dport: uint16(80 + r.IntN(2)), tcpFlags: pick(r, []byte{syn, syn, ack, syn | ack, rst, fin | ack}), payload: r.IntN(40)}
		switch r.IntN(8) {
		case 0:
			f.protocol, f.dport = bocage.ProtocolUDP, 53
			if p.postpone(time.Hour); i%2 == 0 { // no turn comes between the question and the packet
				p.setQuotas(nil)
			}
		case 1:
			f.source, f.dst = from.v6, to.v6
		case 2:
			f.source = stranger // spoofed
		case 3:
			f.protocol, f.icmpType = bocage.ProtocolICMP, 8
		case 4:
			f.sport, f.dport = f.dport, f.sport
		}
		outward := r.IntN(2) == 0
		point := from
		if !outward {
			point = to
			f.from, f.to = gatewayMAC(to), [6]byte(to.mac)
		}
		if i%13 == 12 { // judged by something else: what is known is stale
			rs = ruleset(rs.Generation+1, rs.Rules, a, b)
			owe(rs, "1/s")
			must(t, p.Apply(rs))
		}
		before := p.photograph()
		var told Passage
		p.in(func() (err error) {
			told, err = p.Trace(Question{Ifindex: point.ifindex, From: outward, Frame: f.bytes()})
			return err
		})
		if after := p.photograph(); !maps.Equal(before, after) {
			t.Fatalf("a question changed what it asks about:\nbefore %v\nafter  %v", before, after)
		}
		var returned uint32
		p.in(func() error { returned = p.judged(outward, point.ifindex, f.bytes()); return nil })
		want := map[uint32][]Outcome{next: {Passes}, dropped: {Dropped}, redirect: {Answered, Steered, Diverted, Passes}}[returned]
		if !slices.Contains(want, told.Outcome) {
			t.Errorf("packet %d %+v: told %+v, and the program returned %d", i, f, told, int32(returned))
		}
		outcomes[told.Outcome]++
		tracked[told.Tracked]++
		if told.Generation != rs.Generation {
			t.Errorf("generation %d, want %d", told.Generation, rs.Generation)
		}
		// What was judged by policy alone is what the model says.
		if told.Judged && told.Reason < bocage.ReasonSpoofed {
			flow := bocage.Flow{Source: f.source, Destination: f.dst, SourcePort: f.sport, DestinationPort: f.dport, Protocol: f.protocol}
			if told.Reversed {
				flow.Source, flow.Destination, flow.SourcePort, flow.DestinationPort = f.dst, f.source, f.dport, f.sport
			}
			if f.protocol == bocage.ProtocolICMP {
				flow.SourcePort, flow.DestinationPort = 0, 0
			}
			verdict, reason := rs.Decide(flow)
			if verdict != told.Verdict || reason.Decision != told.Decision || reason.Would != told.Would {
				t.Errorf("packet %d: told %s %s %d, the model says %s %+v", i, told.Verdict, told.Reason, told.Decision, verdict, reason)
			}
		}
	}
	for _, o := range []Outcome{Passes, Dropped} {
		if outcomes[o] == 0 {
			t.Errorf("no packet %s: %v", o, outcomes)
		}
	}
	for _, k := range []Tracking{TrackedMiss, TrackedHit, TrackedStale} {
		if tracked[k] == 0 {
			t.Errorf("no packet was tracked as %s: %v", k, tracked)
		}
	}
	t.Log(outcomes, tracked)
}

// The steps are those of the packet, for each thing that can become of one.
func TestRootTraceSteps(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	ask := func(from bool, f frame) Passage {
		t.Helper()
		var told Passage
		w := a
		if !from {
			w = b
		}
		p.in(func() (err error) {
			told, err = p.Trace(Question{Ifindex: w.ifindex, From: from, Frame: f.bytes()})
			return err
		})
		return told
	}
	tcp := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 40000, dport: 80, tcpFlags: syn}
	if told := ask(true, tcp); told.Outcome != Passes || told.Reason != bocage.ReasonNoRuleset || told.Generation != 0 {
		t.Errorf("before a ruleset: %+v", told)
	}
	rules := []bocage.Rule{allowTCP(21, 22, 80),
		{From: 21, To: 22, Protocol: bocage.ProtocolTCP, Ports: bocage.PortRange{First: 81, Last: 81}, Decision: decideDecoy},
		{From: 21, To: bocage.GroupAny, Protocol: bocage.ProtocolTCP, Ports: bocage.PortRange{First: 82, Last: 82}, Decision: decideGuardrail}}
	must(t, p.Apply(ruleset(1, rules, a, b)))
	told := ask(true, tcp)
	if told.Outcome != Passes || told.Verdict != bocage.VerdictAllow || told.Decision != decideAllow || told.Source != 101 || told.Destination != 102 ||
		told.SourceGroup != 21 || told.DestinationGroup != 22 || told.Admitted != AdmittedOn || told.Tracked != TrackedMiss || !told.Judged ||
		told.Shape == 0 || !told.SourceEnforces || !told.DestinationEnforces || told.Refused {
		t.Errorf("an allowed SYN: %+v", told)
	}
	exact := told.Shape
	at := tcp
	at.dport = 82
	if told := ask(true, at); told.Outcome != Dropped || told.Reason != bocage.ReasonGuardrail || told.Shape <= exact {
		t.Errorf("what a guardrail refuses: %+v, want a later shape than %d", told, exact)
	}
	at.dport = 83
	if told := ask(true, at); told.Outcome != Dropped || told.Reason != bocage.ReasonDefaultDeny || told.Shape != 0 {
		t.Errorf("what nobody declares: %+v", told)
	}
	at = tcp
	at.source = stranger
	if told := ask(true, at); told.Admitted != AdmittedSpoofed || told.Reason != bocage.ReasonSpoofed || told.Tracked != "" {
		t.Errorf("a spoofed source: %+v", told)
	}
	at = tcp
	at.tcpFlags = ack
	p.in(func() error { p.judged(true, a.ifindex, tcp.bytes()); return nil })
	if told := ask(true, at); told.Tracked != TrackedHit || told.Judged || told.Decision != decideAllow || told.Reversed {
		t.Errorf("a packet of a known flow: %+v", told)
	}
	quarantined := ruleset(2, rules, a, b)
	quarantined.Refused = []bocage.Refusal{{Identity: 101, Decision: decideQuarantine}}
	must(t, p.Apply(quarantined))
	if told := ask(true, at); told.Outcome != Dropped || !told.Refused || told.Reason != bocage.ReasonQuarantine || told.Tracked != TrackedStale {
		t.Errorf("a packet of who is in quarantine: %+v", told)
	}
	p.in(func() error {
		_, err := p.Trace(Question{Ifindex: 1, From: true, Frame: tcp.bytes()})
		if err == nil || !strings.Contains(err.Error(), "no enforcement point") {
			t.Errorf("a question at the loopback: %v", err)
		}
		return nil
	})
}

// A question sees what was heard of a stream that is still listened to, and says nothing
// to it: the next may be about other bytes in the same place.
func TestRootTraceSaysNothingToAStream(t *testing.T) {
	t.Parallel()
	x := newTap(t, true)
	s := x.open(bocage.SpeechHTTP)
	s.passes(false, segment{flags: ack, bytes: []byte("GE")})
	if !s.isWatched() {
		t.Fatal("the stream is not listened to any more")
	}
	x.p.mu.Lock()
	x.p.ports[1] = Attachment{Ifindex: 1, Port: x.a.port} // where these packets are
	x.p.mu.Unlock()
	for _, w := range []*workload{x.a, x.b} {
		x.p.in(func() error { return exec.Command("ip", "link", "set", w.link, "down").Run() })
	}
	for i, c := range []struct {
		says    string
		outcome Outcome
	}{
		{"T / HT", Passes}, {"T /a HT", Passes}, {"\x00\x01\x02\x03\x04\x05", Dropped}, {"T / HT", Passes}, {"T /b HT", Passes},
	} {
		before := x.p.photograph()
		x.p.in(func() error {
			told, err := x.p.Trace(Question{Ifindex: 1, From: true, Frame: s.frame(false, segment{at: 2, flags: ack, bytes: []byte(c.says)})})
			if err == nil && (told.Outcome != c.outcome || told.Tracked != TrackedHit) {
				t.Errorf("question %d, %q: %+v, want %s", i, c.says, told, c.outcome)
			}
			return err
		})
		if after := x.p.photograph(); !maps.Equal(before, after) {
			t.Errorf("question %d changed what it asks about", i)
		}
	}
	s.passes(false, segment{at: 2, flags: ack, bytes: []byte("T /c HT")})
}

// A wire is asked about at either end, and keeps what it knows, too.
func TestRootTraceWire(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	p.wire(a, b, true, a)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	for _, w := range []*workload{a, b} {
		p.in(func() error { return exec.Command("ip", "link", "set", w.link, "down").Run() })
	}
	f := frame{from: [6]byte(a.mac), to: [6]byte(b.mac), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 40000, dport: 80, tcpFlags: syn}
	back := frame{from: [6]byte(b.mac), to: [6]byte(a.mac), source: b.v4, dst: a.v4, protocol: bocage.ProtocolTCP, sport: 40000, dport: 80, tcpFlags: syn}
	for _, c := range []struct {
		q       Question
		outcome Outcome
		reason  bocage.ReasonCode
	}{
		{Question{Ifindex: a.ifindex, From: true, Frame: f.bytes()}, Passes, bocage.ReasonRule},
		{Question{Ifindex: b.ifindex, From: false, Frame: back.bytes()}, Dropped, bocage.ReasonDefaultDeny},
	} {
		before := p.photograph()
		p.in(func() error {
			told, err := p.Trace(c.q)
			if err == nil && (told.Outcome != c.outcome || told.Reason != c.reason) {
				t.Errorf("told %+v, want %s for %s", told, c.outcome, c.reason)
			}
			return err
		})
		if after := p.photograph(); !maps.Equal(before, after) {
			t.Errorf("a question changed what it asks about:\nbefore %v\nafter  %v", before, after)
		}
	}
	p.in(func() error {
		if _, err := p.Trace(Question{Ifindex: b.ifindex, From: true, Frame: f.bytes()}); err == nil {
			t.Error("what comes in outside is said to come from inside, and is traced")
		}
		return nil
	})
}
