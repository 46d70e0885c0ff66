// Package explain answers why a flow gets its verdict: what every author said,
// which object and field decided, which duties the flow owes to whom, and the
// smallest change that would turn the verdict.
//
// It promises an answer for every flow, default deny included, and that the
// verdict it names is the one that the enforcement points apply, for it asks
// the ruleset itself; the layers come from the objects. Where the two should
// disagree it says so instead of choosing. A change that it advises was made on
// a copy and judged, so it does turn the verdict. It never changes anything.
package explain

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Explain explains one flow under a ruleset that was compiled from the input.
func Explain(in compile.Input, rs *bocage.Ruleset, f bocage.Flow) bocage.Explanation {
	return NewJudge(in).Explain(rs, f)
}

// Explain explains one flow under a ruleset that was compiled from the judge's
// objects.
func (j *Judge) Explain(rs *bocage.Ruleset, f bocage.Flow) bocage.Explanation {
	g := j.Judge(f)
	e := bocage.Explanation{Flow: f}
	e.Verdict, e.Reason = rs.Decide(f)
	e.Missing = j.advise(&g, f).Text
	j.tell(&e, rs, &g, f)
	return e
}

// ExplainNamed is Explain for a flow whose source was told that the destination's
// address is that of a name.
func (j *Judge) ExplainNamed(rs *bocage.Ruleset, f bocage.Flow, name bocage.DomainName) bocage.Explanation {
	g := j.JudgeNamed(f, name)
	g.asked = name
	e := bocage.Explanation{Flow: f, Name: name, Anywhere: g.Destination.called != ""}
	e.Verdict, e.Reason = rs.DecideNamed(f, name)
	e.Missing = j.AdviseNamed(f, name).Text
	e.Layers = []bocage.Layer{j.nameLayer(&g, f)}
	j.tell(&e, rs, &g, f)
	return e
}

// tell fills in what is told of a verdict and the judgement of the same flow.
func (j *Judge) tell(e *bocage.Explanation, rs *bocage.Ruleset, g *Judgement, f bocage.Flow) {
	e.Source, e.Destination, e.Generation = rs.Lookup(f.Source), rs.Lookup(f.Destination), rs.Generation
	decision, _ := rs.Decision(e.Reason.Decision)
	e.Decider = Decider(decision)
	if node, decides := j.ownNode(g); decides && e.Verdict.Allowed() && e.Decider.Kind == "Default" {
		e.Decider = node
	}
	e.Layers = append(e.Layers, j.layers(g, f)...)
	if e.Verdict.Allowed() && e.Reason.Would.Allowed() {
		e.Duties = g.Duties
	}
	if !g.ToItself() && (e.Verdict != g.Verdict || e.Reason.Code != g.Code || e.Reason.Would != g.Would) {
		e.Layers = append(e.Layers, bocage.Layer{Name: LayerCheck, By: g.By, Result: fmt.Sprintf(
			"the objects themselves say %s (%s), which the ruleset does not: it is older than they are, or the compiler is wrong", g.Verdict, g.Code)})
	}
}

// Decider is the place that decided: the first author of the decision, unless
// nobody declared what it says.
func Decider(d bocage.Decision) bocage.Ref {
	switch {
	case d.Code == bocage.ReasonDefaultDeny:
		return bocage.Ref{Kind: "Default", Name: "deny"}
	case d.Code == bocage.ReasonKubernetes && d.Verdict.Allowed() &&
		(len(d.By) == 0 || d.By[0].Kind != "NetworkPolicy" && d.By[0].Kind != "ClusterNetworkPolicy"):
		return bocage.Ref{Kind: "Default", Name: "accept"} // nothing selects the Pods: Kubernetes accepts
	case len(d.By) > 0:
		return d.By[0]
	default:
		return bocage.Ref{Kind: "Default", Name: "deny"}
	}
}

func (g *Judgement) workloadsText() string {
	var names []string
	for _, p := range []party{g.Source, g.Destination} {
		if p.workload != nil && !slices.Contains(names, p.String()) {
			names = append(names, p.String())
		}
	}
	return strings.Join(names, " or ")
}

// refList names refs for people.
func refList(refs []bocage.Ref) string {
	texts := make([]string, len(refs))
	for i, r := range refs {
		texts[i] = r.String()
	}
	return strings.Join(texts, " and ")
}

func moment(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// at is the path of an element of a list.
func at(list string, i int) string { return fmt.Sprintf("%s[%d]", list, i) }
