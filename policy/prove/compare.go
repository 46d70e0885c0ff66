package prove

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
)

// Everyone names, in a comparison, whoever is not named in a line of its own.
const Everyone = "everyone else"

// Compare lists the cells whose verdict, before scopes, or whose duties differ
// between two rulesets as long as nothing ends, in the order of names.
func Compare(before, after *bocage.Ruleset) []bocage.ReachChange {
	c := newComparison(before, after)
	told := map[[2]class]bool{}
	tell := func(f, t class) {
		if at := [2]class{f, t}; !told[at] {
			told[at] = true
			if !c.nobodys(f, t) {
				c.pair(f, t)
			}
		}
	}
	// Where one ruleset has a wildcard of one end and the other one of the other
	// end, no line about everyone else tells what the pair gets.
	for _, f := range c.classes {
		if c.plainFrom(f) {
			continue
		}
		for _, t := range c.classes {
			if !c.plainTo(t) {
				tell(f, t)
			}
		}
	}
	named := func(r *reach, classesOf func(bocage.Group) []class) {
		for _, at := range r.exact {
			for _, f := range classesOf(at.from) {
				for _, t := range classesOf(at.to) {
					tell(f, t)
				}
			}
		}
	}
	named(c.before, func(g bocage.Group) []class { return c.byBefore[g] })
	named(c.after, func(g bocage.Group) []class { return c.byAfter[g] })
	c.rest(told)
	c.toNames(before, after)
	slices.SortStableFunc(c.changes, func(a, b bocage.ReachChange) int { return compareChanges(a, b) })
	return c.changes
}

// rest compares what those get who have no line of their own, given the pairs that do.
// A line about everyone else stands for ends without a wildcard of their own; where each
// pair of those is told by itself, or is nobody's, it would speak of nobody.
func (c *comparison) rest(told map[[2]class]bool) {
	froms, tos := 0, 0
	var fromOf, toOf [families]int // of those with addresses of one family only, and of both
	for _, f := range c.classes {
		if c.plainFrom(f) {
			froms++
			fromOf[c.members[f].families()]++
		}
		if c.plainTo(f) {
			tos++
			toOf[c.members[f].families()]++
		}
		if c.members[f].alone() { // who speaks to itself meets no enforcement point
			told[[2]class{f, f}] = true
		}
	}
	both, to, from := 0, map[class]int{}, map[class]int{} // of those, told by themselves
	for at := range told {
		if c.members[at[0]].apart(c.members[at[1]]) {
			continue // nobody speaks across families: those are counted below
		}
		plainFrom, plainTo := c.plainFrom(at[0]), c.plainTo(at[1])
		if plainFrom {
			from[at[1]]++
		}
		if plainTo {
			to[at[0]]++
		}
		if plainFrom && plainTo {
			both++
		}
	}
	for _, f := range c.classes {
		across := c.members[f].families().other()
		if to[f]+toOf[across] < tos {
			c.pair(f, everyone)
		}
		if from[f]+fromOf[across] < froms {
			c.pair(everyone, f)
		}
	}
	if both+fromOf[onlyFour]*toOf[onlySix]+fromOf[onlySix]*toOf[onlyFour] < froms*tos {
		c.pair(everyone, everyone)
	}
}

// plainFrom reports whether neither ruleset has rules from whoever it is to anyone.
func (c *comparison) plainFrom(f class) bool {
	return !c.before.fromAny[f.before] && !c.after.fromAny[f.after]
}

// plainTo reports whether neither ruleset has rules from anyone to whoever it is.
func (c *comparison) plainTo(t class) bool {
	return !c.before.toAny[t.before] && !c.after.toAny[t.after]
}

