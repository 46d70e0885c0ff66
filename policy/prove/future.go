package prove

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// A proof about the present workloads says nothing about the next one that is added. So the
// guardrails are proved for label sets that no workload has yet, too. For every pair of a
// declaration that allows something (allowance) and a guardrail that it could meet
// (obligation), a SAT solver looks for a flow between two imaginary ends that both match,
// the witness. The compiler must refuse this flow, or give it the duties that the guardrail
// requires. To the compiler all flows of one such pair are alike, so one witness is enough.

// mostWork bounds the work of one proof. Pairs that are left over are checked after the
// next changes of declarations, and the proof says so.
const mostWork = 200_000

// mostLeftOver bounds the work on pairs that were left over earlier: the author of a new
// declaration should wait for the pairs with it, and not much longer.
const mostLeftOver = mostWork / 10

// The work of a pair: checking what the compiler decides; and, if no equal template and no
// equal end exists yet, solving it and adding its ends.
const (
	workOfPair     = 1
	workOfTemplate = 5
	workOfEnd      = 2
)

// future remembers the last proof, which depends on declarations alone, and the pairs of
// declarations that it consists of. What was proved of a pair stays valid as long as both
// declarations stay the same: other declarations can only refuse more and add duties.
type future struct {
	known bool
	last  compile.Input
	met   map[string]*obligationsMet // by what allows
	// shownOf holds the objects whose pointers are in the keys of met, so that no new
	// object gets the same pointer.
	shownOf compile.Input
	proof   bocage.Proof
}

// obligation is what a guardrail demands of the flows in a box.
type obligation struct {
	guardrail *bocage.Guardrail
	field     string
	cells     box
	differ    string // a label in which the ends differ, if not empty
	excuses   []box
	excepted  []*bocage.Exception // that excuses are of
	holds     func(d bocage.Decision, allowed bool) bool
	// name identifies the obligation by pointers to its objects, which are immutable.
	name string
	// plain obligations name no data and no groups; those about every port no ports.
	plain, everyPort bool
}

// witness is an imaginary flow that an obligation and an allowance both match.
type witness struct {
	obligation *obligation
	from, to   imaginedEnd
	name       bocage.DomainName // by which the source knows the destination; empty: by none
	protocol   bocage.Protocol
	port       uint16
}

// imaginedEnd is an end of a witness.
type imaginedEnd struct {
	outside bool
	address netip.Addr        // of an outside end
	labels  map[string]string // of a workload
	key     endKey            // ends with the same key are the same end
}

// endKey identifies an imaginary end: by the template that it was made from, which end of
// it that is, and the values that were put in. Without a template an end equals no other.
type endKey struct {
	template *template
	end      string
	values   string
}

// allowance is a declaration that allows the flows in a box.
type allowance struct {
	by    bocage.Ref
	cells box
	// name is a DNS name of the destination, if the declaration is about one.
	name bocage.DomainName
	// objects are those that the box depends on; detail tells allowances with the same
	// objects apart.
	objects []bocage.Resource
	detail  string
}

// prove proves that the guardrails hold for workloads that do not exist yet.
func (v *future) prove(in compile.Input) bocage.Proof {
	in.ThreatConditions, in.Quarantines, in.Responses, in.Workloads, in.Hosts, in.Scopes = nil, nil, nil, nil, nil, nil
	in.Exceptions = slices.DeleteFunc(slices.Clone(in.Exceptions), func(e *bocage.Exception) bool {
		return in.Now.Before(e.Begins()) || !in.Now.Before(e.Spec.Until)
	})
	if v.known && sameDeclarations(v.last, in) {
		return v.proof
	}
	if !slices.Equal(v.last.Zones, in.Zones) {
		v.met = nil // zones are part of every pair
	}
	v.known, v.last, v.proof = true, in, v.refresh(in)
	return v.proof
}

