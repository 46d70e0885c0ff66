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

type rulesetQuestion struct {
	Have uint64 `json:"have"`
}

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
	question, err := json.Marshal(rulesetQuestion{have})
	if err != nil {
		return nil, err
	}
	envelope, err := s.agent.exchange.Ask(ctx, fmt.Sprintf(subjectRuleset, s.agent.cfg.Host), question)
	if err != nil || len(envelope) == 0 {
		return nil, err
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
