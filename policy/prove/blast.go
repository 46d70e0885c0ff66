package prove

import (
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

const blastField = "spec.blastRadius"

// blastRadius proves that what anybody in From can reach, hop by hop along
// allowed flows, weighs no more than it may.
func (p *prover) blastRadius(g *bocage.Guardrail, b *bocage.BlastRadius) bocage.Proof {
	statement := fmt.Sprintf("what can be reached in %s from where Guardrail %s says weighs at most %d", hopsOf(b), g.Name, b.MaxWeight)
	ref := compile.Ref("Guardrail", g, blastField)
	r := p.radius(b)
	over := r.exceeding()
	if len(over) == 0 {
		return proof(statement, ref, "")
	}
	worst := r.worst(over)
	failed := proof(statement, ref, r.text(worst, nil))
	failed.Workloads = r.named(over)
	return failed
}

func hopsOf(b *bocage.BlastRadius) string {
	if b.MaxHops > 0 {
		return fmt.Sprintf("%d hops", b.MaxHops)
	}
	return "any number of hops"
}

// text says how much a workload at a place can reach, or nil: the one there who reaches
// most. The proof counts what comes once quarantines and threat conditions are over, so it
// names the command that shows that.
func (r *radius) text(i int, w *bocage.Workload) string {
	if w == nil {
		w = r.farthest(i)
	}
	var who, asked string
	weight := r.most(i)
	if w != nil {
		who, asked, weight = w.NamespacedName(), w.NamespacedName(), r.of(i, w)
	} else {
		who, asked = r.p.who(r.p.groups[i]), r.p.members[r.p.groups[i]].address.String()
	}
	show := "bocage policy blast " + asked + " --lasting"
	if r.bound.MaxHops > 0 {
		show += fmt.Sprintf(" --hops %d", r.bound.MaxHops)
	}
	if r.bound.LeastWeight > 0 {
		show += fmt.Sprintf(" --least-weight %d", r.bound.LeastWeight)
	}
	return fmt.Sprintf("from %s a weight of %d can be reached in %s, once quarantines and threat conditions are over: `%s` shows the ways (with --generation, those of a generation that is kept back)",
		who, weight, hopsOf(r.bound), show)
}

// farthest is the workload at a place that reaches most; nil if there are only addresses.
func (r *radius) farthest(i int) *bocage.Workload {
	var farthest *bocage.Workload
	for _, w := range r.members(i) {
		if farthest == nil || r.of(i, w) > r.of(i, farthest) {
			farthest = w
		}
	}
	return farthest
}

// mostNamed bounds the workloads that a failed proof names.
const mostNamed = 50

// radius is what everybody whom a bound is about can reach.
type radius struct {
	p      *prover
	bound  *bocage.BlastRadius
	from   map[bocage.Group]bool
	graph  *graph
	totals []int  // by place in graph: the weight of all that is reached, whoever begins included
	itself []bool // by place: whoever begins is among it
}

func (p *prover) radius(b *bocage.BlastRadius) *radius {
	r := &radius{p: p, bound: b, from: p.side(b.From), graph: p.graph(b.LeastWeight)}
	r.totals, r.itself = r.graph.radii(b.MaxHops, r.begins)
	return r
}

// begins reports whether the bound is about who is at a place.
func (r *radius) begins(i int) bool {
	if n := len(r.p.groups); i >= n {
		return slices.ContainsFunc(r.graph.several[i-n].groups, func(at int32) bool { return r.from[r.p.groups[at]] })
	}
	return r.from[r.p.groups[i]] && (r.graph.outside[i] || r.graph.own[i] >= 0)
}

// most is the greatest weight that somebody at a place reaches: nobody reaches himself.
func (r *radius) most(i int) int {
	if r.itself[i] {
		return r.totals[i] - r.graph.own[i]
	}
	return r.totals[i]
}

// of is the weight that a workload at a place reaches.
func (r *radius) of(i int, w *bocage.Workload) int {
	if r.itself[i] {
		return r.totals[i] - r.graph.weightOf(w)
	}
	return r.totals[i]
}

// exceeding lists the places from which more can be reached than may be.
func (r *radius) exceeding() []int {
	var out []int
	for i := range r.totals {
		if r.begins(i) && r.most(i) > r.bound.MaxWeight {
			out = append(out, i)
		}
	}
	return out
}

// worst is the place from which most can be reached.
func (r *radius) worst(places []int) int {
	worst := places[0]
	for _, i := range places {
		if r.most(i) > r.most(worst) {
			worst = i
		}
	}
	return worst
}

// members lists the workloads at a place.
func (r *radius) members(i int) []*bocage.Workload {
	if n := len(r.p.groups); i >= n {
		return r.graph.several[i-n].members
	}
	return slices.DeleteFunc(slices.Clone(r.p.members[r.p.groups[i]].workloads), func(w *bocage.Workload) bool { return len(r.p.groupsOf[w.Status.Identity]) != 1 })
}

// named lists the workloads at some places from which too much can be reached, at most
// mostNamed.
func (r *radius) named(places []int) []string {
	var out []string
	for _, i := range places {
		for _, w := range r.members(i) {
			if r.of(i, w) > r.bound.MaxWeight {
				out = append(out, w.NamespacedName())
			}
		}
	}
	slices.Sort(out)
	return out[:min(len(out), mostNamed)]
}

// graph is who may open something to whom, by places in prover.groups. Behind the
// groups stand the workloads that are in several of them: they are reached where
// any of their addresses is, go on from all, and weigh once.
type graph struct {
	size    int
	several []several
	numbers map[string]int // where several of the same groups are, by these
	least   int            // what a workload weighs at least
	weight  []int          // of all members
	// own is the weight of the lightest member: whoever begins does not reach
	// itself. It is negative where nobody is who is not in several groups.
	own []int
	// outside marks groups of addresses outside: flows begin and end there, and
	// none goes through.
	outside []bool
	// family has a bit for each IP version that some member speaks: nobody
	// reaches whom he shares none with.
	family []uint8
	next   [][]int32
	// plain lists the groups without a wildcard of their own that everybody
	// marked in toPlain reaches, apart from the few in but.
	plain   []int32
	isPlain map[int32]bool
	toPlain []bool
	but     []map[int32]bool
	common  uint8 // versions that all of the plain workloads speak
}

// graph reads the reach once: pairs with rules of their own one by one, what
// wildcards say of all others together.
func (p *prover) graph(least int) *graph {
	n := len(p.groups)
	place := make(map[bocage.Group]int32, n)
	g := &graph{size: n, least: least, numbers: map[string]int{}, weight: make([]int, n), own: make([]int, n), outside: make([]bool, n), family: make([]uint8, n), next: make([][]int32, n), isPlain: map[int32]bool{}, toPlain: make([]bool, n), but: make([]map[int32]bool, n)}
	for i, group := range p.groups {
		place[group], g.own[i] = int32(i), -1
		g.outside[i] = len(p.members[group].workloads) == 0
		g.family[i] = p.families(group)
		for _, w := range p.members[group].workloads {
			if len(p.groupsOf[w.Status.Identity]) == 1 {
				g.weigh(i, w)
			}
		}
	}
	p.pairs(g, place)
	p.spread(g, place)
	return g
}

func (g *graph) weightOf(w *bocage.Workload) int {
	weight, _ := w.Weight()
	return max(weight, g.least)
}

// weigh adds a member.
func (g *graph) weigh(i int, w *bocage.Workload) {
	weight := g.weightOf(w)
	if g.own[i] < 0 || weight < g.own[i] {
		g.own[i] = weight
	}
	g.weight[i] = bocage.AddWeights(g.weight[i], weight)
}

// pairs finds who reaches whom among the groups.
func (p *prover) pairs(g *graph, place map[bocage.Group]int32) {
	for _, at := range p.reach.exact {
		from, known := place[at.from]
		to, also := place[at.to]
		if !known || !also {
			continue
		}
		if g.family[from]&g.family[to] != 0 && p.reach.reaches(at.from, at.to) {
			g.next[from] = append(g.next[from], to)
		} else if !p.reach.toAny[at.to] {
			if g.but[from] == nil {
				g.but[from] = map[int32]bool{}
			}
			g.but[from][to] = true
		}
	}
	if !p.reach.wildcards {
		return
	}
	everyone := func(bocage.Group) bool { return true }
	specialTo, plainTo := split(p.groups, everyone, p.reach.toAny)
	g.common = 3
	for _, t := range plainTo {
		g.plain = append(g.plain, place[t])
		g.isPlain[place[t]] = true
		if !g.outside[place[t]] {
			g.common &= g.family[place[t]]
		}
	}
	for i, from := range p.groups {
		// Plain receivers are alike: what one without a rule of its own gets, all do.
		for _, t := range plainTo {
			if p.reach.rules[pair{from, t}] == nil {
				g.toPlain[i] = p.reach.reaches(from, t)
				break
			}
		}
	}
	specialFrom, plainFrom := split(p.groups, everyone, p.reach.fromAny)
	for _, t := range specialTo {
		sample := true
		for _, f := range plainFrom {
			if p.reach.rules[pair{f, t}] == nil {
				sample = p.reach.reaches(f, t)
				break
			}
		}
		for _, f := range plainFrom {
			if sample && p.reach.rules[pair{f, t}] == nil && g.family[place[f]]&g.family[place[t]] != 0 {
				g.next[place[f]] = append(g.next[place[f]], place[t])
			}
		}
		for _, f := range specialFrom {
			if p.reach.rules[pair{f, t}] == nil && g.family[place[f]]&g.family[place[t]] != 0 && p.reach.reaches(f, t) {
				g.next[place[f]] = append(g.next[place[f]], place[t])
			}
		}
	}
}

// several are workloads that are in the same groups, and in more than one.
type several struct {
	groups  []int32
	members []*bocage.Workload
}

// spread adds the workloads that are in several groups.
func (p *prover) spread(g *graph, place map[bocage.Group]int32) {
	var sets []several
	for i, group := range p.groups {
		for _, w := range p.members[group].workloads {
			of := p.groupsOf[w.Status.Identity]
			if len(of) == 1 || place[of[0]] != int32(i) {
				continue
			}
			groups := make([]int32, len(of))
			for k, at := range of {
				groups[k] = place[at]
			}
			slices.Sort(groups)
			key := fmt.Sprint(groups)
			at, known := g.numbers[key]
			if !known {
				at = len(sets)
				g.numbers[key], sets = at, append(sets, several{groups: groups})
			}
			sets[at].members = append(sets[at].members, w)
		}
	}
	// Who reaches a group that has such members, kept as they are added.
	from := map[int32][]int32{}
	for _, s := range sets {
		for _, of := range s.groups {
			from[of] = nil
		}
	}
	note := func(i int, next []int32) {
		for _, v := range next {
			if list, wanted := from[v]; wanted {
				from[v] = append(list, int32(i))
			}
		}
	}
	if len(sets) > 0 {
		for i, next := range g.next {
			note(i, next)
		}
	}
	for _, s := range sets {
		at := g.size
		g.add(s, from)
		note(at, g.next[at])
		for _, w := range s.members {
			g.weigh(at, w)
		}
	}
}

// placeOf finds the place of workloads that are in several groups, by the groups' places.
func (g *graph) placeOf(groups []int32) (int, bool) {
	k, known := g.numbers[fmt.Sprint(groups)]
	return g.size - len(g.several) + k, known
}

// add gives workloads that are in several groups a place of their own; from lists
// who reaches each of their groups.
func (g *graph) add(s several, from map[int32][]int32) {
	at := int32(g.size)
	g.size++
	g.several = append(g.several, s)
	g.weight, g.own, g.outside = append(g.weight, 0), append(g.own, -1), append(g.outside, false)
	// It goes on from every one of its addresses.
	var family uint8
	var next, reaching []int32
	toPlain := false
	var but map[int32]bool
	for _, of := range s.groups {
		family |= g.family[of]
		next = append(next, g.next[of]...)
		reaching = append(reaching, from[of]...)
		switch {
		case !g.toPlain[of]:
		case !toPlain:
			toPlain, but = true, maps.Clone(g.but[of])
		default:
			maps.DeleteFunc(but, func(v int32, _ bool) bool { return !g.but[of][v] })
		}
	}
	slices.Sort(next)
	next = slices.Compact(next)
	// It is reached where any of its addresses is, itself included.
	slices.Sort(reaching)
	for _, i := range slices.Compact(reaching) {
		g.next[i] = append(g.next[i], at)
	}
	if slices.ContainsFunc(next, func(v int32) bool { return slices.Contains(s.groups, v) }) {
		next = append(next, at)
	}
	g.family, g.next, g.toPlain, g.but = append(g.family, family), append(g.next, next), append(g.toPlain, toPlain), append(g.but, but)
	plain := slices.DeleteFunc(slices.Clone(s.groups), func(of int32) bool { return !g.isPlain[of] })
	if len(plain) == 0 {
		return
	}
	for i := range g.size {
		if g.toPlain[i] && !slices.ContainsFunc(plain, func(of int32) bool { return !g.but[i][of] && g.family[i]&g.family[of] != 0 }) {
			if g.but[i] == nil {
				g.but[i] = map[int32]bool{}
			}
			g.but[i][at] = true
		}
	}
	g.plain = append(g.plain, at)
	g.common &= family
}

// families has bit 0 for IPv4 and bit 1 for IPv6 addresses of a group, as far as
// somebody has them.
func (p *prover) families(g bocage.Group) uint8 {
	m := p.members[g]
	var family uint8
	if g == bocage.GroupWorld {
		// Where prefixes are everything, nobody of that family is left.
		for i, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			everything := netip.PrefixFrom(all, 0)
			if !slices.ContainsFunc(p.rs.Peers, func(peer bocage.Peer) bool { return peer.Prefix == everything }) && !p.covered(everything) {
				family |= 1 << i
			}
		}
		return family
	}
	add := func(a netip.Addr) {
		if a.Is4() {
			family |= 1
		} else {
			family |= 2
		}
	}
	for _, prefix := range m.prefixes {
		if !p.covered(prefix) {
			add(prefix.Addr())
		}
	}
	for _, w := range m.workloads {
		for _, a := range w.Spec.Addresses {
			add(a)
		}
	}
	return family
}

