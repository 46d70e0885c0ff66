package dataplane

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// silent lets time pass for every flow, without a packet; after none, no time has
// passed, however long this machine was busy with others.
func (p *plane) silent(gap time.Duration) {
	p.t.Helper()
	then := uint32((readClock().ns - gap.Nanoseconds()) >> beatShift)
	p.rewrite(func(flow *bpf.KernelFlow) { flow.Seen = then })
}

func (p *plane) awaitCadence(what string, is func(bocage.Cadence) bool) bocage.Cadence {
	p.t.Helper()
	deadline := time.After(long)
	for {
		select {
		case c := <-p.cadences:
			if is(c) {
				return c
			}
		case <-deadline:
			p.t.Fatalf("no cadence of %s", what)
		}
	}
}

// bursts has a flow say something, with a silence before each burst but the first.
func (k *packetBench) bursts(f frame, gaps []time.Duration, packets func(i int) int, speaks func(i int) (source bool)) {
	k.t.Helper()
	burst := func(i int) {
		for n := range packets(i) {
			forth := f
			if speaks(i) == (n%2 == 1) {
				forth = answerTo(f)
			}
			if n > 0 {
				k.silent(0)
			}
			k.program(forth, speaks(i) != (n%2 == 1), 1)
		}
	}
	burst(0)
	for i, gap := range gaps {
		k.silent(gap)
		burst(i + 1)
	}
}

// A program that calls home, a person who types and a transfer, each through one
// connection, are told apart by their cadence alone.
func TestRootCadenceTellsApart(t *testing.T) {
	t.Parallel()
	k := newPacketBench(t, func(c *Config) { c.FlowEntries = 256 })
	k.run()
	random := rand.New(rand.NewPCG(1, 2))
	source := func(int) bool { return true }
	udp := func(sport uint16, payload int) frame {
		f := k.out(bocage.ProtocolUDP)
		f.sport, f.payload = sport, payload
		return f
	}
	gaps := func(n int, draw func() float64) (all []time.Duration) {
		for range n {
			all = append(all, time.Duration(draw()*float64(time.Second)))
		}
		return all
	}
	over := func(sport uint16) bocage.Cadence {
		t.Helper()
		k.age(10 * time.Minute)
		return k.awaitCadence("a flow that is over", func(c bocage.Cadence) bool { return c.Flow.SourcePort == sport })
	}
	looksDriven := func(c bocage.Cadence) bool {
		gaps, sizes := c.Regularity()
		return gaps > 0.9 && sizes > 0.9
	}

	k.bursts(udp(5000, 200), gaps(40, func() float64 { return 2 * (0.9 + 0.2*random.Float64()) }), func(int) int { return 4 }, source)
	beacon := over(5000)
	mean, deviation := beacon.Gap()
	all, by := beacon.Count()
	if all != 40 || by[0] != 40 || beacon.Sizes[0] != [4]uint16{0, 40} || !looksDriven(beacon) ||
		math.Abs(mean.Seconds()-2) > 0.06 || deviation > 200*time.Millisecond || beacon.Gaps[0][2]+beacon.Gaps[0][3] != 40-beacon.Gaps[0][1] {
		t.Errorf("a beacon: %+v; %s, give or take %s", beacon, mean, deviation)
	}

	k.bursts(udp(5001, 40), gaps(40, func() float64 { return 0.3 * math.Pow(100, random.Float64()) }),
		func(int) int { return 1 + random.IntN(40) }, func(i int) bool { return i%7 != 6 })
	typed := over(5001)
	mean, deviation = typed.Gap()
	if all, by := typed.Count(); all != 40 || by[1] != 5 || looksDriven(typed) || deviation < mean/2 {
		t.Errorf("somebody who types: %+v; %s, give or take %s", typed, mean, deviation)
	}

	k.bursts(udp(5002, 1400), gaps(4, func() float64 { return 1 }), func(i int) int { return 60 * (1 + i%3) }, source)
	bulk := over(5002)
	if all, _ := bulk.Count(); all != 4 || looksDriven(bulk) || bulk.Sizes[0][3] != 4 {
		t.Errorf("a transfer: %+v", bulk)
	}

	k.bursts(udp(5003, 200), gaps(2, func() float64 { return 2 }), func(int) int { return 4 }, source)
	k.age(10 * time.Minute)
	k.await("an end", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventEnd && e.SourcePort == 5003 })
	if len(k.cadences) != 0 {
		t.Errorf("two gaps were told: %+v", <-k.cadences)
	}
}

