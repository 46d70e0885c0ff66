package compile

import (
	"cmp"
	"maps"
	"slices"

	"bocage.dev/bocage"
)

// A name in the DNS is a subject without addresses: rules lead to its group, and
// which addresses go by it, for whom and until when, is what the enforcement
// points hear. Whatever refuses or allows an address counts before any name of it,
// so a cell towards a name holds only who allows the name (allowName) and what is
// owed on the way to addresses outside. Which of them the name will have is not
// known: what is owed towards any is owed.
//
// ClusterNetworkPolicies accept names too (acceptName), and go before what Kubernetes
// refuses later. So a name is a subject for those who consume it, another one for the
// tier Admin and a third for Baseline: a cell towards it has one author, who stands in
// one place. What was refused of an address says which places are before it.

// domains are the names that somebody declares.
type domains struct {
	list    []int32          // their subjects, sorted by domain
	named   map[domain]int32 // how often
	renamed map[domain]bool  // those that may not be named as they were; nil: all
}

// domain is a name as contracts consume it, or as policies of a tier accept it.
type domain struct {
	name bocage.DomainName
	tier string // empty: of contracts
}

func compareDomains(a, b domain) int {
	return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.tier, b.tier))
}

// namesOf visits the names that an Application names.
func namesOf(a *bocage.Application, visit func(domain)) {
	for _, consume := range a.Spec.Consumes {
		if consume.External.Name != "" {
			visit(domain{name: consume.External.Name})
		}
	}
}

// clusterNamesOf visits the names that a ClusterNetworkPolicy accepts.
func clusterNamesOf(p *bocage.ClusterNetworkPolicy, visit func(domain)) {
	for i := range p.Spec.Egress {
		for _, d := range acceptedNames(p, &p.Spec.Egress[i]) {
			visit(d)
		}
	}
}

// acceptedNames lists the names that a rule accepts. What no name can be, which
// upstream takes, nobody is ever told.
func acceptedNames(p *bocage.ClusterNetworkPolicy, r *bocage.ClusterNetworkPolicyEgressRule) []domain {
	var out []domain
	for i := range r.To {
		for _, text := range r.To[i].DomainNames {
			if name, err := bocage.ParseDomainName(text); err == nil {
				out = append(out, domain{name, p.Spec.Tier})
			}
		}
	}
	return out
}

// count counts, up or down, who declares a name.
func (k *domains) count(by int32) func(domain) {
	return func(d domain) {
		if k.named == nil {
			k.named = map[domain]int32{}
		}
		if k.renamed != nil {
			if _, known := k.renamed[d]; !known {
				k.renamed[d] = k.named[d] > 0
			}
		}
		if k.named[d] += by; k.named[d] == 0 {
			delete(k.named, d)
		}
	}
}

func domainSubject(d domain) subject {
	s := subject{key: "name " + string(d.name), name: string(d.name), domain: d}
	if d.tier != "" {
		s.key += " " + d.tier
	}
	return s
}

// addDomains makes a subject of every name.
func (p *population) addDomains() {
	for _, d := range slices.SortedFunc(maps.Keys(p.domains.named), compareDomains) {
		p.domains.list = append(p.domains.list, p.addSubject(domainSubject(d)))
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

func (p *population) findDomain(d domain) (at int, found bool) {
	return slices.BinarySearchFunc(p.domains.list, d, func(i int32, d domain) int { return compareDomains(p.subjects[i].domain, d) })
}

// domain lists the subjects of names, sorted.
func (p *population) domain(list ...domain) []int32 {
	var out []int32
	for _, d := range list {
		if at, found := p.findDomain(d); found {
			out = append(out, p.domains.list[at])
		}
	}
	return sortedOnce(out)
}

// orNames adds all names to a side that means prefixes: one of them may have any
// address there.
func (p *population) orNames(s side) side {
	if s.any || len(p.domains.list) == 0 || len(s.list) == 0 || p.subjects[s.list[0]].first != nil || p.subjects[s.list[0]].isDomain() {
		return s
	}
	return side{list: sortedOnce(slices.Concat(s.list, p.domains.list))} // names are in an order of their own
}

// nameGroups lists the names with their groups.
func (c *compiler) nameGroups(rs *whole) {
	var names []bocage.Name
	for _, i := range c.pop.domains.list {
		s := &c.pop.subjects[i]
		names = append(names, bocage.Name{Name: s.domain.name, Tier: s.domain.tier, Group: s.group})
	}
	if !slices.Equal(names, rs.names) {
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
