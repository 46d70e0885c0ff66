package compile_test

import (
	"fmt"
	"net/netip"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// closedNamespaces makes namespaces of one Pod each, every one closed both ways by
// a policy of its own that lets it ask for names anywhere.
func closedNamespaces(n int) compile.Input {
	in := compile.Input{Now: policytest.Now, Generation: 1}
	dns := bocage.IntOrString{Number: 53}
	for i := range n {
		namespace := fmt.Sprintf("ns%05d", i)
		in.Workloads = append(in.Workloads, &bocage.Workload{
			ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: "pod"},
			Spec: bocage.WorkloadSpec{Host: "h1", Interface: fmt.Sprintf("v%d", i), Orchestrator: bocage.OrchestratorKubernetes,
				Addresses: []netip.Addr{policyAddress(i)}},
			Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
		})
		in.NetworkPolicies = append(in.NetworkPolicies, &bocage.NetworkPolicy{
			ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: "closed"},
			Spec: bocage.NetworkPolicySpec{PolicyTypes: []string{bocage.PolicyTypeIngress, bocage.PolicyTypeEgress},
				Egress: []bocage.NetworkPolicyEgressRule{{Ports: []bocage.NetworkPolicyPort{{Protocol: "UDP", Port: &dns}}}}},
		})
	}
	return in
}

func policyAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// TestClosedNamespaces compiles ten thousand namespaces that are all closed both
// ways: a hundred million pairs have wildcards at both ends, and none of them
// needs a rule.
func TestClosedNamespaces(t *testing.T) {
	const n = 10_000
	rs := compile.Compile(closedNamespaces(n)).Ruleset()
	if len(rs.Rules) > 6*n {
		t.Errorf("%d rules for %d namespaces", len(rs.Rules), n)
	}
	outside := netip.MustParseAddr("192.0.2.1")
	for _, test := range []struct {
		name     string
		from, to netip.Addr
		protocol bocage.Protocol
		port     uint16
		want     bocage.Verdict
	}{
		{"Pod to Pod", policyAddress(1), policyAddress(2), bocage.ProtocolTCP, 80, bocage.VerdictDrop},
		{"a question to a Pod", policyAddress(1), policyAddress(2), bocage.ProtocolUDP, 53, bocage.VerdictDrop},
		{"a question outside", policyAddress(1), outside, bocage.ProtocolUDP, 53, bocage.VerdictAllow},
		{"Pod to outside", policyAddress(1), outside, bocage.ProtocolTCP, 443, bocage.VerdictDrop},
		{"outside to Pod", outside, policyAddress(9_999), bocage.ProtocolTCP, 443, bocage.VerdictDrop},
	} {
		_, reason := rs.Decide(bocage.Flow{Source: test.from, Destination: test.to, Protocol: test.protocol, DestinationPort: test.port, At: policytest.Now})
		if reason.Would != test.want || reason.Code != bocage.ReasonKubernetes {
			t.Errorf("%s: %s by %s, want %s", test.name, reason.Would, reason.Code, test.want)
		}
	}
}

// BenchmarkClosedNamespaces10k compiles them.
func BenchmarkClosedNamespaces10k(b *testing.B) {
	in := closedNamespaces(10_000)
	for b.Loop() {
		compile.Compile(in)
	}
}
