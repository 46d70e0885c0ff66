package dataplane

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

func allowTCP(from, to bocage.Group, port uint16) bocage.Rule {
	return bocage.Rule{From: from, To: to, Protocol: bocage.ProtocolTCP, Ports: bocage.PortRange{First: port, Last: port}, Decision: decideAllow}
}

// A quarantine cuts what is established, at once, and ends by itself.
func TestRootQuarantineCutsAndExpires(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 21)
	p.attach(a, b, c)
	echo(t, b, b.v4, 80)
	stop := p.run()
	rules := []bocage.Rule{allowTCP(21, 22, 80)}
	must(t, p.Apply(ruleset(1, rules, a, b, c)))
	cut, other := mustDial(t, a, b.v4, 80), mustDial(t, c, b.v4, 80)
	must(t, ping(cut, long))

	rs := ruleset(2, rules, a, b, c)
	rs.Refused = []bocage.Refusal{{Identity: 101, Decision: decideQuarantine, Until: time.Now().Add(time.Hour)}}
	start := time.Now()
	must(t, p.Apply(rs))
	t.Logf("quarantine applied in %s", time.Since(start))
	if err := ping(cut, short); !isTimeout(err) {
		t.Fatalf("established connection of a quarantined workload: %v, want a timeout", err)
	}
	if _, err := dial(t, a, b.v4, 80, short); !isTimeout(err) {
		t.Fatalf("new connection of a quarantined workload: %v, want a timeout", err)
	}
	e := p.await("a refusal by quarantine", func(e bocage.FlowEvent) bool { return e.Reason == bocage.ReasonQuarantine })
	if e.Kind != bocage.EventRefused || e.Verdict != bocage.VerdictDrop || e.Decision != decideQuarantine || e.Source != 101 {
		t.Errorf("event %+v", e)
	}
	must(t, ping(other, long))

	// The kernel ends it with nobody alive, and the connection goes on: what it
	// could not say is sent again.
	stop()
	p.Close()
	p.later(time.Hour)
	cut.SetReadDeadline(time.Now().Add(long))
	var answer [4]byte
	if _, err := io.ReadFull(cut, answer[:]); err != nil {
		t.Fatalf("after the quarantine: %v", err)
	}
	p.open()
	p.run()
	p.await("the cut connection go on", func(e bocage.FlowEvent) bool {
		return e.Kind == bocage.EventStart && e.Source == 101 && e.Packets > 3
	})
}

