package prove

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Tightening shows what has to be known of a generation that is to be in force
// before Prove is done with it: that it gives nobody more than the one before, so
// that whatever was proved to be refused there stays refused, and that nothing
// which tightens by itself refuses what a guardrail protects. It looks at whom the
// change concerns and at nobody else.
func Tightening(before *bocage.Ruleset, in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
	c := newConcern(before, rs)
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

// protected proves that nothing automatic refuses what guardrails protect.
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
			counter = p.burdened(r)
		}
		proofs = append(proofs, proof(fmt.Sprintf("no threat condition and no response refuses what Guardrail %s protects, or asks of it what may cost it packets", g.Name),
			compile.Ref("Guardrail", g, fmt.Sprintf("spec.protect[%d]", i)), counter))
	}
	return proofs
}

// concern is whom two rulesets may treat differently.
type concern struct {
	was, now map[bocage.Group]bool         // groups of the one before, and of the one after
	pairs    map[pair]bool                 // besides: pairs whose own rules are others
	before   map[bocage.Group]bocage.Group // of a group: the one that its members were in
	altered  map[bocage.DecisionID]bool    // whose number says something else
	joined   bocage.Group                  // a group whose members were in several, if there is one
	strange  netip.Prefix                  // one that only one of the two knows, if there is one
	everyone bool
	// reclassed says that somebody is in another class than before.
	reclassed bool
}

func newConcern(before, now *bocage.Ruleset) *concern {
	c := &concern{was: map[bocage.Group]bool{}, now: map[bocage.Group]bool{}, pairs: map[pair]bool{},
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
	for g, was := range c.before { // who was together with somebody concerned, and no longer is
		if c.was[was] {
			c.now[g] = true
		}
	}
	return c
}

// comparePeers finds the groups that members came into or left.
func (c *concern) comparePeers(before, now *bocage.Ruleset) {
	old := make(map[netip.Prefix]bocage.Group, len(before.Peers))
	for _, p := range before.Peers {
		old[p.Prefix] = p.Group
	}
	for _, p := range now.Peers {
		was, known := old[p.Prefix]
		if delete(old, p.Prefix); !known {
			c.strange = p.Prefix
		}
		if other, known := c.before[p.Group]; known && other != was {
			c.joined = p.Group
		}
		if c.before[p.Group] = was; was != p.Group {
			c.was[was], c.now[p.Group] = true, true
		}
	}
	for prefix := range old {
		c.strange = prefix
	}
}

// groupBefore is the group that the members of a group were in: itself, where
// nobody is told otherwise, such as for names.
func (c *concern) groupBefore(g bocage.Group) bocage.Group {
	if was, known := c.before[g]; known {
		return was
	}
	return g
}

// alteredDecisions are those whose number says something else than before, now or
// later.
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
			was.Code != d.Code || was.Final != d.Final || was.Ranks != d.Ranks || // before which names it gives way
			!was.Until.Equal(d.Until) || was.Then != d.Then || other[d.Profile]) {
			altered[d.ID] = true
		}
	}
	for more := len(altered) > 0; more; { // what gives way to something altered is altered
		more = false
		for i := range now.Decisions {
			if d := &now.Decisions[i]; !d.Until.IsZero() && altered[d.Then] && !altered[d.ID] {
				altered[d.ID], more = true, true
			}
		}
	}
	return altered
}

// part is a ruleset without the rules of pairs that are not concerned.
// Rules of one end stay: concerned ones meet everybody.
func (c *concern) part(rs *bocage.Ruleset, concerned map[bocage.Group]bool) *bocage.Ruleset {
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
	crowds := map[*bocage.Group][]bocage.Group{} // by the first of those of whom there are too many
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

// looser finds a flow of somebody concerned that is given more than before.
func (c *concern) looser(p *prover, before *bocage.Ruleset) string {
	if c.strange.IsValid() {
		return fmt.Sprintf("%s is told apart by one of the two only", c.strange)
	}
	if c.joined != 0 {
		return fmt.Sprintf("%s joins workloads that were told apart", p.who(c.joined))
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
	// Why an address is refused decides whether a name opens it, and that a rule of nobody
	// concerned may say otherwise: reasons are between classes.
	named := func(from, to bocage.Group) bool { return concerned(from) || concerned(to) || c.pairs[pair{from, to}] }
	if !slices.Equal(before.Names, p.rs.Names) || !slices.Equal(before.Reasons, p.rs.Reasons) || c.reclassed {
		named = nil
	}
	return p.looserByName(before, base, c.groupBefore, named, "before")
}

// released tells of somebody who was cut off and no longer is, or not for as long.
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
