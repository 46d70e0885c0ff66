package gather

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// drawnPod is a Pod as its author thinks of it. What policies in Kubernetes' words
// mean for it is written here once more, plainly, from upstream's documents.
type drawnPod struct {
	namespace, name string
	labels          map[string]string
	node            string
	addresses       []netip.Addr
	onNode, ended   bool
	listens         []listener // of all containers that go on
	object          map[string]any
}

type listener struct {
	name     string
	protocol bocage.Protocol
	port     uint16
}

type drawnNode struct {
	name      string
	labels    map[string]string
	addresses []netip.Addr
}

// drawnCluster is one as files would say it.
type drawnCluster struct {
	pods       []*drawnPod
	nodes      []drawnNode
	namespaces map[string]map[string]string
	policies   []*bocage.NetworkPolicy
	admin      []*bocage.ClusterNetworkPolicy
	baseline   []*bocage.ClusterNetworkPolicy
	documents  []any
}

var clusterNamespaces = []string{"x", "y", "z"}

var clusterWords = policytest.KubernetesWords{
	Namespaces: clusterNamespaces,
	Ports:      []uint16{1, 53, 80, 81, 443, 8080, 65535},
	PortNames:  []string{"web", "dns", "none"},
	Blocks: []bocage.IPBlock{
		{CIDR: "10.0.0.0/8", Except: []string{"10.0.0.0/30"}}, {CIDR: "0.0.0.0/0", Except: []string{"10.0.0.4/31", "192.0.2.128/25"}},
		{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.1/32"}}, {CIDR: "10.0.0.2/32"}, {CIDR: "::/0", Except: []string{"2001:db8::/64"}}, {CIDR: "2001:db8::/32"},
	},
	Selector:          func(t *rapid.T) bocage.Selector { return drawSelector(t, "") },
	NamespaceSelector: func(t *rapid.T) bocage.Selector { return drawSelector(t, bocage.LabelNamespaceName) },
}

func drawSelector(t *rapid.T, name string) bocage.Selector {
	var s bocage.Selector
	keys := []string{"app", "tier"}
	switch rapid.IntRange(0, 5).Draw(t, "selector") {
	case 0:
	case 1:
		if name != "" {
			s.MatchLabels = map[string]string{name: rapid.SampledFrom(clusterNamespaces).Draw(t, "namespace")}
		}
	case 2:
		s.MatchLabels = map[string]string{rapid.SampledFrom(keys).Draw(t, "key"): rapid.SampledFrom([]string{"a", "b"}).Draw(t, "value")}
	default:
		r := bocage.Requirement{Key: rapid.SampledFrom(keys).Draw(t, "key"), Operator: rapid.SampledFrom([]string{"In", "NotIn", "Exists", "DoesNotExist"}).Draw(t, "operator")}
		if r.Operator == "In" || r.Operator == "NotIn" {
			r.Values = []string{"a", "b", ""}[:rapid.IntRange(1, 3).Draw(t, "values")]
		}
		s.MatchExpressions = []bocage.Requirement{r}
	}
	return s
}

func drawLabels(t *rapid.T) map[string]string {
	out := map[string]string{}
	for _, key := range []string{"app", "tier"} {
		if rapid.Bool().Draw(t, "labelled") {
			out[key] = rapid.SampledFrom([]string{"a", "b", ""}).Draw(t, "value")
		}
	}
	return out
}

func drawCluster(t *rapid.T) *drawnCluster {
	c := &drawnCluster{namespaces: map[string]map[string]string{}}
	for _, name := range clusterNamespaces {
		c.namespaces[name] = map[string]string{bocage.LabelNamespaceName: name}
		if rapid.IntRange(0, 3).Draw(t, "declared") > 0 {
			of := drawLabels(t)
			c.documents = append(c.documents, map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name, "labels": of}})
			for key, value := range of {
				c.namespaces[name][key] = value
			}
		}
	}
	for i := range 2 {
		n := drawnNode{name: fmt.Sprintf("node%d", i), labels: drawLabels(t), addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i*128)})}}
		if rapid.Bool().Draw(t, "both families") {
			n.addresses = append(n.addresses, netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i+1)))
		}
		var addresses []map[string]any
		for _, a := range n.addresses {
			addresses = append(addresses, map[string]any{"type": rapid.SampledFrom([]string{"InternalIP", "ExternalIP"}).Draw(t, "type"), "address": a.String()})
		}
		addresses = append(addresses, map[string]any{"type": "Hostname", "address": n.name})
		c.nodes = append(c.nodes, n)
		c.documents = append(c.documents, map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": n.name, "labels": n.labels},
			"status": map[string]any{"addresses": addresses}})
	}
	for i := range rapid.IntRange(1, 7).Draw(t, "pods") {
		p := c.drawPod(t, i)
		c.pods, c.documents = append(c.pods, p), append(c.documents, p.object)
	}
	c.policies = clusterWords.NetworkPolicies(t, 4)
	for _, p := range c.policies {
		p.TypeMeta = bocage.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
		c.documents = append(c.documents, p)
	}
	for _, p := range clusterWords.ClusterNetworkPolicies(t, 3) {
		p.TypeMeta = bocage.TypeMeta{APIVersion: "policy.networking.k8s.io/v1alpha2", Kind: "ClusterNetworkPolicy"}
		c.documents = append(c.documents, p)
		if p.Spec.Tier == "Admin" {
			c.admin = append(c.admin, p)
		} else {
			c.baseline = append(c.baseline, p)
		}
	}
	for _, tier := range [][]*bocage.ClusterNetworkPolicy{c.admin, c.baseline} {
		slices.SortFunc(tier, func(a, b *bocage.ClusterNetworkPolicy) int {
			return cmp.Or(cmp.Compare(*a.Spec.Priority, *b.Spec.Priority), cmp.Compare(a.Name, b.Name))
		})
	}
	return c
}

