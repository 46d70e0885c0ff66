package prove

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Tightening is the check of a generation that comes into force before Prove is done. It
// proves that the generation allows nobody more than the one before, so that what was
// proved to be refused stays refused; and that no threat condition and no response refuses
// what a guardrail protects. It checks only the groups that the change affects.
func Tightening(before *bocage.Ruleset, in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
	c := newAffected(before, rs)
	p := &prover{in: in, rs: rs, reach: newReach(c.part(rs, c.now)), groups: slices.Sorted(maps.Keys(c.before)), members: map[bocage.Group]*members{}}
	for _, g := range rs.Groups {
		p.members[g.Group] = &members{name: g.Name}
	}
	proofs := []bocage.Proof{proof("nobody is given more than by the generation before", whole("tightening"), c.looser(p, before))}
	for _, g := range byName(in.Guardrails) {
		if spec := g.InForce(); spec != nil && len(spec.Protect) > 0 {
			return append(proofs, newProver(in, rs).protected()...)
		}
	}
	return proofs
}

// protected proves that no threat condition and no response refuses what guardrails protect.
func (p *prover) protected() []bocage.Proof {
	p.sides = new(sides).of(p.in, p.rs)
	var proofs []bocage.Proof
	for _, g := range byName(p.in.Guardrails) {
		if spec := g.InForce(); spec != nil {
			proofs = append(proofs, p.protects(g, spec)...)
		}
	}
	return proofs
}

// protects proves what one guardrail protects.
func (p *prover) protects(g *bocage.Guardrail, spec *bocage.GuardrailSpec) []bocage.Proof {
	var proofs []bocage.Proof
	for i, cells := range spec.Protect {
		r := p.region(cells)
		counter := p.cutByThreat(r)
		if counter == "" {
			counter = p.costlyDuty(r)
		}
		proofs = append(proofs, proof(fmt.Sprintf("no threat condition and no response refuses what Guardrail %s protects, or asks of it what may cost it packets", g.Name),
			compile.Ref("Guardrail", g, fmt.Sprintf("spec.protect[%d]", i)), counter))
	}
	return proofs
}

// affected is the set of groups and pairs that two rulesets may treat differently.
type affected struct {
	was, now        map[bocage.Group]bool         // groups of the ruleset before, and of the one after
	pairs           map[pair]bool                 // further pairs, whose own rules differ
	before          map[bocage.Group]bocage.Group // for each group, the one that its members were in
	altered         map[bocage.DecisionID]bool    // ids whose decision differs
	mergedGroup     bocage.Group                  // a group whose members were in several groups, if there is one
	unmatchedPrefix netip.Prefix                  // a prefix that only one of the two has, if there is one
	everyone        bool
	// reclassed says that some group is in another class of Reasons than before.
	reclassed bool
}

func newAffected(before, now *bocage.Ruleset) *affected {
	c := &affected{was: map[bocage.Group]bool{}, now: map[bocage.Group]bool{}, pairs: map[pair]bool{},
		before: map[bocage.Group]bocage.Group{bocage.GroupWorld: bocage.GroupWorld}}
	c.comparePeers(before, now)
	c.altered = alteredDecisions(before, now)
	c.everyone = before.Default != now.Default || c.altered[now.Default]
	names := map[bocage.Group]bool{}
	for _, name := range slices.Concat(before.Names, now.Names) {
		names[name.Group] = true
	}
	note := func(r bocage.Rule) {
		switch {
		case r.From == bocage.GroupAny && r.To == bocage.GroupAny:
			c.everyone = true
		case r.From == bocage.GroupAny:
			c.was[r.To], c.now[r.To] = true, true
		case r.To == bocage.GroupAny:
			c.was[r.From], c.now[r.From] = true, true
		case names[r.To]:
			c.was[r.From], c.now[r.From] = true, true
		default:
			c.pairs[pair{r.From, r.To}] = true
		}
	}
	old, rules := before.Rules, now.Rules
	for len(old) > 0 || len(rules) > 0 {
		switch {
		case len(rules) == 0 || len(old) > 0 && bocage.CompareRules(old[0], rules[0]) < 0:
			note(old[0])
			old = old[1:]
		case len(old) == 0 || bocage.CompareRules(old[0], rules[0]) > 0:
			note(rules[0])
			rules = rules[1:]
		default:
			if c.altered[rules[0].Decision] {
				note(rules[0])
			}
			old, rules = old[1:], rules[1:]
		}
	}
	bocage.EachChangedTowardsNames(before.Namings, now.Namings, before.Apart, now.Apart, func(id bocage.DecisionID) bool { return c.altered[id] },
		func(g bocage.Group) { c.was[g], c.now[g] = true, true })
	enforced, classes := enforcement(before), make(map[bocage.Group][2]bocage.Group, len(before.Groups))
	for _, g := range before.Groups {
		classes[g.Group] = [2]bocage.Group{g.Sender, g.Receiver}
	}
	for _, g := range now.Groups {
		c.reclassed = c.reclassed || classes[c.groupBefore(g.Group)] != [2]bocage.Group{g.Sender, g.Receiver}
		if was, known := enforced[c.groupBefore(g.Group)]; known && was != g.Enforce {
			c.now[g.Group] = true
		}
	}
	for g := range c.now {
		c.was[c.groupBefore(g)] = true
	}
	for g, was := range c.before { // groups that were divided from an affected one
		if c.was[was] {
			c.now[g] = true
		}
	}
	return c
}

