// Package kubernetes reads Kubernetes' objects and says what its policies decide
// about one flow: NetworkPolicy (networking.k8s.io/v1) and ClusterNetworkPolicy
// (policy.networking.k8s.io/v1alpha2), tier by tier, as upstream documents them.
//
// It promises to answer from the objects alone, one flow at a time and in the simplest way.
// Package explain uses it, and the compiler is checked against it, so it shares no code
// with the compiler. Its answer is only Kubernetes' part of a decision: contracts,
// guardrails and threat conditions are not considered here.
package kubernetes

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// Objects is everything that Kubernetes' policies depend on. Objects that are not
// valid count for nothing.
type Objects struct {
	// Namespaces are those that were declared; others have no labels but their name.
	Namespaces []*bocage.Namespace
	// Workloads are those that flows name as their ends.
	Workloads []*bocage.Workload
	// Hosts are the nodes, with their labels and addresses.
	Hosts []*bocage.Host
	// Zones give workloads their zone label.
	Zones                  []*bocage.Zone
	NetworkPolicies        []*bocage.NetworkPolicy
	ClusterNetworkPolicies []*bocage.ClusterNetworkPolicy
	// Checked says that the policies are known to be valid.
	Checked bool
	// ZoneOf (the zone of each host) and Labels (the labels of workloads, with those that
	// every workload carries) may be given if they are known already. They are only read.
	ZoneOf map[string]string
	Labels map[*bocage.Workload]map[string]string
}

// Flow is the flow to evaluate. From and To are the workloads that have the
// addresses, nil for addresses outside the inventory: nodes, Pods on their
// node's network and the rest of the world.
//
// A workload always reaches itself, as far as Kubernetes is concerned; no
// enforcement point sees such a flow, and rulesets, which speak of groups, have
// no cell for it.
type Flow struct {
	Source, Destination netip.Addr
	From, To            *bocage.Workload
	Protocol            bocage.Protocol
	// Port is the destination's; it counts for protocols that have ports.
	Port uint16
	// Patterns are the patterns of DNS names by which the source knows the destination, in
	// canonical form. They count for external addresses only.
	Patterns []bocage.DomainName
}

// Outcome is what Kubernetes' policies say of one direction of one workload.
type Outcome uint8

// Outcomes. An end that is no workload has OutcomeDefault.
const (
	OutcomeNone         Outcome = iota // nothing decides, and the workload is no Pod
	OutcomeDefault                     // nothing decides: Kubernetes accepts
	OutcomeAccept                      // a rule accepts
	OutcomeIsolated                    // NetworkPolicies select the workload and none of their rules allows
	OutcomeDenyBaseline                // a rule of the Baseline tier denies
	OutcomeDenyAdmin                   // a rule of the Admin tier denies
)

// Denies reports whether the direction is closed.
func (o Outcome) Denies() bool { return o >= OutcomeIsolated }

func (o Outcome) String() string {
	names := [...]string{"none", "default", "accept", "isolated", "deny-baseline", "deny-admin"}
	if int(o) < len(names) {
		return names[o]
	}
	return fmt.Sprintf("outcome(%d)", uint8(o))
}

// Direction is the result of one end.
type Direction struct {
	Outcome Outcome
	// By are the deciding places: every rule of a NetworkPolicy that allows, the
	// one rule of a ClusterNetworkPolicy, or every NetworkPolicy that isolates.
	By []bocage.Ref
}

// Result is what Kubernetes' policies say of a flow.
type Result struct {
	// Allows says that no end denies the flow and that one of these accepts it: a rule at
	// the destination; the destination's default, together with the default or a rule at
	// the source; or a ClusterNetworkPolicy at the source, which may open any destination.
	Allows bool
	// Refuses says that an Admin-tier rule denies it: nobody else can allow it.
	Refuses bool
	// By are the rules that refuse or, if none does, that allow; the source's first. It is
	// empty if the default allows.
	By []bocage.Ref
	// Withheld are the isolating NetworkPolicies or the Baseline-tier rule because of which
	// Kubernetes does not allow the flow; contracts and grants still may. If both ends
	// withhold it, they are the destination's, which are the same for every source.
	Withheld []bocage.Ref
	// Egress is the source's, Ingress the destination's.
	Egress, Ingress Direction
}

