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
	"bocage.dev/bocage/store"
)

// Actions of a RolloutRequest.
const (
	actionConfirm  = "confirm"
	actionRollback = "rollback"
	actionPromote  = "promote"
)

// effectMost is how long a request waits until what it asked for is so.
const effectMost = 10 * time.Second

// Rollout does what a person says of the newest generation, and returns how
// things stand when it is done. Any controller may be asked.
func (p *Policy) Rollout(ctx context.Context, who string, request bocage.RolloutRequest) (bocage.RolloutStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, effectMost)
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
		return p.effect(ctx, at)
	}
}

// request changes the record as a person asks for.
func (p *Policy) request(ctx context.Context, r record, who string, request bocage.RolloutRequest) (record, notice, error) {
	switch request.Action {
	case actionConfirm:
		if request.Generation != 0 && request.Generation != r.Base.Number {
			return r, notice{}, fmt.Errorf("generation %d is not in force, %d is: confirm that, or nothing", request.Generation, r.Base.Number)
		}
		if r.ConfirmBy.IsZero() && r.Pin == nil && r.Ended == nil {
			return r, notice{}, fmt.Errorf("generation %d is in force and nothing waits for being confirmed", r.Base.Number)
		}
		message := fmt.Sprintf("%s confirmed generation %d", who, r.Base.Number)
		if r.Pin != nil || r.Ended != nil {
			message += ": what is declared may come into force again"
		}
		if !r.ConfirmBy.IsZero() {
			r.Said = r.Base.Number
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
		if r.Candidate != nil && to.Of == r.Base.Policy {
			from = r.Candidate.Number
		}
		r.Pin = &pin{version: version{Number: to.Number, Policy: to.Of}, By: who, At: p.now().UTC().Truncate(time.Second), From: from,
			Why: "rolled back by " + who}
		r.Candidate, r.ConfirmBy, r.Ended = nil, time.Time{}, nil
		return r, notice{from, "RolledBack", fmt.Sprintf("%s went back from generation %d to the policy of generation %d", who, from, to.Number), true}, nil
	case actionPromote:
		if r.Candidate == nil {
			return r, notice{}, errors.New("nothing is on its way into force: there is no stage to end")
		}
		if request.Generation != 0 && request.Generation != r.Candidate.Number {
			return r, notice{}, fmt.Errorf("generation %d is not on its way into force, %d is", request.Generation, r.Candidate.Number)
		}
		c := *r.Candidate
		c.Hurry = true
		r.Candidate = &c
		return r, notice{c.Number, "Promoted", fmt.Sprintf("%s ended the stage %s", who, c.Stage), false}, nil
	}
	return r, notice{}, fmt.Errorf("%q is none of confirm, rollback and promote", request.Action)
}

// rollbackTo finds what to go back to: the generation that is named; else what is
// in force, where something is on its way; else the last policy that was in force
// before. What is declared and held already is not gone back from once more: two
// people who see the same trouble mean one step.
func (p *Policy) rollbackTo(ctx context.Context, r record, number uint64) (shelfList, error) {
	if number == 0 && (r.Pin != nil || r.Ended != nil) {
		return shelfList{}, fmt.Errorf("generation %d is in force already instead of what is declared, which is %s; to go back further, name a generation that bocage policy history lists", r.Base.Number, r.held())
	}
	entries, _, err := listAll(ctx, p.store, snapshots)
	if err != nil {
		return shelfList{}, err
	}
	lists := make([]shelfList, len(entries))
	for i, e := range entries {
		if err := json.Unmarshal(e.Value, &lists[i]); err != nil {
			return shelfList{}, fmt.Errorf("read %s: %w", e.Key, err)
		}
	}
	slices.SortFunc(lists, func(a, b shelfList) int { return cmp.Compare(b.Number, a.Number) })
	if number != 0 {
		if i := slices.IndexFunc(lists, func(l shelfList) bool { return l.Number == number }); i >= 0 {
			return lists[i], nil
		}
		return shelfList{}, fmt.Errorf("generation %d: %w: see bocage policy history", number, errNotKept)
	}
	before := r.Stood
	if r.Candidate != nil {
		before = []string{r.Base.Policy}
	}
	for _, policy := range slices.Backward(before) {
		if i := slices.IndexFunc(lists, func(l shelfList) bool {
			return l.Of == policy && l.Number <= r.Base.Number && (r.Candidate != nil || policy != r.Base.Policy)
		}); i >= 0 {
			return lists[i], nil
		}
	}
	return shelfList{}, errors.New("there is no generation before to go back to")
}

// effect waits until this controller has made something of a request.
func (p *Policy) effect(ctx context.Context, at store.Revision) (bocage.RolloutStatus, error) {
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

// rolloutStatus says where rollouts stand.
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
	case r.Candidate != nil:
		status.Stage, status.Generation = r.Candidate.Stage, r.Candidate.Number
		c.Status, c.Reason = "False", r.Candidate.Stage
		c.Message = fmt.Sprintf("generation %d is on its way until %s", r.Candidate.Number, status.Deadline.Format(time.RFC3339))
		status.NewlyRefused = r.Candidate.NewlyRefused
	case r.Ended != nil:
		status.Stage, status.Generation = bocage.StageRolledBack, r.Ended.Number
		c.Status, c.Reason, c.Message = "False", r.Ended.Reason, r.held()
	case !r.ConfirmBy.IsZero():
		status.Stage = bocage.StageConfirming
		c.Status, c.Reason = "False", bocage.StageConfirming
		c.Message = fmt.Sprintf("generation %d is in force and goes back at %s unless a person confirms it: bocage policy confirm", r.Base.Number, r.ConfirmBy.Format(time.RFC3339))
	}
	setConditions(&status.Conditions, []bocage.Condition{c}, true)
	return status
}

// held says why what is declared is not in force; empty if nothing holds it.
func (r record) held() string {
	switch {
	case r.Pin != nil && r.Pin.By != "":
		return fmt.Sprintf("held: rolled back to g%d by %s; bocage policy confirm lets go", r.Pin.Number, r.Pin.By)
	case r.Pin != nil:
		return fmt.Sprintf("held: rolled back to g%d, for %s; bocage policy confirm lets go", r.Pin.Number, r.Pin.Why)
	case r.Ended != nil:
		return "held: its rollout ended, for " + r.Ended.Message + "; change the declarations, or try again with bocage policy confirm"
	}
	return ""
}
