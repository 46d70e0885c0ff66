package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/store"
)

// reportEvery is how often statuses are looked at, at most.
const reportEvery = 20 * time.Millisecond

// statusBatch is how many statuses one transaction writes.
const statusBatch = 64

// reportStatuses writes conditions whenever an outcome, an object or a host's
// report calls for others than are there.
func (p *Policy) reportStatuses(ctx context.Context) error {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.report:
		case <-again:
		}
		select { // what comes together is told together
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reportEvery):
		}
		again = nil
		wait, err := p.reportOnce(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			p.logger.WarnContext(ctx, "write statuses", slog.Any("error", err), slog.Duration("retry", retryMost))
			again = time.After(retryMost)
		case wait > 0:
			again = time.After(wait)
		}
	}
}

// reportOnce writes what has to change and returns when to look again although
// nothing happened.
func (p *Policy) reportOnce(ctx context.Context) (time.Duration, error) {
	o, s := p.current.Load(), p.served.Load()
	if o == nil || s == nil {
		return 0, nil
	}
	r := p.newReporter(o, s, p.mirror.view())
	var ops []store.Op
	write := func(object *object) error {
		op, fresh, err := r.status(object)
		if err != nil || fresh == nil {
			return err
		}
		if reason, message, warning := statusNotice(object.resource, fresh); reason != "" {
			p.notices.tell(object.kind.Name, fresh.Meta().Namespace, fresh.Meta().Name, reason, message, warning)
		}
		if ops = append(ops, op); len(ops) < statusBatch {
			return nil
		}
		err = p.writeStatuses(ctx, ops)
		ops = nil
		return err
	}
	for _, plural := range slices.Sorted(maps.Keys(r.now.objects)) {
		for _, object := range r.now.objects[plural] {
			if w, is := object.resource.(*bocage.Workload); is && len(w.Status.Conditions) == 0 && r.absent[w.Spec.Host].reason == "" && len(r.findings[nameOf("Workload", w)]) == 0 && !r.remarkable(w) {
				continue // there is nothing to tell of most
			}
			if object.kind.Name != "Generation" && (object.kind.Name == "Host" || object.changed > s.inputs) {
				continue // hosts are not ours; what is not compiled yet has its turn
			}
			if r.now.unreadable[object.key] {
				continue // what is in the store is another
			}
			if err := write(object); err != nil {
				return 0, err
			}
		}
	}
	return r.wait, p.writeStatuses(ctx, ops)
}

// writeStatuses writes statuses together and, where one of them is out of date,
// each alone. One that is out of date is skipped: the watch brings the object
// as it is now, and with it another turn.
func (p *Policy) writeStatuses(ctx context.Context, ops []store.Op) error {
	if len(ops) == 0 {
		return nil
	}
	at, err := p.store.Apply(ctx, ops...)
	if err == nil {
		p.counters.statuses.Add(uint64(len(ops)))
		p.applied(ops, at)
		return nil
	}
	outdated := errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound)
	if !outdated || len(ops) == 1 {
		if outdated {
			return nil
		}
		return fmt.Errorf("write %d statuses: %w", len(ops), err)
	}
	for _, op := range ops {
		if err := p.writeStatuses(ctx, []store.Op{op}); err != nil {
			return err
		}
	}
	return nil
}

// reporter works out conditions for one outcome and one moment.
type reporter struct {
	p          *Policy
	o          *outcome // of what is declared
	s          *served
	now        view
	findings   map[string][]compile.Finding // by "Kind namespace/name"
	failed     []bocage.Proof
	broken     map[string]string   // what the proofs of the generation in force say of workloads
	heldBack   *heldBack           // what of today's inventory and time is not in force; nil: all is
	tests      []bocage.TestResult // of the generation in force
	inForce    map[string]digest   // by key, where another policy is in force than is declared
	held       string              // why that is so
	reason     string
	reported   map[string]uint64            // by host
	unwell     map[string]string            // what is wrong with hosts
	refused    map[string]map[string]string // profiles with the engine's words, by host
	placements *placements
	absent     map[string]absence // why a host that workloads name is not there
	told       int                // workloads that were told in this turn that their host is absent, or has come
	everyone   []string           // every host with an enforcement point
	wait       time.Duration
}

