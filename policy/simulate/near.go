package simulate

import (
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
)

// near finds the few objects that can have a say in one flow, so that the judge,
// who tries changes out on all objects that it is given, is not given all.
type near struct {
	zones        map[string]string
	namespaces   map[string]*bocage.Namespace
	applications picking[*bocage.Application]
	policies     picking[*bocage.NetworkPolicy]
	hosts        map[string]*bocage.Host // by name
	hostOf       map[netip.Addr][]*bocage.Host
	// base knows everything but what is above.
	base *explain.Judge
	// whole says that who else there is counts too: whether a quarantine cuts off
	// everything hangs on whom the protected flows could be with.
	whole *explain.Judge
}

func newNear(in compile.Input) *near {
	n := &near{zones: bocage.ZonesOfHosts(in.Zones), namespaces: map[string]*bocage.Namespace{}, applications: newPicking[*bocage.Application](),
		policies: newPicking[*bocage.NetworkPolicy](), hosts: map[string]*bocage.Host{}, hostOf: map[netip.Addr][]*bocage.Host{}}
	for _, o := range in.Namespaces {
		if valid(o) {
			n.namespaces[o.Name] = o
		}
	}
	for _, a := range in.Applications {
		if valid(a) {
			n.applications.add(a.Namespace, &a.Spec.Workload, a)
		}
	}
	for _, p := range in.NetworkPolicies {
		if valid(p) {
			n.policies.add(p.Namespace, &p.Spec.PodSelector, p)
		}
	}
	for _, h := range in.Hosts {
		if !valid(h) {
			continue
		}
		n.hosts[h.Name] = h
		for _, a := range h.Spec.Addresses {
			n.hostOf[a] = append(n.hostOf[a], h)
		}
	}
	quarantined := slices.ContainsFunc(in.ThreatConditions, func(t *bocage.ThreatCondition) bool { return t.Spec.Level == bocage.LevelQuarantine })
	protected := slices.ContainsFunc(in.Guardrails, func(g *bocage.Guardrail) bool { // by what is approved, not by what waits
		spec := g.InForce()
		return spec != nil && len(spec.Protect) > 0
	})
	if quarantined && protected {
		n.whole = explain.NewJudge(in)
		return n
	}
	in.Workloads, in.Applications, in.NetworkPolicies, in.Namespaces, in.Hosts = nil, nil, nil, nil, nil
	n.base = explain.NewJudge(in)
	return n
}

func valid(o bocage.Resource) bool { return len(o.Validate()) == 0 }

// judge prepares to judge flows between two ends.
func (n *near) judge(from, to *bocage.Workload, f bocage.Flow) *explain.Judge {
	if n.whole != nil {
		return n.whole
	}
	var in compile.Input
	for _, address := range [2]netip.Addr{f.Source, f.Destination} {
		for _, h := range n.hostOf[address] {
			in.Hosts = appendOnce(in.Hosts, h)
		}
	}
	return n.add(in, from, to)
}

func (n *near) add(in compile.Input, ends ...*bocage.Workload) *explain.Judge {
	var known []explain.Known
	for _, w := range ends {
		if w == nil || slices.Contains(in.Workloads, w) {
			continue
		}
		in.Workloads = append(in.Workloads, w)
		zone := n.zones[w.Spec.Host]
		labels := w.LabelsIn(zone)
		known = append(known, explain.Known{Workload: w, Zone: zone, Labels: labels})
		n.applications.each(w.Namespace, labels, func(a *bocage.Application) { in.Applications = appendOnce(in.Applications, a) })
		n.policies.each(w.Namespace, labels, func(p *bocage.NetworkPolicy) { in.NetworkPolicies = appendOnce(in.NetworkPolicies, p) })
		if namespace := n.namespaces[w.Namespace]; namespace != nil {
			in.Namespaces = appendOnce(in.Namespaces, namespace)
		}
		if h := n.hosts[w.Spec.Host]; h != nil {
			in.Hosts = appendOnce(in.Hosts, h)
		}
	}
	return n.base.About(in, known...)
}

func appendOnce[T comparable](list []T, item T) []T {
	if slices.Contains(list, item) {
		return list
	}
	return append(list, item)
}
