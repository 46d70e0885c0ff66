package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"bocage.dev/bocage"
)

// This file proves emptiness: that what one author allows or protects is refused
// as a whole by guardrails. Refusals always win, so nothing is undefined; but
// the authors should know of each other. A guardrail with an exception in force
// proves nothing, for it does not refuse all that it says.

// mostSteps bounds the work of one proof. What would take longer is not proved.
const mostSteps = 4096

// proofs keeps which contracts are empty.
type proofs struct {
	empty    map[int32]emptied    // by statement
	together map[string]*together // by those authors, where it takes several guardrails
	excepted map[string]bool      // guardrails with an exception in force
	bans     []ban                // what guardrails refuse, whoever joins
}

// emptied is who empties a contract: today, and, if that is so, whoever joins.
type emptied struct{ by, ever []bocage.Ref }

// noteContradictions tells the authors of what is empty, and those who empty it.
func (c *compiler) noteContradictions(d *change) {
	if d.first {
		c.proofs = proofs{empty: map[int32]emptied{}, together: map[string]*together{}}
	}
	r := c.refusers()
	if d.subjects || d.offers || d.of(kindGuardrail, kindException, kindAddressGroup, kindZone) {
		c.hear(&c.units.contradictions, func() { c.noteEmptiedGuardrails(r) })
	}
	changed := map[string]bool{}
	again := map[int32]bool{} // those that others empty than before
	for _, i := range c.withdrawn {
		c.prove(i, nil, changed)
	}
	for i := range c.contractsTouched(r) {
		s := &c.statements[i]
		by, _ := r.empties(block{s.from, s.to, s.ports})
		if c.prove(i, by, changed) {
			again[i] = true
		}
	}
	c.noteEmptyForEver(r, d, again)
	for key := range changed {
		c.noteTogether(key)
	}
	c.proofs.excepted = r.excepted
}

// contractsTouched are the contracts that may have become empty, or no longer be.
func (c *compiler) contractsTouched(r *refusers) map[int32]bool {
	out := map[int32]bool{}
	look := func(i int32) {
		if c.statements[i].isContract() {
			out[i] = true
		}
	}
	c.eachExceptedOtherwise(r, look)
	for _, i := range c.added {
		look(i)
	}
	refusing := func(i int32) bool { return c.statements[i].kind == refuse }
	others := slices.ContainsFunc(c.added, refusing) || slices.ContainsFunc(c.withdrawn, refusing)
	for _, r := range c.resided {
		look(r.statement)
		others = others || refusing(r.statement)
	}
	if others { // else who refuses something refuses what he did
		for _, pair := range c.grid.looked {
			for _, m := range c.grid.mentioned(pair.from, pair.to) {
				look(m.statement)
			}
		}
	}
	for _, i := range c.grid.broad {
		look(i)
	}
	return out
}

// eachExceptedOtherwise visits the contracts that guardrails may empty which are
// excepted from now, or are no longer.
func (c *compiler) eachExceptedOtherwise(r *refusers, look func(i int32)) {
	var refusing []*statement
	for _, i := range c.units.guardrails.statements {
		if s := &c.statements[i]; s.kind == refuse && r.excepted[s.guardrail] != c.proofs.excepted[s.guardrail] {
			refusing = append(refusing, s)
		}
	}
	if len(refusing) == 0 {
		return
	}
	from, to := make([]uint64, len(c.pop.subjects)), make([]uint64, len(c.pop.subjects))
	var fromAll, toAll uint64
	for n, s := range refusing {
		// With more than 64, some share a bit, and a few contracts too many are looked at.
		flag(from, &fromAll, s.from, 1<<(n%64))
		flag(to, &toAll, s.to, 1<<(n%64))
	}
	meets := func(i int32) bool {
		contract := &c.statements[i]
		return c.broad(contract) || (from[contract.from.list[0]]|fromAll)&(to[contract.to.list[0]]|toAll) != 0
	}
	for _, a := range c.apps {
		for _, u := range [2]*unit{&a.consumes, &a.provides} {
			for _, i := range u.statements {
				if meets(i) {
					look(i)
				}
			}
		}
	}
}

func (s *statement) isContract() bool {
	return s.kind == allow && len(s.by) > 0 && s.by[0].Kind == kindApplication.String()
}

func (c *compiler) noteEmptiedGuardrails(r *refusers) {
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
}

