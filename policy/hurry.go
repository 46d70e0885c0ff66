package policy

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/store"
)

// What only tightens goes ahead: threat conditions and quarantines that came, rose
// or last longer are added to what is in force, whatever else has changed, and are
// in force before the proofs of that are complete. Nothing that was proved to be
// refused can be allowed by it, which is shown first, and quickly, as is that it
// refuses nothing that is protected (prove.Tightening). The rest is proved
// afterwards; what fails then is told, and stays in force: going back would open
// what somebody closed.

// errHurry means that a build was left, with nothing done, for something that must
// not wait for what it waited for.
var errHurry = errors.New("something that tightens goes ahead")

// goAhead brings into force what tightens today and is not in force yet, and
// reports whether there was something.
func (b *build) goAhead(ctx context.Context) (bool, error) {
	if b.prev == nil || b.prev.base == nil || b.was.Base.Number == 0 || (b.was.Candidate == nil) != (b.prev.candidate == nil) {
		return false, nil // too little is known of what is in force
	}
	b.base, b.candidate = b.prev.base, b.prev.candidate
	if tight, may := b.tightened(b.base); may && tight != nil {
		b.base, b.fresh = tight, true
	}
	if b.candidate != nil {
		if tight, may := b.tightened(b.candidate); may && tight != nil {
			b.candidate, b.freshCandidate = tight, true
		}
	}
	if !b.fresh && !b.freshCandidate {
		b.base, b.candidate = nil, nil
		return false, nil
	}
	b.next, b.ahead = b.was, true
	if c := b.was.Candidate; c != nil {
		copied := *c
		b.next.Candidate = &copied
	}
	b.inputs = b.prev.inputs // others' declarations are not in yet
	expired := b.fresh && !b.base.output.Expires.IsZero() && !b.now.Before(b.base.output.Expires)
	if b.fresh && !expired && b.base.rest.hash == b.v.rest.hash && b.base.policy.hash == b.v.policy.hash {
		b.live, b.inputs = b.base, b.v.revision
	}
	b.place()
	if err := b.write(ctx); err != nil {
		return false, err
	}
	b.p.proofsFollow(b.since, b.revision)
	b.settle(ctx)
	if b.fresh && b.base.proofs == nil {
		b.p.counters.ahead.Add(1)
	}
	return true, nil
}

// adopt takes over what another controller had go ahead, where that is what this one
// had in force, tightened.
func (b *build) adopt() bool {
	s := b.p.served.Load()
	if s == nil || s.base == nil || b.was.Candidate != nil || s.record.Base.Policy != b.was.Base.Policy || s.base.output.Digest() == b.was.Base.Digest {
		return false
	}
	tight, may := b.tightened(s.base)
	if !may || tight == nil || tight.output.Digest() != b.was.Base.Digest {
		return false
	}
	b.next, b.ahead, b.inputs = b.was, true, s.inputs
	b.base = tight.numbered(b.was.Base.Number)
	b.p.proofsFollow(s.revision, b.revision)
	return true
}

// proofsFollow notes that what is being proved, or was just now, still follows what is
// in force: something went ahead, and nothing else happened.
func (p *Policy) proofsFollow(was, is store.Revision) {
	for _, w := range append(slices.Clone(p.proved), p.proving) {
		if w != nil && w.record == was {
			w.record = is
		}
	}
}

// tightened adds to an outcome what threat conditions and quarantines tighten
// today. It returns nil where that is nothing that a host would see, and reports
// whether the outcome, so tightened, may come into force at once.
func (b *build) tightened(from *outcome) (*outcome, bool) {
	conditions, worse := raised(from.input.ThreatConditions, b.v.input.ThreatConditions, func(was, is *bocage.ThreatCondition) bool {
		return risen(was, is, b.now)
	})
	quarantines, more := raised(from.input.Quarantines, b.v.input.Quarantines, func(was, is *bocage.Quarantine) bool { return prolonged(was, is, b.now) })
	if !worse && !more {
		return nil, true
	}
	tight := b.compileTight(from, conditions, quarantines)
	d := differs(from, tight)
	switch {
	case d.none():
		return nil, true
	case d.OnlyRefused && !worse:
		return b.refusing(from, tight), true
	}
	blocking := slices.DeleteFunc(slices.Clone(b.v.tests), func(t *bocage.PolicyTest) bool { return !t.Spec.Blocks })
	if failed, _ := tight.blockedBy(tight.test(blocking), from, blocking); failed != "" {
		b.p.logger.Warn("what tightens does not go ahead", slog.String("for", failed))
		return nil, false
	}
	tight.early = b.p.tightens(from.output.Ruleset(), tight.input, tight.output.Ruleset())
	if failed := prove.Failed(tight.early); len(failed) > 0 {
		b.p.logger.Warn("what tightens does not go ahead", slog.String("for", failed[0].Statement), slog.String("counterexample", failed[0].Counterexample))
		return nil, false
	}
	return tight.complete(), true
}

