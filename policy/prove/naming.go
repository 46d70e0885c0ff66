package prove

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// naming reads what names open in a ruleset, for groups and whole intervals at once.
// Two things meet there: what is decided of an address outside, of which here, unlike in
// reach, it matters why it is refused; and what is decided of the name.
type naming struct {
	*reach
	names    map[bocage.Group]int           // place in Ruleset.Names, which is the order in which they are tried
	rows     map[bocage.Group][]bocage.Rule // rules towards names, by source; those with the same share them
	sources  []bocage.Group                 // that have any, sorted
	outside  []bocage.Group                 // addresses outside, the world first
	cells    map[pair][]bocage.Rule         // from sources or anybody, to addresses outside or anybody
	reasons  map[pair][]bocage.Rule         // by classes
	sender   map[bocage.Group]bocage.Group  // class of a source
	receiver map[bocage.Group]bocage.Group  // class of addresses outside
	numbers  map[string]int32               // of what rules say
	said     [3]map[pair]int32              // numbers of cells and reasons that were asked for
	rowsSaid map[*bocage.Rule]int32         // likewise of rows, by the first
}

// newNaming reads the rules that matter to whoever has rules towards names, and to others
// who are to be compared with somebody; r needs to know of decisions and profiles only.
func newNaming(rs *bocage.Ruleset, r *reach, others map[bocage.Group]bool) *naming {
	n := &naming{reach: r, names: make(map[bocage.Group]int, len(rs.Names)), rows: map[bocage.Group][]bocage.Rule{}, outside: []bocage.Group{bocage.GroupWorld},
		cells: map[pair][]bocage.Rule{}, reasons: map[pair][]bocage.Rule{}, sender: map[bocage.Group]bocage.Group{}, receiver: map[bocage.Group]bocage.Group{},
		numbers: map[string]int32{}}
	for i, name := range rs.Names {
		n.names[name.Group] = i
	}
	if len(n.names) == 0 && len(others) == 0 {
		return n
	}
	for _, rule := range rs.Rules {
		if _, is := n.names[rule.To]; is {
			n.rows[rule.From] = append(n.rows[rule.From], rule)
		}
	}
	n.addNamings()
	n.sources = slices.Sorted(maps.Keys(n.rows))
	to := map[bocage.Group]bool{bocage.GroupWorld: true}
	for _, peer := range rs.Peers {
		if peer.Identity < bocage.IdentityFirst && !to[peer.Group] {
			to[peer.Group] = true
			n.outside = append(n.outside, peer.Group)
		}
	}
	for _, rule := range rs.Rules {
		if (rule.To == bocage.GroupAny || to[rule.To]) && (rule.From == bocage.GroupAny || n.rows[rule.From] != nil || others[rule.From]) {
			at := pair{rule.From, rule.To}
			n.cells[at] = append(n.cells[at], rule)
		}
	}
	n.receiver[bocage.GroupWorld] = bocage.GroupWorld
	for _, g := range rs.Groups {
		if n.rows[g.Group] != nil || others[g.Group] {
			n.sender[g.Group] = g.Sender
		}
		if to[g.Group] && g.Group != bocage.GroupWorld {
			n.receiver[g.Group] = g.Receiver
		}
	}
	sending, receiving := valuesOf(n.sender), valuesOf(n.receiver)
	for _, rule := range rs.Reasons {
		if sending[rule.From] && receiving[rule.To] {
			at := pair{rule.From, rule.To}
			n.reasons[at] = append(n.reasons[at], rule)
		}
	}
	return n
}

// addNamings adds the rows that namings stand for. Sources that nothing else is said of,
// and that are in the same namings, get one list, from nobody.
func (n *naming) addNamings() {
	apart := make(map[bocage.Group]bool, len(n.rs.Apart))
	for _, p := range n.rs.Apart {
		apart[p.From] = true
	}
	crowds := map[*bocage.Group][]int{} // namings by whom they are from: the first stands for the list
	var order []*bocage.Group
	for i := range n.rs.Namings {
		first := &n.rs.Namings[i].From[0]
		if crowds[first] == nil {
			order = append(order, first)
		}
		crowds[first] = append(crowds[first], i)
	}
	in := map[bocage.Group]string{} // crowds, by source
	for i, first := range order {
		for _, from := range n.rs.Namings[crowds[first][0]].From {
			in[from] = string(binary.LittleEndian.AppendUint32([]byte(in[from]), uint32(i)))
		}
	}
	shared := map[string][]bocage.Rule{}
	for from, crowd := range in {
		if apart[from] || n.rows[from] != nil {
			rows := append(n.rows[from], n.rs.NamedRules(from)...)
			if slices.SortFunc(rows, bocage.CompareRules); len(rows) > 0 {
				n.rows[from] = rows
			}
			continue
		}
		rows, known := shared[crowd]
		if !known {
			rows = n.rs.NamedRules(from)
			for i := range rows {
				rows[i].From = 0
			}
			shared[crowd] = rows
		}
		n.rows[from] = rows
	}
}

