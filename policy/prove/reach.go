package prove

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"bocage.dev/bocage"
)

// reach reads a ruleset as the enforcement points do, but for groups and whole intervals of
// ports instead of single flows.
type reach struct {
	rs        *bocage.Ruleset
	decisions map[bocage.DecisionID]bocage.Decision
	profiles  map[uint16]string
	rules     map[pair][]bocage.Rule
	exact     []pair                // pairs of two groups with a rule of their own, in order
	allowing  map[pair]bool         // pairs, wildcards included, with a rule that allows
	fromAny   map[bocage.Group]bool // groups with rules from them to anyone
	toAny     map[bocage.Group]bool // groups with rules from anyone to them
	wildcards bool                  // some rule with a wildcard allows something
	special   map[pair]bool         // pairs that need a check of their own, besides those in exact
	// Numbers that identify the content of a pair's rules: by content, and by pair.
	byContent map[string]int32
	contents  map[pair]int32
}

type pair struct{ from, to bocage.Group }

// span is an interval of one protocol's ports.
type span struct {
	protocol bocage.Protocol
	ports    bocage.PortRange
}

func newReach(rs *bocage.Ruleset) *reach {
	r := &reach{
		rs:        rs,
		decisions: make(map[bocage.DecisionID]bocage.Decision, len(rs.Decisions)),
		profiles:  make(map[uint16]string, len(rs.Profiles)),
		rules:     make(map[pair][]bocage.Rule, len(rs.Rules)),
		allowing:  map[pair]bool{},
		fromAny:   map[bocage.Group]bool{},
		toAny:     map[bocage.Group]bool{},
	}
	for _, d := range rs.Decisions {
		r.decisions[d.ID] = d
	}
	for _, p := range rs.Profiles {
		r.profiles[p.Number] = p.Name
	}
	names := make(map[bocage.Group]bool, len(rs.Names))
	for _, name := range rs.Names {
		names[name.Group] = true
	}
	for _, rule := range rs.Rules {
		if names[rule.To] { // which have no address of their own: see naming
			continue
		}
		at := pair{rule.From, rule.To}
		list, known := r.rules[at]
		r.rules[at] = append(list, rule)
		if r.everAllows(rule.Decision) {
			r.allowing[at] = true
			r.wildcards = r.wildcards || at.from == bocage.GroupAny || at.to == bocage.GroupAny
		}
		switch {
		case rule.From != bocage.GroupAny && rule.To != bocage.GroupAny:
			if !known {
				r.exact = append(r.exact, at)
			}
		case rule.From != bocage.GroupAny:
			r.fromAny[rule.From] = true
		case rule.To != bocage.GroupAny:
			r.toAny[rule.To] = true
		}
	}
	if r.everAllows(rs.Default) {
		r.allowing[pair{}], r.wildcards = true, true
	}
	return r
}

// eachLink visits a decision and its successors, with the moment at which each begins, until
// visit returns false.
func (r *reach) eachLink(id bocage.DecisionID, now time.Time, visit func(time.Time, bocage.Decision) bool) {
	at, d := now, r.decisions[id]
	for range bocage.MostSuccessors + 1 {
		over := !d.Until.IsZero() && !at.Before(d.Until) // it never takes effect
		if !over && !visit(at, d) || d.Until.IsZero() {
			return
		}
		if d.Until.After(at) {
			at = d.Until
		}
		d = r.decisions[d.Then]
	}
}

// at returns the decision that counts at a moment.
func (r *reach) at(id bocage.DecisionID, moment time.Time) bocage.Decision {
	d := r.decisions[id]
	for range bocage.MostSuccessors {
		if d.Until.IsZero() || moment.Before(d.Until) {
			break
		}
		d = r.decisions[d.Then]
	}
	return d
}

// everAllows reports whether the decision, or one that follows it, allows.
func (r *reach) everAllows(id bocage.DecisionID) bool {
	allows := false
	r.eachLink(id, time.Time{}, func(_ time.Time, d bocage.Decision) bool {
		allows = allows || d.Verdict.Allowed()
		return !allows
	})
	return allows
}

