package compile

import (
	"fmt"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// This file proves emptiness: that what one author allows or protects is refused
// as a whole by guardrails. Refusals always win, so nothing is undefined; but
// the authors should know of each other. A guardrail with an exception in force
// proves nothing, for it does not refuse all that it says.

// mostSteps bounds the work of all proofs of one compilation: about as much as
// the rest of a large one. What would take longer is not proved.
const mostSteps = 2_000_000

// noteContradictions tells the authors of what is empty, and those who empty it.
func (c *compiler) noteContradictions() {
	r := c.refusers()
	for _, g := range c.in.guardrails {
		for _, list := range []struct {
			field, verb string
			matches     []bocage.CellMatch
		}{{"spec.grant", "allows", g.Spec.Grant}, {"spec.protect", "protects", g.Spec.Protect}} {
			for i := range list.matches {
				c.noteEmptied(r, Ref("Guardrail", g, field(list.field, i)), list.verb, &list.matches[i])
			}
		}
	}
	c.noteEmptyContracts(r)
}

// noteEmptied proves that a grant or a protection is empty: for ever, by what one
// never says, or with the workloads of today, by what several say together.
func (c *compiler) noteEmptied(r *refusers, ref bocage.Ref, verb string, m *bocage.CellMatch) {
	for _, g := range c.in.guardrails {
		if r.steps--; r.steps < 0 {
			return
		}
		if r.excepted[g.Name] || !holds(&g.Spec.Match, m) {
			continue
		}
		for i := range g.Spec.Never {
			if r.steps--; r.steps < 0 {
				return
			}
			if !holds(&g.Spec.Never[i], m) {
				continue
			}
			by := Ref("Guardrail", g, field("spec.never", i))
			said := fmt.Sprintf("%s %s nothing: %s refuses all of it, whoever joins; narrow one of them", ref, verb, by)
			c.findings.reject(ref, Contradiction, "%s", said)
			c.findings.note(by, Contradiction, "%s", said)
			return
		}
	}
	var by []bocage.Ref
	somebody := false
	for _, b := range c.resolve(*m) {
		if b.from.empty() || b.to.empty() || b.ports.empty() {
			continue
		}
		somebody = true
		authors, empty := r.empties(b)
		if !empty {
			return
		}
		by = append(by, authors...)
	}
	if !somebody {
		return
	}
	by = canonical(by)
	said := fmt.Sprintf("%s %s nothing today: %s", ref, verb, refuseAll(by))
	c.findings.note(ref, Contradiction, "%s", said)
	for _, author := range by {
		c.findings.note(author, Contradiction, "%s", said)
	}
}

// noteEmptyContracts proves contracts empty. Their owners hear of every one; the
// owners of guardrails only of those that it takes several guardrails to empty,
// for refusing is what a guardrail is for.
func (c *compiler) noteEmptyContracts(r *refusers) {
	var list []*together
	byAuthors := map[string]*together{}
	for i := range c.statements {
		s := &c.statements[i]
		if s.kind != allow || s.by[0].Kind != "Application" {
			continue
		}
		by, empty := r.empties(block{s.from, s.to, s.ports})
		if !empty {
			continue
		}
		by = canonical(by)
		for _, half := range s.by {
			c.findings.note(half, Contradiction, "%s allows nothing today: %s", contractText(s.by), refuseAll(by))
		}
		if !slices.ContainsFunc(by, func(ref bocage.Ref) bool { return ref.Name != by[0].Name }) {
			continue
		}
		key := joinRefs(by)
		if byAuthors[key] == nil {
			byAuthors[key] = &together{by: by, first: s.by}
			list = append(list, byAuthors[key])
		}
		byAuthors[key].count++
	}
	for _, t := range list {
		for _, author := range t.by {
			c.findings.note(author, Contradiction, "%s allows nothing today%s: %s", contractText(t.first), t.others(), refuseAll(t.by))
		}
	}
}

// together are guardrails that empty contracts which none of them empties alone.
type together struct {
	by    []bocage.Ref
	first []bocage.Ref // authors of the first such contract
	count int
}

// others counts the contracts after the first, for people.
func (t *together) others() string {
	switch t.count {
	case 1:
		return ""
	case 2:
		return ", nor does another contract"
	default:
		return fmt.Sprintf(", nor do %d other contracts", t.count-1)
	}
}

// contractText names a contract by its halves.
func contractText(by []bocage.Ref) string {
	text := "the contract of " + by[0].String()
	if len(by) > 1 {
		text += " with " + by[1].String()
	}
	return text
}

func refuseAll(by []bocage.Ref) string {
	if len(by) == 1 {
		return by[0].String() + " refuses all of it; narrow one of them"
	}
	return joinRefs(by) + " together refuse all of it; narrow one of them"
}

func joinRefs(refs []bocage.Ref) string {
	texts := make([]string, len(refs))
	for i, ref := range refs {
		texts[i] = ref.String()
	}
	return listed(texts)
}

func canonical(refs []bocage.Ref) []bocage.Ref {
	slices.SortFunc(refs, compareRefs)
	return slices.Compact(refs)
}

// refusers are the statements that refuse whatever else is said.
type refusers struct {
	statements []*statement
	excepted   map[string]bool // guardrails with an exception in force
	everyone   []int32
	open       []int32           // statements about anyone to anyone
	byFrom     map[int32][]int32 // statements about someone to anyone, by whom they keep in
	byTo       map[int32][]int32 // statements about someone, by whom they keep from being reached
	// steps is what may still be looked at before nothing more is proved.
	steps int
}

func (c *compiler) refusers() *refusers {
	r := &refusers{excepted: map[string]bool{}, byFrom: map[int32][]int32{}, byTo: map[int32][]int32{}, steps: mostSteps}
	for _, e := range c.in.exceptions {
		r.excepted[e.Spec.Guardrail] = true
	}
	for i := range c.statements {
		s := &c.statements[i]
		if s.kind != refuse || r.excepted[s.guardrail] {
			continue
		}
		n := int32(len(r.statements))
		r.statements = append(r.statements, s)
		switch {
		case s.to.any && s.from.any:
			r.open = append(r.open, n)
		case s.to.any:
			for _, from := range s.from.list {
				r.byFrom[from] = append(r.byFrom[from], n)
			}
		default:
			for _, to := range s.to.list {
				r.byTo[to] = append(r.byTo[to], n)
			}
		}
	}
	if len(r.statements) > 0 {
		r.everyone = append(c.pop.outside(), c.pop.all()...)
	}
	return r
}

// empties proves that the refusals cover a block, and names those that it takes.
func (r *refusers) empties(b block) ([]bocage.Ref, bool) {
	if len(r.statements) == 0 || b.from.empty() || b.to.empty() || b.ports.empty() {
		return nil, false
	}
	b = r.concrete(b)
	if !r.firstRefused(b) {
		return nil, false // most blocks are not empty, and their first cell shows it
	}
	about := r.about(b)
	for _, n := range about {
		if r.steps--; r.steps < 0 {
			return nil, false
		}
		if len(subtract(b, r.statements[n])) == 0 {
			return r.statements[n].by, true
		}
	}
	used := map[int32]bool{}
	if !r.covered(b, about, used) {
		return nil, false
	}
	var by []bocage.Ref
	for _, n := range about {
		if used[n] {
			by = append(by, r.statements[n].by...)
		}
	}
	return by, true
}

// firstRefused reports whether something refuses the first cell of a block.
func (r *refusers) firstRefused(b block) bool {
	from, to, port := b.from.list[0], b.to.list[0], b.ports.ranges[0]
	for _, list := range [][]int32{r.open, r.byFrom[from], r.byTo[to]} {
		for _, n := range list {
			if r.steps--; r.steps < 0 {
				return false
			}
			if s := r.statements[n]; s.from.contains(from) && s.ports.covers(port.protocol, port.First) {
				return true
			}
		}
	}
	return false
}

// about lists the refusals of flows from and to some of the subjects.
func (r *refusers) about(b block) []int32 {
	out := slices.Clone(r.open)
	for _, from := range b.from.list {
		out = append(out, r.byFrom[from]...)
	}
	for _, to := range b.to.list {
		out = append(out, r.byTo[to]...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// covered takes the refusals off the block one by one until nothing is left.
func (r *refusers) covered(b block, refusals []int32, used map[int32]bool) bool {
	for i, n := range refusals {
		if r.steps--; r.steps < 0 {
			return false
		}
		s := r.statements[n]
		if b.from.meet(s.from).empty() || b.to.meet(s.to).empty() || b.ports.meet(s.ports).empty() {
			continue
		}
		used[n] = true
		for _, rest := range subtract(b, s) {
			if !r.covered(rest, refusals[i+1:], used) {
				return false
			}
		}
		return true
	}
	return false
}

// subtract returns what is left of a concrete block, in parts that do not overlap.
func subtract(b block, s *statement) []block {
	from, to, ports := b.from.meet(s.from), b.to.meet(s.to), b.ports.meet(s.ports)
	if from.empty() || to.empty() || ports.empty() {
		return []block{b}
	}
	var out []block
	for _, rest := range []block{
		{side{list: without(b.from.list, from.list)}, b.to, b.ports},
		{from, side{list: without(b.to.list, to.list)}, b.ports},
		{from, to, b.ports.minus(ports)},
	} {
		if !rest.from.empty() && !rest.to.empty() && !rest.ports.empty() {
			out = append(out, rest)
		}
	}
	return out
}

// concrete writes out who anyone is, and what every protocol is.
func (r *refusers) concrete(b block) block {
	if b.from.any {
		b.from = side{list: r.everyone}
	}
	if b.to.any {
		b.to = side{list: r.everyone}
	}
	if b.ports.all {
		b.ports = ports{}
		for p := range 256 {
			b.ports.ranges = append(b.ports.ranges, protocolRange{bocage.Protocol(p), bocage.AllPorts})
		}
	}
	return b
}

// minus returns what is left of a set that is not everything.
func (p ports) minus(o ports) ports {
	if o.all {
		return ports{}
	}
	left := p.ranges
	for _, cut := range o.ranges {
		var next []protocolRange
		for _, r := range left {
			if r.protocol != cut.protocol || cut.Last < r.First || r.Last < cut.First {
				next = append(next, r)
				continue
			}
			if r.First < cut.First {
				next = append(next, protocolRange{r.protocol, bocage.PortRange{First: r.First, Last: cut.First - 1}})
			}
			if cut.Last < r.Last {
				next = append(next, protocolRange{r.protocol, bocage.PortRange{First: cut.Last + 1, Last: r.Last}})
			}
		}
		left = next
	}
	return ports{ranges: left}
}

// holds reports whether a match holds all that another does, whoever joins. It
// may miss that it does.
func holds(outer, inner *bocage.CellMatch) bool {
	return sideHolds(&outer.From, &inner.From) && sideHolds(&outer.To, &inner.To) &&
		(len(outer.Ports) == 0 || len(inner.Ports) > 0 && portMatches(inner.Ports).minus(portMatches(outer.Ports)).empty())
}

func sideHolds(outer, inner *bocage.Side) bool {
	if outer.Outside() || inner.Outside() {
		everyone := !outer.Outside() && len(outer.Namespaces) == 0 && outer.Workload == nil && len(outer.Data) == 0
		return everyone || inner.Outside() && len(inner.AddressGroups) == 0 && !slices.ContainsFunc(inner.External, func(p netip.Prefix) bool {
			p = canonicalPrefix(p)
			return !slices.ContainsFunc(outer.External, func(q netip.Prefix) bool {
				q = canonicalPrefix(q)
				return q.Bits() <= p.Bits() && q.Contains(p.Addr())
			})
		})
	}
	if len(outer.Namespaces) > 0 && (len(inner.Namespaces) == 0 ||
		slices.ContainsFunc(inner.Namespaces, func(ns string) bool { return !slices.Contains(outer.Namespaces, ns) })) {
		return false
	}
	if len(outer.Data) > 0 && (len(inner.Data) == 0 ||
		slices.ContainsFunc(inner.Data, func(class string) bool { return !slices.Contains(outer.Data, class) })) {
		return false
	}
	if outer.Workload == nil {
		return true
	}
	if len(inner.Namespaces) == 0 && inner.Workload == nil && len(inner.Data) == 0 {
		return false // everyone, the world included
	}
	return implied(outer.Workload, inner.Workload)
}

// implied reports whether every workload that the narrow selector picks is
// picked by the wide one.
func implied(wide, narrow *bocage.Selector) bool {
	given, asked := conjunction(narrow), conjunction(wide)
	for key, want := range asked {
		have := given[key]
		in := slices.DeleteFunc(slices.Clone(have.in), func(v string) bool { return slices.Contains(have.notIn, v) })
		among := func(values []string) bool {
			return have.named && !slices.ContainsFunc(in, func(v string) bool { return !slices.Contains(values, v) })
		}
		noneOf := func(values []string) bool {
			return have.absent || have.named && !slices.ContainsFunc(in, func(v string) bool { return slices.Contains(values, v) }) ||
				!slices.ContainsFunc(values, func(v string) bool { return !slices.Contains(have.notIn, v) })
		}
		switch {
		case want.named && !among(want.in),
			want.exists && !want.named && !have.exists,
			want.absent && !have.absent,
			len(want.notIn) > 0 && !noneOf(want.notIn):
			return false
		}
	}
	return true
}
