package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/store"
)

// build is one turn of the builder: from the declarations and the agreed record of now
// to the next record.
type build struct {
	p        *Policy
	v        view
	spec     bocage.RolloutSpec
	now      time.Time // as controllers agree on it
	began    time.Time // by this machine
	was      record
	revision store.Revision // of was
	next     record
	notices  []notice
	prev     *served // was with its outcomes; nil if this process does not have them
	// lost are objects that cannot be read and of which no earlier version is known (see
	// unreadable.go).
	lost []unreadable

	before             *compile.Input // what the generation in force was made of; see readBefore
	live               *outcome       // what is declared, where it was compiled
	base, candidate    *outcome
	blocked            *outcome // a new generation that a proof or a test keeps back
	newBaseNumber      bool     // base needs a number of its own
	newCandidateNumber bool

	firstRevision store.Revision // revision as it was at the beginning
	inputs        store.Revision // declarations up to here are in
	ahead         bool           // this turn only tightens (see tightening.go)
	lateProofs    []*lateProofs  // to be reported of generations that went ahead
	moreToProve   bool           // newer declarations still have to be proved

	notified bool // agents were told to ask for something new
}

// buildOnce brings into force what should be in force now. It returns when to build
// again even if nothing changes. The steps:
//
//  1. mend: for objects that cannot be read, use their last known version (unreadable.go)
//  2. go ahead: changes that only tighten come into force before everything else, which
//     always has the next turn (tightening.go)
//  3. turn: advance or end rollouts, by people's requests, time and hosts' reports (record.go)
//  4. base, candidate: compile, prove and test both (proving.go)
//  5. place: decide which hosts get something new, and under which number (place.go)
//  6. write: one transaction, refused if another controller was faster (publish.go)
//  7. settle: answer hosts from the new record, and report
func (p *Policy) buildOnce(ctx context.Context) (time.Time, error) {
	mayGoAhead := !p.wentAhead // never twice in a row: everything else would wait for ever
	p.wentAhead = false
	if mayGoAhead {
		select {
		case <-p.mirror.tightening: // it is in the view
		default:
		}
	}
	p.collectProofs()
	b := &build{p: p, v: p.mirror.view(), began: time.Now()}
	var err error
	if b.was, b.revision, err = readRecord(ctx, p.store); err != nil {
		return time.Time{}, err
	}
	if again, err := p.continueNumbering(ctx, b.was); again || err != nil {
		return p.now(), err
	}
	b.now = b.was.moment(p.now())
	p.builtFor = b.now
	b.firstRevision = b.revision
	if b.was.Inputs > b.v.revision && b.was.Inputs < b.revision { // else it was written in another store
		return time.Time{}, errBehind
	}
	if !p.snapshots.known || p.snapshots.at != b.revision {
		if err := p.snapshots.load(ctx, p.store, b.revision); err != nil {
			return time.Time{}, err
		}
	}
	if s := p.served.Load(); s != nil && (s.revision == b.revision || sameButInputs(s.record, b.was)) {
		b.prev = s
		p.proofsFollow(s.revision, b.revision)
	}
	if err := b.mend(ctx); err != nil {
		return time.Time{}, err
	}
	b.spec, b.inputs = b.v.spec(), b.v.revision
	if b.prev == nil && b.adopt() {
		p.wentAhead = true
		b.settle(ctx)
		return b.now, nil
	}
	if mayGoAhead {
		if ahead, err := b.goAhead(ctx); ahead || err != nil {
			p.wentAhead = ahead
			return b.now, err
		}
	}
	b.next, b.notices = b.was.turn(b.v.policy.name(), b.spec, p.facts(b.was, b.v), b.now)
	if err := b.makeBase(ctx); err != nil {
		return time.Time{}, err
	}
	if err := b.makeCandidate(ctx); err != nil {
		return time.Time{}, err
	}
	b.place()
	if err := b.write(ctx); err != nil {
		return time.Time{}, err
	}
	if b.unchanged() {
		p.proofsFollow(b.firstRevision, b.revision)
	}
	b.settle(ctx)
	return b.again(), b.proveLater(ctx)
}

