package compile

import (
	"cmp"
	"slices"
)

// update looks again at what the statements that were added or withdrawn bear on.
// It gives up where it would have to begin anew.
func (g *grid) update(d *change) bool {
	g.gone, g.come, g.looked, g.reclassified, g.stayed = nil, nil, nil, false, false
	g.mentioning = map[pair]bool{}
	for len(g.rows) < len(g.c.pop.subjects) {
		g.rows, g.results = append(g.rows, nil), append(g.results, nil)
	}
	g.mentionAgain()
	for p := range g.mentioning {
		g.namings.mention(p, g.c.pop.subjects[p.to].isDomain(), len(g.mentioned(p.from, p.to)) > 0)
	}
	sourcesOf, spelled := g.sources.of, g.spelled
	before := g.lay
	if g.reclassified = g.reclassified || len(d.gone)+len(d.come)+len(d.regrouped) > 0; g.reclassified {
		if before == nil {
			before = g.reasoned()
		}
		if !g.classifyAgain(d) {
			return false
		}
	}
	var respelled changes
	g.c.hands.together(g.reclassified, func() {
		if g.reclassified {
			g.spelled = g.spell()
		}
		g.spellAgain(&respelled, sourcesOf, spelled)
	}, func() {
		if g.reclassified {
			g.lookAround(before)
		}
		slices.SortFunc(g.looked, comparePairs)
		g.looked = slices.Compact(g.looked)
		g.evaluateAgain()
	})
	g.gone, g.come = append(g.gone, respelled.gone...), append(g.come, respelled.come...)
	return true
}

// lookAround looks at the pairs with mentions for which other classes make a difference.
func (g *grid) lookAround(before *reasoned) {
	g.lookWhereStated()
	if g.lay = nil; !g.stayed { // those who came are looked at anyhow
		g.lay = g.reasoned()
		g.lookWhereReasoned(before, g.lay)
	}
}

// mentionAgain changes the mentions, and looks at their pairs.
func (g *grid) mentionAgain() {
	remove := func(i int32, from, to side) {
		g.eachMention(i, from, to, func(row []mention, m mention) []mention {
			at, found := slices.BinarySearchFunc(row, m, compareMentions)
			if !found {
				return row
			}
			return slices.Delete(row, at, at+1)
		})
	}
	add := func(i int32, from, to side) {
		g.eachMention(i, from, to, func(row []mention, m mention) []mention {
			at, _ := slices.BinarySearchFunc(row, m, compareMentions)
			return slices.Insert(row, at, m)
		})
	}
	for _, i := range g.c.withdrawn {
		s := &g.c.statements[i]
		if g.c.broad(s) {
			g.reclassified = true
			continue
		}
		remove(i, s.from, s.to)
	}
	for _, r := range g.c.resided {
		s := &g.c.statements[r.statement]
		if g.c.broad(s) {
			g.reclassified = g.reclassified || r.shifted
			continue // subjects that come and go have everything classified again
		}
		remove(r.statement, r.from, r.to)
		add(r.statement, s.from, s.to)
	}
	for _, i := range g.c.added {
		s := &g.c.statements[i]
		if g.c.broad(s) {
			g.reclassified = true
			continue
		}
		add(i, s.from, s.to)
	}
}

func (g *grid) eachMention(i int32, from, to side, change func([]mention, mention) []mention) {
	for _, f := range from.list {
		for _, t := range to.list {
			p := pair{f, t}
			if _, known := g.mentioning[p]; !known {
				g.mentioning[p] = len(g.mentioned(f, t)) > 0
				g.looked = append(g.looked, p)
			}
			g.rows[f] = change(g.rows[f], mention{t, i})
		}
	}
}

// enter takes the patch of a pair that was looked at again, and notes how it changed.
func (g *grid) enter(p pair, now int32) {
	list := g.results[p.from]
	at, found := slices.BinarySearchFunc(list, p.to, func(r result, to int32) int { return cmp.Compare(r.to, to) })
	var was int32
	if found {
		was = list[at].patch
	}
	g.note(p, was, now)
	switch {
	case was == now:
	case !found:
		g.results[p.from] = slices.Insert(list, at, result{p.to, now})
	case now == 0:
		g.results[p.from] = slices.Delete(list, at, at+1)
	default:
		list[at].patch = now
	}
}

// changes are patches that are no longer, and new ones.
type changes struct{ gone, come []entry }

// note remembers that the patch of a pair changed.
func (c *changes) note(p pair, was, now int32) {
	if was == now {
		return
	}
	if was != 0 {
		c.gone = append(c.gone, entry{p, was})
	}
	if now != 0 {
		c.come = append(c.come, entry{p, now})
	}
}

