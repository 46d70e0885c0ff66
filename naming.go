package bocage

import (
	"cmp"
	"slices"
	"sync"
)

// Naming stands for rules from many groups to many DNS names: for every pair of a group
// in From and a name in To it has the same cells. "Everybody may reach these fifty names"
// is one Naming instead of fifty rules for each group. A whole ruleset has Namings; in a
// host's ruleset they are written out as Rules.
type Naming struct {
	From  []Group     `json:"from"` // sorted
	To    []Group     `json:"to"`   // groups of names (see Name), sorted
	Cells []NamedCell `json:"cells"`
}

// NamedCell is a Rule without its groups. The cells of a Naming are in the order of
// CompareRules and never overlap within a protocol.
type NamedCell struct {
	Protocol Protocol   `json:"protocol"`
	Ports    PortRange  `json:"ports"`
	Decision DecisionID `json:"decision"`
}

// GroupPair is a group, and the group of a DNS name.
type GroupPair struct {
	From Group `json:"from"`
	To   Group `json:"to"`
}

// CompareNamings orders them as a ruleset has them.
func CompareNamings(a, b Naming) int {
	return cmp.Or(cmp.Compare(a.To[0], b.To[0]), cmp.Compare(a.From[0], b.From[0]))
}

// CompareGroupPairs orders pairs as Ruleset.Apart has them.
func CompareGroupPairs(a, b GroupPair) int {
	return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
}

// Equal reports whether two Namings are equal.
func (n Naming) Equal(o Naming) bool {
	return (sameList(n.From, o.From) || slices.Equal(n.From, o.From)) && slices.Equal(n.To, o.To) && slices.Equal(n.Cells, o.Cells)
}

// appendRules appends the rules that the naming stands for between one pair.
func (n *Naming) appendRules(rules []Rule, from, to Group) []Rule {
	for _, c := range n.Cells {
		rules = append(rules, Rule{From: from, To: to, Protocol: c.Protocol, Ports: c.Ports, Decision: c.Decision})
	}
	return rules
}

// NamedRules returns the rules that the Namings stand for from one group, in the order of
// CompareRules.
func (r *Ruleset) NamedRules(from Group) []Rule {
	var rules []Rule
	for i := range r.Namings {
		n := &r.Namings[i]
		if _, speaks := slices.BinarySearch(n.From, from); !speaks {
			continue
		}
		for _, to := range n.To {
			if !r.IsApart(from, to) {
				rules = n.appendRules(rules, from, to)
			}
		}
	}
	slices.SortFunc(rules, CompareRules)
	return rules
}

// IsApart reports whether a pair is excluded from the Namings (see Ruleset.Apart).
func (r *Ruleset) IsApart(from, to Group) bool {
	_, apart := slices.BinarySearchFunc(r.Apart, GroupPair{from, to}, CompareGroupPairs)
	return apart
}

// namingIndex has the namings of each name.
type namingIndex map[Group][]*Naming

// namingsOnce indexes namings on first use. It must not hold the ruleset: then each amended
// ruleset would keep all earlier ones in memory.
func namingsOnce(list []Naming) func() namingIndex {
	return sync.OnceValue(func() namingIndex { return indexNamings(list) })
}

func indexNamings(list []Naming) namingIndex {
	ix := namingIndex{}
	for i := range list {
		for _, to := range list[i].To {
			ix[to] = append(ix[to], &list[i])
		}
	}
	return ix
}

// of returns the naming that has a pair, whether or not the pair is excluded by
// Ruleset.Apart; nil if none has it.
func (ix namingIndex) of(from, to Group) *Naming {
	for _, n := range ix[to] {
		if _, speaks := slices.BinarySearch(n.From, from); speaks {
			return n
		}
	}
	return nil
}

// find looks a cell up, the exact protocol first.
func (n *Naming) find(protocol Protocol, port uint16) (DecisionID, bool) {
	for _, p := range [2]Protocol{protocol, ProtocolAny} {
		for i := range n.Cells {
			if c := &n.Cells[i]; c.Protocol == p && c.Ports.Contains(port) {
				return c.Decision, true
			}
		}
	}
	return 0, false
}

// named returns the decision of a cell towards a name, by a rule or a naming.
func (r *Ruleset) named(from, to Group, protocol Protocol, port uint16) (DecisionID, bool) {
	ix := r.indexed()
	if id, found := find(ix.rules.find(), from, to, protocol, port); found || len(r.Namings) == 0 {
		return id, found
	}
	n := ix.namings().of(from, to)
	if n == nil || r.IsApart(from, to) {
		return 0, false
	}
	return n.find(protocol, port)
}

// CoveredByNaming reports whether a Naming stands for the rules of a pair.
func (r *Ruleset) CoveredByNaming(from, to Group) bool {
	return len(r.Namings) > 0 && r.indexed().namings().of(from, to) != nil && !r.IsApart(from, to)
}

// EachChangedTowardsNames visits the groups for which the Namings of two rulesets differ
// towards some name. It may visit a group several times, and rarely one for which nothing
// differs, but it never leaves one out. altered reports whether a decision id has another
// meaning in the second ruleset.
func EachChangedTowardsNames(a, b []Naming, apartA, apartB []GroupPair, altered func(DecisionID) bool, visit func(Group)) {
	visitAll := func(list []Group) {
		for _, g := range list {
			visit(g)
		}
	}
	for i := range b {
		if slices.ContainsFunc(b[i].Cells, func(c NamedCell) bool { return altered(c.Decision) }) {
			visitAll(b[i].From)
		}
	}
	eachOnlyInOne(apartA, apartB, CompareGroupPairs, func(p GroupPair) { visit(p.From) })
	if sameList(a, b) {
		return
	}
	before, after := indexNamings(a), indexNamings(b)
	type lists struct{ a, b *Group } // identified by their first elements
	seen := map[lists]bool{}         // the names of one naming share its list: compare it once
	differ := func(x, y []Group) {
		var key lists
		if len(x) > 0 {
			key.a = &x[0]
		}
		if len(y) > 0 {
			key.b = &y[0]
		}
		if key.a != key.b && !seen[key] {
			seen[key] = true
			eachOnlyInOne(x, y, cmp.Compare[Group], visit)
		}
	}
	compare := func(name Group) {
		unmatched := slices.Clone(after[name])
		for _, n := range before[name] {
			match := slices.IndexFunc(unmatched, func(m *Naming) bool { return slices.Equal(m.Cells, n.Cells) })
			if match < 0 {
				differ(n.From, nil)
				continue
			}
			differ(n.From, unmatched[match].From)
			unmatched = slices.Delete(unmatched, match, match+1)
		}
		for _, n := range unmatched {
			differ(nil, n.From)
		}
	}
	for name := range before {
		compare(name)
	}
	for name := range after {
		if before[name] == nil {
			compare(name)
		}
	}
}

// eachOnlyInOne visits the elements that only one of two sorted lists has.
func eachOnlyInOne[T any](a, b []T, compare func(a, b T) int, visit func(T)) {
	if sameList(a, b) {
		return
	}
	eachMerged(a, b, compare, func(x, y *T) {
		switch {
		case y == nil:
			visit(*x)
		case x == nil:
			visit(*y)
		}
	})
}
