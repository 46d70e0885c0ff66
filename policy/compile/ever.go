package compile

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"bocage.dev/bocage"
)

// This file proves that contracts, grants and protections are empty whoever joins: what
// guardrails refuse by labels, addresses and ports holds all of it, with nobody there to
// show it by. That says more than that nothing is left of it with the workloads of today,
// which may be so by chance; and it can be said before anybody is there.

// banning lists what guardrails refuse, whoever joins, in their order. One that admits
// exceptions refuses nothing for ever: a grant may stand for the hour when there is one.
func (r *refusers) banning() []ban {
	if r.banned {
		return r.bans
	}
	r.banned = true
	for _, g := range r.c.in.guardrails {
		if r.excepted[g.Name] || g.Spec.Exceptions.Allowed {
			continue // what it refuses, somebody may be let off
		}
		match := &g.Spec.Match
		vague := func(m *bocage.CellMatch) bool { return len(m.From.Data) > 0 } // of whom who offers data is declared by others
		if vague(match) {
			continue
		}
		for i := range g.Spec.Never {
			if never := &g.Spec.Never[i]; !vague(never) {
				for _, region := range r.c.pop.regions(match, never) {
					r.bans = append(r.bans, ban{by: Ref("Guardrail", g, field("spec.never", i)), region: region})
				}
			}
		}
		if g.Spec.Separate != nil {
			for _, region := range r.c.pop.regions(match) {
				if !region.from.outside && !region.to.outside {
					r.bans = append(r.bans, ban{by: Ref("Guardrail", g, "spec.separate"), region: region, differ: g.Spec.Separate.Label()})
				}
			}
		}
	}
	return r.bans
}

// forever proves that guardrails refuse regions as a whole, whoever joins, and names those
// that it takes. Nobody refuses nothing.
func (r *refusers) forever(regions []region) []bocage.Ref {
	meeting := r.meeting[:0] // where a proof gives up hangs on no others, and so on no edit of others
	for _, b := range r.banning() {
		if slices.ContainsFunc(regions, func(x region) bool { return b.meets(&x) }) {
			meeting = append(meeting, b)
		}
	}
	r.meeting = meeting
	proof := covers{p: r.c.pop, steps: mostSteps}
	if len(regions) == 0 || !proof.all(regions, meeting, map[bocage.Ref]bool{}) {
		return nil // of most, the first flow that is looked at tells
	}
	proof.steps = mostSteps
	for first := 0; first < len(meeting); { // by one author alone
		last := first
		for last < len(meeting) && meeting[last].by == meeting[first].by {
			last++
		}
		if proof.all(regions, meeting[first:last], map[bocage.Ref]bool{}) {
			return []bocage.Ref{meeting[first].by}
		}
		first = last
	}
	used := map[bocage.Ref]bool{}
	if proof.steps = mostSteps; !proof.all(regions, meeting, used) {
		return nil
	}
	of := func(used map[bocage.Ref]bool) []ban {
		return slices.DeleteFunc(slices.Clone(meeting), func(b ban) bool { return !used[b.by] })
	}
	for _, author := range slices.SortedFunc(maps.Keys(used), compareRefs) {
		fewer := maps.Clone(used)
		delete(fewer, author)
		if proof.steps = mostSteps; proof.all(regions, of(fewer), map[bocage.Ref]bool{}) {
			used = fewer
		}
	}
	return slices.SortedFunc(maps.Keys(used), compareRefs)
}

// noteEmptyForEver tells owners of contracts that are empty whoever joins: of those that
// are empty today, and of those that nobody is there for. again are contracts that others
// empty today than before.
func (c *compiler) noteEmptyForEver(r *refusers, d *change, again map[int32]bool) {
	before := c.proofs.bans
	c.proofs.bans = r.banning()
	everything := func(*statement) bool { return true }
	if d.first || d.of(kindZone) {
		for _, a := range c.apps {
			c.lookForEver(r, a, everything)
			c.lookWhereNobodyIs(r, a)
		}
		return
	}
	if edited := editedBans(before, c.proofs.bans); len(edited) > 0 {
		for _, a := range c.apps {
			c.lookForEver(r, a, func(s *statement) bool {
				return slices.ContainsFunc(edited, func(b ban) bool { return b.region.ports.meets(s.ports) })
			})
			if a.alone {
				c.lookWhereNobodyIs(r, a)
			}
		}
	}
	looked := maps.Clone(c.heard)
	for i := range again {
		for _, half := range c.statements[i].by {
			if a := c.apps[half.Namespace+"/"+half.Name]; a != nil {
				looked[a] = true
			}
		}
	}
	for a := range looked {
		c.lookForEver(r, a, everything)
		c.lookWhereNobodyIs(r, a)
	}
}

