package simulate

import (
	"net/netip"

	"bocage.dev/bocage"
)

// Decided is what a flow is given.
type Decided struct {
	Verdict bocage.Verdict
	Reason  bocage.Reason
}

// DecideFlows gives each flow what DecideFlow gives it. Where addresses have little in
// common, that takes half the time: a flow by itself waits for memory several times, one
// time after the other; here many wait together. It allocates nothing.
func (s *Simulator) DecideFlows(flows []bocage.Flow, decided []Decided) {
	var b batch
	c := s.peers.classes()
	for len(flows) > 0 {
		n := min(len(flows), batchSize)
		b.find(c, flows[:n])
		b.touch(s.index, n)
		for i := range flows[:n] {
			f := &flows[i]
			decided[i].Verdict, decided[i].Reason = s.between(b.ends[2*i], b.ends[2*i+1], f.Protocol, f.DestinationPort, f.At)
		}
		flows, decided = flows[n:], decided[n:]
	}
}

// batchSize is how many flows wait together: their memory fits the processor's nearest.
const batchSize = 64

// batch is flows on their way: two ends of each.
type batch struct {
	ends    [2 * batchSize]who
	keys    [2 * batchSize]wide
	lines   [2 * batchSize]int
	waiting [2 * batchSize]uint8 // ends that are not found yet
	touched uint64               // has memory read, and no meaning
}

// find looks the ends of flows up: all of them in one table, then those that are not
// there in the next.
func (b *batch) find(c *classes, flows []bocage.Flow) {
	waiting := b.waiting[:0]
	for i := range flows {
		for j, address := range [2]netip.Addr{flows[i].Source, flows[i].Destination} {
			if address.Is4() || address.Is4In6() || !address.IsValid() {
				b.ends[2*i+j] = c.who(address)
				continue
			}
			b.ends[2*i+j], b.keys[2*i+j] = c.world, number6(address)
			waiting = append(waiting, uint8(2*i+j))
		}
	}
	for i := range c.places.v6 {
		if len(waiting) == 0 {
			return
		}
		t := &c.places.v6[i]
		for _, n := range waiting {
			b.lines[n] = t.line(b.keys[n].and(t.mask))
		}
		touched := uint32(0)
		for _, n := range waiting {
			touched += t.lines[b.lines[n]].full
		}
		b.touched += uint64(touched)
		rest := waiting[:0]
		for _, n := range waiting {
			if number := t.from(b.lines[n], b.keys[n].and(t.mask)); number != none {
				b.ends[n] = c.of(number)
			} else {
				rest = append(rest, n)
			}
		}
		waiting = rest
	}
}

// touch reads of each pair of ends what deciding reads, so that the processor fetches
// all of it at once.
func (b *batch) touch(ix *index, n int) {
	touched := uint64(0)
	for i := range n {
		touched += ix.senders[b.ends[2*i].group].others + ix.receivers[b.ends[2*i+1].group].others
	}
	for i := range n {
		from, to := b.ends[2*i].group, b.ends[2*i+1].group
		if ix.mayHave(from, to) {
			touched += ix.exact.slots[ix.exact.first(mix(pairKey(from, to)))].pair
		}
		for _, s := range [2]sheet{ix.receivers[to].any, ix.senders[from].any} {
			if s.count > 0 {
				touched += uint64(ix.spans[s.first].end)
			}
		}
	}
	b.touched += touched
}