// comparePeers finds the groups whose members changed.
func (c *affected) comparePeers(before, now *bocage.Ruleset) {
	old := make(map[netip.Prefix]bocage.Group, len(before.Peers))
	for _, p := range before.Peers {
		old[p.Prefix] = p.Group
	}
	for _, p := range now.Peers {
		was, known := old[p.Prefix]
		if delete(old, p.Prefix); !known {
			c.unmatchedPrefix = p.Prefix
		}
		if other, known := c.before[p.Group]; known && other != was {
			c.mergedGroup = p.Group
		}
		if c.before[p.Group] = was; was != p.Group {
			c.was[was], c.now[p.Group] = true, true
		}
	}
	for prefix := range old {
		c.unmatchedPrefix = prefix
	}
}

// groupBefore returns the group that the members of a group were in; the group itself if it
// has no members, as those of names.
func (c *affected) groupBefore(g bocage.Group) bocage.Group {
	if was, known := c.before[g]; known {
		return was
	}
	return g
}

// alteredDecisions returns the ids whose decision, or a successor of it, differs from before.
func alteredDecisions(before, now *bocage.Ruleset) map[bocage.DecisionID]bool {
	profiles := map[uint16]bocage.Profile{}
	for _, p := range before.Profiles {
		profiles[p.Number] = p
	}
	other := map[uint16]bool{}
	for _, p := range now.Profiles {
		other[p.Number] = profiles[p.Number].Name != p.Name
	}
	altered := map[bocage.DecisionID]bool{}
	for i := range now.Decisions {
		d := &now.Decisions[i]
		was, known := before.Decision(d.ID)
		duties := func(d *bocage.Decision) (owed bocage.Duties) {
			if d.Duties != nil {
				owed = *d.Duties
			}
			return owed
		}
		if known && (was.Verdict != d.Verdict || was.Profile != d.Profile || was.Log != d.Log || duties(&was) != duties(d) ||
			was.Code != d.Code || was.Final != d.Final || was.Ranks != d.Ranks || // which names have precedence over it
			!was.Until.Equal(d.Until) || was.Then != d.Then || other[d.Profile]) {
			altered[d.ID] = true
		}
	}
	for more := len(altered) > 0; more; { // a decision with an altered successor is altered
		more = false
		for i := range now.Decisions {
			if d := &now.Decisions[i]; !d.Until.IsZero() && altered[d.Then] && !altered[d.ID] {
				altered[d.ID], more = true, true
			}
		}
	}
	return altered
}

// part returns a ruleset without the rules of pairs that are not affected. Rules with a
// wildcard stay, since they apply to affected groups, too.
func (c *affected) part(rs *bocage.Ruleset, concerned map[bocage.Group]bool) *bocage.Ruleset {
	if c.everyone {
		return rs
	}
	part := &bocage.Ruleset{Default: rs.Default, Decisions: rs.Decisions, Profiles: rs.Profiles, Names: rs.Names}
	for _, r := range rs.Rules {
		if r.From == bocage.GroupAny || r.To == bocage.GroupAny || concerned[r.From] || concerned[r.To] || c.pairs[pair{r.From, r.To}] {
			part.Rules = append(part.Rules, r)
		}
	}
	part.Apart = rs.Apart
	crowds := map[*bocage.Group][]bocage.Group{} // by the first group of a naming's list, which identifies it
	for _, n := range rs.Namings {
		few, known := crowds[&n.From[0]]
		if !known {
			for _, g := range n.From {
				if concerned[g] {
					few = append(few, g)
				}
			}
			crowds[&n.From[0]] = few
		}
		if n.From = few; len(few) > 0 {
			part.Namings = append(part.Namings, n)
		}
	}
	return part
}

// looser finds a flow of an affected group that gets more than before.
func (c *affected) looser(p *prover, before *bocage.Ruleset) string {
	if c.unmatchedPrefix.IsValid() {
		return fmt.Sprintf("%s is told apart by one of the two only", c.unmatchedPrefix)
	}
	if c.mergedGroup != 0 {
		return fmt.Sprintf("%s joins workloads that were told apart", p.who(c.mergedGroup))
	}
	enforced, tight := enforcement(before), enforcement(p.rs)
	for _, g := range p.groups {
		if enforced[c.groupBefore(g)] && !tight[g] {
			return fmt.Sprintf("refusals of %s were enforced, and would be observed only", p.who(g))
		}
	}
	for _, r := range before.Refused {
		if counter := p.released(r); counter != "" {
			return counter
		}
	}
	base := newReach(c.part(before, c.was))
	concerned := func(g bocage.Group) bool { return c.everyone || c.now[g] }
	if found := p.looserThan(base, c.groupBefore, concerned, "before"); found != "" || len(p.rs.Names) == 0 {
		return found
	}
	// Whether a name opens an address depends on why the address is refused. Reasons are
	// between classes of groups, so a changed one can matter for groups that are not affected.
	named := func(from, to bocage.Group) bool { return concerned(from) || concerned(to) || c.pairs[pair{from, to}] }
	if !slices.Equal(before.Names, p.rs.Names) || !slices.Equal(before.Reasons, p.rs.Reasons) || c.reclassed {
		named = nil
	}
	return p.looserByName(before, base, c.groupBefore, named, "before")
}

// released returns a text if a refusal of an identity ended, or ends earlier than before.
func (p *prover) released(was bocage.Refusal) string {
	for _, r := range p.rs.Refused {
		if r.Identity == was.Identity && (r.Until.IsZero() || !was.Until.IsZero() && !r.Until.Before(was.Until)) {
			return ""
		}
	}
	if !was.Until.IsZero() && !was.Until.After(p.in.Now) {
		return "" // it is over
	}
	return fmt.Sprintf("identity %d was cut off, and would not be", was.Identity)
}