// A permission that a new generation takes away cuts what it had allowed.
func TestRootRevocationCuts(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	echo(t, b, b.v4, 80)
	echo(t, b, b.v4, 81)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowTCP(21, 22, 81)}, a, b)))
	kept, cut := mustDial(t, a, b.v4, 80), mustDial(t, a, b.v4, 81)
	must(t, ping(kept, long))
	must(t, ping(cut, long))
	must(t, p.Apply(ruleset(2, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	must(t, ping(kept, long))
	if err := ping(cut, short); !isTimeout(err) {
		t.Fatalf("revoked connection: %v, want a timeout", err)
	}
	// The server's side is cut as well.
	if err := p.Apply(ruleset(1, nil, a, b)); err == nil {
		t.Error("an older generation was applied")
	}
	if g := p.Generation(); g != 2 {
		t.Errorf("generation %d, want 2", g)
	}
}

// raw sends frames as they are from a workload.
type raw struct {
	t  testing.TB
	fd int
	to unix.SockaddrLinklayer
}

func (w *workload) raw(t testing.TB) *raw {
	t.Helper()
	r := &raw{t: t}
	must(t, host.In(w.namespace, func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		r.to.Ifindex = i.Index
		r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	t.Cleanup(func() { unix.Close(r.fd) })
	return r
}

func (r *raw) send(b []byte) {
	r.t.Helper()
	must(r.t, unix.Sendto(r.fd, b, 0, &r.to))
}

// sink counts what reaches a UDP port.
func sink(t testing.TB, w *workload, a netip.Addr, port uint16) *atomic.Int64 {
	t.Helper()
	var c net.PacketConn
	must(t, host.In(w.namespace, func() (err error) {
		c, err = net.ListenPacket("udp", netip.AddrPortFrom(a, port).String())
		return err
	}))
	t.Cleanup(func() { c.Close() })
	raw, err := c.(*net.UDPConn).SyscallConn() // who reads may have to wait for its turn
	must(t, err)
	var failed error
	must(t, raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) }))
	must(t, failed)
	var n atomic.Int64
	go func() {
		var b [2048]byte
		for {
			if _, _, err := c.ReadFrom(b[:]); err != nil {
				return
			}
			n.Add(1)
		}
	}()
	return &n
}

func allowUDP(from, to bocage.Group) bocage.Rule {
	return bocage.Rule{From: from, To: to, Protocol: bocage.ProtocolUDP, Ports: bocage.AllPorts, Decision: decideAllow}
}

func gatewayMAC(w *workload) [6]byte { return [6]byte{2, 0, 0, 0, 1, w.mac[5]} }

// What a workload sends in another's name goes nowhere.
func TestRootSpoofing(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 21)
	p.attach(a, b, c)
	p.run()
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b, c)))
	r := a.raw(t)
	good := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 5000, dport: 9000, payload: 10}
	good6 := good
	good6.source, good6.dst = a.v6, b.v6
	other := good
	other.source = c.v4
	other6 := good6
	other6.source = c.v6
	mac := good
	mac.from = [6]byte(c.mac)

	for name, f := range map[string]frame{"address": other, "IPv6 address": other6, "MAC": mac} {
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != dropped {
			t.Errorf("spoofed %s: program returned %d", name, got)
		}
	}
	for name, f := range map[string]frame{"IPv4": good, "IPv6": good6} {
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
			t.Errorf("own %s: program returned %d", name, got)
		}
	}
	// And on the wire.
	got := sink(t, b, b.v4, 9000)
	r.send(other.bytes())
	r.send(mac.bytes())
	r.send(good.bytes())
	e := p.await("a refusal", func(e bocage.FlowEvent) bool { return e.Reason == bocage.ReasonSpoofed })
	if e.Kind != bocage.EventRefused || e.Verdict != bocage.VerdictDrop || e.Source != 101 || e.Interface != a.ifindex {
		t.Errorf("event %+v", e)
	}
	hosttest.Await(t, "the honest packet", func() bool { return got.Load() > 0 })
	if n := got.Load(); n != 1 {
		t.Errorf("%d packets arrived, want only the honest one", n)
	}

	router, random := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::8b1d:77a2:10c4:e97f")
	arp := func(mac [6]byte, sender netip.Addr, target netip.Addr) []byte {
		b := append([]byte{255, 255, 255, 255, 255, 255}, a.mac...)
		b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
		b = append(append(b, mac[:]...), sender.AsSlice()...)
		return append(append(b, 0, 0, 0, 0, 0, 0), target.AsSlice()...)
	}
	tests := []struct {
		name string
		b    []byte
		want uint32
	}{
		{"its own ARP", arp([6]byte(a.mac), a.v4, b.v4), next},
		{"an ARP probe", arp([6]byte(a.mac), netip.IPv4Unspecified(), a.v4), next},
		{"an ARP probe for another's address", arp([6]byte(a.mac), netip.IPv4Unspecified(), c.v4), dropped},
		{"ARP in another's name", arp([6]byte(a.mac), c.v4, b.v4), dropped},
		{"ARP for another's MAC", arp([6]byte(c.mac), a.v4, b.v4), dropped},
		{"looking for duplicates", neighbour(a, 135, netip.IPv6Unspecified(), a.v6, a.mac).bytes(), next},
		{"looking for duplicates of another's", neighbour(a, 135, netip.IPv6Unspecified(), c.v6, a.mac).bytes(), dropped},
		{"looking for duplicates of its link-local address", neighbour(a, 135, netip.IPv6Unspecified(), linkLocal(a), a.mac).bytes(), next},
		{"looking for duplicates of another's link-local address", neighbour(a, 135, netip.IPv6Unspecified(), linkLocal(c), a.mac).bytes(), dropped},
		{"asking by its link-local address", neighbour(a, 135, linkLocal(a), b.v6, a.mac).bytes(), next},
		{"asking by another's link-local address", neighbour(a, 135, linkLocal(c), b.v6, a.mac).bytes(), dropped},
		{"asking by a router's link-local address", neighbour(a, 135, router, b.v6, a.mac).bytes(), dropped},
		{"asking for a router by another's link-local address", neighbour(a, 133, linkLocal(c), b.v6, a.mac).bytes(), dropped},
		{"its link-local address", neighbour(a, 136, linkLocal(a), linkLocal(a), a.mac).bytes(), next},
		{"a link-local address drawn at random", neighbour(a, 136, random, random, a.mac).bytes(), next},
		{"another's link-local address", neighbour(a, 136, linkLocal(a), linkLocal(c), a.mac).bytes(), dropped},
		{"a router's link-local address", neighbour(a, 136, linkLocal(a), router, a.mac).bytes(), dropped},
		{"its own advertisement", neighbour(a, 136, a.v6, a.v6, a.mac).bytes(), next},
		{"another's advertisement", neighbour(a, 136, a.v6, c.v6, a.mac).bytes(), dropped},
		{"an advertisement of another's MAC", neighbour(a, 136, a.v6, a.v6, c.mac).bytes(), dropped},
		{"a router's advertisement", neighbour(a, 134, netip.MustParseAddr("fe80::1"), a.v6, a.mac).bytes(), dropped},
		{"asking for an address by DHCP", lease(a).bytes(), next},
	}
	for _, test := range tests {
		if got := p.judgedHere(true, a.ifindex, test.b); got != test.want {
			t.Errorf("%s: program returned %d, want %d", test.name, int32(got), int32(test.want))
		}
	}
}

