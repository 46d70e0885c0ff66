package simulate

import (
	"cmp"
	"slices"
	"time"

	"bocage.dev/bocage"
)

// index is a ruleset for looking up: groups, decisions and peers are small
// numbers, and every question is one or two accesses to flat memory. Nothing of
// it changes once it is made.
type index struct {
	decisions []decision
	untils    []time.Time // of decisions that end
	numbers   map[bocage.DecisionID]int32
	fallback  int32

	groups map[bocage.Group]int32 // the world's is 0
	names  []string               // of groups, for people

	exact     pairTable
	senders   []seat // by group, of what it sends
	receivers []seat // by group, of what it is sent
	enforced  []bool // by group
	anyAny    sheet
	named     map[int32][]namedSheet // what is said of many groups at once, by name
	apart     map[[2]int32]bool      // pairs of which that is not said
	spans     []span

	refusals []refusal
}

// decision is the part of a Decision that a verdict needs.
type decision struct {
	id      bocage.DecisionID
	then    int32 // what decides once it has ended
	verdict bocage.Verdict
	code    bocage.ReasonCode
	ends    bool
}

// seat is what the rules say of a group whoever is at the other end. Four fill a
// line of the cache, and none lies in two.
type seat struct {
	any sheet // it to anybody, or anybody to it
	// others has a bit set for each group with which it has rules of the pair's own.
	// Groups share bits, so a set one promises nothing; an unset one saves the way to
	// memory.
	others uint64
}

// bit is a group's in the filters of seats.
func bit(group int32) uint64 { return 1 << (mix(uint64(group)) >> 58) }

// sheet is what the rules of one pair say: so many spans from the first on.
// Without any it says nothing.
type sheet struct{ first, count int32 }

// span is an interval of one protocol's ports with its decision. Spans of a
// sheet are sorted by their ends.
type span struct {
	end      uint32 // protocol and last port
	first    uint16
	decision int32
}

func (s span) protocol() bocage.Protocol { return bocage.Protocol(s.end >> 16) }

func (s span) last() uint16 { return uint16(s.end) }

type refusal struct {
	decision bocage.DecisionID
	until    time.Time
}

// none is the number of what is not there.
const none = -1

func newIndex(rs *bocage.Ruleset) *index {
	ix := &index{groups: map[bocage.Group]int32{bocage.GroupWorld: 0}, names: []string{"the world"}, senders: make([]seat, 1), receivers: make([]seat, 1), enforced: make([]bool, 1)}
	ix.addDecisions(rs)
	for _, g := range rs.Groups {
		i := ix.group(g.Group)
		ix.names[i], ix.enforced[i] = g.Name, g.Enforce
	}
	for _, p := range rs.Peers {
		ix.group(p.Group)
	}
	ix.addRules(rs)
	return ix
}

func (ix *index) group(g bocage.Group) int32 {
	i, known := ix.groups[g]
	if !known {
		i = int32(len(ix.names))
		ix.groups[g] = i
		ix.names, ix.enforced = append(ix.names, ""), append(ix.enforced, false)
		ix.senders, ix.receivers = append(ix.senders, seat{}), append(ix.receivers, seat{})
	}
	return i
}

// addDecisions numbers the decisions. One that does not exist is the zero
// decision, as it is for Ruleset.Decide.
func (ix *index) addDecisions(rs *bocage.Ruleset) {
	numbers := make(map[bocage.DecisionID]int32, len(rs.Decisions)+1)
	ix.decisions = make([]decision, 1, len(rs.Decisions)+1)
	ix.untils = make([]time.Time, 1, len(rs.Decisions)+1)
	for _, d := range rs.Decisions {
		numbers[d.ID] = int32(len(ix.decisions))
		ix.decisions = append(ix.decisions, decision{id: d.ID, verdict: d.Verdict, code: d.Code, ends: !d.Until.IsZero()})
		ix.untils = append(ix.untils, d.Until)
	}
	for _, d := range rs.Decisions {
		ix.decisions[numbers[d.ID]].then = numbers[d.Then]
	}
	ix.fallback, ix.numbers = numbers[rs.Default], numbers
}

func (ix *index) addRules(rs *bocage.Ruleset) {
	rules := slices.Clone(rs.Rules)
	slices.SortFunc(rules, func(a, b bocage.Rule) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Ports.Last, b.Ports.Last))
	})
	for _, r := range rules {
		if r.From != bocage.GroupAny {
			ix.group(r.From)
		}
		if r.To != bocage.GroupAny {
			ix.group(r.To)
		}
	}
	for _, n := range rs.Namings {
		for _, list := range [2][]bocage.Group{n.From, n.To} {
			for _, g := range list {
				ix.group(g)
			}
		}
	}
	pairs := 0
	for i, r := range rules {
		if i == 0 || r.From != rules[i-1].From || r.To != rules[i-1].To {
			pairs++
		}
	}
	ix.exact, ix.spans = newPairTable(pairs), make([]span, 0, len(rules))
	for i := 0; i < len(rules); {
		from, to := rules[i].From, rules[i].To
		s := sheet{first: int32(len(ix.spans))}
		for ; i < len(rules) && rules[i].From == from && rules[i].To == to; i++ {
			ix.spans = append(ix.spans, span{key(rules[i].Protocol, rules[i].Ports.Last), rules[i].Ports.First, ix.numbers[rules[i].Decision]})
			s.count++
		}
		switch {
		case from == bocage.GroupAny && to == bocage.GroupAny:
			ix.anyAny = s
		case from == bocage.GroupAny:
			ix.receivers[ix.groups[to]].any = s
		case to == bocage.GroupAny:
			ix.senders[ix.groups[from]].any = s
		default:
			ix.put(ix.groups[from], ix.groups[to], s)
		}
	}
	ix.addNamings(rs)
}

