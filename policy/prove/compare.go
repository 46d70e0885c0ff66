package prove

import (
	"net/netip"
	"slices"

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
	for _, f := range c.classes {
		c.pair(f, everyone)
		c.pair(everyone, f)
	}
	c.pair(everyone, everyone)
	seen := map[[2]class]bool{}
	// Where one ruleset has a wildcard of one end and the other one of the other
	// end, no line about everyone else tells what the pair gets.
	for _, f := range c.classes {
		if !c.before.fromAny[f.before] && !c.after.fromAny[f.after] {
			continue
		}
		for _, t := range c.classes {
			if c.before.toAny[t.before] || c.after.toAny[t.after] {
				seen[[2]class{f, t}] = true
				c.pair(f, t)
			}
		}
	}
	named := func(r *reach, classesOf func(bocage.Group) []class) {
		for _, at := range r.exact {
			for _, f := range classesOf(at.from) {
				for _, t := range classesOf(at.to) {
					if !seen[[2]class{f, t}] {
						seen[[2]class{f, t}] = true
						c.pair(f, t)
					}
				}
			}
		}
	}
	named(c.before, func(g bocage.Group) []class { return c.byBefore[g] })
	named(c.after, func(g bocage.Group) []class { return c.byAfter[g] })
	c.toNames(before, after)
	slices.SortStableFunc(c.changes, func(a, b bocage.ReachChange) int { return compareChanges(a, b) })
	return c.changes
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
		if slices.Contains(was.outside, t.before) && slices.Contains(is.outside, t.after) {
			outside = append(outside, t)
		}
	}
	type pairOf [2]saying
	known := map[pairOf][]namedChange{}
	for _, f := range c.classes {
		if len(was.rows[f.before])+len(is.rows[f.after]) == 0 {
			continue
		}
		var everywhere []namedChange
		for i, t := range outside {
			said := pairOf{was.saying(f.before, t.before), is.saying(f.after, t.after)}
			changes, seen := known[said]
			if !seen {
				changes = c.namedChanges(was, is, f, t)
				known[said] = changes
			}
			if i == 0 {
				everywhere = changes
			}
			for _, change := range changes {
				to := string(change.name)
				if i > 0 {
					if slices.Contains(everywhere, change) {
						continue
					}
					to = c.names[t] + " as " + to
				}
				c.change(c.names[f], to, change.span, change.unnamed, c.before.decisions[change.was], c.after.decisions[change.is])
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

func (c *comparison) namedChanges(was, is *naming, from, to class) []namedChange {
	var names []bocage.DomainName
	for _, n := range slices.Concat(was.rs.Names, is.rs.Names) {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	var out []namedChange
	spans := append(was.spans(from.before, to.before), is.spans(from.after, to.after)...)
	unnamed := unnamedIn(spans)
	listsBefore, lists := was.lists(from.before, to.before), is.lists(from.after, to.after)
	pieces := intervals(spans)
	for _, name := range slices.Compact(names) {
		for _, s := range pieces {
			bareBefore, then := was.byName(listsBefore, from.before, s, name)
			bare, now := is.byName(lists, from.after, s, name)
			if (then != bareBefore || now != bare) && !c.same(c.before.decisions[then], c.after.decisions[now]) {
				out = append(out, namedChange{name, s, unnamed, then, now})
			}
		}
	}
	return out
}

// byName is what is decided of a cell alone, and of one that is known by a name.
func (n *naming) byName(lists [5][]bocage.Rule, from bocage.Group, s span, name bocage.DomainName) (bare, named bocage.DecisionID) {
	bare = n.decided(lists, s.protocol, s.ports.First)
	if n.decisions[bare].Verdict.Allowed() {
		return bare, bare
	}
	for _, t := range n.towardsNames(from, s.protocol, s.ports.First) {
		if n.rs.Names[t.name].Name == name && n.decisions[t.id].Opens(n.decisions[bare]) {
			return bare, t.id
		}
	}
	return bare, bare
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

type comparison struct {
	before, after     *reach
	classes           []class
	byBefore, byAfter map[bocage.Group][]class
	names             map[class]string
	changes           []bocage.ReachChange
}

func newComparison(before, after *bocage.Ruleset) *comparison {
	c := &comparison{before: newReach(before), after: newReach(after),
		byBefore: map[bocage.Group][]class{}, byAfter: map[bocage.Group][]class{}, names: map[class]string{everyone: Everyone}}
	was, is := newWhereabouts(before), newWhereabouts(after)
	add := func(prefix netip.Prefix) {
		at := class{was.group(prefix), is.group(prefix)}
		if _, known := c.names[at]; known {
			return
		}
		name := is.names[at.after]
		if at.after == bocage.GroupWorld {
			name = was.names[at.before]
		}
		c.names[at] = name
		c.classes = append(c.classes, at)
		c.byBefore[at.before] = append(c.byBefore[at.before], at)
		c.byAfter[at.after] = append(c.byAfter[at.after], at)
	}
	add(netip.Prefix{}) // the world
	for _, peers := range [][]bocage.Peer{before.Peers, after.Peers} {
		for _, peer := range peers {
			add(peer.Prefix)
		}
	}
	return c
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
		Before: was.Verdict, After: is.Verdict, BeforeDuties: duties(was), AfterDuties: duties(is), By: explain.Decider(is)}
	if n := len(c.changes); n > 0 && adjacent(c.changes[n-1], change) {
		c.changes[n-1].Ports.Last = s.ports.Last
		return
	}
	c.changes = append(c.changes, change)
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
