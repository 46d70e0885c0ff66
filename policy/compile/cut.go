package compile

import (
	"cmp"
	"maps"
	"slices"

	"bocage.dev/bocage"
)

// Cut makes the ruleset of one host out of the whole: what its enforcement
// points need to decide every flow from or to its workloads, and no more of the
// rules than that. Every peer stays, since anybody may turn up at a port.
func Cut(rs *bocage.Ruleset, in Input, host string) *bocage.Ruleset {
	return NewCutter(rs, in).Cut(host)
}

// Cutter cuts one ruleset for many hosts.
type Cutter struct {
	whole    *bocage.Ruleset
	ports    map[string][]bocage.Port
	groups   map[string][]bocage.Group // by host: those of the addresses behind its ports
	byGroup  map[bocage.Group][]int32  // rules that name the group, in order
	wildcard []int32                   // rules in which a side is anyone
	reasons  *reasons
	of       []*bocage.Workload

	enforcing []*bocage.Scope   // by name
	zones     map[string]string // of hosts
}

// Enforcing lists the scopes of an input that enforce, by name.
func Enforcing(in Input) []*bocage.Scope {
	var scopes []*bocage.Scope
	for _, s := range in.Scopes {
		if s.Spec.Mode == bocage.ModeEnforce && len(s.Validate()) == 0 {
			scopes = append(scopes, s)
		}
	}
	slices.SortFunc(scopes, func(a, b *bocage.Scope) int { return cmp.Compare(a.Name, b.Name) })
	return scopes
}

// NewCutter prepares to cut a ruleset that was compiled from the input.
func NewCutter(rs *bocage.Ruleset, in Input) *Cutter {
	c := &Cutter{whole: rs, of: in.Workloads, ports: map[string][]bocage.Port{}, groups: map[string][]bocage.Group{}, byGroup: map[bocage.Group][]int32{}}
	placed := make(map[bocage.Identity]bocage.Peer, len(rs.Peers))
	for _, p := range rs.Peers {
		if p.Workload != "" {
			placed[p.Identity] = p
		}
		if p.Host != "" {
			c.groups[p.Host] = append(c.groups[p.Host], p.Group)
		}
	}
	seen := make(map[bocage.Identity]bool, len(in.Workloads))
	for _, w := range in.Workloads {
		// Only what the compiler admitted is a peer: of two claimants to one
		// number, the other one.
		peer, ok := placed[w.Status.Identity]
		if !ok || peer.Workload != w.NamespacedName() || peer.Host != w.Spec.Host || seen[w.Status.Identity] {
			continue
		}
		seen[w.Status.Identity] = true
		for _, i := range w.Spec.Interfaces() {
			c.ports[w.Spec.Host] = append(c.ports[w.Spec.Host], bocage.Port{Interface: i.Interface, Identity: peer.Identity,
				Group: peer.Group, Workload: peer.Workload, MAC: i.MAC, Addresses: i.Addresses, Instance: w.Spec.Instance})
		}
	}
	c.enforcing, c.zones = Enforcing(in), bocage.ZonesOfHosts(in.Zones)
	for i, r := range rs.Rules {
		if r.From == bocage.GroupAny || r.To == bocage.GroupAny {
			c.wildcard = append(c.wildcard, int32(i))
			continue
		}
		c.byGroup[r.From] = append(c.byGroup[r.From], int32(i))
		if r.To != r.From {
			c.byGroup[r.To] = append(c.byGroup[r.To], int32(i))
		}
	}
	c.reasons = newReasons(rs)
	return c
}

// Follow prepares to cut the ruleset that came after c's, which may be nil. What is
// the same in both is not looked at again: a quarantine changes nothing here.
func (c *Cutter) Follow(rs *bocage.Ruleset, in Input) *Cutter {
	if c == nil || !same(c.whole.Peers, rs.Peers) || !same(c.whole.Groups, rs.Groups) || !same(c.whole.Rules, rs.Rules) ||
		!same(c.whole.Namings, rs.Namings) || !same(c.whole.Apart, rs.Apart) ||
		!same(c.whole.Reasons, rs.Reasons) || !same(c.of, in.Workloads) {
		return NewCutter(rs, in)
	}
	next := *c
	next.whole, next.enforcing, next.zones = rs, Enforcing(in), bocage.ZonesOfHosts(in.Zones)
	return &next
}

