package explain_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/policytest"
)

// pods is three Pods: b is isolated both ways, c is closed by an administrator,
// and nobody in the Baseline tier may reach a's metrics.
func pods() compile.Input {
	in := compile.Input{Now: policytest.Now, Generation: 4}
	for i, name := range []string{"x/a", "y/b", "z/c"} {
		namespace, short, _ := strings.Cut(name, "/")
		in.Workloads = append(in.Workloads, &bocage.Workload{
			ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: short, Labels: map[string]string{"app": "app-" + short, "pod-template-hash": "5d4f7c"}},
			Spec:       bocage.WorkloadSpec{Host: "h1", Interface: fmt.Sprintf("v%d", i), Orchestrator: bocage.OrchestratorKubernetes, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}},
			Status:     bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
		})
	}
	in.Scopes = []*bocage.Scope{{ObjectMeta: bocage.ObjectMeta{Name: "all"}, Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce}}}
	in.NetworkPolicies = []*bocage.NetworkPolicy{{
		ObjectMeta: bocage.ObjectMeta{Namespace: "y", Name: "deny-all", Annotations: map[string]string{bocage.SourceAnnotation: "np.yaml:3"}},
		Spec:       bocage.NetworkPolicySpec{PolicyTypes: []string{"Ingress", "Egress"}}}}
	metrics := int32(9090)
	everybody := []bocage.ClusterNetworkPolicyIngressPeer{{Namespaces: &bocage.Selector{}}}
	cluster := func(name, tier, namespace string, protocols []bocage.ClusterNetworkPolicyProtocol) *bocage.ClusterNetworkPolicy {
		priority := int32(5)
		return &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: name}, Spec: bocage.ClusterNetworkPolicySpec{Tier: tier, Priority: &priority,
			Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{MatchLabels: map[string]string{bocage.LabelNamespaceName: namespace}}},
			Ingress: []bocage.ClusterNetworkPolicyIngressRule{{Action: bocage.ActionDeny, From: everybody, Protocols: protocols}}}}
	}
	in.ClusterNetworkPolicies = []*bocage.ClusterNetworkPolicy{
		cluster("closed", bocage.TierAdmin, "z", nil),
		cluster("metrics", bocage.TierBaseline, "x", []bocage.ClusterNetworkPolicyProtocol{{TCP: &bocage.ClusterNetworkPolicyTransport{DestinationPort: &bocage.ClusterNetworkPolicyPort{Number: &metrics}}}}),
	}
	return in
}