// drawPod makes one with an address of its own or on its node's network, going on
// or over, with containers of which some have named ports.
func (c *drawnCluster) drawPod(t *rapid.T, i int) *drawnPod {
	p := &drawnPod{namespace: rapid.SampledFrom(clusterNamespaces).Draw(t, "namespace"), name: fmt.Sprintf("p%d", i), labels: drawLabels(t)}
	node := rapid.SampledFrom(c.nodes).Draw(t, "node")
	p.node = node.name
	phase := rapid.SampledFrom([]string{"Running", "Running", "Running", "Pending", "Succeeded", "Failed", ""}).Draw(t, "phase")
	p.ended = phase == "Succeeded" || phase == "Failed"
	switch n := i; rapid.IntRange(0, 5).Draw(t, "addresses") {
	case 0:
		p.onNode, p.addresses = true, node.addresses
	case 1:
		p.addresses = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n+1))}
	case 2:
		p.addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n + 1)}), netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n+1))}
	default:
		if p.ended { // what it had may be another's by now
			n = max(0, n-1)
		}
		p.addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n + 1)})}
	}
	taken := map[string]bool{}
	containers := func(most int, initial bool) []any {
		var out []any
		for range rapid.IntRange(0, most).Draw(t, "containers") {
			stays := !initial || rapid.Bool().Draw(t, "sidecar")
			var ports []any
			names := map[string]bool{}
			for range rapid.IntRange(0, 2).Draw(t, "ports") {
				name := rapid.SampledFrom([]string{"web", "dns", ""}).Draw(t, "name")
				protocol := rapid.SampledFrom([]string{"", "TCP", "UDP", "SCTP"}).Draw(t, "protocol")
				port := rapid.SampledFrom(clusterWords.Ports).Draw(t, "port")
				what := name + "/" + cmp.Or(protocol, "TCP")
				if name != "" && (names[name] || taken[what]) {
					continue
				}
				names[name] = true
				entry := map[string]any{"containerPort": port}
				if name != "" {
					entry["name"] = name
				}
				if protocol != "" {
					entry["protocol"] = protocol
				}
				ports = append(ports, entry)
				if stays && name != "" {
					taken[what] = true
					number := map[string]bocage.Protocol{"": 6, "TCP": 6, "UDP": 17, "SCTP": 132}[protocol]
					p.listens = append(p.listens, listener{name, number, port})
				}
			}
			container := map[string]any{"name": "c", "ports": ports}
			if initial && stays {
				container["restartPolicy"] = "Always"
			}
			out = append(out, container)
		}
		return out
	}
	spec := map[string]any{"nodeName": p.node, "containers": containers(3, false), "initContainers": containers(2, true)}
	if p.onNode {
		spec["hostNetwork"] = true
	}
	status := map[string]any{"phase": phase, "podIP": p.addresses[0].String()}
	var all []any
	for _, a := range p.addresses {
		all = append(all, map[string]any{"ip": a.String()})
	}
	status["podIPs"] = all
	p.object = map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"namespace": p.namespace, "name": p.name, "labels": p.labels}, "spec": spec, "status": status}
	return p
}

