package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// recordKey is where controllers agree on what is in force. Everything that one of
// them publishes goes through a compare-and-set of this key.
const recordKey = "policy/record"

// record is the agreement.
type record struct {
	// Number is the last generation that was numbered. It only grows.
	Number uint64 `json:"number"`
	// Floor is the highest number that may have been given to a host without this record
	// knowing, since the store was restored from a backup (see renumber.go). A ruleset up
	// to it that a host has is not the one that this record has under its number.
	Floor uint64 `json:"floor,omitempty"`
	// Inputs is the store's revision up to which declarations went in.
	Inputs store.Revision `json:"inputs"`
	// AsOf is the moment for which they were compiled.
	AsOf time.Time `json:"asOf,omitzero"`
	// Base is in force on every host but the canaries.
	Base version `json:"base"`
	// ConfirmBy is when Base goes back to Confirmed unless a person confirms it.
	ConfirmBy time.Time `json:"confirmBy,omitzero"`
	// Confirmed is the last Base that was confirmed, or did not have to be.
	Confirmed version `json:"confirmed"`
	// FormerPolicies names the policies that were in force everywhere before that of Base,
	// the latest last. A policy that was rolled back is not among them.
	FormerPolicies []string `json:"stood,omitempty"`
	// ConfirmedUpTo is the last generation that a person confirmed.
	ConfirmedUpTo uint64 `json:"said,omitempty"`
	// ConfirmedBy is the person who did.
	ConfirmedBy string `json:"saidBy,omitempty"`
	// Candidate is in a rollout; nil if there is none.
	Candidate *candidate `json:"candidate,omitempty"`
	// Pin holds the policy that a rollback went back to.
	Pin *pin `json:"pin,omitempty"`
	// Ended names the policy whose rollout ended before it was in force.
	Ended *ended `json:"ended,omitempty"`
	// Blocked names the policy that a proof or a test keeps back.
	Blocked *version `json:"blocked,omitempty"`
	// Hosts has, for each host, the generation with which its ruleset changed last, and
	// the generation of the candidate that it evaluates in shadow; 0 is none.
	Hosts map[string][2]uint64 `json:"hosts,omitempty"`
	// Moved is when one of those changed last.
	Moved time.Time `json:"moved,omitzero"`
}

// clockTolerance is by how much the clocks of controllers that agree on the time may
// differ.
const clockTolerance = 30 * time.Second

// moment is the time to build for. It does not go back behind that of a controller whose
// clock is a little ahead: what had ended or begun by that clock would be undone, and done
// again when this clock is as far.
func (r record) moment(now time.Time) time.Time {
	if ahead := r.AsOf.Sub(now); 0 < ahead && ahead <= clockTolerance {
		return r.AsOf
	}
	return now
}

// version is a generation: its number, its content, and the policy in it.
type version struct {
	Number uint64 `json:"number,omitempty"`
	Digest string `json:"digest,omitempty"`
	Policy string `json:"policy,omitempty"` // the hash of its snapshot
}

// candidate is a version on its way into force.
type candidate struct {
	version
	Stage string    `json:"stage"`
	Since time.Time `json:"since"` // of the stage
	// Canary are the hosts that have it in that stage.
	Canary []string `json:"canary,omitempty"`
	// NewlyRefused counts the kinds of recorded flows that it would refuse newly.
	NewlyRefused int64 `json:"newlyRefused,omitempty"`
	// EndStage says that a person asked to end the stage now.
	EndStage bool `json:"hurry,omitempty"`
	// EndedBy is the person who asked last.
	EndedBy string `json:"hurriedBy,omitempty"`
}

