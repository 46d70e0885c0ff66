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

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
)

// ErrRisky means that what was asked for might cut an administrator off from the
// host. Config.AcceptRisk does it all the same.
var ErrRisky = errors.New("this might cut you off from this host")

// sessionPeer is where the administrator sits who started this process over SSH.
// sudo and the like clear the environment, so its ancestors' are asked too.
func sessionPeer() (netip.Addr, bool) {
	if session, ok := host.ParseSSHConnection(os.Getenv("SSH_CONNECTION")); ok {
		return session.Peer.Addr(), true
	}
	for pid := os.Getppid(); pid > 1; pid = parent(pid) {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			continue
		}
		for variable := range strings.SplitSeq(string(environ), "\x00") {
			if value, ok := strings.CutPrefix(variable, "SSH_CONNECTION="); ok {
				if session, ok := host.ParseSSHConnection(value); ok {
					return session.Peer.Addr(), true
				}
			}
		}
	}
	return netip.Addr{}, false
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
}

// keepers are the administrator who started this process, and the controllers.
func (c Config) keepers() []keeper {
	var all []keeper
	if peer, ok := sessionPeer(); ok {
		all = append(all, keeper{"the administrator at " + peer.String(), peer})
	}
	for _, controller := range c.Controllers {
		if at, err := netip.ParseAddrPort(controller); err == nil {
			all = append(all, keeper{"the controller at " + controller, at.Addr()})
		}
	}
	return all
}

// failsafe says which of the host's links are left alone, and for whom: its
// uplinks that nobody named to be enforced on.
func (c Config) failsafe(links []host.Link) ([]bocage.FailsafeEntry, error) {
	always, err := host.Uplinks()
	if err != nil {
		return nil, err
	}
	why := map[uint32][]string{}
	note := func(indexes []uint32, name string) {
		for _, index := range withPorts(indexes, links) {
			why[index] = append(why[index], name)
		}
	}
	note(always, "the default route")
	for _, k := range c.keepers() {
		way, err := host.Uplinks(k.address)
		if err != nil {
			return nil, err
		}
		note(slices.DeleteFunc(way, func(index uint32) bool { return slices.Contains(always, index) }), k.name)
	}
	entries := []bocage.FailsafeEntry{}
	for _, l := range links {
		if names := why[l.Index]; len(names) > 0 && !slices.Contains(c.Uplinks, l.Name) {
			entries = append(entries, bocage.FailsafeEntry{Interface: l.Name, For: names})
		}
	}
	return entries, nil
}

// checkUplinks refuses to begin when an interface that was named for enforcement
// carries the administrator's own session.
func (c Config) checkUplinks() error {
	peer, ok := sessionPeer()
	if !ok || len(c.Uplinks) == 0 || c.AcceptRisk {
		return nil
	}
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
// administrator named are shown.
func (a *agentProcess) followLinks(ctx context.Context, each func([]host.Link) error) error {
	return host.FollowLinks(ctx, func(links []host.Link) error {
		hidden, err := a.cfg.hiddenLinks(links)
		if err != nil {
			return err
		}
		a.discoverer.SawLinks(links)
		links = shown(links, func(l host.Link) bool { return slices.Contains(hidden, l.Name) })
		a.hidden.Store(&hidden)
		a.noteHidden(hidden, a.ruleset.Load())
		return each(links)
	})
}

// hiddenLinks names the host's uplinks that nobody named to be enforced on.
func (c Config) hiddenLinks(links []host.Link) ([]string, error) {
	entries, err := c.failsafe(links)
	hidden := []string{}
	for _, e := range entries {
		hidden = append(hidden, e.Interface)
	}
	return hidden, err
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
