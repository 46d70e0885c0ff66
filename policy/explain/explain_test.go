package explain_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/policytest"
)

// site is the shop of the tests: web may talk to api, api to db (card data,
// inspected); cache is half a contract each way; dev is kept from card data.
func site() compile.Input {
	in := compile.Input{Now: policytest.Now, Generation: 4}
	for i, name := range []string{"shop/web", "shop/api", "shop/db", "shop/cache", "dev/box", "shop/lonely"} {
		namespace, short, _ := strings.Cut(name, "/")
		in.Workloads = append(in.Workloads, &bocage.Workload{
			ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: short, Labels: map[string]string{"app": short}},
			Spec:       bocage.WorkloadSpec{Host: "h1", Interface: fmt.Sprintf("v%d", i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}},
			Status:     bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
		})
	}
	to := func(name string) bocage.Selector { return bocage.Selector{MatchLabels: map[string]string{"app": name}} }
	app := func(name string, provides []bocage.Provide, consumes ...bocage.Consume) {
		in.Applications = append(in.Applications, &bocage.Application{
			ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: name, Annotations: map[string]string{bocage.SourceAnnotation: name + ".yaml:1"}},
			Spec:       bocage.ApplicationSpec{Workload: to(name), Provides: provides, Consumes: consumes}})
	}
	app("web", nil, bocage.Consume{Service: "api"}, bocage.Consume{Service: "cache"})
	app("api", []bocage.Provide{{Name: "http", Port: 8080, To: to("web")}}, bocage.Consume{Service: "db", Interface: "sql"})
	app("db", []bocage.Provide{{Name: "sql", Port: 5432, Data: []string{"pci"}, To: to("api")}})
	app("cache", []bocage.Provide{{Name: "redis", Port: 6379, To: to("api")}})
	in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "pci"}, Spec: bocage.GuardrailSpec{
		Match:   bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}},
		Never:   []bocage.CellMatch{{From: bocage.Side{Namespaces: []string{"dev"}}}},
		Require: &bocage.Duties{Inspect: "sql", Log: "full"}}}}
	in.Profiles = []*bocage.InspectionProfile{{ObjectMeta: bocage.ObjectMeta{Name: "sql"}, Spec: bocage.InspectionProfileSpec{Signatures: "alert tcp any any -> any any (sid:1;)\n"}}}
	in.Scopes = []*bocage.Scope{{ObjectMeta: bocage.ObjectMeta{Name: "shop"}, Spec: bocage.ScopeSpec{Namespaces: []string{"shop"}, Mode: bocage.ModeEnforce}}}
	in.Decoys = []*bocage.Decoy{{ObjectMeta: bocage.ObjectMeta{Name: "ssh"}, Spec: bocage.DecoySpec{Protocol: "ssh", Port: 22}}}
	return in
}

const (
	web, api, db, cache, box, lonely = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"
	outside                          = "203.0.113.9"
)