func sameDeclarations(a, b compile.Input) bool {
	return slices.Equal(a.Applications, b.Applications) && slices.Equal(a.Guardrails, b.Guardrails) && slices.Equal(a.Exceptions, b.Exceptions) &&
		slices.Equal(a.AddressGroups, b.AddressGroups) && slices.Equal(a.Zones, b.Zones) && slices.Equal(a.Profiles, b.Profiles) &&
		slices.Equal(a.NetworkPolicies, b.NetworkPolicies) && slices.Equal(a.ClusterNetworkPolicies, b.ClusterNetworkPolicies) &&
		slices.Equal(a.Namespaces, b.Namespaces)
}

// obligationsMet is what was proved of one allowance: the obligations that it may meet.
type obligationsMet struct {
	shown      map[string]bool // by obligation; whether a flow was possible
	possible   int             // how many were
	named      bool            // towards a DNS name
	incomplete bool            // some obligation was not looked at
}

// refresh proves the pairs that are new. If the guardrails and everything that declarations
// refer to are unchanged, an unchanged allowance without left-over pairs needs no check.
func (v *future) refresh(in compile.Input) bocage.Proof {
	words := vocabularyOf(in)
	owed := obligations(in)
	before := objectsOf(v.shownOf)
	begun := v.known && v.met != nil
	stays := begun && sameSurroundings(v.shownOf, in)
	var witnesses []witness
	all := map[string]*obligationsMet{}
	work, done, again := 0, 0, 0
	finder := newWitnessFinder(words, owed)
	look := func(o *obligation, a allowance, near *vocabulary) (fresh, may bool) {
		fresh = !begun || !before[o.guardrail] || slices.ContainsFunc(o.excepted, func(e *bocage.Exception) bool { return !before[e] }) ||
			slices.ContainsFunc(a.objects, func(o bocage.Resource) bool { return !before[o] }) ||
			slices.ContainsFunc(near.objects, func(o bocage.Resource) bool { return !before[o] })
		return fresh, work < mostWork && (fresh || again < mostLeftOver)
	}
	for _, a := range allowances(in) {
		name := a.key()
		was := v.met[name]
		if stays && was != nil && (!was.incomplete || again >= mostLeftOver) {
			all[name] = was
			continue
		}
		k := finder.kind(a)
		now := &obligationsMet{shown: map[string]bool{}, named: a.name != ""}
		all[name] = now
		for _, o := range owed {
			if disjoint(o.cells, a.cells) {
				continue
			}
			near, besides := finder.near(o, k)
			key := o.name + besides
			could, seen := false, false
			if was != nil {
				could, seen = was.shown[key]
			}
			if !seen {
				fresh, may := look(o, a, near)
				if !may {
					now.incomplete = true
					continue
				}
				var w witness
				if w, could = finder.flow(o, k, near, besides); could {
					witnesses = append(witnesses, w)
				}
				if work = finder.work(); !fresh {
					again += work - done
				}
				done = work
			}
			if now.shown[key] = could; could {
				now.possible++
			}
		}
	}
	counter := refute(in, witnesses)
	if counter == "" {
		v.met, v.shownOf = all, in
	}
	return proof(coverageText(all), whole("future"), counter)
}

// coverageText says how many pairs were checked.
func coverageText(all map[string]*obligationsMet) string {
	statement := "the guardrails hold for workloads to come"
	pairs, possible, named, left := 0, 0, 0, 0
	for _, m := range all {
		pairs, possible = pairs+len(m.shown), possible+m.possible
		if m.named {
			named += m.possible
		}
		if m.incomplete {
			left++
		}
	}
	if pairs > 0 {
		statement += fmt.Sprintf(": a declaration could meet one in %d ways, of which %d are possible", pairs, possible)
		if named > 0 {
			statement += fmt.Sprintf(" (%d towards DNS names, wherever those are)", named)
		}
	}
	if left > 0 {
		statement += fmt.Sprintf(" (more of %d declarations are looked at with the next changes of declarations)", left)
	}
	return statement
}

