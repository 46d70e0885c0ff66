package plan

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
)

// Moments at which something declared begins or ends. At each the two inputs are
// compiled, which costs what the lists of such objects are long; only where they differ,
// what comes of them is compared, which costs what the site is large.
const (
	compiledSize = 400_000   // such objects that are read for moments, all in all
	comparedSize = 2_000_000 // peers and rules that are
	fewest       = 16        // moments that are compared on the largest site
)

// difference is what a plan changes at one moment.
type difference struct {
	reach                                     []bocage.ReachChange
	enforced, observed, quarantined, released []string
}

// compare finds the difference between two rulesets at a moment.
func compare(before, after *bocage.Ruleset, moment time.Time) difference {
	var d difference
	was, is := refused(before, moment), refused(after, moment)
	for workload := range is {
		if !was[workload] {
			d.quarantined = append(d.quarantined, workload)
		}
	}
	for workload := range was {
		if !is[workload] {
			d.released = append(d.released, workload)
		}
	}
	slices.Sort(d.quarantined)
	slices.Sort(d.released)
	d.enforced, d.observed = enforcementChanges(before, after)
	// Whatever rules say about who is cut off before and after, they get nothing.
	still := func(p bocage.Peer) bool { return was[p.Workload] && is[p.Workload] }
	before, after = without(before, still), without(after, still)
	d.reach = prove.Compare(before, after)
	return d
}

// refused are the workloads that a ruleset cuts off at a moment.
func refused(rs *bocage.Ruleset, moment time.Time) map[string]bool {
	identities := make(map[bocage.Identity]bool, len(rs.Refused))
	for _, r := range rs.Refused {
		if r.Until.IsZero() || moment.Before(r.Until) {
			identities[r.Identity] = true
		}
	}
	out := map[string]bool{}
	if len(identities) == 0 {
		return out
	}
	for _, p := range rs.Peers {
		if p.Workload != "" && identities[p.Identity] {
			out[p.Workload] = true
		}
	}
	return out
}

// without is what a ruleset says of all but some of its peers.
func without(rs *bocage.Ruleset, which func(bocage.Peer) bool) *bocage.Ruleset {
	if !slices.ContainsFunc(rs.Peers, which) {
		return rs
	}
	return &bocage.Ruleset{Generation: rs.Generation, Digest: rs.Digest, Peers: slices.DeleteFunc(slices.Clone(rs.Peers), which), Groups: rs.Groups,
		Names: rs.Names, Rules: rs.Rules, Namings: rs.Namings, Apart: rs.Apart, Reasons: rs.Reasons, Decisions: rs.Decisions, Default: rs.Default, Profiles: rs.Profiles}
}

// momentsOf are the moments after now at which something in an input begins or ends.
func momentsOf(in compile.Input, now time.Time) []time.Time {
	var out []time.Time
	longest := map[string]time.Duration{}
	for _, g := range in.Guardrails {
		if spec := g.InForce(); spec != nil {
			longest[g.Name] = spec.Exceptions.Longest()
		}
	}
	for _, e := range in.Exceptions {
		out = append(out, e.Begins(), e.Spec.Until)
		if most := longest[e.Spec.Guardrail]; e.Begins().IsZero() && most > 0 {
			out = append(out, e.Spec.Until.Add(-most)) // what is left of it is short enough from then on
		}
	}
	for _, q := range in.Quarantines {
		out = append(out, q.Spec.Until)
	}
	for _, t := range in.ThreatConditions {
		out = append(out, t.Spec.Expires)
	}
	return distinct(slices.DeleteFunc(out, func(moment time.Time) bool { return !moment.After(now) }))
}

func distinct(moments []time.Time) []time.Time {
	slices.SortFunc(moments, time.Time.Compare)
	return slices.CompactFunc(moments, time.Time.Equal)
}

// ownMoments are those of the planned objects, and of what they replace: they are
// compared before any others.
func ownMoments(s Situation, objects []bocage.Resource) map[time.Time]bool {
	var own compile.Input
	for _, object := range objects {
		old, _, _ := find(s.Declared, object)
		for _, o := range []bocage.Resource{object, old} {
			switch o := o.(type) {
			case *bocage.Exception:
				own.Exceptions = append(own.Exceptions, o)
			case *bocage.Quarantine:
				own.Quarantines = append(own.Quarantines, o)
			case *bocage.ThreatCondition:
				own.ThreatConditions = append(own.ThreatConditions, o)
			}
		}
	}
	out := map[time.Time]bool{}
	for _, moment := range momentsOf(own, s.Now) {
		out[moment.UTC()] = true
	}
	return out
}

// timeline notes from when until when each change holds.
type timeline struct {
	open   map[string]*held
	closed []*held
}

// held is one change with its time.
type held struct {
	begins, ends time.Time
	order        int // of its place in its list
	change       difference
	seen         bool
}

// at notes what differs from a moment on.
func (l *timeline) at(moment time.Time, d difference) {
	for _, h := range l.open {
		h.seen = false
	}
	order := 0
	note := func(key string, change difference) {
		order++
		if h, known := l.open[key]; known {
			h.seen = true
			return
		}
		l.open[key] = &held{begins: moment, order: order, change: change, seen: true}
	}
	for i := range d.reach {
		c := d.reach[i]
		c.By.Source = "" // one change, wherever its author stands
		note(fmt.Sprint("reach ", c), difference{reach: d.reach[i : i+1]})
	}
	for i, workload := range d.enforced {
		note("enforced "+workload, difference{enforced: d.enforced[i : i+1]})
	}
	for i, workload := range d.observed {
		note("observed "+workload, difference{observed: d.observed[i : i+1]})
	}
	for i, workload := range d.quarantined {
		note("quarantined "+workload, difference{quarantined: d.quarantined[i : i+1]})
	}
	for i, workload := range d.released {
		note("released "+workload, difference{released: d.released[i : i+1]})
	}
	for key, h := range l.open {
		if !h.seen {
			h.ends = moment
			l.closed = append(l.closed, h)
			delete(l.open, key)
		}
	}
}

