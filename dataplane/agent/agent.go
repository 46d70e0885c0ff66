// Package agent keeps a host's enforcement points as its ruleset wants them.
//
// Its core is a pure fold: a ruleset and the links that exist give the
// attachments that there should be. Its loop applies rulesets in the order of
// their generations, goes back when it is told that one was not confirmed, has
// candidates evaluated, attaches and detaches as links come and go, and hands on
// events. What fails is logged, told in Status, and tried again.
//
// It never takes enforcement off because it does not know better: without a
// ruleset, what an earlier process attached stays as it is.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/dataplane/discover"
	"bocage.dev/bocage/host"
)

// Dataplane is what the agent steers.
type Dataplane interface {
	Generation() uint64
	Apply(*bocage.Ruleset) error
	// Amend puts in force what a change makes of the ruleset in force, which after
	// makes; once it is in force, what only says so may ask for it.
	Amend(change dataplane.Change, after func() *bocage.Ruleset) error
	Revert(*bocage.Ruleset) error
	Shadow(*bocage.Ruleset) error
	Attach(dataplane.Attachment) error
	Detach(ifindex uint32) error
	Attached() []dataplane.Attachment
	Repair() (done []string, err error)
	AttachWire(dataplane.Wire) error
	DetachWire(inside uint32) error
	Wires() []dataplane.Wire
	Gone(ifindex uint32) bool
	Run(ctx context.Context, each func([]bocage.FlowEvent, []bocage.Cadence)) error
}

// Rulesets gives verified rulesets for this host, newest first come.
type Rulesets interface {
	// Next blocks until there is something to do. If the step before failed it is
	// given again, or what has replaced it.
	Next(ctx context.Context, failed bool) (Step, error)
}

// Step is one change of what the dataplane goes by.
type Step struct {
	What    Verb
	Ruleset *bocage.Ruleset // of Shadow it may be nil: no candidate is evaluated
	// Change, if there is one, makes of the ruleset of the last step what After
	// returns, which then stands in the place of Ruleset.
	Change *dataplane.Change
	After  func() *bocage.Ruleset
}

// Verb is what is done with a ruleset.
type Verb string

// Verbs.
const (
	Apply  Verb = "apply"  // enforce it; never an older one than before
	Revert Verb = "revert" // enforce it again, in the place of one that nobody confirmed
	Shadow Verb = "shadow" // evaluate it beside the one in force
)

// Config is what an agent needs. Logger may be nil, the rest of the first block
// may not.
type Config struct {
	Host      string
	Dataplane Dataplane
	Rulesets  Rulesets
	// Links calls each with all links at the start and after every change, as
	// host.FollowLinks does.
	Links func(ctx context.Context, each func([]host.Link) error) error
	// Publish hands events on. While it blocks, events wait in the kernel.
	Publish func(ctx context.Context, events []bocage.FlowEvent, cadences []bocage.Cadence)

	// Watch names bridges. A veth or tap that joins one, or one of the networks that
	// Discovered tells of, becomes an enforcement point even if no ruleset names it:
	// nothing vouches for it. Uplinks are interfaces that never become one in this way.
	Watch, Uplinks []string

	Logger *slog.Logger
}

// Agent is one host's loop.
type Agent struct {
	cfg Config
	log *slog.Logger
	// changed wakes the loop; one waiting notice stands for any number.
	changed chan struct{}

	// mu guards what follows.
	mu      sync.Mutex
	ruleset *bocage.Ruleset // applied by this process
	links   []host.Link
	known   bool // links have been listed
	looks   int  // how often they were
	found   discover.Found
	status  Status

	seen map[uint32]life // of what is attached, by index; reconcile's alone
}

// life is what told the link behind an index from others that bore it.
type life struct{ born, doubts uint64 }

// Status is what an agent can say of its enforcement.
type Status struct {
	// Generation in force in the kernel.
	Generation uint64
	// Attached enforcement points, and Missing ports whose interface does not exist.
	Attached []dataplane.Attachment
	Missing  []bocage.Port
	// Wires that stand, and Cut ones that lack an interface.
	Wires []dataplane.Wire
	Cut   []bocage.Wire
	// Unfit ports are on interfaces that carry no frames.
	Unfit []bocage.Port
	// NotApplied is the generation that could not be put in force, or 0.
	NotApplied uint64
	// Repaired counts what was not in its place any more and was put back.
	Repaired uint64
	// Faults that stand: what could not be applied or attached, and why, and for a
	// while what had to be repaired.
	Faults []string
}

