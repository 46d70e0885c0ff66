package dataplane

import (
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host/hosttest"
)

// crowd is a host whose table of flows is small.
type crowd struct {
	*plane
	a, b, c *workload
}

func newCrowd(t *testing.T, entries int) *crowd {
	p := newPlane(t, func(c *Config) { c.FlowEntries, c.Pickup = entries, time.Minute })
	k := &crowd{plane: p, a: p.workload(1, 101, 21), b: p.workload(2, 102, 22), c: p.workload(3, 103, 23)}
	p.attach(k.a, k.b, k.c)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22), allowTCP(23, 22, 80), allowUDP(23, 22)}, k.a, k.b, k.c)))
	// As if the ports had been attached long ago.
	for _, w := range []*workload{k.a, k.b, k.c} {
		var row bpf.KernelPort
		must(t, p.objects.Ports.Lookup(w.ifindex, &row))
		row.Attached -= uint64(time.Hour)
		must(t, p.objects.Ports.Put(w.ifindex, row))
	}
	return k
}

// send passes a packet from one workload at its point.
func (k *crowd) send(from, to *workload, protocol bocage.Protocol, sport, dport uint16, flags byte) uint32 {
	f := frame{from: [6]byte(from.mac), to: gatewayMAC(from), source: from.v4, dst: to.v4, protocol: protocol,
		sport: sport, dport: dport, tcpFlags: flags, payload: 10}
	return k.judged(true, from.ifindex, f.bytes())
}

func (k *crowd) counters() Counters {
	k.t.Helper()
	c, err := k.Counters()
	must(k.t, err)
	return c
}

// connect makes an established flow.
func (k *crowd) connect(from, to *workload, sport uint16) {
	k.t.Helper()
	for _, got := range []uint32{k.send(from, to, bocage.ProtocolTCP, sport, 80, syn),
		k.send(to, from, bocage.ProtocolTCP, 80, sport, syn|ack), k.send(from, to, bocage.ProtocolTCP, sport, 80, ack)} {
		if got != next {
			k.t.Fatalf("connection from port %d: program returned %d", sport, int32(got))
		}
	}
}

// What nobody answers gives way to what is new; what is established does not.
func TestRootFloodCutsNoEstablishedFlow(t *testing.T) {
	t.Parallel()
	k := newCrowd(t, 1024)
	k.in(func() error {
		k.connect(k.a, k.b, 5000)
		for sport := range uint16(20_000) {
			if got := k.send(k.a, k.b, bocage.ProtocolUDP, 10_000+sport, 53, 0); got != next {
				t.Fatalf("flow %d of the flood: program returned %d", sport, int32(got))
			}
		}
		for _, got := range []uint32{k.send(k.a, k.b, bocage.ProtocolTCP, 5000, 80, ack), k.send(k.b, k.a, bocage.ProtocolTCP, 80, 5000, ack)} {
			if got != next {
				t.Errorf("established flow after the flood: program returned %d", int32(got))
			}
		}
		if got := k.send(k.a, k.b, bocage.ProtocolTCP, 5001, 80, ack); got != dropped {
			t.Errorf("middle of nothing: program returned %d", int32(got))
		}
		return nil
	})
	k.run()
	hosttest.Await(t, "a sweep", func() bool { return k.counters().FlowsLive > 0 })
	c := k.counters()
	if c.FlowsLive > 1024 || c.FlowsOpened != 20_001 || c.FlowsEvicted < 18_000 || c.Refused[bocage.ReasonTableFull].Packets != 0 {
		t.Errorf("counters %+v", c)
	}
}

