package bocage

import (
	"cmp"
	"net/netip"
	"slices"
)

// Name binds a pattern of DNS names to the group that rules use for it. No peer has that
// group: which external addresses have the name, and until when, the enforcement point
// learns from the DNS answers that the workload gets.
type Name struct {
	Name DomainName `json:"name"`
	// Tier is that of the ClusterNetworkPolicies that accept the name; empty if contracts
	// consume it. The same name has a group of its own for each of these.
	Tier  string `json:"tier,omitempty"`
	Group Group  `json:"group"`
}

// CompareNames orders names as Ruleset.Names has them.
func CompareNames(a, b Name) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Tier, b.Tier))
}

// Ranks are places in the order of the rules of ClusterNetworkPolicies, one for each tier.
// The first rule has the lowest rank; zero means none.
type Ranks struct {
	Admin    uint32 `json:"admin,omitempty"`
	Baseline uint32 `json:"baseline,omitempty"`
}

// EveryRank is higher than the rank of any rule.
const EveryRank = ^uint32(0)

// YieldsToNames reports whether a contract that consumes a name can open what the decision
// refuses: only if it is refused because nothing allows it, not because somebody forbids it.
func (d Decision) YieldsToNames() bool {
	return !d.Verdict.Allowed() && (d.Code == ReasonDefaultDeny || d.Code == ReasonKubernetes && !d.Final)
}

// Yields returns the ranks below which a rule of a ClusterNetworkPolicy that accepts a name
// has precedence over the refusal.
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

// MayYield reports whether any name can open what the decision refuses.
func (d Decision) MayYield() bool { return d.YieldsToNames() || d.Yields() != Ranks{} }

// Opens reports whether a decision towards a name allows a flow that was refused by
// address. Only declarations about the name itself count: those about any destination have
// already counted for the address.
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

// DecideNamed is Decide for a flow whose source knows the destination's address by these
// names, in canonical form, from valid DNS answers. The decision about the address itself
// comes first, except that a ClusterNetworkPolicy may accept the name before a later rule
// refuses the address. A name opens only addresses outside the inventory: otherwise whoever
// controls a DNS zone could open the way to a workload.
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

// NamesMayMean reports whether a name can open an address: only a unicast one with a scope
// beyond the host and the link. Other addresses are never external in the sense of a
// contract, whatever the DNS says.
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

// NeverNamed lists the prefixes of the addresses for which NamesMayMean is false.
func NeverNamed() []netip.Prefix {
	four := func(a, b byte, bits int) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{a, b}), bits) }
	six := func(a, b byte, bits int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{a, b}), bits)
	}
	return []netip.Prefix{four(0, 0, 8), four(127, 0, 8), four(169, 254, 16), four(224, 0, 3),
		six(0, 0, 128), netip.PrefixFrom(netip.IPv6Loopback(), 128), six(0xfe, 0x80, 10), six(0xff, 0, 8)}
}
