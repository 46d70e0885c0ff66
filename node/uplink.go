package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
)

// ErrRisky means that what was asked for might cut an administrator off from the
// host. Config.AcceptRisk does it all the same.
var ErrRisky = errors.New("this might cut you off from this host")

// startedFrom is the SSH session by which an administrator started this process.
// sudo and the like clear the environment, so its ancestors' are asked too.
func startedFrom() (host.Connection, bool) {
	if session, ok := host.ParseSSHConnection(os.Getenv("SSH_CONNECTION")); ok {
		return session, true
	}
	for pid := os.Getppid(); pid > 1; pid = parent(pid) {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			continue
		}
		for variable := range strings.SplitSeq(string(environ), "\x00") {
			if value, ok := strings.CutPrefix(variable, "SSH_CONNECTION="); ok {
				if session, ok := host.ParseSSHConnection(value); ok {
					return session, true
				}
			}
		}
	}
	return host.Connection{}, false
}

// parent returns a process's parent, or 0.
func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0
	}
	number, _ := strconv.Atoi(fields[1])
	return number
}

// keeper is somebody whom this host must keep reaching.
type keeper struct {
	name    string
	address netip.Addr
	until   time.Time // zero: for as long as this process runs
}

// comeBackWithin is how long the way of an administrator is left alone who has no
// session any more, so that whoever lost one comes back.
const comeBackWithin = 10 * time.Minute

// starter is the administrator who started this process.
type starter struct {
	from host.Connection // by which it was; no address: nobody is known to have
	mu   sync.Mutex      // guards the rest
	seen time.Time       // when a session was last open
	live bool
}

// find asks the process's surroundings who started it.
func (s *starter) find(now time.Time) {
	s.from, _ = startedFrom()
	s.seen, s.live = now, true
}

