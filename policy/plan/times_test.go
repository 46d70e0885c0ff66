package plan

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// years are moments after now.
func years(n int) time.Time { return policytest.Now.AddDate(n, 0, 0) }

func matching(app string) *bocage.Selector {
	return &bocage.Selector{MatchLabels: map[string]string{"app": app}}
}

func quarantine(until time.Time) *bocage.Quarantine {
	return &bocage.Quarantine{TypeMeta: bocage.TypeMeta{Kind: "Quarantine"}, ObjectMeta: bocage.ObjectMeta{Name: "q"},
		Spec: bocage.QuarantineSpec{Workload: "shop/db", Reason: "test", Until: until}}
}

func exception(from, until time.Time) *bocage.Exception {
	return &bocage.Exception{TypeMeta: bocage.TypeMeta{Kind: "Exception"}, ObjectMeta: bocage.ObjectMeta{Name: "e"},
		Spec: bocage.ExceptionSpec{Guardrail: "never", Match: bocage.CellMatch{Ports: []bocage.PortMatch{{Port: 22}}}, From: from, Until: until}}
}

func guardrail(name string, spec bocage.GuardrailSpec) *bocage.Guardrail {
	return &bocage.Guardrail{TypeMeta: bocage.TypeMeta{Kind: "Guardrail"}, ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: spec}
}

// told writes down when a plan changes what.
func told(r bocage.PlanResult) (out []string) {
	for _, f := range r.Faults {
		out = append(out, fmt.Sprint("fault ", f))
	}
	now := bocage.PlannedTime{Reach: r.Reach, Enforced: r.Enforced, Observed: r.Observed, Quarantined: r.Quarantined, Released: r.Released}
	for i, t := range append([]bocage.PlannedTime{now}, r.Times...) {
		when := "now"
		if i > 0 {
			year := func(moment time.Time) string {
				if moment.IsZero() {
					return ""
				}
				return fmt.Sprint(moment.Year() - policytest.Now.Year())
			}
			when = year(t.Begins) + "-" + year(t.Ends)
		}
		for _, c := range t.Reach {
			out = append(out, fmt.Sprintf("%s %s %s→%s", when, c.Ports, c.Before, c.After))
		}
		for what, list := range map[string][]string{"enforced": t.Enforced, "observed": t.Observed, "quarantined": t.Quarantined, "released": t.Released} {
			for _, workload := range list {
				out = append(out, fmt.Sprint(when, " ", what, " ", workload))
			}
		}
	}
	return slices.Compact(out)
}

// TestTimes plans what begins or ends later.
func TestTimes(t *testing.T) {
	ssh := guardrail("open", bocage.GuardrailSpec{Grant: []bocage.CellMatch{{To: bocage.Side{Workload: matching("db")}, Ports: []bocage.PortMatch{{Port: 22}}}}})
	never := guardrail("never", bocage.GuardrailSpec{Never: []bocage.CellMatch{{To: bocage.Side{Workload: matching("db")}}}, Exceptions: bocage.ExceptionTerms{Allowed: true}})
	closed := func(in *compile.Input) { in.Guardrails = []*bocage.Guardrail{ssh, never} }
	excepted := func(from, until time.Time) func(*compile.Input) {
		return func(in *compile.Input) {
			closed(in)
			in.Exceptions = []*bocage.Exception{exception(from, until)}
		}
	}
	threatened := func(in *compile.Input) {
		in.ThreatConditions = []*bocage.ThreatCondition{{ObjectMeta: bocage.ObjectMeta{Name: "t"}, Spec: bocage.ThreatConditionSpec{
			Workload: "shop/db", Level: bocage.LevelRestrict, Reason: "test", Expires: years(1)}}}
		in.Responses = []*bocage.Response{{ObjectMeta: bocage.ObjectMeta{Name: "r"}, Spec: bocage.ResponseSpec{
			When: bocage.ResponseWhen{Level: bocage.LevelWatch}, Then: bocage.ResponseThen{RefuseTo: []bocage.ResponseCell{{}}}}}}
	}
	isolated := func(until time.Time) func(*compile.Input) {
		return func(in *compile.Input) { in.Quarantines = []*bocage.Quarantine{quarantine(until)} }
	}
	for _, c := range []struct {
		name   string
		base   func(*compile.Input)
		object bocage.Resource
		want   []string
	}{
		{"an exception that begins later", closed, exception(years(3), years(4)), []string{"3-4 22 drop→allow"}},
		{"an exception from now on", closed, exception(years(0), years(4)), []string{"now 22 drop→allow", "-4 22 drop→allow"}},
		{"an exception ends later", excepted(years(-1), years(3)), exception(years(-1), years(13)), []string{"3-13 22 drop→allow"}},
		{"an exception ends earlier", excepted(years(-1), years(13)), exception(years(-1), years(3)), []string{"3-13 22 allow→drop"}},
		{"a later exception goes", excepted(years(1), years(2)), gone(exception(years(1), years(2))), []string{"1-2 22 allow→drop"}},
		{"an exception stays", excepted(years(1), years(2)), exception(years(1), years(2)), nil},
		{"a grant under a threat", threatened, ssh, []string{"1- 22 drop→allow"}},
		{"a never goes under a threat", func(in *compile.Input) { closed(in); threatened(in) }, gone(guardrail("never", bocage.GuardrailSpec{})),
			[]string{"1- 22 drop→allow", "1- 5432 drop→allow"}},
		{"a quarantine", func(*compile.Input) {}, quarantine(time.Time{}), []string{"now quarantined shop/db"}},
		{"a quarantine for a time", func(*compile.Input) {}, quarantine(years(2)), []string{"now quarantined shop/db", "-2 quarantined shop/db"}},
		{"a quarantine ends earlier", isolated(years(4)), quarantine(years(1)), []string{"1-4 released shop/db"}},
		{"a quarantine becomes endless", isolated(years(4)), quarantine(time.Time{}), []string{"4- quarantined shop/db"}},
		{"a quarantine goes", isolated(time.Time{}), gone(quarantine(time.Time{})), []string{"now released shop/db"}},
		{"a grant under a quarantine", isolated(years(4)), ssh, []string{"4- 22 drop→allow"}},
		{"a grant under an endless quarantine", isolated(time.Time{}), ssh, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := shop()
			c.base(&in)
			if got := told(Make(situation(in), []bocage.Resource{c.object})); !slices.Equal(got, c.want) {
				t.Errorf("told %q, want %q", got, c.want)
			}
		})
	}
}

