package suggest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"bocage.dev/bocage"
)

// offer is one entry of provides, with the groups that it admits.
type offer struct {
	provide bocage.Provide
	first   service
	last    uint16
	by      []*group
}

func (o *offer) covers(sv service) bool {
	return o.first.protocol == sv.protocol && o.first.port <= sv.port && sv.port <= o.last
}

// write makes the Application objects: first all provides, and then, with the names of
// their interfaces, all consumes.
func (s *suggestion) write() {
	sizes := map[string]int{} // groups of each namespace
	for _, g := range s.groups {
		sizes[g.namespace]++
	}
	for _, g := range s.groups {
		g.written = newApplication(g)
		s.writeProvides(g, sizes)
	}
	for _, g := range s.groups {
		writeConsumes(g)
	}
}

// newApplication returns a copy of the declared object, or a new one.
func newApplication(g *group) *bocage.Application {
	a := &bocage.Application{
		TypeMeta:   bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Application"},
		ObjectMeta: bocage.ObjectMeta{Namespace: g.namespace, Name: g.name},
		Spec:       bocage.ApplicationSpec{Workload: g.selector},
	}
	if g.declared != nil {
		a.Labels, a.Annotations = maps.Clone(g.declared.Labels), maps.Clone(g.declared.Annotations)
		a.Spec = g.declared.Spec
		a.Spec.Provides, a.Spec.Consumes = slices.Clone(a.Spec.Provides), slices.Clone(a.Spec.Consumes)
	}
	return a
}

// writeProvides groups an application's services: neighbouring ports with the
// same consumers are one range.
func (s *suggestion) writeProvides(g *group, sizes map[string]int) {
	services := slices.SortedFunc(maps.Keys(g.provides), compareServices)
	var wanted []offer
	for i := 0; i < len(services); {
		c := s.uncoveredConsumers(g, services[i])
		j := i
		for j+1 < len(services) && services[j+1].protocol == services[i].protocol && services[j+1].port == services[j].port+1 &&
			s.uncoveredConsumers(g, services[j+1]).equal(c) {
			j++
		}
		wanted = append(wanted, splitOffers(g, services[i], services[j].port, c, sizes)...)
		i = j + 1
	}
	taken := map[string]bool{}
	for _, p := range g.written.Spec.Provides {
		taken[p.Name] = true
	}
	for _, o := range wanted {
		base := interfaceName(o.first, o.last)
		if taken[base] && o.first.port != 0 && !strings.HasSuffix(base, strconv.Itoa(int(o.first.port))) {
			base += "-" + strconv.Itoa(int(o.first.port))
		}
		o.provide.Name = base
		for n := 2; taken[o.provide.Name]; n++ {
			o.provide.Name = fmt.Sprintf("%s-%d", base, n)
		}
		taken[o.provide.Name] = true
		g.written.Spec.Provides = append(g.written.Spec.Provides, o.provide)
		g.offers, g.changed = append(g.offers, o), true
	}
}

// uncoveredConsumers returns the consumers of a service that no declared provides entry
// admits. Entries that admit others become offers.
func (s *suggestion) uncoveredConsumers(g *group, sv service) *consumers {
	c := g.provides[sv]
	if g.declared == nil {
		return c
	}
	uncovered := &consumers{groups: map[*group]bool{}, outside: slices.Clone(c.outside), spoken: c.spoken}
	for consumer := range c.groups {
		uncovered.groups[consumer] = true
	}
	for _, p := range g.declared.Spec.Provides {
		protocol, ports, err := bocage.Transport(p.Port, p.EndPort, p.Protocol)
		if err != nil || protocol != sv.protocol || !ports.Contains(sv.port) {
			continue
		}
		o := offer{provide: p, first: service{protocol, ports.First}, last: ports.Last}
		for consumer := range c.groups {
			if uncovered.groups[consumer] && admits(g, p, consumer) {
				delete(uncovered.groups, consumer)
				o.by = append(o.by, consumer)
			}
		}
		uncovered.outside = slices.DeleteFunc(uncovered.outside, func(inner netip.Prefix) bool {
			return slices.ContainsFunc(p.ToExternal, func(outer netip.Prefix) bool { return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr()) })
		})
		if len(o.by) > 0 {
			g.offers = append(g.offers, o)
		}
	}
	return uncovered
}