func valuesOf(of map[bocage.Group]bocage.Group) map[bocage.Group]bool {
	out := map[bocage.Group]bool{}
	for _, v := range of {
		out[v] = true
	}
	return out
}

// lists are where a cell from a source to addresses outside is found, in the order of
// looking: as the ruleset itself looks.
func (n *naming) lists(from, to bocage.Group) [5][]bocage.Rule {
	return [5][]bocage.Rule{n.cells[pair{from, to}], n.reasons[pair{n.sender[from], n.receiver[to]}], n.cells[pair{bocage.GroupAny, to}],
		n.cells[pair{from, bocage.GroupAny}], n.cells[pair{}]}
}

// decided is what decides about a cell, of the address alone.
func (n *naming) decided(lists [5][]bocage.Rule, protocol bocage.Protocol, port uint16) bocage.DecisionID {
	for _, rules := range lists {
		if id, found := ruleFor(rules, protocol, port); found {
			return id
		}
	}
	return n.rs.Default
}

// ruleFor looks a cell up among the rules of one pair, the exact protocol first.
func ruleFor(rules []bocage.Rule, protocol bocage.Protocol, port uint16) (bocage.DecisionID, bool) {
	for _, p := range [2]bocage.Protocol{protocol, bocage.ProtocolAny} {
		for i := range rules {
			if rules[i].Protocol == p && rules[i].Ports.Contains(port) {
				return rules[i].Decision, true
			}
		}
	}
	return 0, false
}

// towards is what is decided of a cell towards one name.
type towards struct {
	name int // its place
	id   bocage.DecisionID
}

// listing lists what is decided of a source's cells towards names, for one interval after
// another. There may be many of both, so that no interval looks at all rules anew.
type listing struct {
	n        *naming
	rows     []bocage.Rule
	protocol bocage.Protocol
	begun    bool
	coming   []listed // rules of the protocol that begin further on, by first port
	open     []listed // those that count, in the order in which names are tried
	out      []towards
}

// listed is a rule with its place among those of the source.
type listed struct {
	towards
	ports bocage.PortRange
	any   bool // of any protocol: where another names the protocol, that one counts
	place int
}

func (n *naming) listing(from bocage.Group) *listing { return &listing{n: n, rows: n.rows[from]} }

// at lists what is decided of a cell towards names, in the order in which they are tried.
// It is asked in the order of intervals, and what it says holds until it is asked again.
func (l *listing) at(protocol bocage.Protocol, port uint16) []towards {
	other := !l.begun || protocol != l.protocol
	if other {
		l.protocol, l.begun, l.coming, l.open = protocol, true, l.coming[:0], l.open[:0]
		for i, r := range l.rows {
			if r.Protocol == protocol || r.Protocol == bocage.ProtocolAny {
				l.coming = append(l.coming, listed{towards{l.n.names[r.To], r.Decision}, r.Ports, r.Protocol != protocol, i})
			}
		}
		slices.SortFunc(l.coming, func(a, b listed) int { return int(a.ports.First) - int(b.ports.First) })
	}
	begin := 0
	for begin < len(l.coming) && l.coming[begin].ports.First <= port {
		begin++
	}
	before := len(l.open)
	l.open = slices.DeleteFunc(l.open, func(r listed) bool { return r.ports.Last < port })
	if !other && begin == 0 && len(l.open) == before {
		return l.out
	}
	for _, r := range l.coming[:begin] {
		if r.ports.Last >= port {
			l.open = append(l.open, r)
		}
	}
	l.coming = l.coming[begin:]
	slices.SortFunc(l.open, func(a, b listed) int {
		switch {
		case a.name != b.name:
			return a.name - b.name
		case a.any != b.any && b.any:
			return -1
		case a.any != b.any:
			return 1
		}
		return a.place - b.place
	})
	l.out = l.out[:0]
	for _, r := range l.open {
		if len(l.out) == 0 || l.out[len(l.out)-1].name != r.name {
			l.out = append(l.out, r.towards)
		}
	}
	return l.out
}

// spans lists where rules that matter for a pair begin and end.
func (n *naming) spans(from, to bocage.Group) []span {
	var out []span
	note := func(rules []bocage.Rule) {
		for _, r := range rules {
			if r.Protocol != bocage.ProtocolAny {
				out = append(out, span{r.Protocol, r.Ports})
			}
		}
	}
	note(n.rows[from])
	for _, rules := range n.lists(from, to) {
		note(rules)
	}
	return out
}

