package compile_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

func requirement(key, operator string, values ...string) bocage.Requirement {
	return bocage.Requirement{Key: key, Operator: operator, Values: values}
}

// told finds what is told about an object and a field.
func told(findings []compile.Finding, object, reason string) []compile.Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f compile.Finding) bool { return f.Object.String() != object || f.Reason != reason })
}

// TestImpossibleSelectors tells what can never match, whoever joins, and nothing
// else.
func TestImpossibleSelectors(t *testing.T) {
	for _, test := range []struct {
		name       string
		namespaces []string
		selector   bocage.Selector
		message    string // none: it could match
	}{
		{"everybody", nil, bocage.Selector{}, ""},
		{"nobody today", nil, named("gone"), ""},
		{"in and not in", nil, bocage.Selector{MatchExpressions: []bocage.Requirement{requirement("app", "In", "a"), requirement("app", "NotIn", "a")}}, "every value of the label app"},
		{"some left", nil, bocage.Selector{MatchExpressions: []bocage.Requirement{requirement("app", "In", "a", "b"), requirement("app", "NotIn", "a")}}, ""},
		{"there and not there", nil, bocage.Selector{MatchExpressions: []bocage.Requirement{requirement("app", "Exists"), requirement("app", "DoesNotExist")}}, "to be there and not to be there"},
		{"valued and not there", nil, bocage.Selector{MatchLabels: map[string]string{"app": "a"}, MatchExpressions: []bocage.Requirement{requirement("app", "DoesNotExist")}}, "to be there and not to be there"},
		{"two values", nil, bocage.Selector{MatchLabels: map[string]string{"app": "a"}, MatchExpressions: []bocage.Requirement{requirement("app", "In", "b", "c")}}, "several values at once"},
		{"not in and not there", nil, bocage.Selector{MatchExpressions: []bocage.Requirement{requirement("app", "NotIn", "a"), requirement("app", "DoesNotExist")}}, ""},
		{"without a name", nil, bocage.Selector{MatchExpressions: []bocage.Requirement{requirement(bocage.LabelName, "DoesNotExist")}}, "every workload has the label"},
		{"without a zone", nil, bocage.Selector{MatchExpressions: []bocage.Requirement{requirement(bocage.LabelZone, "DoesNotExist")}}, ""},
		{"elsewhere", []string{"shop"}, bocage.Selector{MatchLabels: map[string]string{bocage.LabelNamespace: "pay"}}, "is none of the namespaces shop"},
		{"not here", []string{"shop"}, bocage.Selector{MatchExpressions: []bocage.Requirement{requirement(bocage.LabelNamespace, "NotIn", "shop")}}, "excludes the namespaces shop"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := shop()
			side := bocage.Side{Namespaces: test.namespaces, Workload: &test.selector}
			in.Guardrails = []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: bocage.GuardrailSpec{Protect: []bocage.CellMatch{{To: side}}}}}
			found := told(compile.Compile(in).Findings(), "Guardrail g spec.protect[0].to.workload", compile.NothingMatches)
			switch {
			case test.message == "" && len(found) == 0:
			case len(found) != 1 || test.message == "" || !strings.Contains(found[0].Message, "it can never match, whoever joins") || !strings.Contains(found[0].Message, test.message):
				t.Errorf("findings: %v", found)
			}
		})
	}
}

