package explain

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// Advice is the smallest change of declarations that turns a flow's verdict.
type Advice struct {
	// Steps turn it, made one after the other. None: nothing that can be declared
	// does.
	Steps []Step
	// Otherwise turns it too: in another way, and not what the flow's owners
	// would do first.
	Otherwise []Step
	// Text says it for people.
	Text string
}

// Step is one change.
type Step struct {
	Change Change
	Text   string
}

// mostRounds bounds how many obstacles, one behind the other, an advice clears.
const mostRounds = 8

// Advise finds the change that turns the verdict, before scopes, of a flow. Each
// step was made and judged: the advice does what it says.
func (j *Judge) Advise(f bocage.Flow) Advice {
	g := j.Judge(f)
	return j.advise(&g, f)
}

func (j *Judge) advise(g *Judgement, f bocage.Flow) Advice {
	own := *j
	own.valid, own.tried = map[bocage.Resource]bool{}, new(trial)
	own.in.Now = g.At // whatever moment before it the declarations were read for
	j = &own
	if g.Would.Allowed() {
		return j.adviseToRefuse(g, f)
	}
	a := Advice{Steps: j.opening(*g, f)}
	a.Text = textOf(a.Steps)
	if len(a.Steps) == 0 {
		a.Text = j.hopeless(g, f)
	}
	return j.orEnforce(a, g)
}

// orEnforce tells, of a refused flow that passes, that it would take a scope to hold it up.
func (j *Judge) orEnforce(a Advice, g *Judgement) Advice {
	if g.Verdict.Allowed() && (g.Source.workload != nil || g.Destination.workload != nil) {
		a.Otherwise = []Step{j.enforcingScope(g)}
		a.Text = "it passes because scopes only observe: a Scope with mode: enforce that picks " + g.workloadsText() +
			" would refuse it. To have it allowed for good: " + a.Text
	}
	return a
}

// opening clears one obstacle after the other, in the order in which they refuse,
// from the judgement on as things are.
func (j *Judge) opening(g Judgement, f bocage.Flow) []Step {
	var steps []Step
	asThingsAre := j
	for round := range mostRounds {
		if g.Would.Allowed() {
			if round > 1 {
				return asThingsAre.needed(steps, f)
			}
			return steps
		}
		next := j.clear(&g, f)
		if !j.possible(next) {
			return nil
		}
		steps = append(steps, next...)
		if t := j.tried; len(t.steps) == len(next) && &t.steps[0] == &next[0] {
			j, g = t.judge, t.after
		} else {
			j = j.with(changesOf(next))
			g = j.Judge(f)
		}
	}
	return nil
}

// needed leaves out the steps without which the flow is allowed too: one that clears an
// obstacle may clear another before it. What later steps build on stays.
func (j *Judge) needed(steps []Step, f bocage.Flow) []Step {
	for i := 0; i < len(steps) && len(steps) > 1; {
		without := slices.Delete(slices.Clone(steps), i, i+1)
		if !slices.ContainsFunc(without[i:], func(s Step) bool { return sameObject(s.Change.Object, steps[i].Change.Object) }) && !j.refused(without, f) {
			steps = without
		} else {
			i++
		}
	}
	return steps
}

func sameObject(a, b bocage.Resource) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && a.Meta().Name == b.Meta().Name && a.Meta().Namespace == b.Meta().Namespace
}

// clear finds what takes away the obstacle that decides.
func (j *Judge) clear(g *Judgement, f bocage.Flow) []Step {
	switch {
	case len(g.Cut) > 0:
		return j.lift(g.Cut, g.CutUntil, "")
	case len(g.Quarantines) > 0:
		return j.lift(g.Quarantines, time.Time{}, "")
	case len(g.Nevers) > 0:
		return j.clearGuardrails(g, f)
	case len(g.Kubernetes.Denies) > 0:
		return j.clearAdmin(g, f)
	case len(g.Responses) > 0:
		return j.clearResponses(g)
	case len(g.Allows) == 0 && !g.Kubernetes.Allows:
		return j.allow(g, f)
	default:
		return j.clearImpossible(g, f)
	}
}

