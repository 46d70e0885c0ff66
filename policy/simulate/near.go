package simulate

import (
	"maps"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
)

// near finds the few objects that can have a say in one flow, so that the judge,
// who tries changes out on all objects that it is given, is not given all.
type near struct {
	zones      map[string]string
	namespaces map[string]*bocage.Namespace
	// by namespace: those select there only
	applications map[string][]*bocage.Application
	policies     map[string][]*bocage.NetworkPolicy
	hosts        map[string]*bocage.Host // by name
	hostOf       map[netip.Addr][]*bocage.Host
	// base knows everything but what is above.
	base *explain.Judge
	// whole says that who else there is counts too: whether a quarantine cuts off
	// everything hangs on whom the protected flows could be with.
	whole *explain.Judge
}

func newNear(in compile.Input) *near {
	n := &near{zones: bocage.ZonesOfHosts(in.Zones), namespaces: map[string]*bocage.Namespace{}, applications: map[string][]*bocage.Application{},
		policies: map[string][]*bocage.NetworkPolicy{}, hosts: map[string]*bocage.Host{}, hostOf: map[netip.Addr][]*bocage.Host{}}
	for _, o := range in.Namespaces {
		if valid(o) {
			n.namespaces[o.Name] = o
		}
	}
	for _, a := range in.Applications {
		if valid(a) {
			n.applications[a.Namespace] = append(n.applications[a.Namespace], a)
		}
	}
	for _, p := range in.NetworkPolicies {
		if valid(p) {
			n.policies[p.Namespace] = append(n.policies[p.Namespace], p)
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
	protected := slices.ContainsFunc(in.Guardrails, func(g *bocage.Guardrail) bool { return len(g.Spec.Protect) > 0 })
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
	for _, w := range ends {
		if w == nil || slices.Contains(in.Workloads, w) {
			continue
		}
		in.Workloads = append(in.Workloads, w)
		labels := w.LabelsIn(n.zones[w.Spec.Host])
		for _, a := range n.applications[w.Namespace] {
			if mayPick(a.Spec.Workload, labels) {
				in.Applications = appendOnce(in.Applications, a)
			}
		}
		for _, p := range n.policies[w.Namespace] {
			if mayPick(p.Spec.PodSelector, labels) {
				in.NetworkPolicies = appendOnce(in.NetworkPolicies, p)
			}
		}
		if namespace := n.namespaces[w.Namespace]; namespace != nil {
			in.Namespaces = appendOnce(in.Namespaces, namespace)
		}
		if h := n.hosts[w.Spec.Host]; h != nil {
			in.Hosts = appendOnce(in.Hosts, h)
		}
	}
	return n.base.About(in)
}

// mayPick reports whether a selector picks labels, as they are or with another
// assurance: to have an identity vouched for at a higher one may be part of a change.
func mayPick(s bocage.Selector, labels map[string]string) bool {
	if s.Matches(labels) {
		return true
	}
	_, named := s.MatchLabels[bocage.LabelAssurance]
	if !named && !slices.ContainsFunc(s.MatchExpressions, func(r bocage.Requirement) bool { return r.Key == bocage.LabelAssurance }) {
		return false
	}
	other := maps.Clone(labels)
	for _, assurance := range [...]string{"L0", "L1", "L2", "L3", "L4", "L5"} {
		if other[bocage.LabelAssurance] = assurance; s.Matches(other) {
			return true
		}
	}
	return false
}

func appendOnce[T comparable](list []T, item T) []T {
	if slices.Contains(list, item) {
		return list
	}
	return append(list, item)
}
