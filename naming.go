package bocage

import (
	"cmp"
	"slices"
	"sync"
)

// Naming says once what Rules would say of every pair of many groups and many names:
// that everybody may reach fifty names is one Naming, and not a rule for each of them
// from each group. A whole ruleset has Namings; what a host gets has rules instead.
type Naming struct {
	From  []Group     `json:"from"` // sorted
	To    []Group     `json:"to"`   // of names, sorted
	Cells []NamedCell `json:"cells"`
}

// NamedCell is a Rule without its groups; those of a Naming are in the order of
// CompareRules and never overlap within a protocol.
type NamedCell struct {
	Protocol Protocol   `json:"protocol"`
	Ports    PortRange  `json:"ports"`
	Decision DecisionID `json:"decision"`
}

// GroupPair is a group and a name.
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

// Equal reports whether two say the same.
func (n Naming) Equal(o Naming) bool {
	return (sameList(n.From, o.From) || slices.Equal(n.From, o.From)) && slices.Equal(n.To, o.To) && slices.Equal(n.Cells, o.Cells)
}

// appendRules appends what is said of one pair.
func (n *Naming) appendRules(rules []Rule, from, to Group) []Rule {
	for _, c := range n.Cells {
		rules = append(rules, Rule{From: from, To: to, Protocol: c.Protocol, Ports: c.Ports, Decision: c.Decision})
	}
	return rules
}

// NamedRules are the rules that Namings stand for, from one group and in order.
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

// IsApart reports whether no Naming is about a pair, though its groups are in one.
func (r *Ruleset) IsApart(from, to Group) bool {
	_, apart := slices.BinarySearchFunc(r.Apart, GroupPair{from, to}, CompareGroupPairs)
	return apart
}

// namingIndex is namings by name.
type namingIndex map[Group][]*Naming

// namingsOnce indexes namings when they are asked for. It holds the list alone: with the
// ruleset that it is of, each amended ruleset would hold all before it.
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

// of returns what is said of a pair, apart or not; nil for nothing.
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

// named finds what is decided of a cell towards a name.
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

// SaidByNaming reports whether a Naming is about a pair.
func (r *Ruleset) SaidByNaming(from, to Group) bool {
	return len(r.Namings) > 0 && r.indexed().namings().of(from, to) != nil && !r.IsApart(from, to)
}

// EachRenamed visits groups of which the Namings of two rulesets say something else
// towards some name, as often as it comes upon them: all of those, and seldom others.
// altered tells of decisions whose number means something else in the second one.
func EachRenamed(a, b []Naming, apartA, apartB []GroupPair, altered func(DecisionID) bool, visit func(Group)) {
	all := func(list []Group) {
		for _, g := range list {
			visit(g)
		}
	}
	for i := range b {
		if slices.ContainsFunc(b[i].Cells, func(c NamedCell) bool { return altered(c.Decision) }) {
			all(b[i].From)
		}
	}
	eachOnlyInOne(apartA, apartB, CompareGroupPairs, func(p GroupPair) { visit(p.From) })
	if sameList(a, b) {
		return
	}
	was, is := indexNamings(a), indexNamings(b)
	type lists struct{ a, b *Group } // the first of each
	seen := map[lists]bool{}         // names that stand together have the same lists
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
		came := slices.Clone(is[name])
		for _, n := range was[name] {
			like := slices.IndexFunc(came, func(m *Naming) bool { return slices.Equal(m.Cells, n.Cells) })
			if like < 0 {
				differ(n.From, nil)
				continue
			}
			differ(n.From, came[like].From)
			came = slices.Delete(came, like, like+1)
		}
		for _, n := range came {
			differ(nil, n.From)
		}
	}
	for name := range was {
		compare(name)
	}
	for name := range is {
		if was[name] == nil {
			compare(name)
		}
	}
}

// eachOnlyInOne visits what only one of two sorted lists has.
func eachOnlyInOne[T any](a, b []T, compare func(a, b T) int, visit func(T)) {
	if sameList(a, b) {
		return
	}
	for len(a) > 0 || len(b) > 0 {
		order := 0
		switch {
		case len(a) == 0:
			order = 1
		case len(b) == 0:
			order = -1
		default:
			order = compare(a[0], b[0])
		}
		if order < 0 {
			visit(a[0])
		} else if order > 0 {
			visit(b[0])
		}
		if order <= 0 {
			a = a[1:]
		}
		if order >= 0 {
			b = b[1:]
		}
	}
}