// compileTight compiles an outcome with other conditions and quarantines: what is
// declared today, if nothing else is another; else that outcome as of its own moment,
// so that nothing else of it begins or ends.
func (b *build) compileTight(from *outcome, conditions []*bocage.ThreatCondition, quarantines []*bocage.Quarantine) *outcome {
	p, in := b.p, b.v.input
	live := from.policy.hash == b.v.policy.hash
	expired := !from.output.Expires.IsZero() && !b.now.Before(from.output.Expires)
	if live && !expired && same(in.Workloads, from.input.Workloads) && same(in.Hosts, from.input.Hosts) && same(in.Zones, from.input.Zones) &&
		same(in.Namespaces, from.input.Namespaces) && slices.Equal(conditions, in.ThreatConditions) && slices.Equal(quarantines, in.Quarantines) {
		o := p.compilers[0].compile(p, in, b.v.policy, b.v.rest, b.was.Number+1, b.now)
		known := outcome{proofs: o.proofs} // it may have been kept back, by tests of then
		if len(prove.Failed(o.proofs)) > 0 {
			known.proofs = nil // they are told afterwards
		}
		return o.carrying(&known)
	}
	line := p.compilers[1]
	if live {
		line = p.compilers[0]
	}
	in = from.input
	in.ThreatConditions, in.Quarantines, in.Generation = conditions, quarantines, b.was.Number+1
	started := time.Now()
	o := &outcome{input: in, output: line.run(in), policy: from.policy, rest: from.rest.tightened(in), at: b.now, made: line.made}
	o.took = time.Since(started)
	p.counters.compiled.Add(1)
	return o.complete()
}

// raised returns a list in the order of names with what is new in another one, and
// with what that has instead and is as hard at least; and whether there was
// something.
func raised[T interface {
	comparable
	bocage.Resource
}](before, now []T, harder func(was, is T) bool) ([]T, bool) {
	if same(before, now) {
		return before, false
	}
	var out []T
	more := false
	var none T
	for i, j := 0, 0; i < len(before) || j < len(now); {
		switch order := compareAt(before, i, now, j); {
		case order < 0:
			out = append(out, before[i])
			i++
		case order > 0:
			if harder(none, now[j]) {
				out, more = append(out, now[j]), true
			}
			j++
		default:
			was := before[i]
			if now[j] != was && harder(was, now[j]) {
				was, more = now[j], true
			}
			out = append(out, was)
			i, j = i+1, j+1
		}
	}
	return out, more
}

// risen reports whether a threat condition asks for all that one before it did, if
// there was one, and has not ended.
func risen(was, is *bocage.ThreatCondition, now time.Time) bool {
	if !is.Spec.Expires.After(now) || len(is.Validate()) > 0 {
		return false
	}
	if was == nil {
		return true
	}
	a, b := was.Spec, is.Spec
	return a.Workload == b.Workload && a.Zone == b.Zone && a.All == b.All && b.Level.Includes(a.Level) && !b.Expires.Before(a.Expires) &&
		(a.Profile == b.Profile || a.Profile == "")
}

// prolonged is the same of a quarantine.
func prolonged(was, is *bocage.Quarantine, now time.Time) bool {
	if !is.Spec.Until.IsZero() && !is.Spec.Until.After(now) || len(is.Validate()) > 0 {
		return false
	}
	return was == nil || was.Spec.Workload == is.Spec.Workload && (is.Spec.Until.IsZero() || !was.Spec.Until.IsZero() && !is.Spec.Until.Before(was.Spec.Until))
}

// proving is a proof under way. It is of the builder, but for the proofs, which are
// there when done is closed.
type proving struct {
	of     *outcome
	inputs store.Revision // of the declarations that the outcome was compiled from
	record store.Revision // of the record that the outcome would follow
	leaves bool           // another policy than was in force would be, on all hosts
	done   chan struct{}
	proofs []bocage.Proof
}

// mostProved bounds the finished proofs that are remembered, with what was proved: that
// is a ruleset each.
const mostProved = 2

// shown are the proofs of what has a digest. They are remembered for as many as there
// are generations, so that those that went ahead are told of when others have followed.
type shown struct {
	digest string
	proofs []bocage.Proof
}

// startProving begins to prove an outcome, beside the builder.
func (b *build) startProving(o *outcome) {
	p := b.p
	w := &proving{of: o, inputs: b.v.revision, record: b.revision, leaves: b.leaves(o), done: make(chan struct{})}
	prove := p.prove
	go func() {
		defer close(w.done)
		w.proofs = prove(o.input, o.output.Ruleset())
	}()
	p.proving = w
}

// finished is closed when the proof under way is over; nil if there is none.
func (p *Policy) finished() <-chan struct{} {
	if p.proving == nil {
		return nil
	}
	return p.proving.done
}

