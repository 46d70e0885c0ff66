package compile_test

import (
	"slices"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

func condition(level bocage.Level, expires time.Time) *bocage.ThreatCondition {
	return &bocage.ThreatCondition{ObjectMeta: bocage.ObjectMeta{Name: "t"},
		Spec: bocage.ThreatConditionSpec{Workload: "shop/web", Level: level, Reason: "test", Expires: expires}}
}

func responding(when bocage.ResponseWhen, then bocage.ResponseThen) *bocage.Response {
	return &bocage.Response{ObjectMeta: bocage.ObjectMeta{Name: "r"}, Spec: bocage.ResponseSpec{When: when, Then: then}}
}

func protecting(cells ...bocage.CellMatch) *bocage.Guardrail {
	return &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "vital"}, Spec: bocage.GuardrailSpec{Protect: cells}}
}

// TestResponses checks when responses hold, for whom and until when.
func TestResponses(t *testing.T) {
	soon := after(time.Minute)
	lateral := bocage.ResponseThen{RefuseFrom: []bocage.ResponseCell{{Peer: bocage.Side{Workload: ptr(named("api"))}}}}
	incoming := bocage.ResponseThen{RefuseTo: []bocage.ResponseCell{{Ports: []bocage.PortMatch{{Port: 8080}}}}}
	for _, test := range []struct {
		name   string
		change func(*compile.Input)
		code   bocage.ReasonCode // of web to api on 8080, now
		then   bocage.ReasonCode // a minute later
	}{
		{"no condition", func(in *compile.Input) {
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelWatch}, lateral))
		}, bocage.ReasonRule, bocage.ReasonRule},
		{"a lower level", func(in *compile.Input) {
			in.ThreatConditions = append(in.ThreatConditions, condition(bocage.LevelWatch, soon))
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelRestrict}, lateral))
		}, bocage.ReasonRule, bocage.ReasonRule},
		{"the level", func(in *compile.Input) {
			in.ThreatConditions = append(in.ThreatConditions, condition(bocage.LevelWatch, soon))
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelWatch}, lateral))
		}, bocage.ReasonThreat, bocage.ReasonRule},
		{"a higher level", func(in *compile.Input) {
			in.ThreatConditions = append(in.ThreatConditions, condition(bocage.LevelRestrict, soon))
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelDeepen}, lateral))
		}, bocage.ReasonThreat, bocage.ReasonRule},
		{"not of such workloads", func(in *compile.Input) {
			in.ThreatConditions = append(in.ThreatConditions, condition(bocage.LevelRestrict, soon))
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelWatch, Workloads: bocage.Side{Workload: ptr(named("db"))}}, lateral))
		}, bocage.ReasonRule, bocage.ReasonRule},
		{"of the one that is reached", func(in *compile.Input) {
			c := condition(bocage.LevelWatch, soon)
			c.Spec.Workload = "shop/api"
			in.ThreatConditions = append(in.ThreatConditions, c)
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelWatch}, incoming))
		}, bocage.ReasonThreat, bocage.ReasonRule},
		{"of its zone", func(in *compile.Input) {
			c := condition(bocage.LevelWatch, soon)
			c.Spec.Workload, c.Spec.Zone = "", "dmz"
			in.Zones = append(in.Zones, &bocage.Zone{ObjectMeta: bocage.ObjectMeta{Name: "dmz"}, Spec: bocage.ZoneSpec{Hosts: []string{"h1"}}})
			in.ThreatConditions = append(in.ThreatConditions, c)
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelWatch}, lateral))
		}, bocage.ReasonThreat, bocage.ReasonRule},
		{"of all", func(in *compile.Input) {
			c := condition(bocage.LevelWatch, soon)
			c.Spec.Workload, c.Spec.All = "", true
			in.ThreatConditions = append(in.ThreatConditions, c)
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelWatch}, lateral))
		}, bocage.ReasonThreat, bocage.ReasonRule},
		{"protected", func(in *compile.Input) {
			in.ThreatConditions = append(in.ThreatConditions, condition(bocage.LevelWatch, soon))
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelWatch}, lateral))
			in.Guardrails = append(in.Guardrails, protecting(bocage.CellMatch{To: bocage.Side{Workload: ptr(named("api"))}, Ports: []bocage.PortMatch{{Port: 8080}}}))
		}, bocage.ReasonRule, bocage.ReasonRule},
		{"a duty that cannot be kept", func(in *compile.Input) {
			in.ThreatConditions = append(in.ThreatConditions, condition(bocage.LevelWatch, soon))
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelWatch}, bocage.ResponseThen{Require: &bocage.Duties{Assurance: "L2"}}))
		}, bocage.ReasonGuardrail, bocage.ReasonRule},
		{"one that cannot be kept, where it is protected", func(in *compile.Input) {
			in.ThreatConditions = append(in.ThreatConditions, condition(bocage.LevelWatch, soon))
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelWatch}, bocage.ResponseThen{Require: &bocage.Duties{Assurance: "L2"}}))
			in.Guardrails = append(in.Guardrails, protecting(bocage.CellMatch{To: bocage.Side{Workload: ptr(named("api"))}}))
		}, bocage.ReasonRule, bocage.ReasonRule},
		{"a quarantine", func(in *compile.Input) {
			in.ThreatConditions = append(in.ThreatConditions, condition(bocage.LevelQuarantine, soon))
		}, bocage.ReasonQuarantine, bocage.ReasonRule},
		{"a quarantine around what is protected", func(in *compile.Input) {
			in.ThreatConditions = append(in.ThreatConditions, condition(bocage.LevelQuarantine, soon))
			in.Guardrails = append(in.Guardrails, protecting(bocage.CellMatch{To: bocage.Side{Workload: ptr(named("api"))}, Ports: []bocage.PortMatch{{Port: 8080}}}))
		}, bocage.ReasonRule, bocage.ReasonRule},
		{"a quarantine beside what is protected", func(in *compile.Input) {
			in.ThreatConditions = append(in.ThreatConditions, condition(bocage.LevelQuarantine, soon))
			in.Guardrails = append(in.Guardrails, protecting(bocage.CellMatch{To: bocage.Side{Workload: ptr(named("db"))}}))
		}, bocage.ReasonQuarantine, bocage.ReasonRule},
		{"a person's quarantine of what is protected", func(in *compile.Input) {
			in.Quarantines = append(in.Quarantines, &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "q"}, Spec: bocage.QuarantineSpec{Workload: "shop/web"}})
			in.Guardrails = append(in.Guardrails, protecting(bocage.CellMatch{To: bocage.Side{Workload: ptr(named("api"))}}))
		}, bocage.ReasonQuarantine, bocage.ReasonQuarantine},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := shop()
			test.change(&in)
			rs := compile.Compile(in).Ruleset()
			for at, want := range map[time.Time]bocage.ReasonCode{policytest.Now: test.code, soon: test.then} {
				if verdict, d := askAt(rs, 0, 1, 8080, at); d.Code != want || verdict.Allowed() != (want == bocage.ReasonRule) {
					t.Errorf("at %s: %s (%s) by %v", at, verdict, d.Code, d.By)
				}
			}
			// What nobody allows stays closed, whoever protects it.
			if verdict, d := askAt(rs, 0, 2, 5432, policytest.Now); verdict.Allowed() {
				t.Errorf("web reaches db by %v", d.By)
			}
		})
	}
}

