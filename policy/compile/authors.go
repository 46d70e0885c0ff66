package compile

import (
	"bocage.dev/bocage"
	"cmp"
	"slices"
)

// unit is what one author said last, or all authors of a kind: its statements, in
// order, and what it was told. A unit speaks again when something that it depends
// on has changed; what it says as before keeps its number, and costs nothing.
type unit struct {
	statements []int32
	findings   []Finding
}

// hear lets a unit speak.
func (c *compiler) hear(u *unit, speak func()) {
	c.stated, c.findings = c.stated[:0], nil
	speak()
	c.replace(u)
	c.told.change(u.findings, c.findings)
	u.findings = slices.Clone(c.findings)
}

// hearInventory hears what is told of workloads.
func (c *compiler) hearInventory(d *change) {
	if d.first {
		for _, told := range c.in.told {
			c.told.change(nil, told)
		}
		return
	}
	for _, r := range c.in.retold {
		c.told.change(r.was, r.now)
	}
}

// forget lets a unit be silent.
func (c *compiler) forget(u *unit) { c.hear(u, func() {}) }

// replace takes what was stated for what the unit says now.
func (c *compiler) replace(u *unit) {
	old, stated := u.statements, c.stated
	first := 0
	for first < len(old) && first < len(stated) && c.keeps(old[first], &stated[first]) {
		first++
	}
	last := 0
	for last < len(old)-first && last < len(stated)-first && c.keeps(old[len(old)-1-last], &stated[len(stated)-1-last]) {
		last++
	}
	if first+last == len(old) && len(old) == len(stated) {
		return
	}
	left, kept := c.matched(old[first:len(old)-last], stated[first:len(stated)-last])
	c.withdrawn = append(c.withdrawn, left...)
	now := append(make([]int32, 0, len(stated)), old[:first]...)
	for n, i := range kept {
		if i == unset {
			i = int32(len(c.statements))
			c.statements = append(c.statements, stated[first+n])
			c.added = append(c.added, i)
		}
		now = append(now, i)
	}
	u.statements = append(now, old[len(old)-last:]...)
}

// trait is what statements have in common of which one may take the place of another.
type trait struct {
	kind      kind
	guardrail string
	owed      *owed
	by        bocage.Ref // the first of them
	ports     protocolRange
	all       bool
}

func (s *statement) trait() trait {
	t := trait{kind: s.kind, guardrail: s.guardrail, owed: s.owed, all: s.ports.all}
	if len(s.by) > 0 {
		t.by = s.by[0]
	}
	if len(s.ports.ranges) > 0 {
		t.ports = s.ports.ranges[0]
	}
	return t
}

// mostAlike is how many statements of one trait are held against each other.
const mostAlike = 16

// matched finds which of the old statements is kept for each of those that are stated,
// unset: none, and which are left. Those that say the same of the same go first.
func (c *compiler) matched(old []int32, stated []statement) (left, kept []int32) {
	kept = make([]int32, len(stated))
	for n := range kept {
		kept[n] = unset
	}
	if len(old) == 0 || len(stated) == 0 {
		return old, kept
	}
	byTrait, taken := make(map[trait][]int, len(old)), make([]bool, len(old))
	for at, i := range old {
		t := c.statements[i].trait()
		byTrait[t] = append(byTrait[t], at)
	}
	for _, keeps := range [2]func(int32, *statement) bool{c.keepsSame, c.keeps} {
		for n := range stated {
			if kept[n] != unset {
				continue
			}
			t := stated[n].trait()
			candidates := byTrait[t]
			for k, at := range candidates[:min(len(candidates), mostAlike)] {
				if keeps(old[at], &stated[n]) {
					kept[n], taken[at] = old[at], true
					byTrait[t] = slices.Delete(candidates, k, k+1)
					break
				}
			}
		}
	}
	for at, i := range old {
		if !taken[at] {
			left = append(left, i)
		}
	}
	return left, kept
}

// resided is a statement whose sides hold other subjects now, with the old sides.
type resided struct {
	statement int32
	from, to  side
	shifted   bool // subjects that stayed are among those
}

// keepsSame reports whether a statement says what was said before, of the same subjects.
func (c *compiler) keepsSame(i int32, s *statement) bool {
	old := &c.statements[i]
	return old.from.equal(s.from) && old.to.equal(s.to) && old.alike(s)
}

