package dataplane

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// A packet for one that arrives in a frame to all or many is judged by no flow: so it does
// not pass where policy is enforced, whatever policy says of the packet. Where it is sent
// it is one of its flow, and what is for all or many passes as it is allowed.
func TestRootPacketsForOneInFramesToMany(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	all, many, many6 := [6]byte{255, 255, 255, 255, 255, 255}, [6]byte{1, 0, 0x5e, 0, 0, 1}, [6]byte{0x33, 0x33, 0, 0, 0, 1}
	apply := func(generation uint64, enforce bool) {
		rs := ruleset(generation, nil, a, b)
		rs.Default = decideAllow
		rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.MustParsePrefix("10.77.0.0/24"), Identity: 900, Group: 90})
		for i := range rs.Groups {
			rs.Groups[i].Enforce = enforce
		}
		must(t, p.Apply(rs))
	}
	for generation, enforce := range []bool{false, true} {
		apply(uint64(generation+1), enforce)
		for _, from := range []bool{true, false} {
			port := b
			if from {
				port = a
			}
			sent := func(to [6]byte, source, destination netip.Addr) []byte {
				f := frame{from: [6]byte(a.mac), to: to, source: source, dst: destination, protocol: bocage.ProtocolUDP, sport: 4000, dport: 5000, payload: 64}
				if !from {
					f.from = [6]byte(gatewayMACOf(b))
				}
				return f.bytes()
			}
			first := frame{from: [6]byte(a.mac), to: all, source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 4000, dport: 5000, payload: 64, fragment: 0x2000, id: 7}
			refused := map[string][]byte{
				"IPv4 to all":         sent(all, a.v4, b.v4),
				"IPv4 to many":        sent(many, a.v4, b.v4),
				"IPv6 to all":         sent(all, a.v6, b.v6),
				"IPv6 to many":        sent(many6, a.v6, b.v6),
				"the first of pieces": first.bytes(),
			}
			for name, raw := range refused {
				want := next
				if enforce && !from {
					want = dropped
				}
				if got := p.judgedHere(from, port.ifindex, raw); got != want {
					t.Errorf("%s, from %v, enforced %v: program returned %d, want %d", name, from, enforce, int32(got), int32(want))
				}
			}
			for name, raw := range map[string][]byte{
				"a subnet's broadcast": sent(all, a.v4, netip.MustParseAddr("10.77.0.255")),
				"a broadcast":          sent(all, a.v4, netip.MustParseAddr("255.255.255.255")),
				"a multicast":          sent(many, a.v4, netip.MustParseAddr("224.0.0.1")),
				"an IPv6 multicast":    sent(many6, a.v6, netip.MustParseAddr("ff02::1")),
			} {
				if got := p.judgedHere(from, port.ifindex, raw); got != next {
					t.Errorf("%s, from %v, enforced %v: program returned %d", name, from, enforce, int32(got))
				}
			}
		}
	}
	p.await("a flow of frames to many", func(e bocage.FlowEvent) bool {
		return e.Kind == bocage.EventStart && e.Interface == a.ifindex && e.Destination == 102
	})
	p.await("a packet for one that went to many", func(e bocage.FlowEvent) bool {
		return e.Kind == bocage.EventRefused && e.Reason == bocage.ReasonMalformed && e.Verdict == bocage.VerdictDrop && e.Destination == 102
	})
}

// The same where it is a wire that is crossed, by what arrives.
func TestRootPacketsForOneInFramesToManyCrossNoWire(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	rs := ruleset(1, nil, a, b)
	rs.Default = decideAllow
	must(t, p.Apply(rs))
	p.wire(a, b, true, a)
	for _, to := range [][6]byte{{255, 255, 255, 255, 255, 255}, {1, 0, 0x5e, 0, 0, 1}, [6]byte(a.mac)} {
		for _, way := range [][2]netip.Addr{{a.v4, b.v4}, {a.v6, b.v6}} {
			f := frame{from: [6]byte(b.mac), to: to, source: way[1], dst: way[0], protocol: bocage.ProtocolUDP, sport: 4000, dport: 5000, payload: 64}
			want := uint32(dropped)
			if to == [6]byte(a.mac) {
				want = redirect
			}
			if got := p.crosses(b, f.bytes()); got != want {
				t.Errorf("%s, to %x: program returned %d, want %d", f.source, to, int32(got), int32(want))
			}
		}
	}
}

