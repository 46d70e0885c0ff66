package compile

import (
	"cmp"
	"maps"
	"slices"

	"bocage.dev/bocage"
)

// anyone stands for bocage.GroupAny among subject numbers.
const anyone int32 = -1

// Statements between two named sides are written down pair by pair where that is
// cheap, which is where their pairs get rules of their own anyhow: contracts.
// The others (a guardrail between two halves of the site, say) are broad: they
// are held against classes of subjects (classes.go).
const (
	mostNarrow        = 64      // pairs of a statement that only refuses or adds duties
	mostNarrowAllowed = 1 << 10 // pairs of a statement that may allow
)

func (c *compiler) broad(s *statement) bool {
	if s.from.any || s.to.any {
		return true
	}
	pairs := len(s.from.list) * len(s.to.list)
	return pairs > c.narrow || pairs > mostNarrow && !s.mayAllow()
}

// mention is one narrow statement about the pair of its row's subject and another.
type mention struct {
	to, statement int32
}

func compareMentions(a, b mention) int {
	if a.to != b.to {
		return cmp.Compare(a.to, b.to)
	}
	return cmp.Compare(a.statement, b.statement)
}

// result is what the rules of one pair with mentions say.
type result struct {
	to, patch int32
}

// pair is two subjects.
type pair struct{ from, to int32 }

func comparePairs(a, b pair) int {
	if a.from != b.from {
		return cmp.Compare(a.from, b.from)
	}
	return cmp.Compare(a.to, b.to)
}

// entry is a patch between two subjects, or anyone.
type entry struct {
	pair
	patch int32
}

// grid is what all statements together say about every pair of subjects.
//
// Rules are looked up from the most to the least specific: the pair itself, its
// classes (Ruleset.Reasons), anyone to one, one to anyone, anyone to anyone. So a
// pair needs rules only where it differs from what lies below, and only pairs
// that some statement tells from that are looked at.
type grid struct {
	c       *compiler
	tables  *tables
	broad   []int32     // all broad statements, sorted
	open    []int32     // those from anyone to anyone
	relaxed bool        // refusals that differ only in who refuses are left as they are
	rows    [][]mention // by source
	results [][]result  // by source, sorted

	bottom, openTable, openPatch int32
	openStrong                   []int32

	sources, targets classes
	reasons          map[classPair]int32       // patches, by coarse classes
	explicit         map[classPair]int32       // patches of pairs without mentions, by exact classes
	spelled          map[int32][]result        // the same by source class, sorted by target, but for names
	towards          map[int32]map[int32]int32 // the same by source class and target class
	namings          namings                   // the same towards names
	shapes           map[shape]uint32
	alikes           map[string]int32
	related          [][]relation // by coarse classes
	bases            map[classPair]base
	likeness         []likeness
	byFace           map[face]int32
	byAlike          []int32 // room

	// What the last change of statements led to.
	looked     []pair        // pairs with mentions that were looked at again
	mentioning map[pair]bool // whether those whose mentions changed had some before
	changes
	reclassified bool
	stayed       bool // the classes are those that they were, though subjects came or went

	about, mine        []int32
	lay                *reasoned // which reasons lie below, if that was found out last
	marksFrom, marksTo []uint64  // room
}

// tabulate looks at everything that the changed statements tell apart. It gives
// up where it would have to begin anew.
func (c *compiler) tabulate(d *change) bool {
	if d.first {
		c.grid = &grid{c: c, tables: newTables(), byFace: map[face]int32{}}
		c.grid.build()
		return true
	}
	return c.grid.update(d)
}

func (g *grid) build() {
	g.bottom = g.tables.intern(table{rest: g.c.decide(nil)}) // decision 0: the default
	for i := range g.c.statements {
		if g.c.broad(&g.c.statements[i]) {
			g.broad = append(g.broad, int32(i))
		}
	}
	g.mentionAll()
	g.mentionNames()
	g.classify(g.broad, nil, nil, &change{})
	g.results = make([][]result, len(g.rows))
	for from, row := range g.rows {
		eachPair(row, func(to int32, mentions []mention) {
			if patch := g.evaluate(int32(from), to, mentions); patch != 0 {
				g.results[from] = append(g.results[from], result{to, patch})
			}
		})
	}
	g.spelled = g.spell()
	g.reclassified = true
}

// eachPair visits the mentions of a row pair by pair.
func eachPair(row []mention, visit func(to int32, mentions []mention)) {
	for first := 0; first < len(row); {
		last := first
		for last < len(row) && row[last].to == row[first].to {
			last++
		}
		visit(row[first].to, row[first:last])
		first = last
	}
}