// reaches reports whether the first may open anything to the second.
func (r *reach) reaches(from, to bocage.Group) bool {
	if !r.mayAllow(from, to) {
		return false
	}
	found := false
	r.eachCell(from, to, nil, func(_ bocage.Protocol, _ bocage.PortRange, id bocage.DecisionID) bool {
		found = r.everAllows(id)
		return !found
	})
	return found
}

// columns is how many targets are followed at once: the memory is a bit for each
// of them and each group, twice.
const columns = 4096

// radii weighs what each wanted place reaches in so many hops (0: any number), and says
// whether that includes the place itself. The sets grow hop by hop for a block of targets
// at a time.
func (g *graph) radii(hops int, wanted func(int) bool) (totals []int, itself []bool) {
	const words = columns / 64
	if hops == 0 {
		hops = g.size
	}
	totals, itself = make([]int, g.size), make([]bool, g.size)
	now, next := make([]uint64, g.size*words), make([]uint64, g.size*words)
	all := make([]uint64, words)
	for first := 0; first < g.size; first += columns {
		last := min(first+columns, g.size)
		clear(now)
		for range hops {
			g.step(now, next, all, first, last, words)
			if slices.Equal(now, next) {
				break
			}
			now, next = next, now
		}
		for i := range totals {
			if !wanted(i) {
				continue
			}
			for w, set := range now[i*words : (i+1)*words] {
				for ; set != 0; set &= set - 1 {
					target := first + w*64 + bits.TrailingZeros64(set)
					totals[i] = bocage.AddWeights(totals[i], g.weight[target])
					itself[i] = itself[i] || target == i && !g.outside[i]
				}
			}
		}
	}
	return totals, itself
}

// step adds one hop: what a group reaches is its neighbours and what they reach.
func (g *graph) step(now, next, all []uint64, first, last, words int) {
	reach := func(row []uint64, v int32) {
		if g.outside[v] {
			return
		}
		for w, set := range now[int(v)*words : (int(v)+1)*words] {
			row[w] |= set
		}
		if int(v) >= first && int(v) < last {
			row[(int(v)-first)/64] |= 1 << ((int(v) - first) % 64)
		}
	}
	clear(all)
	for _, v := range g.plain {
		reach(all, v)
	}
	for i := range g.size {
		row := next[i*words : (i+1)*words]
		clear(row)
		for _, v := range g.next[i] {
			reach(row, v)
		}
		switch {
		case !g.toPlain[i]:
		case len(g.but[i]) == 0 && g.family[i]&g.common != 0:
			for w, set := range all {
				row[w] |= set
			}
		default:
			for _, v := range g.plain {
				if !g.but[i][v] && g.family[i]&g.family[v] != 0 {
					reach(row, v)
				}
			}
		}
	}
}
