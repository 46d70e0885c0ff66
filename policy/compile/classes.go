package compile

import (
	"encoding/binary"
	"slices"

	"bocage.dev/bocage"
)

// Broad statements are held against classes: subjects that the same broad
// statements name are one at that side. Classes that differ only in who states
// the same things towards anyone are coarsely one: a thousand namespaces that are
// each closed by a policy of their own are closed alike.

// mostSpelled is how many subjects a coarse class may have before the refusals
// between two such classes are no longer spelled out pair by pair: see relate.
const mostSpelled = 31

// classes divides the subjects at one side of flows.
type classes struct {
	of     []int32 // by subject
	list   []class
	coarse []coarse
}

// class is subjects that the same broad statements name.
type class struct {
	wide    []int32 // statements from or to anyone, sorted
	named   []int32 // statements between two named sides, sorted
	members []int32 // sorted
	coarse  int32
	table   int32 // what open and wide statements come to
	patch   int32 // that, over what the open ones come to
}

// coarse is classes that are closed alike: what their broad statements say is the
// same, though others may say it. Where no broad statement may allow anything,
// weak ones are left out of it.
type coarse struct {
	classes []int32
	size    int   // subjects
	strong  bool  // has a wide statement that is not weak
	leader  int32 // the member with the lowest group number: it stands for all
}

type classPair struct{ from, to int32 }

// base is what pairs of two classes have in common.
type base struct {
	about   []int32 // broad statements, sorted
	below   int32   // table under the rules of the pair itself
	relaxed bool
}

// shape is a statement without its sides and authors.
type shape struct {
	kind        kind
	duty        duty
	until       int64
	guardrail   string
	disposition bocage.Verdict
	shy         bool
	kube        kubeRule
	ports       string
}

func (s *statement) shape() shape {
	out := shape{kind: s.kind, duty: s.duty, guardrail: s.guardrail, disposition: s.disposition, shy: s.shy, ports: s.ports.key()}
	if !s.until.IsZero() {
		out.until = s.until.UnixNano()
	}
	if s.kube != nil {
		out.kube = *s.kube
		if out.kube.tier == kubeNetwork {
			out.kube.rank = 0 // it only orders the authors
		}
	}
	return out
}

// classify divides the subjects and relates the classes.
func (g *grid) classify() {
	g.open = g.open[:0]
	for _, i := range g.broad {
		if s := &g.c.statements[i]; s.from.any && s.to.any {
			g.open = append(g.open, i)
		}
	}
	g.openTable = g.tableOf(g.open)
	g.openPatch = g.tables.over(g.openTable, g.bottom)
	g.opens = slices.ContainsFunc(g.broad, func(i int32) bool { return g.c.statements[i].mayAllow() })
	shapes := map[shape]uint32{}
	g.sources = g.divide(shapes, func(s *statement) (own, other side) { return s.from, s.to })
	g.targets = g.divide(shapes, func(s *statement) (own, other side) { return s.to, s.from })
	g.bases = map[classPair]base{}
	g.reasons, g.explicit = map[classPair]int32{}, map[classPair]int32{}
	for from := range g.sources.coarse {
		for to := range g.targets.coarse {
			g.relate(int32(from), int32(to))
		}
	}
	clear(g.bases) // below them there may be reasons now
}