// keeps reports whether a statement says what was said before. If it says it of
// the subjects that took the place of others, or is broad and says it of a few others,
// it stays too, with other sides.
func (c *compiler) keeps(i int32, s *statement) bool {
	old := &c.statements[i]
	if !old.alike(s) {
		return false
	}
	if old.from.equal(s.from) && old.to.equal(s.to) {
		return true
	}
	if c.broad(old) != c.broad(s) {
		return false
	}
	shifted := !c.replaced(old.from, s.from) || !c.replaced(old.to, s.to)
	if shifted && !(c.broad(s) && nearly(old.from, s.from) && nearly(old.to, s.to)) {
		return false
	}
	c.resided = append(c.resided, resided{i, old.from, old.to, shifted})
	old.from, old.to = s.from, s.to
	return true
}

// nearly reports whether most of two sides are the same.
func nearly(a, b side) bool {
	if a.any || b.any {
		return a.any == b.any
	}
	if most := len(a.list) + len(b.list); 4*max(len(a.list), len(b.list)) > 3*most {
		return false // whatever they share
	}
	return 4*len(differing(a.list, b.list)) <= len(a.list)+len(b.list)
}

// differing lists what only one of two sorted lists has, sorted.
func differing(a, b []int32) []int32 {
	var out []int32
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0] == b[0]:
			a, b = a[1:], b[1:]
		case a[0] < b[0]:
			out, a = append(out, a[0]), a[1:]
		default:
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// replaced reports whether a side differs from an older one only in subjects that
// are gone or that came.
func (c *compiler) replaced(old, now side) bool {
	if old.any || now.any {
		return old.any == now.any
	}
	a, b := old.list, now.list
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(a) > 0 && len(b) > 0 && a[0] == b[0]:
			a, b = a[1:], b[1:]
		case len(a) > 0 && c.pop.subjects[a[0]].gone():
			a = a[1:]
		case len(b) > 0 && c.came[b[0]]:
			b = b[1:]
		default:
			return false
		}
	}
	return true
}

// alike reports whether two statements say the same by the same authors, of
// whomever.
func (s *statement) alike(o *statement) bool {
	return s.kind == o.kind && s.shy == o.shy && s.duty == o.duty && s.dutyBy == o.dutyBy && s.until.Equal(o.until) &&
		s.guardrail == o.guardrail && s.owed == o.owed && s.disposition == o.disposition && s.ports.all == o.ports.all &&
		(s.kube == nil) == (o.kube == nil) && (s.kube == nil || *s.kube == *o.kube) &&
		slices.Equal(s.ports.ranges, o.ports.ranges) && slices.Equal(s.by, o.by)
}

func (s side) equal(o side) bool {
	if s.any != o.any || len(s.list) != len(o.list) {
		return false
	}
	return len(s.list) == 0 || &s.list[0] == &o.list[0] || slices.Equal(s.list, o.list)
}

// told is all findings, each once.
type told struct {
	counts  map[Finding]int32
	sorted  *list[Finding]
	touched map[Finding]bool // what may have changed, and whether it was there before; nil before the first time
}

// change takes findings for others.
func (t *told) change(old, now []Finding) {
	if slices.Equal(old, now) {
		return
	}
	for _, f := range old {
		t.count(f, -1)
	}
	for _, f := range now {
		t.count(f, 1)
	}
}

func (t *told) count(f Finding, by int32) {
	if t.touched != nil {
		if _, known := t.touched[f]; !known {
			t.touched[f] = t.counts[f] > 0
		}
	}
	if t.counts[f] += by; t.counts[f] == 0 {
		delete(t.counts, f)
	}
}

// list returns all findings in order.
func (t *told) list() *list[Finding] {
	if t.touched == nil {
		t.touched = map[Finding]bool{}
		all := make([]Finding, 0, len(t.counts))
		for f := range t.counts {
			all = append(all, f)
		}
		slices.SortFunc(all, compareFindings)
		t.sorted = newList(all)
		return t.sorted
	}
	var removed, added []Finding
	for f, before := range t.touched {
		switch now := t.counts[f] > 0; {
		case before && !now:
			removed = append(removed, f)
		case now && !before:
			added = append(added, f)
		}
	}
	clear(t.touched)
	t.sorted = t.sorted.exchange(removed, added, compareFindings)
	return t.sorted
}

