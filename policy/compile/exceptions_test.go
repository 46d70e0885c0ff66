package compile_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

func after(d time.Duration) time.Time { return policytest.Now.Add(d) }

// askAt decides a TCP flow between two workloads of shop at a moment.
func askAt(rs *bocage.Ruleset, from, to int, port uint16, at time.Time) (bocage.Verdict, bocage.Decision) {
	verdict, reason := rs.Decide(bocage.Flow{Source: address(from), Destination: address(to), DestinationPort: port, Protocol: bocage.ProtocolTCP, At: at})
	d, _ := rs.Decision(reason.Decision)
	return verdict, d
}

// guarded is shop with a guardrail that keeps web from api for all but exceptions.
func guarded(terms bocage.ExceptionTerms) compile.Input {
	in := shop()
	in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "apart"}, Spec: bocage.GuardrailSpec{
		Never:      []bocage.CellMatch{{From: bocage.Side{Workload: ptr(named("web"))}}},
		Exceptions: terms, Disposition: bocage.DispositionReject}}}
	return in
}

func exception(name string, until time.Time) *bocage.Exception {
	created := after(-time.Minute)
	return &bocage.Exception{ObjectMeta: bocage.ObjectMeta{Name: name, Generation: 3, CreationTimestamp: &created},
		Spec: bocage.ExceptionSpec{Guardrail: "apart", Match: bocage.CellMatch{To: bocage.Side{Workload: ptr(named("api"))}}, Until: until}}
}

// TestExceptions checks which exceptions count, and that their authors are told
// why the others do not.
func TestExceptions(t *testing.T) {
	hour := after(time.Hour)
	for _, test := range []struct {
		name     string
		terms    bocage.ExceptionTerms
		change   func(*bocage.Exception)
		counts   bool
		reason   string // of the finding; none: no finding
		field    string
		message  string
		expires  time.Time
		rejected bool
	}{
		{"admitted", bocage.ExceptionTerms{Allowed: true}, func(e *bocage.Exception) {}, true, "", "", "", hour, false},
		{"as long as may be", bocage.ExceptionTerms{Allowed: true, Max: "61m"}, func(e *bocage.Exception) {}, true, "", "", "", hour, false},
		{"approved", bocage.ExceptionTerms{Allowed: true}, func(e *bocage.Exception) { e.Status.Approval = &bocage.Approval{Generation: 3} }, true, "", "", "", hour, false},
		{"to nothing", bocage.ExceptionTerms{Allowed: true}, func(e *bocage.Exception) { e.Spec.Guardrail = "none" },
			false, compile.UnknownGuardrail, "spec.guardrail", "there is no Guardrail none", time.Time{}, true},
		{"not admitted", bocage.ExceptionTerms{}, func(e *bocage.Exception) {}, false, compile.NotAdmitted, "spec.guardrail", "spec.exceptions.allowed", time.Time{}, true},
		{"too long", bocage.ExceptionTerms{Allowed: true, Max: "30m"}, func(e *bocage.Exception) {},
			false, compile.TooLong, "spec.until", "end it by 2026-11-20T12:29:00Z", time.Time{}, true},
		{"too long from now", bocage.ExceptionTerms{Allowed: true, Max: "30m"}, func(e *bocage.Exception) { e.CreationTimestamp = nil },
			false, compile.TooLong, "spec.until", "it would last 1h0m0s", after(30 * time.Minute), true},
		{"not approved", bocage.ExceptionTerms{Allowed: true}, func(e *bocage.Exception) {
			e.Status.Approval = &bocage.Approval{Generation: 2, Approvers: []string{"ann", "group:ciso"}}
		}, false, compile.NotApproved, "", "ann or group:ciso", time.Time{}, true},
		{"yet to begin", bocage.ExceptionTerms{Allowed: true}, func(e *bocage.Exception) { e.Spec.From = after(time.Minute) },
			false, compile.NotBegun, "", "begins at 2026-11-20T12:01:00Z", after(time.Minute), false},
		{"over", bocage.ExceptionTerms{Allowed: true}, func(e *bocage.Exception) { e.Spec.Until = policytest.Now },
			false, compile.Expired, "", "ended at", time.Time{}, false},
		{"elsewhere", bocage.ExceptionTerms{Allowed: true}, func(e *bocage.Exception) {
			e.Spec.Match = bocage.CellMatch{From: bocage.Side{Workload: ptr(named("db"))}}
		}, false, compile.NothingMatches, "spec.match", "says nothing today that it would lift", hour, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := guarded(test.terms)
			e := exception("e", hour)
			test.change(e)
			in.Exceptions = []*bocage.Exception{e}
			out := compile.Compile(in)
			verdict, d := askAt(out.Ruleset(), 0, 1, 8080, policytest.Now)
			named := slices.Contains(d.By, compile.Ref("Exception", e, "spec.match"))
			if verdict.Allowed() != test.counts || named != test.counts {
				t.Errorf("%s by %v", verdict, d.By)
			}
			if !out.Expires.Equal(test.expires) {
				t.Errorf("expires %s, want %s", out.Expires, test.expires)
			}
			var found []compile.Finding
			for _, f := range out.Findings() {
				if f.Object.Kind == "Exception" {
					found = append(found, f)
				}
			}
			switch {
			case test.reason == "" && len(found) == 0:
			case test.reason == "" || len(found) != 1:
				t.Errorf("findings: %v", found)
			default:
				f := found[0]
				if f.Reason != test.reason || f.Object.Field != test.field || f.Rejected != test.rejected || !strings.Contains(f.Message, test.message) {
					t.Errorf("finding: %+v", f)
				}
			}
			// db is nobody's business.
			if verdict, d := askAt(out.Ruleset(), 2, 1, 5432, policytest.Now); verdict != bocage.VerdictDrop || d.Code != bocage.ReasonDefaultDeny {
				t.Errorf("db: %s by %v", verdict, d.By)
			}
		})
	}
}