// New returns an agent that does nothing until it runs.
func New(cfg Config) (*Agent, error) {
	var faults []error
	for name, absent := range map[string]bool{"Dataplane": cfg.Dataplane == nil, "Rulesets": cfg.Rulesets == nil,
		"Links": cfg.Links == nil, "Publish": cfg.Publish == nil} {
		if absent {
			faults = append(faults, fmt.Errorf("%s is missing", name))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("new agent: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Agent{cfg: cfg, log: cfg.Logger.With("host", cfg.Host), changed: make(chan struct{}, 1)}, nil
}

// Run keeps the host as it should be until the context ends. Enforcement stays.
func (a *Agent) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return a.cfg.Dataplane.Run(ctx, func(events []bocage.FlowEvent, cadences []bocage.Cadence) {
			a.cfg.Publish(ctx, events, cadences)
		})
	})
	group.Go(func() error { return a.cfg.Links(ctx, a.sawLinks) })
	group.Go(func() error { return a.follow(ctx) })
	group.Go(func() error { return a.reconcile(ctx) })
	group.Go(func() error { return a.keep(ctx) })
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("agent: %w", err)
	}
	return ctx.Err()
}

// Status says how things stand.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.status
	s.Generation = a.cfg.Dataplane.Generation()
	s.Attached, s.Wires = a.cfg.Dataplane.Attached(), a.cfg.Dataplane.Wires()
	s.Missing, s.Unfit, s.Cut = slices.Clone(s.Missing), slices.Clone(s.Unfit), slices.Clone(s.Cut)
	s.Faults = slices.Clone(s.Faults)
	return s
}

// Waits before trying again, doubling from the first to the last.
const (
	retryFirst = time.Second
	retryLast  = 30 * time.Second
)

// follow takes steps as they come. While one cannot be applied the one in
// force stays, and it is tried again, or what has replaced it.
func (a *Agent) follow(ctx context.Context) error {
	failed := false
	for wait := retryFirst; ; {
		step, err := a.cfg.Rulesets.Next(ctx, failed)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			err = a.take(step)
			failed = err != nil
		} else {
			a.log.Warn("no ruleset", "error", err, "retry", wait)
		}
		if err == nil {
			wait = retryFirst
			continue
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, retryLast)
	}
}

// take does a step. A candidate that cannot be evaluated is no reason to try again:
// nothing depends on it, and the fault tells.
func (a *Agent) take(step Step) error {
	if step.What == Shadow {
		err := a.cfg.Dataplane.Shadow(step.Ruleset)
		if err != nil {
			a.log.Error("candidate not evaluated", "error", err)
		}
		a.mu.Lock()
		a.status.Faults = replaceFault(a.status.Faults, faultShadow, err)
		a.mu.Unlock()
		return nil
	}
	err := a.put(&step)
	a.mu.Lock()
	a.status.NotApplied = step.Ruleset.Generation
	if err == nil {
		a.ruleset, a.status.NotApplied = step.Ruleset, 0
	}
	a.status.Faults = replaceFault(a.status.Faults, faultApply, err)
	a.mu.Unlock()
	if err != nil {
		a.log.Error("ruleset not applied", "generation", step.Ruleset.Generation, "error", err)
		return err
	}
	a.wake()
	return nil
}

// put brings a step's ruleset into force: by what it changes, if that is known, else
// whole. What a change does not lead to, the whole does. The step has its ruleset
// afterwards.
func (a *Agent) put(step *Step) error {
	switch {
	case step.What == Revert:
		return a.cfg.Dataplane.Revert(step.Ruleset)
	case step.Change == nil:
		return a.cfg.Dataplane.Apply(step.Ruleset)
	}
	err := a.cfg.Dataplane.Amend(*step.Change, step.After)
	step.Ruleset = step.After()
	if err == nil {
		return nil
	}
	a.log.Warn("change not applied: applying the whole ruleset", "generation", step.Ruleset.Generation, "error", err)
	return a.cfg.Dataplane.Apply(step.Ruleset)
}

func (a *Agent) sawLinks(links []host.Link) error {
	a.mu.Lock()
	a.links, a.known = slices.Clone(links), true
	a.looks++
	a.mu.Unlock()
	a.wake()
	return nil
}

// Discovered tells the agent what stands behind which interface.
func (a *Agent) Discovered(found discover.Found) {
	a.mu.Lock()
	a.found = found
	a.mu.Unlock()
	a.wake()
}

func (a *Agent) wake() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// reconcile attaches and detaches on every change, and again while something
// fails.
func (a *Agent) reconcile(ctx context.Context) error {
	retry := time.NewTimer(retryFirst)
	defer retry.Stop()
	for wait := retryFirst; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.changed:
			wait = retryFirst
		case <-retry.C:
			wait = min(2*wait, retryLast)
		}
		if a.reconcileOnce() {
			retry.Stop()
		} else {
			retry.Reset(wait)
		}
	}
}

