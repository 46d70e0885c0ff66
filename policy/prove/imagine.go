package prove

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"bocage.dev/bocage"
)

// imagining finds flows that an obligation and an allowing declaration are about. Most
// pairs of these are alike but for values of labels that only the one that allows asks
// for, and for the numbers of ports: of those one is solved, and the others get what it
// gets in their own words.
type imagining struct {
	words    *vocabulary
	bare     *vocabulary       // of pairs that name no data and no groups
	asked    map[labelled]bool // values that obligations and offers ask for
	sides    map[string]int    // numbers of what is said of ends, by that as JSON
	pictures map[pictureKey]*picture
	ends     map[figure]bool
	pairs    int
}

// work is what was done.
func (m *imagining) work() int {
	return m.pairs*workOfPair + len(m.pictures)*workOfPicture + len(m.ends)*workOfEnd
}

// labelled is a label with a value.
type labelled struct{ key, value string }

// picture is a flow as far as alike pairs have it in common.
type picture struct {
	possible bool
	piece    int // that it is at, of those of the pair
	from, to imagined
}

// kind is an allowing declaration as others may be that are like it.
type kind struct {
	allowing
	sides  int
	cells  box      // of which values are replaced
	values []string // that were, by number
	said   string   // the values together
	plain  bool     // it names no data and no groups
	ports  cutting  // with obligations that name no ports
}

// cutting is how the ports of a pair are divided, and what alike pairs have of that.
type cutting struct {
	pieces []span
	shape  string
}

func newImagining(words *vocabulary, owed []*obligation) *imagining {
	m := &imagining{words: words, bare: &vocabulary{zones: words.zones, zoneOf: words.zoneOf}, asked: map[labelled]bool{}, sides: map[string]int{}, pictures: map[pictureKey]*picture{}, ends: map[figure]bool{}}
	ask := func(s bocage.Side) { m.renamed(s, func(at labelled) string { m.asked[at] = true; return at.value }) }
	for _, o := range owed {
		for _, b := range append([]box{o.cells}, o.excuses...) {
			for _, s := range slices.Concat(b.from, b.to) {
				ask(s)
			}
		}
	}
	for _, byNamespace := range words.offers {
		for _, offers := range byNamespace {
			for _, o := range offers {
				ask(bocage.Side{Namespaces: []string{o.by.Namespace}, Workload: &o.by.Spec.Workload})
			}
		}
	}
	return m
}

// renamed is a side with other values of labels. Those of labels that mean something
// besides stay as they are.
func (m *imagining) renamed(s bocage.Side, other func(labelled) string) bocage.Side {
	one := func(key, value string) string {
		switch key {
		case bocage.LabelName, bocage.LabelHost, bocage.LabelZone, bocage.LabelAssurance:
			return value
		}
		return other(labelled{key, value})
	}
	s.Namespaces = slices.Clone(s.Namespaces)
	for i, value := range s.Namespaces {
		s.Namespaces[i] = one(bocage.LabelNamespace, value)
	}
	if s.Workload == nil {
		return s
	}
	w := bocage.Selector{MatchLabels: make(map[string]string, len(s.Workload.MatchLabels)), MatchExpressions: slices.Clone(s.Workload.MatchExpressions)}
	for _, key := range slices.Sorted(maps.Keys(s.Workload.MatchLabels)) {
		w.MatchLabels[key] = one(key, s.Workload.MatchLabels[key])
	}
	for i, r := range w.MatchExpressions {
		w.MatchExpressions[i].Values = slices.Clone(r.Values)
		for j, value := range r.Values {
			w.MatchExpressions[i].Values[j] = one(r.Key, value)
		}
	}
	s.Workload = &w
	return s
}

// replaced begins what stands for a value, and no value.
const replaced = "\x00"

