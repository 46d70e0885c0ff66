package prove

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// box is a set of cells as declarations describe it: who must be meant by every
// side of a list, over ports that every list of matches covers.
type box struct {
	from, to []bocage.Side
	ports    [][]bocage.PortMatch // none in a list: everything
}

func boxOf(matches ...bocage.CellMatch) box {
	var b box
	for _, m := range matches {
		b.from, b.to, b.ports = append(b.from, m.From), append(b.to, m.To), append(b.ports, m.Ports)
	}
	return b
}

// vocabulary is what declarations share.
type vocabulary struct {
	zones  map[string][]string // hosts, by zone that has any
	zoneOf map[string]string   // by host
	groups map[string]*bocage.AddressGroup
	offers map[string]map[string][]offer // by data class and namespace
	// objects are those of the two, in order, if the vocabulary is a near one.
	objects []bocage.Resource
}

// offer is an interface with classes of data.
type offer struct {
	by      *bocage.Application
	provide bocage.Provide
}

// near narrows the vocabulary to what can matter for an obligation and an
// allowing declaration: offers of who may be meant by both.
func (v *vocabulary) near(o *obligation, a allowance) *vocabulary {
	out := &vocabulary{zones: v.zones, zoneOf: v.zoneOf, groups: map[string]*bocage.AddressGroup{}, offers: map[string]map[string][]offer{}}
	boxes := append([]box{o.cells, a.cells}, o.excuses...)
	for _, b := range boxes {
		for _, s := range slices.Concat(b.from, b.to) {
			for _, name := range s.AddressGroups {
				if g := v.groups[name]; g != nil && out.groups[name] == nil {
					out.groups[name] = g
					out.objects = append(out.objects, g)
				}
			}
		}
		for _, s := range b.to {
			for _, class := range s.Data {
				if out.offers[class] == nil {
					out.offers[class] = map[string][]offer{}
					v.nearOffers(class, slices.Concat(o.cells.to, a.cells.to), out)
				}
			}
		}
	}
	return out
}

// nearOffers takes over the offers of a class by whom all sides may mean.
func (v *vocabulary) nearOffers(class string, sides []bocage.Side, out *vocabulary) {
	namespaces := slices.Sorted(maps.Keys(v.offers[class]))
	for _, s := range sides {
		if len(s.Namespaces) > 0 {
			namespaces = slices.DeleteFunc(slices.Clone(s.Namespaces), func(ns string) bool { return v.offers[class][ns] == nil })
			break
		}
	}
	for _, ns := range namespaces {
		for _, o := range v.offers[class][ns] {
			self := bocage.Side{Namespaces: []string{ns}, Workload: &o.by.Spec.Workload}
			if !disjointFrom(&self, sides) {
				out.offers[class][ns] = append(out.offers[class][ns], o)
				out.objects = append(out.objects, o.by)
			}
		}
	}
}

// of lists the offers of a class.
func (v *vocabulary) of(class string) []offer {
	var out []offer
	for _, ns := range slices.Sorted(maps.Keys(v.offers[class])) {
		out = append(out, v.offers[class][ns]...)
	}
	return out
}

// ends of a flow in formulas.
const (
	source      = "s"
	destination = "d"
)

// formula says, as a boolean formula over labels, prefixes and ports, which flows
// lie in boxes. Each label of each end is a few variables: that it is there, and
// one for each value that somebody asks for, of which at most one holds. A label
// that is there with none of them has a value that nobody asks for.
type formula struct {
	words    *vocabulary
	values   map[string]map[string]bool // asked for, by key
	prefixes map[netip.Prefix]bool
	spans    []span
	pieces   []span // elementary intervals of ports, set by cut
}

func newFormula(words *vocabulary) *formula {
	return &formula{words: words, values: map[string]map[string]bool{bocage.LabelNamespace: {}}, prefixes: map[netip.Prefix]bool{}}
}

// outside is the variable that an end is no workload.
func outside(end string) statement { return variable(end + " outside") }

func (f *formula) exists(end, key string) statement {
	if f.values[key] == nil {
		f.values[key] = map[string]bool{}
	}
	return variable(end + " has " + key)
}

func (f *formula) is(end, key, value string) statement {
	f.exists(end, key)
	f.values[key][value] = true
	return variable(end + " is " + key + "=" + value)
}

func (f *formula) within(end string, prefix netip.Prefix) statement {
	prefix = canonical(prefix)
	f.prefixes[prefix] = true
	return variable(end + " in " + prefix.String())
}

