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

// Everyone is the name, in a comparison, of all ends that have no line of their own.
const Everyone = "everyone else"

// Compare lists the cells for which two rulesets differ in the verdict (before scopes) or
// the duties, sorted by name. Decisions that end later are compared as they are now.
func Compare(before, after *bocage.Ruleset) []bocage.ReachChange {
	c := newComparison(before, after)
	compared := map[[2]class]bool{}
	compare := func(f, t class) {
		if at := [2]class{f, t}; !compared[at] {
			compared[at] = true
			if !c.cannotMeet(f, t) {
				c.pair(f, t)
			}
		}
	}
	// If one ruleset has a wildcard for one end and the other ruleset for the other end,
	// the pair needs a line of its own: no line about everyone else covers it.
	for _, f := range c.classes {
		if c.plainFrom(f) {
			continue
		}
		for _, t := range c.classes {
			if !c.plainTo(t) {
				compare(f, t)
			}
		}
	}
	named := func(r *reach, classesOf func(bocage.Group) []class) {
		for _, at := range r.exact {
			for _, f := range classesOf(at.from) {
				for _, t := range classesOf(at.to) {
					compare(f, t)
				}
			}
		}
	}
	named(c.before, func(g bocage.Group) []class { return c.byBefore[g] })
	named(c.after, func(g bocage.Group) []class { return c.byAfter[g] })
	c.everyoneElse(compared)
	c.toNames(before, after)
	slices.SortStableFunc(c.changes, compareChanges)
	return c.changes
}

// everyoneElse compares the pairs that have no line of their own; compared are those that
// have one. A line about everyone else stands for all ends without a wildcard of their own.
// It is left out if every such pair has its own line, or cannot meet.
func (c *comparison) everyoneElse(told map[[2]class]bool) {
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
		if c.members[f].single() { // no enforcement point sees flows of a workload to itself
			told[[2]class{f, f}] = true
		}
	}
	both, to, from := 0, map[class]int{}, map[class]int{} // of those, compared already
	for at := range told {
		if c.members[at[0]].disjoint(c.members[at[1]]) {
			continue // no flow crosses address families: counted below
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

// toNames adds the changes of what a class gets towards external addresses that it knows by
// a DNS name, for one name at a time, if they differ from the change without a name. A
// change that does not depend on the address is listed only once.
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
	type pairOf [2]contentKey
	known := map[pairOf][]namedChange{}
	changesOf := func(f, t class) (pairOf, []namedChange) {
		said := pairOf{was.contentOf(f.before, t.before), is.contentOf(f.after, t.after)}
		changes, seen := known[said]
		if !seen {
			changes = c.namedChanges(was, is, f, t)
			known[said] = changes
		}
		return said, changes
	}
	besides := map[[2]pairOf][]namedChange{} // changes of the second that the first does not have
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

// namedChange is an interval of ports in which a name gives a cell another decision than
// before.
type namedChange struct {
	name    bocage.DomainName
	span    span
	unnamed bocage.Protocol // stands for all protocols that no rule names
	was, is bocage.DecisionID
}

// notAmong lists the changes that others do not include.
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

// namedChanges compares the cells of a pair for each name, in the order of names.
func (c *comparison) namedChanges(was, is *naming, from, to class) []namedChange {
	spans := append(was.spans(from.before, to.before), is.spans(from.after, to.after)...)
	unnamed := unnamedProtocol(func(p bocage.Protocol) bool {
		return slices.ContainsFunc(spans, func(s span) bool { return s.protocol == p })
	})
	listsBefore, lists := was.lists(from.before, to.before), is.lists(from.after, to.after)
	namesBefore, names := was.cursor(from.before), is.cursor(from.after)
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

// openBy returns, for each name that opens a cell, the decision of a destination with this
// name only.
func (n *naming) openBy(bare bocage.DecisionID, names *nameCursor, s span) map[bocage.DomainName]bocage.DecisionID {
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

func compareChanges(a, b bocage.ReachChange) int {
	return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Ports.First, b.Ports.First))
}

// class is the set of addresses that are in one group before and in one group after.
type class struct{ before, after bocage.Group }

var everyone = class{bocage.GroupAny, bocage.GroupAny}

// addresses describes the addresses of a class.
type addresses struct {
	nameable  bool // a DNS name can stand for one of them
	many      bool // there are prefixes of more than one address
	four, six int  // single addresses
	of        family
	examples  []string // workloads or prefixes, a few of them
	more      int      // besides
}

// family is a set of address families.
type family int

const (
	noFamily family = iota
	onlyFour
	onlySix
	bothFamilies // onlyFour | onlySix
	families
)

// families are those of a class. The world has both.
func (a addresses) families() family { return a.of }

// other is the family that addresses of this one family cannot reach.
func (f family) other() family {
	switch f {
	case onlyFour:
		return onlySix
	case onlySix:
		return onlyFour
	}
	return noFamily // which no class has
}

// disjoint reports whether the two have no address family in common.
func (a addresses) disjoint(b addresses) bool {
	return a.of|b.of == bothFamilies && a.of&b.of == noFamily
}

// cannotMeet reports whether no flow between the two classes is possible.
func (c *comparison) cannotMeet(f, t class) bool {
	return c.members[f].disjoint(c.members[t]) || f == t && c.members[f].single()
}

// mostMembers is how many members of a class its name lists, if two classes would have the
// same name otherwise.
const mostMembers = 3

// single reports whether no flow between two of the addresses is possible.
func (a addresses) single() bool { return !a.many && a.four <= 1 && a.six <= 1 }

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
	case slices.Contains(a.examples, whose) || !prefix.IsValid():
	case len(a.examples) < mostMembers:
		a.examples = append(a.examples, whose)
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
	was, is := newGroupFinder(before), newGroupFinder(after)
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

// name gives every class a different name: that of its group after, or before if that is
// more specific. To equal names it adds the address family, and if they are still equal,
// some members.
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
		if len(a.examples) == 0 {
			return ""
		}
		text := strings.Join(a.examples, ", ")
		if a.more > 0 {
			text += fmt.Sprintf(" and %d more", a.more)
		}
		return " (" + text + ")"
	})
}