// TestProtectedAround checks that an automated quarantine spares what is protected
// in either direction, and refuses the rest of both.
func TestProtectedAround(t *testing.T) {
	web, db := bocage.Side{Workload: ptr(named("web"))}, bocage.Side{Workload: ptr(named("db"))}
	for _, test := range []struct {
		name     string
		protect  bocage.CellMatch
		from, to bool // db reaches web, web reaches db
		cut      bool // as an identity
	}{
		{name: "nothing", protect: bocage.CellMatch{From: bocage.Side{Workload: ptr(named("api"))}, To: db}, cut: true},
		{name: "what it is reached at", protect: bocage.CellMatch{From: db, To: web}, from: true},
		{name: "what it reaches", protect: bocage.CellMatch{From: web, To: db}, to: true},
		{name: "both ways", protect: bocage.CellMatch{}, from: true, to: true},
		{name: "nobody's", protect: bocage.CellMatch{From: bocage.Side{Workload: ptr(named("gone"))}, To: web}, cut: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := shop()
			in.Guardrails = []*bocage.Guardrail{protecting(test.protect),
				{ObjectMeta: bocage.ObjectMeta{Name: "open"}, Spec: bocage.GuardrailSpec{Grant: []bocage.CellMatch{{}}}}}
			in.ThreatConditions = []*bocage.ThreatCondition{condition(bocage.LevelQuarantine, after(time.Minute))}
			rs := compile.Compile(in).Ruleset()
			if got := len(rs.Refused) == 1; got != test.cut {
				t.Errorf("cut off: %v", rs.Refused)
			}
			if verdict, d := askAt(rs, 2, 0, 80, policytest.Now); verdict.Allowed() != test.from {
				t.Errorf("db to web: %s by %v", verdict, d.By)
			}
			if verdict, d := askAt(rs, 0, 2, 80, policytest.Now); verdict.Allowed() != test.to {
				t.Errorf("web to db: %s by %v", verdict, d.By)
			}
			if verdict, d := askAt(rs, 0, 2, 80, after(time.Minute)); !verdict.Allowed() {
				t.Errorf("afterwards: %s by %v", verdict, d.By)
			}
		})
	}
}

