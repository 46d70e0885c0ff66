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
	for _, test := range []struct {
		name                string
		source, destination string
		port                uint16
		change              func(*compile.Input)
		verdict             bocage.Verdict
		code                bocage.ReasonCode
		decider             string
		layers              []string // a part of each layer's result
		duties              []string
		missing             []string // parts
	}{
		{"a whole contract", web, api, 8080, nil, bocage.VerdictAllow, bocage.ReasonRule, "Application shop/api spec.provides[0] (api.yaml:1)",
			[]string{"allowed", "no objection", "no condition", "passed on", "nothing to enforce"}, nil, []string{"withdraw Application shop/api spec.provides[0]"}},
		{"a contract with duties", api, db, 5432, nil, bocage.VerdictInspect, bocage.ReasonRule, "Application shop/db spec.provides[0] (db.yaml:1)",
			[]string{"allowed", "with duties", "no condition", "inspection with sql", "nothing"},
			[]string{"inspect with sql by Guardrail pci spec.require.inspect", "keep in full detail by Guardrail pci spec.require.log"}, nil},
		{"a guardrail", box, db, 5432, nil, bocage.VerdictDrop, bocage.ReasonGuardrail, "Guardrail pci spec.never[0]",
			[]string{"default deny", "no contract can open it", "no condition", "dropped", "enforced"}, nil, []string{"Guardrail pci spec.never[0]"}},
		{"the same pair at another port is default deny", box, db, 5433, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny",
			nil, nil, []string{"in Application shop/db, add to spec.provides", "port: 5433", "toNamespaces: [dev]", "declare an Application dev/box", "service: shop/db"}},
		{"the provider's half is missing", web, cache, 6379, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny",
			[]string{`shop/web consumes "redis" of shop/cache, which does not let it in`}, nil, []string{"in Application shop/cache, set spec.provides[0] to:", "values: [api, web]"}},
		{"the consumer's half is missing", api, cache, 6379, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny",
			[]string{`shop/cache lets shop/api in to "redis", but nothing that selects shop/api consumes it`}, nil,
			[]string{"in Application shop/api, add to spec.consumes", "{service: cache, interface: redis}"}},
		{"both halves are missing", lonely, cache, 6379, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny",
			[]string{"neither lets shop/lonely in nor is consumed"}, nil, []string{"in Application shop/cache", "declare an Application shop/lonely"}},
		{"a refused connection meets a decoy", lonely, api, 22, nil, bocage.VerdictDecoy, bocage.ReasonDefaultDeny, "Default deny",
			[]string{"default deny", "no objection", "no condition", "meets a decoy", "enforced"}, nil, []string{"port: 22"}},
		{"to outside", web, outside, 443, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny", nil, nil,
			[]string{"in Application shop/web, add to spec.consumes", "{external: 203.0.113.9/32, port: 443}"}},
		{"from outside", outside, cache, 6379, nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, "Default deny", nil, nil,
			[]string{"in Application shop/cache, add to spec.provides[0]", "toExternal: [203.0.113.9/32]"}},
		{"between strangers", outside, "198.51.100.1", 80, nil, bocage.VerdictAllow, bocage.ReasonDefaultDeny, "Default deny",
			[]string{"", "", "", "", "only observed"}, nil, []string{"neither end is a workload"}},
		{"quarantine", web, api, 8080, quarantine, bocage.VerdictDrop, bocage.ReasonQuarantine, "Quarantine web spec.workload",
			[]string{"allowed", "", "quarantine until 2026-11-20T13:00:00Z", "", "quarantine always is"}, nil, []string{"bocage delete quarantine web", "wait until 2026-11-20T13:00:00Z"}},
		{"observed", web, db, 5433, func(in *compile.Input) { in.Scopes = nil }, bocage.VerdictAllow, bocage.ReasonDefaultDeny, "Default deny",
			[]string{"default deny", "", "", "", "only observed"}, nil, []string{"a Scope with mode: enforce that picks shop/web or shop/db would refuse it"}},
		{"a duty that cannot be kept", api, db, 5432, func(in *compile.Input) { in.Profiles = nil }, bocage.VerdictDrop, bocage.ReasonGuardrail,
			"Guardrail pci spec.require.inspect", []string{"allowed", "the profile does not exist"}, nil, []string{"declare the InspectionProfile"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := site()
			if test.change != nil {
				test.change(&in)
			}
			f := bocage.Flow{Source: netip.MustParseAddr(test.source), Destination: netip.MustParseAddr(test.destination),
				DestinationPort: test.port, Protocol: bocage.ProtocolTCP, At: in.Now}
			e := explain.Explain(in, compile.Compile(in).Ruleset, f)
			if e.Verdict != test.verdict || e.Reason.Code != test.code || e.Decider.String() != test.decider {
				t.Errorf("%s (%s) by %q", e.Verdict, e.Reason.Code, e.Decider)
			}
			if len(e.Layers) != 5 || e.Generation != 4 {
				t.Errorf("generation %d, layers %v", e.Generation, e.Layers)
			}
			for i, part := range test.layers {
				if !strings.Contains(e.Layers[i].Result, part) {
					t.Errorf("layer %s: %q lacks %q", e.Layers[i].Name, e.Layers[i].Result, part)
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

// TestMissingIsEnough follows the advice on halves of contracts, which then are whole.
func TestMissingIsEnough(t *testing.T) {
	in := site()
	f := bocage.Flow{Source: netip.MustParseAddr(web), Destination: netip.MustParseAddr(cache), DestinationPort: 6379, Protocol: bocage.ProtocolTCP}
	e := explain.Explain(in, compile.Compile(in).Ruleset, f)
	if want := "to: {matchExpressions: [{key: app, operator: In, values: [api, web]}]}"; !strings.Contains(e.Missing, want) {
		t.Fatalf("advice: %s", e.Missing)
	}
	in.Applications[3].Spec.Provides[0].To = bocage.Selector{MatchExpressions: []bocage.Requirement{{Key: "app", Operator: "In", Values: []string{"api", "web"}}}}
	if e = explain.Explain(in, compile.Compile(in).Ruleset, f); e.Verdict != bocage.VerdictAllow {
		t.Errorf("after the change: %s", e.Verdict)
	}
}

// TestDisagreementIsSaid explains under a ruleset of other objects.
func TestDisagreementIsSaid(t *testing.T) {
	in := site()
	rs := compile.Compile(in).Ruleset
	in.Applications = nil
	f := bocage.Flow{Source: netip.MustParseAddr(web), Destination: netip.MustParseAddr(api), DestinationPort: 8080, Protocol: bocage.ProtocolTCP}
	e := explain.Explain(in, rs, f)
	if last := e.Layers[len(e.Layers)-1]; last.Name != "check" || e.Verdict != bocage.VerdictAllow {
		t.Errorf("%s, %v", e.Verdict, e.Layers)
	}
}

func BenchmarkExplain(b *testing.B) {
	in := policytest.Site(10_000)
	rs, judge := compile.Compile(in).Ruleset, explain.NewJudge(in)
	f := bocage.Flow{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddr("10.0.0.7"), DestinationPort: 8080, Protocol: bocage.ProtocolTCP}
	judge.Explain(rs, f)
	for b.Loop() {
		judge.Explain(rs, f)
	}
}