func TestExplain(t *testing.T) {
	quarantine := func(in *compile.Input) {
		in.Quarantines = append(in.Quarantines, &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "web"},
			Spec: bocage.QuarantineSpec{Workload: "shop/web", Until: policytest.Now.Add(time.Hour)}})
	}
	threat := func(level bocage.Level, change func(*compile.Input)) func(*compile.Input) {
		return func(in *compile.Input) {
			in.ThreatConditions = append(in.ThreatConditions, &bocage.ThreatCondition{ObjectMeta: bocage.ObjectMeta{Name: "t"},
				Spec: bocage.ThreatConditionSpec{Workload: "shop/web", Level: level, Reason: "seen", Expires: policytest.Now.Add(time.Hour)}})
			if change != nil {
				change(in)
			}
		}
	}
	response := func(in *compile.Input) {
		in.Responses = append(in.Responses, &bocage.Response{ObjectMeta: bocage.ObjectMeta{Name: "tighten"}, Spec: bocage.ResponseSpec{
			When: bocage.ResponseWhen{Level: bocage.LevelDeepen},
			Then: bocage.ResponseThen{RefuseFrom: []bocage.ResponseCell{{}}, Disposition: bocage.DispositionReject}}})
	}
	protect := func(in *compile.Input) {
		in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "keep"},
			Spec: bocage.GuardrailSpec{Protect: []bocage.CellMatch{{To: bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{"app": "api"}}}}}}})
	}
	for _, test := range []struct {
		name                string
		source, destination string
		port                uint16
		change              func(*compile.Input)
		verdict             bocage.Verdict
		code                bocage.ReasonCode
		decider             string
		layers              map[string]string // a part of a layer's result
		duties              []string
		missing             []string // parts
	}{
		{"a whole contract", web, api, 8080, nil, bocage.VerdictAllow, bocage.ReasonRule, "Application shop/api spec.provides[0] (api.yaml:1)",
			map[string]string{"base": "allowed", "grants": "no guardrail", "guardrails": "no objection", "protect": "not protected", "threat": "no condition",
				"quarantine": "neither", "disposition": "passed on", "scope": "nothing to enforce"}, nil,
			[]string{"withdraw Application shop/web spec.consumes[0] (web.yaml:1)", "or declare a Guardrail with spec.never [{from: {namespaces: [shop], workload: {matchLabels: {bocage.dev/name: web}}}"}},
		{"a contract with duties", api, db, 5432, nil, bocage.VerdictInspect, bocage.ReasonRule, "Application shop/db spec.provides[0] (db.yaml:1)",
			map[string]string{"guardrails": "with duties", "disposition": "inspection with sql"},
			[]string{"inspect with sql by Guardrail pci spec.require.inspect", "keep in full detail by Guardrail pci spec.require.log"}, nil},
		{"a guardrail", box, db, 5432, nil, bocage.VerdictDrop, bocage.ReasonGuardrail, "Guardrail pci spec.never[0]",
			map[string]string{"base": "default deny", "guardrails": "no contract can open it", "disposition": "dropped", "scope": "enforced"}, nil,
			[]string{"the owner of Guardrail pci spec.never[0] would have to withdraw that, or admit exceptions", "declare an Application dev/box"}},
		{"two guardrails", box, db, 5432, func(in *compile.Input) {
			in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "apart"},
				Spec: bocage.GuardrailSpec{Separate: &bocage.Separate{By: "namespace"}, Disposition: bocage.DispositionReject,
					Exceptions: bocage.ExceptionTerms{Allowed: true, Max: "2h", Approvers: []string{"group:ciso"}}}})
		}, bocage.VerdictReject, bocage.ReasonGuardrail, "Guardrail apart spec.separate", map[string]string{"disposition": "rejected"}, nil,
			[]string{"declare an Exception to Guardrail apart (spec.separate)", "no later than 2h0m0s", "group:ciso may approve it", "Guardrail pci spec.never[0]"}},
		{"an exception", box, db, 5432, func(in *compile.Input) {
			in.Guardrails[0].Spec.Exceptions.Allowed = true
			in.Exceptions = []*bocage.Exception{{ObjectMeta: bocage.ObjectMeta{Name: "audit"}, Spec: bocage.ExceptionSpec{Guardrail: "pci",
				Match: bocage.CellMatch{From: bocage.Side{Namespaces: []string{"dev"}}}, Until: policytest.Now.Add(time.Hour)}}}
		}, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny",
			map[string]string{"guardrails": "Exception audit spec.match lifts it until 2026-11-20T13:00:00Z"}, nil, nil},
		{"the same pair at another port is default deny", box, db, 5433, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny",
			nil, nil, []string{"in Application shop/db (db.yaml:1), add to spec.provides", "port: 5433", "toNamespaces: [dev]", "declare an Application dev/box", "service: shop/db"}},
		{"agreed at another port", api, db, 5433, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny",
			map[string]string{"base": `shop/api and shop/db agree on "sql", which is TCP/5432`}, nil, []string{"port: 5433"}},
		{"the provider's half is missing", web, cache, 6379, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny",
			map[string]string{"base": `shop/web consumes "redis" of shop/cache, which does not let it in`}, nil,
			[]string{"in Application shop/cache (cache.yaml:1), set spec.provides[0].to to ", "values: [api, web]"}},
		{"the consumer's half is missing", api, cache, 6379, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny",
			map[string]string{"base": `shop/cache lets shop/api in to "redis", but nothing that selects shop/api consumes it`}, nil,
			[]string{"in Application shop/api (api.yaml:1), add to spec.consumes", "{service: cache, interface: redis}"}},
		{"both halves are missing", lonely, cache, 6379, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny",
			map[string]string{"base": "neither lets shop/lonely in nor is consumed"}, nil, []string{"in Application shop/cache", "declare an Application shop/lonely"}},
		{"a refused connection meets a decoy", lonely, api, 22, nil, bocage.VerdictDecoy, bocage.ReasonDefaultDeny, "Default deny",
			map[string]string{"disposition": "meets a decoy", "scope": "enforced"}, nil, []string{"port: 22"}},
		{"to outside", web, outside, 443, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny", nil, nil,
			[]string{"in Application shop/web (web.yaml:1), add to spec.consumes", "{external: 203.0.113.9/32, port: 443}"}},
		{"from outside", outside, cache, 6379, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny", nil, nil,
			[]string{"in Application shop/cache (cache.yaml:1), add to spec.provides[0]", "toExternal: [203.0.113.9/32]"}},
		{"between strangers", outside, "198.51.100.1", 80, nil, bocage.VerdictAllow, bocage.ReasonDefaultDeny, "Default deny",
			map[string]string{"scope": "only observed"}, nil, []string{"neither end is a workload", "spec.grant"}},
		{"quarantine", web, api, 8080, quarantine, bocage.VerdictDrop, bocage.ReasonQuarantine, "Quarantine web spec.workload",
			map[string]string{"base": "allowed", "quarantine": "quarantine until 2026-11-20T13:00:00Z", "scope": "quarantine always is"}, nil,
			[]string{"bocage delete quarantine web", "wait until 2026-11-20T13:00:00Z"}},
		{"an automated quarantine", web, api, 8080, threat(bocage.LevelQuarantine, nil), bocage.VerdictDrop, bocage.ReasonQuarantine, "ThreatCondition t spec.level",
			map[string]string{"threat": "tightened: quarantine of shop/web until 2026-11-20T13:00:00Z"}, nil, []string{"bocage delete threatcondition t"}},
		{"an automated quarantine spares what is protected", web, api, 8080, threat(bocage.LevelQuarantine, protect), bocage.VerdictAllow, bocage.ReasonRule,
			"Application shop/api spec.provides[0] (api.yaml:1)", map[string]string{"protect": "protected: no threat condition"}, []string{"keep in full detail by ThreatCondition t spec.level"}, nil},
		{"and cuts off the rest", web, cache, 6379, threat(bocage.LevelQuarantine, protect), bocage.VerdictDrop, bocage.ReasonQuarantine,
			"ThreatCondition t spec.level", map[string]string{"quarantine": "everything that no guardrail protects"}, nil, []string{"bocage delete threatcondition t", "in Application shop/cache"}},
		{"a response", web, api, 8080, threat(bocage.LevelDeepen, response), bocage.VerdictReject, bocage.ReasonThreat, "Response tighten spec.then.refuseFrom[0]",
			map[string]string{"threat": "refused by a response"}, nil, []string{"bocage delete threatcondition t, to which Response tighten spec.then.refuseFrom[0] answers, or wait until"}},
		{"observed", web, db, 5433, func(in *compile.Input) { in.Scopes = nil }, bocage.VerdictAllow, bocage.ReasonDefaultDeny, "Default deny",
			map[string]string{"scope": "only observed, so the flow passes and is reported as refused"}, nil, []string{"a Scope with mode: enforce that picks shop/web or shop/db would refuse it"}},
		{"a duty that cannot be kept", api, db, 5432, func(in *compile.Input) { in.Profiles = nil }, bocage.VerdictDrop, bocage.ReasonGuardrail,
			"Guardrail pci spec.require.inspect", map[string]string{"base": "allowed", "guardrails": "the profile does not exist"}, nil, []string{"declare the InspectionProfile sql"}},
		{"an identity that is not vouched for", api, db, 5432, func(in *compile.Input) { in.Guardrails[0].Spec.Require.Assurance = "L3" }, bocage.VerdictDrop, bocage.ReasonGuardrail,
			"Guardrail pci spec.require.assurance", map[string]string{"guardrails": "not vouched for as far"}, nil, []string{"have the identity of shop/api vouched for at L3", "it is at L1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := site()
			if test.change != nil {
				test.change(&in)
			}
			f := bocage.Flow{Source: netip.MustParseAddr(test.source), Destination: netip.MustParseAddr(test.destination),
				DestinationPort: test.port, Protocol: bocage.ProtocolTCP, At: in.Now}
			e := explain.Explain(in, compile.Compile(in).Ruleset(), f)
			if e.Verdict != test.verdict || e.Reason.Code != test.code || e.Decider.String() != test.decider {
				t.Errorf("%s (%s) by %q", e.Verdict, e.Reason.Code, e.Decider)
			}
			results := map[string]string{}
			for _, l := range e.Layers {
				results[l.Name] = l.Result
			}
			if results[explain.LayerCheck] != "" || e.Generation != 4 {
				t.Errorf("generation %d: %s", e.Generation, results[explain.LayerCheck])
			}
			for name, part := range test.layers {
				if !strings.Contains(results[name], part) {
					t.Errorf("layer %s: %q lacks %q", name, results[name], part)
				}
			}
			var duties []string
			for _, d := range e.Duties {
				duties = append(duties, d.Duty+" by "+d.By.String())
			}
			if !slices.Equal(duties, test.duties) {
				t.Errorf("duties %q", duties)
			}
			for _, part := range test.missing {
				if !strings.Contains(e.Missing, part) {
					t.Errorf("missing lacks %q:\n%s", part, e.Missing)
				}
			}
		})
	}
}

// TestDisagreementIsSaid explains under a ruleset of other objects.
func TestDisagreementIsSaid(t *testing.T) {
	in := site()
	rs := compile.Compile(in).Ruleset()
	in.Applications = nil
	f := bocage.Flow{Source: netip.MustParseAddr(web), Destination: netip.MustParseAddr(api), DestinationPort: 8080, Protocol: bocage.ProtocolTCP}
	e := explain.Explain(in, rs, f)
	if last := e.Layers[len(e.Layers)-1]; last.Name != "check" || e.Verdict != bocage.VerdictAllow {
		t.Errorf("%s, %v", e.Verdict, e.Layers)
	}
}

func BenchmarkExplain(b *testing.B) {
	in := policytest.Site(100_000)
	rs, judge := compile.Compile(in).Ruleset(), explain.NewJudge(in)
	for _, test := range []struct {
		name string
		port uint16
	}{{"allowed", 8080}, {"refused", 8081}} {
		f := bocage.Flow{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddr("10.0.0.7"), DestinationPort: test.port, Protocol: bocage.ProtocolTCP}
		b.Run(test.name, func(b *testing.B) {
			judge.Explain(rs, f)
			for b.Loop() {
				judge.Explain(rs, f)
			}
		})
	}
}
