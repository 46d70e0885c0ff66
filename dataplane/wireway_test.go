package dataplane

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
)

// wireBench runs the program of wires over frames by BPF_PROG_RUN. The wire's inside
// is the loopback, where packets are that are run without a context.
type wireBench struct {
	*plane
	inside, outside *workload
}

func newWireBench(t testing.TB) *wireBench {
	p := newPlane(t)
	k := &wireBench{p, p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)}
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, k.inside, k.outside)))
	k.reside(k.inside.port)
	return k
}

// reside says who is at the inside.
func (k *wireBench) reside(residents ...bocage.Port) {
	k.in(func() error {
		return k.writeWire(Wire{Name: "wire", Inside: loopback, Outside: k.outside.ifindex, Closed: true, Residents: residents})
	})
	must(k.t, k.rewire())
}

func (k *wireBench) out(protocol bocage.Protocol) frame {
	return frame{from: [6]byte(k.inside.mac), to: [6]byte(k.outside.mac), source: k.inside.v4, dst: k.outside.v4,
		protocol: protocol, sport: 1000, dport: 80, tcpFlags: syn, payload: 100}
}

// cross runs the program over bytes from one side.
func (k *wireBench) cross(b []byte, from bool) (returned uint32, err error) {
	context := skb{Ifindex: k.outside.ifindex}
	if from {
		context.Ifindex = loopback
	}
	k.in(func() error {
		returned, err = k.objects.AcrossWire.Run(&ebpf.RunOptions{Data: b, Context: context})
		return nil
	})
	return returned, err
}

func (k *wireBench) mustCross(f frame, from bool, want uint32, what string) {
	k.t.Helper()
	if got, err := k.cross(f.bytes(), from); err != nil || got != want {
		k.t.Errorf("%s: program returned %d, %v, want %d", what, int32(got), err, want)
	}
}

func (k *wireBench) established(f frame) frame {
	reply := answerTo(f)
	reply.tcpFlags = syn | ack
	k.mustCross(f, true, redirect, "the first packet")
	k.mustCross(reply, false, redirect, "its answer")
	f.tcpFlags, reply.tcpFlags = ack, ack
	k.mustCross(f, true, redirect, "the third packet")
	k.mustCross(reply, false, redirect, "the fourth packet")
	return f
}

// cost is what a frame that comes from the inside costs, repeated.
func (k *wireBench) cost(f frame) (took time.Duration) {
	k.in(func() (err error) {
		_, took, err = k.objects.AcrossWire.Benchmark(f.bytes(), 2000, nil)
		return err
	})
	return took
}

// crossed are the tags that frames cross wires with.
var crossed = [][]tag{nil, {customer(7)}, {service(7)}, {service(5), customer(7)}, {customer(5), customer(7)}}

// The short way of a wire decides as its long way does, also of packets that are
// nearly those of an established flow, from either side.
func TestRootShortWayOfWireAgreesWithTheLong(t *testing.T) {
	t.Parallel()
	r := newRandom(t)
	short, long := newWireBench(t), newWireBench(t)
	var flows []frame
	for _, f := range []frame{short.out(bocage.ProtocolTCP), short.out(bocage.ProtocolUDP)} {
		six := f
		six.source, six.dst = short.inside.v6, short.outside.v6
		for _, f := range []frame{f, six} {
			for _, f.tags = range crossed {
				long.established(f)
				flows = append(flows, short.established(f))
			}
		}
	}
	const packets = 4000
	differ, passed := 0, 0
	for range packets {
		f, from := pick(r, flows), r.IntN(2) == 0
		if !from {
			f = answerTo(f)
		}
		if f.payload = r.IntN(40); r.IntN(8) == 0 {
			from = !from // from where its sender is not
		}
		b := f.bytes()
		for range r.IntN(3) {
			b[r.IntN(min(len(b), 88))] ^= 1 << r.IntN(8)
		}
		must(t, long.rewire())
		one, err := short.cross(b, from)
		other, also := long.cross(b, from)
		if (err == nil) != (also == nil) {
			t.Fatalf("one program ran and the other did not: %v, %v", err, also)
		}
		if err == nil && one != other {
			t.Errorf("from the inside: %v, returned %d by the short way and %d by the long: % x", from, int32(one), int32(other), b)
			if differ++; differ > 10 {
				t.FailNow()
			}
		}
		if err == nil && one == redirect {
			passed++
		}
	}
	if passed < packets/10 || passed > packets*9/10 {
		t.Errorf("%d of %d packets passed: the draw proves little", passed, packets)
	}
	sameState(t, short.plane, long.plane, len(flows))
}

// What a wire's flow is bound by holds for every packet, and ends when who is at the
// inside is told otherwise.
func TestRootShortWayOfWireEnds(t *testing.T) {
	t.Parallel()
	k := newWireBench(t)
	f := k.established(k.out(bocage.ProtocolUDP))
	k.mustCross(f, true, redirect, "as it should be")
	spoofed := f
	spoofed.from[5]++
	k.mustCross(spoofed, true, dropped, "from another MAC")
	k.mustCross(f, false, dropped, "from the outside, where who sends it is not")
	stray := answerTo(f)
	stray.to[5]++
	k.mustCross(stray, false, dropped, "to another MAC")
	k.mustCross(answerTo(f), true, dropped, "the answer from the inside")
	k.mustCross(answerTo(f), false, redirect, "the answer")

	k.reside()
	k.mustCross(f, true, dropped, "from who is at the inside no more")
	k.reside(k.inside.port)
	k.mustCross(f, true, redirect, "from who is there again")
	k.reside(k.inside.port, k.outside.port)
	k.mustCross(answerTo(f), false, dropped, "from the outside, of who is at the inside too")
	k.reside(k.inside.port)
	rs := ruleset(2, []bocage.Rule{allowUDP(21, 22)}, k.inside, k.outside)
	rs.Refused = []bocage.Refusal{{Identity: 101, Decision: decideQuarantine}}
	must(t, k.Apply(rs))
	k.mustCross(f, true, dropped, "from who is in quarantine")
}

// A packet of a known flow costs a wire at most so many times what it costs to run a
// program that does nothing, whatever its tags are. The best of many runs counts, so
// that it holds on a busy machine.
func TestRootShortWayOfWireKeepsItsBudget(t *testing.T) {
	const most = 6.0
	k, empty := newWireBench(t), nothing(t)
	for _, f := range []frame{k.out(bocage.ProtocolTCP), k.out(bocage.ProtocolUDP)} {
		for _, f.tags = range crossed {
			f = k.established(f)
			floor, took := time.Hour, time.Hour
			for range 25 {
				_, ns, err := empty.Benchmark(f.bytes(), 4000, nil)
				must(t, err)
				floor, took = min(floor, ns), min(took, k.cost(f))
			}
			ratio := float64(took) / float64(floor)
			t.Logf("%s %v: %s, %.1f times what nothing costs", f.protocol, f.tags, took, ratio)
			if ratio > most {
				t.Errorf("%s %v: more than %.1f times what nothing costs", f.protocol, f.tags, most)
			}
			f.tcpFlags = syn
		}
	}
}
