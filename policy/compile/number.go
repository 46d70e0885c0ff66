package compile

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"

	"bocage.dev/bocage"
)

// number gives every subject its group.
func (p *population) number() {
	keys := make([]string, 0, len(p.byKey))
	for key := range p.byKey {
		keys = append(keys, key)
	}
	p.numbers = newNumbering(uint32(bocage.GroupFirst), keys)
	for key, i := range p.byKey {
		p.subjects[i].group = bocage.Group(p.numbers.of(key))
	}
}

// assemble writes the ruleset with all numbers.
func (c *compiler) assemble(g *grid) *bocage.Ruleset {
	refusals := make([]int32, len(c.refusals))
	for i, r := range c.refusals {
		refusals[i] = c.decisions.intern(decision{verdict: bocage.VerdictDrop, code: bocage.ReasonQuarantine, log: true, by: r.by, then: unset})
	}
	used := make([]bool, len(c.decisions.list))
	used[0] = true
	patches := make([]bool, len(g.tables.patches))
	count := 0
	g.eachEntry(func(e entry) {
		patches[e.patch] = true
		count += g.tables.patches[e.patch].rules()
	})
	for _, patch := range g.reasons {
		patches[patch] = true
	}
	for i, in := range patches {
		if in {
			p := g.tables.patches[i]
			each(p.rest, p.protocols, func(d int32) { used[d] = true })
		}
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
		Rules:     make([]bocage.Rule, 0, count),
		Decisions: []bocage.Decision{},
		Default:   numbers[0],
	}
	g.eachEntry(func(e entry) {
		rs.Rules = g.tables.patches[e.patch].appendRules(rs.Rules, c.groupOf(e.from), c.groupOf(e.to), numbers)
	})
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
	c.giveReasons(rs, g, numbers)
	return rs
}

// rules counts those of a patch.
func (p patch) rules() int {
	n := 0
	each(p.rest, p.protocols, func(int32) { n++ })
	return n
}

// appendRules writes a patch as rules between two groups.
func (p patch) appendRules(rules []bocage.Rule, from, to bocage.Group, numbers []bocage.DecisionID) []bocage.Rule {
	if p.rest != unset {
		rules = append(rules, bocage.Rule{From: from, To: to, Protocol: bocage.ProtocolAny, Ports: bocage.AllPorts, Decision: numbers[p.rest]})
	}
	for _, listed := range p.protocols {
		for _, cell := range listed.cells {
			rules = append(rules, bocage.Rule{From: from, To: to, Protocol: listed.protocol,
				Ports: bocage.PortRange{First: cell.first, Last: cell.last}, Decision: numbers[cell.decision]})
		}
	}
	return rules
}

// giveReasons writes the reasons, and in the groups who stands for whom there.
func (c *compiler) giveReasons(rs *bocage.Ruleset, g *grid, numbers []bocage.DecisionID) {
	if len(g.reasons) == 0 {
		return
	}
	senders, receivers := make([]bocage.Group, len(g.sources.coarse)), make([]bocage.Group, len(g.targets.coarse))
	for pair, patch := range g.reasons {
		senders[pair.from] = c.groupOf(g.sources.coarse[pair.from].leader)
		receivers[pair.to] = c.groupOf(g.targets.coarse[pair.to].leader)
		rs.Reasons = g.tables.patches[patch].appendRules(rs.Reasons, senders[pair.from], receivers[pair.to], numbers)
	}
	slices.SortFunc(rs.Reasons, bocage.CompareRules)
	for i := range c.pop.subjects {
		if i == worldSubject || c.pop.subjects[i].gone() {
			continue
		}
		at, _ := slices.BinarySearchFunc(rs.Groups, c.groupOf(int32(i)), func(info bocage.GroupInfo, want bocage.Group) int { return cmp.Compare(info.Group, want) })
		rs.Groups[at].Sender = senders[g.sources.list[g.sources.of[i]].coarse]
		rs.Groups[at].Receiver = receivers[g.targets.list[g.targets.of[i]].coarse]
	}
}

func (c *compiler) groupOf(i int32) bocage.Group {
	if i == anyone {
		return bocage.GroupAny
	}
	return c.pop.subjects[i].group
}

// describe lists who has which address and group.
func (c *compiler) describe(rs *bocage.Ruleset) {
	for i := range c.pop.subjects {
		s := &c.pop.subjects[i]
		if i == worldSubject || s.gone() {
			continue
		}
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: s.group, Enforce: s.enforce || c.held[int32(i)], Name: s.name})
		if i < c.pop.workloads {
			rs.Peers = append(rs.Peers, bocage.Peer{Prefix: s.prefix, Identity: bocage.IdentityWorld, Group: s.group})
		}
		for _, w := range s.members {
			host := w.Spec.Host
			if w.Spec.Interface == "" {
				host = "" // nothing stands in front of it
			}
			for _, addr := range c.pop.addressesOf(s, w) {
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
