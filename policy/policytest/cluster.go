package policytest

import (
	"fmt"
	"net/netip"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Cluster is one of namespaces that each run applications of a few tiers,
// isolated as Kubernetes' own guides advise: nothing by default, then one policy
// for each tier.
func Cluster(namespaces, apps, replicas int) compile.Input {
	var in compile.Input
	n := 0
	priority := int32(10)
	for i := range namespaces {
		ns := fmt.Sprintf("ns-%03d", i)
		in.Namespaces = append(in.Namespaces, &bocage.Namespace{ObjectMeta: bocage.ObjectMeta{Name: ns, Labels: map[string]string{"team": fmt.Sprint(i % 20)}}})
		in.NetworkPolicies = append(in.NetworkPolicies, &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Namespace: ns, Name: "default-deny"},
			Spec: bocage.NetworkPolicySpec{PolicyTypes: []string{bocage.PolicyTypeIngress, bocage.PolicyTypeEgress}}})
		for j := range apps {
			app := func(k int) *bocage.Selector {
				return &bocage.Selector{MatchLabels: map[string]string{"app": fmt.Sprint((k + apps) % apps)}}
			}
			for range replicas {
				in.Workloads = append(in.Workloads, &bocage.Workload{
					ObjectMeta: bocage.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("pod-%d", n), Labels: map[string]string{"app": fmt.Sprint(j)}},
					Spec: bocage.WorkloadSpec{Host: fmt.Sprintf("node-%d", n%500), Interface: fmt.Sprintf("v%d", n), Orchestrator: bocage.OrchestratorKubernetes,
						Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})}},
					Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(n)},
				})
				n++
			}
			in.NetworkPolicies = append(in.NetworkPolicies, &bocage.NetworkPolicy{ObjectMeta: bocage.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("app-%d", j)},
				Spec: bocage.NetworkPolicySpec{PodSelector: *app(j), PolicyTypes: []string{bocage.PolicyTypeIngress, bocage.PolicyTypeEgress},
					Ingress: []bocage.NetworkPolicyIngressRule{{From: []bocage.NetworkPolicyPeer{{PodSelector: app(j - 1)}}, Ports: []bocage.NetworkPolicyPort{{Port: &bocage.IntOrString{Number: 8080}}}}},
					Egress: []bocage.NetworkPolicyEgressRule{{To: []bocage.NetworkPolicyPeer{{PodSelector: app(j + 1)}}, Ports: []bocage.NetworkPolicyPort{{Port: &bocage.IntOrString{Number: 8080}}}},
						{To: []bocage.NetworkPolicyPeer{{IPBlock: &bocage.IPBlock{CIDR: fmt.Sprintf("203.0.113.%d/32", j%8)}}}}}}})
		}
	}
	in.ClusterNetworkPolicies = append(in.ClusterNetworkPolicies, &bocage.ClusterNetworkPolicy{ObjectMeta: bocage.ObjectMeta{Name: "monitoring"},
		Spec: bocage.ClusterNetworkPolicySpec{Tier: bocage.TierAdmin, Priority: &priority, Subject: bocage.ClusterNetworkPolicySubject{Namespaces: &bocage.Selector{}},
			Ingress: []bocage.ClusterNetworkPolicyIngressRule{{Action: bocage.ActionAccept,
				From: []bocage.ClusterNetworkPolicyIngressPeer{{Namespaces: &bocage.Selector{MatchLabels: map[string]string{bocage.LabelNamespaceName: "ns-000"}}}}}}}})
	return in
}
