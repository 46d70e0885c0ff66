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
	threats   []*bocage.ThreatCondition // in the order of their names
	enforce   bool
	offers    []offer
	// block is the longest that somebody asks for and that holds the members'
	// addresses which make them members: a workload whose addresses differ in that
	// is several subjects.
	block netip.Prefix
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
	byBlock   map[netip.Prefix][]int32
	byPort    map[string][]int32 // groups of workloads that have a port of the name
	blocks    []netip.Prefix     // the keys of byBlock, sorted
	named     map[string][]int32 // "namespace/name" of a workload -> its subjects
	asked     *asked

	zones      map[string]string // host -> the Zone that it stands in
	addresses  map[string]*bocage.AddressGroup
	namespaces map[string]*bocage.Namespace // those that were declared
}

func populate(in *admitted, findings *findings) *population {
	p := &population{
		byLabel: map[label][]int32{},
		byPlace: map[string][]int32{},
		byBlock: map[netip.Prefix][]int32{},
		byPort:  map[string][]int32{},
		named:   make(map[string][]int32, len(in.workloads)),

		zones:      zonesByHost(in.zones),
		addresses:  byName(in.addressGroups),
		namespaces: byName(in.namespaces),
	}
	p.subjects = append(p.subjects, subject{key: "world", name: "world", group: bocage.GroupWorld})
	p.addPrefixes(in, findings)
	p.workloads = len(p.subjects)
	p.addWorkloads(in, findings)
	p.applyScopes(in.scopes)
	p.number()
	return p
}

// zonesByHost tells which zone each host stands in: of two that name it, the
// first by name.
func zonesByHost(zones []*bocage.Zone) map[string]string {
	out := map[string]string{}
	for _, z := range zones {
		for _, host := range z.Spec.Hosts {
			if _, taken := out[host]; !taken {
				out[host] = z.Name
			}
		}
	}
	return out
}

// byName indexes cluster-wide objects.
func byName[T bocage.Resource](list []T) map[string]T {
	out := make(map[string]T, len(list))
	for _, o := range list {
		out[o.Meta().Name] = o
	}
	return out
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
	in.eachKubernetesPrefix(func(prefix netip.Prefix) {
		// Blocks of addresses stand for workloads too: see within.
		if prefix = canonicalPrefix(prefix); prefix.IsValid() && (!prefix.IsSingleIP() || taken[prefix.Addr()] == nil) {
			prefixes = append(prefixes, prefix)
		}
	})
	slices.SortFunc(prefixes, comparePrefixes)
	for _, prefix := range slices.Compact(prefixes) {
		p.subjects = append(p.subjects, subject{key: "prefix " + prefix.String(), name: prefix.String(), prefix: prefix})
	}
}