func neighbour(w *workload, kind byte, source, target netip.Addr, mac net.HardwareAddr) frame {
	body := append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
	body = append(append(body, 2-kind%2, 1), mac...)
	return frame{from: [6]byte(w.mac), to: [6]byte{0x33, 0x33, 0, 0, 0, 1}, source: source, dst: netip.MustParseAddr("ff02::1"),
		protocol: bocage.ProtocolICMPv6, hops: 255, body: body}
}

// linkLocal is the address that a workload makes of its MAC.
func linkLocal(w *workload) netip.Addr {
	m := w.mac
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

func lease(w *workload) frame {
	return frame{from: [6]byte(w.mac), to: [6]byte{255, 255, 255, 255, 255, 255}, source: netip.IPv4Unspecified(),
		dst: netip.AddrFrom4([4]byte{255, 255, 255, 255}), protocol: bocage.ProtocolUDP, sport: 68, dport: 67,
		body: says(68, 67, append([]byte{1, 1, 6, 0, 1, 2, 3, 4}, make([]byte, 232)...))}
}

// says is a datagram of UDP with its header.
func says(source, destination uint16, payload []byte) []byte {
	be := binary.BigEndian
	b := be.AppendUint16(be.AppendUint16(nil, source), destination)
	return append(append(be.AppendUint16(b, uint16(8+len(payload))), 0, 0), payload...)
}

func (p *plane) judgedHere(from bool, ifindex uint32, b []byte) (returned uint32) {
	p.t.Helper()
	p.in(func() error { returned = p.judged(from, ifindex, b); return nil })
	return returned
}

// Where nobody enforces, nothing is refused; what would be is told.
func TestRootObserve(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	echo(t, b, b.v4, 80)
	p.run()
	rs := ruleset(1, nil, a, b)
	rs.Groups = nil
	must(t, p.Apply(rs))
	c := mustDial(t, a, b.v4, 80)
	must(t, ping(c, long))
	e := p.await("a refusal that was only observed", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventRefused && e.DestinationPort == 80 })
	if e.Verdict != bocage.VerdictAllow || e.Would != bocage.VerdictDrop || e.Reason != bocage.ReasonDefaultDeny {
		t.Errorf("event %+v", e)
	}
	spoofed := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: netip.MustParseAddr("10.9.9.9"), dst: b.v4,
		protocol: bocage.ProtocolUDP, sport: 1, dport: 2}
	if got := p.judgedHere(true, a.ifindex, spoofed.bytes()); got != next {
		t.Errorf("spoofed packet where nobody enforces: program returned %d", got)
	}
	p.await("a spoofed packet", func(e bocage.FlowEvent) bool {
		return e.Reason == bocage.ReasonSpoofed && e.Verdict == bocage.VerdictAllow && e.Would == bocage.VerdictDrop
	})
	c.Close()
	p.finish()
	end := p.await("the end", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventEnd && e.DestinationPort == 80 })
	if !end.Replied || !end.Closed || end.Packets < 6 || end.Bytes < 300 || end.Verdict != bocage.VerdictAllow {
		t.Errorf("end event %+v", end)
	}
}

