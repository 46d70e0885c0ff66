package simulate

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// named is small with an application that consumes names, and one that consumes a
// prefix and all that is outside.
func named() compile.Input {
	in := small()
	api := in.Applications[0]
	api.Spec.Consumes = append(api.Spec.Consumes, bocage.Consume{External: bocage.External{Name: "api.example.com"}, Port: 443},
		bocage.Consume{External: bocage.External{Name: "*.example.org"}, Port: 8443, Protocol: "UDP"})
	web := in.Applications[1]
	web.Spec.Consumes = append(web.Spec.Consumes, bocage.Consume{External: bocage.ExternalPrefix(netip.MustParsePrefix("0.0.0.0/0")), Port: 80})
	in.Guardrails = append(in.Guardrails, &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "bad"}, Spec: bocage.GuardrailSpec{
		Never: []bocage.CellMatch{{To: bocage.Side{External: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}}}}})
	return in
}

func TestNamedAnswers(t *testing.T) {
	s, out := Compile(named())
	for _, f := range out.Findings() {
		if f.Rejected {
			t.Errorf("%s: %s", f.Object, f.Message)
		}
	}
	for _, test := range []struct {
		probe                             bocage.SimulateProbe
		verdict, reason, decider, missing string
	}{
		{bocage.SimulateProbe{From: "shop/api", To: "api.example.com", Port: 443}, "allow", "rule", "spec.consumes[2].external", "withdraw Application shop/api spec.consumes[2]"},
		{bocage.SimulateProbe{From: "shop/api", To: "API.Example.com.", Port: 443}, "allow", "rule", "spec.consumes[2].external", "to refuse it"},
		{bocage.SimulateProbe{From: "shop/api", To: "a.b.example.org", Port: 8443, Protocol: "UDP"}, "allow", "rule", "spec.consumes[3].external", "to refuse it"},
		{bocage.SimulateProbe{From: "shop/api", To: "example.org", Port: 8443, Protocol: "UDP"}, "deny", "default-deny", "", "external: example.org"},
		{bocage.SimulateProbe{From: "shop/api", To: "api.example.com", Port: 444}, "deny", "default-deny", "", "port: 444"},
		{bocage.SimulateProbe{From: "shop/db", To: "api.example.com", Port: 443}, "deny", "default-deny", "", "external: api.example.com"},
		// All that is outside, and what else is known of an address.
		{bocage.SimulateProbe{From: "shop/web", To: "other.example.com", Port: 80}, "allow", "rule", "spec.consumes[1].external", ""},
		{bocage.SimulateProbe{From: "shop/api", To: "192.0.2.9", Name: "api.example.com", Port: 443}, "allow", "rule", "spec.consumes[2].external", ""},
		{bocage.SimulateProbe{From: "shop/api", To: "192.0.2.9", Port: 443}, "deny", "default-deny", "", ""},
		{bocage.SimulateProbe{From: "shop/api", To: "198.51.100.9", Name: "api.example.com", Port: 443}, "deny", "guardrail", "spec.never[0]", ""},
		{bocage.SimulateProbe{From: "shop/api", To: "127.0.0.1", Name: "api.example.com", Port: 443}, "deny", "default-deny", "", ""},
		{bocage.SimulateProbe{From: "shop/api", To: "dev/web", Name: "api.example.com", Port: 443}, "deny", "default-deny", "", ""},
		{bocage.SimulateProbe{From: "198.51.100.1", To: "api.example.com", Port: 443}, "deny", "", "", ""},
	} {
		a := s.Answer(test.probe)
		if a.Error != "" || a.Verdict != test.verdict || test.reason != "" && a.Reason != test.reason || !strings.HasPrefix(test.decider, a.Decision.Field) ||
			a.Decision.Field == "" && test.decider != "" || !strings.Contains(a.Missing, test.missing) {
			t.Errorf("%+v\nanswered %+v", test.probe, a)
		}
	}
	for _, test := range []struct {
		probe bocage.SimulateProbe
		say   string
	}{
		{bocage.SimulateProbe{From: "shop/api", To: "*.example.org", Port: 443}, "is a pattern of names"},
		{bocage.SimulateProbe{From: "shop/api", To: "192.0.2.1", Name: "*.example.org", Port: 443}, "is a pattern of names"},
		{bocage.SimulateProbe{From: "shop/api", To: "192.0.2.1", Name: "no name", Port: 443}, "name: "},
		{bocage.SimulateProbe{From: "api.example.com", To: "shop/api", Port: 443}, "from: "},
		{bocage.SimulateProbe{From: "shop/api", To: "nobody", Port: 443}, "neither an address nor a workload"},
	} {
		if a := s.Answer(test.probe); !strings.Contains(a.Error, test.say) {
			t.Errorf("%+v\nanswered %+v, want %q", test.probe, a, test.say)
		}
	}
}

