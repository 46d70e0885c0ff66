package dataplane

import (
	"slices"
	"testing"

	"bocage.dev/bocage"
)

// Flows that passed before a wire knew who is inside, or while it took anybody, are
// judged again once it does.
func TestRootWireJudgesAnew(t *testing.T) {
	t.Parallel()
	for _, step := range []struct {
		name   string
		closed bool
		knows  bool
	}{{"who is there", false, true}, {"that it is closed", true, false}} {
		t.Run(step.name, func(t *testing.T) {
			p := newPlane(t)
			a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
			echo(t, b, b.v4, 80)
			echo(t, b, b.v4, 81)
			p.run()
			rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)
			rs.Groups = slices.DeleteFunc(rs.Groups, func(g bocage.GroupInfo) bool { return g.Group != 21 })
			must(t, p.Apply(rs))
			p.wire(a, b, false)
			refused := mustDial(t, a, b.v4, 81)
			allowed := mustDial(t, a, b.v4, 80)
			must(t, ping(refused, long))
			must(t, ping(allowed, long))
			var residents []*workload
			if step.knows {
				residents = append(residents, a)
			}
			p.wire(a, b, step.closed, residents...)
			if err := ping(refused, short); !isTimeout(err) {
				t.Errorf("what policy refuses: %v, want a timeout", err)
			}
			if step.knows {
				must(t, ping(allowed, long))
			}
		})
	}
}