// Connections that were there before a port was attached go on, if policy
// allows them in the direction in which they were opened.
func TestRootAttachBreaksNothing(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	echo(t, b, b.v4, 80)
	echo(t, b, b.v4, 81)
	kept, cut := mustDial(t, a, b.v4, 80), mustDial(t, a, b.v4, 81)
	must(t, ping(kept, long))
	must(t, ping(cut, long))
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	p.attach(a, b)
	p.run()
	must(t, ping(kept, long))
	e := p.await("a start", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventStart && e.DestinationPort == 80 })
	if e.Source != 101 || e.Destination != 102 || e.Direction != bocage.DirectionFrom {
		t.Errorf("event %+v", e)
	}
	if err := ping(cut, short); !isTimeout(err) {
		t.Fatalf("connection that policy does not allow: %v, want a timeout", err)
	}
}

// After the period, a packet in the middle of nothing is refused.
func TestRootInvalidState(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.Pickup = time.Nanosecond })
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	rules := []bocage.Rule{{From: 21, To: 22, Protocol: bocage.ProtocolAny, Ports: bocage.AllPorts, Decision: decideAllow}}
	must(t, p.Apply(ruleset(1, rules, a, b)))
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 5000, dport: 80}
	back := f
	back.from, back.to, back.source, back.dst, back.sport, back.dport = [6]byte(b.mac), gatewayMAC(b), b.v4, a.v4, 80, 5000
	with := func(f frame, flags byte) []byte { f.tcpFlags = flags; return f.bytes() }
	ping := frame{from: f.from, to: f.to, source: a.v4, dst: b.v4, protocol: bocage.ProtocolICMP, sport: 77, icmpType: 8}
	pong := frame{from: back.from, to: back.to, source: b.v4, dst: a.v4, protocol: bocage.ProtocolICMP, sport: 77}
	echoes := ping
	echoes.from, echoes.to, echoes.source, echoes.dst = back.from, back.to, b.v4, a.v4

	steps := []struct {
		name    string
		ifindex uint32
		b       []byte
		want    uint32
	}{
		{"ACK of nothing", a.ifindex, with(f, ack), dropped},
		{"SYN-ACK of nothing", b.ifindex, with(back, syn|ack), dropped},
		{"SYN", a.ifindex, with(f, syn), next},
		{"SYN again", a.ifindex, with(f, syn), next},
		{"SYN against the grain", b.ifindex, with(back, syn), dropped},
		{"SYN-ACK", b.ifindex, with(back, syn|ack), next},
		{"ACK", a.ifindex, with(f, ack), next},
		{"FIN", a.ifindex, with(f, fin|ack), next},
		{"FIN back", b.ifindex, with(back, fin|ack), next},
		{"last ACK", a.ifindex, with(f, ack), next},
		{"SYN against the grain of what is closed", b.ifindex, with(back, syn), dropped},
		{"SYN on the same ports", a.ifindex, with(f, syn), next},
		{"RST", b.ifindex, with(back, rst|ack), next},
		{"pong without ping", b.ifindex, pong.bytes(), dropped},
		{"ping", a.ifindex, ping.bytes(), next},
		{"pong", b.ifindex, pong.bytes(), next},
		{"ping the other way, same identifier", b.ifindex, echoes.bytes(), dropped},
	}
	for _, s := range steps {
		if got := p.judgedHere(true, s.ifindex, s.b); got != s.want {
			t.Errorf("%s: program returned %d, want %d", s.name, int32(got), int32(s.want))
		}
	}
	p.await("an invalid state", func(e bocage.FlowEvent) bool { return e.Reason == bocage.ReasonInvalidState })
	c, err := p.Counters()
	must(t, err)
	if n := c.Refused[bocage.ReasonInvalidState].Packets; n != 4 {
		t.Errorf("%d packets counted as invalid state, want 4: %+v", n, c)
	}
}

