package dataplane

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/dataplane/speech"
	"bocage.dev/bocage/dataplane/speech/speechtest"
)

// tap runs the programs of one point on packets that no stack would send.
type tap struct {
	t    testing.TB
	p    *plane
	a, b *workload
	port uint16 // the next client's
}

func newTap(t testing.TB, enforce bool) *tap {
	p := newPlane(t)
	x := &tap{t: t, p: p, a: p.workload(1, 101, 21), b: p.workload(2, 102, 22), port: 2000}
	p.attach(x.a, x.b)
	must(t, p.Apply(verifying(1, enforce, x.a, x.b)))
	// BPF_PROG_RUN without a context says that the packet is on the loopback.
	p.in(func() error { return p.writePort(Attachment{Ifindex: 1, Port: x.a.port}) })
	return x
}

// stream is a connection from a to b, as the point before a sees it.
type stream struct {
	*tap
	client, server uint16
	bases          [2]uint32 // sequence numbers of the first bytes
}

// open makes a connection to where a protocol must be spoken; its handshake passes.
func (x *tap) open(protocol bocage.AppProtocol) *stream {
	x.t.Helper()
	x.port++
	s := &stream{x, x.port, portOf(protocol), [2]uint32{rand.Uint32(), rand.Uint32()}}
	s.passes(false, segment{at: -1, flags: syn})
	s.passes(true, segment{at: -1, flags: syn | ack})
	s.passes(false, segment{flags: ack})
	return s
}

// segment is a packet of a stream, by places in what its side and the other say.
type segment struct {
	at       int // of the first byte; the handshake's is -1
	known    int // bytes of the other side that it acknowledges
	flags    byte
	bytes    []byte
	fragment uint16
}

func (s *stream) frame(server bool, g segment) []byte {
	be := binary.BigEndian
	own := 0
	f := frame{from: [6]byte(s.a.mac), to: gatewayMAC(s.a), source: s.a.v4, dst: s.b.v4, protocol: bocage.ProtocolTCP, fragment: g.fragment}
	sport, dport := s.client, s.server
	if server {
		own = 1
		f.from, f.to, f.source, f.dst = f.to, f.from, f.dst, f.source
		sport, dport = dport, sport
	}
	var b []byte
	b = be.AppendUint16(b, sport)
	b = be.AppendUint16(b, dport)
	b = be.AppendUint32(b, s.bases[own]+uint32(g.at))
	b = be.AppendUint32(b, s.bases[1-own]+uint32(g.known))
	b = append(b, 0x50, g.flags, 0xff, 0xff, 0, 0, 0, 0)
	f.body = append(b, g.bytes...)
	return f.bytes()
}

// send reports whether a segment passes.
func (s *stream) send(server bool, g segment) bool {
	s.t.Helper()
	program := s.p.objects.FromWorkload
	if server {
		program = s.p.objects.ToWorkload
	}
	var verdict uint32
	s.p.in(func() (err error) {
		verdict, err = program.Run(&ebpf.RunOptions{Data: s.frame(server, g)})
		return err
	})
	const next, drop = ^uint32(0), 2
	if verdict != next && verdict != drop {
		s.t.Fatalf("the program returned %d", verdict)
	}
	return verdict == next
}

func (s *stream) passes(server bool, g segment) {
	s.t.Helper()
	if !s.send(server, g) {
		s.t.Fatalf("refused: server %v, %+v", server, g)
	}
}

func (s *stream) refused(server bool, g segment) {
	s.t.Helper()
	if s.send(server, g) {
		s.t.Fatalf("passed: server %v, %+v", server, g)
	}
}

// isWatched reports whether the point still listens to the stream.
func (s *stream) isWatched() bool {
	s.t.Helper()
	const watched = 0x8000
	return s.row().Word&watched != 0
}

