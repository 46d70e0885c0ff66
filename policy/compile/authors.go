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
	same := func(i int32, s *statement) bool { return c.keeps(i, s) }
	first := 0
	for first < len(old) && first < len(stated) && same(old[first], &stated[first]) {
		first++
	}
	last := 0
	for last < len(old)-first && last < len(stated)-first && same(old[len(old)-1-last], &stated[len(stated)-1-last]) {
		last++
	}
	if first+last == len(old) && len(old) == len(stated) {
		return
	}
	kept := slices.Clone(old[:first])
	middle := old[first : len(old)-last]
	stays := c.matched(middle, stated[first:len(stated)-last])
	left := map[int32]bool{}
	for n, i := range stays {
		if i == unset {
			i = int32(len(c.statements))
			c.statements = append(c.statements, stated[first+n])
			c.added = append(c.added, i)
		} else {
			left[i] = true
		}
		kept = append(kept, i)
	}
	for _, i := range middle {
		if !left[i] {
			c.withdrawn = append(c.withdrawn, i)
		}
	}
	u.statements = append(kept, old[len(old)-last:]...)
}

// mostTried bounds how many older statements one is compared with that says the same of
// others.
const mostTried = 16

// matched finds for every statement which of the old ones says what it says, in whatever
// order; unset: none. So an author who says something else in the middle is not taken to
// say everything else anew.
func (c *compiler) matched(old []int32, stated []statement) []int32 {
	out := make([]int32, len(stated))
	for n := range out {
		out[n] = unset
	}
	if len(old) == 0 {
		return out
	}
	type saying struct {
		kind  kind
		field string
		name  string
		ports string
	}
	of := func(s *statement) saying {
		said := saying{kind: s.kind, ports: s.ports.key()}
		if len(s.by) > 0 {
			said.field, said.name = s.by[0].Field, s.by[0].Name
		}
		return said
	}
	known := make(map[saying][]int32, len(old))
	for _, i := range old {
		said := of(&c.statements[i])
		known[said] = append(known[said], i)
	}
	for n := range stated {
		said := of(&stated[n])
		list := known[said]
		for at, i := range list[:min(len(list), mostTried)] {
			if c.keeps(i, &stated[n]) {
				out[n], known[said] = i, slices.Delete(list, at, at+1)
				break
			}
		}
	}
	return out
}

// resided is a statement whose sides hold other subjects now, with the old sides.
type resided struct {
	statement int32
	from, to  side
}

// keeps reports whether a statement says what was said before. If it says it of
// the subjects that took the place of others, it stays too, with other sides.
func (c *compiler) keeps(i int32, s *statement) bool {
	old := &c.statements[i]
	if !old.alike(s) {
		return false
	}
	if old.from.equal(s.from) && old.to.equal(s.to) {
		return true
	}
	if c.broad(old) != c.broad(s) || !c.replaced(old.from, s.from) || !c.replaced(old.to, s.to) {
		return false
	}
	c.resided = append(c.resided, resided{i, old.from, old.to})
	old.from, old.to = s.from, s.to
	return true
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
