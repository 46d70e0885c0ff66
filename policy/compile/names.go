package compile

import (
	"cmp"
	"slices"

	"bocage.dev/bocage"
)

// A name in the DNS is a subject without addresses: rules lead to its group, and
// which addresses go by it, for whom and until when, is what the enforcement
// points hear. Whatever refuses or allows an address counts before any name of it,
// so a cell towards a name holds only who allows the name (allowName) and what is
// owed on the way to addresses outside. Which of them the name will have is not
// known: what is owed towards any is owed.

// domains are the names that somebody declares.
type domains struct {
	list    []int32                     // their subjects, sorted by name
	named   map[bocage.DomainName]int32 // how often
	renamed map[bocage.DomainName]bool  // those that may not be named as they were; nil: all
}

// namesOf visits the names that an Application names.
func namesOf(a *bocage.Application, visit func(bocage.DomainName)) {
	for _, consume := range a.Spec.Consumes {
		if consume.External.Name != "" {
			visit(consume.External.Name)
		}
	}
}

// count counts, up or down, who declares a name.
func (k *domains) count(by int32) func(bocage.DomainName) {
	return func(name bocage.DomainName) {
		if k.named == nil {
			k.named = map[bocage.DomainName]int32{}
		}
		if k.renamed != nil {
			if _, known := k.renamed[name]; !known {
				k.renamed[name] = k.named[name] > 0
			}
		}
		if k.named[name] += by; k.named[name] == 0 {
			delete(k.named, name)
		}
	}
}

func domainSubject(name bocage.DomainName) subject {
	return subject{key: "name " + string(name), name: string(name), domain: name}
}

// addDomains makes a subject of every name.
func (p *population) addDomains() {
	names := make([]bocage.DomainName, 0, len(p.domains.named))
	for name := range p.domains.named {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		p.domains.list = append(p.domains.list, p.addSubject(domainSubject(name)))
	}
}

// changeDomains does for names what changePrefixes does for prefixes.
func (p *population) changeDomains(d *change) bool {
	for name, before := range p.domains.renamed {
		now := p.domains.named[name] > 0
		if before == now {
			continue
		}
		at, _ := p.findDomain(name)
		if before {
			p.domains.list = p.goFrom(p.domains.list, at, d)
			continue
		}
		if len(p.spare) == 0 {
			return false
		}
		p.domains.list = p.comeTo(p.domains.list, at, domainSubject(name), d)
	}
	clear(p.domains.renamed)
	return true
}

func (p *population) findDomain(name bocage.DomainName) (at int, found bool) {
	return slices.BinarySearchFunc(p.domains.list, name, func(i int32, name bocage.DomainName) int {
		return cmp.Compare(p.subjects[i].domain, name)
	})
}

// domain is the subject of a name.
func (p *population) domain(name bocage.DomainName) []int32 {
	at, found := p.findDomain(name)
	if !found {
		return nil
	}
	return []int32{p.domains.list[at]}
}

// orNames adds all names to a side that means prefixes: one of them may have any
// address there.
func (p *population) orNames(s side) side {
	if s.any || len(p.domains.list) == 0 || len(s.list) == 0 || p.subjects[s.list[0]].first != nil || p.subjects[s.list[0]].domain != "" {
		return s
	}
	return side{list: merged(s.list, p.domains.list)}
}

// nameGroups lists the names with their groups.
func (c *compiler) nameGroups(rs *whole) {
	var names []bocage.Name
	for _, i := range c.pop.domains.list {
		names = append(names, bocage.Name{Name: c.pop.subjects[i].domain, Group: c.pop.subjects[i].group})
	}
	if !slices.Equal(names, rs.names) {
		c.book.changed.all = true
		rs.names = names
	}
}

// namesIn picks the names that rules lead to.
func namesIn(names []bocage.Name, rules []bocage.Rule) []bocage.Name {
	if len(names) == 0 {
		return nil
	}
	led := make(map[bocage.Group]bool, len(names))
	for _, name := range names {
		led[name.Group] = false
	}
	for _, rule := range rules {
		if _, is := led[rule.To]; is {
			led[rule.To] = true
		}
	}
	var out []bocage.Name
	for _, name := range names {
		if led[name.Group] {
			out = append(out, name)
		}
	}
	return out
}
