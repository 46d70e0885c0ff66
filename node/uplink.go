package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"bocage.dev/bocage/host"
)

// ErrRisky means that what was asked for might cut an administrator off from the
// host. Config.AcceptRisk does it all the same.
var ErrRisky = errors.New("this might cut you off from this host")

// sessionPeer is where the administrator sits who started this process over SSH.
func sessionPeer() (netip.Addr, bool) {
	fields := strings.Fields(os.Getenv("SSH_CONNECTION")) // client address and port, server address and port
	if len(fields) == 0 {
		return netip.Addr{}, false
	}
	address, err := netip.ParseAddr(fields[0])
	return address, err == nil
}

// keepers are the addresses that this host must keep reaching: the
// administrator's and the controllers'.
func (c Config) keepers() []netip.Addr {
	var addresses []netip.Addr
	if peer, ok := sessionPeer(); ok {
		addresses = append(addresses, peer)
	}
	for _, controller := range c.Controllers {
		if at, err := netip.ParseAddrPort(controller); err == nil {
			addresses = append(addresses, at.Addr())
		}
	}
	return addresses
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
		uplinks, err := host.Uplinks(a.cfg.keepers()...)
		if err != nil {
			return err
		}
		var hidden []string
		links = slices.DeleteFunc(links, func(l host.Link) bool {
			hide := slices.Contains(uplinks, l.Index) && !slices.Contains(a.cfg.Uplinks, l.Name)
			if hide {
				hidden = append(hidden, l.Name)
			}
			return hide
		})
		a.noteHidden(hidden)
		return each(links)
	})
}

// noteHidden says so when policy counts on an interface that is left alone.
func (a *agentProcess) noteHidden(hidden []string) {
	a.hidden.Store(&hidden)
	ruleset := a.ruleset.Load()
	if ruleset == nil {
		return
	}
	var wanted []string
	for _, port := range ruleset.Ports {
		if slices.Contains(hidden, port.Interface) {
			wanted = append(wanted, port.Interface+" of "+port.Workload)
		}
	}
	if len(wanted) == 0 {
		a.faults.clear("uplinks")
		return
	}
	a.faults.set("uplinks", fmt.Sprintf("not enforced, since this host's own traffic uses it: %s; name it with --uplink if that is meant", strings.Join(wanted, ", ")))
}