// A flow that goes on is told of with its updates, all of it each time; a flow that
// follows on the same ports has nothing of the one before, and one that is judged
// anew keeps what it has.
func TestRootCadenceIsOfOneFlow(t *testing.T) {
	t.Parallel()
	k := newPacketBench(t, func(c *Config) { c.FlowEntries = 256 })
	k.run()
	f := k.out(bocage.ProtocolUDP)
	f.sport = 5000
	pause := func(n int) {
		for range n {
			k.silent(3 * time.Second)
			k.program(f, true, 1)
		}
	}
	told := func(kind string) int {
		t.Helper()
		c := k.awaitCadence(kind, func(c bocage.Cadence) bool { return true })
		all, _ := c.Count()
		return all
	}
	k.program(f, true, 1)
	pause(5)
	k.age(31 * time.Second)
	k.program(f, true, 1)
	if got := told("a flow that goes on"); got != 6 {
		t.Errorf("told of %d gaps instead of 6", got)
	}
	must(t, k.Apply(ruleset(2, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, k.from, k.to)))
	k.settle()
	pause(4)
	k.age(31 * time.Second)
	k.program(f, true, 1)
	if got := told("a flow that was judged anew"); got != 11 {
		t.Errorf("told of %d gaps instead of 11", got)
	}
	k.age(10 * time.Minute)
	if got := told("a flow that is over"); got != 11 {
		t.Errorf("told of %d gaps instead of 11", got)
	}
	k.await("an end", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventEnd })
	k.program(f, true, 1)
	pause(4)
	k.age(10 * time.Minute)
	if got := told("the next flow"); got != 4 {
		t.Errorf("told of %d gaps instead of 4", got)
	}
}

// Where more flows have a cadence than there is room for, some are not told of, which
// is counted; what is told of the others is true.
func TestRootCadencesAreBounded(t *testing.T) {
	t.Parallel()
	k := newPacketBench(t, func(c *Config) { c.FlowEntries = 256 })
	k.run()
	const flows, rows = 100, 64
	f := k.out(bocage.ProtocolUDP)
	for round := range 6 {
		for i := range flows {
			f.sport = uint16(6000 + i)
			if round > 0 && i == 0 {
				k.silent(2 * time.Second)
			}
			k.program(f, true, 1)
		}
	}
	c, err := k.Counters()
	must(t, err)
	if c.Unpaced == 0 {
		t.Errorf("%d flows found room in %d rows", flows, rows)
	}
	k.age(10 * time.Minute)
	for range flows {
		k.await("an end", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventEnd })
	}
	seen := map[uint16]bool{}
	for len(k.cadences) > 0 {
		c := <-k.cadences
		// A flow whose bucket had no room at first began with its second packet.
		packets := int(c.Flow.Packets)
		if all, _ := c.Count(); all >= packets || all < packets-3 || seen[c.Flow.SourcePort] || packets > 6 || packets < 5 {
			t.Errorf("told of %d gaps: %+v", all, c)
		}
		seen[c.Flow.SourcePort] = true
	}
	if len(seen) == 0 || len(seen) > rows {
		t.Errorf("%d flows were told of", len(seen))
	}
}

// A real connection that calls home is seen as one.
func TestRootCadenceOfConnection(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	p.run()
	echo(t, b, b.v4, 80)
	c := mustDial(t, a, b.v4, 80)
	const silence = 2 * time.Second
	begun := time.Now()
	for range 10 {
		must(t, ping(c, long))
		p.silent(silence)
	}
	most := silence + time.Since(begun)
	c.Close()
	p.finish()
	p.await("the end", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventEnd })
	told := p.awaitCadence("the connection", func(bocage.Cadence) bool { return true })
	mean, _ := told.Gap()
	if all, by := told.Count(); all < 8 || by[0] < 8 || mean < silence/2 || mean > most {
		t.Errorf("%d gaps by %v of %s: %+v", all, by, mean, told)
	}
}
