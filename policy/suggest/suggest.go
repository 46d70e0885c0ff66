// Package suggest writes Applications that cover what was seen: at the level of
// labels, few, and named as people name things.
//
// It promises that the suggestion, compiled, allows every answered edge that it
// does not set apart for review, and of other flows only those between members
// of the same applications; and that the same edges give the same suggestion.
// It never applies anything, and never suggests what nobody answered.
package suggest

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"bocage.dev/bocage"
)

// Suggest draws Applications of the namespaces (none: all) from edges. Edges that
// a person should look at first come back as Review.
func Suggest(edges []bocage.Edge, workloads []*bocage.Workload, namespaces []string) bocage.SuggestResult {
	s := newSuggestion(workloads)
	result := bocage.SuggestResult{Applications: []*bocage.Application{}}
	usual, review := setApart(s.resolve(edges))
	for _, l := range usual {
		s.add(l)
	}
	for _, l := range review {
		if l.concerns(namespaces) {
			result.Review = append(result.Review, l.edge)
		}
	}
	for _, a := range s.applications {
		if len(namespaces) == 0 || slices.Contains(namespaces, a.namespace) {
			if written := s.write(a); len(written.Spec.Provides)+len(written.Spec.Consumes) > 0 {
				result.Applications = append(result.Applications, written)
			}
		}
	}
	return result
}

// namingKeys are the labels by which people name applications, best first.
func namingKeys() []string { return []string{"app.kubernetes.io/name", "app", "k8s-app"} }

// application is a set of workloads that one label names.
type application struct {
	namespace, key, value string
	name                  string // of the object to be
	without               []string
	provides              map[service]*consumers
	uses                  map[use]bool
}

// service is one port of an application.
type service struct {
	protocol bocage.Protocol
	port     uint16
}

// consumers are those of one service.
type consumers struct {
	applications map[*application]bool
	external     map[netip.Prefix]bool
}

// use is what an application consumes: a service, or a port outside.
type use struct {
	of       *application
	external netip.Prefix
	service  service
}

type suggestion struct {
	byName       map[string]*application // of a workload
	byAddress    map[netip.Addr]string   // -> namespace/name
	applications []*application          // by namespace and name
}

// newSuggestion divides the inventory into applications.
func newSuggestion(workloads []*bocage.Workload) *suggestion {
	s := &suggestion{byName: map[string]*application{}, byAddress: map[netip.Addr]string{}}
	sorted := slices.Clone(workloads)
	slices.SortFunc(sorted, func(a, b *bocage.Workload) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Status.Identity, b.Status.Identity))
	})
	type naming struct{ namespace, key, value string }
	known := map[naming]*application{}
	for _, w := range sorted {
		key, value := namingLabel(w)
		a := known[naming{w.Namespace, key, value}]
		if a == nil {
			a = &application{namespace: w.Namespace, key: key, value: value, provides: map[service]*consumers{}, uses: map[use]bool{}}
			known[naming{w.Namespace, key, value}] = a
			s.applications = append(s.applications, a)
		}
		s.byName[w.NamespacedName()] = a
		for _, address := range w.Spec.Addresses {
			if _, taken := s.byAddress[address]; !taken {
				s.byAddress[address] = w.NamespacedName()
			}
		}
	}
	// A label may also pick workloads that a better label names: leave them out.
	for _, w := range sorted {
		best := s.byName[w.NamespacedName()]
		for _, key := range namingKeys() {
			value, has := w.Labels[key]
			other := known[naming{w.Namespace, key, value}]
			if has && other != nil && other != best && !slices.Contains(other.without, best.key) {
				other.without = append(other.without, best.key)
				slices.Sort(other.without)
			}
		}
	}
	s.name()
	return s
}

func namingLabel(w *bocage.Workload) (key, value string) {
	for _, key := range namingKeys() {
		if value := w.Labels[key]; value != "" {
			return key, value
		}
	}
	return bocage.LabelName, w.Name
}