// crosses runs a wire's program over a frame that comes in from one of its ends.
func (p *plane) crosses(from *workload, b []byte) (returned uint32) {
	p.t.Helper()
	p.in(func() (err error) {
		returned, err = p.objects.AcrossWire.Run(&ebpf.RunOptions{Data: b, Context: skb{Ifindex: from.ifindex}})
		return err
	})
	return returned
}

// A super-frame is cut into segments by its length, whatever its headers say: one whose
// headers say less is malformed, on the long way and on the short one.
func TestRootSuperFramesAreAsLongAsTheySay(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	super := func(raw []byte) (returned uint32) {
		p.in(func() (err error) {
			returned, err = p.objects.FromWorkload.Run(&ebpf.RunOptions{Data: raw, Context: skb{Ifindex: a.ifindex, GsoSize: 1000, GsoSegs: 3}})
			return err
		})
		return returned
	}
	for _, ends := range [][2]netip.Addr{{a.v4, b.v4}, {a.v6, b.v6}} {
		f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: ends[0], dst: ends[1], protocol: bocage.ProtocolTCP, sport: 4000, dport: 80, tcpFlags: syn}
		back := f
		back.from, back.to, back.source, back.dst, back.sport, back.dport, back.tcpFlags = f.to, f.from, f.dst, f.source, f.dport, f.sport, syn|ack
		if p.judgedHere(true, a.ifindex, f.bytes()) != next || p.judgedHere(false, a.ifindex, back.bytes()) != next {
			t.Fatal("the handshake is refused")
		}
		f.tcpFlags = ack
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
			t.Fatal("the handshake's end is refused")
		}
		f.payload = 3000
		whole := f.bytes()
		at, own := 16, 0 // of the length, and how much of the header is in it
		if ends[0].Is6() {
			at, own = 18, 40
		}
		for says, want := range map[int]uint32{len(whole) - 14 - own: next, 0: next, 60 - own: dropped, len(whole) - 15 - own: dropped} {
			raw := slices.Clone(whole)
			raw[at], raw[at+1] = byte(says>>8), byte(says)
			if got := super(raw); got != want {
				t.Errorf("%s: a super-frame that says %d: program returned %d, want %d", ends[0], says, int32(got), int32(want))
			}
		}
		padded := append(slices.Clone(whole), make([]byte, 30)...)
		if got := p.judgedHere(true, a.ifindex, padded); got != next {
			t.Errorf("%s: a plain frame that is padded: program returned %d", ends[0], int32(got))
		}
	}
	before := uint64(0)
	for _, row := range p.flows.live {
		before += row.Bytes
	}
	if before == 0 || before > 4*3200*2 {
		t.Errorf("%d bytes counted", before)
	}
}

// discovery is a message of neighbour discovery with options as they are given.
func discovery(w *workload, kind byte, source, target netip.Addr, options ...[]byte) []byte {
	f := neighbour(w, kind, source, target, w.mac)
	f.body = f.body[:24]
	if kind == 133 {
		f.body = f.body[:8]
	}
	f.body = append(slices.Clone(f.body), slices.Concat(options...)...)
	return f.bytes()
}