// compileNamed compiles a policy with today's environment: the declared policy, or one
// that is kept with an earlier generation.
func (b *build) compileNamed(ctx context.Context, name string) (*outcome, error) {
	if name == b.v.policy.name() {
		b.live = b.p.compilers[0].compile(b.p, b.v.input, b.v.policy, b.v.environment, b.was.Number+1, b.now)
		return b.live, nil
	}
	held, err := b.p.policyNamed(ctx, name)
	if pin := b.next.Pin; errors.Is(err, errNotKept) && pin != nil && pin.Kept != "" && pin.Policy == name {
		held, err = b.p.compose(ctx, *pin)
	}
	if err != nil {
		return nil, err
	}
	return b.p.compilers[1].compile(b.p, withPolicy(b.v.input, held.input), held.snapshot, b.v.environment, b.was.Number+1, b.now), nil
}

// heldPolicy is a policy in force that is not, or may soon not be, the declared one.
type heldPolicy struct {
	input    compile.Input
	snapshot *snapshot
}

// policyNamed finds a policy in memory, else in the store.
func (p *Policy) policyNamed(ctx context.Context, name string) (heldPolicy, error) {
	if held, known := p.policies[name]; known {
		return held, nil
	}
	list, known := p.snapshots.policyNamed(name)
	if !known {
		return heldPolicy{}, fmt.Errorf("find the policy in force: %w", errNotKept)
	}
	list.Environment = nil
	input, _, err := readSnapshot(ctx, p.store, list)
	if err != nil {
		return heldPolicy{}, err
	}
	s, err := namedSnapshot(list)
	if err != nil {
		return heldPolicy{}, err
	}
	held := heldPolicy{input, s}
	p.policies[name] = held
	return held, nil
}

// compose makes the policy of a rollback that keeps guardrails, which no generation
// had before. It is kept with the generation that it comes to.
func (p *Policy) compose(ctx context.Context, pin pin) (heldPolicy, error) {
	to, there := p.snapshots.lists[pin.Number]
	kept, known := p.snapshots.policyNamed(pin.Kept)
	if !there || !known {
		return heldPolicy{}, fmt.Errorf("go back to generation %d with the guardrails in force: %w", pin.Number, errNotKept)
	}
	back, from, err := p.readBoth(ctx, to, kept)
	if err != nil {
		return heldPolicy{}, err
	}
	input, s := composed(back, from)
	held := heldPolicy{input, s}
	p.policies[s.name()] = held
	return held, nil
}

// makeBase compiles what is to be in force on all hosts but the canaries. If that is
// blocked, the generation in force stays, tightened by today's conditions.
func (b *build) makeBase(ctx context.Context) error {
	for {
		o, err := b.compileNamed(ctx, b.next.Base.Policy)
		if err != nil {
			return err
		}
		digest := o.output.Digest()
		changed := b.next.Base.Policy != b.was.Base.Policy || b.was.Base.Number == 0
		promoted := changed && b.next.Base.Number > b.was.Base.Number && digest == b.next.Base.Digest
		if promoted || !changed && digest == b.was.Base.Digest {
			b.base = b.withKnownResults(o).numbered(b.next.Base.Number)
			return nil
		}
		if !changed && b.prev != nil && b.prev.base != nil && differs(b.prev.base, o).none() {
			// Nobody would see it, such as a host without workloads.
			if !weighAlike(b.prev.base, o) {
				b.base = b.withKnownResults(o).numbered(b.was.Base.Number)
				return nil
			}
			b.base = o.carrying(b.prev.base).numbered(b.was.Base.Number)
			return nil
		}
		var before *outcome
		if b.prev != nil && !changed {
			before = b.prev.base
		}
		if before != nil && differs(before, o).OnlyRefused && weighAlike(before, o) {
			b.base, b.newBaseNumber = b.refusing(before, o), true
			return nil
		}
		if o, err = b.verified(ctx, o); err != nil {
			return err
		}
		if o = b.holdIfIncomplete(o); o.blocked == "" {
			b.base, b.newBaseNumber = o, true
			return nil
		}
		b.block(o)
		if b.was.Base.Number == 0 {
			b.next.Base = version{}
			return nil // nothing was ever in force
		}
		if !changed {
			return b.tighten(ctx, o)
		}
		b.next.Base, b.next.ConfirmBy, b.next.Confirmed = b.was.Base, b.was.ConfirmBy, b.was.Confirmed
	}
}

// refusing takes over the proofs of an outcome that differs only in which identities are
// quarantined: the proofs are not about those, and a quarantine must not wait for them.
func (b *build) refusing(before, o *outcome) *outcome {
	copied := *o.carrying(&outcome{proofs: before.proofs, early: before.early})
	for _, g := range b.v.generations {
		if g := g.resource.(*bocage.Generation); copied.proofs == nil && g.Status.Number == before.number && !awaitsProofs(g) {
			copied.proofs = g.Status.Proofs
		}
	}
	return copied.complete()
}

