package dataplane

import (
	"fmt"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// Count is a number of packets and their bytes, IP headers included.
type Count struct{ Packets, Bytes uint64 }

// Counters say what became of every packet at the enforcement points since the
// state was first made. A packet that passes two points counts at both.
type Counters struct {
	Passed  map[bocage.ReasonCode]Count
	Refused map[bocage.ReasonCode]Count
	// Offered events were due; of these, Lost found no room in the ring buffer.
	Offered, Lost uint64
	// Flows opened and ended since the start, and live at the last sweep. Of those
	// that ended, FlowsEvicted did before their time, to make room for others.
	FlowsOpened, FlowsEnded, FlowsEvicted, FlowsLive uint64
	// Folded refusals found no row of their own in the table of refusals and
	// were reported by port and reason only.
	Folded uint64
	// Unanswered packets were to be rejected and were dropped in silence: the
	// point's share of answers was spent, or the answer could not be made.
	Unanswered uint64
	// Unpaced bursts found no room in the table of cadences, or made it at the cost
	// of another flow's.
	Unpaced uint64
	// NamesAsked are questions to the DNS for names of a ruleset, NamesAnswered the
	// answers to them from which addresses were learned. Answers Unasked fit no open
	// question and taught nothing, Unread ones could not be read whole, so some of
	// their addresses are not known. Unlearned addresses and questions found no room, or took that of
	// others of the same workload which still counted.
	NamesAsked, NamesAnswered, NamesUnasked, NamesUnread, NamesUnlearned uint64
	// Greeted are the pieces of greetings that were due; of these, Ungreeted found no
	// room in their ring buffer.
	Greeted, Ungreeted uint64
}

// Counters reads the counters.
func (d *Dataplane) Counters() (Counters, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := Counters{Passed: make(map[bocage.ReasonCode]Count), Refused: make(map[bocage.ReasonCode]Count), FlowsLive: d.live}
	const reasons = 64
	var perCPU []bpf.KernelCounter
	for i := range uint32(2 * reasons) {
		if err := d.objects.Counters.Lookup(i, &perCPU); err != nil {
			return c, fmt.Errorf("read counters: %w", err)
		}
		var sum Count
		for _, row := range perCPU {
			sum.Packets += row.Packets
			sum.Bytes += row.Bytes
		}
		if sum.Packets == 0 {
			continue
		}
		if i < reasons {
			c.Passed[bocage.ReasonCode(i)] = sum
		} else {
			c.Refused[bocage.ReasonCode(i-reasons)] = sum
		}
	}
	var tallies []bpf.KernelTally
	if err := d.objects.Tallies.Lookup(uint32(0), &tallies); err != nil {
		return c, fmt.Errorf("read counters: %w", err)
	}
	for _, t := range tallies {
		c.Offered += t.Offered
		c.Lost += t.Lost
		c.FlowsOpened += t.Opened
		c.FlowsEnded += t.Ended
		c.FlowsEvicted += t.Evicted
		c.Folded += t.Folded
		c.Unanswered += t.Unanswered
		c.Unpaced += t.Unpaced
		c.NamesAsked += t.Inquired
		c.NamesAnswered += t.Answered
		c.NamesUnasked += t.Unasked
		c.NamesUnread += t.Unread
		c.NamesUnlearned += t.Unlearned
		c.Greeted += t.Greeted
		c.Ungreeted += t.Ungreeted
	}
	return c, nil
}
