package kubernetes_test

import (
	"net/netip"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// TestMeetsTheRestOfPolicy holds what Kubernetes says against a guardrail that
// grants everything, and one that refuses it.
func TestMeetsTheRestOfPolicy(t *testing.T) {
	all := []bocage.CellMatch{{From: bocage.Side{Workload: &bocage.Selector{}}, To: bocage.Side{Workload: &bocage.Selector{}}}}
	grant := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "grant"}, Spec: bocage.GuardrailSpec{Grant: all}}
	never := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: "never"}, Spec: bocage.GuardrailSpec{Never: all}}
	isolation := `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: p}, spec: {podSelector: {}}}`
	cluster := func(tier, action string) string {
		return `{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: p}, spec: {tier: ` + tier +
			`, priority: 1, subject: {namespaces: {}}, ingress: [{action: ` + action + `, from: [{namespaces: {}}]}]}}`
	}
	for _, test := range []struct {
		name, policies string
		orchestrator   string
		guardrail      *bocage.Guardrail
		verdict        bocage.Verdict
		code           bocage.ReasonCode
		by             string
	}{
		{"Pods by default", "", "kubernetes", nil, bocage.VerdictAllow, bocage.ReasonKubernetes, ""},
		{"others by default", "", "", nil, bocage.VerdictDrop, bocage.ReasonDefaultDeny, ""},
		{"others, accepted", cluster("Baseline", "Accept"), "", nil, bocage.VerdictAllow, bocage.ReasonKubernetes, "ClusterNetworkPolicy p spec.ingress[0]"},
		{"isolation", isolation, "kubernetes", nil, bocage.VerdictDrop, bocage.ReasonKubernetes, "NetworkPolicy x/p spec.podSelector"},
		{"isolation gives way to a grant", isolation, "kubernetes", grant, bocage.VerdictAllow, bocage.ReasonRule, "Guardrail grant spec.grant[0]"},
		{"a Baseline Deny", cluster("Baseline", "Deny"), "kubernetes", nil, bocage.VerdictDrop, bocage.ReasonKubernetes, "ClusterNetworkPolicy p spec.ingress[0]"},
		{"a Baseline Deny gives way to a grant", cluster("Baseline", "Deny"), "kubernetes", grant, bocage.VerdictAllow, bocage.ReasonRule, "Guardrail grant spec.grant[0]"},
		{"an Admin Deny does not", cluster("Admin", "Deny"), "kubernetes", grant, bocage.VerdictDrop, bocage.ReasonKubernetes, "ClusterNetworkPolicy p spec.ingress[0]"},
		{"a guardrail beats an Admin Accept", cluster("Admin", "Accept"), "kubernetes", never, bocage.VerdictDrop, bocage.ReasonGuardrail, "Guardrail never spec.never[0]"},
		{"a guardrail beats the default", "", "kubernetes", never, bocage.VerdictDrop, bocage.ReasonGuardrail, "Guardrail never spec.never[0]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCase(t, test.policies)
			in := compile.Input{NetworkPolicies: c.objects.NetworkPolicies, ClusterNetworkPolicies: c.objects.ClusterNetworkPolicies}
			for i, name := range []string{"a", "b"} {
				in.Workloads = append(in.Workloads, &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: name, Labels: map[string]string{"app": name}},
					Spec:   bocage.WorkloadSpec{Host: "h", Orchestrator: test.orchestrator, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}},
					Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)}})
			}
			if test.guardrail != nil {
				in.Guardrails = []*bocage.Guardrail{test.guardrail}
			}
			ruleset := compile.Compile(in).Ruleset()
			_, reason := ruleset.Decide(bocage.Flow{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddr("10.0.0.2"), Protocol: bocage.ProtocolTCP, DestinationPort: 80})
			decision, _ := ruleset.Decision(reason.Decision)
			by := ""
			if len(decision.By) > 0 {
				by = decision.By[0].String()
			}
			if reason.Would != test.verdict || reason.Code != test.code || by != test.by {
				t.Errorf("%s %s by %q, want %s %s by %q", reason.Would, reason.Code, by, test.verdict, test.code, test.by)
			}
		})
	}
}

// TestFindings names what takes no effect, or less than its author may think.
func TestFindings(t *testing.T) {
	c := newCase(t, `
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: nobody}, spec: {podSelector: {matchLabels: {a: b}}}}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: names},
 spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{namespaces: {}}, {domainNames: [example.org]}, {domainNames: [a.example, 192.0.2.1]}]}]}}
`)
	out := compile.Compile(compile.Input{NetworkPolicies: c.objects.NetworkPolicies, ClusterNetworkPolicies: c.objects.ClusterNetworkPolicies})
	want := []compile.Finding{
		{Object: bocage.Ref{Kind: "ClusterNetworkPolicy", Name: "names", Field: "spec.egress[0].to[2].domainNames"}, Reason: compile.UnknownDomainName, Rejected: true},
		{Object: bocage.Ref{Kind: "ClusterNetworkPolicy", Name: "names", Field: "spec.subject"}, Reason: compile.NoWorkloads},
		{Object: bocage.Ref{Kind: "NetworkPolicy", Namespace: "x", Name: "nobody", Field: "spec.podSelector"}, Reason: compile.NoWorkloads},
	}
	if len(out.Findings()) != len(want) {
		t.Fatalf("%d findings, want %d: %v", len(out.Findings()), len(want), out.Findings())
	}
	for i, f := range out.Findings() {
		if f.Message == "" {
			t.Errorf("%v says nothing", f.Object)
		}
		f.Message = ""
		if f != want[i] {
			t.Errorf("finding %d is %v, want %v", i, f, want[i])
		}
	}
}