// Whatever is before the option that speaks of a MAC, it is read.
func TestRootNeighbourOptions(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, c := p.workload(1, 101, 21), p.workload(3, 103, 23)
	p.attach(a, c)
	must(t, p.Apply(ruleset(1, nil, a, c)))
	inside, outside := p.neighbour(7, 107, 27), p.neighbour(8, 108, 28)
	rs := ruleset(2, nil, a, c, inside, outside)
	rs.Ports = rs.Ports[:2]
	must(t, p.Apply(rs))
	p.wire(inside, outside, true, inside)
	nonce := []byte{14, 1, 1, 2, 3, 4, 5, 6}
	long := append([]byte{14, 3}, make([]byte, 22)...)
	speaks := func(kind byte, mac net.HardwareAddr) []byte { return append([]byte{2 - kind%2, 1}, mac...) }
	for _, point := range []struct {
		name    string
		who     *workload
		ifindex uint32
		judged  func([]byte) uint32
	}{
		{"port", a, a.ifindex, func(b []byte) uint32 { return p.judgedHere(true, a.ifindex, b) }},
		{"wire", inside, inside.ifindex, func(b []byte) uint32 { return p.crosses(inside, b) }},
	} {
		passes := uint32(next)
		if point.name == "wire" {
			passes = redirect
		}
		w := point.who
		for _, kind := range []byte{133, 135, 136} {
			own, others := speaks(kind, w.mac), speaks(kind, c.mac)
			if kind == 133 {
				own[0], others[0] = 1, 1
			}
			for _, test := range []struct {
				name    string
				options [][]byte
				want    uint32
			}{
				{"none", nil, passes},
				{"its own MAC", [][]byte{own}, passes},
				{"its own MAC behind a nonce", [][]byte{nonce, own}, passes},
				{"its own MAC behind a long option", [][]byte{long, own}, passes},
				{"another's MAC", [][]byte{others}, dropped},
				{"another's MAC behind a nonce", [][]byte{nonce, others}, dropped},
				{"another's MAC behind a long option", [][]byte{long, others}, dropped},
				{"another's MAC behind its own", [][]byte{own, others}, dropped},
				{"another's MAC before its own", [][]byte{others, own}, dropped},
				{"another's MAC behind more than is walked", [][]byte{nonce, nonce, nonce, nonce, nonce, others}, dropped},
				{"an option of no length", [][]byte{{14, 0, 1, 2, 3, 4, 5, 6}, others}, dropped},
				{"an option that is cut", [][]byte{{14, 2, 1, 2, 3, 4, 5, 6}}, dropped},
				{"half an option", [][]byte{{14, 1, 1, 2}}, dropped},
				{"a long MAC", [][]byte{append([]byte{2 - kind%2, 2}, make([]byte, 14)...)}, dropped},
			} {
				if got := point.judged(discovery(w, kind, w.v6, w.v6, test.options...)); got != test.want {
					t.Errorf("%s, type %d, %s: program returned %d, want %d", point.name, kind, test.name, int32(got), int32(test.want))
				}
			}
		}
	}
}

// leasing is a message of DHCP between two ports, for IPv4 or IPv6.
func leasing(w *workload, to [6]byte, source, destination netip.Addr, ports [2]uint16, begins ...byte) frame {
	return frame{from: [6]byte(w.mac), to: to, source: source, dst: destination, protocol: bocage.ProtocolUDP,
		body: says(ports[0], ports[1], append(begins, make([]byte, 236)...))}
}

