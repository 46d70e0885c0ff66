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

// witnessFinder finds flows that an obligation and an allowance both match. Most pairs are
// equal except for port numbers and for label values that only the allowance names. Of such
// pairs one is solved, with placeholders for the values. The result is the template from
// which the witnesses of the others are made.
type witnessFinder struct {
	words     *vocabulary
	bare      *vocabulary       // for pairs that name no data classes and no AddressGroups
	asked     map[labelled]bool // values that obligations and offered interfaces name
	sides     map[string]int    // numbers of the ends' selectors with placeholders, by their JSON
	templates map[templateKey]*template
	ends      map[endKey]bool
	pairs     int
}

// work returns the work that was done so far.
func (m *witnessFinder) work() int {
	return m.pairs*workOfPair + len(m.templates)*workOfTemplate + len(m.ends)*workOfEnd
}

// labelled is a label with a value.
type labelled struct{ key, value string }

// template is a flow with placeholders, the solution for all pairs with the same
// templateKey.
type template struct {
	possible bool
	piece    int // index of its interval of ports, among those of the pair
	from, to imaginedEnd
}

// kind is an allowance with placeholders for the values that only it names. Allowances that
// are equal then share templates.
type kind struct {
	allowance
	sides  int
	cells  box      // with placeholders
	values []string // that were replaced, by the number of the placeholder
	said   string   // the values joined
	plain  bool     // it names no data classes and no AddressGroups
	ports  cutting  // in pairs with obligations that name no ports
}

// cutting is how the ports of a pair are divided into intervals. shape is the same for pairs
// that differ only in port numbers.
type cutting struct {
	pieces []span
	shape  string
}

func newWitnessFinder(words *vocabulary, owed []*obligation) *witnessFinder {
	m := &witnessFinder{words: words, bare: &vocabulary{zones: words.zones, zoneOf: words.zoneOf}, asked: map[labelled]bool{}, sides: map[string]int{}, templates: map[templateKey]*template{}, ends: map[endKey]bool{}}
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

// renamed returns a side with other label values. Values of labels with a built-in meaning
// are kept.
func (m *witnessFinder) renamed(s bocage.Side, other func(labelled) string) bocage.Side {
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

// replaced is the prefix of placeholders. No label value begins with it.
const replaced = "\x00"

func (m *witnessFinder) kind(a allowance) *kind {
	k := &kind{allowance: a, plain: true}
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
	said, err := json.Marshal([]any{k.cells.from, k.cells.to, a.name != ""})
	if err != nil { // treated as different from all others
		said = fmt.Appendf(nil, "%s %v", a.key(), err)
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

// cutting returns how the ports are divided, with a shape that tells in which intervals each
// range begins and ends, and which matches of the allowance name ports.
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

// templateKey is what pairs with the same template have in common.
type templateKey struct {
	obligation *obligation
	near       string
	sides      int
	ports      string
}

// near returns the other declarations that can matter for a pair, and a key for them.
func (m *witnessFinder) near(o *obligation, k *kind) (*vocabulary, string) {
	if o.plain && k.plain {
		return m.bare, ""
	}
	near := m.words.near(o, k.allowance)
	var b []byte
	for _, object := range near.objects {
		b = fmt.Appendf(b, " %p", object)
	}
	return near, string(b)
}

// flow finds a witness of a pair: a flow that both match and that no exception excuses.
func (m *witnessFinder) flow(o *obligation, k *kind, near *vocabulary, besides string) (witness, bool) {
	ports := k.ports
	if !o.plain || !o.everyPort || !k.plain {
		ports = cut(near, o, k.allowance.cells).cutting(k.allowance.cells)
	}
	key := templateKey{o, besides, k.sides, ports.shape}
	p, known := m.templates[key]
	if !known {
		p = cut(near, o, k.cells).template(o, k.cells, k.name != "")
		m.templates[key] = p
	}
	m.pairs++
	if !p.possible {
		return witness{}, false
	}
	w := p.witness(o, k, ports.pieces)
	w.from.key, w.to.key = endKey{p, source, k.said}, endKey{p, destination, k.said}
	m.ends[w.from.key], m.ends[w.to.key] = true, true
	return w, true
}

// imagine does the same for a single pair, without a template.
func imagine(near *vocabulary, o *obligation, a allowance) (witness, bool) {
	f := cut(near, o, a.cells)
	p := f.template(o, a.cells, a.name != "")
	if !p.possible {
		return witness{}, false
	}
	return p.witness(o, &kind{allowance: a}, f.pieces), true
}

// cut makes the formula of a pair, with the ports divided into intervals.
func cut(near *vocabulary, o *obligation, allows box) *formula {
	f := newFormula(near)
	for _, b := range append([]box{o.cells, allows}, o.excuses...) {
		f.know(b)
	}
	f.cut()
	return f
}

// template solves the formula of a pair.
func (f *formula) template(o *obligation, allows box, called bool) *template {
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
		return &template{}
	}
	p := &template{}
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

// witness fills in the values and ports of a pair.
func (p *template) witness(o *obligation, k *kind, pieces []span) witness {
	w := witness{obligation: o, name: k.name, from: p.from.withValues(k.values), to: p.to.withValues(k.values), protocol: pieces[p.piece].protocol}
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

// withValues returns the end with values in place of the placeholders.
func (e imaginedEnd) withValues(values []string) imaginedEnd {
	var labels map[string]string
	for key, value := range e.labels {
		if number, is := strings.CutPrefix(value, replaced); is {
			if labels == nil {
				labels = maps.Clone(e.labels)
			}
			i, _ := strconv.Atoi(number) // kind wrote it
			labels[key] = values[i]
		}
	}
	if labels != nil {
		e.labels = labels
	}
	return e
}

// end reads an imaginary end from the solver's model.
func (f *formula) end(end string, model map[string]bool) (imaginedEnd, bool) {
	if model[end+" outside"] {
		address, found := f.addressOf(end, model)
		return imaginedEnd{outside: true, address: address}, found
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
		delete(labels, bocage.LabelName) // world.place gives it a unique name
	}
	if zone := labels[bocage.LabelZone]; zone != "" && !f.values[bocage.LabelHost][labels[bocage.LabelHost]] {
		labels[bocage.LabelHost] = f.freeHost(zone)
	}
	if labels[bocage.LabelNamespace] == "" {
		labels[bocage.LabelNamespace] = unaskedNamespace
	}
	return imaginedEnd{labels: labels}, true
}

// addressOf finds an address that is in exactly those prefixes in which the model has the
// end.
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
