package compile_test

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/policytest"
)

// TestAgreesWithJudge holds the compiler against the second opinion: for every
// flow that touches a boundary of a random policy, the compiled tables and the
// objects themselves say the same, to the duty and the author.
func TestAgreesWithJudge(t *testing.T) {
	cells := 0
	for cells < 1_000_000 {
		rapid.Check(t, func(t *rapid.T) { cells += agrees(t) })
	}
	t.Logf("%d cells", cells)
}

func agrees(t *rapid.T) (cells int) {
	in := policytest.Draw(t)
	rs := compile.Compile(in).Ruleset()
	judge := explain.NewJudge(in)
	names := map[uint16]string{}
	for _, p := range rs.Profiles {
		names[p.Number] = p.Name
	}
	moments := policytest.Moments()
	keep := rapid.IntRange(0, sampled-1).Draw(t, "sample")
	heard := rapid.SampledFrom([][]bocage.DomainName{nil, {"api.example.com"}, {"a.b.example.com", "example.com"}, {"db.example.net", "api.example.com"}}).Draw(t, "heard")
	n := 0
	policytest.Flows(func(f bocage.Flow) {
		if n++; n%sampled != keep {
			return
		}
		if w := rs.Lookup(f.Source).Workload; w != "" && w == rs.Lookup(f.Destination).Workload {
			return // what a workload says to itself passes no enforcement point
		}
		f.At = moments[cells%len(moments)]
		cells++
		verdict, reason := rs.DecideNamed(f, heard...)
		g := judge.JudgeNamed(f, heard...)
		if verdict != g.Verdict || reason.Would != g.Would || reason.Code != g.Code {
			t.Fatalf("%s at %s: compiled says %s (%s, would %s), the objects say %s (%s, would %s)\n%s", f, f.At.Sub(policytest.Now),
				verdict, reason.Code, reason.Would, g.Verdict, g.Code, g.Would, policytest.Describe(in))
		}
		d, known := rs.Decision(reason.Decision)
		if !known {
			t.Fatalf("%s: decision %s does not exist", f, reason.Decision)
		}
		if len(g.Cut) > 0 {
			return // of an identity: its authors stay named until the last of them ends
		}
		var owed bocage.Duties
		if g.Would.Allowed() {
			owed = g.Owed
		}
		if (d.Duties == nil) != owed.Empty() || d.Duties != nil && *d.Duties != owed {
			t.Fatalf("%s at %s: compiled owes %+v, the objects ask for %+v\n%s", f, f.At.Sub(policytest.Now), d.Duties, owed, policytest.Describe(in))
		}
		if names[d.Profile] != owed.Inspect || d.Log != g.Log {
			t.Fatalf("%s: inspected with %q, log %v, want %q, %v", f, names[d.Profile], d.Log, owed.Inspect, g.Log)
		}
		if !sameAuthors(d.By, g.By) {
			t.Fatalf("%s at %s: %s decided by %v, want %v\n%s", f, f.At.Sub(policytest.Now), d.Code, d.By, g.By, policytest.Describe(in))
		}
	})
	return cells
}

// sampled thins out the flows of one input: more inputs find more.
const sampled = 100

// sameAuthors compares who decided: the decider comes first, the order of the
// others is each side's own.
func sameAuthors(a, b []bocage.Ref) bool {
	if len(a) != len(b) {
		return false
	}
	for _, ref := range a {
		if !slices.Contains(b, ref) {
			return false
		}
	}
	return true
}

// TestOrderFree compiles the same objects in random orders.
func TestOrderFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		first := encoded(t, compile.Compile(in))
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		for range 3 {
			if again := encoded(t, compile.Compile(policytest.Shuffle(in, r))); again != first {
				t.Fatalf("another order gives\n%s\nbefore it was\n%s", again, first)
			}
		}
	})
}

func encoded(t *rapid.T, out compile.Output) string {
	b, err := json.MarshalIndent(struct {
		Ruleset  *bocage.Ruleset
		Findings []compile.Finding
		Faults   bocage.Faults
	}{out.Ruleset(), out.Findings(), out.Faults}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestThreatsOnlyTighten adds a threat condition, a response or a quarantine to a
// random policy: nothing that was refused passes afterwards, and nothing that was
// owed is owed no longer.
func TestThreatsOnlyTighten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		before := compile.Compile(in).Ruleset()
		tightened := in
		switch rapid.IntRange(0, 2).Draw(t, "what") {
		case 0:
			tightened.Quarantines = append(slices.Clone(in.Quarantines), policytest.DrawQuarantine(t, 9))
		case 1:
			tightened.Responses = append(slices.Clone(in.Responses), policytest.DrawResponse(t, 9))
		default:
			tightened.ThreatConditions = append(slices.Clone(in.ThreatConditions), policytest.DrawThreat(t, 9))
		}
		after := compile.Compile(tightened).Ruleset()
		moments := policytest.Moments()
		each(t, 20, func(n int, f bocage.Flow) {
			f.At = moments[n%len(moments)]
			was, had := before.Decide(f)
			is, has := after.Decide(f)
			if !was.Allowed() && is.Allowed() || !had.Would.Allowed() && has.Would.Allowed() {
				t.Fatalf("%s: was %s (would %s), is %s (would %s)\n%s", f, was, had.Would, is, has.Would, policytest.Describe(tightened))
			}
			if !has.Would.Allowed() {
				return
			}
			old, _ := before.Decision(had.Decision)
			now, _ := after.Decision(has.Decision)
			if !atLeast(now.Duties, old.Duties) {
				t.Fatalf("%s: owed %+v, owes %+v\n%s", f, old.Duties, now.Duties, policytest.Describe(tightened))
			}
		})
	})
}

// atLeast reports whether every duty of one decision is kept by another.
func atLeast(have, want *bocage.Duties) bool {
	if want == nil {
		return true
	}
	if have == nil {
		return false
	}
	all := func(have, want string) bool {
		return want == "" || !slices.ContainsFunc(compile.ProfileNames(want), func(name string) bool { return !slices.Contains(compile.ProfileNames(have), name) })
	}
	return all(have.Inspect, want.Inspect) && all(have.Verify, want.Verify) && all(have.Log, want.Log) &&
		(want.Rate == "" || have.Rate != "" && have.RatePerSecond() <= want.RatePerSecond()) &&
		(have.Whole || !want.Whole) && (have.Witness || !want.Witness) && (have.Provenance || !want.Provenance) && have.Assurance >= want.Assurance
}

// each visits one flow in so many.
func each(t *rapid.T, many int, visit func(n int, f bocage.Flow)) {
	keep := rapid.IntRange(0, many-1).Draw(t, "sample")
	n := 0
	policytest.Flows(func(f bocage.Flow) {
		if n++; n%many == keep {
			visit(n/many, f)
		}
	})
}

// TestEndsComeTrue compiles a random policy at every moment at which something
// ends: what the first ruleset decides for that moment is what the new one does.
// Only what a threat condition enforces lasts until policy is compiled again.
func TestEndsComeTrue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		// What is yet to begin is no end: a new compilation brings it in.
		in.Exceptions = slices.DeleteFunc(in.Exceptions, func(e *bocage.Exception) bool {
			return e.Begins().IsZero() || e.Begins().After(in.Now)
		})
		first := compile.Compile(in)
		rs := first.Ruleset()
		for out := first; !out.Expires.IsZero(); {
			if !out.Expires.After(in.Now) {
				t.Fatalf("at %s, the next change is at %s", in.Now, out.Expires)
			}
			in.Now = out.Expires
			out = compile.Compile(in)
			each(t, 40, func(_ int, f bocage.Flow) {
				f.At = in.Now
				was, had := rs.Decide(f)
				is, has := out.Ruleset().Decide(f)
				if had.Code != has.Code || had.Would != has.Would {
					t.Fatalf("%s at %s: before it was %s (would %s), now it is %s (would %s)\n%s", f, f.At.Sub(policytest.Now), had.Code, had.Would, has.Code, has.Would, policytest.Describe(in))
				}
				if was != is && was.Allowed() {
					t.Fatalf("%s at %s: before it was %s, now it is %s\n%s", f, f.At.Sub(policytest.Now), was, is, policytest.Describe(in))
				}
				old, _ := rs.Decision(had.Decision)
				now, _ := out.Ruleset().Decision(has.Decision)
				if had.Code != bocage.ReasonQuarantine && (!sameAuthors(old.By, now.By) || !atLeast(old.Duties, now.Duties) || !atLeast(now.Duties, old.Duties)) {
					t.Fatalf("%s at %s: before %v owing %+v, now %v owing %+v\n%s", f, f.At.Sub(policytest.Now), old.By, old.Duties, now.By, now.Duties, policytest.Describe(in))
				}
			})
		}
	})
}