// mentionAll writes down the narrow statements.
func (g *grid) mentionAll() {
	n := len(g.c.pop.subjects)
	g.rows = make([][]mention, n)
	counts := make([]int32, n)
	total := 0
	narrow := func(visit func(i int32, s *statement)) {
		for i := range g.c.statements {
			if s := &g.c.statements[i]; !g.c.broad(s) {
				visit(int32(i), s)
			}
		}
	}
	narrow(func(_ int32, s *statement) {
		for _, f := range s.from.list {
			counts[f] += int32(len(s.to.list))
			total += len(s.to.list)
		}
	})
	all := make([]mention, total)
	for f, count := range counts {
		g.rows[f], all = all[:0:count], all[count:]
	}
	narrow(func(i int32, s *statement) {
		for _, f := range s.from.list {
			for _, t := range s.to.list {
				g.rows[f] = append(g.rows[f], mention{t, i})
			}
		}
	})
	for _, row := range g.rows {
		slices.SortFunc(row, compareMentions)
	}
}

// mentioned returns the mentions of one pair.
func (g *grid) mentioned(from, to int32) []mention {
	row := g.rows[from]
	first, _ := slices.BinarySearchFunc(row, to, func(m mention, to int32) int { return cmp.Compare(m.to, to) })
	last := first
	for last < len(row) && row[last].to == to {
		last++
	}
	return row[first:last]
}

// evaluate returns the patch of a pair with mentions.
func (g *grid) evaluate(from, to int32, mentions []mention) int32 {
	b := g.baseOf(g.sources.of[from], g.targets.of[to])
	if len(mentions) == 0 {
		return 0
	}
	about, rest := g.over(g.about[:0], &b, mentions)
	g.about = about
	return g.patch(g.tableOver(about, rest), b.below)
}

// over appends what a pair is about, beyond what its classes have in common, and
// returns what statements about every port come to, where that is known.
func (g *grid) over(room []int32, b *base, mentions []mention) (about []int32, rest int32) {
	g.mine, rest = g.mine[:0], b.rest
	for _, m := range mentions { // in order: of one pair they are
		g.mine = append(g.mine, m.statement)
		if g.c.statements[m.statement].ports.all {
			rest = unset
		}
	}
	return appendMerged(room, b.about, g.mine), rest
}

// tableOf decides every cell of a pair that the statements are about.
func (g *grid) tableOf(about []int32) int32 { return g.tableOver(about, unset) }

// tableOver is tableOf where it is known what statements about every port come to;
// unset: it is not.
func (g *grid) tableOver(about []int32, rest int32) int32 {
	t := g.tables
	t.scratch = appendNumbers(t.scratch[:0], about)
	if i, known := t.byCause[string(t.scratch)]; known {
		return i
	}
	cause := string(t.scratch)
	if rest == unset {
		rest = g.c.decide(g.c.judge.generalOf(about))
	}
	i := t.intern(g.c.judge.table(about, rest))
	t.byCause[cause] = i
	return i
}

// patch returns what rules have to say over what lies below.
func (g *grid) patch(want, below int32) int32 {
	if want == below {
		return 0
	}
	t := g.tables
	if !g.relaxed {
		return t.over(want, below)
	}
	key := patching{want, below, true}
	i, known := t.patched[key]
	if !known {
		wanted := choose(t.list[want], t.list[below], func(x, y int32) int32 {
			if y != hidden && g.alike(x, y) {
				return y
			}
			return x
		})
		i = t.patch(wanted.over(t.list[below]))
		t.patched[key] = i
	}
	return i
}

// face is what a decision says, its authors apart.
type face struct {
	verdict  bocage.Verdict
	code     bocage.ReasonCode
	log      bool
	final    bool
	ranks    bocage.Ranks
	duties   bocage.Duties
	until    int64
	then     int32 // the face of what follows
	decision int32 // of what allows: nobody stands in for its authors
}

// likeness says which decisions are the same to whom they refuse.
type likeness struct {
	face   int32 // authors apart
	effect int32 // authors and code apart, and whether the refused are told
	allows bool  // now or later
}

func (g *grid) like(decision int32) likeness {
	for len(g.likeness) < len(g.c.decisions.list) {
		i := int32(len(g.likeness))
		d := &g.c.decisions.list[i]
		l := likeness{allows: d.verdict.Allowed()}
		f := face{verdict: d.verdict, code: d.code, log: d.log, final: d.final, ranks: d.ranks, duties: d.duties, then: unset, decision: unset}
		e := f
		e.code, e.final, e.ranks = bocage.ReasonNone, false, bocage.Ranks{}
		if e.verdict == bocage.VerdictReject {
			e.verdict = bocage.VerdictDrop
		}
		if d.then != unset { // successors have lower numbers
			next := g.likeness[d.then]
			f.until, f.then = d.until.UnixNano(), next.face
			e.until, e.then = f.until, next.effect
			l.allows = l.allows || next.allows
		}
		if l.allows {
			f.decision, e.decision = i, i
		}
		l.face, l.effect = g.faceOf(f), g.faceOf(e)
		g.likeness = append(g.likeness, l)
	}
	return g.likeness[decision]
}

func (g *grid) faceOf(f face) int32 {
	i, known := g.byFace[f]
	if !known {
		i = int32(len(g.byFace))
		g.byFace[f] = i
	}
	return i
}

// alike reports whether two decisions differ in nothing but who refuses.
func (g *grid) alike(x, y int32) bool { return x == y || g.like(x).face == g.like(y).face }

