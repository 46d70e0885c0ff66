package policy

import (
	"cmp"
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

// Actions of a RolloutRequest.
const (
	actionConfirm  = "confirm"
	actionRollback = "rollback"
	actionPromote  = "promote"
)

// effectTimeout is how long a request waits for its effect.
const effectTimeout = 10 * time.Second

// Rollout carries out a person's request about the newest generation, and returns the
// status of the rollout afterwards. Any controller may be asked.
func (p *Policy) Rollout(ctx context.Context, who string, request bocage.RolloutRequest) (bocage.RolloutStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, effectTimeout)
	defer cancel()
	for {
		r, revision, err := readRecord(ctx, p.store)
		if err != nil {
			return bocage.RolloutStatus{}, err
		}
		if r.Base.Number == 0 {
			return bocage.RolloutStatus{}, ErrNoPolicy
		}
		next, said, err := p.request(ctx, r, who, request)
		if err != nil {
			return bocage.RolloutStatus{}, err
		}
		op, err := next.op(revision)
		if err != nil {
			return bocage.RolloutStatus{}, err
		}
		at, err := p.store.Apply(ctx, op)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return bocage.RolloutStatus{}, fmt.Errorf("%s: %w", request.Action, err)
		}
		if request.Action == actionConfirm {
			p.counters.confirmed.Add(1)
		}
		p.logger.InfoContext(ctx, "rollout is changed by a person", slog.String("action", request.Action), slog.String("by", who), slog.Uint64("generation", said.number))
		p.notices.tell("Generation", "", generationName(said.number), said.reason, said.message, said.warning)
		p.notify(next.Number)
		wake(p.mirror.changed)
		return p.awaitEffect(ctx, at)
	}
}

// declined returns the error for a request that is not possible in the present state: a
// fault of the request, not of the controller.
func declined(format string, args ...any) error {
	return bocage.Faults{{Message: fmt.Sprintf(format, args...)}}
}

// request returns the record as a person asks to change it, and the notice about that.
func (p *Policy) request(ctx context.Context, r record, who string, request bocage.RolloutRequest) (record, notice, error) {
	switch request.Action {
	case actionConfirm:
		if request.Generation != 0 && request.Generation != r.Base.Number {
			return r, notice{}, declined("generation %d is not in force, %d is: confirm that, or nothing", request.Generation, r.Base.Number)
		}
		if r.ConfirmBy.IsZero() && r.Pin == nil && r.Ended == nil {
			return r, notice{}, declined("generation %d is in force and nothing waits for being confirmed", r.Base.Number)
		}
		message := fmt.Sprintf("%s confirmed generation %d", who, r.Base.Number)
		if r.Pin != nil || r.Ended != nil {
			message += ": what is declared may come into force again"
		}
		if !r.ConfirmBy.IsZero() {
			r.ConfirmedUpTo, r.ConfirmedBy = r.Base.Number, who
			r.Confirmed = r.Base
		}
		r.ConfirmBy, r.Pin, r.Ended = time.Time{}, nil, nil
		return r, notice{r.Base.Number, "Confirmed", message, false}, nil
	case actionRollback:
		to, err := p.rollbackTo(ctx, r, request.Generation)
		if err != nil {
			return r, notice{}, err
		}
		from := r.Base.Number
		if r.Candidate != nil && to.PolicyName == r.Base.Policy {
			from = r.Candidate.Number
		}
		pinned := &pin{version: version{Number: to.Number, Policy: to.PolicyName}, By: who, At: p.now().UTC().Truncate(time.Second), From: from,
			Why: "rolled back by " + who, Reason: "RolledBack"}
		message := fmt.Sprintf("%s went back from generation %d to the policy of generation %d", who, from, to.Number)
		if err := p.keepGuardrails(ctx, r, to, pinned); err != nil {
			return r, notice{}, err
		}
		if r.Pin = pinned; r.Pin.Kept != "" {
			message += ", with the guardrails, exceptions and scopes in force, about which two people decide"
		}
		if r.Pin.Unconfirmed == "" {
			r.ConfirmBy = time.Time{} // else the kept guardrails, which nobody has confirmed, go back at that time
		}
		r.Candidate, r.Ended = nil, nil
		return r, notice{from, "RolledBack", message, true}, nil
	case actionPromote:
		if r.Candidate == nil && !r.ConfirmBy.IsZero() {
			return r, notice{}, declined("generation %d is in force everywhere and goes back at %s unless it is confirmed: bocage policy confirm. There is no stage to end before that", r.Base.Number, r.ConfirmBy.Format(time.RFC3339))
		}
		if r.Candidate == nil {
			return r, notice{}, declined("nothing is on its way into force: there is no stage to end")
		}
		if request.Generation != 0 && request.Generation != r.Candidate.Number {
			return r, notice{}, declined("generation %d is not on its way into force, %d is", request.Generation, r.Candidate.Number)
		}
		c := *r.Candidate
		c.EndStage, c.EndedBy = true, who
		r.Candidate = &c
		return r, notice{c.Number, "Promoted", fmt.Sprintf("%s ended the stage %s", who, c.Stage), false}, nil
	}
	return r, notice{}, declined("%q is none of confirm, rollback and promote", request.Action)
}

