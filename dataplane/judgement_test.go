package dataplane

import (
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host/hosttest"
)

// What was judged a moment ago says how the next flow to the same service is judged,
// and no longer than it counts: not in another generation, not where an end is cut off,
// not once the decision has ended, not for whom the port is no longer.
func TestRootJudgementsAreRecalledWhileTheyCount(t *testing.T) {
	t.Parallel()
	hosttest.Root(t)
	k := newPacketBench(t)
	flow := k.out(bocage.ProtocolTCP)
	generation := uint64(1)
	apply := func(rules []bocage.Rule, change func(*bocage.Ruleset)) func() {
		return func() {
			generation++
			rs := ruleset(generation, rules, k.from, k.to)
			if change != nil {
				change(rs)
			}
			must(t, k.Apply(rs))
			k.settle()
		}
	}
	allow := []bocage.Rule{allowTCP(21, 22, 80)}
	port := k.from.port
	for _, step := range []struct {
		what   string
		change func()
		want   uint32
	}{
		{"allowed", func() {}, next},
		{"refused by the next generation", apply(nil, nil), dropped},
		{"allowed again", apply(allow, nil), next},
		{"of whom is in quarantine", apply(allow, func(rs *bocage.Ruleset) {
			rs.Refused = []bocage.Refusal{{Identity: 102, Decision: decideQuarantine}}
		}), dropped},
		{"out of quarantine", apply(allow, nil), next},
		{"of a port that nobody vouches for", func() {
			k.in(func() error { return k.writePort(Attachment{Ifindex: loopback, Closed: true}) })
		}, dropped},
		{"of the port's workload", func() {
			k.in(func() error { return k.writePort(Attachment{Ifindex: loopback, Port: port}) })
		}, next},
		{"allowed for an hour", func() {
			generation++
			must(t, k.Apply(chained(generation, []bocage.Verdict{bocage.VerdictAllow, bocage.VerdictDrop}, []time.Time{time.Now().Add(time.Hour)}, k.from, k.to)))
			k.settle()
		}, next},
		{"after that", func() { k.later(2 * time.Hour) }, dropped},
	} {
		step.change()
		for range 3 { // the first is judged, the others recalled
			flow.sport++
			if got := k.judged(true, loopback, flow.bytes()); got != step.want {
				t.Errorf("a flow %s: program returned %d, want %d", step.what, int32(got), int32(step.want))
			}
		}
	}
	var rows []bpf.KernelJudgements
	must(t, k.objects.Judgements.Lookup(uint32(0), &rows))
	written := uint32(0)
	for _, processor := range rows {
		for _, row := range processor.Rows {
			written += row.Turn / 2
		}
	}
	// A step that refuses whoever is cut off keeps nothing.
	if written == 0 || written > 12 {
		t.Errorf("%d judgements were kept of 27 flows in 9 cases", written)
	}

	// A program that interrupted one that writes a row leaves it alone.
	for i := range rows {
		for j := range rows[i].Rows {
			rows[i].Rows[j].Turn = 7
		}
	}
	must(t, k.objects.Judgements.Put(uint32(0), rows))
	apply(allow, nil)()
	for range 3 {
		flow.sport++
		if got := k.judged(true, loopback, flow.bytes()); got != next {
			t.Errorf("a flow beside a row that is being written: program returned %d", int32(got))
		}
	}
	must(t, k.objects.Judgements.Lookup(uint32(0), &rows))
	for _, processor := range rows {
		for _, row := range processor.Rows {
			if row.Turn != 7 {
				t.Fatalf("a row that another program was writing was written over: turn %d", row.Turn)
			}
		}
	}
}