// row reads the stream's row in the table of flows.
func (s *stream) row() (found bpf.KernelFlow) {
	s.t.Helper()
	n := 0
	for _, row := range s.p.flows.live {
		if slices.Contains(row.Key.Port[:], s.client) && slices.Contains(row.Key.Port[:], s.server) {
			found, n = *row, n+1
		}
	}
	if n != 1 {
		s.t.Fatalf("%d rows of the stream", n)
	}
	return found
}

// heardAs is the model of one direction of a stream: it gathers segments and says
// which of them pass where a protocol must be spoken.
type heardAs struct {
	protocol bocage.AppProtocol
	answers  bool
	asked    []byte
	have     [speech.Window]bool
	bytes    [speech.Window]byte
	cut      bool
}

func (h *heardAs) passes(g segment) bool {
	for i, c := range g.bytes {
		at := g.at + i
		if at < 0 || at >= speech.Window {
			continue
		}
		if h.have[at] && h.bytes[at] != c {
			h.cut = true
		}
		h.have[at], h.bytes[at] = true, c
	}
	if !h.cut && len(g.bytes) > 0 {
		n := h.prefix()
		h.cut = speech.Read(h.protocol, speech.Heard{Bytes: h.bytes[:n], Answers: h.answers, Asked: h.asked}) == speech.No
	}
	return !h.cut
}

func (h *heardAs) prefix() int {
	n := slices.Index(h.have[:], false)
	if n < 0 {
		return speech.Window
	}
	return n
}

// Whatever way a beginning is cut, mixed and sent again, the programs and the model
// let the same segments pass. What a receiver could put together of them is less
// than a window, unless it is the protocol.
func TestRootVerifyAnyOrder(t *testing.T) {
	t.Parallel()
	x := newTap(t, true)
	random := newRandom(t)
	var streams []speechtest.Capture
	for _, c := range captures(t) {
		if !c.Datagram && len(c.Answers) > 1 {
			streams = append(streams, c)
		}
	}
	well, cut := 0, 0
	for range 400 {
		c := streams[random.IntN(len(streams))]
		p := c.Protocol
		if random.IntN(2) == 0 {
			p = drawProtocol(random)
		}
		s := x.open(p)
		delivered := &heardAs{protocol: p}
		model := &heardAs{protocol: p}
		for _, g := range shuffled(random, c.Asks) {
			want := model.passes(g)
			got := s.send(false, g)
			// A group of bytes is read whole, so the programs may want one more than the model.
			if got != want && (want || delivered.prefix() >= speech.Window) {
				t.Fatalf("%s where %s must be spoken: segment %+v passes %v, want %v", c.Protocol, p, g, got, want)
			}
			if got {
				delivered.passes(g)
			} else {
				cut++
				break
			}
		}
		if model.cut {
			if n := delivered.prefix(); n >= speech.Window {
				t.Fatalf("%s where %s must be spoken: %d bytes came through", c.Protocol, p, n)
			}
			s.refused(false, segment{at: 2000, flags: ack, bytes: []byte("more")})
			s.refused(true, segment{at: 0, known: 1, flags: ack, bytes: []byte("more")})
			continue
		}
		// All of it was the protocol: the server's answer, in pieces as well.
		if speech.Read(p, speech.Heard{Bytes: c.Answers[:min(len(c.Answers), speech.Window)], Answers: true, Asked: c.Asks[:min(len(c.Asks), 16)]}) != speech.Yes {
			continue
		}
		well++
		for _, g := range shuffled(random, c.Answers) {
			g.known = len(c.Asks)
			s.passes(true, g)
		}
		s.passes(false, segment{at: len(c.Asks), known: len(c.Answers), flags: ack})
		if s.isWatched() {
			t.Fatalf("%s is known, and still listened to", p)
		}
		s.passes(false, segment{at: len(c.Asks), known: len(c.Answers), flags: ack, bytes: []byte("anything")})
	}
	if well < 50 || cut < 50 {
		t.Errorf("%d passed and %d were cut: the test tests little", well, cut)
	}
}