// keepGuardrails makes a rollback keep the guardrails in force and what decides their
// reach, if two people decide about those: their exceptions, the scopes that enforce them,
// and the address groups and profiles that they name.
func (p *Policy) keepGuardrails(ctx context.Context, r record, to snapshotList, pinned *pin) error {
	if !p.twoPerson || to.PolicyName == r.Base.Policy {
		return nil
	}
	lists, err := p.keptSnapshots(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(lists, func(l snapshotList) bool { return l.PolicyName == r.Base.Policy })
	if i < 0 {
		return fmt.Errorf("find the guardrails in force, which stay as they are: %w", errNotKept)
	}
	back, kept, err := p.readBoth(ctx, to, lists[i])
	if err != nil {
		return err
	}
	if sameGuardrails(back, kept) {
		return nil
	}
	_, policy := composed(back, kept)
	if _, now := composed(kept, kept); now.hash == policy.hash {
		return declined("generation %d differs from what is in force in guardrails and what decides their reach only (exceptions, scopes, address groups, profiles), about which two people decide: change or delete those and have it approved, or name an older generation that bocage policy history lists", to.Number)
	}
	pinned.Policy, pinned.Kept = policy.name(), r.Base.Policy
	if r.ConfirmBy.IsZero() {
		return nil
	}
	i = slices.IndexFunc(lists, func(l snapshotList) bool { return l.PolicyName == r.Confirmed.Policy })
	if i < 0 {
		return fmt.Errorf("find the guardrails that were confirmed last: %w", errNotKept)
	}
	lists[i].Environment = nil
	confirmed, _, err := readSnapshot(ctx, p.store, lists[i])
	if err != nil {
		return err
	}
	if !sameGuardrails(confirmed, kept) {
		_, policy = composed(back, confirmed)
		pinned.Unconfirmed = policy.name()
	}
	return nil
}

// readBoth reads the policy of the generation to go back to, and of the one whose
// guardrails are kept.
func (p *Policy) readBoth(ctx context.Context, to, from snapshotList) (back, kept compile.Input, err error) {
	to.Environment, from.Environment = nil, nil
	if back, _, err = readSnapshot(ctx, p.store, to); err != nil {
		return back, kept, err
	}
	kept, _, err = readSnapshot(ctx, p.store, from)
	return back, kept, err
}

// sameDeclared reports whether two sorted lists hold the same declarations.
func sameDeclared[T bocage.Resource](a, b []T) bool {
	return slices.EqualFunc(a, b, func(x, y T) bool {
		return x.Meta().NamespacedName() == y.Meta().NamespacedName() && fingerprint(x) == fingerprint(y)
	})
}

// sameGuardrails reports whether two policies have the same guardrails, with the same reach.
func sameGuardrails(a, kept compile.Input) bool {
	reach := reachOf(kept)
	return sameDeclared(a.Guardrails, kept.Guardrails) && sameDeclared(a.Exceptions, kept.Exceptions) &&
		sameDeclared(named(reach, a.Scopes), named(reach, kept.Scopes)) &&
		sameDeclared(named(reach, a.AddressGroups), named(reach, kept.AddressGroups)) &&
		sameDeclared(named(reach, a.Profiles), named(reach, kept.Profiles))
}

// reachOf returns what decides the reach of a policy's guardrails. Exceptions count even
// after their end, so that the answer does not depend on the time.
func reachOf(in compile.Input) bocage.Reach {
	return bocage.ReachOf(in.Guardrails, in.Exceptions, in.Scopes, time.Time{})
}

// named returns those of the objects that decide the reach of guardrails.
func named[T bocage.Resource](reach bocage.Reach, list []T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(o T) bool { return !reach.Depends(o) })
}

