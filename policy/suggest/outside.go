package suggest

import (
	"net/netip"
	"slices"
)

const (
	// together is how many addresses of one network make a service of that
	// network rather than of each.
	together = 4
	// everywhere and corners say when addresses are all over the world.
	everywhere = 32
	corners    = 8
)

// prefixes writes addresses outside as few prefixes: several of one small network
// as the smallest that holds them, and a crowd from all over as everybody.
func prefixes(addresses []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, family := range []func(netip.Addr) bool{
		func(a netip.Addr) bool { return a.Is4() && !a.IsPrivate() },
		func(a netip.Addr) bool { return a.Is4() && a.IsPrivate() },
		func(a netip.Addr) bool { return a.Is6() },
	} {
		var of []netip.Addr
		for _, a := range addresses {
			if family(a) {
				of = append(of, a)
			}
		}
		out = append(out, gathered(of)...)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return out
}

func gathered(addresses []netip.Addr) []netip.Prefix {
	if len(addresses) == 0 {
		return nil
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	addresses = slices.Compact(addresses)
	network, corner := 24, 8
	if addresses[0].Is6() {
		network, corner = 64, 32
	}
	far := map[netip.Prefix]bool{}
	var out []netip.Prefix
	for i := 0; i < len(addresses); {
		around := prefixOf(addresses[i], network)
		far[prefixOf(addresses[i], corner)] = true
		j := i
		for j < len(addresses) && around.Contains(addresses[j]) {
			j++
		}
		if j-i >= together {
			out = append(out, common(addresses[i], addresses[j-1]))
		} else {
			for _, a := range addresses[i:j] {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		i = j
	}
	if len(out) >= everywhere && len(far) >= corners && !addresses[0].IsPrivate() {
		return []netip.Prefix{prefixOf(addresses[0], 0)}
	}
	return out
}

func prefixOf(a netip.Addr, bits int) netip.Prefix { return netip.PrefixFrom(a, bits).Masked() }

// common is the smallest prefix that holds both.
func common(a, b netip.Addr) netip.Prefix {
	bits := a.BitLen()
	for !prefixOf(a, bits).Contains(b) {
		bits--
	}
	return prefixOf(a, bits)
}