// A name that a ClusterNetworkPolicy accepts goes before what Kubernetes refuses later.
func TestAnswersByAcceptedNames(t *testing.T) {
	in := named()
	one, two := int32(1), int32(2)
	everyone := bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{}}
	outside := []bocage.ClusterNetworkPolicyEgressPeer{{Networks: []string{"0.0.0.0/0", "::/0"}}}
	in.ClusterNetworkPolicies = []*bocage.ClusterNetworkPolicy{
		{ObjectMeta: bocage.ObjectMeta{Name: "allowlist"}, Spec: bocage.ClusterNetworkPolicySpec{Tier: bocage.TierAdmin, Priority: &one, Subject: everyone,
			Egress: []bocage.ClusterNetworkPolicyEgressRule{
				{Action: bocage.ActionAccept, To: []bocage.ClusterNetworkPolicyEgressPeer{{DomainNames: []string{"*.cloud.example", "cloud.example"}}}},
				{Action: bocage.ActionDeny, To: outside}}}},
		{ObjectMeta: bocage.ObjectMeta{Name: "late"}, Spec: bocage.ClusterNetworkPolicySpec{Tier: bocage.TierAdmin, Priority: &two, Subject: everyone,
			Egress: []bocage.ClusterNetworkPolicyEgressRule{{Action: bocage.ActionAccept, To: []bocage.ClusterNetworkPolicyEgressPeer{{DomainNames: []string{"late.example"}}}}}}},
	}
	s, _ := Compile(in)
	for _, test := range []struct {
		probe                             bocage.SimulateProbe
		verdict, reason, decider, missing string
	}{
		{bocage.SimulateProbe{From: "shop/api", To: "a.cloud.example", Port: 443}, "allow", "kubernetes", "spec.egress[0]", "take *.cloud.example out of ClusterNetworkPolicy allowlist spec.egress[0]"},
		{bocage.SimulateProbe{From: "shop/db", To: "192.0.2.9", Name: "cloud.example", Port: 1}, "allow", "kubernetes", "spec.egress[0]", "take cloud.example out of"},
		{bocage.SimulateProbe{From: "shop/db", To: "192.0.2.9", Port: 1}, "deny", "kubernetes", "spec.egress[1]", "networks"},
		{bocage.SimulateProbe{From: "shop/db", To: "late.example", Port: 443}, "deny", "kubernetes", "spec.egress[1]", "domainNames:"},
		{bocage.SimulateProbe{From: "shop/api", To: "api.example.com", Port: 443}, "deny", "kubernetes", "spec.egress[1]", "domainNames:"},
		{bocage.SimulateProbe{From: "shop/api", To: "198.51.100.9", Name: "cloud.example", Port: 443}, "deny", "guardrail", "spec.never[0]", ""},
	} {
		a := s.Answer(test.probe)
		if a.Error != "" || a.Verdict != test.verdict || a.Reason != test.reason || a.Decision.Field != test.decider || !strings.Contains(a.Missing, test.missing) {
			t.Errorf("%+v\nanswered %+v", test.probe, a)
		}
	}
}

// Answers to probes with a name are those of DecideNamed.
func TestNamedAnswersAgreeWithTheRuleset(t *testing.T) {
	in := named()
	s, out := Compile(in)
	rs := out.Ruleset()
	names := []string{"api.example.com", "x.example.org", "example.org", "other.test"}
	addresses := []string{"192.0.2.1", "203.0.113.7", "198.51.100.3", "127.0.0.1", "10.0.0.3", "224.0.0.1"}
	allowed := 0
	for _, w := range in.Workloads {
		for _, name := range names {
			for _, to := range addresses {
				for _, port := range []uint16{80, 443, 8443} {
					for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP} {
						probe := bocage.SimulateProbe{From: w.Namespace + "/" + w.Name, To: to, Name: name, Port: port, Protocol: protocol.String()}
						f := bocage.Flow{Source: w.Spec.Addresses[0], Destination: netip.MustParseAddr(to), Protocol: protocol, DestinationPort: port, At: policytest.Now}
						_, want := rs.DecideNamed(f, bocage.DomainName(name))
						got := s.Verdict(probe)
						if (got.Verdict == "allow") != want.Would.Allowed() || got.Reason != want.Code.String() {
							t.Errorf("%+v\nanswered %+v, want %+v", probe, got, want)
						}
						if _, plain := rs.Decide(f); plain != want {
							allowed++
						}
					}
				}
			}
		}
	}
	if allowed == 0 || !slices.ContainsFunc(rs.Names, func(n bocage.Name) bool { return n.Name == "*.example.org" }) {
		t.Errorf("%d answers by names", allowed)
	}
}