// TestDispositions checks what becomes of refused connections.
func TestDispositions(t *testing.T) {
	never := func(disposition string) *bocage.Guardrail {
		return &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: bocage.GuardrailSpec{
			Never: []bocage.CellMatch{{To: bocage.Side{Workload: ptr(named("api"))}}}, Disposition: disposition}}
	}
	scope := func(in *compile.Input) { in.Scopes[0].Spec.Disposition = bocage.DispositionReject }
	for _, test := range []struct {
		name     string
		change   func(*compile.Input)
		toAPI    bocage.Verdict // refused by the guardrail, if there is one
		toDB     bocage.Verdict // refused by nobody in particular
		afterAPI bocage.Verdict // a minute later
	}{
		{"nothing asked", func(in *compile.Input) { in.Guardrails = append(in.Guardrails, never("")) }, bocage.VerdictDrop, bocage.VerdictDrop, bocage.VerdictDrop},
		{"rejected by a guardrail", func(in *compile.Input) { in.Guardrails = append(in.Guardrails, never("reject")) },
			bocage.VerdictReject, bocage.VerdictDrop, bocage.VerdictReject},
		{"a decoy where none stands", func(in *compile.Input) { in.Guardrails = append(in.Guardrails, never("decoy")) },
			bocage.VerdictDrop, bocage.VerdictDrop, bocage.VerdictDrop},
		{"rejected by a scope", func(in *compile.Input) { scope(in); in.Guardrails = append(in.Guardrails, never("")) },
			bocage.VerdictDrop, bocage.VerdictReject, bocage.VerdictDrop},
		{"rejected by a response", func(in *compile.Input) {
			in.Guardrails = append(in.Guardrails, never("drop"))
			in.ThreatConditions = append(in.ThreatConditions, condition(bocage.LevelWatch, after(time.Minute)))
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelWatch}, bocage.ResponseThen{Disposition: "reject"}))
		}, bocage.VerdictReject, bocage.VerdictReject, bocage.VerdictDrop},
		{"a decoy is stronger", func(in *compile.Input) {
			scope(in)
			in.Guardrails = append(in.Guardrails, never("reject"))
			in.Decoys = append(in.Decoys, &bocage.Decoy{ObjectMeta: bocage.ObjectMeta{Name: "d"}, Spec: bocage.DecoySpec{Protocol: "ssh", Port: 8080}})
		}, bocage.VerdictDecoy, bocage.VerdictDecoy, bocage.VerdictDecoy},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := shop()
			test.change(&in)
			rs := compile.Compile(in).Ruleset()
			if verdict, d := askAt(rs, 0, 1, 8080, policytest.Now); verdict != test.toAPI {
				t.Errorf("to api: %s by %v", verdict, d.By)
			}
			if verdict, d := askAt(rs, 0, 2, 8080, policytest.Now); verdict != test.toDB {
				t.Errorf("to db: %s by %v", verdict, d.By)
			}
			if verdict, d := askAt(rs, 0, 1, 8080, after(time.Minute)); verdict != test.afterAPI {
				t.Errorf("to api afterwards: %s by %v", verdict, d.By)
			}
		})
	}
}

