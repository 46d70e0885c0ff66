package prove

import (
	"fmt"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/explain"
)

// mostOpinions bounds the work of the second opinion, in flows times objects.
const mostOpinions = 400_000

// secondOpinion compares the ruleset with package explain's Judge, which reads declarations
// directly, for flows at the edges of the rules' port ranges.
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

// namedOpinion does the same for flows to a DNS name, at an external address about which
// nothing specific is declared.
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
