package compile

import (
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// addPrefixes makes a subject of every prefix that somebody names, so that
// longest-prefix matching finds the most precise one.
func (p *population) addPrefixes() {
	p.addSubject(subject{key: "world", name: "world", group: bocage.GroupWorld})
	list := make([]netip.Prefix, 0, len(p.named))
	for prefix := range p.named {
		list = append(list, prefix)
	}
	slices.SortFunc(list, comparePrefixes)
	for _, prefix := range list {
		p.prefixes = append(p.prefixes, p.addSubject(prefixSubject(prefix)))
	}
	p.addDomains()
	// Room for prefixes that come later: their numbers stay below those of workloads.
	first := len(p.subjects)
	p.workloads = first + first/2 + 512
	p.subjects = append(p.subjects, make([]subject, p.workloads-first)...)
	for i := p.workloads - 1; i >= first; i-- {
		p.spare = append(p.spare, int32(i))
	}
	p.renamed, p.domains.renamed = map[netip.Prefix]bool{}, map[domain]bool{}
}

func prefixSubject(prefix netip.Prefix) subject {
	return subject{key: "prefix " + prefix.String(), name: prefix.String(), prefix: prefix}
}

// changePrefixes makes subjects of prefixes that are named now, and lets go those
// that are no longer. It reports whether there was room.
func (p *population) changePrefixes(d *change) bool {
	p.spare = append(p.spare, p.freed...) // nothing speaks of them any more
	p.freed = p.freed[:0]
	for prefix, before := range p.renamed {
		now := p.named[prefix] > 0
		if before == now {
			continue
		}
		d.prefixes = append(d.prefixes, prefix)
		compare := func(i int32, q netip.Prefix) int { return comparePrefixes(p.subjects[i].prefix, q) }
		at, _ := slices.BinarySearchFunc(p.prefixes, prefix, compare)
		if before {
			p.prefixes = p.goFrom(p.prefixes, at, d)
			continue
		}
		if len(p.spare) == 0 {
			return false
		}
		p.prefixes = p.comeTo(p.prefixes, at, prefixSubject(prefix), d)
	}
	clear(p.renamed)
	return p.changeDomains(d)
}

// comeTo has a subject take a spare number, which there must be, and its place in a
// sorted list.
func (p *population) comeTo(list []int32, at int, s subject, d *change) []int32 {
	last := len(p.spare) - 1
	i := p.spare[last]
	p.spare = p.spare[:last]
	p.subjects[i] = s
	p.byKey[s.key] = i
	d.come = append(d.come, i)
	return slices.Insert(list, at, i)
}

// goFrom takes a subject out of its list. Its number is spare after this change.
func (p *population) goFrom(list []int32, at int, d *change) []int32 {
	i := list[at]
	p.letGo(i, d)
	p.freed = append(p.freed, i)
	return slices.Delete(list, at, at+1)
}

// letGo says that nobody is left in a subject.
func (p *population) letGo(i int32, d *change) {
	delete(p.byKey, p.subjects[i].key)
	d.goneKeys = append(d.goneKeys, p.subjects[i].key)
	p.subjects[i].key = ""
	d.gone = append(d.gone, i)
}

// namePrefix counts, up or down, who names a prefix, and tells those who name a
// workload so that it will not do.
func (p *population) namePrefix(by int32, findings *findings) func(bocage.Ref, netip.Prefix) {
	return func(ref bocage.Ref, prefix netip.Prefix) {
		prefix = canonicalPrefix(prefix)
		if w := p.in.addresses[prefix.Addr()]; w != nil && prefix.IsSingleIP() {
			if p.shadowed[prefix.Addr()] += by; p.shadowed[prefix.Addr()] == 0 {
				delete(p.shadowed, prefix.Addr())
			}
			if findings == nil {
				return
			}
			findings.note(ref, InInventory, "%s is the workload %s: prefixes stand for addresses outside the inventory; select it by label instead",
				prefix, w.NamespacedName())
			return
		}
		p.countPrefix(prefix, by)
	}
}

func (p *population) countPrefix(prefix netip.Prefix, by int32) {
	if p.renamed != nil {
		if _, known := p.renamed[prefix]; !known {
			p.renamed[prefix] = p.named[prefix] > 0
		}
	}
	if p.named[prefix] += by; p.named[prefix] == 0 {
		delete(p.named, prefix)
	}
}

// prefixesOf visits the prefixes that an Application names.
func prefixesOf(a *bocage.Application, visit func(bocage.Ref, netip.Prefix)) {
	for i, provide := range a.Spec.Provides {
		for _, prefix := range provide.ToExternal {
			visit(Ref("Application", a, field("spec.provides", i)+".toExternal"), prefix)
		}
	}
	for i, consume := range a.Spec.Consumes {
		if consume.External.Prefix.IsValid() {
			visit(Ref("Application", a, field("spec.consumes", i)+".external"), consume.External.Prefix)
		}
	}
}

// otherPrefixes visits those of corporate declarations.
func (p *population) otherPrefixes(in *admitted, visit func(bocage.Ref, netip.Prefix)) {
	all := func(ref bocage.Ref, prefixes []netip.Prefix) {
		for _, prefix := range prefixes {
			visit(ref, prefix)
		}
	}
	side := func(ref bocage.Ref, s bocage.Side) {
		at := ref.Field
		ref.Field = at + ".external"
		all(ref, s.External)
		ref.Field = at + ".addressGroups"
		for _, name := range s.AddressGroups {
			if group := p.addresses[name]; group != nil {
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
