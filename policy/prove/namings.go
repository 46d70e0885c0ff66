package prove

import (
	"fmt"
	"slices"

	"bocage.dev/bocage"
)

// namingsGap finds what is amiss among the namings: a number that nothing describes, or
// a pair that two of them, or one of them and a rule, are about.
func (p *prover) namingsGap(described map[bocage.Group]bool, decided map[bocage.DecisionID]bool) string {
	rs := p.rs
	if len(rs.Namings) == 0 {
		return ""
	}
	type lists struct{ a, b *bocage.Group } // the first of each
	disjoint := map[lists]bool{}
	byName := map[bocage.Group][]*bocage.Naming{}
	for i := range rs.Namings {
		n := &rs.Namings[i]
		if !slices.IsSorted(n.From) || !slices.IsSorted(n.To) || i > 0 && bocage.CompareNamings(rs.Namings[i-1], *n) >= 0 {
			return fmt.Sprintf("the naming from group %d to group %d is out of order", n.From[0], n.To[0])
		}
		for j, c := range n.Cells {
			if !decided[c.Decision] {
				return fmt.Sprintf("a naming carries decision %s, which does not exist", c.Decision)
			}
			if j > 0 && n.Cells[j-1].Protocol == c.Protocol && c.Ports.First <= n.Cells[j-1].Ports.Last {
				return fmt.Sprintf("two cells from group %d to group %d overlap at %s %s", n.From[0], n.To[0], c.Protocol, c.Ports)
			}
		}
		for _, from := range n.From {
			if !described[from] {
				return fmt.Sprintf("a naming is from group %d, which nothing describes", from)
			}
		}
		for _, to := range n.To {
			if !described[to] {
				return fmt.Sprintf("a naming is to group %d, which nothing describes", to)
			}
			for _, other := range byName[to] {
				key := lists{&other.From[0], &n.From[0]}
				if disjoint[key] {
					continue
				}
				if from, both := inBoth(other.From, n.From); both {
					return fmt.Sprintf("two namings are from group %d to group %d", from, to)
				}
				disjoint[key] = true
			}
			byName[to] = append(byName[to], n)
		}
	}
	for _, r := range rs.Rules {
		if byName[r.To] != nil && rs.CoveredByNaming(r.From, r.To) {
			return fmt.Sprintf("a rule and a naming are from group %d to group %d", r.From, r.To)
		}
	}
	return ""
}

// inBoth finds somebody who is in two sorted lists.
func inBoth(a, b []bocage.Group) (bocage.Group, bool) {
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0] == b[0]:
			return a[0], true
		case a[0] < b[0]:
			a = a[1:]
		default:
			b = b[1:]
		}
	}
	return 0, false
}

// mostSampled is how many sources are asked about of those for whom a naming says the
// same towards one name.
const mostSampled = 4

// sampledNamings are some of the rules that namings stand for: of each name and cell,
// for a few sources, which are others for the next name.
func sampledNamings(rs *bocage.Ruleset) []bocage.Rule {
	var out []bocage.Rule
	next := 0
	for _, n := range rs.Namings {
		for _, to := range n.To {
			for range min(mostSampled, len(n.From)) {
				from := n.From[next%len(n.From)]
				if next += 1 + len(n.From)/mostSampled; rs.IsApart(from, to) {
					continue
				}
				for _, c := range n.Cells {
					out = append(out, bocage.Rule{From: from, To: to, Protocol: c.Protocol, Ports: c.Ports, Decision: c.Decision})
				}
			}
		}
	}
	return out
}