func compareFindings(a, b Finding) int {
	if order := compareRefs(a.Object, b.Object); order != 0 {
		return order
	}
	switch {
	case a.Reason != b.Reason:
		return cmp.Compare(a.Reason, b.Reason)
	case a.Message != b.Message:
		return cmp.Compare(a.Message, b.Message)
	case a.Rejected == b.Rejected:
		return 0
	case a.Rejected:
		return 1
	default:
		return -1
	}
}

// say lets everyone speak on whom the change bears.
func (c *compiler) say(d *change) {
	c.sayApplications(d)
	if d.others() || d.offers {
		c.prepare()
	}
	if d.of(kindZone) {
		c.hear(&c.units.zones, c.checkZones)
	}
	if d.subjects || d.offers || d.of(kindThreatCondition, kindResponse, kindProfile, kindGuardrail, kindZone, kindScope, kindAddressGroup) {
		touched := c.touched
		c.held, c.touched = map[int32]bool{}, nil
		c.refusals = nil
		c.hear(&c.units.threats, c.stateThreats)
		c.units.refusals = c.refusals
		c.hear(&c.units.responses, c.stateResponses)
		slices.Sort(c.touched)
		c.touched = slices.Compact(c.touched)
		d.touched = !slices.Equal(touched, c.touched)
	}
	if d.of(kindQuarantine, kindWorkload) || !slices.EqualFunc(c.units.refusals, c.units.refused, refusal.equal) || d.first {
		c.refusals = slices.Clone(c.units.refusals)
		c.units.refused = c.units.refusals
		c.hear(&c.units.quarantines, c.stateQuarantines)
		c.mergeRefusals()
		c.cutOff = c.refusals
	}
	workloads := d.subjects && !c.prefixesAlone(d)
	if workloads || d.offers || d.touched || d.subjects && c.in.namesAddresses() || d.of(kindGuardrail, kindException, kindProfile, kindZone, kindAddressGroup) {
		c.hear(&c.units.guardrails, c.stateGuardrails)
	}
	if d.subjects || d.of(kindNetworkPolicy, kindClusterNetworkPolicy, kindNamespace, kindHost) {
		c.hear(&c.units.kubernetes, c.stateKubernetes)
	}
	if d.subjects || d.of(kindScope, kindZone) {
		c.hear(&c.units.scopes, c.stateScopes)
	}
	if d.subjects || d.of(kindDecoy, kindZone, kindAddressGroup) {
		c.placements = nil
		c.hear(&c.units.decoys, c.stateDecoys)
	}
}

// prefixesAlone reports whether no subject changed but named prefixes.
func (c *compiler) prefixesAlone(d *change) bool {
	for _, list := range [3][]int32{d.gone, d.come, d.altered} {
		for _, i := range list {
			if !c.pop.subjects[i].prefix.IsValid() {
				return false
			}
		}
	}
	return true
}

// namesAddresses reports whether a guardrail or an exception means somebody by
// address.
func (a *admitted) namesAddresses() bool {
	match := func(m bocage.CellMatch) bool { return m.From.Outside() || m.To.Outside() }
	return slices.ContainsFunc(a.exceptions, func(e *bocage.Exception) bool { return match(e.Spec.Match) }) ||
		slices.ContainsFunc(a.guardrails, func(g *bocage.Guardrail) bool {
			return match(g.Spec.Match) || slices.ContainsFunc(g.Spec.Never, match) || slices.ContainsFunc(g.Spec.Grant, match) || slices.ContainsFunc(g.Spec.Protect, match)
		})
}

func (r refusal) equal(o refusal) bool {
	return r.identity == o.identity && r.until.Equal(o.until) && slices.Equal(r.by, o.by)
}

// units are those of everyone but Applications.
type units struct {
	admission, prefixes, conditions                      unit // told only
	zones, threats, responses, quarantines, guardrails   unit
	kubernetes, scopes, decoys, contradictions, profiles unit
	babel                                                unit      // told only
	refusals, refused                                    []refusal // of threat conditions
}
