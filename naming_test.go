package bocage

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// drawNamings draws what is said of a few groups towards a few names: of each pair, one
// naming, and some of the pairs stand apart.
func drawNamings(t *rapid.T) *Ruleset {
	rs := &Ruleset{}
	decisions := map[Group]map[Group]DecisionID{} // by name and group
	for to := Group(100); to < 105; to++ {
		decisions[to] = map[Group]DecisionID{}
		for from := Group(10); from < 16; from++ {
			decisions[to][from] = DecisionID(rapid.IntRange(0, 2).Draw(t, "decision"))
		}
	}
	places := map[string]int{}
	for _, to := range slices.Sorted(maps.Keys(decisions)) {
		for decision := DecisionID(1); decision < 3; decision++ {
			var from []Group
			for _, g := range slices.Sorted(maps.Keys(decisions[to])) {
				if decisions[to][g] == decision {
					from = append(from, g)
				}
			}
			if len(from) == 0 {
				continue
			}
			key := fmt.Sprint(decision, from)
			at, known := places[key]
			if !known {
				at, places[key] = len(rs.Namings), len(rs.Namings)
				rs.Namings = append(rs.Namings, Naming{From: from, Cells: []NamedCell{{ProtocolTCP, PortRange{443, 443}, decision}, {ProtocolAny, AllPorts, 7}}})
			}
			rs.Namings[at].To = append(rs.Namings[at].To, to)
			for _, g := range from {
				if rapid.IntRange(0, 5).Draw(t, "apart") == 0 {
					rs.Apart = append(rs.Apart, GroupPair{g, to})
				}
			}
		}
	}
	slices.SortFunc(rs.Namings, CompareNamings)
	slices.SortFunc(rs.Apart, CompareGroupPairs)
	return rs
}

// TestNamedRules looks every cell up that namings decide, and finds it among the rules
// that they stand for, and no other.
func TestNamedRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := drawNamings(t)
		for from := Group(9); from < 17; from++ {
			rules := indexRules(rs.NamedRules(from))
			for to := Group(99); to < 106; to++ {
				for _, protocol := range []Protocol{ProtocolTCP, ProtocolUDP} {
					for _, port := range []uint16{0, 442, 443, 444, 65535} {
						id, found := rs.named(from, to, protocol, port)
						if want, is := find(rules, from, to, protocol, port); is != found || want != id {
							t.Fatalf("from %d to %d %s/%d: decision %d (%v), of the rules %d (%v)", from, to, protocol, port, id, found, want, is)
						}
						if found != rs.CoveredByNaming(from, to) {
							t.Fatalf("from %d to %d: it is not said whether a naming is about it", from, to)
						}
					}
				}
			}
		}
	})
}

// TestEachRenamed finds all groups of which two rulesets say something else, and none of
// those of which they say the same where the decisions mean what they did.
func TestEachChangedTowardsNames(t *testing.T) {
	others := 0
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawNamings(t), drawNamings(t)
		if rapid.Bool().Draw(t, "nearly the same") {
			b = &Ruleset{Namings: slices.Clone(a.Namings), Apart: a.Apart}
			if i := rapid.IntRange(0, len(b.Namings)).Draw(t, "without"); i < len(b.Namings) {
				b.Namings = slices.Delete(b.Namings, i, i+1)
			}
		}
		altered := DecisionID(rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "altered"))
		found := map[Group]bool{}
		EachChangedTowardsNames(a.Namings, b.Namings, a.Apart, b.Apart, func(id DecisionID) bool { return id == altered }, func(g Group) { found[g] = true })
		for g := Group(9); g < 17; g++ {
			was, is := a.NamedRules(g), b.NamedRules(g)
			differs := !slices.Equal(was, is)
			means := slices.ContainsFunc(is, func(r Rule) bool { return r.Decision == altered })
			if (differs || means) && !found[g] {
				t.Fatalf("group %d is not told: it was\n%v\nand is\n%v", g, was, is)
			}
			if found[g] && !differs && !means {
				others++
				if altered == 0 && len(a.Apart)+len(b.Apart) == 0 {
					t.Fatalf("group %d is told, and both say\n%v", g, is)
				}
			}
		}
	})
	t.Logf("%d told of which nothing differs", others)
}
