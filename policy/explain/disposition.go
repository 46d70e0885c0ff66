package explain

import (
	"slices"

	"bocage.dev/bocage"
)

// decoys finds those that stand where the flow goes and wait for its source.
func (j *Judge) decoys(g *Judgement, f bocage.Flow) {
	if f.Protocol != bocage.ProtocolTCP || g.Destination.workload == nil {
		return
	}
	var worn *bocage.Decoy // the first by name gives the port its face
	for _, d := range j.in.Decoys {
		if d.Spec.Port != f.DestinationPort || !j.side(d.Spec.For, g.Destination, f) {
			continue
		}
		if worn == nil {
			worn = d
		}
		if d.Spec.Protocol == worn.Spec.Protocol && d.Spec.Banner == worn.Spec.Banner && j.side(d.Spec.From, g.Source, f) {
			g.Decoys = append(g.Decoys, ref("Decoy", d, "spec"))
		}
	}
}

// wishes finds how authors want the refusal to look.
func (j *Judge) wishes(g *Judgement, f bocage.Flow, prevailing []prevails) {
	if g.Would.Allowed() {
		return
	}
	wish := func(disposition string, by bocage.Ref) {
		if disposition != "" {
			g.Wishes = append(g.Wishes, Wish{disposition, by})
		}
	}
	for _, gr := range j.in.Guardrails {
		if slices.ContainsFunc(g.Nevers, func(by bocage.Ref) bool { return by.Name == gr.Name }) {
			wish(gr.InForce().Disposition, ref("Guardrail", gr, "spec.disposition"))
		}
	}
	if g.Code == bocage.ReasonDefaultDeny || g.Code == bocage.ReasonKubernetes {
		for _, s := range j.in.Scopes {
			if g.Destination.picked(s.Spec.Namespaces, &s.Spec.Workload) {
				wish(s.Spec.Disposition, ref("Scope", s, "spec.disposition"))
			}
		}
	}
	for _, r := range j.in.Responses {
		if slices.ContainsFunc(prevailing, func(t prevails) bool { return j.answers(r, t) }) {
			wish(r.Spec.Then.Disposition, ref("Response", r, "spec.then.disposition"))
		}
	}
}

// scopes finds who makes a refusal hold. What a threat condition enforces it
// enforces until policy is compiled again, so its end is not read here.
func (j *Judge) scopes(g *Judgement) {
	ends := []party{g.Source, g.Destination}
	for _, t := range j.in.ThreatConditions {
		if t.Spec.Level.Includes(bocage.LevelRestrict) && slices.ContainsFunc(ends, func(p party) bool { return concerns(t, p) }) {
			g.EnforcedBy = append(g.EnforcedBy, ref("ThreatCondition", t, "spec.level"))
		}
	}
	for _, end := range ends {
		g.EnforcedBy = append(g.EnforcedBy, j.enforcing(end)...)
	}
	g.EnforcedBy = once(g.EnforcedBy)
}

// enforcing lists the scopes that enforce one end's refusals.
func (j *Judge) enforcing(p party) []bocage.Ref {
	var out []bocage.Ref
	for _, s := range j.in.Scopes {
		if s.Spec.Mode == bocage.ModeEnforce && p.picked(s.Spec.Namespaces, &s.Spec.Workload) {
			out = append(out, ref("Scope", s, "spec.mode"))
		}
	}
	return out
}