func (ix *index) put(from, to int32, s sheet) {
	ix.exact.put(from, to, s)
	ix.senders[from].others |= bit(to)
	ix.receivers[to].others |= bit(from)
}

// pair is the sheet of the pair's own rules.
func (ix *index) pair(from, to int32) sheet {
	if !ix.mayHave(from, to) {
		return sheet{}
	}
	return ix.exact.get(from, to)
}

// mayHave is false for pairs that have no rules of their own.
func (ix *index) mayHave(from, to int32) bool {
	return ix.senders[from].others&bit(to) != 0 && ix.receivers[to].others&bit(from) != 0
}

func key(protocol bocage.Protocol, port uint16) uint32 { return uint32(protocol)<<16 | uint32(port) }

// cell finds the decision of the most specific rule, in the order of
// bocage.CompareRules.
func (ix *index) cell(from, to int32, protocol bocage.Protocol, port uint16) int32 {
	if !protocol.HasPorts() {
		port = 0
	}
	if s := ix.pair(from, to); s.count > 0 {
		if d, ok := ix.within(s, protocol, port); ok {
			return d
		}
	}
	if s := ix.receivers[to].any; s.count > 0 {
		if d, ok := ix.within(s, protocol, port); ok {
			return d
		}
	}
	if s := ix.senders[from].any; s.count > 0 {
		if d, ok := ix.within(s, protocol, port); ok {
			return d
		}
	}
	if ix.anyAny.count > 0 {
		if d, ok := ix.within(ix.anyAny, protocol, port); ok {
			return d
		}
	}
	return ix.fallback
}

// levels are the sheets that count for a pair, in the order of looking.
func (ix *index) levels(from, to int32) [4]sheet {
	return [4]sheet{ix.pair(from, to), ix.receivers[to].any, ix.senders[from].any, ix.anyAny}
}

// in lists the spans of a sheet.
func (ix *index) in(s sheet) []span { return ix.spans[s.first : s.first+s.count] }

// within looks a port up in one sheet: the exact protocol before any.
func (ix *index) within(s sheet, protocol bocage.Protocol, port uint16) (int32, bool) {
	spans := ix.in(s)
	if d, ok := search(spans, protocol, port); ok {
		return d, true
	}
	// "Any" is the lowest protocol, so its spans stand first.
	if protocol == bocage.ProtocolAny || spans[0].protocol() != bocage.ProtocolAny {
		return 0, false
	}
	return search(spans, bocage.ProtocolAny, port)
}

// shortSheet is up to where walking beats halving.
const shortSheet = 8

func search(spans []span, protocol bocage.Protocol, port uint16) (int32, bool) {
	want := key(protocol, port)
	for len(spans) > shortSheet {
		if middle := len(spans) / 2; spans[middle-1].end < want {
			spans = spans[middle:]
		} else {
			spans = spans[:middle]
		}
	}
	for i := range spans {
		if spans[i].end >= want {
			if spans[i].protocol() == protocol && spans[i].first <= port {
				return spans[i].decision, true
			}
			return 0, false
		}
	}
	return 0, false
}

// at follows decisions that have ended to the one that counts at a moment.
func (ix *index) at(d int32, moment time.Time) int32 {
	for range bocage.MostSuccessors {
		if !ix.decisions[d].ends || moment.Before(ix.untils[d]) {
			break
		}
		d = ix.decisions[d].then
	}
	return d
}

// pairTable maps a pair of groups to its sheet.
type pairTable struct {
	probing
	slots []pairSlot
}

type pairSlot struct {
	pair  uint64 // one more than the pair; 0 is empty
	sheet sheet
}

func newPairTable(n int) pairTable {
	p := newProbing(n)
	return pairTable{probing: p, slots: make([]pairSlot, p.size())}
}

func pairKey(from, to int32) uint64 { return uint64(uint32(from))<<32 | uint64(uint32(to)) + 1 }

func (t *pairTable) put(from, to int32, s sheet) {
	k := pairKey(from, to)
	i := t.first(mix(k))
	for t.slots[i].pair != 0 {
		i = t.next(i)
	}
	t.slots[i] = pairSlot{k, s}
}

func (t *pairTable) get(from, to int32) sheet {
	k := pairKey(from, to)
	for i := t.first(mix(k)); ; i = t.next(i) {
		switch slot := &t.slots[i]; slot.pair {
		case k:
			return slot.sheet
		case 0:
			return sheet{}
		}
	}
}

// probing is where open addressing looks in a table that is at most half full.
type probing struct{ bits uint }

func newProbing(n int) probing {
	p := probing{4}
	for p.size() < 2*n {
		p.bits++
	}
	return p
}

func (p probing) size() int { return 1 << p.bits }

func (p probing) first(hash uint64) uint64 { return hash >> (64 - p.bits) }

func (p probing) next(i uint64) uint64 { return (i + 1) & (1<<p.bits - 1) }

// golden spreads keys that differ in few bits (Fibonacci hashing).
const golden = 0x9E3779B97F4A7C15

func mix(k uint64) uint64 {
	k *= golden
	k ^= k >> 32
	return k * golden
}