// TestExceptionsEndByThemselves follows decisions past the ends of exceptions.
func TestExceptionsEndByThemselves(t *testing.T) {
	in := guarded(bocage.ExceptionTerms{Allowed: true})
	in.Exceptions = []*bocage.Exception{exception("short", after(time.Minute)), exception("long", after(time.Hour))}
	rs := compile.Compile(in).Ruleset()
	for _, test := range []struct {
		at   time.Time
		want bocage.Verdict
	}{
		{policytest.Now, bocage.VerdictAllow}, {after(time.Minute), bocage.VerdictAllow}, {after(time.Hour - 1), bocage.VerdictAllow},
		{after(time.Hour), bocage.VerdictReject}, {after(100 * time.Hour), bocage.VerdictReject}, {time.Time{}, bocage.VerdictAllow},
	} {
		if verdict, d := askAt(rs, 0, 1, 8080, test.at); verdict != test.want {
			t.Errorf("at %s: %s by %v", test.at, verdict, d.By)
		}
	}
	// What two exceptions say alike is one link: it gives way once, at the last end.
	_, reason := rs.Decide(bocage.Flow{Source: address(0), Destination: address(1), DestinationPort: 8080, Protocol: bocage.ProtocolTCP})
	first, _ := rs.Decision(reason.Decision)
	if !first.Until.Equal(after(time.Hour)) {
		t.Errorf("the first decision ends at %s", first.Until)
	}
}

// TestManyEnds gives one cell more ends than a chain may have: the last link
// grants no exception, and refuses on.
func TestManyEnds(t *testing.T) {
	in := guarded(bocage.ExceptionTerms{Allowed: true})
	for i := range 2 * bocage.MostSuccessors {
		g := *in.Guardrails[0]
		g.Name = fmt.Sprintf("apart%02d", i)
		in.Guardrails = append(in.Guardrails, &g)
		e := exception(fmt.Sprintf("e%02d", i), after(time.Duration(i+1)*time.Minute))
		e.Spec.Guardrail = g.Name
		in.Exceptions = append(in.Exceptions, e)
	}
	in.Guardrails = in.Guardrails[1:]
	in.Guardrails[0].Spec.Require = &bocage.Duties{Log: "full"}
	last := exception("last", after(100*time.Minute))
	last.Spec.Guardrail = in.Guardrails[len(in.Guardrails)-1].Name
	in.Exceptions = append(in.Exceptions, last)
	rs := compile.Compile(in).Ruleset()
	links := 0
	for _, d := range rs.Decisions {
		length := 0
		for !d.Until.IsZero() {
			next, known := rs.Decision(d.Then)
			if !known {
				t.Fatalf("decision %s gives way to %s, which is not there", d.ID, d.Then)
			}
			d = next
			length++
		}
		links = max(links, length)
	}
	if links != bocage.MostSuccessors {
		t.Errorf("the longest chain has %d successors", links)
	}
	allowed := true
	for i := range 3 * bocage.MostSuccessors {
		verdict, d := askAt(rs, 0, 1, 8080, after(time.Duration(i)*time.Minute))
		if verdict.Allowed() && !allowed {
			t.Errorf("%d minutes on, it passes again by %v", i, d.By)
		}
		allowed = verdict.Allowed()
	}
	if allowed {
		t.Error("it passes for ever")
	}
	if _, d := askAt(rs, 0, 1, 8080, after(time.Duration(bocage.MostSuccessors)*time.Minute)); len(d.By) != len(in.Guardrails) {
		t.Errorf("the last link refuses by %v", d.By)
	}
}

