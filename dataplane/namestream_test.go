package dataplane

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// asking is a connection of the client to the DNS, packet by packet.
type asking struct {
	*site
	port           uint16
	client, server uint32 // the next sequence numbers
}

func (s *site) askByTCP(port uint16) *asking {
	s.t.Helper()
	a := &asking{s, port, 7000, 0xfffffff0} // the server's numbers turn over soon
	a.send(false, syn, a.client, nil)
	a.client++
	a.send(true, syn|ack, a.server, nil)
	a.server++
	a.send(false, ack, a.client, nil)
	return a
}

// send sends a segment from the client or, by answers, to it; it passes.
func (a *asking) send(answers bool, flags byte, sequence uint32, payload []byte) {
	a.t.Helper()
	be := binary.BigEndian
	f := frame{from: [6]byte(a.site.client.mac), to: gatewayMAC(a.site.client), source: a.site.client.v4, dst: a.site.server.v4, protocol: bocage.ProtocolTCP}
	ports, acknowledges := [2]uint16{a.port, 53}, a.server
	if answers {
		f.from, f.to, f.source, f.dst = f.to, f.from, f.dst, f.source
		ports, acknowledges = [2]uint16{53, a.port}, a.client
	}
	b := be.AppendUint16(be.AppendUint16(nil, ports[0]), ports[1])
	b = be.AppendUint32(be.AppendUint32(b, sequence), acknowledges)
	f.body = append(append(b, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0), payload...)
	if got := a.judgedHere(!answers, a.site.client.ifindex, f.bytes()); got != next {
		a.t.Fatalf("a segment, of the server: %v, is not passed: %d", answers, int32(got))
	}
}

func (a *asking) ask(payload []byte) {
	a.t.Helper()
	a.send(false, ack, a.client, payload)
	a.client += uint32(len(payload))
}

// answer sends the server's next bytes.
func (a *asking) answer(payload []byte) {
	a.t.Helper()
	a.send(true, ack, a.server, payload)
	a.server += uint32(len(payload))
}

// behindLength is a message as streams have it.
func behindLength(message []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
}

// told makes an answer with addresses.
func (s *site) told(name string, id uint16, addresses ...netip.Addr) []byte {
	s.t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, Response: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	for _, a := range addresses {
		m.Answers = append(m.Answers, addressRecord(name, 3600, a))
	}
	b, err := m.Pack()
	must(s.t, err)
	return b
}

// A text of the asker's own zone may hold what looks like an answer, and the asker has
// a segment begin there: that teaches nothing.
func TestRootNamesForgedInStream(t *testing.T) {
	t.Parallel()
	const name, id = "api.example.org.", 7
	port := uint16(41000)
	for _, forgery := range []struct {
		name   string
		wrap   func([]byte) []byte
		repeat bool // sent before with what stands in front of it
	}{
		{"bare", func(b []byte) []byte { return b }, false},
		{"behind a length", behindLength, false},
		{"bare, repeated from the middle", func(b []byte) []byte { return b }, true},
		{"behind a length, repeated from the middle", behindLength, true},
	} {
		s := newSite(t)
		port++
		a := s.askByTCP(port)
		forged := forgery.wrap(s.told(name, id, netip.AddrFrom4([4]byte{198, 18, 6, 6})))
		front := append(s.told("text.example.com.", 9), make([]byte, 40)...)
		whole := behindLength(append(append(front, forged...), make([]byte, 50)...))
		a.ask(behindLength(s.query("text.example.com.", 9)))
		a.ask(behindLength(s.query(name, id)))
		middle := 2 + len(front)
		if forgery.repeat {
			from := a.server
			a.answer(whole)
			a.send(true, ack, from+uint32(middle), whole[middle:])
		} else {
			a.answer(whole[:middle])
			a.answer(whole[middle:])
		}
		learned, err := s.Learned(s.apply())
		must(t, err)
		if len(learned) != 0 {
			t.Errorf("%s: learned %v", forgery.name, learned)
		}
	}
}

