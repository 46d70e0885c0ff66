package dataplane

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host/hosttest"
)

// age makes every flow look as if it had been idle, and unreported, for long.
func (p *plane) age(idle time.Duration) {
	p.t.Helper()
	then := readClock().ns - idle.Nanoseconds()
	p.rewrite(func(flow *bpf.KernelFlow) {
		flow.Seen, flow.Reported = uint32(then>>beatShift), uint16(then>>roundShift)
	})
}

// finish awaits that a connection is closed by both ends, and lets the time pass in which
// what they said last might be sent again.
func (p *plane) finish() {
	p.t.Helper()
	hosttest.Await(p.t, "both ends to have closed", func() bool {
		for _, row := range p.flows.live {
			if row.Key.Protocol == uint8(bocage.ProtocolTCP) && row.Word&flowFinished == flowFinished {
				return true
			}
		}
		return false
	})
	p.age(5 * time.Minute)
}

// rewrite changes every flow.
func (p *plane) rewrite(change func(*bpf.KernelFlow)) {
	p.t.Helper()
	p.eachRow(func(_ uint32, row *bpf.KernelFlow) bool { change(row); return true })
}

// eachRow goes through the rows of flows, by their number; those that are changed
// are written back.
func (p *plane) eachRow(see func(uint32, *bpf.KernelFlow) (changed bool)) {
	p.t.Helper()
	for i := range p.objects.Flows.MaxEntries() {
		var bucket bpf.KernelBucket
		must(p.t, p.objects.Flows.Lookup(i, &bucket))
		changed := false
		for way := range bucket.Rows {
			if row := &bucket.Rows[way]; row.Word&flowLive != 0 {
				changed = see(i*uint32(ways)+uint32(way)+1, row) || changed
			}
		}
		if changed {
			must(p.t, p.objects.Flows.Put(i, bucket))
		}
	}
}

// A flow is told of when it starts, while it goes on, and when nothing comes any
// more; its packets are counted once, though they pass two points.
func TestRootFlowEvents(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b)))
	out := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 5000, dport: 53, payload: 100}
	arriving := out
	arriving.from, arriving.to = gatewayMAC(b), [6]byte(b.mac)
	pass := func(from bool, ifindex uint32, f frame) {
		t.Helper()
		if got := p.judgedHere(from, ifindex, f.bytes()); got != next {
			t.Fatalf("program returned %d", int32(got))
		}
	}
	pass(true, a.ifindex, out)
	pass(false, b.ifindex, arriving)
	start := p.await("a start", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventStart })
	if start.Interface != a.ifindex || start.Packets != 1 || start.Bytes != 128 || start.Replied {
		t.Errorf("start %+v", start)
	}
	p.age(31 * time.Second)
	pass(true, a.ifindex, out)
	pass(false, b.ifindex, arriving)
	update := p.await("an update", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventUpdate })
	if update.Packets != 2 || update.Bytes != 256 {
		t.Errorf("update %+v", update)
	}
	p.age(3 * time.Minute)
	end := p.await("an end", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventEnd })
	if end.Packets != 2 || end.Bytes != 256 || end.Closed || end.Source != 101 || end.Destination != 102 || end.SourcePort != 5000 {
		t.Errorf("end %+v", end)
	}
	c, err := p.Counters()
	must(t, err)
	if c.FlowsOpened != 1 || c.FlowsEnded != 1 || c.Lost != 0 || c.Passed[bocage.ReasonRule].Packets != 4 {
		t.Errorf("counters %+v", c)
	}
}

// What finds no room in the ring buffer is counted, and refusals keep their count.
func TestRootLostEventsAreCounted(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.EventBytes = 4096 })
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 1, dport: 80, tcpFlags: syn}
	const flows = 500
	p.in(func() error {
		for range flows {
			f.sport++
			p.judged(true, a.ifindex, f.bytes())
		}
		f.dport = 81
		for range flows {
			f.dport++
			p.judged(true, a.ifindex, f.bytes())
		}
		return nil
	})
	c, err := p.Counters()
	must(t, err)
	reader, err := ringbuf.NewReader(p.objects.Events)
	must(t, err)
	waiting := uint64(reader.AvailableBytes() / (bocage.FlowEventSize + 8))
	reader.Close()
	if c.Offered != 2*flows || c.Lost == 0 || c.Offered != c.Lost+waiting {
		t.Errorf("%d offered, %d lost, %d waiting", c.Offered, c.Lost, waiting)
	}
	p.run()
	told := uint32(0)
	for told < flows {
		told += p.await("refusals whose count waited", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventRefused }).Packets
	}
	if told != flows {
		t.Errorf("%d refusals told, want %d", told, flows)
	}
}

