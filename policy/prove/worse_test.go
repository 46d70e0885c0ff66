package prove_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
)

// place is an end of the small world in which changes are drawn: a workload, or an address.
type place struct {
	workload *bocage.Workload
	address  netip.Addr
}

// means reads a side as it is documented, one end at a time.
func (p place) means(s bocage.Side) bool {
	switch {
	case s.Outside():
		for _, prefix := range s.External {
			if p.workload == nil && prefix.Contains(p.address) {
				return true
			}
		}
		return false
	case s.Workload == nil:
		return true
	}
	return p.workload != nil && s.Workload.Matches(p.workload.Labels)
}

// excesses walks from every end that a bound is about, at one moment, and says by how much
// what it reaches exceeds the bound.
func excesses(in compile.Input, name string, at time.Time, ends []place) []int {
	out := make([]int, len(ends))
	var bound *bocage.BlastRadius
	for _, g := range in.Guardrails {
		if g.Name == name {
			bound = g.Spec.BlastRadius
		}
	}
	if bound == nil {
		return out
	}
	open := func(from, to place) bool {
		granted := false
		for _, g := range in.Guardrails {
			for _, m := range g.Spec.Grant {
				granted = granted || from.means(m.From) && to.means(m.To)
			}
			for _, m := range g.Spec.Never {
				if !from.means(m.From) || !to.means(m.To) {
					continue
				}
				excused := false
				for _, e := range in.Exceptions {
					excused = excused || e.Spec.Guardrail == g.Name && !at.Before(e.Spec.From) && at.Before(e.Spec.Until) && from.means(e.Spec.Match.From) && to.means(e.Spec.Match.To)
				}
				if !excused {
					return false
				}
			}
		}
		return granted
	}
	for i, end := range ends {
		if !end.means(bound.From) {
			continue
		}
		reached, frontier := map[int]bool{}, []place{end}
		for hop := 0; len(frontier) > 0 && (bound.MaxHops == 0 || hop < bound.MaxHops); hop++ {
			var next []place
			for _, from := range frontier {
				for k, to := range ends {
					if to.workload != nil && k != i && !reached[k] && open(from, to) {
						reached[k] = true
						next = append(next, to)
					}
				}
			}
			frontier = next
		}
		weight := 0
		for k := range reached {
			w, _ := ends[k].workload.Weight()
			weight += max(w, bound.LeastWeight)
		}
		out[i] = max(weight-bound.MaxWeight, 0)
	}
	return out
}

