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
	"bocage.dev/bocage/host/hosttest"
)

// listener runs the kernel's readings alone, under XDP.
type listener struct{ classify, read *ebpf.Program }

func newListener(t testing.TB) listener {
	hosttest.Root(t)
	var objects bpf.FrameObjects
	must(t, bpf.LoadFrameObjects(&objects, nil))
	t.Cleanup(func() { objects.Close() })
	return listener{objects.ReadSpeech, objects.ReadAs}
}

// encode writes struct speech.
func encode(h speech.Heard) []byte {
	b := make([]byte, speech.Window+speech.AskedWindow)
	copy(b, h.Bytes)
	copy(b[speech.Window:], h.Asked)
	answers := 0
	if h.Answers {
		answers = 1
	}
	for _, n := range []int{len(h.Bytes), len(h.Asked), h.Datagram, answers} {
		b = binary.NativeEndian.AppendUint32(b, uint32(n))
	}
	return b
}

func (l listener) names(t testing.TB, h speech.Heard) bocage.AppProtocol {
	t.Helper()
	result, err := l.classify.Run(&ebpf.RunOptions{Data: encode(h)})
	must(t, err)
	return bocage.AppProtocol(result)
}

func (l listener) reads(t testing.TB, p bocage.AppProtocol, h speech.Heard) speech.Answer {
	t.Helper()
	result, err := l.read.Run(&ebpf.RunOptions{Data: binary.NativeEndian.AppendUint32(encode(h), uint32(p))})
	must(t, err)
	return speech.Answer(result)
}

// agree compares the kernel's readings with the model's. They look at fields in
// another order, so of a part one may still want more where the other knows already
// that it is not; never of a whole, and never where one says yes.
func (l listener) agree(t testing.TB, h speech.Heard) {
	t.Helper()
	whole := len(h.Bytes) == speech.Window || h.Datagram > 0
	if got, want := l.names(t, h), speech.Classify(h); got != want && (whole || !isNone(got) || !isNone(want)) {
		t.Fatalf("classified as %q, want %q: %+v: % x", got, want, h, h.Bytes)
	}
}

func isNone(p bocage.AppProtocol) bool { return p == bocage.SpeechUnknown || p == bocage.SpeechOther }

func (l listener) agreeOn(t testing.TB, p bocage.AppProtocol, h speech.Heard) {
	t.Helper()
	whole := len(h.Bytes) == speech.Window || h.Datagram > 0
	got, want := l.reads(t, p, h), speech.Read(p, h)
	if got != want && (whole || got == speech.Yes || want == speech.Yes) {
		t.Fatalf("%s says %s, want %s: %+v: % x", p, got, want, h, h.Bytes)
	}
}

func captures(t testing.TB) []speechtest.Capture {
	t.Helper()
	all, err := speechtest.Captures()
	must(t, err)
	return all
}

// Every prefix of every capture and opening, read as every protocol.
func TestRootSpeechOfCaptures(t *testing.T) {
	t.Parallel()
	l := newListener(t)
	openings, err := speechtest.Openings()
	must(t, err)
	for _, c := range append(captures(t), openings...) {
		for _, h := range c.Sides() {
			whole := h.Bytes
			for n := range len(whole) + 1 {
				if h.Bytes = whole[:n]; c.Datagram {
					h.Datagram = max(n, 1)
				}
				l.agree(t, h)
				for p := bocage.SpeechTLS; p <= bocage.SpeechRedis; p++ {
					l.agreeOn(t, p, h)
				}
			}
		}
	}
}

// Every beginning with each of its first bytes made each other byte: a bound that
// the two readings place differently shows.
func TestRootSpeechOfNeighbours(t *testing.T) {
	t.Parallel()
	const first = 20
	l := newListener(t)
	for _, c := range captures(t) {
		for _, h := range c.Sides() {
			whole := h.Bytes
			for at := range min(first, len(whole)) {
				h.Bytes = slices.Clone(whole)
				for changed := range 256 {
					h.Bytes[at] = byte(changed)
					l.agreeOn(t, c.Protocol, h)
				}
			}
		}
	}
}

func TestRootSpeechMutated(t *testing.T) {
	t.Parallel()
	l := newListener(t)
	random, all := newRandom(t), captures(t)
	heard := map[bocage.AppProtocol]int{}
	const beginnings = 100_000
	for range beginnings {
		h := speechtest.Mutate(random, all)
		l.agree(t, h)
		l.agreeOn(t, drawProtocol(random), h)
		heard[speech.Classify(h)]++
	}
	for _, c := range all {
		if heard[c.Protocol] < beginnings/2000 {
			t.Errorf("%s was read %d times of %d: the mutations test nothing", c.Protocol, heard[c.Protocol], beginnings)
		}
	}
	if heard[bocage.SpeechOther] < beginnings/10 {
		t.Errorf("%d of %d were no protocol", heard[bocage.SpeechOther], beginnings)
	}
}

func drawProtocol(random *rand.Rand) bocage.AppProtocol {
	return 1 + bocage.AppProtocol(random.IntN(int(bocage.SpeechRedis)))
}

// FuzzRootSpeech looks for bytes on which the kernel's readings and the model differ.
func FuzzRootSpeech(f *testing.F) {
	for _, c := range captures(f) {
		for _, h := range c.Sides() {
			f.Add(h.Bytes, h.Asked, uint16(h.Datagram), h.Answers)
		}
	}
	l := newListener(f)
	f.Fuzz(func(t *testing.T, b, asked []byte, datagram uint16, answers bool) {
		h := speech.Heard{Bytes: b[:min(len(b), speech.Window)], Asked: asked[:min(len(asked), speech.AskedWindow)], Answers: answers}
		if datagram > 0 {
			h.Datagram = max(int(datagram), len(h.Bytes))
		}
		l.agree(t, h)
		for p := bocage.SpeechTLS; p <= bocage.SpeechRedis; p++ {
			l.agreeOn(t, p, h)
		}
	})
}