// ICMP errors about a flow pass; others do not.
func TestRootRelated(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
	p.attach(a, b, c)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b, c)))
	for _, v := range []struct {
		name             string
		source, dst      netip.Addr
		other            netip.Addr
		protocol         bocage.Protocol
		unreachable, bad byte
	}{
		{"IPv4", a.v4, b.v4, c.v4, bocage.ProtocolICMP, 3, 5},
		{"IPv6", a.v6, b.v6, c.v6, bocage.ProtocolICMPv6, 1, 100},
	} {
		f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: v.source, dst: v.dst, protocol: bocage.ProtocolUDP, sport: 5000, dport: 53, payload: 8}
		quote := func(f frame, kind byte) []byte {
			e := frame{from: [6]byte(b.mac), to: gatewayMAC(b), source: v.dst, dst: v.source, protocol: v.protocol}
			e.body = append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, f.bytes()[14:]...)
			return e.bytes()
		}
		if got := p.judgedHere(true, b.ifindex, quote(f, v.unreachable)); got != dropped {
			t.Errorf("%s: error about no flow: program returned %d", v.name, int32(got))
		}
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
			t.Fatalf("%s: program returned %d", v.name, int32(got))
		}
		if got := p.judgedHere(true, b.ifindex, quote(f, v.unreachable)); got != next {
			t.Errorf("%s: error about a flow: program returned %d", v.name, int32(got))
		}
		// Only who the packet was sent to says what became of it, or a router, which no
		// workload is.
		bystander := frame{from: [6]byte(c.mac), to: gatewayMAC(c), source: v.other, dst: v.source, protocol: v.protocol,
			body: append([]byte{v.unreachable, 0, 0, 0, 0, 0, 0, 0}, f.bytes()[14:]...)}
		if got := p.judgedHere(true, c.ifindex, bystander.bytes()); got != dropped {
			t.Errorf("%s: error of a bystander: program returned %d", v.name, int32(got))
		}
		bystander.source = outside4(0)
		if v.source.Is6() {
			bystander.source = outside6(0)
		}
		if got := p.judgedHere(false, a.ifindex, func() []byte { bystander.from, bystander.to = gatewayMAC(a), [6]byte(a.mac); return bystander.bytes() }()); got != next {
			t.Errorf("%s: error of a router: program returned %d", v.name, int32(got))
		}
		stranger := f
		stranger.sport = 5001
		if got := p.judgedHere(true, b.ifindex, quote(stranger, v.unreachable)); got != dropped {
			t.Errorf("%s: error about another flow: program returned %d", v.name, int32(got))
		}
	}
	counters, err := p.Counters()
	must(t, err)
	if n := counters.Passed[bocage.ReasonRelated].Packets; n != 4 {
		t.Errorf("%d packets counted as related, want 4", n)
	}
}

