package simulate

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"bocage.dev/bocage"
)

// weightOf is how much the loss of a workload weighs.
func weightOf(w *bocage.Workload) int {
	if weight, err := strconv.Atoi(w.Labels[bocage.LabelWeight]); err == nil && weight >= 0 {
		return weight
	}
	return 1
}

// Blast says what can be reached from somewhere, hop by hop, along flows that
// policy allows at the simulator's moment: the workloads, each with a shortest
// way. Who is cut off by a quarantine is neither reached nor passed through.
//
// It walks groups, not workloads: what one member may open, all may.
func (s *Simulator) Blast(q bocage.BlastQuery) (bocage.BlastResult, error) {
	start, names, err := s.origin(q.From)
	if err != nil {
		return bocage.BlastResult{}, err
	}
	if q.Hops < 0 {
		return bocage.BlastResult{}, fmt.Errorf("%d hops: 0 is to the end, otherwise say how far to look", q.Hops)
	}
	result := bocage.BlastResult{From: names, Total: len(s.workloads), Reached: []bocage.BlastTarget{}}
	w := s.newWalk(q.Uninspected)
	w.from(start)
	for hop := 1; len(w.frontier) > 0 && (q.Hops == 0 || hop <= q.Hops); hop++ {
		w.step(hop)
	}
	origins := make(map[string]bool, len(names))
	for _, name := range names {
		origins[name] = true
	}
	for i := range s.workloads {
		target := &s.workloads[i]
		hops, way, reached := w.way(target)
		if !reached || origins[target.name] {
			continue
		}
		result.Weight += target.weight
		result.Reached = append(result.Reached, bocage.BlastTarget{Workload: target.name, Hops: hops, Path: way})
	}
	slices.SortStableFunc(result.Reached, func(a, b bocage.BlastTarget) int { return cmp.Compare(a.Hops, b.Hops) })
	return result, nil
}

// start is one group to walk from, under the name of who is there.
type start struct {
	group int32
	name  string
}

// origin finds who is meant: one workload, all of a namespace, or an address.
func (s *Simulator) origin(from string) ([]start, []string, error) {
	namespace, all := strings.CutSuffix(from, "/")
	if !all {
		ends, err := s.Resolve(from)
		if err != nil {
			return nil, nil, fmt.Errorf("from: %w", err)
		}
		name := from
		if peer := ends[0].peer; peer != none && s.rs.Peers[peer].Workload != "" {
			name = s.rs.Peers[peer].Workload
		}
		return s.starts(nil, name, ends), []string{name}, nil
	}
	var starts []start
	var names []string
	for i := range s.workloads {
		if w := &s.workloads[i]; w.object.Namespace == namespace {
			names = append(names, w.name)
			starts = s.starts(starts, w.name, w.ends)
		}
	}
	if len(names) == 0 {
		return nil, nil, fmt.Errorf("from: namespace %q has no workload", namespace)
	}
	return starts, names, nil
}

func (s *Simulator) starts(list []start, name string, ends []End) []start {
	for _, end := range ends {
		if !s.refused(end) {
			list = append(list, start{end.group, name})
		}
	}
	return list
}

// walk is a breadth-first search over groups of workloads.
type walk struct {
	s        *Simulator
	passable []bool // by decision: followed

	members   [][]int32 // workloads by group, without who is cut off
	hops      []int32   // by group: 0 is not reached
	before    []int32   // by group: the group that reached it, or none
	origins   map[int32]string
	origin    []bool  // by group: where the walk begins
	frontier  []int32 // groups to go on from
	unreached []int32 // groups not reached yet that a rule of no pair may lead to
	inviting  []int32 // those among them that let something in from anybody
	hop       int32
	next      []int32
	successor [][]int32 // by group: groups with a rule of their own for the pair
}

