package dataplane

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// neighbour makes a namespace with a veth to the host that has an address of the
// one subnet of both sides of a wire. The host neither routes nor bridges there.
func (p *plane) neighbour(address byte, identity bocage.Identity, group bocage.Group) *workload {
	p.t.Helper()
	p.links++
	w := &workload{
		namespace: hosttest.Namespace(p.t),
		link:      "wire" + string(rune('a'+p.links)),
		mac:       net.HardwareAddr{2, 0, 0, 0, 0, address},
		v4:        netip.AddrFrom4([4]byte{10, 77, 0, address}),
		v6:        netip.AddrFrom16([16]byte{0xfd, 0x77, 15: address}),
	}
	must(p.t, host.CreateVeth(host.Veth{Name: w.link, Namespace: p.namespace, Peer: "eth0", PeerNamespace: w.namespace, PeerMAC: w.mac}))
	link, err := host.LinkNamed(p.namespace, w.link)
	must(p.t, err)
	w.ifindex = link.Index
	must(p.t, host.AddAddress(w.namespace, "eth0", netip.PrefixFrom(w.v4, 24)))
	must(p.t, host.AddAddress(w.namespace, "eth0", netip.PrefixFrom(w.v6, 64)))
	w.port = bocage.Port{Interface: "wire", Identity: identity, Group: group, Workload: "test/" + w.link,
		MAC: w.mac.String(), Addresses: []netip.Addr{w.v4, w.v6}}
	return w
}

// wire attaches two neighbours as a wire with the first one at the inside.
func (p *plane) wire(inside, outside *workload, strict bool, residents ...*workload) {
	p.t.Helper()
	w := Wire{Name: "wire", Inside: inside.ifindex, Outside: outside.ifindex, Closed: strict, Drivers: p.drivers}
	if p.drivers {
		inside.beCable(p.t)
		outside.beCable(p.t)
	}
	for _, r := range residents {
		w.Residents = append(w.Residents, r.port)
	}
	p.in(func() error { return p.AttachWire(w) })
}

func TestRootWire(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	for _, address := range []netip.Addr{b.v4, b.v6} {
		echo(t, b, address, 80)
		echo(t, b, address, 81)
	}
	echo(t, a, a.v4, 80)
	p.run()
	rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)
	rs.Ports = []bocage.Port{a.port}
	must(t, p.Apply(rs))
	if _, err := dial(t, a, b.v4, 80, short); err == nil {
		t.Fatal("there is a way without the wire")
	}
	p.wire(a, b, true, a)

	for _, address := range []netip.Addr{b.v4, b.v6} {
		c := mustDial(t, a, address, 80)
		must(t, ping(c, long))
		e := p.await("a start", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventStart && e.Remote == address })
		if e.Source != 101 || e.Destination != 102 || e.Interface != a.ifindex || e.Direction != bocage.DirectionFrom || e.Verdict != bocage.VerdictAllow {
			t.Errorf("start event %+v", e)
		}
		if _, err := dial(t, a, address, 81, short); !isTimeout(err) {
			t.Errorf("refused flow to %s: %v, want a timeout", address, err)
		}
	}
	if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
		t.Errorf("refused flow to the inside: %v, want a timeout", err)
	}
	e := p.await("a refusal at the inside", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventRefused && e.Source == 102 })
	if e.Destination != 101 || e.Reason != bocage.ReasonDefaultDeny || e.Direction != bocage.DirectionTo {
		t.Errorf("refusal %+v", e)
	}

	// Super-frames and everything behind them arrive whole, both ways at once.
	c := mustDial(t, a, b.v4, 80)
	sent := make([]byte, 8<<20)
	rand.Read(sent)
	go c.Write(sent)
	got := make([]byte, len(sent))
	c.SetReadDeadline(time.Now().Add(long))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("8 MiB there and back: %v, equal %v", err, bytes.Equal(got, sent))
	}

	// Policy's change cuts what lives, and the process may go and come.
	must(t, ping(c, long))
	p.Close()
	must(t, ping(c, long))
	p.open()
	if ws := p.Wires(); len(ws) != 1 || ws[0].Inside != a.ifindex || ws[0].Outside != b.ifindex || !ws[0].Closed ||
		len(ws[0].Residents) != 1 || len(ws[0].Residents[0].Addresses) != 2 || ws[0].Residents[0].MAC != a.mac.String() {
		t.Fatalf("wires after a restart: %+v", ws)
	}
	p.wire(a, b, true, a)
	must(t, ping(c, long))
	next := ruleset(2, nil, a, b)
	must(t, p.Apply(next))
	if err := ping(c, short); !isTimeout(err) {
		t.Errorf("revoked flow: %v, want a timeout", err)
	}
}