// Messages of a stream are read one behind the other, however it is cut; what nobody
// saw begin is not.
func TestRootNamesInStream(t *testing.T) {
	t.Parallel()
	const name = "api.example.org."
	s := newSite(t)
	knows := func(i int, want bool, when string) {
		t.Helper()
		learned, err := s.NamesOf(&bocage.Ruleset{Names: s.names}, 101, outside4(i))
		must(t, err)
		if (len(learned) != 0) != want {
			t.Errorf("%s: known is %v, want %v", when, learned, want)
		}
	}
	unread := func() uint64 {
		c, err := s.Counters()
		must(t, err)
		return c.NamesUnread
	}
	ask := func(a *asking, id uint16) {
		t.Helper()
		a.ask(behindLength(s.query(name, id)))
	}
	a := s.askByTCP(42000)
	ask(a, 1)
	first := behindLength(s.told(name, 1, outside4(0)))
	a.answer(first)
	knows(0, true, "one message")

	ask(a, 2)
	second := behindLength(s.told(name, 2, outside4(1)))
	a.answer(second[:2])
	knows(1, false, "its length")
	a.send(true, ack, a.server-uint32(len(first))-2, append(first, second[:2]...)) // said again
	a.answer(second[2:])
	knows(1, true, "behind its length, sent by itself")

	// The end of one with the beginning of another, after the middle came too early.
	ask(a, 3)
	both := append(behindLength(s.told("text.example.com.", 9, outside4(7), outside4(7), outside4(7))), behindLength(s.told(name, 3, outside4(2)))...)
	a.send(true, ack, a.server+40, both[40:])
	knows(2, false, "before what is in front of it")
	a.answer(both[:40])
	a.send(true, ack, a.server-10, both[30:])
	knows(2, true, "sent again with what is in front of it")
	a.server += uint32(len(both) - 40)
	if got := unread(); got != 0 {
		t.Errorf("%d counted as unread", got)
	}

	// A message whose beginning alone is there.
	ask(a, 4)
	long := behindLength(s.told(name, 4, outside4(3), outside4(4)))
	a.answer(long[:len(long)-3])
	a.answer(long[len(long)-3:])
	knows(3, true, "in the part that came first")
	knows(4, false, "in the part that came later")
	if got := unread(); got != 1 {
		t.Errorf("%d counted as unread, want one", got)
	}

	// A length that is cut through ends it, until the next stream.
	ask(a, 5)
	third := behindLength(s.told(name, 5, outside4(5)))
	a.answer(third[:1])
	a.answer(third[1:])
	a.answer(third)
	knows(5, false, "after half a length")
	if got := unread(); got < 2 {
		t.Errorf("%d counted as unread", got)
	}
	a = s.askByTCP(42001)
	ask(a, 5)
	a.answer(third)
	knows(5, true, "in another stream")

	// The client begins anew, and the server's answer to that is not seen.
	a.send(false, syn, 1, nil)
	ask(a, 6)
	a.answer(behindLength(s.told(name, 6, outside4(6))))
	knows(6, false, "after a new beginning")
}

// Numbers come round: whoever has the server send on, where nobody reads, until the place
// of the next message comes again finds that it is the place of none by then.
func TestRootNamesAfterNumbersCameRound(t *testing.T) {
	t.Parallel()
	const name = "api.example.org."
	s := newSite(t)
	a := s.askByTCP(43000)
	a.ask(behindLength(s.query(name, 1)))
	for range 3 { // a long way, by windows
		a.server += 1<<30 + 1<<28
		a.send(true, ack, a.server, make([]byte, 100))
	}
	a.server += 1 << 28 // where it began
	a.answer(behindLength(s.told(name, 1, outside4(0))))
	learned, err := s.NamesOf(&bocage.Ruleset{Names: s.names}, 101, outside4(0))
	must(t, err)
	if len(learned) != 0 {
		t.Errorf("learned %v behind 4 GiB that nobody read", learned)
	}
}

// inspectedDNS has what the client asks the server, which has no point of its own,
// inspected at the client's.
func (s *site) inspectedDNS() *bocage.Ruleset {
	rs := s.ruleset()
	for i, r := range rs.Rules {
		if r.To == 22 && r.Ports.First == 53 {
			rs.Rules[i].Decision = decideInspect
		}
	}
	for i := range rs.Peers {
		if rs.Peers[i].Identity == s.server.port.Identity {
			rs.Peers[i].Host = ""
		}
	}
	rs.Profiles = []bocage.Profile{{Number: 7, Name: "dns"}}
	must(s.t, s.Apply(rs))
	return rs
}

