package prove

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
)

// Statements that concern the whole are by the policy room itself.
func whole(field string) bocage.Ref {
	return bocage.Ref{Kind: "Generation", Name: "policy", Field: field}
}

// totality proves that nobody can meet a gap: every address has a group that is
// described, every number that a rule names exists, no two rules of a pair overlap.
func (p *prover) totality() bocage.Proof {
	return proof("every workload and every flow of it has a decision", whole("totality"), p.gap())
}

func (p *prover) gap() string {
	rs := p.rs
	described := map[bocage.Group]bool{bocage.GroupAny: true, bocage.GroupWorld: true}
	for _, g := range rs.Groups {
		described[g.Group] = true
	}
	placed := make(map[bocage.Identity]bool, len(rs.Peers))
	for i, peer := range rs.Peers {
		if !described[peer.Group] {
			return fmt.Sprintf("%s is in group %d, which nothing describes", peer.Prefix, peer.Group)
		}
		if i > 0 && rs.Peers[i-1].Prefix == peer.Prefix {
			return fmt.Sprintf("%s is twice there", peer.Prefix)
		}
		placed[peer.Identity] = true
	}
	decided := make(map[bocage.DecisionID]bool, len(rs.Decisions))
	profiles := map[uint16]bool{0: true}
	for _, x := range rs.Profiles {
		profiles[x.Number] = true
	}
	for _, d := range rs.Decisions {
		decided[d.ID] = true
		if !profiles[d.Profile] || (d.Verdict == bocage.VerdictInspect) != (d.Profile != 0) {
			return fmt.Sprintf("decision %s names profile %d, which does not exist", d.ID, d.Profile)
		}
	}
	if !decided[rs.Default] {
		return "the default decision does not exist"
	}
	for _, d := range rs.Decisions {
		if counter := p.endless(d); counter != "" {
			return counter
		}
	}
	for i, r := range rs.Rules {
		if !decided[r.Decision] {
			return fmt.Sprintf("a rule carries decision %s, which does not exist", r.Decision)
		}
		if !described[r.From] || !described[r.To] {
			return fmt.Sprintf("a rule is from group %d to group %d, which nothing describes", r.From, r.To)
		}
		if i == 0 {
			continue
		}
		q := rs.Rules[i-1]
		if bocage.CompareRules(q, r) >= 0 || q.From == r.From && q.To == r.To && q.Protocol == r.Protocol && r.Ports.First <= q.Ports.Last {
			return fmt.Sprintf("two rules from group %d to group %d overlap or are out of order at %s %s", r.From, r.To, r.Protocol, r.Ports)
		}
	}
	if counter := p.namingsGap(described, decided); counter != "" {
		return counter
	}
	for _, r := range rs.Refused {
		if !decided[r.Decision] || !placed[r.Identity] {
			return fmt.Sprintf("identity %d is refused without a decision or without an address", r.Identity)
		}
	}
	return p.unplaced(placed)
}

// endless finds a decision that ends without a successor, or after it.
func (p *prover) endless(d bocage.Decision) string {
	first := d.ID
	for range bocage.MostSuccessors {
		if d.Until.IsZero() {
			return ""
		}
		then, exists := p.reach.decisions[d.Then]
		if !exists {
			return fmt.Sprintf("decision %s ends at %s and nothing follows it", d.ID, d.Until.UTC().Format(time.RFC3339))
		}
		if !then.Until.IsZero() && !then.Until.After(d.Until) {
			return fmt.Sprintf("decision %s follows %s and ends before it", then.ID, d.ID)
		}
		d = then
	}
	if d.Until.IsZero() {
		return ""
	}
	return fmt.Sprintf("decision %s has more than %d successors", first, bocage.MostSuccessors)
}

// unplaced finds a workload that nobody contests and that has no peer.
func (p *prover) unplaced(placed map[bocage.Identity]bool) string {
	claims := map[netip.Addr]int{}
	numbers := map[bocage.Identity]int{}
	type place struct{ host, link string }
	links := map[place]int{}
	for _, w := range p.in.Workloads {
		for _, a := range w.Spec.Addresses {
			claims[a]++
		}
		numbers[w.Status.Identity]++
		for _, l := range w.Spec.Interfaces() {
			links[place{w.Spec.Host, l.Interface}]++
		}
	}
	for _, w := range p.in.Workloads {
		contested := w.Status.Identity < bocage.IdentityFirst || numbers[w.Status.Identity] > 1 ||
			slices.ContainsFunc(w.Spec.Interfaces(), func(l bocage.WorkloadInterface) bool { return links[place{w.Spec.Host, l.Interface}] > 1 }) ||
			slices.ContainsFunc(w.Spec.Addresses, func(a netip.Addr) bool { return claims[a] > 1 || !a.IsValid() || a.Is4In6() || a.Zone() != "" })
		if !contested && len(w.Spec.Addresses) > 0 && !placed[w.Status.Identity] {
			return fmt.Sprintf("Workload %s has no place in the ruleset", w.NamespacedName())
		}
	}
	return ""
}