// TestManyMoments plans a quarantine where many quarantines end one after another.
func TestManyMoments(t *testing.T) {
	in := shop()
	for i := range 1500 {
		in.Quarantines = append(in.Quarantines, &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprint("q", i)},
			Spec: bocage.QuarantineSpec{Workload: "shop/gone", Reason: "test", Until: policytest.Now.Add(time.Duration(i+1) * time.Second)}})
	}
	r := Make(situation(in), []bocage.Resource{quarantine(years(1))})
	if got, want := told(r), []string{"now quarantined shop/db", "-1 quarantined shop/db"}; !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	if r.Uncompared < 1000 {
		t.Errorf("%d moments were left out, says the plan", r.Uncompared)
	}
}

// verdict is what a ruleset gives a flow.
func verdict(rs *bocage.Ruleset, f bocage.Flow) string {
	allowed, reason := rs.Decide(f)
	d, _ := rs.Decision(reason.Decision)
	var owed []string
	if reason.Would.Allowed() && d.Duties != nil {
		owed = d.Duties.List()
	}
	return fmt.Sprint(allowed, reason.Would, reason.Code == bocage.ReasonQuarantine, owed)
}

// TestTimesAreAll plans drawn objects on drawn policies: something is told at every moment
// at which some flow gets something else. The converse does not hold: a plan may tell of
// groups between which none of the drawn addresses is.
func TestTimesAreAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in, other := policytest.Draw(t), policytest.Draw(t)
		var objects []bocage.Resource
		add := func(o bocage.Resource) {
			if !slices.ContainsFunc(objects, func(had bocage.Resource) bool { return name(had) == name(o) }) {
				objects = append(objects, o)
			}
		}
		switch rapid.IntRange(0, 4).Draw(t, "planned") {
		case 0:
			for _, o := range other.Exceptions {
				add(o)
			}
		case 1:
			for _, o := range other.Quarantines {
				add(o)
			}
		case 2:
			for _, o := range other.ThreatConditions {
				add(o)
			}
		case 3:
			for _, o := range other.Guardrails {
				add(o)
			}
		case 4:
			for _, o := range in.Guardrails {
				add(gone(&bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: o.Name}}))
				break
			}
		}
		s := situation(in)
		s.Prove = func(compile.Input, *bocage.Ruleset) []bocage.Proof { return nil }
		r := Make(s, objects)
		if len(r.Faults) > 0 {
			return
		}
		if r.Uncompared > 0 {
			t.Fatalf("%d moments were not compared", r.Uncompared)
		}
		before, after := in, Merge(in, objects, in.Now)
		for _, moment := range rapid.SliceOfNDistinct(rapid.SampledFrom(policytest.Moments()), 3, 3, time.Time.UnixNano).Draw(t, "moments") {
			before.Now, after.Now = moment, moment
			was, is := compile.Compile(before).Ruleset(), compile.Compile(after).Ruleset()
			differs := ""
			policytest.Flows(func(f bocage.Flow) {
				if f.At = moment; differs != "" || f.Source.Is4() != f.Destination.Is4() || was.Lookup(f.Source).Workload != "" && was.Lookup(f.Source).Workload == was.Lookup(f.Destination).Workload {
					return
				}
				if a, b := verdict(was, f), verdict(is, f); a != b {
					differs = fmt.Sprintf("%s: %s → %s", f, a, b)
				}
			})
			holds := func(t bocage.PlannedTime) bool {
				return !moment.Before(t.Begins) && (t.Ends.IsZero() || moment.Before(t.Ends))
			}
			some := slices.ContainsFunc(r.Times, holds) || forGood(r)
			if differs != "" && !some {
				t.Fatalf("at %s the plan tells of no change, and flows get something else: %q\n%q\n%s\n%s", moment, differs, told(r), policytest.Describe(before), policytest.Describe(after))
			}
		}
	})
}

// forGood reports whether a plan changes something from now on that never ends: the rest
// of what changes now is listed with its end.
func forGood(r bocage.PlanResult) bool {
	now := len(r.Reach) + len(r.Enforced) + len(r.Observed) + len(r.Quarantined) + len(r.Released)
	for _, t := range r.Times {
		if t.Begins.IsZero() {
			now -= len(t.Reach) + len(t.Enforced) + len(t.Observed) + len(t.Quarantined) + len(t.Released)
		}
	}
	return now > 0
}
