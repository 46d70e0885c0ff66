package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/dataplane/agent"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/policy"
	"bocage.dev/bocage/stream"
)

// rulesetSource brings verified rulesets to the agent's loop: first what the last
// process kept, then whatever a controller signs that is newer, and the way back
// from what nobody confirms.
type rulesetSource struct {
	agent  *agentProcess
	joined <-chan struct{}
	notice chan struct{}

	bundle *identity.Bundle // nil until joined
	shelf  *shelf           // nil until the first step is asked for
	// given is what was handed on last, done the last of these that succeeded.
	given, done standing
	candidate   uint64      // generation that is evaluated, or was to be; 0: none
	shadow      *agent.Step // waits to be handed on
	altered     bool        // what was handed on last says otherwise than what was signed
	whole       bool        // an amendment was of no use: the whole is asked for
	arrived     bool        // there may be pieces of a parcel on disk
	show        bool        // a controller wants to see what this host has
	unanswered  unanswered
}

// standing names what is to be enforced: a generation, the newest that was taken,
// whose refusals come along, and whether it goes back unless it is confirmed.
type standing struct {
	newest, generation uint64
	waits              bool
}

// rulesetQuestion is what an agent asks on agent.HOST.ruleset, whenever it is told
// that something changed, every pollEvery otherwise, and again at once after an
// answer that brought something.
type rulesetQuestion struct {
	// Have is the highest generation that the agent ever took: one that it went
	// back from counts, so that it is not offered again.
	Have uint64 `json:"have"`
	// Candidate is the generation that it evaluates beside the one in force; 0 is
	// none.
	Candidate uint64 `json:"candidate,omitempty"`
	// Confirmed is the generation of the last Confirmation that it took.
	Confirmed uint64 `json:"confirmed,omitempty"`
	// Base is the generation that it holds and enforces, as it was signed; what comes
	// next may be told by how it differs. 0: it wants the whole.
	Base uint64 `json:"base,omitempty"`
	// Pieces says that it fetches what no message takes in pieces.
	Pieces bool `json:"pieces,omitempty"`
	// Left is Have, if the agent went back from that since nobody had confirmed it in time.
	Left uint64 `json:"left,omitempty"`
	// Proves says that it shows what it has when it is asked to (rulesetAnswer.Prove);
	// Proofs are the envelopes by which it has Have and Confirmed, as they were signed.
	Proves bool     `json:"proves,omitempty"`
	Proofs [][]byte `json:"proofs,omitempty"`
}

// rulesetAnswer is the answer, as JSON; no bytes at all say that nothing is new.
// Each envelope is signed by a controller. They are to be taken in the order of
// the fields.
type rulesetAnswer struct {
	// Confirm is an envelope bocage.SignedConfirm around a bocage.Confirmation of a
	// generation above question.Confirmed: every ruleset up to and including it
	// stays, whatever its ConfirmBy says. One of a generation that the agent went
	// back from changes nothing.
	Confirm []byte `json:"confirm,omitempty"`
	// Ruleset is an envelope bocage.SignedRuleset around a Ruleset of a generation
	// above question.Have, to be enforced. If it has a ConfirmBy, the agent keeps
	// the last one that needed no confirmation, or had it, and goes back to that at
	// ConfirmBy by itself, across restarts too, unless a Confirmation came: with the
	// refusals of what it leaves (Ruleset.WithRefusals), and reporting
	// HostStatus.RevertedFrom. A newer ruleset always replaces it.
	Ruleset []byte `json:"ruleset,omitempty"`
	// Amendment, in the place of Ruleset, is an envelope bocage.SignedAmendment around
	// a bocage.Amendment of question.Base. An agent that cannot use it asks again
	// without a Base.
	Amendment []byte `json:"amendment,omitempty"`
	// Parcel, in the place of one of Ruleset, Amendment and Candidate, is an envelope
	// of that kind which no message takes: its payload is asked for in pieces.
	Parcel *policy.Parcel `json:"parcel,omitempty"`
	// Candidate is an envelope bocage.SignedCandidate around a Ruleset to be
	// evaluated beside the one in force, in the place of the one before. Its
	// generation is another than question.Candidate.
	Candidate []byte `json:"candidate,omitempty"`
	// NoCandidate ends the evaluation of question.Candidate. A Ruleset of its
	// generation or a later one ends it, too.
	NoCandidate bool `json:"noCandidate,omitempty"`
	// Prove asks for Proofs: the site does not know that it gave what the agent has.
	Prove bool `json:"prove,omitempty"`
}