// toNames notes the intervals in which a class gets something else than before towards
// addresses outside that it knows by a DNS name: by one name at a time, and where that is
// not what it gets there without. What changes wherever the name is, is said once.
func (c *comparison) toNames(before, after *bocage.Ruleset) {
	sources := func(of *bocage.Ruleset, group func(class) bocage.Group) map[bocage.Group]bool {
		rows := rowsTowardsNames(of)
		out := map[bocage.Group]bool{}
		for _, f := range c.classes {
			if rows[f.before] && of == before || rows[f.after] && of == after {
				out[group(f)] = true
			}
		}
		return out
	}
	if len(before.Names)+len(after.Names) == 0 {
		return
	}
	was := newNaming(before, c.before, sources(after, func(f class) bocage.Group { return f.before }))
	is := newNaming(after, c.after, sources(before, func(f class) bocage.Group { return f.after }))
	var outside []class // the world first
	for _, t := range c.classes {
		if c.members[t].nameable && slices.Contains(was.outside, t.before) && slices.Contains(is.outside, t.after) {
			outside = append(outside, t)
		}
	}
	type pairOf [2]saying
	known := map[pairOf][]namedChange{}
	changesOf := func(f, t class) (pairOf, []namedChange) {
		said := pairOf{was.saying(f.before, t.before), is.saying(f.after, t.after)}
		changes, seen := known[said]
		if !seen {
			changes = c.namedChanges(was, is, f, t)
			known[said] = changes
		}
		return said, changes
	}
	besides := map[[2]pairOf][]namedChange{} // of the second, what is not of the first
	for _, f := range c.classes {
		if len(was.rows[f.before])+len(is.rows[f.after]) == 0 {
			continue
		}
		note := func(to string, change namedChange) {
			c.change(c.names[f], to, change.span, change.unnamed, c.before.decisions[change.was], c.after.decisions[change.is])
		}
		saidEverywhere, everywhere := changesOf(f, outside[0])
		for _, change := range everywhere {
			note(string(change.name), change)
		}
		for _, t := range outside[1:] {
			said, changes := changesOf(f, t)
			both := [2]pairOf{saidEverywhere, said}
			own, seen := besides[both]
			if !seen {
				own = notAmong(everywhere, changes)
				besides[both] = own
			}
			for _, change := range own {
				note(c.names[t]+" as "+string(change.name), change)
			}
		}
	}
}

// namedChange is an interval in which a name makes something else of a cell than before.
type namedChange struct {
	name    bocage.DomainName
	span    span
	unnamed bocage.Protocol // stands for all that nothing names
	was, is bocage.DecisionID
}

// notAmong lists the changes that others do not say.
func notAmong(others, changes []namedChange) []namedChange {
	said := map[namedChange][]bocage.PortRange{} // by changes without ports
	for _, o := range others {
		ports := o.span.ports
		o.span.ports = bocage.PortRange{}
		said[o] = append(said[o], ports)
	}
	var out []namedChange
	for _, change := range changes {
		without := change
		without.span.ports = bocage.PortRange{}
		if !slices.ContainsFunc(said[without], func(ports bocage.PortRange) bool {
			return ports.First <= change.span.ports.First && change.span.ports.Last <= ports.Last
		}) {
			out = append(out, change)
		}
	}
	return out
}

