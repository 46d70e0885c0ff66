package policytest

import (
	"fmt"
	"net/netip"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// DrawNames adds what DNS names depend on: an Application for every namespace that
// consumes names at common ports, ClusterNetworkPolicies that accept them, and a
// guardrail that asks something of flows to addresses outside.
func DrawNames(t *rapid.T, in *compile.Input) {
	for _, namespace := range namespaces {
		app := &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: "names"}}
		for _, port := range []uint16{1, 22, 80, 443} {
			app.Spec.Consumes = append(app.Spec.Consumes, bocage.Consume{
				External: bocage.External{Name: rapid.SampledFrom(Names).Draw(t, "name")}, Port: port, EndPort: port + 4})
		}
		in.Applications = append(in.Applications, app)
	}
	oweAndExcept(t, in)
	rankNames(t, in)
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
		Guardrail: "outside", Reason: "drawn", Match: bocage.CellMatch{To: outside("excepted to")}, Until: Now.Add(2 * time.Minute)}})
}

// rankNames adds ClusterNetworkPolicies of both tiers that accept names, and deny or
// pass what is outside, in all orders; some stand in one place with others.
func rankNames(t *rapid.T, in *compile.Input) {
	words := []string{"api.example.com", "*.EXAMPLE.com.", "example.com", "*.b.example.com"}
	networks := []string{"0.0.0.0/0", "203.0.113.0/24", "203.0.113.128/25"}
	for i := range rapid.IntRange(0, 4).Draw(t, "ranked") {
		p := &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("ranked%d", i)}}
		priority := int32(rapid.IntRange(0, 2).Draw(t, "priority"))
		p.Spec.Tier, p.Spec.Priority = rapid.SampledFrom([]string{bocage.TierAdmin, bocage.TierAdmin, bocage.TierBaseline}).Draw(t, "tier"), &priority
		p.Spec.Subject.Namespaces = &bocage.Selector{}
		if rapid.Bool().Draw(t, "one namespace") {
			p.Spec.Subject.Namespaces.MatchLabels = map[string]string{bocage.LabelNamespaceName: rapid.SampledFrom([]string{"shop", "pay", "dev"}).Draw(t, "namespace")}
		}
		for range rapid.IntRange(1, 4).Draw(t, "rules") {
			rule := bocage.ClusterNetworkPolicyEgressRule{Action: bocage.ActionAccept}
			if rapid.Bool().Draw(t, "names") {
				at := rapid.IntRange(0, len(words)-1).Draw(t, "from")
				rule.To = append(rule.To, bocage.ClusterNetworkPolicyEgressPeer{DomainNames: words[at:rapid.IntRange(at+1, len(words)).Draw(t, "to")]})
			} else {
				rule.Action = rapid.SampledFrom([]string{bocage.ActionDeny, bocage.ActionDeny, bocage.ActionPass}).Draw(t, "action")
			}
			if rule.To == nil || rapid.IntRange(0, 7).Draw(t, "mixed") == 0 {
				rule.To = append(rule.To, bocage.ClusterNetworkPolicyEgressPeer{Networks: []string{rapid.SampledFrom(networks).Draw(t, "network")}})
			}
			if port := int32(rapid.SampledFrom([]int{0, 22, 80, 443}).Draw(t, "port")); port > 0 {
				rule.Protocols = []bocage.ClusterNetworkPolicyProtocol{{TCP: &bocage.ClusterNetworkPolicyTransport{DestinationPort: &bocage.ClusterNetworkPolicyPort{Number: &port}}}}
			}
			p.Spec.Egress = append(p.Spec.Egress, rule)
		}
		if faults := p.Validate(); len(faults) > 0 {
			t.Fatalf("%s", faults)
		}
		in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies, p)
	}
}