// groupFinder finds the group of a prefix in a ruleset.
type groupFinder struct {
	exact map[netip.Prefix]bocage.Group
	wide  []bocage.Peer // prefixes of more than one address, longest first
	names map[bocage.Group]string
}

func newGroupFinder(rs *bocage.Ruleset) *groupFinder {
	w := &groupFinder{exact: make(map[netip.Prefix]bocage.Group, len(rs.Peers)), names: map[bocage.Group]string{bocage.GroupWorld: "the world"}}
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

func (w *groupFinder) group(prefix netip.Prefix) bocage.Group {
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

// pair adds the changes of what one class gets towards another.
func (c *comparison) pair(from, to class) {
	places := levels(from.before, to.before)
	spans := c.before.spans(places)
	unnamed := c.unnamed(from, to, spans)
	c.after.eachCell(from.after, to.after, spans, func(protocol bocage.Protocol, ports bocage.PortRange, id bocage.DecisionID) bool {
		c.change(c.names[from], c.names[to], span{protocol, ports}, unnamed, c.before.decisions[c.before.lookUp(places, protocol, ports.First)], c.after.decisions[id])
		return true
	})
}

// same reports whether a decision before and one after have the same effect.
func (c *comparison) same(was, is bocage.Decision) bool {
	return was.Verdict == is.Verdict && sameProfiles(c.before.profiles[was.Profile], c.after.profiles[is.Profile]) && slices.Equal(duties(was), duties(is))
}

// change adds one change, unless the two decisions have the same effect.
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

// author returns who decides after. If only the duties of an allowed flow change, it is the
// author of a duty that was added or removed.
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

// unnamed returns the protocol that stands, in eachCell, for all that no rule names.
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
	return unnamedProtocol(func(p bocage.Protocol) bool { return named[p] })
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
