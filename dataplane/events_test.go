package dataplane

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"bocage.dev/bocage"
)

// handed runs a dataplane, whose events come with how long they were under way,
// until the test ends.
func (p *plane) handed() <-chan time.Duration {
	ctx, cancel := context.WithCancel(context.Background())
	ages, done := make(chan time.Duration, 1<<12), make(chan error, 1)
	plane := p.Dataplane
	go func() {
		done <- plane.Run(ctx, func(events []bocage.FlowEvent, _ []bocage.Cadence) {
			for _, e := range events {
				select {
				case ages <- time.Since(e.Time):
				default:
				}
			}
		})
	}()
	p.t.Cleanup(func() {
		cancel()
		<-done
	})
	return ages
}

// The kernel wakes nobody for one event, but one that is alone arrives soon all the
// same; of many, the last too.
func TestRootLoneEventsArriveSoon(t *testing.T) {
	k := newPacketBench(t)
	ages := k.handed()
	next := func() time.Duration {
		select {
		case age := <-ages:
			return age
		case <-time.After(long):
			t.Fatal("an event does not arrive")
			return 0
		}
	}
	var all []time.Duration
	for i := range 25 {
		f := k.out(bocage.ProtocolTCP)
		f.sport += uint16(i)
		k.program(f, true, 1)
		all = append(all, next())
	}
	slices.Sort(all)
	t.Logf("best %s, median %s, last %s", all[0], all[len(all)/2], all[len(all)-1])
	if all[0] > 2*lookPeriod || all[len(all)/2] > 20*lookPeriod {
		t.Errorf("the best of 25 events took %s, half of them %s and more: the ring is looked into every %s", all[0], all[len(all)/2], lookPeriod)
	}
	for i := range 3000 {
		f := k.out(bocage.ProtocolTCP)
		f.sport = uint16(5000 + i)
		k.program(f, true, 1)
	}
	for range 3000 {
		next()
	}
}

// Where much waits whoever reads is woken, long before the ring is full: one that
// only looked now and then would lose what comes between.
func TestRootRingWakesBeforeItIsFull(t *testing.T) {
	t.Parallel()
	const ring, record = 1 << 16, 72
	k := newPacketBench(t, func(c *Config) { c.EventBytes = ring })
	reader, err := ringbuf.NewReader(k.objects.Events)
	must(t, err)
	t.Cleanup(func() { reader.Close() })
	woken := make(chan error, 1)
	go func() {
		_, err := reader.Read() // waits until it is woken, however long
		woken <- err
	}()
	told := 0
	for ; told < ring/record/2; told++ {
		f := k.out(bocage.ProtocolUDP)
		f.sport = uint16(told)
		k.program(f, true, 1)
	}
	select {
	case err := <-woken:
		must(t, err)
	case <-time.After(long):
		t.Fatalf("%d events fill half of the ring, and nobody is woken", told)
	}
}
