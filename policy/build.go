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

// build is one turn of the builder: from what is declared and agreed now to what
// is agreed next.
type build struct {
	p        *Policy
	v        view
	spec     bocage.RolloutSpec
	now      time.Time // that controllers agree on
	began    time.Time // by this machine
	was      record
	revision store.Revision // of was
	next     record
	notices  []notice
	prev     *served // what was came to, nil where this process does not know
	// lost cannot be read, and nothing is known of it (see unreadable.go).
	lost []unreadable

	live            *outcome // what is declared, where it was compiled
	base, candidate *outcome
	held            *outcome // a new generation that a proof or a test keeps back
	fresh           bool     // base needs a number of its own
	freshCandidate  bool

	since  store.Revision // revision as it was at the beginning
	inputs store.Revision // declarations up to here are in
	ahead  bool           // only what tightens is new (see hurry.go)
	came   []*lateProofs  // what is told of generations that went ahead
	more   bool           // something newer is declared that has to be proved in turn

	notified bool // agents know that it is worth while to ask
}

// buildOnce brings into force what should be now. It returns when to look again
// although nothing changed. The steps:
//
//  1. mend: what cannot be read is as it was known last (unreadable.go)
//  2. go ahead: what only tightens comes into force before the rest, which has its
//     turn after that in any case (hurry.go)
//  3. turn: what people, time and hosts' reports make of rollouts (record.go)
//  4. base, candidate: compile, prove and test both
//  5. place: which hosts get something new, and under which number (place.go)
//  6. write: one transaction, refused if another controller was faster (publish.go)
//  7. settle: answer hosts from it, and tell
func (p *Policy) buildOnce(ctx context.Context) (time.Time, error) {
	mayGoAhead := !p.wentAhead // twice in a row, everything else would wait for ever
	p.wentAhead = false
	if mayGoAhead {
		select {
		case <-p.mirror.hurried: // it is in the view
		default:
		}
	}
	p.collect()
	b := &build{p: p, v: p.mirror.view(), began: time.Now()}
	var err error
	if b.was, b.revision, err = readRecord(ctx, p.store); err != nil {
		return time.Time{}, err
	}
	if again, err := p.goOn(ctx, b.was); again || err != nil {
		return p.now(), err
	}
	b.now = b.was.moment(p.now())
	p.builtFor = b.now
	b.since = b.revision
	if b.was.Inputs > b.v.revision && b.was.Inputs < b.revision { // else it was written in another store
		return time.Time{}, errBehind
	}
	if !p.library.known || p.library.at != b.revision {
		if err := p.library.learn(ctx, p.store, b.revision); err != nil {
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
		p.proofsFollow(b.since, b.revision)
	}
	b.settle(ctx)
	b.owe()
	return b.again(), nil
}

// named compiles a policy with today's rest: the one that is declared, or one that
// is kept.
func (b *build) named(ctx context.Context, name string) (*outcome, error) {
	if name == b.v.policy.name() {
		b.live = b.p.compilers[0].compile(b.p, b.v.input, b.v.policy, b.v.rest, b.was.Number+1, b.now)
		return b.live, nil
	}
	held, err := b.p.policyNamed(ctx, name)
	if pin := b.next.Pin; errors.Is(err, errNotKept) && pin != nil && pin.Kept != "" && pin.Policy == name {
		held, err = b.p.compose(ctx, *pin)
	}
	if err != nil {
		return nil, err
	}
	return b.p.compilers[1].compile(b.p, withPolicy(b.v.input, held.input), held.snapshot, b.v.rest, b.was.Number+1, b.now), nil
}

// heldPolicy is a policy that is not the declared one, or will not be for long.
type heldPolicy struct {
	input    compile.Input
	snapshot *snapshot
}

// policyNamed finds a policy in memory, else in the store.
func (p *Policy) policyNamed(ctx context.Context, name string) (heldPolicy, error) {
	if held, known := p.policies[name]; known {
		return held, nil
	}
	list, known := p.library.policyNamed(name)
	if !known {
		return heldPolicy{}, fmt.Errorf("find the policy in force: %w", errNotKept)
	}
	list.Rest = nil
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
	to, there := p.library.lists[pin.Number]
	kept, known := p.library.policyNamed(pin.Kept)
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

// makeBase compiles what is to be in force on all hosts but the canaries. What
// must not come into force leaves the one in force, tightened.
func (b *build) makeBase(ctx context.Context) error {
	for {
		o, err := b.named(ctx, b.next.Base.Policy)
		if err != nil {
			return err
		}
		digest := o.output.Digest()
		changed := b.next.Base.Policy != b.was.Base.Policy || b.was.Base.Number == 0
		promoted := changed && b.next.Base.Number > b.was.Base.Number && digest == b.next.Base.Digest
		if promoted || !changed && digest == b.was.Base.Digest {
			b.base = b.known(o).numbered(b.next.Base.Number)
			return nil
		}
		if !changed && b.prev != nil && b.prev.base != nil && differs(b.prev.base, o).none() {
			// Nobody would see it, such as a host without workloads.
			b.base = o.carrying(b.prev.base).numbered(b.was.Base.Number)
			return nil
		}
		var before *outcome
		if b.prev != nil && !changed {
			before = b.prev.base
		}
		if before != nil && differs(before, o).OnlyRefused {
			b.base, b.fresh = b.refusing(before, o), true
			return nil
		}
		if o, err = b.verified(ctx, o); err != nil {
			return err
		}
		if o = b.unread(o); o.blocked == "" {
			b.base, b.fresh = o, true
			return nil
		}
		b.hold(o)
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

// refusing takes over the proofs of what differs only in who is cut off: nothing
// that they are about is another, and a quarantine must not wait for them.
func (b *build) refusing(before, o *outcome) *outcome {
	copied := *o.carrying(&outcome{proofs: before.proofs, early: before.early})
	for _, g := range b.v.generations {
		if g := g.resource.(*bocage.Generation); copied.proofs == nil && g.Status.Number == before.number && !awaitsProofs(g) {
			copied.proofs = g.Status.Proofs
		}
	}
	return copied.complete()
}

// known adds to an outcome what is known of the same content.
func (b *build) known(o *outcome) *outcome {
	if proofs := b.p.proofsOf(o); proofs != nil && o.proofs == nil {
		copied := *o
		copied.proofs = proofs
		o = copied.complete()
	}
	if b.prev == nil {
		return o
	}
	for _, same := range []*outcome{b.prev.base, b.prev.candidate} {
		if same != nil && same.output.Digest() == o.output.Digest() && same.proofs != nil && o.proofs == nil {
			return o.carrying(same)
		}
	}
	return o
}

// hold notes that an outcome is kept back.
func (b *build) hold(o *outcome) {
	b.next.Candidate = nil
	if w := b.was.Blocked; w != nil && w.Digest == o.output.Digest() {
		b.held = o.numbered(w.Number)
		b.next.Blocked = w
		return
	}
	b.next.Number++
	b.held = o.numbered(b.next.Number)
	b.next.Blocked = &version{b.next.Number, o.output.Digest(), o.policy.name()}
	b.notices = append(b.notices, notice{b.next.Number, "Blocked", fmt.Sprintf("generation %d is kept back, %s", b.next.Number, o.blocked), true})
}

// tighten gives the generation in force today's threat conditions and quarantines,
// where the rest of today would break a proof. Should even that break one, only
// those who are cut off anew are added, which can only close. A process that knows
// nothing of the generation in force leaves it as it is.
func (b *build) tighten(ctx context.Context, o *outcome) error {
	in, err := b.inForce(ctx)
	if err != nil || in == nil {
		b.base = nil
		return err
	}
	input := in.input
	input.Quarantines, input.ThreatConditions = b.v.input.Quarantines, b.v.input.ThreatConditions
	input.Now, input.Generation = b.now, b.was.Number+1
	tight := &outcome{input: input, output: compile.Compile(input), policy: in.policy, rest: in.rest.tightened(input), at: b.now}
	b.p.counters.compiled.Add(1)
	if tight.output.Digest() == b.was.Base.Digest {
		b.base = b.known(tight.complete()).numbered(b.was.Base.Number)
		return nil
	}
	if tight, err = b.verified(ctx, tight.complete()); err != nil {
		return err
	}
	if tight.blocked == "" {
		b.base, b.fresh = tight, true
		return nil
	}
	more := in.output.Ruleset().WithRefusals(o.output.Ruleset())
	if slices.Equal(more.Refused, in.output.Ruleset().Refused) {
		b.base = in
		return nil
	}
	more.Digest = tight.output.Digest()
	tight.output = tight.output.Replaced(more)
	b.base, b.fresh = tight.carrying(in), true
	return nil
}

// inForce finds what the generation in force was compiled from, nil if that is
// kept nowhere.
func (b *build) inForce(ctx context.Context) (*outcome, error) {
	if b.prev != nil && b.prev.base != nil {
		return b.prev.base, nil
	}
	list, known := b.p.library.lists[b.was.Base.Number]
	if !known || list.Rest == nil {
		return nil, nil
	}
	input, _, err := readSnapshot(ctx, b.p.store, list)
	if err != nil {
		return nil, err
	}
	held, err := b.p.policyNamed(ctx, list.Of)
	if err != nil {
		return nil, err
	}
	rest, err := namedSnapshot(shelfList{Number: list.Number, Policy: list.Rest})
	if err != nil {
		return nil, err
	}
	o := &outcome{input: input, output: compile.Compile(input), policy: held.snapshot, rest: rest, number: list.Number, at: b.now}
	b.p.counters.compiled.Add(1)
	return o.complete(), nil
}

// makeCandidate compiles what is declared, where that is on its way into force.
func (b *build) makeCandidate(ctx context.Context) error {
	c := b.next.Candidate
	if c == nil {
		// Authors are told of what they declared, even while something else holds.
		_, err := b.named(ctx, b.v.policy.name())
		return err
	}
	o, err := b.named(ctx, c.Policy)
	if err != nil {
		return err
	}
	was := b.was.Candidate
	same := was != nil && was.Policy == c.Policy
	if same && was.Digest == o.output.Digest() {
		b.candidate = b.known(o).numbered(c.Number)
		return nil
	}
	if o, err = b.verified(ctx, o); err != nil {
		return err
	}
	if o = b.unread(o); o.blocked != "" {
		b.hold(o)
		return nil
	}
	b.candidate, b.freshCandidate = o, true
	return nil
}

// again is when something ends by itself.
func (b *build) again() time.Time {
	if b.more {
		return b.now
	}
	moments := []time.Time{}
	for _, o := range []*outcome{b.live, b.base, b.candidate, b.held} {
		if o != nil {
			moments = append(moments, o.output.Expires)
		}
	}
	if deadline := b.next.deadline(b.spec); deadline.After(b.now) {
		moments = append(moments, deadline)
	} else if c := b.next.Candidate; c != nil && c.Stage == bocage.StageCanary {
		moments = append(moments, b.now.Add(time.Second)) // it waits for a canary's word
	}
	first := time.Time{}
	for _, m := range moments {
		if m.After(b.now) && (first.IsZero() || m.Before(first)) {
			first = m
		}
	}
	return first
}

// unchanged reports whether there is nothing to agree on.
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

// settle answers hosts from what was agreed, and tells everybody concerned.
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
		// The next compilation of the same is this one, with what was made of it.
		for _, line := range p.compilers {
			if line.last != nil && line.last.output.Digest() == o.output.Digest() && line.last.policy.hash == o.policy.hash && line.last.rest.hash == o.rest.hash {
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
	if !b.notified && (before == nil || !before.record.Moved.Equal(s.record.Moved) || before.record.Said != s.record.Said) {
		p.notify(s.record.Number) // another controller wrote it: its agents know, and those of this one do not
	}
	if s.base != nil {
		if last := p.active.Swap(s.base); last != nil && last.number != s.base.number {
			p.past.remember(last.output.Outdated(s.base.output), last.number)
		}
	}
	switch {
	case b.held != nil:
		p.current.Store(b.held)
	case b.candidate != nil && (!b.ahead || b.freshCandidate):
		p.current.Store(b.candidate)
	case b.live != nil:
		p.current.Store(b.live)
	case s.base != nil && !b.ahead: // what is declared is something else
		p.current.Store(s.base)
	}
	if c := b.next.Candidate; c != nil && s.candidate != nil && s.base != nil {
		p.tried.remember(s.candidate.output.Outdated(s.base.output), s.candidate.number)
	}
	for _, n := range b.notices {
		p.announce(ctx, n, b)
	}
	wake(p.report)
	wake(p.replays)
}

// announce tells people of a turn that this controller made.
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
