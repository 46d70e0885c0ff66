package dataplane

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// begin is a connection of which no packet was sent yet.
func (x *tap) begin(protocol bocage.AppProtocol) *stream {
	x.port++
	return &stream{x, x.port, portOf(protocol), [2]uint32{rand.Uint32(), rand.Uint32()}}
}

// agedBy makes the tap's point look as if it had been there for longer.
func (x *tap) agedBy(d time.Duration) {
	x.t.Helper()
	var row bpf.KernelPort
	must(x.t, x.p.objects.Ports.Lookup(uint32(1), &row))
	row.Attached -= uint64(d)
	must(x.t, x.p.objects.Ports.Put(uint32(1), row))
}

// Whoever has one end makes up what the other never sees: handshakes, by wrong checksums
// or few hops. None of it has other bytes taken for those that are said.
func TestRootVerifyForgedHandshakes(t *testing.T) {
	t.Parallel()
	x := newTap(t, true)
	hello, other := []byte("SSH-2.0-client\r\n"), []byte("GET /secret HTTP")
	n := uint32(len(hello))
	t.Run("data that fit before what is known", func(t *testing.T) {
		s := x.begin(bocage.SpeechSSH)
		s.passes(false, segment{at: -1, flags: syn})
		s.passes(true, segment{at: -1, flags: syn | ack})
		s.passes(false, segment{flags: rst}) // which the server does not take
		s.bases[0] -= n
		s.refused(false, segment{at: -1, flags: syn, bytes: hello})
		s.bases[0] += n
		s.passes(true, segment{at: -1, flags: syn | ack}) // again, since nobody answers
		s.passes(false, segment{flags: ack})
		s.refused(false, segment{flags: ack, bytes: other})
	})
	t.Run("the client answers itself", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		s.passes(false, segment{flags: rst})
		s.bases[0] -= 1000
		s.passes(false, segment{at: -1, flags: syn})
		s.refused(false, segment{at: -1, flags: syn | ack})
		s.refused(false, segment{flags: ack, bytes: hello})
		s.bases[0] += 1000
		s.send(true, segment{flags: ack})
		s.refused(false, segment{flags: ack, bytes: other})
	})
	t.Run("both open", func(t *testing.T) {
		s := x.begin(bocage.SpeechSSH)
		s.passes(false, segment{at: -1, flags: syn})
		s.refused(true, segment{at: -1, flags: syn}) // a split handshake begins so, too
		s.passes(true, segment{at: -1, flags: syn | ack})
		s.refused(false, segment{flags: ack, bytes: other})
	})
	t.Run("an opener of anybody's cuts nothing", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		s.bases[0] += 1 << 20
		s.refused(false, segment{at: -1, flags: syn})
		s.bases[0] -= 1 << 20
		s.bases[1] += 77
		s.refused(true, segment{at: -1, flags: syn | ack})
		s.bases[1] -= 77
		s.passes(false, segment{flags: ack, bytes: hello})
		s.passes(true, segment{known: len(hello), flags: ack, bytes: hello})
		s.passes(false, segment{at: len(hello), known: len(hello), flags: ack})
		if s.isWatched() {
			t.Error("known, and still listened to")
		}
	})
	t.Run("a reset, and then from the middle", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		s.passes(false, segment{flags: rst})
		s.age(time.Minute)
		must(t, x.p.sweep(sweepFlows))
		s.refused(false, segment{flags: ack, bytes: other}) // not as one that was there before
	})
	t.Run("datagrams with more behind their end", func(t *testing.T) {
		x.port++
		ask := func(said, more []byte) bool {
			be := binary.BigEndian
			b := be.AppendUint16(be.AppendUint16(nil, x.port), portOf(bocage.SpeechNTP))
			b = append(be.AppendUint16(b, uint16(8+len(said))), 0, 0)
			f := frame{from: [6]byte(x.a.mac), to: gatewayMAC(x.a), source: x.a.v4, dst: x.b.v4, protocol: bocage.ProtocolUDP,
				body: append(append(b, said...), more...)}
			return x.p.judgedHere(true, 1, f.bytes()) == next
		}
		whole := append([]byte{0x23}, make([]byte, 47)...)
		if !ask(whole, nil) || !ask(whole, make([]byte, 4)) {
			t.Error("a datagram is refused that is what it must be")
		}
		if ask(whole[:4], whole[4:]) {
			t.Error("a datagram passed by what is behind its end")
		}
	})
}