// look notes whether the administrator has a session. Where that cannot be known,
// it stays as it was.
func (s *starter) look(now time.Time, connections func() (established []host.Connection, listening []uint16, err error)) error {
	if !s.from.Peer.IsValid() {
		return nil
	}
	established, _, err := connections()
	if err != nil {
		return fmt.Errorf("look for the sessions of the administrator at %s: %w", s.from.Peer.Addr(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Whose a connection is can be read by few: any from there to that server counts.
	if s.live = slices.ContainsFunc(established, func(c host.Connection) bool {
		return c.Peer.Addr() == s.from.Peer.Addr() && c.Local.Port() == s.from.Local.Port()
	}); s.live {
		s.seen = now
	}
	return nil
}

// keeper returns the administrator, unless it is too long ago that one was there.
func (s *starter) keeper(now time.Time) []keeper {
	if !s.from.Peer.IsValid() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	peer := s.from.Peer.Addr()
	k := keeper{name: "the administrator at " + peer.String(), address: peer}
	if !s.live {
		if k.until = s.seen.Add(comeBackWithin); !now.Before(k.until) {
			return nil
		}
	}
	return []keeper{k}
}

// keepers are the administrator who started this process, while one is there, and
// the controllers.
func (a *agentProcess) keepers() []keeper {
	return append(a.starter.keeper(time.Now()), a.cfg.controllers()...)
}

// controllers are those whose addresses are known.
func (c Config) controllers() []keeper {
	var all []keeper
	for _, controller := range c.Controllers {
		if at, err := netip.ParseAddrPort(controller); err == nil {
			all = append(all, keeper{name: "the controller at " + controller, address: at.Addr()})
		}
	}
	return all
}

// failsafe says which of the host's links are left alone, and for whom: its
// uplinks that nobody named to be enforced on.
func (c Config) failsafe(links []host.Link, keepers []keeper) ([]bocage.FailsafeEntry, error) {
	always, err := host.Uplinks()
	if err != nil {
		return nil, err
	}
	why := map[uint32][]keeper{}
	note := func(indexes []uint32, k keeper) {
		for _, index := range withPorts(indexes, links) {
			why[index] = append(why[index], k)
		}
	}
	note(always, keeper{name: "the default route"})
	for _, k := range keepers {
		way, err := host.Uplinks(k.address)
		if err != nil {
			return nil, err
		}
		note(slices.DeleteFunc(way, func(index uint32) bool { return slices.Contains(always, index) }), k)
	}
	entries := []bocage.FailsafeEntry{}
	for _, l := range links {
		reasons := why[l.Index]
		if len(reasons) == 0 || slices.Contains(c.Uplinks, l.Name) {
			continue
		}
		e := bocage.FailsafeEntry{Interface: l.Name}
		for _, k := range reasons {
			e.For = append(e.For, k.name)
		}
		if lasting := slices.ContainsFunc(reasons, func(k keeper) bool { return k.until.IsZero() }); !lasting {
			e.Until = reasons[0].until // the administrator's, who is the only one with an end
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// checkUplinks refuses to begin when an interface that was named for enforcement
// carries the administrator's own session.
func (c Config) checkUplinks() error {
	session, ok := startedFrom()
	if !ok || len(c.Uplinks) == 0 || c.AcceptRisk {
		return nil
	}
	peer := session.Peer.Addr()
	carrying, err := host.Uplinks(peer)
	if err != nil {
		return err
	}
	for _, name := range c.Uplinks {
		link, err := host.LinkNamed("", name)
		if err != nil {
			return fmt.Errorf("--uplink: %w", err)
		}
		if slices.Contains(carrying, link.Index) {
			return fmt.Errorf("--uplink %s: your session from %s uses it: %w; --accept-risk does it all the same", name, peer, ErrRisky)
		}
	}
	return nil
}

// followLinks shows the agent's loop every link but the host's uplinks: what it
// does not see it cannot attach to, whatever a ruleset names. Uplinks that the
// administrator named are shown. Which links those are changes without a change of
// links, too: routes come and go, and so do administrators.
func (a *agentProcess) followLinks(ctx context.Context, each func([]host.Link) error) error {
	var mu sync.Mutex // guards last and told, and is held while each runs
	var last []host.Link
	var told []string
	show := func(links []host.Link, again bool) error {
		if err := a.starter.look(time.Now(), host.Connections); err != nil {
			a.logger.Warn("whom an interface is left alone for is not known", "error", err)
		}
		entries, err := a.leftAlone(links)
		if err != nil {
			return err
		}
		entries = append(entries, a.stillInUse(told, entries, links)...)
		a.failsafe.Store(&entries)
		hidden := namesOf(entries)
		if again && slices.Equal(hidden, told) {
			return nil
		}
		told = hidden
		a.hidden.Store(&hidden)
		a.noteHidden(hidden, a.ruleset.Load())
		return each(shown(links, func(l host.Link) bool { return slices.Contains(hidden, l.Name) }))
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return host.FollowLinks(ctx, func(links []host.Link) error {
			mu.Lock()
			defer mu.Unlock()
			a.discoverer.SawLinks(links)
			last = links
			return show(links, false)
		})
	})
	group.Go(func() error {
		return every(ctx, uplinksEvery, func() error {
			mu.Lock()
			defer mu.Unlock()
			if last == nil {
				return nil
			}
			return show(last, true)
		})
	})
	return group.Wait()
}

// uplinksEvery is how soon it is noticed that an uplink is none any more, or another.
const uplinksEvery = 5 * time.Second

// leftAlone says which of the links are left alone, and for whom.
func (a *agentProcess) leftAlone(links []host.Link) ([]bocage.FailsafeEntry, error) {
	return a.cfg.failsafe(links, a.keepers())
}

func namesOf(entries []bocage.FailsafeEntry) []string {
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Interface)
	}
	return names
}

// stillInUse finds links that were left alone until now and would not be any longer,
// by which somebody is in command of this host whom the ruleset in force would cut off
// there: it was put in force while it did not count on them. They are left alone until
// the session is over or the risk is accepted, as if that ruleset was to come now.
func (a *agentProcess) stillInUse(told []string, entries []bocage.FailsafeEntry, links []host.Link) (still []bocage.FailsafeEntry) {
	ruleset := a.ruleset.Load()
	ending := slices.DeleteFunc(slices.Clone(told), func(name string) bool {
		return slices.Contains(a.cfg.Uplinks, name) || slices.ContainsFunc(entries, func(e bocage.FailsafeEntry) bool { return e.Interface == name }) ||
			!slices.ContainsFunc(links, func(l host.Link) bool { return l.Name == name })
	})
	if ruleset == nil || len(ending) == 0 || time.Now().Before(a.riskAccepted()) {
		return nil
	}
	sessions, err := a.sessionsNow()
	if err != nil {
		a.logger.Warn("look for administrators' sessions", "error", err)
		return nil // as with a ruleset: policy does not wait for what cannot be known
	}
	is := func(name string) bool { return slices.Contains(ending, name) }
	ports := slices.DeleteFunc(slices.Clone(ruleset.Ports), func(p bocage.Port) bool { return !is(p.Interface) })
	wires := slices.DeleteFunc(slices.Clone(ruleset.Wires), func(w bocage.Wire) bool { return !is(w.Inside) && !is(w.Outside) })
	for _, c := range ruleset.CutSessions(a.cfg.Host, sessions, ports, wires, time.Now()) {
		if !slices.ContainsFunc(still, func(e bocage.FailsafeEntry) bool { return e.Interface == c.Interface }) {
			still = append(still, bocage.FailsafeEntry{Interface: c.Interface, For: []string{"the session " + c.AdministratorSession.String() + ", which policy would cut"}})
		}
	}
	return still
}

// withPorts adds the ports by which a bridge or a bond that is an uplink reaches
// the wire: all but those of workloads.
func withPorts(uplinks []uint32, links []host.Link) []uint32 {
	for grown := true; grown; {
		grown = false
		for _, l := range links {
			if l.Kind != "veth" && l.Kind != "tuntap" && l.Master != 0 && slices.Contains(uplinks, l.Master) && !slices.Contains(uplinks, l.Index) {
				uplinks, grown = append(uplinks, l.Index), true
			}
		}
	}
	return uplinks
}

// noteHidden says so when policy counts on an interface that is left alone.
func (a *agentProcess) noteHidden(hidden []string, ruleset *bocage.Ruleset) {
	if ruleset == nil {
		return
	}
	var wanted []string
	for _, port := range ruleset.Ports {
		if slices.Contains(hidden, port.Interface) {
			wanted = append(wanted, port.Interface+" of "+port.Workload)
		}
	}
	for _, wire := range ruleset.Wires {
		if slices.Contains(hidden, wire.Inside) || slices.Contains(hidden, wire.Outside) {
			wanted = append(wanted, "wire "+wire.Name)
		}
	}
	if len(wanted) == 0 {
		a.faults.clear("uplinks")
		return
	}
	a.faults.set("uplinks", fmt.Sprintf("not enforced, since this host's own traffic uses it: %s; name it with --uplink if that is meant", strings.Join(wanted, ", ")))
}
