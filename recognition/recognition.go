// Package recognition weighs events into evidence, evidence into incidents, and
// incidents into threat conditions, which policy reads. It follows the log of
// signed batches.
//
// It promises that what it concludes depends on the set of events and not on
// their order or repetition, so that replicas agree and a replay changes nothing;
// that no event is evidence of its own sender's making (a workload is known by
// its port, an agent by its signature); that its memory is bounded, and that
// whatever a bound costs is counted; that a store which stalls never stalls it.
// It never opens anything: all that it can write is a condition that tightens
// policy for an attacker, for a while, and for a share of a namespace only.
//
// Refused connections are evidence and never an incident by themselves: an
// incident needs one decisive piece of evidence or two independent stages (see
// the detectors' packages for what they weigh). One attacker is one incident,
// joined with those of workloads that it attacked and that then attacked others.
package recognition

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/scan"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/stream"
)

const tickEvery = 250 * time.Millisecond

// Config wires a Recognizer. Store, Log and Bundle are needed, the rest works as
// zero.
type Config struct {
	Store store.Store
	Log   stream.Log
	// Bundle verifies a signed batch and opens it.
	Bundle func(envelope []byte) (*bocage.Batch, error)
	// Now is the time that controllers agree on; nil is this machine's.
	Now func() time.Time
	// Node names this replica's checkpoint.
	Node   string
	Logger *slog.Logger

	// WatchTTL is how long a scanner is watched: 10 min by default. All times
	// count from the latest evidence.
	WatchTTL time.Duration
	// DecoyTTL is how long who logs in to a decoy is quarantined: 10 min.
	DecoyTTL time.Duration
	// QuarantineTTL is how long who attacks a member is quarantined: 60 s.
	QuarantineTTL time.Duration
	// QuarantineShare is the share of a namespace's workloads that automation
	// may quarantine at once, though always one: 0.2.
	QuarantineShare float64
	// Idle ends an incident that nothing was added to: 1 h.
	Idle time.Duration
	// Linger keeps expired threat conditions for people to see: 1 min.
	Linger time.Duration
	// Retain keeps closed incidents: 30 days.
	Retain time.Duration
	// UpdateEvery is how often an incident that goes on is written: 500 ms. What
	// makes it worse is written at once.
	UpdateEvery time.Duration
	// Horizon is how much of the log a restarted process reads again: 6 h.
	Horizon time.Duration
	// Scan bounds the scan detector's memory.
	Scan scan.Config
}

// TTLs are the times after which things end.
type TTLs struct{ Watch, Decoy, Quarantine, Idle, Linger time.Duration }

// TTLs returns the configured times.
func (c Config) TTLs() TTLs {
	return TTLs{c.WatchTTL, c.DecoyTTL, c.QuarantineTTL, c.Idle, c.Linger}
}

func (c Config) complete() (Config, error) {
	set := func(field *time.Duration, value time.Duration) {
		if *field == 0 {
			*field = value
		}
	}
	set(&c.WatchTTL, 10*time.Minute)
	set(&c.DecoyTTL, 10*time.Minute)
	set(&c.QuarantineTTL, time.Minute)
	set(&c.Idle, time.Hour)
	set(&c.Linger, time.Minute)
	set(&c.Retain, 30*24*time.Hour)
	set(&c.UpdateEvery, 500*time.Millisecond)
	set(&c.Horizon, 6*time.Hour)
	if c.QuarantineShare == 0 {
		c.QuarantineShare = 0.2
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	var faults []error
	if c.Store == nil || c.Log == nil || c.Bundle == nil {
		faults = append(faults, errors.New("recognition needs a store, a log and a way to open batches"))
	}
	for name, d := range map[string]time.Duration{
		"WatchTTL": c.WatchTTL, "DecoyTTL": c.DecoyTTL, "QuarantineTTL": c.QuarantineTTL, "Idle": c.Idle,
		"Linger": c.Linger, "Retain": c.Retain, "UpdateEvery": c.UpdateEvery, "Horizon": c.Horizon,
	} {
		if d < 0 {
			faults = append(faults, fmt.Errorf("%s is %s: it cannot be negative", name, d))
		}
	}
	if c.QuarantineShare < 0 || c.QuarantineShare > 1 {
		faults = append(faults, fmt.Errorf("QuarantineShare is %g: it is a share from 0 to 1", c.QuarantineShare))
	}
	return c, errors.Join(faults...)
}

// Recognizer follows the log and keeps what it means.
type Recognizer struct {
	cfg    Config
	ledger *ledger
	writer *writer
	fold   *fold
	counts counts

	sequence atomic.Uint64 // the last message that was folded
	behind   atomic.Int64  // ns between that message and its folding
}

// New makes a recognizer. Nothing happens before Run.
func New(cfg Config) (*Recognizer, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	r := &Recognizer{cfg: cfg, counts: newCounts()}
	r.ledger = newLedger(cfg.Store, cfg.Logger)
	r.writer = newWriter(cfg, r.ledger)
	r.fold = newFold(cfg, r.ledger, &r.counts)
	return r, nil
}

// Run follows the log until ctx ends, which is the only error that it returns.
func (r *Recognizer) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, c := range chapters() {
		from, err := r.ledger.reload(ctx, c)
		if err != nil {
			return err
		}
		group.Go(func() { _ = r.ledger.follow(ctx, c, from) })
	}
	resume, err := r.resume(ctx)
	if err != nil {
		return err
	}
	in := make(chan opened, 64)
	group.Go(func() { r.read(ctx, resume.From, in) })
	// The writer outlives the fold, so that what is known at the end is written.
	writing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group.Go(func() { r.writer.run(writing) })
	return r.consume(ctx, resume, in)
}

