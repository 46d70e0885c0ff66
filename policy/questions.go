package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/plan"
	"bocage.dev/bocage/policy/simulate"
	"bocage.dev/bocage/policy/suggest"
)

// ErrNoPolicy means that nothing was compiled yet.
var ErrNoPolicy = errors.New("no policy was compiled yet: try again in a moment")

// Explain answers why a flow gets its verdict under the policy in force, or under
// a kept generation; or why a recorded event got the one that it carries.
func (p *Policy) Explain(ctx context.Context, q bocage.ExplainQuery) (bocage.Explanation, error) {
	o := p.inForce()
	if o == nil {
		return bocage.Explanation{}, ErrNoPolicy
	}
	forgotten := false
	if q.Generation != 0 && q.Generation != o.number {
		kept, err := p.recall(ctx, q.Generation)
		switch {
		case err == nil:
			o = kept
		case errors.Is(err, errNotKept):
			forgotten = true
		default:
			return bocage.Explanation{}, err
		}
	}
	recorded, known := o.output.Decision(q.Decision)
	if forgotten || !known {
		recorded, known = p.Decision(uint32(q.Generation), q.Decision)
	}
	switch {
	case q.Decision != 0 && !known:
		return bocage.Explanation{}, declined("decision %s is not known any more: ask without it, to be told what is decided now", q.Decision)
	case forgotten && !known:
		return bocage.Explanation{}, declined("generation %d is not kept: see bocage get generations for those that are, or leave it out to be told what is decided now", q.Generation)
	}
	if q.At.IsZero() {
		// What another controller made by a clock that is ahead holds from its moment on:
		// for one before that, everything would be compiled anew.
		q.At = p.now()
		if q.At.Before(o.input.Now) {
			q.At = o.input.Now
		}
	}
	asked, err := o.asked(q)
	if err != nil {
		return bocage.Explanation{}, err
	}
	e := o.explain(asked)
	var patterns []bocage.DomainName
	if known {
		patterns = o.patternsOf(recorded, e)
	}
	if len(patterns) == 1 {
		asked.name = patterns[0] // nobody keeps which name it was
		e = o.explain(asked)
	}
	if known {
		addRecorded(&e, recorded, patterns, forgotten, q.Generation)
	}
	return e, nil
}

// asked is a flow that somebody asks about.
type asked struct {
	flow     bocage.Flow
	name     bocage.DomainName    // by which the source knows the destination; empty: by none
	anywhere bool                 // the destination stands for wherever the name is
	probe    bocage.SimulateProbe // the same, by the names in the question
}

// explain explains a flow at its own moment. What is compiled holds until
// something begins or ends; for another moment the same objects are compiled anew.
func (o *outcome) explain(q asked) bocage.Explanation {
	f, expires := q.flow, o.output.Expires
	rs, judge, simulator := o.output.Ruleset(), o.judge, o.simulator
	if f.At.Before(o.input.Now) || !expires.IsZero() && !f.At.Before(expires) {
		in := o.input
		in.Now, in.Generation = f.At, o.number
		rs = compile.Compile(in).Ruleset()
		judge = func() *explain.Judge { return explain.NewJudge(in) }
		simulator = func() *simulate.Simulator { return simulate.New(in, rs) }
	}
	if q.name == "" {
		e := judge().Explain(rs, f)
		e.Families = simulator().Families(q.probe)
		return e
	}
	j := judge()
	if q.anywhere {
		j = j.Somewhere(f.Destination, q.name)
	}
	e := j.ExplainNamed(rs, f, q.name)
	e.Elsewhere = simulator().Elsewhere(f, q.name, q.anywhere)
	e.Families = simulator().Families(q.probe)
	return e
}