// divide puts the subjects into classes.
func (g *grid) divide(shapes map[shape]uint32, sides func(*statement) (own, other side)) classes {
	n := len(g.c.pop.subjects)
	out := classes{of: make([]int32, n)}
	// A class is named by the sum of random numbers, one for each statement.
	sums := make([][2]uint64, n)
	for _, i := range g.broad {
		own, _ := sides(&g.c.statements[i])
		low, high := scramble(uint64(i)*2+1), scramble(uint64(i)*2+2)
		for _, s := range own.list {
			sums[s][0] += low
			sums[s][1] += high
		}
	}
	bySum := map[[2]uint64]int32{}
	first := make([]int32, n) // of the first member of a class, its number plus one
	for s, sum := range sums {
		i, known := bySum[sum]
		if !known {
			i = int32(len(out.list))
			bySum[sum] = i
			out.list = append(out.list, class{})
			first[s] = i + 1
		}
		out.of[s] = i
		out.list[i].members = append(out.list[i].members, int32(s))
	}
	for _, i := range g.broad {
		own, other := sides(&g.c.statements[i])
		for _, s := range own.list {
			if first[s] == 0 {
				continue
			}
			if class := &out.list[first[s]-1]; other.any {
				class.wide = append(class.wide, i)
			} else {
				class.named = append(class.named, i)
			}
		}
	}
	byKey := map[string]int32{}
	var key []byte
	var wide []uint32
	for i := range out.list {
		class := &out.list[i]
		class.table = g.tableOf(merged(g.open, class.wide))
		class.patch = g.tables.over(class.table, g.openTable)
		key, wide = key[:0], wide[:0]
		strong := false
		for _, n := range class.named {
			if s := &g.c.statements[n]; g.opens || !s.weak() {
				key = binary.LittleEndian.AppendUint32(key, uint32(n))
			}
		}
		for _, n := range class.wide {
			s := &g.c.statements[n]
			if s.weak() && !g.opens {
				continue
			}
			strong = true
			shape := s.shape()
			number, known := shapes[shape]
			if !known {
				number = uint32(len(shapes))
				shapes[shape] = number
			}
			wide = append(wide, number)
		}
		slices.Sort(wide)
		key = append(key, 255, 255, 255, 255)
		for _, number := range slices.Compact(wide) {
			key = binary.LittleEndian.AppendUint32(key, number)
		}
		at, known := byKey[string(key)]
		if !known {
			at = int32(len(out.coarse))
			byKey[string(key)] = at
			out.coarse = append(out.coarse, coarse{strong: strong, leader: class.members[0]})
		}
		class.coarse = at
		group := &out.coarse[at]
		group.classes = append(group.classes, int32(i))
		group.size += len(class.members)
		for _, s := range class.members {
			if g.c.pop.subjects[s].group < g.c.pop.subjects[group.leader].group {
				group.leader = s
			}
		}
	}
	return out
}

// scramble spreads a number over 64 bits (splitmix64).
func scramble(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// relate finds what pairs of two coarse classes need over what lies below:
//
//   - Where nothing is let through, one pair stands for all. Between large
//     classes, refusals that differ only in who refuses are left as they are, and
//     those that differ only in why become reasons, which are looked up by class;
//     so the number of rules does not grow with the product of the classes.
//   - Everything else is spelled out, pair by pair.
func (g *grid) relate(from, to int32) {
	f, t := &g.sources.coarse[from], &g.targets.coarse[to]
	one := classPair{g.sources.of[f.leader], g.targets.of[t.leader]}
	if !(f.strong && t.strong) && !g.meet(one) {
		return // what lies below knows all of it
	}
	b := g.baseOf(one.from, one.to)
	truth := g.tableOf(b.about)
	if !b.relaxed || g.opens && (g.allows(truth) || g.allows(b.below)) {
		g.spellOut(f, t)
		return
	}
	if truth == b.below {
		return
	}
	refined := g.tables.intern(choose(g.tables.list[truth], g.tables.list[b.below], func(x, y int32) int32 {
		if g.like(x).effect == g.like(y).effect && !g.alike(x, y) {
			return x
		}
		return y
	}))
	if patch := g.tables.over(refined, b.below); patch != 0 {
		g.reasons[classPair{from, to}] = patch
	}
	if g.patch(truth, refined, true) != 0 {
		clear(g.bases) // of these two, they lie over the reasons from now on
		g.spellOut(f, t)
	}
}

// spellOut finds the patches of all exact classes of two coarse ones.
func (g *grid) spellOut(f, t *coarse) {
	for _, from := range f.classes {
		for _, to := range t.classes {
			b := g.baseOf(from, to)
			if patch := g.patch(g.tableOf(b.about), b.below, b.relaxed); patch != 0 {
				g.explicit[classPair{from, to}] = patch
			}
		}
	}
}

// meet reports whether a statement between two named sides that counts holds for
// two classes.
func (g *grid) meet(pair classPair) bool {
	return slices.ContainsFunc(intersect(g.sources.list[pair.from].named, g.targets.list[pair.to].named), func(i int32) bool {
		return g.opens || !g.c.statements[i].weak()
	})
}

// baseOf returns what pairs of two classes have in common.
func (g *grid) baseOf(from, to int32) base {
	pair := classPair{from, to}
	b, known := g.bases[pair]
	if known {
		return b
	}
	source, target := &g.sources.list[from], &g.targets.list[to]
	b.about = merged(g.open, source.wide, target.wide, intersect(source.named, target.named))
	b.below = g.tables.lay(target.patch, source.table)
	b.relaxed = g.sources.coarse[source.coarse].size > g.c.spelled && g.targets.coarse[target.coarse].size > g.c.spelled
	b.below = g.tables.lay(g.reasons[classPair{source.coarse, target.coarse}], b.below)
	g.bases[pair] = b
	return b
}