// monotony proves that threat conditions and quarantines open nothing, take no
// duty off and lift no enforcement.
func (p *prover) monotony(compiled func(compile.Input) *bocage.Ruleset) bocage.Proof {
	statement, ref := "threat conditions, responses and quarantines open nothing and lift no duty", whole("monotony")
	if len(p.in.ThreatConditions) == 0 && len(p.in.Quarantines) == 0 {
		return proof(statement, ref, "")
	}
	calm := p.in
	calm.ThreatConditions, calm.Quarantines = nil, nil // responses do nothing without conditions, and name prefixes
	return proof(statement, ref, p.loosened(compiled(calm)))
}

// sameButRefused reports whether two rulesets say the same but for who is cut off,
// which only takes away.
func sameButRefused(a, b *bocage.Ruleset) bool {
	return a.Default == b.Default && slices.Equal(a.Peers, b.Peers) && slices.Equal(a.Groups, b.Groups) && slices.Equal(a.Rules, b.Rules) &&
		slices.EqualFunc(a.Namings, b.Namings, bocage.Naming.Equal) && slices.Equal(a.Apart, b.Apart) &&
		slices.Equal(a.Reasons, b.Reasons) && slices.Equal(a.Names, b.Names) && slices.Equal(a.Profiles, b.Profiles) &&
		slices.EqualFunc(withoutCuts(a), withoutCuts(b), func(x, y bocage.Decision) bool { return reflect.DeepEqual(x, y) })
}

// withoutCuts lists the decisions but for those that only refusals name.
func withoutCuts(rs *bocage.Ruleset) []bocage.Decision {
	if len(rs.Refused) == 0 {
		return rs.Decisions
	}
	named := make(map[bocage.DecisionID]bool, len(rs.Decisions))
	use := func(id bocage.DecisionID) {
		for !named[id] {
			named[id] = true
			if d, known := rs.Decision(id); known && !d.Until.IsZero() {
				id = d.Then
			}
		}
	}
	use(rs.Default)
	for _, list := range [2][]bocage.Rule{rs.Rules, rs.Reasons} {
		for _, r := range list {
			use(r.Decision)
		}
	}
	for _, n := range rs.Namings {
		for _, c := range n.Cells {
			use(c.Decision)
		}
	}
	return slices.DeleteFunc(slices.Clone(rs.Decisions), func(d bocage.Decision) bool { return !named[d.ID] })
}

func (p *prover) loosened(calm *bocage.Ruleset) string {
	if sameButRefused(calm, p.rs) {
		return ""
	}
	base := newReach(calm)
	enforced, tight := enforcement(calm), enforcement(p.rs)
	// Threat conditions divide groups and never join them, so that each group of
	// ours lies in one of the calm ruleset.
	calmGroup := map[bocage.Group]bocage.Group{bocage.GroupWorld: bocage.GroupWorld}
	calmPeer := make(map[netip.Prefix]bocage.Group, len(calm.Peers))
	for _, peer := range calm.Peers {
		calmPeer[peer.Prefix] = peer.Group
	}
	for _, peer := range p.rs.Peers {
		was := calmPeer[peer.Prefix]
		if old, known := calmGroup[peer.Group]; known && old != was {
			return fmt.Sprintf("group %d joins %s with workloads that policy tells apart", peer.Group, p.who(peer.Group))
		}
		calmGroup[peer.Group] = was
		if enforced[was] && !tight[peer.Group] {
			return fmt.Sprintf("refusals of %s are enforced without threat conditions, and only observed with them", p.who(peer.Group))
		}
	}
	groupBefore := func(g bocage.Group) bocage.Group { return calmGroup[g] }
	if found := p.looserThan(base, groupBefore, nil, "without threat conditions"); found != "" {
		return found
	}
	return p.looserByName(calm, base, groupBefore, nil, "without threat conditions")
}