// times puts together what holds in the same time, but not what holds from now on for
// good, which is told by itself. Begins is zero of what holds now already.
func (l *timeline) times(now time.Time) []bocage.PlannedTime {
	all := l.closed
	for _, h := range l.open {
		all = append(all, h)
	}
	all = slices.DeleteFunc(all, func(h *held) bool { return h.begins.Equal(now) && h.ends.IsZero() })
	slices.SortFunc(all, func(a, b *held) int {
		return cmp.Or(a.begins.Compare(b.begins), compareEnds(a.ends, b.ends), cmp.Compare(a.order, b.order))
	})
	var out []bocage.PlannedTime
	for i, h := range all {
		if i == 0 || !h.begins.Equal(all[i-1].begins) || !h.ends.Equal(all[i-1].ends) {
			t := bocage.PlannedTime{Ends: h.ends}
			if !h.begins.Equal(now) {
				t.Begins = h.begins
			}
			out = append(out, t)
		}
		t := &out[len(out)-1]
		t.Reach = append(t.Reach, h.change.reach...)
		t.Enforced = append(t.Enforced, h.change.enforced...)
		t.Observed = append(t.Observed, h.change.observed...)
		t.Quarantined = append(t.Quarantined, h.change.quarantined...)
		t.Released = append(t.Released, h.change.released...)
	}
	return out
}

// compareEnds puts what never ends last.
func compareEnds(a, b time.Time) int {
	switch {
	case a.IsZero() && !b.IsZero():
		return 1
	case b.IsZero() && !a.IsZero():
		return -1
	}
	return a.Compare(b)
}

// later compares what is in force with the plan at every moment after now at which
// something begins or ends. first is what differs now.
func later(s Situation, input compile.Input, candidate *bocage.Ruleset, objects []bocage.Resource, first difference, result *bocage.PlanResult) {
	base := s.Enforced
	if base.Now.IsZero() {
		base = s.Declared
	}
	moments := distinct(append(momentsOf(base, s.Now), momentsOf(input, s.Now)...))
	if len(moments) == 0 {
		return
	}
	own := ownMoments(s, objects)
	if s.Ruleset.Digest == candidate.Digest && slices.Equal(base.Exceptions, input.Exceptions) &&
		slices.Equal(base.Quarantines, input.Quarantines) && slices.Equal(base.ThreatConditions, input.ThreatConditions) {
		return // time admits the same of the same
	}
	timed := len(input.Exceptions) + len(input.Quarantines) + len(input.ThreatConditions)
	mostMoments := max(compiledSize/max(timed, 1), fewest)
	if more := len(moments) - mostMoments; more > 0 {
		kept := 0
		moments = slices.DeleteFunc(moments, func(moment time.Time) bool {
			kept++
			left := kept > mostMoments && !own[moment.UTC()]
			if left {
				result.Uncompared++
			}
			return left
		})
	}
	reads := max(comparedSize/max(len(candidate.Peers)+len(candidate.Rules), 1), fewest)
	for _, moment := range moments {
		if own[moment.UTC()] {
			reads--
		}
	}
	before, after := compile.NewCompiler(), compile.NewCompiler()
	var changes timeline
	changes.open = map[string]*held{}
	changes.at(s.Now, first)
	var last [2]string
	for _, moment := range moments {
		base.Now, input.Now = moment, moment
		was, is := before.Compile(base), after.Compile(input)
		digests := [2]string{was.Digest(), is.Digest()}
		switch {
		case digests == last: // as at the moment before
		case digests[0] == digests[1]:
			changes.at(moment, difference{})
		case reads <= 0 && !own[moment.UTC()]:
			result.Uncompared++
			continue
		default:
			if !own[moment.UTC()] {
				reads--
			}
			changes.at(moment, compare(was.Ruleset(), is.Ruleset(), moment))
		}
		last = digests
	}
	result.Times = limitedTimes(result, changes.times(s.Now))
	if n := result.Uncompared; n > 0 {
		result.Findings = append(result.Findings, bocage.Fault{Message: counted(n, "moment at which something begins or ends was not compared", "moments at which something begins or ends were not compared") +
			": there are too many, and what changes there is not told"})
	}
}

// limitedTimes cuts the changes of reach in a list of times, and says so.
func limitedTimes(result *bocage.PlanResult, times []bocage.PlannedTime) []bocage.PlannedTime {
	left, more := mostChanges, 0
	for i := range times {
		for _, list := range []*[]string{&times[i].Enforced, &times[i].Observed, &times[i].Quarantined, &times[i].Released} {
			keep := min(left, len(*list))
			left, more = left-keep, more+len(*list)-keep
			*list = (*list)[:keep]
		}
		keep := min(left, len(times[i].Reach))
		left, more = left-keep, more+len(times[i].Reach)-keep
		times[i].Reach = times[i].Reach[:keep]
	}
	if more > 0 {
		result.Findings = append(result.Findings, bocage.Fault{Message: fmt.Sprintf("%d more changes that hold for a time are not listed", more)})
	}
	return slices.DeleteFunc(times, bocage.PlannedTime.Empty)
}
