package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// whole makes one of many rulesets of which any two differ in all that a packet is
// judged by: who has the addresses, their groups, prefixes, the rules, the reasons,
// the default. All that a packet was told shows which one it was judged by.
func whole(generation uint64, a, b *workload) *bocage.Ruleset {
	n := generation % 63
	id := func(k uint64) bocage.DecisionID { return bocage.DecisionID(1000 + 10*n + k) }
	group := func(k uint64) bocage.Group { return bocage.Group(1000 + 10*n + k) }
	rs := &bocage.Ruleset{Generation: generation, Default: id(0), Decisions: []bocage.Decision{
		{ID: id(0), Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny},
		{ID: id(1), Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule},
		{ID: id(2), Verdict: bocage.VerdictDrop, Code: bocage.ReasonGuardrail},
		{ID: id(3), Verdict: bocage.VerdictDrop, Code: bocage.ReasonThreat},
	}}
	for k := range uint64(3) {
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: group(k), Enforce: true, Sender: 1, Receiver: 2})
	}
	peer := func(prefix netip.Prefix, k uint64) {
		rs.Peers = append(rs.Peers, bocage.Peer{Prefix: prefix, Identity: bocage.Identity(1000 + 10*n + k), Group: group(k), Host: "h1"})
	}
	peer(netip.PrefixFrom(a.v4, 32), 0)
	peer(netip.PrefixFrom(b.v4, 32), 1)
	outside, _ := netip.MustParseAddr("192.0.2.7").Prefix(int(8 + n%20)) // other lengths lead there each time
	peer(outside, 2)
	// The port of what is allowed is the generation's own, by a form of its own.
	first := uint16(1024 * (1 + n))
	rs.Rules = []bocage.Rule{{From: group(0), To: group(1), Protocol: bocage.ProtocolUDP,
		Ports: bocage.PortRange{First: first, Last: first + 1<<(n%8) - 1}, Decision: id(1)}}
	rs.Reasons = []bocage.Rule{{From: 1, To: 2, Protocol: bocage.ProtocolUDP, Ports: bocage.PortRange{First: 53, Last: 53}, Decision: id(2)}}
	if generation%2 == 0 {
		rs.Refused = []bocage.Refusal{{Identity: bocage.Identity(1000 + 10*n + 2), Decision: id(3)}}
	}
	slices.SortFunc(rs.Peers, func(a, b bocage.Peer) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	return rs
}

// ofOne says what in an event is not of one generation: who the source is tells all
// else, but for the refused, which change by themselves.
func ofOne(e bocage.FlowEvent) error {
	base := uint64(e.Source)
	n := (base - 1000) / 10
	allowed := uint64(e.DestinationPort) >= 1024*(1+n) && uint64(e.DestinationPort) < 1024*(1+n)+1<<(n%8)
	destination, decision := base+1, base
	switch {
	case e.Remote == netip.MustParseAddr("192.0.2.7"):
		destination = base + 2
		switch {
		case e.Generation%2 == 0:
			decision = base + 3
		case e.DestinationPort == 53:
			decision = base + 2
		}
	case allowed:
		decision = base + 1
	case e.DestinationPort == 53:
		decision = base + 2
	}
	if base < 1000 || base%10 != 0 || uint64(e.Destination) != destination || uint64(e.Decision) != decision {
		return fmt.Errorf("of generation %d: %+v", e.Generation, e)
	}
	return nil
}

// No packet is judged by halves of two generations, however fast they change and
// whether much of them changes or little: whatever an event tells is of one.
func TestRootNoHalves(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.EventBytes = 1 << 24 })
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	must(t, p.Apply(whole(1, a, b)))
	p.attach(a, b)
	reader, err := ringbuf.NewReader(p.objects.Events)
	must(t, err)
	var seen, kinds atomic.Int64
	told := make(chan error, 1)
	go func() {
		generations := map[uint32]bool{}
		var record ringbuf.Record
		for {
			if err := reader.ReadInto(&record); err != nil {
				told <- nil
				return
			}
			var e bocage.FlowEvent
			err := e.UnmarshalBinary(record.RawSample)
			if err == nil && e.Kind != bocage.EventEnd && e.Kind != bocage.EventUpdate {
				seen.Add(1)
				generations[uint32(e.Generation)] = true
				kinds.Store(int64(len(generations)))
				err = ofOne(e)
			}
			if err != nil {
				told <- err
				return
			}
		}
	}()
	stop := make(chan struct{})
	var senders sync.WaitGroup
	for sender := range 4 {
		senders.Go(func() {
			f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, payload: 8}
			p.in(func() error {
				for n := uint32(sender) << 28; ; n++ {
					select {
					case <-stop:
						return nil
					default:
					}
					f.sport, f.dst = uint16(n), b.v4
					if f.dport = 53; n%8 < 6 {
						k := n / 8 % 63 // what some generation allows
						f.dport = uint16(1024*(1+k) + n/512%(1<<(k%8)))
					} else if n%8 == 7 {
						f.dst = netip.MustParseAddr("192.0.2.7")
					}
					p.judged(true, a.ifindex, f.bytes())
				}
			})
		})
	}
	changes, begun := 0, time.Now()
	last := whole(1, a, b)
	enough := func() bool { return seen.Load() >= 1000 && kinds.Load() >= 50 }
	for generation := uint64(2); changes < 3000 && time.Since(begun) < 15*time.Second || !enough() && time.Since(begun) < long; generation++ {
		rs := whole(generation, a, b)
		if generation%3 == 0 { // only who is refused changes
			rs = last.Copy()
			rs.Generation, rs.Refused = generation, nil
			if generation%2 == 0 {
				rs.Refused = []bocage.Refusal{{Identity: rs.Peers[len(rs.Peers)-1].Identity, Decision: rs.Decisions[3].ID}}
			}
		}
		must(t, p.Apply(rs))
		last = rs
		changes++
		if generation%50 == 0 { // what was judged before goes, so that there are new flows
			must(t, clearRows(p.objects.Refusals, func(bpf.KernelRefusalKey) bool { return true }))
		}
		select {
		case err := <-told:
			t.Fatal(err)
		default:
		}
	}
	close(stop)
	senders.Wait()
	reader.Close()
	if err := <-told; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d changes, %d events of %d generations", changes, seen.Load(), kinds.Load())
	if !enough() {
		t.Errorf("too little was seen")
	}
}