// Pieces of a packet go where its first went.
func TestRootFragments(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b)))
	// Real ones, reassembled by the receiver.
	for _, address := range []netip.Addr{b.v4, b.v6} {
		var server net.PacketConn
		must(t, host.In(b.namespace, func() (err error) {
			server, err = net.ListenPacket("udp", netip.AddrPortFrom(address, 9000).String())
			return err
		}))
		defer server.Close()
		var client net.Conn
		must(t, host.In(a.namespace, func() (err error) {
			client, err = net.Dial("udp", netip.AddrPortFrom(address, 9000).String())
			return err
		}))
		defer client.Close()
		_, err := client.Write(make([]byte, 6000))
		must(t, err)
		server.SetReadDeadline(time.Now().Add(long))
		b := make([]byte, 10000)
		n, back, err := server.ReadFrom(b)
		if err != nil || n != 6000 {
			t.Fatalf("%s: read %d bytes: %v", address, n, err)
		}
		_, err = server.WriteTo(b[:n], back)
		must(t, err)
		client.SetReadDeadline(time.Now().Add(long))
		if n, err = client.Read(b); err != nil || n != 6000 {
			t.Fatalf("%s: read back %d bytes: %v", address, n, err)
		}
	}
	// A later piece alone, and one whose first was refused.
	later := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, fragment: 0x0064, id: 9, body: make([]byte, 64)}
	if got := p.judgedHere(true, a.ifindex, later.bytes()); got != dropped {
		t.Errorf("later piece alone: program returned %d", int32(got))
	}
	first := frame{from: [6]byte(b.mac), to: gatewayMAC(b), source: b.v4, dst: a.v4, protocol: bocage.ProtocolUDP, sport: 7, dport: 7, fragment: 0x2000, id: 10, payload: 64}
	later.from, later.to, later.source, later.dst, later.id = first.from, first.to, b.v4, a.v4, 10
	for name, f := range map[string]frame{"first": first, "later": later} {
		if got := p.judgedHere(true, b.ifindex, f.bytes()); got != dropped {
			t.Errorf("refused %s piece: program returned %d", name, int32(got))
		}
	}
	c, err := p.Counters()
	must(t, err)
	if n := c.Refused[bocage.ReasonFragment].Packets; n != 2 {
		t.Errorf("%d packets counted as stray pieces, want 2", n)
	}
}

// An interface that nobody vouches for is observed, unless the other end enforces.
func TestRootUnknownPort(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, u := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(9, 0, 0)
	u.port = bocage.Port{Interface: u.link}
	p.attach(a, b, u)
	echo(t, a, a.v4, 80)
	echo(t, b, b.v4, 80)
	p.run()
	rs := ruleset(1, nil, a, b)
	rs.Groups = []bocage.GroupInfo{{Group: 22, Enforce: true}}
	must(t, p.Apply(rs))
	must(t, ping(mustDial(t, u, a.v4, 80), long))
	e := p.await("an observed unknown", func(e bocage.FlowEvent) bool { return e.Reason == bocage.ReasonIdentityUnknown })
	if e.Kind != bocage.EventRefused || e.Verdict != bocage.VerdictAllow || e.Would != bocage.VerdictDrop || e.Source != 0 || e.Destination != 101 {
		t.Errorf("event %+v", e)
	}
	if _, err := dial(t, u, b.v4, 80, short); !isTimeout(err) {
		t.Fatalf("unknown to an enforcing end: %v, want a timeout", err)
	}
}

// Questions for addresses that nobody has are told, others are not.
func TestRootDarkAddress(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	must(t, host.CreateBridge(p.namespace, "br0"))
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	for _, w := range []*workload{a, b} {
		must(t, host.SetMaster(p.namespace, w.link, "br0"))
		for _, prefix := range []string{"10.77.0.0/24", "fd77::/64"} {
			must(t, host.AddRoute(w.namespace, host.Route{Destination: netip.MustParsePrefix(prefix), Link: "eth0"}))
		}
	}
	gateway := netip.MustParsePrefix("10.77.0.254/24")
	must(t, host.AddAddress(p.namespace, "br0", gateway))
	p.attach(a, b)
	p.run()
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b)))
	say := func(to string) {
		must(t, host.In(a.namespace, func() error {
			c, err := net.Dial("udp", to)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("?"))
			return err
		}))
	}
	say("10.77.0.254:9") // the gateway is no peer, but answers
	say("10.77.0.2:9")
	say("10.77.0.99:9")
	say("[fd77::99]:9")
	dark := map[string]bool{"10.77.0.99": true, "fd77::99": true}
	for len(dark) > 0 {
		e := p.await("a dark address", func(e bocage.FlowEvent) bool { return e.Reason == bocage.ReasonDarkAddress })
		if !dark[e.Remote.String()] {
			t.Errorf("%s is told to be dark", e.Remote)
		}
		delete(dark, e.Remote.String())
		if e.Kind != bocage.EventRefused || e.Verdict != bocage.VerdictAllow || e.Source != 101 || e.Packets == 0 || e.Interface != a.ifindex {
			t.Errorf("event %+v", e)
		}
	}
}