func (m *imagining) kind(a allowing) *kind {
	k := &kind{allowing: a, plain: true}
	numbers := map[labelled]string{}
	other := func(at labelled) string {
		if m.asked[at] || at.value == "" || at.value == unaskedNamespace {
			return at.value
		}
		name, known := numbers[at]
		if !known {
			name = replaced + strconv.Itoa(len(k.values))
			numbers[at], k.values = name, append(k.values, at.value)
		}
		return name
	}
	k.cells.ports = a.cells.ports
	for _, s := range a.cells.from {
		k.cells.from = append(k.cells.from, m.renamed(s, other))
		k.plain = k.plain && len(s.Data)+len(s.AddressGroups) == 0
	}
	for _, s := range a.cells.to {
		k.cells.to = append(k.cells.to, m.renamed(s, other))
		k.plain = k.plain && len(s.Data)+len(s.AddressGroups) == 0
	}
	said, err := json.Marshal([]any{k.cells.from, k.cells.to, a.called != ""})
	if err != nil { // it is like no other
		said = fmt.Appendf(nil, "%s %v", a.name(), err)
	}
	number, known := m.sides[string(said)]
	if !known {
		number = len(m.sides)
		m.sides[string(said)] = number
	}
	k.sides, k.said = number, strings.Join(k.values, replaced)
	f := newFormula(m.bare)
	f.know(a.cells)
	f.cut()
	k.ports = f.cutting(a.cells)
	return k
}

// cutting is how ports are cut, in which pieces each known range begins and ends, and
// which of the matches of the box that allows are about ports at all.
func (f *formula) cutting(allows box) cutting {
	shape := binary.AppendUvarint(nil, uint64(len(f.pieces)))
	for _, p := range f.pieces {
		shape = append(shape, byte(p.protocol))
	}
	for _, s := range f.spans {
		first, after := f.piecesOf(s.protocol, s.ports)
		shape = binary.AppendUvarint(binary.AppendUvarint(shape, uint64(first)), uint64(after))
	}
	for _, list := range allows.ports {
		shape = binary.AppendUvarint(shape, uint64(len(list)))
		for _, m := range list {
			_, _, err := bocage.Transport(m.Port, m.EndPort, m.Protocol)
			shape = strconv.AppendBool(shape, err == nil)
		}
	}
	return cutting{f.pieces, string(shape)}
}

// pictureKey says what alike pairs have in common.
type pictureKey struct {
	obligation *obligation
	near       string
	sides      int
	ports      string
}

// near is what can matter for a pair besides the two, and a name for that.
func (m *imagining) near(o *obligation, k *kind) (*vocabulary, string) {
	if o.plain && k.plain {
		return m.bare, ""
	}
	near := m.words.near(o, k.allowing)
	var b []byte
	for _, object := range near.objects {
		b = fmt.Appendf(b, " %p", object)
	}
	return near, string(b)
}

// flow finds a flow that both are about and that nothing excuses.
func (m *imagining) flow(o *obligation, k *kind, near *vocabulary, besides string) (witness, bool) {
	ports := k.ports
	if !o.plain || !o.everyPort || !k.plain {
		ports = cut(near, o, k.allowing.cells).cutting(k.allowing.cells)
	}
	key := pictureKey{o, besides, k.sides, ports.shape}
	p, known := m.pictures[key]
	if !known {
		p = cut(near, o, k.cells).picture(o, k.cells, k.called != "")
		m.pictures[key] = p
	}
	m.pairs++
	if !p.possible {
		return witness{}, false
	}
	w := p.of(o, k, ports.pieces)
	w.from.figure, w.to.figure = figure{p, source, k.said}, figure{p, destination, k.said}
	m.ends[w.from.figure], m.ends[w.to.figure] = true, true
	return w, true
}

// imagine finds a flow that both are about and that nothing excuses, of this pair alone.
func imagine(near *vocabulary, o *obligation, a allowing) (witness, bool) {
	f := cut(near, o, a.cells)
	p := f.picture(o, a.cells, a.called != "")
	if !p.possible {
		return witness{}, false
	}
	return p.of(o, &kind{allowing: a}, f.pieces), true
}

// cut begins a formula about a pair.
func cut(near *vocabulary, o *obligation, allows box) *formula {
	f := newFormula(near)
	for _, b := range append([]box{o.cells, allows}, o.excuses...) {
		f.know(b)
	}
	f.cut()
	return f
}

