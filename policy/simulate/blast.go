package simulate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// Blast says what can be reached from somewhere, hop by hop, along flows that
// policy allows at the simulator's moment: the workloads, each with a shortest
// way. Who is cut off by a quarantine is neither reached nor passed through, unless what
// lasts is asked for: then quarantines and conditions count as over.
//
// It walks groups, not workloads: what one member may open, all may.
func (s *Simulator) Blast(q bocage.BlastQuery) (bocage.BlastResult, error) {
	start, names, err := s.origin(q.From, q.Lasting)
	if err != nil {
		return bocage.BlastResult{}, err
	}
	if q.Hops < 0 {
		return bocage.BlastResult{}, fmt.Errorf("%d hops: 0 is to the end, otherwise say how far to look", q.Hops)
	}
	result := bocage.BlastResult{From: names, Total: len(s.workloads), Reached: []bocage.BlastTarget{}}
	w := s.newWalk(q.Uninspected, q.Lasting)
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
		result.Weight = bocage.AddWeights(result.Weight, max(target.weight, q.LeastWeight))
		result.Reached = append(result.Reached, bocage.BlastTarget{Workload: target.name, Hops: hops, Path: way})
	}
	slices.SortStableFunc(result.Reached, func(a, b bocage.BlastTarget) int { return cmp.Compare(a.Hops, b.Hops) })
	return result, nil
}

// start is one place to walk from, under the name of who is there.
type start struct {
	node int32
	name string
}

// node is a group in one family of addresses: who has addresses of one family
// only cannot talk with the other.
func node(e End) int32 {
	if e.Address.Is4() {
		return 2 * e.group
	}
	return 2*e.group + 1
}

// origin finds who is meant: one workload, all of a namespace, or an address.
func (s *Simulator) origin(from string, lasting bool) ([]start, []string, error) {
	namespace, all := strings.CutSuffix(from, "/")
	if !all {
		ends, err := s.Resolve(from)
		if err != nil {
			return nil, nil, fmt.Errorf("from: %w", err)
		}
		name := from
		if w := s.workloadAt(ends[0]); w != nil {
			name = w.NamespacedName()
			ends = s.workloads[s.byName[name]].ends
		}
		return s.starts(nil, name, ends, lasting), []string{name}, nil
	}
	var starts []start
	var names []string
	for i := range s.workloads {
		if w := &s.workloads[i]; w.object.Namespace == namespace {
			names = append(names, w.name)
			starts = s.starts(starts, w.name, w.ends, lasting)
		}
	}
	if len(names) == 0 {
		return nil, nil, fmt.Errorf("from: namespace %q has no workload", namespace)
	}
	return starts, names, nil
}

func (s *Simulator) starts(list []start, name string, ends []End, lasting bool) []start {
	for _, end := range ends {
		if lasting || !s.refused(end) {
			list = append(list, start{node(end), name})
		}
	}
	return list
}

// walk is a breadth-first search over nodes. Somebody standing at a node can go
// on from there; that alone does not mean that its other members were reached.
type walk struct {
	s        *Simulator
	passable []bool // by decision: followed
	lasting  bool   // whoever is cut off will not be for good

	members   [][]int32   // workloads by node, without who is cut off
	siblings  [][]sibling // by node: where else its members have addresses
	successor [][]int32   // by group: groups with rules of their own for the pair

	hop      int32
	reached  []int32  // by node: the hop, or 0
	before   []int32  // by node: from where it was reached
	standing []string // by node: who stands there, or nobody
	parent   []int32  // by node: from where who stands there came; none is the origin
	frontier []int32
	next     []int32

	unreached []int32 // nodes not reached yet that a rule of no pair may lead to
	inviting  []int32 // those among them that let something in from anybody
}

type sibling struct {
	node int32
	name string
}