func canonical(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func (f *formula) selector(end string, s bocage.Selector) statement {
	all := []statement{not(outside(end))}
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		all = append(all, f.is(end, key, s.MatchLabels[key]))
	}
	for _, r := range s.MatchExpressions {
		var any []statement
		for _, value := range r.Values {
			any = append(any, f.is(end, r.Key, value))
		}
		switch r.Operator {
		case "In":
			all = append(all, either(any...))
		case "NotIn":
			all = append(all, not(either(any...)))
		case "Exists":
			all = append(all, f.exists(end, r.Key))
		case "DoesNotExist":
			all = append(all, not(f.exists(end, r.Key)))
		}
	}
	return every(all...)
}

// side says whom a side means, its data classes apart.
func (f *formula) side(end string, s bocage.Side) statement {
	if s.Outside() {
		var any []statement
		for _, p := range s.External {
			any = append(any, f.within(end, p))
		}
		for _, name := range s.AddressGroups {
			if g := f.words.groups[name]; g != nil {
				for _, p := range g.Spec.Addresses {
					any = append(any, f.within(end, p))
				}
			}
		}
		return every(outside(end), either(any...))
	}
	var all []statement
	if len(s.Namespaces) > 0 {
		var any []statement
		for _, ns := range s.Namespaces {
			any = append(any, f.is(end, bocage.LabelNamespace, ns))
		}
		all = append(all, either(any...))
	}
	if s.Workload != nil {
		all = append(all, f.selector(end, *s.Workload))
	}
	return every(all...)
}

// know notes the ports at which a box begins or ends.
func (f *formula) know(b box) {
	for _, list := range b.ports {
		for _, m := range list {
			f.knowPorts(m.Port, m.EndPort, m.Protocol)
		}
	}
	for _, s := range b.to {
		for _, class := range s.Data {
			for _, o := range f.words.of(class) {
				f.knowPorts(o.provide.Port, o.provide.EndPort, o.provide.Protocol)
			}
		}
	}
}

func (f *formula) knowPorts(port, end uint16, protocol string) {
	if p, ports, err := bocage.Transport(port, end, protocol); err == nil {
		f.spans = append(f.spans, span{p, ports})
	}
}

// cut divides the ports of every protocol that is known into intervals within
// which nothing begins or ends. One more protocol stands for all others.
func (f *formula) cut() {
	cuts := map[bocage.Protocol][]uint32{}
	for _, s := range f.spans {
		cuts[s.protocol] = append(cuts[s.protocol], uint32(s.ports.First), uint32(s.ports.Last)+1)
	}
	other := bocage.Protocol(254)
	for cuts[other] != nil {
		other--
	}
	cuts[other] = nil
	for protocol := range 256 {
		edges, known := cuts[bocage.Protocol(protocol)]
		if !known {
			continue
		}
		edges = append(edges, 0, 65536)
		slices.Sort(edges)
		edges = slices.Compact(edges)
		for i := range edges[:len(edges)-1] {
			f.pieces = append(f.pieces, span{bocage.Protocol(protocol), bocage.PortRange{First: uint16(edges[i]), Last: uint16(edges[i+1] - 1)}})
		}
	}
}

func pieceName(s span) string { return "at " + s.protocol.String() + " " + s.ports.String() }

func (f *formula) covers(port, end uint16, protocol string) statement {
	p, ports, err := bocage.Transport(port, end, protocol)
	if err != nil {
		return (statement{form: falsehood})
	}
	first, after := f.piecesOf(p, ports)
	any := make([]statement, 0, after-first)
	for _, piece := range f.pieces[first:after] {
		any = append(any, variable(pieceName(piece)))
	}
	return either(any...)
}

// piecesOf finds the pieces that begin among the ports of a protocol: from the first
// on, up to another.
func (f *formula) piecesOf(p bocage.Protocol, ports bocage.PortRange) (first, after int) {
	begin := func(at span, port uint32) int {
		return cmp.Or(cmp.Compare(at.protocol, p), cmp.Compare(uint32(at.ports.First), port))
	}
	first, _ = slices.BinarySearchFunc(f.pieces, uint32(ports.First), begin)
	after, _ = slices.BinarySearchFunc(f.pieces, uint32(ports.Last)+1, begin)
	return first, after
}