func (p *Policy) newReporter(o *outcome, s *served, now view) *reporter {
	if b := s.base; o.proofs == nil && o.blocked == "" && b != nil && b.policy.hash == o.policy.hash && b.environment.hash == o.environment.hash {
		o = o.carrying(b) // what is declared is in force, and was proved since it was compiled
	}
	r := &reporter{p: p, o: o, s: s, now: now, findings: map[string][]compile.Finding{}, failed: prove.Failed(o.proofs),
		reported: map[string]uint64{}, unwell: map[string]string{}, refused: map[string]map[string]string{}}
	for _, f := range o.output.Findings() {
		key := strings.TrimSpace(f.Object.Kind + " " + strings.TrimPrefix(f.Object.Namespace+"/"+f.Object.Name, "/"))
		r.findings[key] = append(r.findings[key], f)
	}
	for _, h := range now.hosts {
		r.reported[h.Name], r.refused[h.Name] = h.Status.Generation, h.Status.RefusedProfiles
		for _, c := range h.Status.Conditions {
			if c.Type == bocage.ConditionReady && c.Status != "True" {
				r.unwell[h.Name] = c.Message
			}
		}
	}
	r.placements = p.placements(o.input)
	r.everyone = r.placements.everyone
	r.absent = absentHosts(r.placements.named, now.hosts)
	r.compare()
	r.collectBroken()
	if s.base != nil && len(now.tests) > 0 {
		if r.tests = s.base.tests; s.base.tests == nil || !same(s.base.testedBy, now.tests) {
			r.tests = p.testsInForce(s.base, now.tests)
		}
	}
	return r
}

// compare finds what the policy in force has of each object, where it is another
// than is declared.
func (r *reporter) compare() {
	if r.s.base == nil {
		return
	}
	if r.s.base.policy.hash == r.now.policy.hash {
		if r.heldBack = newHeldBack(r.s.base, r.o); r.heldBack != nil {
			r.reason, r.held = "Blocked", fmt.Sprintf("generation %d is kept back, %s: what is in force is from before it began", r.o.number, r.o.blocked)
		}
		return
	}
	r.inForce = map[string]digest{}
	plurals := map[string]bocage.Kind{}
	each(r.s.base.input, func(kind string, o bocage.Resource) {
		if !isPolicy(kind) {
			return
		}
		k, known := plurals[kind]
		if !known {
			k, _ = bocage.KindNamed(kind)
			plurals[kind] = k
		}
		r.inForce[k.Key(o.Meta().Namespace, o.Meta().Name)] = fingerprint(o)
	})
	switch record := r.s.record; {
	case record.Pin != nil:
		r.reason, r.held = "Held", record.held()
	case r.o.blocked != "":
		r.reason, r.held = "Blocked", fmt.Sprintf("generation %d is kept back, %s: the policy in force is as before", r.o.number, r.o.blocked)
	case record.Candidate != nil:
		r.reason = record.Candidate.Stage
		r.held = fmt.Sprintf("on its way with generation %d, in stage %s until %s", record.Candidate.Number, r.reason, record.deadline(r.s.spec).UTC().Format(time.RFC3339))
	case record.Ended != nil:
		r.reason, r.held = "Held", record.held()
	default:
		r.reason, r.held = "Waiting", "it is about to come into force"
	}
}

// differs reports whether what is in force has another state of the object.
func (r *reporter) differs(object *object) bool {
	if e, is := object.resource.(*bocage.Exception); is && r.heldBack.beginning(e) {
		return true
	}
	if r.inForce == nil || !isPolicy(object.kind.Name) {
		return false
	}
	print, there := r.inForce[object.key]
	return !there || print != object.print
}

// testRun is what tests came to on a generation.
type testRun struct {
	of      *outcome
	tests   []*bocage.PolicyTest
	results []bocage.TestResult
}

// testsInForce runs the tests on the generation in force, once for each state of both.
func (p *Policy) testsInForce(o *outcome, tests []*bocage.PolicyTest) []bocage.TestResult {
	if run := p.tested.Load(); run != nil && run.of == o && same(run.tests, tests) {
		return run.results
	}
	run := &testRun{o, tests, o.test(tests)}
	p.tested.Store(run)
	return run.results
}

