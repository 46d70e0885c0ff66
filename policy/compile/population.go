package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"bocage.dev/bocage"
)

// Subject numbers index population.subjects: first the world, then the named
// prefixes, then the groups of workloads.
const worldSubject = 0

// subject is what policy cannot tell apart: the world, one named prefix, or
// workloads of one namespace, alike in every label that some selector asks for
// and under the same threat conditions.
type subject struct {
	key    string // names it in one canonical way; its group number is a hash of it
	name   string // for people
	group  bocage.Group
	prefix netip.Prefix // of a named prefix

	namespace string
	labels    map[string]string // of the first member: all members answer selectors alike
	members   []*bocage.Workload
	threats   []*bocage.ThreatCondition
	enforce   bool
	offers    []offer
}

// offer is one interface that a subject's workloads offer.
type offer struct {
	data  []string
	ports ports
}

// population is everyone, as policy sees them.
type population struct {
	subjects  []subject
	workloads int // index of the first group of workloads
	byLabel   map[label][]int32
	byPlace   map[string][]int32 // namespace -> groups of workloads
	named     map[string]int32   // "namespace/name" of a workload -> its subject
}

type label struct{ key, value string }

func populate(in *admitted, findings *findings) *population {
	p := &population{
		byLabel: map[label][]int32{},
		byPlace: map[string][]int32{},
		named:   make(map[string]int32, len(in.workloads)),
	}
	p.subjects = append(p.subjects, subject{key: "world", name: "world", group: bocage.GroupWorld})
	p.addPrefixes(in, findings)
	p.workloads = len(p.subjects)
	p.addWorkloads(in, findings)
	p.applyScopes(in.scopes)
	p.number()
	return p
}

// addPrefixes makes a subject of every prefix that somebody names, so that
// longest-prefix matching finds the most precise one.
func (p *population) addPrefixes(in *admitted, findings *findings) {
	taken := make(map[netip.Addr]*bocage.Workload, len(in.workloads))
	for _, w := range in.workloads {
		for _, addr := range w.Spec.Addresses {
			taken[addr] = w
		}
	}
	var prefixes []netip.Prefix
	eachPrefix(in, func(ref bocage.Ref, prefix netip.Prefix) {
		prefix = canonicalPrefix(prefix)
		if w := taken[prefix.Addr()]; w != nil && prefix.IsSingleIP() {
			findings.note(ref, InInventory, "%s is the workload %s: prefixes stand for addresses outside the inventory; select it by label instead",
				prefix, w.NamespacedName())
			return
		}
		prefixes = append(prefixes, prefix)
	})
	slices.SortFunc(prefixes, comparePrefixes)
	for _, prefix := range slices.Compact(prefixes) {
		p.subjects = append(p.subjects, subject{key: "prefix " + prefix.String(), name: prefix.String(), prefix: prefix})
	}
}

// eachPrefix visits every external prefix in the declarations.
func eachPrefix(in *admitted, visit func(bocage.Ref, netip.Prefix)) {
	all := func(ref bocage.Ref, prefixes []netip.Prefix) {
		for _, prefix := range prefixes {
			visit(ref, prefix)
		}
	}
	for _, a := range in.applications {
		for i, provide := range a.Spec.Provides {
			all(Ref("Application", a, field("spec.provides", i)+".toExternal"), provide.ToExternal)
		}
		for i, consume := range a.Spec.Consumes {
			if consume.External.IsValid() {
				visit(Ref("Application", a, field("spec.consumes", i)+".external"), consume.External)
			}
		}
	}
	for _, g := range in.guardrails {
		match := func(at string, m bocage.CellMatch) {
			all(Ref("Guardrail", g, at+".from.external"), m.From.External)
			all(Ref("Guardrail", g, at+".to.external"), m.To.External)
		}
		match("spec.match", g.Spec.Match)
		for i, m := range g.Spec.Never {
			match(field("spec.never", i), m)
		}
		for i, m := range g.Spec.Grant {
			match(field("spec.grant", i), m)
		}
	}
	for _, d := range in.decoys {
		all(Ref("Decoy", d, "spec.from.external"), d.Spec.From.External)
	}
}

// canonicalPrefix writes IPv4-mapped prefixes as IPv4: addresses are compared so.
func canonicalPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// addWorkloads divides the workloads into subjects.
func (p *population) addWorkloads(in *admitted, findings *findings) {
	asked := questions(in)
	threats := conditionsByWorkload(in, findings)
	byKey := map[string]int32{}
	var pairs []string
	var key []byte
	for _, w := range in.workloads {
		pairs = asked.answers(pairs[:0], w)
		name := w.NamespacedName()
		key = append(append(key[:0], "workloads "...), w.Namespace...)
		for _, pair := range pairs {
			key = append(append(key, ' '), pair...)
		}
		for _, t := range threats[name] {
			key = append(append(append(append(key, " threat "...), t.Name...), ' '), t.Spec.Level...)
			key = append(append(key, ' '), t.Spec.Profile...)
		}
		i, known := byKey[string(key)]
		if !known {
			i = int32(len(p.subjects))
			byKey[string(key)] = i
			p.subjects = append(p.subjects, subject{
				key: string(key), name: groupName(w.Namespace, pairs, threats[name]),
				namespace: w.Namespace, labels: w.AllLabels(), threats: threats[name],
			})
		}
		p.subjects[i].members = append(p.subjects[i].members, w)
		p.named[name] = i
	}
	// Members came in the order of their names; the order of subjects must not
	// depend on who is first of them.
	slices.SortFunc(p.subjects[p.workloads:], func(a, b subject) int { return cmp.Compare(a.key, b.key) })
	for i := p.workloads; i < len(p.subjects); i++ {
		s := &p.subjects[i]
		p.byPlace[s.namespace] = append(p.byPlace[s.namespace], int32(i))
		for key, value := range s.labels {
			if asked.values[label{key, value}] || key == bocage.LabelNamespace {
				p.byLabel[label{key, value}] = append(p.byLabel[label{key, value}], int32(i))
			}
		}
		for _, w := range s.members {
			p.named[w.NamespacedName()] = int32(i)
		}
	}
}

func groupName(namespace string, pairs []string, threats []*bocage.ThreatCondition) string {
	name := namespace
	for _, pair := range pairs {
		name += " " + pair
	}
	for _, t := range threats {
		name += " (" + string(t.Spec.Level) + ": " + t.Name + ")"
	}
	return name
}

// asked is what all selectors together ask about labels.
type asked struct {
	values  map[label]bool  // is this key this value?
	exists  map[string]bool // is this key there?
	anyName bool            // somebody asks for workloads' names
}

func questions(in *admitted) *asked {
	q := &asked{values: map[label]bool{}, exists: map[string]bool{}}
	for _, a := range in.applications {
		q.selector(&a.Spec.Workload)
		for i := range a.Spec.Provides {
			q.selector(&a.Spec.Provides[i].To)
		}
	}
	for _, g := range in.guardrails {
		q.match(&g.Spec.Match)
		for i := range g.Spec.Never {
			q.match(&g.Spec.Never[i])
		}
		for i := range g.Spec.Grant {
			q.match(&g.Spec.Grant[i])
		}
	}
	for _, s := range in.scopes {
		q.selector(&s.Spec.Workload)
	}
	for _, d := range in.decoys {
		q.selector(d.Spec.For.Workload)
		q.selector(d.Spec.From.Workload)
	}
	return q
}

func (q *asked) match(m *bocage.CellMatch) {
	q.selector(m.From.Workload)
	q.selector(m.To.Workload)
}

func (q *asked) selector(s *bocage.Selector) {
	if s == nil {
		return
	}
	for key, value := range s.MatchLabels {
		q.values[label{key, value}] = true
		q.anyName = q.anyName || key == bocage.LabelName
	}
	for _, r := range s.MatchExpressions {
		for _, value := range r.Values {
			q.values[label{r.Key, value}] = true
		}
		if len(r.Values) == 0 {
			q.exists[r.Key] = true
		}
		q.anyName = q.anyName || r.Key == bocage.LabelName
	}
}

// answers appends what the workload answers, sorted: equal answers make
// workloads equal before every selector.
func (q *asked) answers(pairs []string, w *bocage.Workload) []string {
	for key, value := range w.Labels {
		switch {
		case key == bocage.LabelNamespace || key == bocage.LabelName:
		case q.values[label{key, value}]:
			pairs = append(pairs, key+"="+value)
		case q.exists[key]:
			pairs = append(pairs, key)
		}
	}
	if q.anyName && q.values[label{bocage.LabelName, w.Name}] {
		pairs = append(pairs, bocage.LabelName+"="+w.Name)
	}
	slices.Sort(pairs)
	return pairs
}