func admits(g *group, p bocage.Provide, consumer *group) bool {
	open := slices.Contains(p.ToNamespaces, "*") || slices.Contains(p.ToNamespaces, consumer.namespace) ||
		len(p.ToNamespaces) == 0 && consumer.namespace == g.namespace
	return open && !slices.ContainsFunc(consumer.members, func(m *member) bool { return !p.To.Matches(m.labels) })
}

func (c *consumers) equal(o *consumers) bool {
	return maps.Equal(c.groups, o.groups) && slices.Equal(c.outside, o.outside) && c.spoken == o.spoken
}

const (
	// If at least so many groups of a namespace, and at least this share of them, consume
	// a service, it is offered to the whole namespace. Each consumer still has to declare
	// its need.
	leastConsumers = 5
	leastShare     = 0.8
)

// splitOffers makes one offer for each form of selector that its consumers need. Namespaces
// share an offer only if it selects consumers that were seen in each of them, so that
// nobody else is admitted.
func splitOffers(g *group, first service, last uint16, c *consumers, sizes map[string]int) []offer {
	base := bocage.Provide{Port: first.port, Protocol: protocolName(first.protocol), AppProtocol: declaredAs(c.spoken, first.protocol)}
	if last != first.port {
		base.EndPort = last
	}
	for _, p := range g.written.Spec.Provides { // the port's data classes and protocol are the same for all its consumers
		if protocol, ports, err := bocage.Transport(p.Port, p.EndPort, p.Protocol); err == nil && protocol == first.protocol && ports.Contains(first.port) && ports.Contains(last) {
			base.Data, base.AppProtocol = p.Data, p.AppProtocol
		}
	}
	offers := offersToNamespaces(base, first, last, c, sizes)
	open := map[*group]bool{}
	for _, o := range offers {
		for _, consumer := range o.by {
			open[consumer] = true
		}
	}
	type namedWay struct{ form, namespace string }
	byWay := map[namedWay][]*group{}
	for consumer := range c.groups {
		if !open[consumer] {
			way := namedWay{selectorForm(consumer), consumer.namespace}
			byWay[way] = append(byWay[way], consumer)
		}
	}
	type meaning struct{ form, values string }
	byMeaning := map[meaning][]*group{}
	for way, there := range byWay {
		m := meaning{way.form, strings.Join(valuesOf(there), ",")}
		byMeaning[m] = append(byMeaning[m], there...)
	}
	meanings := slices.SortedFunc(maps.Keys(byMeaning), func(x, y meaning) int {
		return cmp.Or(cmp.Compare(x.form, y.form), cmp.Compare(x.values, y.values))
	})
	for _, m := range meanings {
		o := offer{provide: base, first: first, last: last, by: byMeaning[m]}
		o.provide.To = selectorFor(o.by)
		o.provide.ToNamespaces = namespacesOf(g, o.by)
		offers = append(offers, o)
	}
	if len(c.outside) > 0 {
		if len(offers) == 0 {
			offers = append(offers, offer{provide: base, first: first, last: last})
		}
		offers[0].provide.ToExternal = c.outside
	}
	return offers
}

// offersToNamespaces returns an offer to all groups of the namespaces in which nearly all
// of them consume the service; none if there is no such namespace.
func offersToNamespaces(base bocage.Provide, first service, last uint16, c *consumers, sizes map[string]int) []offer {
	consuming := map[string]int{}
	for consumer := range c.groups {
		consuming[consumer.namespace]++
	}
	var namespaces []string
	for namespace, n := range consuming {
		if n >= leastConsumers && float64(n) >= leastShare*float64(sizes[namespace]) {
			namespaces = append(namespaces, namespace)
		}
	}
	if len(namespaces) == 0 {
		return nil
	}
	slices.Sort(namespaces)
	o := offer{provide: base, first: first, last: last}
	o.provide.ToNamespaces = namespaces
	all := len(namespaces) >= leastConsumers && float64(len(namespaces)) >= leastShare*float64(len(sizes))
	if all {
		o.provide.ToNamespaces = []string{"*"}
	}
	for consumer := range c.groups {
		if all || slices.Contains(namespaces, consumer.namespace) {
			o.by = append(o.by, consumer)
		}
	}
	return []offer{o}
}