func (s *Simulator) newWalk(uninspected bool) *walk {
	ix := s.index
	n := len(ix.names)
	w := &walk{s: s, passable: make([]bool, len(ix.decisions)), members: make([][]int32, n), hops: make([]int32, n),
		before: slices.Repeat([]int32{none}, n), origins: map[int32]string{}, origin: make([]bool, n), successor: make([][]int32, n)}
	for i := range ix.decisions {
		d := ix.decisions[ix.at(int32(i), s.in.Now)]
		w.passable[i] = d.verdict.Allowed() && !(uninspected && d.verdict == bocage.VerdictInspect)
	}
	for i := range s.workloads {
		last := int32(none)
		for _, end := range s.workloads[i].ends {
			if end.group != last && !s.refused(end) {
				w.members[end.group] = append(w.members[end.group], int32(i))
			}
			last = end.group
		}
	}
	for g := range int32(n) {
		if len(w.members[g]) == 0 {
			continue
		}
		invited := ix.seats[g].fromAny
		if w.opens(invited) {
			w.inviting = append(w.inviting, g)
		}
		// Where "anybody to it" lets nothing pass, only a rule of the pair's own
		// can let somebody in: those are followed from their sources.
		if w.opens(invited) || !ix.whole(invited) {
			w.unreached = append(w.unreached, g)
		}
	}
	for i := range ix.exact.slots {
		if slot := &ix.exact.slots[i]; slot.pair != 0 {
			from, to := int32((slot.pair-1)>>32), int32(uint32(slot.pair-1))
			if len(w.members[to]) > 0 {
				w.successor[from] = append(w.successor[from], to)
			}
		}
	}
	return w
}

// whole reports whether a sheet leaves nothing to what is less specific.
func (ix *index) whole(s sheet) bool {
	return slices.ContainsFunc(ix.in(s), func(p span) bool { return p.end == key(bocage.ProtocolAny, 65535) && p.first == 0 })
}

func (w *walk) from(starts []start) {
	for _, s := range starts {
		if w.origins[s.group] == "" {
			w.origins[s.group], w.origin[s.group] = s.name, true
			w.frontier = append(w.frontier, s.group)
		}
	}
}

// step goes one hop further. A group where the walk began is reached only when
// something leads to it: its other members are.
func (w *walk) step(hop int) {
	w.hop, w.next = int32(hop), nil
	for _, from := range w.frontier {
		slices.Sort(w.successor[from])
		for _, to := range w.successor[from] {
			w.reach(from, to)
		}
		if w.wild(from) {
			w.unreached = w.tried(from, w.unreached)
		} else {
			w.inviting = w.tried(from, w.inviting)
		}
	}
	w.frontier = w.next
}

// tried returns those of the groups that were not reached yet, having tried each.
func (w *walk) tried(from int32, groups []int32) []int32 {
	left := groups[:0]
	for _, to := range groups {
		if w.reach(from, to); w.hops[to] == 0 {
			left = append(left, to)
		}
	}
	return left
}

// wild reports whether a group may open something to groups that no rule names:
// to anybody, or by default.
func (w *walk) wild(from int32) bool {
	ix := w.s.index
	for _, s := range [2]sheet{ix.seats[from].toAny, ix.anyAny} {
		if w.opens(s) || ix.whole(s) {
			return w.opens(s)
		}
	}
	return w.passable[ix.fallback]
}

// opens reports whether something in a sheet passes.
func (w *walk) opens(s sheet) bool {
	return slices.ContainsFunc(w.s.index.in(s), func(p span) bool { return w.passable[p.decision] })
}

func (w *walk) reach(from, to int32) {
	if w.hops[to] != 0 || !w.passes(from, to) {
		return
	}
	w.hops[to], w.before[to] = w.hop, from
	if !w.origin[to] {
		w.next = append(w.next, to)
	}
}

// passes reports whether anything is allowed from one group to another.
func (w *walk) passes(from, to int32) bool {
	ix := w.s.index
	possible := w.passable[ix.fallback]
	for _, s := range ix.levels(from, to) {
		possible = possible || w.opens(s)
	}
	if !possible {
		return false
	}
	named := ix.protocols(from, to)
	if w.passable[ix.cell(from, to, unnamed(named), 0)] {
		return true
	}
	for _, p := range named {
		for _, piece := range ix.pieces(from, to, p) {
			if w.passable[piece.decision] {
				return true
			}
		}
	}
	return false
}

// way returns a shortest way to a workload: one workload of each group passed.
func (w *walk) way(target *workload) (hops int, names []string, reached bool) {
	best := int32(none)
	for _, end := range target.ends {
		if w.hops[end.group] > 0 && !w.s.refused(end) && (best == none || w.hops[end.group] < w.hops[best]) {
			best = end.group
		}
	}
	if best == none {
		return 0, nil, false
	}
	names = append(names, target.name)
	for g := w.before[best]; g != none; g = w.before[g] {
		if w.origin[g] {
			names = append(names, w.origins[g])
			break
		}
		names = append(names, w.s.workloads[w.members[g][0]].name)
	}
	slices.Reverse(names)
	return int(w.hops[best]), names, true
}