// A flood of refusals is told as one, and its count is whole.
func TestRootFloodOfRefusals(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	must(t, p.Apply(ruleset(1, nil, a, b)))
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 1000, dport: 22, tcpFlags: syn}
	const flood = 20_000
	p.in(func() error {
		for range flood {
			f.sport++
			if got := p.judged(true, a.ifindex, f.bytes()); got != dropped {
				return errors.New("a packet passed")
			}
		}
		return nil
	})
	counted, told := uint32(0), 0
	for counted < flood {
		e := p.await("the flood", func(e bocage.FlowEvent) bool { return e.DestinationPort == 22 })
		counted += e.Packets
		told++
	}
	if counted != flood || told > 20 {
		t.Errorf("%d refusals told in %d events, want %d in a few", counted, told, flood)
	}
}

// Malformed packets are refused where somebody enforces, whoever sends them; where
// policy only observes, and before there is one, they pass and are counted.
func TestRootMalformedPassesNobodyWhoEnforces(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a := p.workload(1, 101, 21)
	p.attach(a)
	random := newRandom(t)
	all := specimens()
	refused, observed := 0, 0
	for generation := range uint64(3) {
		want, counted := next, new(int)
		if generation > 0 {
			rs := ruleset(generation, nil, a)
			if generation == 1 {
				rs.Groups, counted = nil, &observed
			} else {
				want, counted = dropped, &refused
			}
			must(t, p.Apply(rs))
		}
		p.in(func() error {
			for range 10_000 {
				b := mutate(random, all[random.IntN(len(all))].bytes())
				if len(b) < 54 || wellFormed(b) {
					continue // tc programs are not run on less by BPF_PROG_RUN
				}
				*counted++
				if got := p.judged(random.IntN(2) == 0, a.ifindex, b); got != want {
					t.Fatalf("ruleset %d: program returned %d for % x, want %d", generation, int32(got), b, int32(want))
				}
			}
			return nil
		})
	}
	c, err := p.Counters()
	must(t, err)
	if n := c.Refused[bocage.ReasonMalformed].Packets; n != uint64(refused) || n == 0 {
		t.Errorf("%d counted as malformed and refused, want %d", n, refused)
	}
	if n := c.Passed[bocage.ReasonMalformed].Packets; n != uint64(observed) || n == 0 {
		t.Errorf("%d counted as malformed and passed, want %d", n, observed)
	}
}

// Nothing is left after Remove, and without a dataplane everything passes.
func TestRootRemoveLeavesNothing(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	echo(t, b, b.v4, 80)
	must(t, p.Apply(ruleset(1, nil, a, b)))
	if _, err := dial(t, a, b.v4, 80, short); !isTimeout(err) {
		t.Fatalf("%v, want a timeout", err)
	}
	if err := Remove(p.cfg.PinDir); err == nil {
		t.Error("removed under a running agent")
	}
	must(t, p.Close())
	if _, err := dial(t, a, b.v4, 80, short); !isTimeout(err) {
		t.Fatalf("after Close: %v, want a timeout", err)
	}
	must(t, Remove(p.cfg.PinDir))
	must(t, ping(mustDial(t, a, b.v4, 80), long))
	if _, err := os.Stat(p.cfg.PinDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", p.cfg.PinDir, err)
	}
	must(t, Remove(p.cfg.PinDir))
}
