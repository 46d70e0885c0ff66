package compile

import "slices"

// Most of the pairs that an edit has looked at again are in the same situation as
// others: the groups of one application towards those of another. What the rules of a
// pair say follows from its classes and from the narrow statements about it. So each
// situation is looked at once, and what the cells of situations come to that were not
// there before is found out by as many hands as there are.

// situation is what pairs with the same rules have in common.
type situation struct {
	source, target int32     // classes
	mentions       []mention // of one of the pairs
	below          int32
	about          []int32
	rest           int32
	next           int32 // another with the same hash, counted from one
	want           int32 // table
	patch          int32
}

// evaluateAgain finds the patches of the pairs that are looked at.
func (g *grid) evaluateAgain() {
	list, of := g.situations()
	var unknown []*situation
	t := g.tables
	for i := range list {
		t.scratch = appendNumbers(t.scratch[:0], list[i].about)
		var known bool
		if list[i].want, known = t.byCause[string(t.scratch)]; !known {
			unknown = append(unknown, &list[i])
		}
	}
	if g.c.hands.worth(len(unknown)) {
		g.foresee(unknown)
	}
	for _, s := range unknown {
		s.want = g.tableOver(s.about, s.rest)
	}
	for i := range list {
		list[i].patch = g.patch(list[i].want, list[i].below)
	}
	for n, p := range g.looked {
		patch := int32(0)
		if of[n] != unset {
			patch = list[of[n]].patch
		}
		g.enter(p, patch)
	}
}

// situations lists those of the pairs that are looked at, and tells for each pair which
// it is in; unset: no statement mentions it.
func (g *grid) situations() (list []situation, of []int32) {
	of = make([]int32, len(g.looked))
	latest := map[uint64]int32{} // by hash, counted from one
	var abouts []int32
	for n, p := range g.looked {
		mentions := g.mentioned(p.from, p.to)
		if of[n] = unset; len(mentions) == 0 {
			continue
		}
		source, target := g.sources.of[p.from], g.targets.of[p.to]
		hash := scramble(uint64(uint32(source))<<32 | uint64(uint32(target)))
		for _, m := range mentions {
			hash = scramble(hash ^ uint64(uint32(m.statement)))
		}
		i := latest[hash]
		for ; i > 0; i = list[i-1].next {
			s := &list[i-1]
			if s.source == source && s.target == target && slices.EqualFunc(s.mentions, mentions, func(a, b mention) bool { return a.statement == b.statement }) {
				break
			}
		}
		if i == 0 {
			b := g.baseOf(source, target)
			first := len(abouts)
			s := situation{source: source, target: target, mentions: mentions, below: b.below, next: latest[hash]}
			abouts, s.rest = g.over(abouts, &b, mentions)
			s.about = abouts[first:len(abouts):len(abouts)]
			list = append(list, s)
			i = int32(len(list))
			latest[hash] = i
		}
		of[n] = i - 1
	}
	return list, of
}

// foresee finds out what the cells of situations come to. Every hand reads what is
// known, and writes down apart what was not; then that is taken in order.
func (g *grid) foresee(list []*situation) {
	parts := make([]*foresight, g.c.hands.count)
	g.c.hands.divide(len(list), func(hand, first, last int) {
		f := newForesight(g)
		parts[hand] = f
		for _, s := range list[first:last] {
			f.look(s)
		}
	})
	for _, f := range parts {
		if f != nil {
			f.enter()
		}
	}
}

// foresight is what one hand found out.
type foresight struct {
	g         *grid
	judge     judge
	scratch   []byte
	byCause   map[string]int32
	decisions []foreseen
	tables    map[string]bool // by cause
	list      []foreseenTable
}

// foreseen is a cell that was decided, under a number of its own.
type foreseen struct {
	cause string
	chain []decision
	key   string // of a single decision
}

// foreseenTable is one in which such numbers may stand.
type foreseenTable struct {
	cause string
	table table
}

func newForesight(g *grid) *foresight {
	f := &foresight{g: g, byCause: map[string]int32{}, tables: map[string]bool{}}
	f.judge = judge{c: g.c, decide: f.decide}
	return f
}

// ownNumber makes a number of a foreseen decision, which is none of another kind, or
// the place that it stands for.
func ownNumber(i int32) int32 { return hidden - 1 - i }

func (f *foresight) look(s *situation) {
	f.scratch = appendNumbers(f.scratch[:0], s.about)
	if _, known := f.g.tables.byCause[string(f.scratch)]; known || f.tables[string(f.scratch)] {
		return
	}
	cause := string(f.scratch)
	rest := s.rest
	if rest == unset {
		rest = f.decide(f.judge.generalOf(s.about))
	}
	f.list = append(f.list, foreseenTable{cause, f.judge.table(s.about, rest)})
	f.tables[cause] = true
}

// decide is compiler.decide for one hand.
func (f *foresight) decide(covering []int32) int32 {
	counting := f.judge.counting(covering)
	f.scratch = appendNumbers(f.scratch[:0], counting)
	d := &f.g.c.decisions
	if i, known := d.byCause[string(f.scratch)]; known {
		return i
	}
	if i, known := f.byCause[string(f.scratch)]; known {
		return i
	}
	x := foreseen{cause: string(f.scratch), chain: f.g.c.combined(counting)}
	if len(x.chain) == 1 {
		x.key = d.key(&x.chain[0])
	}
	i := ownNumber(int32(len(f.decisions)))
	f.decisions = append(f.decisions, x)
	f.byCause[x.cause] = i
	return i
}

// enter notes what was found out where everyone finds it.
func (f *foresight) enter() {
	d, t := &f.g.c.decisions, f.g.tables
	numbers := make([]int32, len(f.decisions))
	for n, x := range f.decisions {
		i, known := d.byCause[x.cause]
		if !known {
			i = d.internChain(x.chain, x.key)
			d.byCause[x.cause] = i
		}
		numbers[n] = i
	}
	for _, x := range f.list {
		if _, known := t.byCause[x.cause]; !known {
			t.byCause[x.cause] = t.intern(x.table.numbered(numbers))
		}
	}
}

// numbered is a table in which numbers of one hand's own are everybody's.
func (t table) numbered(numbers []int32) table {
	number := func(i int32) int32 {
		if i < hidden {
			return numbers[ownNumber(i)]
		}
		return i
	}
	out := table{rest: number(t.rest)}
	for _, listed := range t.protocols {
		var cells []cell
		for _, c := range listed.cells {
			c.decision = number(c.decision)
			cells = appendCell(cells, c)
		}
		if len(cells) > 1 || cells[0].decision != out.rest {
			out.protocols = append(out.protocols, protocolCells{listed.protocol, cells})
		}
	}
	return out
}