// looserThan finds a flow that is given more than in another ruleset, in which each
// group was part of one: of pairs with a rule of their own, and of others from or to
// one of the groups that are picked (nil: any).
func (p *prover) looserThan(base *reach, groupBefore func(bocage.Group) bocage.Group, picked func(bocage.Group) bool, other string) string {
	within := map[bocage.Group][]bocage.Group{}
	both := *p.reach // with what either names, so that nobody stands for somebody that only one of them names
	both.fromAny, both.toAny, both.apart = maps.Clone(p.reach.fromAny), maps.Clone(p.reach.toAny), map[pair]bool{}
	for _, g := range p.groups {
		was := groupBefore(g)
		within[was] = append(within[was], g)
		both.fromAny[g] = both.fromAny[g] || base.fromAny[was]
		both.toAny[g] = both.toAny[g] || base.toAny[was]
	}
	found := ""
	seen := map[[2][4]int32]bool{} // by what the rules of a pair say in both
	check := func(from, to bocage.Group) bool {
		if found != "" {
			return false
		}
		places, now := levels(groupBefore(from), groupBefore(to)), levels(from, to)
		var said [2][4]int32
		for i := range now {
			said[0][i], said[1][i] = base.content(places[i]), p.reach.content(now[i])
		}
		if !seen[said] {
			seen[said] = true
			found = p.looserPair(base, from, to, places, other)
		}
		return found == ""
	}
	for _, at := range p.reach.exact {
		if p.reach.mayAllow(at.from, at.to) && !check(at.from, at.to) {
			return found
		}
	}
	for _, at := range base.exact {
		for _, from := range within[at.from] {
			for _, to := range within[at.to] {
				if p.reach.rules[pair{from, to}] == nil {
					both.apart[pair{from, to}] = true
				}
				if p.reach.mayAllow(from, to) && !check(from, to) {
					return found
				}
			}
		}
	}
	everyone := func(bocage.Group) bool { return true }
	if picked == nil {
		picked = everyone
	} else {
		both.eachWildcardPair(p.groups, everyone, picked, true, check)
	}
	both.eachWildcardPair(p.groups, picked, everyone, true, check)
	return found
}

// looserPair finds a cell of a pair that got more than in another ruleset, which is
// said in words.
func (p *prover) looserPair(base *reach, from, to bocage.Group, calmPlaces [4]pair, other string) string {
	spans := base.spans(calmPlaces)
	found := ""
	p.reach.eachCell(from, to, spans, func(protocol bocage.Protocol, ports bocage.PortRange, id bocage.DecisionID) bool {
		if looser := p.looserLink(base, base.lookUp(calmPlaces, protocol, ports.First), id); looser != nil {
			found = fmt.Sprintf("%s gets %s, %s %s", p.flow(from, to, protocol, ports.First), looser.is.Verdict, other, looser.was.Verdict)
		}
		return found == ""
	})
	return found
}

// loosening is a decision that gives more than another.
type loosening struct{ was, is bocage.Decision }

// looserLink finds a moment at which a decision gives more than one of another
// ruleset; nil if there is none.
func (p *prover) looserLink(base *reach, was, is bocage.DecisionID) *loosening {
	moments := []time.Time{p.in.Now}
	note := func(at time.Time, _ bocage.Decision) bool { moments = append(moments, at); return true }
	p.reach.eachLink(is, p.in.Now, note)
	base.eachLink(was, p.in.Now, note)
	for _, at := range moments {
		if l := (loosening{base.at(was, at), p.reach.at(is, at)}); p.looser(base, l.was, l.is) {
			return &l
		}
	}
	return nil
}

// looser reports whether a decision gives more than the calm one.
func (p *prover) looser(base *reach, was, is bocage.Decision) bool {
	if !is.Verdict.Allowed() {
		return false
	}
	lost := slices.ContainsFunc(compile.ProfileNames(base.profiles[was.Profile]), func(name string) bool {
		return !slices.Contains(compile.ProfileNames(p.reach.profiles[is.Profile]), name)
	})
	owed := is.Duties
	if owed == nil {
		owed = new(bocage.Duties)
	}
	return !was.Verdict.Allowed() || lost || was.Log && !is.Log || was.Duties != nil && !atLeast(*owed, *was.Duties)
}

func enforcement(rs *bocage.Ruleset) map[bocage.Group]bool {
	out := make(map[bocage.Group]bool, len(rs.Groups))
	for _, g := range rs.Groups {
		out[g.Group] = g.Enforce
	}
	return out
}

// mostPairChecks bounds the pairs that are looked at in hosts' parts.
const mostPairChecks = 30_000