// TestReachesAsUpstream gathers drawn clusters from files and compares every cell of
// theirs with what upstream's documents say about it.
func TestReachesAsUpstream(t *testing.T) {
	cells, open := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		c := drawCluster(t)
		g := New(Options{Strict: true})
		for i, document := range c.documents {
			data, err := json.Marshal(document)
			if err != nil {
				t.Fatal(err)
			}
			g.Read(fmt.Sprintf("%d.json", i), data)
		}
		out, faults := g.Done()
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		in := out.Input
		in.Now = policytest.Now
		rs := compile.Compile(in).Ruleset()
		for _, from := range c.ends() {
			for _, to := range c.ends() {
				if from.pod == nil && to.pod == nil || from.pod == to.pod || from.address.Is4() != to.address.Is4() {
					continue
				}
				for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolSCTP, bocage.ProtocolICMP} {
					for _, port := range []uint16{1, 53, 80, 82, 443, 65535} {
						if !protocol.HasPorts() {
							port = 0
						}
						want := c.reaches(from, to, protocol, port)
						f := bocage.Flow{Source: from.address, Destination: to.address, Protocol: protocol, DestinationPort: port, At: in.Now}
						_, reason := rs.Decide(f)
						if reason.Would.Allowed() != want {
							data, _ := json.MarshalIndent(c.documents, "", " ")
							t.Fatalf("%s: upstream says %t, we %s (%s)\n%s", f, want, reason.Would, reason.Code, data)
						}
						if cells++; want {
							open++
						}
					}
				}
			}
		}
	})
	t.Logf("%d cells, %d of them open", cells, open)
}

type clusterEnd struct {
	address netip.Addr
	pod     *drawnPod // nil: a node, a Pod on a node's network, or somebody outside
}

func (c *drawnCluster) ends() []clusterEnd {
	var out []clusterEnd
	for _, p := range c.pods {
		if !p.onNode && !p.ended {
			for _, a := range p.addresses {
				out = append(out, clusterEnd{a, p})
			}
		}
	}
	for _, n := range c.nodes {
		for _, a := range n.addresses {
			out = append(out, clusterEnd{a, nil})
		}
	}
	for _, text := range []string{"203.0.113.9", "192.0.2.77", "192.0.2.200", "10.0.0.250", "2001:db8::ffff", "2001:dead::1"} {
		out = append(out, clusterEnd{netip.MustParseAddr(text), nil})
	}
	return out
}

// reaches: traffic passes if egress of the one Pod and ingress of the other allow it.
func (c *drawnCluster) reaches(from, to clusterEnd, protocol bocage.Protocol, port uint16) bool {
	return c.lets(from.pod, from, to, to, protocol, port, false) && c.lets(to.pod, from, to, from, protocol, port, true)
}

// lets says what the policies of one Pod say, tier by tier; peer is the other end.
func (c *drawnCluster) lets(subject *drawnPod, from, to, peer clusterEnd, protocol bocage.Protocol, port uint16, ingress bool) bool {
	if subject == nil {
		return true
	}
	switch c.first(c.admin, subject, from, to, protocol, port, ingress) {
	case "Accept":
		return true
	case "Deny":
		return false
	}
	isolated := false
	for _, p := range c.policies {
		types := p.Spec.PolicyTypes
		if len(types) == 0 {
			types = []string{"Ingress"}
			if len(p.Spec.Egress) > 0 {
				types = append(types, "Egress")
			}
		}
		if p.Namespace != subject.namespace || !picks(p.Spec.PodSelector, subject.labels) || !slices.Contains(types, map[bool]string{true: "Ingress", false: "Egress"}[ingress]) {
			continue
		}
		isolated = true
		if ingress {
			for _, rule := range p.Spec.Ingress {
				if c.anyPort(rule.Ports, to, protocol, port) && c.anyPeer(p, rule.From, peer) {
					return true
				}
			}
		} else {
			for _, rule := range p.Spec.Egress {
				if c.anyPort(rule.Ports, to, protocol, port) && c.anyPeer(p, rule.To, peer) {
					return true
				}
			}
		}
	}
	if isolated { // a node always reaches the Pods that it runs
		return ingress && slices.ContainsFunc(c.nodes, func(n drawnNode) bool { return n.name == subject.node && slices.Contains(n.addresses, from.address) })
	}
	return c.first(c.baseline, subject, from, to, protocol, port, ingress) != "Deny"
}

func (c *drawnCluster) anyPort(ports []bocage.NetworkPolicyPort, to clusterEnd, protocol bocage.Protocol, port uint16) bool {
	if len(ports) == 0 {
		return true
	}
	for _, p := range ports {
		if map[string]bocage.Protocol{"TCP": 6, "UDP": 17, "SCTP": 132}[cmp.Or(string(p.Protocol), "TCP")] != protocol {
			continue
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.Name != "":
			if to.listensAs(p.Port.Name, protocol, port) {
				return true
			}
		case p.EndPort != nil:
			if p.Port.Number <= int32(port) && int32(port) <= *p.EndPort {
				return true
			}
		case p.Port.Number == int32(port):
			return true
		}
	}
	return false
}

