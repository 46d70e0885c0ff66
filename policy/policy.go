// Package policy turns what is declared into what is enforced: it watches the
// store, compiles, proves, and publishes one signed ruleset per host, numbered
// by generation.
//
// It promises that a generation whose proofs fail is recorded and never
// published, that generation numbers only grow, also across restarts and with
// several controllers at work, that nothing older ever replaces anything newer,
// and that a change which tightens (a quarantine, a threat condition) does not
// wait for others. The compiler, the proofs and explanations live in packages
// below; this one does the input and output.
//
// It never writes a declaration: of resources it writes Generations, and the
// conditions in the status of the kinds that it reads.
package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/store"
)

// Config is what a Controller needs.
type Config struct {
	Store store.Store
	// Sign puts a payload into a signed envelope of a kind.
	Sign func(kind string, payload []byte) ([]byte, error)
	// Notify tells agents that rulesets of a generation are there. It must not
	// block. Nil tells nobody.
	Notify func(generation uint64)
	// Edges returns recorded flows for plans to replay. Nil replays none.
	Edges  func(ctx context.Context) ([]bocage.Edge, error)
	Logger *slog.Logger
}

// Validate says every fault of the configuration.
func (c Config) Validate() error {
	var faults []error
	if c.Store == nil {
		faults = append(faults, errors.New("policy needs a Store"))
	}
	if c.Sign == nil {
		faults = append(faults, errors.New("policy needs a way to Sign"))
	}
	return errors.Join(faults...)
}

const (
	// settle is how long ordinary changes are gathered, settleMost how long a
	// stream of them may put off compiling. What tightens does not wait.
	settle     = 5 * time.Millisecond
	settleMost = 100 * time.Millisecond
	// retryFirst and retryMost bound the pauses between attempts while the
	// store does not answer.
	retryFirst = 50 * time.Millisecond
	retryMost  = 5 * time.Second
	// patience is how long a declaration that was enforced before counts as
	// enforced while agents take a new generation.
	patience = 5 * time.Second
)

// Policy runs the policy room. Several may share one store.
type Policy struct {
	store  store.Store
	sign   func(kind string, payload []byte) ([]byte, error)
	notify func(generation uint64)
	edges  func(ctx context.Context) ([]bocage.Edge, error)
	logger *slog.Logger
	prove  func(compile.Input, *bocage.Ruleset) []bocage.Proof

	mirror   *mirror
	report   chan struct{}           // holds a token when statuses may have to change
	current  atomic.Pointer[outcome] // the last compilation
	active   atomic.Pointer[outcome] // the last that was published
	past     past
	counters counters

	// Of the builder alone.
	since          map[string]uint64 // by key of an object: the generation that first had it as it is
	compiled       map[string]digest // fingerprints as they were in that generation
	published      map[string]bool   // hosts with a ruleset in the store
	publishedKnown bool
}

// outcome is one compilation with what came of it. Nobody changes it.
type outcome struct {
	input    compile.Input
	output   compile.Output
	view     view
	proofs   []bocage.Proof
	number   uint64
	blocked  bool
	activeNo uint64            // the generation in force, which is another if blocked
	since    map[string]uint64 // by key
	at       time.Time
	judge    func() *explain.Judge
}

// New makes the policy room of one controller.
func New(config Config) (*Policy, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Notify == nil {
		config.Notify = func(uint64) {}
	}
	p := &Policy{
		store: config.Store, sign: config.Sign, notify: config.Notify, edges: config.Edges, logger: config.Logger, prove: prove.Prove,
		mirror: newMirror(), report: make(chan struct{}, 1),
		since: map[string]uint64{}, compiled: map[string]digest{}, published: map[string]bool{},
	}
	p.mirror.onOther = func() { wake(p.report) }
	return p, nil
}

// Run works until ctx ends.
func (p *Policy) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.follow(ctx) })
	group.Go(func() error { return p.build(ctx) })
	group.Go(func() error { return p.reportStatuses(ctx) })
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("run policy: %w", err)
	}
	return nil
}

// build compiles whenever an input changed or expired.
func (p *Policy) build(ctx context.Context) error {
	pause := retryFirst
	var expiry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.mirror.changed:
			if err := p.gather(ctx); err != nil {
				return err
			}
		case <-expiry:
		}
		expires, err := p.compileOnce(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			p.counters.failures.Add(1)
			if !errors.Is(err, store.ErrConflict) && !errors.Is(err, errBehind) {
				p.logger.WarnContext(ctx, "publish policy", slog.Any("error", err), slog.Duration("retry", pause))
			} else if err := p.resync(ctx); err != nil {
				p.logger.WarnContext(ctx, "read declarations again", slog.Any("error", err), slog.Duration("retry", pause))
			}
			expiry = time.After(pause)
			pause = min(2*pause, retryMost)
		case expires.IsZero():
			expiry, pause = nil, retryFirst
		default:
			expiry, pause = time.After(time.Until(expires)), retryFirst
		}
	}
}

// gather waits until changes settle, unless one of them tightens.
func (p *Policy) gather(ctx context.Context) error {
	latest := time.After(settleMost)
	for !p.mirror.urgent() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.mirror.changed:
		case <-time.After(settle):
			return nil
		case <-latest:
			return nil
		}
	}
	return nil
}

// errBehind means that another controller published from newer declarations
// than this one has seen.
var errBehind = errors.New("another controller has seen newer declarations")

// compileOnce compiles what the mirror holds and publishes what is new. It
// returns when to compile again although nothing changed.
func (p *Policy) compileOnce(ctx context.Context) (time.Time, error) {
	v := p.mirror.view()
	record, recordRevision, err := p.readRecord(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if record.Inputs > v.revision {
		return time.Time{}, errBehind
	}
	started := time.Now()
	input := v.input
	input.Now, input.Generation = started, record.Number+1
	output := compile.Compile(input)
	p.counters.compiled.Add(1)
	o := &outcome{input: input, output: output, view: v, number: input.Generation, activeNo: record.Active, at: started}
	o.judge = sync.OnceValue(func() *explain.Judge { return explain.NewJudge(o.input) })
	digest := output.Ruleset.Digest
	switch {
	case digest == record.Digest && record.Complete:
		// In force already: only hosts that came since lack their part.
		output.Ruleset.Generation, o.number = record.Active, record.Active
		err = p.publishMissing(ctx, o, record, recordRevision)
	default:
		o.proofs = p.prove(input, output.Ruleset)
		if failed := prove.Failed(o.proofs); len(failed) > 0 {
			err = p.hold(ctx, o, record, recordRevision, failed[0])
		} else {
			err = p.publish(ctx, o, record, recordRevision, time.Since(started))
		}
	}
	if err != nil {
		return time.Time{}, err
	}
	p.settleOutcome(o)
	return output.Expires, nil
}

// hold keeps back an outcome whose proofs fail. What cuts workloads off reaches
// the generation in force all the same.
func (p *Policy) hold(ctx context.Context, o *outcome, last record, was store.Revision, failed bocage.Proof) error {
	o.blocked = true
	if o.output.Ruleset.Digest == last.Blocked {
		o.number = last.Number
	} else {
		p.counters.blocked.Add(1)
		p.logger.ErrorContext(ctx, "generation blocked by a failed proof", slog.Uint64("generation", o.number),
			slog.String("statement", failed.Statement), slog.String("counterexample", failed.Counterexample))
		var err error
		if last, was, err = p.recordBlocked(ctx, o, last, was); err != nil {
			return err
		}
	}
	return p.tighten(ctx, o, last, was)
}

// settleOutcome makes the outcome the one that explanations and statuses tell of.
func (p *Policy) settleOutcome(o *outcome) {
	if !o.blocked {
		for key, print := range o.view.prints {
			if p.compiled[key] != print {
				p.compiled[key], p.since[key] = print, o.number
			}
		}
		for key := range p.compiled {
			if _, there := o.view.prints[key]; !there {
				delete(p.compiled, key)
				delete(p.since, key)
			}
		}
		o.activeNo = o.number
		if last := p.active.Swap(o); last != nil && last.number != o.number {
			p.past.remember(last.output.Ruleset.Decisions)
		}
	}
	o.since = make(map[string]uint64, len(p.since))
	for key, number := range p.since {
		o.since[key] = number
	}
	p.current.Store(o)
	wake(p.report)
}

func wake(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default: // a token is there already
	}
}

// counters count what the controller did.
type counters struct {
	compiled, published, blocked, failures, relists, statuses atomic.Uint64
}

// Counters is what a controller did since it started.
type Counters struct {
	Compiled  uint64 // compilations
	Published uint64 // generations that became active
	Blocked   uint64 // generations that a proof held back
	Failures  uint64 // attempts that ended in an error and were repeated
	Relists   uint64 // watches that broke
	Statuses  uint64 // status writes
}

// Counters returns what the controller did so far.
func (p *Policy) Counters() Counters {
	return Counters{
		Compiled: p.counters.compiled.Load(), Published: p.counters.published.Load(), Blocked: p.counters.blocked.Load(),
		Failures: p.counters.failures.Load(), Relists: p.counters.relists.Load(), Statuses: p.counters.statuses.Load(),
	}
}
