package compile

import (
	"cmp"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// stateScopes says what becomes of connections to the scopes' workloads that
// nobody but default deny or Kubernetes refuses.
func (c *compiler) stateScopes() {
	for _, s := range c.in.scopes {
		c.checkSelector(Ref("Scope", s, "spec.workload"), s.Spec.Namespaces, &s.Spec.Workload)
		if wished(s.Spec.Disposition) == bocage.VerdictReject {
			c.state(statement{kind: disposeSilent, from: side{any: true}, to: side{list: c.pop.match(s.Spec.Namespaces, &s.Spec.Workload)},
				ports: everything, by: []bocage.Ref{Ref("Scope", s, "spec.disposition")}, disposition: bocage.VerdictReject})
		}
	}
}

// stateDecoys diverts refused connections. A port of a workload wears one face:
// of two decoys that would give it different ones, the first by name does.
func (c *compiler) stateDecoys() {
	type worn struct {
		decoy   *bocage.Decoy
		targets []int32
	}
	byPort := map[uint16][]worn{}
	for _, d := range c.in.decoys {
		c.checkSide("Decoy", d, "spec.for", &d.Spec.For)
		c.checkSide("Decoy", d, "spec.from", &d.Spec.From)
		targets := c.decoyTargets(d)
		for _, other := range byPort[d.Spec.Port] {
			if sameFace(other.decoy, d) {
				continue
			}
			if rest := without(targets, other.targets); len(rest) < len(targets) {
				c.findings.reject(Ref("Decoy", d, "spec.for"), PortTaken,
					"port %d of some of its workloads wears the face of Decoy %s: use the same protocol and banner, another port, or other workloads",
					d.Spec.Port, other.decoy.Name)
				targets = rest
			}
		}
		byPort[d.Spec.Port] = append(byPort[d.Spec.Port], worn{d, targets})
		c.state(statement{kind: divert, from: c.pop.side(d.Spec.From), to: side{list: targets},
			ports: transport(d.Spec.Port, 0, "TCP"), by: []bocage.Ref{Ref("Decoy", d, "spec")}})
	}
	for _, sharing := range byPort {
		for _, w := range sharing {
			placement := bocage.DecoyPlacement{Name: w.decoy.Name, Protocol: w.decoy.Spec.Protocol, Port: w.decoy.Spec.Port, Banner: w.decoy.Spec.Banner}
			if len(sharing) > 1 {
				placement.For = c.addresses(w.targets)
			}
			if len(w.targets) > 0 {
				c.placements = append(c.placements, placement)
			}
		}
	}
	slices.SortFunc(c.placements, func(a, b bocage.DecoyPlacement) int { return cmp.Compare(a.Name, b.Name) })
}

// decoyTargets are workloads only: nobody wears the face of an address outside.
func (c *compiler) decoyTargets(d *bocage.Decoy) []int32 {
	return c.pop.match(d.Spec.For.Namespaces, d.Spec.For.Workload)
}

func sameFace(a, b *bocage.Decoy) bool {
	return a.Spec.Protocol == b.Spec.Protocol && a.Spec.Banner == b.Spec.Banner
}

// without returns the members of a sorted list that another has not.
func without(list, others []int32) []int32 {
	return slices.DeleteFunc(slices.Clone(list), func(i int32) bool {
		_, found := slices.BinarySearch(others, i)
		return found
	})
}

// addresses lists those of the subjects' workloads, sorted.
func (c *compiler) addresses(subjects []int32) []netip.Prefix {
	var out []netip.Prefix
	for _, i := range subjects {
		for _, w := range c.pop.subjects[i].members {
			for _, a := range c.pop.addressesOf(&c.pop.subjects[i], w) {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	slices.SortFunc(out, comparePrefixes)
	return out
}