// age makes the stream look as if nothing had come of it for long.
func (s *stream) age(d time.Duration) {
	s.t.Helper()
	s.p.rewrite(func(flow *bpf.KernelFlow) {
		if slices.Contains(flow.Key.Port[:], s.client) && slices.Contains(flow.Key.Port[:], s.server) {
			flow.Seen -= uint32(d >> beatShift)
		}
	})
}

// Who knows or guesses the ports of a connection, and says that he opens or resets it,
// takes nothing away from it: not that it is known, nor that it was proven, nor its turn.
func TestRootOpenersOfOthersCutNothing(t *testing.T) {
	t.Parallel()
	x := newTap(t, true)
	hello, other := []byte("SSH-2.0-client\r\n"), []byte("GET /secret HTTP")
	rs := verifying(2, true, x.a, x.b)
	for i := range rs.Decisions {
		if rs.Decisions[i].ID == decideVerify+bocage.DecisionID(bocage.SpeechSSH) {
			rs.Decisions[i].Duties = &bocage.Duties{Verify: bocage.SpeechSSH.String(), Rate: "1/s"}
		}
	}
	must(t, x.p.Apply(rs))
	lives := func(s *stream, when string) {
		t.Helper()
		if !s.send(false, segment{at: 5000, flags: ack, bytes: other}) || !s.send(true, segment{at: 5000, flags: ack, bytes: other}) {
			t.Fatalf("a connection is cut: %s", when)
		}
	}
	pickedUp := x.begin(bocage.SpeechSSH)
	lives(pickedUp, "from before the point")
	proven := x.open(bocage.SpeechSSH) // the only one that may begin
	proven.passes(false, segment{flags: ack, bytes: hello})
	proven.passes(true, segment{known: len(hello), flags: ack, bytes: hello})
	proven.passes(false, segment{at: len(hello), known: len(hello), flags: ack})
	lives(proven, "proven")
	far := x.p.quotasNow()
	for key := range far {
		far[key] = bpf.KernelQuota{Due: ^uint64(0) >> 2}
	}
	x.p.setQuotas(far)
	x.agedBy(24 * time.Hour) // nothing is picked up any more

	open := func(s *stream) bool {
		s.bases[0] += 1 << 20
		defer func() { s.bases[0] -= 1 << 20 }()
		return s.send(false, segment{at: -1, flags: syn})
	}
	for _, s := range []*stream{pickedUp, proven} {
		if open(s) {
			t.Error("an opener on the ports of what lives is not counted")
		}
		lives(s, "after an opener")
		s.passes(true, segment{at: 1 << 25, flags: rst | ack})
		lives(s, "after a reset")
		if open(s) {
			t.Error("an opener on the ports of what was reset is not counted")
		}
		lives(s, "after a reset and an opener")
		s.refused(true, segment{at: -1, flags: syn}) // against the grain
		lives(s, "after a reset and an opener against the grain")
	}
}

