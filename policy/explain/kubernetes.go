package explain

import (
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/kubernetes"
)

// KubernetesSay is what policies in Kubernetes' own words say of a flow.
type KubernetesSay struct {
	// Allows says that they allow it, By which of them; none where nothing but
	// the default of pods does.
	Allows bool
	By     []bocage.Ref
	// Denies are rules of the Admin tier, which nobody below can reopen.
	Denies []bocage.Ref
	// Withholds are isolations and rules of the Baseline tier: they allow nothing,
	// and refuse nothing that somebody else allows.
	Withholds []bocage.Ref
	// Egress and Ingress are the results of the two ends.
	Egress, Ingress kubernetes.Direction
}

// unanswered says that the owner of the source lets the flow out, and that nobody
// accepts it at the destination, which is closed by default.
func (k *KubernetesSay) unanswered() bool {
	return !k.Allows && k.Egress.Outcome == kubernetes.OutcomeAccept && k.Ingress.Outcome == kubernetes.OutcomeNone
}

// ownNode says that NetworkPolicies isolate the destination and that none of their
// rules lets the source in: it comes in since it is the node that the Pod runs on.
func (k *KubernetesSay) ownNode() bool {
	return k.Ingress.Outcome == kubernetes.OutcomeAccept && len(k.Ingress.By) == 0
}

// OwnNode is the host that decides about a flow by being what its destination runs
// on, which no policy can keep out; false where something else decides.
func (j *Judge) OwnNode(f bocage.Flow) (bocage.Ref, bool) {
	g := j.Judge(f)
	return j.ownNode(&g)
}

func (j *Judge) ownNode(g *Judgement) (bocage.Ref, bool) {
	if !g.Would.Allowed() || len(g.Allows) > 0 || len(g.Kubernetes.By) > 0 || !g.Kubernetes.ownNode() {
		return bocage.Ref{}, false
	}
	for _, h := range j.in.Hosts {
		if i := slices.Index(h.Spec.Addresses, g.Source.address); i >= 0 && h.Name == g.Destination.workload.Spec.Host {
			return ref("Host", h, at("spec.addresses", i)), true
		}
	}
	return bocage.Ref{}, false
}

func (j *Judge) newEvaluator() *kubernetes.Evaluator {
	in := j.in
	var labels map[*bocage.Workload]map[string]string
	for _, k := range j.known {
		if j.zones != nil && k.Zone == j.zones[k.Workload.Spec.Host] {
			if labels == nil {
				labels = make(map[*bocage.Workload]map[string]string, len(j.known))
			}
			labels[k.Workload] = k.Labels
		}
	}
	// Workloads are given with each flow: it need not know all of them. What is not
	// valid was left out before.
	return kubernetes.NewEvaluator(kubernetes.Objects{Checked: true, Namespaces: in.Namespaces, Hosts: in.Hosts, Zones: in.Zones,
		NetworkPolicies: in.NetworkPolicies, ClusterNetworkPolicies: in.ClusterNetworkPolicies, ZoneOf: j.zones, Labels: labels})
}

// kubernetesOf asks what Kubernetes' policies say of the flow, to a destination that
// goes by the patterns of names.
func kubernetesOf(e *kubernetes.Evaluator, source, destination party, f bocage.Flow, patterns ...bocage.DomainName) KubernetesSay {
	r := e.Evaluate(kubernetes.Flow{Source: source.address, Destination: destination.address,
		From: source.workload, To: destination.workload, Protocol: f.Protocol, Port: f.DestinationPort, Patterns: patterns})
	say := KubernetesSay{Allows: r.Allows, Withholds: r.Withheld, Egress: r.Egress, Ingress: r.Ingress}
	if r.Refuses {
		say.Denies = r.By
	} else if r.Allows {
		say.By = r.By
	}
	return say
}