// The host has no part in a wire: nobody reaches it there, it sends nothing, and
// it is no way around.
func TestRootWireIsNoHost(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	rs := ruleset(1, nil, a, b)
	rs.Groups = nil // merely observed
	must(t, p.Apply(rs))
	p.wire(a, b, false, a)
	address := netip.MustParseAddr("10.77.0.9")
	must(t, host.AddAddress(p.namespace, a.link, netip.PrefixFrom(address, 24)))
	self := &workload{namespace: p.namespace}
	echo(t, self, address, 80)
	if _, err := dial(t, a, address, 80, short); err == nil {
		t.Error("the host answers on the wire")
	}
	if _, err := dial(t, self, a.v4, 80, short); err == nil {
		t.Error("the host reaches the inside by the wire")
	}
	must(t, ping(mustDialLater(t, a, b), long))
}

// mustDialLater serves at b and dials from a.
func mustDialLater(t testing.TB, a, b *workload) net.Conn {
	echo(t, b, b.v4, 8080)
	return mustDial(t, a, b.v4, 8080)
}

// Who is inside is known by address and MAC, and comes from inside only.
func TestRootWireSpoofing(t *testing.T) {
	t.Parallel()
	for _, strict := range []bool{true, false} {
		p := newPlane(t)
		a, b, stranger := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22), netip.MustParseAddr("10.77.0.50")
		must(t, host.AddAddress(a.namespace, "eth0", netip.PrefixFrom(stranger, 24)))
		echo(t, b, b.v4, 80)
		p.run()
		rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)
		if !strict {
			rs.Groups = nil
		}
		must(t, p.Apply(rs))
		p.wire(a, b, strict, a)
		must(t, ping(mustDial(t, a, b.v4, 80), long))

		// An address that nobody vouches for.
		wait := long
		if strict {
			wait = short
		}
		err := dialFrom(a, stranger, b.v4, wait)
		if strict && !isTimeout(err) || !strict && err != nil {
			t.Errorf("strict %v: a stranger at the inside: %v", strict, err)
		}
		e := p.await("a stranger", func(e bocage.FlowEvent) bool { return e.Reason == bocage.ReasonIdentityUnknown })
		if e.Source != 0 || (e.Verdict == bocage.VerdictDrop) != strict {
			t.Errorf("strict %v: event %+v", strict, e)
		}

		// The inside's own address with another MAC, and from outside.
		syn := frame{from: [6]byte{2, 9, 9, 9, 9, 9}, to: [6]byte(b.mac), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP,
			sport: 999, dport: 80, tcpFlags: 2}
		sendFrame(t, a, syn.bytes())
		e = p.await("a false MAC", func(e bocage.FlowEvent) bool { return e.Reason == bocage.ReasonSpoofed })
		if e.Source != 101 && e.Source != 0 || (e.Verdict == bocage.VerdictDrop) != strict || e.Direction != bocage.DirectionFrom {
			t.Errorf("strict %v: event %+v", strict, e)
		}
		syn.from, syn.to, syn.dst = [6]byte(b.mac), [6]byte(a.mac), netip.MustParseAddr("10.77.0.1")
		syn.source = netip.MustParseAddr("10.77.0.1")
		syn.dst = stranger
		sendFrame(t, b, syn.bytes())
		p.await("the inside's address from outside", func(e bocage.FlowEvent) bool {
			return e.Reason == bocage.ReasonSpoofed && e.Direction == bocage.DirectionTo
		})
	}
}