// cuts proves that every host's part decides what the whole does for its
// workloads. Where that is too much for one generation, evenly spread hosts are
// looked at, others with each; first counts on from the last one.
func (p *prover) cuts(first *int) bocage.Proof {
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

// spread is the k-th of n places in an order that visits each once and leaves
// no large gap on the way.
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

// mostStrangers bounds the ends without a rule of their own that each local
// group is looked at with.
const mostStrangers = 64

// disagreement compares, for every group behind the host's ports and everybody
// that some rule names together with it, what the part and the whole decide.
// A part may say in other rules what the whole says.
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
		named, seen := newNaming(cut, part, local), map[[2]saying]bool{}
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

// differs finds a cell of a pair that the part decides otherwise than the whole.
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

// alike reports whether two decisions do the same; who decided may differ, and
// why something is refused may be said more precisely in one.
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

// mostOpinions bounds the second opinion, in flows times objects.
const mostOpinions = 400_000

// secondOpinion asks the judge about flows at the edges of the rules.
func (p *prover) secondOpinion() bocage.Proof {
	rules := slices.Concat(p.rs.Rules, sampledNamings(p.rs))
	step := 1 + 4*len(rules)*p.entries()/mostOpinions
	statement := "the declarations, read one flow at a time, say the same at every edge of a rule"
	if step > 1 {
		statement = fmt.Sprintf("the declarations, read one flow at a time, say the same at the edges of every %d. rule", step)
	}
	if len(rules) == 0 {
		return proof(statement, whole("opinion"), "")
	}
	judge := explain.NewJudge(p.in)
	for i := 0; i < len(rules); i += step {
		if counter := p.opinion(judge, rules[i]); counter != "" {
			return proof(statement, whole("opinion"), counter)
		}
	}
	return proof(statement, whole("opinion"), "")
}

// entries counts what the judge reads for one flow.
func (p *prover) entries() int {
	n := 1 + len(p.in.Scopes) + len(p.in.ThreatConditions) + len(p.in.Exceptions) + len(p.in.Responses)
	for _, a := range p.in.Applications {
		n += 1 + len(a.Spec.Provides) + len(a.Spec.Consumes)
	}
	for _, g := range p.in.Guardrails {
		n += 1 + len(g.Spec.Never) + len(g.Spec.Grant) + len(g.Spec.Protect)
	}
	for _, np := range p.in.NetworkPolicies {
		n += 1 + len(np.Spec.Ingress) + len(np.Spec.Egress)
	}
	for _, cnp := range p.in.ClusterNetworkPolicies {
		n += 1 + len(cnp.Spec.Ingress) + len(cnp.Spec.Egress)
	}
	return n
}

func (p *prover) opinion(judge *explain.Judge, r bocage.Rule) string {
	if n := p.byNames(); n != nil {
		if place, is := n.names[r.To]; is {
			return p.namedOpinion(judge, r, n.called(place))
		}
	}
	f := bocage.Flow{Source: p.address(r.From), Destination: p.address(r.To), Protocol: r.Protocol, At: p.in.Now}
	if !f.Source.IsValid() || !f.Destination.IsValid() || f.Source.Is4() != f.Destination.Is4() || p.itself(f) {
		return "" // nothing that an enforcement point could see
	}
	if f.Protocol == bocage.ProtocolAny {
		f.Protocol = bocage.ProtocolTCP
	}
	for _, port := range []uint16{r.Ports.First, r.Ports.Last, r.Ports.First - 1, r.Ports.Last + 1} {
		f.DestinationPort = port
		verdict, reason := p.rs.Decide(f)
		if g := judge.Judge(f); g.Verdict != verdict || g.Code != reason.Code || g.Would != reason.Would {
			return fmt.Sprintf("%s: compiled to %s (%s), declared as %s (%s)", f, reason.Would, reason.Code, g.Would, g.Code)
		}
	}
	return ""
}

// namedOpinion asks about flows to an address outside of which little is declared, and
// that goes by a name.
func (p *prover) namedOpinion(judge *explain.Judge, r bocage.Rule, name bocage.DomainName) string {
	f := bocage.Flow{Source: p.address(r.From), Destination: p.address(bocage.GroupWorld), Protocol: r.Protocol, At: p.in.Now}
	if f.Source.Is6() {
		f.Destination = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 0x77})
	}
	if !f.Source.IsValid() || p.rs.Lookup(f.Source).Workload == "" {
		return ""
	}
	if f.Protocol == bocage.ProtocolAny {
		f.Protocol = bocage.ProtocolTCP
	}
	for _, port := range []uint16{r.Ports.First, r.Ports.Last, r.Ports.First - 1, r.Ports.Last + 1} {
		f.DestinationPort = port
		verdict, reason := p.rs.DecideNamed(f, name)
		if g := judge.JudgeNamed(f, name); g.Verdict != verdict || g.Code != reason.Code || g.Would != reason.Would {
			return fmt.Sprintf("%s as %s: compiled to %s (%s), declared as %s (%s)", f, name, reason.Would, reason.Code, g.Would, g.Code)
		}
	}
	return ""
}

// itself reports whether both ends are one workload.
func (p *prover) itself(f bocage.Flow) bool {
	source := p.rs.Lookup(f.Source)
	return f.Source == f.Destination || source.Workload != "" && source.Identity == p.rs.Lookup(f.Destination).Identity
}

func (p *prover) address(g bocage.Group) netip.Addr {
	if g == bocage.GroupAny {
		g = bocage.GroupWorld
	}
	m := p.members[g]
	if m == nil {
		return netip.Addr{}
	}
	// The first address of a prefix may be somebody else's.
	address := m.address
	for range 16 {
		if p.rs.Lookup(address).Group == g {
			break
		}
		address = address.Next()
	}
	return address
}