// notApplied is the Reason of a Ready condition that is False because the newest
// ruleset could not be applied; its ObservedGeneration is that ruleset's. A
// rollout that meets it ends.
const notApplied = "NotApplied"

// Next implements agent.Rulesets: it blocks until there is something else to go by
// than before. What a ruleset refers to stands ready before it is handed on.
func (s *rulesetSource) Next(ctx context.Context, failed bool) (agent.Step, error) {
	if s.shelf == nil {
		if err := s.begin(); err != nil {
			return agent.Step{}, err
		}
	}
	if s.done != s.given && !failed {
		s.done = s.given
		s.agent.reverted.Store(s.shelf.left)
		s.shelf.settle()
	}
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	// What failed may have been replaced, so a controller is asked before it is
	// tried again.
	for again := failed; ; again = false {
		if !again {
			if step, ok := s.due(time.Now()); ok {
				return step, nil
			}
		}
		if s.ask(ctx) || again {
			continue
		}
		if err := s.wait(ctx, poll.C); err != nil {
			return agent.Step{}, err
		}
	}
}

// begin takes over what the last process left, on disk and in the kernel.
func (s *rulesetSource) begin() error {
	dir := s.agent.cfg.agentDir("identity")
	credentials, err := loadCredentials(dir, s.agent.cfg.TrustDomain)
	if err != nil {
		return err
	}
	candidate, err := s.agent.dataplane.Candidate()
	if err != nil {
		return err
	}
	s.candidate, s.arrived = candidate.Generation, true
	s.shelf = openShelf(dir, credentials, s.agent.cfg.Host, s.agent.logger)
	return nil
}

// due is the next step that is to be done by what is known.
func (s *rulesetSource) due(now time.Time) (agent.Step, bool) {
	// The kernel goes back by its own clock, and what it left stays left.
	if left := s.agent.dataplane.Left(); left != 0 && left == s.shelf.newest() {
		s.shelf.leave()
	}
	held, back := s.shelf.stands(now)
	if held != nil {
		if back {
			s.shelf.leave()
		}
		waits := !s.shelf.deadline().IsZero()
		if before := s.shelf.rulesets[0]; waits && s.shelf.stays(before) && s.agent.dataplane.Generation() == 0 {
			held, waits = before, false // the kernel must have what it may go back to
		}
		if want := (standing{s.shelf.newest(), held.generation, waits}); want != s.done {
			s.given = want
			if step, ok := s.amending(held, back, waits); ok {
				return step, true
			}
			ruleset := held.ruleset()
			if back {
				ruleset, _ = s.shelf.standing(now)
			}
			if !waits && !ruleset.ConfirmBy.IsZero() {
				ruleset = ruleset.Copy()
				ruleset.ConfirmBy = time.Time{} // the word came, or there is nothing to go back to
			}
			step := agent.Step{What: agent.Apply, Ruleset: s.prepare(ruleset)}
			if back {
				s.agent.logger.Warn("nobody confirmed the ruleset in time: going back", "from", s.shelf.newest(), "to", ruleset.Generation)
				step.What = agent.Revert
			}
			return step, true
		}
	}
	if s.shadow != nil {
		step := *s.shadow
		s.shadow = nil
		return step, true
	}
	return agent.Step{}, false
}

// amending is the step to what is held by how it differs from what is in force, if
// that was taken as an amendment of just that, and all of it is the dataplane's: what
// the other functions have to be ready for goes by the whole.
func (s *rulesetSource) amending(held *kept, back, waits bool) (agent.Step, bool) {
	a := held.amendment
	if a == nil || back || s.altered || s.done.generation != a.From || s.done.newest != a.From {
		return agent.Step{}, false
	}
	change, ok := dataplane.ChangeOf(a)
	if !ok || s.agent.inspection.Load() != nil && slices.ContainsFunc(change.Decisions, func(d bocage.Decision) bool { return d.Profile != 0 }) {
		return agent.Step{}, false
	}
	after := held.ruleset
	if !waits && !a.ConfirmBy.IsZero() {
		change.ConfirmBy = time.Time{}
		after = sync.OnceValue(func() *bocage.Ruleset {
			confirmed := held.ruleset().Copy()
			confirmed.ConfirmBy = time.Time{}
			return confirmed
		})
	}
	return agent.Step{What: agent.Apply, Change: &change, After: after}, true
}

// base is the generation of which an amendment would be of use; 0: of none.
func (s *rulesetSource) base() uint64 {
	if newest := s.shelf.newest(); !s.whole && s.done.generation == newest && s.shelf.amendable() {
		return newest
	}
	return 0
}

