package prove

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"bocage.dev/bocage"
)

// whole is the author of statements about the whole generation: no declaration, but the
// policy room itself.
func whole(field string) bocage.Ref {
	return bocage.Ref{Kind: "Generation", Name: "policy", Field: field}
}

// totality proves that the ruleset has no gap: every address has a group that is described,
// every id that a rule names exists, and no two rules of a pair overlap.
func (p *prover) totality() bocage.Proof {
	return proof("every workload and every flow of it has a decision", whole("totality"), p.totalityGap())
}

func (p *prover) totalityGap() string {
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

// endless finds a fault in the chain of a decision's successors: one that is missing, that
// ends before it begins, or a chain that is too long.
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

// unplaced finds a workload without a peer, although no other workload claims its identity,
// addresses or interfaces.
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
