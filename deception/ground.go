package deception

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host"
)

// The cable's ends. The hardware addresses are locally administered and the same
// on every host: the wire has two ends, both of them ours.
var (
	hostMAC  = net.HardwareAddr{0x02, 0xbd, 0, 0, 0, 1}
	decoyMAC = net.HardwareAddr{0x02, 0xbd, 0, 0, 0, 2}
)

// Addresses of the wire's far end, which exist in no packet: a route needs a
// gateway, and the gateway a hardware address. From TEST-NET-1 (RFC 5737) and
// the discard prefix (RFC 6666).
var (
	gateway4 = netip.MustParseAddr("192.0.2.1")
	gateway6 = netip.MustParseAddr("100::1")
)

const (
	decoyLink    = "eth0" // the cable's end inside
	victimTable  = 100    // routing table in which every address is local
	victimRule   = 100    // priority of the rule that leads there
	listenQueue  = 512    // SYNs and connections that wait for the child, each listener
	linkNameSize = 8      // hexadecimal digits after the prefix
)

// groundSysctls make a namespace that takes packets for any address and says
// nothing by itself. They are set before the cable comes, which inherits them.
var groundSysctls = []struct{ key, value string }{
	{"net.ipv4.conf.all.rp_filter", "0"},
	{"net.ipv4.conf.default.rp_filter", "0"},
	{"net.ipv4.conf.default.arp_ignore", "8"}, // the wire has one neighbour, who never asks
	{"net.ipv4.icmp_echo_ignore_all", "1"},
	{"net.ipv6.conf.default.accept_ra", "0"},
	{"net.ipv6.conf.default.autoconf", "0"},
	{"net.ipv6.conf.default.router_solicitations", "0"},
	{"net.ipv6.conf.default.dad_transmits", "0"},
	{"net.ipv6.conf.default.accept_dad", "0"},
	{"net.ipv6.conf.default.addr_gen_mode", "1"}, // no link-local address
	{"net.ipv6.icmp.echo_ignore_all", "1"},
}

// hostLink names the cable's host side: the same for a namespace every time,
// another for another one, and at most 15 characters long.
func hostLink(namespace string) string {
	sum := sha256.Sum256([]byte(namespace))
	return "bocd" + hex.EncodeToString(sum[:])[:linkNameSize]
}

// layGround makes the namespace and the cable, and returns the index of the
// cable's host side, which is in the calling thread's namespace:
//
//  1. the namespace, quiet;
//  2. the cable;
//  3. in: whatever arrives is for us, whichever address it is for;
//  4. out: whatever leaves takes the cable, whichever address it is for.
func layGround(namespace string) (ifindex uint32, err error) {
	if err := host.CreateNamespace(namespace); err != nil {
		return 0, err
	}
	_, err = os.Stat("/proc/sys/net/ipv6")
	ipv6 := err == nil // a kernel without it has no victims there either
	for _, s := range groundSysctls {
		if !ipv6 && strings.HasPrefix(s.key, "net.ipv6.") {
			continue
		}
		if err := host.Sysctl(namespace, s.key, s.value); err != nil {
			return 0, err
		}
	}

	name := hostLink(namespace)
	err = host.CreateVeth(host.Veth{
		Name: name, MAC: hostMAC,
		Peer: decoyLink, PeerNamespace: namespace, PeerMAC: decoyMAC,
	})
	if err != nil {
		return 0, err
	}
	// The host has no business with the wire either: without IPv6 there is no
	// link-local address of the host that a decoy could see.
	if ipv6 {
		if err := host.Sysctl("", "net.ipv6.conf."+name+".disable_ipv6", "1"); err != nil {
			return 0, err
		}
	}
	link, err := host.LinkNamed("", name)
	if err != nil {
		return 0, err
	}

	for _, family := range []struct {
		any     netip.Prefix
		gateway netip.Addr
	}{
		{netip.MustParsePrefix("0.0.0.0/0"), gateway4},
		{netip.MustParsePrefix("::/0"), gateway6},
	} {
		if family.any.Addr().Is6() && !ipv6 {
			continue
		}
		steps := []error{
			host.AddRule(namespace, host.Rule{IncomingLink: decoyLink, Table: victimTable, Priority: victimRule, IPv6: family.any.Addr().Is6()}),
			host.AddRoute(namespace, host.Route{Destination: family.any, Link: "lo", Table: victimTable, Local: true}),
			host.AddNeighbor(namespace, decoyLink, family.gateway, hostMAC),
			host.AddRoute(namespace, host.Route{Destination: family.any, Gateway: family.gateway, Link: decoyLink, OnLink: true}),
		}
		if err := errors.Join(steps...); err != nil {
			return 0, err
		}
	}
	return link.Index, nil
}

// clearGround removes the namespace with all its processes and the cable whose
// host side is in the calling thread's namespace; nil if nothing is there.
func clearGround(namespace string) error {
	return errors.Join(
		host.Kill(namespace),
		host.DeleteLink("", hostLink(namespace)),
		host.DeleteNamespace(namespace),
	)
}

// listener is a pair of listening sockets of one port, one for each family, that
// accept connections to any address. The agent keeps them open while children
// come and go.
type listener struct{ sockets []*os.File }

func (l *listener) close() {
	for _, s := range l.sockets {
		s.Close()
	}
}

// listen opens a port in a namespace for every address.
func listen(namespace string, port uint16) (*listener, error) {
	l := &listener{}
	err := host.In(namespace, func() error {
		for _, address := range []unix.Sockaddr{
			&unix.SockaddrInet4{Port: int(port)},
			&unix.SockaddrInet6{Port: int(port)},
		} {
			socket, err := listenOn(address)
			if errors.Is(err, unix.EAFNOSUPPORT) {
				continue // without IPv6
			}
			if err != nil {
				return err
			}
			l.sockets = append(l.sockets, socket)
		}
		return nil
	})
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// listenOn opens one listening socket in the thread's namespace. Without
// IP_TRANSPARENT the kernel refuses to answer from an address that no
// interface has.
func listenOn(address unix.Sockaddr) (*os.File, error) {
	domain, transparent := unix.AF_INET, [2]int{unix.SOL_IP, unix.IP_TRANSPARENT}
	if _, six := address.(*unix.SockaddrInet6); six {
		domain, transparent = unix.AF_INET6, [2]int{unix.SOL_IPV6, unix.IPV6_TRANSPARENT}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	options := [][3]int{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{transparent[0], transparent[1], 1},
	}
	if domain == unix.AF_INET6 {
		options = append(options, [3]int{unix.SOL_IPV6, unix.IPV6_V6ONLY, 1})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("set socket option %d of level %d: %w", o[1], o[0], err)
		}
	}
	if err := unix.Bind(fd, address); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, listenQueue); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen: %w", err)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}
