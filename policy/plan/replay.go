package plan

import (
	"cmp"
	"slices"
	"strings"
	"sync"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/simulate"
)

// replay runs recorded edges through what is in force and through the candidate.
type replay struct {
	situation Situation
	input     compile.Input // of the candidate
	candidate *bocage.Ruleset
	after     *simulate.Simulator
	result    *bocage.PlanResult

	used   map[bocage.Ref]bool // fields of contracts and grants that an edge used
	gone   int                 // edges of which an end is gone
	called int                 // edges that a name may open, which nobody keeps
	seen   map[bocage.DecisionID]bool
	owners [2]func() *explain.Judge // of what is declared now, and with the plan
}

func (r *replay) run() {
	r.seen = map[bocage.DecisionID]bool{}
	r.owners = [2]func() *explain.Judge{
		sync.OnceValue(func() *explain.Judge { return explain.NewJudge(r.situation.Declared) }),
		sync.OnceValue(func() *explain.Judge { return explain.NewJudge(r.input) }),
	}
	result := r.result
	for _, e := range r.situation.Edges {
		result.Recorded = widen(result.Recorded, e)
		r.edge(e)
	}
	if r.gone > 0 {
		result.Findings = append(result.Findings, bocage.Fault{Field: "replay",
			Message: counted(r.gone, "recorded kind of flow was not replayed: one of its ends is gone", "recorded kinds of flow were not replayed: one of their ends is gone")})
	}
	if r.called > 0 {
		result.Findings = append(result.Findings, bocage.Fault{Field: "replay", Message: counted(r.called, "recorded kind of flow goes to an address that only a DNS name could open: by which name it went is not recorded",
			"recorded kinds of flow go to addresses that only DNS names could open: by which name they went is not recorded")})
	}
	for _, list := range []*[]bocage.PlannedEdge{&result.NewlyRefused, &result.NewlyAllowed, &result.DutyChanged} {
		slices.SortFunc(*list, comparePlanned)
	}
	result.NewlyRefused = limited(result, "kinds of flow that are newly refused", result.NewlyRefused)
	result.NewlyAllowed = limited(result, "kinds of flow that are newly allowed", result.NewlyAllowed)
	result.DutyChanged = limited(result, "kinds of flow that owe something else", result.DutyChanged)
}

// comparePlanned puts the busiest edges first.
func comparePlanned(a, b bocage.PlannedEdge) int {
	return cmp.Or(cmp.Compare(b.Flows, a.Flows), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Destination, b.Destination),
		cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.DestinationPort, b.DestinationPort))
}

// edge decides one edge before and after.
func (r *replay) edge(e bocage.Edge) {
	is, to, ok := ends(r.after, e)
	if !ok {
		r.gone++
		return
	}
	r.result.Replayed++
	now := r.situation.Now
	_, after := r.after.Decide(is, to, e.Protocol, e.DestinationPort, now)
	if after.Would.Allowed() {
		r.use(after.Decision)
	}
	// An end that is new with the plan is an address of nobody's before.
	was, from := is, to
	if source, destination, known := ends(r.situation.InForce, e); known {
		was, from = source, destination
	} else {
		was, from = r.situation.InForce.Find(is.Address), r.situation.InForce.Find(to.Address)
	}
	_, before := r.situation.InForce.Decide(was, from, e.Protocol, e.DestinationPort, now)
	planned := bocage.PlannedEdge{Edge: e}
	spoke, speaks := keepsTo(r.situation.Ruleset, before, e), keepsTo(r.candidate, after, e)
	switch {
	case before.Would.Allowed() && after.Would.Allowed() && spoke && !speaks:
		planned.Before, planned.After = duties(r.situation.Ruleset, before), duties(r.candidate, after)
		planned.By, planned.Owner = r.dutyBound(before, after), r.owner(to, is)
		r.result.NewlyRefused = append(r.result.NewlyRefused, planned)
	case before.Would.Allowed() && !after.Would.Allowed():
		planned.By, planned.Owner = r.decider(after), r.owner(is, to)
		r.result.NewlyRefused = append(r.result.NewlyRefused, planned)
	case !before.Would.Allowed() && !after.Would.Allowed():
		if names := len(r.situation.Ruleset.Names) + len(r.candidate.Names); names > 0 && r.yields(r.situation.Ruleset, before, from) && r.yields(r.candidate, after, to) {
			r.called++
		}
	case !before.Would.Allowed() && after.Would.Allowed():
		planned.By, planned.Owner = r.decider(after), r.owner(to, is)
		r.result.NewlyAllowed = append(r.result.NewlyAllowed, planned)
	case after.Would.Allowed():
		planned.Before, planned.After = duties(r.situation.Ruleset, before), duties(r.candidate, after)
		if !slices.Equal(planned.Before, planned.After) {
			planned.By, planned.Owner = r.dutyBound(before, after), r.owner(to, is)
			r.result.DutyChanged = append(r.result.DutyChanged, planned)
		}
	}
}