// Once a table is full of flows that are established and in use, they go on and
// new ones are refused and counted; and one workload cannot fill it for all.
func TestRootFullTableRefusesNewFlows(t *testing.T) {
	t.Parallel()
	k := newCrowd(t, 1024)
	k.in(func() error {
		k.connect(k.a, k.b, 5000)
		opened := 0
		for sport := range uint16(2000) {
			if k.send(k.a, k.b, bocage.ProtocolUDP, 10_000+sport, 53, 0) == next {
				k.send(k.b, k.a, bocage.ProtocolUDP, 53, 10_000+sport, 0)
				opened++
			}
		}
		if opened < 511 || opened > 600 {
			t.Errorf("one workload opened %d flows more: its share is half of 1024; counters %+v", opened, k.counters())
			k.eachRow(func(number uint32, row *bpf.KernelFlow) bool {
				t.Logf("row %d: %+v", number, *row)
				return false
			})
		}
		if full := k.counters().Refused[bocage.ReasonTableFull].Packets; full != uint64(2000-opened) {
			t.Errorf("%d refused for want of room, want %d", full, 2000-opened)
		}
		k.connect(k.c, k.b, 5000) // another has its own
		for sport := range uint16(2000) {
			k.send(k.c, k.b, bocage.ProtocolUDP, 10_000+sport, 53, 0)
			k.send(k.b, k.c, bocage.ProtocolUDP, 53, 10_000+sport, 0)
		}
		for _, from := range []*workload{k.a, k.c} {
			for _, got := range []uint32{k.send(from, k.b, bocage.ProtocolTCP, 5000, 80, ack), k.send(k.b, from, bocage.ProtocolTCP, 80, 5000, ack)} {
				if got != next {
					t.Errorf("established flow beside a full table: program returned %d", int32(got))
				}
			}
		}
		c := k.counters()
		if live := c.FlowsOpened - c.FlowsEnded; live < 950 {
			t.Errorf("%d flows live: the table of 1024 was refused as full too early", live)
		}
		// What another processor saw since a packet came is not idle.
		k.age(-time.Minute)
		for sport := range uint16(200) {
			k.send(k.a, k.b, bocage.ProtocolUDP, 20_000+sport, 53, 0)
		}
		if evicted := k.counters().FlowsEvicted - c.FlowsEvicted; evicted > 0 {
			t.Errorf("%d flows made room that were seen a moment ago", evicted)
		}
		// What is idle makes room, and may be picked up again.
		k.age(10 * time.Minute)
		k.connect(k.a, k.b, 6000)
		if got := k.send(k.a, k.b, bocage.ProtocolTCP, 7000, 80, ack); got != next {
			t.Errorf("middle of what may have been forgotten: program returned %d", int32(got))
		}
		return nil
	})
}

// Room is kept count of: flows that end are their workload's no more.
func TestRootHoldingsAreGivenBack(t *testing.T) {
	t.Parallel()
	k := newCrowd(t, 1024)
	held := func() (rows [4]uint64) {
		for i, w := range []*workload{k.a, k.b, k.c} {
			var holding bpf.KernelHolding
			if k.objects.Holdings.Lookup(w.ifindex, &holding) == nil {
				rows[i] = holding.Rows
			}
		}
		return rows
	}
	k.in(func() error {
		for sport := range uint16(100) {
			k.connect(k.a, k.b, 5000+sport)
			k.send(k.c, k.b, bocage.ProtocolUDP, 5000+sport, 53, 0)
		}
		if got := held(); got != [4]uint64{100, 0, 100} {
			t.Errorf("held %v", got)
		}
		for sport := range uint16(50) { // reset, and opened again in the same row
			k.send(k.a, k.b, bocage.ProtocolTCP, 5000+sport, 80, rst)
			k.connect(k.a, k.b, 5000+sport)
		}
		if got := held(); got != [4]uint64{100, 0, 100} {
			t.Errorf("held %v after some were opened anew", got)
		}
		return nil
	})
	k.run()
	k.age(7 * 24 * time.Hour)
	hosttest.Await(t, "a sweep", func() bool { return held() == [4]uint64{} })
}

// What both ends have closed waits for what may be sent again only as long as its row is
// not wanted: neither by its owner, nor by all together.
func TestRootFinishedFlowsMakeRoom(t *testing.T) {
	t.Parallel()
	k := newCrowd(t, 1024)
	live := func(lived uint64) (n uint64) {
		k.age(11 * time.Second)
		n, err := k.endFlows(0, lived)
		must(t, err)
		return n
	}
	finish := func() {
		k.in(func() error {
			for sport := range uint16(20) {
				k.connect(k.a, k.b, 5000+sport)
				k.send(k.a, k.b, bocage.ProtocolTCP, 5000+sport, 80, ack|fin)
				k.send(k.b, k.a, bocage.ProtocolTCP, 80, 5000+sport, ack|fin)
			}
			return nil
		})
	}
	finish()
	k.in(func() error { k.connect(k.a, k.b, 6000); return nil })
	for _, lived := range []uint64{0, 512} {
		if n := live(lived); n != 21 {
			t.Errorf("%d flows wait where %d lived: want 21", n, lived)
		}
	}
	if n := live(513); n != 1 {
		t.Errorf("%d flows wait where more than half of the table is taken: want the one that is open", n)
	}
	finish()
	must(t, k.objects.Holdings.Put(k.b.ifindex, bpf.KernelHolding{Rows: 500}))
	must(t, k.objects.Holdings.Put(k.a.ifindex, bpf.KernelHolding{Rows: 256}))
	if n := live(0); n != 21 {
		t.Errorf("%d flows wait where their owner holds half of its share: want 21", n)
	}
	must(t, k.objects.Holdings.Put(k.a.ifindex, bpf.KernelHolding{Rows: 400}))
	if n := live(0); n != 1 {
		t.Errorf("%d flows wait where their owner holds more than half of its share: want the one that is open", n)
	}
}
