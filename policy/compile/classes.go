package compile

import (
	"encoding/binary"
	"slices"

	"bocage.dev/bocage"
)

// Broad statements are held against classes: subjects that the same broad
// statements name are one at that side. Classes whose refusals are alike are
// coarsely one: a thousand namespaces that are each closed by a policy of their
// own are closed alike.

// mostSpelled is how many subjects a site may have before the refusals of broad
// statements are no longer spelled out pair by pair: see relate.
const mostSpelled = 256

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

// coarse is classes whose statements that are not weak say the same, though
// others may say it.
type coarse struct {
	classes []int32
	leader  int32 // the member with the lowest group number: it stands for all
	wide    []int32
	named   []int32 // statements that are not weak
	table   int32   // what open and wide statements come to that are not weak
	patch   int32   // that, over what the open ones come to
}

type classPair struct{ from, to int32 }

// base is what pairs of two classes have in common.
type base struct {
	about []int32 // broad statements, sorted
	below int32   // table under the rules of the pair itself
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
	g.openStrong = g.strong(g.open)
	g.relaxed = len(g.c.pop.byKey) > g.c.spelled
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
}

// strong returns the statements that are not weak.
func (g *grid) strong(statements []int32) []int32 {
	var out []int32
	for _, i := range statements {
		if !g.c.statements[i].weak() {
			out = append(out, i)
		}
	}
	return out
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
		if g.c.pop.subjects[s].gone() {
			out.of[s] = unset
			continue
		}
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
	var numbers []uint32
	for i := range out.list {
		class := &out.list[i]
		class.table = g.tableOf(merged(g.open, class.wide))
		class.patch = g.tables.over(class.table, g.openTable)
		named, wide := g.strong(class.named), g.strong(class.wide)
		key, numbers = appendNumbers(key[:0], named), numbers[:0]
		for _, n := range wide {
			shape := g.c.statements[n].shape()
			number, known := shapes[shape]
			if !known {
				number = uint32(len(shapes))
				shapes[shape] = number
			}
			numbers = append(numbers, number)
		}
		slices.Sort(numbers)
		key = append(key, 255, 255, 255, 255)
		for _, number := range slices.Compact(numbers) {
			key = binary.LittleEndian.AppendUint32(key, number)
		}
		at, known := byKey[string(key)]
		if !known {
			at = int32(len(out.coarse))
			byKey[string(key)] = at
			out.coarse = append(out.coarse, coarse{leader: class.members[0], named: named})
		}
		class.coarse = at
		group := &out.coarse[at]
		group.classes = append(group.classes, int32(i))
		for _, s := range class.members {
			if s == class.members[0] && !known || g.c.pop.subjects[s].group < g.c.pop.subjects[group.leader].group {
				group.leader, group.wide = s, wide
			}
		}
	}
	for i := range out.coarse {
		group := &out.coarse[i]
		group.table = g.tableOf(merged(g.openStrong, group.wide))
		group.patch = g.tables.over(group.table, g.tableOf(g.openStrong))
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

// relate finds what pairs of two coarse classes need over what lies below.
//
// In small sites, everything is spelled out, pair by pair. In others the number of
// rules must not grow with the product of the classes where nothing is let
// through anyhow. There, weak statements do not count and one pair stands for
// all: refusals that differ only in who refuses are left as they are, and those
// that differ only in why become reasons, which are looked up by class. What is
// let through, by the rules or by what lies below, is spelled out.
func (g *grid) relate(from, to int32) {
	f, t := &g.sources.coarse[from], &g.targets.coarse[to]
	if !g.relaxed {
		g.spellOut(f, t)
		return
	}
	shared := intersect(f.named, t.named)
	truth := g.tableOf(merged(g.openStrong, f.wide, t.wide, shared))
	below := g.tables.lay(t.patch, f.table)
	spell := g.allows(truth) || g.allows(below) || g.allows(t.table)
	if len(shared) > 0 || len(f.wide) > 0 && len(t.wide) > 0 {
		refined := g.refine(truth, below, t.table)
		if patch := g.tables.over(refined, below); patch != 0 {
			g.reasons[classPair{from, to}] = patch
		}
		spell = spell || g.patch(truth, refined) != 0
	}
	if spell {
		g.spellOut(f, t)
	}
}

// refine returns the table below with the better reasons of another, where both
// refuse to the same effect and no weak statement can have a say: where the
// target's own table refuses too.
func (g *grid) refine(truth, below, target int32) int32 {
	list := g.tables.list
	refusing := choose(list[below], list[target], func(x, y int32) int32 {
		if g.like(x).allows || g.like(y).allows {
			return unset
		}
		return x
	})
	better := choose(list[truth], refusing, func(x, y int32) int32 {
		if y != unset && g.like(x).effect == g.like(y).effect && !g.alike(x, y) {
			return x
		}
		return unset
	})
	return g.tables.intern(choose(better, list[below], func(x, y int32) int32 {
		if x == unset {
			return y
		}
		return x
	}))
}

// spellOut finds the patches of all exact classes of two coarse ones.
func (g *grid) spellOut(f, t *coarse) {
	for _, from := range f.classes {
		for _, to := range t.classes {
			source, target := &g.sources.list[from], &g.targets.list[to]
			if (len(source.wide) == 0 || len(target.wide) == 0) && !meet(source.named, target.named) {
				continue // what lies below knows all of it
			}
			b := g.baseOf(from, to)
			if patch := g.patch(g.tableOf(b.about), b.below); patch != 0 {
				g.explicit[classPair{from, to}] = patch
			}
		}
	}
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
	if reason := g.reasons[classPair{source.coarse, target.coarse}]; reason != 0 {
		// Whoever passes over reasons must find the same effect all the same: where
		// they would hide another one, the pair has to say it.
		bare := b.below
		b.below = g.tables.intern(choose(g.tables.list[g.tables.lay(reason, bare)], g.tables.list[bare], func(x, y int32) int32 {
			if x == y || g.like(x).effect == g.like(y).effect {
				return x
			}
			return hidden
		}))
	}
	g.bases[pair] = b
	return b
}

// hidden stands for what two readers of the rules would not read alike.
const hidden = -2

// meet reports whether two sorted lists share something.
func meet(a, b []int32) bool {
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] == b[j]:
			return true
		case a[i] < b[j]:
			i++
		default:
			j++
		}
	}
	return false
}