// allows reports whether a table lets anything through, now or later.
func (g *grid) allows(t int32) bool {
	found := false
	each(g.tables.list[t].rest, g.tables.list[t].protocols, func(d int32) { found = found || g.like(d).allows })
	return found
}

// eachAbout visits the statements that a pair is about. It only reads.
func (g *grid) eachAbout(from, to int32, visit func(statement int32)) {
	source, target := &g.sources.list[g.sources.of[from]], &g.targets.list[g.targets.of[to]]
	for _, list := range [3][]int32{g.open, source.wide, target.wide} {
		for _, i := range list {
			visit(i)
		}
	}
	for a, b := source.named, target.named; len(a) > 0 && len(b) > 0; {
		switch {
		case a[0] < b[0]:
			a = a[1:]
		case a[0] > b[0]:
			b = b[1:]
		default:
			visit(a[0])
			a, b = a[1:], b[1:]
		}
	}
	for _, m := range g.mentioned(from, to) {
		visit(m.statement)
	}
}

// eachEntry visits every patch that says something between subjects or anyone.
func (g *grid) eachEntry(visit func(entry)) {
	g.eachWide(visit)
	for i := range g.rows {
		for _, r := range g.results[i] {
			visit(entry{pair{int32(i), r.to}, r.patch})
		}
	}
	for class, list := range g.spelled {
		for _, from := range g.sources.list[class].members {
			for _, r := range list {
				if len(g.mentioned(from, r.to)) == 0 {
					visit(entry{pair{from, r.to}, r.patch})
				}
			}
		}
	}
}

// eachWide visits the patches from or to anyone.
func (g *grid) eachWide(visit func(entry)) {
	show := func(from, to, patch int32) {
		if patch != 0 {
			visit(entry{pair{from, to}, patch})
		}
	}
	show(anyone, anyone, g.openPatch)
	for i := range g.sources.of {
		show(int32(i), anyone, g.sources.patchOf(i))
		show(anyone, int32(i), g.targets.patchOf(i))
	}
}

// patchOf is what a subject's class says of anyone; 0 for nobody.
func (k *classes) patchOf(i int) int32 {
	if i >= len(k.of) || k.of[i] == unset {
		return 0
	}
	return k.list[k.of[i]].patch
}

// spell lists, for every source class, the targets but for names that its members have
// rules towards where no statement mentions the pair. Lists in which nothing changed stay
// the same ones.
func (g *grid) spell() map[int32][]result {
	before, towards := g.towards, map[int32]map[int32]int32{}
	sizes := map[int32]int{}
	for classes, patch := range g.explicit {
		if towards[classes.from] == nil {
			towards[classes.from] = map[int32]int32{}
		}
		towards[classes.from][classes.to] = patch
		sizes[classes.from] += len(g.targets.list[classes.to].members)
	}
	g.towards = towards
	out := make(map[int32][]result, len(towards))
	patches := make([]int32, len(g.targets.list))
	for from, targets := range towards {
		if maps.Equal(before[from], targets) && !anyIn(targets, g.targets.changed) {
			out[from] = g.spelled[from]
			continue
		}
		list := make([]result, 0, sizes[from])
		if 8*sizes[from] < len(g.targets.of) {
			for class, patch := range targets {
				for _, to := range g.targets.list[class].members {
					if !g.c.pop.subjects[to].isDomain() {
						list = append(list, result{to, patch})
					}
				}
			}
			slices.SortFunc(list, compareResults)
		} else {
			clear(patches)
			for class, patch := range targets {
				patches[class] = patch
			}
			for to, class := range g.targets.of {
				if class != unset && patches[class] != 0 && !g.c.pop.subjects[to].isDomain() {
					list = append(list, result{int32(to), patches[class]})
				}
			}
		}
		out[from] = list
	}
	return out
}

// anyIn reports whether two sets share something.
func anyIn[V any](a map[int32]V, b map[int32]bool) bool {
	if len(a) < len(b) {
		for i := range a {
			if b[i] {
				return true
			}
		}
		return false
	}
	for i := range b {
		if _, there := a[i]; there {
			return true
		}
	}
	return false
}

func compareResults(a, b result) int { return cmp.Compare(a.to, b.to) }

// merged joins sorted lists, without duplicates.
func merged(lists ...[]int32) []int32 {
	n := 0
	for _, list := range lists {
		n += len(list)
	}
	return appendMerged(make([]int32, 0, n), lists...)
}

// appendMerged appends what sorted lists hold together, in order and once each. The
// lists are few and short.
func appendMerged(out []int32, lists ...[]int32) []int32 {
	for {
		least, found := int32(0), false
		for _, list := range lists {
			if len(list) > 0 && (!found || list[0] < least) {
				least, found = list[0], true
			}
		}
		if !found {
			return out
		}
		out = append(out, least)
		for i, list := range lists {
			for len(list) > 0 && list[0] == least {
				list = list[1:]
			}
			lists[i] = list
		}
	}
}