// pin is a rollback in force.
type pin struct {
	version
	By string    `json:"by"` // a person; empty where nobody confirmed in time
	At time.Time `json:"at"`
	// From is what it went back from.
	From uint64 `json:"from"`
	// Why is said to people; Reason is it in one word.
	Why    string `json:"why,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Kept names the policy whose guardrails, and what decides their reach, stay, where
	// two people decide about those: Policy is that of Number with them (see composed).
	Kept string `json:"kept,omitempty"`
	// Unconfirmed names the policy of Number with the guardrails of
	// Confirmed, which it becomes if nobody confirms those of Kept in time; empty where
	// the two have the same.
	Unconfirmed string `json:"unconfirmed,omitempty"`
}

// ended is a rollout that was given up.
type ended struct {
	version
	Reason  string `json:"reason"` // one word
	Message string `json:"message"`
}

func readRecord(ctx context.Context, s store.Store) (record, store.Revision, error) {
	entry, err := s.Get(ctx, recordKey)
	if errors.Is(err, store.ErrNotFound) {
		return record{}, store.Absent, nil
	}
	if err != nil {
		return record{}, 0, fmt.Errorf("read what is in force: %w", err)
	}
	var r record
	if err := json.Unmarshal(entry.Value, &r); err != nil {
		return record{}, 0, fmt.Errorf("read what is in force: %w", err)
	}
	return r, entry.Revision, nil
}

func (r record) op(was store.Revision) (store.Op, error) {
	value, err := json.Marshal(r)
	return store.Op{Key: recordKey, Value: value, IfWas: was}, err
}

// facts are what a rollout depends on besides time.
type facts struct {
	// replayed says that the recorded flows were replayed on the candidate; refused is
	// how many kinds of them it would refuse newly, examples are some of these.
	replayed bool
	refused  int64
	examples []string
	// refusing are the hosts that report that they cannot apply a generation, by its
	// number.
	refusing map[uint64][]string
	// absent are canaries that give no information about the candidate.
	absent []string
	// unheard says that a canary has not reported lately, but may do so yet.
	unheard bool
}

// notice is something that people should know about a generation.
type notice struct {
	number          uint64
	reason, message string
	warning         bool
}

// turn returns the record as it should be now, given the name of the declared policy
// (live), the rollout's specification and the facts. It sets only the policies, stages and
// times of a record; the builder compiles them. The order of the cases is their
// precedence.
func (r record) turn(live string, spec bocage.RolloutSpec, f facts, now time.Time) (record, []notice) {
	var notices []notice
	if r.Candidate != nil { // nobody else sees what is changed here
		copied := *r.Candidate
		r.Candidate = &copied
	}
	if !r.ConfirmBy.IsZero() {
		refusing := f.refusing[r.Base.Number]
		switch {
		case !now.Before(r.ConfirmBy):
			r, notices = r.goBack(now, "Unconfirmed", fmt.Sprintf("nobody confirmed generation %d by %s", r.Base.Number, r.ConfirmBy.Format(time.RFC3339)))
		case len(refusing) > 0:
			r, notices = r.goBack(now, "NotApplied", fmt.Sprintf("%s cannot apply generation %d", refusing[0], r.Base.Number))
		}
	}
	if r.Ended != nil && r.Ended.Policy != live {
		r.Ended = nil
	}
	switch {
	case r.Base.Number == 0:
		r.Base.Policy = live // there is nothing to compare it with
	case r.Pin != nil:
		r.Base.Policy, r.Candidate = r.Pin.Policy, nil
	case live == r.Base.Policy:
		r.Candidate, r.Blocked = nil, nil
	case r.Ended != nil:
		r.Candidate = nil
	default:
		if r.Candidate == nil || r.Candidate.Policy != live {
			r.Candidate = &candidate{version: version{Policy: live}}
		}
		var more []notice
		r, more = r.advance(spec, f, now)
		notices = append(notices, more...)
	}
	return r, notices
}

// goBack pins the last confirmed version. If a rollback by a person is in force and only
// the guardrails that it keeps are unconfirmed, only these go back: the person's decision
// stands.
func (r record) goBack(now time.Time, reason, why string) (record, []notice) {
	if r.Pin != nil && r.Pin.Unconfirmed != "" {
		back := *r.Pin
		back.Policy, back.Kept, back.From = back.Unconfirmed, r.Confirmed.Policy, r.Base.Number
		r.Pin, r.ConfirmBy = &back, time.Time{}
		return r, []notice{{back.From, reason, fmt.Sprintf("%s: its guardrails, exceptions and scopes go back to those of generation %d", why, r.Confirmed.Number), true}}
	}
	r.Pin = &pin{version: r.Confirmed, At: now, From: r.Base.Number, Why: why, Reason: reason}
	r.ConfirmBy = time.Time{}
	return r, []notice{{r.Pin.From, reason, fmt.Sprintf("%s: back to the policy of generation %d", why, r.Confirmed.Number), true}}
}

// advance moves the candidate on as far as it may go.
func (r record) advance(spec bocage.RolloutSpec, f facts, now time.Time) (record, []notice) {
	c := r.Candidate
	var notices []notice
	if c.NewlyRefused = max(c.NewlyRefused, f.refused); c.Stage != "" && !c.EndStage {
		if reason, message := r.abort(spec, f); reason != "" {
			r.Ended = &ended{c.version, reason, message}
			r.Candidate = nil
			return r, []notice{{c.Number, reason, message + ": the policy in force stays as it was", true}}
		}
	}
	for _, stage := range []string{bocage.StageShadow, bocage.StageCanary} {
		if c.Stage == bocage.StageCanary && stage == bocage.StageShadow {
			continue
		}
		lasts := stageTime(stage, spec)
		if c.Stage == stage {
			over := !now.Before(c.Since.Add(lasts)) && (f.replayed || lasts == 0)
			if !over && !c.EndStage {
				return r, notices
			}
			if stage == bocage.StageCanary && len(f.absent) > 0 && !c.EndStage {
				// The stage has shown nothing, and the candidate itself may have killed the canary.
				message := fmt.Sprintf("canary %s is gone or silent, or never took generation %d, so that nothing is known of how it went", f.absent[0], c.Number)
				r.Ended = &ended{c.version, "CanaryLost", message}
				r.Candidate = nil
				return r, append(notices, notice{c.Number, "CanaryLost", message + ": the policy in force stays as it was", true})
			}
			if stage == bocage.StageCanary && f.unheard && !c.EndStage {
				return r, notices
			}
			c.EndStage = false
			continue
		}
		if lasts > 0 {
			c.Stage, c.Since, c.Canary = stage, now.UTC(), nil
			if stage == bocage.StageCanary {
				c.Canary = slices.Sorted(slices.Values(spec.Canary))
			}
			notices = append(notices, notice{0, stage, stageText(stage, spec), false})
			return r, notices
		}
	}
	r.Base = version{Policy: c.Policy, Number: c.Number, Digest: c.Digest}
	r.Candidate, r.ConfirmBy = nil, time.Time{}
	if spec.ConfirmSeconds > 0 {
		r.ConfirmBy = now.Add(time.Duration(spec.ConfirmSeconds) * time.Second).UTC().Truncate(time.Second)
	}
	return r, notices
}

func stageTime(stage string, spec bocage.RolloutSpec) time.Duration {
	switch {
	case stage == bocage.StageShadow:
		return time.Duration(spec.ShadowSeconds) * time.Second
	case len(spec.Canary) == 0:
		return 0
	}
	return time.Duration(spec.CanarySeconds) * time.Second
}

func stageText(stage string, spec bocage.RolloutSpec) string {
	lasts := stageTime(stage, spec)
	if stage == bocage.StageShadow {
		return fmt.Sprintf("evaluated beside the policy in force for %s", lasts)
	}
	const few = 3
	hosts := strings.Join(spec.Canary[:min(len(spec.Canary), few)], ", ")
	if more := len(spec.Canary) - few; more > 0 {
		hosts += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Sprintf("in force on %s alone for %s", hosts, lasts)
}

// abort says why the rollout of the candidate must end; empty if it may go on.
func (r record) abort(spec bocage.RolloutSpec, f facts) (reason, message string) {
	if refusing := f.refusing[r.Candidate.Number]; len(refusing) > 0 {
		return "NotApplied", fmt.Sprintf("%s cannot apply generation %d", refusing[0], r.Candidate.Number)
	}
	if spec.MostNewlyRefused >= 0 && f.refused > spec.MostNewlyRefused {
		message = fmt.Sprintf("generation %d would refuse %d kinds of flow that were allowed and answered, and %d are admitted",
			r.Candidate.Number, f.refused, spec.MostNewlyRefused)
		for i, example := range f.examples {
			if i == 0 {
				message += ", such as "
			} else {
				message += "; "
			}
			message += example
		}
		return "NewlyRefused", message
	}
	return "", ""
}

// withFormer returns FormerPolicies after a policy was replaced by a newer one. Each is
// named once.
func (r record) withFormer(policy string) []string {
	stood := slices.DeleteFunc(slices.Clone(r.FormerPolicies), func(p string) bool { return p == policy })
	stood = append(stood, policy)
	return stood[max(len(stood)-keep, 0):]
}

// deadline is when the present stage ends, zero if nothing ends by itself.
func (r record) deadline(spec bocage.RolloutSpec) time.Time {
	if c := r.Candidate; c != nil {
		return c.Since.Add(stageTime(c.Stage, spec))
	}
	return r.ConfirmBy
}

// canary reports whether a host has the candidate.
func (r record) canary(host string) bool {
	if r.Candidate == nil {
		return false
	}
	_, is := slices.BinarySearch(r.Candidate.Canary, host)
	return is
}