// TestExceptionsLiftTheirOwn checks that an exception lifts all duties of its
// guardrail, and nothing of another.
func TestExceptionsLiftTheirOwn(t *testing.T) {
	in := shop()
	in.Profiles = []*bocage.InspectionProfile{{ObjectMeta: bocage.ObjectMeta{Name: "deep"}, Spec: bocage.InspectionProfileSpec{Signatures: "alert tcp any any -> any any (sid:1;)\n"}}}
	in.Guardrails = []*bocage.Guardrail{
		{ObjectMeta: bocage.ObjectMeta{Name: "apart"}, Spec: bocage.GuardrailSpec{
			Require: &bocage.Duties{Inspect: "deep", Assurance: "L3"}, Separate: &bocage.Separate{By: "app"}, Exceptions: bocage.ExceptionTerms{Allowed: true}}},
		{ObjectMeta: bocage.ObjectMeta{Name: "other"}, Spec: bocage.GuardrailSpec{Require: &bocage.Duties{Witness: true}}},
	}
	in.Exceptions = []*bocage.Exception{exception("e", after(time.Minute))}
	rs := compile.Compile(in).Ruleset()
	verdict, d := askAt(rs, 0, 1, 8080, policytest.Now)
	if verdict != bocage.VerdictAllow || d.Duties == nil || *d.Duties != (bocage.Duties{Witness: true}) {
		t.Errorf("excepted: %s owing %+v", verdict, d.Duties)
	}
	verdict, _ = askAt(rs, 0, 1, 8080, after(time.Minute))
	if verdict != bocage.VerdictDrop {
		t.Errorf("afterwards: %s", verdict)
	}
}

// TestApproval checks which declaration of a guardrail counts.
func TestApproval(t *testing.T) {
	closed := bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: bocage.Side{Workload: ptr(named("web"))}}}}
	open := bocage.GuardrailSpec{Require: &bocage.Duties{Log: "full"}}
	for _, test := range []struct {
		name     string
		spec     bocage.GuardrailSpec
		approval *bocage.Approval
		refused  bool
		field    string
		message  string
	}{
		{"nobody has to", closed, nil, true, "", ""},
		{"approved", closed, &bocage.Approval{Generation: 2, Approved: &closed}, true, "", ""},
		{"waits", closed, &bocage.Approval{}, false, "", "takes no effect until somebody other than its author approves it"},
		{"waits behind another", open, &bocage.Approval{Generation: 1, Approved: &closed, Approvers: []string{"ann"}}, true, "spec", "stays in force until ann approves this"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := shop()
			in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "g", Generation: 2}, Spec: test.spec,
				Status: bocage.GuardrailStatus{Approval: test.approval}}}
			out := compile.Compile(in)
			if verdict, d := askAt(out.Ruleset(), 0, 1, 8080, policytest.Now); verdict.Allowed() == test.refused {
				t.Errorf("%s by %v", verdict, d.By)
			}
			var found []compile.Finding
			for _, f := range out.Findings() {
				if f.Reason == compile.NotApproved {
					found = append(found, f)
				}
			}
			switch {
			case test.message == "" && len(found) == 0:
			case len(found) != 1 || !found[0].Rejected || found[0].Object.Field != test.field || !strings.Contains(found[0].Message, test.message):
				t.Errorf("findings: %v", found)
			}
		})
	}
}
