package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/store"
)

// actionAcceptRisk is the RolloutRequest that is not policy's business but that
// of the hosts.
const actionAcceptRisk = "accept-risk"

// statusAnswer is what a controller answers to an agent's report.
type statusAnswer struct {
	// Version is the controller's own.
	Version string `json:"version,omitempty"`
	// Risk lets the agent put in force what cuts an administrator's session.
	Risk bocage.RiskAcceptance `json:"risk,omitzero"`
	// Administrators are people at the API of the controller on the same host.
	Administrators []apiSession `json:"administrators,omitempty"`
}

// apiSession is a connection to the API by which somebody who may change policy
// has asked for something.
type apiSession struct {
	From   netip.AddrPort `json:"from"`
	Person string         `json:"person"`
}

// rollout does what a person says: what policy knows of, or accepting a risk.
func (c *controllerProcess) rollout(ctx context.Context, who string, request bocage.RolloutRequest) (bocage.RolloutStatus, error) {
	if request.Action != actionAcceptRisk {
		return c.policy.Rollout(ctx, who, request)
	}
	kind, _ := bocage.KindNamed("Host")
	risk := bocage.RiskAcceptance{By: who, Until: c.clock.Now().UTC().Add(time.Duration(request.Seconds) * time.Second).Truncate(time.Second)}
	var faults []error
	for _, name := range request.Hosts {
		err := store.UpdateObject(ctx, c.store, kind, "", name, func(h *bocage.Host) (bool, error) {
			h.Status.RiskAccepted = risk
			return true, nil
		})
		if errors.Is(err, store.ErrNotFound) {
			err = errors.New("there is no such host: see bocage get hosts")
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("accept the risk on host %s: %w", name, err))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return bocage.RolloutStatus{}, err
	}
	c.logger.Warn("administrators' sessions may be cut", "hosts", request.Hosts, "until", risk.Until, "by", who)
	rollouts, _ := bocage.KindNamed("Rollout")
	object, _, err := store.Object(ctx, c.store, rollouts, "", bocage.RolloutName)
	if err != nil {
		return bocage.RolloutStatus{}, nil // there need not be one
	}
	return object.(*bocage.Rollout).Status, nil
}

// answerStatus is what an agent is told when it reports.
func (c *controllerProcess) answerStatus(name string, risk bocage.RiskAcceptance) ([]byte, error) {
	answer := statusAnswer{Version: c.cfg.Version, Risk: risk}
	if name == c.cfg.Host {
		answer.Administrators = c.administrators.list()
	}
	return json.Marshal(answer)
}

// administratorBoard remembers who who may change policy has used the API, by
// connection. It is bounded: the connections longest unused are forgotten.
type administratorBoard struct {
	mu   sync.Mutex // guards last
	last map[netip.AddrPort]administratorSeen
}

type administratorSeen struct {
	person string
	at     time.Time
}

const mostAdministrators = 256

func (b *administratorBoard) note(from netip.AddrPort, person string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == nil {
		b.last = map[netip.AddrPort]administratorSeen{}
	}
	from = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
	if _, known := b.last[from]; !known && len(b.last) >= mostAdministrators {
		oldest := from
		for at, seen := range b.last {
			if o, ok := b.last[oldest]; !ok || seen.at.Before(o.at) {
				oldest = at
			}
		}
		delete(b.last, oldest)
	}
	b.last[from] = administratorSeen{person, time.Now()}
}

func (b *administratorBoard) list() []apiSession {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []apiSession
	for from, seen := range b.last {
		all = append(all, apiSession{from, seen.person})
	}
	slices.SortFunc(all, func(x, y apiSession) int { return x.From.Compare(y.From) })
	return all
}

// sessionsNow lists the live connections by which somebody is in command of this
// host: people at sshd and at the API, and the agent's own at its controllers.
func (a *agentProcess) sessionsNow() ([]bocage.AdministratorSession, error) {
	established, listening, err := host.Connections()
	if err != nil {
		return nil, err
	}
	var sessions []bocage.AdministratorSession
	add := func(service, user string, from, to netip.AddrPort) {
		s := bocage.AdministratorSession{Service: service, User: user, From: from, To: to}
		if link, err := host.LinkTowards(s.Remote()); err == nil {
			s.Interface = link.Name
			sessions = append(sessions, s)
		}
	}
	for _, s := range host.ReadLogins("").Among(established, listening) {
		add(bocage.ServiceSSH, s.User, s.Peer, s.Local)
	}
	var people []apiSession
	if answer := a.answer.Load(); answer != nil {
		people = answer.Administrators
	}
	for _, c := range established {
		if i := slices.IndexFunc(people, func(p apiSession) bool { return p.From == c.Peer }); i >= 0 {
			add(bocage.ServiceAPI, people[i].Person, c.Peer, c.Local)
		}
		if slices.Contains(a.cfg.Controllers, c.Peer.String()) {
			add(bocage.ServiceController, "", c.Local, c.Peer)
		}
	}
	return sessions[:min(len(sessions), mostSessions)], nil
}

// failsafeNow says which of the host's links are left alone, and for whom, as
// followLinks found last.
func (a *agentProcess) failsafeNow() []bocage.FailsafeEntry {
	if entries := a.failsafe.Load(); entries != nil {
		return *entries
	}
	return nil
}

