package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"

	"bocage.dev/bocage/host"
)

// path is what packets go along.
type path struct {
	prefix   string
	host     string
	client   end
	server   end
	created  []string
	realtime bool
	flood    floodObjects // empty until loadFlood
}

type end struct {
	namespace, link string
	ifindex         uint32
	mac, hostMAC    net.HardwareAddr
	address         netip.Addr
}

func newPath() (*path, error) {
	var random [4]byte
	rand.Read(random[:])
	p := &path{prefix: "bct" + hex.EncodeToString(random[:])}
	p.host = p.prefix + "h"
	p.client = end{namespace: p.prefix + "c", link: "client", mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}, address: netip.MustParseAddr("10.78.0.1")}
	p.server = end{namespace: p.prefix + "s", link: "server", mac: net.HardwareAddr{2, 0, 0, 0, 0, 2}, address: netip.MustParseAddr("10.78.0.2")}
	for _, n := range []string{p.host, p.client.namespace, p.server.namespace} {
		if err := host.CreateNamespace(n); err != nil {
			return p, err
		}
		p.created = append(p.created, n)
	}
	if err := host.Sysctl(p.host, "net.ipv4.ip_forward", "1"); err != nil {
		return p, err
	}
	gateway := netip.MustParseAddr("169.254.1.1")
	for i, e := range []*end{&p.client, &p.server} {
		mac := net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}
		err := host.CreateVeth(host.Veth{Name: e.link, Namespace: p.host, Peer: "eth0", PeerNamespace: e.namespace, MAC: mac, PeerMAC: e.mac})
		if err != nil {
			return p, err
		}
		link, err := host.LinkNamed(p.host, e.link)
		if err != nil {
			return p, err
		}
		e.ifindex, e.hostMAC = link.Index, mac
		own := netip.PrefixFrom(e.address, 32)
		err = errors.Join(
			host.AddAddress(e.namespace, "eth0", own),
			host.AddRoute(p.host, host.Route{Destination: own, Link: e.link}),
			host.AddNeighbor(p.host, e.link, e.address, e.mac),
			host.AddNeighbor(e.namespace, "eth0", gateway, mac),
			host.AddRoute(e.namespace, host.Route{Destination: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Gateway: gateway, Link: "eth0", OnLink: true}),
		)
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p *path) remove() error {
	errs := []error{p.flood.Close()}
	for _, n := range p.created {
		errs = append(errs, host.DeleteNamespace(n))
	}
	return errors.Join(errs...)
}
