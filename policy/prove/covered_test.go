package prove

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// TestTaken compares with asking for every address.
func TestTaken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := &bocage.Ruleset{}
		for range rapid.IntRange(1, 40).Draw(t, "peers") {
			address, bits := netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 15).Draw(t, "last"))}), 32
			if rapid.Bool().Draw(t, "v6") {
				address, bits = netip.MustParseAddr("fd00::"), 128
				raw := address.As16()
				raw[15] = byte(rapid.IntRange(0, 15).Draw(t, "last"))
				address = netip.AddrFrom16(raw)
			}
			rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.PrefixFrom(address, rapid.IntRange(bits-5, bits).Draw(t, "bits")).Masked()})
		}
		slices.SortFunc(rs.Peers, byPrefix)
		rs.Peers = slices.CompactFunc(rs.Peers, func(a, b bocage.Peer) bool { return a.Prefix == b.Prefix })
		p := &prover{rs: rs, peers: rs.Peers}
		for _, peer := range rs.Peers {
			want := true
			for a := peer.Prefix.Addr(); peer.Prefix.Contains(a); a = a.Next() {
				want = want && rs.Lookup(a).Prefix != peer.Prefix
			}
			if got := p.covered(peer.Prefix); got != want {
				t.Fatalf("%s is taken: %v, want %v, of %v", peer.Prefix, got, want, rs.Peers)
			}
		}
	})
}

func TestLastOf(t *testing.T) {
	for prefix, want := range map[string]string{
		"0.0.0.0/0": "255.255.255.255", "10.0.0.0/30": "10.0.0.3", "10.0.0.8/32": "10.0.0.8", "10.0.0.0/9": "10.127.255.255",
		"::/0": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fd00::/127": "fd00::1", "fd00::/7": "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		if got := lastOf(netip.MustParsePrefix(prefix)); got.String() != want {
			t.Errorf("%s ends at %s, want %s", prefix, got, want)
		}
	}
}