// dialFrom connects to port 80 from an address of its own choice.
func dialFrom(w *workload, source, to netip.Addr, wait time.Duration) error {
	return host.In(w.namespace, func() error {
		d := net.Dialer{Timeout: wait, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
		c, err := d.Dial("tcp", netip.AddrPortFrom(to, 80).String())
		if err == nil {
			c.Close()
		}
		return err
	})
}

// sendFrame puts a frame on a workload's link.
func sendFrame(t testing.TB, w *workload, frame []byte) {
	t.Helper()
	must(t, host.In(w.namespace, func() error {
		s, err := packetSocket("eth0")
		if err != nil {
			return err
		}
		defer unix.Close(s)
		return unix.Send(s, frame, 0)
	}))
}

// A refusal with an answer goes back by the side that asked.
func TestRootWireRejects(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	must(t, p.Apply(rejecting(1, nil, a, b)))
	p.wire(a, b, true, a)
	for _, w := range []struct{ from, to *workload }{{a, b}, {b, a}} {
		if _, err := dial(t, w.from, w.to.v4, 80, long); err == nil || isTimeout(err) {
			t.Errorf("rejected flow: %v, want an answer", err)
		}
	}
}

// What has a duty to be inspected is taken through the engine and goes on by the wire.
func TestRootWireSteers(t *testing.T) {
	t.Parallel()
	for _, declared := range []bool{true, false} {
		p := newPlane(t)
		a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
		if !declared {
			a.port.MAC = ""
		}
		f := newForwarder(p)
		p.in(func() error { return p.SetInspection(Inspection{Outside: f.outside, Inside: f.inside, Up: true}) })
		rule := allowTCP(21, 22, 80)
		rule.Decision = decideInspect
		back := allowTCP(22, 21, 80)
		back.Decision = decideInspect
		rs := ruleset(1, []bocage.Rule{rule, back}, a, b)
		for i := range rs.Peers {
			if rs.Peers[i].Identity == 102 {
				rs.Peers[i].Host = "" // beyond the wire stands no point
			}
		}
		must(t, p.Apply(rs))
		p.wire(a, b, true, a)
		for _, w := range []struct{ from, to *workload }{{a, b}, {b, a}} {
			echo(t, w.to, w.to.v4, 80)
			must(t, ping(mustDial(t, w.from, w.to.v4, 80), long))
			if f.frames[0].Swap(0) == 0 || f.frames[1].Swap(0) == 0 {
				t.Errorf("declared MAC %v: the engine saw nothing of %s -> %s", declared, w.from.v4, w.to.v4)
			}
		}
	}
}

// What is no wire is refused with what to do, and a removed one leaves the links as they were.
func TestRootWireFaults(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	attach := func(w Wire) (err error) {
		p.in(func() error { err = p.AttachWire(w); return nil })
		return err
	}
	faulty := func(want string, w Wire) {
		t.Helper()
		if err := attach(w); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	promiscuous := func() (n int) {
		p.in(func() error {
			for _, w := range []*workload{a, b} {
				l, err := netlink.LinkByName(w.link)
				if err != nil {
					return err
				}
				n += l.Attrs().Promisc
			}
			return nil
		})
		return n
	}
	faulty("two interfaces", Wire{Inside: a.ifindex, Outside: a.ifindex})
	faulty("read interface", Wire{Inside: a.ifindex, Outside: 99999})
	p.in(func() error {
		l, err := netlink.LinkByName(a.link)
		must(t, err)
		return netlink.LinkSetMTU(l, 1400)
	})
	faulty("MTU", Wire{Inside: a.ifindex, Outside: b.ifindex})
	p.in(func() error {
		l, err := netlink.LinkByName(b.link)
		must(t, err)
		return netlink.LinkSetMTU(l, 1400)
	})
	must(t, attach(Wire{Name: "one", Inside: a.ifindex, Outside: b.ifindex}))
	if promiscuous() != 2 {
		t.Error("frames to other MACs are not taken")
	}
	faulty("has one of its interfaces", Wire{Inside: b.ifindex, Outside: a.ifindex})
	must(t, p.DetachWire(12345))
	p.in(func() error { return p.DetachWire(a.ifindex) })
	if promiscuous() != 0 || len(p.Wires()) != 0 {
		t.Errorf("left behind: promiscuity %d, wires %v", promiscuous(), p.Wires())
	}
	must(t, host.AddAddress(p.namespace, a.link, netip.MustParsePrefix("10.77.0.9/24")))
	faulty("has the address 10.77.0.9/24", Wire{Inside: a.ifindex, Outside: b.ifindex})
}

// Whoever is killed between what it sets at a wire's interfaces and the programs that it
// is set for leaves nothing that is not taken back: by the next process, where the wire
// is not there yet, or with the wire.
func TestRootWireKilledOnItsWay(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)
	must(t, p.Apply(rs))
	w := Wire{Name: "wire", Inside: a.ifindex, Outside: b.ifindex, Residents: []bocage.Port{a.port}}
	must(t, p.Close())
	p.in(func() error { return Load(p.cfg) }) // once for all processes
	p.reopen()
	for _, at := range []struct {
		time, ends int // before which program it is killed, and how many ends are set up then
		step       string
	}{{1, 0, "attach"}, {1, 0, "pin"}, {3, 1, "attach"}, {3, 1, "pin"}, {4, 2, "attach"}} {
		for _, again := range []bool{false, true} {
			must(t, p.Close())
			if _, died := p.child(order{Wires: []Wire{w}, Dies: at.step, Time: at.time}); died == nil {
				t.Fatalf("it lived through %s %d", at.step, at.time)
			}
			if got := promiscuity(p, a, b); got != 2 {
				t.Fatalf("killed before %s %d: promiscuity %d", at.step, at.time, got)
			}
			p.reopen()
			if got := promiscuity(p, a, b); got != at.ends {
				t.Errorf("killed before %s %d, and opened: promiscuity %d, want %d", at.step, at.time, got, at.ends)
			}
			if again {
				p.in(func() error { return p.AttachWire(w) })
				if got := promiscuity(p, a, b); got != 2 {
					t.Errorf("killed before %s %d, and attached again: promiscuity %d", at.step, at.time, got)
				}
			}
			p.in(func() error { return p.DetachWire(a.ifindex) })
			if got := promiscuity(p, a, b); got != 0 || len(p.Wires()) != 0 {
				t.Errorf("killed before %s %d, and off: promiscuity %d, wires %v", at.step, at.time, got, p.Wires())
			}
		}
	}
}

// An interface that has gone has gone to everything that asks for it.
func TestRootInterfacesThatHaveGone(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	const never = 99999
	_, err := func() (l netlink.Link, err error) {
		p.in(func() error { l, err = linkAt(never); return nil })
		return l, err
	}()
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	row := bpf.KernelPort{Flags: portWire | portLoosened, Driver: driverBared, HostMac: [6]byte{2, 1}}
	must(t, p.objects.Ports.Put(uint32(never), row))
	p.in(func() error {
		name := nameOf(never)
		what, repaired := p.pins.repair(p.objects, never, programAcross)
		port, _, read := p.readPort(never)
		if name != "interface 99999" || what != "" || port.Interface != "" {
			t.Errorf("%q, %q, %+v", name, what, port)
		}
		return errors.Join(repaired, read, tighten(never, row), stripTags(never, row.Driver), restore(never, row))
	})
}