// wait ends when something may have changed.
func (s *rulesetSource) wait(ctx context.Context, poll <-chan time.Time) error {
	var deadline <-chan time.Time
	if at := s.shelf.deadline(); !at.IsZero() {
		timer := time.NewTimer(time.Until(at))
		defer timer.Stop()
		deadline = timer.C
	}
	joined := s.joined
	if s.bundle != nil {
		joined = nil // it is closed: it says nothing new
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-joined:
	case <-s.notice:
	case <-poll:
	case <-deadline:
	}
	return nil
}

// ask asks a controller what is new, and takes it. It reports whether something is.
func (s *rulesetSource) ask(ctx context.Context) bool {
	select {
	case <-s.joined:
	default:
		return false
	}
	s.bundle = s.agent.bundle
	answer, err := s.question(ctx)
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		s.agent.logger.Debug("ask for a ruleset", "error", err)
		s.agent.faults.set("controller", whyUnanswered(err))
		s.show = false
		if s.unanswered.leaves(time.Now()) {
			s.agent.leave(err)
		}
		return false
	}
	s.unanswered = unanswered{}
	s.agent.faults.clear("controller")
	if answer.Prove && !s.show {
		s.show = true
		return true
	}
	s.show = false
	// What came at once does not wait for what is to be fetched.
	news, err := s.take(answer, time.Now())
	if err == nil && answer.Parcel != nil {
		var rest rulesetAnswer
		if rest, err = s.collect(ctx, answer.Parcel); ctx.Err() != nil {
			return false
		}
		if err == nil {
			var more bool
			more, err = s.take(rest, time.Now())
			news = news || more
		}
	}
	if err == nil && news {
		s.letGo()
	}
	if err != nil {
		s.agent.logger.Error("a controller's answer is refused", "error", err)
		s.agent.faults.set("controller", err.Error())
	}
	return news
}

// whyUnanswered says why there is no answer.
func whyUnanswered(err error) string {
	if errors.Is(err, stream.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		return "no controller answers: the last ruleset stays in force"
	}
	return fmt.Sprintf("no controller has a ruleset to give, and the last one stays in force: %v", err)
}

func (s *rulesetSource) question(ctx context.Context) (rulesetAnswer, error) {
	s.unanswered.asked(time.Now())
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var answer rulesetAnswer
	q := rulesetQuestion{Have: s.shelf.newest(), Candidate: s.candidate, Confirmed: s.shelf.confirmed, Base: s.base(), Pieces: true, Left: s.shelf.left, Proves: true}
	if s.show {
		q.Proofs = s.shelf.proofs()
	}
	question, err := json.Marshal(q)
	if err != nil {
		return answer, err
	}
	reply, err := s.agent.exchange.Ask(ctx, fmt.Sprintf(subjectRuleset, s.agent.cfg.Host), question)
	if err != nil || len(reply) == 0 {
		return answer, err
	}
	if err := json.Unmarshal(reply, &answer); err != nil {
		return answer, fmt.Errorf("a controller's answer is damaged: %w", err)
	}
	return answer, nil
}

// take puts what an answer holds where it belongs, in the order of its fields. What
// cannot be verified is refused, with all that follows it.
func (s *rulesetSource) take(answer rulesetAnswer, now time.Time) (news bool, err error) {
	if len(answer.Confirm) > 0 {
		confirmation, err := openConfirmation(s.bundle, answer.Confirm, now)
		if err != nil {
			return news, err
		}
		news = confirmation.Generation > s.shelf.confirmed
		s.shelf.confirm(confirmation, answer.Confirm)
	}
	if len(answer.Ruleset) > 0 {
		ruleset, err := openRuleset(s.bundle, bocage.SignedRuleset, answer.Ruleset, s.agent.cfg.Host, now)
		if err != nil {
			return news, err
		}
		if have := s.shelf.newest(); ruleset.Generation <= have {
			return news, fmt.Errorf("a controller offers generation %d and %d was taken before: refused", ruleset.Generation, have)
		}
		s.shelf.take(ruleset, answer.Ruleset)
		s.whole, news = false, true
	}
	if len(answer.Amendment) > 0 {
		if err := s.amend(answer.Amendment, now); err != nil {
			s.agent.logger.Warn("an amendment is of no use: asking for the whole ruleset", "error", err)
			s.whole = true
		}
		news = true
	}
	if s.candidate != 0 && s.shelf.newest() >= s.candidate {
		s.evaluate(nil)
	}
	switch {
	case len(answer.Candidate) > 0:
		candidate, err := openRuleset(s.bundle, bocage.SignedCandidate, answer.Candidate, s.agent.cfg.Host, now)
		if err != nil {
			return news, err
		}
		if candidate.Generation != s.candidate {
			s.evaluate(candidate)
			news = true
		}
	case answer.NoCandidate && s.candidate != 0:
		s.evaluate(nil)
		news = true
	}
	return news, nil
}