// A connection on the ports of one that was reset, or picked up, is told and heard as any
// other.
func TestRootConnectionsOnDoubtfulRows(t *testing.T) {
	t.Parallel()
	x := newTap(t, true)
	x.p.run()
	hello, other := []byte("SSH-2.0-client\r\n"), []byte("GET /secret HTTP")
	for _, test := range []struct {
		name  string
		begin func() *stream
	}{
		{"picked up", func() *stream {
			s := x.begin(bocage.SpeechSSH)
			s.passes(false, segment{at: 7, flags: ack})
			return s
		}},
		{"reset", func() *stream {
			s := x.open(bocage.SpeechSSH)
			s.passes(false, segment{flags: ack, bytes: hello})
			s.passes(true, segment{known: len(hello), flags: ack, bytes: hello})
			s.passes(false, segment{at: len(hello), known: len(hello), flags: ack})
			s.passes(true, segment{at: len(hello), flags: rst | ack})
			return s
		}},
	} {
		for _, proper := range []bool{false, true} {
			s := test.begin()
			told := func(kind bocage.EventKind) bocage.FlowEvent {
				t.Helper()
				return x.p.await(test.name, func(e bocage.FlowEvent) bool { return e.Kind == kind && e.SourcePort == s.client })
			}
			told(bocage.EventStart)
			s.bases = [2]uint32{rand.Uint32(), rand.Uint32()}
			s.passes(false, segment{at: -1, flags: syn})
			s.passes(true, segment{at: -1, flags: syn | ack})
			if end := told(bocage.EventEnd); end.Packets == 0 {
				t.Errorf("%s: end %+v", test.name, end)
			}
			if start := told(bocage.EventStart); start.Packets != 1 {
				t.Errorf("%s: start %+v", test.name, start)
			}
			if !proper {
				s.refused(false, segment{flags: ack, bytes: other})
				continue
			}
			s.passes(false, segment{flags: ack, bytes: hello})
			s.passes(true, segment{known: len(hello), flags: ack, bytes: hello})
			s.passes(false, segment{at: len(hello), known: len(hello), flags: ack})
			if s.isWatched() {
				t.Errorf("%s: known, and still listened to", test.name)
			}
		}
	}
}

