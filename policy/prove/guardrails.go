package prove

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// guardrails proves the statements of every guardrail.
func (p *prover) guardrails() []bocage.Proof {
	var proofs []bocage.Proof
	for _, g := range byName(p.in.Guardrails) {
		spec := g.InForce()
		if spec == nil {
			continue
		}
		excuses := p.excuses(g, spec)
		for i, never := range spec.Never {
			region := p.region(spec.Match, never)
			never := func(_, _ bocage.Group, _ bocage.Decision) bool { return true }
			counter := p.violation(region, excuses, never)
			if counter == "" {
				counter = p.namedViolation(region, excuses, never)
			}
			proofs = append(proofs, proof(fmt.Sprintf("nothing that Guardrail %s never allows is allowed", g.Name),
				compile.Ref("Guardrail", g, fmt.Sprintf("spec.never[%d]", i)), counter))
		}
		if spec.Separate != nil {
			proofs = append(proofs, p.separate(g, spec, excuses))
		}
		if spec.Require != nil {
			proofs = append(proofs, p.required(g, spec, excuses)...)
		}
		proofs = append(proofs, p.protects(g, spec)...)
		if spec.BlastRadius != nil {
			proofs = append(proofs, p.blastRadius(g, spec.BlastRadius))
		}
	}
	return proofs
}

// excuse is a region in which a statement need not hold: an exception while it is in force,
// or a declaration that justifies the cell otherwise.
type excuse struct {
	region        region
	begins, until time.Time
	always        bool // it has no end
}

func (e excuse) holds(at time.Time) bool {
	return e.always || !at.Before(e.begins) && at.Before(e.until)
}

// outlasts finds a moment between first and last (zero: no end) at which no excuse holds.
func outlasts(first, last time.Time, excuses []excuse) (time.Time, bool) {
	moments := []time.Time{first}
	for _, e := range excuses {
		if e.until.After(first) && (last.IsZero() || e.until.Before(last)) {
			moments = append(moments, e.until)
		}
	}
	for _, at := range moments {
		if !slices.ContainsFunc(excuses, func(e excuse) bool { return e.holds(at) }) {
			return at, true
		}
	}
	return time.Time{}, false
}

// excuses are the exceptions that a guardrail admits.
func (p *prover) excuses(g *bocage.Guardrail, spec *bocage.GuardrailSpec) []excuse {
	if !spec.Exceptions.Allowed {
		return nil
	}
	var out []excuse
	for _, e := range byName(p.in.Exceptions) {
		if e.Spec.Guardrail != g.Name || e.Status.Approval.Waits(e.Generation) {
			continue
		}
		measured := e.Begins()
		if measured.IsZero() {
			measured = p.in.Now
		}
		if longest := spec.Exceptions.Longest(); longest > 0 && e.Spec.Until.Sub(measured) > longest {
			continue
		}
		out = append(out, excuse{region: p.region(e.Spec.Match), begins: e.Begins(), until: e.Spec.Until})
	}
	return out
}

// separate proves that no flow is allowed between workloads which differ in a label. Groups
// with a wildcard, or with a rule for the other end, are checked one by one. Of all other
// groups, one stands for all that have the same value.
func (p *prover) separate(g *bocage.Guardrail, spec *bocage.GuardrailSpec, excuses []excuse) bocage.Proof {
	statement := fmt.Sprintf("Guardrail %s keeps workloads apart that differ in %s", g.Name, spec.Separate.Label())
	ref := compile.Ref("Guardrail", g, "spec.separate")
	r := p.region(spec.Match)
	key := spec.Separate.Label()
	values := map[bocage.Group]string{}
	byValue := map[string]bool{}
	for _, group := range p.groups {
		if m := p.members[group]; len(m.workloads) > 0 {
			value, has := p.label(m.workloads[0], key)
			values[group] = fmt.Sprint(has, " ", value)
			byValue[values[group]] = true
		}
	}
	differ := func(from, to bocage.Group) bool {
		a, workload := values[from]
		b, other := values[to]
		return workload && other && a != b
	}
	found := ""
	visit := func(from, to bocage.Group) bool {
		if differ(from, to) {
			found = p.violatedBy(from, to, r, excuses, func(_, _ bocage.Group, _ bocage.Decision) bool { return true })
		}
		return found == ""
	}
	reach := p.reach.withExcuses(excuses, p.groups)
	for _, at := range reach.exact {
		if in(at.from, r.from) && in(at.to, r.to) && reach.mayAllow(at.from, at.to) && !visit(at.from, at.to) {
			return proof(statement, ref, found)
		}
	}
	if reach.wildcards {
		for value := range byValue {
			reach.eachWildcardPair(p.groups,
				func(g bocage.Group) bool { return values[g] == value && in(g, r.from) },
				func(g bocage.Group) bool { return values[g] != "" && values[g] != value && in(g, r.to) },
				len(r.data) == 0, visit)
			if found != "" {
				break
			}
		}
	}
	return proof(statement, ref, found)
}

