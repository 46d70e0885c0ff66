package compile

import (
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// block is a part of a CellMatch in which the ports are the same everywhere.
type block struct {
	from, to side
	ports    ports
}

// stateGuardrails states what is never allowed, what is kept apart, what allowed
// flows owe, what is granted without contract and what nothing automatic may cut.
func (c *compiler) stateGuardrails() {
	for _, g := range c.in.guardrails {
		c.stateGuardrail(g)
	}
}

func (c *compiler) stateGuardrail(g *bocage.Guardrail) {
	match := &g.Spec.Match
	c.checkMatch("Guardrail", g, "spec.match", match)
	for i := range g.Spec.Never {
		never, at := &g.Spec.Never[i], field("spec.never", i)
		ref := Ref("Guardrail", g, at)
		c.checkMatch("Guardrail", g, at, never)
		if why := apart(match, never); why != "" {
			c.findings.note(ref, NothingMatches, "spec.match and this entry exclude each other: %s", why)
		}
		for _, b := range c.resolve(*match, *never) {
			c.state(statement{kind: refuse, from: b.from, to: b.to, ports: b.ports, by: []bocage.Ref{ref},
				guardrail: g.Name, disposition: wished(g.Spec.Disposition)})
		}
	}
	c.stateSeparate(g)
	for i := range g.Spec.Grant {
		at := field("spec.grant", i)
		c.checkMatch("Guardrail", g, at, &g.Spec.Grant[i])
		for _, b := range c.resolve(g.Spec.Grant[i]) {
			c.state(statement{kind: allow, from: b.from, to: b.to, ports: b.ports, by: []bocage.Ref{Ref("Guardrail", g, at)}})
		}
	}
	c.noteDuties("Guardrail", g, "spec.require", g.Spec.Require)
	c.stateRequire(g)
	c.stateExceptions(g)
	c.stateProtect(g)
	if b := g.Spec.BlastRadius; b != nil {
		c.checkSide("Guardrail", g, "spec.blastRadius.from", &b.From)
	}
}

// stateSeparate refuses flows between workloads with different values of a label,
// value by value.
func (c *compiler) stateSeparate(g *bocage.Guardrail) {
	if g.Spec.Separate == nil {
		return
	}
	by := []bocage.Ref{Ref("Guardrail", g, "spec.separate")}
	for _, b := range c.resolve(g.Spec.Match) {
		from, to := c.byValue(b.from, g.Spec.Separate.Label()), c.workloadsOf(b.to)
		for _, alike := range from {
			others := slices.DeleteFunc(slices.Clone(to), func(i int32) bool { return c.labelOf(i, g.Spec.Separate.Label()) == alike.value })
			c.state(statement{kind: refuse, from: side{list: alike.list}, to: side{list: others}, ports: b.ports, by: by,
				guardrail: g.Name, disposition: wished(g.Spec.Disposition)})
		}
	}
}

// labelled is a label's value, or that it is not there.
type labelled struct {
	value   string
	present bool
}

func (c *compiler) labelOf(i int32, key string) labelled {
	value, present := c.pop.subjects[i].label(key)
	return labelled{value, present}
}

// alike are subjects with one value of a label.
type alike struct {
	value labelled
	list  []int32
}

// byValue divides the workloads of a side by the value of a label.
func (c *compiler) byValue(s side, key string) []alike {
	var out []alike
	at := map[labelled]int{}
	for _, i := range c.workloadsOf(s) {
		value := c.labelOf(i, key)
		n, known := at[value]
		if !known {
			n = len(out)
			at[value] = n
			out = append(out, alike{value: value})
		}
		out[n].list = append(out[n].list, i)
	}
	return out
}

// workloadsOf lists the groups of workloads of a side.
func (c *compiler) workloadsOf(s side) []int32 {
	if s.any {
		return c.pop.all()
	}
	first, _ := slices.BinarySearch(s.list, int32(c.pop.workloads))
	return s.list[first:]
}

// stateProtect keeps open what nothing automatic may refuse, where something
// automatic refuses today. A name may mean any address outside that is protected.
func (c *compiler) stateProtect(g *bocage.Guardrail) {
	for i := range g.Spec.Protect {
		at := field("spec.protect", i)
		c.checkMatch("Guardrail", g, at, &g.Spec.Protect[i])
		if len(c.touched) == 0 {
			continue
		}
		touched := side{list: c.touched}
		for _, b := range c.resolve(g.Spec.Protect[i]) {
			s := statement{kind: protect, ports: b.ports, by: []bocage.Ref{Ref("Guardrail", g, at)}}
			s.from, s.to = b.from.meet(touched), c.pop.orNames(b.to)
			c.state(s)
			s.from, s.to = b.from, b.to.meet(touched)
			c.state(s)
		}
	}
}

// protectedAround reports whether some protected cell begins or ends at one of
// the subjects.
func (c *compiler) protectedAround(subjects []int32) bool {
	there := side{list: subjects}
	return slices.ContainsFunc(c.protected, func(b block) bool {
		return !b.from.meet(there).empty() || !b.to.meet(there).empty()
	})
}

// stateDuties states what allowed flows of the blocks owe. like carries what the
// statements have in common: whether they are automatic, too, and so yield if they may
// cost a flow packets.
func (c *compiler) stateDuties(kind string, o bocage.Resource, at string, d *bocage.Duties, blocks []block, like statement) {
	if d == nil {
		return
	}
	for i := range blocks {
		blocks[i].to = c.pop.orNames(blocks[i].to)
	}
	owed := func(name string, d bocage.Duties, impossible bool, blocks ...block) {
		s := like
		s.kind, s.by = owe, []bocage.Ref{Ref(kind, o, at+"."+name)}
		s.duty.Duties, s.duty.impossible = d, impossible
		s.duty.yields = like.duty.yields && c.mayRefuse(d)
		for _, b := range blocks {
			s.from, s.to, s.ports = b.from, b.to, b.ports
			c.state(s)
		}
	}
	if d.Inspect != "" {
		owed("inspect", bocage.Duties{Inspect: d.Inspect}, !c.hasProfile(d.Inspect), blocks...)
	}
	if d.Log != "" {
		owed("log", bocage.Duties{Log: d.Log}, false, blocks...)
	}
	if d.Verify != "" {
		owed("verify", bocage.Duties{Verify: d.Verify}, false, blocks...)
	}
	if d.Rate != "" {
		owed("rate", bocage.Duties{Rate: d.Rate}, false, blocks...)
	}
	if d.Whole {
		owed("whole", bocage.Duties{Whole: true}, false, blocks...)
	}
	if d.Witness {
		owed("witness", bocage.Duties{Witness: true}, false, blocks...)
	}
	if d.Provenance {
		owed("provenance", bocage.Duties{Provenance: true}, false, blocks...)
	}
	if d.Assurance != "" {
		owed("assurance", bocage.Duties{Assurance: d.Assurance}, false, blocks...)
		for _, b := range blocks {
			owed("assurance", bocage.Duties{Assurance: d.Assurance}, true,
				block{side{list: c.below(b.from, d.Assurance)}, b.to, b.ports}, block{b.from, side{list: c.below(b.to, d.Assurance)}, b.ports})
		}
	}
}

// mayRefuse reports whether owing the duties may cost a flow packets. What is kept in
// full detail, witnessed, or to prove where it comes from, is only told of.
func (c *compiler) mayRefuse(d bocage.Duties) bool {
	return d.Inspect != "" && c.profileMayRefuse(d.Inspect) || d.Verify != "" || d.Rate != "" || d.Whole || d.Assurance != ""
}

// below lists the groups of workloads of a side whose identities are not vouched
// for as well as that.
func (c *compiler) below(s side, least string) []int32 {
	want, _ := bocage.AssuranceLevel(least)
	var out []int32
	for _, i := range c.workloadsOf(s) {
		if have, _ := bocage.AssuranceLevel(c.pop.subjects[i].assurance()); have < want {
			out = append(out, i)
		}
	}
	return out
}

// resolve turns the intersection of matches into blocks. Data classes belong to
// interfaces, so that they narrow ports differently for every receiver.
func (c *compiler) resolve(matches ...bocage.CellMatch) []block {
	b := block{side{any: true}, side{any: true}, everything}
	var classes [][]string
	for _, m := range matches {
		b.from = b.from.meet(c.pop.side(m.From))
		b.to = b.to.meet(c.pop.side(m.To))
		b.ports = b.ports.meet(portMatches(m.Ports))
		if len(m.To.Data) > 0 {
			classes = append(classes, m.To.Data)
		}
	}
	if len(classes) == 0 {
		return []block{b}
	}
	byPorts := map[string]*block{}
	var keys []string
	var key []byte
	for _, t := range b.to.list {
		p := b.ports
		for _, class := range classes {
			p = p.meet(c.pop.subjects[t].offering(class))
		}
		if p.empty() {
			continue
		}
		key = p.appendKey(key[:0])
		part := byPorts[string(key)]
		if part == nil {
			part = &block{from: b.from, ports: p}
			keys = append(keys, string(key))
			byPorts[keys[len(keys)-1]] = part
		}
		part.to.list = append(part.to.list, t)
	}
	// Not in the order of whom they are about: those who come or go change it.
	slices.Sort(keys)
	blocks := make([]block, 0, len(keys))
	for _, key := range keys {
		blocks = append(blocks, *byPorts[key])
	}
	return blocks
}

// offering is where the subject offers interfaces with one of the data classes.
func (s *subject) offering(classes []string) ports {
	var out ports
	for _, o := range s.offers {
		switch {
		case !slices.ContainsFunc(o.data, func(class string) bool { return slices.Contains(classes, class) }):
		case out.empty():
			out = o.ports // of most there is one
		default:
			out = out.join(o.ports)
		}
	}
	return out
}

func prefixList(p netip.Prefix) []netip.Prefix { return []netip.Prefix{p} }