// in says which flows lie in a box. cut comes before.
func (f *formula) in(b box) statement {
	var all []statement
	for _, s := range b.from {
		all = append(all, f.side(source, s))
	}
	for _, s := range b.to {
		all = append(all, f.side(destination, s))
		if len(s.Data) > 0 {
			all = append(all, f.offers(s.Data))
		}
	}
	for _, list := range b.ports {
		var any []statement
		for _, m := range list {
			any = append(any, f.covers(m.Port, m.EndPort, m.Protocol))
		}
		if len(list) > 0 {
			all = append(all, either(any...))
		}
	}
	return every(all...)
}

// offers says that the destination offers an interface with one of the classes.
func (f *formula) offers(classes []string) statement {
	var any []statement
	for _, class := range classes {
		for _, o := range f.words.of(class) {
			any = append(any, every(f.is(destination, bocage.LabelNamespace, o.by.Namespace),
				f.selector(destination, o.by.Spec.Workload), f.covers(o.provide.Port, o.provide.EndPort, o.provide.Protocol)))
		}
	}
	return either(any...)
}

// differ says that both ends are workloads with different values of a label. All
// values that anybody asks for are known before; zones are asked for by what places
// workloads.
func (f *formula) differ(key string) statement {
	unlike := []statement{variable("unlike")}
	switch key {
	case bocage.LabelAssurance:
		f.assured(source)
	case bocage.LabelZone:
		for zone := range f.words.zones {
			f.is(source, key, zone)
		}
	case bocage.LabelHost:
		// Who is in a zone is on one of its hosts. Two of those that nobody asks for
		// stand for all of them.
		for zone := range f.words.zones {
			for range 2 {
				if host := f.freeHost(zone); host != "" {
					f.is(source, key, host)
				}
			}
		}
		if len(f.words.zones) > 0 {
			unlike = append(unlike, not(f.exists(source, bocage.LabelZone)), not(f.exists(destination, bocage.LabelZone)))
		}
	}
	any := []statement{justOne(f.exists(source, key), f.exists(destination, key)),
		every(append(unlike, f.unasked(source, key), f.unasked(destination, key))...)}
	for _, value := range slices.Sorted(maps.Keys(f.values[key])) {
		any = append(any, justOne(f.is(source, key, value), f.is(destination, key, value)))
	}
	return every(not(outside(source)), not(outside(destination)), either(any...))
}

// itself says that both ends are one workload. Names that nobody asks for are
// given once; so are namespaces, where the ends are unlike.
func (f *formula) itself() statement {
	const name, namespace = bocage.LabelName, bocage.LabelNamespace
	together := []statement{every(not(variable("unlike")), f.unasked(source, namespace), f.unasked(destination, namespace))}
	for _, value := range slices.Sorted(maps.Keys(f.values[namespace])) {
		together = append(together, every(f.is(source, namespace, value), f.is(destination, namespace, value)))
	}
	var any []statement
	for _, value := range slices.Sorted(maps.Keys(f.values[name])) {
		any = append(any, every(f.is(source, name, value), f.is(destination, name, value), either(together...)))
	}
	return either(any...)
}

// unasked says that the label is there with a value that nobody asks for.
func (f *formula) unasked(end, key string) statement {
	all := []statement{f.exists(end, key)}
	for _, value := range slices.Sorted(maps.Keys(f.values[key])) {
		all = append(all, not(f.is(end, key, value)))
	}
	return every(all...)
}

// solve finds a flow for which all terms hold; nil if there is none.
func (f *formula) solve(terms ...statement) map[string]bool {
	all := append(slices.Clone(terms), not(f.itself()))
	names := make([]string, len(f.pieces))
	for i, piece := range f.pieces {
		names[i] = pieceName(piece)
	}
	all = append(all, oneOf(names))
	for _, end := range []string{source, destination} {
		all = append(all, f.natureOf(end)...)
	}
	return solve(every(all...))
}