// DHCP passes for who may have no address yet, and nothing else in its guise: questions
// to the whole link, and what answers them. Who is in quarantine gets neither.
func TestRootLeases(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	all, many6 := [6]byte{255, 255, 255, 255, 255, 255}, [6]byte{0x33, 0x33, 0, 1, 0, 2}
	broadcast, nobody := netip.MustParseAddr("255.255.255.255"), netip.IPv4Unspecified()
	servers, server := netip.MustParseAddr("ff02::1:2"), netip.MustParseAddr("fe80::77")
	to4, back4, to6, back6 := [2]uint16{68, 67}, [2]uint16{67, 68}, [2]uint16{546, 547}, [2]uint16{547, 546}
	received := func(f frame) frame {
		f.from, f.to = [6]byte(gatewayMACOf(a)), [6]byte(a.mac)
		return f
	}
	ask4 := leasing(a, all, nobody, broadcast, to4, 1, 1, 6, 0, 1, 2, 3, 4)
	ask6 := leasing(a, many6, linkLocal(a), servers, to6, 1, 9, 8, 7)
	questions := []struct {
		name string
		f    frame
		want uint32
	}{
		{"a question to all", ask4, next},
		{"a question to all by its address", leasing(a, all, a.v4, broadcast, to4, 1, 1, 6, 0, 1, 2, 3, 4), next},
		{"a question to all servers", ask6, next},
		{"a question to one", leasing(a, [6]byte(b.mac), nobody, b.v4, to4, 1, 1, 6, 0, 1, 2, 3, 4), dropped},
		{"a question to one in a frame to all", leasing(a, all, nobody, b.v4, to4, 1, 1, 6, 0, 1, 2, 3, 4), dropped},
		{"a question to one MAC", leasing(a, [6]byte(b.mac), nobody, broadcast, to4, 1, 1, 6, 0, 1, 2, 3, 4), dropped},
		{"what is none", leasing(a, all, nobody, broadcast, to4, 'e', 'v', 'i', 'l', 1, 2, 3, 4), dropped},
		{"a question to one afar", leasing(a, [6]byte(b.mac), linkLocal(a), b.v6, to6, 1, 9, 8, 7), dropped},
		{"a question to another group", leasing(a, [6]byte{0x33, 0x33, 0, 0, 0, 1}, linkLocal(a), netip.MustParseAddr("ff02::1"), to6, 1, 9, 8, 7), dropped},
	}
	answers := []struct {
		name string
		f    frame
		want uint32
	}{
		{"an answer", received(leasing(b, all, b.v4, a.v4, back4, 2, 1, 6, 0, 1, 2, 3, 4)), next},
		{"an answer for IPv6", received(leasing(b, all, server, linkLocal(a), back6, 2, 9, 8, 7)), next},
		{"an answer to another question", received(leasing(b, all, b.v4, a.v4, back4, 2, 1, 6, 0, 1, 2, 3, 5)), dropped},
		{"an answer to another question for IPv6", received(leasing(b, all, server, linkLocal(a), back6, 2, 9, 8, 6)), dropped},
		{"a question that comes back", received(leasing(b, all, b.v4, a.v4, back4, 1, 1, 6, 0, 1, 2, 3, 4)), dropped},
		{"an answer from afar", received(leasing(b, all, b.v6, linkLocal(a), back6, 2, 9, 8, 7)), dropped},
	}
	must(t, p.Apply(ruleset(1, nil, a, b)))
	for _, test := range answers {
		if got := p.judgedHere(false, a.ifindex, test.f.bytes()); got != dropped {
			t.Errorf("%s, before anybody asked: program returned %d", test.name, int32(got))
		}
	}
	for _, test := range questions {
		if got := p.judgedHere(true, a.ifindex, test.f.bytes()); got != test.want {
			t.Errorf("%s: program returned %d, want %d", test.name, int32(got), int32(test.want))
		}
	}
	for _, test := range answers {
		if got := p.judgedHere(false, a.ifindex, test.f.bytes()); got != test.want {
			t.Errorf("%s: program returned %d, want %d", test.name, int32(got), int32(test.want))
		}
	}
	p.run()
	rs := ruleset(2, nil, a, b)
	rs.Groups = nil
	rs.Refused = []bocage.Refusal{{Identity: 101, Decision: decideQuarantine}}
	must(t, p.Apply(rs))
	for _, f := range []frame{ask4, ask6} {
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != dropped {
			t.Errorf("a question by who is in quarantine: program returned %d", int32(got))
		}
	}
	for _, test := range answers {
		if got := p.judgedHere(false, a.ifindex, test.f.bytes()); got != dropped {
			t.Errorf("%s, to who is in quarantine: program returned %d", test.name, int32(got))
		}
	}
	p.await("a lease refused", func(e bocage.FlowEvent) bool {
		return e.Kind == bocage.EventRefused && e.Reason == bocage.ReasonQuarantine && e.DestinationPort == 67
	})
}