// name gives applications the names that their labels say, made fit for objects,
// and different ones within a namespace.
func (s *suggestion) name() {
	slices.SortFunc(s.applications, func(a, b *application) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.value, b.value), cmp.Compare(a.key, b.key))
	})
	taken := map[string]bool{}
	for _, a := range s.applications {
		base := objectName(a.value)
		a.name = base
		for n := 2; taken[a.namespace+"/"+a.name]; n++ {
			a.name = fmt.Sprintf("%s-%d", base, n)
		}
		taken[a.namespace+"/"+a.name] = true
	}
	slices.SortFunc(s.applications, func(a, b *application) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
}

// objectName makes a label's value an object's name.
func objectName(value string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		default:
			return '-'
		}
	}, value)
	parts := strings.Split(name, ".")
	parts = slices.DeleteFunc(parts, func(part string) bool { return strings.Trim(part, "-") == "" })
	for i, part := range parts {
		parts[i] = strings.Trim(part, "-")
	}
	if name = strings.Join(parts, "."); name == "" {
		return "application"
	}
	return name
}

// line is an edge with its ends resolved.
type line struct {
	edge                          bocage.Edge
	source, destination           *application // nil outside
	sourceName, destinationName   string
	sourcePrefix, destinationHost netip.Prefix
	broken                        bool // an end that cannot be named
}

func (l *line) service() service {
	if !l.edge.Protocol.HasPorts() {
		return service{protocol: l.edge.Protocol}
	}
	return service{l.edge.Protocol, l.edge.DestinationPort}
}

// concerns reports whether an end lies in one of the namespaces.
func (l *line) concerns(namespaces []string) bool {
	if len(namespaces) == 0 {
		return true
	}
	return slices.ContainsFunc([]*application{l.source, l.destination}, func(a *application) bool {
		return a != nil && slices.Contains(namespaces, a.namespace)
	})
}

// resolve finds out who the ends are, and joins edges that say the same.
func (s *suggestion) resolve(edges []bocage.Edge) []*line {
	type key struct {
		source, destination string
		service             service
	}
	joined := map[key]*line{}
	var lines []*line
	for _, e := range edges {
		l := &line{edge: e}
		l.sourceName, l.source, l.sourcePrefix = s.end(e.Source)
		l.destinationName, l.destination, l.destinationHost = s.end(e.Destination)
		l.broken = l.sourceName == "" || l.destinationName == "" || l.source == nil && l.destination == nil
		if !l.broken {
			k := key{l.sourceName, l.destinationName, l.service()}
			if other := joined[k]; other != nil {
				other.join(e)
				continue
			}
			joined[k] = l
		}
		lines = append(lines, l)
	}
	slices.SortStableFunc(lines, func(a, b *line) int {
		return cmp.Or(cmp.Compare(a.edge.Source, b.edge.Source), cmp.Compare(a.edge.Destination, b.edge.Destination),
			cmp.Compare(a.edge.Protocol, b.edge.Protocol), cmp.Compare(a.edge.DestinationPort, b.edge.DestinationPort))
	})
	return lines
}

func (l *line) join(e bocage.Edge) {
	l.edge.Flows += e.Flows
	l.edge.Replied += e.Replied
	if l.edge.First.IsZero() || !e.First.IsZero() && e.First.Before(l.edge.First) {
		l.edge.First = e.First
	}
	if e.Last.After(l.edge.Last) {
		l.edge.Last = e.Last
	}
	// Of two ways to write one end, the same one wins whoever came first.
	l.edge.Source, l.edge.Destination = min(l.edge.Source, e.Source), min(l.edge.Destination, e.Destination)
	l.edge.DestinationPort = min(l.edge.DestinationPort, e.DestinationPort)
}