// mostSessions bounds what a host tells of.
const mostSessions = 64

// guard refuses a ruleset that would cut somebody off who is in command of this
// host, unless the risk was accepted. It is asked again while the ruleset waits,
// so that the end of the session is as good as a cure.
func (a *agentProcess) guard(ruleset *bocage.Ruleset) error {
	if ruleset.Generation <= a.dataplane.Generation() {
		return nil // it is in force already
	}
	sessions, err := a.sessionsNow()
	if err != nil {
		a.logger.Warn("look for administrators' sessions", "error", err)
		return nil // policy must not wait for what cannot be known
	}
	cut := a.cut(ruleset, sessions)
	if len(cut) == 0 {
		return nil
	}
	until := a.riskAccepted()
	if time.Now().After(until) && a.joined.Load() {
		// It may have been accepted a moment ago, for this very ruleset.
		if err := a.tell(context.Background(), a.reportNow()); err != nil {
			a.logger.Debug("report status", "error", err)
		}
		until = a.riskAccepted()
	}
	if time.Now().Before(until) {
		for _, c := range cut {
			a.logger.Warn("a session is cut, which was accepted", "session", c.AdministratorSession.String(), "reason", c.Reason.Code, "until", until)
		}
		return nil
	}
	faults := make([]error, len(cut))
	for i, c := range cut {
		faults[i] = errors.New(c.String())
	}
	return fmt.Errorf("generation %d stays out of force: %w; bocage policy accept-risk %s puts it in force all the same: %w",
		ruleset.Generation, ErrRisky, a.cfg.Host, errors.Join(append(faults, a.refuseMeanwhile(ruleset))...))
}

// cut lists the sessions that a ruleset would cut where it is enforced on this host.
func (a *agentProcess) cut(ruleset *bocage.Ruleset, sessions []bocage.AdministratorSession) []bocage.CutSession {
	ports, wires := a.shown(ruleset)
	return ruleset.CutSessions(a.cfg.Host, sessions, ports, wires, time.Now())
}

// refuseMeanwhile puts the refusals of a ruleset that stays out of force in force with
// the one that is: who is to be cut off must not keep that away by a session that
// another change would cut. What is in force goes on otherwise, with its own number.
// It is done where this process put that in force, and it waits for no confirmation.
func (a *agentProcess) refuseMeanwhile(ruleset *bocage.Ruleset) error {
	before := a.ruleset.Load()
	if before == nil || before.Generation != a.dataplane.Generation() || !before.ConfirmBy.IsZero() {
		return nil
	}
	tightened := before.WithRefusals(ruleset)
	if slices.Equal(tightened.Refused, before.Refused) {
		return nil
	}
	if err := a.dataplane.Revert(tightened); err != nil {
		return fmt.Errorf("and who it refuses is not refused yet: %w", err)
	}
	a.ruleset.Store(tightened)
	a.logger.Warn("a ruleset stays out of force; who it refuses is refused", "generation", ruleset.Generation, "refused", len(tightened.Refused))
	return nil
}

// mayCut says whether a change may concern the sessions that guard looks for: not if
// it is all about flows between others than this host's own addresses. Who is cut off
// for what they did does not count there either.
func (a *agentProcess) mayCut(change dataplane.Change) bool {
	before := a.ruleset.Load()
	if before == nil || change.Names != nil || len(change.PeersGone)+len(change.PeersCome)+len(change.ReasonsGone)+len(change.ReasonsCome)+
		len(change.Groups)+len(change.GroupsGone) > 0 {
		return true
	}
	for _, d := range change.Decisions {
		if _, had := before.Decision(d.ID); had {
			return true
		}
	}
	if len(change.RulesGone)+len(change.RulesCome) == 0 {
		return false
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	own := map[bocage.Group]bool{bocage.GroupAny: true}
	for _, address := range addresses {
		if prefix, err := netip.ParsePrefix(address.String()); err == nil {
			own[before.Lookup(prefix.Addr()).Group] = true
		}
	}
	concerns := func(r bocage.Rule) bool { return own[r.From] || own[r.To] }
	return slices.ContainsFunc(change.RulesGone, concerns) || slices.ContainsFunc(change.RulesCome, concerns)
}

// shown is what a ruleset makes of this host's interfaces, but for those that are left
// alone.
func (a *agentProcess) shown(ruleset *bocage.Ruleset) ([]bocage.Port, []bocage.Wire) {
	hidden := a.hidden.Load()
	if hidden == nil { // links have not been listed yet
		links, err := host.Links("")
		if err != nil {
			return ruleset.Ports, ruleset.Wires
		}
		entries, err := a.leftAlone(links)
		if err != nil {
			return ruleset.Ports, ruleset.Wires
		}
		names := namesOf(entries)
		hidden = &names
	}
	is := func(name string) bool { return slices.Contains(*hidden, name) }
	return slices.DeleteFunc(slices.Clone(ruleset.Ports), func(p bocage.Port) bool { return is(p.Interface) }),
		slices.DeleteFunc(slices.Clone(ruleset.Wires), func(w bocage.Wire) bool { return is(w.Inside) || is(w.Outside) })
}

// riskAccepted is until when sessions may be cut.
func (a *agentProcess) riskAccepted() time.Time {
	if answer := a.answer.Load(); answer != nil {
		return answer.Risk.Until
	}
	return time.Time{}
}
