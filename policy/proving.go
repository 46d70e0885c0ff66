package policy

import (
	"context"
	"errors"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/store"
)

// Proofs run in one goroutine beside the builder, one outcome at a time. The builder
// waits for them (verified), unless a tightening change interrupts it. The proofs of a
// generation that went ahead are made up for when nothing else has to be proved
// (proveLater).

// proving is one run of proofs. It belongs to the builder, except proofs, which may be
// read once done is closed.
type proving struct {
	of             *outcome
	inputs         store.Revision // of the declarations that the outcome was compiled from
	record         store.Revision // of the record that the outcome would follow
	replacesPolicy bool           // see build.replacesPolicy
	against        string         // the policy that was in force
	done           chan struct{}
	proofs         []bocage.Proof
	worse          []bocage.Proof // those that failed and keep it back, see prove.Prover.Worse
}

// mostProved bounds the finished runs that are remembered. Each holds a whole ruleset.
const mostProved = 2

// provedDigest remembers the proofs of one content without its ruleset. There are as
// many as kept generations, so that the proofs of a generation that went ahead can still
// be reported after other generations have followed.
type provedDigest struct {
	digest string
	proofs []bocage.Proof
}

// startProving starts the proofs of an outcome in a goroutine. Those that fail are held
// against the policy in force, under the same inventory. known are the proofs if they were
// made before, and only that is left.
func (b *build) startProving(ctx context.Context, o *outcome, known []bocage.Proof) error {
	p := b.p
	w := &proving{of: o, inputs: b.v.revision, record: b.revision, replacesPolicy: b.replacesPolicy(o), against: b.was.Base.Policy, done: make(chan struct{})}
	before, there := compile.Input{}, false
	if w.against != o.policy.name() && b.was.Base.Number != 0 {
		held, err := p.policyNamed(ctx, w.against)
		if err != nil && !errors.Is(err, errNotKept) {
			return err
		}
		before, there = withPolicy(o.input, held.input), err == nil
	}
	proves, worse := p.prove, p.worse
	go func() {
		defer close(w.done)
		if w.proofs = known; w.proofs == nil {
			w.proofs = proves(o.input, o.output.Ruleset())
		}
		if w.worse = prove.Failed(w.proofs); there && len(w.worse) > 0 {
			w.worse = worse(w.worse, before, o.input)
		}
	}()
	p.proving = w
	return nil
}

// keepingBack returns those failed proofs of an outcome that keep it back. The second result
// is false if that is not known yet. An outcome of the policy in force is that policy with
// today's inventory: what the inventory breaks is told, and keeps back nothing.
func (b *build) keepingBack(o *outcome, proofs []bocage.Proof) ([]bocage.Proof, bool) {
	failed := prove.Failed(proofs)
	switch {
	case len(failed) == 0 || b.was.Base.Number == 0:
		return failed, true
	case o.policy.name() == b.was.Base.Policy:
		return slices.DeleteFunc(failed, prove.Inventory), true
	case !slices.ContainsFunc(failed, prove.Inventory):
		return failed, true
	}
	for _, w := range slices.Backward(b.p.proved) {
		if w.against == b.was.Base.Policy && w.of.environment.hash == o.environment.hash && w.isOf(o) {
			return w.worse, true
		}
	}
	return nil, false
}

// isOf reports whether a run's results are those of an outcome: it has the same policy, and
// no host would see a difference.
func (w *proving) isOf(o *outcome) bool {
	return w.of.policy.hash == o.policy.hash && weighAlike(w.of, o) && (w.of.output.Digest() == o.output.Digest() || differs(w.of, o).none())
}

// proofDone returns a channel that is closed when the running proofs are done; nil if none
// are running.
func (p *Policy) proofDone() <-chan struct{} {
	if p.proving == nil {
		return nil
	}
	return p.proving.done
}

// collectProofs remembers the running proofs if they are done.
func (p *Policy) collectProofs() {
	select {
	case <-p.proofDone():
		p.proved = append(p.proved, p.proving)
		p.proved = p.proved[max(len(p.proved)-mostProved, 0):]
		p.provedDigests = append(p.provedDigests, provedDigest{p.proving.of.output.Digest(), p.proving.proofs})
		p.provedDigests = p.provedDigests[max(len(p.provedDigests)-keep, 0):]
		p.proving = nil
	default:
	}
}

