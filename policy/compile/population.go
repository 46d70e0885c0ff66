package compile

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"bocage.dev/bocage"
)

// Subject numbers index population.subjects: first the world and the named
// prefixes, then the groups of workloads. Numbers are not in any order that
// means something, and those of subjects that are gone stay unused.
const worldSubject = 0

// subject is what policy cannot tell apart: the world, one named prefix, or
// workloads of one namespace, alike in every label that some selector asks for
// and under the same threat conditions.
type subject struct {
	key    string // names it in one canonical way; its group number is a hash of it
	name   string // for people
	group  bocage.Group
	prefix netip.Prefix // of a named prefix
	domain domain       // of a name in the DNS

	namespace string
	zone      string
	first     *bocage.Workload   // one of the members, who all answer alike, or the last that there was
	members   []*bocage.Workload // in the order of their names
	called    string             // the first member, while somebody has subjects in the order of names
	enforce   bool
	offers    []offer
	// block is the longest that somebody asks for and that holds the members'
	// addresses which make them members: a workload whose addresses differ in that
	// is several subjects.
	block netip.Prefix
}

// gone reports whether nobody is there any more.
func (s *subject) gone() bool { return s.key == "" }

// isWorkloads reports whether it is a group of workloads, or was.
func (s *subject) isWorkloads() bool { return s.first != nil }

// isDomain reports whether it is a name in the DNS.
func (s *subject) isDomain() bool { return s.domain != domain{} }

// offer is one interface that a subject's workloads offer.
type offer struct {
	data  []string
	ports ports
}

// population is everyone, as policy sees them.
type population struct {
	in        *admitted
	asked     *asked
	subjects  []subject
	workloads int     // the first number of a group of workloads
	spare     []int32 // unused numbers below it
	freed     []int32 // numbers below it that the last change freed
	byKey     map[string]int32
	byLabel   map[label][]int32
	byPlace   map[string][]int32 // namespace -> groups of workloads
	byBlock   map[netip.Prefix][]int32
	byPort    map[string][]int32     // groups of workloads that have a port of the name
	blocks    []netip.Prefix         // the keys of byBlock, sorted
	prefixes  []int32                // the named prefixes, sorted by prefix
	named     map[netip.Prefix]int32 // how often somebody names a prefix
	domains   domains
	renamed   map[netip.Prefix]bool // those that may not be named as they were; nil: all
	everyone  []int32               // the groups of workloads
	offering  []int32               // those of them that offer classes of data
	of        []int32               // by place of a workload: its subject
	shadowed  map[netip.Addr]int32  // how often somebody names an address that is a workload's
	also      map[int32][]int32     // its other subjects
	numbers   *numbering
	threats   map[string][]*bocage.ThreatCondition // of single workloads, by name
	picks     *picks                               // what selectors picked
	labels    *labelIndex

	orchestrated bool // some workload is a Pod
	key          []byte
	pairs        []string

	zones      map[string]string // host -> the Zone that it stands in
	addresses  map[string]*bocage.AddressGroup
	namespaces map[string]*bocage.Namespace // those that were declared
}

