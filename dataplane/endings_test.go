package dataplane

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host/hosttest"
)

// decideEnding is the first of a chain in the tests' rulesets.
const decideEnding = bocage.DecisionID(20)

// chained makes a ruleset whose rule from 21 to 22, TCP port 80, goes through
// verdicts, each until its moment, the last for good.
func chained(generation uint64, verdicts []bocage.Verdict, moments []time.Time, ws ...*workload) *bocage.Ruleset {
	rule := allowTCP(21, 22, 80)
	rule.Decision = decideEnding
	rs := ruleset(generation, []bocage.Rule{rule}, ws...)
	for i, v := range verdicts {
		d := bocage.Decision{ID: decideEnding + bocage.DecisionID(i), Verdict: v, Code: bocage.ReasonRule}
		if !v.Allowed() {
			d.Code = bocage.ReasonThreat
		}
		if i < len(moments) {
			d.Until, d.Then = moments[i], d.ID+1
		}
		rs.Decisions = append(rs.Decisions, d)
	}
	return rs
}

// An exception ends in the kernel: with the agent dead its established flow is cut,
// what comes next in its chain decides, and a response that ends lets flows go on.
func TestRootDecisionsEndByThemselves(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	must(t, p.Close())
	begun := time.Now()
	moments := []time.Time{begun.Add(1 * time.Hour), begun.Add(2 * time.Hour), begun.Add(3 * time.Hour)}
	rs := chained(1, []bocage.Verdict{bocage.VerdictAllow, bocage.VerdictDrop, bocage.VerdictAllow, bocage.VerdictReject}, moments, a, b)
	kill := p.startChild(order{Attachments: []Attachment{{Ifindex: a.ifindex, Port: a.port}, {Ifindex: b.ifindex, Port: b.port}}, Ruleset: rs})
	echo(t, b, b.v4, 80)
	live := mustDial(t, a, b.v4, 80)
	must(t, ping(live, long))
	kill() // kill -9: nobody is there any more

	p.later(30 * time.Minute)
	must(t, ping(live, long))
	p.later(30 * time.Minute)
	if err := ping(live, short); !isTimeout(err) {
		t.Errorf("after the first end: %v, want a timeout", err)
	}
	if _, err := dial(t, a, b.v4, 80, short); !isTimeout(err) {
		t.Errorf("a new connection after the first end: %v, want a timeout", err)
	}
	p.later(time.Hour)
	if err := ping(live, long); err != nil {
		t.Errorf("after the second end: %v", err)
	}
	p.later(time.Hour)
	var err error
	for range 3 { // the first may still read what was answered before
		if err = ping(live, long); err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after the third end: %v, want a reset", err)
	}
	// A process that takes over changes nothing, nor does one that applies the same again,
	// with the moments that have come.
	p.open()
	p.run()
	for i := range rs.Decisions {
		if d := &rs.Decisions[i]; !d.Until.IsZero() {
			d.Until = d.Until.Add(-3 * time.Hour)
		}
	}
	must(t, p.Apply(rs))
	if _, err := dial(t, a, b.v4, 80, long); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after all ends: %v, want refused", err)
	}
	e := p.await("the last of the chain", func(e bocage.FlowEvent) bool { return e.Decision == decideEnding+3 })
	if e.Verdict != bocage.VerdictReject || e.Reason != bocage.ReasonThreat || e.Generation != 1 {
		t.Errorf("event %+v", e)
	}
}

// A flow that merely goes on under another decision is told of under that one.
func TestRootFlowOutlivesItsDecision(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	echo(t, b, b.v4, 80)
	must(t, p.Apply(chained(1, []bocage.Verdict{bocage.VerdictAllow, bocage.VerdictAllow}, []time.Time{time.Now().Add(time.Hour)}, a, b)))
	live := mustDial(t, a, b.v4, 80)
	must(t, ping(live, long))
	start := p.await("a start", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventStart })
	if start.Decision != decideEnding {
		t.Errorf("start %+v", start)
	}
	p.later(time.Hour)
	must(t, ping(live, long))
	live.Close()
	p.finish()
	over := p.await("an end", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventEnd })
	if over.Decision != decideEnding+1 {
		t.Errorf("end %+v, want the successor's decision", over)
	}
}

