package prove

import (
	"fmt"
	"maps"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// mostPairChecks bounds the pairs that are looked at in hosts' parts.
const mostPairChecks = 30_000

// hostParts proves that every host's part of the ruleset decides the same as the whole for
// the host's workloads. If that is too much for one generation, it checks some hosts, evenly
// spread, and others with the next generations; first is where it continues.
func (p *prover) hostParts(first *int) bocage.Proof {
	cutter := compile.NewCutter(p.rs, p.in)
	hosts := cutter.Hosts()
	exact := map[bocage.Group][]pair{}
	for _, at := range p.reach.exact {
		exact[at.from] = append(exact[at.from], at)
		if at.to != at.from {
			exact[at.to] = append(exact[at.to], at)
		}
	}
	looked, checks := 0, 0
	counter := ""
	for k := 0; k < len(hosts) && counter == "" && checks < mostPairChecks; k++ {
		host := hosts[spread(*first%len(hosts), len(hosts))]
		*first++
		var pairs int
		if pairs, counter = p.disagreement(cutter.Cut(host), exact); counter != "" {
			counter = fmt.Sprintf("on %s: %s", host, counter)
		}
		looked, checks = looked+1, checks+pairs
	}
	statement := "each host's part says the same as the whole"
	if looked < len(hosts) {
		statement = fmt.Sprintf("%s (%d of %d hosts were looked at, others are with the next generations)", statement, looked, len(hosts))
	}
	return proof(statement, whole("hosts"), counter)
}

// spread returns the k-th of n places in an order that visits each place once, evenly
// spread from the beginning on.
func spread(k, n int) int {
	step := n*5/8 + 1
	for gcd(step, n) != 1 {
		step++
	}
	return k * step % n
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// mostStrangers bounds the number of groups, without a rule for the pair, that each local
// group is checked with.
const mostStrangers = 64

// disagreement compares what the part and the whole decide, for every group behind the
// host's ports with every group that some rule pairs it with. The part may express the same
// decisions with other rules.
func (p *prover) disagreement(cut *bocage.Ruleset, exact map[bocage.Group][]pair) (checks int, counter string) {
	if cut.Default != p.rs.Default || !slices.Equal(cut.Peers, p.rs.Peers) || !slices.Equal(cut.Groups, p.rs.Groups) || !slices.Equal(cut.Refused, p.rs.Refused) {
		return 0, "its peers, groups, refusals or default are not those of the whole"
	}
	part := newReach(cut)
	local := map[bocage.Group]bool{}
	for _, port := range cut.Ports {
		local[port.Group] = true
	}
	pairs := slices.Clone(part.exact)
	for _, g := range slices.Sorted(maps.Keys(local)) {
		pairs = append(pairs, exact[g]...)
		for i := 0; i < len(p.groups); i += 1 + len(p.groups)/mostStrangers {
			pairs = append(pairs, pair{g, p.groups[i]}, pair{p.groups[i], g})
		}
	}
	if p.byNames() != nil {
		named, seen := newNaming(cut, part, local), map[[2]contentKey]bool{}
		for _, g := range slices.Sorted(maps.Keys(local)) {
			if len(p.naming.rows[g])+len(named.rows[g]) == 0 {
				continue
			}
			if counter := p.differsByName(named, g, seen); counter != "" {
				return len(seen), counter
			}
		}
		checks = len(seen)
	}
	seen := make(map[pair]bool, len(pairs))
	for _, at := range pairs {
		if seen[at] || !local[at.from] && !local[at.to] {
			continue
		}
		seen[at] = true
		if counter := p.differs(part, at.from, at.to); counter != "" {
			return checks + len(seen), counter
		}
	}
	return checks + len(seen), ""
}

// differs finds a cell of a pair that the part and the whole decide differently.
func (p *prover) differs(part *reach, from, to bocage.Group) string {
	places := levels(from, to)
	spans := part.spans(places)
	found := ""
	p.reach.eachCell(from, to, spans, func(protocol bocage.Protocol, ports bocage.PortRange, id bocage.DecisionID) bool {
		here := part.lookUp(places, protocol, ports.First)
		for range bocage.MostSuccessors + 1 {
			whole, cut := p.reach.decisions[id], part.decisions[here]
			if _, known := part.decisions[here]; !known || !alike(whole, cut) || p.reach.profiles[whole.Profile] != part.profiles[cut.Profile] {
				found = fmt.Sprintf("%s gets %s (%s)%s, of the whole %s (%s)%s", p.flow(from, to, protocol, ports.First), cut.Verdict, cut.Code, by(cut),
					whole.Verdict, whole.Code, by(whole))
				break
			}
			if whole.Until.IsZero() {
				break
			}
			id, here = whole.Then, cut.Then
		}
		return found == ""
	})
	return found
}

// alike reports whether two decisions have the same effect. Their authors may differ, and
// the reason of a refusal may be more precise in one.
func alike(a, b bocage.Decision) bool {
	if !a.Verdict.Allowed() && a.Verdict == b.Verdict {
		return a.Until.Equal(b.Until)
	}
	owed, owes := bocage.Duties{}, bocage.Duties{}
	if a.Duties != nil {
		owed = *a.Duties
	}
	if b.Duties != nil {
		owes = *b.Duties
	}
	return a.Verdict == b.Verdict && a.Code == b.Code && a.Log == b.Log && a.Until.Equal(b.Until) && owed == owes
}
