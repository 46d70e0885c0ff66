package bocage

import (
	"cmp"
	"net/netip"
	"slices"
)

// Name binds a pattern of DNS names to the group under which rules know it. No
// peer has that group: whether an address outside goes by the name, and until
// when, is what the enforcement point heard the DNS tell the workload.
type Name struct {
	Name  DomainName `json:"name"`
	Group Group      `json:"group"`
}

// CompareNames orders names as Ruleset.Names has them.
func CompareNames(a, b Name) int { return cmp.Compare(a.Name, b.Name) }

// YieldsToNames reports whether a refusal is merely the lack of an allow, which a
// name may give. What somebody refuses, no name opens.
func (d Decision) YieldsToNames() bool {
	return !d.Verdict.Allowed() && (d.Code == ReasonDefaultDeny || d.Code == ReasonKubernetes && !d.Final)
}

// DecideNamed is Decide for a flow whose source was told, of the destination's
// address, that it is that of these names, canonical ones, and may still go by
// that. What the address itself is allowed or refused comes first. A name opens
// nothing but addresses outside the inventory: else whoever answers for a name
// could open the way to a neighbour.
func (r *Ruleset) DecideNamed(f Flow, names ...DomainName) (Verdict, Reason) {
	source, destination := r.Lookup(f.Source), r.Lookup(f.Destination)
	verdict, reason := r.decide(source, destination, f)
	if destination.Workload != "" || destination.Identity != IdentityWorld || !NamesMayMean(f.Destination) || reason.Code == ReasonQuarantine {
		return verdict, reason
	}
	ix := r.indexed()
	if base := ix.decisions.find()[reason.Decision]; !base.YieldsToNames() {
		return verdict, reason
	}
	for _, name := range r.Names {
		if !slices.ContainsFunc(names, name.Name.Matches) {
			continue
		}
		// Only who consumes the name opens it: what Kubernetes accepts towards anywhere,
		// it has said of the address.
		id, found := find(ix.rules.find(), source.Group, name.Group, f.Protocol, portOf(f))
		if decision := ix.at(id, f.At); found && decision.Verdict.Allowed() && decision.Code == ReasonRule {
			return decision.Verdict, Reason{Code: decision.Code, Decision: decision.ID, Would: decision.Verdict}
		}
	}
	return verdict, reason
}

// portOf is the destination port of a flow, zero without ports.
func portOf(f Flow) uint16 {
	if !f.Protocol.HasPorts() {
		return 0
	}
	return f.DestinationPort
}

// NamesMayMean reports whether an address can be one that a name stands for: a
// unicast one that is more than this host's or this link's. Others are never
// outside in the sense of a contract, whatever the DNS says.
func NamesMayMean(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return false
	}
	if a.Is4() {
		b := a.As4()
		return b[0] != 0 && b[0] < 240
	}
	return true
}
