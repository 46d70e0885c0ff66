// Package prove shows that a compiled ruleset keeps what the declarations
// promise, for every pair of groups and every port, before anybody enforces it:
// each guardrail's never is empty, each required duty is on every allowed cell,
// threat conditions open nothing, every workload can be decided about, each
// host's part agrees with the whole, and a second opinion that shares no step
// with the compiler says the same.
//
// It promises a flow that breaks the statement where a proof fails. It never
// changes the ruleset and trusts nothing that the compiler says of it.
package prove

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Prove checks a ruleset that was compiled from the input. The proofs come in
// one order: totality, guardrails by name, threat monotony, agreement of hosts,
// second opinion.
func Prove(in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
	p := newProver(in, rs)
	proofs := []bocage.Proof{p.totality()}
	proofs = append(proofs, p.guardrails()...)
	return append(proofs, p.monotony(), p.cuts(), p.secondOpinion())
}

// Failed returns the proofs that do not hold.
func Failed(proofs []bocage.Proof) []bocage.Proof {
	return slices.DeleteFunc(slices.Clone(proofs), func(p bocage.Proof) bool { return p.Holds })
}

// prover knows who is in which group.
type prover struct {
	in      compile.Input
	rs      *bocage.Ruleset
	reach   *reach
	members map[bocage.Group]*members
	groups  []bocage.Group // the world first, then all others, sorted
	named   map[string]*bocage.Workload
	offers  map[string][]*bocage.Application // by "namespace/name" of a workload
}

// members is who a group stands for.
type members struct {
	workloads []*bocage.Workload
	prefixes  []netip.Prefix
	address   netip.Addr // of one of them
	name      string
}

func newProver(in compile.Input, rs *bocage.Ruleset) *prover {
	p := &prover{in: in, rs: rs, reach: newReach(rs), members: map[bocage.Group]*members{}, named: map[string]*bocage.Workload{}, offers: map[string][]*bocage.Application{}}
	byIdentity := make(map[bocage.Identity]*bocage.Workload, len(in.Workloads))
	for _, w := range in.Workloads {
		if old := byIdentity[w.Status.Identity]; old == nil || w.NamespacedName() < old.NamespacedName() {
			byIdentity[w.Status.Identity] = w
		}
	}
	p.members[bocage.GroupWorld] = &members{name: "the world", address: netip.MustParseAddr("192.0.2.1")}
	seen := make(map[bocage.Identity]bool, len(in.Workloads))
	for _, peer := range rs.Peers {
		m := p.members[peer.Group]
		if m == nil {
			m = &members{address: peer.Prefix.Addr(), name: peer.Prefix.String()}
			p.members[peer.Group] = m
		}
		w := byIdentity[peer.Identity]
		switch {
		case peer.Identity < bocage.IdentityFirst:
			m.prefixes = append(m.prefixes, peer.Prefix)
		case w != nil && !seen[peer.Identity]:
			seen[peer.Identity] = true
			m.workloads = append(m.workloads, w)
			m.name = m.workloads[0].NamespacedName()
			p.named[w.NamespacedName()] = w
		}
	}
	for g := range p.members {
		if g != bocage.GroupWorld {
			p.groups = append(p.groups, g)
		}
	}
	slices.Sort(p.groups)
	p.groups = slices.Insert(p.groups, 0, bocage.GroupWorld)
	p.collectOffers()
	return p
}

// collectOffers finds the applications with data classes that select each workload.
func (p *prover) collectOffers() {
	byNamespace := map[string][]*bocage.Application{}
	for _, a := range p.in.Applications {
		if len(a.Validate()) == 0 && slices.ContainsFunc(a.Spec.Provides, func(o bocage.Provide) bool { return len(o.Data) > 0 }) {
			byNamespace[a.Namespace] = append(byNamespace[a.Namespace], a)
		}
	}
	for name, w := range p.named {
		for _, a := range byNamespace[w.Namespace] {
			if a.Spec.Workload.Matches(w.AllLabels()) {
				p.offers[name] = append(p.offers[name], a)
			}
		}
	}
}