// withExcuses returns a reach in which the groups that excuses concern are marked as special,
// so that none of them stands for a group that is not excused.
func (r *reach) withExcuses(excuses []excuse, groups []bocage.Group) *reach {
	if len(excuses) == 0 {
		return r
	}
	out := *r
	out.fromAny, out.toAny = maps.Clone(r.fromAny), maps.Clone(r.toAny)
	for _, e := range excuses {
		mark(groups, e.region.from, out.fromAny)
		mark(groups, e.region.to, out.toAny)
	}
	return &out
}

// mark adds the groups that are in all of the sets to special, unless these are all groups.
func mark(groups []bocage.Group, sets []map[bocage.Group]bool, special map[bocage.Group]bool) {
	var picked []bocage.Group
	for _, g := range groups {
		if in(g, sets) {
			picked = append(picked, g)
		}
	}
	if len(picked) == len(groups) {
		return
	}
	for _, g := range picked {
		special[g] = true
	}
}

// levels returns the pairs, with wildcards, whose rules may decide a pair, in the order of
// lookup.
func levels(from, to bocage.Group) [4]pair {
	return [4]pair{{from, to}, {bocage.GroupAny, to}, {from, bocage.GroupAny}, {bocage.GroupAny, bocage.GroupAny}}
}

// mayAllow reports whether some rule that counts for the pair allows something.
func (r *reach) mayAllow(from, to bocage.Group) bool {
	for _, at := range levels(from, to) {
		if r.allowing[at] {
			return true
		}
	}
	return false
}

// eachAllowedPair visits pairs of the picked groups until visit returns false. Every cell
// that is allowed for some picked pair is allowed for a visited one, too. It does not visit
// all pairs: groups without a wildcard of their own are equivalent in pairs without a rule
// of their own, so that one stands for all. For receivers that is done only if alike says
// that the caller does not distinguish them either.
func (r *reach) eachAllowedPair(groups []bocage.Group, from, to func(bocage.Group) bool, alike bool, visit func(from, to bocage.Group) bool) {
	for _, at := range r.exact {
		if from(at.from) && to(at.to) && r.mayAllow(at.from, at.to) && !visit(at.from, at.to) {
			return
		}
	}
	r.eachWildcardPair(groups, from, to, alike, visit)
}

// eachWildcardPair is the part of eachAllowedPair about pairs without a rule of
// their own.
func (r *reach) eachWildcardPair(groups []bocage.Group, from, to func(bocage.Group) bool, alike bool, visit func(from, to bocage.Group) bool) {
	if !r.wildcards {
		return
	}
	specialFrom, plainFrom := split(groups, from, r.fromAny)
	specialTo, plainTo := split(groups, to, r.toAny)
	if !alike {
		specialTo, plainTo = append(specialTo, plainTo...), nil
	}
	// Of the plain ones, the first without a rule of its own with the other end.
	stand := func(specials, plains []bocage.Group, exact func(bocage.Group) bool) []bocage.Group {
		for _, g := range plains {
			if !exact(g) {
				return append(slices.Clone(specials), g)
			}
		}
		return specials
	}
	froms := func(t bocage.Group) []bocage.Group {
		return stand(specialFrom, plainFrom, func(f bocage.Group) bool { return r.hasOwnRules(f, t) })
	}
	for _, t := range specialTo {
		for _, f := range froms(t) {
			if r.mayAllow(f, t) && !visit(f, t) {
				return
			}
		}
	}
	for _, f := range specialFrom {
		for _, t := range stand(nil, plainTo, func(t bocage.Group) bool { return r.hasOwnRules(f, t) }) {
			if r.mayAllow(f, t) && !visit(f, t) {
				return
			}
		}
	}
	if !r.allowing[pair{}] {
		return
	}
	for _, t := range plainTo {
		for _, f := range plainFrom {
			if !r.hasOwnRules(f, t) {
				visit(f, t)
				return
			}
		}
	}
}

// hasOwnRules reports whether the pair has rules of its own, or must not be represented by
// another pair.
func (r *reach) hasOwnRules(from, to bocage.Group) bool {
	at := pair{from, to}
	return r.rules[at] != nil || r.special[at]
}