// Ends far away are neither now nor never, for refused identities as for decisions.
func TestRootFarMoments(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 5000, dport: 80, tcpFlags: syn}
	generation := uint64(0)
	for _, test := range []struct {
		until time.Time
		over  bool
	}{
		{time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), false}, {time.Now().AddDate(200, 0, 0), false}, {time.Now().Add(time.Hour), false},
		{time.Now().Add(-time.Hour), true}, {time.Unix(0, 0), true}, {time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC), true},
	} {
		for _, refused := range []bool{false, true} {
			generation++
			rs := ruleset(generation, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)
			if refused {
				rs.Refused = []bocage.Refusal{{Identity: 101, Decision: decideQuarantine, Until: test.until}}
			} else {
				rs = chained(generation, []bocage.Verdict{bocage.VerdictDrop, bocage.VerdictAllow}, []time.Time{test.until}, a, b)
			}
			must(t, p.Apply(rs))
			want := uint32(dropped)
			if test.over {
				want = next
			}
			f.sport++
			if got := p.judgedHere(true, a.ifindex, f.bytes()); got != want {
				t.Errorf("until %s (an identity: %v): program returned %d, want %d", test.until, refused, int32(got), int32(want))
			}
		}
	}
}

// Chains that do not end, or lead nowhere, are refused as a whole.
func TestChainsThatDoNotEnd(t *testing.T) {
	soon := time.Now().Add(time.Hour)
	verdicts, moments := []bocage.Verdict{bocage.VerdictAllow}, []time.Time(nil)
	for range bocage.MostSuccessors {
		verdicts, moments = append(verdicts, bocage.VerdictDrop), append(moments, soon)
	}
	if _, err := newContent(nameKey{}).read(chained(1, verdicts, moments), lists{}); err != nil {
		t.Errorf("as long as may be: %v", err)
	}
	tooLong := chained(1, append(verdicts, bocage.VerdictAllow), append(moments, soon))
	loop := chained(1, verdicts[:2], moments[:2])
	loop.Decisions[len(loop.Decisions)-1].Then = decideEnding
	nowhere := chained(1, verdicts[:1], moments[:1])
	for say, rs := range map[string]*bocage.Ruleset{"more than 8": tooLong, "in turn": loop, "21, which is not among": nowhere} {
		if _, err := newContent(nameKey{}).read(rs, lists{}); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("error %v, want one that says %q", err, say)
		}
	}
}