// side lists the groups with a member that a side means. That every member of a
// group should be meant makes the statements stronger, never weaker.
func (p *prover) side(s bocage.Side) map[bocage.Group]bool {
	out := map[bocage.Group]bool{}
	for _, g := range p.groups {
		m := p.members[g]
		switch {
		case len(s.External) > 0:
			out[g] = slices.ContainsFunc(m.prefixes, func(inner netip.Prefix) bool { return inside(inner, s.External) })
		case len(s.Namespaces) == 0 && s.Workload == nil && len(s.Data) == 0:
			out[g] = true
		default:
			out[g] = slices.ContainsFunc(m.workloads, func(w *bocage.Workload) bool { return means(s, w) })
		}
	}
	return out
}

func means(s bocage.Side, w *bocage.Workload) bool {
	return (len(s.Namespaces) == 0 || slices.Contains(s.Namespaces, w.Namespace)) && (s.Workload == nil || s.Workload.Matches(w.AllLabels()))
}

func inside(inner netip.Prefix, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(outer netip.Prefix) bool {
		if outer.Addr().Is4In6() && outer.Bits() >= 96 {
			outer = netip.PrefixFrom(outer.Addr().Unmap(), outer.Bits()-96)
		}
		return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
	})
}

// region is a set of cells as a guardrail describes it.
type region struct {
	from, to []map[bocage.Group]bool
	ports    [][]bocage.PortMatch // none in a list: everything
	data     [][]string
}

func (p *prover) region(matches ...bocage.CellMatch) region {
	var r region
	for _, m := range matches {
		r.from = append(r.from, p.side(m.From))
		r.to = append(r.to, p.side(m.To))
		r.ports = append(r.ports, m.Ports)
		if len(m.To.Data) > 0 {
			r.data = append(r.data, m.To.Data)
		}
	}
	return r
}

func in(g bocage.Group, sets []map[bocage.Group]bool) bool {
	for _, set := range sets {
		if !set[g] {
			return false
		}
	}
	return true
}

// extent lists the port ranges at which the region may begin or end for a
// receiver.
func (p *prover) extent(r region, to bocage.Group) []span {
	var spans []span
	add := func(port, end uint16, protocol string) {
		if proto, ports, err := bocage.Transport(port, end, protocol); err == nil {
			spans = append(spans, span{proto, ports})
		}
	}
	for _, list := range r.ports {
		for _, m := range list {
			add(m.Port, m.EndPort, m.Protocol)
		}
	}
	if len(r.data) > 0 {
		for _, w := range p.members[to].workloads {
			for _, a := range p.offers[w.NamespacedName()] {
				for _, o := range a.Spec.Provides {
					if len(o.Data) > 0 {
						add(o.Port, o.EndPort, o.Protocol)
					}
				}
			}
		}
	}
	return spans
}

// covers reports whether a cell of a receiver lies in the region.
func (p *prover) covers(r region, to bocage.Group, protocol bocage.Protocol, port uint16) bool {
	at := func(first, last uint16, name string) bool {
		proto, ports, err := bocage.Transport(first, last, name)
		return err == nil && proto == protocol && ports.Contains(port)
	}
	for _, list := range r.ports {
		if len(list) > 0 && !slices.ContainsFunc(list, func(m bocage.PortMatch) bool { return at(m.Port, m.EndPort, m.Protocol) }) {
			return false
		}
	}
	for _, classes := range r.data {
		offered := slices.ContainsFunc(p.members[to].workloads, func(w *bocage.Workload) bool {
			return slices.ContainsFunc(p.offers[w.NamespacedName()], func(a *bocage.Application) bool {
				return slices.ContainsFunc(a.Spec.Provides, func(o bocage.Provide) bool {
					return at(o.Port, o.EndPort, o.Protocol) && slices.ContainsFunc(o.Data, func(d string) bool { return slices.Contains(classes, d) })
				})
			})
		})
		if !offered {
			return false
		}
	}
	return true
}