// TestChangesThatMakeWorse draws inventories and changes of policy: a change is kept back if
// and only if some end that reaches too much then reaches more above the bound than before.
// Where nothing was too much before, that is whatever breaks a bound.
func TestChangesThatMakeWorse(t *testing.T) {
	wide, half := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.128/25")
	passed, kept, standing := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		in := compile.Input{Generation: 1, Now: now}
		ends := []place{{address: netip.MustParseAddr("192.0.2.1")}, {address: netip.MustParseAddr("192.0.2.200")}, {address: netip.MustParseAddr("198.51.100.1")}}
		for i := range rapid.IntRange(2, 5).Draw(t, "workloads") {
			w := workload("row", fmt.Sprintf("w%d", i), i+1, map[string]string{"place": fmt.Sprint(i), "kind": rapid.SampledFrom([]string{"a", "b"}).Draw(t, "kind")})
			if weight := rapid.SampledFrom([]string{"", "", "0", "3", "99999999999999999999", "x"}).Draw(t, "weight"); weight != "" {
				w.Labels[bocage.LabelWeight] = weight
			}
			in.Workloads = append(in.Workloads, w)
			ends = append(ends, place{workload: w})
		}
		side := func(what string, outside bool) bocage.Side {
			switch k := rapid.IntRange(0, 7).Draw(t, what); {
			case k == 0:
				return bocage.Side{}
			case k == 1 && outside:
				return bocage.Side{External: []netip.Prefix{wide}}
			case k == 2 && outside:
				return bocage.Side{External: []netip.Prefix{half}}
			case k < 5:
				return picking("kind", rapid.SampledFrom([]string{"a", "b"}).Draw(t, "kind of "+what))
			}
			return picking("place", fmt.Sprint(rapid.IntRange(0, 4).Draw(t, "place of "+what)))
		}
		matches := func(what string, most int) (out []bocage.CellMatch) {
			for range rapid.IntRange(0, most).Draw(t, what) {
				out = append(out, bocage.CellMatch{From: side(what+" from", true), To: side(what+" to", false)})
			}
			return out
		}
		draw := func(what string) compile.Input {
			in := in
			for i, name := range []string{"x", "y"} {
				spec := bocage.GuardrailSpec{Grant: matches(what+" grants", 3), Never: matches(what+" nevers", 2), Exceptions: bocage.ExceptionTerms{Allowed: true}}
				if i == 0 && rapid.IntRange(0, 9).Draw(t, what+" bound") > 0 {
					spec.BlastRadius = &bocage.BlastRadius{From: side(what+" bounded", true), MaxWeight: rapid.IntRange(0, 2).Draw(t, "most"),
						MaxHops: rapid.IntRange(0, 2).Draw(t, "hops"), LeastWeight: rapid.IntRange(0, 1).Draw(t, "least")}
				}
				if len(spec.Grant)+len(spec.Never) > 0 || spec.BlastRadius != nil {
					in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: named(name), Spec: spec})
				}
			}
			for i := range rapid.IntRange(0, 2).Draw(t, what+" exceptions") {
				from := now.Add(time.Duration(rapid.IntRange(-1, 2).Draw(t, "begins")) * time.Hour)
				in.Exceptions = append(in.Exceptions, &bocage.Exception{ObjectMeta: named(fmt.Sprintf("e%d", i)), Spec: bocage.ExceptionSpec{Guardrail: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "of"),
					Match: bocage.CellMatch{From: picking("place", fmt.Sprint(rapid.IntRange(0, 4).Draw(t, "excused")))}, From: from, Until: from.Add(90 * time.Minute)}})
			}
			return in
		}
		before := draw("before")
		after := before
		if rapid.IntRange(0, 3).Draw(t, "a small change") > 0 {
			other := draw("after")
			switch rapid.IntRange(0, 2).Draw(t, "of") {
			case 0:
				after.Exceptions = other.Exceptions
			case 1:
				after.Guardrails = other.Guardrails
				for i, g := range after.Guardrails { // the bound stays
					for _, old := range before.Guardrails {
						if g.Name == old.Name && old.Spec.BlastRadius != nil {
							copied := *g
							copied.Spec.BlastRadius = old.Spec.BlastRadius
							after.Guardrails[i] = &copied
						}
					}
				}
			default:
				after = other
			}
		}
		moments := []time.Time{now}
		for _, e := range append(append([]*bocage.Exception{}, before.Exceptions...), after.Exceptions...) {
			if e.Spec.From.After(now) {
				moments = append(moments, e.Spec.From)
			}
		}
		want, broken, brokenBefore := false, false, false
		for _, at := range moments {
			was, is := excesses(before, "x", at, ends), excesses(after, "x", at, ends)
			for i := range ends {
				want = want || is[i] > was[i]
				broken, brokenBefore = broken || is[i] > 0, brokenBefore || was[i] > 0
			}
		}
		var prover prove.Prover
		failed := prove.Failed(prover.Prove(after, compile.Compile(after).Ruleset()))
		if (len(failed) > 0) != broken {
			t.Fatalf("proofs that fail: %v; walks say %v", failed, broken)
		}
		worse := prover.Worse(failed, before, after)
		if (len(worse) > 0) != want {
			t.Fatalf("kept back by %v; walks say %v (before %v, after %v)", worse, want, brokenBefore, broken)
		}
		switch {
		case want:
			kept++
			if !brokenBefore && len(worse) != len(failed) {
				t.Fatalf("nothing was broken before, and of %v only %v keeps it back", failed, worse)
			}
		case broken:
			standing++
		default:
			passed++
		}
	})
	t.Logf("%d passed, %d were kept back, %d passed as no worse than before", passed, kept, standing)
}

// TestOtherProofsKeepBack holds that only blast radii are compared with what was.
func TestOtherProofsKeepBack(t *testing.T) {
	in := chain(3)
	failed := []bocage.Proof{{Statement: "s", By: bocage.Ref{Kind: "Guardrail", Name: "row", Field: "spec.never[0]"}, Counterexample: "c"}}
	if worse := new(prove.Prover).Worse(failed, in, in); len(worse) != 1 {
		t.Error("a compiler that breaks a never was taken for no worse than before")
	}
}

// TestExceptionsToCome proves bounds for the moments at which exceptions begin, also if
// there are more of those than are looked at one by one.
func TestExceptionsToCome(t *testing.T) {
	in := chain(3)
	radius := bocage.BlastRadius{From: picking("place", "0"), MaxWeight: 1}
	in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: named("bound"), Spec: bocage.GuardrailSpec{
		Never: []bocage.CellMatch{{From: picking("place", "1")}}, Exceptions: bocage.ExceptionTerms{Allowed: true}, BlastRadius: &radius}})
	for _, many := range []int{0, 1, 7, 8, 30} {
		for _, opens := range []bool{false, true} {
			in := in
			for i := range many {
				match := bocage.CellMatch{From: picking("place", "1"), To: picking("place", "0")}
				if opens && i == many-1 {
					match.To = picking("place", "2")
				}
				from := now.Add(time.Duration(i+1) * time.Hour)
				in.Exceptions = append(in.Exceptions, &bocage.Exception{ObjectMeta: named(fmt.Sprintf("e%02d", i)),
					Spec: bocage.ExceptionSpec{Guardrail: "bound", Match: match, From: from, Until: from.Add(time.Minute)}})
			}
			counter, failed := failures(in, compile.Compile(in).Ruleset())["bound spec.blastRadius"]
			if failed != (opens && many > 0) {
				t.Errorf("%d exceptions, opens %v: %q", many, opens, counter)
			}
			if failed && !strings.Contains(counter, "when Exception e") {
				t.Errorf("%q does not say which exception begins", counter)
			}
		}
	}
}