// composed returns one policy with the guardrails of another, and with what decides their
// reach. AddressGroups and InspectionProfiles that these may name are added if the first
// policy lacks them.
func composed(policy, kept compile.Input) (compile.Input, *snapshot) {
	reach := reachOf(kept)
	policy.Guardrails, policy.Exceptions = kept.Guardrails, kept.Exceptions
	policy.Scopes = withNamed(reach, policy.Scopes, kept.Scopes)
	policy.AddressGroups = withAbsent(withNamed(reach, policy.AddressGroups, kept.AddressGroups), kept.AddressGroups)
	policy.Profiles = withAbsent(withNamed(reach, policy.Profiles, kept.Profiles), kept.Profiles)
	sortInput(&policy)
	b := newBuckets()
	each(policy, func(name string, resource bocage.Resource) {
		kind, _ := bocage.KindNamed(name)
		key := kind.Key(resource.Meta().Namespace, resource.Meta().Name)
		b.note(key, &object{key: key, kind: kind, resource: resource, input: resource, print: fingerprint(resource)})
	})
	return policy, b.snapshot()
}

// withNamed takes what guardrails depend on from the others, and the rest from the list.
func withNamed[T bocage.Resource](reach bocage.Reach, list, others []T) []T {
	list = slices.DeleteFunc(slices.Clone(list), func(o T) bool { return reach.Depends(o) })
	return append(list, named(reach, others)...)
}

// withAbsent adds those of the others that the list has none of the name of.
func withAbsent[T bocage.Resource](list, others []T) []T {
	list = slices.Clone(list)
	for _, o := range others {
		if !slices.ContainsFunc(list, func(l T) bool { return l.Meta().NamespacedName() == o.Meta().NamespacedName() }) {
			list = append(list, o)
		}
	}
	return list
}

// keptSnapshots lists the kept generations, the newest first.
func (p *Policy) keptSnapshots(ctx context.Context) ([]snapshotList, error) {
	entries, _, err := listAll(ctx, p.store, snapshotPrefix)
	if err != nil {
		return nil, err
	}
	lists := make([]snapshotList, len(entries))
	for i, e := range entries {
		if err := json.Unmarshal(e.Value, &lists[i]); err != nil {
			return nil, fmt.Errorf("read %s: %w", e.Key, err)
		}
	}
	slices.SortFunc(lists, func(a, b snapshotList) int { return cmp.Compare(b.Number, a.Number) })
	return lists, nil
}

// rollbackTo finds the generation to go back to: the one that is named; else the one in
// force, if a candidate is in a rollout; else that of the last policy that was in force
// before. If a rollback is in force already, a generation has to be named: two people who
// see the same problem and both ask for a rollback mean one step, not two.
func (p *Policy) rollbackTo(ctx context.Context, r record, number uint64) (snapshotList, error) {
	if number == 0 && (r.Pin != nil || r.Ended != nil) {
		return snapshotList{}, declined("generation %d is in force already instead of what is declared, which is %s; to go back further, name a generation that bocage policy history lists", r.Base.Number, r.held())
	}
	lists, err := p.keptSnapshots(ctx)
	if err != nil {
		return snapshotList{}, err
	}
	if number != 0 {
		if i := slices.IndexFunc(lists, func(l snapshotList) bool { return l.Number == number }); i >= 0 {
			return lists[i], nil
		}
		return snapshotList{}, declined("generation %d: %v: see bocage policy history", number, errNotKept)
	}
	before := r.FormerPolicies
	if r.Candidate != nil {
		before = []string{r.Base.Policy}
	}
	for _, policy := range slices.Backward(before) {
		if i := slices.IndexFunc(lists, func(l snapshotList) bool {
			return l.PolicyName == policy && l.Number <= r.Base.Number && (r.Candidate != nil || policy != r.Base.Policy)
		}); i >= 0 {
			return lists[i], nil
		}
	}
	return snapshotList{}, declined("there is no generation before to go back to")
}