// collect remembers the proof under way if it is over.
func (p *Policy) collect() {
	select {
	case <-p.finished():
		p.proved = append(p.proved, p.proving)
		p.proved = p.proved[max(len(p.proved)-mostProved, 0):]
		p.shown = append(p.shown, shown{p.proving.of.output.Digest(), p.proving.proofs})
		p.shown = p.shown[max(len(p.shown)-keep, 0):]
		p.proving = nil
	default:
	}
}

// proofsOf returns what was proved of an outcome, or of one with the same policy from
// which no host could tell it; nil if that is not known.
func (p *Policy) proofsOf(o *outcome) []bocage.Proof {
	if o.proofs != nil {
		return o.proofs
	}
	for _, w := range slices.Backward(p.proved) {
		if w.of.policy.hash == o.policy.hash && (w.of.output.Digest() == o.output.Digest() || differs(w.of, o).none()) {
			return w.proofs
		}
	}
	return nil
}

// verified proves an outcome that is to come into force, and tests it beside what is. It waits for the
// proofs, but is left with errHurry if something tightens meanwhile. Where it was,
// something else may have been proved in the end than is declared by now: that comes
// into force then, as tight as today's conditions want it, and the newest has its turn.
func (b *build) verified(ctx context.Context, o *outcome) (*outcome, error) {
	p := b.p
	var inForce *outcome
	if b.was.Base.Number != 0 && slices.ContainsFunc(b.v.tests, func(t *bocage.PolicyTest) bool { return t.Spec.Blocks }) {
		var err error
		if inForce, err = b.inForce(ctx); err != nil {
			return nil, err
		}
	}
	for {
		if proofs := p.proofsOf(o); proofs != nil {
			checked := o.judged(proofs, inForce, b.v.tests)
			for _, line := range p.compilers {
				if line.last == o {
					line.last = checked
				}
			}
			return checked, nil
		}
		if p.proving == nil {
			for _, done := range slices.Backward(p.proved) { // while something went ahead
				if earlier := b.overtaken(done, o, inForce); earlier != nil {
					return earlier, nil
				}
			}
			b.startProving(o)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.mirror.hurried:
			return nil, errHurry
		case <-p.finished():
		}
		p.collect()
	}
}

// leaves reports whether an outcome of what is declared would be in force on all hosts
// now, where another policy was.
func (b *build) leaves(o *outcome) bool {
	name := o.policy.name()
	return name == b.v.policy.name() && name == b.next.Base.Policy && name != b.was.Base.Policy
}

// overtaken returns what was proved, if something else is declared by now that has
// to be proved in turn; nil if it is of no use.
func (b *build) overtaken(done *proving, o, inForce *outcome) *outcome {
	x := done.of
	if done.record != b.revision || b.prev == nil || x.output.Digest() == o.output.Digest() ||
		x.policy.hash != o.policy.hash && !(done.leaves && b.leaves(o) && done.inputs >= b.prev.inputs) {
		return nil
	}
	for _, there := range []*outcome{b.prev.base, b.prev.candidate} {
		if there != nil && there.policy.hash == x.policy.hash && there.output.Digest() == x.output.Digest() {
			return nil // in force already
		}
	}
	if x = x.judged(done.proofs, inForce, b.v.tests); x.blocked != "" {
		return nil
	}
	tight, may := b.tightened(x)
	switch {
	case !may:
		return nil
	case tight != nil:
		x = tight
	}
	b.more, b.inputs = true, done.inputs
	return x
}

// owe has proved what went ahead, when there is time.
func (b *build) owe() {
	if b.p.proving == nil && b.base != nil && b.base.proofs == nil && b.unproved(b.base.number) != nil && b.p.proofsOf(b.base) == nil {
		b.startProving(b.base)
	}
}

// unproved returns a generation that went ahead and of which nobody has told yet what
// its proofs came to, nil for others.
func (b *build) unproved(number uint64) *bocage.Generation {
	for _, o := range b.v.generations {
		if g := o.resource.(*bocage.Generation); g.Status.Number == number && awaitsProofs(g) {
			return g
		}
	}
	return nil
}

// awaitsProofs reports whether proofs of a generation that went ahead would be news.
func awaitsProofs(g *bocage.Generation) bool {
	reason := conditionOf(g.Status.Conditions, bocage.ConditionProved).Reason
	return reason == reasonProving || reason == reasonReplaced
}

const (
	// reasonProving says of a generation that it is in force before its proofs.
	reasonProving = "Proving"
	// reasonReplaced says that something else was before they were there. Another
	// controller may have them yet.
	reasonReplaced = "Superseded"
)

// proofsCame reports whether there is news of proofs that were not there yet.
func (b *build) proofsCame() bool {
	return slices.ContainsFunc(b.v.generations, func(o *object) bool { return b.late(o.resource.(*bocage.Generation)) != nil })
}