func namespacesOf(g *group, consumers []*group) []string {
	var namespaces []string
	for _, consumer := range consumers {
		namespaces = append(namespaces, consumer.namespace)
	}
	slices.Sort(namespaces)
	if namespaces = slices.Compact(namespaces); len(namespaces) == 1 && namespaces[0] == g.namespace {
		return nil
	}
	return namespaces
}

// selectorForm is equal for groups that one selector can select together: by values of one
// label, with the same further conditions. Other groups have a form of their own.
func selectorForm(g *group) string {
	key, _ := oneLabel(g.selector)
	further, err := json.Marshal(g.selector.MatchExpressions)
	if key == "" || err != nil {
		whole, _ := json.Marshal(g.selector) // a selector marshals
		return "~" + string(whole)
	}
	return key + " " + string(further)
}

// oneLabel returns the only label that a selector compares; empty if there are more.
func oneLabel(s bocage.Selector) (key, value string) {
	if len(s.MatchLabels) == 1 {
		for key, value = range s.MatchLabels {
			return key, value
		}
	}
	return "", ""
}

// valuesOf lists, sorted, the label values of groups of one form.
func valuesOf(groups []*group) []string {
	var out []string
	for _, g := range groups {
		_, value := oneLabel(g.selector)
		out = append(out, value)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// selectorFor returns the selector for the members of groups of one form.
func selectorFor(groups []*group) bocage.Selector {
	s := groups[0].selector
	key, _ := oneLabel(s)
	values := valuesOf(groups)
	if key == "" || len(values) == 1 {
		return s
	}
	return bocage.Selector{MatchExpressions: append([]bocage.Requirement{{Key: key, Operator: "In", Values: values}}, s.MatchExpressions...)}
}

// writeConsumes writes an application's needs.
func writeConsumes(g *group) {
	var out []bocage.Consume
	for u := range g.uses {
		if u.of == nil {
			c := bocage.Consume{External: bocage.ExternalPrefix(u.external), Port: u.service.port, Protocol: protocolName(u.service.protocol)}
			if !slices.ContainsFunc(g.written.Spec.Consumes, func(have bocage.Consume) bool { return includes(have, c) }) {
				out = append(out, c)
			}
			continue
		}
		for _, o := range u.of.offers {
			if !o.covers(u.service) || !slices.Contains(o.by, g) {
				continue
			}
			c := bocage.Consume{Service: u.of.name}
			if u.of.namespace != g.namespace {
				c.Service = u.of.namespace + "/" + u.of.name
			}
			if len(u.of.written.Spec.Provides) > 1 {
				c.Interface = o.provide.Name
			}
			if !consumes(g, u.of, o.provide.Name) {
				out = append(out, c)
			}
		}
	}
	slices.SortFunc(out, func(x, y bocage.Consume) int {
		return cmp.Or(cmp.Compare(x.Service, y.Service), cmp.Compare(x.Interface, y.Interface), x.External.Prefix.Addr().Compare(y.External.Prefix.Addr()),
			cmp.Compare(x.External.Prefix.Bits(), y.External.Prefix.Bits()), cmp.Compare(x.Protocol, y.Protocol), cmp.Compare(x.Port, y.Port))
	})
	if out = slices.Compact(out); len(out) > 0 {
		g.written.Spec.Consumes, g.changed = append(g.written.Spec.Consumes, out...), true
	}
}

// consumes reports whether the group declares that need already.
func consumes(g, provider *group, name string) bool {
	return slices.ContainsFunc(g.written.Spec.Consumes, func(c bocage.Consume) bool {
		service := c.Service
		if service != "" && !strings.Contains(service, "/") {
			service = g.namespace + "/" + service
		}
		return service == provider.key() && (c.Interface == "" || c.Interface == name)
	})
}

// includes reports whether a declared need is at least another one.
func includes(have, want bocage.Consume) bool {
	if have, want := have.External.Prefix, want.External.Prefix; !have.IsValid() || have.Bits() > want.Bits() || !have.Contains(want.Addr()) {
		return false
	}
	p, ports, err := bocage.Transport(have.Port, have.EndPort, have.Protocol)
	q, wanted, errWant := bocage.Transport(want.Port, want.EndPort, want.Protocol)
	return err == nil && errWant == nil && p == q && ports.First <= wanted.First && wanted.Last <= ports.Last
}

// protocolName leaves out the default.
func protocolName(p bocage.Protocol) string {
	if p == bocage.ProtocolTCP {
		return ""
	}
	return p.String()
}