// Who sends by another's MAC has a bridge bring him what is for the other. A port whose
// workload's MAC nobody declared is bound to the first one by which it sends, if that is
// no other port's.
func TestRootMACsOfOthers(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
	for _, w := range []*workload{a, c} {
		w.port.MAC = ""
	}
	p.bridge(a, b, c)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, []bocage.Rule{{From: 21, To: 22, Protocol: bocage.ProtocolUDP, Ports: bocage.PortRange{First: 1, Last: 65535}, Decision: decideAllow}}, a, b, c)))
	p.attach(c)
	sent := func(w *workload, mac net.HardwareAddr) frame {
		return frame{from: [6]byte(mac), to: gatewayMAC(w), source: w.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 4000, dport: 5000}
	}
	six := sent(a, b.mac)
	six.source, six.dst = a.v6, b.v6
	arp := func(mac net.HardwareAddr) []byte {
		raw := append(append(slices.Repeat([]byte{255}, 6), mac...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
		raw = append(append(append(raw, mac...), a.v4.AsSlice()...), make([]byte, 6)...)
		return append(append(raw, b.v4.AsSlice()...), make([]byte, 18)...)
	}
	solicitation := neighbour(a, 135, a.v6, b.v6, b.mac)
	solicitation.from = [6]byte(b.mac)
	odd := append(append(slices.Clone(b.mac), b.mac...), make([]byte, 60)...)
	odd[12], odd[13] = 0x88, 0xb5
	own, second := a.mac, net.HardwareAddr{2, 0, 0, 0, 9, 9} // its kernel sends by the first, whenever it likes
	asks := lease(a)
	asks.from = [6]byte(b.mac)
	for _, test := range []struct {
		name string
		w    *workload
		raw  []byte
		want uint32
	}{
		{"IPv4 by a declared MAC", a, sent(a, b.mac).bytes(), dropped},
		{"IPv6 by a declared MAC", a, six.bytes(), dropped},
		{"ARP by a declared MAC", a, arp(b.mac), dropped},
		{"neighbour discovery by a declared MAC", a, solicitation.bytes(), dropped},
		{"DHCP by a declared MAC", a, asks.bytes(), dropped},
		{"a frame of no protocol by a declared MAC", a, odd, dropped},
		{"its own first", a, arp(own), next},
		{"its own again", a, sent(a, own).bytes(), next},
		{"its own second", a, arp(second), dropped},
		{"one that another was heard by", c, sent(c, own).bytes(), dropped},
		{"DHCP by one that another was heard by", c, func() []byte { f := lease(c); f.from = [6]byte(own); return f.bytes() }(), dropped},
	} {
		if got := p.judgedHere(true, test.w.ifindex, test.raw); got != test.want {
			t.Errorf("%s: program returned %d, want %d", test.name, int32(got), int32(test.want))
		}
	}
	// What is for another arrives at none: by MAC or by address.
	received := func(mac net.HardwareAddr, destination netip.Addr) []byte {
		f := frame{from: [6]byte(gatewayMACOf(b)), to: [6]byte(mac), source: a.v4, dst: destination, protocol: bocage.ProtocolUDP, sport: 4000, dport: 5000}
		if destination.Is6() {
			f.source = a.v6
		}
		return f.bytes()
	}
	for _, test := range []struct {
		name string
		raw  []byte
		want uint32
	}{
		{"what is its own", received(b.mac, b.v4), next},
		{"what is its own by IPv6", received(b.mac, b.v6), next},
		{"another's MAC", received(second, b.v4), dropped},
		{"another's address", received(b.mac, c.v4), dropped},
		{"another's IPv6 address", received(b.mac, c.v6), dropped},
	} {
		if got := p.judgedHere(false, b.ifindex, test.raw); got != test.want {
			t.Errorf("%s: program returned %d, want %d", test.name, int32(got), int32(test.want))
		}
	}
	// A MAC that is declared later is its owner's, whoever was heard by it.
	c.port.MAC = own.String()
	p.attach(c)
	if got := p.judgedHere(true, a.ifindex, sent(a, own).bytes()); got != dropped {
		t.Errorf("by a MAC that is declared another's meanwhile: program returned %d", int32(got))
	}
	if got := p.judgedHere(true, a.ifindex, sent(a, second).bytes()); got != next {
		t.Errorf("by another one afterwards: program returned %d", int32(got))
	}
}

// A MAC that is declared is its owner's, whoever learns it in the moment of its declaration.
func TestRootMACsLearnedWhileTheyAreDeclared(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, c := p.workload(1, 101, 21), p.workload(3, 103, 23)
	p.bridge(a, c)
	a.port.MAC = ""
	p.attach(a, c)
	must(t, p.Apply(ruleset(1, nil, a, c)))
	for i := range byte(40) {
		a.port.Identity = 200 + bocage.Identity(i) // another workload has its first MAC before it
		p.attach(a)
		mac := net.HardwareAddr{2, 0, 0, 0, 8, i}
		f := frame{from: [6]byte(mac), to: gatewayMAC(a), source: a.v4, dst: c.v4, protocol: bocage.ProtocolUDP, sport: 4000, dport: 5000}
		var sending sync.WaitGroup
		stop, fault := make(chan struct{}), make(chan error, 1)
		sending.Go(func() {
			fault <- host.In(p.namespace, func() error {
				for {
					if _, err := p.objects.FromWorkload.Run(&ebpf.RunOptions{Data: f.bytes(), Context: skb{Ifindex: a.ifindex}}); err != nil {
						return err
					}
					select {
					case <-stop:
						return nil
					default:
					}
				}
			})
		})
		c.port.MAC = mac.String()
		p.attach(c)
		close(stop)
		sending.Wait()
		must(t, <-fault)
		var row bpf.KernelPort
		must(t, p.objects.Ports.Lookup(a.ifindex, &row))
		if row.Flags&portMACLearned != 0 && row.Mac == [6]byte(mac) {
			t.Fatalf("MAC %s was learned as it was declared another's", mac)
		}
	}
}

// By which MAC a workload is sent to is a guess until it sends, and kept beside what it
// says itself. Where the host routes, workloads may have the same one.
func TestRootMACsOfWhoIsRouted(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a)
	must(t, p.Apply(ruleset(1, []bocage.Rule{{From: 22, To: 21, Protocol: bocage.ProtocolUDP, Ports: bocage.PortRange{First: 1, Last: 65535}, Decision: decideAllow}}, a, b)))
	b.port.MAC = ""
	p.in(func() error { return p.writePort(Attachment{Ifindex: loopback, Port: b.port}) }) // where nobody else sends
	row := func() (row bpf.KernelPort) {
		must(t, p.objects.Ports.Lookup(uint32(loopback), &row))
		return row
	}
	guess := [6]byte{2, 0, 0, 0, 7, 7}
	arriving := frame{from: [6]byte(gatewayMACOf(b)), to: guess, source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 4000, dport: 5000}
	p.judgedHere(false, loopback, arriving.bytes())
	if got := row(); got.Guess != guess || got.Mac != [6]byte{} || got.Flags&portMACLearned != 0 {
		t.Errorf("of who has sent nothing: guess %x, MAC %x, flags %x", got.Guess, got.Mac, got.Flags)
	}
	sent := frame{from: [6]byte(a.mac), to: gatewayMAC(b), source: b.v4, dst: a.v4, protocol: bocage.ProtocolUDP, sport: 4000, dport: 5000}
	if got := p.judgedHere(true, loopback, sent.bytes()); got != next {
		t.Errorf("by the MAC of a workload that is routed, too: program returned %d", int32(got))
	}
	if got := row(); got.Mac != [6]byte(a.mac) || got.Flags&portMACLearned == 0 {
		t.Errorf("of who has sent: MAC %x, flags %x", got.Mac, got.Flags)
	}
}