// required proves that every allowed cell in the match owes what it has to.
func (p *prover) required(g *bocage.Guardrail, spec *bocage.GuardrailSpec, excuses []excuse) []bocage.Proof {
	var proofs []bocage.Proof
	add := func(field, statement string, wrong func(from, to bocage.Group, d bocage.Decision) bool) {
		region := p.region(spec.Match)
		counter := p.violation(region, excuses, wrong)
		if counter == "" {
			counter = p.namedViolation(region, excuses, wrong)
		}
		proofs = append(proofs, proof(fmt.Sprintf("everything that Guardrail %s covers and somebody allows %s", g.Name, statement),
			compile.Ref("Guardrail", g, "spec.require."+field), counter))
	}
	require := *spec.Require
	owes := func(wrong func(owed bocage.Duties) bool) func(_, _ bocage.Group, d bocage.Decision) bool {
		return func(_, _ bocage.Group, d bocage.Decision) bool {
			return d.Duties == nil || wrong(*d.Duties)
		}
	}
	if require.Inspect != "" {
		add("inspect", "is inspected with "+require.Inspect, func(_, _ bocage.Group, d bocage.Decision) bool {
			return d.Verdict != bocage.VerdictInspect || !slices.Contains(compile.ProfileNames(p.reach.profiles[d.Profile]), require.Inspect)
		})
	}
	if require.Log != "" {
		add("log", "is kept in full detail", func(_, _ bocage.Group, d bocage.Decision) bool { return !d.Log })
	}
	if require.Verify != "" {
		add("verify", "has to speak "+require.Verify, owes(func(owed bocage.Duties) bool {
			return !slices.Contains(strings.Split(owed.Verify, "+"), require.Verify)
		}))
	}
	if require.Rate != "" {
		add("rate", "is limited to "+require.Rate, owes(func(owed bocage.Duties) bool {
			return owed.RatePerSecond() == 0 || owed.RatePerSecond() > require.RatePerSecond()
		}))
	}
	if require.Whole {
		add("whole", "comes in whole packets", owes(func(owed bocage.Duties) bool { return !owed.Whole }))
	}
	if require.Witness {
		add("witness", "is witnessed at both ends", owes(func(owed bocage.Duties) bool { return !owed.Witness }))
	}
	if require.Provenance {
		add("provenance", "proves where it comes from", owes(func(owed bocage.Duties) bool { return !owed.Provenance }))
	}
	if require.Assurance != "" {
		add("assurance", "is between identities that are vouched for to "+require.Assurance, func(from, to bocage.Group, _ bocage.Decision) bool {
			return p.lacksAssurance(from, require.Assurance) || p.lacksAssurance(to, require.Assurance)
		})
	}
	return proofs
}

// lacksAssurance reports whether some workload of a group has a lower level than required.
func (p *prover) lacksAssurance(g bocage.Group, asked string) bool {
	return slices.ContainsFunc(p.members[g].workloads, func(w *bocage.Workload) bool {
		return cmp.Or(w.Status.Assurance, bocage.AssuranceOfDeclared) < asked
	})
}