func TestExplainKubernetes(t *testing.T) {
	const a, b, c, outside = "10.0.0.1", "10.0.0.2", "10.0.0.3", "203.0.113.3"
	for _, test := range []struct {
		name, from, to string
		port           uint16
		decider        string
		layer, result  string
		missing        string
	}{
		{"isolated", a, b, 5432, "NetworkPolicy y/deny-all spec.podSelector (np.yaml:3)", explain.LayerPolicies, "ingress of y/b: isolated",
			"in NetworkPolicy y/deny-all (np.yaml:3), add to spec.ingress:\n  - {ports: [{protocol: TCP, port: 5432}], from: [{podSelector: {matchLabels: {app: app-a}}, namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}}}]}"},
		{"isolated from outside", outside, b, 5432, "NetworkPolicy y/deny-all spec.podSelector (np.yaml:3)", explain.LayerPolicies, "ingress of y/b: isolated",
			"from: [{ipBlock: {cidr: 203.0.113.3/32}}]"},
		{"going out of isolation", b, a, 80, "NetworkPolicy y/deny-all spec.podSelector (np.yaml:3)", explain.LayerPolicies, "egress of y/b: isolated", "add to spec.egress"},
		{"closed by an administrator", a, c, 80, "ClusterNetworkPolicy closed spec.ingress[0]", explain.LayerAdmin, "ingress of z/c: denied",
			"in ClusterNetworkPolicy closed, add before spec.ingress[0]:\n  - {action: Pass, from: [{pods: {"},
		{"both ends are closed", b, c, 80, "ClusterNetworkPolicy closed spec.ingress[0]", explain.LayerBaseline, "Together: refused, and no contract can open it", "add to spec.egress"},
		{"withheld by the baseline", c, a, 9090, "ClusterNetworkPolicy metrics spec.ingress[0]", explain.LayerBaseline, "ingress of x/a: denied", "add before spec.ingress[0]:\n  - {action: Accept"},
		{"accepted by default", c, a, 80, "Default accept", explain.LayerBaseline, "no tier decides, so Kubernetes accepts. Together: allowed", "to refuse it, declare a Guardrail with spec.never"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := pods()
			f := bocage.Flow{Source: netip.MustParseAddr(test.from), Destination: netip.MustParseAddr(test.to), DestinationPort: test.port, Protocol: bocage.ProtocolTCP, At: in.Now}
			e := explain.Explain(in, compile.Compile(in).Ruleset(), f)
			if e.Decider.String() != test.decider {
				t.Errorf("%s (%s) by %q", e.Verdict, e.Reason.Code, e.Decider)
			}
			for _, l := range e.Layers {
				if l.Name == test.layer && !strings.Contains(l.Result, test.result) || l.Name == explain.LayerCheck {
					t.Errorf("layer %s: %q lacks %q", l.Name, l.Result, test.result)
				}
			}
			if !strings.Contains(e.Missing, test.missing) || strings.Contains(e.Missing, "hash") {
				t.Errorf("missing:\n%s\nwant\n%s", e.Missing, test.missing)
			}
		})
	}
}

// TestExplainUnanswered tells why a way out is no way in: the destination, which is no
// Pod, has to accept, and what that takes.
func TestExplainUnanswered(t *testing.T) {
	in := pods()
	in.ClusterNetworkPolicies = nil
	in.NetworkPolicies = []*bocage.NetworkPolicy{{ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: "out"},
		Spec: bocage.NetworkPolicySpec{PolicyTypes: []string{"Egress"}, Egress: []bocage.NetworkPolicyEgressRule{{}}}}}
	in.Workloads[1].Spec.Orchestrator = ""
	judge := explain.NewJudge(in)
	f := bocage.Flow{Source: netip.MustParseAddr("10.0.0.1"), Destination: netip.MustParseAddr("10.0.0.2"), DestinationPort: 5432, Protocol: bocage.ProtocolTCP, At: in.Now}
	e := judge.Explain(compile.Compile(in).Ruleset(), f)
	if e.Verdict.Allowed() || e.Decider.String() != "Default deny" {
		t.Errorf("%s by %s", e.Verdict, e.Decider)
	}
	said := ""
	for _, l := range e.Layers {
		said += l.Name + ": " + l.Result + "\n"
	}
	if !strings.Contains(said, "lets it out of x/a and speaks for no other end: nobody accepts it at y/b, which is no Pod") || strings.Contains(said, explain.LayerCheck+":") {
		t.Error(said)
	}
	const want = "nobody accepts it at y/b, for which NetworkPolicy x/out spec.egress[0] does not speak: declare a NetworkPolicy y/b-accepts with spec " +
		"{podSelector: {matchLabels: {bocage.dev/name: b}}, " +
		"ingress: [{ports: [{protocol: TCP, port: 5432}], from: [{podSelector: {matchLabels: {app: app-a}}, namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}}}]}], policyTypes: [Ingress]}"
	if e.Missing != want {
		t.Errorf("missing:\n%s\nwant\n%s", e.Missing, want)
	}
	advice := judge.Advise(f)
	changes := make([]explain.Change, len(advice.Steps))
	for i, step := range advice.Steps {
		changes[i] = step.Change
	}
	if after := compile.Compile(explain.Apply(in, changes)).Ruleset(); len(changes) != 1 {
		t.Errorf("%d steps", len(changes))
	} else if verdict, _ := after.Decide(f); !verdict.Allowed() {
		t.Errorf("after %v it is still %s", changes, verdict)
	}
}
