package policy

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"bocage.dev/bocage"
)

// rolledOut is the condition that tells how a generation came from one stage to another;
// false if it simply came into force, or was in force and was replaced by the next.
func (b *build) rolledOut(number uint64, was, stage string) (bocage.Condition, bool) {
	c := bocage.Condition{Type: bocage.ConditionRolledOut, Status: "False", ObservedGeneration: 1, LastTransitionTime: b.now.UTC().Truncate(time.Second)}
	inRollout := was == bocage.StageShadow || was == bocage.StageCanary
	before := b.was.Candidate
	switch {
	case stage == was:
		return c, false
	case stage == bocage.StageRolledBack:
		pin := b.next.Pin
		if c.Reason, c.Message = cmp.Or(pin.Reason, "RolledBack"), pin.Why; inRollout {
			c.Message += ", before it was in force everywhere"
		}
	case stage == bocage.StageEnded:
		c.Reason, c.Message = b.next.Ended.Reason, b.next.Ended.Message
	case stage == bocage.StageSuperseded && inRollout && b.successor(number) < number:
		c.Reason, c.Message = "Superseded", fmt.Sprintf("withdrawn: what is declared is generation %d again", b.next.Base.Number)
	case stage == bocage.StageSuperseded && inRollout:
		c.Reason, c.Message = "Superseded", fmt.Sprintf("replaced by generation %d before it was in force everywhere", b.successor(number))
	case stage == bocage.StageSuperseded && was == bocage.StageConfirming:
		c.Reason, c.Message = "Superseded", fmt.Sprintf("replaced by generation %d before anybody confirmed it", b.next.Base.Number)
	case inRollout && before != nil && before.Number == number && before.EndStage:
		c.Status, c.Reason, c.Message = "True", "Promoted", fmt.Sprintf("promoted by %s from the stage %s", before.EndedBy, was)
	case was == bocage.StageConfirming && stage == bocage.StageActive && b.next.ConfirmedUpTo == number:
		c.Status, c.Reason, c.Message = "True", "Confirmed", "confirmed by "+b.next.ConfirmedBy
	default:
		return c, false
	}
	return c, true
}

// stagesLag reports whether a Generation tells another stage than it is in: a person who
// confirms one, or ends a rollback, changes the record alone.
func (b *build) stagesLag() bool {
	return slices.ContainsFunc(b.v.generations, func(o *object) bool {
		s := o.resource.(*bocage.Generation).Status
		stage, active, confirmBy := b.stage(s.Number, s.Stage)
		return stage != s.Stage || active != s.Active || !confirmBy.Equal(s.ConfirmBy)
	})
}

// successor is the generation that one in a rollout was replaced by: the next in one, one
// that is kept back instead, or what is in force, which may be an earlier one again.
func (b *build) successor(number uint64) uint64 {
	if c := b.next.Candidate; c != nil && c.Number != 0 {
		return c.Number
	}
	if kept := b.next.Blocked; kept != nil && kept.Number > number {
		return kept.Number
	}
	return b.next.Base.Number
}