// status makes the write that brings an object's status up to date, and returns
// the object as it will be; nil if nothing has to change.
func (r *reporter) status(object *object) (store.Op, bocage.Resource, error) {
	if !r.update(object, object.resource, false) {
		return store.Op{}, nil, nil
	}
	fresh, err := decode(object.kind, object.key, object.value, object.revision) // what the mirror holds nobody changes
	if err != nil {
		return store.Op{}, nil, err
	}
	r.update(object, fresh.resource, true)
	value, err := store.EncodeObject(object.kind, fresh.resource)
	return store.Op{Key: object.key, Value: value, IfWas: object.revision}, fresh.resource, err
}

// statusNotice returns the notice about a change of status that people should know of: an
// exception has ended, a statement of a guardrail does not hold any more, a test begins to fail or to pass.
func statusNotice(before, after bocage.Resource) (reason, message string, warning bool) {
	switch after := after.(type) {
	case *bocage.Exception:
		was := conditionOf(before.(*bocage.Exception).Status.Conditions, bocage.ConditionCompiled)
		if is := conditionOf(after.Status.Conditions, bocage.ConditionCompiled); was.Status == "True" && is.Reason == compile.Expired {
			return "Ended", "the exception to Guardrail " + after.Spec.Guardrail + " is over: " + is.Message, false
		}
	case *bocage.Guardrail:
		was := conditionOf(before.(*bocage.Guardrail).Status.Conditions, bocage.ConditionProved)
		if is := conditionOf(after.Status.Conditions, bocage.ConditionProved); is.Reason == reasonProofFailed && was.Reason != reasonProofFailed {
			return reasonProofFailed, is.Message, true
		}
	case *bocage.PolicyTest:
		was := conditionOf(before.(*bocage.PolicyTest).Status.Conditions, bocage.ConditionReady)
		switch is := conditionOf(after.Status.Conditions, bocage.ConditionReady); {
		case is.Status == "False" && was.Status != "False":
			return "Failed", is.Message, true
		case is.Status == "True" && was.Status == "False":
			return "Passed", is.Message, false
		}
	}
	return "", "", false
}

// update brings a resource's status up to date, or only reports whether it has to.
func (r *reporter) update(object *object, resource bocage.Resource, write bool) bool {
	meta := resource.Meta()
	findings := r.findings[nameOf(object.kind.Name, resource)]
	if c, depends := bocage.ConsentOf(resource); depends && (*c.Approval).Waits(meta.Generation) {
		findings = append([]compile.Finding{compile.Unapproved(object.kind.Name, resource, *c.Approval, c.Kept())}, findings...)
	}
	set := func(conditions *[]bocage.Condition, want ...bocage.Condition) bool {
		return setConditions(conditions, want, write)
	}
	all := func(conditions *[]bocage.Condition, hosts []string) bool {
		return set(conditions, r.conditions(object, meta, *conditions, findings, hosts)...)
	}
	usage := func(have *[]bocage.Usage) bool {
		want := r.p.uses.Load().of(object.kind.Name, meta)
		if hits(want) <= hits(*have) {
			return false // another controller may know more already
		}
		if write {
			*have = want
		}
		return true
	}
	switch x := resource.(type) {
	case *bocage.Application:
		changed := all(&x.Status.Conditions, r.placements.hostsOf(object.input, func() []string { return r.selected([]string{x.Namespace}, &x.Spec.Workload) }))
		changed = usage(&x.Status.Usage) || changed
		missing := missing(findings)
		changed = changed || !slices.Equal(missing, x.Status.Missing)
		if write {
			x.Status.Missing = missing
		}
		return changed
	case *bocage.Guardrail:
		changed := all(&x.Status.Conditions, r.everyone)
		return usage(&x.Status.Usage) || changed
	case *bocage.Exception:
		changed := all(&x.Status.Conditions, r.everyone)
		return usage(&x.Status.Usage) || changed
	case *bocage.Response:
		return all(&x.Status.Conditions, r.everyone)
	case *bocage.Scope:
		if object.input == nil {
			return all(&x.Status.Conditions, nil)
		}
		spec := &object.input.(*bocage.Scope).Spec // as it counts
		return all(&x.Status.Conditions, r.placements.hostsOf(object.input, func() []string { return r.selected(spec.Namespaces, &spec.Workload) }))
	case *bocage.InspectionProfile:
		want := r.conditions(object, meta, x.Status.Conditions, findings, r.everyone)
		return set(&x.Status.Conditions, r.unlessRefused(want, meta.Name, r.everyone)...)
	case *bocage.Decoy:
		return all(&x.Status.Conditions, r.everyone)
	case *bocage.Quarantine:
		return all(&x.Status.Conditions, r.placed(x.Spec.Workload))
	case *bocage.ThreatCondition:
		return all(&x.Status.Conditions, r.concerned(x.Spec))
	case *bocage.AddressGroup:
		return all(&x.Status.Conditions, r.everyone)
	case *bocage.Zone:
		return all(&x.Status.Conditions, r.everyone)
	case *bocage.NetworkPolicy:
		return all(&x.Status.Conditions, r.placements.hostsOf(object.input, func() []string { return r.selected([]string{x.Namespace}, nil) }))
	case *bocage.ClusterNetworkPolicy:
		return all(&x.Status.Conditions, r.everyone)
	case *bocage.Workload:
		changed := set(&x.Status.Conditions, r.workloadConditions(x, findings)...)
		return r.hostOf(x, write) || changed
	case *bocage.Generation:
		return x.Status.Active && x.Status.Number == r.s.record.Base.Number &&
			set(&x.Status.Conditions, r.enforced(object, meta, nil, true, r.everyone))
	case *bocage.PolicyTest:
		return r.updateTest(x, write)
	case *bocage.Rollout:
		want := rolloutStatus(r.s, slices.Clone(x.Status.Conditions))
		for i := range want.Conditions {
			if want.Conditions[i].Type == bocage.ConditionReady {
				want.Conditions[i].ObservedGeneration = meta.Generation
			}
		}
		same := want.Stage == x.Status.Stage && want.Generation == x.Status.Generation && want.Active == x.Status.Active &&
			want.Deadline.Equal(x.Status.Deadline) && want.NewlyRefused == x.Status.NewlyRefused && slices.Equal(want.Conditions, x.Status.Conditions)
		if write {
			x.Status = want
		}
		return !same
	}
	return false
}

