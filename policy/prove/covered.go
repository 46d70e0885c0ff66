package prove

import (
	"cmp"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// covered reports whether longer prefixes cover all addresses of a prefix. Then no address
// is in the group of the prefix, since the longest prefix decides.
func (p *prover) covered(prefix netip.Prefix) bool {
	prefix = canonical(prefix)
	next, end := prefix.Addr(), lastOf(prefix)
	i, _ := slices.BinarySearchFunc(p.peers, prefix, func(peer bocage.Peer, of netip.Prefix) int { return comparePrefixes(peer.Prefix, of) })
	for ; i < len(p.peers); i++ {
		inner := canonical(p.peers[i].Prefix)
		switch {
		case inner == prefix:
			continue
		case !prefix.Contains(inner.Addr()) || next.Less(inner.Addr()):
			return false // nobody else has next
		}
		last := lastOf(inner)
		if last.Less(next) {
			continue // within the one before
		}
		if last == end {
			return true
		}
		next = last.Next()
	}
	return false
}

func byPrefix(a, b bocage.Peer) int { return comparePrefixes(a.Prefix, b.Prefix) }

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// lastOf is the last address of a prefix.
func lastOf(prefix netip.Prefix) netip.Addr {
	raw := prefix.Addr().AsSlice()
	for i := range raw {
		if host := 8*(i+1) - prefix.Bits(); host >= 8 {
			raw[i] = 0xff
		} else if host > 0 {
			raw[i] |= 1<<host - 1
		}
	}
	last, _ := netip.AddrFromSlice(raw)
	return last
}