// Evaluator answers for one set of objects. It is safe for concurrent use.
type Evaluator struct {
	namespaces map[string]map[string]string
	labels     map[*bocage.Workload]map[string]string
	zones      map[string]string // host -> zone
	hosts      []*bocage.Host
	policies   map[string][]*bocage.NetworkPolicy // by namespace, sorted by name
	admin      []*bocage.ClusterNetworkPolicy     // sorted by priority and name
	baseline   []*bocage.ClusterNetworkPolicy
}

// NewEvaluator prepares the objects, which it only reads.
func NewEvaluator(o Objects) *Evaluator {
	e := &Evaluator{
		namespaces: make(map[string]map[string]string, len(o.Namespaces)),
		labels:     o.Labels,
		zones:      o.ZoneOf,
		hosts:      o.Hosts,
		policies:   map[string][]*bocage.NetworkPolicy{},
	}
	if e.zones == nil {
		e.zones = bocage.ZonesOfHosts(o.Zones)
	}
	for _, n := range o.Namespaces {
		e.namespaces[n.Name] = n.AllLabels()
	}
	if len(o.Workloads) > 0 {
		e.labels = make(map[*bocage.Workload]map[string]string, len(o.Workloads))
		maps.Copy(e.labels, o.Labels)
	}
	for _, w := range o.Workloads {
		e.labels[w] = w.LabelsIn(e.zones[w.Spec.Host])
	}
	for _, p := range o.NetworkPolicies {
		if o.Checked || len(p.Validate()) == 0 {
			e.policies[p.Namespace] = append(e.policies[p.Namespace], p)
		}
	}
	for _, list := range e.policies {
		slices.SortFunc(list, func(a, b *bocage.NetworkPolicy) int { return cmp.Compare(a.Name, b.Name) })
	}
	for _, p := range o.ClusterNetworkPolicies {
		switch {
		case !o.Checked && len(p.Validate()) > 0:
		case p.Spec.Tier == bocage.TierAdmin:
			e.admin = append(e.admin, p)
		default:
			e.baseline = append(e.baseline, p)
		}
	}
	for _, tier := range [][]*bocage.ClusterNetworkPolicy{e.admin, e.baseline} {
		slices.SortFunc(tier, func(a, b *bocage.ClusterNetworkPolicy) int {
			return cmp.Or(cmp.Compare(*a.Spec.Priority, *b.Spec.Priority), cmp.Compare(a.Name, b.Name))
		})
	}
	return e
}

// Evaluate returns what Kubernetes' policies decide about a flow.
func (e *Evaluator) Evaluate(f Flow) Result {
	f.Source, f.Destination = f.Source.Unmap(), f.Destination.Unmap()
	r := Result{
		Egress:  e.direction(f, f.From, egress),
		Ingress: e.direction(f, f.To, ingress),
	}
	denied := false
	var allowing []bocage.Ref
	for _, end := range [2]Direction{r.Egress, r.Ingress} {
		switch end.Outcome {
		case OutcomeDenyAdmin:
			r.Refuses = true
			r.By = append(r.By, end.By...)
		case OutcomeIsolated, OutcomeDenyBaseline:
			r.Withheld = end.By // the destination's, if both withhold
		case OutcomeAccept:
			allowing = append(allowing, end.By...)
		}
		denied = denied || end.Outcome.Denies()
	}
	if !denied && (f.From != nil || f.To != nil) && r.consent() {
		r.Allows, r.By = true, allowing
	}
	return r
}

// consent reports whether the flow is accepted by an end that may accept it. A NetworkPolicy
// may open only the workloads that it selects: its egress rules open no destination that is
// closed by default.
func (r Result) consent() bool {
	if r.Ingress.Outcome == OutcomeAccept {
		return true
	}
	if r.Ingress.Outcome == OutcomeDefault {
		return r.Egress.Outcome == OutcomeDefault || r.Egress.Outcome == OutcomeAccept
	}
	return r.Egress.Outcome == OutcomeAccept && slices.ContainsFunc(r.Egress.By, func(by bocage.Ref) bool { return by.Kind == "ClusterNetworkPolicy" })
}

