package dataplane

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// conversation is one flow on two hosts that are alike, but that one of them is
// rewired before every packet, so that none goes the short way there.
type conversation struct {
	short, long *packetBench
}

func (c conversation) each(do func(*packetBench)) {
	do(c.short)
	do(c.long)
}

// run passes a frame at the workload's port of both, and says what they returned;
// false where the kernel does not take it for a frame.
func (c conversation) run(t *testing.T, b []byte, from bool) (short, long uint32, whole bool) {
	t.Helper()
	pass := func(k *packetBench) (returned uint32, err error) {
		program := k.objects.ToWorkload
		if from {
			program = k.objects.FromWorkload
		}
		k.in(func() error {
			returned, err = program.Run(&ebpf.RunOptions{Data: b, Context: skb{Ifindex: loopback}})
			return nil
		})
		return returned, err
	}
	must(t, c.long.rewire())
	short, err := pass(c.short)
	long, also := pass(c.long)
	if (err == nil) != (also == nil) {
		t.Fatalf("one program ran and the other did not: %v, %v", err, also)
	}
	return short, long, err == nil
}

// rowsOf is what the rows of flows say, but for when.
func rowsOf(p *plane) map[bpf.KernelFlow]int {
	rows := make(map[bpf.KernelFlow]int)
	p.eachRow(func(_ uint32, row *bpf.KernelFlow) bool {
		rows[bpf.KernelFlow{Key: row.Key, Packets: row.Packets, Bytes: row.Bytes, Verdicts: row.Verdicts, Reason: row.Reason,
			Service: row.Service, Source: row.Source, Destination: row.Destination}]++
		return false
	})
	return rows
}

// The short way decides nothing that the long way would decide otherwise, also of
// packets that are nearly those of a flow that is established.
func TestRootShortWayAgreesWithTheLong(t *testing.T) {
	t.Parallel()
	r := newRandom(t)
	c := conversation{newPacketBench(t), newPacketBench(t)}
	tcp, udp := c.short.out(bocage.ProtocolTCP), c.short.out(bocage.ProtocolUDP)
	flows := []frame{tcp, c.short.six(tcp), udp, c.short.six(udp)}
	for i, f := range flows {
		c.each(func(k *packetBench) { flows[i] = k.established(f) })
	}
	const packets = 6000
	differ, passed := 0, 0
	for range packets {
		f, from := pick(r, flows), r.IntN(2) == 0
		if !from {
			f = answerTo(f)
		}
		f.payload = r.IntN(40)
		b := f.bytes()
		for range r.IntN(3) {
			b[r.IntN(min(len(b), 80))] ^= 1 << r.IntN(8)
		}
		switch r.IntN(12) {
		case 0:
			b = b[:14+r.IntN(len(b)-14)]
		case 1:
			b = append(b, make([]byte, r.IntN(30))...)
		}
		short, long, whole := c.run(t, b, from)
		if whole && short != long {
			t.Errorf("from the workload: %v, returned %d by the short way and %d by the long: % x", from, int32(short), int32(long), b)
			if differ++; differ > 10 {
				t.FailNow()
			}
		}
		if whole && short == next {
			passed++
		}
	}
	if passed < packets/10 || passed > packets*9/10 {
		t.Errorf("%d of %d packets passed: the draw proves little", passed, packets)
	}
	sameState(t, c.short.plane, c.long.plane, len(flows))
}

// sameState compares what two planes counted and remember that judged the same packets
// by the short way and by the long, of so many flows.
func sameState(t *testing.T, short, long *plane, flows int) {
	t.Helper()
	one, err := short.Counters()
	must(t, err)
	other, err := long.Counters()
	must(t, err)
	for reason := range bocage.ReasonCode(64) {
		if reason == bocage.ReasonControl {
			continue // the namespaces' own kernels look for neighbours
		}
		if one.Passed[reason] != other.Passed[reason] || one.Refused[reason] != other.Refused[reason] {
			t.Errorf("%s: passed %v and %v, refused %v and %v", reason, one.Passed[reason], other.Passed[reason],
				one.Refused[reason], other.Refused[reason])
		}
	}
	a, b := rowsOf(short), rowsOf(long)
	for row, n := range a {
		if b[row] != n {
			t.Errorf("the long way has no such row: %+v", row)
		}
	}
	if len(a) != len(b) || len(a) < flows {
		t.Errorf("%d rows by the short way, %d by the long", len(a), len(b))
	}
}

