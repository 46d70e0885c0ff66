package simulate

import (
	"maps"
	"slices"

	"bocage.dev/bocage"
)

// picking finds what selects a workload of its own namespace, without trying every
// selector: those that ask for a label are found by it.
type picking[T any] struct {
	byLabel map[label][]pick[T]
	keys    map[string][]string  // of labels that selectors are found by, by namespace
	rest    map[string][]pick[T] // by namespace
}

type label struct{ namespace, key, value string }

type pick[T any] struct {
	selector *bocage.Selector
	object   T
}

func newPicking[T any]() picking[T] {
	return picking[T]{map[label][]pick[T]{}, map[string][]string{}, map[string][]pick[T]{}}
}

func (p picking[T]) add(namespace string, s *bocage.Selector, object T) {
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		if key != bocage.LabelAssurance { // which may be another one day: see mayPick
			at := label{namespace, key, s.MatchLabels[key]}
			p.byLabel[at] = append(p.byLabel[at], pick[T]{s, object})
			p.keys[namespace] = appendOnce(p.keys[namespace], key)
			return
		}
	}
	p.rest[namespace] = append(p.rest[namespace], pick[T]{s, object})
}

// each visits what picks a workload with these labels, or may one day.
func (p picking[T]) each(namespace string, labels map[string]string, visit func(T)) {
	try := func(list []pick[T]) {
		for _, c := range list {
			if mayPick(c.selector, labels) {
				visit(c.object)
			}
		}
	}
	for _, key := range p.keys[namespace] {
		if value, has := labels[key]; has {
			try(p.byLabel[label{namespace, key, value}])
		}
	}
	try(p.rest[namespace])
}

// mayPick reports whether a selector picks labels, as they are or with another
// assurance: to have an identity vouched for at a higher one may be part of a change.
func mayPick(s *bocage.Selector, labels map[string]string) bool {
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