// placed is what holds of zones, if anybody asks for them: they follow from the
// host that a workload is on.
func (f *formula) placed(end string) []statement {
	if f.values[bocage.LabelZone] == nil {
		return nil
	}
	var all, zones []statement
	hosts := slices.Sorted(maps.Keys(f.values[bocage.LabelHost]))
	for _, zone := range slices.Sorted(maps.Keys(f.values[bocage.LabelZone])) {
		if len(f.words.zones[zone]) == 0 {
			all = append(all, not(f.is(end, bocage.LabelZone, zone)))
		}
	}
	for _, zone := range slices.Sorted(maps.Keys(f.words.zones)) {
		is := f.is(end, bocage.LabelZone, zone)
		zones = append(zones, is)
		if f.freeHost(zone) == "" {
			var asked []statement
			for _, host := range hosts {
				if f.words.zoneOf[host] == zone {
					asked = append(asked, f.is(end, bocage.LabelHost, host))
				}
			}
			all = append(all, implies(is, either(asked...)))
		}
	}
	for _, host := range hosts {
		on := f.is(end, bocage.LabelHost, host)
		if zone := f.words.zoneOf[host]; zone != "" {
			all = append(all, implies(on, f.is(end, bocage.LabelZone, zone)))
		} else {
			all = append(all, implies(on, not(f.exists(end, bocage.LabelZone))))
		}
	}
	if len(zones) == 0 {
		return append(all, not(f.exists(end, bocage.LabelZone)))
	}
	return append(all, implies(f.exists(end, bocage.LabelZone), either(zones...)))
}

// freeHost is a host of the zone that nobody asks for by name; empty if there is
// none.
func (f *formula) freeHost(zone string) string {
	for _, host := range f.words.zones[zone] {
		if !f.values[bocage.LabelHost][host] {
			return host
		}
	}
	return ""
}

// natureOf is what holds of every end: workloads have the labels that all have,
// addresses outside have none, a label has one value, prefixes lie in each other
// or apart.
func (f *formula) natureOf(end string) []statement {
	all := f.placed(end)
	for _, key := range slices.Sorted(maps.Keys(f.values)) {
		exists := f.exists(end, key)
		all = append(all, implies(outside(end), not(exists)))
		if inherent(key) {
			all = append(all, either(outside(end), exists))
			if f.values[key][""] {
				all = append(all, not(f.is(end, key, "")))
			}
		}
		if key == bocage.LabelAssurance {
			all = append(all, either(outside(end), f.assured(end)))
		}
		values := slices.Sorted(maps.Keys(f.values[key]))
		for i, value := range values {
			is := f.is(end, key, value)
			all = append(all, implies(is, exists))
			for _, other := range values[:i] {
				all = append(all, not(every(is, f.is(end, key, other))))
			}
		}
	}
	prefixes := make([]netip.Prefix, 0, len(f.prefixes))
	for p := range f.prefixes {
		prefixes = append(prefixes, p)
	}
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
	if !slices.ContainsFunc(anywhere(), func(p netip.Prefix) bool { return !covered(p, prefixes) }) {
		all = append(all, implies(outside(end), f.withinAny(end, prefixes)))
	}
	for i, p := range prefixes {
		in := f.within(end, p)
		all = append(all, implies(in, outside(end)))
		if parts := insideOf(p, prefixes); covered(p, parts) {
			all = append(all, implies(in, f.withinAny(end, parts)))
		}
		for _, q := range prefixes[:i] {
			switch {
			case !p.Overlaps(q):
				all = append(all, not(every(in, f.within(end, q))))
			case p.Bits() > q.Bits():
				all = append(all, implies(in, f.within(end, q)))
			default:
				all = append(all, implies(f.within(end, q), in))
			}
		}
	}
	return all
}

// inherent reports whether every workload has the label, with a value.
func inherent(key string) bool {
	return slices.Contains([]string{bocage.LabelNamespace, bocage.LabelName, bocage.LabelHost, bocage.LabelAssurance}, key)
}

// assured says that an identity is vouched for in one of the ways that there are.
func (f *formula) assured(end string) statement {
	var any []statement
	for level := range 6 {
		any = append(any, f.is(end, bocage.LabelAssurance, fmt.Sprintf("L%d", level)))
	}
	return either(any...)
}

func (f *formula) withinAny(end string, prefixes []netip.Prefix) statement {
	var any []statement
	for _, p := range prefixes {
		any = append(any, f.within(end, p))
	}
	return either(any...)
}

// insideOf lists those of the prefixes that are a part of one and not all of it.
func insideOf(p netip.Prefix, prefixes []netip.Prefix) []netip.Prefix {
	var parts []netip.Prefix
	for _, q := range prefixes {
		if q.Bits() > p.Bits() && p.Contains(q.Addr()) {
			parts = append(parts, q)
		}
	}
	return parts
}

// covered reports whether every address of a prefix is in one of the others.
func covered(p netip.Prefix, by []netip.Prefix) bool {
	if slices.ContainsFunc(by, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }) {
		return true
	}
	parts := insideOf(p, by)
	if len(parts) < 2 {
		return false
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	high := netip.PrefixFrom(afterPrefix(low), p.Bits()+1)
	return covered(low, parts) && covered(high, parts)
}