// reconcileOnce reports whether everything is as it should be.
func (a *Agent) reconcileOnce() bool {
	a.mu.Lock()
	ruleset, links, known, found, look := a.ruleset, a.links, a.known, a.found, a.looks
	a.mu.Unlock()
	if !known {
		return true
	}
	have, faults := a.standing(links)
	want := Fold(Scene{Ruleset: ruleset, Links: links, Watch: Watch{Bridges: a.cfg.Watch, Uplinks: a.cfg.Uplinks}, Found: found, Have: have})
	attach, detach := difference(want.Attachments, have, links, ruleset != nil)
	// What nothing stands in front of comes first: until something does, what is
	// behind it is not governed. The rest waits for links that come meanwhile.
	fresh, rest := apart(attach, have)
	for _, attachment := range fresh {
		faults = append(faults, a.attach(attachment))
	}
	wire, unwire := rewire(want.Wires, a.cfg.Dataplane.Wires(), links, ruleset != nil)
	for _, inside := range unwire {
		faults = append(faults, a.cfg.Dataplane.DetachWire(inside))
	}
	for i, attachment := range rest {
		if i > 0 && a.outdated(look) {
			break
		}
		faults = append(faults, a.attach(attachment))
	}
	for i, ifindex := range detach {
		if i > 0 && a.outdated(look) {
			break
		}
		faults = append(faults, a.cfg.Dataplane.Detach(ifindex))
	}
	for _, w := range wire {
		faults = append(faults, a.cfg.Dataplane.AttachWire(w))
	}
	err := errors.Join(faults...)
	if err != nil {
		a.log.Error("enforcement points not as they should be", "error", err)
	}
	a.mu.Lock()
	a.status.Missing, a.status.Unfit, a.status.Cut = want.Missing, want.Unfit, want.Cut
	a.status.Faults = replaceFault(a.status.Faults, faultAttach, err)
	a.mu.Unlock()
	return err == nil
}

// How often the kernel's side is looked at, and how long what had to be repaired
// is told.
const (
	keepEvery = time.Second
	tellFor   = 5 * time.Minute
)

// keep looks whether what enforces is still in its place, and puts it back.
func (a *Agent) keep(ctx context.Context) error {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		done, err := a.cfg.Dataplane.Repair()
		if err != nil {
			a.log.Error("enforcement points not repaired", "error", err)
		}
		a.mu.Lock()
		a.status.Faults = replaceFault(a.status.Faults, faultRepair, err)
		switch {
		case len(done) > 0:
			last = time.Now()
			a.status.Repaired += uint64(len(done))
			a.status.Faults = replaceFault(a.status.Faults, faultTampered,
				fmt.Errorf("%s; it was put back at %s, and somebody did that", strings.Join(done, ", "), last.UTC().Format(time.RFC3339)))
		case time.Since(last) > tellFor:
			a.status.Faults = replaceFault(a.status.Faults, faultTampered, nil)
		}
		a.mu.Unlock()
	}
}

// attach attaches; a link that has gone meanwhile is about to be missed.
func (a *Agent) attach(attachment dataplane.Attachment) error {
	err := a.cfg.Dataplane.Attach(attachment)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		a.log.Debug("interface went before it was attached", "interface", attachment.Port.Interface, "ifindex", attachment.Ifindex)
		return nil
	}
	return err
}

// apart tells interfaces that nothing stands in front of from the others.
func apart(attach, have []dataplane.Attachment) (fresh, rest []dataplane.Attachment) {
	for _, a := range attach {
		if slices.ContainsFunc(have, func(h dataplane.Attachment) bool { return h.Ifindex == a.Ifindex }) {
			rest = append(rest, a)
		} else {
			fresh = append(fresh, a)
		}
	}
	return fresh, rest
}

// outdated says whether the links were listed anew since a look at them. Then the
// loop is about to come by again.
func (a *Agent) outdated(look int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.looks != look
}

// standing takes off what stood in front of links that have gone, where others bear
// their numbers by now, and returns the rest.
func (a *Agent) standing(links []host.Link) (have []dataplane.Attachment, faults []error) {
	lives := make(map[uint32]life, len(links))
	for _, l := range links {
		lives[l.Index] = life{l.Born, l.Doubts}
	}
	for _, attachment := range a.cfg.Dataplane.Attached() {
		ifindex := attachment.Ifindex
		now, exists := lives[ifindex]
		was, looked := a.seen[ifindex]
		switch {
		case !exists || looked && was == now:
		case looked && was.born != now.born || a.cfg.Dataplane.Gone(ifindex):
			a.log.Info("interface of this number is another one now", "ifindex", ifindex, "interface", attachment.Port.Interface)
			if err := a.cfg.Dataplane.Detach(ifindex); err != nil {
				faults = append(faults, err)
				delete(lives, ifindex) // to be done again
			}
			continue
		}
		have = append(have, attachment)
	}
	a.seen = lives
	return have, faults
}

// What a fault begins with, by which it is replaced when it is over.
const (
	faultApply    = "apply: "
	faultAttach   = "attach: "
	faultShadow   = "candidate: "
	faultRepair   = "repair: "
	faultTampered = "tampered with: "
)

func replaceFault(faults []string, kind string, err error) []string {
	faults = slices.DeleteFunc(slices.Clone(faults), func(f string) bool { return f[:min(len(kind), len(f))] == kind })
	if err != nil {
		faults = append(faults, kind+err.Error())
	}
	return faults
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
