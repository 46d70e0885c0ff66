package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/kubernetes"
)

// end is one direction of a flow as Kubernetes' policies see it: whom they are
// about, and who is on the other side.
type end struct {
	kubernetes.Direction
	ingress     bool
	subject     party
	peer        party
	name        bocage.DomainName // by which the peer is to be known, if it is
	protocol    bocage.Protocol
	port        uint16
	named, list string // "ingress" and "spec.ingress"
}

func (g *Judgement) ends(f bocage.Flow) []end {
	return []end{
		{g.Kubernetes.Egress, false, g.Source, g.Destination, "", f.Protocol, f.DestinationPort, "egress", "spec.egress"},
		{g.Kubernetes.Ingress, true, g.Destination, g.Source, "", f.Protocol, f.DestinationPort, "ingress", "spec.ingress"},
	}
}

// clearAdmin has rules of the Admin tier pass this flow on, or be withdrawn.
func (j *Judge) clearAdmin(g *Judgement, f bocage.Flow) []Step {
	var steps []Step
	for _, e := range g.ends(f) {
		if e.Outcome != kubernetes.OutcomeDenyAdmin {
			continue
		}
		step, ok := j.with(changesOf(steps)).before(e, bocage.ActionPass)
		if !ok {
			return nil
		}
		steps = append(steps, step)
	}
	return steps
}

// acceptByKubernetes has each end that withholds the flow accept it, in
// Kubernetes' own words.
func (j *Judge) acceptByKubernetes(g *Judgement, f bocage.Flow) []Step {
	var steps []Step
	for _, e := range g.ends(f) {
		now := j.with(changesOf(steps))
		var step Step
		var ok bool
		switch e.Outcome {
		case kubernetes.OutcomeIsolated:
			step, ok = now.acceptIn(e)
		case kubernetes.OutcomeDenyBaseline:
			step, ok = now.before(e, bocage.ActionAccept)
		default:
			continue
		}
		if !ok {
			return nil
		}
		steps = append(steps, step)
	}
	return steps
}

// acceptIn adds a rule to the first NetworkPolicy that isolates the subject.
func (j *Judge) acceptIn(e end) (Step, bool) {
	policy, ok := j.networkPolicy(e.By[0].Namespace, e.By[0].Name)
	if !ok {
		return Step{}, false
	}
	after := *policy
	peer, ports := e.networkPeer(policy.Namespace), e.networkPorts()
	var rule any
	if e.ingress {
		r := bocage.NetworkPolicyIngressRule{From: []bocage.NetworkPolicyPeer{peer}, Ports: ports}
		after.Spec.Ingress, rule = append(slices.Clone(after.Spec.Ingress), r), r
	} else {
		r := bocage.NetworkPolicyEgressRule{To: []bocage.NetworkPolicyPeer{peer}, Ports: ports}
		after.Spec.Egress, rule = append(slices.Clone(after.Spec.Egress), r), r
	}
	return Step{Change{Object: &after}, fmt.Sprintf("in NetworkPolicy %s%s, add to %s:\n  - %s%s", policy.NamespacedName(), from(policy), e.list, flowYAML(rule), e.wider())}, true
}

// networkPeer is the other end, to a NetworkPolicy in a namespace.
func (e end) networkPeer(namespace string) bocage.NetworkPolicyPeer {
	w := e.peer.workload
	if w == nil {
		return bocage.NetworkPolicyPeer{IPBlock: &bocage.IPBlock{CIDR: host(e.peer.address).String()}}
	}
	pods := podSelector(w)
	peer := bocage.NetworkPolicyPeer{PodSelector: &pods}
	if w.Namespace != namespace {
		peer.NamespaceSelector = &bocage.Selector{MatchLabels: map[string]string{bocage.LabelNamespaceName: w.Namespace}}
	}
	return peer
}

func (e end) networkPorts() []bocage.NetworkPolicyPort {
	if !e.protocol.HasPorts() {
		return nil
	}
	return []bocage.NetworkPolicyPort{{Protocol: bocage.NetworkProtocol(e.protocol.String()), Port: &bocage.IntOrString{Number: int32(e.port)}}}
}