// TestSeparate keeps apart who differs, and whoever has no value from all that
// have one.
func TestSeparate(t *testing.T) {
	in := shop()
	in.Workloads = append(in.Workloads, workload(3, "shop/bare"), workload(4, "shop/naked"), workload(5, "shop/blank"))
	in.Workloads[5].Labels["env"] = ""
	for i, value := range []string{"prod", "prod", "test"} {
		in.Workloads[i].Labels["env"] = value
	}
	in.Guardrails = []*bocage.Guardrail{
		{ObjectMeta: bocage.ObjectMeta{Name: "all"}, Spec: bocage.GuardrailSpec{Grant: []bocage.CellMatch{{}}}},
		{ObjectMeta: bocage.ObjectMeta{Name: "env"}, Spec: bocage.GuardrailSpec{Separate: &bocage.Separate{By: "env"}}},
	}
	rs := compile.Compile(in).Ruleset()
	for _, test := range []struct {
		from, to int
		together bool
	}{{0, 1, true}, {0, 2, false}, {2, 0, false}, {0, 3, false}, {3, 2, false}, {3, 4, true}, {3, 5, false}, {5, 3, false}, {5, 0, false}} {
		if verdict, d := askAt(rs, test.from, test.to, 80, policytest.Now); verdict.Allowed() != test.together {
			t.Errorf("%d to %d: %s by %v", test.from, test.to, verdict, d.By)
		}
	}
	// Nobody outside has labels to differ in.
	if verdict, d := askAt(rs, 99, 2, 80, policytest.Now); verdict != bocage.VerdictAllow {
		t.Errorf("from outside: %s by %v", verdict, d.By)
	}
}

// TestDutiesJoin checks that the strictest of each duty counts and that authors
// are named.
func TestDutiesJoin(t *testing.T) {
	in := shop()
	for _, w := range in.Workloads {
		w.Status.Assurance = "L3"
	}
	in.Applications[1].Spec.Provides[0].AppProtocol = "http"
	require := func(name string, d bocage.Duties) {
		in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.GuardrailSpec{Require: &d}})
	}
	require("a", bocage.Duties{Rate: "20/s", Verify: "tls", Assurance: "L2"})
	require("b", bocage.Duties{Rate: "5/s", Witness: true, Assurance: "L3"})
	require("c", bocage.Duties{Provenance: true, Whole: true, Log: "full"})
	out := compile.Compile(in)
	verdict, d := askAt(out.Ruleset(), 0, 1, 8080, policytest.Now)
	want := bocage.Duties{Log: "full", Verify: "http+tls", Rate: "5/s", Whole: true, Witness: true, Provenance: true, Assurance: "L3"}
	if verdict != bocage.VerdictAllow || d.Duties == nil || *d.Duties != want || !d.Log {
		t.Fatalf("%s owing %+v", verdict, d.Duties)
	}
	if !slices.ContainsFunc(d.By, func(r bocage.Ref) bool { return r.String() == "Application shop/api spec.provides[0].appProtocol" }) || len(d.By) != 2+1+3+3+3 {
		t.Errorf("by %v", d.By)
	}
	recorded, babel := map[string]int{}, map[string]int{}
	for _, f := range out.Findings() {
		if f.Reason == compile.NeverSpoken {
			babel[f.Object.String()]++
		}
		if f.Reason == compile.DutyRecorded {
			recorded[f.Object.String()]++
			if f.Rejected {
				t.Errorf("rejected: %v", f)
			}
		}
	}
	if len(recorded) != 2 || recorded["Guardrail b spec.require"] != 1 || recorded["Guardrail c spec.require"] != 1 {
		t.Errorf("recorded: %v", recorded)
	}
	if babel["Application shop/api spec.provides[0].appProtocol"] != 1 || len(babel) != 2 {
		t.Errorf("protocols that contradict each other: %v", babel)
	}
	in.Workloads[0].Status.Assurance = "L2"
	if verdict, d = askAt(compile.Compile(in).Ruleset(), 0, 1, 8080, policytest.Now); verdict != bocage.VerdictDrop || d.Code != bocage.ReasonGuardrail ||
		len(d.By) != 1 || d.By[0].String() != "Guardrail b spec.require.assurance" || d.Duties != nil {
		t.Errorf("%s by %v owing %+v", verdict, d.By, d.Duties)
	}
}

// TestSpoken checks that what is spoken is owed only where its contract allows.
func TestSpoken(t *testing.T) {
	in := shop()
	in.Applications[1].Spec.Provides[0].AppProtocol = "http"
	in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: bocage.GuardrailSpec{Grant: []bocage.CellMatch{{From: bocage.Side{Workload: ptr(named("db"))}}}}}}
	rs := compile.Compile(in).Ruleset()
	if _, d := askAt(rs, 0, 1, 8080, policytest.Now); d.Duties == nil || d.Duties.Verify != "http" {
		t.Errorf("by contract: %+v", d.Duties)
	}
	if verdict, d := askAt(rs, 2, 1, 8080, policytest.Now); verdict != bocage.VerdictAllow || d.Duties != nil {
		t.Errorf("by grant: %s, %+v", verdict, d.Duties)
	}
}
