package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// siege is a host whose administrator sits in a workload on it.
type siege struct {
	agent        *agentProcess
	here, there  string
	admin, local netip.Addr
}

func newSiege(t *testing.T) *siege {
	t.Helper()
	s := &siege{here: hosttest.Namespace(t), there: hosttest.Namespace(t),
		local: netip.MustParseAddr("10.96.0.1"), admin: netip.MustParseAddr("10.96.0.2")}
	must(t, host.CreateVeth(host.Veth{Name: "work0", Namespace: s.here, Peer: "eth0", PeerNamespace: s.there}))
	must(t, host.AddAddress(s.here, "work0", netip.PrefixFrom(s.local, 24)))
	must(t, host.AddAddress(s.there, "eth0", netip.PrefixFrom(s.admin, 24)))
	pins := filepath.Join("/sys/fs/bpf", hosttest.Name(t))
	var d *dataplane.Dataplane
	must(t, host.In(s.here, func() (err error) {
		d, err = dataplane.Open(dataplane.Config{Host: "h1", PinDir: pins, FlowEntries: 1024})
		return err
	}))
	t.Cleanup(func() { d.Close(); must(t, dataplane.Remove(pins)) })
	s.agent = &agentProcess{cfg: Config{Host: "h1", Logger: slog.New(slog.DiscardHandler)}, logger: slog.New(slog.DiscardHandler), dataplane: d}
	return s
}

// login makes a connection from the administrator's place to a port of the host,
// and a process that was started by it.
func (s *siege) login(t *testing.T) (logout func()) {
	t.Helper()
	var listener net.Listener
	must(t, host.In(s.here, func() (err error) { listener, err = net.Listen("tcp", s.local.String()+":0"); return err }))
	var client net.Conn
	must(t, host.In(s.there, func() (err error) { client, err = net.Dial("tcp", listener.Addr().String()); return err }))
	server, err := listener.Accept()
	must(t, err)
	end := s.shell(t, netip.MustParseAddrPort(server.RemoteAddr().String()), netip.MustParseAddrPort(server.LocalAddr().String()))
	logout = func() {
		end()
		client.Close()
		server.Close()
		listener.Close()
	}
	t.Cleanup(logout)
	return logout
}

// shell is a process that a login started.
func (s *siege) shell(t *testing.T, peer, local netip.AddrPort) (end func()) {
	t.Helper()
	shell := exec.Command("sleep", "600")
	shell.Env = []string{fmt.Sprintf("SSH_CONNECTION=%s %d %s %d", peer.Addr(), peer.Port(), local.Addr(), local.Port()), "USER=ann"}
	must(t, host.Start(s.here, shell))
	end = func() {
		_ = shell.Process.Kill() // it may have ended
		_ = shell.Wait()
	}
	t.Cleanup(end)
	return end
}

// ruleset enforces on work0, whose workload may open what allow says.
func (s *siege) ruleset(generation uint64, allow bool) *bocage.Ruleset {
	rs := &bocage.Ruleset{Generation: generation, Host: "h1", Default: 1,
		Peers: []bocage.Peer{
			{Prefix: netip.PrefixFrom(s.local, 32), Identity: 201, Group: 31},
			{Prefix: netip.PrefixFrom(s.admin, 32), Identity: 202, Group: 32, Host: "h1", Workload: "a/b"},
		},
		Groups:    []bocage.GroupInfo{{Group: 31}, {Group: 32, Enforce: true}},
		Decisions: []bocage.Decision{{ID: 1, Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny}, {ID: 2, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule}},
		Ports:     []bocage.Port{{Interface: "work0", Identity: 202, Group: 32, Workload: "a/b", Addresses: []netip.Addr{s.admin}}},
	}
	if allow {
		rs.Rules = []bocage.Rule{{From: 32, To: 31, Protocol: bocage.ProtocolTCP, Ports: bocage.AllPorts, Decision: 2}}
	}
	return rs
}

func (s *siege) guard(t *testing.T, rs *bocage.Ruleset) error {
	t.Helper()
	var refused error
	must(t, host.In(s.here, func() error { refused = s.agent.guard(rs); return nil }))
	return refused
}