// intervals are the pieces of all protocols' ports within which no span begins or ends.
// One protocol that none names stands for all of those.
func intervals(spans []span) []span {
	cuts := map[bocage.Protocol][]uint32{}
	for _, s := range spans {
		cuts[s.protocol] = append(cuts[s.protocol], uint32(s.ports.First), uint32(s.ports.Last)+1)
	}
	other := bocage.Protocol(255)
	for cuts[other] != nil {
		other--
	}
	cuts[other] = nil
	var out []span
	for _, protocol := range slices.Sorted(maps.Keys(cuts)) {
		edges := append(cuts[protocol], 0, 65536)
		slices.Sort(edges)
		edges = slices.Compact(edges)
		for i := range edges[:len(edges)-1] {
			out = append(out, span{protocol, bocage.PortRange{First: uint16(edges[i]), Last: uint16(edges[i+1] - 1)}})
		}
	}
	return out
}

// sourcesBefore are the groups in another ruleset of those who have rules towards names.
func (n *naming) sourcesBefore(groupBefore func(bocage.Group) bocage.Group) map[bocage.Group]bool {
	out := make(map[bocage.Group]bool, len(n.sources))
	for _, g := range n.sources {
		out[groupBefore(g)] = true
	}
	return out
}

// saying is what the rules that matter for a pair say, whoever it is: pairs of which that
// is the same are alike.
type saying [5]int32

func (n *naming) saying(from, to bocage.Group) saying {
	return saying{n.rowsNumber(n.rows[from]), n.number(1, pair{from, to}, n.cells[pair{from, to}]),
		n.number(2, pair{n.sender[from], n.receiver[to]}, n.reasons[pair{n.sender[from], n.receiver[to]}]),
		n.number(1, pair{bocage.GroupAny, to}, n.cells[pair{bocage.GroupAny, to}]), n.number(1, pair{from, bocage.GroupAny}, n.cells[pair{from, bocage.GroupAny}])}
}

// rowsNumber is the number of what rows say.
func (n *naming) rowsNumber(rows []bocage.Rule) int32 {
	if len(rows) == 0 {
		return 0
	}
	number, known := n.rowsSaid[&rows[0]]
	if !known {
		number = n.numberOf(0, rows)
		if n.rowsSaid == nil {
			n.rowsSaid = map[*bocage.Rule]int32{}
		}
		n.rowsSaid[&rows[0]] = number
	}
	return number
}

func (n *naming) number(kind int, at pair, rules []bocage.Rule) int32 {
	if len(rules) == 0 {
		return 0
	}
	number, known := n.said[kind][at]
	if !known {
		number = n.numberOf(kind, rules)
		if n.said[kind] == nil {
			n.said[kind] = map[pair]int32{}
		}
		n.said[kind][at] = number
	}
	return number
}

func (n *naming) numberOf(kind int, rules []bocage.Rule) int32 {
	b := make([]byte, 0, 16*len(rules))
	for _, r := range rules {
		if kind == 0 {
			b = binary.LittleEndian.AppendUint32(b, uint32(n.names[r.To]))
		}
		b = append(b, byte(r.Protocol))
		b = binary.LittleEndian.AppendUint16(b, r.Ports.First)
		b = binary.LittleEndian.AppendUint16(b, r.Ports.Last)
		b = binary.LittleEndian.AppendUint32(b, uint32(r.Decision))
	}
	key := string(append(b, byte(kind)))
	number, known := n.numbers[key]
	if !known {
		number = int32(len(n.numbers)) + 1
		n.numbers[key] = number
	}
	return number
}

// opened is a cell that is open by a name.
type opened struct {
	name     int
	decision bocage.Decision
}

// openAt lists the names that open a cell at a moment, in the order in which they are
// tried, and what is decided of the address alone.
func (n *naming) openAt(bare bocage.DecisionID, named []towards, at time.Time) (bocage.Decision, []opened) {
	refused := n.at(bare, at)
	if refused.Verdict.Allowed() {
		return refused, nil
	}
	var out []opened
	for _, t := range named {
		if d := n.at(t.id, at); d.Opens(refused) {
			out = append(out, opened{t.name, d})
		}
	}
	return refused, out
}

// moments are when one of the decisions of a cell begins, from now on, besides those given:
// each once, for there may be many names and nothing that ends.
func (n *naming) moments(moments []time.Time, now time.Time, bare bocage.DecisionID, named []towards) []time.Time {
	note := func(at time.Time, _ bocage.Decision) bool {
		if !slices.ContainsFunc(moments, at.Equal) {
			moments = append(moments, at)
		}
		return true
	}
	n.eachLink(bare, now, note)
	for _, t := range named {
		n.eachLink(t.id, now, note)
	}
	return moments
}

// called is a name that the pattern in a place means.
func (n *naming) called(place int) bocage.DomainName {
	return anyOf(n.rs.Names[place].Name)
}

// anyOf is a name that a pattern means.
func anyOf(pattern bocage.DomainName) bocage.DomainName {
	return bocage.DomainName(strings.Replace(string(pattern), "*", "any", 1))
}