// picture solves a pair.
func (f *formula) picture(o *obligation, allows box, called bool) *picture {
	terms := []statement{f.in(o.cells), f.in(allows)}
	for _, e := range o.excuses {
		terms = append(terms, not(f.in(e)))
	}
	if o.differ != "" {
		f.exists(source, o.differ)
		terms = append(terms, f.differ(o.differ))
	}
	if called {
		terms = append(terms, f.nameable())
	}
	model := f.solve(terms...)
	if model == nil {
		return &picture{}
	}
	p := &picture{}
	for i, piece := range f.pieces {
		if model[pieceName(piece)] {
			p.piece = i
		}
	}
	var ok, also bool
	p.from, ok = f.end(source, model)
	p.to, also = f.end(destination, model)
	p.possible = ok && also
	return p
}

// of is the flow in a pair's own words.
func (p *picture) of(o *obligation, k *kind, pieces []span) witness {
	w := witness{obligation: o, name: k.called, from: p.from.called(k.values), to: p.to.called(k.values), protocol: pieces[p.piece].protocol}
	if !w.protocol.HasPorts() {
		return w
	}
	if w.port = pieces[p.piece].ports.First; w.port > 0 {
		return w
	}
	w.port = 1
	for _, piece := range pieces {
		if piece.protocol == w.protocol && piece.ports.First == 0 && piece.ports.Last == 0 {
			w.port = 0
		}
	}
	return w
}

// called is an end with the values that were replaced.
func (e imagined) called(values []string) imagined {
	var labels map[string]string
	for key, value := range e.labels {
		if number, is := strings.CutPrefix(value, replaced); is {
			if labels == nil {
				labels = maps.Clone(e.labels)
			}
			i, _ := strconv.Atoi(number) // it was written so
			labels[key] = values[i]
		}
	}
	if labels != nil {
		e.labels = labels
	}
	return e
}

// end reads an imagined end out of a model.
func (f *formula) end(end string, model map[string]bool) (imagined, bool) {
	if model[end+" outside"] {
		address, found := f.addressOf(end, model)
		return imagined{outside: true, address: address}, found
	}
	labels := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(f.values)) {
		if !model[end+" has "+key] {
			continue
		}
		labels[key] = "unasked"
		if model["unlike"] {
			labels[key] += "-" + end
		}
		for value := range f.values[key] {
			if model[end+" is "+key+"="+value] {
				labels[key] = value
			}
		}
	}
	if name := labels[bocage.LabelName]; !f.values[bocage.LabelName][name] {
		delete(labels, bocage.LabelName) // whoever places it gives it one that nobody has
	}
	if zone := labels[bocage.LabelZone]; zone != "" && !f.values[bocage.LabelHost][labels[bocage.LabelHost]] {
		labels[bocage.LabelHost] = f.freeHost(zone)
	}
	if labels[bocage.LabelNamespace] == "" {
		labels[bocage.LabelNamespace] = unaskedNamespace
	}
	return imagined{labels: labels}, true
}

// addressOf finds an address in the prefixes that the model is in, and in none
// of the others.
func (f *formula) addressOf(end string, model map[string]bool) (netip.Addr, bool) {
	candidates := []netip.Addr{netip.MustParseAddr("203.0.113.77"), netip.MustParseAddr("2001:db8:ffff::77")}
	for p := range f.prefixes {
		candidates = append(candidates, p.Addr(), p.Addr().Next(), afterPrefix(p))
	}
	slices.SortFunc(candidates, netip.Addr.Compare)
	for _, address := range candidates {
		fits := address.IsValid()
		for p := range f.prefixes {
			fits = fits && p.Contains(address) == model[end+" in "+p.String()]
		}
		if fits {
			return address, true
		}
	}
	return netip.Addr{}, false
}

// afterPrefix is the first address behind a prefix.
func afterPrefix(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for i := p.Bits(); i < len(bytes)*8; i++ {
		bytes[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last.Next()
}
