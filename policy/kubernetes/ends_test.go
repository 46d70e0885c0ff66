package kubernetes_test

import (
	"net/netip"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/kubernetes"
)

// TestWhoeverAcceptsSpeaksForHisOwnEnd holds, for every pair of ends, what opens the
// destination: its own default, a rule there, or one of an administrator's policies at
// the source. The owner of a namespace opens nobody else's workloads.
func TestWhoeverAcceptsSpeaksForHisOwnEnd(t *testing.T) {
	np := func(namespace, spec string) string {
		return `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: ` + namespace + `, name: p}, spec: ` + spec + `}`
	}
	cluster := func(tier, rules string) string {
		return `{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: p}, spec: {tier: ` + tier +
			`, priority: 1, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}, egress: [` + rules + `]}}`
	}
	const both = "\n---\n"
	egress := np("shop", `{podSelector: {}, policyTypes: [Egress], egress: [{}]}`)
	ingress := np("dev", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`)
	isolated := np("dev", `{podSelector: {}}`)
	accept := `{action: Accept, to: [{namespaces: {}}]}`
	pass := `{action: Pass, to: [{namespaces: {}}]}`
	for _, test := range []struct {
		name, policies                     string
		pod, plain, fromPlain, toOutside   bool // does it reach a Pod, another workload, that from no Pod, outside
		fromPlainToPod, fromPlainToOutside bool
	}{
		{"nobody says anything", "", true, false, false, true, false, false},
		{"the source's owner lets all out", egress, true, false, false, true, true, true},
		{"the destination's owner lets all in", ingress, true, true, true, true, true, false},
		{"both owners agree", egress + both + ingress, true, true, true, true, true, true},
		{"the destination is isolated", egress + both + isolated, false, false, false, true, false, true},
		{"an administrator accepts at the source", cluster("Admin", accept), true, true, true, true, true, false},
		{"an administrator accepts there, last", cluster("Baseline", accept), true, true, true, true, true, false},
		{"an administrator passes on to the source's owner", cluster("Admin", pass) + both + egress, true, false, false, true, true, true},
		{"a Baseline comes after the source's owner", cluster("Baseline", accept) + both + egress, true, false, false, true, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCase(t, test.policies)
			in := compile.Input{NetworkPolicies: c.objects.NetworkPolicies, ClusterNetworkPolicies: c.objects.ClusterNetworkPolicies}
			workload := func(i byte, namespace, name, orchestrator string) *bocage.Workload {
				w := &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}},
					Spec:   bocage.WorkloadSpec{Host: "h", Orchestrator: orchestrator, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, i})}},
					Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)}}
				in.Workloads = append(in.Workloads, w)
				return w
			}
			web, vm := workload(1, "shop", "web", bocage.OrchestratorKubernetes), workload(2, "shop", "vm", "")
			pod, plain := workload(3, "dev", "pod", bocage.OrchestratorKubernetes), workload(4, "dev", "red", "")
			ruleset, judge := compile.Compile(in).Ruleset(), explain.NewJudge(in)
			evaluator := kubernetes.NewEvaluator(kubernetes.Objects{NetworkPolicies: in.NetworkPolicies, ClusterNetworkPolicies: in.ClusterNetworkPolicies, Workloads: in.Workloads})
			for _, flow := range []struct {
				from, to *bocage.Workload
				allowed  bool
			}{{web, pod, test.pod}, {web, plain, test.plain}, {vm, plain, test.fromPlain}, {web, nil, test.toOutside}, {vm, pod, test.fromPlainToPod}, {vm, nil, test.fromPlainToOutside}} {
				to := netip.MustParseAddr("203.0.113.9")
				if flow.to != nil {
					to = flow.to.Spec.Addresses[0]
				}
				f := bocage.Flow{Source: flow.from.Spec.Addresses[0], Destination: to, Protocol: bocage.ProtocolTCP, DestinationPort: 80}
				_, compiled := ruleset.Decide(f)
				judged := judge.Judge(f)
				evaluated := evaluator.Evaluate(kubernetes.Flow{Source: f.Source, Destination: to, From: flow.from, To: flow.to, Protocol: f.Protocol, Port: 80})
				if compiled.Would.Allowed() != flow.allowed || judged.Would.Allowed() != flow.allowed || evaluated.Allows != flow.allowed || compiled.Code != judged.Code {
					t.Errorf("%s: compiled %s (%s), judged %s (%s), evaluated %v (egress %v, ingress %v); want allowed %v", f,
						compiled.Would, compiled.Code, judged.Would, judged.Code, evaluated.Allows, evaluated.Egress, evaluated.Ingress, flow.allowed)
				}
			}
		})
	}
}
