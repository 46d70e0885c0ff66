package gather

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/kubernetes"
)

// place enters Pods as workloads. Those that have no address yet, and Nodes
// without one, get addresses of their own that nobody else has and that policies
// are unlikely to name: of 240.0.0.0/4, which is reserved, and of 100::/64, which
// is to be discarded.
func (g *Gatherer) place() {
	in := &g.out.Input
	pool := newPool(in, g.pods)
	slices.SortFunc(in.Hosts, func(a, b *bocage.Host) int { return cmp.Compare(a.Name, b.Name) })
	hosts := make(map[string]*bocage.Host, len(in.Hosts))
	for i, h := range in.Hosts {
		copied := *h
		in.Hosts[i], hosts[h.Name] = &copied, &copied
	}
	slices.SortFunc(g.pods, func(a, b kubernetes.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	// What Pods on a node's network say of the node's addresses comes first.
	for _, p := range g.pods {
		if h := hosts[p.Spec.Host]; p.HostNetwork && !p.Ended && h != nil {
			for _, a := range p.Spec.Addresses {
				if !slices.Contains(h.Spec.Addresses, a) {
					h.Spec.Addresses = append(slices.Clone(h.Spec.Addresses), a)
				}
			}
		}
	}
	invented := 0
	for _, h := range in.Hosts {
		if len(h.Spec.Addresses) == 0 {
			h.Spec.Addresses = pool.next()
			invented++
		}
	}
	nodes := map[string][]netip.Addr{} // that were not declared
	for _, p := range g.pods {
		name := p.NamespacedName()
		switch {
		case p.Ended:
			g.out.Unusable[name] = "Pod " + name + " has ended: nothing is there any more"
		case p.HostNetwork:
			g.out.Names[name] = p.Spec.Addresses
			if h := hosts[p.Spec.Host]; len(p.Spec.Addresses) == 0 && h != nil {
				g.out.Names[name] = h.Spec.Addresses
			} else if len(p.Spec.Addresses) == 0 {
				if nodes[p.Spec.Host] == nil || p.Spec.Host == "" {
					nodes[p.Spec.Host] = pool.next()
				}
				g.out.Names[name] = nodes[p.Spec.Host]
			}
		default:
			if len(p.Spec.Addresses) == 0 {
				p.Spec.Addresses = pool.next()
				invented++
			}
			in.Workloads = append(in.Workloads, p.Workload)
		}
	}
	if invented > 0 {
		g.note("%d Pods and Nodes without an address got one of 240.0.0.0/4 and one of 100::/64", invented)
	}
}

// pool gives out addresses that nobody has.
type pool struct {
	taken map[netip.Addr]bool
	count uint32
}

func newPool(in *compile.Input, pods []kubernetes.Pod) *pool {
	p := &pool{taken: map[netip.Addr]bool{}}
	take := func(addresses []netip.Addr) {
		for _, a := range addresses {
			p.taken[a] = true
		}
	}
	for _, w := range in.Workloads {
		take(w.Spec.Addresses)
	}
	for _, h := range in.Hosts {
		take(h.Spec.Addresses)
	}
	for _, pod := range pods {
		take(pod.Spec.Addresses)
	}
	return p
}

func (p *pool) next() []netip.Addr {
	for {
		p.count++
		var v4 [4]byte
		binary.BigEndian.PutUint32(v4[:], 240<<24+p.count)
		v6 := [16]byte{0: 1}
		binary.BigEndian.PutUint32(v6[12:], p.count)
		a, b := netip.AddrFrom4(v4), netip.AddrFrom16(v6)
		if !p.taken[a] && !p.taken[b] {
			return []netip.Addr{a, b}
		}
	}
}
