package dataplane

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// tagged puts a frame into a VLAN; into none if it is 0.
func tagged(frame []byte, vlan uint16) []byte {
	if vlan == 0 {
		return frame
	}
	return append(append(append([]byte{}, frame[:12]...), 0x81, 0, byte(vlan>>8), byte(vlan)), frame[12:]...)
}

// listen waits for a UDP frame on a workload's link and tells its VLAN; -1 if none
// came in time.
func (w *workload) listen(t testing.TB) func(sport, dport uint16, wanted bool) int {
	t.Helper()
	seen := w.listenTags(t)
	return func(sport, dport uint16, wanted bool) int {
		tags, ok := seen(bocage.ProtocolUDP, sport, dport, wanted)
		switch {
		case !ok:
			return -1
		case len(tags) == 0:
			return 0
		}
		return int(tags[0].control & 0xfff)
	}
}

// listenTags waits for a frame on a workload's link and tells its tags; false if none
// came in time.
func (w *workload) listenTags(t testing.TB) func(protocol bocage.Protocol, sport, dport uint16, wanted bool) ([]tag, bool) {
	t.Helper()
	var socket int
	must(t, host.In(w.namespace, func() (err error) {
		socket, err = packetSocket("eth0")
		return err
	}))
	t.Cleanup(func() { unix.Close(socket) })
	return func(protocol bocage.Protocol, sport, dport uint16, wanted bool) ([]tag, bool) {
		wait := short
		if wanted {
			wait = long
		}
		buffer, control := make([]byte, 4096), make([]byte, 128)
		for deadline := time.Now().Add(wait); time.Now().Before(deadline); {
			n, oobn, _, _, err := unix.Recvmsg(socket, buffer, control, 0)
			if err != nil {
				continue
			}
			tags, f := tagsOf(buffer[:n], control[:oobn])
			if len(f) >= 42 && f[23] == byte(protocol) && portsOf(f) == [2]uint16{sport, dport} {
				return tags, true
			}
		}
		return nil, false
	}
}

// linkOf is a lane as the programs write it.
func linkOf(s lane) uint64 {
	switch {
	case s.outer == 0:
		return 0xfff
	case s.inner == 0 && s.service:
		return uint64(s.outer) | 0xfff000
	case s.inner == 0:
		return uint64(s.outer)
	case s.service:
		return uint64(s.outer) | uint64(s.inner)<<12
	}
	return uint64(s.outer) | uint64(s.inner)<<12 | 1<<24
}

// sameTags compares the kernel's reading of a frame's tags with the model's.
func sameTags(t testing.TB, program *ebpf.Program, b []byte) {
	t.Helper()
	out := make([]byte, len(b)+256)
	returned, err := program.Run(&ebpf.RunOptions{Data: b, DataOut: out})
	must(t, err)
	word := binary.NativeEndian.Uint64(out)
	s, rest, known := untag(b)
	const length, strange = 25, 1 << 31
	if returned != 0 || int(word>>length&0xf) != len(b)-len(rest) || word&strange != 0 == known {
		t.Fatalf("returned %d, %#x, of % x; the model knows them: %v, %d bytes", returned, word, b, known, len(b)-len(rest))
	}
	if known && word&0x1ffffff != linkOf(s) {
		t.Fatalf("link %#x, the model's %#x, of % x", word&0x1ffffff, linkOf(s), b)
	}
}

func loadTagReader(t testing.TB) *ebpf.Program {
	hosttest.Root(t)
	var objects bpf.FrameObjects
	must(t, bpf.LoadFrameObjects(&objects, nil))
	t.Cleanup(func() { objects.Close() })
	return objects.ReadFrameTags
}

func TestRootTagsAreReadAsByTheModel(t *testing.T) {
	t.Parallel()
	program, r := loadTagReader(t), newRandom(t)
	for range 20_000 {
		sameTags(t, program, randomlyTagged(r))
	}
}

// randomlyTagged is a frame, maybe cut short.
func randomlyTagged(r *rand.Rand) []byte {
	b := make([]byte, 12)
	for _, t := range drawTags(r) {
		b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, t.kind()), t.control)
	}
	b = append(binary.BigEndian.AppendUint16(b, 0x0800), make([]byte, r.IntN(30))...)
	return b[:max(14, len(b)-r.IntN(40))]
}