// end resolves a workload's name or an address; the name is empty if it is
// neither, or nobody that a rule can name.
func (s *suggestion) end(text string) (name string, a *application, host netip.Prefix) {
	if a := s.byName[text]; a != nil {
		return text, a, netip.Prefix{}
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		return "", nil, netip.Prefix{}
	}
	address = address.Unmap().WithZone("")
	if name, ok := s.byAddress[address]; ok {
		return name, s.byName[name], netip.Prefix{}
	}
	if address.IsMulticast() || address.IsUnspecified() || address.IsLoopback() || address == netip.AddrFrom4([4]byte{255, 255, 255, 255}) ||
		address.Is6() && address.IsLinkLocalUnicast() {
		return "", nil, netip.Prefix{}
	}
	return address.String(), nil, netip.PrefixFrom(address, address.BitLen())
}

// add notes what a line shows.
func (s *suggestion) add(l *line) {
	sv := l.service()
	if l.source != nil {
		l.source.uses[use{of: l.destination, external: l.destinationHost, service: sv}] = true
	}
	if l.destination == nil {
		return
	}
	c := l.destination.provides[sv]
	if c == nil {
		c = &consumers{applications: map[*application]bool{}, external: map[netip.Prefix]bool{}}
		l.destination.provides[sv] = c
	}
	if l.source != nil {
		c.applications[l.source] = true
	} else {
		c.external[l.sourcePrefix] = true
	}
}

// ephemeral is where ports begin that clients are given (RFC 6335 has 49152,
// Linux 32768).
const ephemeral = 32768

// setApart tells what looks like use from what a person should look at: what
// nobody answered, what cannot be named, and the rare attempts of a source that
// mostly meets nobody or walks through ports.
func setApart(lines []*line) (usual, review []*line) {
	const (
		fruitless = 10 // so many unanswered targets make a source suspicious
		walk      = 20 // so many rarely used ports of one destination are a scan
		replies   = 3  // so many high ports between two ends are no service
		rare      = 2  // flows
	)
	type ends struct{ source, destination string }
	type tally struct{ answered, unanswered int }
	bySource := map[string]*tally{}
	walked, high := map[ends]int{}, map[ends]int{}
	for _, l := range lines {
		t := bySource[l.sourceName]
		if t == nil {
			t = &tally{}
			bySource[l.sourceName] = t
		}
		if l.edge.Replied == 0 {
			t.unanswered++
		} else {
			t.answered++
		}
		e := ends{l.sourceName, l.destinationName}
		if l.edge.Flows <= rare && l.edge.Protocol.HasPorts() {
			walked[e]++
		}
		if l.edge.DestinationPort >= ephemeral && l.edge.Protocol.HasPorts() {
			high[e]++
		}
	}
	for _, l := range lines {
		e, t := ends{l.sourceName, l.destinationName}, bySource[l.sourceName]
		seldom := l.edge.Flows <= rare
		switch {
		case l.broken, l.edge.Replied == 0,
			seldom && t.unanswered >= fruitless && t.unanswered > 2*t.answered,
			seldom && walked[e] >= walk,
			l.edge.DestinationPort >= ephemeral && l.edge.Protocol.HasPorts() && high[e] >= replies:
			review = append(review, l)
		default:
			usual = append(usual, l)
		}
	}
	return usual, review
}

// write makes the Application object.
func (s *suggestion) write(a *application) *bocage.Application {
	out := &bocage.Application{
		TypeMeta:   bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Application"},
		ObjectMeta: bocage.ObjectMeta{Namespace: a.namespace, Name: a.name},
		Spec:       bocage.ApplicationSpec{Workload: selector(a.key, []string{a.value}, a.without)},
	}
	for _, offer := range a.offers() {
		out.Spec.Provides = append(out.Spec.Provides, offer.provide)
	}
	out.Spec.Consumes = a.consumes()
	return out
}

// offer is one provide with the applications that it is for.
type offer struct {
	provide bocage.Provide
	first   service
	last    uint16
	by      []*application
}