// What a workload gets by its own MAC for an address that is not its own is told, and
// passes where nobody enforces; what is for another MAC is put aside.
func TestRootPacketsForUndeclaredAddressesAreTold(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	for generation, want := range []uint32{next, dropped} {
		rs := ruleset(uint64(generation+1), nil, a, b)
		for i := range rs.Groups {
			rs.Groups[i].Enforce = want == dropped
		}
		must(t, p.Apply(rs))
		for i, destination := range []string{"10.88.0.9", "fd88::9"} {
			f := frame{from: [6]byte(gatewayMACOf(b)), to: [6]byte(b.mac), source: a.v4, dst: netip.MustParseAddr(destination), protocol: bocage.ProtocolUDP, sport: 4000, dport: uint16(5000 + i)}
			if f.dst.Is6() {
				f.source = a.v6
			}
			if got := p.judgedHere(false, b.ifindex, f.bytes()); got != want {
				t.Errorf("for %s: program returned %d, want %d", destination, int32(got), int32(want))
			}
			e := p.await("what was for "+destination, func(e bocage.FlowEvent) bool {
				return e.Kind == bocage.EventRefused && e.Reason == bocage.ReasonSpoofed && e.DestinationPort == f.dport && (e.Verdict == bocage.VerdictDrop) == (want == dropped)
			})
			if e.Interface != b.ifindex || e.Would != bocage.VerdictDrop || e.Source != 101 || e.Destination != 102 {
				t.Errorf("event %+v", e)
			}
		}
	}
}

