package prove

import (
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// What is protected owes automation nothing that may cost it packets. From whom a
// decision has its duties is not asked of the ruleset, which might lie: a duty that
// automation asks for now is excused only where a guardrail or a contract asks for it too.

// burdened looks for a cell in the region that owes what only automation asks for.
func (p *prover) burdened(r region) string {
	for _, duty := range p.burdens() {
		owes := func(_, _ bocage.Group, d bocage.Decision) bool { return p.owes(d, duty) }
		if !slices.ContainsFunc(p.rs.Decisions, func(d bocage.Decision) bool { return owes(0, 0, d) }) || !p.holdsAnybody(r) {
			continue
		}
		if found := p.violation(r, p.asking(duty, false), owes); found != "" {
			return found + ", which owes " + strings.Join(duty.List(), " ") + " to nobody else"
		}
		if found := p.namedViolation(r, p.asking(duty, true), owes); found != "" {
			return found + ", which owes " + strings.Join(duty.List(), " ") + " to nobody else"
		}
	}
	return ""
}

// burdens are the duties that threat conditions and responses ask for now and that may
// cost a flow packets, each on its own. Of whom they ask it is left open.
func (p *prover) burdens() []bocage.Duties {
	var out []bocage.Duties
	costly := map[string]bool{}
	for _, profile := range p.in.Profiles {
		costly[profile.Name] = profile.MayRefuse()
	}
	add := func(d bocage.Duties) {
		if !d.Empty() && (d.Inspect == "" || costly[d.Inspect]) && !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	prevailing := slices.DeleteFunc(byName(p.in.ThreatConditions), func(t *bocage.ThreatCondition) bool { return !p.in.Now.Before(t.Spec.Expires) })
	for _, t := range prevailing {
		if t.Spec.Level.Includes(bocage.LevelDeepen) {
			add(bocage.Duties{Inspect: t.Spec.Profile})
		}
	}
	for _, r := range byName(p.in.Responses) {
		answers := slices.ContainsFunc(prevailing, func(t *bocage.ThreatCondition) bool { return t.Spec.Level.Includes(r.Spec.When.Level) })
		if d := r.Spec.Then.Require; d != nil && answers {
			for _, one := range []bocage.Duties{{Inspect: d.Inspect}, {Verify: d.Verify}, {Rate: d.Rate}, {Whole: d.Whole}, {Assurance: d.Assurance}} {
				add(one)
			}
		}
	}
	return out
}

// owes reports whether one duty is among those of an allowed decision.
func (p *prover) owes(d bocage.Decision, duty bocage.Duties) bool {
	if !d.Verdict.Allowed() {
		return false
	}
	if duty.Inspect != "" {
		return d.Verdict == bocage.VerdictInspect && slices.Contains(strings.Split(p.reach.profiles[d.Profile], "+"), duty.Inspect)
	}
	return d.Duties != nil && asks(*d.Duties, duty)
}

// asks reports whether one duty is among several.
func asks(all, one bocage.Duties) bool {
	return one.Inspect != "" && one.Inspect == all.Inspect ||
		one.Verify != "" && slices.Contains(strings.Split(all.Verify, "+"), one.Verify) ||
		one.Rate != "" && one.Rate == all.Rate || one.Whole && all.Whole ||
		one.Assurance != "" && one.Assurance == all.Assurance
}

// asking are the cells of which a guardrail asks a duty, or in which an interface says
// what is spoken. A name may mean anybody outside whom a guardrail means.
func (p *prover) asking(duty bocage.Duties, byName bool) []excuse {
	var out []excuse
	for _, g := range p.in.Guardrails {
		spec := g.InForce()
		if spec == nil || len(g.Validate()) > 0 || spec.Require == nil || !asks(*spec.Require, duty) {
			continue
		}
		r := p.region(spec.Match)
		if byName && slices.ContainsFunc(p.groups, func(g bocage.Group) bool { return in(g, r.to) && p.nameable(g) }) {
			r.to = nil
		}
		out = append(out, excuse{region: r, always: true})
	}
	if duty.Verify == "" || byName {
		return out
	}
	for _, app := range p.in.Applications {
		var ports []bocage.PortMatch
		for _, o := range app.Spec.Provides {
			if o.AppProtocol != "" && bocage.CanonicalAppProtocol(o.AppProtocol) == duty.Verify {
				ports = append(ports, bocage.PortMatch{Port: o.Port, EndPort: o.EndPort, Protocol: o.Protocol})
			}
		}
		if len(ports) > 0 && len(app.Validate()) == 0 {
			to := bocage.Side{Namespaces: []string{app.Namespace}, Workload: &app.Spec.Workload}
			out = append(out, excuse{region: p.region(bocage.CellMatch{To: to, Ports: ports}), always: true})
		}
	}
	return out
}
