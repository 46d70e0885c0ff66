package explain_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/policytest"
)

// TestExplainNames asks about flows to names: wherever they are, and at one address.
func TestExplainNames(t *testing.T) {
	consume := func(names ...bocage.DomainName) func(*compile.Input) {
		return func(in *compile.Input) {
			for _, name := range names {
				in.Applications[0].Spec.Consumes = append(in.Applications[0].Spec.Consumes, bocage.Consume{External: bocage.External{Name: name}, Port: 443})
			}
		}
	}
	never := func(prefix string, exceptions bool) func(*compile.Input) {
		return func(in *compile.Input) {
			in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "out"}, Spec: bocage.GuardrailSpec{
				Never:      []bocage.CellMatch{{To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix(prefix)}}}},
				Exceptions: bocage.ExceptionTerms{Allowed: exceptions}}})
		}
	}
	require := func(in *compile.Input) {
		in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "look"}, Spec: bocage.GuardrailSpec{
			Match:   bocage.CellMatch{To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}},
			Require: &bocage.Duties{Inspect: "missing"}}})
	}
	one := int32(1)
	rule := func(action string, peer bocage.ClusterNetworkPolicyEgressPeer) bocage.ClusterNetworkPolicyEgressRule {
		return bocage.ClusterNetworkPolicyEgressRule{Action: action, To: []bocage.ClusterNetworkPolicyEgressPeer{peer}}
	}
	cluster := func(rules ...bocage.ClusterNetworkPolicyEgressRule) func(*compile.Input) {
		return func(in *compile.Input) {
			in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies, &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: "egress"},
				Spec: bocage.ClusterNetworkPolicySpec{Tier: bocage.TierAdmin, Priority: &one, Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{}}, Egress: rules}})
		}
	}
	names := bocage.ClusterNetworkPolicyEgressPeer{DomainNames: []string{"*.example.com"}}
	outsiders := bocage.ClusterNetworkPolicyEgressPeer{Networks: []string{"0.0.0.0/0"}}
	quarantine := func(in *compile.Input) {
		in.Quarantines = append(in.Quarantines, &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "web"},
			Spec: bocage.QuarantineSpec{Workload: "shop/web", Until: policytest.Now.Add(time.Hour)}})
	}
	all := func(changes ...func(*compile.Input)) func(*compile.Input) {
		return func(in *compile.Input) {
			for _, change := range changes {
				change(in)
			}
		}
	}
	for _, test := range []struct {
		name        string
		change      func(*compile.Input)
		to          string // empty: wherever the name is
		would       bool
		code        bocage.ReasonCode
		decider     string
		layer, near string
		missing     string
	}{
		{"consumed", consume("api.example.com"), "", true, bocage.ReasonRule, "Application shop/web spec.consumes[2] (web.yaml:1)", "opened", "allowed", "withdraw Application shop/web spec.consumes[2]"},
		{"consumed below", consume("*.example.com", "api.example.com"), "", true, bocage.ReasonRule, "Application shop/web spec.consumes[2] (web.yaml:1)", "opened", "allowed", "withdraw Application shop/web spec.consumes[2] and spec.consumes[3]"},
		{"apex", consume("*.api.example.com"), "", false, bocage.ReasonDefaultDeny, "Default deny", "nobody consumes it", "not that itself", "external: api.example.com"},
		{"other", consume("api.example.org"), "", false, bocage.ReasonDefaultDeny, "Default deny", "nobody consumes it", "no contract allows it: default deny, unless something below does", "external: api.example.com"},
		{"forbidden there", all(consume("api.example.com"), never(outside+"/32", false)), outside, false, bocage.ReasonGuardrail, "Guardrail out spec.never[0]", "stays refused", "consumes api.example.com at TCP/443", "would have to withdraw"},
		{"forbidden elsewhere", all(consume("api.example.com"), never(outside+"/32", false)), "", true, bocage.ReasonRule, "", "opened", "allowed", "withdraw"},
		{"forbidden anywhere", all(consume("api.example.com"), never("0.0.0.0/0", true)), "", false, bocage.ReasonGuardrail, "Guardrail out spec.never[0]", "stays refused", "", "0.0.0.0/0"},
		{"forbidden and not consumed", never("0.0.0.0/0", true), "", false, bocage.ReasonGuardrail, "Guardrail out spec.never[0]", "stays refused", "", "external: api.example.com"},
		{"owes the impossible", all(consume("api.example.com"), require), "", false, bocage.ReasonDefaultDeny, "Default deny", "cannot be kept", "", "declare the InspectionProfile missing"},
		{"cut off", all(consume("api.example.com"), quarantine), "", false, bocage.ReasonQuarantine, "Quarantine web spec.workload", "stays refused", "", "bocage delete quarantine web"},
		{"inside", consume("api.example.com"), db, false, bocage.ReasonDefaultDeny, "Default deny", "opens nothing inside", "", ""},
		{"this host", consume("api.example.com"), "127.0.0.1", false, bocage.ReasonDefaultDeny, "Default deny", "no name stands for 127.0.0.1", "", ""},
		{"allowed anyhow", func(in *compile.Input) {
			in.Applications[0].Spec.Consumes = append(in.Applications[0].Spec.Consumes, bocage.Consume{External: bocage.ExternalPrefix(netip.MustParsePrefix("0.0.0.0/0")), Port: 443})
		}, "", true, bocage.ReasonRule, "", "not needed", "allowed", "or declare a Guardrail with spec.never"},
		{"accepted before a deny", cluster(rule(bocage.ActionAccept, names), rule(bocage.ActionDeny, outsiders)), "", true, bocage.ReasonKubernetes, "ClusterNetworkPolicy egress spec.egress[0]", "opened", "", "withdraw ClusterNetworkPolicy egress spec.egress[0]"},
		{"accepted behind a deny", cluster(rule(bocage.ActionDeny, outsiders), rule(bocage.ActionAccept, names)), "", false, bocage.ReasonKubernetes, "ClusterNetworkPolicy egress spec.egress[0]", "comes first", "", "add before spec.egress[0]"},
		{"consumed behind a deny", all(consume("api.example.com"), cluster(rule(bocage.ActionDeny, outsiders))), "", false, bocage.ReasonKubernetes, "ClusterNetworkPolicy egress spec.egress[0]", "nobody consumes it", "", "domainNames: [api.example.com]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := site()
			test.change(&in)
			judge, address := explain.NewJudge(in), netip.MustParseAddr(test.to+strings.Repeat("192.0.2.77", 1-min(len(test.to), 1)))
			if test.to == "" {
				judge = judge.Somewhere(address, "api.example.com")
			}
			rs := compile.Compile(in).Ruleset()
			f := bocage.Flow{Source: netip.MustParseAddr(web), Destination: address, Protocol: bocage.ProtocolTCP, DestinationPort: 443, At: policytest.Now}
			e := judge.ExplainNamed(rs, f, "api.example.com")
			layers := map[string]string{}
			for _, l := range e.Layers {
				layers[l.Name] = l.Result
			}
			if e.Reason.Would.Allowed() != test.would || e.Reason.Code != test.code || test.decider != "" && e.Decider.String() != test.decider ||
				!strings.Contains(layers[explain.LayerName], test.layer) || !strings.Contains(layers[explain.LayerBase], test.near) ||
				!strings.Contains(e.Missing, test.missing) || layers[explain.LayerCheck] != "" {
				t.Errorf("%s (%s) by %s\nmissing: %s\nlayers: %q", e.Reason.Would, e.Reason.Code, e.Decider, e.Missing, layers)
			}
			if test.to == "" && (strings.Contains(e.Missing, "192.0.2.77") || !e.Anywhere) {
				t.Errorf("advises something about an address that nobody asked about: %s", e.Missing)
			}
		})
	}
}
