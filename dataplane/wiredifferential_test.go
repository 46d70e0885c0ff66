package dataplane

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host/hosttest"
)

// crossing is a frame that was seen to leave a wire: its number, and its tags.
type crossing struct {
	number uint16
	tags   string
}

// far collects the numbered frames that reach a workload, until the last one, which
// goes by ARP, of each round.
type far struct {
	mu     sync.Mutex
	seen   []crossing
	rounds int
}

func (w *workload) far(t testing.TB) *far {
	t.Helper()
	socket := w.arrivals(t)
	x, done, stopped := &far{}, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for b, control := make([]byte, 4096), make([]byte, 128); ; {
			select {
			case <-done:
				return
			default:
			}
			n, oobn, _, _, err := unix.Recvmsg(socket, b, control, 0)
			if err != nil || n < 42 {
				continue
			}
			tags, f := tagsOf(b[:n], control[:oobn])
			x.mu.Lock()
			switch {
			case len(f) < 42:
			case binary.BigEndian.Uint16(f[12:]) == 0x0800:
				// Not what the hosts answer.
				if l4 := 14 + int(f[14]&15)*4; f[23] != 1 && binary.BigEndian.Uint16(f[l4:]) >= 40_000 {
					x.seen = append(x.seen, crossing{binary.BigEndian.Uint16(f[18:]), fmt.Sprint(tags)})
				}
			case binary.BigEndian.Uint16(f[12:]) == 0x0806:
				x.rounds += int(number(f[41] == 250)) // the address asked for
			}
			x.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		close(done)
		<-stopped
		unix.Close(socket)
	})
	return x
}

func (x *far) round() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.rounds
}

// take returns what was seen since it was asked last.
func (x *far) take() []crossing {
	x.mu.Lock()
	defer x.mu.Unlock()
	seen := x.seen
	x.seen = nil
	slices.SortFunc(seen, compareCrossings)
	return seen
}

func compareCrossings(a, b crossing) int {
	return cmp.Or(int(a.number)-int(b.number), strings.Compare(a.tags, b.tags))
}

// drawTags are such as are common, and such as nobody knows.
func drawTags(r *rand.Rand) []tag {
	id := func() uint16 {
		return pick(r, []uint16{1, 7, uint16(1 + r.IntN(4094)), 0x6000 | uint16(r.IntN(4096)), 0, 0xfff})
	}
	tags := make([]tag, pick(r, []int{0, 0, 1, 1, 2, 2, 2, 3, 4}))
	for i := range tags {
		tags[i] = tag{r.IntN(3) == 0, id()}
	}
	return tags
}

// Of random frames in random VLANs and none, both ways, those leave a wire that the
// model allows, as they came, and no others.
func TestRootWireDifferential(t *testing.T) {
	onWires(t, func(t *testing.T, drivers bool) { crossesAsTheModelSays(t, newRandom(t), drivers) })
}

func crossesAsTheModelSays(t *testing.T, r *rand.Rand, drivers bool) {
	p := newPlane(t)
	p.drivers = drivers
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	u := &universe{random: r}
	must(t, p.Apply(ruleset(1, nil, a, b)))
	p.wire(a, b, true, a)
	ends := []struct {
		from, to *workload
		raw      *raw
		far      *far
	}{{a, b, a.raw(t), b.far(t)}, {b, a, b.raw(t), a.far(t)}}
	allowed, total := 0, 0
	for generation := uint64(2); generation < 42; generation++ {
		u.groups = []bocage.Group{21, 22}
		drawn := &bocage.Ruleset{Decisions: []bocage.Decision{{ID: decideAllow}, {ID: decideAllow}, {ID: decideDefault}, {ID: decideGuardrail}}}
		u.rules(drawn)
		rs := ruleset(generation, drawn.Rules, a, b)
		rs.Groups[0].Enforce, rs.Groups[1].Enforce = r.IntN(4) > 0, r.IntN(4) > 0
		must(t, p.Apply(rs))
		p.forget()
		var want [2][]crossing
		for n := range 400 {
			way := r.IntN(2)
			e := ends[way]
			f := bocage.Flow{Source: e.from.v4, Destination: e.to.v4, Protocol: pick(r, []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolSCTP}),
				SourcePort: uint16(40_000 + n), DestinationPort: pick(r, u.edges)}
			if f.DestinationPort >= 40_000 || f.DestinationPort == 67 || f.DestinationPort == 68 {
				f.DestinationPort = uint16(1000 + r.IntN(30_000))
			}
			x := frame{tags: drawTags(r), from: [6]byte(e.from.mac), to: [6]byte(e.to.mac), source: f.Source, dst: f.Destination, protocol: f.Protocol,
				sport: f.SourcePort, dport: f.DestinationPort, tcpFlags: syn, payload: r.IntN(40), id: uint16(n + 1)}
			if r.IntN(5) == 0 {
				x.options = []byte{148, 4, 0, 0}
			}
			e.raw.send(x.bytes())
			total++
			_, _, known := untag(x.bytes())
			if verdict, _ := rs.Decide(f); known && verdict.Allowed() {
				allowed++
				want[way] = append(want[way], crossing{uint16(n + 1), fmt.Sprint(x.tags)})
			}
		}
		for way, e := range ends {
			before := e.far.round()
			question := append([]byte{255, 255, 255, 255, 255, 255}, e.from.mac...)
			question = append(append(question, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1), e.from.mac...)
			question = append(append(append(question, e.from.v4.AsSlice()...), make([]byte, 6)...), 10, 77, 0, 250)
			e.raw.send(question)
			hosttest.Await(t, "the last frame of a round", func() bool { return e.far.round() > before })
			if got := e.far.take(); !slices.Equal(got, want[way]) {
				t.Fatalf("generation %d from %s: too many came: %v, and too few: %v", generation, e.from.v4, without(got, want[way]), without(want[way], got))
			}
		}
	}
	if allowed < total/20 || allowed > total*9/10 {
		t.Errorf("%d of %d frames allowed: it shows nothing", allowed, total)
	}
	t.Logf("%d frames, %d allowed", total, allowed)
}
