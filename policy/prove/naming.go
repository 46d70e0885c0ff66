package prove

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// naming reads what DNS names open in a ruleset, for groups and whole intervals of ports.
// It combines the decision about the external address, where, unlike in reach, the reason
// of a refusal matters, with the decision about the name.
type naming struct {
	*reach
	names          map[bocage.Group]int           // place in Ruleset.Names, which is the order in which they are tried
	rows           map[bocage.Group][]bocage.Rule // rules towards names, by source; those with the same share them
	sources        []bocage.Group                 // that have any, sorted
	outside        []bocage.Group                 // addresses outside, the world first
	cells          map[pair][]bocage.Rule         // from sources or anybody, to addresses outside or anybody
	reasons        map[pair][]bocage.Rule         // by classes
	sender         map[bocage.Group]bocage.Group  // class of a source
	receiver       map[bocage.Group]bocage.Group  // class of addresses outside
	numbers        map[string]int32               // of what rules say
	contentNumbers [3]map[pair]int32              // numbers of cells and reasons that were asked for
	rowNumbers     map[*bocage.Rule]int32         // likewise of rows, by the first
}

// newNaming reads the rules of the sources that have rules towards names, and of others, with
// which such sources are to be compared. Of r only decisions and profiles are used.
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

// addNamings adds the rules that namings stand for. Sources that are in the same namings and
// have no other rules towards names share one list, in which From is zero.
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

// lists returns the rules that may decide a cell from a source to external addresses, in the
// order in which the ruleset itself looks them up.
func (n *naming) lists(from, to bocage.Group) [5][]bocage.Rule {
	return [5][]bocage.Rule{n.cells[pair{from, to}], n.reasons[pair{n.sender[from], n.receiver[to]}], n.cells[pair{bocage.GroupAny, to}],
		n.cells[pair{from, bocage.GroupAny}], n.cells[pair{}]}
}

// decided returns the decision of a cell by the address alone.
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

// nameDecision is the decision of a cell towards one name.
type nameDecision struct {
	name int // its place
	id   bocage.DecisionID
}

// nameCursor returns the decisions of a source's cells towards names, for one interval of
// ports after another. There may be many names and many intervals, so it moves along sorted
// rules instead of searching all of them for every interval.
type nameCursor struct {
	n        *naming
	rows     []bocage.Rule
	protocol bocage.Protocol
	begun    bool
	ahead    []cursorRule // rules of the protocol that begin at higher ports, by first port
	current  []cursorRule // rules that count at the present port, in the order in which names are tried
	out      []nameDecision
}

// cursorRule is a rule with its place among those of the source.
type cursorRule struct {
	nameDecision
	ports bocage.PortRange
	any   bool // of any protocol: where another names the protocol, that one counts
	place int
}

func (n *naming) cursor(from bocage.Group) *nameCursor { return &nameCursor{n: n, rows: n.rows[from]} }