// spellAgain finds which pairs are spelled out like their classes now and were
// not, or the other way round: since their classes are others or say something
// else, or since statements mention them that did not.
func (g *grid) spellAgain(noted *changes, sourcesOf []int32, old map[int32][]result) {
	patchOf := func(of []int32, spelled map[int32][]result, p pair) int32 {
		if int(p.from) >= len(of) || of[p.from] == unset {
			return 0
		}
		list := spelled[of[p.from]]
		at, found := slices.BinarySearchFunc(list, result{to: p.to}, compareResults)
		if !found {
			return 0
		}
		return list[at].patch
	}
	for p, before := range g.mentioning {
		var was, now int32
		if !before {
			was = patchOf(sourcesOf, old, p)
		}
		if len(g.mentioned(p.from, p.to)) == 0 {
			now = patchOf(g.sources.of, g.spelled, p)
		}
		noted.note(p, was, now)
	}
	if !g.reclassified {
		return
	}
	differing := map[step][]respelled{}
	staying, compared := make([][]respelled, len(g.sources.list)), make([]bool, len(g.sources.list)) // the same, of classes that stay
	for f := range g.sources.of {
		at := step{unset, g.sources.of[f]}
		if f < len(sourcesOf) {
			at.was = sourcesOf[f]
		}
		if at.was == unset && at.now == unset {
			continue
		}
		var list []respelled
		if known := false; at.was == at.now {
			if !compared[at.now] {
				staying[at.now], compared[at.now] = compareSpelled(old[at.was], g.spelled[at.now]), true
			}
			list = staying[at.now]
		} else if list, known = differing[at]; !known {
			list = compareSpelled(old[at.was], g.spelled[at.now])
			differing[at] = list
		}
		for _, d := range list {
			p := pair{int32(f), d.to}
			if _, changed := g.mentioning[p]; !changed && len(g.mentioned(p.from, p.to)) == 0 {
				noted.note(p, d.was, d.now)
			}
		}
	}
}

// respelled is what was and is said towards a target.
type respelled struct{ to, was, now int32 }

func compareSpelled(old, now []result) []respelled {
	var out []respelled
	if same(old, now) {
		return nil
	}
	eachMerged(old, now, compareResults, func(x, y *result) {
		var d respelled
		if x != nil {
			d.to, d.was = x.to, x.patch
		}
		if y != nil {
			d.to, d.now = y.to, y.patch
		}
		if d.was != d.now {
			out = append(out, d)
		}
	})
	return out
}

// classifyAgain divides the subjects into classes again. It gives up where update does.
func (g *grid) classifyAgain(d *change) bool {
	relaxed := g.relaxed
	open, sources, targets := g.openPatch, g.sources, g.targets

	var added, withdrawn []int32
	gone := map[int32]bool{}
	for _, i := range g.c.withdrawn {
		if gone[i] = true; g.c.broad(&g.c.statements[i]) {
			withdrawn = append(withdrawn, i)
		}
	}
	g.broad = slices.DeleteFunc(g.broad, func(i int32) bool { return gone[i] })
	for _, i := range g.c.added {
		if g.c.broad(&g.c.statements[i]) {
			g.broad, added = append(g.broad, i), append(added, i) // added ones have the highest numbers
		}
	}
	var shifted []resided
	for _, r := range g.c.resided {
		if r.shifted {
			shifted = append(shifted, r)
		}
	}
	g.classify(added, withdrawn, shifted, d)
	if g.relaxed != relaxed {
		return false
	}
	g.note(pair{anyone, anyone}, open, g.openPatch)
	for i := range g.sources.of {
		g.note(pair{int32(i), anyone}, sources.patchOf(i), g.sources.patchOf(i))
		g.note(pair{anyone, int32(i)}, targets.patchOf(i), g.targets.patchOf(i))
	}
	return true
}

// lookWhereStated looks at the pairs with mentions that broad statements are about
// which were added or withdrawn.
func (g *grid) lookWhereStated() {
	g.marksFrom, g.marksTo = cleared(g.marksFrom, len(g.rows)), cleared(g.marksTo, len(g.rows))
	from, to := g.marksFrom, g.marksTo
	var fromAll, toAll uint64
	bit := uint64(1)
	look := func(f, t side) {
		// With more than 64, some share a bit, and a few pairs too many are looked at.
		flag(from, &fromAll, f, bit)
		flag(to, &toAll, t, bit)
		bit = bit<<1 | bit>>63
	}
	for _, list := range [2][]int32{g.c.withdrawn, g.c.added} {
		for _, i := range list {
			if s := &g.c.statements[i]; g.c.broad(s) {
				look(s.from, s.to)
			}
		}
	}
	for _, r := range g.c.resided {
		s := &g.c.statements[r.statement]
		if !r.shifted {
			continue
		}
		if other := differing(r.from.list, s.from.list); len(other) > 0 {
			look(side{list: other}, r.to)
			look(side{list: other}, s.to)
		}
		if other := differing(r.to.list, s.to.list); len(other) > 0 {
			look(r.from, side{list: other})
			look(s.from, side{list: other})
		}
	}
	for f, row := range g.rows {
		bits := from[f] | fromAll
		if bits == 0 {
			continue
		}
		for _, m := range row {
			if bits&(to[m.to]|toAll) != 0 {
				g.look(int32(f), m.to)
			}
		}
	}
}