// There is a way back, by one verb only, and it takes along who is refused.
func TestRootRevert(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	echo(t, b, b.v4, 80)
	echo(t, b, b.v4, 81)
	before := ruleset(5, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)
	must(t, p.Apply(before))
	kept := mustDial(t, a, b.v4, 80)
	must(t, ping(kept, long))
	after := ruleset(6, []bocage.Rule{allowTCP(21, 22, 81)}, a, b)
	must(t, p.Apply(after))
	cut := mustDial(t, a, b.v4, 81)
	must(t, ping(cut, long))
	if err := p.Apply(before); err == nil || p.Generation() != 6 {
		t.Fatalf("Apply went back: %v", err)
	}
	must(t, p.Revert(before))
	if g := p.Generation(); g != 5 {
		t.Fatalf("generation %d, want 5", g)
	}
	must(t, ping(kept, long))
	if err := ping(cut, short); !isTimeout(err) {
		t.Errorf("what only the newer allowed: %v, want a timeout", err)
	}
	// Killed right after, and again: it is still there, and going on is possible.
	must(t, p.Close())
	kill := p.startChild(order{})
	kill()
	p.open()
	if g := p.Generation(); g != 5 {
		t.Fatalf("generation %d after a kill, want 5", g)
	}
	quarantined := ruleset(6, nil, a, b)
	quarantined.Refused = []bocage.Refusal{{Identity: 101, Decision: decideQuarantine}}
	must(t, p.Revert(before.WithRefusals(quarantined)))
	if err := ping(kept, short); !isTimeout(err) {
		t.Errorf("a quarantined workload after going back: %v, want a timeout", err)
	}
	must(t, p.Apply(ruleset(7, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	must(t, ping(mustDial(t, a, b.v4, 80), long))
}

// What a candidate would do is told by events and counted: of flows that begin, that
// live already, and that are refused; nothing else changes.
func TestRootShadow(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	for _, port := range []uint16{80, 81, 82} {
		echo(t, b, b.v4, port)
	}
	if err := p.Shadow(ruleset(9, nil, a, b)); err == nil || !strings.Contains(err.Error(), "apply one first") {
		t.Errorf("a candidate beside nothing: %v", err)
	}
	inForce := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowTCP(21, 22, 81)}, a, b)
	must(t, p.Apply(inForce))
	live := mustDial(t, a, b.v4, 80)
	must(t, ping(live, long))
	e := p.await("a start without a candidate", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventStart })
	if e.Differs {
		t.Errorf("differs from no candidate: %+v", e)
	}
	// In other groups, to be sure that nothing is taken from the ruleset in force.
	groups := [2]bocage.Group{a.port.Group, b.port.Group}
	a.port.Group, b.port.Group = 121, 122
	candidate := ruleset(2, []bocage.Rule{allowTCP(121, 122, 81), allowTCP(121, 122, 82)}, a, b)
	a.port.Group, b.port.Group = groups[0], groups[1]
	must(t, p.Shadow(candidate))
	must(t, ping(live, long))
	e = p.await("word of a live flow", func(e bocage.FlowEvent) bool { return e.Differs })
	if e.Kind != bocage.EventUpdate || e.DestinationPort != 80 || e.Verdict != bocage.VerdictAllow || e.Generation != 1 || e.Decision != decideAllow {
		t.Errorf("event %+v", e)
	}
	must(t, ping(mustDial(t, a, b.v4, 81), long))
	if e := p.await("a start", func(e bocage.FlowEvent) bool { return e.DestinationPort == 81 && e.Kind == bocage.EventStart }); e.Differs {
		t.Errorf("both allow: %+v", e)
	}
	if _, err := dial(t, a, b.v4, 82, short); !isTimeout(err) {
		t.Errorf("what only the candidate allows: %v, want a timeout", err)
	}
	if e := p.await("a refusal", func(e bocage.FlowEvent) bool { return e.DestinationPort == 82 }); !e.Differs || e.Verdict != bocage.VerdictDrop {
		t.Errorf("only the candidate allows: %+v", e)
	}
	// It outlives whoever set it.
	c, err := p.Candidate()
	must(t, err)
	if c.Generation != 2 || c.Differs < 2 || c.Evaluated <= c.Differs {
		t.Errorf("candidate %+v", c)
	}
	must(t, p.Close())
	kill := p.startChild(order{})
	must(t, ping(mustDial(t, a, b.v4, 80), long))
	kill()
	p.open()
	after, err := p.Candidate()
	must(t, err)
	if after.Generation != 2 || after.Evaluated <= c.Evaluated || after.Differs <= c.Differs {
		t.Errorf("candidate %+v after a kill, %+v before", after, c)
	}
	p.run()
	// Another counts from zero; the end of it ends the mark on live flows.
	must(t, p.Shadow(ruleset(3, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	must(t, ping(live, long))
	if c, err := p.Candidate(); err != nil || c.Generation != 3 || c.Differs != 0 || c.Evaluated == 0 {
		t.Errorf("candidate %+v (%v)", c, err)
	}
	must(t, p.Shadow(candidate))
	must(t, ping(live, long))
	must(t, p.Shadow(nil))
	must(t, p.Shadow(nil))
	if c, err := p.Candidate(); err != nil || c != (Candidate{}) {
		t.Errorf("candidate %+v (%v) after its end", c, err)
	}
	live.Close()
	p.finish()
	if e := p.await("the end", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventEnd && e.DestinationPort == 80 && e.Closed }); e.Differs {
		t.Errorf("differs from no candidate: %+v", e)
	}
	must(t, p.Apply(inForce)) // which finds what an earlier process left
	if rows := p.differing(inForce); rows != 0 {
		t.Errorf("%d rows are not those of the ruleset in force alone", rows)
	}
}

// differing counts the rows of which some version is not as the ruleset says.
func (p *plane) differing(rs *bocage.Ruleset) int {
	p.t.Helper()
	_, rows := p.isWhole(rs)
	if n := rows.len(); n > 0 && n < 20 {
		p.t.Logf("rows of generation %d as they should be, and are not: %+v", rs.Generation, *rows)
	}
	return rows.len()
}

// A candidate has its own refused identities and ends, and is never in the way: what
// is to be enforced takes its room.
func TestRootShadowMakesWay(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.RuleEntries = 16 })
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	many := func(generation uint64, first, n uint16) *bocage.Ruleset {
		var rules []bocage.Rule
		for port := range n {
			rules = append(rules, allowTCP(21, 22, first+2*port))
		}
		return ruleset(generation, rules, a, b)
	}
	must(t, p.Apply(many(1, 80, 10)))
	candidate := many(2, 1000, 16) // shares nothing with the others
	candidate.Refused = []bocage.Refusal{{Identity: 101, Decision: decideQuarantine}}
	must(t, p.Shadow(candidate))
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 5000, dport: 80, tcpFlags: syn}
	if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
		t.Errorf("program returned %d: a candidate's quarantine has an effect", int32(got))
	}
	if c, err := p.Candidate(); err != nil || c.Differs != 1 {
		t.Errorf("candidate %+v (%v)", c, err)
	}
	must(t, p.Apply(many(3, 80, 12)))
	if c, err := p.Candidate(); err != nil || c.Generation != 2 {
		t.Errorf("candidate %+v (%v): there was room for it", c, err)
	}
	must(t, p.Apply(many(4, 2000, 16)))
	if c, err := p.Candidate(); err != nil || c.Generation != 0 || p.Generation() != 4 {
		t.Errorf("candidate %+v beside %d (%v)", c, p.Generation(), err)
	}
	if err := p.Shadow(many(5, 80, 17)); err == nil || !strings.Contains(err.Error(), "--table-entries rules=") {
		t.Errorf("a candidate that is too large: %v", err)
	}
	must(t, p.Apply(many(6, 3000, 16)))
	must(t, p.Shadow(many(7, 80, 16)))
	must(t, p.Close())
	p.open() // who does not know whose rows are whose
	must(t, p.Apply(many(8, 80, 15)))
	must(t, p.Apply(many(9, 4000, 16)))
	last := many(10, 80, 15)
	must(t, p.Apply(last))
	for dport, want := range map[uint16]uint32{80: next, 108: next, 110: dropped, 4000: dropped} {
		f.sport, f.dport = f.sport+1, dport
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != want {
			t.Errorf("port %d: program returned %d, want %d", dport, int32(got), int32(want))
		}
	}
	must(t, p.Shadow(nil))
	if rows := p.differing(last); rows != 0 {
		t.Errorf("%d rows are not those of the ruleset in force alone", rows)
	}
}

// No packet is compared with halves of two candidates: each allows the flow by other
// groups, so any mixture would differ.
func TestRootShadowSwapIsAtomic(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b)))
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 1, dport: 53, payload: 8}
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			f.sport++
			if returned := p.judgedHere(true, a.ifindex, f.bytes()); returned != next {
				done <- fmt.Errorf("a flow was refused")
				return
			}
		}
	}()
	for n := uint64(2); n < 40; n++ {
		a.port.Group, b.port.Group = bocage.Group(100+2*n), bocage.Group(101+2*n)
		must(t, p.Shadow(ruleset(n, []bocage.Rule{allowUDP(a.port.Group, b.port.Group)}, a, b)))
		hosttest.Await(t, "a comparison", func() bool {
			c, err := p.Candidate()
			must(t, err)
			if c.Differs != 0 {
				t.Fatalf("candidate %d: %+v", n, c)
			}
			return c.Evaluated > 0
		})
	}
	close(stop)
	must(t, <-done)
}