// way is the direction of a flow, seen from a workload.
type way bool

const (
	egress  way = false
	ingress way = true
)

func (w way) rule(i int) string {
	if w == ingress {
		return fmt.Sprintf("spec.ingress[%d]", i)
	}
	return fmt.Sprintf("spec.egress[%d]", i)
}

// direction evaluates the tiers of one end, in order.
func (e *Evaluator) direction(f Flow, subject *bocage.Workload, way way) Direction {
	if subject == nil {
		return Direction{Outcome: OutcomeDefault}
	}
	if !same(f.From, f.To) { // no policy applies between a workload and itself
		if d, decided := e.tier(e.admin, f, subject, way, OutcomeDenyAdmin); decided {
			return d
		}
		if d, decided := e.networkPolicies(f, subject, way); decided {
			return d
		}
		if d, decided := e.tier(e.baseline, f, subject, way, OutcomeDenyBaseline); decided {
			return d
		}
	}
	if subject.Spec.Orchestrator == bocage.OrchestratorKubernetes {
		return Direction{Outcome: OutcomeDefault}
	}
	return Direction{Outcome: OutcomeNone}
}

func same(a, b *bocage.Workload) bool {
	return a != nil && b != nil && a.Namespace == b.Namespace && a.Name == b.Name
}

// tier finds the first rule of a tier that matches the flow. Pass ends the tier
// without a decision.
func (e *Evaluator) tier(policies []*bocage.ClusterNetworkPolicy, f Flow, subject *bocage.Workload, way way, denied Outcome) (Direction, bool) {
	for _, p := range policies {
		if !e.isSubject(p, subject) {
			continue
		}
		switch action, i := e.firstRule(p, f, way); action {
		case bocage.ActionAccept:
			return Direction{OutcomeAccept, []bocage.Ref{ref("ClusterNetworkPolicy", p, way.rule(i))}}, true
		case bocage.ActionDeny:
			return Direction{denied, []bocage.Ref{ref("ClusterNetworkPolicy", p, way.rule(i))}}, true
		case bocage.ActionPass:
			return Direction{}, false
		}
	}
	return Direction{}, false
}

func (e *Evaluator) isSubject(p *bocage.ClusterNetworkPolicy, w *bocage.Workload) bool {
	return e.selects(p.Spec.Subject.Namespaces, p.Spec.Subject.Pods, w)
}

// selects reports whether a workload is in the namespaces, or is one of the Pods.
func (e *Evaluator) selects(namespaces *bocage.Selector, pods *bocage.NamespacedPod, w *bocage.Workload) bool {
	switch {
	case w == nil:
		return false
	case namespaces != nil:
		return namespaces.Matches(e.namespaceLabels(w.Namespace))
	case pods != nil:
		return pods.NamespaceSelector.Matches(e.namespaceLabels(w.Namespace)) && pods.PodSelector.Matches(e.workloadLabels(w))
	}
	return false
}

// firstRule returns the action and the place of the first rule that matches, or "".
func (e *Evaluator) firstRule(p *bocage.ClusterNetworkPolicy, f Flow, way way) (string, int) {
	if way == ingress {
		for i, rule := range p.Spec.Ingress {
			if protocolsMatch(rule.Protocols, f) && slices.ContainsFunc(rule.From, func(peer bocage.ClusterNetworkPolicyIngressPeer) bool {
				return e.selects(peer.Namespaces, peer.Pods, f.From)
			}) {
				return rule.Action, i
			}
		}
		return "", 0
	}
	for i, rule := range p.Spec.Egress {
		if protocolsMatch(rule.Protocols, f) && slices.ContainsFunc(rule.To, func(peer bocage.ClusterNetworkPolicyEgressPeer) bool {
			return e.egressPeer(peer, f)
		}) {
			return rule.Action, i
		}
	}
	return "", 0
}

