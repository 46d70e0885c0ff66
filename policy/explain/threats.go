package explain

import (
	"slices"
	"time"

	"bocage.dev/bocage"
)

// prevails is a threat condition with an end of the flow that it concerns.
type prevails struct {
	*bocage.ThreatCondition
	end      party
	isSource bool
}

// prevailing lists the conditions of either end that have not expired.
func (j *Judge) prevailing(g *Judgement) []prevails {
	var out []prevails
	for _, t := range j.in.ThreatConditions {
		if !g.At.Before(t.Spec.Expires) {
			continue
		}
		for i, end := range []party{g.Source, g.Destination} {
			if concerns(t, end) {
				out = append(out, prevails{t, end, i == 0})
			}
		}
	}
	return out
}

func concerns(t *bocage.ThreatCondition, p party) bool {
	return p.workload != nil && (t.Spec.All || t.Spec.Zone != "" && t.Spec.Zone == p.zone || t.Spec.Workload == p.workload.NamespacedName())
}

// threats finds what prevailing conditions tighten: by responses first, then by
// their own level.
func (j *Judge) threats(g *Judgement, f bocage.Flow, prevailing []prevails) {
	spared := len(g.Protected) > 0
	for _, r := range j.in.Responses {
		j.respond(g, f, r, prevailing)
	}
	for _, t := range prevailing {
		by := ref("ThreatCondition", t, "spec.level")
		if !slices.Contains(g.Threats, by) {
			g.Threats = append(g.Threats, by)
		}
		g.Log = true
		g.owe(bocage.Duties{Log: "full"}, by)
		if profile := j.profiles[t.Spec.Profile]; t.Spec.Level.Includes(bocage.LevelDeepen) && profile != nil && !(spared && profile.MayRefuse()) {
			g.owe(bocage.Duties{Inspect: t.Spec.Profile}, by)
		}
		if t.Spec.Level != bocage.LevelQuarantine || len(j.enforcing(t.end)) == 0 {
			continue
		}
		switch {
		case !j.spares[t.Spec.Workload]:
			g.cut(by, t.Spec.Expires)
		case !spared && !slices.Contains(g.Quarantines, by):
			g.Quarantines = append(g.Quarantines, by)
		}
	}
}

// respond applies one response to the ends that it answers for. What is
// protected keeps its reach: nothing is owed there that may cost it packets.
func (j *Judge) respond(g *Judgement, f bocage.Flow, r *bocage.Response, prevailing []prevails) {
	var asSource, asDestination bool
	for _, t := range prevailing {
		if j.answers(r, t) {
			asSource, asDestination = asSource || t.isSource, asDestination || !t.isSource
		}
	}
	if !asSource && !asDestination {
		return
	}
	spared := len(g.Protected) > 0
	then := r.Spec.Then
	if then.Require != nil {
		j.require(g, *then.Require, spared, func(name string) bocage.Ref { return ref("Response", r, "spec.then.require."+name) })
	}
	if spared {
		return
	}
	for _, side := range []struct {
		field  string
		holds  bool
		cells  []bocage.ResponseCell
		toward party
	}{{"spec.then.refuseFrom", asSource, then.RefuseFrom, g.Destination}, {"spec.then.refuseTo", asDestination, then.RefuseTo, g.Source}} {
		for i, cell := range side.cells {
			if side.holds && j.side(cell.Peer, side.toward, f) && portsCover(cell.Ports, f) {
				g.Responses = append(g.Responses, ref("Response", r, at(side.field, i)))
			}
		}
	}
}

// answers reports whether a response is to such a condition of such a workload.
func (j *Judge) answers(r *bocage.Response, t prevails) bool {
	when := r.Spec.When
	return t.Spec.Level.Includes(when.Level) && t.end.picked(when.Workloads.Namespaces, when.Workloads.Workload)
}

// quarantines finds the people's decisions to cut an end off.
func (j *Judge) quarantines(g *Judgement) {
	for _, q := range j.in.Quarantines {
		for _, end := range []party{g.Source, g.Destination} {
			if end.workload != nil && end.workload.NamespacedName() == q.Spec.Workload {
				g.cut(ref("Quarantine", q, "spec.workload"), q.Spec.Until)
			}
		}
	}
}

// cut notes a quarantine of an identity, if it lasts at the moment.
func (g *Judgement) cut(by bocage.Ref, until time.Time) {
	if !until.IsZero() && !g.At.Before(until) || slices.Contains(g.Cut, by) {
		return
	}
	if len(g.Cut) == 0 || until.IsZero() {
		g.CutUntil = until
	} else if !g.CutUntil.IsZero() && until.After(g.CutUntil) {
		g.CutUntil = until
	}
	g.Cut = append(g.Cut, by)
}
