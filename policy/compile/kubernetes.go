package compile

import (
	"cmp"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// Kubernetes decides a cell twice: once for the source's egress, once for the
// destination's ingress. Every rule becomes a statement about the cells that it
// matches, which says what it does at which end; judgeKubernetes goes through the
// tiers of both ends with those that cover a cell. Statements with a wide side
// are kept wide, so that their number follows that of the rules: what an end is
// (outside the inventory, a Pod, or another workload) is stated apart.

// kubeRule is what one rule of a Kubernetes policy, or the lack of any, says of
// one end of the cells that its statement covers.
type kubeRule struct {
	// ingress says that it is about the destination's ingress, not the source's egress.
	ingress bool
	tier    kubeTier
	action  kubeAction
	// The rules of a tier are ordered by the priority and the name of their policy,
	// and by their rank in it: the first decides. So a policy that comes or goes
	// changes nothing that others say.
	priority int32
	rank     int
	// order is the place of a ClusterNetworkPolicy's egress rule in its tier, as
	// Ranks have it.
	order uint32
	// among says that it counts only where the other end is a workload.
	among bool
}

// kubeTier says when a rule is asked.
type kubeTier uint8

const (
	kubeEnds     kubeTier = iota // what the ends are, before any policy
	kubeAdmin                    // ClusterNetworkPolicies of the tier Admin
	kubeNetwork                  // NetworkPolicies
	kubeBaseline                 // ClusterNetworkPolicies of the tier Baseline
)

// kubeAction is what a rule does.
type kubeAction uint8

const (
	kubePods    kubeAction = iota // an end of which nothing else is said is a Pod, not outside
	kubePod                       // this end is a Pod: what nobody decides is accepted
	kubePlain                     // this end is a workload, but no Pod: it is not
	kubeOutside                   // this end is no workload: it has no policies
	kubeAccept
	kubeDeny
	kubePass
	kubeIsolate // a NetworkPolicy selects this end
)

var kubeActions = map[string]kubeAction{
	bocage.ActionAccept: kubeAccept,
	bocage.ActionDeny:   kubeDeny,
	bocage.ActionPass:   kubePass,
}

// kubeVerdict is what Kubernetes' policies together say of a cell.
type kubeVerdict uint8

const (
	kubeSilent    kubeVerdict = iota // they neither allow nor stand in the way
	kubeAllows                       // no end denies, and somebody accepts who may
	kubeRefuses                      // an Admin-tier Deny: no contract opens it
	kubeWithholds                    // isolation or a Baseline Deny keep them from allowing it
)

// kubeOutcome is the result of one end.
type kubeOutcome uint8

const (
	endUndecided kubeOutcome = iota
	endDefault
	endAccepts // by its owner's NetworkPolicies, who speaks for this end
	endDecrees // by a ClusterNetworkPolicy: it speaks for both ends
	endWithholds
	endRefuses
)

// judgeKubernetes combines the kube statements that cover one cell: what they
// come to, the rules that decided, and of what is not allowed which ranks of rules
// that accept names go before it. Of two ends that withhold, the
// destination's counts as the one that does, so that a closed destination is
// closed by the same authors to everyone.
func judgeKubernetes(covering []*statement) (kubeVerdict, []bocage.Ref, bocage.Ranks) {
	none := bocage.Ranks{}
	if len(covering) == 0 {
		return kubeSilent, nil, none
	}
	source, destination := natureOf(covering, false), natureOf(covering, true)
	if source == kubeOutside && destination == kubeOutside {
		return kubeSilent, nil, none
	}
	egress, byEgress, ranks := kubeEnd(covering, false, source, destination)
	ingress, byIngress, _ := kubeEnd(covering, true, destination, source)
	switch {
	case egress == endRefuses || ingress == endRefuses:
		var by []bocage.Ref
		if egress == endRefuses {
			by = append(by, byEgress...)
		}
		if ingress == endRefuses {
			by, ranks = append(by, byIngress...), none
		}
		return kubeRefuses, by, ranks
	case ingress == endWithholds:
		return kubeWithholds, byIngress, none
	case egress == endWithholds:
		return kubeWithholds, byEgress, ranks
	case opens(egress, ingress):
		return kubeAllows, slices.Concat(byEgress, byIngress), none
	}
	return kubeSilent, nil, ranks
}

// opens reports whether ends that do not deny come to an allow: the destination has to
// consent, unless an administrator accepts for it at the source.
func opens(egress, ingress kubeOutcome) bool {
	switch ingress {
	case endAccepts, endDecrees:
		return true
	case endDefault:
		return egress != endUndecided
	}
	return egress == endDecrees
}

// natureOf tells what an end is: kubePod, kubePlain or kubeOutside.
func natureOf(covering []*statement, ingress bool) kubeAction {
	unsaid := kubeOutside
	for _, s := range covering {
		switch r := s.kube; {
		case r.tier != kubeEnds:
		case r.action == kubePods:
			unsaid = kubePod
		case r.ingress == ingress:
			return r.action
		}
	}
	return unsaid
}

// kubeEnd goes through the tiers of one end. The ranks are zero where they are what
// Decision.Yields takes them for.
func kubeEnd(covering []*statement, ingress bool, here, there kubeAction) (kubeOutcome, []bocage.Ref, bocage.Ranks) {
	if here == kubeOutside {
		return endDefault, nil, bocage.Ranks{}
	}
	var isolating []*statement
	var accepting []*statement
	var admin, baseline *statement // the first that matches
	for _, s := range covering {
		r := s.kube
		if r.tier == kubeEnds || r.ingress != ingress || r.among && there == kubeOutside {
			continue
		}
		switch {
		case r.tier == kubeAdmin && (admin == nil || compareKube(s, admin) < 0):
			admin = s
		case r.tier == kubeBaseline && (baseline == nil || compareKube(s, baseline) < 0):
			baseline = s
		case r.action == kubeIsolate:
			isolating = append(isolating, s)
		case r.tier == kubeNetwork:
			accepting = append(accepting, s)
		}
	}
	var ranks bocage.Ranks
	if admin != nil { // it denies, or passes: then Baseline may accept a name all the same
		ranks.Admin = admin.kube.order
	}
	switch {
	case admin != nil && admin.kube.action == kubeAccept:
		return endDecrees, admin.by, ranks
	case admin != nil && admin.kube.action == kubeDeny:
		return endRefuses, admin.by, ranks
	case len(isolating) > 0 && len(accepting) > 0:
		return endAccepts, kubeAuthors(accepting), ranks
	case len(isolating) > 0:
		return endWithholds, kubeAuthors(isolating), ranks
	}
	if admin != nil || baseline != nil {
		ranks = bocage.Ranks{Admin: cmp.Or(ranks.Admin, bocage.EveryRank), Baseline: bocage.EveryRank}
	}
	if baseline != nil {
		ranks.Baseline = baseline.kube.order
	}
	switch {
	case baseline != nil && baseline.kube.action == kubeAccept:
		return endDecrees, baseline.by, ranks
	case baseline != nil && baseline.kube.action == kubeDeny:
		return endWithholds, baseline.by, ranks
	case here == kubePod:
		return endDefault, nil, ranks
	}
	return endUndecided, nil, ranks
}

// ranks is the place of a rule that accepts a name.
func (r *kubeRule) ranks() bocage.Ranks {
	if r.tier == kubeBaseline {
		return bocage.Ranks{Baseline: r.order}
	}
	return bocage.Ranks{Admin: r.order}
}

// compareKube orders the statements of rules. What has no author comes first.
func compareKube(a, b *statement) int {
	switch x, y := a.kube, b.kube; {
	case x.priority != y.priority:
		return cmp.Compare(x.priority, y.priority)
	case len(a.by) == 0 || len(b.by) == 0:
		return cmp.Compare(len(a.by), len(b.by))
	case a.by[0].Namespace != b.by[0].Namespace:
		return cmp.Compare(a.by[0].Namespace+"/", b.by[0].Namespace+"/")
	case a.by[0].Name != b.by[0].Name:
		return cmp.Compare(a.by[0].Name, b.by[0].Name)
	default:
		return cmp.Compare(x.rank, y.rank)
	}
}

// kubeAuthors lists who stated, in order.
func kubeAuthors(statements []*statement) []bocage.Ref {
	slices.SortStableFunc(statements, compareKube)
	var by []bocage.Ref
	for _, s := range statements {
		by = append(by, s.by...)
	}
	return unique(by)
}

// stateKubernetes states what Kubernetes' policies say.
func (c *compiler) stateKubernetes() {
	pods, others := c.pop.pods()
	if len(pods) == 0 && len(c.in.networkPolicies) == 0 && len(c.in.clusterNetworkPolicies) == 0 {
		return
	}
	c.namedPorts = map[kubePortName][]namedPort{}
	in, out := c.stateNetworkPolicies()
	c.stateOwnNodes(in)
	c.stateClusterNetworkPolicies()
	c.stateEnds(pods, others, len(in), len(out))
}

// stateEnds states what the ends of cells are. Whoever is not named is a Pod or
// outside the inventory, whichever takes fewer rules: where anyone may reach
// anyone, the pairs of those outside, who may not, need a rule each; where Pods
// alone are open, those that egress is isolated from need one towards each. in
// and out are how many groups are isolated from what comes in and what goes out.
func (c *compiler) stateEnds(pods, others []int32, in, out int) {
	is := func(list []int32, what kubeAction) {
		c.state(statement{kind: kube, from: side{list: list}, to: side{any: true}, ports: everything, kube: &kubeRule{action: what}})
		c.state(statement{kind: kube, from: side{any: true}, to: side{list: list}, ports: everything, kube: &kubeRule{action: what, ingress: true}})
	}
	is(others, kubePlain)
	list := c.pop.outside()
	if outside := len(list); outside*outside > out*max(len(pods)-in, 0)+len(others)*len(pods) {
		is(pods, kubePod)
		return
	}
	is(list, kubeOutside)
	c.state(statement{kind: kube, from: side{any: true}, to: side{any: true}, ports: everything, kube: &kubeRule{action: kubePods}})
}

// stateKube states a rule about flows between its subject and its peers.
func (c *compiler) stateKube(rule kubeRule, subject, peers side, ports ports, by ...bocage.Ref) {
	s := statement{kind: kube, from: subject, to: peers, ports: ports, by: by, kube: &rule}
	if rule.ingress {
		s.from, s.to = peers, subject
	}
	c.state(s)
}

// kubePeers is the other end of a rule.
type kubePeers struct {
	everyone bool    // outside the inventory too
	list     []int32 // sorted, unless everyone
}

// stateKubeRule states a rule for its numeric and its named ports. Peers that
// hold every workload become a wide side, those outside the inventory apart.
func (c *compiler) stateKubeRule(rule kubeRule, subject side, peers kubePeers, numbers ports, names []kubePortName, by bocage.Ref) {
	state := func(subject side, peers kubePeers, ports ports) {
		if peers.everyone {
			c.stateKube(rule, subject, side{any: true}, ports, by)
			return
		}
		first, _ := slices.BinarySearch(peers.list, int32(c.pop.workloads))
		outside, workloads := peers.list[:first], peers.list[first:]
		if c.pop.isEveryWorkload(workloads) {
			wide := rule
			wide.among = true
			c.stateKube(wide, subject, side{any: true}, ports, by)
			workloads = nil
		}
		c.stateKube(rule, subject, side{list: slices.Concat(outside, workloads)}, ports, by)
	}
	state(subject, peers, numbers)
	for _, name := range names {
		meanings, known := c.namedPorts[name]
		if !known {
			meanings = c.pop.portsNamed(name.name, name.protocol)
			c.namedPorts[name] = meanings
		}
		for _, meaning := range meanings {
			groups := side{list: meaning.groups}
			switch {
			case rule.ingress:
				state(subject.meet(groups), peers, meaning.ports)
			case peers.everyone:
				state(subject, kubePeers{list: meaning.groups}, meaning.ports)
			default:
				state(subject, kubePeers{list: intersect(peers.list, meaning.groups)}, meaning.ports)
			}
		}
	}
}

// kubePortName is a port that a rule means by name.
type kubePortName struct{ name, protocol string }

// stateNetworkPolicies states isolation and what the rules allow. It returns the
// groups of workloads that some policy isolates from what comes in, and from what
// goes out.
func (c *compiler) stateNetworkPolicies() (in, out []int32) {
	for _, p := range c.in.networkPolicies {
		rank := 0
		subject := side{list: c.pop.match([]string{p.Namespace}, &p.Spec.PodSelector)}
		if subject.empty() {
			c.findings.note(Ref("NetworkPolicy", p, "spec.podSelector"), NoWorkloads, "no workload in %s has these labels today", p.Namespace)
			continue
		}
		by := Ref("NetworkPolicy", p, "spec.podSelector")
		if networkPolicyIs(p, bocage.PolicyTypeIngress) {
			in = append(in, subject.list...)
			c.stateKube(kubeRule{ingress: true, tier: kubeNetwork, action: kubeIsolate, rank: rank}, subject, side{any: true}, everything, by)
			for i, r := range p.Spec.Ingress {
				rank++
				ports, names := networkPorts(r.Ports)
				c.stateKubeRule(kubeRule{ingress: true, tier: kubeNetwork, action: kubeAccept, rank: rank},
					subject, c.networkPeers(p, r.From), ports, names, Ref("NetworkPolicy", p, field("spec.ingress", i)))
			}
		}
		if networkPolicyIs(p, bocage.PolicyTypeEgress) {
			rank++
			out = append(out, subject.list...)
			c.stateKube(kubeRule{tier: kubeNetwork, action: kubeIsolate, rank: rank}, subject, side{any: true}, everything, by)
			for i, r := range p.Spec.Egress {
				rank++
				ports, names := networkPorts(r.Ports)
				c.stateKubeRule(kubeRule{tier: kubeNetwork, action: kubeAccept, rank: rank},
					subject, c.networkPeers(p, r.To), ports, names, Ref("NetworkPolicy", p, field("spec.egress", i)))
			}
		}
	}
	return sortedOnce(in), sortedOnce(out)
}

// networkPolicyIs reports whether the policy is about a direction. By default it
// is about ingress, and about egress if it has rules for it.
func networkPolicyIs(p *bocage.NetworkPolicy, direction string) bool {
	if len(p.Spec.PolicyTypes) == 0 {
		return direction == bocage.PolicyTypeIngress || len(p.Spec.Egress) > 0
	}
	return slices.Contains(p.Spec.PolicyTypes, direction)
}

// networkPeers resolves the peers of a rule; none are everyone.
func (c *compiler) networkPeers(p *bocage.NetworkPolicy, peers []bocage.NetworkPolicyPeer) kubePeers {
	if len(peers) == 0 {
		return kubePeers{everyone: true}
	}
	var out []int32
	without := map[netip.Prefix][]int32{} // by block: whom each of its peers leaves out
	for _, peer := range peers {
		switch {
		case peer.IPBlock != nil:
			c.addBlock(without, peer.IPBlock)
		case peer.NamespaceSelector != nil:
			out = append(out, c.pop.matchNamespaced(peer.NamespaceSelector, peer.PodSelector)...)
		default:
			out = append(out, c.pop.match([]string{p.Namespace}, peer.PodSelector)...)
		}
	}
	for block, left := range without {
		for _, i := range c.pop.within(block) {
			if _, excepted := slices.BinarySearch(left, i); !excepted {
				out = append(out, i)
			}
		}
	}
	return kubePeers{list: sortedOnce(out)}
}

// addBlock adds a block of a rule's peers: of several with one CIDR, only what all
// of them except is left out. A wide one is looked through once, however often it
// stands there.
func (c *compiler) addBlock(without map[netip.Prefix][]int32, b *bocage.IPBlock) {
	block := blockOf(b.CIDR)
	left, again := without[block]
	if again && len(left) == 0 {
		return
	}
	var excepted []int32
	for _, except := range b.Except {
		excepted = append(excepted, c.pop.within(blockOf(except))...)
	}
	excepted = sortedOnce(excepted)
	if again {
		excepted = intersect(left, excepted)
	}
	without[block] = excepted
}

// blockOf reads a CIDR that was validated.
func blockOf(cidr string) netip.Prefix {
	prefix, err := netip.ParsePrefix(cidr)
	if err != nil {
		return netip.Prefix{}
	}
	return canonicalPrefix(prefix)
}

func single(address netip.Addr) netip.Prefix { return netip.PrefixFrom(address, address.BitLen()) }

func sortedOnce(list []int32) []int32 {
	slices.Sort(list)
	return slices.Compact(list)
}

// networkPorts resolves the ports of a rule, numbers and names apart; none are
// every protocol.
func networkPorts(list []bocage.NetworkPolicyPort) (ports, []kubePortName) {
	if len(list) == 0 {
		return everything, nil
	}
	var numbers ports
	var names []kubePortName
	for _, p := range list {
		switch {
		case p.Port == nil:
			numbers.ranges = append(numbers.ranges, protocolRange{protocolOf(string(p.Protocol)), bocage.AllPorts})
		case p.Port.Name != "":
			names = append(names, kubePortName{p.Port.Name, protocolName(string(p.Protocol))})
		default:
			first, last := p.Port.Number, p.Port.Number
			if p.EndPort != nil {
				last = *p.EndPort
			}
			numbers.ranges = append(numbers.ranges, protocolRange{protocolOf(string(p.Protocol)), bocage.PortRange{First: uint16(first), Last: uint16(last)}})
		}
	}
	return numbers.normal(), names
}

func protocolOf(name string) bocage.Protocol {
	protocol, err := bocage.ParseProtocol(protocolName(name))
	if err != nil {
		return bocage.ProtocolTCP // only valid objects come here
	}
	return protocol
}

// stateOwnNodes lets every node reach the Pods that run on it, whatever isolates
// them: no NetworkPolicy keeps health checks out.
func (c *compiler) stateOwnNodes(isolated []int32) {
	for _, host := range c.in.hosts {
		var addresses []int32
		for _, address := range host.Spec.Addresses {
			addresses = append(addresses, c.pop.within(single(address))...)
		}
		if len(addresses) == 0 {
			continue
		}
		here := c.pop.match(nil, &bocage.Selector{MatchLabels: map[string]string{bocage.LabelHost: host.Name}})
		c.stateKube(kubeRule{ingress: true, tier: kubeNetwork, action: kubeAccept},
			side{list: intersect(here, isolated)}, side{list: sortedOnce(addresses)}, everything)
	}
}

// networkPolicy notes what a policy asks about workloads, so that those who
// answer differently are told apart.
func (q *asked) networkPolicy(p *bocage.NetworkPolicy) {
	q.selector(&p.Spec.PodSelector)
	eachNetworkRule(p, func(ports []bocage.NetworkPolicyPort, peers []bocage.NetworkPolicyPeer) {
		_, names := networkPorts(ports)
		for _, name := range names {
			q.port(name.name)
		}
		for _, peer := range peers {
			q.selector(peer.PodSelector)
		}
	})
	eachNetworkBlock(p, q.block)
}

func (q *asked) clusterNetworkPolicy(p *bocage.ClusterNetworkPolicy) {
	pods := func(pods *bocage.NamespacedPod) {
		if pods != nil {
			q.selector(pods.PodSelector)
		}
	}
	protocols := func(list []bocage.ClusterNetworkPolicyProtocol) {
		_, names := clusterPorts(list)
		for _, name := range names {
			q.port(name.name)
		}
	}
	pods(p.Spec.Subject.Pods)
	for _, r := range p.Spec.Ingress {
		protocols(r.Protocols)
		for _, peer := range r.From {
			pods(peer.Pods)
		}
	}
	for _, r := range p.Spec.Egress {
		protocols(r.Protocols)
		for _, peer := range r.To {
			pods(peer.Pods)
		}
	}
	eachClusterBlock(p, q.block)
}

// nodes notes what hosts ask: a node reaches its own Pods.
func (q *asked) nodes(in *admitted) {
	if len(in.networkPolicies) > 0 {
		for _, host := range in.hosts {
			if len(host.Spec.Addresses) > 0 {
				q.value(label{bocage.LabelHost, host.Name})
			}
		}
	}
	in.eachNodeAddress(q.block)
}

// sameNodes reports whether hosts mean the same to two sets of policies.
func sameNodes(was, now *admitted) bool {
	return was != now && (len(was.networkPolicies) > 0) == (len(now.networkPolicies) > 0) && was.meansNodes() == now.meansNodes() && slices.Equal(was.hosts, now.hosts)
}

func eachNetworkRule(p *bocage.NetworkPolicy, visit func([]bocage.NetworkPolicyPort, []bocage.NetworkPolicyPeer)) {
	for _, r := range p.Spec.Ingress {
		visit(r.Ports, r.From)
	}
	for _, r := range p.Spec.Egress {
		visit(r.Ports, r.To)
	}
}

// eachNetworkBlock visits the blocks of addresses that a policy names.
func eachNetworkBlock(p *bocage.NetworkPolicy, visit func(netip.Prefix)) {
	eachNetworkRule(p, func(_ []bocage.NetworkPolicyPort, peers []bocage.NetworkPolicyPeer) {
		for _, peer := range peers {
			if peer.IPBlock == nil {
				continue
			}
			visit(blockOf(peer.IPBlock.CIDR))
			for _, except := range peer.IPBlock.Except {
				visit(blockOf(except))
			}
		}
	})
}

func eachClusterBlock(p *bocage.ClusterNetworkPolicy, visit func(netip.Prefix)) {
	for _, r := range p.Spec.Egress {
		for _, peer := range r.To {
			for _, cidr := range peer.Networks {
				visit(blockOf(cidr))
			}
		}
	}
}

// meansNodes reports whether some policy means hosts by their addresses.
func (in *admitted) meansNodes() bool {
	return len(in.networkPolicies) > 0 || slices.ContainsFunc(in.clusterNetworkPolicies, func(p *bocage.ClusterNetworkPolicy) bool {
		return slices.ContainsFunc(p.Spec.Egress, func(r bocage.ClusterNetworkPolicyEgressRule) bool {
			return slices.ContainsFunc(r.To, func(peer bocage.ClusterNetworkPolicyEgressPeer) bool { return peer.Nodes != nil })
		})
	})
}

// eachNodeAddress visits the addresses of the hosts that policies mean.
func (in *admitted) eachNodeAddress(visit func(netip.Prefix)) {
	if !in.meansNodes() {
		return
	}
	for _, host := range in.hosts {
		for _, address := range host.Spec.Addresses {
			visit(single(address))
		}
	}
}

// followKubernetesPrefixes brings up to date which blocks policies name. Blocks
// stand for workloads too: see within.
func (p *population) followKubernetesPrefixes(was, now *admitted, d *change) {
	count := func(by int32) func(netip.Prefix) {
		name := p.namePrefix(by, nil)
		return func(prefix netip.Prefix) {
			if prefix = canonicalPrefix(prefix); prefix.IsValid() {
				name(bocage.Ref{}, prefix)
			}
		}
	}
	if d.of(kindNetworkPolicy) {
		eachChange(was.networkPolicies, now.networkPolicies, compareNames[*bocage.NetworkPolicy],
			func(o *bocage.NetworkPolicy) { eachNetworkBlock(o, count(-1)) }, func(o *bocage.NetworkPolicy) { eachNetworkBlock(o, count(1)) })
	}
	if d.of(kindClusterNetworkPolicy) {
		eachChange(was.clusterNetworkPolicies, now.clusterNetworkPolicies, compareNames[*bocage.ClusterNetworkPolicy],
			func(o *bocage.ClusterNetworkPolicy) {
				eachClusterBlock(o, count(-1))
				clusterNamesOf(o, p.domains.count(-1))
			}, func(o *bocage.ClusterNetworkPolicy) {
				eachClusterBlock(o, count(1))
				clusterNamesOf(o, p.domains.count(1))
			})
	}
	if d.of(kindHost, kindNetworkPolicy, kindClusterNetworkPolicy) && !sameNodes(was, now) {
		was.eachNodeAddress(count(-1))
		now.eachNodeAddress(count(1))
	}
}
