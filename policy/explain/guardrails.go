package explain

import (
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// guardrails finds what each guardrail refuses and requires, and which of it an
// exception lifts.
func (j *Judge) guardrails(g *Judgement, f bocage.Flow) {
	for _, gr := range j.in.Guardrails {
		spec := gr.InForce()
		if !j.matches(spec.Match, g, f) && !(g.Destination.named && j.mayMean(spec.Match, g, f)) {
			continue
		}
		excepted := j.excepted(gr, g, f)
		says := func(field string) (bocage.Ref, bool) {
			by := ref("Guardrail", gr, field)
			if excepted != nil {
				g.Lifted = append(g.Lifted, Lift{by, ref("Exception", excepted, "spec.match"), excepted.Spec.Until})
			}
			return by, excepted == nil
		}
		for i, never := range spec.Never {
			if !g.Destination.named && j.matches(never, g, f) { // what refuses is said of addresses
				if by, holds := says(at("spec.never", i)); holds {
					g.Nevers = append(g.Nevers, by)
				}
			}
		}
		if spec.Separate != nil && apart(g.Source, g.Destination, spec.Separate.Label()) {
			if by, holds := says("spec.separate"); holds {
				g.Nevers = append(g.Nevers, by)
			}
		}
		if spec.Require != nil {
			if _, holds := says("spec.require"); holds {
				j.require(g, *spec.Require, false, func(name string) bocage.Ref { return ref("Guardrail", gr, "spec.require."+name) })
			}
		}
	}
}

// excepted returns the exception in force that lifts the guardrail from the
// flow the longest, or nil.
func (j *Judge) excepted(of *bocage.Guardrail, g *Judgement, f bocage.Flow) *bocage.Exception {
	var longest *bocage.Exception
	for _, e := range j.exceptions[of.Name] {
		if g.At.Before(e.Spec.Until) && j.excepts(e, of, g, f) && (longest == nil || e.Spec.Until.After(longest.Spec.Until)) {
			longest = e
		}
	}
	return longest
}

// excepts reports whether an exception means the flow. Towards a name, which may have
// any of the addresses that the guardrail means, it has to mean all of them.
func (j *Judge) excepts(e *bocage.Exception, of *bocage.Guardrail, g *Judgement, f bocage.Flow) bool {
	if j.matches(e.Spec.Match, g, f) {
		return true
	}
	m, meant := e.Spec.Match, j.outside(of.InForce().Match.To)
	if !g.Destination.named || !m.To.Outside() || len(meant) == 0 || !j.side(m.From, g.Source, f) || !portsCover(m.Ports, f) {
		return false
	}
	lifted := j.outside(m.To)
	return !slices.ContainsFunc(meant, func(p netip.Prefix) bool {
		return !j.workloadAlone(p) && !slices.ContainsFunc(lifted, func(q netip.Prefix) bool { return within(p, q) })
	})
}

// within reports whether a prefix holds all of another one.
func within(p, in netip.Prefix) bool {
	p, in = unmapped(p), unmapped(in)
	return p.Addr().BitLen() == in.Addr().BitLen() && in.Bits() <= p.Bits() && in.Contains(p.Addr())
}

// unmapped writes an IPv4 prefix in its IPv6-mapped form as IPv4.
func unmapped(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// workloadAlone reports whether a prefix is one workload's address, and so means
// nobody outside.
func (j *Judge) workloadAlone(p netip.Prefix) bool {
	return p.IsSingleIP() && j.workloads[p.Addr().Unmap()] != nil
}

// apart reports whether two workloads differ in a label. One without it differs
// from all that have it.
func apart(a, b party, label string) bool {
	if a.workload == nil || b.workload == nil {
		return false
	}
	x, hasX := a.labels[label]
	y, hasY := b.labels[label]
	return hasX != hasY || x != y
}

// protect finds the guardrails that no threat condition and no response may
// refuse the flow against.
func (j *Judge) protect(g *Judgement, f bocage.Flow) {
	for _, gr := range j.in.Guardrails {
		for i, m := range gr.InForce().Protect {
			if j.matches(m, g, f) || g.Destination.named && j.mayMean(m, g, f) {
				g.Protected = append(g.Protected, ref("Guardrail", gr, at("spec.protect", i)))
			}
		}
	}
}

// touched reports whether a protected flow from or to the workload can exist.
func (j *Judge) touched(name string) bool {
	i := slices.IndexFunc(j.in.Workloads, func(w *bocage.Workload) bool { return w.NamespacedName() == name })
	if i < 0 {
		return false
	}
	p := j.party(j.in.Workloads[i].Spec.Addresses[0])
	for _, gr := range j.in.Guardrails {
		for _, m := range gr.InForce().Protect {
			if j.meant(m.From, p, nil) && j.somebody(m.To, m.Ports) || j.meant(m.To, p, m.Ports) && j.somebody(m.From, nil) {
				return true
			}
		}
	}
	return false
}

// somebody reports whether a side means anybody at any of the ports.
func (j *Judge) somebody(s bocage.Side, ports []bocage.PortMatch) bool {
	if s.Outside() {
		for _, prefix := range j.outside(s) {
			if !j.workloadAlone(prefix) {
				return true
			}
		}
		return false
	}
	if len(s.Namespaces) == 0 && s.Workload == nil && len(s.Data) == 0 {
		return true
	}
	return slices.ContainsFunc(j.in.Workloads, func(w *bocage.Workload) bool { return j.meant(s, j.party(w.Spec.Addresses[0]), ports) })
}

// meant reports whether a side means the workload at any of the ports (none: all).
func (j *Judge) meant(s bocage.Side, p party, ports []bocage.PortMatch) bool {
	if s.Outside() || (len(s.Namespaces) > 0 || s.Workload != nil) && !p.picked(s.Namespaces, s.Workload) {
		return false
	}
	if len(s.Data) == 0 {
		return true
	}
	for _, a := range j.of(p) {
		for _, provide := range a.Spec.Provides {
			if classed(provide, s.Data) && (len(ports) == 0 || slices.ContainsFunc(ports, func(m bocage.PortMatch) bool { return overlap(provide, m) })) {
				return true
			}
		}
	}
	return false
}

func overlap(p bocage.Provide, m bocage.PortMatch) bool {
	a, x, errA := bocage.Transport(p.Port, p.EndPort, p.Protocol)
	b, y, errB := bocage.Transport(m.Port, m.EndPort, m.Protocol)
	return errA == nil && errB == nil && a == b && x.First <= y.Last && y.First <= x.Last
}
