package dataplane

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// forwarder stands in for the inspection engine: it copies frames from one link
// to the other, byte for byte with their VLAN tag, and lets a test look on.
type forwarder struct {
	outside, inside uint32
	frames          [2]atomic.Int64 // from outside, from inside
	exempt          atomic.Int64    // frames of TCP port 81, which has no duty
	vlans           sync.Map        // ids seen
	swallow         atomic.Bool     // let nothing through
	swallowAnswers  atomic.Bool     // nothing that goes to a workload
}

// newForwarder makes the engine's namespace and its two links to the host.
func newForwarder(p *plane) *forwarder {
	t := p.t
	f := &forwarder{}
	namespace := hosttest.Namespace(t)
	var sockets [2]int
	for i, name := range []string{"out", "in"} {
		must(t, host.CreateVeth(host.Veth{Name: "eng" + name, Namespace: p.namespace, Peer: name, PeerNamespace: namespace}))
		must(t, host.DisableOffloads(p.namespace, "eng"+name))
		must(t, host.DisableOffloads(namespace, name))
		l, err := host.LinkNamed(p.namespace, "eng"+name)
		must(t, err)
		if i == 0 {
			f.outside = l.Index
		} else {
			f.inside = l.Index
		}
		must(t, host.In(namespace, func() (err error) {
			sockets[i], err = packetSocket(name)
			return err
		}))
	}
	var copying sync.WaitGroup
	done := make(chan struct{})
	for i := range sockets {
		copying.Go(func() { f.copy(i, sockets[i], sockets[1-i], done) })
	}
	t.Cleanup(func() {
		close(done)
		copying.Wait() // the numbers of closed sockets are soon another test's
		for _, s := range sockets {
			unix.Close(s)
		}
	})
	return f
}

func packetSocket(link string) (int, error) {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return -1, err
	}
	const all = 0x0300 // ETH_P_ALL in network byte order
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
		return -1, err
	}
	timeout := unix.NsecToTimeval(int64(100 * time.Millisecond))
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return -1, err
	}
	return s, unix.Bind(s, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
}

// auxdata is struct tpacket_auxdata.
type auxdata struct {
	Status, Len, Snaplen uint32
	Mac, Net, TCI, TPID  uint16
}

// tagOf is the VLAN tag that came beside a frame, or 0.
func tagOf(control []byte) uint16 {
	messages, _ := syscall.ParseSocketControlMessage(control)
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= int(unsafe.Sizeof(auxdata{})) {
			a := (*auxdata)(unsafe.Pointer(&m.Data[0]))
			if a.Status&unix.TP_STATUS_VLAN_VALID != 0 {
				return a.TCI
			}
		}
	}
	return 0
}

// tagsOf are all tags of a frame: the one that came beside it, and those in it. It
// returns the frame without.
func tagsOf(frame, control []byte) (tags []tag, untagged []byte) {
	messages, _ := syscall.ParseSocketControlMessage(control)
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= int(unsafe.Sizeof(auxdata{})) {
			a := (*auxdata)(unsafe.Pointer(&m.Data[0]))
			if a.Status&unix.TP_STATUS_VLAN_VALID != 0 {
				tags = append(tags, tag{a.TPID == 0x88a8, a.TCI})
			}
		}
	}
	for len(frame) >= 18 {
		kind := binary.BigEndian.Uint16(frame[12:])
		if kind != 0x8100 && kind != 0x88a8 {
			break
		}
		tags = append(tags, tag{kind == 0x88a8, binary.BigEndian.Uint16(frame[14:])})
		frame = append(slices.Clone(frame[:12]), frame[16:]...)
	}
	return tags, frame
}

func (f *forwarder) copy(side, in, out int, done <-chan struct{}) {
	buffer, control := make([]byte, 70000), make([]byte, 128)
	for {
		select {
		case <-done:
			return
		default:
		}
		n, oobn, _, from, err := unix.Recvmsg(in, buffer[4:], control, 0)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		tci := tagOf(control[:oobn])
		if tci == 0 {
			continue // the links' own chatter
		}
		f.frames[side].Add(1)
		if ports := portsOf(buffer[4 : 4+n]); ports[0] == 81 || ports[1] == 81 {
			f.exempt.Add(1)
		}
		f.vlans.Store(tci&0xfff, true)
		frame := buffer[4 : 4+n]
		if f.swallow.Load() || side == 0 && f.swallowAnswers.Load() {
			continue
		}
		copy(buffer[:12], frame[:12])
		copy(buffer[12:16], []byte{0x81, 0, byte(tci >> 8), byte(tci)})
		unix.Send(out, buffer[:4+n], 0)
	}
}

// portsOf reads the ports of a frame without IP options.
func portsOf(b []byte) (ports [2]uint16) {
	at := 14 + 20
	if len(b) > 13 && b[12] == 0x86 {
		at = 14 + 40
	}
	if len(b) >= at+4 {
		ports[0], ports[1] = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
	}
	return ports
}