// TestDrawnObjectsCount keeps the generators honest: nearly all that they make is
// valid, or the other tests would test little.
func TestDrawnObjectsCount(t *testing.T) {
	objects, faults := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		objects += len(in.Guardrails) + len(in.Exceptions) + len(in.Responses) + len(in.NetworkPolicies) + len(in.ClusterNetworkPolicies) + len(in.Applications)
		faults += len(compile.Compile(in).Faults)
	})
	if faults*5 > objects {
		t.Errorf("%d faults in %d objects", faults, objects)
	}
}

// TestCutsAgree compares the rulesets of the source's and the destination's host
// with the whole.
func TestCutsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		whole := compile.Compile(in).Ruleset()
		cutter := compile.NewCutter(whole, in)
		cuts := map[string]*bocage.Ruleset{}
		for _, host := range cutter.Hosts() {
			cuts[host] = cutter.Cut(host)
		}
		moments := policytest.Moments()
		each(t, 20, func(n int, f bocage.Flow) {
			f.At = moments[n%len(moments)]
			verdict, reason := whole.Decide(f)
			for _, end := range []bocage.Peer{whole.Lookup(f.Source), whole.Lookup(f.Destination)} {
				if end.Host == "" {
					continue
				}
				v, r := cuts[end.Host].Decide(f)
				if v != verdict || r != reason {
					t.Fatalf("%s: %s says %s %v, the whole %s %v", f, end.Host, v, r, verdict, reason)
				}
				if _, ok := cuts[end.Host].Decision(r.Decision); !ok {
					t.Fatalf("%s: %s does not know decision %s", f, end.Host, r.Decision)
				}
			}
		})
	})
}

// TestWellFormed checks what readers of a ruleset rely on.
func TestWellFormed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := compile.Compile(policytest.Draw(t)).Ruleset()
		for i, r := range rs.Rules {
			if i == 0 {
				continue
			}
			p := rs.Rules[i-1]
			if bocage.CompareRules(p, r) >= 0 {
				t.Fatalf("rules %v and %v are out of order", p, r)
			}
			if p.From != r.From || p.To != r.To || p.Protocol != r.Protocol {
				continue
			}
			if r.Ports.First <= p.Ports.Last {
				t.Fatalf("rules %v and %v overlap", p, r)
			}
			if p.Decision == r.Decision && uint32(p.Ports.Last)+1 == uint32(r.Ports.First) {
				t.Fatalf("rules %v and %v should be one", p, r)
			}
		}
		known := map[bocage.Group]bool{bocage.GroupAny: true, bocage.GroupWorld: true}
		for _, g := range rs.Groups {
			if g.Group < bocage.GroupFirst || known[g.Group] {
				t.Fatalf("group %d is reserved or twice there", g.Group)
			}
			known[g.Group] = true
		}
		for _, r := range rs.Rules {
			if !known[r.From] || !known[r.To] {
				t.Fatalf("rule %v names a group that does not exist", r)
			}
		}
		for i, p := range rs.Peers {
			if i > 0 && rs.Peers[i-1].Prefix == p.Prefix {
				t.Fatalf("%s is twice there", p.Prefix)
			}
		}
		profiles := map[uint16]bool{0: true}
		for _, p := range rs.Profiles {
			if p.Number < 1 || p.Number > 4094 || profiles[p.Number] {
				t.Fatalf("profile number %d", p.Number)
			}
			profiles[p.Number] = true
		}
		for _, d := range rs.Decisions {
			if !profiles[d.Profile] || (d.Profile != 0) != (d.Verdict == bocage.VerdictInspect) {
				t.Fatalf("decision %v names a profile that does not exist", d)
			}
		}
	})
}