// awaitEffect waits until this controller has built from the record at a revision.
func (p *Policy) awaitEffect(ctx context.Context, at store.Revision) (bocage.RolloutStatus, error) {
	for {
		p.mu.Lock()
		advanced := p.advanced
		p.mu.Unlock()
		if s := p.served.Load(); s != nil && s.revision >= at {
			return rolloutStatus(s, nil), nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return bocage.RolloutStatus{}, fmt.Errorf("the request is recorded, and this controller has not acted on it yet: see bocage policy history: %w", ctx.Err())
		}
	}
}

// rolloutStatus describes the present state of the rollout.
func rolloutStatus(s *served, old []bocage.Condition) bocage.RolloutStatus {
	r := s.record
	status := bocage.RolloutStatus{Stage: bocage.StageActive, Generation: r.Base.Number, Active: r.Base.Number,
		Deadline: r.deadline(s.spec).UTC(), Conditions: old}
	if status.Deadline.IsZero() {
		status.Deadline = time.Time{}
	}
	c := bocage.Condition{Type: bocage.ConditionReady, Status: "True", Reason: "InForce",
		Message: fmt.Sprintf("what is declared is in force as generation %d", r.Base.Number)}
	switch {
	case r.Blocked != nil && r.Candidate == nil:
		status.Stage, status.Generation = bocage.StageBlocked, r.Blocked.Number
		c.Status, c.Reason, c.Message = "False", "Blocked", fmt.Sprintf("generation %d is kept back: see bocage get generation g%d", r.Blocked.Number, r.Blocked.Number)
	case r.Pin != nil:
		status.Stage = bocage.StageRolledBack
		c.Status, c.Reason, c.Message = "False", "RolledBack", r.held()
		if !r.ConfirmBy.IsZero() {
			c.Message += fmt.Sprintf("; at %s the guardrails, which nobody has confirmed, go back too", r.ConfirmBy.Format(time.RFC3339))
		}
	case r.Candidate != nil:
		status.Stage, status.Generation = r.Candidate.Stage, r.Candidate.Number
		c.Status, c.Reason = "False", r.Candidate.Stage
		c.Message = fmt.Sprintf("generation %d is on its way until %s", r.Candidate.Number, status.Deadline.Format(time.RFC3339))
		status.NewlyRefused = r.Candidate.NewlyRefused
	case r.Ended != nil:
		status.Stage, status.Generation = bocage.StageEnded, r.Ended.Number
		c.Status, c.Reason, c.Message = "False", r.Ended.Reason, r.held()
	case !r.ConfirmBy.IsZero():
		status.Stage = bocage.StageConfirming
		c.Status, c.Reason = "False", bocage.StageConfirming
		c.Message = fmt.Sprintf("generation %d is in force and goes back at %s unless a person confirms it: bocage policy confirm", r.Base.Number, r.ConfirmBy.Format(time.RFC3339))
	}
	setConditions(&status.Conditions, []bocage.Condition{c}, true)
	return status
}

// held says why what is declared is held back; empty if it is not.
func (r record) held() string {
	switch {
	case r.Pin != nil && r.Pin.By != "":
		with := ""
		if r.Pin.Kept != "" {
			with = ", with the guardrails, exceptions and scopes that were in force"
		}
		if r.Pin.Policy == r.Pin.Unconfirmed {
			with = ", with the guardrails, exceptions and scopes that were confirmed last"
		}
		return fmt.Sprintf("held: rolled back to g%d by %s%s; bocage policy confirm lets go", r.Pin.Number, r.Pin.By, with)
	case r.Pin != nil:
		return fmt.Sprintf("held: rolled back to g%d, for %s; bocage policy confirm lets go", r.Pin.Number, r.Pin.Why)
	case r.Ended != nil:
		return "held: its rollout ended, for " + r.Ended.Message + "; change the declarations, or try again with bocage policy confirm"
	}
	return ""
}
