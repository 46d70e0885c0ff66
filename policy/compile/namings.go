package compile

import (
	"cmp"
	"maps"
	"slices"

	"bocage.dev/bocage"
)

// What broad statements say towards names is not spelled out pair by pair: names have
// no rules of their own to share with addresses, and one statement that lets everybody
// reach fifty names would be a rule for each group and name. It is written down once,
// for all source classes that it is the same for and all names: bocage.Naming. Pairs
// that narrow statements mention too stand apart, with rules of their own or none.

// shared is a patch from groups to names.
type shared struct {
	patch    int32
	from, to []bocage.Group // sorted
}

// namings are what broad statements say towards names, and what was made of it last.
type namings struct {
	list      []shared
	apart     []bocage.GroupPair
	mentioned map[int32]map[int32]bool // by name: who has mentions towards it
	altered   bool                     // other pairs have mentions than when the list was made
	crowds    map[string][]bocage.Group
}

// mention notes whether a pair has mentions, if it leads to a name.
func (n *namings) mention(p pair, named, is bool) {
	is = is && named
	if n.mentioned[p.to][p.from] == is {
		return
	}
	n.altered = true
	switch {
	case !is:
		if delete(n.mentioned[p.to], p.from); len(n.mentioned[p.to]) == 0 {
			delete(n.mentioned, p.to)
		}
	case n.mentioned == nil:
		n.mentioned = map[int32]map[int32]bool{p.to: {p.from: true}}
	case n.mentioned[p.to] == nil:
		n.mentioned[p.to] = map[int32]bool{p.from: true}
	default:
		n.mentioned[p.to][p.from] = true
	}
}

// mentionNames finds which pairs towards names have mentions.
func (g *grid) mentionNames() {
	if len(g.c.pop.domains.list) == 0 {
		return
	}
	for from, row := range g.rows {
		for _, m := range row {
			if g.c.pop.subjects[m.to].isDomain() {
				g.namings.mention(pair{int32(from), m.to}, true, true)
			}
		}
	}
}

// share finds what is said of many towards names. Classes may be cut in any way: what
// comes of it follows from what is said of each pair.
func (g *grid) share(renumbered bool) {
	n, subjects := &g.namings, g.c.pop.subjects
	crowds := n.crowds
	if renumbered {
		crowds = nil
	}
	n.list, n.apart, n.altered, n.crowds = nil, nil, false, map[string][]bocage.Group{}
	byClass := map[int32][]int32{} // names by their class
	var order []int32
	for _, i := range g.c.pop.domains.list {
		class := g.targets.of[i]
		if byClass[class] == nil {
			order = append(order, class)
		}
		byClass[class] = append(byClass[class], i)
	}
	if len(order) == 0 {
		return
	}
	type crowd struct {
		patch   int32
		classes string // of the sources
	}
	places := map[crowd]int{}
	var sources [][]int32 // by place in the list: classes
	for _, class := range order {
		byPatch := map[int32][]int32{}
		for from := range g.sources.list {
			if patch := g.towards[int32(from)][class]; patch != 0 && len(g.sources.list[from].members) > 0 {
				byPatch[patch] = append(byPatch[patch], int32(from))
			}
		}
		for patch, classes := range byPatch {
			key := crowd{patch, string(appendNumbers(nil, classes))}
			at, known := places[key]
			if !known {
				at = len(n.list)
				places[key] = at
				n.list, sources = append(n.list, shared{patch: patch}), append(sources, classes)
			}
			for _, i := range byClass[class] {
				n.list[at].to = append(n.list[at].to, subjects[i].group)
			}
		}
	}
	for at := range n.list {
		s := &n.list[at]
		slices.Sort(s.to)
		s.from = g.crowd(sources[at], crowds)
	}
	g.standApart()
	slices.SortFunc(n.list, func(a, b shared) int { return cmp.Or(cmp.Compare(a.to[0], b.to[0]), cmp.Compare(a.from[0], b.from[0])) })
}