// yields reports whether a name may open what is refused of an address.
func (r *replay) yields(rs *bocage.Ruleset, reason bocage.Reason, to simulate.End) bool {
	d, ok := rs.Decision(reason.Decision)
	return ok && d.MayYield() && rs.Lookup(to.Address).Workload == "" && bocage.NamesMayMean(to.Address)
}

// ends finds who the ends of an edge are.
func ends(s *simulate.Simulator, e bocage.Edge) (source, destination simulate.End, ok bool) {
	from, err := s.Resolve(e.Source)
	if err != nil {
		return source, destination, false
	}
	to, err := s.Resolve(e.Destination)
	if err != nil {
		return source, destination, false
	}
	return simulate.Ends(from, to)
}

func (r *replay) decider(reason bocage.Reason) bocage.Ref {
	d, _ := r.candidate.Decision(reason.Decision)
	return explain.Decider(d)
}

func duties(rs *bocage.Ruleset, reason bocage.Reason) []string {
	if d, ok := rs.Decision(reason.Decision); ok && d.Duties != nil {
		return d.Duties.List()
	}
	return nil
}

// keepsTo reports whether the flows of an edge spoke what a decision has them speak, as
// far as that is known. Nothing that spoke otherwise passes.
func keepsTo(rs *bocage.Ruleset, reason bocage.Reason, e bocage.Edge) bool {
	d, ok := rs.Decision(reason.Decision)
	if !ok || d.Duties == nil || len(e.Spoken.Carriers()) == 0 {
		return true
	}
	expects := d.Duties.Expects()
	return expects == bocage.SpeechUnknown || expects == e.Spoken
}

// dutyBound is who brought the new duty: the first author that the decision
// before did not have.
func (r *replay) dutyBound(before, after bocage.Reason) bocage.Ref {
	was, _ := r.situation.Ruleset.Decision(before.Decision)
	is, _ := r.candidate.Decision(after.Decision)
	for _, by := range is.By {
		if !slices.ContainsFunc(was.By, func(o bocage.Ref) bool {
			return o.Kind == by.Kind && o.Namespace == by.Namespace && o.Name == by.Name && o.Field == by.Field
		}) {
			return by
		}
	}
	return explain.Decider(is)
}

// owner names the Application whose owner to ask: that which selects the first
// of the ends, or else the other. Of one that the plan takes away, today's counts.
func (r *replay) owner(ends ...simulate.End) string {
	for _, end := range ends {
		for _, judge := range r.owners {
			if names := judge().Owners(end.Address); len(names) > 0 {
				return names[0]
			}
		}
	}
	return ""
}

// use notes the contracts by which a decision allows.
func (r *replay) use(id bocage.DecisionID) {
	if r.seen[id] {
		return
	}
	r.seen[id] = true
	d, _ := r.candidate.Decision(id)
	for _, by := range d.By {
		by.Source = ""
		r.used[by] = true
		// What one address uses, its interface does.
		if field, _, nested := strings.Cut(by.Field, ".toExternal["); nested {
			by.Field = field
			r.used[by] = true
		}
	}
}

// widen makes a span cover an edge.
func widen(s bocage.Span, e bocage.Edge) bocage.Span {
	if !e.First.IsZero() && (s.First.IsZero() || e.First.Before(s.First)) {
		s.First = e.First
	}
	if e.Last.After(s.Last) {
		s.Last = e.Last
	}
	return s
}
