package prove

import (
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// contract is a policy in which consumer and provider differ in nothing that
// exists: no workload is there.
func contract() compile.Input {
	return compile.Input{Generation: 1, Now: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC), Applications: []*bocage.Application{
		{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: bocage.ApplicationSpec{
			Workload: bocage.Selector{MatchLabels: map[string]string{"app": "web"}}, Consumes: []bocage.Consume{{Service: "db"}}}},
		{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: bocage.ApplicationSpec{
			Workload: bocage.Selector{MatchLabels: map[string]string{"app": "db"}},
			Provides: []bocage.Provide{{Name: "sql", Port: 5432, Data: []string{"pci"}}}}},
	}}
}

func selecting(key string, operator string, values ...string) *bocage.Selector {
	return &bocage.Selector{MatchExpressions: []bocage.Requirement{{Key: key, Operator: operator, Values: values}}}
}

// TestImaginesEveryMeeting finds, for guardrails of many shapes, a flow that no
// existing workload could make, and none where there can be none.
func TestImaginesEveryMeeting(t *testing.T) {
	for _, test := range []struct {
		name      string
		guardrail bocage.GuardrailSpec
		possible  bool
	}{
		{"by a label that the contract leaves open", bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: bocage.Side{Workload: selecting("env", "In", "dev")}}}}, true},
		{"by a label that is not there", bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: bocage.Side{Workload: selecting("env", "DoesNotExist")}}}}, true},
		{"by another value", bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: bocage.Side{Workload: selecting("env", "NotIn", "prod")}}}}, true},
		{"by a class of data", bocage.GuardrailSpec{Match: bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}}, Never: []bocage.CellMatch{{}}}, true},
		{"at the port", bocage.GuardrailSpec{Never: []bocage.CellMatch{{Ports: []bocage.PortMatch{{Port: 5000, EndPort: 6000}}}}}, true},
		{"at another port", bocage.GuardrailSpec{Never: []bocage.CellMatch{{Ports: []bocage.PortMatch{{Port: 80}}}}}, false},
		{"to another application", bocage.GuardrailSpec{Never: []bocage.CellMatch{{To: bocage.Side{Workload: selecting("app", "NotIn", "db")}}}}, false},
		{"in another namespace", bocage.GuardrailSpec{Never: []bocage.CellMatch{{To: bocage.Side{Namespaces: []string{"pay"}}}}}, false},
		{"by what is there and is not", bocage.GuardrailSpec{Match: bocage.CellMatch{From: bocage.Side{Workload: selecting("x", "Exists")}},
			Never: []bocage.CellMatch{{From: bocage.Side{Workload: selecting("x", "DoesNotExist")}}}}, false},
		{"between environments", bocage.GuardrailSpec{Separate: &bocage.Separate{By: "env"}}, true},
		{"between namespaces", bocage.GuardrailSpec{Separate: &bocage.Separate{By: "namespace"}}, false},
		{"a duty", bocage.GuardrailSpec{Match: bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}}, Require: &bocage.Duties{Log: "full", Rate: "5/s"}}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := contract()
			in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: test.guardrail}}
			witnesses := 0
			for _, o := range obligations(in) {
				for _, a := range allowings(in) {
					w, found := imagine(vocabularyOf(in).near(o, a), o, a)
					if !found {
						continue
					}
					witnesses++
					world := newImagination(in)
					flow, _ := world.place(w)
					calm := world.in
					calm.Guardrails = nil
					if _, reason := compile.Compile(calm).Ruleset().Decide(flow); !reason.Would.Allowed() {
						t.Errorf("%s -> %s %s/%d is not what the contract allows", w.from, w.to, w.protocol, w.port)
					}
				}
			}
			if (witnesses > 0) != test.possible {
				t.Errorf("%d witnesses, possible: %v", witnesses, test.possible)
			}
			if p := new(future).prove(in); !p.Holds {
				t.Error(p.Counterexample)
			}
		})
	}
}

// TestFutureIsRefuted gives the solver's witnesses to a compiler that has lost
// the guardrail.
func TestFutureIsRefuted(t *testing.T) {
	in := contract()
	in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: bocage.GuardrailSpec{
		Never: []bocage.CellMatch{{From: bocage.Side{Workload: selecting("env", "In", "dev")}}}}}}
	o, a := obligations(in)[0], allowings(in)[0]
	w, found := imagine(vocabularyOf(in).near(o, a), o, a)
	if !found {
		t.Fatal("no flow is imagined")
	}
	in.Guardrails = nil
	if counter := refute(in, []witness{w}); !strings.Contains(counter, "env=dev") {
		t.Errorf("the counterexample is %q", counter)
	}
}
