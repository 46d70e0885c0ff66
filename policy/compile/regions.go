package compile

import (
	"maps"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// This file holds sets of flows as declarations describe them, by labels, addresses and
// ports, whoever is there today. A selector asks label by label, so whom it picks is, for
// every label, some values or all but some, and perhaps that it is not there: a region is
// a product of such sets. Regions meet in regions, and what is left of one without
// another is a few regions. So it can be proved that one lies within many others.

// values is a set of values of a label, and whether it may also not be there.
type values struct {
	except bool     // all but the listed
	list   []string // sorted
	absent bool
}

// valuesOf is all that a label of a workload may be.
func valuesOf(key string) values {
	switch key {
	case bocage.LabelNamespace, bocage.LabelName, bocage.LabelHost:
		return values{except: true, list: []string{""}}
	case bocage.LabelAssurance:
		return values{list: []string{"L0", "L1", "L2", "L3", "L4", "L5"}}
	case bocage.LabelZone:
		return values{except: true, list: []string{""}, absent: true}
	}
	return values{except: true, absent: true}
}

func someOf(list []string) values {
	list = slices.Clone(list)
	slices.Sort(list)
	return values{list: slices.Compact(list)}
}

// others are the values that are not in the set.
func (v values) others() values { return values{!v.except, v.list, !v.absent} }

func (v values) meet(o values) values {
	out := values{absent: v.absent && o.absent}
	switch {
	case v.except && o.except:
		list := slices.Concat(v.list, o.list)
		slices.Sort(list)
		out.except, out.list = true, slices.Compact(list)
	case v.except:
		out.list = slices.DeleteFunc(slices.Clone(o.list), v.lists)
	case o.except:
		out.list = slices.DeleteFunc(slices.Clone(v.list), o.lists)
	default:
		out.list = slices.DeleteFunc(slices.Clone(v.list), func(value string) bool { return !o.lists(value) })
	}
	return out
}

func (v values) lists(value string) bool {
	_, listed := slices.BinarySearch(v.list, value)
	return listed
}

func (v values) has(value string) bool { return v.lists(value) != v.except }

func (v values) empty() bool { return !v.except && len(v.list) == 0 && !v.absent }

// meets is whether two sets share something, without making what.
func (v values) meets(o values) bool {
	switch {
	case v.absent && o.absent, v.except && o.except:
		return true
	case v.except:
		return slices.ContainsFunc(o.list, func(value string) bool { return !v.lists(value) })
	}
	return slices.ContainsFunc(v.list, o.has)
}

// end is one side of the flows of a region: workloads by their labels, or addresses
// outside.
type end struct {
	outside   bool
	labels    map[string]values // of those that are asked for
	addresses []span            // sorted, apart
}

// span is addresses from one up to another, of one family.
type span struct{ first, last netip.Addr }

func spanOf(p netip.Prefix) span {
	p = canonicalPrefix(p)
	last := p.Addr().AsSlice()
	for i := range last {
		if host := p.Bits() - 8*i; host < 8 {
			last[i] |= byte(0xff >> max(host, 0))
		}
	}
	end, _ := netip.AddrFromSlice(last)
	return span{p.Addr(), end}
}

// everywhere is all addresses.
func everywhere() []span {
	return []span{spanOf(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), spanOf(netip.PrefixFrom(netip.IPv6Unspecified(), 0))}
}

func (e *end) values(key string) values {
	if v, asked := e.labels[key]; asked {
		return v
	}
	return valuesOf(key)
}

func (e end) with(key string, v values) end {
	labels := maps.Clone(e.labels)
	if labels == nil {
		labels = map[string]values{}
	}
	labels[key] = v
	e.labels = labels
	return e
}

// picked narrows workloads to those that a selector picks; nil: all.
func (e end) picked(s *bocage.Selector) end {
	if s != nil {
		e.labels = maps.Clone(e.labels)
		e.pick(s)
	}
	return e
}

// pick is picked for labels that are nobody else's.
func (e *end) pick(s *bocage.Selector) {
	if e.labels == nil {
		e.labels = map[string]values{}
	}
	ask := func(key string, v values) { e.labels[key] = e.values(key).meet(v) }
	for key, value := range s.MatchLabels {
		ask(key, values{list: []string{value}})
	}
	for _, r := range s.MatchExpressions {
		switch r.Operator {
		case "In":
			ask(r.Key, someOf(r.Values))
		case "NotIn":
			ask(r.Key, someOf(r.Values).others())
		case "Exists":
			ask(r.Key, values{except: true})
		case "DoesNotExist":
			ask(r.Key, values{absent: true})
		}
	}
}

// declared are the workloads that an Application declares.
func declared(a *application) end {
	e := end{labels: map[string]values{bocage.LabelNamespace: {list: []string{a.Namespace}}}}
	e.pick(&a.Spec.Workload)
	return e
}

// placed narrows workloads to namespaces; none: all.
func (e end) placed(namespaces []string) end {
	if len(namespaces) == 0 {
		return e
	}
	return e.with(bocage.LabelNamespace, e.values(bocage.LabelNamespace).meet(someOf(namespaces)))
}

func (e end) meets(o end) bool {
	if e.outside != o.outside {
		return false
	}
	if e.outside {
		return slices.ContainsFunc(e.addresses, func(x span) bool {
			return slices.ContainsFunc(o.addresses, func(y span) bool { return x.first.Compare(y.last) <= 0 && y.first.Compare(x.last) <= 0 })
		})
	}
	for key, v := range o.labels {
		if !v.meets(e.values(key)) {
			return false
		}
	}
	return true
}

// minus returns what is left of an end without another that it meets, in parts, and what
// both share.
func (e end) minus(o end) (left []end, shared end) {
	if e.outside {
		rest := outOf(e.addresses, o.addresses)
		if len(rest) > 0 {
			left = append(left, end{outside: true, addresses: rest})
		}
		return left, end{outside: true, addresses: outOf(e.addresses, rest)}
	}
	shared = e
	for _, key := range slices.Sorted(maps.Keys(o.labels)) {
		has := shared.values(key)
		if rest := has.meet(o.labels[key].others()); !rest.empty() {
			left = append(left, shared.with(key, rest))
			shared = shared.with(key, has.meet(o.labels[key]))
		}
	}
	return left, shared
}

// outOf returns what is left of addresses.
func outOf(list, others []span) []span {
	left := list
	for _, cut := range others {
		var next []span
		for _, s := range left {
			if cut.last.Compare(s.first) < 0 || s.last.Compare(cut.first) < 0 {
				next = append(next, s)
				continue
			}
			if s.first.Compare(cut.first) < 0 {
				next = append(next, span{s.first, cut.first.Prev()})
			}
			if cut.last.Compare(s.last) < 0 {
				next = append(next, span{cut.last.Next(), s.last})
			}
		}
		left = next
	}
	return left
}

// region is the flows from one end to another at some ports.
type region struct {
	from, to end
	ports    ports
	data     [][]string // of each, the destination offers some class at that port
}

// regions are flows that matches all mean. Addresses to addresses is no flow of anybody's.
func (p *population) regions(matches ...*bocage.CellMatch) []region {
	from, to := p.ends(), p.ends()
	whole := region{ports: everything}
	for _, m := range matches {
		from, to = p.narrow(from, &m.From), p.narrow(to, &m.To)
		whole.ports = whole.ports.meet(portMatches(m.Ports))
		if len(m.To.Data) > 0 {
			whole.data = append(whole.data, m.To.Data)
		}
	}
	var out []region
	for _, f := range from {
		for _, t := range to {
			if r := (region{f, t, whole.ports, whole.data}); !(f.outside && t.outside) && !p.nobodyIn(&r) {
				out = append(out, r)
			}
		}
	}
	return out
}

// ends is everybody.
func (p *population) ends() []end { return []end{{}, {outside: true, addresses: everywhere()}} }

// narrow keeps of ends what a side means.
func (p *population) narrow(ends []end, s *bocage.Side) []end {
	inside := len(s.Namespaces) > 0 || s.Workload != nil || len(s.Data) > 0
	var out []end
	for _, e := range ends {
		switch {
		case s.Outside():
			if e.outside {
				meant := p.outsideOf(s)
				e.addresses = outOf(e.addresses, outOf(everywhere(), meant))
				out = append(out, e)
			}
		case !inside:
			out = append(out, e)
		case !e.outside:
			out = append(out, e.placed(s.Namespaces).picked(s.Workload))
		}
	}
	return out
}

// outsideOf lists the addresses that a side means, as address groups are.
func (p *population) outsideOf(s *bocage.Side) []span {
	prefixes := slices.Clone(s.External)
	for _, name := range s.AddressGroups {
		if group := p.addresses[name]; group != nil {
			prefixes = append(prefixes, group.Spec.Addresses...)
		}
	}
	var out []span
	for _, prefix := range prefixes {
		if prefix.IsValid() {
			out = append(out, spanOf(prefix))
		}
	}
	return out
}

// nobodyIn reports whether a region is empty, whoever joins: by a label, by the zones of
// the hosts that are asked for, or by ports.
func (p *population) nobodyIn(r *region) bool {
	return r.ports.empty() || p.nobodyAt(&r.from) || p.nobodyAt(&r.to)
}

func (p *population) nobodyAt(e *end) bool {
	if e.outside {
		return len(e.addresses) == 0
	}
	for _, v := range e.labels {
		if v.empty() {
			return true
		}
	}
	zones, asked := e.labels[bocage.LabelZone]
	hosts := e.values(bocage.LabelHost)
	if !asked || hosts.except {
		return false
	}
	return !slices.ContainsFunc(hosts.list, func(host string) bool {
		zone, stands := p.zones[host]
		return stands && zones.has(zone) || !stands && zones.absent
	})
}

// ban is what a guardrail refuses whatever else is said.
type ban struct {
	by     bocage.Ref
	region region
	// differ is a label in which the ends differ, if not empty.
	differ string
}

// covers is a proof that regions lie within bans.
type covers struct {
	p     *population
	steps int
}

// all reports whether bans cover all regions, and notes which of them that took.
func (k *covers) all(regions []region, bans []ban, used map[bocage.Ref]bool) bool {
	return !slices.ContainsFunc(regions, func(r region) bool { return !k.one(r, bans, used) })
}

// one takes some flow of the region, and a ban that refuses it. What that leaves is looked
// at in turn; a flow that nobody refuses shows that there is no proof.
func (k *covers) one(r region, bans []ban, used map[bocage.Ref]bool) bool {
	if k.p.nobodyIn(&r) {
		return true
	}
	some := sample{p: k.p, r: &r, labels: map[string][2]value{}}
	for i := range bans {
		if k.steps--; k.steps < 0 {
			return false
		}
		if s := &bans[i]; some.refusedBy(s) {
			used[s.by] = true
			return !slices.ContainsFunc(k.rest(r, s, bans), func(rest region) bool { return !k.one(rest, bans, used) })
		}
	}
	return false
}

// equal reports whether two bans say the same.
func (b ban) equal(o ban) bool {
	return b.by == o.by && b.differ == o.differ && b.region.from.equal(o.region.from) && b.region.to.equal(o.region.to) &&
		b.region.ports.all == o.region.ports.all && slices.Equal(b.region.ports.ranges, o.region.ports.ranges) && slices.EqualFunc(b.region.data, o.region.data, slices.Equal[[]string])
}

func (e end) equal(o end) bool {
	return e.outside == o.outside && slices.Equal(e.addresses, o.addresses) && maps.EqualFunc(e.labels, o.labels, func(v, w values) bool {
		return v.except == w.except && v.absent == w.absent && slices.Equal(v.list, w.list)
	})
}

// sample is one flow of a region, between workloads that are alike in every label in which
// they may be.
type sample struct {
	p      *population
	r      *region
	labels map[string][2]value // of both ends, of those that somebody asked for
}

// value is that of a label of one workload. The zero value says that it is not there.
type value struct {
	there   bool
	unasked bool   // it is one that nobody asks for
	text    string // empty too where one that somebody asks for is
}

// some is one of the values.
func (v values) some() value {
	switch {
	case v.except:
		return value{there: true, unasked: true}
	case v.absent || len(v.list) == 0:
		return value{}
	}
	return value{there: true, text: v.list[0]}
}

func (v values) holds(one value) bool {
	switch {
	case !one.there:
		return v.absent
	case one.unasked:
		return v.except
	}
	return v.has(one.text)
}

// of tells the values of a label at both ends.
func (s *sample) of(key string) [2]value {
	if known, asked := s.labels[key]; asked {
		return known
	}
	from, to := s.r.from.values(key), s.r.to.values(key)
	if key == bocage.LabelHost || key == bocage.LabelZone { // one follows from the other
		from, to = s.placed(&s.r.from, key), s.placed(&s.r.to, key)
	}
	out := [2]value{from.some(), to.some()}
	if common := from.meet(to); !common.empty() {
		out = [2]value{common.some(), common.some()}
	}
	s.labels[key] = out
	return out
}

// placed keeps one host of those that an end names and which stand where it says, and the
// zone of that one.
func (s *sample) placed(e *end, key string) values {
	hosts, zones := e.values(bocage.LabelHost), e.values(bocage.LabelZone)
	for _, host := range hosts.list {
		zone := s.p.zones[host]
		if hosts.except || !zones.holds(value{there: zone != "", text: zone}) {
			continue
		}
		switch {
		case key == bocage.LabelHost:
			return values{list: []string{host}}
		case zone == "":
			return values{absent: true}
		}
		return values{list: []string{zone}}
	}
	return e.values(key)
}

func (s *sample) refusedBy(b *ban) bool {
	if !b.region.from.hasAddress(&s.r.from) || !b.region.to.hasAddress(&s.r.to) || b.differ != "" && (s.r.from.outside || s.r.to.outside) || !b.dataOf(s.r) {
		return false
	}
	protocol, port := bocage.Protocol(254), uint16(0)
	if !s.r.ports.all {
		protocol, port = s.r.ports.ranges[0].protocol, s.r.ports.ranges[0].First
	}
	if !b.region.ports.covers(protocol, port) {
		return false
	}
	for n, labels := range [2]map[string]values{b.region.from.labels, b.region.to.labels} {
		for key, v := range labels {
			if !v.holds(s.of(key)[n]) {
				return false
			}
		}
	}
	return b.differ == "" || s.of(b.differ)[0] != s.of(b.differ)[1]
}

// hasAddress reports whether the first address of another end is of this one; both may be
// workloads instead.
func (e *end) hasAddress(o *end) bool {
	if e.outside != o.outside {
		return false
	}
	return !e.outside || slices.ContainsFunc(e.addresses, func(s span) bool {
		return s.first.Compare(o.addresses[0].first) <= 0 && o.addresses[0].first.Compare(s.last) <= 0
	})
}

// dataOf reports whether all flows of a region are about the data that a ban asks for: who
// offers what is declared by others, so only what asks for it itself is certain to be.
func (b *ban) dataOf(r *region) bool {
	return !slices.ContainsFunc(b.region.data, func(asked []string) bool {
		return !slices.ContainsFunc(r.data, func(has []string) bool {
			return !slices.ContainsFunc(has, func(class string) bool { return !slices.Contains(asked, class) })
		})
	})
}

func (b *ban) meets(r *region) bool {
	return !(b.differ != "" && (r.from.outside || r.to.outside)) && b.dataOf(r) && b.region.ports.meets(r.ports) && b.region.from.meets(r.from) && b.region.to.meets(r.to)
}

// rest is what a ban leaves of a region that it meets, or more.
func (k *covers) rest(r region, s *ban, bans []ban) []region {
	var out []region
	left, from := r.from.minus(s.region.from)
	for _, e := range left {
		out = append(out, region{e, r.to, r.ports, r.data})
	}
	left, to := r.to.minus(s.region.to)
	for _, e := range left {
		out = append(out, region{from, e, r.ports, r.data})
	}
	if !s.region.ports.all {
		ports := r.ports
		if ports.all {
			ports = everyPort()
		}
		out = append(out, region{from, to, ports.minus(s.region.ports), r.data})
	}
	if s.differ != "" {
		out = append(out, alikeIn(region{from, to, r.ports.meet(s.region.ports), r.data}, s.differ, bans)...)
	}
	return out
}

// alikeIn divides the flows of a region between workloads that are alike in a label by
// the values that somebody asks for. The others are one part, of which it is not said any
// more that they are alike: nobody tells them apart.
func alikeIn(r region, key string, bans []ban) []region {
	both := r.from.values(key).meet(r.to.values(key))
	var asked []string
	if !both.except {
		asked = both.list
	} else {
		for i := range bans {
			s := &bans[i].region
			asked = append(append(asked, s.from.labels[key].list...), s.to.labels[key].list...)
		}
		asked = slices.DeleteFunc(someOf(asked).list, func(value string) bool { return !both.has(value) })
	}
	var out []region
	part := func(v values) {
		out = append(out, region{r.from.with(key, v), r.to.with(key, v), r.ports, r.data})
	}
	for _, value := range asked {
		part(values{list: []string{value}})
	}
	if both.absent {
		part(values{absent: true})
	}
	if both.except {
		rest := both.meet(someOf(asked).others())
		rest.absent = false
		part(rest)
	}
	return out
}

// everyPort is every protocol and port, written out.
func everyPort() ports {
	var out ports
	for p := range 256 {
		out.ranges = append(out.ranges, protocolRange{bocage.Protocol(p), bocage.AllPorts})
	}
	return out
}