// What binds a flow's end to its port holds for every packet, and ends when the
// port, the policy or the time does.
func TestRootShortWayEnds(t *testing.T) {
	t.Parallel()
	k := newPacketBench(t)
	f := k.established(k.out(bocage.ProtocolUDP))
	pass := func(f frame, from bool, ifindex uint32, want uint32, what string) {
		t.Helper()
		if got := k.judgedHere(from, ifindex, f.bytes()); got != want {
			t.Errorf("%s: program returned %d, want %d", what, int32(got), int32(want))
		}
	}
	spoofed := f
	spoofed.from[5]++
	pass(f, true, loopback, next, "as it should be")
	pass(spoofed, true, loopback, dropped, "from another MAC")
	pass(f, true, k.to.ifindex, dropped, "from another port")
	stray := answerTo(f)
	stray.to[5]++
	pass(stray, false, loopback, dropped, "to another MAC")
	pass(answerTo(f), false, loopback, next, "the answer")

	moved := k.from.port
	moved.Addresses = slices.Clone(moved.Addresses[1:])
	k.in(func() error { return k.writePort(Attachment{Ifindex: loopback, Port: moved}) })
	pass(f, true, loopback, dropped, "from an address that is the port's no more")
	k.settle()
	pass(f, true, loopback, next, "from its address again")
	rs := ruleset(2, []bocage.Rule{allowUDP(21, 22)}, k.from, k.to)
	rs.Refused = []bocage.Refusal{{Identity: 102, Decision: decideQuarantine}}
	must(t, k.Apply(rs))
	k.settle()
	pass(f, true, loopback, dropped, "to who is in quarantine")
	pass(answerTo(f), false, loopback, dropped, "an answer of who is in quarantine")
	rs = ruleset(3, []bocage.Rule{allowUDP(21, 22)}, k.from, k.to)
	must(t, k.Apply(rs))
	pass(f, true, loopback, next, "out of quarantine")
	must(t, k.Apply(ruleset(4, nil, k.from, k.to)))
	pass(answerTo(f), false, loopback, dropped, "an answer that policy allows no more")
}

// A packet of a known flow costs at most so many times what it costs to run a
// program that does nothing, which on the long way would be twice as many; nothing
// that is added for other flows makes it dearer. Both are run in turn and the best of
// many runs counts, so that it holds on a busy machine.
func TestRootShortWayKeepsItsBudget(t *testing.T) {
	const most = 3.5
	k := newPacketBench(t)
	tcp, udp := k.established(k.out(bocage.ProtocolTCP)), k.established(k.out(bocage.ProtocolUDP))
	six := k.established(k.six(k.out(bocage.ProtocolTCP)))
	empty := nothing(t)
	check := func(feature string) {
		t.Helper()
		for _, packet := range []struct {
			name string
			f    frame
			from bool
		}{{"TCP", tcp, true}, {"its answer", answerTo(tcp), false}, {"UDP", udp, true}, {"IPv6", six, true}, {"its answer", answerTo(six), false}} {
			floor, took := time.Hour, time.Hour
			for range 25 {
				_, ns, err := empty.Benchmark(packet.f.bytes(), 4000, nil)
				must(t, err)
				floor, took = min(floor, ns), min(took, k.program(packet.f, packet.from, 4000))
			}
			ratio := float64(took) / float64(floor)
			t.Logf("%s, %s: %s, %.1f times what nothing costs", feature, packet.name, took, ratio)
			if ratio > most {
				t.Errorf("%s, %s: more than %.1f times what nothing costs", feature, packet.name, most)
			}
		}
	}
	check("plain")
	must(t, k.Shadow(ruleset(2, nil, k.from, k.to)))
	check("beside a candidate")
	must(t, k.Shadow(nil))
	k.in(func() error {
		for sport := range uint16(10_000) {
			f := k.out(bocage.ProtocolUDP)
			f.sport = 2000 + sport
			if _, _, err := k.objects.FromWorkload.Benchmark(f.bytes(), 1, nil); err != nil {
				return err
			}
		}
		return nil
	})
	check("in a table that is full")
}