// offers groups an application's services: neighbouring ports with the same
// consumers are one range, and consumers whom different labels name get entries
// of their own.
func (a *application) offers() []offer {
	services := make([]service, 0, len(a.provides))
	for sv := range a.provides {
		services = append(services, sv)
	}
	slices.SortFunc(services, func(x, y service) int {
		return cmp.Or(cmp.Compare(x.protocol, y.protocol), cmp.Compare(x.port, y.port))
	})
	var offers []offer
	for i := 0; i < len(services); {
		j := i
		for j+1 < len(services) && services[j+1].protocol == services[i].protocol && services[j+1].port == services[j].port+1 &&
			a.provides[services[j+1]].equal(a.provides[services[i]]) {
			j++
		}
		offers = append(offers, a.split(services[i], services[j].port, a.provides[services[i]])...)
		i = j + 1
	}
	names := map[string]bool{}
	for i := range offers {
		p := &offers[i].provide
		base := interfaceName(offers[i].first, offers[i].last)
		if names[base] && offers[i].first.port != 0 && !strings.HasSuffix(base, strconv.Itoa(int(offers[i].first.port))) {
			base += "-" + strconv.Itoa(int(offers[i].first.port))
		}
		p.Name = base
		for n := 2; names[p.Name]; n++ {
			p.Name = fmt.Sprintf("%s-%d", base, n)
		}
		names[p.Name] = true
	}
	return offers
}

// split writes a provide for each way in which consumers are named. Namespaces
// share one only if the same names are meant in each, so that nobody is let in
// who was not seen.
func (a *application) split(first service, last uint16, c *consumers) []offer {
	type place struct{ key, without, namespace string }
	type naming struct{ key, without, values string }
	byPlace := map[place][]*application{}
	for consumer := range c.applications {
		p := place{consumer.key, strings.Join(consumer.without, ","), consumer.namespace}
		byPlace[p] = append(byPlace[p], consumer)
	}
	byNaming := map[naming][]*application{}
	var namings []naming
	for p, there := range byPlace {
		n := naming{p.key, p.without, strings.Join(values(there), ",")}
		if byNaming[n] == nil {
			namings = append(namings, n)
		}
		byNaming[n] = append(byNaming[n], there...)
	}
	slices.SortFunc(namings, func(x, y naming) int {
		return cmp.Or(cmp.Compare(x.key, y.key), cmp.Compare(x.without, y.without), cmp.Compare(x.values, y.values))
	})
	base := bocage.Provide{Port: first.port, Protocol: protocolName(first.protocol)}
	if last != first.port {
		base.EndPort = last
	}
	var offers []offer
	for _, n := range namings {
		o := offer{provide: base, first: first, last: last, by: byNaming[n]}
		var namespaces []string
		for _, consumer := range o.by {
			namespaces = append(namespaces, consumer.namespace)
		}
		o.provide.To = selector(n.key, values(o.by), o.by[0].without)
		slices.Sort(namespaces)
		if namespaces = slices.Compact(namespaces); len(namespaces) > 1 || namespaces[0] != a.namespace {
			o.provide.ToNamespaces = namespaces
		}
		offers = append(offers, o)
	}
	if len(c.external) > 0 {
		prefixes := make([]netip.Prefix, 0, len(c.external))
		for p := range c.external {
			prefixes = append(prefixes, p)
		}
		slices.SortFunc(prefixes, func(x, y netip.Prefix) int { return x.Addr().Compare(y.Addr()) })
		if len(offers) == 0 {
			offers = append(offers, offer{provide: base, first: first, last: last})
		}
		offers[0].provide.ToExternal = prefixes
	}
	return offers
}