// What is malformed is refused by whom it names: nobody who is cut off sends or gets it,
// nor is anybody who enforces reached or spoken for by it.
func TestRootMalformedFramesNameSomebody(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	c, d := p.workload(3, 103, 23), p.workload(4, 104, 24)
	p.attach(c)
	p.wire(a, b, false, a)
	many := [6]byte{3, 0, 0, 0, 0, 9}
	udp := func(from [6]byte, to []byte, ends ...netip.Addr) []byte {
		f := frame{from: from, to: [6]byte(to), source: ends[0], dst: ends[1], protocol: bocage.ProtocolUDP, sport: 4000, dport: 5000, payload: 64}
		return f.bytes()
	}
	arp := func(w *workload, sender netip.Addr) []byte { // answers, of hardware as of IEEE 802
		raw := append(append(slices.Repeat([]byte{255}, 6), w.mac...), 0x08, 0x06, 0, 6, 8, 0, 6, 4, 0, 2)
		raw = append(append(append(raw, w.mac...), sender.AsSlice()...), make([]byte, 6)...)
		return append(append(raw, sender.AsSlice()...), make([]byte, 18)...)
	}
	for generation := range uint64(2) {
		rs := ruleset(generation+1, nil, a, b, c, d)
		rs.Ports, rs.Groups = []bocage.Port{c.port}, []bocage.GroupInfo{{Group: 24, Enforce: true}}
		wire := uint32(redirect)
		if generation == 1 {
			rs.Refused = []bocage.Refusal{{Identity: 101, Decision: decideQuarantine}}
			wire = dropped
		}
		must(t, p.Apply(rs))
		for name, test := range map[string]struct{ got, want uint32 }{
			"IPv4 of a resident":               {p.crosses(a, udp(many, b.mac, a.v4, b.v4)), wire},
			"IPv6 of a resident":               {p.crosses(a, udp(many, b.mac, a.v6, b.v6)), wire},
			"IPv4 to a resident":               {p.crosses(b, udp(many, a.mac, b.v4, a.v4)), wire},
			"IPv6 to a resident":               {p.crosses(b, udp(many, a.mac, b.v6, a.v6)), wire},
			"ARP of a resident":                {p.crosses(a, arp(a, a.v4)), wire},
			"of who is merely observed":        {p.judgedHere(true, c.ifindex, udp(many, gatewayMACOf(c), c.v4, b.v4)), next},
			"to who enforces":                  {p.judgedHere(true, c.ifindex, udp(many, gatewayMACOf(c), c.v4, d.v4)), dropped},
			"to who enforces by IPv6":          {p.judgedHere(true, c.ifindex, udp(many, gatewayMACOf(c), c.v6, d.v6)), dropped},
			"ARP of who is merely observed":    {p.judgedHere(true, c.ifindex, arp(c, c.v4)), next},
			"ARP that has an enforced address": {p.judgedHere(true, c.ifindex, arp(c, d.v4)), dropped},
		} {
			if test.got != test.want {
				t.Errorf("ruleset %d, %s: program returned %d, want %d", generation+1, name, int32(test.got), int32(test.want))
			}
		}
	}
}

// What was said last may be lost, and is sent again for a while after both ends have said
// that they are through. A reset leaves nothing to be said.
func TestRootLastWordsAreSentAgain(t *testing.T) {
	t.Parallel()
	x := newTap(t, true)
	x.agedBy(3 * time.Hour)
	hello := []byte("SSH-2.0-x\r\n")
	n := len(hello)
	open := func() *stream {
		s := x.open(bocage.SpeechSSH)
		s.passes(false, segment{flags: ack, bytes: hello})
		s.passes(true, segment{flags: ack, known: n, bytes: hello})
		s.passes(false, segment{at: n, flags: ack, known: n})
		s.passes(true, segment{at: n, flags: ack, known: n})
		return s
	}
	s := open()
	last := segment{at: n, flags: ack | fin, known: n, bytes: []byte("last words")}
	s.passes(false, last)
	s.passes(true, segment{at: n, flags: ack | fin, known: n})
	s.passes(false, segment{at: n + 11, flags: ack, known: n + 1})
	for range 2 {
		s.age(100 * time.Second)
		must(t, x.p.sweep(sweepFlows))
		s.passes(false, last)
	}
	s.age(121 * time.Second)
	must(t, x.p.sweep(sweepFlows))
	s.refused(false, last)

	s = open()
	s.passes(false, segment{at: n, flags: ack | rst, known: n})
	s.age(11 * time.Second)
	must(t, x.p.sweep(sweepFlows))
	s.refused(false, last)
}