// editedBans lists the bans that were not there before, and those that no longer are:
// without one, a proof may need fewer steps than it gave up after.
func editedBans(before, now []ban) []ban {
	for len(before) > 0 && len(now) > 0 && before[0].equal(now[0]) {
		before, now = before[1:], now[1:]
	}
	for len(before) > 0 && len(now) > 0 && before[len(before)-1].equal(now[len(now)-1]) {
		before, now = before[:len(before)-1], now[:len(now)-1]
	}
	return slices.Concat(before, now)
}

// lookForEver looks at the contracts that an Application consumes by, and at whom it lets
// in from outside. Of those that were not empty for ever, only some may be.
func (c *compiler) lookForEver(r *refusers, a *application, mayBe func(*statement) bool) {
	for _, u := range [2]*unit{&a.consumes, &a.provides} {
		for _, i := range u.statements {
			e, empty := c.proofs.empty[i]
			if !empty || len(e.ever) == 0 && !mayBe(&c.statements[i]) {
				continue
			}
			ever := r.forever(c.regionsOf(c.statements[i].by))
			if !slices.Equal(e.ever, ever) {
				c.empty(i, emptied{e.by, ever})
			}
		}
	}
}

// lookWhereNobodyIs looks at the contracts of an Application that nobody is there for.
func (c *compiler) lookWhereNobodyIs(r *refusers, a *application) {
	var said findings
	a.alone = false
	c.eachIdle(a, func(halves []bocage.Ref) {
		a.alone = true
		if by := r.forever(c.regionsOf(halves)); len(by) > 0 {
			said = append(said, emptied{ever: by}.told(halves)...)
		}
	})
	c.told.change(a.idle, said)
	a.idle = said
}

// eachIdle visits the contracts of an Application that nobody is there for, by their
// halves: nothing is stated of them.
func (c *compiler) eachIdle(a *application, visit func(halves []bocage.Ref)) {
	for j, consume := range a.Spec.Consumes {
		if len(a.groups) > 0 && (consume.External.IsValid() || len(c.groupsAt(a, j)) > 0) {
			continue
		}
		half := Ref("Application", a, field("spec.consumes", j))
		switch provider := c.apps[ServiceName(a.Namespace, consume.Service)]; {
		case consume.External.Name != "":
		case consume.External.IsValid():
			visit([]bocage.Ref{half})
		case provider == nil:
		default:
			for i, provide := range provider.Spec.Provides {
				if consume.Interface != "" && consume.Interface != provide.Name {
					continue
				}
				halves := []bocage.Ref{Ref("Application", provider, field("spec.provides", i)), half}
				visit(halves)
			}
		}
	}
	if len(a.groups) > 0 {
		return
	}
	for i, provide := range a.Spec.Provides {
		for k := range provide.ToExternal {
			visit([]bocage.Ref{Ref("Application", a, field(field("spec.provides", i)+".toExternal", k))})
		}
	}
}

// groupsAt are the workloads that an Application's consume leads to.
func (c *compiler) groupsAt(a *application, j int) []int32 {
	if provider := c.apps[ServiceName(a.Namespace, a.Spec.Consumes[j].Service)]; provider != nil {
		return provider.groups
	}
	return nil
}

// regionsOf are the flows that a contract is about, whoever joins, by its halves.
func (c *compiler) regionsOf(halves []bocage.Ref) []region {
	a := c.apps[halves[0].Namespace+"/"+halves[0].Name]
	whom := declared(a)
	outside := end{outside: true}
	at := numbersIn(halves[0].Field)
	var out region
	switch {
	case len(halves) == 2:
		consumer, provide := c.apps[halves[1].Namespace+"/"+halves[1].Name], a.Spec.Provides[at[0]]
		from := declared(consumer)
		from.pick(&provide.To)
		out = region{from: from.placed(LetInNamespaces(a.Application, at[0])), to: whom, ports: transport(provide.Port, provide.EndPort, provide.Protocol)}
	case len(at) == 2:
		provide := a.Spec.Provides[at[0]]
		outside.addresses = []span{spanOf(provide.ToExternal[at[1]])}
		out = region{from: outside, to: whom, ports: transport(provide.Port, provide.EndPort, provide.Protocol)}
	default:
		consume := a.Spec.Consumes[at[0]]
		outside.addresses = []span{spanOf(consume.External.Prefix)}
		out = region{from: whom, to: outside, ports: transport(consume.Port, consume.EndPort, consume.Protocol)}
	}
	if c.pop.nobodyIn(&out) {
		return nil
	}
	return []region{out}
}

// numbersIn reads the numbers in brackets of a field.
func numbersIn(field string) []int {
	var out []int
	for _, part := range strings.Split(field, "[")[1:] {
		if n, err := strconv.Atoi(part[:strings.IndexByte(part, ']')]); err == nil {
			out = append(out, n)
		}
	}
	return out
}
