package policy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
)

// mostChanges is how many changes of reach a plan lists.
const mostChanges = 2000

// Plan says what the objects would change if they were declared: it compiles and
// proves them together with what is there, and writes nothing.
func (p *Policy) Plan(ctx context.Context, objects []bocage.Resource) (bocage.PlanResult, error) {
	current, active := p.current.Load(), p.inForce()
	if current == nil {
		return bocage.PlanResult{}, ErrNoPolicy
	}
	var result bocage.PlanResult
	for _, object := range objects {
		name := object.Type().Kind + " " + object.Meta().NamespacedName()
		for _, f := range object.Validate() {
			f.Field, f.Source = name+" "+f.Field, object.Meta().Annotations[bocage.SourceAnnotation]
			result.Faults = append(result.Faults, f)
		}
	}
	if len(result.Faults) > 0 {
		return result, nil
	}
	input := merge(current.input, objects)
	input.Now = time.Now()
	output := compile.Compile(input)
	result.Faults, result.Findings = sortFindings(output.Findings, objects)
	if len(result.Faults) > 0 {
		result.Findings = nil
		return result, nil
	}
	result.Digest = output.Ruleset.Digest
	result.Proofs = p.prove(input, output.Ruleset)
	before, after := active.output.Ruleset, output.Ruleset
	result.Reach = prove.Compare(before, after)
	if more := len(result.Reach) - mostChanges; more > 0 {
		result.Reach = result.Reach[:mostChanges]
		result.Findings = append(result.Findings, bocage.Fault{Message: fmt.Sprintf("%d more changes of reach are not listed", more)})
	}
	result.Findings = append(result.Findings, enforcementChanges(before, after)...)
	if p.edges != nil {
		edges, err := p.edges(ctx)
		if err != nil {
			return result, fmt.Errorf("replay recorded flows: %w", err)
		}
		replay(&result, current, input, before, after, edges)
	}
	return result, nil
}

// merge puts the objects in the place of those of the same name.
func merge(in compile.Input, objects []bocage.Resource) compile.Input {
	in.Applications = replaced(in.Applications, objects)
	in.Guardrails = replaced(in.Guardrails, objects)
	in.Scopes = replaced(in.Scopes, objects)
	in.Profiles = replaced(in.Profiles, objects)
	in.Decoys = replaced(in.Decoys, objects)
	in.Quarantines = replaced(in.Quarantines, objects)
	in.ThreatConditions = replaced(in.ThreatConditions, objects)
	in.Workloads = numbered(in.Workloads, replaced(in.Workloads, objects))
	return in
}

func replaced[T bocage.Resource](list []T, objects []bocage.Resource) []T {
	out := slices.Clone(list)
	for _, object := range objects {
		o, ok := object.(T)
		if !ok {
			continue
		}
		name := o.Meta().NamespacedName()
		i := slices.IndexFunc(out, func(other T) bool { return other.Meta().NamespacedName() == name })
		if i < 0 {
			out = append(out, o)
		} else {
			out[i] = o
		}
	}
	return out
}

// numbered gives workloads that are declared anew the number that they have, or
// one that nobody has, as the api room would.
func numbered(before, after []*bocage.Workload) []*bocage.Workload {
	known := make(map[string]bocage.Identity, len(before))
	next := bocage.IdentityFirst
	for _, w := range before {
		known[w.NamespacedName()] = w.Status.Identity
		next = max(next, w.Status.Identity+1)
	}
	for i, w := range after {
		if w.Status.Identity >= bocage.IdentityFirst {
			continue
		}
		copied := *w
		if copied.Status.Identity = known[w.NamespacedName()]; copied.Status.Identity < bocage.IdentityFirst {
			copied.Status.Identity, next = next, next+1
		}
		after[i] = &copied
	}
	return after
}

// sortFindings tells what is wrong with the objects from what is only remarkable.
// A service that nobody declares yet is remarkable: its owner may come later.
func sortFindings(findings []compile.Finding, objects []bocage.Resource) (faults, remarks bocage.Faults) {
	planned := map[string]bool{}
	for _, o := range objects {
		planned[o.Type().Kind+" "+o.Meta().NamespacedName()] = true
	}
	for _, f := range findings {
		name := f.Object.Kind + " " + strings.TrimPrefix(f.Object.Namespace+"/"+f.Object.Name, "/")
		fault := bocage.Fault{Field: strings.TrimSpace(name + " " + f.Object.Field), Message: f.Message, Source: f.Object.Source}
		switch {
		case !planned[name]:
		case f.Rejected && f.Reason != compile.UnknownApplication:
			faults = append(faults, fault)
		default:
			remarks = append(remarks, fault)
		}
	}
	return faults, remarks
}

// enforcementChanges says whose refusals would begin or cease to hold.
func enforcementChanges(before, after *bocage.Ruleset) bocage.Faults {
	enforced := func(rs *bocage.Ruleset) map[string]bool {
		groups := map[bocage.Group]bool{}
		for _, g := range rs.Groups {
			groups[g.Group] = g.Enforce
		}
		out := map[string]bool{}
		for _, p := range rs.Peers {
			if p.Workload != "" {
				out[p.Workload] = groups[p.Group]
			}
		}
		return out
	}
	was, is := enforced(before), enforced(after)
	var begins, ends []string
	for name, now := range is {
		if now && !was[name] {
			begins = append(begins, name)
		} else if !now && was[name] {
			ends = append(ends, name)
		}
	}
	var out bocage.Faults
	for _, part := range []struct {
		names []string
		text  string
	}{{begins, "what policy refuses from and to %s would be refused from then on"}, {ends, "what policy refuses from and to %s would only be reported from then on"}} {
		if len(part.names) == 0 {
			continue
		}
		slices.Sort(part.names)
		text := strings.Join(part.names[:min(len(part.names), 10)], ", ")
		if more := len(part.names) - 10; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
		out = append(out, bocage.Fault{Field: "Scope", Message: fmt.Sprintf(part.text, text)})
	}
	return out
}

// replay runs recorded edges through both rulesets.
func replay(result *bocage.PlanResult, current *outcome, input compile.Input, before, after *bocage.Ruleset, edges []bocage.Edge) {
	next := &outcome{input: input}
	for _, e := range edges {
		q := bocage.ExplainQuery{From: e.Source, To: e.Destination, Port: e.DestinationPort, Protocol: e.Protocol}
		was, err := current.flow(q)
		if err != nil {
			continue // of a workload that is gone
		}
		is, err := next.flow(q)
		if err != nil {
			continue
		}
		result.Replayed++
		_, then := before.Decide(was)
		_, now := after.Decide(is)
		switch {
		case then.Would.Allowed() && !now.Would.Allowed():
			result.NewlyRefused = append(result.NewlyRefused, bocage.PlannedEdge{Edge: e})
		case !then.Would.Allowed() && now.Would.Allowed():
			result.NewlyAllowed = append(result.NewlyAllowed, bocage.PlannedEdge{Edge: e})
		}
	}
}