// content returns a number that identifies the content of a pair's rules; 0 if it has none.
func (r *reach) content(at pair) int32 {
	rules := r.rules[at]
	if len(rules) == 0 {
		return 0
	}
	n, known := r.contents[at]
	if known {
		return n
	}
	if r.contents == nil {
		r.contents, r.byContent = map[pair]int32{}, map[string]int32{}
	}
	said := make([]byte, 0, 64)
	for _, rule := range rules {
		said = append(said, byte(rule.Protocol))
		said = binary.LittleEndian.AppendUint16(said, rule.Ports.First)
		said = binary.LittleEndian.AppendUint16(said, rule.Ports.Last)
		said = binary.LittleEndian.AppendUint32(said, uint32(rule.Decision))
	}
	if n, known = r.byContent[string(said)]; !known {
		n = int32(len(r.byContent)) + 1
		r.byContent[string(said)] = n
	}
	r.contents[at] = n
	return n
}

// spans lists the port ranges of the rules of some pairs.
func (r *reach) spans(places [4]pair) []span {
	var out []span
	for _, at := range places {
		for _, rule := range r.rules[at] {
			if rule.Protocol != bocage.ProtocolAny {
				out = append(out, span{rule.Protocol, rule.Ports})
			}
		}
	}
	return out
}

// split divides the picked groups by whether they have a wildcard of their own.
func split(groups []bocage.Group, picked func(bocage.Group) bool, special map[bocage.Group]bool) (specials, plains []bocage.Group) {
	for _, g := range groups {
		switch {
		case !picked(g):
		case special[g]:
			specials = append(specials, g)
		default:
			plains = append(plains, g)
		}
	}
	return specials, plains
}

// eachCell visits the intervals of a pair until visit returns false. No rule and none of the
// given spans begins or ends within an interval. One protocol that no rule names stands for
// all of those.
func (r *reach) eachCell(from, to bocage.Group, spans []span, visit func(bocage.Protocol, bocage.PortRange, bocage.DecisionID) bool) {
	places := levels(from, to)
	cuts := map[bocage.Protocol][]uint32{}
	cut := func(protocol bocage.Protocol, ports bocage.PortRange) {
		cuts[protocol] = append(cuts[protocol], uint32(ports.First), uint32(ports.Last)+1)
	}
	for _, at := range places {
		for _, rule := range r.rules[at] {
			if rule.Protocol != bocage.ProtocolAny {
				cut(rule.Protocol, rule.Ports)
			}
		}
	}
	for _, s := range spans {
		cut(s.protocol, s.ports)
	}
	eachInterval(cuts, func(protocol bocage.Protocol, ports bocage.PortRange) bool {
		return visit(protocol, ports, r.lookUp(places, protocol, ports.First))
	})
}

// eachInterval visits the intervals into which cuts divide the ports of each protocol, until
// visit returns false. One protocol that has no cuts stands for all of those.
func eachInterval(cuts map[bocage.Protocol][]uint32, visit func(bocage.Protocol, bocage.PortRange) bool) {
	other := unnamedProtocol(func(p bocage.Protocol) bool { return cuts[p] != nil })
	cuts[other] = nil
	for _, protocol := range slices.Sorted(maps.Keys(cuts)) {
		edges := append(cuts[protocol], 0, 65536)
		slices.Sort(edges)
		edges = slices.Compact(edges)
		for i := range edges[:len(edges)-1] {
			if !visit(protocol, bocage.PortRange{First: uint16(edges[i]), Last: uint16(edges[i+1] - 1)}) {
				return
			}
		}
	}
}

// unnamedProtocol returns a protocol that is not named, to stand for all of those.
func unnamedProtocol(named func(bocage.Protocol) bool) bocage.Protocol {
	other := bocage.Protocol(255)
	for named(other) {
		other--
	}
	return other
}

// lookUp returns the decision of a cell, in the order of lookup of Ruleset.Decide.
func (r *reach) lookUp(places [4]pair, protocol bocage.Protocol, port uint16) bocage.DecisionID {
	for _, at := range places {
		for _, p := range [2]bocage.Protocol{protocol, bocage.ProtocolAny} {
			for _, rule := range r.rules[at] {
				if rule.Protocol == p && rule.Ports.Contains(port) {
					return rule.Decision
				}
			}
		}
	}
	return r.rs.Default
}