// TestNamesThatNobodyHas and parts that exclude each other.
func TestNamesThatNobodyHas(t *testing.T) {
	guardrail := func(spec bocage.GuardrailSpec) func(*compile.Input) {
		return func(in *compile.Input) {
			in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "g"}, Spec: spec})
		}
	}
	never := func(match, never bocage.CellMatch) func(*compile.Input) {
		return guardrail(bocage.GuardrailSpec{Match: match, Never: []bocage.CellMatch{never}})
	}
	from := func(s bocage.Side) bocage.CellMatch { return bocage.CellMatch{From: s} }
	wide, narrow, other := netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("203.0.113.0/28"), netip.MustParsePrefix("198.51.100.0/24")
	for _, test := range []struct {
		name     string
		change   func(*compile.Input)
		object   string
		reason   string
		rejected bool
		message  string // none: no such finding
	}{
		{"an address group", never(bocage.CellMatch{}, from(bocage.Side{AddressGroups: []string{"gone"}})),
			"Guardrail g spec.never[0].from.addressGroups[0]", compile.UnknownAddressGroup, true, "there is no AddressGroup gone"},
		{"a zone of a condition", func(in *compile.Input) {
			c := condition(bocage.LevelWatch, after(1))
			c.Spec.Workload, c.Spec.Zone = "", "gone"
			in.ThreatConditions = append(in.ThreatConditions, c)
		}, "ThreatCondition t spec.zone", compile.UnknownZone, true, "there is no Zone gone"},
		{"an empty zone", func(in *compile.Input) {
			in.Zones = append(in.Zones, &bocage.Zone{ObjectMeta: bocage.ObjectMeta{Name: "z"}, Spec: bocage.ZoneSpec{Hosts: []string{"h9"}}})
			c := condition(bocage.LevelWatch, after(1))
			c.Spec.Workload, c.Spec.Zone = "", "z"
			in.ThreatConditions = append(in.ThreatConditions, c)
		}, "ThreatCondition t spec.zone", compile.NoWorkloads, false, "no workload stands in Zone z"},
		{"a zone of a selector", never(bocage.CellMatch{}, from(bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{bocage.LabelZone: "gone"}}})),
			"Guardrail g spec.never[0].from.workload", compile.UnknownZone, false, "there is no Zone gone"},
		{"a host in two zones", func(in *compile.Input) {
			for _, name := range []string{"a", "b"} {
				in.Zones = append(in.Zones, &bocage.Zone{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.ZoneSpec{Hosts: []string{"h1"}}})
			}
		}, "Zone b spec.hosts[0]", compile.HostTaken, true, "h1 stands in Zone a"},
		{"a response's profile", func(in *compile.Input) {
			in.Responses = append(in.Responses, responding(bocage.ResponseWhen{Level: bocage.LevelWatch}, bocage.ResponseThen{Require: &bocage.Duties{Inspect: "gone"}}))
		}, "Response r spec.then.require.inspect", compile.UnknownProfile, true, "refused until there is"},
		{"namespaces apart", never(from(bocage.Side{Namespaces: []string{"shop"}}), from(bocage.Side{Namespaces: []string{"pay"}})),
			"Guardrail g spec.never[0]", compile.NothingMatches, false, "different namespaces"},
		{"labels apart", never(from(bocage.Side{Workload: ptr(named("a"))}), from(bocage.Side{Workload: ptr(named("b"))})),
			"Guardrail g spec.never[0]", compile.NothingMatches, false, "several values at once"},
		{"ports apart", never(bocage.CellMatch{Ports: []bocage.PortMatch{{Port: 22}}}, bocage.CellMatch{Ports: []bocage.PortMatch{{Port: 80}}}),
			"Guardrail g spec.never[0]", compile.NothingMatches, false, "different ports"},
		{"addresses apart", never(from(bocage.Side{External: []netip.Prefix{wide}}), from(bocage.Side{External: []netip.Prefix{other}})),
			"Guardrail g spec.never[0]", compile.NothingMatches, false, "different addresses"},
		{"addresses that overlap", never(from(bocage.Side{External: []netip.Prefix{wide}}), from(bocage.Side{External: []netip.Prefix{narrow}})),
			"Guardrail g spec.never[0]", compile.NothingMatches, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := shop()
			test.change(&in)
			found := told(compile.Compile(in).Findings(), test.object, test.reason)
			switch {
			case test.message == "" && len(found) == 0:
			case len(found) != 1 || test.message == "" || found[0].Rejected != test.rejected || !strings.Contains(found[0].Message, test.message):
				t.Errorf("findings: %v", found)
			}
		})
	}
}