func inspectTCP(from, to bocage.Group, port uint16) bocage.Rule {
	r := allowTCP(from, to, port)
	r.Decision = decideInspect
	return r
}

// transfer sends bytes both ways at once and checks that they came whole.
func transfer(c net.Conn, n int) error {
	if err := c.SetDeadline(time.Now().Add(long)); err != nil {
		return err
	}
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i * 7)
	}
	errs := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		errs <- err
	}()
	h := sha256.New()
	if _, err := io.CopyN(h, c, int64(n)); err != nil {
		return err
	}
	if [32]byte(h.Sum(nil)) != sha256.Sum256(data) {
		return fmt.Errorf("the %d bytes came back changed", n)
	}
	return <-errs
}

// Flows with the duty go through the engine, both directions, and no others do.
func TestRootSteering(t *testing.T) {
	t.Parallel()
	for _, where := range []struct {
		name     string
		enrolled string // the destination's host
		bridged  bool
	}{{"at the destination", "h1", false}, {"at the source", "", false}, {"on a bridge", "h1", true}} {
		t.Run(where.name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
			if where.bridged {
				p.bridge(a, b)
			}
			f := newForwarder(p)
			p.attach(a, b)
			p.run()
			for _, address := range []netip.Addr{b.v4, b.v6} {
				echo(t, b, address, 80)
				echo(t, b, address, 81)
			}
			p.in(func() error { return p.SetInspection(Inspection{Outside: f.outside, Inside: f.inside, Up: true}) })
			rs := ruleset(1, []bocage.Rule{inspectTCP(21, 22, 80), allowTCP(21, 22, 81)}, a, b)
			rs.Profiles = []bocage.Profile{{Number: 7, Name: "web"}}
			for i := range rs.Peers {
				if rs.Peers[i].Identity == 102 {
					rs.Peers[i].Host = where.enrolled
				}
			}
			must(t, p.Apply(rs))
			for _, address := range []netip.Addr{b.v4, b.v6} {
				before := [2]int64{f.frames[0].Load(), f.frames[1].Load()}
				must(t, transfer(mustDial(t, a, address, 81), 1<<20))
				if n := f.exempt.Load(); n != 0 {
					t.Errorf("%s: %d frames of a flow without the duty went through the engine", address, n)
				}
				must(t, transfer(mustDial(t, a, address, 80), 4<<20))
				for side := range before {
					if f.frames[side].Load() < before[side]+100 {
						t.Errorf("%s: %d frames entered at side %d", address, f.frames[side].Load()-before[side], side)
					}
				}
			}
			if _, ok := f.vlans.Load(uint16(7)); !ok {
				t.Error("the profile is not the VLAN id")
			}
			e := p.await("a start", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventStart && e.DestinationPort == 80 })
			if e.Verdict != bocage.VerdictInspect || e.Decision != decideInspect {
				t.Errorf("event %+v", e)
			}
			// What the engine swallows does not arrive.
			c := mustDial(t, a, b.v4, 80)
			must(t, ping(c, long))
			f.swallow.Store(true)
			if err := ping(c, short); !isTimeout(err) {
				t.Fatalf("swallowed: %v, want a timeout", err)
			}
		})
	}
}

// bridge makes workloads neighbours on one bridge.
func (p *plane) bridge(ws ...*workload) {
	must(p.t, host.CreateBridge(p.namespace, "br0"))
	for _, w := range ws {
		must(p.t, host.SetMaster(p.namespace, w.link, "br0"))
		for _, prefix := range []string{"10.77.0.0/24", "fd77::/64"} {
			must(p.t, host.AddRoute(w.namespace, host.Route{Destination: netip.MustParsePrefix(prefix), Link: "eth0"}))
		}
	}
}

// While the engine is down, the profile decides, and what passes is told.
func TestRootInspectionDown(t *testing.T) {
	t.Parallel()
	for _, open := range []bool{true, false} {
		t.Run(fmt.Sprintf("open=%v", open), func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
			f := newForwarder(p)
			p.attach(a, b)
			p.run()
			echo(t, b, b.v4, 80)
			steered := Inspection{Outside: f.outside, Inside: f.inside, Up: true}
			p.in(func() error { return p.SetInspection(steered) })
			rs := ruleset(1, []bocage.Rule{inspectTCP(21, 22, 80)}, a, b)
			rs.Profiles = []bocage.Profile{{Number: 7, Name: "web", FailOpen: open}}
			must(t, p.Apply(rs))
			c := mustDial(t, a, b.v4, 80)
			must(t, ping(c, long))
			steered.Up = false
			p.in(func() error { return p.SetInspection(steered) })
			wait := long
			if !open {
				wait = short
			}
			err := ping(c, wait)
			e := p.await("inspection down", func(e bocage.FlowEvent) bool { return e.Reason == bocage.ReasonInspectionDown })
			if open {
				if err != nil || e.Verdict != bocage.VerdictAllow || e.Would != bocage.VerdictInspect || e.Kind != bocage.EventUpdate {
					t.Errorf("open profile: %v, event %+v", err, e)
				}
			} else if !isTimeout(err) || e.Verdict != bocage.VerdictDrop || e.Kind != bocage.EventRefused {
				t.Errorf("closed profile: %v, event %+v", err, e)
			}
			steered.Up = true
			p.in(func() error { return p.SetInspection(steered) })
			d := mustDial(t, a, b.v4, 80)
			must(t, ping(d, long))
		})
	}
}