// noteEmptied proves that a grant or a protection is empty: for ever, or with the
// workloads of today. Who grants hears too where others refuse a part of it.
func (c *compiler) noteEmptied(r *refusers, ref bocage.Ref, verb string, m *bocage.CellMatch) {
	if by := r.forever(c.pop.regions(m)); len(by) > 0 {
		said := fmt.Sprintf("%s %s nothing: %s", ref, verb, refuseEver(by))
		c.findings.reject(ref, Contradiction, "%s", said)
		for _, author := range by {
			c.findings.note(author, Contradiction, "%s", said)
		}
		return
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
			if verb == "allows" {
				c.noteLessened(r, ref, m)
			}
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

// noteLessened tells who grants that others refuse a part of it today.
func (c *compiler) noteLessened(r *refusers, ref bocage.Ref, m *bocage.CellMatch) {
	var by []bocage.Ref
	r.steps = mostSteps
	for _, b := range c.resolve(*m) {
		for _, i := range r.statements {
			if r.steps--; r.steps < 0 {
				break
			}
			if s := &c.statements[i]; !slices.Contains(by, s.by[0]) && s.ports.meets(b.ports) && !s.from.meet(b.from).empty() && !s.to.meet(b.to).empty() {
				by = append(by, s.by...)
			}
		}
	}
	if by = canonical(by); len(by) > 0 {
		verb := "refuse"
		if len(by) == 1 {
			verb = "refuses"
		}
		c.findings.note(ref, RefusedInPart, "%s %s a part of it today, which stays refused", listed(shorten(textsOf(by))), verb)
	}
}

// prove notes who empties a contract; nobody says that it is not empty, or gone.
// Its owners hear of it; the owners of guardrails only where it takes several of
// them, for refusing is what a guardrail is for. changed collects the authors of
// whom noteTogether has to be called. It reports whether these are others than before.
func (c *compiler) prove(i int32, by []bocage.Ref, changed map[string]bool) bool {
	by = canonical(slices.Clone(by))
	old := c.proofs.empty[i].by
	if slices.Equal(old, by) {
		return false
	}
	c.empty(i, emptied{by: by})
	for n, authors := range [2][]bocage.Ref{old, by} {
		if !slices.ContainsFunc(authors, func(ref bocage.Ref) bool { return ref.Name != authors[0].Name }) {
			continue
		}
		key := joinRefs(authors)
		t := c.proofs.together[key]
		if t == nil {
			t = &together{by: authors, contracts: map[int32]bool{}}
			c.proofs.together[key] = t
		}
		if n == 1 {
			t.contracts[i] = true
		} else {
			delete(t.contracts, i)
		}
		changed[key] = true
	}
	return true
}

// empty notes who empties a contract now, and tells its owners.
func (c *compiler) empty(i int32, e emptied) {
	by := c.statements[i].by
	c.told.change(c.proofs.empty[i].told(by), e.told(by))
	if len(e.by) == 0 {
		delete(c.proofs.empty, i)
	} else {
		c.proofs.empty[i] = e
	}
}

// told is what the owners of a contract are told.
func (e emptied) told(halves []bocage.Ref) (out findings) {
	for _, half := range halves {
		switch {
		case len(e.ever) > 0:
			out.note(half, Contradiction, "%s allows nothing: %s", contractText(halves), refuseEver(e.ever))
		case len(e.by) > 0:
			out.note(half, Contradiction, "%s allows nothing today: %s", contractText(halves), refuseAll(e.by))
		}
	}
	return out
}

// noteTogether tells the owners of guardrails of the contracts that they empty
// together.
func (c *compiler) noteTogether(key string) {
	t := c.proofs.together[key]
	var said findings
	if len(t.contracts) > 0 {
		var first []bocage.Ref
		for i := range t.contracts {
			if by := c.statements[i].by; first == nil || slices.CompareFunc(by, first, compareRefs) < 0 {
				first = by
			}
		}
		for _, author := range t.by {
			said.note(author, Contradiction, "%s allows nothing today%s: %s", contractText(first), t.others(), refuseAll(t.by))
		}
	} else {
		delete(c.proofs.together, key)
	}
	c.told.change(t.said, said)
	t.said = said
}

// together are guardrails that empty contracts which none of them empties alone.
type together struct {
	by        []bocage.Ref
	contracts map[int32]bool // statements
	said      findings
}

// others counts the contracts after the first, for people.
func (t *together) others() string {
	switch n := len(t.contracts); n {
	case 1:
		return ""
	case 2:
		return ", nor does another contract"
	default:
		return fmt.Sprintf(", nor do %d other contracts", n-1)
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

func refuseEver(by []bocage.Ref) string {
	if len(by) == 1 {
		return by[0].String() + " refuses all of it, whoever joins; narrow one of them"
	}
	return joinRefs(by) + " together refuse all of it, whoever joins; narrow one of them"
}

func joinRefs(refs []bocage.Ref) string { return listed(textsOf(refs)) }

func textsOf(refs []bocage.Ref) []string {
	texts := make([]string, len(refs))
	for i, ref := range refs {
		texts[i] = ref.String()
	}
	return texts
}

func canonical(refs []bocage.Ref) []bocage.Ref {
	slices.SortFunc(refs, compareRefs)
	return slices.Compact(refs)
}

// refusers are the statements that refuse whatever else is said.
type refusers struct {
	c          *compiler
	rank       map[int32]int // by statement: its place among them
	statements []int32
	excepted   map[string]bool // guardrails with an exception in force
	everyone   []int32
	bans       []ban // the same of whoever joins, once somebody asked
	banned     bool  // somebody did
	meeting    []ban // room for those that a proof is about
	// steps is what may still be looked at before the proof is given up.
	steps int
}

func (c *compiler) refusers() *refusers {
	r := &refusers{c: c, rank: map[int32]int{}, excepted: map[string]bool{}}
	for _, e := range c.in.exceptions {
		r.excepted[e.Spec.Guardrail] = true
	}
	for _, i := range c.units.guardrails.statements {
		if s := &c.statements[i]; s.kind == refuse && !r.excepted[s.guardrail] {
			r.rank[i] = len(r.statements)
			r.statements = append(r.statements, i)
		}
	}
	return r
}

// empties proves that the refusals cover a block, and names those that it takes.
func (r *refusers) empties(b block) ([]bocage.Ref, bool) {
	if len(r.statements) == 0 || b.from.empty() || b.to.empty() || b.ports.empty() {
		return nil, false
	}
	if by := r.alone(b); by != nil {
		return by, true
	}
	about := r.about(b)
	if len(about) == 0 {
		return nil, false
	}
	b = r.concrete(b)
	r.steps = mostSteps
	for _, n := range about {
		if r.steps--; r.steps < 0 {
			return nil, false
		}
		if s := &r.c.statements[n]; s.from.covers(b.from) && s.to.covers(b.to) && b.ports.minus(s.ports).empty() {
			return s.by, true
		}
	}
	used := map[int32]bool{}
	if !r.covered(b, about, used) {
		return nil, false
	}
	var by []bocage.Ref
	for _, n := range about {
		if used[n] {
			by = append(by, r.c.statements[n].by...)
		}
	}
	return by, true
}

// alone finds the first refusal that covers a narrow block by itself: it is about
// the block's first pair.
func (r *refusers) alone(b block) []bocage.Ref {
	if b.from.any || b.to.any || b.ports.all {
		return nil
	}
	first, rank := int32(unset), 0
	r.c.grid.eachAbout(b.from.list[0], b.to.list[0], func(n int32) {
		s := &r.c.statements[n]
		if s.kind != refuse {
			return
		}
		at, counts := r.rank[n]
		if counts && (first == unset || at < rank) && s.from.covers(b.from) && s.to.covers(b.to) && b.ports.minus(s.ports).empty() {
			first, rank = n, at
		}
	})
	if first == unset {
		return nil
	}
	return r.c.statements[first].by
}

// about lists the refusals that some cell of a block may meet, in order; none if
// one of its pairs meets none, which proves that it is not empty.
func (r *refusers) about(b block) []int32 {
	if b.from.any || b.to.any || len(b.from.list)*len(b.to.list) > mostNarrowAllowed {
		if !r.seemsRefused(b) {
			return nil
		}
		return r.statements
	}
	found := map[int32]bool{}
	for _, from := range b.from.list {
		for _, to := range b.to.list {
			met := false
			r.c.grid.eachAbout(from, to, func(n int32) {
				if s := &r.c.statements[n]; s.kind != refuse || !s.ports.meets(b.ports) {
					return
				}
				if _, counts := r.rank[n]; counts {
					met, found[n] = true, true
				}
			})
			if !met {
				return nil
			}
		}
	}
	out := slices.Sorted(maps.Keys(found))
	slices.SortFunc(out, func(a, b int32) int { return cmp.Compare(r.rank[a], r.rank[b]) })
	return out
}

// seemsRefused looks at some cells of a large block: if one of them meets no
// refusal, the block is not empty.
func (r *refusers) seemsRefused(b block) bool {
	const cells = 64
	someone := func(s side, n int) int32 {
		if s.any {
			return worldSubject
		}
		return s.list[n*(len(s.list)-1)/cells]
	}
	protocol, port := bocage.ProtocolAny, uint16(0)
	if !b.ports.all {
		protocol, port = b.ports.ranges[0].protocol, b.ports.ranges[0].First
	}
	for n := range cells {
		from, to := someone(b.from, n), someone(b.to, n*17%cells)
		refused := slices.ContainsFunc(r.statements, func(n int32) bool {
			s := &r.c.statements[n]
			return s.from.contains(from) && s.to.contains(to) && s.ports.covers(protocol, port)
		})
		if !refused {
			return false
		}
	}
	return true
}

// covers reports whether everyone of another side is of this one.
func (s side) covers(o side) bool {
	if s.any || o.any {
		return s.any
	}
	return len(o.list) <= len(s.list) && !slices.ContainsFunc(o.list, func(i int32) bool { return !s.contains(i) })
}

// covered takes the refusals off the block one by one until nothing is left.
func (r *refusers) covered(b block, refusals []int32, used map[int32]bool) bool {
	for i, n := range refusals {
		if r.steps--; r.steps < 0 {
			return false
		}
		s := &r.c.statements[n]
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
		b.from = side{list: r.all()}
	}
	if b.to.any {
		b.to = side{list: r.all()}
	}
	if b.ports.all {
		b.ports = ports{}
		for p := range 256 {
			b.ports.ranges = append(b.ports.ranges, protocolRange{bocage.Protocol(p), bocage.AllPorts})
		}
	}
	return b
}

func (r *refusers) all() []int32 {
	if r.everyone == nil {
		r.everyone = append(r.c.pop.outside(), r.c.pop.all()...)
	}
	return r.everyone
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
