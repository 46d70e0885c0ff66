package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sync/errgroup"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// What sweeps go through (see sweep.c), and how often.
const (
	sweepFlows   = 1
	sweepReports = 2
	sweepCrowded = 4

	reportsPeriod = 250 * time.Millisecond
	flowsPeriod   = time.Second
	// lookPeriod is how often the ring is looked into; the kernel wakes nobody but
	// when much waits there.
	lookPeriod = 20 * time.Millisecond
)

// batchEvents bounds what is handed on at a time.
const batchEvents = 1024

// Run hands on what the kernel reports, in batches, until the context ends, and
// lets time do its work on the kernel's tables. The slices are reused. While each
// runs, events wait in the ring buffer; what finds no room there is counted as
// lost. Run may be called once at a time.
func (d *Dataplane) Run(ctx context.Context, each func([]bocage.FlowEvent, []bocage.Cadence)) error {
	reader, err := ringbuf.NewReader(d.objects.Events)
	if err != nil {
		return fmt.Errorf("run dataplane: read events: %w", err)
	}
	defer reader.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.drain(ctx, reader, each) })
	group.Go(func() error { return d.sweepOften(ctx) })
	if d.wiring != nil {
		group.Go(func() error { return d.followWiring(ctx) })
	}
	group.Go(func() error {
		<-ctx.Done()
		return reader.Close() // a deadline would not wake a read that waits
	})
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("run dataplane: %w", err)
	}
	return ctx.Err()
}

func (d *Dataplane) drain(ctx context.Context, reader *ringbuf.Reader, each func([]bocage.FlowEvent, []bocage.Cadence)) error {
	var record ringbuf.Record
	told := told{events: make([]bocage.FlowEvent, 0, batchEvents)}
	hand := func() {
		if len(told.events)+len(told.cadences) == 0 {
			return
		}
		told.inWallTime(readClock())
		each(told.events, told.cadences)
		told.events, told.cadences = told.events[:0], told.cadences[:0]
	}
	defer hand() // what was read is in the ring no more
	reader.SetDeadline(time.Now().Add(lookPeriod))
	for ctx.Err() == nil {
		err := reader.ReadInto(&record)
		if errors.Is(err, os.ErrDeadlineExceeded) { // all that waited has been read
			reader.SetDeadline(time.Now().Add(lookPeriod))
			continue
		}
		if errors.Is(err, ringbuf.ErrClosed) {
			return ctx.Err()
		}
		if err == nil {
			err = told.add(record.RawSample)
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if record.Remaining > 0 && len(told.events)+len(told.cadences) < batchEvents {
			continue
		}
		hand()
	}
	return ctx.Err()
}

// told is what was read from the ring buffer.
type told struct {
	events   []bocage.FlowEvent
	cadences []bocage.Cadence
}

// add decodes a record: its length says what it is.
func (t *told) add(record []byte) error {
	if len(record) == bocage.CadenceSize {
		t.cadences = append(t.cadences, bocage.Cadence{})
		return t.cadences[len(t.cadences)-1].UnmarshalBinary(record)
	}
	t.events = append(t.events, bocage.FlowEvent{})
	return t.events[len(t.events)-1].UnmarshalBinary(record)
}

// inWallTime turns the monotonic time that the kernel stamps, which decoding
// takes for a time since 1970, into wall time.
func (t *told) inWallTime(now clock) {
	for i := range t.events {
		t.events[i].Time = now.time(uint64(t.events[i].Time.UnixNano()))
	}
	for i := range t.cadences {
		t.cadences[i].Flow.Time = now.time(uint64(t.cadences[i].Flow.Time.UnixNano()))
	}
}

func (d *Dataplane) sweepOften(ctx context.Context) error {
	ticker := time.NewTicker(reportsPeriod)
	defer ticker.Stop()
	var lastFlows time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-ticker.C:
			what := uint32(sweepReports)
			if now.Sub(lastFlows) >= flowsPeriod {
				what, lastFlows = what|sweepFlows, now
			}
			if err := d.sweep(what); err != nil {
				return err
			}
		}
	}
}

// sweep lets time do its work on the kernel's tables. It holds no lock while it goes
// through them: a change of policy need not wait for that.
func (d *Dataplane) sweep(tables uint32) error {
	if tables&sweepReports != 0 {
		if err := d.sweepReports(); err != nil {
			return fmt.Errorf("sweep tables: %w", err)
		}
	}
	if tables&sweepFlows == 0 {
		return nil
	}
	d.mu.Lock()
	lived := d.live
	d.mu.Unlock()
	live, err := d.endFlows(0, lived)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	if err := d.forgetNames(); err != nil {
		return err
	}
	d.live = live
	if live > uint64(d.cfg.FlowEntries)/8*7 && time.Since(d.full) > time.Minute {
		d.full = time.Now()
		d.log.Warn("table of flows nearly full: new flows are refused where no old one makes room; give the agent more --table-entries flows",
			"live", live, "entries", d.cfg.FlowEntries)
	}
	return nil
}

func (d *Dataplane) sweepReports() error {
	d.mapped.RLock()
	defer d.mapped.RUnlock()
	if d.flows == nil { // closed
		return nil
	}
	order := bpf.KernelSweepOrder{Tables: sweepReports}
	_, err := d.objects.Sweep.Run(&ebpf.RunOptions{Context: &order, ContextOut: &order})
	return err
}