// withKnownResults adds known proofs and test results of the same content to an outcome.
func (b *build) withKnownResults(o *outcome) *outcome {
	if proofs := b.p.proofsOf(o); proofs != nil && o.proofs == nil {
		copied := *o
		copied.proofs = proofs
		o = copied.complete()
	}
	if b.prev == nil {
		return o
	}
	for _, same := range []*outcome{b.prev.base, b.prev.candidate} {
		if same != nil && same.output.Digest() == o.output.Digest() && same.proofs != nil && o.proofs == nil && weighAlike(same, o) {
			return o.carrying(same)
		}
	}
	return o
}

// block records that an outcome may not come into force.
func (b *build) block(o *outcome) {
	b.next.Candidate = nil
	if w := b.was.Blocked; w != nil && w.Digest == o.output.Digest() {
		b.blocked = o.numbered(w.Number)
		b.next.Blocked = w
		return
	}
	b.next.Number++
	b.blocked = o.numbered(b.next.Number)
	b.next.Blocked = &version{b.next.Number, o.output.Digest(), o.policy.name()}
	b.notices = append(b.notices, notice{b.next.Number, "Blocked", fmt.Sprintf("generation %d is kept back, %s", b.next.Number, o.blocked), true})
}

// tighten gives the generation in force today's threat conditions and quarantines, when
// the rest of today's input would break a proof. If even that breaks a proof, only the new
// quarantines are added, which can only close. A process that does not have the input of
// the generation in force leaves it as it is.
func (b *build) tighten(ctx context.Context, o *outcome) error {
	in, err := b.inForce(ctx)
	if err != nil || in == nil {
		b.base = nil
		return err
	}
	input := in.input
	input.Quarantines, input.ThreatConditions = b.v.input.Quarantines, b.v.input.ThreatConditions
	input.Now, input.Generation = b.now, b.was.Number+1
	tight := &outcome{input: input, output: compile.Compile(input), policy: in.policy, environment: in.environment.tightened(input), at: b.now}
	b.p.counters.compiled.Add(1)
	if tight.output.Digest() == b.was.Base.Digest {
		b.base = b.withKnownResults(tight.complete()).numbered(b.was.Base.Number)
		return nil
	}
	if tight, err = b.verified(ctx, tight.complete()); err != nil {
		return err
	}
	if tight.blocked == "" {
		b.base, b.newBaseNumber = tight, true
		return nil
	}
	more := in.output.Ruleset().WithRefusals(o.output.Ruleset())
	if slices.Equal(more.Refused, in.output.Ruleset().Refused) {
		b.base = in
		return nil
	}
	more.Digest = tight.output.Digest()
	tight.output = tight.output.Replaced(more)
	b.base, b.newBaseNumber = tight.carrying(in), true
	return nil
}

// inForce returns the outcome in force, compiled again from its snapshot if necessary; nil
// if that is not kept.
func (b *build) inForce(ctx context.Context) (*outcome, error) {
	if b.prev != nil && b.prev.base != nil {
		return b.prev.base, nil
	}
	list, known := b.p.snapshots.lists[b.was.Base.Number]
	if !known || list.Environment == nil {
		return nil, nil
	}
	input, _, err := readSnapshot(ctx, b.p.store, list)
	if err != nil {
		return nil, err
	}
	held, err := b.p.policyNamed(ctx, list.PolicyName)
	if err != nil {
		return nil, err
	}
	rest, err := namedSnapshot(snapshotList{Number: list.Number, Policy: list.Environment})
	if err != nil {
		return nil, err
	}
	o := &outcome{input: input, output: compile.Compile(input), policy: held.snapshot, environment: rest, number: list.Number, at: b.now}
	b.p.counters.compiled.Add(1)
	return o.complete(), nil
}

// makeCandidate compiles what is declared, if a rollout of it is under way.
func (b *build) makeCandidate(ctx context.Context) error {
	c := b.next.Candidate
	if c == nil {
		// Compiled for its findings: authors see them while another policy is in force.
		_, err := b.compileNamed(ctx, b.v.policy.name())
		return err
	}
	o, err := b.compileNamed(ctx, c.Policy)
	if err != nil {
		return err
	}
	was := b.was.Candidate
	same := was != nil && was.Policy == c.Policy
	if same && was.Digest == o.output.Digest() {
		b.candidate = b.withKnownResults(o).numbered(c.Number)
		return nil
	}
	if o, err = b.verified(ctx, o); err != nil {
		return err
	}
	if o = b.holdIfIncomplete(o); o.blocked != "" {
		b.block(o)
		return nil
	}
	b.candidate, b.newCandidateNumber = o, true
	return nil
}