// Hosts lists the hosts that have enforcement points, sorted.
func (c *Cutter) Hosts() []string {
	hosts := make([]string, 0, len(c.ports))
	for host := range c.ports {
		hosts = append(hosts, host)
	}
	slices.Sort(hosts)
	return hosts
}

// Cut makes the ruleset of one host.
func (c *Cutter) Cut(host string) *bocage.Ruleset {
	whole := c.whole
	out := &bocage.Ruleset{
		Generation: whole.Generation, Digest: whole.Digest, Host: host,
		Peers: whole.Peers, Groups: whole.Groups, Default: whole.Default, Refused: whole.Refused,
		Ports: slices.Clone(c.ports[host]), Rules: []bocage.Rule{},
	}
	for _, w := range whole.Wires {
		if w.Host == host {
			out.Wires = append(out.Wires, w)
		}
	}
	for _, scope := range c.enforcing {
		if newcomers, ok := bocage.NewcomersOn(scope, host, c.zones[host]); ok {
			out.Newcomers = append(out.Newcomers, newcomers)
		}
	}
	slices.SortFunc(out.Ports, func(a, b bocage.Port) int {
		return cmp.Or(cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.Identity, b.Identity))
	})
	if len(out.Ports) > 0 {
		out.Rules = c.rules(c.groups[host])
	}
	out.Decisions = c.decisions(out)
	profiles := map[uint16]bool{}
	for _, d := range out.Decisions {
		profiles[d.Profile] = true
	}
	for _, p := range whole.Profiles {
		if profiles[p.Number] {
			out.Profiles = append(out.Profiles, p)
		}
	}
	out.Names = namesIn(whole.Names, out.Rules)
	out.Decoys = placements(whole.Decoys, out.Rules, out.Decisions)
	return out
}

// rules picks those that concern some groups. The rules are in order, so sorted
// places give sorted rules. What many groups share towards names becomes rules here.
func (c *Cutter) rules(groups []bocage.Group) []bocage.Rule {
	local := make(map[bocage.Group]bool, len(groups))
	places := slices.Clone(c.wildcard)
	for _, group := range groups {
		if !local[group] {
			local[group] = true
			places = append(places, c.byGroup[group]...)
		}
	}
	slices.Sort(places)
	places = slices.Compact(places)
	named := namedRules(c.whole, slices.Sorted(maps.Keys(local)))
	rules := make([]bocage.Rule, 0, len(places)+len(named))
	for _, place := range places {
		rule := c.whole.Rules[place]
		for len(named) > 0 && bocage.CompareRules(named[0], rule) < 0 {
			rules, named = append(rules, named[0]), named[1:]
		}
		rules = append(rules, rule)
	}
	rules = append(rules, named...)
	return c.reasons.spellOut(local, rules)
}

// decisions picks those that the cut names, their successors included.
func (c *Cutter) decisions(cut *bocage.Ruleset) []bocage.Decision {
	used := map[bocage.DecisionID]bool{}
	out := []bocage.Decision{}
	use := func(id bocage.DecisionID) {
		for !used[id] {
			used[id] = true
			i, found := slices.BinarySearchFunc(c.whole.Decisions, id, func(d bocage.Decision, id bocage.DecisionID) int { return cmp.Compare(d.ID, id) })
			if !found {
				return
			}
			d := c.whole.Decisions[i]
			out = append(out, d)
			if !d.Until.IsZero() {
				id = d.Then
			}
		}
	}
	use(cut.Default)
	for _, r := range cut.Rules {
		use(r.Decision)
	}
	for _, r := range cut.Refused {
		use(r.Decision)
	}
	slices.SortFunc(out, func(a, b bocage.Decision) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// placements lists the decoys that some rule leads to, now or later.
func placements(all []bocage.DecoyPlacement, rules []bocage.Rule, decisions []bocage.Decision) []bocage.DecoyPlacement {
	diverting := map[bocage.DecisionID]bool{}
	then := map[bocage.DecisionID][]bocage.DecisionID{} // who a decision follows
	var divert func(id bocage.DecisionID)
	divert = func(id bocage.DecisionID) {
		if !diverting[id] {
			diverting[id] = true
			for _, before := range then[id] {
				divert(before)
			}
		}
	}
	for _, d := range decisions {
		if !d.Until.IsZero() {
			then[d.Then] = append(then[d.Then], d.ID)
		}
	}
	for _, d := range decisions {
		if d.Verdict == bocage.VerdictDecoy {
			divert(d.ID)
		}
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
