package simulate

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"unsafe"

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

// TestTable6 holds the table against a map, with prefixes that leave no room where
// they belong.
func TestTable6(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		length := rapid.SampledFrom([]int{128, 64, 17, 0}).Draw(t, "length")
		room := rapid.IntRange(1, 300).Draw(t, "room")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 3))
		address := func() wide { return wide{uint64(r.IntN(20)) << (44 + r.IntN(20)), uint64(r.IntN(60))} }
		table, want := newTable6(length, room), map[wide]int32{}
		for i := range r.IntN(room + 1) {
			a := address()
			table.put(a, int32(i))
			want[a.and(table.mask)] = int32(i)
		}
		for range 500 {
			a := address()
			number, known := want[a.and(table.mask)]
			if !known {
				number = none
			}
			if got := table.get(a); got != number {
				t.Fatalf("%x is %d, want %d", a, got, number)
			}
		}
	})
}

// TestLine6 is about a line of the cache, which is what the table is made of.
func TestLine6(t *testing.T) {
	if size := unsafe.Sizeof(line6{}); size != 64 {
		t.Errorf("%d bytes", size)
	}
}