// applyScopes marks the subjects whose refusals are enforced.
func (p *population) applyScopes(scopes []*bocage.Scope) {
	for _, scope := range scopes {
		if scope.Spec.Mode != bocage.ModeEnforce {
			continue
		}
		for _, i := range p.match(scope.Spec.Namespaces, &scope.Spec.Workload) {
			p.subjects[i].enforce = true
		}
	}
}

// match returns the groups of workloads in the namespaces (none: all) that the
// selector (nil: all) picks, sorted. It starts from the rarest label that is
// asked for, so that its cost follows what it finds.
func (p *population) match(namespaces []string, s *bocage.Selector) []int32 {
	if s == nil {
		s = &bocage.Selector{}
	}
	candidates, narrowed := p.candidates(s)
	if len(namespaces) > 0 {
		if size := p.sizeOf(namespaces); !narrowed || size < len(candidates) {
			candidates = p.in(namespaces)
			narrowed = true
		}
	}
	if !narrowed {
		candidates = p.all()
	}
	out := make([]int32, 0, min(len(candidates), 16))
	for _, i := range candidates {
		subject := &p.subjects[i]
		if (len(namespaces) == 0 || slices.Contains(namespaces, subject.namespace)) && s.Matches(subject.labels) {
			out = append(out, i)
		}
	}
	return out
}

func (p *population) candidates(s *bocage.Selector) (least []int32, found bool) {
	consider := func(groups []int32) {
		if !found || len(groups) < len(least) {
			least, found = groups, true
		}
	}
	for key, value := range s.MatchLabels {
		consider(p.byLabel[label{key, value}])
	}
	for _, r := range s.MatchExpressions {
		if r.Operator == "In" && len(r.Values) == 1 {
			consider(p.byLabel[label{r.Key, r.Values[0]}])
		}
	}
	return least, found
}

func (p *population) sizeOf(namespaces []string) int {
	size := 0
	for _, ns := range namespaces {
		size += len(p.byPlace[ns])
	}
	return size
}

// in returns the groups of the namespaces, sorted and once each.
func (p *population) in(namespaces []string) []int32 {
	if len(namespaces) == 1 {
		return p.byPlace[namespaces[0]]
	}
	var out []int32
	for _, ns := range namespaces {
		out = append(out, p.byPlace[ns]...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p *population) all() []int32 {
	out := make([]int32, 0, len(p.subjects)-p.workloads)
	for i := p.workloads; i < len(p.subjects); i++ {
		out = append(out, int32(i))
	}
	return out
}

// under returns the named prefixes inside any of the given ones: a longer prefix
// inherits what is said of a shorter one.
func (p *population) under(prefixes []netip.Prefix) []int32 {
	var out []int32
	for i := 1; i < p.workloads; i++ {
		inner := p.subjects[i].prefix
		for _, outer := range prefixes {
			if outer = canonicalPrefix(outer); outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr()) {
				out = append(out, int32(i))
				break
			}
		}
	}
	return out
}

// side resolves one end of a corporate declaration, its data classes apart.
func (p *population) side(s bocage.Side) side {
	switch {
	case len(s.External) > 0:
		return side{list: p.under(s.External)}
	case len(s.Namespaces) > 0 || s.Workload != nil:
		return side{list: p.match(s.Namespaces, s.Workload)}
	case len(s.Data) > 0:
		return side{list: p.all()}
	default:
		return side{any: true}
	}
}

// side is a set of subjects, or every one, those included that nobody has named.
type side struct {
	any  bool
	list []int32 // sorted
}

func (s side) empty() bool { return !s.any && len(s.list) == 0 }

func (s side) contains(i int32) bool {
	if s.any {
		return true
	}
	_, found := slices.BinarySearch(s.list, i)
	return found
}

func (s side) meet(o side) side {
	switch {
	case s.any:
		return o
	case o.any:
		return s
	}
	return side{list: intersect(s.list, o.list)}
}

// intersect returns what two sorted lists share.
func intersect(a, b []int32) []int32 {
	if len(a) > len(b) {
		a, b = b, a
	}
	var out []int32
	for _, x := range a {
		i, found := slices.BinarySearch(b, x)
		if found {
			out = append(out, x)
		}
		b = b[i:]
	}
	return out
}

func field(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }
