// Package policy turns what is declared into what is enforced: it watches the
// store, compiles, proves and tests, brings new policy into force by the stages of
// the Rollout, and signs one ruleset per host, numbered by generation.
//
// It promises:
//
//   - A generation whose proofs or blocking tests fail is recorded and never published.
//   - Generation numbers only grow, also across restarts and with several controllers.
//   - An older generation never replaces a newer one.
//   - A change that only tightens (a quarantine, a threat condition) waits neither for
//     other changes, nor for a rollout, nor for the complete proofs (tightening.go).
//   - Rollouts are about policy: what people declare comes into force by stages. The
//     environment (the inventory, threat conditions, quarantines) is always today's.
//   - A host is given a new ruleset only if its content has changed.
//
// The compiler, the proofs, simulation and explanations are in packages below; this one
// does the input and output. It never writes a declaration: of resources it writes
// Generations and Events, and the status of the kinds that it reads.
//
// Locks: whoever holds recalled.mu may take mirror.mu. No other two of this
// package's locks are ever held together.
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
	"golang.org/x/sync/singleflight"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/store"
)

// Config is what a Controller needs.
type Config struct {
	Store store.Store
	// Sign puts a payload into a signed envelope of a kind.
	Sign func(kind string, payload []byte) ([]byte, error)
	// Notify tells agents that there may be something new for them. It must not block.
	// Nil tells nobody.
	Notify func(generation uint64)
	// Edges returns recorded flows, for plans and rollouts to replay. Nil replays
	// none.
	Edges func(ctx context.Context) ([]bocage.Edge, error)
	// Usage returns how often each decision was used by flows that were reported
	// in a time. Nil counts nothing.
	Usage func(ctx context.Context, since, until time.Time) ([]DecisionUse, error)
	// Now is the time that controllers agree on; nil is this machine's.
	Now func() time.Time
	// Node names this controller in events, Instance its history, for good.
	Node     string
	Instance string
	// Numbered is what [Policy.Numbered] returned in the last process of this
	// controller.
	Numbered uint64
	// TwoPerson says that changes of guardrails need two people: then a rollback, which
	// one person can ask for, leaves guardrails as they are.
	TwoPerson bool
	Logger    *slog.Logger
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
	// settleTime is how long ordinary changes are gathered, settleMost how long a
	// stream of them may put off compiling. What tightens does not wait.
	settleTime = 5 * time.Millisecond
	settleMost = 100 * time.Millisecond
	// retryFirst and retryMost bound the pauses between attempts while the
	// store does not answer.
	retryFirst = 50 * time.Millisecond
	retryMost  = 5 * time.Second
	// longestSleep is how long the builder sleeps at most before it looks at the clock,
	// idleWakeup after how long it takes a turn although nothing is about to end.
	longestSleep = time.Minute
	idleWakeup   = 24 * time.Hour
	// enforcedGrace is how long a declaration that was enforced before still counts as
	// enforced while agents fetch a new generation.
	enforcedGrace = 5 * time.Second
)

// Policy runs the policy room. Several may share one store.
type Policy struct {
	store    store.Store
	sign     func(kind string, payload []byte) ([]byte, error)
	notify   func(generation uint64)
	edges    func(ctx context.Context) ([]bocage.Edge, error)
	usage    func(ctx context.Context, since, until time.Time) ([]DecisionUse, error)
	node     string
	instance string
	// twoPerson says that a rollback leaves guardrails as they are.
	twoPerson bool
	now       func() time.Time
	logger    *slog.Logger
	// prove and worse (see prove.Prover) run one at a time, started by the builder.
	prove func(compile.Input, *bocage.Ruleset) []bocage.Proof
	worse func(failed []bocage.Proof, before, after compile.Input) []bocage.Proof
	// tightens is the quick proof before something goes ahead of its other proofs.
	tightens func(before *bocage.Ruleset, in compile.Input, rs *bocage.Ruleset) []bocage.Proof

	mirror             *mirror
	report             chan struct{}           // holds a token when statuses may have to change
	replays            chan struct{}           // holds a token when recorded flows may have to be replayed
	current            atomic.Pointer[outcome] // what is declared now, compiled
	active             atomic.Pointer[outcome] // what is in force
	served             atomic.Pointer[served]  // what hosts are answered from
	replayed           atomic.Pointer[trial]   // of the last candidate
	uses               atomic.Pointer[useBook] // what is known of usage
	tested             atomic.Pointer[testRun] // the last run of tests besides those of the builder
	formerDecisions    decisionMemory          // of generations that were in force
	candidateDecisions decisionMemory          // of candidates
	counters           counters
	numbered           atomic.Uint64 // the highest number that this controller knows of
	notices            *noticeBoard
	recalled           recalled
	planned            planProver
	deliveries         deliveries // what hosts were given last
	parcels            parcels    // what hosts fetch in pieces
	// Equal questions that arrive while an answer is being made share that answer.
	// The keys hold what agents sent, so each kind of question has a group of its own.
	answering, repacking singleflight.Group

	mu       sync.Mutex    // guards the fields below
	advanced chan struct{} // closed, and replaced, when served changes

	places *placements // of the reporter alone
	// absentFrom is when workloads may be told again that their host is absent; of the reporter.
	absentFrom time.Time

	// Of the builder alone.
	snapshots     snapshotIndex
	compilers     [2]*policyCompiler // of what is declared, and of what is in force if that is another
	policies      map[string]heldPolicy
	swept         bool
	proving       *proving       // what is being proved
	proved        []*proving     // what was proved last
	provedDigests []provedDigest // their results, and those of more runs
	wentAhead     bool           // the last turn was a tightening that went ahead
	builtFor      time.Time      // the moment that the last turn was for
	built         chan struct{}  // holds a token when a build is over
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
	if config.Now == nil {
		config.Now = time.Now
	}
	prover := new(prove.Prover)
	p := &Policy{
		store: config.Store, sign: config.Sign, notify: config.Notify, edges: config.Edges, usage: config.Usage, node: config.Node, instance: config.Instance, now: config.Now, twoPerson: config.TwoPerson,
		logger: config.Logger, prove: prover.Prove, worse: prover.Worse, tightens: prove.Tightening,
		mirror: newMirror(), report: make(chan struct{}, 1), replays: make(chan struct{}, 1),
		advanced:  make(chan struct{}),
		built:     make(chan struct{}, 1),
		compilers: [2]*policyCompiler{newPolicyCompiler(), newPolicyCompiler()}, policies: map[string]heldPolicy{},
	}
	p.numbered.Store(config.Numbered)
	p.notices = newNoticeBoard(config.Store, config.Node, config.Logger)
	p.mirror.onOther = func(kind bocage.Kind) {
		wake(p.report)
		if s := p.served.Load(); kind.Name == "Host" && s != nil && (s.record.Candidate != nil || !s.record.ConfirmBy.IsZero()) {
			wake(p.mirror.changed) // a rollout depends on what hosts report
			wake(p.replays)
		}
	}
	return p, nil
}

// Run works until ctx ends.
func (p *Policy) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.follow(ctx) })
	group.Go(func() error { return p.followRecord(ctx) })
	group.Go(func() error { return p.build(ctx) })
	group.Go(func() error { return p.collectGarbage(ctx) })
	group.Go(func() error { return p.replayFlows(ctx) })
	group.Go(func() error { return p.reportStatuses(ctx) })
	group.Go(func() error { return p.countUsage(ctx) })
	group.Go(func() error { return p.notices.run(ctx) })
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("run policy: %w", err)
	}
	return nil
}

// followRecord wakes the builder when another controller, or a person through one,
// changed what is in force.
func (p *Policy) followRecord(ctx context.Context) error {
	pause := retryFirst
	for {
		w, err := p.store.Watch(ctx, recordKey, 0)
		if err == nil {
			wake(p.mirror.changed) // whatever was missed
			for e := range w.Events() {
				pause = retryFirst
				if s := p.served.Load(); !e.Progress && (s == nil || e.Revision > s.revision) {
					wake(p.mirror.changed)
				}
			}
			err = w.Err()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.logger.WarnContext(ctx, "watch of what is in force broke", slog.Any("error", err), slog.Duration("retry", pause))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMost)
	}
}

// build compiles whenever an input changed or expired.
func (p *Policy) build(ctx context.Context) error {
	defer func() {
		if p.proving != nil {
			<-p.proving.done
		}
	}()
	pause := retryFirst
	var again <-chan time.Time
	var due time.Time // zero: as soon as again says so
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.mirror.changed:
			if err := p.gather(ctx); err != nil {
				return err
			}
		case <-again:
			if p.now().Before(due) && !p.wentBack() {
				again = time.After(p.until(due))
				continue
			}
		case <-p.proofDone():
		}
		next, err := p.buildOnce(ctx)
		wake(p.built)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errInterrupted):
			due, again, pause = time.Time{}, time.After(0), retryFirst
		case err != nil:
			p.counters.failures.Add(1)
			p.snapshots.known = false
			if !errors.Is(err, store.ErrConflict) && !errors.Is(err, errBehind) {
				p.logger.WarnContext(ctx, "publish policy", slog.Any("error", err), slog.Duration("retry", pause))
			} else if err := p.resync(ctx); err != nil {
				p.logger.WarnContext(ctx, "read declarations again", slog.Any("error", err), slog.Duration("retry", pause))
			}
			due, again = time.Time{}, time.After(pause)
			pause = min(2*pause, retryMost)
		default:
			if next.IsZero() {
				next = p.now().Add(idleWakeup) // the time may go back to when something had not ended
			}
			due, again, pause = next, time.After(p.until(next)), retryFirst
		}
	}
}

// wentBack reports that the time is well before the moment of the last build: a clock was
// wrong, and that build left out things that have not ended yet.
func (p *Policy) wentBack() bool { return p.builtFor.Sub(p.now()) > clockTolerance }

// TimeMoved tells the builder that the agreed time has jumped.
func (p *Policy) TimeMoved() { wake(p.mirror.changed) }

// until is how long the builder sleeps before a moment. If that is far it sleeps less and
// looks again, because the clock may be set meanwhile.
func (p *Policy) until(moment time.Time) time.Duration {
	return min(max(moment.Sub(p.now()), 0), longestSleep)
}

// gather waits until changes settle, unless one of them tightens.
func (p *Policy) gather(ctx context.Context) error {
	latest := time.After(settleMost)
	for !p.mirror.urgent() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.mirror.changed:
		case <-time.After(settleTime):
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

func wake(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default: // a token is there already
	}
}

// counters count what the controller did.
type counters struct {
	compiled, published, ahead, refuted, blocked, ended, rolledBack, confirmed, failures, relists, statuses, signed, pieces, replayed atomic.Uint64
}

// Counters is what a controller did since it started.
type Counters struct {
	Compiled   uint64 // compilations
	Published  uint64 // generations that came into force
	Ahead      uint64 // of these: ahead of their proofs, since they only tighten
	Refuted    uint64 // of these: of which a proof failed then
	Blocked    uint64 // generations that a proof or a test held back
	Ended      uint64 // rollouts that came to nothing
	RolledBack uint64 // times that an older policy came back into force
	Confirmed  uint64 // generations that a person confirmed here
	Failures   uint64 // attempts that ended in an error and were repeated
	Relists    uint64 // watches that broke
	Statuses   uint64 // status writes
	Signed     uint64 // envelopes for hosts
	Pieces     uint64 // pieces of large ones that hosts fetched
	Replayed   uint64 // recorded edges that were run on a candidate
	Noticed    uint64 // events written
	Unnoticed  uint64 // events that found no place
}

// Counters returns what the controller did so far.
func (p *Policy) Counters() Counters {
	c := &p.counters
	return Counters{
		Compiled: c.compiled.Load(), Published: c.published.Load(), Ahead: c.ahead.Load(), Refuted: c.refuted.Load(), Blocked: c.blocked.Load(), Ended: c.ended.Load(),
		RolledBack: c.rolledBack.Load(), Confirmed: c.confirmed.Load(), Failures: c.failures.Load(), Relists: c.relists.Load(),
		Statuses: c.statuses.Load(), Signed: c.signed.Load(), Pieces: c.pieces.Load(), Replayed: c.replayed.Load(),
		Noticed: p.notices.written.Load(), Unnoticed: p.notices.shed.Load(),
	}
}
