package prove

import (
	"fmt"
	"net/netip"
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

// onHosts and inZones are flows between two hosts, and between two zones.
func onHosts(from, to string) bocage.CellMatch { return between(bocage.LabelHost, from, to) }

func inZones(from, to string) bocage.CellMatch { return between(bocage.LabelZone, from, to) }

func between(key, from, to string) bocage.CellMatch {
	return bocage.CellMatch{From: bocage.Side{Workload: selecting(key, "In", from)}, To: bocage.Side{Workload: selecting(key, "In", to)}}
}

// TestImaginesEveryMeeting finds, for guardrails of many shapes, a flow that no
// existing workload could make, and none where there can be none.
func TestImaginesEveryMeeting(t *testing.T) {
	for _, test := range []struct {
		name      string
		guardrail bocage.GuardrailSpec
		zones     [][]string // hosts of z1, z2 ...
		possible  bool
	}{
		{"by a label that the contract leaves open", bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: bocage.Side{Workload: selecting("env", "In", "dev")}}}}, nil, true},
		{"by a label that is not there", bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: bocage.Side{Workload: selecting("env", "DoesNotExist")}}}}, nil, true},
		{"by another value", bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: bocage.Side{Workload: selecting("env", "NotIn", "prod")}}}}, nil, true},
		{"by a class of data", bocage.GuardrailSpec{Match: bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}}, Never: []bocage.CellMatch{{}}}, nil, true},
		{"at the port", bocage.GuardrailSpec{Never: []bocage.CellMatch{{Ports: []bocage.PortMatch{{Port: 5000, EndPort: 6000}}}}}, nil, true},
		{"at another port", bocage.GuardrailSpec{Never: []bocage.CellMatch{{Ports: []bocage.PortMatch{{Port: 80}}}}}, nil, false},
		{"to another application", bocage.GuardrailSpec{Never: []bocage.CellMatch{{To: bocage.Side{Workload: selecting("app", "NotIn", "db")}}}}, nil, false},
		{"in another namespace", bocage.GuardrailSpec{Never: []bocage.CellMatch{{To: bocage.Side{Namespaces: []string{"pay"}}}}}, nil, false},
		{"by what is there and is not", bocage.GuardrailSpec{Match: bocage.CellMatch{From: bocage.Side{Workload: selecting("x", "Exists")}},
			Never: []bocage.CellMatch{{From: bocage.Side{Workload: selecting("x", "DoesNotExist")}}}}, nil, false},
		{"between environments", bocage.GuardrailSpec{Separate: &bocage.Separate{By: "env"}}, nil, true},
		{"between namespaces", bocage.GuardrailSpec{Separate: &bocage.Separate{By: "namespace"}}, nil, false},
		{"a duty", bocage.GuardrailSpec{Match: bocage.CellMatch{To: bocage.Side{Data: []string{"pci"}}}, Require: &bocage.Duties{Log: "full", Rate: "5/s"}}, nil, true},
		{"between zones, where there is none", bocage.GuardrailSpec{Separate: &bocage.Separate{By: "zone"}}, nil, false},
		{"between a zone and none", bocage.GuardrailSpec{Separate: &bocage.Separate{By: "zone"}}, [][]string{{"h1"}}, true},
		{"between zones on hosts of one", bocage.GuardrailSpec{Match: onHosts("h1", "h2"), Separate: &bocage.Separate{By: "zone"}}, [][]string{{"h1", "h2"}, {"h3"}}, false},
		{"between zones on hosts that two list", bocage.GuardrailSpec{Match: onHosts("h1", "h2"), Separate: &bocage.Separate{By: "zone"}}, [][]string{{"h1", "h2"}, {"h2"}}, false},
		{"between zones on hosts of two", bocage.GuardrailSpec{Match: onHosts("h1", "h2"), Separate: &bocage.Separate{By: "zone"}}, [][]string{{"h1"}, {"h2"}}, true},
		{"between zones on hosts of one and of none", bocage.GuardrailSpec{Match: onHosts("h1", "h2"), Separate: &bocage.Separate{By: "zone"}}, [][]string{{"h2"}}, true},
		{"between zones on hosts of none", bocage.GuardrailSpec{Match: onHosts("h1", "h2"), Separate: &bocage.Separate{By: "zone"}}, [][]string{{"h3"}}, false},
		{"between zones on one host of two", bocage.GuardrailSpec{Match: onHosts("h1", "h1"), Separate: &bocage.Separate{By: "zone"}}, [][]string{{"h1"}, {"h2"}}, false},
		{"between hosts", bocage.GuardrailSpec{Separate: &bocage.Separate{By: bocage.LabelHost}}, [][]string{{"h1"}}, true},
		{"between hosts of a zone", bocage.GuardrailSpec{Match: inZones("z1", "z1"), Separate: &bocage.Separate{By: bocage.LabelHost}}, [][]string{{"h1", "h2", "h3"}}, true},
		{"between hosts of a zone of one", bocage.GuardrailSpec{Match: inZones("z1", "z1"), Separate: &bocage.Separate{By: bocage.LabelHost}}, [][]string{{"h1"}, {"h2"}}, false},
		{"between names of other workloads", bocage.GuardrailSpec{Match: bocage.CellMatch{From: bocage.Side{Workload: selecting(bocage.LabelName, "NotIn", "a")},
			To: bocage.Side{Workload: selecting(bocage.LabelName, "NotIn", "b")}}, Never: []bocage.CellMatch{{}}}, nil, true},
		{"by assurances that there are none of", bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: bocage.Side{Workload: selecting(bocage.LabelAssurance, "NotIn", "L0", "L1", "L2", "L3", "L4", "L5")}}}}, nil, false},
		{"by no name", bocage.GuardrailSpec{Never: []bocage.CellMatch{{From: bocage.Side{Workload: selecting(bocage.LabelName, "In", "")}}}}, nil, false},
		{"between assurances", bocage.GuardrailSpec{Separate: &bocage.Separate{By: bocage.LabelAssurance}}, nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := contract()
			in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: test.guardrail}}
			for i, hosts := range test.zones {
				in.Zones = append(in.Zones, &bocage.Zone{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("z%d", i+1)}, Spec: bocage.ZoneSpec{Hosts: hosts}})
			}
			witnesses := 0
			for _, o := range obligations(in) {
				for _, a := range allowances(in) {
					w, found := imagine(vocabularyOf(in).near(o, a), o, a)
					if !found {
						continue
					}
					witnesses++
					world := newWorld(in, []witness{w})
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

// TestImaginesAddresses finds an address wherever there is one: in a prefix of which
// others are parts, and beside where imagined workloads are.
func TestImaginesAddresses(t *testing.T) {
	prefixes := func(texts ...string) []netip.Prefix {
		var out []netip.Prefix
		for _, text := range texts {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	for _, test := range []struct {
		name                   string
		consumed, kept, lifted []netip.Prefix
		possible               bool
	}{
		{"in a half", prefixes("192.0.2.0/24"), prefixes("192.0.2.0/25", "192.0.2.128/25"), prefixes("192.0.2.0/25"), true},
		{"in no half", prefixes("192.0.2.0/24"), prefixes("192.0.2.0/24"), prefixes("192.0.2.0/25", "192.0.2.128/25"), false},
		{"in the part that is left", prefixes("192.0.2.0/24"), prefixes("192.0.2.0/24"), prefixes("192.0.2.0/25", "192.0.2.128/26", "192.0.2.192/27", "192.0.2.240/28"), true},
		{"everywhere", prefixes("0.0.0.0/0"), prefixes("0.0.0.0/1", "128.0.0.0/1", "::/0"), prefixes("128.0.0.0/1"), true},
		{"in the other version", prefixes("0.0.0.0/0"), prefixes("::/0"), nil, false},
		{"where imagined workloads are", prefixes("100.64.0.1/32"), prefixes("100.64.0.1/32"), nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := contract()
			for i, p := range test.consumed {
				in.Applications[0].Spec.Consumes[i] = bocage.Consume{External: bocage.ExternalPrefix(p), Port: 443}
			}
			in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: bocage.GuardrailSpec{
				Never: []bocage.CellMatch{{To: bocage.Side{External: test.kept}}}, Exceptions: bocage.ExceptionTerms{Allowed: true}}}}
			if len(test.lifted) > 0 {
				in.Exceptions = []*bocage.Exception{{ObjectMeta: bocage.ObjectMeta{Name: "e"}, Spec: bocage.ExceptionSpec{
					Guardrail: "g", Match: bocage.CellMatch{To: bocage.Side{External: test.lifted}}, Until: in.Now.Add(time.Hour)}}}
			}
			o, a := obligations(in)[0], allowances(in)[0]
			w, found := imagine(vocabularyOf(in).near(o, a), o, a)
			if found != test.possible {
				t.Fatalf("imagined: %t", found)
			}
			if !found {
				return
			}
			in.Guardrails, in.Exceptions = nil, nil
			if counter := refute(in, []witness{w}); !strings.Contains(counter, "would get allow") {
				t.Errorf("without the guardrail the counterexample is %q", counter)
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
	o, a := obligations(in)[0], allowances(in)[0]
	w, found := imagine(vocabularyOf(in).near(o, a), o, a)
	if !found {
		t.Fatal("no flow is imagined")
	}
	in.Guardrails = nil
	if counter := refute(in, []witness{w}); !strings.Contains(counter, "env=dev") {
		t.Errorf("the counterexample is %q", counter)
	}
}