// updateTest says which cases of a test fail under the generation in force.
func (r *reporter) updateTest(t *bocage.PolicyTest, write bool) bool {
	name := t.NamespacedName()
	var failed, texts []string
	for _, result := range r.tests {
		if result.Test == name && !result.Passed {
			failed, texts = append(failed, result.Case), append(texts, resultText(result))
		}
	}
	ready := bocage.Condition{Type: bocage.ConditionReady, Status: "True", ObservedGeneration: t.Generation, Reason: "Passed",
		Message: fmt.Sprintf("all %d cases hold under generation %d", len(t.Spec.Cases), r.s.record.Base.Number)}
	degraded := bocage.Condition{Type: bocage.ConditionDegraded, Status: "False", ObservedGeneration: t.Generation, Reason: "AsPromised",
		Message: "what it states holds"}
	switch {
	case r.s.base == nil:
		ready.Status, ready.Reason, ready.Message = "Unknown", "NothingInForce", "no generation is in force yet"
	case len(failed) > 0:
		ready.Status, ready.Reason = "False", "Failed"
		ready.Message = fmt.Sprintf("%d of %d cases do not hold under generation %d: %s", len(failed), len(t.Spec.Cases), r.s.record.Base.Number, joined(texts))
		degraded.Status, degraded.Reason, degraded.Message = "True", "Failed", "what it states does not hold: "+joined(texts)
	}
	if ready.Status == "True" && r.o.blocked != "" {
		texts = nil
		for _, result := range r.o.tests {
			if result.Test == name && !result.Passed {
				texts = append(texts, resultText(result))
			}
		}
		if len(texts) > 0 {
			ready.Message += fmt.Sprintf("; generation %d, in which they do not, is kept back: %s", r.o.number, joined(texts))
		}
	}
	accepted := bocage.Condition{Type: bocage.ConditionAccepted, Status: "True", ObservedGeneration: t.Generation, Reason: "Accepted", Message: "it is run on every generation"}
	changed := setConditions(&t.Status.Conditions, []bocage.Condition{accepted, ready, degraded}, write)
	if slices.Equal(failed, t.Status.Failed) {
		return changed
	}
	if write {
		t.Status.Failed = failed
	}
	return true
}