// lift deletes quarantines and threat conditions. until is when the last of them
// ends by itself, if that is known and all of them end.
func (j *Judge) lift(refs []bocage.Ref, until time.Time, because string) []Step {
	var steps []Step
	for i, r := range refs {
		change := Change{Object: &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: r.Name}}, Delete: true}
		if r.Kind == "ThreatCondition" {
			change.Object = &bocage.ThreatCondition{ObjectMeta: bocage.ObjectMeta{Name: r.Name}}
		}
		text := fmt.Sprintf("bocage delete %s %s", strings.ToLower(r.Kind), r.Name)
		if i == 0 {
			text = "lift it: " + text
		}
		if i == len(refs)-1 {
			text += because
			if !until.IsZero() {
				text += ", or wait until " + moment(until)
			}
		}
		steps = append(steps, Step{change, text})
	}
	return steps
}

// clearGuardrails asks each guardrail that refuses for an exception where it
// admits one, and for a change by its owner where it does not.
func (j *Judge) clearGuardrails(g *Judgement, f bocage.Flow) []Step {
	var steps []Step
	for _, gr := range j.in.Guardrails {
		var fields []string
		for _, by := range g.Nevers {
			if by.Name == gr.Name {
				fields = append(fields, by.Field)
			}
		}
		if len(fields) > 0 {
			steps = append(steps, j.exceptionOr(gr, g, f, func() Step { return withdraw(gr, fields) }))
		}
	}
	return steps
}

// exceptionOr is an Exception to the guardrail for this very flow, if one is
// admitted, valid and long enough; otherwise something else.
func (j *Judge) exceptionOr(gr *bocage.Guardrail, g *Judgement, f bocage.Flow, otherwise func() Step) Step {
	terms := gr.InForce().Exceptions
	if !terms.Allowed {
		return otherwise()
	}
	last := 24 * time.Hour
	if longest := terms.Longest(); longest > 0 && longest < last {
		last = longest
	}
	e := &bocage.Exception{TypeMeta: bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Exception"},
		ObjectMeta: bocage.ObjectMeta{Name: j.freeExceptionName(gr.Name)},
		Spec:       bocage.ExceptionSpec{Guardrail: gr.Name, Match: cellOf(g, f), Until: g.At.Add(last)}}
	if len(e.Validate()) > 0 {
		return otherwise()
	}
	text := fmt.Sprintf("declare an Exception to Guardrail %s (%s) with spec.match %s and spec.until no later than %s from its beginning",
		gr.Name, fieldsText(g, gr.Name), flowYAML(e.Spec.Match), last)
	if terms.Longest() == 0 {
		text = fmt.Sprintf("declare an Exception to Guardrail %s (%s) with spec.match %s and the spec.until that is needed",
			gr.Name, fieldsText(g, gr.Name), flowYAML(e.Spec.Match))
	}
	if len(terms.Approvers) > 0 {
		text += "; " + strings.Join(terms.Approvers, " or ") + " may approve it"
	}
	return Step{Change{Object: e}, text}
}

// fieldsText names what of a guardrail stands in the way.
func fieldsText(g *Judgement, guardrail string) string {
	var fields []string
	said := map[string]bool{}
	for _, by := range slices.Concat(g.Nevers, g.Impossible) {
		if by.Kind == "Guardrail" && by.Name == guardrail && !said[by.Field] {
			said[by.Field] = true
			fields = append(fields, by.Field)
		}
	}
	return joined(fields)
}

func (j *Judge) freeExceptionName(guardrail string) string {
	name := guardrail + "-exception"
	for n := 2; slices.ContainsFunc(j.in.Exceptions, func(e *bocage.Exception) bool { return e.Name == name }); n++ {
		name = fmt.Sprintf("%s-exception-%d", guardrail, n)
	}
	return name
}

// withdraw takes fields out of a guardrail, and the guardrail away if that
// leaves nothing.
func withdraw(gr *bocage.Guardrail, fields []string) Step {
	by := ref("Guardrail", gr, joined(fields))
	text := fmt.Sprintf("no contract can open this: the owner of %s would have to withdraw that, or admit exceptions by spec.exceptions.allowed", by)
	after := approved(gr)
	nevers, grants := map[int]bool{}, map[int]bool{}
	for _, field := range fields {
		if i, of := index(field, "spec.never"); of {
			nevers[i] = true
		} else if i, of := index(field, "spec.grant"); of {
			grants[i] = true
		}
		if field == "spec.separate" {
			after.Spec.Separate = nil
		}
		if field == "spec.require" {
			after.Spec.Require = nil
		}
	}
	after.Spec.Never, after.Spec.Grant = without(after.Spec.Never, nevers), without(after.Spec.Grant, grants)
	return Step{Change{after, len(after.Validate()) > 0}, text}
}

// approved is a copy of a guardrail whose declaration is the one in force, as if
// everybody had agreed to it.
func approved(gr *bocage.Guardrail) *bocage.Guardrail {
	after := *gr
	after.Spec, after.Status.Approval = *gr.InForce(), nil
	return &after
}

