package compile

import (
	"slices"

	"bocage.dev/bocage"
)

// What a guardrail requires is one statement that says only that something is owed
// to it. What that is stands here, once for all decisions that owe it: so a
// guardrail on a quarter of all flows that asks for something else has those
// decisions written anew, and nothing decided again, no rule replaced. A decision's
// number follows from to whom it owes something, not from what.

// owed is what a guardrail asks of all flows that it matches, in whatever decision.
type owed struct {
	name string
	bocage.Duties
	by []bocage.Ref // one for each duty, sorted
}

// owing is an allowed decision in parts, where guardrails ask for something.
type owing struct {
	before []bocage.Ref // who allows it, and who of them asks for a duty
	own    joined       // duties that no guardrail asks for, or that not all of its cells can keep
	to     []*owed      // by name
	after  []bocage.Ref // who is excepted, and whose conditions prevail
	marked bool         // a condition has it kept in full detail
}

// stateRequire states what allowed flows owe to a guardrail. A duty that not every
// flow can keep, or none, is a statement of its own.
func (c *compiler) stateRequire(g *bocage.Guardrail) {
	if g.Spec.Require == nil {
		return
	}
	kept, apart := *g.Spec.Require, bocage.Duties{Assurance: g.Spec.Require.Assurance}
	if kept.Assurance = ""; kept.Inspect != "" && !c.hasProfile(kept.Inspect) {
		kept.Inspect, apart.Inspect = "", kept.Inspect
	}
	blocks := c.resolve(g.Spec.Match)
	if !kept.Empty() {
		s := statement{kind: owe, guardrail: g.Name, owed: c.ask(g, kept), by: []bocage.Ref{{Kind: "Guardrail", Name: g.Name, Field: "spec.require"}}}
		for _, b := range blocks {
			s.from, s.to, s.ports = b.from, c.pop.orNames(b.to), b.ports
			c.state(s)
		}
	}
	c.stateDuties("Guardrail", g, "spec.require", &apart, blocks, statement{guardrail: g.Name})
}

// ask notes what a guardrail asks for now.
func (c *compiler) ask(g *bocage.Guardrail, d bocage.Duties) *owed {
	var by []bocage.Ref
	for _, duty := range []struct {
		name  string
		asked bool
	}{{"inspect", d.Inspect != ""}, {"log", d.Log != ""}, {"provenance", d.Provenance}, {"rate", d.Rate != ""}, {"verify", d.Verify != ""}, {"whole", d.Whole}, {"witness", d.Witness}} {
		if duty.asked {
			by = append(by, Ref("Guardrail", g, "spec.require."+duty.name))
		}
	}
	o, known := c.owed[g.Name]
	switch {
	case !known:
		o = &owed{g.Name, d, by}
		c.owed[g.Name] = o
	case o.Duties != d || !slices.Equal(o.by, by):
		o.Duties, o.by = d, by
		c.altered = append(c.altered, o)
	}
	return o
}

// askOtherwise writes the decisions anew that owe something else now.
func (c *compiler) askOtherwise() {
	for _, o := range c.altered {
		done := map[joint]*decision{}
		for _, i := range c.decisions.owing[o] {
			d := &c.decisions.list[i]
			used := c.book != nil && c.book.decisions.uses(i)
			was := d.profiles
			d.finishAlike(done)
			if used && !slices.Equal(was, d.profiles) {
				c.book.combine(was, -1)
				c.book.combine(d.profiles, 1)
			}
			c.decisions.renewed = append(c.decisions.renewed, i)
			c.decisions.noteSpeech(i)
		}
	}
}

// without returns what the decision is whatever guardrails ask for, and to whom
// something is owed all the same.
func (p *owing) without() (*decision, []bocage.Ref) {
	d, j := &decision{}, p.own.clone()
	d.keep(&j, p.marked)
	by := slices.Concat(p.before, j.by, p.after)
	for _, o := range p.to {
		by = append(by, bocage.Ref{Kind: "Guardrail", Name: o.name, Field: "spec.require"})
	}
	return d, by
}

func (j joined) clone() joined {
	j.profiles, j.protocols, j.by = slices.Clone(j.profiles), slices.Clone(j.protocols), slices.Clone(j.by)
	return j
}

// finish joins what the decision owes, and names its authors.
func (d *decision) finish() {
	p := d.owing
	j := p.own.clone()
	for _, o := range p.to {
		j.join(o.Duties)
		j.by = append(j.by, o.by...)
	}
	d.keep(&j, p.marked)
	if len(p.own.by) > 0 || len(p.after) > 0 {
		slices.SortFunc(j.by, compareRefs)
		d.by = unique(slices.Concat(p.before, j.by, p.after))
		return
	}
	d.by = slices.Concat(p.before, j.by) // in order, once each
}

// joint is what several guardrails ask for together.
type joint struct{ of [3]*owed }

// finishAlike is finish for decisions of which many owe the same and nothing else:
// done knows those that were seen.
func (d *decision) finishAlike(done map[joint]*decision) {
	p := d.owing
	var key joint
	if p.marked || len(p.to) > len(key.of) || !p.own.empty() || len(p.after) > 0 {
		d.finish()
		return
	}
	copy(key.of[:], p.to)
	like := done[key]
	if like == nil {
		d.finish()
		done[key] = &decision{verdict: d.verdict, profiles: d.profiles, duties: d.duties, log: d.log, by: d.by[len(p.before):]}
		return
	}
	d.verdict, d.profiles, d.duties, d.log, d.by = like.verdict, like.profiles, like.duties, like.log, slices.Concat(p.before, like.by)
}

// empty reports whether nothing is owed.
func (j *joined) empty() bool {
	return len(j.profiles) == 0 && len(j.protocols) == 0 && len(j.by) == 0 && j.duties.Empty()
}

// keep makes the decision one that allows what keeps these duties.
func (d *decision) keep(j *joined, marked bool) {
	d.profiles, d.duties = j.result()
	if marked {
		d.duties.Log = logFull
	}
	d.log = d.duties.Log != ""
	if d.verdict = bocage.VerdictAllow; len(d.profiles) > 0 {
		d.verdict = bocage.VerdictInspect
	}
}

// combine counts decisions in use by the profiles that inspect together.
func (b *book) combine(profiles []string, by int32) {
	if len(profiles) == 0 {
		return
	}
	name := profileName(profiles)
	before := b.combined[name] > 0
	if b.combined[name] += by; b.combined[name] == 0 {
		delete(b.combined, name)
	}
	if before != (b.combined[name] > 0) {
		b.recombined = true
	}
}