// again returns the next moment at which something begins or ends by itself.
func (b *build) again() time.Time {
	if b.moreToProve {
		return b.now
	}
	moments := []time.Time{}
	for _, o := range []*outcome{b.live, b.base, b.candidate, b.blocked} {
		if o != nil {
			moments = append(moments, o.output.Expires)
		}
	}
	if deadline := b.next.deadline(b.spec); deadline.After(b.now) {
		moments = append(moments, deadline)
	} else if c := b.next.Candidate; c != nil && c.Stage == bocage.StageCanary {
		moments = append(moments, b.now.Add(time.Second)) // it waits for a canary's report
	}
	first := time.Time{}
	for _, m := range moments {
		if m.After(b.now) && (first.IsZero() || m.Before(first)) {
			first = m
		}
	}
	return first
}

// unchanged reports whether the record stays as it is.
func (b *build) unchanged() bool {
	return sameButInputs(b.was, b.next)
}

// sameButInputs reports whether two records agree on all that is in force.
func sameButInputs(was, is record) bool {
	is.Inputs, is.AsOf = was.Inputs, was.AsOf
	x, errX := json.Marshal(was)
	y, errY := json.Marshal(is)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// settle makes the new record the one that hosts are answered from, and reports it.
func (b *build) settle(ctx context.Context) {
	p := b.p
	s := &served{record: b.next, revision: b.revision, spec: b.spec, base: b.base, candidate: b.candidate, inputs: b.inputs}
	if s.base == nil && b.prev != nil {
		s.base = b.prev.base
	}
	for i, o := range []*outcome{b.base, b.candidate} {
		if o == nil {
			continue
		}
		// The next compilation of the same input returns this outcome, with its proofs and tests.
		for _, line := range p.compilers {
			if line.last != nil && line.last.output.Digest() == o.output.Digest() && line.last.policy.hash == o.policy.hash && line.last.environment.hash == o.environment.hash {
				line.last = o
			}
		}
		if name := o.policy.name(); i == 0 && p.policies[name].snapshot == nil {
			clear(p.policies) // one is held at a time
			p.policies[name] = heldPolicy{o.input, o.policy}
		}
	}
	p.numbered.Store(max(p.numbered.Load(), s.record.Number))
	p.mu.Lock()
	before := p.served.Swap(s)
	close(p.advanced)
	p.advanced = make(chan struct{})
	p.mu.Unlock()
	if !b.notified && (before == nil || !before.record.Moved.Equal(s.record.Moved) || before.record.ConfirmedUpTo != s.record.ConfirmedUpTo) {
		p.notify(s.record.Number) // another controller wrote it and told its own agents only
	}
	if s.base != nil {
		if last := p.active.Swap(s.base); last != nil && last.number != s.base.number {
			p.formerDecisions.remember(last.output.Outdated(s.base.output), last.number)
		}
	}
	switch {
	case b.blocked != nil:
		p.current.Store(b.blocked)
	case b.candidate != nil && (!b.ahead || b.newCandidateNumber):
		p.current.Store(b.candidate)
	case b.live != nil:
		p.current.Store(b.live)
	case s.base != nil && !b.ahead: // what is declared is something else
		p.current.Store(s.base)
	}
	if c := b.next.Candidate; c != nil && s.candidate != nil && s.base != nil {
		p.candidateDecisions.remember(s.candidate.output.Outdated(s.base.output), s.candidate.number)
	}
	for _, n := range b.notices {
		p.announce(ctx, n, b)
	}
	wake(p.report)
	wake(p.replays)
}

// announce reports a step of a rollout that this controller took.
func (p *Policy) announce(ctx context.Context, n notice, b *build) {
	number := n.number
	if number == 0 && b.next.Candidate != nil {
		number = b.next.Candidate.Number
	}
	level := slog.LevelInfo
	if n.warning {
		level = slog.LevelWarn
	}
	p.logger.Log(ctx, level, "rollout turned", slog.Uint64("generation", number), slog.String("reason", n.reason), slog.String("what", n.message))
	p.notices.tell("Generation", "", generationName(number), n.reason, n.message, n.warning)
	if b.v.rollout != nil {
		p.notices.tell("Rollout", "", b.v.rollout.Name, n.reason, n.message, n.warning)
	}
}