// egressPeer reports whether a peer matches the destination. A domain name matches the
// addresses that the source knows by it.
func (e *Evaluator) egressPeer(peer bocage.ClusterNetworkPolicyEgressPeer, f Flow) bool {
	switch {
	case peer.Nodes != nil:
		return slices.ContainsFunc(e.hosts, func(h *bocage.Host) bool {
			return slices.Contains(h.Spec.Addresses, f.Destination) && peer.Nodes.Matches(h.Labels)
		})
	case len(peer.Networks) > 0:
		return slices.ContainsFunc(peer.Networks, func(cidr string) bool { return within(cidr, f.Destination) })
	case len(peer.DomainNames) > 0:
		return f.To == nil && len(f.Patterns) > 0 && bocage.NamesMayMean(f.Destination) && slices.ContainsFunc(peer.DomainNames, func(text string) bool {
			pattern, err := bocage.ParseDomainName(text)
			return err == nil && slices.Contains(f.Patterns, pattern)
		})
	}
	return e.selects(peer.Namespaces, peer.Pods, f.To)
}

func within(cidr string, address netip.Addr) bool {
	prefix, err := netip.ParsePrefix(cidr)
	return err == nil && prefix.Contains(address)
}

// protocolsMatch reports whether one of the entries matches; none matches all.
func protocolsMatch(entries []bocage.ClusterNetworkPolicyProtocol, f Flow) bool {
	if len(entries) == 0 {
		return true
	}
	return slices.ContainsFunc(entries, func(entry bocage.ClusterNetworkPolicyProtocol) bool {
		switch {
		case entry.TCP != nil:
			return f.Protocol == bocage.ProtocolTCP && portMatches(entry.TCP.DestinationPort, f.Port)
		case entry.UDP != nil:
			return f.Protocol == bocage.ProtocolUDP && portMatches(entry.UDP.DestinationPort, f.Port)
		case entry.SCTP != nil:
			return f.Protocol == bocage.ProtocolSCTP && portMatches(entry.SCTP.DestinationPort, f.Port)
		}
		return entry.DestinationNamedPort != nil && namedPort(f, *entry.DestinationNamedPort, 0)
	})
}

func portMatches(p *bocage.ClusterNetworkPolicyPort, port uint16) bool {
	switch {
	case p == nil:
		return true
	case p.Range != nil:
		return p.Range.Start <= int32(port) && int32(port) <= p.Range.End
	}
	return p.Number != nil && *p.Number == int32(port)
}

// namedPort reports whether the destination's port has this name. Only ports of the protocol
// count; zero means any.
func namedPort(f Flow, name string, protocol bocage.Protocol) bool {
	if f.To == nil || name == "" {
		return false
	}
	return slices.ContainsFunc(f.To.Spec.Ports, func(p bocage.NamedPort) bool {
		of := protocolNamed(p.Protocol)
		return p.Name == name && p.Port == f.Port && of == f.Protocol && (protocol == 0 || of == protocol)
	})
}

func protocolNamed(name string) bocage.Protocol {
	switch name {
	case "UDP":
		return bocage.ProtocolUDP
	case "SCTP":
		return bocage.ProtocolSCTP
	}
	return bocage.ProtocolTCP
}