// clearResponses lifts the conditions that the refusing responses answer.
func (j *Judge) clearResponses(g *Judgement) []Step {
	var conditions, responses []bocage.Ref
	var until time.Time
	for _, r := range j.in.Responses {
		refuses := slices.IndexFunc(g.Responses, func(by bocage.Ref) bool { return by.Name == r.Name })
		if refuses < 0 {
			continue
		}
		responses = append(responses, g.Responses[refuses])
		from, to := g.refuses(r)
		for _, t := range j.prevailing(g) {
			if by := ref("ThreatCondition", t, "spec.level"); j.answers(r, t) && (t.isSource && from || !t.isSource && to) && !slices.Contains(conditions, by) {
				conditions = append(conditions, by)
				if t.Spec.Expires.After(until) {
					until = t.Spec.Expires
				}
			}
		}
	}
	return j.lift(conditions, until, ", to which "+refList(responses)+" answers")
}

// refuses reports whether a response refuses what comes from those that it answers
// for, and what goes to them.
func (g *Judgement) refuses(r *bocage.Response) (from, to bool) {
	for _, by := range g.Responses {
		if by.Name == r.Name {
			_, is := index(by.Field, "spec.then.refuseFrom")
			from, to = from || is, to || !is
		}
	}
	return from, to
}

// clearImpossible makes duties possible that cannot be kept.
func (j *Judge) clearImpossible(g *Judgement, f bocage.Flow) []Step {
	var steps []Step
	done := map[string]bool{}
	var highest int
	var asked bocage.Ref
	for _, by := range g.Impossible {
		var required *bocage.Duties
		switch by.Kind {
		case "Guardrail":
			i := slices.IndexFunc(j.in.Guardrails, func(gr *bocage.Guardrail) bool { return gr.Name == by.Name })
			required = j.in.Guardrails[i].InForce().Require
		case "Response":
			i := slices.IndexFunc(j.in.Responses, func(r *bocage.Response) bool { return r.Name == by.Name })
			required = j.in.Responses[i].Spec.Then.Require
		}
		if required == nil {
			return nil
		}
		if strings.HasSuffix(by.Field, ".inspect") {
			if done[required.Inspect] {
				continue
			}
			done[required.Inspect] = true
			steps = append(steps, Step{Change{Object: &bocage.InspectionProfile{ObjectMeta: bocage.ObjectMeta{Name: required.Inspect},
				Spec: bocage.InspectionProfileSpec{Signatures: "alert ip any any -> any any (msg:\"example\"; sid:1;)\n"}}},
				fmt.Sprintf("declare the InspectionProfile %s that %s names", required.Inspect, by)})
			continue
		}
		if wanted, _ := bocage.AssuranceLevel(required.Assurance); wanted > highest {
			highest, asked = wanted, by // who is vouched for so far is so for all who ask
		}
	}
	if highest > 0 {
		steps = append(steps, vouch(g, highest, asked)...)
	}
	return steps
}

// vouch raises the assurance of the ends that fall short.
func vouch(g *Judgement, wanted int, by bocage.Ref) []Step {
	var steps []Step
	ends := []party{g.Source, g.Destination}
	if g.ToItself() {
		ends = ends[:1]
	}
	for _, p := range ends {
		if p.workload == nil || p.assurance() >= wanted {
			continue
		}
		after := *p.workload
		after.Status.Assurance = fmt.Sprintf("L%d", wanted)
		steps = append(steps, Step{Change{Object: &after}, fmt.Sprintf("have the identity of %s vouched for at L%d, as %s asks; it is at L%d",
			p, wanted, by, p.assurance())})
	}
	return steps
}

// adviseToRefuse finds what would have to be withdrawn.
func (j *Judge) adviseToRefuse(g *Judgement, f bocage.Flow) Advice {
	a := Advice{Steps: j.withdrawals(g, f), Otherwise: []Step{j.neverStep(g, f)}}
	if len(a.Steps) == 0 {
		a.Steps, a.Otherwise = a.Otherwise, nil
		a.Text = "to refuse it, " + textOf(a.Steps)
		switch {
		case g.Kubernetes.ownNode():
			a.Text = "a node always reaches the Pods that run on it, whatever NetworkPolicies say: " + a.Text
		case g.Code == bocage.ReasonKubernetes && len(g.Kubernetes.By) == 0:
			a.Text = "no policy selects a Pod there, and Kubernetes accepts what none decides: " + a.Text
		}
		return a
	}
	a.Text = "to refuse it, " + textOf(a.Steps) + ", or " + textOf(a.Otherwise)
	return a
}

