package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LinkTowards tells by which link, in the calling thread's namespace, packets to
// an address leave: behind a bridge the bridge's port, if the bridge has learned
// it, else the bridge itself. The error wraps [fs.ErrNotExist] if the address is
// this host's own, or nothing leads there.
func LinkTowards(address netip.Addr) (Link, error) {
	link, err := linkTowards(address.Unmap())
	if err != nil {
		return Link{}, fmt.Errorf("find the link towards %s: %w", address, err)
	}
	return link, nil
}

func linkTowards(address netip.Addr) (Link, error) {
	routes, err := netlink.RouteGet(address.AsSlice())
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		return Link{}, fs.ErrNotExist
	}
	if err != nil {
		return Link{}, err
	}
	if len(routes) == 0 || routes[0].Type == unix.RTN_LOCAL || routes[0].LinkIndex == 0 {
		return Link{}, fs.ErrNotExist
	}
	found, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return Link{}, err
	}
	if found.Type() != "bridge" {
		return linkOf(found), nil
	}
	hop := net.IP(address.AsSlice())
	if routes[0].Gw != nil {
		hop = routes[0].Gw
	}
	if port, ok := bridgePort(found.Attrs().Index, hop); ok {
		return linkOf(port), nil
	}
	return linkOf(found), nil
}

// bridgePort finds the port of a bridge behind which a neighbour is.
func bridgePort(bridge int, hop net.IP) (netlink.Link, bool) {
	neighbours, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(bridge, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, false
	}
	var mac net.HardwareAddr
	for _, n := range neighbours {
		if n.IP.Equal(hop) && len(n.HardwareAddr) == 6 {
			mac = n.HardwareAddr
		}
	}
	if mac == nil {
		return nil, false
	}
	entries, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return nil, false
	}
	for _, e := range entries {
		if e.MasterIndex == bridge && e.LinkIndex != bridge && bytes.Equal(e.HardwareAddr, mac) {
			if port, err := netlink.LinkByIndex(e.LinkIndex); err == nil {
				return port, true
			}
		}
	}
	return nil, false
}