// holdsAnybody reports whether the region has a cell at all. A side may match nothing: an
// AddressGroup that is not declared, or a data class that nobody offers.
func (p *prover) holdsAnybody(r region) bool {
	return slices.ContainsFunc(p.groups, func(g bocage.Group) bool { return in(g, r.from) }) &&
		slices.ContainsFunc(p.groups, func(g bocage.Group) bool {
			return in(g, r.to) && p.hasPorts(r, g)
		})
}

// hasPorts reports whether the region has a cell towards a receiver. If the region names a
// data class, the receiver must offer it on one of the region's ports. (An intersection of
// port ranges begins at the first port of one of them, so checking those is enough.)
func (p *prover) hasPorts(r region, to bocage.Group) bool {
	return len(r.data) == 0 || slices.ContainsFunc(p.extent(r, to), func(s span) bool { return p.covers(r, to, s.protocol, s.ports.First) })
}

// cutByThreat looks for a cell in the region that a threat condition or a response refuses.
func (p *prover) cutByThreat(r region) string {
	if !p.holdsAnybody(r) {
		return ""
	}
	automated := map[bocage.DecisionID]bool{}
	for _, d := range p.rs.Decisions {
		automated[d.ID] = !d.Verdict.Allowed() && (d.Code == bocage.ReasonThreat || d.Code == bocage.ReasonQuarantine ||
			slices.ContainsFunc(d.By, func(by bocage.Ref) bool { return by.Kind == "Response" })) // a duty that cannot be kept
	}
	for _, refusal := range p.rs.Refused {
		d := p.reach.decisions[refusal.Decision]
		if slices.ContainsFunc(d.By, func(by bocage.Ref) bool { return by.Kind == "Quarantine" }) {
			continue // a person's decision
		}
		for _, g := range p.groupsOf[refusal.Identity] {
			if in(g, r.from) || in(g, r.to) && p.hasPorts(r, g) {
				return fmt.Sprintf("%s is cut off%s", p.who(g), by(d))
			}
		}
	}
	// Only pairs with a rule that has such a decision can be refused.
	found := ""
	look := func(from, to bocage.Group) bool {
		p.reach.eachCell(from, to, p.extent(r, to), func(protocol bocage.Protocol, ports bocage.PortRange, id bocage.DecisionID) bool {
			p.reach.eachLink(id, p.in.Now, func(_ time.Time, d bocage.Decision) bool {
				if automated[d.ID] && p.covers(r, to, protocol, ports.First) {
					found = p.flow(from, to, protocol, ports.First) + " gets " + d.Verdict.String() + by(d)
				}
				return found == ""
			})
			return found == ""
		})
		return found == ""
	}
	hit := func(id bocage.DecisionID) bool {
		is := false
		p.reach.eachLink(id, p.in.Now, func(_ time.Time, d bocage.Decision) bool {
			is = is || automated[d.ID]
			return !is
		})
		return is
	}
	for _, n := range p.rs.Namings {
		if !slices.ContainsFunc(n.Cells, func(c bocage.NamedCell) bool { return hit(c.Decision) }) {
			continue
		}
		for _, from := range n.From {
			for _, to := range n.To {
				if in(from, r.from) && in(to, r.to) && !p.rs.IsApart(from, to) && !look(from, to) {
					return found
				}
			}
		}
	}
	seen := map[pair]bool{}
	for _, rule := range p.rs.Rules {
		if !hit(rule.Decision) || seen[pair{rule.From, rule.To}] {
			continue
		}
		seen[pair{rule.From, rule.To}] = true
		for _, from := range p.meant(rule.From, r.from) {
			for _, to := range p.meant(rule.To, r.to) {
				if !look(from, to) {
					return found
				}
			}
		}
	}
	return found
}

// meant lists the groups that a rule's side matches and that are in all of the sets.
func (p *prover) meant(side bocage.Group, sets []map[bocage.Group]bool) []bocage.Group {
	if side != bocage.GroupAny {
		if in(side, sets) {
			return []bocage.Group{side}
		}
		return nil
	}
	var out []bocage.Group
	for _, g := range p.groups {
		if in(g, sets) {
			out = append(out, g)
		}
	}
	return out
}