// at returns the decisions of a cell towards names, in the order in which names are tried.
// It must be called with ascending intervals; the result is valid until the next call.
func (l *nameCursor) at(protocol bocage.Protocol, port uint16) []nameDecision {
	other := !l.begun || protocol != l.protocol
	if other {
		l.protocol, l.begun, l.ahead, l.current = protocol, true, l.ahead[:0], l.current[:0]
		for i, r := range l.rows {
			if r.Protocol == protocol || r.Protocol == bocage.ProtocolAny {
				l.ahead = append(l.ahead, cursorRule{nameDecision{l.n.names[r.To], r.Decision}, r.Ports, r.Protocol != protocol, i})
			}
		}
		slices.SortFunc(l.ahead, func(a, b cursorRule) int { return int(a.ports.First) - int(b.ports.First) })
	}
	begin := 0
	for begin < len(l.ahead) && l.ahead[begin].ports.First <= port {
		begin++
	}
	before := len(l.current)
	l.current = slices.DeleteFunc(l.current, func(r cursorRule) bool { return r.ports.Last < port })
	if !other && begin == 0 && len(l.current) == before {
		return l.out
	}
	for _, r := range l.ahead[:begin] {
		if r.ports.Last >= port {
			l.current = append(l.current, r)
		}
	}
	l.ahead = l.ahead[begin:]
	slices.SortFunc(l.current, func(a, b cursorRule) int {
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
	for _, r := range l.current {
		if len(l.out) == 0 || l.out[len(l.out)-1].name != r.name {
			l.out = append(l.out, r.nameDecision)
		}
	}
	return l.out
}

// spans lists the port ranges of all rules that may decide a pair.
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

// intervals divides the ports of all protocols into intervals in which no span begins or
// ends. One protocol that no span names stands for all of those.
func intervals(spans []span) []span {
	cuts := map[bocage.Protocol][]uint32{}
	for _, s := range spans {
		cuts[s.protocol] = append(cuts[s.protocol], uint32(s.ports.First), uint32(s.ports.Last)+1)
	}
	var out []span
	eachInterval(cuts, func(protocol bocage.Protocol, ports bocage.PortRange) bool {
		out = append(out, span{protocol, ports})
		return true
	})
	return out
}

// sourcesBefore returns the groups, in another ruleset, of the sources that have rules towards
// names.
func (n *naming) sourcesBefore(groupBefore func(bocage.Group) bocage.Group) map[bocage.Group]bool {
	out := make(map[bocage.Group]bool, len(n.sources))
	for _, g := range n.sources {
		out[groupBefore(g)] = true
	}
	return out
}

// contentKey identifies the content of all rules that may decide a pair, without its groups.
// Pairs with equal keys are alike.
type contentKey [5]int32

func (n *naming) contentOf(from, to bocage.Group) contentKey {
	return contentKey{n.rowsNumber(n.rows[from]), n.number(1, pair{from, to}, n.cells[pair{from, to}]),
		n.number(2, pair{n.sender[from], n.receiver[to]}, n.reasons[pair{n.sender[from], n.receiver[to]}]),
		n.number(1, pair{bocage.GroupAny, to}, n.cells[pair{bocage.GroupAny, to}]), n.number(1, pair{from, bocage.GroupAny}, n.cells[pair{from, bocage.GroupAny}])}
}

// rowsNumber returns a number that identifies the content of rows.
func (n *naming) rowsNumber(rows []bocage.Rule) int32 {
	if len(rows) == 0 {
		return 0
	}
	number, known := n.rowNumbers[&rows[0]]
	if !known {
		number = n.numberOf(0, rows)
		if n.rowNumbers == nil {
			n.rowNumbers = map[*bocage.Rule]int32{}
		}
		n.rowNumbers[&rows[0]] = number
	}
	return number
}

func (n *naming) number(kind int, at pair, rules []bocage.Rule) int32 {
	if len(rules) == 0 {
		return 0
	}
	number, known := n.contentNumbers[kind][at]
	if !known {
		number = n.numberOf(kind, rules)
		if n.contentNumbers[kind] == nil {
			n.contentNumbers[kind] = map[pair]int32{}
		}
		n.contentNumbers[kind][at] = number
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

// opened is the decision by which a name opens a cell.
type opened struct {
	name     int
	decision bocage.Decision
}

// openAt returns the decision by the address alone, and the names that open the cell at a
// moment, in the order in which they are tried.
func (n *naming) openAt(bare bocage.DecisionID, named []nameDecision, at time.Time) (bocage.Decision, []opened) {
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

// moments adds to a list the moments, from now on, at which one of the decisions of a cell
// begins, each once.
func (n *naming) moments(moments []time.Time, now time.Time, bare bocage.DecisionID, named []nameDecision) []time.Time {
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

// called returns a name that matches the pattern at a place in Ruleset.Names.
func (n *naming) called(place int) bocage.DomainName {
	return anyOf(n.rs.Names[place].Name)
}

// anyOf returns a name that matches a pattern.
func anyOf(pattern bocage.DomainName) bocage.DomainName {
	return bocage.DomainName(strings.Replace(string(pattern), "*", "any", 1))
}