// resume finds where to read from: the checkpoint, unless the log is another one
// than it was written for.
func (r *Recognizer) resume(ctx context.Context) (checkpoint, error) {
	for backoff := 100 * time.Millisecond; ; backoff = min(backoff*2, 5*time.Second) {
		at, err := loadCheckpoint(ctx, r.cfg.Store, r.cfg.Node)
		if err == nil && at.Sequence > 0 {
			var first, last uint64
			first, last, err = r.cfg.Log.Bounds(ctx)
			if err == nil && last < at.Sequence {
				r.cfg.Logger.Warn("log is shorter than what was read of it: reading it whole", "last", last, "read", at.Sequence)
				at, first = checkpoint{}, 0
			}
			at.From = max(at.From, first) // the log may have let go of what was read long ago
		}
		if err == nil {
			return at, nil
		}
		if ctx.Err() != nil {
			return checkpoint{}, ctx.Err()
		}
		r.cfg.Logger.Warn("find where to read from", "error", err)
		if err := pause(ctx, backoff); err != nil {
			return checkpoint{}, err
		}
	}
}

// opened is a message with the batch that it held.
type opened struct {
	message stream.Message
	batch   *bocage.Batch
	err     error
}

// read follows the log and opens batches, ahead of the fold by a bounded number.
func (r *Recognizer) read(ctx context.Context, from uint64, out chan<- opened) {
	backoff := 100 * time.Millisecond
	for ctx.Err() == nil {
		err := r.cfg.Log.Read(ctx, from, func(m stream.Message) error {
			backoff = 100 * time.Millisecond
			o := opened{message: m}
			o.batch, o.err = r.cfg.Bundle(m.Data)
			o.message.Data = nil
			select {
			case out <- o:
				from = m.Sequence + 1
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, stream.ErrGone):
			first, _, bounds := r.cfg.Log.Bounds(ctx)
			if bounds == nil && first > from {
				r.counts.gone.Add(first - from)
				r.cfg.Logger.Warn("messages left the log before they were read", "from", from, "to", first-1)
				from = first
				continue
			}
			from = 0
		default:
			r.cfg.Logger.Warn("read the log of events", "from", from, "error", err)
		}
		if pause(ctx, backoff) != nil {
			return
		}
		backoff = min(backoff*2, 5*time.Second)
	}
}

// consume folds messages and posts incidents. Up to the checkpoint it only
// remembers: what follows from those messages is in the store.
func (r *Recognizer) consume(ctx context.Context, at checkpoint, in <-chan opened) error {
	marks := newMarks(r.cfg.Horizon, at)
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			r.post(r.cfg.Now(), true)
			r.writer.mark(marks.checkpoint())
			return ctx.Err()
		case o := <-in:
			r.fold.message(o)
			marks.passed(o.message)
			r.sequence.Store(o.message.Sequence)
			r.behind.Store(int64(time.Since(o.message.Time)))
			if o.message.Sequence >= at.Sequence {
				r.post(r.cfg.Now(), false)
			}
		case <-tick.C:
			if now := r.cfg.Now(); r.sequence.Load() >= at.Sequence {
				r.fold.tick(now)
				r.post(now, false)
				r.writer.mark(marks.checkpoint())
			}
		}
	}
}

// post hands incidents that changed to the writer.
func (r *Recognizer) post(now time.Time, all bool) {
	for _, p := range r.fold.posts(now, all) {
		r.writer.add(p)
	}
}