// amend takes an amendment of the newest ruleset.
func (s *rulesetSource) amend(envelope []byte, now time.Time) error {
	payload, err := openSigned(s.bundle, bocage.SignedAmendment, envelope, now)
	if err != nil {
		return err
	}
	amendment, err := policy.DecodeAmendment(payload)
	if err != nil {
		return err
	}
	return s.shelf.amend(amendment, envelope, now)
}

// evaluate has a candidate evaluated, or none, in the next step.
func (s *rulesetSource) evaluate(candidate *bocage.Ruleset) {
	s.candidate = 0
	if candidate != nil {
		s.candidate = candidate.Generation
	}
	s.shadow = &agent.Step{What: agent.Shadow, Ruleset: candidate}
}

// prepare makes the functions that the ruleset refers to ready: a verdict that
// says inspect must not be in force before the engine has the profile, nor the
// engine lose one that is still in force. Where the engine refuses a profile that
// it does not have, the flows that owe it are treated as if it were down.
func (s *rulesetSource) prepare(ruleset *bocage.Ruleset) *bocage.Ruleset {
	a, altered := s.agent, false
	a.placing.Lock()
	defer a.placing.Unlock()
	if engine := a.inspection.Load(); engine != nil {
		a.loadProfiles(engine, bothProfiles(a.ruleset.Load(), ruleset))
		with := withoutInspection(ruleset, func(p bocage.Profile) bool { return !a.loaded[p.Number] })
		ruleset, altered = with, with != ruleset
	}
	s.altered = altered
	if decoys := a.decoys.Load(); decoys != nil {
		a.place(decoys, ruleset)
	}
	if hidden := a.hidden.Load(); hidden != nil {
		a.noteHidden(*hidden, ruleset)
	}
	return ruleset
}

// bothProfiles joins the profiles in force with the coming ones, which win.
func bothProfiles(inForce, coming *bocage.Ruleset) []bocage.Profile {
	profiles := slices.Clone(coming.Profiles)
	if inForce == nil {
		return profiles
	}
	for _, old := range inForce.Profiles {
		if !slices.ContainsFunc(profiles, func(p bocage.Profile) bool { return p.Number == old.Number }) {
			profiles = append(profiles, old)
		}
	}
	return profiles
}

// withoutInspection returns the ruleset with the decisions of absent profiles
// changed to what their fail mode says.
func withoutInspection(ruleset *bocage.Ruleset, absent func(bocage.Profile) bool) *bocage.Ruleset {
	modes := map[uint16]bocage.Verdict{}
	for _, p := range ruleset.Profiles {
		if !absent(p) {
			continue
		}
		modes[p.Number] = bocage.VerdictDrop
		if p.FailOpen {
			modes[p.Number] = bocage.VerdictAllow
		}
	}
	if len(modes) == 0 {
		return ruleset
	}
	changed := ruleset.Copy()
	changed.Decisions = slices.Clone(ruleset.Decisions)
	for i, d := range changed.Decisions {
		if verdict, ok := modes[d.Profile]; ok && d.Verdict == bocage.VerdictInspect {
			changed.Decisions[i].Verdict, changed.Decisions[i].Code, changed.Decisions[i].Profile = verdict, bocage.ReasonInspectionDown, 0
		}
	}
	return changed
}

// openRuleset verifies that a controller signed the ruleset, or the candidate, and
// that it was cut for this host.
func openRuleset(bundle *identity.Bundle, kind string, envelope []byte, host string, now time.Time) (*bocage.Ruleset, error) {
	payload, err := openSigned(bundle, kind, envelope, now)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	ruleset, err := policy.DecodeRuleset(payload)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	if ruleset.Host != host {
		return nil, fmt.Errorf("%s is cut for host %q and this is %q", kind, ruleset.Host, host)
	}
	return ruleset, nil
}

// openSigned opens an envelope that only a controller may sign.
func openSigned(bundle *identity.Bundle, kind string, envelope []byte, now time.Time) ([]byte, error) {
	payload, id, err := bundle.Open(envelope, kind, now)
	if err != nil {
		return nil, err
	}
	if _, ok := identity.ControllerName(id); !ok {
		return nil, fmt.Errorf("signed by %s, which is no controller", id)
	}
	return payload, nil
}
