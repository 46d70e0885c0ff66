package compile

import (
	"cmp"
	"slices"

	"bocage.dev/bocage"
)

// anyone stands for bocage.GroupAny among subject numbers.
const anyone int32 = -1

// rule is a Rule before groups and decisions have numbers.
type rule struct {
	from, to int32
	protocol bocage.Protocol
	ports    bocage.PortRange
	decision int32
}

// mention is one statement about one pair; statement unset only asks to look at
// the pair.
type mention struct {
	pair      uint64
	statement int32
}

func pairOf(from, to int32) uint64 { return uint64(uint32(from))<<32 | uint64(uint32(to)) }

// index sorts statements by how they name their two sides.
type index struct {
	open     []int32           // anyone to anyone
	from     map[int32][]int32 // from the subject to anyone
	to       map[int32][]int32 // from anyone to the subject
	weakPair map[int32][]int32 // duties between named sides, by the subject that they come from
	pairs    []mention         // everything else between named sides
}

// tabulate turns statements into the fewest rules. Only pairs that somebody
// names can differ from what the wildcards (anyone to one, one to anyone, anyone
// to anyone) say, so only those are looked at:
//
//   - pairs that a statement with two named sides is about, and
//   - pairs whose both ends have a wildcard of their own: there one wildcard's
//     rule hides the other's, although both statements count.
//
// Duties alone change nothing where nothing is allowed, so they name a pair only
// if a wildcard allows something there.
func (c *compiler) tabulate() []rule {
	ix := c.index()
	bottom := table{rest: c.decide(nil)} // decision 0: the default
	openTable := c.table(ix.open)
	var rules []rule
	emit := func(from, to int32, p patch) {
		if p.rest != unset {
			rules = append(rules, rule{from, to, bocage.ProtocolAny, bocage.AllPorts, p.rest})
		}
		for _, listed := range p.protocols {
			for _, cell := range listed.cells {
				rules = append(rules, rule{from, to, listed.protocol, bocage.PortRange{First: cell.first, Last: cell.last}, cell.decision})
			}
		}
	}
	emit(anyone, anyone, openTable.over(bottom))

	fromTables, toTables, toPatches := map[int32]table{}, map[int32]table{}, map[int32]patch{}
	for _, f := range sortedKeys(ix.from) {
		t := c.table(merged(ix.open, ix.from[f]))
		fromTables[f] = t
		emit(f, anyone, t.over(openTable))
	}
	for _, s := range sortedKeys(ix.to) {
		t := c.table(merged(ix.open, ix.to[s]))
		toTables[s], toPatches[s] = t, t.over(openTable)
		emit(anyone, s, toPatches[s])
	}

	tables := map[string]table{}
	var about []int32
	var key []byte
	for first := 0; first < len(ix.pairs); {
		pair := ix.pairs[first].pair
		from, to := int32(pair>>32), int32(uint32(pair))
		about = append(about[:0], ix.open...)
		for ; first < len(ix.pairs) && ix.pairs[first].pair == pair; first++ {
			if s := ix.pairs[first].statement; s != unset {
				about = append(about, s)
			}
		}
		about = append(append(about, ix.from[from]...), ix.to[to]...)
		for _, s := range ix.weakPair[from] {
			if c.statements[s].to.contains(to) {
				about = append(about, s)
			}
		}
		slices.Sort(about)
		about = slices.Compact(about)
		key = appendNumbers(key[:0], about)
		t, known := tables[string(key)]
		if !known {
			t = c.table(about)
			tables[string(key)] = t
		}
		below := openTable
		if fromTable, ok := fromTables[from]; ok {
			below = fromTable
		}
		if toTable, ok := toTables[to]; ok {
			if len(ix.from[from]) == 0 {
				below = toTable
			} else {
				below = toPatches[to].apply(below)
			}
		}
		emit(from, to, t.over(below))
	}
	return rules
}

func (c *compiler) index() *index {
	ix := &index{from: map[int32][]int32{}, to: map[int32][]int32{}, weakPair: map[int32][]int32{}}
	var openAllows bool
	allowedFrom, allowedTo := map[int32]bool{}, map[int32]bool{} // wildcards that allow something
	var weak []int32
	for i := range c.statements {
		s, n := &c.statements[i], int32(i)
		allows := s.mayAllow()
		switch {
		case s.from.any && s.to.any:
			ix.open = append(ix.open, n)
			openAllows = openAllows || allows
		case s.to.any:
			for _, f := range s.from.list {
				ix.from[f] = append(ix.from[f], n)
				allowedFrom[f] = allowedFrom[f] || allows
			}
		case s.from.any:
			for _, t := range s.to.list {
				ix.to[t] = append(ix.to[t], n)
				allowedTo[t] = allowedTo[t] || allows
			}
		case s.weak():
			for _, f := range s.from.list {
				ix.weakPair[f] = append(ix.weakPair[f], n)
			}
			weak = append(weak, n)
		default:
			for _, f := range s.from.list {
				for _, t := range s.to.list {
					ix.pairs = append(ix.pairs, mention{pairOf(f, t), n})
				}
			}
		}
	}
	wildcardsAllow := openAllows || len(allowedFrom) > 0 || len(allowedTo) > 0
	if wildcardsAllow {
		for _, n := range weak {
			s := &c.statements[n]
			for _, f := range s.from.list {
				for _, t := range s.to.list {
					if openAllows || allowedFrom[f] || allowedTo[t] {
						ix.pairs = append(ix.pairs, mention{pairOf(f, t), n})
					}
				}
			}
		}
	}
	froms, tos := c.crossing(ix.from, wildcardsAllow), c.crossing(ix.to, wildcardsAllow)
	for _, f := range froms {
		for _, t := range tos {
			ix.pairs = append(ix.pairs, mention{pairOf(f, t), unset})
		}
	}
	slices.SortFunc(ix.pairs, func(a, b mention) int {
		return cmp.Or(cmp.Compare(a.pair, b.pair), cmp.Compare(a.statement, b.statement))
	})
	return ix
}

// crossing lists the subjects whose wildcard says something by itself.
func (c *compiler) crossing(wildcards map[int32][]int32, wildcardsAllow bool) []int32 {
	var out []int32
	for _, s := range sortedKeys(wildcards) {
		if wildcardsAllow || slices.ContainsFunc(wildcards[s], func(n int32) bool { return !c.statements[n].weak() }) {
			out = append(out, s)
		}
	}
	return out
}

func sortedKeys[V any](m map[int32]V) []int32 {
	keys := make([]int32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// merged joins two sorted lists without duplicates.
func merged(a, b []int32) []int32 {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}
