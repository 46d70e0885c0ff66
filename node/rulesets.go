package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/policy"
)

// rulesetSource brings verified rulesets to the agent's loop: first the one that
// the last process kept, then whatever a controller signs that is newer.
type rulesetSource struct {
	agent  *agentProcess
	bundle *identity.Bundle // set before joined is closed
	joined <-chan struct{}
	notice chan struct{}
	cached bool
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
	// Candidate is an envelope bocage.SignedCandidate around a Ruleset to be
	// evaluated beside the one in force, in the place of the one before. Its
	// generation is another than question.Candidate.
	Candidate []byte `json:"candidate,omitempty"`
	// NoCandidate ends the evaluation of question.Candidate. A Ruleset of its
	// generation or a later one ends it, too.
	NoCandidate bool `json:"noCandidate,omitempty"`
}

// notApplied is the Reason of a Ready condition that is False because the newest
// ruleset could not be applied; its ObservedGeneration is that ruleset's. A
// rollout that meets it ends.
const notApplied = "NotApplied"

// Next implements agent.Rulesets: it blocks until a newer ruleset is there, whose
// inspection profiles and decoys stand ready before it is handed on.
func (s *rulesetSource) Next(ctx context.Context, have uint64) (*bocage.Ruleset, error) {
	if !s.cached {
		s.cached = true
		switch ruleset, err := s.kept(); {
		case err == nil && ruleset.Generation >= have:
			return s.prepare(ruleset)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			s.agent.logger.Warn("the kept ruleset is of no use: waiting for a controller", "err", err)
		}
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.joined:
	}
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		ruleset, err := s.ask(ctx, have)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			s.agent.logger.Debug("ask for a ruleset", "err", err)
			s.agent.faults.set("controller", "no controller answers: the last ruleset stays in force")
		default:
			s.agent.faults.clear("controller")
		}
		if ruleset != nil {
			return s.prepare(ruleset)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.notice:
		case <-poll.C:
		}
	}
}

// ask returns nil if nothing is newer than what the agent has.
func (s *rulesetSource) ask(ctx context.Context, have uint64) (*bocage.Ruleset, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	question, err := json.Marshal(rulesetQuestion{Have: have})
	if err != nil {
		return nil, err
	}
	reply, err := s.agent.exchange.Ask(ctx, fmt.Sprintf(subjectRuleset, s.agent.cfg.Host), question)
	if err != nil || len(reply) == 0 {
		return nil, err
	}
	var answer rulesetAnswer
	if err := json.Unmarshal(reply, &answer); err != nil {
		return nil, fmt.Errorf("a controller's answer is damaged: %w", err)
	}
	envelope := answer.Ruleset
	if len(envelope) == 0 {
		return nil, nil
	}
	ruleset, err := openRuleset(s.bundle, envelope, s.agent.cfg.Host, time.Now())
	if err != nil {
		return nil, err
	}
	if ruleset.Generation <= have {
		return nil, fmt.Errorf("a controller offers generation %d and %d is in force: refused", ruleset.Generation, have)
	}
	if err := writeFile(s.keptPath(), envelope, 0o600); err != nil {
		s.agent.logger.Warn("keep the ruleset for the next start", "err", err)
	}
	return ruleset, nil
}

// prepare makes the functions that the ruleset refers to ready: a verdict that
// says inspect must not be in force before the engine has the profile, nor the
// engine lose one that is still in force. Where the engine refuses a profile that
// it does not have, the flows that owe it are treated as if it were down.
func (s *rulesetSource) prepare(ruleset *bocage.Ruleset) (*bocage.Ruleset, error) {
	a := s.agent
	a.placing.Lock()
	defer a.placing.Unlock()
	if engine := a.inspection.Load(); engine != nil {
		a.loadProfiles(engine, bothProfiles(a.ruleset.Load(), ruleset))
		ruleset = withoutInspection(ruleset, func(p bocage.Profile) bool { return !a.loaded[p.Number] })
	}
	if decoys := a.decoys.Load(); decoys != nil {
		a.place(decoys, ruleset)
	}
	if hidden := a.hidden.Load(); hidden != nil {
		a.noteHidden(*hidden, ruleset)
	}
	return ruleset, nil
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
	changed := &bocage.Ruleset{
		Generation: ruleset.Generation, Digest: ruleset.Digest, Host: ruleset.Host, Peers: ruleset.Peers, Groups: ruleset.Groups,
		Rules: ruleset.Rules, Decisions: slices.Clone(ruleset.Decisions), Default: ruleset.Default, Refused: ruleset.Refused,
		Profiles: ruleset.Profiles, Ports: ruleset.Ports, Decoys: ruleset.Decoys,
	}
	for i, d := range changed.Decisions {
		if verdict, ok := modes[d.Profile]; ok && d.Verdict == bocage.VerdictInspect {
			changed.Decisions[i].Verdict, changed.Decisions[i].Code, changed.Decisions[i].Profile = verdict, bocage.ReasonInspectionDown, 0
		}
	}
	return changed
}

func (s *rulesetSource) keptPath() string {
	return filepath.Join(s.agent.cfg.agentDir("identity"), "ruleset.signed")
}

// kept reads the ruleset that the last process kept. It is verified like one
// from the network.
func (s *rulesetSource) kept() (*bocage.Ruleset, error) {
	credentials, err := loadCredentials(s.agent.cfg.agentDir("identity"), s.agent.cfg.TrustDomain)
	if err != nil {
		return nil, err
	}
	envelope, err := os.ReadFile(s.keptPath())
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(s.keptPath())
	if err != nil {
		return nil, err
	}
	// The signer's certificate may be over by now: what counts is that it was good
	// when the ruleset was taken.
	return openRuleset(credentials.bundle, envelope, s.agent.cfg.Host, info.ModTime())
}

// openRuleset verifies that a controller signed the ruleset and that it was cut
// for this host.
func openRuleset(bundle *identity.Bundle, envelope []byte, host string, now time.Time) (*bocage.Ruleset, error) {
	payload, id, err := bundle.Open(envelope, bocage.SignedRuleset, now)
	if err != nil {
		return nil, fmt.Errorf("ruleset: %w", err)
	}
	if _, ok := identity.ControllerName(id); !ok {
		return nil, fmt.Errorf("ruleset signed by %s, which is no controller", id)
	}
	ruleset, err := policy.DecodeRuleset(payload)
	if err != nil {
		return nil, fmt.Errorf("ruleset: %w", err)
	}
	if ruleset.Host != host {
		return nil, fmt.Errorf("ruleset is cut for host %q and this is %q", ruleset.Host, host)
	}
	return ruleset, nil
}
