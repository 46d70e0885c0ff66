package prove

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// TestListing has a listing go through intervals, and reads the rules of each by
// themselves: for a name the first that names the protocol counts, or else the first.
func TestListing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const source = 99
		n := &naming{names: map[bocage.Group]int{}, rows: map[bocage.Group][]bocage.Rule{}}
		for i := range 4 {
			n.names[bocage.Group(10+i)] = i
		}
		for i := range rapid.IntRange(0, 8).Draw(t, "rules") {
			r := bocage.Rule{From: source, To: bocage.Group(10 + rapid.IntRange(0, 3).Draw(t, "to")), Decision: bocage.DecisionID(1 + i),
				Protocol: rapid.SampledFrom([]bocage.Protocol{bocage.ProtocolAny, bocage.ProtocolTCP, bocage.ProtocolUDP}).Draw(t, "protocol"), Ports: bocage.PortRange{Last: 65535}}
			if r.Protocol != bocage.ProtocolAny && rapid.Bool().Draw(t, "some") {
				r.Ports.First = rapid.SampledFrom([]uint16{0, 1, 80, 443, 65535}).Draw(t, "first")
				r.Ports.Last = max(r.Ports.First, rapid.SampledFrom([]uint16{0, 1, 80, 443, 65535}).Draw(t, "last"))
			}
			n.rows[source] = append(n.rows[source], r)
		}
		spans := []span{{bocage.ProtocolSCTP, bocage.PortRange{First: 7, Last: 9}}, {bocage.ProtocolTCP, bocage.PortRange{First: 80, Last: 80}}}
		for _, r := range n.rows[source] {
			if r.Protocol != bocage.ProtocolAny {
				spans = append(spans, span{r.Protocol, r.Ports})
			}
		}
		names := n.cursor(source)
		for _, s := range intervals(spans) {
			if rapid.IntRange(0, 3).Draw(t, "asked") == 0 {
				continue // who knows that no name matters does not ask
			}
			var want []nameDecision
			for name := range 4 {
				var rules []bocage.Rule
				for _, r := range n.rows[source] {
					if n.names[r.To] == name {
						rules = append(rules, r)
					}
				}
				if id, found := ruleFor(rules, s.protocol, s.ports.First); found {
					want = append(want, nameDecision{name, id})
				}
			}
			if got := names.at(s.protocol, s.ports.First); !slices.Equal(got, want) {
				t.Fatalf("%+v: %v, by the rules themselves %v", s, got, want)
			}
		}
	})
}