// shuffled cuts bytes into segments, some of them twice, in any order.
func shuffled(random *rand.Rand, all []byte) (out []segment) {
	for at := 0; at < len(all); {
		n := min(1+random.IntN(1+random.IntN(40)), len(all)-at)
		out = append(out, segment{at: at, flags: ack, bytes: all[at : at+n]})
		if back := min(at, random.IntN(8)); random.IntN(4) == 0 {
			out = append(out, segment{at: at - back, flags: ack, bytes: all[at-back : at+n]})
		}
		at += n
	}
	if random.IntN(2) == 0 {
		random.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	}
	return out
}

// What a receiver may not have taken does not count, and cannot be replaced.
func TestRootVerifyEvasion(t *testing.T) {
	t.Parallel()
	x := newTap(t, true)
	hello, other := []byte("SSH-2.0-client\r\n"), []byte("GET /secret HTTP")
	t.Run("other bytes before they are acknowledged", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		s.passes(false, segment{flags: ack, bytes: hello}) // say, with a wrong checksum
		s.refused(false, segment{flags: ack, bytes: other})
		s.refused(false, segment{flags: ack, bytes: hello})
	})
	t.Run("other bytes in a part", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		s.passes(false, segment{flags: ack, bytes: hello[:3]})
		s.refused(false, segment{at: 2, flags: ack, bytes: []byte("X")})
	})
	t.Run("an acknowledgement that covers too little", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		s.passes(false, segment{flags: ack, bytes: hello})
		s.passes(true, segment{known: 4, flags: ack})
		s.refused(false, segment{at: 4, flags: ack, bytes: []byte("1.5-")})
	})
	t.Run("a byte before the first, as keepalives have it", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		s.passes(false, segment{at: -1, flags: ack, bytes: []byte{0}})
		s.passes(false, segment{flags: ack, bytes: hello})
	})
	t.Run("all but the first byte, for ever", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		passed := 0
		for i := range 1000 {
			if !s.send(false, segment{at: 1 + i, flags: ack, bytes: []byte("x")}) {
				break
			}
			passed++
		}
		if passed > 256 {
			t.Errorf("%d packets passed without a beginning", passed)
		}
		s.refused(false, segment{flags: ack, bytes: hello})
	})
	t.Run("much behind a gap", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		passed := 0
		for i := range 1000 {
			if !s.send(false, segment{at: 100 + 1400*i, flags: ack, bytes: make([]byte, 1400)}) {
				break
			}
			passed += 1400
		}
		if passed > 256<<10 {
			t.Errorf("%d bytes passed without a beginning", passed)
		}
	})
	t.Run("in the first packet of all", func(t *testing.T) {
		x.port++
		s := &stream{x, x.port, portOf(bocage.SpeechSSH), [2]uint32{7, 9}}
		s.refused(false, segment{at: -1, flags: syn, bytes: other})
		x.port++
		s = &stream{x, x.port, portOf(bocage.SpeechSSH), [2]uint32{7, 9}}
		s.refused(false, segment{at: -1, flags: syn, bytes: hello})
		s.passes(false, segment{at: -1, flags: syn}) // as who opens so does when nobody answers
		s.passes(true, segment{at: -1, flags: syn | ack})
		s.passes(false, segment{flags: ack, bytes: hello})
		s.passes(true, segment{known: len(hello), flags: ack, bytes: hello})
		s.passes(false, segment{at: len(hello), known: len(hello), flags: ack, bytes: []byte("more")})
	})
	t.Run("urgent bytes, which receivers leave out", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		s.refused(false, segment{flags: ack | urg, bytes: hello})
		s = x.open(bocage.SpeechSSH)
		s.passes(false, segment{flags: ack, bytes: hello})
		s.passes(true, segment{known: len(hello), flags: ack, bytes: hello})
		s.passes(false, segment{at: len(hello), known: len(hello), flags: ack})
		s.passes(false, segment{at: len(hello), known: len(hello), flags: ack | urg, bytes: []byte{3}}) // once it is known, as shells interrupt
	})
	t.Run("two handshakes, of which one never arrives", func(t *testing.T) {
		begin := func(offset uint32) *stream {
			x.port++
			s := &stream{x, x.port, portOf(bocage.SpeechSSH), [2]uint32{7, 9}}
			s.passes(false, segment{at: -1, flags: syn}) // with few hops, say
			s.bases[0] += offset
			return s
		}
		for _, offset := range []uint32{16, ^uint32(15), 1 << 20} {
			s := begin(offset) // what the server answers to counts
			s.passes(false, segment{at: -1, flags: syn})
			s.passes(true, segment{at: -1, flags: syn | ack})
			s.refused(false, segment{flags: ack, bytes: append(slices.Clone(other), hello...)})

			s = begin(offset)
			s.passes(true, segment{at: -1, flags: syn | ack}) // to the other, which was seen nowhere
			s.passes(false, segment{flags: ack, bytes: hello})

			s = begin(0) // after the answer
			s.passes(true, segment{at: -1, flags: syn | ack})
			s.bases[0] += offset
			s.refused(false, segment{at: -1, flags: syn})

			s = begin(offset) // with data
			s.refused(false, segment{at: -1, flags: syn, bytes: hello})

			s = begin(0) // of the server
			s.passes(true, segment{at: -1, flags: syn | ack})
			s.bases[1] += offset
			s.refused(true, segment{at: -1, flags: syn | ack})
		}
	})
	t.Run("in pieces", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		s.refused(false, segment{flags: ack, bytes: append(slices.Clone(hello), make([]byte, 32)...)[:28], fragment: 0x2000})
	})
	t.Run("sequence numbers that wrap", func(t *testing.T) {
		x.port++
		s := &stream{x, x.port, portOf(bocage.SpeechSSH), [2]uint32{^uint32(0) - 2, ^uint32(0)}}
		s.passes(false, segment{at: -1, flags: syn})
		s.passes(true, segment{at: -1, flags: syn | ack})
		s.passes(false, segment{at: 8, flags: ack, bytes: hello[8:]})
		s.passes(false, segment{at: 0, flags: ack, bytes: hello[:8]})
		s.passes(true, segment{known: len(hello), flags: ack, bytes: hello})
		s.passes(false, segment{at: len(hello), known: len(hello), flags: ack})
		if s.isWatched() {
			t.Error("still listened to")
		}
	})
	t.Run("behind a packet that belongs to nothing", func(t *testing.T) {
		x.port++
		s := &stream{x, x.port, portOf(bocage.SpeechSSH), [2]uint32{7, 9}}
		s.passes(false, segment{flags: ack}) // with a wrong checksum, say
		s.passes(false, segment{at: -1, flags: syn})
		s.passes(true, segment{at: -1, flags: syn | ack})
		s.refused(false, segment{flags: ack, bytes: other})
	})
	// As a server does when nothing more comes of a connection that it has ended.
	again := func() *stream {
		s := x.open(bocage.SpeechSSH)
		s.passes(false, segment{flags: ack, bytes: hello})
		s.passes(true, segment{known: len(hello), flags: ack, bytes: hello})
		s.passes(true, segment{at: len(hello), known: len(hello), flags: fin | ack})
		s.passes(false, segment{at: len(hello), known: len(hello) + 1, flags: ack})
		if s.isWatched() {
			t.Fatal("known, and still listened to")
		}
		return s
	}
	t.Run("a second connection on a row", func(t *testing.T) {
		s := again()
		s.bases = [2]uint32{rand.Uint32(), rand.Uint32()}
		s.passes(false, segment{at: -1, flags: syn})
		s.passes(true, segment{at: -1, flags: syn | ack})
		s.refused(false, segment{flags: ack, bytes: other})

		s = again() // it may say what it must
		s.bases = [2]uint32{rand.Uint32(), rand.Uint32()}
		s.passes(false, segment{at: -1, flags: syn})
		s.passes(true, segment{at: -1, flags: syn | ack})
		s.passes(false, segment{flags: ack})
		s.passes(false, segment{flags: ack, bytes: hello})
		s.passes(true, segment{known: len(hello), flags: ack, bytes: hello})
		s.passes(false, segment{at: len(hello), known: len(hello), flags: ack})
		if s.isWatched() {
			t.Error("known, and still listened to")
		}
		s.passes(false, segment{at: len(hello), flags: ack, bytes: other})

		s = again() // with data
		s.bases = [2]uint32{rand.Uint32(), rand.Uint32()}
		s.refused(false, segment{at: -1, flags: syn, bytes: other})
	})
	t.Run("a handshake that never arrives, on the ports of one that did", func(t *testing.T) {
		begin := func() *stream {
			s := x.open(bocage.SpeechSSH)
			s.passes(false, segment{flags: rst}) // with a wrong checksum, as the next ones
			s.bases[0] -= 1000
			return s
		}
		s := begin()
		s.passes(false, segment{at: -1, flags: syn})
		s.send(false, segment{flags: ack, bytes: hello})
		s.bases[0] += 1000
		s.send(true, segment{flags: ack}) // of what it knows
		s.refused(false, segment{flags: ack, bytes: other})

		s = begin() // with data
		s.refused(false, segment{at: -1, flags: syn, bytes: hello})
		s.bases[0] += 1000
		s.passes(true, segment{flags: ack})
		s.refused(false, segment{flags: ack, bytes: other})
	})
	t.Run("half a handshake cuts nothing", func(t *testing.T) {
		s := again()
		s.passes(true, segment{at: -1, flags: syn | ack}) // late, or anybody's
		s.passes(false, segment{at: 5000, flags: ack, bytes: other})
		s.bases[0] += 1 << 20
		s.passes(false, segment{at: -1, flags: syn})
		s.bases[0] -= 1 << 20
		s.passes(false, segment{at: 5000, flags: ack, bytes: other})
		s.passes(true, segment{at: 5000, flags: ack, bytes: other})
	})
	t.Run("the ports of a flow that is over", func(t *testing.T) {
		s := x.open(bocage.SpeechSSH)
		s.passes(false, segment{flags: ack, bytes: hello[:4]})
		s.passes(false, segment{at: 4, flags: rst})
		s.bases = [2]uint32{rand.Uint32(), rand.Uint32()}
		s.passes(false, segment{at: -1, flags: syn})
		s.passes(true, segment{at: -1, flags: syn | ack})
		s.passes(false, segment{flags: ack, bytes: hello})
	})
}