// trap is a decoy: a listener that takes connections to any address.
type trap struct {
	namespace string
	ifindex   uint32
	mac       net.HardwareAddr
	local     chan string // addresses that clients sought
}

func newTrap(p *plane, port uint16) *trap {
	t := p.t
	d := &trap{namespace: hosttest.Namespace(t), mac: net.HardwareAddr{2, 0, 0, 0xd, 0, 1}, local: make(chan string, 16)}
	must(t, host.CreateVeth(host.Veth{Name: "decoy", Namespace: p.namespace, Peer: "eth0", PeerNamespace: d.namespace, PeerMAC: d.mac}))
	l, err := host.LinkNamed(p.namespace, "decoy")
	must(t, err)
	d.ifindex = l.Index
	for _, v := range []struct {
		all, gateway, own string
		six               bool
	}{{"0.0.0.0/0", "169.254.1.1", "169.254.7.7/32", false}, {"::/0", "fe80::1", "fd99::7/128", true}} {
		must(t, host.AddAddress(d.namespace, "eth0", netip.MustParsePrefix(v.own)))
		must(t, host.AddNeighbor(d.namespace, "eth0", netip.MustParseAddr(v.gateway), net.HardwareAddr{2, 0, 0, 0xd, 0, 2}))
		must(t, host.AddRoute(d.namespace, host.Route{Destination: netip.MustParsePrefix(v.all), Gateway: netip.MustParseAddr(v.gateway), Link: "eth0", OnLink: true}))
		must(t, host.AddRule(d.namespace, host.Rule{IncomingLink: "eth0", Table: 100, Priority: 100, IPv6: v.six}))
		must(t, host.AddRoute(d.namespace, host.Route{Destination: netip.MustParsePrefix(v.all), Link: "lo", Table: 100, Local: true}))
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			}
		})
		return err
	}}
	var listener net.Listener
	must(t, host.In(d.namespace, func() (err error) {
		listener, err = config.Listen(t.Context(), "tcp", fmt.Sprintf("[::]:%d", port))
		return err
	}))
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			d.local <- c.LocalAddr().String()
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return d
}

// Who is refused meets a decoy at the address that was sought.
func TestRootDecoy(t *testing.T) {
	t.Parallel()
	for _, bridged := range []bool{false, true} {
		t.Run(fmt.Sprintf("bridged=%v", bridged), func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			a, b, remote := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
			if bridged {
				p.bridge(a, b, remote)
			}
			d := newTrap(p, 22)
			p.attach(a, b) // nobody stands before remote: its refusals happen at b
			p.run()
			p.in(func() error { return p.SetDecoy(DecoyPort{Ifindex: d.ifindex, MAC: d.mac}) })
			rules := []bocage.Rule{{From: bocage.GroupAny, To: 22, Protocol: bocage.ProtocolTCP, Ports: bocage.PortRange{First: 22, Last: 22}, Decision: decideDecoy}}
			must(t, p.Apply(ruleset(1, rules, a, b)))
			for _, from := range []*workload{a, remote} {
				for _, address := range []netip.Addr{b.v4, b.v6} {
					c := mustDial(t, from, address, 22)
					must(t, transfer(c, 1<<20))
					if got, want := <-d.local, netip.AddrPortFrom(address, 22).String(); got != want {
						t.Errorf("the decoy was reached at %s, want %s", got, want)
					}
					e := p.await("a diversion", func(e bocage.FlowEvent) bool {
						return e.Kind == bocage.EventRefused && e.Verdict == bocage.VerdictDecoy
					})
					if e.Would != bocage.VerdictDecoy || e.Reason != bocage.ReasonDefaultDeny || e.Destination != 102 {
						t.Errorf("event %+v", e)
					}
					c.Close()
				}
			}
			// A decoy originates nothing.
			stranger := &workload{namespace: d.namespace}
			if _, err := dial(t, stranger, a.v4, 80, short); err == nil {
				t.Error("the decoy opened a connection")
			}
			// Without a decoy, the flow is dropped.
			p.in(func() error { return p.SetDecoy(DecoyPort{}) })
			if _, err := dial(t, a, b.v4, 22, short); !isTimeout(err) {
				t.Errorf("without a decoy: %v, want a timeout", err)
			}
			e := p.await("a refusal", func(e bocage.FlowEvent) bool { return e.Verdict == bocage.VerdictDrop && e.DestinationPort == 22 })
			if e.Would != bocage.VerdictDecoy {
				t.Errorf("event %+v", e)
			}
		})
	}
}