// TestProofsOfEmptiness names both authors of what refuses and what is refused.
func TestProofsOfEmptiness(t *testing.T) {
	guardrail := func(name string, spec bocage.GuardrailSpec) *bocage.Guardrail {
		return &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: spec}
	}
	to := func(app string, ports ...uint16) bocage.CellMatch {
		m := bocage.CellMatch{To: bocage.Side{Workload: ptr(named(app))}}
		for _, p := range ports {
			m.Ports = append(m.Ports, bocage.PortMatch{Port: p})
		}
		return m
	}
	ranged := func(first, last uint16) bocage.CellMatch {
		return bocage.CellMatch{Ports: []bocage.PortMatch{{Port: first, EndPort: last}}}
	}
	for _, test := range []struct {
		name       string
		guardrails []*bocage.Guardrail
		told       map[string]string // object -> a part of the message; none other is told
		rejected   string            // the object that takes no effect, if one
	}{
		{"a grant, whoever joins", []*bocage.Guardrail{
			guardrail("one", bocage.GuardrailSpec{Grant: []bocage.CellMatch{to("db", 22)}}),
			guardrail("two", bocage.GuardrailSpec{Never: []bocage.CellMatch{ranged(80, 80), ranged(20, 30)}})},
			map[string]string{
				"Guardrail one spec.grant[0]": "Guardrail one spec.grant[0] allows nothing: Guardrail two spec.never[1] refuses all of it, whoever joins",
				"Guardrail two spec.never[1]": "Guardrail one spec.grant[0] allows nothing",
			}, "Guardrail one spec.grant[0]"},
		{"a protection of nobody yet", []*bocage.Guardrail{
			guardrail("one", bocage.GuardrailSpec{Protect: []bocage.CellMatch{to("gone")}}),
			guardrail("two", bocage.GuardrailSpec{Match: to("gone"), Never: []bocage.CellMatch{{}}})},
			map[string]string{
				"Guardrail one spec.protect[0]": "protects nothing: Guardrail two spec.never[0] refuses all of it",
				"Guardrail two spec.never[0]":   "protects nothing",
			}, "Guardrail one spec.protect[0]"},
		{"a grant, by two together, today", []*bocage.Guardrail{
			guardrail("one", bocage.GuardrailSpec{Grant: []bocage.CellMatch{{To: bocage.Side{Namespaces: []string{"shop"}}, Ports: []bocage.PortMatch{{Port: 22}}}}}),
			guardrail("two", bocage.GuardrailSpec{Never: []bocage.CellMatch{to("web", 22), to("api", 22)}}),
			guardrail("three", bocage.GuardrailSpec{Never: []bocage.CellMatch{to("db")}})},
			map[string]string{
				"Guardrail one spec.grant[0]":   "Guardrail three spec.never[0], Guardrail two spec.never[0] and Guardrail two spec.never[1] together refuse all of it",
				"Guardrail two spec.never[0]":   "today",
				"Guardrail two spec.never[1]":   "today",
				"Guardrail three spec.never[0]": "today",
			}, ""},
		{"a grant with something left", []*bocage.Guardrail{
			guardrail("one", bocage.GuardrailSpec{Grant: []bocage.CellMatch{to("db", 22, 23)}}),
			guardrail("two", bocage.GuardrailSpec{Never: []bocage.CellMatch{ranged(22, 22)}})}, nil, ""},
		{"a grant of everything", []*bocage.Guardrail{
			guardrail("one", bocage.GuardrailSpec{Grant: []bocage.CellMatch{{}}}),
			guardrail("two", bocage.GuardrailSpec{Never: []bocage.CellMatch{ranged(1, 8000), ranged(8091, 65535)}})}, nil, ""},
		{"a contract, by one", []*bocage.Guardrail{
			guardrail("one", bocage.GuardrailSpec{Never: []bocage.CellMatch{to("api")}})},
			map[string]string{
				"Application shop/api spec.provides[0]": "allows nothing: Guardrail one spec.never[0] refuses all of it, whoever joins",
				"Application shop/web spec.consumes[0]": "whoever joins",
			}, ""},
		{"a contract, by two together", []*bocage.Guardrail{
			guardrail("one", bocage.GuardrailSpec{Never: []bocage.CellMatch{ranged(8000, 8085)}}),
			guardrail("two", bocage.GuardrailSpec{Never: []bocage.CellMatch{ranged(8086, 9000)}})},
			map[string]string{
				"Application shop/api spec.provides[0]": "Guardrail one spec.never[0] and Guardrail two spec.never[0] together refuse all of it",
				"Application shop/web spec.consumes[0]": "together",
				"Guardrail one spec.never[0]":           "the contract of Application shop/api spec.provides[0] with Application shop/web spec.consumes[0] allows nothing today:",
				"Guardrail two spec.never[0]":           "together",
			}, ""},
		{"a grant across what is kept apart", []*bocage.Guardrail{
			guardrail("one", bocage.GuardrailSpec{Grant: []bocage.CellMatch{{From: bocage.Side{Workload: ptr(named("web"))}, To: bocage.Side{Workload: ptr(named("db"))}}}}),
			guardrail("two", bocage.GuardrailSpec{Separate: &bocage.Separate{By: "app"}, Match: bocage.CellMatch{To: bocage.Side{Workload: ptr(named("db"))}}})},
			map[string]string{
				"Guardrail one spec.grant[0]": "Guardrail two spec.separate refuses all of it, whoever joins",
				"Guardrail two spec.separate": "allows nothing: ",
			}, "Guardrail one spec.grant[0]"},
		{"a contract, today", []*bocage.Guardrail{
			guardrail("one", bocage.GuardrailSpec{Never: []bocage.CellMatch{{To: bocage.Side{Workload: &bocage.Selector{MatchLabels: map[string]string{bocage.LabelName: "api"}}}}}})},
			map[string]string{
				"Application shop/api spec.provides[0]": "allows nothing today: Guardrail one spec.never[0] refuses all of it; narrow",
				"Application shop/web spec.consumes[0]": "allows nothing today",
			}, ""},
		{"an exception is in force", []*bocage.Guardrail{
			guardrail("one", bocage.GuardrailSpec{Grant: []bocage.CellMatch{to("db", 22)}}),
			guardrail("apart", bocage.GuardrailSpec{Never: []bocage.CellMatch{{}}, Exceptions: bocage.ExceptionTerms{Allowed: true}})}, nil, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := shop()
			in.Applications[1].Spec.Provides[0].EndPort = 8090
			in.Guardrails = test.guardrails
			in.Exceptions = []*bocage.Exception{exception("e", after(1))}
			found := slices.DeleteFunc(compile.Compile(in).Findings(), func(f compile.Finding) bool { return f.Reason != compile.Contradiction })
			for _, f := range found {
				want, expected := test.told[f.Object.String()]
				if !expected || !strings.Contains(f.Message, want) || f.Rejected != (f.Object.String() == test.rejected) {
					t.Errorf("told: %+v", f)
				}
			}
			if len(found) != len(test.told) {
				t.Errorf("%d are told, want %d: %v", len(found), len(test.told), found)
			}
		})
	}
}
