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
	Name DomainName `json:"name"`
	// Tier is that of the ClusterNetworkPolicies that accept the name; empty: contracts
	// consume it. Each of them knows the name by a group of its own.
	Tier  string `json:"tier,omitempty"`
	Group Group  `json:"group"`
}

// CompareNames orders names as Ruleset.Names has them.
func CompareNames(a, b Name) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Tier, b.Tier))
}

// Ranks are places among the rules of ClusterNetworkPolicies, one in each tier. The
// rule that stands first has the lowest; none has zero.
type Ranks struct {
	Admin    uint32 `json:"admin,omitempty"`
	Baseline uint32 `json:"baseline,omitempty"`
}

// EveryRank is above those of all rules.
const EveryRank = ^uint32(0)

// YieldsToNames reports whether a refusal is merely the lack of an allow, which a
// contract that consumes a name may give. What somebody refuses, no contract opens.
func (d Decision) YieldsToNames() bool {
	return !d.Verdict.Allowed() && (d.Code == ReasonDefaultDeny || d.Code == ReasonKubernetes && !d.Final)
}

// Yields tells before which rules that accept a name a refusal gives way: those whose
// rank is lower in their tier.
func (d Decision) Yields() Ranks {
	switch {
	case d.Verdict.Allowed() || d.Code != ReasonDefaultDeny && d.Code != ReasonKubernetes:
		return Ranks{}
	case d.Ranks != (Ranks{}):
		return d.Ranks
	case d.Code == ReasonDefaultDeny:
		return Ranks{EveryRank, EveryRank}
	case d.Final:
		return Ranks{}
	}
	return Ranks{Admin: EveryRank} // isolation, which the tier Admin precedes
}

// MayYield reports whether there can be a name that opens what was refused.
func (d Decision) MayYield() bool { return d.YieldsToNames() || d.Yields() != Ranks{} }

// Opens reports whether a decision towards a name lets pass what was refused of an
// address that goes by it. Only who consumes or accepts the name itself counts: what
// others accept towards anywhere, they have said of the address.
func (d Decision) Opens(refused Decision) bool {
	if !d.Verdict.Allowed() {
		return false
	}
	if d.Ranks == (Ranks{}) {
		return d.Code == ReasonRule && refused.YieldsToNames()
	}
	yields := refused.Yields()
	return d.Ranks.Admin != 0 && d.Ranks.Admin < yields.Admin || d.Ranks.Baseline != 0 && d.Ranks.Baseline < yields.Baseline
}

// DecideNamed is Decide for a flow whose source was told, of the destination's
// address, that it is that of these names, canonical ones, and may still go by
// that. What the address itself is allowed or refused comes first, but for what a
// ClusterNetworkPolicy accepts by name before Kubernetes refuses the address. A name
// opens nothing but addresses outside the inventory: else whoever answers for a name
// could open the way to a neighbour.
func (r *Ruleset) DecideNamed(f Flow, names ...DomainName) (Verdict, Reason) {
	source, destination := r.Lookup(f.Source), r.Lookup(f.Destination)
	verdict, reason := r.decide(source, destination, f)
	if destination.Workload != "" || destination.Identity != IdentityWorld || !NamesMayMean(f.Destination) || reason.Code == ReasonQuarantine {
		return verdict, reason
	}
	ix := r.indexed()
	base := ix.decisions.find()[reason.Decision]
	if !base.MayYield() {
		return verdict, reason
	}
	for _, name := range r.Names {
		if !slices.ContainsFunc(names, name.Name.Matches) {
			continue
		}
		id, found := r.named(source.Group, name.Group, f.Protocol, portOf(f))
		if decision := ix.at(id, f.At); found && decision.Opens(base) {
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

// NeverNamed lists the prefixes of the addresses that no name stands for: those of which
// NamesMayMean says no.
func NeverNamed() []netip.Prefix {
	four := func(a, b byte, bits int) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b}), bits) }
	six := func(a, b byte, bits int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{a, b}), bits)
	}
	return []netip.Prefix{four(0, 0, 8), four(127, 0, 8), four(169, 254, 16), four(224, 0, 3),
		six(0, 0, 128), netip.PrefixFrom(netip.IPv6Loopback(), 128), six(0xfe, 0x80, 10), six(0xff, 0, 8)}
}
