package dataplane

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host/hosttest"
)

// parser runs the kernel's parser alone, under XDP, which takes frames of any
// length from 14 bytes.
type parser struct{ program *ebpf.Program }

func newParser(t testing.TB) parser {
	hosttest.Root(t)
	var objects bpf.FrameObjects
	must(t, bpf.LoadFrameObjects(&objects, nil))
	t.Cleanup(func() { objects.Close() })
	return parser{objects.ParseFrame}
}

func (p parser) accepts(t testing.TB, b []byte) bool {
	t.Helper()
	verdict, err := p.program.Run(&ebpf.RunOptions{Data: b})
	must(t, err)
	const drop, pass = 1, 2
	if verdict != drop && verdict != pass {
		t.Fatalf("parser returned %d for % x", verdict, b)
	}
	return verdict == pass
}

// specimens are well-formed frames of every kind.
func specimens() []frame {
	four, six := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	base := frame{from: [6]byte{2, 0, 0, 0, 0, 1}, to: [6]byte{2, 0, 0, 0, 0, 2}, sport: 1234, dport: 80, payload: 64, tcpFlags: syn}
	var all []frame
	for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolSCTP, bocage.ProtocolICMP, 47} {
		f := base
		f.source, f.dst, f.protocol, f.icmpType = four, netip.MustParseAddr("10.0.0.2"), protocol, 8
		all = append(all, f)
		f.fragment, f.payload = 0x2000, 80-len(f.transport())%8
		for len(f.transport())%8 != 0 {
			f.payload++
		}
		all = append(all, f)
		f.fragment = 0x0010
		all = append(all, f)
		f.fragment, f.options = 0, []byte{1, 148, 4, 0, 0, 7, 3, 4, 1, 1, 0, 0}
		all = append(all, f)
	}
	chains := [][]extension{nil,
		{{0, make([]byte, 7)}},
		{{0, make([]byte, 7)}, {60, append([]byte{1}, make([]byte, 14)...)}},
		{{43, []byte{0, 4, 0, 0, 0, 0, 0}}, {60, make([]byte, 7)}},
		{{44, []byte{0, 0, 0, 0, 0, 0, 9}}},    // atomic
		{{44, []byte{0, 0, 1, 0, 0, 0, 9}}},    // first
		{{44, []byte{0, 0, 0x10, 0, 0, 0, 9}}}, // later
	}
	for _, chain := range chains {
		for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolICMPv6, 50} {
			f := base
			f.source, f.dst, f.protocol, f.icmpType, f.extensions = six, netip.MustParseAddr("fd00::2"), protocol, 128, chain
			for len(f.transport())%8 != 0 {
				f.payload++
			}
			all = append(all, f)
		}
	}
	solicitation := base
	solicitation.source, solicitation.dst, solicitation.protocol, solicitation.hops = six, netip.MustParseAddr("ff02::1:ff00:2"), bocage.ProtocolICMPv6, 255
	solicitation.body = append(append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr("fd00::2").AsSlice()...), 1, 1, 2, 0, 0, 0, 0, 1)
	for _, tags := range [][]tag{{customer(7)}, {service(5), customer(7)}, {customer(5), customer(0xe007)}, {customer(1), customer(2), customer(3)}} {
		f := base
		f.source, f.dst, f.protocol, f.tags = four, netip.MustParseAddr("10.0.0.2"), bocage.ProtocolUDP, tags
		all = append(all, f)
	}
	return append(all, solicitation)
}

func TestRootParserAcceptsSpecimens(t *testing.T) {
	t.Parallel()
	p := newParser(t)
	for i, f := range specimens() {
		b := f.bytes()
		if !wellFormed(b) {
			t.Errorf("specimen %d is not well-formed to the model: %+v", i, f)
		}
		if !p.accepts(t, b) {
			t.Errorf("specimen %d is refused: %+v", i, f)
		}
	}
}

// Every length of every specimen, so each bound is met.
func TestRootParserTruncated(t *testing.T) {
	t.Parallel()
	p := newParser(t)
	for i, f := range specimens() {
		whole := f.bytes()
		for n := 14; n < len(whole); n++ {
			if got, want := p.accepts(t, whole[:n]), wellFormed(whole[:n]); got != want {
				t.Errorf("specimen %d cut to %d of %d bytes: accepted %v, want %v", i, n, len(whole), got, want)
			}
		}
	}
}

func TestRootParserMutated(t *testing.T) {
	t.Parallel()
	p := newParser(t)
	random := newRandom(t)
	all := specimens()
	accepted := 0
	const frames = 60_000
	for range frames {
		b := mutate(random, all[random.IntN(len(all))].bytes())
		got, want := p.accepts(t, b), wellFormed(b)
		if got != want {
			t.Fatalf("accepted %v, want %v: % x", got, want, b)
		}
		if got {
			accepted++
		}
	}
	if accepted < frames/20 || accepted > frames*19/20 {
		t.Errorf("%d of %d accepted: the mutations test nothing", accepted, frames)
	}
}

// mutate changes a few bytes, mostly of headers, to ordinary, extreme or random
// values, and sometimes the length.
func mutate(random *rand.Rand, b []byte) []byte {
	for range 1 + random.IntN(3) {
		at := 12 + random.IntN(min(len(b)-12, 80))
		switch random.IntN(4) {
		case 0:
			b[at] ^= 1 << random.IntN(8)
		case 1:
			b[at] = []byte{0, 1, 0x7f, 0x80, 0xff}[random.IntN(5)]
		case 2:
			b[at]++
		default:
			b[at] = byte(random.Uint32())
		}
	}
	if random.IntN(4) == 0 {
		b = b[:14+random.IntN(len(b)-13)]
	}
	return b
}

// FuzzRootParser looks for frames on which the kernel's parser and the model differ.
func FuzzRootParser(f *testing.F) {
	for _, s := range specimens() {
		f.Add(s.bytes())
	}
	hosttest.Root(f)
	var objects bpf.FrameObjects
	if err := bpf.LoadFrameObjects(&objects, nil); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { objects.Close() })
	p := parser{objects.ParseFrame}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 14 || len(b) > 3000 {
			return
		}
		if got, want := p.accepts(t, b), wellFormed(b); got != want {
			t.Errorf("accepted %v, want %v: % x", got, want, b)
		}
	})
}

// FuzzRecord reads records as they come out of the ring buffer.
func FuzzRecord(f *testing.F) {
	f.Add(make([]byte, bocage.FlowEventSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e bocage.FlowEvent
		if err := e.UnmarshalBinary(b); (err == nil) != (len(b) == bocage.FlowEventSize) {
			t.Fatalf("%d bytes: %v", len(b), err)
		} else if err != nil {
			return
		}
		back, err := e.AppendBinary(nil)
		must(t, err)
		var again bocage.FlowEvent
		if err := again.UnmarshalBinary(back); err != nil || again != e {
			t.Fatalf("%+v became %+v: %v", e, again, errors.Join(err))
		}
	})
}
