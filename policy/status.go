package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/store"
)

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
	o := p.current.Load()
	if o == nil {
		return 0, nil
	}
	r := newReporter(o, p.mirror.view())
	keys := make([]string, 0, len(r.now.objects))
	for key := range r.now.objects {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	var ops []store.Op
	for _, key := range keys {
		object := r.now.objects[key]
		if object.kind.Name != "Generation" && (object.kind.Name == "Host" || o.view.prints[key] != object.print) {
			continue // hosts are not ours; what is not compiled yet has its turn
		}
		op, changed, err := r.status(key, object)
		if err != nil {
			return 0, err
		}
		if changed {
			ops = append(ops, op)
		}
		if len(ops) == statusBatch {
			if err := p.writeStatuses(ctx, ops); err != nil {
				return 0, err
			}
			ops = nil
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
	o        *outcome
	now      view
	findings map[string][]compile.Finding // by "Kind namespace/name"
	failed   []bocage.Proof
	reported map[string]uint64            // by host
	refused  map[string]map[string]string // profiles with the engine's words, by host
	placedIn map[string][]placement       // workloads with an interface, by namespace
	everyone []string                     // every host with such a workload
	wait     time.Duration
}

// placement is a workload as selectors see it, and where it is.
type placement struct {
	name, host string
	labels     map[string]string
}

func newReporter(o *outcome, now view) *reporter {
	r := &reporter{o: o, now: now, findings: map[string][]compile.Finding{}, failed: prove.Failed(o.proofs), reported: map[string]uint64{}, refused: map[string]map[string]string{}, placedIn: map[string][]placement{}}
	for _, f := range o.output.Findings {
		key := f.Object.Kind + " " + f.Object.Namespace + "/" + f.Object.Name
		r.findings[key] = append(r.findings[key], f)
	}
	for _, h := range now.hosts {
		r.reported[h.Name], r.refused[h.Name] = h.Status.Generation, h.Status.RefusedProfiles
	}
	hosts := map[string]bool{}
	for _, w := range o.input.Workloads {
		if w.Spec.Interface != "" {
			r.placedIn[w.Namespace] = append(r.placedIn[w.Namespace], placement{w.Name, w.Spec.Host, w.AllLabels()})
			hosts[w.Spec.Host] = true
		}
	}
	r.everyone = sortedNames(hosts)
	return r
}

// status makes the write that brings an object's status up to date.
func (r *reporter) status(key string, object *object) (store.Op, bool, error) {
	if !r.update(key, object.kind, object.resource, false) {
		return store.Op{}, false, nil
	}
	fresh, err := decode(object.kind, key, object.value, object.revision) // what the mirror holds nobody changes
	if err != nil {
		return store.Op{}, false, err
	}
	r.update(key, object.kind, fresh.resource, true)
	value, err := store.EncodeObject(object.kind, fresh.resource)
	return store.Op{Key: key, Value: value, IfWas: object.revision}, true, err
}

// update brings a resource's status up to date, or only reports whether it has to.
func (r *reporter) update(key string, kind bocage.Kind, resource bocage.Resource, write bool) bool {
	meta := resource.Meta()
	findings := r.findings[kind.Name+" "+meta.Namespace+"/"+meta.Name]
	set := func(conditions *[]bocage.Condition, want ...bocage.Condition) bool {
		return setConditions(conditions, want, write)
	}
	four := func(conditions *[]bocage.Condition, hosts []string) bool {
		return set(conditions, r.conditions(key, meta, *conditions, findings, hosts)...)
	}
	switch x := resource.(type) {
	case *bocage.Application:
		changed := four(&x.Status.Conditions, r.selected([]string{x.Namespace}, &x.Spec.Workload))
		missing := missing(findings)
		changed = changed || !slices.Equal(missing, x.Status.Missing)
		if write {
			x.Status.Missing = missing
		}
		return changed
	case *bocage.Guardrail:
		return four(&x.Status.Conditions, r.selected(nil, nil))
	case *bocage.Scope:
		return four(&x.Status.Conditions, r.selected(x.Spec.Namespaces, &x.Spec.Workload))
	case *bocage.InspectionProfile:
		hosts := r.selected(nil, nil)
		want := r.conditions(key, meta, x.Status.Conditions, findings, hosts)
		return set(&x.Status.Conditions, r.unlessRefused(want, meta.Name, hosts)...)
	case *bocage.Decoy:
		return four(&x.Status.Conditions, r.selected(nil, nil))
	case *bocage.Quarantine:
		return four(&x.Status.Conditions, r.placed(x.Spec.Workload))
	case *bocage.ThreatCondition:
		return four(&x.Status.Conditions, r.placed(x.Spec.Workload))
	case *bocage.Workload:
		rejected := slices.ContainsFunc(findings, func(f compile.Finding) bool { return f.Rejected })
		told := slices.ContainsFunc(x.Status.Conditions, func(c bocage.Condition) bool { return c.Type == bocage.ConditionAccepted })
		return (rejected || told) && set(&x.Status.Conditions, accepted(meta, findings))
	case *bocage.Generation:
		return x.Status.Active && x.Status.Number == r.o.activeNo &&
			set(&x.Status.Conditions, r.enforced(meta, nil, x.Status.Number, true, r.selected(nil, nil)))
	}
	return false
}

// unlessRefused denies that a profile is enforced where an engine does not take it.
func (r *reporter) unlessRefused(conditions []bocage.Condition, profile string, hosts []string) []bocage.Condition {
	for _, host := range hosts {
		words, refused := r.refused[host][profile]
		if !refused {
			continue
		}
		for i := range conditions {
			if conditions[i].Type == bocage.ConditionEnforced {
				conditions[i].Status, conditions[i].Reason = "False", "ProfileRefused"
				conditions[i].Message = "the inspection engine of " + host + " does not take it: " + words
			}
		}
		break
	}
	return conditions
}

// setConditions reports whether anything but the time is another, and writes it
// if asked to.
func setConditions(conditions *[]bocage.Condition, wanted []bocage.Condition, write bool) bool {
	changed := false
	for _, want := range wanted {
		i := slices.IndexFunc(*conditions, func(old bocage.Condition) bool { return old.Type == want.Type })
		if i >= 0 {
			want.LastTransitionTime = (*conditions)[i].LastTransitionTime
			if (*conditions)[i] == want {
				continue
			}
		}
		changed = true
		if write {
			want.LastTransitionTime = time.Now().UTC().Truncate(time.Second)
			*conditions = bocage.SetCondition(*conditions, want)
		}
	}
	return changed
}

// conditions are the four that every declaration carries.
func (r *reporter) conditions(key string, meta *bocage.ObjectMeta, old []bocage.Condition, findings []compile.Finding, hosts []string) []bocage.Condition {
	compiled := bocage.Condition{Type: bocage.ConditionCompiled, Status: "True", ObservedGeneration: meta.Generation,
		Reason: "Compiled", Message: "it is part of what was compiled"}
	out := slices.IndexFunc(findings, func(f compile.Finding) bool {
		return f.Reason == compile.Expired || f.Rejected && (f.Object.Field == "" || f.Reason == compile.UnknownWorkload)
	})
	if out >= 0 {
		compiled.Status, compiled.Reason, compiled.Message = "False", findings[out].Reason, findings[out].Message
	}
	return []bocage.Condition{accepted(meta, findings), compiled, r.proved(key, meta, old, out < 0), r.enforced(meta, old, r.o.since[key], out < 0, hosts)}
}

func accepted(meta *bocage.ObjectMeta, findings []compile.Finding) bocage.Condition {
	c := bocage.Condition{Type: bocage.ConditionAccepted, Status: "True", ObservedGeneration: meta.Generation, Reason: "Accepted",
		Message: "it makes sense together with the others"}
	var rejected, notes []compile.Finding
	for _, f := range findings {
		if f.Rejected {
			rejected = append(rejected, f)
		} else {
			notes = append(notes, f)
		}
	}
	switch {
	case len(rejected) > 0:
		c.Status, c.Reason, c.Message = "False", rejected[0].Reason, messages(rejected)
	case len(notes) > 0:
		c.Reason, c.Message = notes[0].Reason, messages(notes)
	}
	return c
}

// mostMessages keeps conditions readable.
const mostMessages = 5

func messages(findings []compile.Finding) string {
	var texts []string
	for i, f := range findings {
		if i == mostMessages {
			texts = append(texts, fmt.Sprintf("and %d more", len(findings)-i))
			break
		}
		text := f.Message
		if f.Object.Field != "" {
			text = f.Object.Field + ": " + text
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, "; ")
}

// missing lists the halves of contracts that the other side owes.
func missing(findings []compile.Finding) []string {
	var out []string
	for _, f := range findings {
		switch f.Reason {
		case compile.PeerMissing, compile.UnknownApplication, compile.UnknownInterface:
			out = append(out, f.Object.Field+": "+f.Message)
		}
	}
	return out
}

func provedCondition(o *outcome, generation int64) bocage.Condition {
	c := bocage.Condition{Type: bocage.ConditionProved, Status: "True", ObservedGeneration: generation,
		LastTransitionTime: o.at.UTC().Truncate(time.Second), Reason: "Proved",
		Message: fmt.Sprintf("%d statements hold for every pair of groups and every port", len(o.proofs))}
	if failed := prove.Failed(o.proofs); len(failed) > 0 {
		c.Status, c.Reason = "False", "ProofFailed"
		c.Message = fmt.Sprintf("%s (%s), yet: %s", failed[0].Statement, failed[0].By, failed[0].Counterexample)
	}
	return c
}

// proved tells the owner of a statement that fails, and those whose change has
// to wait for it.
func (r *reporter) proved(key string, meta *bocage.ObjectMeta, old []bocage.Condition, in bool) bocage.Condition {
	c := bocage.Condition{Type: bocage.ConditionProved, Status: "True", ObservedGeneration: meta.Generation, Reason: "Proved",
		Message: "all statements about the policy that it is part of hold"}
	for _, f := range r.failed {
		if f.By.Kind+" "+f.By.Namespace+"/"+f.By.Name == r.now.objects[key].kind.Name+" "+meta.Namespace+"/"+meta.Name {
			c.Status, c.Reason, c.Message = "False", "ProofFailed", fmt.Sprintf("%s: %s, yet: %s", f.By.Field, f.Statement, f.Counterexample)
			return c
		}
	}
	switch {
	case !in:
		c.Status, c.Reason, c.Message = "False", "NotCompiled", "it is no part of the policy"
	case r.o.blocked && !held(old, bocage.ConditionProved, meta.Generation):
		c.Status, c.Reason = "False", "Blocked"
		c.Message = fmt.Sprintf("generation %d was not activated, for a proof failed: %s", r.o.number, r.failed[0].Statement)
	}
	return c
}

// held reports whether a condition was true of this state of the object.
func held(conditions []bocage.Condition, kind string, generation int64) bool {
	return slices.ContainsFunc(conditions, func(c bocage.Condition) bool {
		return c.Type == kind && c.Status == "True" && c.ObservedGeneration == generation
	})
}

// enforced tells whether every host concerned has taken the generation since
// which the object is as it is. What was enforced before stays so while hosts
// take a newer generation, unless one of them lags.
func (r *reporter) enforced(meta *bocage.ObjectMeta, old []bocage.Condition, since uint64, in bool, hosts []string) bocage.Condition {
	c := bocage.Condition{Type: bocage.ConditionEnforced, Status: "False", ObservedGeneration: meta.Generation}
	if i := slices.IndexFunc(old, func(c bocage.Condition) bool { return c.Type == bocage.ConditionEnforced }); in && r.o.blocked && since == 0 &&
		i >= 0 && old[i].ObservedGeneration == meta.Generation {
		return old[i] // said by a process that knew the generation in force
	}
	if !in || r.o.blocked && since == 0 {
		c.Reason, c.Message = "NotCompiled", "it is no part of the policy in force"
		return c
	}
	if r.o.blocked && !held(old, bocage.ConditionProved, meta.Generation) {
		c.Reason, c.Message = "Blocked", "a proof failed: the policy in force is as before"
		return c
	}
	if len(hosts) == 0 {
		c.Status, c.Reason, c.Message = "True", "NoWorkloads", "no workload that it concerns is placed on a host"
		return c
	}
	need := r.o.activeNo
	if fresh := time.Since(r.o.at); fresh < patience && held(old, bocage.ConditionEnforced, meta.Generation) {
		need = since // others' changes are on their way
		if r.wait == 0 || patience-fresh < r.wait {
			r.wait = patience - fresh
		}
	}
	var waiting []string
	for _, host := range hosts {
		if r.reported[host] < need {
			waiting = append(waiting, host)
		}
	}
	if len(waiting) == 0 {
		c.Status, c.Reason, c.Message = "True", "AllHosts", fmt.Sprintf("in force on all %d hosts concerned", len(hosts))
		if len(hosts) == 1 {
			c.Message = "in force on " + hosts[0]
		}
		return c
	}
	c.Reason = "Waiting"
	c.Message = fmt.Sprintf("%d of %d hosts concerned have not taken it yet: %s", len(waiting), len(hosts), strings.Join(waiting[:min(len(waiting), 5)], ", "))
	return c
}

// selected lists the hosts of placed workloads that a selector (nil: all) picks
// in namespaces (none: all).
func (r *reporter) selected(namespaces []string, s *bocage.Selector) []string {
	all := s == nil || len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 0
	if all && len(namespaces) == 0 {
		return r.everyone
	}
	hosts := map[string]bool{}
	pick := func(workloads []placement) {
		for _, w := range workloads {
			if !hosts[w.host] && (all || s.Matches(w.labels)) {
				hosts[w.host] = true
			}
		}
	}
	for _, namespace := range namespaces {
		pick(r.placedIn[namespace])
	}
	if len(namespaces) == 0 {
		for _, workloads := range r.placedIn {
			pick(workloads)
		}
	}
	return sortedNames(hosts)
}

// placed lists the host of one workload.
func (r *reporter) placed(name string) []string {
	namespace, short, _ := strings.Cut(name, "/")
	for _, w := range r.placedIn[namespace] {
		if w.name == short {
			return []string{w.host}
		}
	}
	return nil
}
