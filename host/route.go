package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddAddress gives a link an address, usable at once: an IPv6 address is not
// probed for duplicates first. An address that is there already is no error.
func AddAddress(namespace, link string, p netip.Prefix) error {
	err := onLink(namespace, link, func(l netlink.Link) error {
		address := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		return netlink.AddrReplace(l, address)
	})
	if err != nil {
		return fmt.Errorf("add address %s to %s in namespace %q: %w", p, link, namespace, err)
	}
	return nil
}

// Route leads to a destination by a gateway, by a link or by both.
type Route struct {
	Destination netip.Prefix
	Gateway     netip.Addr // invalid: the destination is on the link
	Link        string     // "": whichever reaches the gateway
	Table       int        // 0: main
	// Local delivers to this namespace's own sockets whatever the address is.
	Local bool
	// OnLink trusts that the gateway is on the link though no address says so.
	OnLink bool
}

// AddRoute adds a route, or replaces the one to the same destination in the
// same table.
func AddRoute(namespace string, r Route) error {
	err := In(namespace, func() error {
		route := &netlink.Route{Dst: ipNet(r.Destination.Masked()), Table: r.Table}
		if r.Gateway.IsValid() {
			route.Gw = r.Gateway.AsSlice()
		}
		if r.Link != "" {
			link, err := find(r.Link)
			if err != nil {
				return fmt.Errorf("link %s: %w", r.Link, err)
			}
			route.LinkIndex = link.Attrs().Index
		}
		switch {
		case r.Local:
			route.Type, route.Scope = unix.RTN_LOCAL, netlink.SCOPE_HOST
		case !r.Gateway.IsValid():
			route.Scope = netlink.SCOPE_LINK
		}
		if r.OnLink {
			route.Flags = int(netlink.FLAG_ONLINK)
		}
		return netlink.RouteReplace(route)
	})
	if err != nil {
		return fmt.Errorf("add route to %s in namespace %q: %w", r.Destination, namespace, err)
	}
	return nil
}

// Rule sends what came in by a link to a routing table of its own.
type Rule struct {
	IncomingLink string // "": any
	Table        int
	Priority     int // lower is asked first; 0: before the rules that are there
	IPv6         bool
}

// AddRule adds a routing rule. One that is there already is no error.
func AddRule(namespace string, r Rule) error {
	err := In(namespace, func() error {
		rule := netlink.NewRule()
		rule.IifName, rule.Table, rule.Family = r.IncomingLink, r.Table, unix.AF_INET
		if r.Priority != 0 {
			rule.Priority = r.Priority
		}
		if r.IPv6 {
			rule.Family = unix.AF_INET6
		}
		if err := netlink.RuleAdd(rule); !errors.Is(err, unix.EEXIST) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("add rule for table %d in namespace %q: %w", r.Table, namespace, err)
	}
	return nil
}

// AddNeighbor ties an address to a hardware address for ever, replacing what
// was known.
func AddNeighbor(namespace, link string, ip netip.Addr, mac net.HardwareAddr) error {
	err := onLink(namespace, link, func(l netlink.Link) error {
		family := unix.AF_INET
		if ip.Is6() {
			family = unix.AF_INET6
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: family,
			State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac})
	})
	if err != nil {
		return fmt.Errorf("add neighbor %s to %s in namespace %q: %w", ip, link, namespace, err)
	}
	return nil
}

// onLink calls fn on a thread in the namespace with one of its links.
func onLink(namespace, name string, fn func(netlink.Link) error) error {
	return In(namespace, func() error {
		link, err := find(name)
		if err != nil {
			return err
		}
		return fn(link)
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