func (e clusterEnd) listensAs(name string, protocol bocage.Protocol, port uint16) bool {
	return e.pod != nil && slices.Contains(e.pod.listens, listener{name, protocol, port})
}

func (c *drawnCluster) anyPeer(p *bocage.NetworkPolicy, peers []bocage.NetworkPolicyPeer, end clusterEnd) bool {
	for _, peer := range peers {
		if peer.IPBlock != nil {
			if inside(peer.IPBlock.CIDR, end.address) && !slices.ContainsFunc(peer.IPBlock.Except, func(cidr string) bool { return inside(cidr, end.address) }) {
				return true
			}
			continue
		}
		if end.pod == nil {
			continue
		}
		there := end.pod.namespace == p.Namespace
		if peer.NamespaceSelector != nil {
			there = picks(*peer.NamespaceSelector, c.namespaces[end.pod.namespace])
		}
		if there && (peer.PodSelector == nil || picks(*peer.PodSelector, end.pod.labels)) {
			return true
		}
	}
	return len(peers) == 0
}

// first is the action of the first rule of a tier that is about the traffic.
func (c *drawnCluster) first(tier []*bocage.ClusterNetworkPolicy, subject *drawnPod, from, to clusterEnd, protocol bocage.Protocol, port uint16, ingress bool) string {
	for _, p := range tier {
		if !c.means(p.Spec.Subject.Namespaces, p.Spec.Subject.Pods, subject) {
			continue
		}
		if ingress {
			for _, rule := range p.Spec.Ingress {
				for _, peer := range rule.From {
					if c.anyProtocol(rule.Protocols, to, protocol, port) && c.means(peer.Namespaces, peer.Pods, from.pod) {
						return rule.Action
					}
				}
			}
			continue
		}
		for _, rule := range p.Spec.Egress {
			for _, peer := range rule.To {
				if c.anyProtocol(rule.Protocols, to, protocol, port) && (c.means(peer.Namespaces, peer.Pods, to.pod) ||
					peer.Nodes != nil && slices.ContainsFunc(c.nodes, func(n drawnNode) bool {
						return slices.Contains(n.addresses, to.address) && picks(*peer.Nodes, n.labels)
					}) ||
					slices.ContainsFunc(peer.Networks, func(cidr string) bool { return inside(cidr, to.address) })) {
					return rule.Action
				}
			}
		}
	}
	return ""
}

func (c *drawnCluster) means(namespaces *bocage.Selector, pods *bocage.NamespacedPod, p *drawnPod) bool {
	switch {
	case p == nil:
		return false
	case namespaces != nil:
		return picks(*namespaces, c.namespaces[p.namespace])
	}
	return pods != nil && picks(pods.NamespaceSelector, c.namespaces[p.namespace]) && picks(*pods.PodSelector, p.labels)
}

func (c *drawnCluster) anyProtocol(entries []bocage.ClusterNetworkPolicyProtocol, to clusterEnd, protocol bocage.Protocol, port uint16) bool {
	for _, entry := range entries {
		if entry.DestinationNamedPort != nil {
			if to.listensAs(*entry.DestinationNamedPort, protocol, port) {
				return true
			}
			continue
		}
		transport := map[bocage.Protocol]*bocage.ClusterNetworkPolicyTransport{6: entry.TCP, 17: entry.UDP, 132: entry.SCTP}[protocol]
		if transport == nil {
			continue
		}
		switch d := transport.DestinationPort; {
		case d == nil:
			return true
		case d.Range != nil:
			if d.Range.Start <= int32(port) && int32(port) <= d.Range.End {
				return true
			}
		case *d.Number == int32(port):
			return true
		}
	}
	return len(entries) == 0
}

func inside(cidr string, a netip.Addr) bool {
	p := netip.MustParsePrefix(cidr)
	return p.Contains(a)
}

// picks reads a selector as upstream documents it.
func picks(s bocage.Selector, of map[string]string) bool {
	for key, value := range s.MatchLabels {
		if has, is := of[key]; !is || has != value {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		has, is := of[r.Key]
		among := is && slices.Contains(r.Values, has)
		if !map[string]bool{"In": among, "NotIn": !among, "Exists": is, "DoesNotExist": !is}[r.Operator] {
			return false
		}
	}
	return true
}