// sameSurroundings reports whether everything except the allowances is unchanged: the
// guardrails, their exceptions, data classes, AddressGroups and zones.
func sameSurroundings(a, b compile.Input) bool {
	offering := func(list []*bocage.Application) []*bocage.Application {
		return slices.DeleteFunc(slices.Clone(list), func(a *bocage.Application) bool {
			return !slices.ContainsFunc(a.Spec.Provides, func(p bocage.Provide) bool { return len(p.Data) > 0 })
		})
	}
	return slices.Equal(a.Guardrails, b.Guardrails) && slices.Equal(a.Exceptions, b.Exceptions) &&
		slices.Equal(a.AddressGroups, b.AddressGroups) && slices.Equal(a.Zones, b.Zones) && slices.Equal(offering(a.Applications), offering(b.Applications))
}

// objectsOf returns the declarations that pairs are made of.
func objectsOf(in compile.Input) map[bocage.Resource]bool {
	out := make(map[bocage.Resource]bool, len(in.Applications)+len(in.Guardrails)+len(in.Exceptions)+len(in.AddressGroups)+len(in.ClusterNetworkPolicies))
	for _, o := range in.ClusterNetworkPolicies {
		out[o] = true
	}
	for _, o := range in.Applications {
		out[o] = true
	}
	for _, o := range in.Guardrails {
		out[o] = true
	}
	for _, o := range in.Exceptions {
		out[o] = true
	}
	for _, o := range in.AddressGroups {
		out[o] = true
	}
	return out
}

// key identifies an allowance by pointers to its objects, which are immutable.
func (a *allowance) key() string {
	b := []byte(a.by.String() + " " + a.detail)
	for _, object := range a.objects {
		b = fmt.Appendf(b, " %p", object)
	}
	return string(b)
}

func vocabularyOf(in compile.Input) *vocabulary {
	words := &vocabulary{zones: map[string][]string{}, zoneOf: bocage.ZonesOfHosts(byName(in.Zones)),
		groups: map[string]*bocage.AddressGroup{}, offers: map[string]map[string][]offer{}}
	for _, host := range slices.Sorted(maps.Keys(words.zoneOf)) {
		words.zones[words.zoneOf[host]] = append(words.zones[words.zoneOf[host]], host)
	}
	for _, g := range byName(in.AddressGroups) {
		words.groups[g.Name] = g
	}
	for _, a := range byName(in.Applications) {
		for _, o := range a.Spec.Provides {
			for _, class := range o.Data {
				if words.offers[class] == nil {
					words.offers[class] = map[string][]offer{}
				}
				words.offers[class][a.Namespace] = append(words.offers[class][a.Namespace], offer{a, o})
			}
		}
	}
	return words
}

// anywhere is every address.
func anywhere() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}