// proofsOf returns the known proofs of an outcome. Those of another outcome with the same
// policy count, too, if no host would see a difference. It returns nil if none are known.
func (p *Policy) proofsOf(o *outcome) []bocage.Proof {
	if o.proofs != nil {
		return o.proofs
	}
	for _, w := range slices.Backward(p.proved) {
		if w.isOf(o) {
			return w.proofs
		}
	}
	return nil
}

// verified proves and tests an outcome that is to come into force. It waits for the
// proofs, and fails with errInterrupted if a tightening change arrives meanwhile. After
// such an interruption the finished proofs may be about older declarations than today's.
// Then it returns that older outcome, tightened by today's conditions, and the newest
// declarations have their turn in the next build.
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
		proofs := p.proofsOf(o)
		if worse, known := b.keepingBack(o, proofs); proofs != nil && known {
			checked := o.judged(proofs, worse, inForce, b.v.tests)
			for _, line := range p.compilers {
				if line.last == o {
					line.last = checked
				}
			}
			return checked, nil
		}
		if p.proving == nil {
			for _, done := range slices.Backward(p.proved) { // proved while a tightening change went ahead
				if earlier := b.overtaken(done, o, inForce); earlier != nil {
					return earlier, nil
				}
			}
			if err := b.startProving(ctx, o, proofs); err != nil {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.mirror.tightening:
			return nil, errInterrupted
		case <-p.proofDone():
		}
		p.collectProofs()
	}
}

// replacesPolicy reports whether an outcome of today's declarations would now replace
// another policy on all hosts.
func (b *build) replacesPolicy(o *outcome) bool {
	name := o.policy.name()
	return name == b.v.policy.name() && name == b.next.Base.Policy && name != b.was.Base.Policy
}

// overtaken returns an outcome whose proofs are done although newer declarations have
// arrived since, ready to come into force; nil if it is of no use any more.
func (b *build) overtaken(done *proving, o, inForce *outcome) *outcome {
	x := done.of
	if done.record != b.revision || b.prev == nil || x.output.Digest() == o.output.Digest() ||
		x.policy.hash != o.policy.hash && !(done.replacesPolicy && b.replacesPolicy(o) && done.inputs >= b.prev.inputs) {
		return nil
	}
	for _, there := range []*outcome{b.prev.base, b.prev.candidate} {
		if there != nil && there.policy.hash == x.policy.hash && there.output.Digest() == x.output.Digest() {
			return nil // in force already
		}
	}
	if x = x.judged(done.proofs, done.worse, inForce, b.v.tests); x.blocked != "" {
		return nil
	}
	tight, may := b.tightened(x)
	switch {
	case !may:
		return nil
	case tight != nil:
		x = tight
	}
	b.moreToProve, b.inputs = true, done.inputs
	return x
}

// proveLater starts the proofs of a generation that went ahead, if no others are running; and
// of one whose workloads weigh otherwise now, or that was in force before this process began,
// if a blast radius asks.
func (b *build) proveLater(ctx context.Context) error {
	if b.p.proving == nil && b.base != nil && b.base.proofs == nil && (bounded(b.base.input) || b.unproved(b.base.number) != nil) && b.p.proofsOf(b.base) == nil {
		return b.startProving(ctx, b.base, nil)
	}
	return nil
}

// unproved returns the generation with this number if it went ahead of its proofs and
// their results were not reported yet; else nil.
func (b *build) unproved(number uint64) *bocage.Generation {
	for _, o := range b.v.generations {
		if g := o.resource.(*bocage.Generation); g.Status.Number == number && awaitsProofs(g) {
			return g
		}
	}
	return nil
}

// awaitsProofs reports whether a generation went ahead and has no reported proofs yet.
func awaitsProofs(g *bocage.Generation) bool {
	reason := conditionOf(g.Status.Conditions, bocage.ConditionProved).Reason
	return reason == reasonProving || reason == reasonReplaced
}

const (
	// reasonProving means that a generation is in force before its proofs are complete.
	reasonProving = "Proving"
	// reasonReplaced means that another generation replaced it before its proofs were
	// complete. Another controller may still report them.
	reasonReplaced = "Superseded"
)

// proofsCame reports whether proofs that were outstanding can be reported now.
func (b *build) proofsCame() bool {
	return slices.ContainsFunc(b.v.generations, func(o *object) bool { return b.late(o.resource.(*bocage.Generation)) != nil })
}