// answer has the destination accept what the source's policies let out, by a policy of
// its own. That isolates it, which takes nothing away: it is closed by default, and no
// ClusterNetworkPolicy speaks for it.
func (j *Judge) answer(g *Judgement, f bocage.Flow) []Step {
	if len(j.in.ClusterNetworkPolicies) > 0 {
		return nil
	}
	e := g.ends(f)[1]
	w := e.subject.workload
	base := w.Name[:min(len(w.Name), 200)] + "-accepts"
	name := base
	for n := 2; ; n++ {
		if _, taken := j.networkPolicy(w.Namespace, name); !taken {
			break
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
	policy := &bocage.NetworkPolicy{TypeMeta: bocage.TypeMeta{APIVersion: bocage.NetworkPolicyAPIVersion, Kind: "NetworkPolicy"},
		ObjectMeta: bocage.ObjectMeta{Namespace: w.Namespace, Name: name},
		Spec: bocage.NetworkPolicySpec{PodSelector: itself(w), PolicyTypes: []string{bocage.PolicyTypeIngress},
			Ingress: []bocage.NetworkPolicyIngressRule{{From: []bocage.NetworkPolicyPeer{e.networkPeer(w.Namespace)}, Ports: e.networkPorts()}}}}
	return []Step{{Change{Object: policy}, fmt.Sprintf("nobody accepts it at %s, for which %s does not speak: declare a NetworkPolicy %s with spec %s%s",
		e.subject, refList(g.Kubernetes.Egress.By), policy.NamespacedName(), flowYAML(policy.Spec), e.wider())}}
}

// podSelector names a workload's kind as its own labels do.
func podSelector(w *bocage.Workload) bocage.Selector {
	for _, key := range []string{"app.kubernetes.io/name", "app", "k8s-app"} {
		if value, ok := w.Labels[key]; ok {
			return bocage.Selector{MatchLabels: map[string]string{key: value}}
		}
	}
	labels := map[string]string{}
	for key, value := range w.Labels {
		if !perInstance(key) {
			labels[key] = value
		}
	}
	switch {
	case len(labels) > 0:
		return bocage.Selector{MatchLabels: labels}
	case w.Spec.Orchestrator == bocage.OrchestratorKubernetes:
		return bocage.Selector{} // a cluster knows no label by which a Pod's name could be meant
	}
	return itself(w)
}

// wider says of a Pod without labels of its own that it is not meant alone.
func (e end) wider() string {
	w := e.peer.workload
	if w == nil || w.Spec.Orchestrator != bocage.OrchestratorKubernetes {
		return ""
	}
	if s := podSelector(w); len(s.MatchLabels) > 0 {
		return ""
	}
	return fmt.Sprintf("\n  (%s has no labels of its own, so this means every Pod of %s: give it one to mean it alone)", e.peer, w.Namespace)
}

// perInstance reports whether a label tells instances apart that are alike.
func perInstance(key string) bool {
	return slices.Contains([]string{"pod-template-hash", "controller-revision-hash", "pod-template-generation",
		"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index", "batch.kubernetes.io/job-completion-index",
		"batch.kubernetes.io/controller-uid", "controller-uid", "job-name", "batch.kubernetes.io/job-name"}, key)
}

// before puts a rule for this very flow before the rule of a ClusterNetworkPolicy
// that denies it. Where there is no room for one more, the rule itself goes.
func (j *Judge) before(e end, action string) (Step, bool) {
	policy, ok := j.clusterPolicy(e.By[0].Name)
	i, of := index(e.By[0].Field, e.list)
	if !ok || !of {
		return Step{}, false
	}
	after := *policy
	var protocols []bocage.ClusterNetworkPolicyProtocol
	if e.protocol.HasPorts() && e.port != 0 {
		number := int32(e.port)
		transport := &bocage.ClusterNetworkPolicyTransport{DestinationPort: &bocage.ClusterNetworkPolicyPort{Number: &number}}
		switch e.protocol {
		case bocage.ProtocolTCP:
			protocols = []bocage.ClusterNetworkPolicyProtocol{{TCP: transport}}
		case bocage.ProtocolUDP:
			protocols = []bocage.ClusterNetworkPolicyProtocol{{UDP: transport}}
		case bocage.ProtocolSCTP:
			protocols = []bocage.ClusterNetworkPolicyProtocol{{SCTP: transport}}
		}
	}
	var rule any
	if e.ingress {
		r := bocage.ClusterNetworkPolicyIngressRule{Action: action, Protocols: protocols}
		if e.peer.workload != nil {
			r.From = []bocage.ClusterNetworkPolicyIngressPeer{{Pods: podsLike(e.peer.workload)}}
		}
		after.Spec.Ingress, rule = slices.Insert(slices.Clone(after.Spec.Ingress), i, r), r
	} else {
		r := bocage.ClusterNetworkPolicyEgressRule{Action: action, Protocols: protocols}
		switch {
		case e.name != "":
			r.To = []bocage.ClusterNetworkPolicyEgressPeer{{DomainNames: []string{string(e.name)}}}
		case e.peer.workload != nil:
			r.To = []bocage.ClusterNetworkPolicyEgressPeer{{Pods: podsLike(e.peer.workload)}}
		default:
			r.To = []bocage.ClusterNetworkPolicyEgressPeer{{Networks: []string{host(e.peer.address).String()}}}
		}
		after.Spec.Egress, rule = slices.Insert(slices.Clone(after.Spec.Egress), i, r), r
	}
	if len(after.Validate()) == 0 {
		return Step{Change{Object: &after}, fmt.Sprintf("in ClusterNetworkPolicy %s%s, add before %s:\n  - %s%s", policy.Name, from(policy), e.By[0].Field, flowYAML(rule), e.wider())}, true
	}
	after = *policy
	if e.ingress {
		after.Spec.Ingress = slices.Delete(slices.Clone(after.Spec.Ingress), i, i+1)
	} else {
		after.Spec.Egress = slices.Delete(slices.Clone(after.Spec.Egress), i, i+1)
	}
	return Step{Change{Object: &after}, "withdraw " + e.By[0].String()}, true
}

func podsLike(w *bocage.Workload) *bocage.NamespacedPod {
	pods := podSelector(w)
	return &bocage.NamespacedPod{PodSelector: &pods,
		NamespaceSelector: bocage.Selector{MatchLabels: map[string]string{bocage.LabelNamespaceName: w.Namespace}}}
}

// withdrawFromKubernetes takes rules out of a NetworkPolicy, which goes on
// isolating; rules of a ClusterNetworkPolicy that accept come to deny.
func (j *Judge) withdrawFromKubernetes(kind, namespace, name string, fields []string) (Step, bool) {
	if kind == "NetworkPolicy" {
		policy, ok := j.networkPolicy(namespace, name)
		if !ok {
			return Step{}, false
		}
		after := *policy
		if len(after.Spec.PolicyTypes) == 0 {
			after.Spec.PolicyTypes = []string{"Ingress"}
			if len(after.Spec.Egress) > 0 {
				after.Spec.PolicyTypes = append(after.Spec.PolicyTypes, "Egress")
			}
		}
		ingress, egress := map[int]bool{}, map[int]bool{}
		for _, field := range fields {
			if i, of := index(field, "spec.ingress"); of {
				ingress[i] = true
			} else if i, of := index(field, "spec.egress"); of {
				egress[i] = true
			}
		}
		after.Spec.Ingress, after.Spec.Egress = without(after.Spec.Ingress, ingress), without(after.Spec.Egress, egress)
		return Step{Change{Object: &after}, "withdraw " + ref(kind, policy, joined(fields)).String()}, true
	}
	policy, ok := j.clusterPolicy(name)
	if !ok {
		return Step{}, false
	}
	after := *policy
	after.Spec.Ingress, after.Spec.Egress = slices.Clone(after.Spec.Ingress), slices.Clone(after.Spec.Egress)
	for _, field := range fields {
		if i, of := index(field, "spec.ingress"); of {
			after.Spec.Ingress[i].Action = bocage.ActionDeny
		} else if i, of := index(field, "spec.egress"); of {
			after.Spec.Egress[i].Action = bocage.ActionDeny
		}
	}
	return Step{Change{Object: &after}, "set action: Deny in " + ref(kind, policy, joined(fields)).String()}, true
}

// without returns the elements whose places are not among the given.
func without[T any](list []T, places map[int]bool) []T {
	var out []T
	for i, element := range list {
		if !places[i] {
			out = append(out, element)
		}
	}
	return out
}

// joined names fields for people: of very many, the first few and the number.
func joined(fields []string) string {
	const most = 20
	if len(fields) <= most {
		return strings.Join(fields, " and ")
	}
	return fmt.Sprintf("%s and %d more that allow it too", strings.Join(fields[:most], " and "), len(fields)-most)
}

func (j *Judge) networkPolicy(namespace, name string) (*bocage.NetworkPolicy, bool) {
	i := slices.IndexFunc(j.in.NetworkPolicies, func(p *bocage.NetworkPolicy) bool { return p.Namespace == namespace && p.Name == name })
	if i < 0 {
		return nil, false
	}
	return j.in.NetworkPolicies[i], true
}

func (j *Judge) clusterPolicy(name string) (*bocage.ClusterNetworkPolicy, bool) {
	i, found := slices.BinarySearchFunc(j.in.ClusterNetworkPolicies, name, func(p *bocage.ClusterNetworkPolicy, name string) int { return cmp.Compare(p.Name, name) })
	if !found {
		return nil, false
	}
	return j.in.ClusterNetworkPolicies[i], true
}