// values lists, sorted, what names applications.
func values(applications []*application) []string {
	out := make([]string, len(applications))
	for i, a := range applications {
		out[i] = a.value
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (c *consumers) equal(o *consumers) bool {
	if len(c.applications) != len(o.applications) || len(c.external) != len(o.external) {
		return false
	}
	for a := range c.applications {
		if !o.applications[a] {
			return false
		}
	}
	for p := range c.external {
		if !o.external[p] {
			return false
		}
	}
	return true
}

// consumes writes an application's needs.
func (a *application) consumes() []bocage.Consume {
	var out []bocage.Consume
	for u := range a.uses {
		if u.of == nil {
			out = append(out, bocage.Consume{External: u.external, Port: u.service.port, Protocol: protocolName(u.service.protocol)})
			continue
		}
		c := bocage.Consume{Service: u.of.name}
		if u.of.namespace != a.namespace {
			c.Service = u.of.namespace + "/" + u.of.name
		}
		offers := u.of.offers()
		for _, o := range offers {
			if o.first.protocol == u.service.protocol && o.first.port <= u.service.port && u.service.port <= o.last && slices.Contains(o.by, a) {
				if len(offers) > 1 {
					c.Interface = o.provide.Name
				}
				out = append(out, c)
			}
		}
	}
	slices.SortFunc(out, func(x, y bocage.Consume) int {
		return cmp.Or(cmp.Compare(x.Service, y.Service), cmp.Compare(x.Interface, y.Interface), x.External.Addr().Compare(y.External.Addr()),
			cmp.Compare(x.Protocol, y.Protocol), cmp.Compare(x.Port, y.Port))
	})
	return slices.Compact(out)
}

// selector picks workloads by one label.
func selector(key string, values, without []string) bocage.Selector {
	var s bocage.Selector
	// A workload's name may be longer than a label's value: only an expression
	// takes it.
	if len(values) == 1 && len(values[0]) <= 63 {
		s.MatchLabels = map[string]string{key: values[0]}
	} else {
		s.MatchExpressions = []bocage.Requirement{{Key: key, Operator: "In", Values: values}}
	}
	for _, other := range without {
		s.MatchExpressions = append(s.MatchExpressions, bocage.Requirement{Key: other, Operator: "DoesNotExist"})
	}
	return s
}

// protocolName leaves out the default.
func protocolName(p bocage.Protocol) string {
	if p == bocage.ProtocolTCP {
		return ""
	}
	return p.String()
}

// interfaceName names a port as people do.
func interfaceName(first service, last uint16) string {
	known := map[service]string{
		{bocage.ProtocolTCP, 22}: "ssh", {bocage.ProtocolTCP, 25}: "smtp", {bocage.ProtocolTCP, 53}: "dns-tcp", {bocage.ProtocolUDP, 53}: "dns",
		{bocage.ProtocolTCP, 80}: "http", {bocage.ProtocolUDP, 123}: "ntp", {bocage.ProtocolTCP, 389}: "ldap", {bocage.ProtocolTCP, 443}: "https",
		{bocage.ProtocolUDP, 443}: "quic", {bocage.ProtocolTCP, 636}: "ldaps", {bocage.ProtocolTCP, 1433}: "mssql", {bocage.ProtocolTCP, 1883}: "mqtt",
		{bocage.ProtocolTCP, 2379}: "etcd", {bocage.ProtocolTCP, 3306}: "mysql", {bocage.ProtocolTCP, 4222}: "nats", {bocage.ProtocolTCP, 5432}: "postgres",
		{bocage.ProtocolTCP, 5672}: "amqp", {bocage.ProtocolTCP, 6379}: "redis", {bocage.ProtocolTCP, 8080}: "http", {bocage.ProtocolTCP, 8443}: "https",
		{bocage.ProtocolTCP, 9090}: "prometheus", {bocage.ProtocolTCP, 9092}: "kafka", {bocage.ProtocolTCP, 9200}: "elasticsearch",
		{bocage.ProtocolTCP, 11211}: "memcached", {bocage.ProtocolTCP, 27017}: "mongodb",
	}
	if name, ok := known[first]; ok && last == first.port {
		return name
	}
	name := strings.ToLower(first.protocol.String())
	if _, err := strconv.Atoi(name); err == nil {
		name = "protocol-" + name
	}
	if first.port == 0 && !first.protocol.HasPorts() {
		return name
	}
	name += "-" + strconv.Itoa(int(first.port))
	if last != first.port {
		name += "-" + strconv.Itoa(int(last))
	}
	return name
}
