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

// A proof about the workloads that are there ages with the next one that comes.
// So the guardrails are proved for label sets too that nobody has yet: for every
// declaration that allows and every guardrail that it could meet, a solver looks
// for a flow between two imagined ends that both are about, and the compiler has
// to refuse it, or to make it owe what the guardrail requires. Within one such
// pair of declarations all flows are alike to the compiler, so one speaks for all.

// mostPairs bounds the pairs of declarations that one proof looks at anew. What
// is left over is looked at with the next change of declarations, and the proof says so.
const mostPairs = 20_000

// mostLeftOver bounds those of them that were left over before: who declared
// something else waits for what is about it, and for little more.
const mostLeftOver = 2_000

// future remembers the last proof, which depends on declarations alone, and of
// which pairs of declarations it is made. What was shown of a pair stays shown
// while both are as they were: other declarations can only refuse more and add
// duties.
type future struct {
	known bool
	last  compile.Input
	met   map[string]*met // by what allows
	// shownOf holds the objects that met names by their addresses, so that no
	// other object can come to have one of those.
	shownOf compile.Input
	proof   bocage.Proof
}

// obligation is what a guardrail says of the flows in a box.
type obligation struct {
	guardrail *bocage.Guardrail
	field     string
	cells     box
	differ    string // a label in which the ends differ, if not empty
	excuses   []box
	excepted  []*bocage.Exception // that excuses are of
	holds     func(d bocage.Decision, allowed bool) bool
}

// witness is an imagined flow that an obligation and an allowing declaration are
// about.
type witness struct {
	obligation *obligation
	from, to   imagined
	name       bocage.DomainName // by which the source knows the destination; empty: by none
	protocol   bocage.Protocol
	port       uint16
}

// imagined is an end that does not exist.
type imagined struct {
	outside bool
	address netip.Addr        // of an outside end
	labels  map[string]string // of a workload
}

// allowing is a declaration that allows the flows in a box.
type allowing struct {
	by    bocage.Ref
	cells box
	// called is a name of the destination, if that is what is allowed.
	called bocage.DomainName
	// objects are all that the box depends on, but for what besides tells.
	objects []bocage.Resource
	besides string
}

// prove says whether the guardrails hold for workloads to come.
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

// met is what was shown of one declaration that allows: with which obligations it
// could meet.
type met struct {
	shown    map[string]bool // by obligation; whether a flow was possible
	possible int             // how many were
	named    bool            // towards a DNS name
	left     bool            // some obligation was not looked at
}