// namedChanges compares the cells of a pair as each name has them, in the order of names.
func (c *comparison) namedChanges(was, is *naming, from, to class) []namedChange {
	spans := append(was.spans(from.before, to.before), is.spans(from.after, to.after)...)
	unnamed := unnamedIn(spans)
	listsBefore, lists := was.lists(from.before, to.before), is.lists(from.after, to.after)
	namesBefore, names := was.listing(from.before), is.listing(from.after)
	same := map[[2]bocage.DecisionID]bool{}
	last := map[bocage.DomainName]int{} // the last change of a name
	var out []namedChange
	for _, s := range intervals(spans) {
		bareBefore, bare := was.decided(listsBefore, s.protocol, s.ports.First), is.decided(lists, s.protocol, s.ports.First)
		then := was.openBy(bareBefore, namesBefore, s)
		now := is.openBy(bare, names, s)
		compare := func(name bocage.DomainName, before, after bocage.DecisionID) {
			two := [2]bocage.DecisionID{before, after}
			alike, known := same[two]
			if !known {
				alike = c.same(c.before.decisions[before], c.after.decisions[after])
				same[two] = alike
			}
			if alike {
				return
			}
			if i, some := last[name]; some && out[i].was == before && out[i].is == after && out[i].span.protocol == s.protocol && uint32(out[i].span.ports.Last)+1 == uint32(s.ports.First) {
				out[i].span.ports.Last = s.ports.Last
				return
			}
			last[name] = len(out)
			out = append(out, namedChange{name, s, unnamed, before, after})
		}
		for name, before := range then {
			after, open := now[name]
			if !open {
				after = bare
			}
			compare(name, before, after)
		}
		for name, after := range now {
			if _, open := then[name]; !open {
				compare(name, bareBefore, after)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b namedChange) int { return cmp.Compare(a.name, b.name) })
	return out
}

// openBy tells, of the names that open a cell, what is decided of whoever goes by one
// alone.
func (n *naming) openBy(bare bocage.DecisionID, names *listing, s span) map[bocage.DomainName]bocage.DecisionID {
	refused := n.decisions[bare]
	if !refused.MayYield() {
		return nil
	}
	named := names.at(s.protocol, s.ports.First)
	out := make(map[bocage.DomainName]bocage.DecisionID, len(named))
	for _, t := range named {
		name := n.rs.Names[t.name].Name
		if _, open := out[name]; !open && n.decisions[t.id].Opens(refused) {
			out[name] = t.id
		}
	}
	return out
}

// rowsTowardsNames are the groups that have rules towards names.
func rowsTowardsNames(rs *bocage.Ruleset) map[bocage.Group]bool {
	names := make(map[bocage.Group]bool, len(rs.Names))
	for _, n := range rs.Names {
		names[n.Group] = true
	}
	out := map[bocage.Group]bool{}
	for _, r := range rs.Rules {
		if names[r.To] {
			out[r.From] = true
		}
	}
	for _, n := range rs.Namings {
		for _, from := range n.From {
			out[from] = true
		}
	}
	return out
}

// unnamedIn is the protocol that stands for all that nothing names.
func unnamedIn(spans []span) bocage.Protocol {
	other := bocage.Protocol(255)
	for slices.ContainsFunc(spans, func(s span) bool { return s.protocol == other }) {
		other--
	}
	return other
}

func compareChanges(a, b bocage.ReachChange) int {
	for _, pair := range [][2]string{{a.From, b.From}, {a.To, b.To}} {
		if pair[0] != pair[1] {
			if pair[0] < pair[1] {
				return -1
			}
			return 1
		}
	}
	if a.Protocol != b.Protocol {
		return int(a.Protocol) - int(b.Protocol)
	}
	return int(a.Ports.First) - int(b.Ports.First)
}

// class is who is in one group before and in one after.
type class struct{ before, after bocage.Group }

var everyone = class{bocage.GroupAny, bocage.GroupAny}

// addresses are those of a class.
type addresses struct {
	nameable  bool // a name can mean one of them
	many      bool // some have a prefix in common
	four, six int  // others
	of        family
	some      []string // whose they are, or what they are in: a few
	more      int      // besides
}

// family is which families of addresses there are among some.
type family int

const (
	noFamily family = iota
	onlyFour
	onlySix
	bothFamilies // onlyFour | onlySix
	families
)

// families are those of a class: the world has both.
func (a addresses) families() family { return a.of }

// other is the family that those of one family only have nothing to do with.
func (f family) other() family {
	switch f {
	case onlyFour:
		return onlySix
	case onlySix:
		return onlyFour
	}
	return noFamily // which no class has
}

// apart reports whether no two of them have addresses of the same family.
func (a addresses) apart(b addresses) bool { return a.of|b.of == bothFamilies && a.of&b.of == noFamily }

// nobodys reports whether no two ends of the classes can meet.
func (c *comparison) nobodys(f, t class) bool {
	return c.members[f].apart(c.members[t]) || f == t && c.members[f].alone()
}

// mostMembers is how many of a class are named where its labels do not tell it from
// another.
const mostMembers = 3

// alone reports whether no two of them can meet.
func (a addresses) alone() bool { return !a.many && a.four <= 1 && a.six <= 1 }

func (a addresses) with(prefix netip.Prefix, whose string) addresses {
	switch {
	case !prefix.IsSingleIP():
		a.many = true // the world's has none
	case prefix.Addr().Is4():
		a.four++
	default:
		a.six++
	}
	switch {
	case !prefix.IsValid():
		a.of = bothFamilies
	case prefix.Addr().Is4():
		a.of |= onlyFour
	default:
		a.of |= onlySix
	}
	if whose == "" {
		whose = prefix.String()
	}
	switch {
	case slices.Contains(a.some, whose) || !prefix.IsValid():
	case len(a.some) < mostMembers:
		a.some = append(a.some, whose)
	default:
		a.more++
	}
	a.nameable = a.nameable || !prefix.IsValid() || holdsNamed(prefix)
	return a
}

type comparison struct {
	before, after     *reach
	classes           []class
	byBefore, byAfter map[bocage.Group][]class
	names             map[class]string
	members           map[class]addresses
	changes           []bocage.ReachChange
}

func newComparison(before, after *bocage.Ruleset) *comparison {
	c := &comparison{before: newReach(before), after: newReach(after),
		byBefore: map[bocage.Group][]class{}, byAfter: map[bocage.Group][]class{}, names: map[class]string{everyone: Everyone}, members: map[class]addresses{}}
	was, is := newWhereabouts(before), newWhereabouts(after)
	seen := map[netip.Prefix]bool{}
	add := func(prefix netip.Prefix, whose string) {
		if seen[prefix] {
			return
		}
		seen[prefix] = true
		at := class{was.group(prefix), is.group(prefix)}
		_, known := c.members[at]
		c.members[at] = c.members[at].with(prefix, whose)
		if known {
			return
		}
		c.classes = append(c.classes, at)
		c.byBefore[at.before] = append(c.byBefore[at.before], at)
		c.byAfter[at.after] = append(c.byAfter[at.after], at)
	}
	add(netip.Prefix{}, "") // the world
	for _, peers := range [][]bocage.Peer{before.Peers, after.Peers} {
		for _, peer := range peers {
			add(peer.Prefix, peer.Workload)
		}
	}
	c.name(was.names, is.names)
	return c
}

// name gives every class a name of its own: that of its group afterwards, or before
// where that tells more of them apart; then, where groups have the same labels, with the
// family of its addresses; and at last with some of those who are in it.
func (c *comparison) name(was, is map[bocage.Group]string) {
	for _, at := range c.classes {
		name := is[at.after]
		if at.after == bocage.GroupWorld || len(c.byAfter[at.after]) > len(c.byBefore[at.before]) && at.before != bocage.GroupWorld {
			name = was[at.before]
		}
		c.names[at] = name
	}
	tell := func(more func(a addresses) string) {
		alike := map[string]int{}
		for _, at := range c.classes {
			alike[c.names[at]]++
		}
		for _, at := range c.classes {
			if text := more(c.members[at]); alike[c.names[at]] > 1 && text != "" {
				c.names[at] += text
			}
		}
	}
	tell(func(a addresses) string {
		switch a.of {
		case onlyFour:
			return " over IPv4"
		case onlySix:
			return " over IPv6"
		}
		return ""
	})
	tell(func(a addresses) string {
		if len(a.some) == 0 {
			return ""
		}
		text := strings.Join(a.some, ", ")
		if a.more > 0 {
			text += fmt.Sprintf(" and %d more", a.more)
		}
		return " (" + text + ")"
	})
}

// whereabouts tells the group of a prefix.
type whereabouts struct {
	exact map[netip.Prefix]bocage.Group
	wide  []bocage.Peer // prefixes of more than one address, longest first
	names map[bocage.Group]string
}

func newWhereabouts(rs *bocage.Ruleset) *whereabouts {
	w := &whereabouts{exact: make(map[netip.Prefix]bocage.Group, len(rs.Peers)), names: map[bocage.Group]string{bocage.GroupWorld: "the world"}}
	for _, p := range rs.Peers {
		w.exact[p.Prefix] = p.Group
		if !p.Prefix.IsSingleIP() {
			w.wide = append(w.wide, p)
		}
	}
	slices.SortStableFunc(w.wide, func(a, b bocage.Peer) int { return b.Prefix.Bits() - a.Prefix.Bits() })
	for _, g := range rs.Groups {
		w.names[g.Group] = g.Name
	}
	return w
}

func (w *whereabouts) group(prefix netip.Prefix) bocage.Group {
	if g, ok := w.exact[prefix]; ok {
		return g
	}
	for _, p := range w.wide {
		if p.Prefix.Bits() <= prefix.Bits() && p.Prefix.Contains(prefix.Addr()) {
			return p.Group
		}
	}
	return bocage.GroupWorld
}

// pair notes the intervals in which two classes get something else than before.
func (c *comparison) pair(from, to class) {
	places := levels(from.before, to.before)
	spans := c.before.spans(places)
	unnamed := c.unnamed(from, to, spans)
	c.after.eachCell(from.after, to.after, spans, func(protocol bocage.Protocol, ports bocage.PortRange, id bocage.DecisionID) bool {
		c.change(c.names[from], c.names[to], span{protocol, ports}, unnamed, c.before.decisions[c.before.lookUp(places, protocol, ports.First)], c.after.decisions[id])
		return true
	})
}

// same reports whether two decisions, of before and after, do the same.
func (c *comparison) same(was, is bocage.Decision) bool {
	return was.Verdict == is.Verdict && sameProfiles(c.before.profiles[was.Profile], c.after.profiles[is.Profile]) && slices.Equal(duties(was), duties(is))
}

// change notes an interval in which somebody gets something else than before.
func (c *comparison) change(from, to string, s span, unnamed bocage.Protocol, was, is bocage.Decision) {
	if c.same(was, is) {
		return
	}
	if s.protocol == unnamed {
		s.protocol = bocage.ProtocolAny
	}
	change := bocage.ReachChange{From: from, To: to, Protocol: s.protocol, Ports: s.ports,
		Before: was.Verdict, After: is.Verdict, BeforeDuties: duties(was), AfterDuties: duties(is), By: c.author(was, is)}
	if n := len(c.changes); n > 0 && adjacent(c.changes[n-1], change) {
		c.changes[n-1].Ports.Last = s.ports.Last
		return
	}
	c.changes = append(c.changes, change)
}

// author is who decides afterwards; where only the duties of what is allowed change, who
// adds one, or who did and does not any more.
func (c *comparison) author(was, is bocage.Decision) bocage.Ref {
	if was.Verdict.Allowed() && is.Verdict.Allowed() {
		for _, two := range [][2]bocage.Decision{{is, was}, {was, is}} {
			for _, by := range two[0].By {
				named := func(other bocage.Ref) bool {
					other.Source = by.Source // lines move
					return other == by
				}
				if !slices.ContainsFunc(two[1].By, named) {
					return by
				}
			}
		}
	}
	return explain.Decider(is)
}

// unnamed is the protocol that stands, in eachCell, for all that nothing names.
func (c *comparison) unnamed(from, to class, spans []span) bocage.Protocol {
	named := map[bocage.Protocol]bool{}
	for _, s := range spans {
		named[s.protocol] = true
	}
	for _, at := range levels(from.after, to.after) {
		for _, rule := range c.after.rules[at] {
			named[rule.Protocol] = rule.Protocol != bocage.ProtocolAny || named[rule.Protocol]
		}
	}
	other := bocage.Protocol(255)
	for named[other] {
		other--
	}
	return other
}

func adjacent(a, b bocage.ReachChange) bool {
	joined := a.Ports.Last != 65535 && a.Ports.Last+1 == b.Ports.First
	return joined && a.From == b.From && a.To == b.To && a.Protocol == b.Protocol && a.Before == b.Before && a.After == b.After && a.By == b.By &&
		slices.Equal(a.BeforeDuties, b.BeforeDuties) && slices.Equal(a.AfterDuties, b.AfterDuties)
}

// duties are what an allowed decision owes.
func duties(d bocage.Decision) []string {
	if !d.Verdict.Allowed() || d.Duties == nil {
		return nil
	}
	return d.Duties.List()
}

func sameProfiles(a, b string) bool {
	return slices.Equal(compile.ProfileNames(a), compile.ProfileNames(b))
}