// allowances lists every declaration that can allow something.
func allowances(in compile.Input) []allowance {
	var out []allowance
	apps := byName(in.Applications)
	providers := make(map[string]*bocage.Application, len(apps))
	for _, a := range apps {
		providers[a.NamespacedName()] = a
	}
	for _, a := range apps {
		self := bocage.Side{Namespaces: []string{a.Namespace}, Workload: &a.Spec.Workload}
		for j, c := range a.Spec.Consumes {
			ref := compile.Ref("Application", a, fmt.Sprintf("spec.consumes[%d]", j))
			if c.External.IsValid() {
				to := []netip.Prefix{c.External.Prefix}
				if c.External.Name != "" {
					to = anywhere() // the name may have any external address
				}
				out = append(out, allowance{by: ref, name: anyOf(c.External.Name), objects: []bocage.Resource{a}, cells: box{from: []bocage.Side{self}, to: []bocage.Side{{External: to}},
					ports: [][]bocage.PortMatch{{{Port: c.Port, EndPort: c.EndPort, Protocol: c.Protocol}}}}})
				continue
			}
			name := c.Service
			if !strings.Contains(name, "/") {
				name = a.Namespace + "/" + name
			}
			provider := providers[name]
			if provider == nil {
				continue
			}
			for _, o := range provider.Spec.Provides {
				if c.Interface != "" && c.Interface != o.Name {
					continue
				}
				open := bocage.Side{Workload: &o.To, Namespaces: o.ToNamespaces}
				if len(o.ToNamespaces) == 0 {
					open.Namespaces = []string{provider.Namespace}
				} else if slices.Contains(o.ToNamespaces, "*") {
					open.Namespaces = nil
				}
				out = append(out, allowance{by: ref, objects: []bocage.Resource{a, provider}, cells: box{from: []bocage.Side{self, open},
					to:    []bocage.Side{{Namespaces: []string{provider.Namespace}, Workload: &provider.Spec.Workload}},
					ports: [][]bocage.PortMatch{{{Port: o.Port, EndPort: o.EndPort, Protocol: o.Protocol}}}}})
				out[len(out)-1].by.Field += " " + o.Name // a pair for each interface
			}
		}
		for i, o := range a.Spec.Provides {
			if len(o.ToExternal) > 0 {
				out = append(out, allowance{by: compile.Ref("Application", a, fmt.Sprintf("spec.provides[%d].toExternal", i)), objects: []bocage.Resource{a}, cells: box{
					from: []bocage.Side{{External: o.ToExternal}}, to: []bocage.Side{self},
					ports: [][]bocage.PortMatch{{{Port: o.Port, EndPort: o.EndPort, Protocol: o.Protocol}}}}})
			}
		}
	}
	for _, g := range byName(in.Guardrails) {
		if spec := g.InForce(); spec != nil {
			for i, grant := range spec.Grant {
				out = append(out, allowance{by: compile.Ref("Guardrail", g, fmt.Sprintf("spec.grant[%d]", i)), cells: boxOf(grant), objects: []bocage.Resource{g}})
			}
		}
	}
	if len(in.NetworkPolicies)+len(in.ClusterNetworkPolicies) > 0 {
		// What Kubernetes' policies leave open is open between Pods.
		every := bocage.Side{Workload: &bocage.Selector{}}
		out = append(out, allowance{by: bocage.Ref{Kind: "Namespace", Name: "kubernetes", Field: "default"}, cells: box{from: []bocage.Side{every}, to: []bocage.Side{every}}})
	}
	return append(out, acceptances(in)...)
}

// obligations lists what the guardrails demand of cells.
func obligations(in compile.Input) []*obligation {
	var out []*obligation
	for _, g := range byName(in.Guardrails) {
		spec := g.InForce()
		if spec == nil {
			continue
		}
		var excuses []box
		var excepted []*bocage.Exception
		for _, e := range byName(in.Exceptions) {
			if e.Spec.Guardrail == g.Name { // admitted or not: cells that may be excepted are left out
				excuses, excepted = append(excuses, boxOf(e.Spec.Match)), append(excepted, e)
			}
		}
		refused := func(_ bocage.Decision, allowed bool) bool { return !allowed }
		for i, never := range spec.Never {
			out = append(out, &obligation{guardrail: g, field: fmt.Sprintf("spec.never[%d]", i), cells: boxOf(spec.Match, never), excuses: excuses, excepted: excepted, holds: refused})
		}
		if spec.Separate != nil {
			out = append(out, &obligation{guardrail: g, field: "spec.separate", cells: boxOf(spec.Match), differ: spec.Separate.Label(), excuses: excuses, excepted: excepted, holds: refused})
		}
		if require := spec.Require; require != nil {
			out = append(out, &obligation{guardrail: g, field: "spec.require", cells: boxOf(spec.Match), excuses: excuses, excepted: excepted, holds: func(d bocage.Decision, allowed bool) bool {
				return !allowed || d.Duties != nil && atLeast(*d.Duties, *require)
			}})
		}
	}
	for _, o := range out {
		o.plain, o.everyPort, o.name = true, true, fmt.Sprintf("%p %s", o.guardrail, o.field)
		for _, e := range o.excepted {
			o.name += fmt.Sprintf(" %p", e)
		}
		for _, b := range append([]box{o.cells}, o.excuses...) {
			for _, s := range slices.Concat(b.from, b.to) {
				o.plain = o.plain && len(s.Data)+len(s.AddressGroups) == 0
			}
			for _, list := range b.ports {
				o.everyPort = o.everyPort && len(list) == 0
			}
		}
	}
	return out
}

