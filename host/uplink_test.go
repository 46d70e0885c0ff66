package host_test

import (
	"net/netip"
	"slices"
	"testing"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// TestRootUplinks finds the link of the default route and that of an address.
func TestRootUplinks(t *testing.T) {
	hosttest.Root(t)
	near, far := hosttest.Namespace(t), hosttest.Namespace(t)
	for i, name := range []string{"up0", "side0", "work0"} {
		if err := host.CreateVeth(host.Veth{Name: name, Namespace: near, Peer: name, PeerNamespace: far}); err != nil {
			t.Fatal(err)
		}
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(i), 1}), 24)
		if err := host.AddAddress(near, name, prefix); err != nil {
			t.Fatal(err)
		}
	}
	if err := host.AddRoute(near, host.Route{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.99.0.2")}); err != nil {
		t.Fatal(err)
	}
	index := func(name string) uint32 {
		link, err := host.LinkNamed(near, name)
		if err != nil {
			t.Fatal(err)
		}
		return link.Index
	}
	for _, c := range []struct {
		addresses []netip.Addr
		want      []uint32
	}{
		{nil, []uint32{index("up0")}},
		{[]netip.Addr{netip.MustParseAddr("10.99.1.7")}, []uint32{index("up0"), index("side0")}},
		{[]netip.Addr{netip.MustParseAddr("10.99.1.1"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("2001:db8::1")}, []uint32{index("up0")}},
	} {
		slices.Sort(c.want)
		err := host.In(near, func() error {
			got, err := host.Uplinks(c.addresses...)
			if !slices.Equal(got, c.want) {
				t.Errorf("uplinks with %v: got %v, want %v", c.addresses, got, c.want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
