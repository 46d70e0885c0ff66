package compile_test

import (
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestReasonsAgree compiles random policies with every refusal spelled out and
// with as many as can be left to classes: every cell has the same verdict, the
// same code and the same duties, in the whole and in the cuts.
func TestReasonsAgree(t *testing.T) {
	used := 0
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		spelled, classes := compile.CompileSpelling(in, 1<<30).Ruleset(), compile.CompileSpelling(in, 0).Ruleset()
		if len(spelled.Reasons) > 0 {
			t.Fatalf("%d reasons although everything is spelled out", len(spelled.Reasons))
		}
		used += len(classes.Reasons)
		bare := &bocage.Ruleset{Peers: classes.Peers, Groups: classes.Groups, Rules: classes.Rules, Decisions: classes.Decisions,
			Default: classes.Default, Refused: classes.Refused}
		cutter := compile.NewCutter(classes, in)
		cuts := map[string]*bocage.Ruleset{}
		for _, host := range cutter.Hosts() {
			cuts[host] = cutter.Cut(host)
		}
		sparing := compile.NewSparingCutter(classes, in, 0)
		keep, n := rapid.IntRange(0, 9).Draw(t, "sample"), 0
		policytest.Flows(func(f bocage.Flow) {
			if n++; n%10 != keep {
				return
			}
			want, reason := spelled.Decide(f)
			verdict, given := classes.Decide(f)
			if verdict != want || given.Code != reason.Code || given.Would != reason.Would {
				t.Fatalf("%s: spelled out it is %s (%s, would %s), by classes %s (%s, would %s)\n%s", f,
					want, reason.Code, reason.Would, verdict, given.Code, given.Would, policytest.Describe(in))
			}
			if _, r := bare.Decide(f); effectOf(r.Would) != effectOf(reason.Would) {
				t.Fatalf("%s: without reasons it would be %s, not %s", f, r.Would, reason.Would)
			}
			sameDuties(t, f, spelled, reason.Decision, classes, given.Decision)
			heard := []bocage.DomainName{"api.example.com", "db.example.net"}
			_, wantNamed := spelled.DecideNamed(f, heard...)
			_, named := classes.DecideNamed(f, heard...)
			if named.Would != wantNamed.Would || named.Code != wantNamed.Code {
				t.Fatalf("%s by name: spelled out it is %v, by classes %v\n%s", f, wantNamed, named, policytest.Describe(in))
			}
			if host := classes.Lookup(f.Source).Host; host != "" {
				if _, r := sparing.Cut(host).DecideNamed(f, heard...); r.Would.Allowed() != named.Would.Allowed() {
					t.Fatalf("%s by name: %s, without most reasons, says %v, the whole %v\n%s", f, host, r, named, policytest.Describe(in))
				}
			}
			for _, end := range []bocage.Peer{classes.Lookup(f.Source), classes.Lookup(f.Destination)} {
				if end.Host == "" {
					continue
				}
				if v, r := cuts[end.Host].Decide(f); v != verdict || r != given {
					t.Fatalf("%s: %s says %s %v, the whole %s %v", f, end.Host, v, r, verdict, given)
				}
			}
		})
	})
	if used == 0 {
		t.Fatal("no reason was ever used")
	}
}

// effectOf is a verdict for those who do not care whether the refused are told.
func effectOf(v bocage.Verdict) bocage.Verdict {
	if v == bocage.VerdictReject {
		return bocage.VerdictDrop
	}
	return v
}

func sameDuties(t *rapid.T, f bocage.Flow, a *bocage.Ruleset, x bocage.DecisionID, b *bocage.Ruleset, y bocage.DecisionID) {
	first, _ := a.Decision(x)
	second, _ := b.Decision(y)
	var want, have bocage.Duties
	if first.Duties != nil {
		want = *first.Duties
	}
	if second.Duties != nil {
		have = *second.Duties
	}
	if want != have || first.Log != second.Log || !first.Until.Equal(second.Until) {
		t.Fatalf("%s: %v and %v owe something else", f, first, second)
	}
}
