package dataplane

import (
	"testing"
	"time"

	"bocage.dev/bocage"
)

// The counters of events are totals since the flow began: whatever happens meanwhile
// (another generation, another agent), they only grow, and the last says exactly what
// was sent.
func TestRootTotalsAreExact(t *testing.T) {
	t.Parallel()
	k := newPacketBench(t, func(c *Config) { c.FlowEntries = 256 })
	random := newRandom(t)
	stop := k.run()
	const flows = 6
	type total struct {
		packets uint32
		bytes   uint64
	}
	var sent [flows]total
	generation := uint64(1)
	for range 40 {
		i := random.IntN(flows)
		f := k.out(bocage.ProtocolUDP)
		f.sport, f.payload = uint16(5000+i), random.IntN(1000)
		packets := 1 + random.IntN(20)
		from := sent[i].packets == 0 || random.IntN(2) == 0
		if !from {
			f = answerTo(f)
		}
		for range packets {
			k.program(f, from, 1)
		}
		sent[i].packets += uint32(packets)
		sent[i].bytes += uint64(packets * (20 + 8 + f.payload))
		switch random.IntN(8) {
		case 0, 1:
			k.age(31 * time.Second)
		case 2:
			generation++
			must(t, k.Apply(ruleset(generation, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, k.from, k.to)))
			k.settle()
		case 3:
			stop()
			must(t, k.Close())
			k.reopen()
			k.settle()
			stop = k.run()
		}
	}
	k.age(10 * time.Minute)
	live := 0
	for i := range sent {
		if sent[i].packets > 0 {
			live++
		}
	}
	last, begun := [flows]total{}, [flows]int{}
	for live > 0 {
		e := k.await("an event", func(e bocage.FlowEvent) bool { return e.SourcePort >= 5000 && e.SourcePort < 5000+flows })
		i := e.SourcePort - 5000
		switch e.Kind {
		case bocage.EventStart:
			begun[i]++
		case bocage.EventEnd:
			if (total{e.Packets, e.Bytes}) != sent[i] {
				t.Errorf("flow %d ended with %d packets of %d bytes, of which %+v were sent", i, e.Packets, e.Bytes, sent[i])
			}
			live--
		}
		if e.Packets < last[i].packets || e.Bytes < last[i].bytes {
			t.Errorf("flow %d went from %+v back to %d packets of %d bytes", i, last[i], e.Packets, e.Bytes)
		}
		last[i] = total{e.Packets, e.Bytes}
	}
	for i, n := range begun {
		if n != min(1, int(sent[i].packets)) {
			t.Errorf("flow %d began %d times", i, n)
		}
	}
}
