package simulate

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// TestPlaces compares with trying every prefix, the longest first and of equal
// ones the last.
func TestPlaces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		six := rapid.Bool().Draw(t, "IPv6")
		// Few values per byte, so that prefixes lie within one another.
		address := func() netip.Addr {
			bytes := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 8, 0x0f, 0x10, 0x80, 0xff}), 16, 16).Draw(t, "bytes")
			if six {
				return netip.AddrFrom16([16]byte(bytes))
			}
			return netip.AddrFrom4([4]byte(bytes))
		}
		var list []bocage.Peer
		var asked []netip.Addr
		for range rapid.IntRange(0, 40).Draw(t, "prefixes") {
			a := address()
			if len(list) > 0 && rapid.Bool().Draw(t, "near") {
				a = list[rapid.IntRange(0, len(list)-1).Draw(t, "whom")].Prefix.Addr()
			}
			prefix := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
			list = append(list, bocage.Peer{Prefix: prefix})
			last := prefix.Masked().Addr().AsSlice()
			for i := prefix.Bits(); i < a.BitLen(); i++ {
				last[i/8] |= 0x80 >> (i % 8)
			}
			end, _ := netip.AddrFromSlice(last)
			asked = append(asked, a, prefix.Masked().Addr(), prefix.Masked().Addr().Prev(), end, end.Next())
		}
		p := newPlaces(list, func(i int) int32 { return int32(i) })
		for range 20 {
			asked = append(asked, address())
		}
		for _, a := range asked {
			if !a.IsValid() {
				continue
			}
			want := int32(none)
			for i, peer := range list {
				if peer.Prefix.Contains(a) && (want == none || peer.Prefix.Bits() >= list[want].Prefix.Bits()) {
					want = int32(i)
				}
			}
			if got := p.find(a); got != want {
				t.Fatalf("%s: %d, want %d of %v", a, got, want, list)
			}
		}
	})
}