// crowd lists the groups of classes. One whose classes have the members that they had
// is the one that was made before.
func (g *grid) crowd(classes []int32, before map[string][]bocage.Group) []bocage.Group {
	key := string(appendNumbers(nil, classes))
	if groups, known := g.namings.crowds[key]; known {
		return groups
	}
	groups, known := before[key]
	if known && slices.ContainsFunc(classes, func(class int32) bool { return g.sources.changed[class] }) {
		groups = nil
	}
	if groups == nil {
		for _, class := range classes {
			for _, i := range g.sources.list[class].members {
				groups = append(groups, g.c.pop.subjects[i].group)
			}
		}
		slices.Sort(groups)
	}
	g.namings.crowds[key] = groups
	return groups
}

// standApart lists the pairs with mentions, and takes out what is said of no other pair.
func (g *grid) standApart() {
	n, subjects := &g.namings, g.c.pop.subjects
	without := map[bocage.GroupPair]bool{} // that would be in one of the list
	for to, mentioning := range n.mentioned {
		class := g.targets.of[to]
		for from := range mentioning {
			if g.towards[g.sources.of[from]][class] != 0 {
				without[bocage.GroupPair{From: subjects[from].group, To: subjects[to].group}] = true
			}
		}
	}
	n.list = slices.DeleteFunc(n.list, func(s shared) bool {
		if len(s.from)*len(s.to) > len(without) {
			return false
		}
		for _, from := range s.from {
			for _, to := range s.to {
				if !without[bocage.GroupPair{From: from, To: to}] {
					return false
				}
			}
		}
		for _, from := range s.from {
			for _, to := range s.to {
				delete(without, bocage.GroupPair{From: from, To: to})
			}
		}
		return true
	})
	n.apart = slices.SortedFunc(maps.Keys(without), bocage.CompareGroupPairs)
}

// patches lists those of what is shared.
func (n *namings) patches() []int32 {
	var out []int32
	for _, s := range n.list {
		out = append(out, s.patch)
	}
	return out
}

// giveNamings writes what is shared, in the lists of before where nothing is new.
func (c *compiler) giveNamings(rs *whole) {
	n := &c.grid.namings
	var out []bocage.Naming
	for _, s := range n.list {
		out = append(out, bocage.Naming{From: s.from, To: s.to, Cells: c.cellsOf(s.patch)})
	}
	if !slices.EqualFunc(out, rs.namings, bocage.Naming.Equal) {
		rs.namings = out
	}
	if !slices.Equal(n.apart, rs.apart) {
		rs.apart = n.apart
	}
}

// cellsOf writes a patch as cells, in the order of rules.
func (c *compiler) cellsOf(patch int32) []bocage.NamedCell {
	rules := c.appendRest(c.appendPorts(nil, patch, 0, 0), patch, 0, 0)
	out := make([]bocage.NamedCell, len(rules))
	for i, r := range rules {
		out[i] = bocage.NamedCell{Protocol: r.Protocol, Ports: r.Ports, Decision: r.Decision}
	}
	return out
}

// namedRules are the rules that namings stand for of some groups, in order.
func namedRules(rs *bocage.Ruleset, groups []bocage.Group) []bocage.Rule {
	var out []bocage.Rule
	for i := range rs.Namings {
		n := &rs.Namings[i]
		for _, from := range groups {
			if _, speaks := slices.BinarySearch(n.From, from); !speaks {
				continue
			}
			for _, to := range n.To {
				if rs.IsApart(from, to) {
					continue
				}
				for _, cell := range n.Cells {
					out = append(out, bocage.Rule{From: from, To: to, Protocol: cell.Protocol, Ports: cell.Ports, Decision: cell.Decision})
				}
			}
		}
	}
	slices.SortFunc(out, bocage.CompareRules)
	return out
}

// eachNaming visits the groups that namings lead from to some name.
func eachNaming(rs *bocage.Ruleset, visit func(bocage.Group)) {
	apart := make(map[bocage.Group]bool, len(rs.Apart))
	for _, p := range rs.Apart {
		apart[p.From] = true
	}
	for i := range rs.Namings {
		n := &rs.Namings[i]
		for _, from := range n.From {
			if !apart[from] || slices.ContainsFunc(n.To, func(to bocage.Group) bool { return !rs.IsApart(from, to) }) {
				visit(from)
			}
		}
	}
}