// refresh proves what is new. Where guardrails and all that names refer to are what
// they were, a declaration that is what it was, and of which nothing was left over,
// meets nothing else than before.
func (v *future) refresh(in compile.Input) bocage.Proof {
	words := vocabularyOf(in)
	owed := obligations(in)
	before := objectsOf(v.shownOf)
	begun := v.known && v.met != nil
	stays := begun && sameSurroundings(v.shownOf, in)
	var witnesses []witness
	all := map[string]*met{}
	anew, again := 0, 0
	look := func(o *obligation, a allowing, near *vocabulary) bool {
		fresh := !begun || !before[o.guardrail] || slices.ContainsFunc(o.excepted, func(e *bocage.Exception) bool { return !before[e] }) ||
			slices.ContainsFunc(a.objects, func(o bocage.Resource) bool { return !before[o] }) ||
			slices.ContainsFunc(near.objects, func(o bocage.Resource) bool { return !before[o] })
		if !fresh {
			again++ // it was left over
		}
		return anew < mostPairs && (fresh || again <= mostLeftOver)
	}
	for _, a := range allowings(in) {
		name := a.name()
		was := v.met[name]
		if stays && was != nil && (!was.left || again >= mostLeftOver) {
			all[name] = was
			continue
		}
		now := &met{shown: map[string]bool{}, named: a.called != ""}
		all[name] = now
		for _, o := range owed {
			if apart(o.cells, a.cells) {
				continue
			}
			near := words.near(o, a)
			key := pairKey(o, near)
			could, seen := false, false
			if was != nil {
				could, seen = was.shown[key]
			}
			if !seen {
				if !look(o, a, near) {
					now.left = true
					continue
				}
				var w witness
				anew++
				if w, could = imagine(near, o, a); could {
					witnesses = append(witnesses, w)
				}
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
	return proof(told(all), whole("future"), counter)
}

// told says how much was looked at.
func told(all map[string]*met) string {
	statement := "the guardrails hold for workloads to come"
	pairs, possible, named, left := 0, 0, 0, 0
	for _, m := range all {
		pairs, possible = pairs+len(m.shown), possible+m.possible
		if m.named {
			named += m.possible
		}
		if m.left {
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

// sameSurroundings reports whether everything but who allows is what it was: the
// guardrails, what excepts from them, and what their classes of data and groups of
// addresses mean.
func sameSurroundings(a, b compile.Input) bool {
	offering := func(list []*bocage.Application) []*bocage.Application {
		return slices.DeleteFunc(slices.Clone(list), func(a *bocage.Application) bool {
			return !slices.ContainsFunc(a.Spec.Provides, func(p bocage.Provide) bool { return len(p.Data) > 0 })
		})
	}
	return slices.Equal(a.Guardrails, b.Guardrails) && slices.Equal(a.Exceptions, b.Exceptions) &&
		slices.Equal(a.AddressGroups, b.AddressGroups) && slices.Equal(a.Zones, b.Zones) && slices.Equal(offering(a.Applications), offering(b.Applications))
}

// objectsOf are the declarations that pairs are made of.
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

// name names what allows by the objects that it depends on. Nobody changes objects.
func (a *allowing) name() string {
	b := []byte(a.by.String() + " " + a.besides)
	for _, object := range a.objects {
		b = fmt.Appendf(b, " %p", object)
	}
	return string(b)
}

// pairKey names what an obligation depends on, next to something that allows.
func pairKey(o *obligation, near *vocabulary) string {
	b := fmt.Appendf(nil, "%p %s", o.guardrail, o.field)
	for _, e := range o.excepted {
		b = fmt.Appendf(b, " %p", e)
	}
	for _, object := range near.objects {
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

// allowings lists every declaration that can allow something.
func allowings(in compile.Input) []allowing {
	var out []allowing
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
					to = anywhere() // whoever answers for the name says where it is
				}
				out = append(out, allowing{by: ref, called: anyOf(c.External.Name), objects: []bocage.Resource{a}, cells: box{from: []bocage.Side{self}, to: []bocage.Side{{External: to}},
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
				out = append(out, allowing{by: ref, objects: []bocage.Resource{a, provider}, cells: box{from: []bocage.Side{self, open},
					to:    []bocage.Side{{Namespaces: []string{provider.Namespace}, Workload: &provider.Spec.Workload}},
					ports: [][]bocage.PortMatch{{{Port: o.Port, EndPort: o.EndPort, Protocol: o.Protocol}}}}})
				out[len(out)-1].by.Field += " " + o.Name // a pair for each interface
			}
		}
		for i, o := range a.Spec.Provides {
			if len(o.ToExternal) > 0 {
				out = append(out, allowing{by: compile.Ref("Application", a, fmt.Sprintf("spec.provides[%d].toExternal", i)), objects: []bocage.Resource{a}, cells: box{
					from: []bocage.Side{{External: o.ToExternal}}, to: []bocage.Side{self},
					ports: [][]bocage.PortMatch{{{Port: o.Port, EndPort: o.EndPort, Protocol: o.Protocol}}}}})
			}
		}
	}
	for _, g := range byName(in.Guardrails) {
		if spec := g.InForce(); spec != nil {
			for i, grant := range spec.Grant {
				out = append(out, allowing{by: compile.Ref("Guardrail", g, fmt.Sprintf("spec.grant[%d]", i)), cells: boxOf(grant), objects: []bocage.Resource{g}})
			}
		}
	}
	if len(in.NetworkPolicies)+len(in.ClusterNetworkPolicies) > 0 {
		// What Kubernetes' policies leave open is open between Pods.
		every := bocage.Side{Workload: &bocage.Selector{}}
		out = append(out, allowing{by: bocage.Ref{Kind: "Namespace", Name: "kubernetes", Field: "default"}, cells: box{from: []bocage.Side{every}, to: []bocage.Side{every}}})
	}
	return append(out, acceptances(in)...)
}

// obligations lists what the guardrails say of cells.
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
			if e.Spec.Guardrail == g.Name { // admitted or not: what might be excused is left out
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
	return out
}

// apart reports, quickly, whether two boxes certainly share no flow.
func apart(a, b box) bool {
	for _, ends := range [2][2][]bocage.Side{{a.from, b.from}, {a.to, b.to}} {
		for n, sides := range ends {
			for i := range sides {
				if apartFrom(&sides[i], sides[:i]) || n == 1 && apartFrom(&sides[i], ends[0]) {
					return true
				}
			}
		}
	}
	return false
}

func apartFrom(x *bocage.Side, others []bocage.Side) bool {
	for i := range others {
		if sidesApart(x, &others[i]) {
			return true
		}
	}
	return false
}

func sidesApart(x, y *bocage.Side) bool {
	inside := func(s *bocage.Side) bool { return len(s.Namespaces) > 0 || s.Workload != nil || len(s.Data) > 0 }
	if x.Outside() && inside(y) || y.Outside() && inside(x) {
		return true
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

// imagine finds a flow that both are about and that nothing excuses.
func imagine(near *vocabulary, o *obligation, a allowing) (witness, bool) {
	f := newFormula(near)
	for _, b := range append([]box{o.cells, a.cells}, o.excuses...) {
		f.know(b)
	}
	f.cut()
	terms := []statement{f.in(o.cells), f.in(a.cells)}
	for _, e := range o.excuses {
		terms = append(terms, not(f.in(e)))
	}
	if o.differ != "" {
		f.exists(source, o.differ)
		terms = append(terms, f.differ(o.differ))
	}
	if a.called != "" {
		terms = append(terms, f.nameable())
	}
	model := f.solve(terms...)
	if model == nil {
		return witness{}, false
	}
	w := witness{obligation: o, name: a.called}
	for _, piece := range f.pieces {
		if model[pieceName(piece)] {
			w.protocol = piece.protocol
			if w.protocol.HasPorts() {
				w.port = piece.ports.First
			}
		}
	}
	if w.protocol.HasPorts() && w.port == 0 {
		w.port = 1
		for _, piece := range f.pieces {
			if piece.protocol == w.protocol && piece.ports.First == 0 && piece.ports.Last == 0 {
				w.port = 0
			}
		}
	}
	var ok, also bool
	w.from, ok = f.end(source, model)
	w.to, also = f.end(destination, model)
	return w, ok && also
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

// atLeast reports whether what is owed is no less than what is required.
func atLeast(owed, required bocage.Duties) bool {
	every := func(of, wanted string) bool {
		return wanted == "" || !slices.ContainsFunc(strings.Split(wanted, "+"), func(w string) bool { return !slices.Contains(strings.Split(of, "+"), w) })
	}
	return every(owed.Inspect, required.Inspect) && every(owed.Verify, required.Verify) &&
		(required.Log == "" || owed.Log == required.Log) &&
		(required.Rate == "" || owed.RatePerSecond() > 0 && owed.RatePerSecond() <= required.RatePerSecond()) &&
		(!required.Whole || owed.Whole) && (!required.Witness || owed.Witness) && (!required.Provenance || owed.Provenance) && owed.Assurance >= required.Assurance
}

// refute compiles the declarations for the imagined workloads and looks for a
// witness that gets what it must not.
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
		world := newImagination(in, witnesses)
		var held []witness
		var flows []bocage.Flow
		rest := witnesses[:0:0]
		for _, w := range witnesses {
			if flow, placed := world.place(w); placed {
				held, flows = append(held, w), append(flows, flow)
			} else {
				rest = append(rest, w)
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
		if len(rest) == len(witnesses) {
			break // cannot be: an empty world takes at least one
		}
		witnesses = rest
	}
	return ""
}

func (e imagined) String() string {
	if e.outside {
		return e.address.String()
	}
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(e.labels)) {
		pairs = append(pairs, key+"="+e.labels[key])
	}
	return "a workload with " + strings.Join(pairs, ", ")
}

// imagination is a data center of imagined workloads.
type imagination struct {
	in      compile.Input
	names   map[string]bool
	outside map[netip.Addr]bool // where no workload may be
	next    uint32
}

func newImagination(in compile.Input, witnesses []witness) *imagination {
	m := &imagination{in: in, names: map[string]bool{}, outside: map[netip.Addr]bool{}}
	for _, w := range witnesses {
		m.outside[w.from.address], m.outside[w.to.address] = true, true
	}
	return m
}

// place puts the ends of a witness into the world; false if a name is taken there.
func (m *imagination) place(w witness) (bocage.Flow, bool) {
	flow := bocage.Flow{Protocol: w.protocol, DestinationPort: w.port, At: m.in.Now}
	for _, end := range []imagined{w.from, w.to} {
		if name := end.labels[bocage.LabelName]; name != "" && m.names[end.labels[bocage.LabelNamespace]+"/"+name] {
			return flow, false
		}
	}
	four := w.from.address.Is4() || w.to.address.Is4()
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
func (m *imagination) address(four bool) netip.Addr {
	m.next++
	n := m.next
	if four {
		return netip.AddrFrom4([4]byte{100, 64 | byte(n>>16)&63, byte(n >> 8), byte(n)})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0xb0, 0xca, 15: byte(n), 14: byte(n >> 8), 13: byte(n >> 16), 12: byte(n >> 24)})
}

// workload makes an imagined end real and returns its address.
func (m *imagination) workload(end imagined, four bool) netip.Addr {
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
	m.names[w.NamespacedName()] = true
	m.in.Workloads = append(m.in.Workloads, w)
	return address
}
