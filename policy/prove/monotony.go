package prove

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// monotony proves that threat conditions, responses and quarantines open nothing, remove no
// duty and end no enforcement: it compares the ruleset with one compiled without them.
func (p *prover) monotony(compiled func(compile.Input) *bocage.Ruleset) bocage.Proof {
	statement, ref := "threat conditions, responses and quarantines open nothing and lift no duty", whole("monotony")
	if len(p.in.ThreatConditions) == 0 && len(p.in.Quarantines) == 0 {
		return proof(statement, ref, "")
	}
	calm := p.in
	calm.ThreatConditions, calm.Quarantines = nil, nil // responses stay: they have no effect without conditions, but their prefixes divide groups
	return proof(statement, ref, p.loosenedByThreats(compiled(calm)))
}

// sameButRefused reports whether two rulesets differ only in which identities are
// quarantined.
func sameButRefused(a, b *bocage.Ruleset) bool {
	return a.Default == b.Default && slices.Equal(a.Peers, b.Peers) && slices.Equal(a.Groups, b.Groups) && slices.Equal(a.Rules, b.Rules) &&
		slices.EqualFunc(a.Namings, b.Namings, bocage.Naming.Equal) && slices.Equal(a.Apart, b.Apart) &&
		slices.Equal(a.Reasons, b.Reasons) && slices.Equal(a.Names, b.Names) && slices.Equal(a.Profiles, b.Profiles) &&
		slices.EqualFunc(withoutCuts(a), withoutCuts(b), func(x, y bocage.Decision) bool { return reflect.DeepEqual(x, y) })
}

// withoutCuts lists the decisions except those that only refusals of identities name.
func withoutCuts(rs *bocage.Ruleset) []bocage.Decision {
	if len(rs.Refused) == 0 {
		return rs.Decisions
	}
	named := make(map[bocage.DecisionID]bool, len(rs.Decisions))
	use := func(id bocage.DecisionID) {
		for !named[id] {
			named[id] = true
			if d, known := rs.Decision(id); known && !d.Until.IsZero() {
				id = d.Then
			}
		}
	}
	use(rs.Default)
	for _, list := range [2][]bocage.Rule{rs.Rules, rs.Reasons} {
		for _, r := range list {
			use(r.Decision)
		}
	}
	for _, n := range rs.Namings {
		for _, c := range n.Cells {
			use(c.Decision)
		}
	}
	return slices.DeleteFunc(slices.Clone(rs.Decisions), func(d bocage.Decision) bool { return !named[d.ID] })
}

func (p *prover) loosenedByThreats(calm *bocage.Ruleset) string {
	if sameButRefused(calm, p.rs) {
		return ""
	}
	base := newReach(calm)
	enforced, tight := enforcement(calm), enforcement(p.rs)
	// Threat conditions divide groups and never merge them, so that each of our groups
	// must be within one group of the calm ruleset, which has no threat conditions.
	calmGroup := map[bocage.Group]bocage.Group{bocage.GroupWorld: bocage.GroupWorld}
	calmPeer := make(map[netip.Prefix]bocage.Group, len(calm.Peers))
	for _, peer := range calm.Peers {
		calmPeer[peer.Prefix] = peer.Group
	}
	for _, peer := range p.rs.Peers {
		was := calmPeer[peer.Prefix]
		if old, known := calmGroup[peer.Group]; known && old != was {
			return fmt.Sprintf("group %d joins %s with workloads that policy tells apart", peer.Group, p.who(peer.Group))
		}
		calmGroup[peer.Group] = was
		if enforced[was] && !tight[peer.Group] {
			return fmt.Sprintf("refusals of %s are enforced without threat conditions, and only observed with them", p.who(peer.Group))
		}
	}
	groupBefore := func(g bocage.Group) bocage.Group { return calmGroup[g] }
	if found := p.looserThan(base, groupBefore, nil, "without threat conditions"); found != "" {
		return found
	}
	return p.looserByName(calm, base, groupBefore, nil, "without threat conditions")
}

