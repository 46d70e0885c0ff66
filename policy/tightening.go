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

// A change that only tightens goes ahead of everything else. Threat conditions and
// quarantines that are new, more severe or longer are added to the generation in
// force, whatever else has changed, and come into force before all proofs of the
// result are complete. A quick proof comes first (prove.Tightening): the result
// allows nothing that was refused before, and refuses nothing that is protected. All
// other statements are proved afterwards. If one of them fails then, people are told,
// and the generation stays in force: going back would open what somebody closed.

// errInterrupted means that a build stopped without any effect, because a change that
// tightens must not wait for it.
var errInterrupted = errors.New("something that tightens goes ahead")

// goAhead brings into force the tightening changes that are not in force yet. It
// reports whether there were any.
func (b *build) goAhead(ctx context.Context) (bool, error) {
	if b.prev == nil || b.prev.base == nil || b.was.Base.Number == 0 || (b.was.Candidate == nil) != (b.prev.candidate == nil) {
		return false, nil // too little is known of what is in force
	}
	b.base, b.candidate = b.prev.base, b.prev.candidate
	if tight, may := b.tightened(b.base); may && tight != nil {
		b.base, b.newBaseNumber = tight, true
	}
	if b.candidate != nil {
		if tight, may := b.tightened(b.candidate); may && tight != nil {
			b.candidate, b.newCandidateNumber = tight, true
		}
	}
	if !b.newBaseNumber && !b.newCandidateNumber {
		b.base, b.candidate = nil, nil
		return false, nil
	}
	b.next, b.ahead = b.was, true
	if c := b.was.Candidate; c != nil {
		copied := *c
		b.next.Candidate = &copied
	}
	b.inputs = b.prev.inputs // others' declarations are not in yet
	expired := b.newBaseNumber && !b.base.output.Expires.IsZero() && !b.now.Before(b.base.output.Expires)
	if b.newBaseNumber && !expired && b.base.environment.hash == b.v.environment.hash && b.base.policy.hash == b.v.policy.hash {
		b.live, b.inputs = b.base, b.v.revision
	}
	b.place()
	if err := b.write(ctx); err != nil {
		return false, err
	}
	b.p.proofsFollow(b.firstRevision, b.revision)
	b.settle(ctx)
	if b.newBaseNumber && b.base.proofs == nil {
		b.p.counters.ahead.Add(1)
	}
	return true, nil
}

// adopt accepts a generation that another controller put in force ahead of its proofs,
// if tightening what this controller had in force gives the same content.
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

// proofsFollow notes that running and finished proofs still apply after the record
// moved from one revision to another: only a tightening change came between.
func (p *Policy) proofsFollow(was, is store.Revision) {
	for _, w := range append(slices.Clone(p.proved), p.proving) {
		if w != nil && w.record == was {
			w.record = is
		}
	}
}

// tightened adds today's new or harder threat conditions and quarantines to an
// outcome. It returns nil if no host would see a difference. The second result says
// whether the tightened outcome may come into force at once.
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

// compileTight compiles an outcome with other conditions and quarantines. If these are
// the only difference from what is declared today, it compiles today's declarations.
// Otherwise it compiles as of the outcome's own moment, so that nothing else in it
// begins or ends.
func (b *build) compileTight(from *outcome, conditions []*bocage.ThreatCondition, quarantines []*bocage.Quarantine) *outcome {
	p, in := b.p, b.v.input
	live := from.policy.hash == b.v.policy.hash
	expired := !from.output.Expires.IsZero() && !b.now.Before(from.output.Expires)
	if live && !expired && same(in.Workloads, from.input.Workloads) && same(in.Hosts, from.input.Hosts) && same(in.Zones, from.input.Zones) &&
		same(in.Namespaces, from.input.Namespaces) && slices.Equal(conditions, in.ThreatConditions) && slices.Equal(quarantines, in.Quarantines) {
		o := p.compilers[0].compile(p, in, b.v.policy, b.v.environment, b.was.Number+1, b.now)
		known := outcome{proofs: o.proofs} // without its verdict: the tests that blocked it may have changed
		if len(prove.Failed(o.proofs)) > 0 {
			known.proofs = nil // reported afterwards (see proving.go)
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
	o := &outcome{input: in, output: line.run(in), policy: from.policy, environment: from.environment.tightened(in), at: b.now, derived: line.derived}
	o.took = time.Since(started)
	p.counters.compiled.Add(1)
	return o.complete()
}

// raised merges two lists that are sorted by name. It keeps each object of the first
// list, unless the second has a harder version of it, and adds what only the second has
// and what harder accepts. It reports whether the result differs from the first list.
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

// risen reports whether a threat condition is at least as hard as its earlier version
// (nil if there was none) and has not ended.
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

// prolonged reports the same of a quarantine.
func prolonged(was, is *bocage.Quarantine, now time.Time) bool {
	if !is.Spec.Until.IsZero() && !is.Spec.Until.After(now) || len(is.Validate()) > 0 {
		return false
	}
	return was == nil || was.Spec.Workload == is.Spec.Workload && (is.Spec.Until.IsZero() || !was.Spec.Until.IsZero() && !is.Spec.Until.Before(was.Spec.Until))
}