func FuzzRootTags(f *testing.F) {
	program, r := loadTagReader(f), newRandom(f)
	for range 20 {
		f.Add(randomlyTagged(r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 14 && len(b) < 3000 {
			sameTags(t, program, b)
		}
	})
}

// Two lanes are never the same link.
func TestSegmentsAreLinksOfTheirOwn(t *testing.T) {
	ids := []uint16{0, 1, 2, 0x7ff, 0x800, 4093, 4094}
	seen := map[uint64]lane{}
	for _, outer := range ids {
		for _, inner := range ids {
			for _, service := range []bool{false, true} {
				if outer == 0 && (inner != 0 || service) {
					continue
				}
				s := lane{outer, inner, service}
				if other, is := seen[linkOf(s)]; is {
					t.Errorf("%+v and %+v are both link %#x", s, other, linkOf(s))
				}
				seen[linkOf(s)] = s
			}
		}
	}
}

// Frames in VLANs are judged as what they carry, keep their tags, and are flows of
// their own in each VLAN and each VLAN within another. (Frames by hand: not every
// kernel has VLAN interfaces.)
func TestRootWireCarriesVLANs(t *testing.T) { onWires(t, carriesVLANs) }

func carriesVLANs(t *testing.T, drivers bool) {
	p := newPlane(t)
	p.drivers = drivers
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	allowed := allowTCP(21, 22, 80)
	allowed.Protocol = bocage.ProtocolUDP
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowed}, a, b)))
	p.wire(a, b, true, a)
	p.run()
	stacks := map[string][]tag{
		"none": nil, "7": {customer(7)}, "s7": {service(7)}, "8": {customer(8)},
		"s5.7": {service(5), customer(7)}, "s5.8": {service(5), customer(8)}, "s6.7": {service(6), customer(7)},
		"5.7": {customer(5), customer(7)}, "7.5": {customer(7), customer(5)}, "urgent s5.7": {service(0xa005), customer(0x6007)},
		"urgent": {customer(0xe000)}, "urgent 7": {customer(0xe000), customer(7)}, "7 urgent": {customer(7), customer(0xe000)},
	}
	alike := map[string]string{"urgent": "none", "urgent s5.7": "s5.7", "urgent 7": "7", "7 urgent": "7"}
	same := func(x, y string) bool {
		for _, name := range []*string{&x, &y} {
			if other, is := alike[*name]; is {
				*name = other
			}
		}
		return x == y
	}
	query := frame{from: [6]byte(a.mac), to: [6]byte(b.mac), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 4000, dport: 80, payload: 50}
	forth, back := b.listenTags(t), a.listenTags(t)
	for asked, tags := range stacks {
		query.sport, query.tags = query.sport+1, tags
		sendFrame(t, a, query.bytes())
		if got, ok := forth(query.protocol, query.sport, 80, true); !ok || fmt.Sprint(got) != fmt.Sprint(tags) {
			t.Errorf("a query by %s came by %v (%v)", asked, got, ok)
		}
		// Answers by every VLAN but its own are no answers; the last one is, so what
		// came before it is all that comes.
		answer := answerTo(query)
		for by, tags := range stacks {
			if answer.tags = tags; !same(by, asked) {
				sendFrame(t, b, answer.bytes())
			}
		}
		answer.tags = tags
		sendFrame(t, b, answer.bytes())
		if got, ok := back(query.protocol, 80, query.sport, true); !ok || fmt.Sprint(got) != fmt.Sprint(tags) {
			t.Errorf("of answers to a query by %s the first came by %v (%v)", asked, got, ok)
		}
		for by, tags := range stacks { // once more by the short way
			if query.tags, answer.tags = tags, tags; same(by, asked) {
				sendFrame(t, b, answer.bytes())
				if got, ok := back(query.protocol, 80, query.sport, true); !ok || fmt.Sprint(got) != fmt.Sprint(tags) {
					t.Errorf("a second answer to %s by %s came by %v (%v)", asked, by, got, ok)
				}
			}
		}
	}

	// What policy refuses, and what nobody knows.
	refused := query
	refused.tags, refused.dport = stacks["s5.7"], 81
	sendFrame(t, a, refused.bytes())
	p.await("a refusal in two VLANs", func(e bocage.FlowEvent) bool {
		return e.Kind == bocage.EventRefused && e.DestinationPort == 81 && e.Source == 101 && e.Reason == bocage.ReasonDefaultDeny
	})
	for _, tags := range [][]tag{
		{customer(1), customer(2), customer(3)}, {service(1), service(2)}, {customer(1), service(2)}, {customer(4095)},
		{service(1), customer(4095)}, {customer(0), service(5)}, {service(1), customer(2), customer(3), customer(4)},
	} {
		query.sport, query.tags = query.sport+1, tags
		sendFrame(t, a, query.bytes())
		p.await("a refusal of what nobody knows", func(e bocage.FlowEvent) bool {
			return e.Kind == bocage.EventRefused && e.Reason == bocage.ReasonIdentityUnknown
		})
		query.sport, query.tags = query.sport+1, nil
		sendFrame(t, a, query.bytes())
		if _, ok := forth(query.protocol, query.sport, 80, true); !ok {
			t.Fatal("the next query did not come")
		}
		if _, ok := forth(query.protocol, query.sport-1, 80, false); ok {
			t.Errorf("%v passed", tags)
		}
	}
}

