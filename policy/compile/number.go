package compile

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"

	"bocage.dev/bocage"
)

// number gives every subject its group: a hash of what the members have in
// common. Of two with one hash, the later in the order of keys moves on, so the
// numbers follow from the set and not from its history.
func (p *population) number() {
	taken := map[bocage.Group]bool{}
	for _, i := range p.byKey() {
		s := &p.subjects[i]
		g := bocage.Group(hash32(s.key))
		for g < bocage.GroupFirst || taken[g] {
			g++
		}
		s.group, taken[g] = g, true
	}
}

func (p *population) byKey() []int32 {
	order := make([]int32, 0, len(p.subjects)-1)
	for i := 1; i < len(p.subjects); i++ {
		order = append(order, int32(i))
	}
	slices.SortFunc(order, func(a, b int32) int { return cmp.Compare(p.subjects[a].key, p.subjects[b].key) })
	return order
}

// assemble writes the ruleset with all numbers.
func (c *compiler) assemble(rules []rule) *bocage.Ruleset {
	refusals := make([]int32, len(c.refusals))
	for i, r := range c.refusals {
		refusals[i] = c.decisions.intern(decision{verdict: bocage.VerdictDrop, code: bocage.ReasonQuarantine, log: true, by: r.by, then: unset})
	}
	used := make([]bool, len(c.decisions.list))
	used[0] = true
	for _, r := range rules {
		used[r.decision] = true
	}
	for _, d := range refusals {
		used[d] = true
	}
	c.decisions.follow(used)
	numbers := c.decisions.number(used)
	profiles := c.numberProfiles(used)

	rs := &bocage.Ruleset{
		Peers:     []bocage.Peer{},
		Groups:    []bocage.GroupInfo{},
		Rules:     make([]bocage.Rule, len(rules)),
		Decisions: []bocage.Decision{},
		Default:   numbers[0],
	}
	for i, r := range rules {
		rs.Rules[i] = bocage.Rule{From: c.groupOf(r.from), To: c.groupOf(r.to), Protocol: r.protocol, Ports: r.ports, Decision: numbers[r.decision]}
	}
	slices.SortFunc(rs.Rules, bocage.CompareRules)
	for i, d := range c.decisions.list {
		if !used[i] {
			continue
		}
		written := bocage.Decision{ID: numbers[i], Verdict: d.verdict, Code: d.code,
			Profile: profiles[profileName(d.profiles)], Log: d.log, By: d.by}
		if !d.duties.Empty() {
			written.Duties = &d.duties
		}
		if !d.until.IsZero() {
			written.Until, written.Then = d.until.UTC(), numbers[d.then]
		}
		rs.Decisions = append(rs.Decisions, written)
	}
	slices.SortFunc(rs.Decisions, func(a, b bocage.Decision) int { return cmp.Compare(a.ID, b.ID) })
	for i, r := range c.refusals {
		rs.Refused = append(rs.Refused, bocage.Refusal{Identity: r.identity, Decision: numbers[refusals[i]], Until: r.until.UTC()})
	}
	rs.Profiles = c.profiles.used
	rs.Decoys = c.placed(rs)
	c.describe(rs)
	return rs
}

func (c *compiler) groupOf(i int32) bocage.Group {
	if i == anyone {
		return bocage.GroupAny
	}
	return c.pop.subjects[i].group
}

// describe lists who has which address and group.
func (c *compiler) describe(rs *bocage.Ruleset) {
	for i := 1; i < len(c.pop.subjects); i++ {
		s := &c.pop.subjects[i]
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: s.group, Enforce: s.enforce || s.restricted(), Name: s.name})
		if i < c.pop.workloads {
			rs.Peers = append(rs.Peers, bocage.Peer{Prefix: s.prefix, Identity: bocage.IdentityWorld, Group: s.group})
		}
		for _, w := range s.members {
			host := w.Spec.Host
			if w.Spec.Interface == "" {
				host = "" // nothing stands in front of it
			}
			for _, addr := range w.Spec.Addresses {
				rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Identity: w.Status.Identity,
					Group: s.group, Host: host, Workload: w.NamespacedName()})
			}
		}
	}
	slices.SortFunc(rs.Peers, func(a, b bocage.Peer) int { return comparePrefixes(a.Prefix, b.Prefix) })
	slices.SortFunc(rs.Groups, func(a, b bocage.GroupInfo) int { return cmp.Compare(a.Group, b.Group) })
}

// placed lists the decoys that some rule leads to.
func (c *compiler) placed(rs *bocage.Ruleset) []bocage.DecoyPlacement {
	return placements(c.placements, rs.Rules, rs.Decisions)
}

func placements(all []bocage.DecoyPlacement, rules []bocage.Rule, decisions []bocage.Decision) []bocage.DecoyPlacement {
	diverting := map[bocage.DecisionID]bool{}
	for _, d := range decisions {
		diverting[d.ID] = d.Verdict == bocage.VerdictDecoy
	}
	ports := map[uint16]bool{}
	for _, r := range rules {
		if diverting[r.Decision] {
			ports[r.Ports.First] = true // a decoy's rule covers its one port
		}
	}
	var out []bocage.DecoyPlacement
	for _, p := range all {
		if ports[p.Port] {
			out = append(out, p)
		}
	}
	return out
}

// number gives decisions their ids: a hash of the content. Zero is no decision.
func (d *decisions) number(used []bool) []bocage.DecisionID {
	type entry struct {
		key   string
		index int
	}
	var order []entry
	for key, i := range d.byContent {
		if used[i] {
			order = append(order, entry{key, int(i)})
		}
	}
	slices.SortFunc(order, func(a, b entry) int { return cmp.Compare(a.key, b.key) })
	numbers := make([]bocage.DecisionID, len(d.list))
	taken := make(map[bocage.DecisionID]bool, len(order))
	for _, e := range order {
		id := bocage.DecisionID(hash32(e.key))
		for id == 0 || taken[id] {
			id++
		}
		numbers[e.index], taken[id] = id, true
	}
	return numbers
}

func hash32(s string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(s))
	return h.Sum32()
}

func quoteList(names []string) string {
	var b []byte
	for i, n := range names {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = strconv.AppendQuote(b, n)
	}
	return string(b)
}