// What a workload wraps IP into, so that nobody reads it, or sends as who keeps a link
// going, does not leave it where policy is enforced, on whatever way.
func TestRootHiddenFramesGoNowhere(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
	p.bridge(a, b)
	p.attach(a, b, c)
	p.run()
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b, c)))
	be := binary.BigEndian
	inner := frame{source: a.v4, dst: b.v4, from: [6]byte(a.mac), to: [6]byte(b.mac), protocol: bocage.ProtocolUDP, sport: 5000, dport: 9000, payload: 40}
	inner6 := inner
	inner6.source, inner6.dst = a.v6, b.v6
	wrapped := func(kinds ...uint16) []byte {
		b := inner.bytes()
		head, rest := slices.Clone(b[:12]), b[12:]
		for _, k := range kinds {
			head = be.AppendUint16(head, k)
			switch k {
			case 0x8100, 0x88a8, 0x9100:
				head = be.AppendUint16(head, 5)
			case 0x8847: // a label, the last one
				head, rest = append(head, 0, 1, 0x41, 64), rest[2:]
			case 0x8864:
				head, rest = append(head, 0x11, 0, 0, 1, 0, byte(len(rest)), 0, 0x21), rest[2:]
			case 0x8870, 300: // LLC and SNAP
				head = append(head, 0xaa, 0xaa, 3, 0, 0, 0)
			case 301: // LLC, IP
				head, rest = append(head, 6, 6, 3), rest[2:]
			}
		}
		return append(append(head, rest...), make([]byte, 64)...)
	}
	advertised := func(f frame, extensions ...extension) []byte {
		f.extensions = extensions
		return f.bytes()
	}
	router := neighbour(a, 134, linkLocal(a), a.v6, a.mac)
	group := func(f frame) frame {
		f.to = [6]byte{255, 255, 255, 255, 255, 255}
		f.dst = netip.MustParseAddr("255.255.255.255")
		return f
	}
	tunnel := func(protocol bocage.Protocol, head []byte, in frame) []byte {
		f := inner
		f.protocol, f.body = protocol, append(slices.Clone(head), in.bytes()[14:]...)
		return f.bytes()
	}
	six := func(next bocage.Protocol, body []byte) []byte {
		f := inner6
		f.protocol, f.body = next, body
		return f.bytes()
	}
	transport := inner.bytes()[34:]
	for _, x := range []struct {
		name string
		b    []byte
	}{
		{"in a VLAN", wrapped(0x8100)},
		{"in a provider's VLAN", wrapped(0x88a8)},
		{"in an old one", wrapped(0x9100)},
		{"in two", wrapped(0x88a8, 0x8100)},
		{"in MPLS", wrapped(0x8847)},
		{"in PPPoE", wrapped(0x8864)},
		{"in a VLAN in PPPoE's place", wrapped(0x8100, 0x8864)},
		{"in SNAP", wrapped(300)},
		{"in a large SNAP", wrapped(0x8870)},
		{"in LLC", wrapped(301)},
		{"a router's advertisement", router.bytes()},
		{"behind options for each hop", advertised(router, extension{0, make([]byte, 7)})},
		{"behind options for its receiver", advertised(router, extension{60, make([]byte, 7)})},
		{"behind the head of a piece", advertised(router, extension{44, make([]byte, 7)})},
		{"the first of pieces", advertised(router, extension{60, make([]byte, 7)}, extension{44, []byte{0, 0, 1, 0, 0, 0, 7}})},
		{"a redirection", neighbour(a, 137, linkLocal(a), a.v6, a.mac).bytes()},
		{"a server's DHCP", group(frame{from: [6]byte(a.mac), source: a.v4, protocol: bocage.ProtocolUDP, sport: 67, dport: 68, payload: 240}).bytes()},
		{"a server's DHCPv6", frame{from: [6]byte(a.mac), to: [6]byte(c.mac), source: linkLocal(a), dst: linkLocal(c), protocol: bocage.ProtocolUDP, sport: 547, dport: 546, payload: 40}.bytes()},
		{"IP in IP", tunnel(4, nil, inner)},
		{"IPv6 in IP", tunnel(41, nil, inner6)},
		{"IP in GRE", tunnel(47, []byte{0, 0, 8, 0}, inner)},
		{"frames in GRE", tunnel(47, []byte{0, 0, 0x65, 0x58}, inner)},
		{"behind an authentication header", six(51, append([]byte{17, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4}, transport...))},
		{"encrypted", six(50, append([]byte{0, 0, 0, 1, 0, 0, 0, 1}, transport...))},
		{"behind nothing", six(59, transport)},
		{"behind a mobile host's header", six(135, append([]byte{17, 0, 0, 0, 0, 0, 0, 0}, transport...))},
		{"behind a routing header with a way to go", advertised(inner6, extension{43, []byte{0, 4, 1, 0, 0, 0, 0}})},
	} {
		if got := p.judgedHere(true, a.ifindex, x.b); got != dropped {
			t.Errorf("%s: as it leaves: program returned %d", x.name, int32(got))
		}
	}
	// On a real link, where tags go beside frames.
	socket := b.arrivals(t)
	r := a.raw(t)
	for _, kinds := range [][]uint16{{0x8100}, {0x88a8}, {0x9100}, {0x88a8, 0x8100}, {0x8847}, {0x8864}, {0x8870}, {300}, {301}} {
		r.send(wrapped(kinds...))
	}
	hidden := be.AppendUint16(be.AppendUint16(nil, inner.sport), inner.dport)
	inner.sport++
	last := be.AppendUint16(be.AppendUint16(nil, inner.sport), inner.dport)
	r.send(inner.bytes())
	for buffer := make([]byte, 2048); ; {
		n, _, err := unix.Recvfrom(socket, buffer, 0)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		must(t, err)
		if bytes.Contains(buffer[:n], hidden) { // of what links say by themselves nothing is looked at
			t.Errorf("a frame of type %#x arrived", be.Uint16(buffer[12:]))
		}
		if bytes.Contains(buffer[:n], last) {
			break // what is allowed, behind all others
		}
	}
}
