package prove

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"bocage.dev/bocage"
)

// byNames is what names open in the prover's own ruleset; nil where there are none.
func (p *prover) byNames() *naming {
	if p.naming == nil && len(p.rs.Names) > 0 {
		p.naming = newNaming(p.rs, p.reach, nil)
	}
	return p.naming
}

// namedViolation looks for a way by name into a region that is not as it should be: for a
// cell towards addresses outside that is refused, and that a name opens. Any address may
// have any name, so every address outside that a name can mean counts.
func (p *prover) namedViolation(r region, excuses []excuse, wrong func(from, to bocage.Group, d bocage.Decision) bool) string {
	n := p.byNames()
	if n == nil || len(r.data) > 0 { // whoever offers data is inside
		return ""
	}
	type alike struct {
		said      contentKey
		excused   string
		assurance string
	}
	for _, to := range n.outside {
		if !in(to, r.to) || !p.nameable(to) {
			continue
		}
		seen := map[alike]bool{}
		for _, from := range n.sources {
			if m := p.members[from]; m == nil || len(m.workloads) == 0 || !in(from, r.from) {
				continue
			}
			key := alike{said: n.contentOf(from, to), assurance: p.assurance(from)}
			for _, e := range excuses {
				key.excused += map[bool]string{true: "1", false: "0"}[in(from, e.region.from) && in(to, e.region.to)]
			}
			if seen[key] {
				continue
			}
			seen[key] = true
			if found := p.openedAgainst(n, from, to, r, excuses, wrong); found != "" {
				return found
			}
		}
	}
	return ""
}

// openedAgainst looks for a violation by name among the cells of one pair, at any moment
// at which a decision or an excuse changes.
func (p *prover) openedAgainst(n *naming, from, to bocage.Group, r region, excuses []excuse, wrong func(from, to bocage.Group, d bocage.Decision) bool) string {
	spans := append(n.spans(from, to), p.extent(r, to)...)
	for _, e := range excuses {
		spans = append(spans, p.extent(e.region, to)...)
	}
	lists, names := n.lists(from, to), n.cursor(from)
	for _, s := range intervals(spans) {
		port := s.ports.First
		named := names.at(s.protocol, port)
		if len(named) == 0 || !p.covers(r, to, s.protocol, port) {
			continue
		}
		bare := n.decided(lists, s.protocol, port)
		moments := n.moments([]time.Time{p.in.Now}, p.in.Now, bare, named)
		for _, e := range excuses {
			if e.until.After(p.in.Now) {
				moments = append(moments, e.until)
			}
		}
		for _, at := range moments {
			if slices.ContainsFunc(excuses, func(e excuse) bool {
				return e.holds(at) && in(from, e.region.from) && in(to, e.region.to) && p.covers(e.region, to, s.protocol, port)
			}) {
				continue
			}
			_, open := n.openAt(bare, named, at)
			for _, o := range open { // who goes by one of them need not go by those before
				if wrong(from, to, o.decision) {
					found := fmt.Sprintf("%s as %s gets %s%s", p.flow(from, to, s.protocol, port), n.called(o.name), o.decision.Verdict, by(o.decision))
					if at.After(p.in.Now) {
						found += " from " + at.UTC().Format(time.RFC3339) + " on"
					}
					return found
				}
			}
		}
	}
	return ""
}

// nameable reports whether a group has an address that a name can mean.
func (p *prover) nameable(g bocage.Group) bool {
	m := p.members[g]
	return g == bocage.GroupWorld || m != nil && slices.ContainsFunc(m.prefixes, holdsNamed)
}

// holdsNamed reports whether a name can mean an address in a prefix.
func holdsNamed(prefix netip.Prefix) bool {
	return !slices.ContainsFunc(bocage.NeverNamed(), func(never netip.Prefix) bool {
		return never.Bits() <= prefix.Bits() && never.Contains(prefix.Addr())
	})
}

// assurance is the lowest of a group's workloads.
func (p *prover) assurance(g bocage.Group) string {
	lowest := ""
	for i, w := range p.members[g].workloads {
		if of := cmp.Or(w.Status.Assurance, bocage.AssuranceOfDeclared); i == 0 || of < lowest {
			lowest = of
		}
	}
	return lowest
}

