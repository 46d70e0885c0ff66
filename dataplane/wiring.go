package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage/dataplane/bpf"
)

// Packets that are handed straight from one workload to another (direct.h of the
// bpf package) go where the host would have sent them. Whether it still would is
// watched here: the kernel hands over only while it is, so that nothing goes a way
// of yesterday when the agent is dead.

const (
	watchPeriod = 2 * time.Second
	directLease = 8 * time.Second
)

// wiring hears of changes to links, addresses, routes, rules and neighbours.
type wiring struct {
	socket *nl.NetlinkSocket
	links  *netlink.Handle // asks in the host's namespace, whoever calls
	// neighbours known by their MAC, as their state changes all the time.
	neighbours map[adjacent]string
}

type adjacent struct {
	ifindex int
	address netip.Addr
}

// mostNeighbours bounds what is remembered; beyond, all are forgotten at once.
const mostNeighbours = 1 << 16

func newWiring() (*wiring, error) {
	w := &wiring{neighbours: make(map[adjacent]string)}
	var err error
	if w.links, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("ask for links: %w", err)
	}
	w.socket, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		w.links.Close()
		return nil, fmt.Errorf("watch links and routes: %w", err)
	}
	timeout := unix.NsecToTimeval(watchPeriod.Nanoseconds())
	return w, errors.Join(w.socket.SetReceiveTimeout(&timeout), w.socket.SetReceiveBufferSize(1<<20, true))
}

func (w *wiring) close() {
	w.links.Close()
	w.socket.Close()
}

// followWiring renews the lease, and notes changes, until the context ends.
func (d *Dataplane) followWiring(ctx context.Context) error {
	// What changed while nobody watched is not known.
	err := d.rewire()
	for err == nil && ctx.Err() == nil {
		var changed bool
		var links []uint32
		if err = d.renew(); err != nil {
			return err
		}
		if changed, links, err = d.wiring.next(); err != nil {
			return fmt.Errorf("watch links and routes: %w", err)
		}
		if changed {
			err = d.noteWiring(links)
		}
	}
	return errors.Join(err, ctx.Err())
}

// next waits for news for a while: whether anything changed that matters, and
// which links.
func (w *wiring) next() (changed bool, links []uint32, err error) {
	messages, _, err := w.socket.Receive()
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
		return false, nil, nil
	case errors.Is(err, unix.ENOBUFS): // something was missed
		clear(w.neighbours)
		return true, nil, nil
	case err != nil:
		return false, nil, err
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			changed = w.noteNeighbour(m.Data, m.Header.Type == unix.RTM_NEWNEIGH) || changed
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			changed = true
			if len(m.Data) >= unix.SizeofIfInfomsg {
				links = append(links, uint32(nl.DeserializeIfInfomsg(m.Data).Index))
			}
		default:
			changed = true
		}
	}
	return changed, links, nil
}

// noteNeighbour says whether a neighbour has another MAC than before, or none.
func (w *wiring) noteNeighbour(data []byte, there bool) bool {
	n, err := netlink.NeighDeserialize(data)
	if err != nil {
		return true
	}
	address, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return true // of a bridge's table
	}
	who, mac := adjacent{n.LinkIndex, address.Unmap()}, n.HardwareAddr.String()
	if !there || n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0 {
		delete(w.neighbours, who)
		return true
	}
	if w.neighbours[who] == mac {
		return false
	}
	if len(w.neighbours) >= mostNeighbours {
		clear(w.neighbours)
	}
	w.neighbours[who] = mac
	return true
}

// noteWiring has everything looked at anew, after what the links of ports say.
func (d *Dataplane) noteWiring(links []uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	for _, ifindex := range links {
		if _, attached := d.ports[ifindex]; !attached {
			continue
		}
		var row bpf.KernelPort
		if d.objects.Ports.Lookup(ifindex, &row) != nil {
			continue
		}
		before := row
		if d.describe(ifindex, &row) == nil && row != before { // else it is gone
			if err := d.objects.Ports.Put(ifindex, row); err != nil {
				return fmt.Errorf("write port: %w", err)
			}
		}
	}
	return d.rewireNow()
}

// describe fills in what the link itself says: the MAC of the host's side (all
// zeros where it has none, as a tunnel), how much fits, and whether packets can be
// handed to its other side.
func (d *Dataplane) describe(ifindex uint32, row *bpf.KernelPort) error {
	ask := netlink.LinkByIndex
	if d.wiring != nil {
		ask = d.wiring.links.LinkByIndex
	}
	l, err := linkBy(ask, ifindex)
	if err != nil {
		return err
	}
	row.HostMac = [6]byte{}
	copy(row.HostMac[:], l.Attrs().HardwareAddr)
	row.Mtu, row.Master = uint16(min(l.Attrs().MTU, 1<<16-1)), uint32(l.Attrs().MasterIndex)
	row.Flags &^= portPeer
	if _, pair := l.(*netlink.Veth); pair && l.Attrs().NetNsID >= 0 {
		row.Flags |= portPeer
	}
	return nil
}

// rewire makes every flow's ends be looked at anew: what was known of ports, links
// or routes has changed.
func (d *Dataplane) rewire() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rewireNow()
}

func (d *Dataplane) rewireNow() error {
	return d.changeTopology(func(t *bpf.KernelTopology) { t.Number++ })
}

// renew lets the kernel hand packets over for a while longer.
func (d *Dataplane) renew() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changeTopology(func(t *bpf.KernelTopology) {
		t.DirectUntil = uint64(readClock().ns + directLease.Nanoseconds())
	})
}

func (d *Dataplane) changeTopology(change func(*bpf.KernelTopology)) error {
	if d.closed {
		return nil
	}
	var t bpf.KernelTopology
	if err := d.objects.Topology.Lookup(uint32(0), &t); err != nil {
		return fmt.Errorf("read topology: %w", err)
	}
	change(&t)
	if err := d.objects.Topology.Put(uint32(0), t); err != nil {
		return fmt.Errorf("write topology: %w", err)
	}
	return nil
}