// newGuardrail makes a guardrail with a name that none has.
func (j *Judge) newGuardrail(base string, spec bocage.GuardrailSpec) *bocage.Guardrail {
	name := base
	for n := 2; slices.ContainsFunc(j.in.Guardrails, func(gr *bocage.Guardrail) bool { return gr.Name == name }); n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	return &bocage.Guardrail{TypeMeta: bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Guardrail"},
		ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: spec}
}

// neverStep is a guardrail that refuses this very flow.
func (j *Judge) neverStep(g *Judgement, f bocage.Flow) Step {
	gr := j.newGuardrail("never", bocage.GuardrailSpec{Never: []bocage.CellMatch{cellOf(g, f)}})
	return Step{Change{Object: gr}, "declare a Guardrail with spec.never " + flowYAML(gr.Spec.Never)}
}

// enforcingScope is a Scope that makes the refusals of the flow's ends hold.
func (j *Judge) enforcingScope(g *Judgement) Step {
	p := g.Destination
	if p.workload == nil {
		p = g.Source
	}
	name := "enforce"
	for n := 2; slices.ContainsFunc(j.in.Scopes, func(s *bocage.Scope) bool { return s.Name == name }); n++ {
		name = fmt.Sprintf("enforce-%d", n)
	}
	return Step{Change{Object: &bocage.Scope{TypeMeta: bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Scope"},
		ObjectMeta: bocage.ObjectMeta{Name: name},
		Spec:       bocage.ScopeSpec{Namespaces: []string{p.workload.Namespace}, Workload: itself(p.workload), Mode: bocage.ModeEnforce}}},
		"declare a Scope with mode: enforce that picks " + p.String()}
}

// hopeless says why nothing that can be declared opens the flow.
func (j *Judge) hopeless(g *Judgement, f bocage.Flow) string {
	switch {
	case f.Protocol.HasPorts() && f.DestinationPort == 0:
		return "nothing can: no declaration names port 0"
	case f.Protocol == bocage.ProtocolAny:
		return "nothing can: a declaration names one protocol"
	case len(g.By) > 0:
		return "no change of one declaration does: see " + refList(g.By)
	default:
		return "no declaration allows such a flow"
	}
}

// possible reports whether there are steps, and valid objects come of them.
func (j *Judge) possible(steps []Step) bool {
	return len(steps) > 0 && !slices.ContainsFunc(steps, func(s Step) bool { return !s.Change.Delete && !j.isValid(s.Change.Object) })
}

// isValid validates an object once for an advice, whose steps nobody changes.
func (j *Judge) isValid(o bocage.Resource) bool {
	valid, known := j.valid[o]
	if !known {
		valid = len(o.Validate()) == 0
		if j.valid != nil {
			j.valid[o] = valid
		}
	}
	return valid
}

func changesOf(steps []Step) []Change {
	changes := make([]Change, len(steps))
	for i, s := range steps {
		changes[i] = s.Change
	}
	return changes
}

func textOf(steps []Step) string {
	texts := make([]string, len(steps))
	for i, s := range steps {
		texts[i] = s.Text
	}
	return strings.Join(texts, "\nand ")
}

// cellOf is the match of this very flow.
func cellOf(g *Judgement, f bocage.Flow) bocage.CellMatch {
	m := bocage.CellMatch{From: sideOf(g.Source), To: sideOf(g.Destination)}
	switch {
	case f.Protocol == bocage.ProtocolAny, f.Protocol.HasPorts() && f.DestinationPort == 0:
		// No declaration names that, so every port.
	default:
		m.Ports = []bocage.PortMatch{{Port: portOf(f), Protocol: protocolOf(f)}}
	}
	return m
}

func sideOf(p party) bocage.Side {
	if p.workload == nil {
		return bocage.Side{External: prefixesOf(p)}
	}
	s := itself(p.workload)
	return bocage.Side{Namespaces: []string{p.workload.Namespace}, Workload: &s}
}

// itself selects one workload. Its name may be longer than a label's value: only
// an expression takes it then.
func itself(w *bocage.Workload) bocage.Selector {
	if len(w.Name) > 63 {
		return bocage.Selector{MatchExpressions: []bocage.Requirement{{Key: bocage.LabelName, Operator: "In", Values: []string{w.Name}}}}
	}
	return bocage.Selector{MatchLabels: map[string]string{bocage.LabelName: w.Name}}
}