// disjoint reports whether two boxes certainly share no flow. It is quick, and may return
// false for boxes that share none.
func disjoint(a, b box) bool {
	for _, ends := range [2][2][]bocage.Side{{a.from, b.from}, {a.to, b.to}} {
		for n, sides := range ends {
			for i := range sides {
				if disjointFrom(&sides[i], sides[:i]) || n == 1 && disjointFrom(&sides[i], ends[0]) {
					return true
				}
			}
		}
	}
	return false
}

func disjointFrom(x *bocage.Side, others []bocage.Side) bool {
	for i := range others {
		if sidesDisjoint(x, &others[i]) {
			return true
		}
	}
	return false
}

func sidesDisjoint(x, y *bocage.Side) bool {
	inside := func(s *bocage.Side) bool { return len(s.Namespaces) > 0 || s.Workload != nil || len(s.Data) > 0 }
	if x.Outside() && inside(y) || y.Outside() && inside(x) {
		return true
	}
	if x.Outside() && y.Outside() {
		return len(x.AddressGroups)+len(y.AddressGroups) == 0 && !slices.ContainsFunc(x.External, func(p netip.Prefix) bool {
			return slices.ContainsFunc(y.External, func(q netip.Prefix) bool { return canonical(p).Overlaps(canonical(q)) })
		})
	}
	if len(x.Namespaces) > 0 && len(y.Namespaces) > 0 && !slices.ContainsFunc(x.Namespaces, func(ns string) bool { return slices.Contains(y.Namespaces, ns) }) {
		return true
	}
	if x.Workload != nil && y.Workload != nil {
		for key, value := range x.Workload.MatchLabels {
			if other, asked := y.Workload.MatchLabels[key]; asked && other != value {
				return true
			}
		}
	}
	return false
}

// atLeast reports whether owed includes everything that is required.
func atLeast(owed, required bocage.Duties) bool {
	every := func(of, wanted string) bool {
		return wanted == "" || !slices.ContainsFunc(strings.Split(wanted, "+"), func(w string) bool { return !slices.Contains(strings.Split(of, "+"), w) })
	}
	return every(owed.Inspect, required.Inspect) && every(owed.Verify, required.Verify) &&
		(required.Log == "" || owed.Log == required.Log) &&
		(required.Rate == "" || owed.RatePerSecond() > 0 && owed.RatePerSecond() <= required.RatePerSecond()) &&
		(!required.Whole || owed.Whole) && (!required.Witness || owed.Witness) && (!required.Provenance || owed.Provenance) && owed.Assurance >= required.Assurance
}

// refute compiles the declarations for the imaginary workloads, and looks for a witness that
// breaks its obligation.
func refute(in compile.Input, witnesses []witness) string {
	plain, named := make([]witness, 0, len(witnesses)), []witness(nil)
	for _, w := range witnesses {
		if w.name == "" {
			plain = append(plain, w)
		} else {
			named = append(named, w)
		}
	}
	if counter := refuteAll(in, plain); counter != "" || len(named) == 0 {
		return counter
	}
	return refuteAll(withoutRefusals(in), named)
}

func refuteAll(in compile.Input, witnesses []witness) string {
	for len(witnesses) > 0 {
		world := newWorld(in, witnesses)
		var held []witness
		var flows []bocage.Flow
		unplaced := witnesses[:0:0]
		for _, w := range witnesses {
			if flow, placed := world.place(w); placed {
				held, flows = append(held, w), append(flows, flow)
			} else {
				unplaced = append(unplaced, w)
			}
		}
		rs := compile.Compile(world.in).Ruleset()
		for i, w := range held {
			_, reason := rs.Decide(flows[i])
			as := ""
			if w.name != "" {
				_, reason = rs.DecideNamed(flows[i], w.name)
				as = " as " + string(w.name)
			}
			d, _ := rs.Decision(reason.Decision)
			if !w.obligation.holds(d, reason.Would.Allowed()) {
				return fmt.Sprintf("a flow from %s to %s%s %s/%d would get %s%s, against Guardrail %s %s", w.from, w.to, as, w.protocol, w.port,
					reason.Would, by(d), w.obligation.guardrail.Name, w.obligation.field)
			}
		}
		if len(unplaced) == len(witnesses) {
			break // cannot be: an empty world takes at least one
		}
		witnesses = unplaced
	}
	return ""
}