// More kinds of refusal than there are rows for are still counted, every one.
func TestRootRefusalsFold(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, nil, a, b)))
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, protocol: bocage.ProtocolTCP, sport: 1, tcpFlags: syn}
	rows := int(p.objects.Refusals.MaxEntries())
	flood := rows + 5000
	p.in(func() error {
		for i := range flood {
			f.dst = netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})
			p.judged(true, a.ifindex, f.bytes())
		}
		return nil
	})
	c, err := p.Counters()
	must(t, err)
	if c.Folded < 4000 || c.Refused[bocage.ReasonDefaultDeny].Packets != uint64(flood) {
		t.Errorf("counters %+v", c)
	}
	p.run()
	told := 0
	for told < flood {
		told += int(p.await("the flood", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventRefused }).Packets)
	}
	if told != flood {
		t.Errorf("%d refusals told, want %d", told, flood)
	}
}

// Addresses that no peer has do not lead around the policy of who is behind a port.
func TestRootLinkLocalIsJudgedAtBothEnds(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 21)
	p.attach(a, b, c)
	rs := ruleset(1, nil, a, b)
	rs.Groups = []bocage.GroupInfo{{Group: 22, Enforce: true}}
	must(t, p.Apply(rs))
	f := frame{from: [6]byte(a.mac), to: [6]byte(b.mac), source: netip.MustParseAddr("fe80::a"), dst: netip.MustParseAddr("fe80::b"),
		protocol: bocage.ProtocolTCP, sport: 5000, dport: 80, tcpFlags: syn}
	if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
		t.Errorf("at the end that observes: program returned %d", int32(got))
	}
	if got := p.judgedHere(false, b.ifindex, f.bytes()); got != dropped {
		t.Errorf("at the end that enforces: program returned %d", int32(got))
	}
	// Multicast is judged for each receiver by itself.
	m := f
	m.protocol, m.source, m.dst, m.to = bocage.ProtocolUDP, a.v6, netip.MustParseAddr("ff02::1"), [6]byte{0x33, 0x33, 0, 0, 0, 1}
	for _, test := range []struct {
		w    *workload
		want uint32
	}{{c, next}, {b, dropped}, {c, next}, {b, dropped}} {
		if got := p.judgedHere(false, test.w.ifindex, m.bytes()); got != test.want {
			t.Errorf("multicast to %s: program returned %d, want %d", test.w.port.Workload, int32(got), int32(test.want))
		}
	}
	// A frame for another's MAC, flooded by a bridge, is not for an enforced workload.
	stray := frame{from: [6]byte(a.mac), to: [6]byte(c.mac), source: a.v4, dst: c.v4, protocol: bocage.ProtocolUDP, sport: 1, dport: 2}
	if got := p.judgedHere(false, b.ifindex, stray.bytes()); got != dropped {
		t.Errorf("a stray frame: program returned %d", int32(got))
	}
	// What is neither IP nor ARP gets the default decision.
	odd := append(append(append([]byte{}, b.mac...), a.mac...), 0x88, 0xcc)
	odd = append(odd, make([]byte, 60)...)
	if got := p.judgedHere(false, b.ifindex, odd); got != dropped {
		t.Errorf("an odd frame to an enforced workload: program returned %d", int32(got))
	}
	if got := p.judgedHere(true, a.ifindex, odd); got != next {
		t.Errorf("an odd frame from an observed workload: program returned %d", int32(got))
	}
}

