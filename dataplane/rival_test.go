package dataplane

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// newRivals is a crowd in which a and b may begin flows to each other.
func newRivals(t *testing.T, entries int, rules ...bocage.Rule) *crowd {
	k := newCrowd(t, entries)
	must(t, k.Apply(ruleset(2, append([]bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22), allowUDP(22, 21)}, rules...), k.a, k.b, k.c)))
	return k
}

// A processor that is held up while it opens a flow, as one of a virtual machine is,
// costs others' packets of that flow nothing where they need no row. What is to be heard
// or told does, and is refused by itself, not for want of room.
func TestRootHeldUpWhileOpening(t *testing.T) {
	t.Parallel()
	k := newRivals(t, 1024)
	k.in(func() error {
		for sport := range uint16(200) { // in either bucket, below and above the row that they would take
			if got := k.send(k.a, k.b, bocage.ProtocolUDP, 1000+sport, 53, 0); got != next {
				t.Fatalf("the first packet: program returned %d", int32(got))
			}
		}
		if held := k.hold(flowLive, flowWriting); held != 200 {
			t.Fatalf("%d rows are held up", held)
		}
		for sport := range uint16(200) {
			for _, got := range []uint32{k.send(k.a, k.b, bocage.ProtocolUDP, 1000+sport, 53, 0), k.send(k.b, k.a, bocage.ProtocolUDP, 53, 1000+sport, 0)} {
				if got != next {
					t.Fatalf("a packet beside who opens its flow: program returned %d", int32(got))
				}
			}
			if got := k.send(k.a, k.b, bocage.ProtocolTCP, 1000+sport, 81, syn); got != dropped {
				t.Fatalf("a refused packet: program returned %d", int32(got))
			}
		}
		return nil
	})
	c := k.counters()
	if c.FlowsOpened != 200 || c.Refused[bocage.ReasonTableFull].Packets != 0 || c.Refused[bocage.ReasonInvalidState].Packets != 0 {
		t.Errorf("opened %d, refused for want of room %d", c.FlowsOpened, c.Refused[bocage.ReasonTableFull].Packets)
	}
	var held uint64
	var holding bpf.KernelHolding
	for _, w := range []*workload{k.a, k.b} {
		_ = k.objects.Holdings.Lookup(w.ifindex, &holding)
		held += holding.Rows
	}
	if held != 200 {
		t.Errorf("%d rows are said to be held", held)
	}
	k.hold(flowWriting, flowLive)
}

// Of what the DNS is asked where names matter, the answer is read by the question's flow:
// a question that has none yet is asked again.
func TestRootHeldUpQuestionIsAskedAgain(t *testing.T) {
	t.Parallel()
	k := newRivals(t, 1024)
	rs := ruleset(3, []bocage.Rule{allowUDP(21, 22), allowTCP(21, groupExact, 443)}, k.a, k.b, k.c)
	rs.Names = []bocage.Name{{Name: "api.example.com", Group: groupExact}}
	must(t, k.Apply(rs))
	k.in(func() error {
		for _, port := range []uint16{53, 54} {
			if got := k.send(k.a, k.b, bocage.ProtocolUDP, 1000, port, 0); got != next {
				t.Fatalf("the first packet to port %d: program returned %d", port, int32(got))
			}
		}
		if held := k.hold(flowLive, flowWriting); held != 2 {
			t.Fatalf("%d rows are held up", held)
		}
		for port, want := range map[uint16]uint32{53: dropped, 54: next} {
			if got := k.send(k.a, k.b, bocage.ProtocolUDP, 1000, port, 0); got != want {
				t.Errorf("beside who opens the flow to port %d: program returned %d", port, int32(got))
			}
		}
		return nil
	})
	k.hold(flowWriting, flowLive)
}

// hold gives rows in one state another, as if a processor were held up there, or went on,
// and says how many there were.
func (k *crowd) hold(from, to uint64) int {
	return k.rewrite(func(row *bpf.KernelFlow) bool {
		if row.Word&(flowLive|flowWriting) != from {
			return false
		}
		row.Word ^= from ^ to
		return true
	})
}

// rewrite changes rows where they lie, and says how many were.
func (k *crowd) rewrite(change func(*bpf.KernelFlow) bool) (changed int) {
	k.t.Helper()
	for index := range k.objects.Flows.MaxEntries() {
		var bucket bpf.KernelBucket
		must(k.t, k.objects.Flows.Lookup(index, &bucket))
		did := 0
		for way := range bucket.Rows {
			if change(&bucket.Rows[way]) {
				did++
			}
		}
		if did > 0 {
			must(k.t, k.objects.Flows.Put(index, bucket))
		}
		changed += did
	}
	return changed
}

// Of two ends that send to each other at once one has begun, to both packets: the other
// one's is its answer. (A processor may be held up between, so that the other's packet
// passes beside the row; that is seldom.)
func TestRootBothEndsBeginAtOnce(t *testing.T) {
	t.Parallel()
	k := newRivals(t, 1<<14)
	const flows = 4000
	var at [2]atomic.Int64 // how many each side has sent
	until := time.Now().Add(30 * time.Second)
	var group errgroup.Group
	for side := range 2 {
		group.Go(func() error {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			return host.In(k.namespace, func() error {
				for i := range int64(flows) {
					for at[1-side].Load() < i {
						if time.Now().After(until) {
							return nil
						}
					}
					from, to, sport, dport := k.a, k.b, 1000+uint16(i), uint16(53)
					if side == 1 {
						from, to, sport, dport = to, from, dport, sport
					}
					if got := k.send(from, to, bocage.ProtocolUDP, sport, dport, 0); got != next {
						t.Errorf("flow %d, side %d: program returned %d", i, side, int32(got))
					}
					at[side].Store(i + 1)
				}
				return nil
			})
		})
	}
	must(t, group.Wait())
	rows, unanswered := 0, 0
	k.eachRow(func(_ uint32, row *bpf.KernelFlow) bool {
		const replied = 0x4
		if int64(max(row.Key.Port[0], row.Key.Port[1]))-1000 >= min(at[0].Load(), at[1].Load()) {
			return false // begun by one
		}
		rows++
		if row.Word&replied == 0 {
			unanswered++
		}
		return false
	})
	t.Logf("%d flows, %d without an answer", rows, unanswered)
	if rows < 2 || unanswered > 5+rows/50 {
		t.Errorf("of %d flows %d were begun by both ends", rows, unanswered)
	}
}