// An answer that is refused, since what had to inspect it is down, teaches nothing.
func TestRootNamesRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	rs := s.inspectedDNS()
	datagram := func(answers bool, payload []byte) uint32 {
		f := frame{from: [6]byte(s.client.mac), to: gatewayMAC(s.client), source: s.client.v4, dst: s.server.v4, protocol: bocage.ProtocolUDP, sport: 43000, dport: 53}
		if answers {
			f = answerTo(f)
		}
		b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, f.sport), f.dport)
		f.body = append(append(binary.BigEndian.AppendUint16(b, uint16(8+len(payload))), 0, 0), payload...)
		return s.judgedHere(!answers, s.client.ifindex, f.bytes())
	}
	const name = "api.example.org."
	for _, up := range []bool{false, true} {
		must(t, s.objects.Steering.Put(uint32(0), bpf.KernelSteering{Outside: s.world.ifindex, Inside: s.world.ifindex, Up: 1}))
		if got := datagram(false, s.query(name, 7)); got != redirect {
			t.Fatalf("the question: the program returned %d, want one that steers", int32(got))
		}
		want := uint32(redirect)
		if !up {
			must(t, s.objects.Steering.Put(uint32(0), bpf.KernelSteering{}))
			want = dropped
		}
		if got := datagram(true, s.told(name, 7, outside4(0))); got != want {
			t.Errorf("the answer, with an engine: %v: the program returned %d, want %d", up, int32(got), int32(want))
		}
		learned, err := s.Learned(rs)
		must(t, err)
		if len(learned) != 0 {
			t.Errorf("learned with an engine, which has let nothing go yet: %v: %v", up, learned)
		}
	}
}

// What the engine lets go on its way to who asked is learned, over UDP and TCP; what it
// keeps is not.
func TestRootNamesBehindTheEngine(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	f := newForwarder(s.plane)
	s.in(func() error { return s.SetInspection(Inspection{Outside: f.outside, Inside: f.inside, Up: true}) })
	rs := s.inspectedDNS()
	s.serveDNS(zone(t, func(name string, _ dnsmessage.Type) []dnsmessage.Resource {
		return []dnsmessage.Resource{addressRecord(name, 3600, outside4(0))}
	}))
	// By the client's socket, and what the engine has been shown of the server's.
	ask := func(answered bool) {
		t.Helper()
		must(t, host.In(s.client.namespace, func() error {
			c, err := net.Dial("udp", netip.AddrPortFrom(s.server.v4, 53).String())
			if err != nil {
				return err
			}
			defer c.Close()
			shown := f.frames[0].Load()
			if _, err := c.Write(s.query("api.example.org.", 7)); err != nil {
				return err
			}
			if !answered {
				hosttest.Await(t, "the engine to keep the answer", func() bool { return f.frames[0].Load() > shown })
				return nil
			}
			c.SetReadDeadline(time.Now().Add(long))
			_, err = c.Read(make([]byte, 4096))
			return err
		}))
	}
	know := func(i int, want bool, when string) {
		t.Helper()
		learned, err := s.NamesOf(rs, 101, outside4(i))
		must(t, err)
		if (len(learned) == 1) != want {
			t.Errorf("%s: %v is learned", when, learned)
		}
	}
	f.swallowAnswers.Store(true)
	ask(false)
	know(0, false, "kept by the engine")
	s.expect(outside4(0), false, "an answer that the engine kept")
	f.swallowAnswers.Store(false)
	ask(true)
	know(0, true, "let go by the engine")
	s.expect(outside4(0), true, "an answer that the engine let go")

	// In a stream, where the engine shows what it lets go in the server's order.
	l := s.listenDNS(s.told("www.example.com.", 9, outside4(1)))
	must(t, host.In(s.client.namespace, func() error {
		c, err := net.Dial("tcp", l)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write(behindLength(s.query("www.example.com.", 9))); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(long))
		_, err = io.ReadFull(c, make([]byte, 20))
		return err
	}))
	know(1, true, "in a stream")
	if c, err := s.Counters(); err != nil || c.NamesUnread != 0 {
		t.Errorf("%d answers were not read (%v)", c.NamesUnread, err)
	}
}

// listenDNS answers each question that comes by TCP alike, to another address of the
// server.
func (s *site) listenDNS(answer []byte) string {
	s.t.Helper()
	var l net.Listener
	must(s.t, host.In(s.server.namespace, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(s.server.v6, 53).String())
		return err
	}))
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetReadDeadline(time.Now().Add(long))
			if _, err := io.ReadFull(c, make([]byte, 14)); err == nil {
				c.Write(behindLength(answer))
			}
			io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	return l.Addr().String()
}