// eachPrefix visits every external prefix in the declarations.
func eachPrefix(in *admitted, visit func(bocage.Ref, netip.Prefix)) {
	groups := byName(in.addressGroups)
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
	side := func(ref bocage.Ref, s bocage.Side) {
		at := ref.Field
		ref.Field = at + ".external"
		all(ref, s.External)
		ref.Field = at + ".addressGroups"
		for _, name := range s.AddressGroups {
			if group := groups[name]; group != nil {
				all(ref, group.Spec.Addresses)
			}
		}
	}
	match := func(kind string, o bocage.Resource, at string, m bocage.CellMatch) {
		side(Ref(kind, o, at+".from"), m.From)
		side(Ref(kind, o, at+".to"), m.To)
	}
	for _, g := range in.guardrails {
		spec := g.InForce()
		if spec == nil {
			continue
		}
		match("Guardrail", g, "spec.match", spec.Match)
		for i, m := range spec.Never {
			match("Guardrail", g, field("spec.never", i), m)
		}
		for i, m := range spec.Grant {
			match("Guardrail", g, field("spec.grant", i), m)
		}
		for i, m := range spec.Protect {
			match("Guardrail", g, field("spec.protect", i), m)
		}
		if spec.BlastRadius != nil {
			side(Ref("Guardrail", g, "spec.blastRadius.from"), spec.BlastRadius.From)
		}
	}
	for _, e := range in.exceptions {
		match("Exception", e, "spec.match", e.Spec.Match)
	}
	for _, r := range in.responses {
		for i, cell := range r.Spec.Then.RefuseFrom {
			side(Ref("Response", r, field("spec.then.refuseFrom", i)+".peer"), cell.Peer)
		}
		for i, cell := range r.Spec.Then.RefuseTo {
			side(Ref("Response", r, field("spec.then.refuseTo", i)+".peer"), cell.Peer)
		}
	}
	for _, d := range in.decoys {
		side(Ref("Decoy", d, "spec.from"), d.Spec.From)
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
	p.asked = asked
	threats := conditionsByWorkload(in, findings)
	byKey := map[string]int32{}
	var pairs []string
	var key []byte
	for _, w := range in.workloads {
		zone := p.zones[w.Spec.Host]
		pairs = asked.answers(pairs[:0], w, zone)
		name := w.NamespacedName()
		alike := len(pairs)
		for at, address := range w.Spec.Addresses {
			block := asked.blockAt(address)
			if slices.ContainsFunc(w.Spec.Addresses[:at], func(a netip.Addr) bool { return asked.blockAt(a) == block }) {
				continue
			}
			if pairs = pairs[:alike]; block.IsValid() {
				pairs = append(pairs, "in "+block.String())
			}
			key = append(append(key[:0], "workloads "...), w.Namespace...)
			for _, pair := range pairs {
				key = append(append(key, ' '), pair...)
			}
			for _, t := range threats[name] {
				if t.Spec.Workload == "" {
					continue // it concerns all that answer alike where they stand
				}
				key = append(append(append(append(key, " threat "...), t.Name...), ' '), t.Spec.Level...)
				key = append(append(key, ' '), t.Spec.Profile...)
			}
			i, known := byKey[string(key)]
			if !known {
				i = int32(len(p.subjects))
				byKey[string(key)] = i
				p.subjects = append(p.subjects, subject{
					key: string(key), name: groupName(w.Namespace, pairs, threats[name]),
					namespace: w.Namespace, labels: w.LabelsIn(zone), threats: threats[name], block: block,
				})
			}
			p.subjects[i].members = append(p.subjects[i].members, w)
		}
	}
	// Members came in the order of their names; the order of subjects must not
	// depend on who is first of them.
	slices.SortFunc(p.subjects[p.workloads:], func(a, b subject) int { return cmp.Compare(a.key, b.key) })
	for i := p.workloads; i < len(p.subjects); i++ {
		s := &p.subjects[i]
		p.byPlace[s.namespace] = append(p.byPlace[s.namespace], int32(i))
		for key, value := range s.labels {
			if asked.which[key] || asked.values[label{key, value}] || key == bocage.LabelNamespace {
				p.byLabel[label{key, value}] = append(p.byLabel[label{key, value}], int32(i))
			}
		}
		if s.block.IsValid() {
			p.byBlock[s.block] = append(p.byBlock[s.block], int32(i))
		}
		for j, port := range s.members[0].Spec.Ports {
			again := slices.ContainsFunc(s.members[0].Spec.Ports[:j], func(q bocage.NamedPort) bool { return q.Name == port.Name })
			if asked.ports[port.Name] && !again {
				p.byPort[port.Name] = append(p.byPort[port.Name], int32(i))
			}
		}
		for _, w := range s.members {
			name := w.NamespacedName()
			p.named[name] = append(p.named[name], int32(i))
		}
	}
	for block := range p.byBlock {
		p.blocks = append(p.blocks, block)
	}
	slices.SortFunc(p.blocks, comparePrefixes)
}

func groupName(namespace string, pairs []string, threats []*bocage.ThreatCondition) string {
	name := namespace
	for _, pair := range pairs {
		name += " " + pair
	}
	for _, t := range threats {
		if t.Spec.Workload == "" {
			continue
		}
		name += " (" + string(t.Spec.Level) + ": " + t.Name + ")"
	}
	return name
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

// matchNamespaced returns the groups of workloads whose namespace's labels and
// own labels the selectors (nil: all) pick, sorted.
func (p *population) matchNamespaced(namespace, workload *bocage.Selector) []int32 {
	if namespace == nil || emptySelector(*namespace) {
		return p.match(nil, workload)
	}
	var namespaces []string
	for name := range p.byPlace {
		if namespace.Matches(p.labelsOf(name)) {
			namespaces = append(namespaces, name)
		}
	}
	if len(namespaces) == 0 {
		return nil
	}
	slices.Sort(namespaces)
	return p.match(namespaces, workload)
}

// labelsOf returns the labels of a namespace, declared or not.
func (p *population) labelsOf(namespace string) map[string]string {
	if declared := p.namespaces[namespace]; declared != nil {
		return declared.AllLabels()
	}
	return map[string]string{bocage.LabelNamespaceName: namespace}
}

// under returns the named prefixes inside any of the given ones: a longer prefix
// inherits what is said of a shorter one.
func (p *population) under(prefixes []netip.Prefix) []int32 {
	var out []int32
	for _, outer := range prefixes {
		outer = canonicalPrefix(outer)
		first, _ := slices.BinarySearchFunc(p.subjects[1:p.workloads], outer, func(s subject, q netip.Prefix) int { return comparePrefixes(s.prefix, q) })
		for i := first + 1; i < p.workloads && outer.Contains(p.subjects[i].prefix.Addr()); i++ {
			out = append(out, int32(i))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// within returns everyone in a block of addresses that somebody asks for: the
// named prefixes inside it, and the groups of workloads with an address in it.
func (p *population) within(block netip.Prefix) []int32 {
	block = canonicalPrefix(block)
	out := p.under([]netip.Prefix{block})
	first, _ := slices.BinarySearchFunc(p.blocks, block, comparePrefixes)
	for _, inner := range p.blocks[first:] {
		if !block.Contains(inner.Addr()) {
			break
		}
		out = append(out, p.byBlock[inner]...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// namedPort is what a name means for some of the workloads.
type namedPort struct {
	ports  ports
	groups []int32
}

// portsNamed returns what a port's name means, by the groups of workloads that
// have it, for one protocol (empty: whichever).
func (p *population) portsNamed(name, protocol string) []namedPort {
	var out []namedPort
	byPorts := map[string]int{}
	for _, i := range p.byPort[name] {
		var found ports
		for _, port := range p.subjects[i].members[0].Spec.Ports {
			if port.Name == name && (protocol == "" || protocolName(port.Protocol) == protocol) {
				found = found.join(transport(port.Port, 0, port.Protocol))
			}
		}
		if found.empty() {
			continue
		}
		at, known := byPorts[found.key()]
		if !known {
			at = len(out)
			byPorts[found.key()] = at
			out = append(out, namedPort{ports: found})
		}
		out[at].groups = append(out[at].groups, i)
	}
	return out
}

// pods returns the groups of workloads of Kubernetes and the groups of others.
func (p *population) pods() (pods, others []int32) {
	for i := p.workloads; i < len(p.subjects); i++ {
		if p.subjects[i].members[0].Spec.Orchestrator == bocage.OrchestratorKubernetes {
			pods = append(pods, int32(i))
		} else {
			others = append(others, int32(i))
		}
	}
	return pods, others
}

// concerned returns the groups of workloads that a threat condition concerns.
func (p *population) concerned(t *bocage.ThreatCondition) []int32 {
	switch {
	case t.Spec.All:
		return p.all()
	case t.Spec.Zone != "":
		return p.match(nil, &bocage.Selector{MatchLabels: map[string]string{bocage.LabelZone: t.Spec.Zone}})
	}
	return p.named[t.Spec.Workload]
}

// addressesOf lists those of a member that make it one of the subject.
func (p *population) addressesOf(s *subject, w *bocage.Workload) []netip.Addr {
	if len(p.asked.blocks) == 0 {
		return w.Spec.Addresses
	}
	var out []netip.Addr
	for _, address := range w.Spec.Addresses {
		if p.asked.blockAt(address) == s.block {
			out = append(out, address)
		}
	}
	return out
}

// assurance is how the subject's members are vouched for; outside the inventory
// nobody is.
func (s *subject) assurance() string { return s.labels[bocage.LabelAssurance] }

// side resolves one end of a corporate declaration, its data classes apart.
// Unknown address groups name nobody.
func (p *population) side(s bocage.Side) side {
	switch {
	case len(s.External) > 0 || len(s.AddressGroups) > 0:
		prefixes := slices.Clone(s.External)
		for _, name := range s.AddressGroups {
			if group := p.addresses[name]; group != nil {
				prefixes = append(prefixes, group.Spec.Addresses...)
			}
		}
		return side{list: p.under(prefixes)}
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
