package compile_test

import (
	"net/netip"
	"testing"
	"time"

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
		oweAndExcept(t, &in)
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

// oweAndExcept adds a guardrail that asks something of flows to addresses outside, and
// an exception from it that means all of them, some, more, or everyone.
func oweAndExcept(t *rapid.T, in *compile.Input) {
	outside := func(label string) bocage.Side {
		prefix := rapid.SampledFrom([]string{"", "0.0.0.0/0", "203.0.113.0/24", "203.0.113.128/25", "::ffff:203.0.113.0/120"}).Draw(t, label)
		if prefix == "" {
			return bocage.Side{}
		}
		return bocage.Side{External: []netip.Prefix{netip.MustParsePrefix(prefix)}}
	}
	in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "outside"}, Spec: bocage.GuardrailSpec{
		Match: bocage.CellMatch{To: outside("owed to")}, Require: &bocage.Duties{Witness: true}, Exceptions: bocage.ExceptionTerms{Allowed: true}}})
	in.Exceptions = append(in.Exceptions, &bocage.Exception{ObjectMeta: bocage.ObjectMeta{Name: "outside"}, Spec: bocage.ExceptionSpec{
		Guardrail: "outside", Reason: "drawn", Match: bocage.CellMatch{To: outside("excepted to")}, Until: policytest.Now.Add(2 * time.Minute)}})
}