// A flood of handshakes makes the table of what was heard forget. What had begun is
// refused then; what had not loses nothing.
func TestRootVerifyForgotten(t *testing.T) {
	t.Parallel()
	x := newTap(t, true)
	begun, silent, known := x.open(bocage.SpeechSSH), x.open(bocage.SpeechSSH), x.open(bocage.SpeechSSH)
	hello := []byte("SSH-2.0-client\r\n")
	begun.passes(false, segment{flags: ack, bytes: hello[:4]})
	known.passes(false, segment{flags: ack, bytes: hello})
	known.passes(true, segment{known: len(hello), flags: ack, bytes: hello})
	known.passes(false, segment{at: len(hello), known: len(hello), flags: ack})
	forget := func() { // every row, as if others had taken it
		m := x.p.objects.Hearings
		empty := make([]byte, m.ValueSize())
		for key := range m.MaxEntries() {
			must(t, m.Put(key, empty))
		}
	}
	forget()
	begun.refused(false, segment{at: 4, flags: ack, bytes: hello[4:]})
	silent.passes(false, segment{flags: ack, bytes: hello})
	known.passes(false, segment{at: len(hello), known: len(hello), flags: ack, bytes: []byte("more")})
	// Where the first byte is was forgotten too: what comes before the first that was
	// seen may be what counts.
	late := x.open(bocage.SpeechSSH)
	forget()
	late.passes(false, segment{at: 40, flags: ack, bytes: hello})
	late.refused(false, segment{at: 0, flags: ack, bytes: hello})
}