// A change that fails at any step changes nothing, and does not stand in the way of
// the next; nor does it if the process knows nothing of what was before.
func TestRootChangesThatFail(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, known := range []bool{true, false} {
		p := newPlane(t)
		a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
		p.attach(a, b)
		f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, payload: 8}
		allowed := func(n uint64) uint32 {
			f.sport++
			f.dport = uint16(1024 * (1 + n%63))
			return p.judgedHere(true, a.ifindex, f.bytes())
		}
		must(t, p.Apply(whole(1, a, b)))
		generation, failed := uint64(1), 0
		for at := 0; ; at++ {
			if !known {
				must(t, p.Close())
				p.reopen()
			}
			steps := 0
			p.before = func(string) error {
				if steps++; steps == at+1 {
					return broken
				}
				return nil
			}
			before := generation
			err := p.Apply(whole(generation+1, a, b))
			p.before = nil
			if err == nil {
				generation++
			} else if failed++; !errors.Is(err, broken) {
				t.Fatal(err)
			}
			if g := p.Generation(); g != generation {
				t.Fatalf("step %d: generation %d in force, want %d (%v)", at, g, generation, err)
			}
			if got := allowed(generation); got != next {
				t.Errorf("step %d: what generation %d allows is refused (%v)", at, generation, err)
			}
			if got := allowed(before + 1); err != nil && got != dropped {
				t.Errorf("step %d: what failed allows passes", at)
			}
			if steps <= at {
				break // nothing was left to fail
			}
			if at%3 == 0 { // what comes next may be the same, or another one
				generation++
				must(t, p.Apply(whole(generation, a, b)))
				if n := p.differing(whole(generation, a, b)); n != 0 {
					t.Errorf("step %d: %d rows are not those of the ruleset", at, n)
				}
			}
		}
		generation++
		must(t, p.Apply(whole(generation, a, b)))
		if n := p.differing(whole(generation, a, b)); n != 0 {
			t.Errorf("%d rows are not those of the ruleset", n)
		}
		if failed < 8 {
			t.Errorf("only %d steps failed", failed)
		}
	}
}

// A process that is killed at any moment of a change leaves a generation whole, and
// the next process goes on from there.
func TestRootKilledInTheMiddle(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	var turn []*bocage.Ruleset
	for n := range 4 {
		var rules []bocage.Rule
		for port := range uint16(3000) {
			rules = append(rules, allowUDPPort(21, 22, 10_000*uint16(n)+3*port))
		}
		turn = append(turn, ruleset(uint64(1+n), append(rules, allowTCP(21, 22, 80)), a, b))
	}
	p.attach(a, b)
	must(t, p.Apply(turn[0]))
	echo(t, b, b.v4, 80)
	live := mustDial(t, a, b.v4, 80)
	random := newRandom(t)
	begin := p.Generation()
	for round := range 15 {
		must(t, p.Close())
		var then []*bocage.Ruleset
		for i := range turn {
			rs := turn[i].Copy()
			rs.Generation = begin + 1 + uint64(i)
			then = append(then, rs)
		}
		kill := p.startChild(order{Then: then, Forever: true})
		<-time.After(time.Duration(random.IntN(60_000)) * time.Microsecond)
		kill()
		must(t, ping(live, long))
		p.reopen()
		g := p.Generation()
		if g <= begin {
			t.Fatalf("round %d: generation %d in force, %d before", round, g, begin)
		}
		matches := 0
		for _, rs := range turn {
			if same, left := p.isWhole(rs); same {
				matches++
				t.Logf("round %d: generation %d is whole, %d rows of others", round, g, left.len())
			}
		}
		if matches != 1 {
			t.Fatalf("round %d: generation %d is %d of the rulesets", round, g, matches)
		}
		last := turn[round%len(turn)].Copy()
		last.Generation = g + 1
		must(t, p.Apply(last))
		begin = last.Generation
		if n := p.differing(last); n != 0 {
			t.Errorf("round %d: %d rows are not those of the ruleset", round, n)
		}
		must(t, ping(live, long))
	}
}

// isWhole says whether what is in force is just what a ruleset says, and which rows
// are not its own.
func (p *plane) isWhole(rs *bocage.Ruleset) (bool, *changes) {
	p.t.Helper()
	c := newContent(p.nameKey)
	e, err := c.read(rs, lists{})
	must(p.t, err)
	rows, _ := c.change(e, readClock())
	f, err := p.readForce()
	must(p.t, err)
	same, err := p.compareAll(rows, f.slot())
	must(p.t, err)
	want := c.header(f.slot())
	want.Generation = f.header.Generation
	return same && want == *f.header, rows
}

func allowUDPPort(from, to bocage.Group, port uint16) bocage.Rule {
	r := allowUDP(from, to)
	r.Ports = bocage.PortRange{First: port, Last: port}
	return r
}