// looserThan finds a flow that gets more than in the other ruleset base, where groupBefore
// is the group that the members of a group have there. It checks all pairs with a rule of
// their own, and other pairs if one of their groups is picked (nil: all).
func (p *prover) looserThan(base *reach, groupBefore func(bocage.Group) bocage.Group, picked func(bocage.Group) bool, other string) string {
	within := map[bocage.Group][]bocage.Group{}
	both := *p.reach // special in either ruleset: no group may stand for one that only one of them names
	both.fromAny, both.toAny, both.special = maps.Clone(p.reach.fromAny), maps.Clone(p.reach.toAny), map[pair]bool{}
	for _, g := range p.groups {
		was := groupBefore(g)
		within[was] = append(within[was], g)
		both.fromAny[g] = both.fromAny[g] || base.fromAny[was]
		both.toAny[g] = both.toAny[g] || base.toAny[was]
	}
	found := ""
	seen := map[[2][4]int32]bool{} // by the content of the pair's rules in both
	check := func(from, to bocage.Group) bool {
		if found != "" {
			return false
		}
		places, now := levels(groupBefore(from), groupBefore(to)), levels(from, to)
		var said [2][4]int32
		for i := range now {
			said[0][i], said[1][i] = base.content(places[i]), p.reach.content(now[i])
		}
		if !seen[said] {
			seen[said] = true
			found = p.looserPair(base, from, to, places, other)
		}
		return found == ""
	}
	for _, at := range p.reach.exact {
		if p.reach.mayAllow(at.from, at.to) && !check(at.from, at.to) {
			return found
		}
	}
	for _, at := range base.exact {
		for _, from := range within[at.from] {
			for _, to := range within[at.to] {
				if p.reach.rules[pair{from, to}] == nil {
					both.special[pair{from, to}] = true
				}
				if p.reach.mayAllow(from, to) && !check(from, to) {
					return found
				}
			}
		}
	}
	everyone := func(bocage.Group) bool { return true }
	if picked == nil {
		picked = everyone
	} else {
		both.eachWildcardPair(p.groups, everyone, picked, true, check)
	}
	both.eachWildcardPair(p.groups, picked, everyone, true, check)
	return found
}

// looserPair finds a cell of a pair that gets more than in base. other is the text for base.
func (p *prover) looserPair(base *reach, from, to bocage.Group, calmPlaces [4]pair, other string) string {
	spans := base.spans(calmPlaces)
	found := ""
	p.reach.eachCell(from, to, spans, func(protocol bocage.Protocol, ports bocage.PortRange, id bocage.DecisionID) bool {
		if looser := p.looserLink(base, base.lookUp(calmPlaces, protocol, ports.First), id); looser != nil {
			found = fmt.Sprintf("%s gets %s, %s %s", p.flow(from, to, protocol, ports.First), looser.is.Verdict, other, looser.was.Verdict)
		}
		return found == ""
	})
	return found
}

// loosening is a pair of decisions, of which the second gives more.
type loosening struct{ was, is bocage.Decision }

// looserLink finds a moment at which a decision gives more than the one of base; nil if
// there is none.
func (p *prover) looserLink(base *reach, was, is bocage.DecisionID) *loosening {
	moments := []time.Time{p.in.Now}
	note := func(at time.Time, _ bocage.Decision) bool { moments = append(moments, at); return true }
	p.reach.eachLink(is, p.in.Now, note)
	base.eachLink(was, p.in.Now, note)
	for _, at := range moments {
		if l := (loosening{base.at(was, at), p.reach.at(is, at)}); p.looser(base, l.was, l.is) {
			return &l
		}
	}
	return nil
}

// looser reports whether a decision gives more than that of base.
func (p *prover) looser(base *reach, was, is bocage.Decision) bool {
	if !is.Verdict.Allowed() {
		return false
	}
	lost := slices.ContainsFunc(compile.ProfileNames(base.profiles[was.Profile]), func(name string) bool {
		return !slices.Contains(compile.ProfileNames(p.reach.profiles[is.Profile]), name)
	})
	owed := is.Duties
	if owed == nil {
		owed = new(bocage.Duties)
	}
	return !was.Verdict.Allowed() || lost || was.Log && !is.Log || was.Duties != nil && !atLeast(*owed, *was.Duties)
}

func enforcement(rs *bocage.Ruleset) map[bocage.Group]bool {
	out := make(map[bocage.Group]bool, len(rs.Groups))
	for _, g := range rs.Groups {
		out[g.Group] = g.Enforce
	}
	return out
}
