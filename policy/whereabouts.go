package policy

import (
	"maps"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// whereabouts is where workloads are, for as long as the inventory is the same.
type whereabouts struct {
	workloads []*bocage.Workload
	zones     []*bocage.Zone
	placedIn  map[string][]placement // workloads with an interface, by namespace
	everyone  []string
	selected  map[bocage.Resource][]string // by object as it was compiled: its hosts
}

// placement is a workload as selectors see it, and where it is.
type placement struct {
	name, host string
	labels     map[string]string
}

// whereabouts returns where workloads are. It is the reporter's alone.
func (p *Policy) whereabouts(in compile.Input) *whereabouts {
	if w := p.places; w != nil && same(w.workloads, in.Workloads) && same(w.zones, in.Zones) {
		return w
	}
	w := &whereabouts{workloads: in.Workloads, zones: in.Zones, placedIn: map[string][]placement{}, selected: map[bocage.Resource][]string{}}
	hosts, zones := map[string]bool{}, bocage.ZonesOfHosts(in.Zones)
	for _, x := range in.Workloads {
		if x.Spec.Interface != "" {
			w.placedIn[x.Namespace] = append(w.placedIn[x.Namespace], placement{x.Name, x.Spec.Host, x.LabelsIn(zones[x.Spec.Host])})
			hosts[x.Spec.Host] = true
		}
	}
	w.everyone = slices.Sorted(maps.Keys(hosts))
	p.places = w
	return w
}

// mostSelected bounds the objects whose hosts are remembered.
const mostSelected = 1 << 17

// of remembers the hosts of an object.
func (w *whereabouts) of(object bocage.Resource, pick func() []string) []string {
	if hosts, known := w.selected[object]; known {
		return hosts
	}
	if len(w.selected) > mostSelected {
		clear(w.selected)
	}
	hosts := pick()
	w.selected[object] = hosts
	return hosts
}

// concerned lists the hosts of those whom a threat condition concerns.
func (r *reporter) concerned(spec bocage.ThreatConditionSpec) []string {
	switch {
	case spec.Workload != "":
		return r.placed(spec.Workload)
	case spec.Zone != "":
		return r.selected(nil, &bocage.Selector{MatchLabels: map[string]string{bocage.LabelZone: spec.Zone}})
	}
	return r.everyone
}

// selected lists the hosts of placed workloads that a selector (nil: all) picks
// in namespaces (none: all).
func (r *reporter) selected(namespaces []string, s *bocage.Selector) []string {
	all := s == nil || len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 0
	if all && len(namespaces) == 0 {
		return r.everyone
	}
	hosts := map[string]bool{}
	pick := func(workloads []placement) {
		for _, w := range workloads {
			if !hosts[w.host] && (all || s.Matches(w.labels)) {
				hosts[w.host] = true
			}
		}
	}
	for _, namespace := range namespaces {
		pick(r.where.placedIn[namespace])
	}
	if len(namespaces) == 0 {
		for _, workloads := range r.where.placedIn {
			pick(workloads)
		}
	}
	return slices.Sorted(maps.Keys(hosts))
}

// placed lists the host of one workload.
func (r *reporter) placed(name string) []string {
	namespace, short, _ := strings.Cut(name, "/")
	for _, w := range r.where.placedIn[namespace] {
		if w.name == short {
			return []string{w.host}
		}
	}
	return nil
}
