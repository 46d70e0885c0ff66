package compile

import (
	"cmp"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// applications keeps who declares what to whom, to find whom a change bears on.
type applications struct {
	apps      map[string]*application         // by "namespace/name"
	byPlace   map[string][]*application       // by namespace
	consuming map[string][]*application       // by the name of a provider: those that consume from it
	withData  map[*application]bool           // that offer classes of data
	external  map[netip.Prefix][]*application // by the prefixes that they name
	inviting  map[*application]bool           // that let in workloads of other namespaces by name
	zoned     map[*application]bool           // that ask for zones
	heard     map[*application]bool           // that spoke as consumers last
}

func newApplications(n int) applications {
	return applications{
		apps: make(map[string]*application, n), byPlace: map[string][]*application{}, consuming: make(map[string][]*application, n),
		withData: map[*application]bool{}, external: map[netip.Prefix][]*application{}, inviting: map[*application]bool{}, zoned: map[*application]bool{},
	}
}

// enter takes an Application in.
func (k *applications) enter(a *application) {
	k.apps[a.NamespacedName()] = a
	k.byPlace[a.Namespace] = append(k.byPlace[a.Namespace], a)
	for _, name := range a.providers() {
		k.consuming[name] = append(k.consuming[name], a)
	}
	if offersData(a.Application) {
		k.withData[a] = true
	}
	prefixesOf(a.Application, func(_ bocage.Ref, prefix netip.Prefix) {
		prefix = canonicalPrefix(prefix)
		k.external[prefix] = append(k.external[prefix], a)
	})
	if asksZone(&a.Spec.Workload) || slices.ContainsFunc(a.Spec.Provides, func(p bocage.Provide) bool { return asksZone(&p.To) }) {
		k.zoned[a] = true
	}
	for i, provide := range a.Spec.Provides {
		if open := LetInNamespaces(a.Application, i); specific(provide.To) && !(len(open) == 1 && open[0] == a.Namespace) {
			k.inviting[a] = true
		}
	}
}

// asksZone reports whether a selector asks where workloads stand.
func asksZone(s *bocage.Selector) bool {
	_, asks := s.MatchLabels[bocage.LabelZone]
	return asks || slices.ContainsFunc(s.MatchExpressions, func(r bocage.Requirement) bool { return r.Key == bocage.LabelZone })
}

// leave takes an Application out.
func (k *applications) leave(a *application) {
	without := func(list []*application) []*application {
		return slices.DeleteFunc(list, func(other *application) bool { return other == a })
	}
	delete(k.apps, a.NamespacedName())
	k.byPlace[a.Namespace] = without(k.byPlace[a.Namespace])
	for _, name := range a.providers() {
		k.consuming[name] = without(k.consuming[name])
	}
	delete(k.withData, a)
	prefixesOf(a.Application, func(_ bocage.Ref, prefix netip.Prefix) {
		if prefix = canonicalPrefix(prefix); len(k.external[prefix]) > 0 {
			if k.external[prefix] = without(k.external[prefix]); len(k.external[prefix]) == 0 {
				delete(k.external, prefix)
			}
		}
	})
	delete(k.inviting, a)
	delete(k.zoned, a)
}

// compareApplications finds the Applications that are not as they were.
func (c *compiler) compareApplications(was *admitted, d *change) {
	if d.first {
		c.applications = newApplications(len(c.in.applications))
		d.applicationsCome = c.in.applications
		return
	}
	if !d.of(kindApplication) {
		return
	}
	eachChange(was.applications, c.in.applications, compareNames[*bocage.Application],
		func(a *bocage.Application) { d.applicationsGone = append(d.applicationsGone, a) },
		func(a *bocage.Application) { d.applicationsCome = append(d.applicationsCome, a) })
}

// compareNames orders objects as they are admitted.
func compareNames[T bocage.Resource](x, y T) int {
	return cmp.Compare(x.Meta().NamespacedName(), y.Meta().NamespacedName())
}

// replaceApplications takes Applications out and in, and with them the prefixes
// that they name. What they said stays until they speak.
func (c *compiler) replaceApplications(d *change) {
	kept := map[string]*application{}
	for _, o := range d.applicationsGone {
		a := c.apps[o.NamespacedName()]
		kept[a.NamespacedName()] = a
		d.offers = d.offers || c.withData[a]
		d.neighbours = append(d.neighbours, a.NamespacedName())
		d.used = append(d.used, a.uses...)
		prefixesOf(a.Application, c.pop.namePrefix(-1, nil))
		namesOf(a.Application, c.pop.domains.count(-1))
		c.leave(a)
	}
	for _, o := range d.applicationsCome {
		a := &application{Application: o}
		if old := kept[o.NamespacedName()]; old != nil {
			a.consumes, a.provides, a.prefixes, a.uses, a.idle = old.consumes, old.provides, old.prefixes, old.uses, old.idle
			delete(kept, o.NamespacedName())
		}
		c.hear(&a.prefixes, func() { prefixesOf(a.Application, c.pop.namePrefix(1, &c.findings)) })
		namesOf(a.Application, c.pop.domains.count(1))
		c.enter(a)
		d.offers = d.offers || c.withData[a]
		d.neighbours = append(d.neighbours, a.NamespacedName())
		d.spoken = append(d.spoken, a)
	}
	for _, a := range kept {
		for _, u := range []*unit{&a.consumes, &a.provides, &a.prefixes} {
			c.forget(u)
		}
		c.told.change(a.idle, nil)
	}
}

// sayApplications lets those Applications speak on whom the change bears: those
// that changed, those whose workloads or prefixes are others now, and those that
// have contracts with them.
func (c *compiler) sayApplications(d *change) {
	consumers, providers := map[*application]bool{}, map[*application]bool{}
	for _, a := range d.spoken {
		a.groups = c.pop.pick([]string{a.Namespace}, &a.Spec.Workload)
		consumers[a], providers[a] = true, true
	}
	for a := range c.regrouped(d) {
		d.offers = d.offers || c.withData[a]
		consumers[a], providers[a] = true, true
		d.neighbours = append(d.neighbours, a.NamespacedName())
	}
	if d.of(kindZone) {
		for a := range c.zoned {
			consumers[a] = true // a zone may be known now, or no longer
		}
	}
	if !d.first {
		for _, name := range d.neighbours {
			for _, a := range c.consuming[name] {
				consumers[a] = true
			}
		}
		for _, prefix := range d.prefixes {
			for _, a := range c.around(prefix) {
				consumers[a], providers[a] = true, true
			}
		}
	}
	if d.first {
		c.statements = make([]statement, 0, 5*len(c.apps))
	}
	c.heard = consumers
	uses := d.used
	for _, a := range inOrder(consumers) {
		uses = append(uses, a.uses...)
		c.hear(&a.consumes, func() {
			c.checkApplication(a)
			c.stateConsumes(a)
		})
		uses = append(uses, a.uses...)
	}
	for _, use := range uses {
		if provider := c.apps[use.provider]; provider != nil && specificAt(provider, use.provide) {
			providers[provider] = true
		}
	}
	c.invited(d, providers)
	for _, a := range inOrder(providers) {
		c.hear(&a.provides, func() { c.stateProvides(a) })
	}
	if d.offers || d.first {
		c.collectOffers()
	}
}

// around lists the Applications that name a prefix which holds the given one.
func (k *applications) around(inner netip.Prefix) []*application {
	var out []*application
	for bits := inner.Bits(); bits >= 0; bits-- {
		if outer, err := inner.Addr().Prefix(bits); err == nil {
			out = append(out, k.external[outer]...)
		}
	}
	return out
}

func specificAt(provider *application, i int) bool {
	return i < len(provider.Spec.Provides) && specific(provider.Spec.Provides[i].To)
}

// inOrder lists Applications in the order of their names.
func inOrder(set map[*application]bool) []*application {
	out := make([]*application, 0, len(set))
	for a := range set {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *application) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// regrouped selects again for the Applications whose workloads the change of
// subjects may be among, and returns those that have others now.
func (c *compiler) regrouped(d *change) map[*application]bool {
	out := map[*application]bool{}
	if d.first {
		return out
	}
	seen := map[string]bool{}
	for _, i := range d.subjectsTouched() {
		seen[c.pop.subjects[i].namespace] = true
	}
	for place := range seen {
		for _, a := range c.byPlace[place] {
			groups := c.pop.pick([]string{a.Namespace}, &a.Spec.Workload)
			if !slices.Equal(groups, a.groups) {
				a.groups = groups
				out[a] = true
			}
		}
	}
	return out
}

// invited adds the Applications that may tell their authors of changed subjects
// as of somebody whom they let in.
func (c *compiler) invited(d *change, providers map[*application]bool) {
	touched := d.subjectsTouched()
	if d.first || len(touched) == 0 {
		return
	}
	look := func(a *application) {
		if providers[a] {
			return
		}
		for i := range a.Spec.Provides {
			to := &a.Spec.Provides[i].To
			if specific(*to) && slices.ContainsFunc(touched, func(s int32) bool {
				return c.pop.subjects[s].picked(LetInNamespaces(a.Application, i), to)
			}) {
				providers[a] = true
				return
			}
		}
	}
	seen := map[string]bool{}
	for _, i := range touched {
		seen[c.pop.subjects[i].namespace] = true
	}
	for place := range seen {
		for _, a := range c.byPlace[place] {
			look(a)
		}
	}
	for a := range c.inviting {
		look(a)
	}
}