func (s *Simulator) newWalk(uninspected, lasting bool) *walk {
	ix := s.index
	n := 2 * len(ix.names)
	w := &walk{s: s, lasting: lasting, passable: make([]bool, len(ix.decisions)), members: make([][]int32, n), siblings: make([][]sibling, n),
		successor: make([][]int32, len(ix.names)), reached: make([]int32, n), before: make([]int32, n), standing: make([]string, n), parent: make([]int32, n)}
	for i := range ix.decisions {
		at := ix.at(int32(i), s.in.Now)
		for range bocage.MostSuccessors + 1 {
			d := ix.decisions[at]
			w.passable[i] = w.passable[i] || d.verdict.Allowed() && !(uninspected && d.verdict == bocage.VerdictInspect)
			if !lasting || !d.ends {
				break
			}
			at = d.then
		}
	}
	for i := range s.workloads {
		w.enter(int32(i))
	}
	for at := range int32(n) {
		if len(w.members[at]) == 0 {
			continue
		}
		invited := ix.receivers[at/2].any
		if w.opens(invited) {
			w.inviting = append(w.inviting, at)
		}
		// Where "anybody to it" lets nothing pass, only a rule of the pair's own
		// can let somebody in: those are followed from their sources.
		if w.opens(invited) || !ix.whole(invited) {
			w.unreached = append(w.unreached, at)
		}
	}
	for i := range ix.exact.slots {
		if slot := &ix.exact.slots[i]; slot.pair != 0 {
			from, to := int32((slot.pair-1)>>32), int32(uint32(slot.pair-1))
			if len(w.members[2*to])+len(w.members[2*to+1]) > 0 {
				w.successor[from] = append(w.successor[from], to)
			}
		}
	}
	return w
}

// enter places a workload at its nodes.
func (w *walk) enter(i int32) {
	workload := &w.s.workloads[i]
	var nodes []int32
	for _, end := range workload.ends {
		if at := node(end); (w.lasting || !w.s.refused(end)) && !slices.Contains(nodes, at) {
			nodes = append(nodes, at)
			w.members[at] = append(w.members[at], i)
		}
	}
	for _, at := range nodes {
		for _, other := range nodes {
			if at != other && !slices.ContainsFunc(w.siblings[at], func(s sibling) bool { return s.node == other }) {
				w.siblings[at] = append(w.siblings[at], sibling{other, workload.name})
			}
		}
	}
}

// whole reports whether a sheet leaves nothing to what is less specific.
func (ix *index) whole(s sheet) bool {
	return slices.ContainsFunc(ix.in(s), func(p span) bool { return p.end == key(bocage.ProtocolAny, 65535) && p.first == 0 })
}

func (w *walk) from(starts []start) {
	for _, s := range starts {
		w.stand(s.node, s.name, none)
	}
	w.frontier, w.next = w.next, nil
}

// stand notes that somebody has come to a node; the first is enough.
func (w *walk) stand(at int32, name string, from int32) {
	if w.standing[at] == "" {
		w.standing[at], w.parent[at] = name, from
		w.next = append(w.next, at)
	}
}

// step goes one hop further.
func (w *walk) step(hop int) {
	w.hop, w.next = int32(hop), nil
	for _, from := range w.frontier {
		slices.Sort(w.successor[from/2])
		for _, to := range w.successor[from/2] {
			w.reach(from, 2*to+from%2)
		}
		if w.wild(from / 2) {
			w.unreached = w.tried(from, w.unreached)
		} else {
			w.inviting = w.tried(from, w.inviting)
		}
	}
	w.frontier = w.next
}

// tried returns those of the nodes that were not reached yet, having tried each.
func (w *walk) tried(from int32, nodes []int32) []int32 {
	left := nodes[:0]
	for _, to := range nodes {
		if w.reach(from, to); w.reached[to] == 0 {
			left = append(left, to)
		}
	}
	return left
}

// wild reports whether a group may open something to groups that no rule names:
// to anybody, or by default.
func (w *walk) wild(from int32) bool {
	ix := w.s.index
	for _, s := range [2]sheet{ix.senders[from].any, ix.anyAny} {
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
	if from%2 != to%2 || w.reached[to] != 0 || len(w.members[to]) == 0 || !w.passes(from/2, to/2) {
		return
	}
	w.reached[to], w.before[to] = w.hop, from
	w.stand(to, w.s.workloads[w.members[to][0]].name, from)
	for _, s := range w.siblings[to] {
		w.stand(s.node, s.name, from)
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

// way returns a shortest way to a workload, by somebody at each node passed.
func (w *walk) way(target *workload) (hops int, names []string, reached bool) {
	best := int32(none)
	for _, end := range target.ends {
		if at := node(end); w.reached[at] > 0 && (w.lasting || !w.s.refused(end)) && (best == none || w.reached[at] < w.reached[best]) {
			best = at
		}
	}
	if best == none {
		return 0, nil, false
	}
	names = append(names, target.name)
	for at := w.before[best]; at != none; at = w.parent[at] {
		names = append(names, w.standing[at])
	}
	slices.Reverse(names)
	return int(w.reached[best]), names, true
}
