package compile_test

import (
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/policytest"
)

// TestNamesAgreeWithJudge gives random policies an Application for every namespace
// that consumes names at common ports, and holds what is opened by name against
// the second opinion.
func TestNamesAgreeWithJudge(t *testing.T) {
	heard := []bocage.DomainName{"api.example.com"}
	opened := 0
	rapid.Check(t, func(t *rapid.T) {
		in := policytest.Draw(t)
		for _, namespace := range []string{"shop", "pay", "dev"} {
			app := &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: "names"}}
			for _, port := range []uint16{1, 22, 80, 443} {
				app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{
					External: bocage.External{Name: rapid.SampledFrom(policytest.Names).Draw(t, "name")}, Port: port, EndPort: port + 4})
			}
			in.Applications = append(in.Applications, app)
		}
		rs := compile.CompileSpelling(in, rapid.SampledFrom([]int{0, 1 << 30}).Draw(t, "most spelled out")).Ruleset()
		judge := explain.NewJudge(in)
		moments := policytest.Moments()
		keep, n := rapid.IntRange(0, 19).Draw(t, "sample"), 0
		policytest.Flows(func(f bocage.Flow) {
			if n++; n%20 != keep || rs.Lookup(f.Source).Workload == "" || rs.Lookup(f.Destination).Workload != "" {
				return
			}
			f.At = moments[n%len(moments)]
			_, bare := rs.Decide(f)
			verdict, reason := rs.DecideNamed(f, heard...)
			g := judge.JudgeNamed(f, heard...)
			if verdict != g.Verdict || reason.Would != g.Would || reason.Code != g.Code {
				t.Fatalf("%s at %s: compiled says %s (%s, would %s), the objects say %s (%s, would %s)\n%s", f, f.At.Sub(policytest.Now),
					verdict, reason.Code, reason.Would, g.Verdict, g.Code, g.Would, policytest.Describe(in))
			}
			if bare == reason {
				return
			}
			opened++
			d, _ := rs.Decision(reason.Decision)
			var owed bocage.Duties
			if d.Duties != nil {
				owed = *d.Duties
			}
			// What an exception lifts towards a prefix may stay owed towards a name,
			// which is the strict side.
			if len(in.Exceptions) > 0 {
				return
			}
			if owed != g.Owed || d.Log != g.Log || !sameAuthors(d.By, g.By) {
				t.Fatalf("%s at %s: compiled owes %+v by %v, the objects ask for %+v by %v\n%s", f, f.At.Sub(policytest.Now), owed, d.By, g.Owed, g.By, policytest.Describe(in))
			}
		})
	})
	if opened == 0 {
		t.Fatal("no name ever opened anything")
	}
	t.Logf("%d flows opened by name", opened)
}