func newPopulation(in *admitted) *population {
	return &population{
		in:       in,
		asked:    newAsked(),
		byKey:    map[string]int32{},
		byLabel:  map[label][]int32{},
		byPlace:  map[string][]int32{},
		byBlock:  map[netip.Prefix][]int32{},
		byPort:   map[string][]int32{},
		named:    map[netip.Prefix]int32{},
		shadowed: map[netip.Addr]int32{},
		also:     map[int32][]int32{},
		picks:    newPicks(),

		zones:      zonesByHost(in.zones),
		addresses:  byName(in.addressGroups),
		namespaces: byName(in.namespaces),
	}
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

// canonicalPrefix writes IPv4-mapped prefixes as IPv4: addresses are compared so.
func canonicalPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func comparePrefixes(a, b netip.Prefix) int {
	if order := a.Addr().Compare(b.Addr()); order != 0 {
		return order
	}
	return cmp.Compare(a.Bits(), b.Bits())
}

// match returns the groups of workloads in the namespaces (none: all) that the
// selector (nil: all) picks, sorted. Nobody may change the list.
func (p *population) match(namespaces []string, s *bocage.Selector) []int32 {
	of := asking{selector: s}
	if s == nil {
		s = &bocage.Selector{}
	}
	if len(namespaces) == 0 {
		if list, alone := p.oneLabel(s); alone {
			return list
		}
	}
	if len(namespaces) > 1 || len(namespaces) == 1 && namespaces[0] == "" {
		return p.picks.of(p, namespaces, s).list
	}
	if len(namespaces) == 1 {
		of.namespace = namespaces[0]
	}
	if known := p.picks.bySelector[of]; known != nil && !known.dropped {
		return known.list
	}
	known := p.picks.of(p, namespaces, s)
	p.picks.enter(of, known)
	return known.list
}

// oneLabel answers selectors that ask for one value of one label and nothing else.
func (p *population) oneLabel(s *bocage.Selector) ([]int32, bool) {
	switch {
	case len(s.MatchLabels) == 1 && len(s.MatchExpressions) == 0:
		for key, value := range s.MatchLabels {
			return p.byLabel[label{key, value}], true
		}
	case len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 1:
		if r := s.MatchExpressions[0]; r.Operator == "In" && len(r.Values) == 1 {
			return p.byLabel[label{r.Key, r.Values[0]}], true
		}
	}
	return nil, false
}

// pick looks for whom a selector picks. It starts from the rarest label that is
// asked for, so that its cost follows what it finds.
func (p *population) pick(namespaces []string, s *bocage.Selector) []int32 {
	if len(namespaces) == 0 && len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 1 && s.MatchExpressions[0].Operator == "In" {
		var out []int32
		for _, value := range s.MatchExpressions[0].Values {
			out = union(out, p.byLabel[label{s.MatchExpressions[0].Key, value}])
		}
		return out
	}
	candidates, narrowed := p.candidates(s)
	if len(namespaces) > 0 {
		if size := p.sizeOf(namespaces); !narrowed || size < len(candidates) {
			candidates = p.placed(namespaces)
			narrowed = true
		}
	}
	if !narrowed {
		candidates = p.everyone
	}
	out := make([]int32, 0, min(len(candidates), 16))
	for _, i := range candidates {
		if p.subjects[i].picked(namespaces, s) {
			out = append(out, i)
		}
	}
	return out
}

// picked reports whether a selector picks the subject's workloads.
func (s *subject) picked(namespaces []string, by *bocage.Selector) bool {
	return (len(namespaces) == 0 || slices.Contains(namespaces, s.namespace)) && s.matches(by)
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

// placed returns the groups of the namespaces, sorted and once each.
func (p *population) placed(namespaces []string) []int32 {
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

// all returns the groups of workloads. Nobody may change the list.
func (p *population) all() []int32 { return p.everyone }

// outside returns the world and the named prefixes.
func (p *population) outside() []int32 {
	out := append([]int32{worldSubject}, p.prefixes...)
	slices.Sort(out)
	return out
}

// isEveryWorkload reports whether a list holds all groups of workloads.
func (p *population) isEveryWorkload(list []int32) bool { return len(list) == len(p.everyone) }

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

// under returns the named prefixes inside any of the given ones, sorted by
// number: a longer prefix inherits what is said of a shorter one.
func (p *population) under(prefixes []netip.Prefix) []int32 {
	var out []int32
	for _, outer := range prefixes {
		outer = canonicalPrefix(outer)
		first, _ := slices.BinarySearchFunc(p.prefixes, outer, func(i int32, q netip.Prefix) int { return comparePrefixes(p.subjects[i].prefix, q) })
		for _, i := range p.prefixes[first:] {
			if !outer.Contains(p.subjects[i].prefix.Addr()) {
				break
			}
			out = append(out, i)
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
	if !p.orchestrated {
		return nil, p.everyone
	}
	for _, i := range p.everyone {
		if p.subjects[i].members[0].Spec.Orchestrator == bocage.OrchestratorKubernetes {
			pods = append(pods, i)
		} else {
			others = append(others, i)
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
	at, known := p.in.find(t.Spec.Workload)
	if !known {
		return nil
	}
	out := p.subjectsOf(at)
	slices.Sort(out)
	return out
}

// subjectsOf lists the subjects of a workload.
func (p *population) subjectsOf(at int32) []int32 {
	return append([]int32{p.of[at]}, p.also[at]...)
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
func (s *subject) assurance() string {
	if s.first == nil {
		return ""
	}
	return assuranceOf(s.first)
}

// label returns the value of a label of the subject's workloads: what
// Workload.LabelsIn has, without a map for every subject.
func (s *subject) label(key string) (value string, there bool) {
	if s.first == nil {
		return "", false
	}
	switch key {
	case bocage.LabelNamespace:
		return s.namespace, true
	case bocage.LabelName:
		return s.first.Name, true
	case bocage.LabelHost:
		return s.first.Spec.Host, true
	case bocage.LabelZone:
		return s.zone, s.zone != ""
	case bocage.LabelAssurance:
		return assuranceOf(s.first), true
	}
	value, there = s.first.Labels[key]
	return value, there
}

// matches is Selector.Matches.
func (s *subject) matches(by *bocage.Selector) bool {
	for key, want := range by.MatchLabels {
		if value, there := s.label(key); !there || value != want {
			return false
		}
	}
	for i := range by.MatchExpressions {
		r := &by.MatchExpressions[i]
		value, there := s.label(r.Key)
		var holds bool
		switch r.Operator {
		case "In":
			holds = there && slices.Contains(r.Values, value)
		case "NotIn":
			holds = !there || !slices.Contains(r.Values, value)
		case "Exists":
			holds = there
		case "DoesNotExist":
			holds = !there
		}
		if !holds {
			return false
		}
	}
	return true
}

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
		return side{list: p.offering}
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

// union joins two sorted lists.
func union(a, b []int32) []int32 {
	if len(a) == 0 {
		return b
	}
	out := make([]int32, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0] < b[0]:
			out, a = append(out, a[0]), a[1:]
		case a[0] > b[0]:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// intersect returns what two sorted lists share.
func intersect(a, b []int32) []int32 {
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(a) == 0 {
		return nil
	}
	out := make([]int32, 0, len(a))
	if len(b) > 16*len(a) {
		for _, x := range a {
			i, found := slices.BinarySearch(b, x)
			if found {
				out = append(out, x)
			}
			b = b[i:]
		}
		return out
	}
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch x, y := a[i], b[j]; {
		case x == y:
			out = append(out, x)
			i, j = i+1, j+1
		case x < y:
			i++
		default:
			j++
		}
	}
	return out
}

func field(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }
