// Package prove checks that a compiled ruleset keeps what the declarations promise, for
// every pair of groups, every port and every moment at which a decision ends, before it is
// enforced. Its statements, with the files that hold them:
//
//   - Every workload and every flow has a decision (totality.go).
//   - Nothing that a guardrail's never or separate refuses is allowed, except by admitted
//     exceptions; each required duty is on every allowed cell (guardrails.go).
//   - No threat condition and no response refuses what is protected, or adds a duty there
//     that costs packets (guardrails.go, automation.go).
//   - Blast radii stay within their bounds (blast.go).
//   - Threat conditions, responses and quarantines open nothing (monotony.go).
//   - Each host's part agrees with the whole ruleset (hostparts.go).
//   - The guardrails hold for workloads that do not exist yet (future.go).
//   - A second evaluator that shares no step with the compiler decides the same
//     (opinion.go).
//
// All of these cover flows towards DNS names, too (naming.go, named.go). Tightening is the
// quick check for what comes into force before Prove is done (tightening.go). Compare lists
// how two rulesets differ (compare.go).
//
// A proof that fails has a counterexample: a flow that breaks the statement. The package
// never changes the ruleset, and it relies on nothing that the compiler says about it.
package prove

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Prove checks a ruleset that was compiled from the input. The proofs come in
// one order: totality, guardrails by name, threat monotony, agreement of hosts,
// workloads to come, second opinion.
func Prove(in compile.Input, rs *bocage.Ruleset) []bocage.Proof { return new(Prover).Prove(in, rs) }

// Prover proves successive generations. It remembers proofs that depend on declarations
// alone, so that a change of the inventory or of threat conditions does not repeat them,
// and which groups a Side matches as long as the inventory stays the same. Its zero value
// is ready for use, by one caller at a time.
type Prover struct {
	future         future
	nextHost       int // where hostParts continues
	withoutThreats *compile.Compiler
	begun          *compile.Compiler // of what begins later
	sides          sides
}

// Prove checks a ruleset that was compiled from the input; see [Prove].
func (v *Prover) Prove(in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
	p := newProver(in, rs)
	p.sides = v.sides.of(in, rs)
	proofs := []bocage.Proof{p.totality()}
	proofs = append(proofs, p.guardrails()...)
	v.later(in, proofs)
	return append(proofs, p.monotony(v.compileWithoutThreats), p.hostParts(&v.nextHost), v.future.prove(in), p.secondOpinion())
}

// compileWithoutThreats compiles an input whose threat conditions were removed,
// incrementally from the last such input.
func (v *Prover) compileWithoutThreats(in compile.Input) *bocage.Ruleset {
	if v.withoutThreats == nil {
		v.withoutThreats = compile.NewCompiler()
	}
	return v.withoutThreats.Compile(in).Ruleset()
}

// sides remembers which groups each Side matches, as long as the inventory stays the same.
type sides struct {
	workloads    []*bocage.Workload
	zones        []*bocage.Zone
	groups       []*bocage.AddressGroup
	peers        []bocage.Peer
	groupsBySide map[string]map[bocage.Group]bool // by the side as JSON; nobody changes them
}

// of returns the sides for a generation, emptied if the inventory has changed.
func (s *sides) of(in compile.Input, rs *bocage.Ruleset) *sides {
	if s.groupsBySide == nil || !slices.Equal(s.workloads, in.Workloads) || !slices.Equal(s.zones, in.Zones) ||
		!slices.Equal(s.groups, in.AddressGroups) || !slices.Equal(s.peers, rs.Peers) {
		*s = sides{workloads: in.Workloads, zones: in.Zones, groups: in.AddressGroups, peers: rs.Peers}
	}
	if s.groupsBySide == nil || len(s.groupsBySide) > mostSides {
		s.groupsBySide = map[string]map[bocage.Group]bool{}
	}
	return s
}

// mostSides bounds the sides that are remembered: each may match all groups.
const mostSides = 1 << 10

// Failed returns the proofs that do not hold.
func Failed(proofs []bocage.Proof) []bocage.Proof {
	return slices.DeleteFunc(slices.Clone(proofs), func(p bocage.Proof) bool { return p.Holds })
}

// prover proves one generation. It knows which workloads and prefixes are in which group.
type prover struct {
	in      compile.Input
	rs      *bocage.Ruleset
	reach   *reach
	members map[bocage.Group]*members
	groups  []bocage.Group // the world first, then all others, sorted
	named   map[string]*bocage.Workload
	offers  map[string][]*bocage.Application // by "namespace/name" of a workload
	zones   map[string]string                // host -> zone
	blocks  map[string][]netip.Prefix        // by AddressGroup
	outside []namedPrefix                    // sorted by address
	peers   []bocage.Peer                    // sorted by prefix
	// groupsOf tells where an identity is: in several groups if policy tells its
	// addresses apart.
	groupsOf map[bocage.Identity][]bocage.Group
	sides    *sides
	naming   *naming // see byNames
}

// members is who a group stands for.
type members struct {
	workloads []*bocage.Workload
	prefixes  []netip.Prefix
	address   netip.Addr // of one of them
	name      string
}

func newProver(in compile.Input, rs *bocage.Ruleset) *prover {
	p := &prover{in: in, rs: rs, reach: newReach(rs), members: map[bocage.Group]*members{}, named: map[string]*bocage.Workload{},
		offers: map[string][]*bocage.Application{}, zones: bocage.ZonesOfHosts(byName(in.Zones)), blocks: map[string][]netip.Prefix{},
		groupsOf: map[bocage.Identity][]bocage.Group{}}
	for _, g := range byName(in.AddressGroups) {
		p.blocks[g.Name] = g.Spec.Addresses
	}
	byIdentity := make(map[bocage.Identity]*bocage.Workload, len(in.Workloads))
	for _, w := range in.Workloads {
		if old := byIdentity[w.Status.Identity]; old == nil || w.NamespacedName() < old.NamespacedName() {
			byIdentity[w.Status.Identity] = w
		}
	}
	if p.peers = rs.Peers; !slices.IsSortedFunc(p.peers, byPrefix) {
		p.peers = slices.Clone(p.peers)
		slices.SortFunc(p.peers, byPrefix)
	}
	p.members[bocage.GroupWorld] = &members{name: "the world", address: netip.MustParseAddr("192.0.2.1")}
	for _, peer := range rs.Peers {
		m := p.members[peer.Group]
		if m == nil {
			m = &members{address: peer.Prefix.Addr(), name: peer.Prefix.String()}
			p.members[peer.Group] = m
		}
		w := byIdentity[peer.Identity]
		switch {
		case peer.Identity < bocage.IdentityFirst:
			m.prefixes = append(m.prefixes, peer.Prefix)
			p.outside = append(p.outside, namedPrefix{peer.Prefix, peer.Group})
		case w != nil && !slices.Contains(p.groupsOf[peer.Identity], peer.Group):
			p.groupsOf[peer.Identity] = append(p.groupsOf[peer.Identity], peer.Group)
			m.workloads = append(m.workloads, w)
			m.name = m.workloads[0].NamespacedName()
			p.named[w.NamespacedName()] = w
		}
	}
	for g := range p.members {
		if g != bocage.GroupWorld {
			p.groups = append(p.groups, g)
		}
	}
	slices.Sort(p.groups)
	p.groups = slices.Insert(p.groups, 0, bocage.GroupWorld)
	slices.SortFunc(p.outside, func(a, b namedPrefix) int { return a.prefix.Addr().Compare(b.prefix.Addr()) })
	p.collectOffers()
	return p
}

// collectOffers finds the applications with data classes that select each workload.
func (p *prover) collectOffers() {
	byNamespace := map[string][]*bocage.Application{}
	for _, a := range p.in.Applications {
		if len(a.Validate()) == 0 && slices.ContainsFunc(a.Spec.Provides, func(o bocage.Provide) bool { return len(o.Data) > 0 }) {
			byNamespace[a.Namespace] = append(byNamespace[a.Namespace], a)
		}
	}
	for name, w := range p.named {
		for _, a := range byNamespace[w.Namespace] {
			if p.picks(a.Spec.Workload, w) {
				p.offers[name] = append(p.offers[name], a)
			}
		}
	}
}

// byName returns the valid objects in the order of names.
func byName[T bocage.Resource](objects []T) []T {
	type named struct {
		name   string
		object T
	}
	var valid []named
	for _, o := range objects {
		if len(o.Validate()) == 0 {
			valid = append(valid, named{o.Meta().NamespacedName(), o})
		}
	}
	slices.SortFunc(valid, func(a, b named) int { return cmp.Compare(a.name, b.name) })
	valid = slices.CompactFunc(valid, func(a, b named) bool { return a.name == b.name })
	out := make([]T, len(valid))
	for i := range valid {
		out[i] = valid[i].object
	}
	return out
}

// side lists the groups with a member that a side means. That every member of a
// group should be meant makes the statements stronger, never weaker.
func (p *prover) side(s bocage.Side) map[bocage.Group]bool {
	key, err := json.Marshal(s)
	if err != nil {
		return p.meantBy(s)
	}
	out, known := p.sides.groupsBySide[string(key)]
	if !known {
		out = p.meantBy(s)
		p.sides.groupsBySide[string(key)] = out
	}
	return out
}

// meantBy finds the groups with a member whom a side means.
func (p *prover) meantBy(s bocage.Side) map[bocage.Group]bool {
	out := map[bocage.Group]bool{}
	if s.Outside() {
		for _, outer := range p.prefixes(s) {
			p.eachInside(outer, func(g bocage.Group) { out[g] = true })
		}
		return out
	}
	for _, g := range p.groups {
		if anyone(s) || slices.ContainsFunc(p.members[g].workloads, func(w *bocage.Workload) bool { return p.means(s, w) }) {
			out[g] = true
		}
	}
	return out
}

// anyone reports whether a side narrows nothing.
func anyone(s bocage.Side) bool {
	return !s.Outside() && len(s.Namespaces) == 0 && s.Workload == nil && len(s.Data) == 0
}

// namedPrefix is a prefix that declarations name, with its group.
type namedPrefix struct {
	prefix netip.Prefix
	group  bocage.Group
}

// eachInside visits the groups with a named prefix inside the given one.
func (p *prover) eachInside(outer netip.Prefix, visit func(bocage.Group)) {
	outer = canonical(outer)
	i, _ := slices.BinarySearchFunc(p.outside, outer, func(n namedPrefix, outer netip.Prefix) int { return n.prefix.Addr().Compare(outer.Addr()) })
	for ; i < len(p.outside) && outer.Contains(p.outside[i].prefix.Addr()); i++ {
		if p.outside[i].prefix.Bits() >= outer.Bits() {
			visit(p.outside[i].group)
		}
	}
}

// prefixes are all that a side names outside the inventory.
func (p *prover) prefixes(s bocage.Side) []netip.Prefix {
	out := slices.Clone(s.External)
	for _, name := range s.AddressGroups {
		out = append(out, p.blocks[name]...)
	}
	return out
}

func (p *prover) means(s bocage.Side, w *bocage.Workload) bool {
	return (len(s.Namespaces) == 0 || slices.Contains(s.Namespaces, w.Namespace)) && (s.Workload == nil || p.picks(*s.Workload, w))
}

// picks reads a selector against a workload without making its map of labels.
func (p *prover) picks(s bocage.Selector, w *bocage.Workload) bool {
	for key, want := range s.MatchLabels {
		if got, ok := p.label(w, key); !ok || got != want {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		value, ok := p.label(w, r.Key)
		among := ok && slices.Contains(r.Values, value)
		if r.Operator == "In" && !among || r.Operator == "NotIn" && among || r.Operator == "Exists" && !ok || r.Operator == "DoesNotExist" && ok {
			return false
		}
	}
	return true
}

// label is that of a workload, of those that every workload carries too.
func (p *prover) label(w *bocage.Workload, key string) (string, bool) {
	switch key {
	case bocage.LabelNamespace:
		return w.Namespace, true
	case bocage.LabelName:
		return w.Name, true
	case bocage.LabelHost:
		return w.Spec.Host, true
	case bocage.LabelZone:
		zone, ok := p.zones[w.Spec.Host]
		return zone, ok
	case bocage.LabelAssurance:
		return cmp.Or(w.Status.Assurance, bocage.AssuranceOfDeclared), true
	}
	value, ok := w.Labels[key]
	return value, ok
}

// region is a set of cells as a guardrail describes it.
type region struct {
	from, to []map[bocage.Group]bool
	ports    [][]bocage.PortMatch // none in a list: everything
	data     [][]string
}

func (p *prover) region(matches ...bocage.CellMatch) region {
	var r region
	for _, m := range matches {
		if !anyone(m.From) {
			r.from = append(r.from, p.side(m.From))
		}
		if !anyone(m.To) {
			r.to = append(r.to, p.side(m.To))
		}
		r.ports = append(r.ports, m.Ports)
		if len(m.To.Data) > 0 {
			r.data = append(r.data, m.To.Data)
		}
	}
	return r
}

func in(g bocage.Group, sets []map[bocage.Group]bool) bool {
	for _, set := range sets {
		if !set[g] {
			return false
		}
	}
	return true
}

// extent lists the port ranges at which the region may begin or end for a
// receiver.
func (p *prover) extent(r region, to bocage.Group) []span {
	var spans []span
	add := func(port, end uint16, protocol string) {
		if proto, ports, err := bocage.Transport(port, end, protocol); err == nil {
			spans = append(spans, span{proto, ports})
		}
	}
	for _, list := range r.ports {
		for _, m := range list {
			add(m.Port, m.EndPort, m.Protocol)
		}
	}
	if len(r.data) > 0 {
		for _, w := range p.members[to].workloads {
			for _, a := range p.offers[w.NamespacedName()] {
				for _, o := range a.Spec.Provides {
					if len(o.Data) > 0 {
						add(o.Port, o.EndPort, o.Protocol)
					}
				}
			}
		}
	}
	return spans
}

// covers reports whether a cell of a receiver lies in the region.
func (p *prover) covers(r region, to bocage.Group, protocol bocage.Protocol, port uint16) bool {
	at := func(first, last uint16, name string) bool {
		proto, ports, err := bocage.Transport(first, last, name)
		return err == nil && proto == protocol && ports.Contains(port)
	}
	for _, list := range r.ports {
		if len(list) > 0 && !slices.ContainsFunc(list, func(m bocage.PortMatch) bool { return at(m.Port, m.EndPort, m.Protocol) }) {
			return false
		}
	}
	for _, classes := range r.data {
		offered := slices.ContainsFunc(p.members[to].workloads, func(w *bocage.Workload) bool {
			return slices.ContainsFunc(p.offers[w.NamespacedName()], func(a *bocage.Application) bool {
				return slices.ContainsFunc(a.Spec.Provides, func(o bocage.Provide) bool {
					return at(o.Port, o.EndPort, o.Protocol) && slices.ContainsFunc(o.Data, func(d string) bool { return slices.Contains(classes, d) })
				})
			})
		})
		if !offered {
			return false
		}
	}
	return true
}

// violation looks for an allowed cell in the region that is not as it should be
// and that no exception excuses, at any moment at which its decision changes.
func (p *prover) violation(r region, excuses []excuse, wrong func(from, to bocage.Group, d bocage.Decision) bool) string {
	found := ""
	reach := p.reach.withExcuses(excuses, p.groups)
	reach.eachAllowedPair(p.groups, func(g bocage.Group) bool { return in(g, r.from) }, func(g bocage.Group) bool { return in(g, r.to) },
		len(r.data) == 0, func(from, to bocage.Group) bool {
			found = p.violatedBy(from, to, r, excuses, wrong)
			return found == ""
		})
	return found
}

// violatedBy looks for a violation among the cells of one pair.
func (p *prover) violatedBy(from, to bocage.Group, r region, excuses []excuse, wrong func(from, to bocage.Group, d bocage.Decision) bool) string {
	spans := p.extent(r, to)
	for _, e := range excuses {
		spans = append(spans, p.extent(e.region, to)...)
	}
	found := ""
	p.reach.eachCell(from, to, spans, func(protocol bocage.Protocol, ports bocage.PortRange, id bocage.DecisionID) bool {
		if !p.covers(r, to, protocol, ports.First) {
			return true
		}
		meant := slices.DeleteFunc(slices.Clone(excuses), func(e excuse) bool {
			return !in(from, e.region.from) || !in(to, e.region.to) || !p.covers(e.region, to, protocol, ports.First)
		})
		p.reach.eachLink(id, p.in.Now, func(at time.Time, d bocage.Decision) bool {
			if !d.Verdict.Allowed() || !wrong(from, to, d) {
				return true
			}
			if at, unexcused := outlasts(at, d.Until, meant); unexcused {
				found = p.flow(from, to, protocol, ports.First) + " gets " + d.Verdict.String() + by(d)
				if at.After(p.in.Now) {
					found += " from " + at.UTC().Format(time.RFC3339) + " on"
				}
			}
			return found == ""
		})
		return found == ""
	})
	return found
}

func by(d bocage.Decision) string {
	if len(d.By) == 0 {
		return ""
	}
	return " by " + d.By[0].String()
}

// flow says a cell in people's words.
func (p *prover) flow(from, to bocage.Group, protocol bocage.Protocol, port uint16) string {
	text := fmt.Sprintf("%s -> %s %s", p.who(from), p.who(to), protocol)
	if protocol.HasPorts() {
		text += fmt.Sprintf("/%d", port)
	}
	return text
}

func (p *prover) who(g bocage.Group) string {
	m := p.members[g]
	switch {
	case m == nil:
		return fmt.Sprintf("group %d", g)
	case len(m.workloads) > 0:
		return fmt.Sprintf("%s (%s)", m.name, m.workloads[0].Spec.Addresses[0])
	default:
		return m.name
	}
}

func proof(statement string, by bocage.Ref, counterexample string) bocage.Proof {
	return bocage.Proof{Statement: statement, By: by, Holds: counterexample == "", Counterexample: counterexample}
}
