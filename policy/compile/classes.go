package compile

import (
	"encoding/binary"
	"maps"
	"math/bits"
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

// classes divides the subjects at one side of flows. A class is named by the sum
// of random numbers, one for each statement that names its members, so that a
// changed statement changes the sums of those whom it names and no others.
type classes struct {
	sides  func(*statement) (own, other side)
	sums   [][2]uint64 // by subject
	of     []int32     // by subject; unset: nobody is left in it
	bySum  map[[2]uint64]int32
	list   []class // those without members stay, for they may come again
	coarse []coarse

	changed map[int32]bool // classes that have other members since the last time
	pruned  int            // how many classes there were when they were pruned last
}

// class is subjects that the same broad statements name.
type class struct {
	wide    []int32 // statements from or to anyone, sorted
	named   []int32 // statements between two named sides, sorted
	members []int32 // sorted
	leader  int32   // the member with the lowest group number
	table   int32   // what open and wide statements come to
	patch   int32   // that, over what the open ones come to
	alike   int32   // equal for classes whose statements that are not weak say the same
	strong  strong
	coarse  int32
}

// strong is what the statements of a class say that are not weak.
type strong struct {
	wide, named []int32
	table       int32 // what open and wide statements come to that are not weak
	patch       int32 // that, over what the open ones come to
}

// coarse is classes whose statements that are not weak say the same, though
// others may say it.
type coarse struct {
	classes []int32
	leader  int32 // the member with the lowest group number: it stands for all
	leading int32 // its class
	strong
}

type classPair struct{ from, to int32 }

// base is what pairs of two classes have in common.
type base struct {
	about []int32 // broad statements, sorted
	below int32   // table under the rules of the pair itself
	rest  int32   // decision where only those of them cover a cell that are about every port
	// reason is the patch of the coarse classes that lies below too.
	reason int32
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
	owed        *owed
	policy      string // of whose order among others the kube rule is
	ports       string
}

func (s *statement) shape() shape {
	out := shape{kind: s.kind, duty: s.duty, guardrail: s.guardrail, disposition: s.disposition, shy: s.shy, owed: s.owed, ports: s.ports.key()}
	if !s.until.IsZero() {
		out.until = s.until.UnixNano()
	}
	if s.kube != nil {
		out.kube = *s.kube
		switch {
		case out.kube.tier == kubeNetwork:
			out.kube.rank = 0 // it only orders the authors
		case len(s.by) > 0:
			out.policy = s.by[0].Name
		}
	}
	return out
}

// classify divides the subjects and relates the classes. Statements were added
// to the broad ones or withdrawn from them, or are about others, and subjects came.
func (g *grid) classify(added, withdrawn []int32, shifted []resided, d *change) {
	came := d.come
	var open []int32
	for _, i := range g.broad {
		if s := &g.c.statements[i]; s.from.any && s.to.any {
			open = append(open, i)
		}
	}
	if g.sources.bySum == nil || !slices.Equal(open, g.open) || g.sources.crowded() || g.targets.crowded() {
		g.open = open
		g.openTable = g.tableOf(g.open)
		g.openPatch = g.tables.over(g.openTable, g.bottom)
		g.openStrong = g.strong(g.open)
		g.shapes, g.alikes = map[shape]uint32{}, map[string]int32{}
		g.sources = newClasses(func(s *statement) (own, other side) { return s.from, s.to })
		g.targets = newClasses(func(s *statement) (own, other side) { return s.to, s.from })
		g.bases, g.related, g.explicit = map[classPair]base{}, nil, nil
		added, withdrawn, shifted, came = g.broad, nil, nil, nil
	}
	if d.renumbered {
		for _, k := range [2]*classes{&g.sources, &g.targets} {
			for i := range k.list {
				g.lead(&k.list[i])
			}
		}
	}
	g.relaxed = len(g.c.pop.byKey) > g.c.spelled
	sources, targets := g.sources.coarse, g.targets.coarse
	g.divide(&g.sources, added, withdrawn, shifted, came, d)
	g.divide(&g.targets, added, withdrawn, shifted, came, d)
	g.stayed = g.explicit != nil && len(added)+len(withdrawn)+len(shifted) == 0 && !d.renumbered && g.sources.stay(sources) && g.targets.stay(targets)
	if g.stayed {
		return
	}
	g.relateAll(g.sources.were(sources), g.targets.were(targets))
}

// relation is what pairs of two coarse classes need over what lies below. All but the
// patches follows from the classes that lead them.
type relation struct {
	reason   int32
	spelled  bool
	explicit []explicit
}

// explicit is the patch of two exact classes.
type explicit struct {
	classPair
	patch int32
}

// lineage is what a coarse class was, led by the same class; unset: there was none.
type lineage struct {
	was   int32
	fresh []int32 // classes that have joined since
	left  bool    // some that belonged to it do not any more
}

// stays reports whether the same classes belong to it as before.
func (l *lineage) stays() bool { return len(l.fresh) == 0 && !l.left }

// were tells what each of the coarse classes was before.
func (k *classes) were(before []coarse) []lineage {
	led := make(map[int32]int32, len(before))
	for i := range before {
		led[before[i].leading] = int32(i)
	}
	out := make([]lineage, len(k.coarse))
	for i := range k.coarse {
		was, known := led[k.coarse[i].leading]
		if !known {
			out[i].was = unset
			continue
		}
		out[i] = lineage{was: was}
		old := before[was].classes // both are in order
		for _, class := range k.coarse[i].classes {
			for len(old) > 0 && old[0] < class {
				old, out[i].left = old[1:], true
			}
			if len(old) > 0 && old[0] == class {
				old = old[1:]
				continue
			}
			out[i].fresh = append(out[i].fresh, class)
		}
		out[i].left = out[i].left || len(old) > 0
	}
	return out
}

// relateAll relates the coarse classes. Of those that are led as they were, only the
// classes that have joined are looked at.
func (g *grid) relateAll(sources, targets []lineage) {
	before := g.related
	if before == nil {
		g.explicit = map[classPair]int32{}
		for i := range sources {
			sources[i].was = unset
		}
	}
	g.related = make([][]relation, len(g.sources.coarse))
	g.reasons = make(map[classPair]int32, len(g.reasons))
	sourceStays, targetStays := map[int32]bool{}, map[int32]bool{}
	for i := range sources {
		sourceStays[sources[i].was] = true
	}
	for i := range targets {
		targetStays[targets[i].was] = true
	}
	for from, row := range before {
		for to := range row {
			if len(row[to].explicit) > 0 && !(sourceStays[int32(from)] && targetStays[int32(to)]) {
				for _, e := range row[to].explicit {
					delete(g.explicit, e.classPair)
				}
			}
		}
	}
	var jobs []respelling
	for from := range g.sources.coarse {
		row := make([]relation, len(g.targets.coarse))
		g.related[from] = row
		for to := range row {
			f, t := &sources[from], &targets[to]
			if f.was == unset || t.was == unset {
				if row[to] = g.relate(int32(from), int32(to)); row[to].spelled {
					jobs = append(jobs, respelling{&row[to], g.spellable(nil, g.sources.coarse[from].classes, g.targets.coarse[to].classes)})
				}
				continue
			}
			row[to] = before[f.was][t.was]
			if reason := row[to].reason; reason != 0 {
				g.reasons[classPair{int32(from), int32(to)}] = reason
			}
			if row[to].spelled && !(f.stays() && t.stays()) {
				jobs = append(jobs, respelling{&row[to], g.joined(int32(from), int32(to), f, t, &row[to])})
			}
		}
	}
	g.spellOut(jobs)
}

// joined lists the pairs of two coarse classes of which one side has joined, and
// leaves out what is said of classes that do not belong to them any more.
func (g *grid) joined(from, to int32, f, t *lineage, r *relation) []classPair {
	there := func(class *class, coarse int32) bool { return len(class.members) > 0 && class.coarse == coarse }
	kept := make([]explicit, 0, len(r.explicit))
	for _, e := range r.explicit {
		if there(&g.sources.list[e.from], from) && there(&g.targets.list[e.to], to) {
			kept = append(kept, e)
		} else {
			delete(g.explicit, e.classPair)
		}
	}
	r.explicit = kept
	sources, targets := g.sources.coarse[from].classes, g.targets.coarse[to].classes
	out := g.spellable(nil, f.fresh, targets)
	if len(t.fresh) > 0 {
		out = g.spellable(out, without(sources, f.fresh), t.fresh)
	}
	return out
}

// spellable appends the pairs of exact classes of which what lies below may not know
// all.
func (g *grid) spellable(out []classPair, sources, targets []int32) []classPair {
	for _, from := range sources {
		source := &g.sources.list[from]
		for _, to := range targets {
			target := &g.targets.list[to]
			if len(source.wide) > 0 && len(target.wide) > 0 || meet(source.named, target.named) {
				out = append(out, classPair{from, to})
			}
		}
	}
	return out
}

// respelling is pairs of exact classes whose patches a relation lacks.
type respelling struct {
	relation *relation
	pairs    []classPair
}

// spellOut finds the patches that relations lack.
func (g *grid) spellOut(jobs []respelling) {
	var unknown []*situation
	for _, job := range jobs {
		for _, p := range job.pairs {
			if _, known := g.bases[p]; !known {
				unknown = append(unknown, &situation{about: g.aboutOf(p), rest: unset})
			}
		}
	}
	if g.c.hands.worth(len(unknown)) {
		g.foresee(unknown)
	}
	for _, job := range jobs {
		for _, p := range job.pairs {
			b := g.baseOf(p.from, p.to)
			if patch := g.patch(g.tableOver(b.about, b.rest), b.below); patch != 0 {
				job.relation.explicit = append(job.relation.explicit, explicit{p, patch})
				g.explicit[p] = patch
			}
		}
	}
}

func newClasses(sides func(*statement) (own, other side)) classes {
	return classes{sides: sides, bySum: map[[2]uint64]int32{}}
}

// crowded reports whether most classes have no members any more.
func (k *classes) crowded() bool { return len(k.list) > 4*len(k.coarse)+4*len(k.of)/2+1<<12 }

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

// divide puts the subjects into classes. Only those that changed statements name or no
// longer name, that came and that are gone are looked at.
func (g *grid) divide(k *classes, added, withdrawn []int32, shifted []resided, came []int32, d *change) {
	subjects := g.c.pop.subjects
	for len(k.sums) < len(subjects) {
		k.sums = append(k.sums, [2]uint64{})
	}
	touched := newMarks(len(subjects))
	// sum has a statement name some subjects, or no longer.
	sum := func(statement int32, named bool, list ...int32) {
		low, high := scramble(uint64(statement)*2+1), scramble(uint64(statement)*2+2)
		if !named {
			low, high = -low, -high
		}
		for _, s := range list {
			k.sums[s][0] += low
			k.sums[s][1] += high
		}
		touched.set(list...)
	}
	for n, list := range [2][]int32{added, withdrawn} {
		for _, i := range list {
			own, _ := k.sides(&g.c.statements[i])
			sum(i, n == 0, own.list...)
		}
	}
	for _, r := range shifted {
		now, _ := k.sides(&g.c.statements[r.statement])
		was, _ := k.sides(&statement{from: r.from, to: r.to})
		for _, s := range differing(was.list, now.list) {
			sum(r.statement, now.contains(s), s)
		}
	}
	for _, s := range came {
		k.sums[s] = [2]uint64{}
		for _, i := range g.broad {
			if own, _ := k.sides(&g.c.statements[i]); !own.any && own.contains(s) {
				sum(i, true, s)
			}
		}
	}
	before := k.of
	k.of = make([]int32, len(subjects))
	copy(k.of, before)
	if len(before) == 0 { // nobody is in a class yet
		for s := range subjects {
			k.of[s] = unset
			touched.set(int32(s))
		}
	} else {
		for s := len(before); s < len(subjects); s++ {
			k.of[s] = unset
		}
		touched.set(came...)
		touched.set(d.gone...)
	}
	first := len(k.list)
	left, joined := map[int32]bool{}, map[int32][]int32{}
	touched.each(func(s int32) {
		was, is := k.of[s], int32(unset)
		if !subjects[s].gone() {
			var known bool
			if is, known = k.bySum[k.sums[s]]; !known {
				is = int32(len(k.list))
				k.bySum[k.sums[s]] = is
				k.list = append(k.list, class{})
			}
		}
		if was == is {
			return
		}
		if k.of[s] = is; was != unset {
			left[was] = true
		}
		if is != unset {
			joined[is] = append(joined[is], s)
		}
	})
	for i := range left {
		k.list[i].members = slices.DeleteFunc(k.list[i].members, func(s int32) bool { return k.of[s] != i })
	}
	for i, more := range joined {
		left[i] = true
		if k.list[i].members = append(k.list[i].members, more...); len(k.list[i].members) > len(more) {
			slices.Sort(k.list[i].members)
		}
	}
	led := maps.Clone(left)
	for i := range d.regrouped {
		led[k.of[i]] = true
	}
	for i := range led {
		g.lead(&k.list[i])
	}
	k.changed = left
	g.fill(k, first)
	g.group(k)
}

// marks is a set of subjects.
type marks []uint64

func newMarks(n int) marks { return make(marks, (n+63)/64) }

func (b marks) set(subjects ...int32) {
	for _, s := range subjects {
		b[s/64] |= 1 << (s % 64)
	}
}

// each visits them in order.
func (b marks) each(visit func(int32)) {
	for n, word := range b {
		for ; word != 0; word &= word - 1 {
			visit(int32(n*64 + bits.TrailingZeros64(word)))
		}
	}
}

// stay reports whether classes belong together as they did, led by the same ones.
func (k *classes) stay(before []coarse) bool {
	return slices.EqualFunc(before, k.coarse, func(x, y coarse) bool {
		return x.leader == y.leader && x.leading == y.leading && slices.Equal(x.classes, y.classes)
	})
}

// lead finds the member of a class with the lowest group number.
func (g *grid) lead(class *class) {
	for n, s := range class.members {
		if n == 0 || g.c.pop.subjects[s].group < g.c.pop.subjects[class.leader].group {
			class.leader = s
		}
	}
}

// fill finds the statements of the classes from the first new one on.
func (g *grid) fill(k *classes, first int) {
	fresh := k.list[first:]
	enter := func(class *class, i int32, other side) {
		if other.any {
			class.wide = append(class.wide, i)
		} else {
			class.named = append(class.named, i)
		}
	}
	if len(fresh) <= 16 {
		for n := range fresh {
			for _, i := range g.broad {
				if own, other := k.sides(&g.c.statements[i]); !own.any && own.contains(fresh[n].members[0]) {
					enter(&fresh[n], i, other)
				}
			}
		}
	} else {
		leading := make([]int32, len(k.of)) // by first member: its class, counted from one
		for n := range fresh {
			leading[fresh[n].members[0]] = int32(n) + 1
		}
		for _, i := range g.broad {
			own, other := k.sides(&g.c.statements[i])
			for _, s := range own.list {
				if n := leading[s]; n > 0 {
					enter(&fresh[n-1], i, other)
				}
			}
		}
	}
	for n := range fresh {
		g.finish(&fresh[n])
	}
}

// finish finds what the statements of a class come to.
func (g *grid) finish(out *class) {
	out.table = g.tableOf(merged(g.open, out.wide))
	out.patch = g.tables.over(out.table, g.openTable)
	out.strong.wide, out.strong.named = g.strong(out.wide), g.strong(out.named)
	out.strong.table = g.tableOf(merged(g.openStrong, out.strong.wide))
	out.strong.patch = g.tables.over(out.strong.table, g.tableOf(g.openStrong))
	key := appendNumbers(nil, out.strong.named)
	var numbers []uint32
	for _, n := range out.strong.wide {
		shape := g.c.statements[n].shape()
		number, known := g.shapes[shape]
		if !known {
			number = uint32(len(g.shapes))
			g.shapes[shape] = number
		}
		numbers = append(numbers, number)
	}
	slices.Sort(numbers)
	key = append(key, 255, 255, 255, 255)
	for _, number := range slices.Compact(numbers) {
		key = binary.LittleEndian.AppendUint32(key, number)
	}
	alike, known := g.alikes[string(key)]
	if !known {
		alike = int32(len(g.alikes))
		g.alikes[string(key)] = alike
	}
	out.alike = alike
}

// group puts the classes with members together that are coarsely one.
func (g *grid) group(k *classes) {
	k.coarse = nil
	g.byAlike = cleared(g.byAlike, len(g.alikes)) // counted from one
	for i := range k.list {
		class := &k.list[i]
		if len(class.members) == 0 {
			continue
		}
		at := g.byAlike[class.alike] - 1
		if at < 0 {
			at = int32(len(k.coarse))
			g.byAlike[class.alike] = at + 1
			k.coarse = append(k.coarse, coarse{leader: class.leader})
		}
		class.coarse = at
		group := &k.coarse[at]
		group.classes = append(group.classes, int32(i))
		if g.c.pop.subjects[class.leader].group < g.c.pop.subjects[group.leader].group {
			group.leader = class.leader
		}
	}
	for i := range k.coarse {
		group := &k.coarse[i]
		group.leading = k.of[group.leader]
		group.strong = k.list[group.leading].strong
	}
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
func (g *grid) relate(from, to int32) relation {
	f, t := &g.sources.coarse[from], &g.targets.coarse[to]
	if !g.relaxed {
		return relation{spelled: true}
	}
	var out relation
	shared := intersect(f.named, t.named)
	truth := g.tableOf(merged(g.openStrong, f.wide, t.wide, shared))
	below := g.tables.lay(t.patch, f.table)
	out.spelled = g.allows(truth) || g.allows(below) || g.allows(t.table)
	if len(shared) > 0 || len(f.wide) > 0 && len(t.wide) > 0 {
		refined := g.refined(truth, below, t.table)
		if patch := g.tables.over(refined, below); patch != 0 {
			g.reasons[classPair{from, to}], out.reason = patch, patch
		}
		out.spelled = out.spelled || g.patch(truth, refined) != 0
	}
	return out
}

// refined is refine, done once for the same tables.
func (g *grid) refined(truth, below, target int32) int32 {
	key := [3]int32{truth, below, target}
	i, known := g.tables.refined[key]
	if !known {
		i = g.refine(truth, below, target)
		g.tables.refined[key] = i
	}
	return i
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

// aboutOf lists the broad statements about pairs of two classes.
func (g *grid) aboutOf(p classPair) []int32 {
	source, target := &g.sources.list[p.from], &g.targets.list[p.to]
	return merged(g.open, source.wide, target.wide, intersect(source.named, target.named))
}

// baseOf returns what pairs of two classes have in common.
func (g *grid) baseOf(from, to int32) base {
	pair := classPair{from, to}
	source, target := &g.sources.list[from], &g.targets.list[to]
	reason := g.reasons[classPair{source.coarse, target.coarse}]
	b, known := g.bases[pair]
	if known && b.reason == reason {
		return b
	}
	b = base{about: g.aboutOf(pair), reason: reason}
	b.below = g.tables.lay(target.patch, source.table)
	b.rest = g.c.decide(g.c.judge.generalOf(b.about))
	if reason != 0 {
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
