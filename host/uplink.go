package host

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplinks lists the indexes of the links, in the current namespace, by which
// this host reaches the world and the given addresses: those of its default
// routes, and those that packets to the addresses leave by. Addresses that are
// the host's own or that it has no route to are passed over. Whoever filters
// these can cut off an administrator.
func Uplinks(addresses ...netip.Addr) ([]uint32, error) {
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var indexes []uint32
	for _, route := range routes {
		if route.Dst == nil || prefixLength(route.Dst) == 0 {
			indexes = append(indexes, linksOfRoute(route)...)
		}
	}
	for _, address := range addresses {
		// An error is an address without a route: no link leads there.
		found, err := netlink.RouteGet(net.IP(address.Unmap().AsSlice()))
		if err != nil || address.IsLoopback() {
			continue
		}
		for _, route := range found {
			if route.Type != unix.RTN_LOCAL {
				indexes = append(indexes, linksOfRoute(route)...)
			}
		}
	}
	slices.Sort(indexes)
	return slices.Compact(indexes), nil
}

func prefixLength(network *net.IPNet) int {
	ones, _ := network.Mask.Size()
	return ones
}

func linksOfRoute(route netlink.Route) []uint32 {
	var indexes []uint32
	if route.LinkIndex > 0 {
		indexes = append(indexes, uint32(route.LinkIndex))
	}
	for _, hop := range route.MultiPath {
		indexes = append(indexes, uint32(hop.LinkIndex))
	}
	return indexes
}
