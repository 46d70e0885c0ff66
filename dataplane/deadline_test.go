package dataplane

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
)

// A generation that nobody confirms goes back by the kernel's clock, with the agent
// dead: what only it allowed is cut, what only the one before allows goes on, and
// who it cut off stays so.
func TestRootKernelGoesBack(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
	must(t, p.Close())
	for _, port := range []uint16{80, 81, 82} {
		echo(t, b, b.v4, port)
	}
	deadline := time.Now().Add(time.Hour)
	common := []bocage.Rule{allowTCP(21, 22, 80), allowTCP(23, 22, 80)}
	one := ruleset(1, append(slices.Clone(common), allowTCP(21, 22, 81)), a, b, c)
	two := ruleset(2, append(slices.Clone(common), allowTCP(21, 22, 82)), a, b, c)
	two.ConfirmBy, two.Refused = deadline, []bocage.Refusal{{Identity: 103, Decision: decideQuarantine}}
	kill := p.startChild(order{Attachments: []Attachment{{Ifindex: a.ifindex, Port: a.port}, {Ifindex: b.ifindex, Port: b.port}, {Ifindex: c.ifindex, Port: c.port}},
		Ruleset: one, Then: []*bocage.Ruleset{two}})
	always, later := mustDial(t, a, b.v4, 80), mustDial(t, a, b.v4, 82)
	must(t, ping(later, long))
	kill()
	for _, refused := range []struct {
		from *workload
		port uint16
	}{{a, 81}, {c, 80}} {
		if _, err := dial(t, refused.from, b.v4, refused.port, short); !isTimeout(err) {
			t.Errorf("before the deadline, %s to port %d: %v, want a timeout", refused.from.v4, refused.port, err)
		}
	}
	must(t, ping(always, long))

	p.later(time.Hour)
	if err := ping(later, short); !isTimeout(err) {
		t.Errorf("after the deadline, a flow that only the generation that was left allows: %v, want a timeout", err)
	}
	must(t, ping(mustDial(t, a, b.v4, 81), long))
	must(t, ping(always, long))
	if _, err := dial(t, c, b.v4, 80, short); !isTimeout(err) {
		t.Errorf("after the deadline, who was cut off: %v, want a timeout", err)
	}

	p.open()
	if g, left := p.Generation(), p.Left(); g != 1 || left != 2 {
		t.Errorf("generation %d in force, left %d, want 1 and 2", g, left)
	}
	p.run()
	if _, err := dial(t, c, b.v4, 80, short); !isTimeout(err) {
		t.Errorf("who was cut off: %v, want a timeout", err)
	}
	e := p.await("the refusal of who was cut off", func(e bocage.FlowEvent) bool { return e.Source == 103 && e.Generation == 1 })
	if e.Reason != bocage.ReasonQuarantine || e.Decision != decideQuarantine {
		t.Errorf("event %+v", e)
	}
	// A word that comes late changes nothing.
	late := two.Copy()
	late.ConfirmBy = time.Time{}
	if err := p.Apply(late); err == nil || !strings.Contains(err.Error(), "nobody confirmed it in time, and generation 1 is in force again") {
		t.Errorf("a late confirmation: %v", err)
	}
	if err := p.Apply(two); err == nil {
		t.Error("it was applied once more")
	}
	// The agent goes back as well, which changes nothing, and on.
	must(t, p.Revert(one.WithRefusals(two)))
	if g, left := p.Generation(), p.Left(); g != 1 || left != 0 {
		t.Errorf("generation %d in force, left %d, want 1 and none", g, left)
	}
	must(t, ping(always, long))
	if _, err := dial(t, c, b.v4, 80, short); !isTimeout(err) {
		t.Errorf("who was cut off, after the agent went back: %v, want a timeout", err)
	}
	must(t, p.Apply(ruleset(3, common, a, b, c)))
	must(t, ping(mustDial(t, c, b.v4, 80), long))
}

// What goes back and what stays, whatever comes between, and a candidate beside.
func TestRootConfirmations(t *testing.T) {
	t.Parallel()
	const soon, never = time.Hour, 24 * time.Hour
	type step struct {
		generation uint64
		confirm    time.Duration // 0: none is needed
	}
	for name, test := range map[string]struct {
		steps []step
		want  uint64
	}{
		"nothing before":                  {[]step{{1, soon}}, 1},
		"nobody confirms":                 {[]step{{1, 0}, {2, soon}}, 1},
		"confirmed":                       {[]step{{1, 0}, {2, soon}, {2, 0}}, 2},
		"given more time":                 {[]step{{1, 0}, {2, soon}, {2, never}}, 2},
		"replaced":                        {[]step{{1, 0}, {2, soon}, {3, 0}}, 3},
		"replaced by one that waits, too": {[]step{{1, 0}, {2, soon}, {3, soon}}, 1},
		"replaced, and confirmed":         {[]step{{1, 0}, {2, soon}, {3, soon}, {3, 0}}, 3},
		"many that wait":                  {[]step{{1, 0}, {2, soon}, {3, soon}, {4, soon}, {5, soon}}, 1},
		"again what is in force for good": {[]step{{1, 0}, {1, soon}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
			p.attach(a, b)
			of := func(n uint64) *bocage.Ruleset {
				rs := ruleset(n, []bocage.Rule{allowTCP(21, 22, uint16(1000+n))}, a, b)
				rs.Refused = []bocage.Refusal{{Identity: bocage.Identity(500 + n), Decision: decideQuarantine}}
				return rs
			}
			for i, s := range test.steps {
				rs := of(s.generation)
				if s.confirm != 0 {
					rs.ConfirmBy = time.Now().Add(s.confirm)
				}
				must(t, p.Apply(rs))
				if p.Generation() != s.generation {
					t.Fatalf("generation %d in force, want %d", p.Generation(), s.generation)
				}
				if i > 0 {
					must(t, p.Shadow(of(100+s.generation)))
				}
			}
			p.later(soon)
			last := test.steps[len(test.steps)-1].generation
			left := last
			if last == test.want {
				left = 0
			}
			if g, l := p.Generation(), p.Left(); g != test.want || l != left {
				t.Errorf("generation %d in force, left %d, want %d and %d", g, l, test.want, left)
			}
			f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, tcpFlags: syn}
			for n := uint64(1); n <= 5; n++ {
				f.sport, f.dport = f.sport+1, uint16(1000+n)
				want := uint32(dropped)
				if n == test.want {
					want = next
				}
				if got := p.judgedHere(true, a.ifindex, f.bytes()); got != want {
					t.Errorf("what generation %d allows: program returned %d, want %d", n, int32(got), int32(want))
				}
			}
			must(t, p.Shadow(nil))
			must(t, p.Apply(of(50)))
			if n := p.differing(of(50)); n != 0 {
				t.Errorf("%d rows are not those of the ruleset in force alone", n)
			}
		})
	}
	p := newPlane(t)
	over := ruleset(2, nil)
	over.ConfirmBy = time.Now().Add(-time.Second)
	must(t, p.Apply(ruleset(1, nil)))
	if err := p.Apply(over); err == nil || !strings.Contains(err.Error(), "which is over") || p.Generation() != 1 {
		t.Errorf("a deadline in the past: %v, generation %d", err, p.Generation())
	}
}