// A ruleset that would cut a live session stays out of force until the session is
// over, the risk is accepted, or policy lets the session be.
func TestRootGuard(t *testing.T) {
	s := newSiege(t)
	if err := s.guard(t, s.ruleset(1, false)); err != nil {
		t.Errorf("nobody is there, and it is refused: %v", err)
	}
	logout := s.login(t)
	err := s.guard(t, s.ruleset(1, false))
	for _, words := range []string{"ssh 10.96.0.2:", "of ann by work0", "default-deny", "declare that 10.96.0.2 may open TCP/", "policy accept-risk h1"} {
		if !errors.Is(err, ErrRisky) || !strings.Contains(err.Error(), words) {
			t.Fatalf("error %v, want one that says %q", err, words)
		}
	}
	if err := s.guard(t, s.ruleset(1, true)); err != nil {
		t.Errorf("a ruleset that allows the session is refused: %v", err)
	}
	spoofed := s.ruleset(1, true)
	spoofed.Ports[0].Addresses = []netip.Addr{netip.MustParseAddr("10.96.0.3")}
	if err := s.guard(t, spoofed); err == nil || !strings.Contains(err.Error(), "add 10.96.0.2 to the addresses") {
		t.Errorf("a port that takes the session for spoofed: %v", err)
	}
	quarantine := s.ruleset(1, true)
	quarantine.Refused = []bocage.Refusal{{Identity: 202, Decision: 1}}
	if err := s.guard(t, quarantine); err != nil {
		t.Errorf("whoever holds a session keeps quarantine away: %v", err)
	}
	hidden := []string{"work0"}
	s.agent.hidden.Store(&hidden)
	if err := s.guard(t, s.ruleset(1, false)); err != nil {
		t.Errorf("an interface that is left alone cuts nobody: %v", err)
	}
	s.agent.hidden.Store(&[]string{})
	s.agent.answer.Store(&statusAnswer{Risk: bocage.RiskAcceptance{Until: time.Now().Add(time.Minute), By: "ann"}})
	if err := s.guard(t, s.ruleset(1, false)); err != nil {
		t.Errorf("the risk is accepted, and it is refused: %v", err)
	}
	s.agent.answer.Store(&statusAnswer{Risk: bocage.RiskAcceptance{Until: time.Now().Add(-time.Second)}})
	if err := s.guard(t, s.ruleset(1, false)); !errors.Is(err, ErrRisky) {
		t.Errorf("the acceptance is over: %v", err)
	}
	logout()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.guard(t, s.ruleset(1, false)) != nil {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the session is over, and it is still refused")
		}
	}
}

// The API's administrators and the way to the controller count too.
func TestRootSessionsOfControllers(t *testing.T) {
	s := newSiege(t)
	var listener net.Listener
	must(t, host.In(s.there, func() (err error) { listener, err = net.Listen("tcp", s.admin.String()+":0"); return err }))
	defer listener.Close()
	s.agent.cfg.Controllers = []string{listener.Addr().String()}
	must(t, host.In(s.here, func() error {
		c, err := net.Dial("tcp", listener.Addr().String())
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	}))
	if err := s.guard(t, s.ruleset(1, false)); err != nil {
		t.Errorf("the way to the controller is left alone, and it is refused: %v", err)
	}
	s.agent.cfg.Uplinks = []string{"work0"}
	err := s.guard(t, s.ruleset(1, false))
	if !errors.Is(err, ErrRisky) || !strings.Contains(err.Error(), "controller 10.96.0.1:") {
		t.Errorf("cut off from the controller: %v", err)
	}
	var board administratorBoard
	for i := range mostAdministrators + 5 {
		board.note(netip.AddrPortFrom(s.admin, uint16(1000+i)), "ann")
	}
	if list := board.list(); len(list) != mostAdministrators || list[len(list)-1].From.Port() != 1000+mostAdministrators+4 {
		t.Errorf("%d on the board, the last %v", len(list), list[len(list)-1])
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A change concerns the guard of sessions if it may be about flows of the host's own
// addresses, of which the loopback's is one everywhere, and only then.
func TestMayCut(t *testing.T) {
	a := &agentProcess{}
	if !a.mayCut(dataplane.Change{}) {
		t.Error("where nothing is known of what is in force, nothing is at risk")
	}
	const own, other = bocage.Group(20), bocage.Group(21)
	a.ruleset.Store(&bocage.Ruleset{Decisions: []bocage.Decision{{ID: 1}}, Peers: []bocage.Peer{
		{Prefix: netip.MustParsePrefix("127.0.0.0/8"), Group: own}}})
	rule := func(from, to bocage.Group) []bocage.Rule { return []bocage.Rule{{From: from, To: to}} }
	for name, c := range map[string]struct {
		change dataplane.Change
		want   bool
	}{
		"nothing":               {dataplane.Change{}, false},
		"somebody is cut off":   {dataplane.Change{Refused: []bocage.Refusal{{Identity: 7}}}, false},
		"a new decision":        {dataplane.Change{Decisions: []bocage.Decision{{ID: 2}}}, false},
		"another decision":      {dataplane.Change{Decisions: []bocage.Decision{{ID: 1}}}, true},
		"a rule of others":      {dataplane.Change{RulesGone: rule(other, 99)}, false},
		"a rule of this host's": {dataplane.Change{RulesGone: rule(other, own)}, true},
		"a rule of anybody":     {dataplane.Change{RulesCome: rule(bocage.GroupAny, own)}, true},
		"a rule of everything":  {dataplane.Change{RulesCome: rule(bocage.GroupAny, bocage.GroupAny)}, true},
		"a reason":              {dataplane.Change{ReasonsCome: rule(1, 2)}, true},
		"an address":            {dataplane.Change{PeersGone: []bocage.Peer{{}}}, true},
		"a name":                {dataplane.Change{Names: &[]bocage.Name{}}, true},
		"a group":               {dataplane.Change{GroupsGone: []bocage.Group{own}}, true},
	} {
		if got := a.mayCut(c.change); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}
