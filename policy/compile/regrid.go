package compile

import (
	"cmp"
	"slices"
)

// update looks again at what the statements that were added or withdrawn bear on.
// It gives up where it would have to begin anew.
func (g *grid) update(d *change) bool {
	g.gone, g.come, g.looked, g.reclassified = nil, nil, nil, false
	for len(g.rows) < len(g.c.pop.subjects) {
		g.rows, g.results = append(g.rows, nil), append(g.results, nil)
	}
	g.mentionAgain()
	if g.reclassified = g.reclassified || len(d.gone)+len(d.come) > 0; g.reclassified && !g.classifyAgain() {
		return false
	}
	slices.SortFunc(g.looked, comparePairs)
	g.looked = slices.Compact(g.looked)
	for _, p := range g.looked {
		g.evaluateAgain(p)
	}
	return true
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
		if s.broad() {
			g.reclassified = true
			continue
		}
		remove(i, s.from, s.to)
	}
	for _, r := range g.c.resided {
		s := &g.c.statements[r.statement]
		if s.broad() {
			continue // the subjects that came and went have everything classified again
		}
		remove(r.statement, r.from, r.to)
		add(r.statement, s.from, s.to)
	}
	for _, i := range g.c.added {
		s := &g.c.statements[i]
		if s.broad() {
			g.reclassified = true
			continue
		}
		add(i, s.from, s.to)
	}
}

func (g *grid) eachMention(i int32, from, to side, change func([]mention, mention) []mention) {
	for _, f := range from.list {
		for _, t := range to.list {
			g.rows[f] = change(g.rows[f], mention{t, i})
			g.looked = append(g.looked, pair{f, t})
		}
	}
}

// evaluateAgain finds the patch of a pair, and notes how it changed.
func (g *grid) evaluateAgain(p pair) {
	mentions := g.mentioned(p.from, p.to)
	list := g.results[p.from]
	at, found := slices.BinarySearchFunc(list, p.to, func(r result, to int32) int { return cmp.Compare(r.to, to) })
	var was, now int32
	if found {
		was = list[at].patch
	}
	if len(mentions) > 0 {
		now = g.evaluate(p.from, p.to, mentions)
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
	if !g.reclassified {
		g.spellAgain(p, len(mentions) > 0)
	}
}

// note remembers that the patch of a pair changed.
func (g *grid) note(p pair, was, now int32) {
	if was == now {
		return
	}
	if was != 0 {
		g.gone = append(g.gone, entry{p, was})
	}
	if now != 0 {
		g.come = append(g.come, entry{p, now})
	}
}

// spellAgain spells a pair out like its classes if nobody mentions it any more,
// and no longer if somebody does.
func (g *grid) spellAgain(p pair, mentioned bool) {
	patch := g.explicit[classPair{g.sources.of[p.from], g.targets.of[p.to]}]
	if mentioned {
		patch = 0
	}
	at, found := slices.BinarySearchFunc(g.spelled, entry{p, 0}, compareEntries)
	switch {
	case found && patch == 0:
		g.note(p, g.spelled[at].patch, 0)
		g.spelled = slices.Delete(g.spelled, at, at+1)
	case !found && patch != 0:
		g.note(p, 0, patch)
		g.spelled = slices.Insert(g.spelled, at, entry{p, patch})
	}
}

// classifyAgain divides the subjects into classes again, and looks at the pairs
// that lie over something else now.
func (g *grid) classifyAgain() bool {
	relaxed := g.relaxed
	wide := map[pair]int32{}
	g.eachWide(func(e entry) { wide[e.pair] = e.patch })
	sources, targets, reasons, spelled := g.sources, g.targets, g.reasons, g.spelled

	withdrawn := map[int32]bool{}
	for _, i := range g.c.withdrawn {
		withdrawn[i] = true
	}
	g.broad = slices.DeleteFunc(g.broad, func(i int32) bool { return withdrawn[i] })
	for _, i := range g.c.added {
		if g.c.statements[i].broad() {
			g.broad = append(g.broad, i) // added ones have the highest numbers
		}
	}
	g.classify()
	if g.relaxed != relaxed {
		return false
	}
	g.eachWide(func(e entry) {
		g.note(e.pair, wide[e.pair], e.patch)
		delete(wide, e.pair)
	})
	for p, patch := range wide {
		g.note(p, patch, 0)
	}
	g.spelled = g.spell()
	g.compareSpelled(spelled)
	g.lookWhereStated()
	g.lookWhereReasoned(sources, targets, reasons)
	return true
}

func (g *grid) compareSpelled(old []entry) {
	now := g.spelled
	for len(old) > 0 || len(now) > 0 {
		order := 0
		switch {
		case len(old) == 0:
			order = 1
		case len(now) == 0:
			order = -1
		default:
			order = compareEntries(old[0], now[0])
		}
		switch {
		case order < 0:
			g.note(old[0].pair, old[0].patch, 0)
		case order > 0:
			g.note(now[0].pair, 0, now[0].patch)
		default:
			g.note(now[0].pair, old[0].patch, now[0].patch)
		}
		if order <= 0 {
			old = old[1:]
		}
		if order >= 0 {
			now = now[1:]
		}
	}
}

// lookWhereStated looks at the pairs with mentions that broad statements are about
// which were added or withdrawn.
func (g *grid) lookWhereStated() {
	from, to := make([]uint64, len(g.rows)), make([]uint64, len(g.rows))
	var fromAll, toAll uint64
	bit := uint64(1)
	for _, list := range [2][]int32{g.c.withdrawn, g.c.added} {
		for _, i := range list {
			s := &g.c.statements[i]
			if !s.broad() {
				continue
			}
			// With more than 64, some share a bit, and a few pairs too many are looked at.
			flag(from, &fromAll, s.from, bit)
			flag(to, &toAll, s.to, bit)
			bit = bit<<1 | bit>>63
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

// lookWhereReasoned looks at the pairs with mentions that have other reasons below.
func (g *grid) lookWhereReasoned(sources, targets classes, reasons map[classPair]int32) {
	if len(reasons) == 0 && len(g.reasons) == 0 {
		return
	}
	before, now := spread(sources, targets, reasons), spread(g.sources, g.targets, g.reasons)
	for f, row := range g.rows {
		if len(row) == 0 || f >= len(sources.of) || sources.of[f] == unset || g.sources.of[f] == unset {
			continue // all that a subject that came or went is mentioned in was looked at
		}
		was, is := before[sources.list[sources.of[f]].coarse], now[g.sources.list[g.sources.of[f]].coarse]
		if was == nil && is == nil {
			continue
		}
		for _, m := range row {
			if int(m.to) >= len(targets.of) || targets.of[m.to] == unset || g.targets.of[m.to] == unset {
				continue
			}
			var x, y int32
			if was != nil {
				x = was[targets.list[targets.of[m.to]].coarse]
			}
			if is != nil {
				y = is[g.targets.list[g.targets.of[m.to]].coarse]
			}
			if x != y {
				g.look(int32(f), m.to)
			}
		}
	}
}

// spread writes reasons out by source and target.
func spread(sources, targets classes, reasons map[classPair]int32) [][]int32 {
	out := make([][]int32, len(sources.coarse))
	for at, patch := range reasons {
		if out[at.from] == nil {
			out[at.from] = make([]int32, len(targets.coarse))
		}
		out[at.from][at.to] = patch
	}
	return out
}