func flag(marks []uint64, all *uint64, s side, bit uint64) {
	if s.any {
		*all |= bit
		return
	}
	for _, i := range s.list {
		marks[i] |= bit
	}
}

func (g *grid) look(from, to int32) {
	if n := len(g.looked); n == 0 || g.looked[n-1] != (pair{from, to}) {
		g.looked = append(g.looked, pair{from, to})
	}
}

// reasoned is which reasons lie below which pairs.
type reasoned struct {
	from, to []int32   // by subject: its coarse class; unset: none
	patches  [][]int32 // by coarse classes; nil: none from there
}

func (g *grid) reasoned() *reasoned {
	if len(g.reasons) == 0 {
		return &reasoned{}
	}
	r := &reasoned{patches: make([][]int32, len(g.sources.coarse))}
	for at, patch := range g.reasons {
		if r.patches[at.from] == nil {
			r.patches[at.from] = make([]int32, len(g.targets.coarse))
		}
		r.patches[at.from][at.to] = patch
	}
	spread := func(k *classes) []int32 {
		out := make([]int32, len(k.of))
		for s, class := range k.of {
			if out[s] = unset; class != unset {
				out[s] = k.list[class].coarse
			}
		}
		return out
	}
	r.from, r.to = spread(&g.sources), spread(&g.targets)
	return r
}

// row is what lies below flows from a coarse class; nil: nothing.
func (r *reasoned) row(coarse int32) []int32 {
	if coarse == unset || len(r.patches) == 0 {
		return nil
	}
	return r.patches[coarse]
}

// lookWhereReasoned looks at the pairs with mentions that have other reasons below.
func (g *grid) lookWhereReasoned(before, now *reasoned) {
	if slices.Equal(before.from, now.from) && slices.Equal(before.to, now.to) && slices.EqualFunc(before.patches, now.patches, slices.Equal[[]int32]) {
		return
	}
	// Most subjects stay with the same others: what became of a class is found out once.
	sources, targets := stepsOf(before.from, now.from, len(g.rows)), stepsOf(before.to, now.to, len(g.rows))
	elsewhere := make([][]bool, len(sources.list))
	for n, at := range sources.list {
		elsewhere[n] = targets.elsewhere(before.row(at.was), now.row(at.now))
	}
	for f, row := range g.rows {
		if led := elsewhere[sources.of[f]]; led != nil {
			for _, m := range row {
				if led[targets.of[m.to]] {
					g.look(int32(f), m.to)
				}
			}
		}
	}
}

// step is a class before and now; unset: none.
type step struct{ was, now int32 }

// steps is what became of the classes of subjects.
type steps struct {
	list []step
	of   []int32 // by subject, in list
}

func stepsOf(was, now []int32, subjects int) steps {
	out := steps{of: make([]int32, subjects)}
	numbers := map[step]int32{}
	var latest []int32 // by class before, counted from none: the step that one of it took last, counted from one
	for i := range out.of {
		at := step{coarseAt(was, i), coarseAt(now, i)}
		for int(at.was)+1 >= len(latest) {
			latest = append(latest, 0)
		}
		number := latest[at.was+1] - 1
		if number < 0 || out.list[number] != at {
			known := false
			if number, known = numbers[at]; !known {
				number = int32(len(out.list))
				numbers[at], out.list = number, append(out.list, at)
			}
			latest[at.was+1] = number + 1
		}
		out.of[i] = number
	}
	return out
}

// elsewhere tells for every step whether two rows of patches differ there; nil:
// nowhere.
func (s *steps) elsewhere(was, now []int32) (out []bool) {
	if was == nil && now == nil {
		return nil
	}
	for n, at := range s.list {
		if patchAt(was, at.was) != patchAt(now, at.now) {
			if out == nil {
				out = make([]bool, len(s.list))
			}
			out[n] = true
		}
	}
	return out
}

func coarseAt(of []int32, subject int) int32 {
	if subject >= len(of) {
		return unset
	}
	return of[subject]
}

func patchAt(row []int32, coarse int32) int32 {
	if row == nil || coarse == unset {
		return 0
	}
	return row[coarse]
}
