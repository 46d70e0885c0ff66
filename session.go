package bocage

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// AdministratorSession is a live connection by which somebody administers a host. If a
// ruleset cut it, the ruleset could not be taken back from there.
type AdministratorSession struct {
	// Service is what it serves: ssh, api (a person at a controller's API) or
	// controller (the host's agent at a controller).
	Service string `json:"service"`
	// User is who uses it, if that is known.
	User string `json:"user,omitempty"`
	// From opened it to To. One of them is the host's own.
	From netip.AddrPort `json:"from"`
	To   netip.AddrPort `json:"to"`
	// Interface is the host's link through which its packets come; empty: the connection is
	// within the host.
	Interface string `json:"interface,omitempty"`
}

// Services of an AdministratorSession.
const (
	ServiceSSH        = "ssh"
	ServiceAPI        = "api"
	ServiceController = "controller"
)

func (s AdministratorSession) String() string {
	text := fmt.Sprintf("%s %s → %s", s.Service, s.From, s.To)
	if s.User != "" {
		text += " of " + s.User
	}
	if s.Interface != "" {
		text += " by " + s.Interface
	}
	return text
}

// Remote is the end that is not the host's.
func (s AdministratorSession) Remote() netip.Addr {
	if s.Service == ServiceController {
		return s.To.Addr()
	}
	return s.From.Addr()
}

// Flow is the session as a flow, for policy to decide.
func (s AdministratorSession) Flow(at time.Time) Flow {
	return Flow{Source: s.From.Addr(), Destination: s.To.Addr(), SourcePort: s.From.Port(), DestinationPort: s.To.Port(),
		Protocol: ProtocolTCP, At: at}
}

// Cuts reports whether the ruleset would end a session that passes an enforcement point,
// and why. Quarantines and responses to threats do not count: an attacker must not be able
// to keep a ruleset away by holding a session open.
func (r *Ruleset) Cuts(s AdministratorSession, port Port, at time.Time) (Reason, bool) {
	verdict, reason := r.Decide(s.Flow(at))
	switch {
	case reason.Code == ReasonQuarantine || reason.Code == ReasonThreat:
		return reason, false
	case !verdict.Allowed():
		return reason, true
	case port.Identity != IdentityUnknown && !slices.Contains(port.Addresses, s.Remote()) && r.strict(port.Group, s):
		return Reason{Code: ReasonSpoofed, Would: VerdictDrop}, true
	}
	return reason, false
}

// strict reports whether an enforcement point refuses packets of a session by itself,
// without a rule.
func (r *Ruleset) strict(group Group, s AdministratorSession) bool {
	groups := r.indexed().groups.find()
	return groups[group].Enforce || groups[r.Lookup(s.From.Addr()).Group].Enforce || groups[r.Lookup(s.To.Addr()).Group].Enforce
}

// CutSession is a session that a ruleset would cut.
type CutSession struct {
	AdministratorSession
	Host   string `json:"host"`
	Reason Reason `json:"reason"`
	// By is the declaration that cuts it; empty for default deny, and if the enforcement
	// point decides by itself.
	By Ref `json:"by,omitzero"`
	// Wire is the inline wire that uses the session's interface, if any. Then nothing
	// reaches the host through it any more, whatever is allowed.
	Wire string `json:"wire,omitempty"`
}

func (c CutSession) String() string {
	if c.Wire != "" {
		return fmt.Sprintf("%s on host %s would be cut: wire %s takes %s; %s", c.AdministratorSession, c.Host, c.Wire, c.Interface, c.Cure())
	}
	text := fmt.Sprintf("%s on host %s would be cut: %s", c.AdministratorSession, c.Host, c.Reason.Code)
	if c.By.Kind != "" {
		text += " by " + c.By.String()
	}
	return text + "; " + c.Cure()
}

// Cure says what would keep the session.
func (c CutSession) Cure() string {
	switch {
	case c.Wire != "":
		return fmt.Sprintf("make the wire of other interfaces than %s", c.Interface)
	case c.Reason.Code == ReasonSpoofed:
		return fmt.Sprintf("add %s to the addresses of the workload behind %s", c.Remote(), c.Interface)
	case c.By.Kind != "":
		return fmt.Sprintf("let that allow %s to %s on TCP/%d", c.From.Addr(), c.To.Addr(), c.To.Port())
	}
	return fmt.Sprintf("declare that %s may open TCP/%d to %s", c.From.Addr(), c.To.Port(), c.To.Addr())
}

// CutSessions lists the sessions of a host that a ruleset would cut, at the
// enforcement points that it names there, and by wires of the host.
func (r *Ruleset) CutSessions(host string, sessions []AdministratorSession, ports []Port, wires []Wire, at time.Time) []CutSession {
	var cut []CutSession
	for _, s := range sessions {
		if s.Interface == "" {
			continue
		}
		if i := slices.IndexFunc(wires, func(w Wire) bool { return w.Inside == s.Interface || w.Outside == s.Interface }); i >= 0 {
			cut = append(cut, CutSession{AdministratorSession: s, Host: host, Wire: wires[i].Name})
			continue
		}
		i := slices.IndexFunc(ports, func(p Port) bool { return p.Interface == s.Interface })
		if i < 0 {
			continue
		}
		reason, cuts := r.Cuts(s, ports[i], at)
		if !cuts {
			continue
		}
		c := CutSession{AdministratorSession: s, Host: host, Reason: reason}
		if d, ok := r.Decision(reason.Decision); ok && d.Code != ReasonDefaultDeny && len(d.By) > 0 {
			c.By = d.By[0]
		}
		cut = append(cut, c)
	}
	return cut
}

// RiskAcceptance lets rulesets cut administrators' sessions for a while.
type RiskAcceptance struct {
	Until time.Time `json:"until"`
	By    string    `json:"by,omitempty"`
}

// FailsafeEntry is one of the host's own interfaces that no enforcement point is put on,
// whatever policy says, unless an administrator names it.
type FailsafeEntry struct {
	Interface string `json:"interface"`
	// For is the reason: the default route, the administrator who started the agent, or a
	// controller.
	For []string `json:"for"`
	// Until is when the entry ends. It is set if its only reason is an administrator whose
	// last session has ended, and who may come back.
	Until time.Time `json:"until,omitzero"`
}
