package main

import (
	"errors"
	"fmt"
	"net/netip"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
)

// Paths between two links of one subnet, where the host is a bridge or a wire.

// loadWire makes the path one subnet.
func (p *path) loadWire() error {
	if err := p.likeCables(); err != nil {
		return err
	}
	for i, e := range []*end{&p.client, &p.server} {
		e.address = netip.AddrFrom4([4]byte{10, 79, 0, byte(i + 1)})
		if err := host.AddAddress(e.namespace, "eth0", netip.PrefixFrom(e.address, 24)); err != nil {
			return err
		}
	}
	return errors.Join(host.AddNeighbor(p.client.namespace, "eth0", p.server.address, p.server.mac),
		host.AddNeighbor(p.server.namespace, "eth0", p.client.address, p.client.mac))
}

// likeCables has the path's ends behave as the far ends of cables: they take frames
// from drivers, and leave no checksum to a card that there is not.
func (p *path) likeCables() error {
	for _, e := range []*end{&p.client, &p.server} {
		err := host.In(e.namespace, func() error {
			for feature, on := range map[string]bool{"rx-gro": true, "tx-checksum-ip-generic": false} {
				if _, err := host.SetFeature("eth0", feature, on); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// wireVariants are what two links are joined by.
func wireVariants(p *path, o options) []variant {
	variants := []variant{bridged{p}}
	for _, drivers := range []bool{false, true} {
		w := &wired{protected{path: p, entries: 1_000}, drivers}
		if o.only.MatchString(w.name()) {
			variants = append(variants, w)
		}
	}
	return variants
}

// bridged is a bridge without any filter.
type bridged struct{ path *path }

func (bridged) name() string   { return "bridge" }
func (bridged) prepare() error { return nil }
func (bridged) remove() error  { return nil }

func (b bridged) start() error {
	const bridge = "bridge"
	return errors.Join(host.CreateBridge(b.path.host, bridge), host.SetMaster(b.path.host, b.path.client.link, bridge),
		host.SetMaster(b.path.host, b.path.server.link, bridge))
}

func (b bridged) stop() error { return host.DeleteLink(b.path.host, "bridge") }

// wired is a wire with the client at its inside.
type wired struct {
	protected
	drivers bool
}

func (w *wired) name() string {
	by := "stack"
	if w.drivers {
		by = "drivers"
	}
	return fmt.Sprintf("bocage wire by %s %s", by, short(w.entries))
}

func (w *wired) start() error {
	return host.In(w.path.host, func() error {
		return w.plane.AttachWire(dataplane.Wire{Name: "bench", Inside: w.path.client.ifindex, Outside: w.path.server.ifindex,
			Closed: true, Drivers: w.drivers, Residents: []bocage.Port{w.ports()[0]}})
	})
}

func (w *wired) stop() error {
	return host.In(w.path.host, func() error { return w.plane.DetachWire(w.path.client.ifindex) })
}
