package compile

import (
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// block is a part of a CellMatch in which the ports are the same everywhere.
type block struct {
	from, to side
	ports    ports
}

// stateGuardrails states what is never allowed, what allowed flows owe and what
// is granted without contract.
func (c *compiler) stateGuardrails() {
	for _, g := range c.in.guardrails {
		for i, never := range g.Spec.Never {
			ref := Ref("Guardrail", g, field("spec.never", i))
			if contradictory(g.Spec.Match, never) {
				c.findings.note(ref, NothingMatches, "spec.match and this entry exclude each other: one names addresses outside, the other workloads")
			}
			c.noteUnknownData(ref, never.To.Data)
			for _, b := range c.resolve(g.Spec.Match, never) {
				c.state(statement{kind: refuse, from: b.from, to: b.to, ports: b.ports, by: []bocage.Ref{ref}})
			}
		}
		for i, grant := range g.Spec.Grant {
			ref := Ref("Guardrail", g, field("spec.grant", i))
			c.noteUnknownData(ref, grant.To.Data)
			for _, b := range c.resolve(grant) {
				c.state(statement{kind: allow, from: b.from, to: b.to, ports: b.ports, by: []bocage.Ref{ref}})
			}
		}
		c.noteUnknownData(Ref("Guardrail", g, "spec.match.to.data"), g.Spec.Match.To.Data)
		c.stateRequire(g)
	}
}

func (c *compiler) stateRequire(g *bocage.Guardrail) {
	require := g.Spec.Require
	if require == nil {
		return
	}
	blocks := c.resolve(g.Spec.Match)
	if require.Inspect != "" {
		ref := Ref("Guardrail", g, "spec.require.inspect")
		impossible := !c.hasProfile(require.Inspect)
		if impossible {
			c.findings.reject(ref, UnknownProfile,
				"there is no InspectionProfile %s: the flows that owe it are refused until there is", require.Inspect)
		}
		for _, b := range blocks {
			c.state(statement{kind: owe, from: b.from, to: b.to, ports: b.ports, by: []bocage.Ref{ref},
				duty: duty{profile: require.Inspect, impossible: impossible}})
		}
	}
	if require.Log != "" {
		ref := Ref("Guardrail", g, "spec.require.log")
		for _, b := range blocks {
			c.state(statement{kind: owe, from: b.from, to: b.to, ports: b.ports, by: []bocage.Ref{ref}, duty: duty{log: true}})
		}
	}
}

// resolve turns the intersection of matches into blocks. Data classes belong to
// interfaces, so that they narrow ports differently for every receiver.
func (c *compiler) resolve(matches ...bocage.CellMatch) []block {
	b := block{side{any: true}, side{any: true}, everything}
	var classes [][]string
	for _, m := range matches {
		b.from = b.from.meet(c.pop.side(m.From))
		b.to = b.to.meet(c.pop.side(m.To))
		b.ports = b.ports.meet(portMatches(m.Ports))
		if len(m.To.Data) > 0 {
			classes = append(classes, m.To.Data)
		}
	}
	if len(classes) == 0 {
		return []block{b}
	}
	byPorts := map[string]*block{}
	var keys []string
	for _, t := range b.to.list {
		p := b.ports
		for _, class := range classes {
			p = p.meet(c.pop.subjects[t].offering(class))
		}
		if p.empty() {
			continue
		}
		key := p.key()
		part := byPorts[key]
		if part == nil {
			part = &block{from: b.from, ports: p}
			byPorts[key], keys = part, append(keys, key)
		}
		part.to.list = append(part.to.list, t)
	}
	blocks := make([]block, 0, len(keys))
	for _, key := range keys {
		blocks = append(blocks, *byPorts[key])
	}
	return blocks
}

// offering is where the subject offers interfaces with one of the data classes.
func (s *subject) offering(classes []string) ports {
	var out ports
	for _, o := range s.offers {
		if slices.ContainsFunc(o.data, func(class string) bool { return slices.Contains(classes, class) }) {
			out = out.join(o.ports)
		}
	}
	return out
}

func (c *compiler) noteUnknownData(ref bocage.Ref, classes []string) {
	for _, class := range classes {
		offered := slices.ContainsFunc(c.in.applications, func(a *bocage.Application) bool {
			return slices.ContainsFunc(a.Spec.Provides, func(p bocage.Provide) bool { return slices.Contains(p.Data, class) })
		})
		if !offered {
			c.findings.note(ref, NothingMatches, "no Application provides an interface with data class %q today", class)
		}
	}
}

// contradictory reports whether two matches can never meet, whoever joins.
func contradictory(a, b bocage.CellMatch) bool {
	apart := func(x, y bocage.Side) bool {
		inside := func(s bocage.Side) bool { return len(s.Namespaces) > 0 || s.Workload != nil || len(s.Data) > 0 }
		return len(x.External) > 0 && inside(y) || len(y.External) > 0 && inside(x)
	}
	return apart(a.From, b.From) || apart(a.To, b.To)
}

func prefixList(p netip.Prefix) []netip.Prefix { return []netip.Prefix{p} }
