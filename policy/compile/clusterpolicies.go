package compile

import (
	"cmp"
	"slices"

	"bocage.dev/bocage"
)

// stateClusterNetworkPolicies states the rules of both tiers, in the order of
// their priority.
func (c *compiler) stateClusterNetworkPolicies() {
	list := slices.Clone(c.in.clusterNetworkPolicies)
	slices.SortFunc(list, func(a, b *bocage.ClusterNetworkPolicy) int {
		return cmp.Or(cmp.Compare(*a.Spec.Priority, *b.Spec.Priority), cmp.Compare(a.Name, b.Name))
	})
	places := kubePlaces{}
	for _, p := range list {
		place := places.next(p)
		c.noteDomainNames(p, place)
		members := c.clusterPeer(p.Spec.Subject.Namespaces, p.Spec.Subject.Pods)
		if len(members) == 0 {
			c.findings.note(Ref("ClusterNetworkPolicy", p, "spec.subject"), NoWorkloads, "it is about no workload today")
			continue
		}
		c.stateClusterNetworkPolicy(p, place, members)
	}
}

// stateClusterNetworkPolicy states the rules of one, about its members.
func (c *compiler) stateClusterNetworkPolicy(p *bocage.ClusterNetworkPolicy, place uint32, members []int32) {
	subject := side{list: members}
	if c.pop.isEveryWorkload(members) {
		subject = side{any: true} // an end outside has no policies: see kubeEnd
	}
	rule := kubeRule{ingress: true, tier: kubeAdmin, priority: *p.Spec.Priority}
	if p.Spec.Tier == bocage.TierBaseline {
		rule.tier = kubeBaseline
	}
	for i, r := range p.Spec.Ingress {
		rule.action, rule.rank = kubeActions[r.Action], 1+i
		var from []int32
		for _, peer := range r.From {
			from = append(from, c.clusterPeer(peer.Namespaces, peer.Pods)...)
		}
		ports, names := clusterPorts(r.Protocols)
		c.stateKubeRule(rule, subject, kubePeers{list: sortedOnce(from)}, ports, names, Ref("ClusterNetworkPolicy", p, field("spec.ingress", i)))
	}
	rule.ingress = false
	for i := range p.Spec.Egress {
		r, by := &p.Spec.Egress[i], Ref("ClusterNetworkPolicy", p, field("spec.egress", i))
		rule.action, rule.rank, rule.order = kubeActions[r.Action], 1+len(p.Spec.Ingress)+i, rankOf(*p.Spec.Priority, place, i)
		var to []int32
		for j := range r.To {
			to = append(to, c.clusterEgressPeer(&r.To[j])...)
		}
		ports, names := clusterPorts(r.Protocols)
		c.stateKubeRule(rule, subject, kubePeers{list: sortedOnce(to)}, ports, names, by)
		if accepted := acceptedNames(p, r); place < lastPlace && len(accepted) > 0 {
			accept := rule
			c.state(statement{kind: acceptName, from: side{list: members}, to: side{list: c.pop.domain(accepted...)}, ports: ports, by: []bocage.Ref{by}, kube: &accept})
		}
	}
}

// kubePlaces gives the policies of one priority and tier their places in the order of
// names, as far as it matters: which of them stand before those that accept names, and
// which behind. So a policy without names that comes or goes moves no other.
type kubePlaces map[kubePlace]uint32

type kubePlace struct {
	tier     string
	priority int32
}

// Bits of a rank, below those of the priority.
const (
	placeBits = 17
	ruleBits  = 5 // a policy has 25 rules at most
	lastPlace = 1<<placeBits - 1
)

// next is the place of the next policy in order: odd if it accepts names.
func (k kubePlaces) next(p *bocage.ClusterNetworkPolicy) uint32 {
	at := kubePlace{p.Spec.Tier, *p.Spec.Priority}
	place := k[at]
	if slices.ContainsFunc(p.Spec.Egress, func(r bocage.ClusterNetworkPolicyEgressRule) bool { return len(acceptedNames(p, &r)) > 0 }) {
		place++
		k[at] = place + 1
	}
	return min(place, lastPlace)
}

// rankOf is a rule's place among those of its tier: see bocage.Ranks.
func rankOf(priority int32, place uint32, rule int) uint32 {
	return uint32(priority)<<(placeBits+ruleBits) + place<<ruleBits + uint32(rule) + 1
}

// UnknownDomainName says that a rule means a name that the DNS cannot have.
const UnknownDomainName = "UnknownDomainName"

func (c *compiler) noteDomainNames(p *bocage.ClusterNetworkPolicy, place uint32) {
	for i, r := range p.Spec.Egress {
		for j, peer := range r.To {
			at := Ref("ClusterNetworkPolicy", p, field("spec.egress", i)+"."+field("to", j)+".domainNames")
			if len(peer.DomainNames) > 0 && place == lastPlace {
				c.findings.reject(at, UnknownDomainName, "%d other policies of its priority accept names, which is all that there can be: give it another priority", lastPlace/2)
				continue
			}
			for _, text := range peer.DomainNames {
				if _, err := bocage.ParseDomainName(text); err != nil {
					c.findings.reject(at, UnknownDomainName, "nobody is ever told an address of it: %v", err)
				}
			}
		}
	}
}

// clusterPeer resolves a subject or a peer that means workloads.
func (c *compiler) clusterPeer(namespaces *bocage.Selector, pods *bocage.NamespacedPod) []int32 {
	switch {
	case namespaces != nil:
		return c.pop.matchNamespaced(namespaces, nil)
	case pods != nil:
		return c.pop.matchNamespaced(&pods.NamespaceSelector, pods.PodSelector)
	}
	return nil
}

func (c *compiler) clusterEgressPeer(peer *bocage.ClusterNetworkPolicyEgressPeer) []int32 {
	var out []int32
	switch {
	case peer.Nodes != nil:
		for _, host := range c.in.hosts {
			if !peer.Nodes.Matches(host.Labels) {
				continue
			}
			for _, address := range host.Spec.Addresses {
				out = append(out, c.pop.within(single(address))...)
			}
		}
	case len(peer.Networks) > 0:
		for _, cidr := range peer.Networks {
			out = append(out, c.pop.within(blockOf(cidr))...)
		}
	default:
		return c.clusterPeer(peer.Namespaces, peer.Pods)
	}
	return out
}

// clusterPorts resolves the protocols of a rule, numbers and names apart; none
// are every protocol.
func clusterPorts(list []bocage.ClusterNetworkPolicyProtocol) (ports, []kubePortName) {
	if len(list) == 0 {
		return everything, nil
	}
	var numbers ports
	var names []kubePortName
	add := func(protocol bocage.Protocol, t *bocage.ClusterNetworkPolicyTransport) {
		if t == nil {
			return
		}
		r := bocage.AllPorts
		if port := t.DestinationPort; port != nil && port.Range != nil {
			r = bocage.PortRange{First: uint16(port.Range.Start), Last: uint16(port.Range.End)}
		} else if port != nil {
			r = bocage.PortRange{First: uint16(*port.Number), Last: uint16(*port.Number)}
		}
		numbers.ranges = append(numbers.ranges, protocolRange{protocol, r})
	}
	for _, p := range list {
		add(bocage.ProtocolTCP, p.TCP)
		add(bocage.ProtocolUDP, p.UDP)
		add(bocage.ProtocolSCTP, p.SCTP)
		if p.DestinationNamedPort != nil {
			names = append(names, kubePortName{name: *p.DestinationNamedPort})
		}
	}
	return numbers.normal(), names
}