// Who is inside is known by address and MAC in every VLAN.
func TestRootWireSpoofingInVLANs(t *testing.T) { onWires(t, refusesSpoofersInVLANs) }

func refusesSpoofersInVLANs(t *testing.T, drivers bool) {
	p := newPlane(t)
	p.drivers = drivers
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22), allowUDP(22, 21)}, a, b)))
	p.wire(a, b, true, a)
	p.run()
	good := frame{from: [6]byte(a.mac), to: [6]byte(b.mac), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 4000, dport: 80, payload: 50}
	mac, stranger, outside := good, good, answerTo(good)
	mac.from[5]++
	stranger.source = stranger.source.Next().Next().Next()
	outside.source, outside.dst = a.v4, stranger.source
	for _, tags := range [][]tag{{customer(7)}, {service(7)}, {service(5), customer(7)}, {customer(5), customer(7)}} {
		for _, step := range []struct {
			what   string
			from   *workload
			frame  frame
			reason bocage.ReasonCode
		}{
			{"another's MAC", a, mac, bocage.ReasonSpoofed},
			{"nobody's address", a, stranger, bocage.ReasonIdentityUnknown},
			{"the inside's address from outside", b, outside, bocage.ReasonSpoofed},
		} {
			p.forget()
			step.frame.tags = tags
			seen := map[*workload]*workload{a: b, b: a}[step.from].listenTags(t)
			sendFrame(t, step.from, step.frame.bytes())
			p.await(step.what, func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventRefused && e.Reason == step.reason })
			if got, ok := seen(bocage.ProtocolUDP, step.frame.sport, step.frame.dport, false); ok {
				t.Errorf("%s by %v came by %v", step.what, tags, got)
			}
		}
	}
}

// A refusal is answered in the VLANs that asked, and what is to be inspected comes out
// of the engine in those that it was in.
func TestRootWireAnswersAndSteersInVLANs(t *testing.T) { onWires(t, answersAndSteersInVLANs) }

func answersAndSteersInVLANs(t *testing.T, drivers bool) {
	p := newPlane(t)
	p.drivers = drivers
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	f := newForwarder(p)
	p.in(func() error { return p.SetInspection(Inspection{Outside: f.outside, Inside: f.inside, Up: true}) })
	inspected := allowTCP(21, 22, 80)
	inspected.Decision = decideInspect
	rs := rejecting(1, []bocage.Rule{inspected}, a, b)
	for i := range rs.Peers {
		if rs.Peers[i].Identity == 102 {
			rs.Peers[i].Host = "" // beyond the wire stands no point
		}
	}
	must(t, p.Apply(rs))
	p.wire(a, b, true, a)
	x := frame{from: [6]byte(a.mac), to: [6]byte(b.mac), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 4000, dport: 81, tcpFlags: syn}
	back, forth := a.listenTags(t), b.listenTags(t)
	for _, tags := range [][]tag{nil, {customer(0x6007)}, {service(7)}, {service(0xa005), customer(0x6007)}, {customer(5), customer(7)}} {
		x.tags, x.sport, x.dport = tags, x.sport+1, 81
		sendFrame(t, a, x.bytes())
		if got, ok := back(bocage.ProtocolTCP, 81, x.sport, true); !ok || fmt.Sprint(got) != fmt.Sprint(tags) {
			t.Errorf("the answer to %v came by %v (%v)", tags, got, ok)
		}
		f.frames[0].Store(0)
		f.frames[1].Store(0)
		x.sport, x.dport = x.sport+1, 80
		sendFrame(t, a, x.bytes())
		if got, ok := forth(bocage.ProtocolTCP, x.sport, 80, true); !ok || fmt.Sprint(got) != fmt.Sprint(tags) {
			t.Errorf("inspected: %v came by %v (%v)", tags, got, ok)
		}
		if f.frames[0].Load()+f.frames[1].Load() == 0 {
			t.Errorf("the engine saw nothing of %v", tags)
		}
	}
}
