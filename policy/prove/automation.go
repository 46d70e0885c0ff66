package prove

import (
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// On protected cells, threat conditions and responses may not add a duty that may cost
// packets. The ruleset is not asked who requires a duty, since it may be wrong: a duty that
// automation requires now is accepted only where a guardrail or a contract requires it, too.

// costlyDuty looks for a cell in the region that owes a costly duty which only automation
// requires.
func (p *prover) costlyDuty(r region) string {
	for _, duty := range p.costlyDuties() {
		owes := func(_, _ bocage.Group, d bocage.Decision) bool { return p.owes(d, duty) }
		if !slices.ContainsFunc(p.rs.Decisions, func(d bocage.Decision) bool { return owes(0, 0, d) }) || !p.holdsAnybody(r) {
			continue
		}
		if found := p.violation(r, p.alsoRequiredBy(duty, false), owes); found != "" {
			return found + ", which owes " + strings.Join(duty.List(), " ") + " to nobody else"
		}
		if found := p.namedViolation(r, p.alsoRequiredBy(duty, true), owes); found != "" {
			return found + ", which owes " + strings.Join(duty.List(), " ") + " to nobody else"
		}
	}
	return ""
}

// costlyDuties lists the duties that threat conditions and responses require now and that
// may cost packets, one by one, whichever workloads they concern.
func (p *prover) costlyDuties() []bocage.Duties {
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
	return d.Duties != nil && includes(*d.Duties, duty)
}

// includes reports whether one duty is among several.
func includes(all, one bocage.Duties) bool {
	return one.Inspect != "" && one.Inspect == all.Inspect ||
		one.Verify != "" && slices.Contains(strings.Split(all.Verify, "+"), one.Verify) ||
		one.Rate != "" && one.Rate == all.Rate || one.Whole && all.Whole ||
		one.Assurance != "" && one.Assurance == all.Assurance
}

// alsoRequiredBy returns the cells on which a guardrail requires the duty, or an interface
// declares the protocol. A name may have any external address that a guardrail matches.
func (p *prover) alsoRequiredBy(duty bocage.Duties, byName bool) []excuse {
	var out []excuse
	for _, g := range p.in.Guardrails {
		spec := g.InForce()
		if spec == nil || len(g.Validate()) > 0 || spec.Require == nil || !includes(*spec.Require, duty) {
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