// looserByName looks for a flow that a name gives more than there was in another ruleset,
// in which each group was part of one: whoever the addresses are that have it, and
// whatever other names those have. concerned picks pairs (nil: all).
func (p *prover) looserByName(before *bocage.Ruleset, reachBefore *reach, groupBefore func(bocage.Group) bocage.Group, concerned func(from, to bocage.Group) bool, other string) string {
	n := p.byNames()
	if n == nil {
		return ""
	}
	base := newNaming(before, reachBefore, n.sourcesBefore(groupBefore))
	was := make(map[int]int, len(n.rs.Names)) // places of names, in base by place here
	places := make(map[bocage.Name]int, len(base.rs.Names))
	for i, name := range base.rs.Names {
		name.Group = 0
		places[name] = i
	}
	for i, name := range n.rs.Names {
		name.Group = 0
		if at, known := places[name]; known {
			was[i] = at
		}
	}
	seen := map[[2]contentKey]bool{}
	for _, to := range n.outside {
		for _, from := range n.sources {
			if concerned != nil && !concerned(from, to) {
				continue
			}
			fromBefore, toBefore := groupBefore(from), groupBefore(to)
			said := [2]contentKey{n.contentOf(from, to), base.contentOf(fromBefore, toBefore)}
			if seen[said] {
				continue
			}
			seen[said] = true
			lists, listsBefore := n.lists(from, to), base.lists(fromBefore, toBefore)
			names, namesBefore := n.cursor(from), base.cursor(fromBefore)
			for _, s := range intervals(append(n.spans(from, to), base.spans(fromBefore, toBefore)...)) {
				now, before := names.at(s.protocol, s.ports.First), namesBefore.at(s.protocol, s.ports.First)
				if len(now) == 0 {
					continue
				}
				bare, bareBefore := n.decided(lists, s.protocol, s.ports.First), base.decided(listsBefore, s.protocol, s.ports.First)
				for _, at := range base.moments(n.moments([]time.Time{p.in.Now}, p.in.Now, bare, now), p.in.Now, bareBefore, before) {
					_, opens := n.openAt(bare, now, at)
					alone, opened := base.openAt(bareBefore, before, at)
					if i := p.looserOpen(base, opens, alone, opened, was); i >= 0 {
						return fmt.Sprintf("%s as %s gets %s, and could not, or owed more, %s", p.flow(from, to, s.protocol, s.ports.First), n.called(opens[i].name), opens[i].decision.Verdict, other)
					}
				}
			}
		}
	}
	return ""
}

// looserOpen finds one of the names that open a cell which gives more than there was
// before: than the address alone did; or the name itself; or a name that was tried before
// it and opens nothing any more, so that who goes by both gets what this one gives.
// It returns its place in the list, -1 if there is none.
func (p *prover) looserOpen(base *naming, opens []opened, alone bocage.Decision, before []opened, was map[int]int) int {
	still := make(map[int]bool, len(opens)) // places in base
	for _, o := range opens {
		if at, known := was[o.name]; known {
			still[at] = true
		}
	}
	places := make(map[int]int, len(before)) // in before, by name
	var gone []int                           // those in before that open nothing any more
	for i, b := range before {
		places[b.name] = i
		if !still[b.name] {
			gone = append(gone, i)
		}
	}
	for i, o := range opens {
		if alone.Verdict.Allowed() {
			if p.looser(base.reach, alone, o.decision) {
				return i
			}
			continue
		}
		own, known := was[o.name]
		at, open := places[own]
		if !known || !open || p.looser(base.reach, before[at].decision, o.decision) {
			return i
		}
		for _, earlier := range gone {
			if earlier < at && p.looser(base.reach, before[earlier].decision, o.decision) {
				return i
			}
		}
	}
	return -1
}

// differsByName finds a cell of a local group towards addresses outside of which names
// make something else in a host's part than in the whole.
func (p *prover) differsByName(part *naming, from bocage.Group, seen map[[2]contentKey]bool) string {
	n := p.byNames()
	for _, to := range n.outside {
		said := [2]contentKey{n.contentOf(from, to), part.contentOf(from, to)}
		if seen[said] {
			continue
		}
		seen[said] = true
		lists, here := n.lists(from, to), part.lists(from, to)
		names, namesHere := n.cursor(from), part.cursor(from)
		for _, s := range intervals(append(n.spans(from, to), part.spans(from, to)...)) {
			bare, cut := n.decided(lists, s.protocol, s.ports.First), part.decided(here, s.protocol, s.ports.First)
			named, namedHere := names.at(s.protocol, s.ports.First), namesHere.at(s.protocol, s.ports.First)
			for _, at := range part.moments(n.moments([]time.Time{p.in.Now}, p.in.Now, bare, named), p.in.Now, cut, namedHere) {
				_, opens := n.openAt(bare, named, at)
				_, open := part.openAt(cut, namedHere, at)
				if !slices.EqualFunc(opens, open, func(a, b opened) bool {
					return n.rs.Names[a.name] == part.rs.Names[b.name] && alike(a.decision, b.decision) && n.profiles[a.decision.Profile] == part.profiles[b.decision.Profile]
				}) {
					return fmt.Sprintf("%s is open by %d names, and of the whole by %d, or owes something else", p.flow(from, to, s.protocol, s.ports.First), len(open), len(opens))
				}
			}
		}
	}
	return ""
}