// violation looks for an allowed cell in the region that is not as it should be.
func (p *prover) violation(r region, wrong func(bocage.Decision) bool) string {
	found := ""
	p.reach.eachAllowedPair(p.groups, func(g bocage.Group) bool { return in(g, r.from) }, func(g bocage.Group) bool { return in(g, r.to) },
		len(r.data) == 0, func(from, to bocage.Group) bool {
			p.reach.eachCell(from, to, p.extent(r, to), func(protocol bocage.Protocol, ports bocage.PortRange, id bocage.DecisionID) bool {
				d := p.reach.decisions[id]
				if d.Verdict.Allowed() && p.covers(r, to, protocol, ports.First) && wrong(d) {
					found = p.flow(from, to, protocol, ports.First) + " gets " + d.Verdict.String() + by(d)
				}
				return found == ""
			})
			return found == ""
		})
	return found
}

func by(d bocage.Decision) string {
	if len(d.By) == 0 {
		return ""
	}
	return " by " + d.By[0].String()
}

// flow says a cell in people's words.
func (p *prover) flow(from, to bocage.Group, protocol bocage.Protocol, port uint16) string {
	text := fmt.Sprintf("%s -> %s %s", p.who(from), p.who(to), protocol)
	if protocol.HasPorts() {
		text += fmt.Sprintf("/%d", port)
	}
	return text
}

func (p *prover) who(g bocage.Group) string {
	m := p.members[g]
	switch {
	case m == nil:
		return fmt.Sprintf("group %d", g)
	case len(m.workloads) > 0:
		return fmt.Sprintf("%s (%s)", m.name, m.workloads[0].Spec.Addresses[0])
	default:
		return m.name
	}
}

// guardrails proves what every guardrail says.
func (p *prover) guardrails() []bocage.Proof {
	sorted := slices.Clone(p.in.Guardrails)
	slices.SortFunc(sorted, func(a, b *bocage.Guardrail) int { return cmp.Compare(a.Name, b.Name) })
	var proofs []bocage.Proof
	for _, g := range sorted {
		if len(g.Validate()) > 0 {
			continue
		}
		for i, never := range g.Spec.Never {
			counter := p.violation(p.region(g.Spec.Match, never), func(bocage.Decision) bool { return true })
			proofs = append(proofs, proof(fmt.Sprintf("nothing that Guardrail %s never allows is allowed", g.Name),
				compile.Ref("Guardrail", g, fmt.Sprintf("spec.never[%d]", i)), counter))
		}
		require := g.Spec.Require
		if require == nil {
			continue
		}
		if require.Inspect != "" {
			counter := p.violation(p.region(g.Spec.Match), func(d bocage.Decision) bool {
				return d.Verdict != bocage.VerdictInspect || !slices.Contains(compile.ProfileNames(p.reach.profiles[d.Profile]), require.Inspect)
			})
			proofs = append(proofs, proof(fmt.Sprintf("everything that Guardrail %s covers and somebody allows is inspected with %s", g.Name, require.Inspect),
				compile.Ref("Guardrail", g, "spec.require.inspect"), counter))
		}
		if require.Log != "" {
			counter := p.violation(p.region(g.Spec.Match), func(d bocage.Decision) bool { return !d.Log })
			proofs = append(proofs, proof(fmt.Sprintf("everything that Guardrail %s covers and somebody allows is kept in full detail", g.Name),
				compile.Ref("Guardrail", g, "spec.require.log"), counter))
		}
	}
	return proofs
}

func proof(statement string, by bocage.Ref, counterexample string) bocage.Proof {
	return bocage.Proof{Statement: statement, By: by, Holds: counterexample == "", Counterexample: counterexample}
}
