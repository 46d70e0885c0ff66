package node

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// enforced puts a ruleset in force on the siege's host, at work0, as the agent does.
func (s *siege) enforced(t *testing.T, rs *bocage.Ruleset) {
	t.Helper()
	must(t, host.In(s.here, func() error { return reportedDataplane{s.agent.dataplane, s.agent}.Apply(rs) }))
	link, err := host.LinkNamed(s.here, "work0")
	must(t, err)
	must(t, host.In(s.here, func() error {
		return s.agent.dataplane.Attach(dataplane.Attachment{Ifindex: link.Index, Port: rs.Ports[0]})
	}))
}

// echo is a session that can be asked whether it still passes.
type echo struct{ client, server net.Conn }

// passes says whether a byte gets through within a while.
func (e *echo) passes(t *testing.T, while time.Duration) bool {
	t.Helper()
	must(t, e.server.SetReadDeadline(time.Now().Add(while)))
	_, err := e.client.Write([]byte{1})
	must(t, err)
	buffer := make([]byte, 16)
	_, err = e.server.Read(buffer)
	return err == nil
}

// Every way by which rulesets come into force asks about sessions: a change of one
// that is in force as much as a whole one, and what is wrong is told and mended.
func TestRootGuardOfEveryRoute(t *testing.T) {
	s := newSiege(t)
	s.enforced(t, s.ruleset(1, true))
	e := s.session(t)
	if !e.passes(t, 10*time.Second) {
		t.Fatal("the session does not pass: this shows nothing")
	}
	before, next := s.agent.ruleset.Load(), s.ruleset(2, false)
	before.Digest, next.Digest = before.ContentDigest(), next.ContentDigest()
	d := reportedDataplane{s.agent.dataplane, s.agent}
	in := func(do func() error) (err error) {
		must(t, host.In(s.here, func() error { err = do(); return nil }))
		return err
	}
	amend := func(to *bocage.Ruleset) error {
		amendment, err := bocage.Difference(before, to)
		must(t, err)
		after, err := before.Amend(amendment)
		must(t, err)
		change, ok := dataplane.ChangeOf(amendment)
		if !ok {
			t.Fatal("it is no change of the dataplane's: this shows nothing")
		}
		return in(func() error { return d.Amend(change, after) })
	}
	for name, put := range map[string]func() error{
		"whole":  func() error { return in(func() error { return d.Apply(next) }) },
		"change": func() error { return amend(next) },
		"change of who is where": func() error {
			moved := s.ruleset(2, true)
			moved.Peers[1].Group, moved.Groups = 33, append(moved.Groups, bocage.GroupInfo{Group: 33, Enforce: true})
			moved.Digest = moved.ContentDigest()
			return amend(moved)
		},
		"change of what a decision says": func() error {
			other := s.ruleset(2, true)
			other.Decisions[1].Verdict, other.Decisions[1].Code = bocage.VerdictDrop, bocage.ReasonGuardrail
			other.Digest = other.ContentDigest()
			return amend(other)
		},
	} {
		if err := put(); !errors.Is(err, ErrRisky) || !strings.Contains(err.Error(), "of ann by work0") {
			t.Errorf("%s: %v", name, err)
		}
		if s.agent.dataplane.Generation() != 1 || !e.passes(t, 10*time.Second) {
			t.Errorf("%s: generation %d is in force, and the session passes no more", name, s.agent.dataplane.Generation())
		}
	}
	s.agent.answer.Store(&statusAnswer{Risk: bocage.RiskAcceptance{Until: time.Now().Add(time.Minute), By: "ann"}})
	must(t, amend(next))
	if s.agent.dataplane.Generation() != 2 || e.passes(t, 300*time.Millisecond) {
		t.Error("the risk is accepted, and the session passes")
	}
}

// Whoever is to be quarantined does not keep that away by a session that another change
// would cut: the change waits, the quarantine does not.
func TestRootGuardRefusesMeanwhile(t *testing.T) {
	s := newSiege(t)
	s.enforced(t, s.ruleset(1, true))
	e := s.session(t)
	if !e.passes(t, 10*time.Second) {
		t.Fatal("the session does not pass: this shows nothing")
	}
	d := reportedDataplane{s.agent.dataplane, s.agent}
	apply := func(rs *bocage.Ruleset) (err error) {
		must(t, host.In(s.here, func() error { err = d.Apply(rs); return nil }))
		return err
	}
	if err := apply(s.ruleset(2, false)); !errors.Is(err, ErrRisky) || !e.passes(t, 10*time.Second) {
		t.Fatalf("an edit that cuts the session: %v", err)
	}
	quarantined := s.ruleset(3, false)
	quarantined.Decisions = append(quarantined.Decisions, bocage.Decision{ID: 9, Verdict: bocage.VerdictDrop, Code: bocage.ReasonQuarantine,
		By: []bocage.Ref{{Kind: "Quarantine", Name: "q"}}})
	quarantined.Refused = []bocage.Refusal{{Identity: 202, Decision: 9}}
	for range 2 { // as it is tried again while it waits
		if err := apply(quarantined); err != nil && !errors.Is(err, ErrRisky) {
			t.Fatal(err)
		}
	}
	if e.passes(t, 300*time.Millisecond) {
		t.Error("who is quarantined passes")
	}
	if in := s.agent.ruleset.Load(); s.agent.dataplane.Generation() == 1 && (in.Generation != 1 || !slices.Equal(refusedIn(in), []bocage.Identity{202}) || len(in.Rules) != 1) {
		t.Errorf("generation %d with %d rules refuses %v", in.Generation, len(in.Rules), refusedIn(in))
	}
	// What comes next is what it says, whatever was refused meanwhile.
	if err := apply(s.ruleset(4, true)); err != nil || !e.passes(t, 10*time.Second) {
		t.Errorf("the quarantine is lifted: %v", err)
	}
}

