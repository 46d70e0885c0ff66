package policytest

import (
	"fmt"
	"slices"

	"bocage.dev/bocage"
)

// Share returns the ruleset with its rules towards names said once for all who have the
// same: Namings, found by nothing but what the rules say. Those of pairs of which apart
// says so stay rules.
func Share(rs *bocage.Ruleset, apart func(bocage.GroupPair) bool) *bocage.Ruleset {
	names := map[bocage.Group]bool{}
	for _, n := range rs.Names {
		names[n.Group] = true
	}
	out := rs.Copy()
	out.Rules, out.Namings, out.Apart = nil, nil, nil
	cells := map[bocage.GroupPair][]bocage.NamedCell{}
	var order []bocage.GroupPair
	alone := map[bocage.GroupPair]bool{}
	for _, r := range rs.Rules {
		at := bocage.GroupPair{From: r.From, To: r.To}
		if !names[r.To] || r.From == bocage.GroupAny {
			out.Rules = append(out.Rules, r)
			continue
		}
		if cells[at] == nil {
			order = append(order, at)
			alone[at] = apart(at)
		}
		cells[at] = append(cells[at], bocage.NamedCell{Protocol: r.Protocol, Ports: r.Ports, Decision: r.Decision})
		if alone[at] {
			out.Rules = append(out.Rules, r)
		}
	}
	// Of one name, those who have the same; then the names of the same, with the same.
	type same struct {
		to    bocage.Group
		cells string
	}
	from := map[same][]bocage.Group{}
	said := map[string][]bocage.NamedCell{}
	for _, at := range order {
		if !alone[at] {
			key := fmt.Sprint(cells[at])
			said[key] = cells[at]
			from[same{at.To, key}] = append(from[same{at.To, key}], at.From)
		}
	}
	for at := range alone { // whoever stands apart stands in one, too
		if key := fmt.Sprint(cells[at]); alone[at] && len(from[same{at.To, key}]) > 0 {
			from[same{at.To, key}] = append(from[same{at.To, key}], at.From)
			out.Apart = append(out.Apart, at)
		}
	}
	places := map[string]int{}
	for at, list := range from {
		slices.Sort(list)
		key := at.cells + fmt.Sprint(list)
		i, known := places[key]
		if !known {
			i = len(out.Namings)
			places[key] = i
			out.Namings = append(out.Namings, bocage.Naming{From: list, Cells: said[at.cells]})
		}
		out.Namings[i].To = append(out.Namings[i].To, at.to)
	}
	for _, n := range out.Namings {
		slices.Sort(n.To)
	}
	slices.SortFunc(out.Namings, bocage.CompareNamings)
	slices.SortFunc(out.Apart, bocage.CompareGroupPairs)
	return out
}