// An address that became another workload's, or is refused by another decision since, is
// told of as what it is now, however much its refusals look like those before.
func TestRootRefusalsTellWhoItIsNow(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 1000, dport: 22, tcpFlags: syn}
	for i, is := range []struct {
		source   bocage.Identity
		decision bocage.DecisionID
	}{{101, decideDefault}, {111, decideDefault}, {121, decideGuardrail}} {
		a.port.Identity = is.source
		rs := ruleset(uint64(1+i), nil, a, b)
		rs.Default = is.decision
		must(t, p.Apply(rs))
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != dropped {
			t.Fatalf("program returned %d", int32(got))
		}
		e := p.await("a refusal", func(e bocage.FlowEvent) bool {
			return e.Kind == bocage.EventRefused && uint64(e.Generation) == rs.Generation
		})
		if e.Source != is.source || e.Decision != is.decision || e.Destination != 102 {
			t.Errorf("told as %+v, want %+v", e, is)
		}
	}
}

// A row of refusals goes in two turns, and what comes before, between and after is
// counted and told, all of it once.
func TestRootRefusalsAreNotLostToSweeps(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, nil, a, b)))
	reader, err := ringbuf.NewReader(p.objects.Events)
	must(t, err)
	defer reader.Close()
	told := func() (packets, bytes uint64) {
		t.Helper()
		reader.SetDeadline(time.Now().Add(100 * time.Millisecond))
		for {
			record, err := reader.Read()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return packets, bytes
			}
			must(t, err)
			var e bocage.FlowEvent
			if e.UnmarshalBinary(record.RawSample) == nil && e.Kind == bocage.EventRefused {
				packets, bytes = packets+uint64(e.Packets), bytes+e.Bytes
			}
		}
	}
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 1000, dport: 22, tcpFlags: syn}
	refuse := func() {
		t.Helper()
		p.in(func() error {
			if got := p.judged(true, a.ifindex, f.bytes()); got != dropped {
				return errors.New("a packet passed")
			}
			return nil
		})
	}
	var key bpf.KernelRefusalKey
	row := func() (r bpf.KernelRefusal, there bool) {
		t.Helper()
		for k := range keysIn[bpf.KernelRefusalKey](p.objects.Refusals) {
			key = k
		}
		return r, p.objects.Refusals.Lookup(key, &r) == nil
	}
	long := uint64(time.Minute)
	aged := func(packets, bytes uint64) {
		t.Helper()
		r, _ := row()
		r.Reported, r.Packets, r.Bytes = uint64(readClock().ns)-long, packets, bytes
		must(t, p.objects.Refusals.Put(key, r))
		must(t, p.sweep(sweepReports))
	}
	want := func(what string, packets uint64) (bytes uint64) {
		t.Helper()
		got, bytes := told()
		if got != packets {
			t.Errorf("%s: %d packets are told, want %d", what, got, packets)
		}
		return bytes
	}
	refuse()
	each := want("the first", 1)
	aged(3, 300)
	if bytes := want("what was left over", 3); bytes != 300 {
		t.Errorf("%d bytes are told, want 300", bytes)
	}

	const idle, gone = 1 << 63, 1<<63 | 1<<62
	aged(0, 0)
	if r, there := row(); !there || r.Packets != idle {
		t.Errorf("a row that is idle is %+v, there: %t", r, there)
	}
	must(t, p.sweep(sweepReports))
	if _, there := row(); !there {
		t.Error("a row went as soon as it was idle")
	}
	refuse()
	if bytes := want("what takes an idle row back", 1); bytes != each {
		t.Errorf("%d bytes are told, want %d", bytes, each)
	}
	aged(0, 0)
	aged(idle|2, 200) // who saw the row before it was idle, and counted then
	if bytes := want("what was on its way", 2); bytes != 200 {
		t.Errorf("%d bytes are told, want 200", bytes)
	}
	r, _ := row()
	r.Packets = gone
	must(t, p.objects.Refusals.Put(key, r))
	refuse()
	if bytes := want("what comes to a row that goes", 1); bytes != each {
		t.Errorf("%d bytes are told, want %d", bytes, each)
	}
	aged(idle, 0)
	if r, there := row(); there {
		t.Errorf("a row that nobody took back is still there: %+v", r)
	}
	refuse()
	want("what comes after", 1)
	if c, err := p.Counters(); err != nil || c.Refused[bocage.ReasonDefaultDeny].Packets != 4 || c.Lost != 0 {
		t.Errorf("counters %+v, %v", c, err)
	}
}