func (e imaginedEnd) String() string {
	if e.outside {
		return e.address.String()
	}
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(e.labels)) {
		pairs = append(pairs, key+"="+e.labels[key])
	}
	return "a workload with " + strings.Join(pairs, ", ")
}

// world is a data center of imaginary workloads.
type world struct {
	in      compile.Input
	names   map[string]bool
	outside map[netip.Addr]bool // where no workload may be
	next    uint32
	placed  map[placeKey]netip.Addr
}

// placeKey is an end in one address family.
type placeKey struct {
	figure endKey
	four   bool
}

func newWorld(in compile.Input, witnesses []witness) *world {
	m := &world{in: in, names: map[string]bool{}, outside: map[netip.Addr]bool{}, placed: map[placeKey]netip.Addr{}}
	for _, w := range witnesses {
		m.outside[w.from.address], m.outside[w.to.address] = true, true
	}
	return m
}

// place puts the ends of a witness into the world; false if a name is taken there.
func (m *world) place(w witness) (bocage.Flow, bool) {
	flow := bocage.Flow{Protocol: w.protocol, DestinationPort: w.port, At: m.in.Now}
	four := w.from.address.Is4() || w.to.address.Is4()
	for _, end := range []imaginedEnd{w.from, w.to} {
		if _, there := m.placed[placeKey{end.key, four}]; there {
			continue
		}
		if name := end.labels[bocage.LabelName]; name != "" && m.names[end.labels[bocage.LabelNamespace]+"/"+name] {
			return flow, false
		}
	}
	flow.Source, flow.Destination = w.from.address, w.to.address
	if !w.from.outside {
		flow.Source = m.workload(w.from, four)
	}
	if !w.to.outside {
		flow.Destination = m.workload(w.to, four)
	}
	return flow, true
}

// address makes one that no workload has.
func (m *world) address(four bool) netip.Addr {
	m.next++
	n := m.next
	if four {
		return netip.AddrFrom4([4]byte{100, 64 | byte(n>>16)&63, byte(n >> 8), byte(n)})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0xb0, 0xca, 15: byte(n), 14: byte(n >> 8), 13: byte(n >> 16), 12: byte(n >> 24)})
}

// workload makes an imagined end real and returns its address.
func (m *world) workload(end imaginedEnd, four bool) netip.Addr {
	at := placeKey{end.key, four}
	if address, there := m.placed[at]; there {
		return address
	}
	address := m.address(four)
	for m.outside[address] {
		address = m.address(four)
	}
	n := m.next
	w := &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: end.labels[bocage.LabelNamespace], Name: end.labels[bocage.LabelName], Labels: map[string]string{}},
		Spec:   bocage.WorkloadSpec{Host: "imagined", Interface: fmt.Sprintf("i%d", n), Addresses: []netip.Addr{address}},
		Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(n), Assurance: "L5"}}
	if w.Name == "" {
		w.Name = fmt.Sprintf("imagined-%d", n)
	}
	for key, value := range end.labels {
		switch key {
		case bocage.LabelNamespace, bocage.LabelName:
		case bocage.LabelHost:
			w.Spec.Host = value
		case bocage.LabelAssurance:
			w.Status.Assurance = value
		case bocage.LabelZone: // of the host
		default:
			w.Labels[key] = value
		}
	}
	if end.key.template != nil {
		m.placed[at] = address
	}
	m.names[w.NamespacedName()] = true
	m.in.Workloads = append(m.in.Workloads, w)
	return address
}
