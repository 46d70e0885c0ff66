package compile

import (
	"cmp"
	"slices"

	"bocage.dev/bocage"
)

// stateDecoys diverts refused connections. One port wears one face: a decoy that
// wants another face on a port that is taken is set aside.
func (c *compiler) stateDecoys() {
	byPort := map[uint16]*bocage.Decoy{}
	for _, d := range c.in.decoys {
		if first := byPort[d.Spec.Port]; first == nil {
			byPort[d.Spec.Port] = d
			c.placements = append(c.placements, bocage.DecoyPlacement{Name: d.Name, Protocol: d.Spec.Protocol, Port: d.Spec.Port, Banner: d.Spec.Banner})
		} else if first.Spec.Protocol != d.Spec.Protocol || first.Spec.Banner != d.Spec.Banner {
			c.findings.reject(Ref("Decoy", d, "spec.port"), PortTaken,
				"port %d wears the face of Decoy %s: use the same protocol and banner, or another port", d.Spec.Port, first.Name)
			continue
		}
		c.state(statement{kind: divert, from: c.pop.side(d.Spec.From), to: c.decoyTargets(d),
			ports: transport(d.Spec.Port, 0, "TCP"), by: []bocage.Ref{Ref("Decoy", d, "spec")}})
	}
	slices.SortFunc(c.placements, func(a, b bocage.DecoyPlacement) int { return cmp.Compare(a.Name, b.Name) })
}

// decoyTargets are workloads only: nobody wears the face of an address outside.
func (c *compiler) decoyTargets(d *bocage.Decoy) side {
	return side{list: c.pop.match(d.Spec.For.Namespaces, d.Spec.For.Workload)}
}
