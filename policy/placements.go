package policy

import (
	"maps"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// placements tells on which hosts workloads are. It is valid for one state of the inventory.
type placements struct {
	workloads []*bocage.Workload
	zones     []*bocage.Zone
	placedIn  map[string][]placement // workloads with an interface, by namespace
	everyone  []string
	named     []string                     // every host that some workload names
	selected  map[bocage.Resource][]string // by object as it was compiled: its hosts
}

// placement is a workload as selectors see it, and where it is.
type placement struct {
	name, host string
	labels     map[string]string
}

// placements returns where workloads are. Only the reporter calls it.
func (p *Policy) placements(in compile.Input) *placements {
	if w := p.places; w != nil && same(w.workloads, in.Workloads) && same(w.zones, in.Zones) {
		return w
	}
	w := &placements{workloads: in.Workloads, zones: in.Zones, placedIn: map[string][]placement{}, selected: map[bocage.Resource][]string{}}
	hosts, zones := map[string]bool{}, bocage.ZonesOfHosts(in.Zones)
	named := map[string]bool{}
	for _, x := range in.Workloads {
		named[x.Spec.Host] = true
		if x.Spec.Interface != "" {
			w.placedIn[x.Namespace] = append(w.placedIn[x.Namespace], placement{x.Name, x.Spec.Host, x.LabelsIn(zones[x.Spec.Host])})
			hosts[x.Spec.Host] = true
		}
	}
	w.everyone, w.named = slices.Sorted(maps.Keys(hosts)), slices.Sorted(maps.Keys(named))
	p.places = w
	return w
}

// mostSelected bounds the objects whose hosts are remembered.
const mostSelected = 1 << 17

// hostsOf returns the hosts that an object concerns. It calls pick once and remembers the
// result.
func (w *placements) hostsOf(object bocage.Resource, pick func() []string) []string {
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
		pick(r.placements.placedIn[namespace])
	}
	if len(namespaces) == 0 {
		for _, workloads := range r.placements.placedIn {
			pick(workloads)
		}
	}
	return slices.Sorted(maps.Keys(hosts))
}

// placed lists the host of one workload.
func (r *reporter) placed(name string) []string {
	namespace, short, _ := strings.Cut(name, "/")
	for _, w := range r.placements.placedIn[namespace] {
		if w.name == short {
			return []string{w.host}
		}
	}
	return nil
}