// A wire takes an interface from the host, whatever is allowed there.
func TestRootGuardOfWires(t *testing.T) {
	s := newSiege(t)
	s.login(t)
	wired := s.ruleset(1, true)
	wired.Ports, wired.Wires = nil, []bocage.Wire{{Name: "w", Host: "h1", Inside: "work0", Outside: "other0"}}
	if err := s.guard(t, wired); !errors.Is(err, ErrRisky) || !strings.Contains(err.Error(), "wire w takes work0; make the wire of other interfaces") {
		t.Errorf("a wire of the session's interface: %v", err)
	}
	wired.Wires[0].Inside = "another0"
	if err := s.guard(t, wired); err != nil {
		t.Errorf("a wire of other interfaces: %v", err)
	}
	wired.Wires[0].Outside = "work0"
	s.agent.hidden.Store(&[]string{"work0"})
	if err := s.guard(t, wired); err != nil {
		t.Errorf("an interface that is left alone is no wire's: %v", err)
	}
}

// An interface that was left alone stays so as long as somebody is there whom what is
// in force would cut off: nobody was asked about that when it came into force.
func TestRootLeftAloneWhileInUse(t *testing.T) {
	s := newSiege(t)
	rs := s.ruleset(1, false)
	s.agent.ruleset.Store(rs)
	logout := s.login(t)
	var still []bocage.FailsafeEntry
	look := func(told []string, entries ...bocage.FailsafeEntry) []bocage.FailsafeEntry {
		t.Helper()
		must(t, host.In(s.here, func() error {
			links, err := host.Links("")
			still = s.agent.stillInUse(told, entries, links)
			return err
		}))
		return still
	}
	told := []string{"work0", "gone0"}
	if got := look(told); len(got) != 1 || got[0].Interface != "work0" || !got[0].Until.IsZero() || !strings.Contains(strings.Join(got[0].For, ""), "of ann by work0") {
		t.Errorf("somebody is there, and left alone is %+v", got)
	}
	if got := look(nil); len(got) != 0 {
		t.Errorf("it was not left alone, and is now: %+v", got)
	}
	if got := look(told, bocage.FailsafeEntry{Interface: "work0"}); len(got) != 0 {
		t.Errorf("it is left alone twice: %+v", got)
	}
	s.agent.ruleset.Store(s.ruleset(1, true))
	if got := look(told); len(got) != 0 {
		t.Errorf("policy lets the session be, and left alone is %+v", got)
	}
	s.agent.ruleset.Store(rs)
	s.agent.cfg.Uplinks = []string{"work0"}
	if got := look(told); len(got) != 0 {
		t.Errorf("it is to be enforced on, and left alone is %+v", got)
	}
	s.agent.cfg.Uplinks = nil
	s.agent.answer.Store(&statusAnswer{Risk: bocage.RiskAcceptance{Until: time.Now().Add(time.Minute)}})
	if got := look(told); len(got) != 0 {
		t.Errorf("the risk is accepted, and left alone is %+v", got)
	}
	s.agent.answer.Store(nil)
	logout()
	hosttest.Await(t, "nobody to be there", func() bool { return len(look(told)) == 0 })
}

// session is a login whose connection can be asked.
func (s *siege) session(t *testing.T) *echo {
	t.Helper()
	var e echo
	var listener net.Listener
	must(t, host.In(s.here, func() (err error) { listener, err = net.Listen("tcp", s.local.String()+":0"); return err }))
	t.Cleanup(func() { listener.Close() })
	must(t, host.In(s.there, func() (err error) { e.client, err = net.Dial("tcp", listener.Addr().String()); return err }))
	var err error
	e.server, err = listener.Accept()
	must(t, err)
	t.Cleanup(func() { e.client.Close(); e.server.Close() })
	s.shell(t, netip.MustParseAddrPort(e.server.RemoteAddr().String()), netip.MustParseAddrPort(e.server.LocalAddr().String()))
	return &e
}