// patternsOf lists the patterns of names by which a recorded flow may have been open:
// those to which a rule leads for it with the recorded decision, or with one that gives
// way to it. One rule may mean several.
func (o *outcome) patternsOf(recorded bocage.Decision, e bocage.Explanation) []bocage.DomainName {
	if recorded.ID == 0 || e.Name != "" || e.Reason.Decision == recorded.ID || e.Destination.Workload != "" {
		return nil
	}
	rs := o.output.Ruleset()
	names := make(map[bocage.Group]bocage.DomainName, len(rs.Names))
	for _, n := range rs.Names {
		names[n.Group] = n.Name
	}
	var out []bocage.DomainName
	own := rs.NamedRules(e.Source.Group)
	for _, r := range rs.Rules {
		if r.From == e.Source.Group {
			own = append(own, r)
		}
	}
	for _, r := range own {
		name, is := names[r.To]
		if !is || r.Protocol != e.Flow.Protocol && r.Protocol != bocage.ProtocolAny || !r.Ports.Contains(e.Flow.DestinationPort) {
			continue
		}
		for id, hops := r.Decision, 0; hops <= bocage.MostSuccessors; hops++ {
			if id == recorded.ID {
				out = append(out, name)
				break
			}
			d, ok := rs.Decision(id)
			if !ok || d.Until.IsZero() {
				break
			}
			id = d.Then
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// mostPatterns is how many names an explanation lists that a flow may have gone by.
const mostPatterns = 16

// addRecorded adds to an explanation the decision that a recorded event carries. If the
// generation decides the flow differently, the explanation says both.
func addRecorded(e *bocage.Explanation, recorded bocage.Decision, patterns []bocage.DomainName, forgotten bool, generation uint64) {
	if e.Reason.Decision == recorded.ID && !forgotten {
		return
	}
	layer := bocage.Layer{Name: "recorded", By: recorded.By,
		Result: fmt.Sprintf("the event was decided by %s: %s (%s)", recorded.ID, recorded.Verdict, recorded.Code)}
	if e.Reason.Decision != recorded.ID && len(patterns) > 1 {
		layer.Result += "; it went by one of these names, and which one is not kept: " + joinNames(patterns)
	}
	switch {
	case forgotten:
		layer.Result += fmt.Sprintf("; generation %d is not kept, so the layers below are those of generation %d", generation, e.Generation)
	case len(patterns) > 1:
		layer.Result += fmt.Sprintf("; without a name, the generation decides the flow by %s", e.Reason.Decision)
	case e.Reason.Decision != recorded.ID:
		layer.Result += fmt.Sprintf("; the generation decides the flow by %s at that moment: an inventory or a threat condition of that time is not kept", e.Reason.Decision)
	}
	e.Layers = slices.Insert(e.Layers, 0, layer)
	e.Decider = explain.Decider(recorded)
	if e.Reason.Decision != recorded.ID {
		if e.Missing != "" {
			e.Missing = fmt.Sprintf("nothing changes what was recorded. Generation %d gives the same flow %s; to change that, %s", e.Generation, e.Verdict, e.Missing)
		}
		e.Verdict, e.Reason = recorded.Verdict, bocage.Reason{Code: recorded.Code, Decision: recorded.ID, Would: recorded.Verdict}
	}
	if forgotten {
		e.Generation = generation // of what is told first; the layers' is in the first of them
	}
}

// joinNames writes the first mostPatterns names, and how many more there are.
func joinNames(names []bocage.DomainName) string {
	var text strings.Builder
	for i, name := range names[:min(len(names), mostPatterns)] {
		if i > 0 {
			text.WriteString(", ")
		}
		text.WriteString(string(name))
	}
	if more := len(names) - mostPatterns; more > 0 {
		fmt.Fprintf(&text, " and %d more", more)
	}
	return text.String()
}

// inForce returns the active outcome, or the last one if none was activated by
// this process.
func (p *Policy) inForce() *outcome {
	if o := p.active.Load(); o != nil {
		return o
	}
	return p.current.Load()
}

// asked parses a query.
func (o *outcome) asked(q bocage.ExplainQuery) (asked, error) {
	simulator := o.simulator()
	_, name, err := simulator.Destination(q.To)
	if err != nil {
		return asked{}, wrongEnd("to", err)
	}
	a := asked{name: name, anywhere: name != ""}
	if q.Name != "" {
		if a.anywhere {
			return asked{}, wrongEnd("to", fmt.Errorf("%s is a name, so that it needs no other: give the address that has the name %s, or the name alone", q.To, q.Name))
		}
		if a.name, err = bocage.ParseDomainName(q.Name); err != nil {
			return asked{}, wrongEnd("name", err)
		}
		if _, pattern := a.name.Wildcard(); pattern {
			return asked{}, wrongEnd("name", fmt.Errorf("%s is a pattern of names: name one of them", a.name))
		}
	}
	a.flow, err = o.flow(q)
	a.probe = bocage.SimulateProbe{From: q.From, To: q.To, Name: q.Name, Port: a.flow.DestinationPort, Protocol: a.flow.Protocol.String(), At: a.flow.At}
	return a, err
}

// wrongEnd is what the person who asks got wrong, with the parameter that it is about.
func wrongEnd(field string, err error) error {
	return bocage.Faults{{Field: field, Message: err.Error()}}
}

// flow turns names into addresses; of a DNS name, into one that stands for wherever it
// is.
func (o *outcome) flow(q bocage.ExplainQuery) (bocage.Flow, error) {
	f := bocage.Flow{DestinationPort: q.Port, Protocol: q.Protocol, At: q.At}
	if f.Protocol == bocage.ProtocolAny {
		f.Protocol = bocage.ProtocolTCP
	}
	if !f.Protocol.HasPorts() {
		f.DestinationPort = 0
	}
	simulator := o.simulator()
	sources, err := simulator.Resolve(q.From)
	if err != nil {
		return f, wrongEnd("from", err)
	}
	destinations, _, err := simulator.Destination(q.To)
	if err != nil {
		return f, wrongEnd("to", err)
	}
	source, destination, err := simulate.EndsFor(sources, destinations, f.Protocol, q.From, q.To)
	if err != nil {
		return f, wrongEnd("to", err)
	}
	f.Source, f.Destination = source.Address, destination.Address
	return f, nil
}

// Decision tells what a decision said in a generation, given the low 32 bits of its
// number, as events carry them. Decisions are named by what they decide, so that a
// generation which this process did not compile is answered from the one in force
// where that has the same decision; what it owed then, and by whom, is known of
// generations that this process left or tried.
func (p *Policy) Decision(generation uint32, id bocage.DecisionID) (bocage.Decision, bool) {
	if id == 0 {
		return bocage.Decision{}, false
	}
	tried, wasTried := p.candidateDecisions.find(id)
	if wasTried && tried.generation == generation {
		return tried.decision, true
	}
	left, wasLeft := p.formerDecisions.find(id)
	if wasLeft && int32(generation-left.generation) <= 0 {
		return left.decision, true
	}
	if o := p.inForce(); o != nil {
		if d, ok := o.output.Decision(id); ok {
			return d, true
		}
	}
	if wasLeft {
		return left.decision, true
	}
	return tried.decision, wasTried
}

// Suggest draws what the declarations lack to allow recorded flows, for some
// namespaces (none: all).
func (p *Policy) Suggest(edges []bocage.Edge, namespaces []string) (bocage.SuggestResult, error) {
	o := p.current.Load()
	if o == nil {
		return bocage.SuggestResult{}, ErrNoPolicy
	}
	return suggest.Extend(edges, o.input, namespaces), nil
}

// Blast says what can be reached from somewhere under the policy in force.
func (p *Policy) Blast(ctx context.Context, q bocage.BlastQuery) (bocage.BlastResult, error) {
	o := p.inForce()
	if o == nil {
		return bocage.BlastResult{}, ErrNoPolicy
	}
	if q.Generation != 0 && q.Generation != o.number {
		kept, err := p.recall(ctx, q.Generation)
		if errors.Is(err, errNotKept) {
			return bocage.BlastResult{}, declined("%v: see bocage policy history", err)
		}
		if o = kept; err != nil {
			return bocage.BlastResult{}, err
		}
	}
	return o.simulator().Blast(q)
}

// Matrix says who reaches whom in some namespaces (none: all) under the policy in
// force.
func (p *Policy) Matrix(_ context.Context, namespaces []string) (bocage.ReachMatrix, error) {
	o := p.inForce()
	if o == nil {
		return bocage.ReachMatrix{}, ErrNoPolicy
	}
	return o.simulator().Matrix(namespaces)
}

// Test runs the PolicyTests among the objects on what would be in force with the
// others; without any, those that are declared.
func (p *Policy) Test(_ context.Context, objects []bocage.Resource) ([]bocage.TestResult, error) {
	o := p.current.Load()
	if o == nil {
		return nil, ErrNoPolicy
	}
	var tests []*bocage.PolicyTest
	var others []bocage.Resource
	for _, object := range objects {
		if faults := object.Validate(); len(faults) > 0 {
			return nil, fmt.Errorf("%s %s: %w", object.Type().Kind, object.Meta().NamespacedName(), faults)
		}
		if t, is := object.(*bocage.PolicyTest); is {
			tests = append(tests, t)
		} else {
			others = append(others, object)
		}
	}
	if len(tests) == 0 {
		tests = p.mirror.view().tests
	}
	simulator := o.simulator
	if len(others) > 0 {
		input := plan.Merge(o.input, others, p.now())
		output := compile.Compile(input)
		simulator = func() *simulate.Simulator { return simulate.New(input, output.Ruleset()) }
	}
	if len(tests) == 0 {
		return []bocage.TestResult{}, nil
	}
	return simulator().Test(tests), nil
}