// networkPolicies evaluates the NetworkPolicies that select the workload. If there are any,
// only what one of them allows is allowed.
func (e *Evaluator) networkPolicies(f Flow, subject *bocage.Workload, way way) (Direction, bool) {
	var isolating, allowing []bocage.Ref
	for _, p := range e.policies[subject.Namespace] {
		if !concerns(p, way) || !p.Spec.PodSelector.Matches(e.workloadLabels(subject)) {
			continue
		}
		isolating = append(isolating, ref("NetworkPolicy", p, "spec.podSelector"))
		if way == ingress {
			for i, rule := range p.Spec.Ingress {
				if networkPortsMatch(rule.Ports, f) && e.networkPeersMatch(p, rule.From, f.From, f.Source) {
					allowing = append(allowing, ref("NetworkPolicy", p, way.rule(i)))
				}
			}
		} else {
			for i, rule := range p.Spec.Egress {
				if networkPortsMatch(rule.Ports, f) && e.networkPeersMatch(p, rule.To, f.To, f.Destination) {
					allowing = append(allowing, ref("NetworkPolicy", p, way.rule(i)))
				}
			}
		}
	}
	switch {
	case len(isolating) == 0:
		return Direction{}, false
	case len(allowing) > 0 || way == ingress && e.isOwnNode(subject, f.Source):
		return Direction{OutcomeAccept, allowing}, true
	}
	return Direction{OutcomeIsolated, isolating}, true
}

// concerns reports whether the policy applies to the direction. Without policy types it
// applies to ingress, and to egress if it has egress rules.
func concerns(p *bocage.NetworkPolicy, way way) bool {
	switch {
	case len(p.Spec.PolicyTypes) == 0:
		return way == ingress || len(p.Spec.Egress) > 0
	case way == ingress:
		return slices.Contains(p.Spec.PolicyTypes, "Ingress")
	}
	return slices.Contains(p.Spec.PolicyTypes, "Egress")
}

// isOwnNode reports whether the address is one of the node's that the Pod runs
// on: NetworkPolicies cannot keep a node from its Pods, so that health checks work.
func (e *Evaluator) isOwnNode(w *bocage.Workload, address netip.Addr) bool {
	return slices.ContainsFunc(e.hosts, func(h *bocage.Host) bool {
		return h.Name == w.Spec.Host && slices.Contains(h.Spec.Addresses, address)
	})
}

func (e *Evaluator) networkPeersMatch(p *bocage.NetworkPolicy, peers []bocage.NetworkPolicyPeer, who *bocage.Workload, address netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	return slices.ContainsFunc(peers, func(peer bocage.NetworkPolicyPeer) bool {
		if peer.IPBlock != nil {
			return within(peer.IPBlock.CIDR, address) &&
				!slices.ContainsFunc(peer.IPBlock.Except, func(cidr string) bool { return within(cidr, address) })
		}
		if who == nil {
			return false
		}
		if peer.NamespaceSelector == nil {
			if who.Namespace != p.Namespace {
				return false
			}
		} else if !peer.NamespaceSelector.Matches(e.namespaceLabels(who.Namespace)) {
			return false
		}
		return peer.PodSelector == nil || peer.PodSelector.Matches(e.workloadLabels(who))
	})
}

// networkPortsMatch reports whether one of the entries matches; none matches
// every protocol.
func networkPortsMatch(entries []bocage.NetworkPolicyPort, f Flow) bool {
	if len(entries) == 0 {
		return true
	}
	return slices.ContainsFunc(entries, func(entry bocage.NetworkPolicyPort) bool {
		protocol := protocolNamed(string(entry.Protocol))
		switch {
		case protocol != f.Protocol:
			return false
		case entry.Port == nil:
			return true
		case entry.Port.Name != "":
			return namedPort(f, entry.Port.Name, protocol)
		case entry.EndPort != nil:
			return entry.Port.Number <= int32(f.Port) && int32(f.Port) <= *entry.EndPort
		}
		return entry.Port.Number == int32(f.Port)
	})
}

func (e *Evaluator) namespaceLabels(name string) map[string]string {
	if labels, declared := e.namespaces[name]; declared {
		return labels
	}
	return map[string]string{bocage.LabelNamespaceName: name}
}

func (e *Evaluator) workloadLabels(w *bocage.Workload) map[string]string {
	if labels, known := e.labels[w]; known {
		return labels
	}
	return w.LabelsIn(e.zones[w.Spec.Host])
}

func ref(kind string, object bocage.Resource, field string) bocage.Ref {
	meta := object.Meta()
	return bocage.Ref{Kind: kind, Namespace: meta.Namespace, Name: meta.Name, Field: field,
		Source: meta.Annotations[bocage.SourceAnnotation]}
}
