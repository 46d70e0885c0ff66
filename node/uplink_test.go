package node

import (
	"errors"
	"net/netip"
	"testing"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// TestRootUplinkOfTheSession refuses to enforce on the interface by which the
// administrator came, unless the risk is accepted.
func TestRootUplinkOfTheSession(t *testing.T) {
	hosttest.Root(t)
	here, there := hosttest.Namespace(t), hosttest.Namespace(t)
	for i, name := range []string{"eth0", "work0"} {
		if err := host.CreateVeth(host.Veth{Name: name, Namespace: here, Peer: name, PeerNamespace: there}); err != nil {
			t.Fatal(err)
		}
		if err := host.AddAddress(here, name, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 98, byte(i), 1}), 24)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SSH_CONNECTION", "10.98.0.9 50000 10.98.0.1 22")
	for _, c := range []struct {
		uplinks []string
		accept  bool
		risky   bool
	}{
		{nil, false, false},
		{[]string{"work0"}, false, false},
		{[]string{"eth0"}, false, true},
		{[]string{"eth0"}, true, false},
	} {
		err := host.In(here, func() error { return Config{Uplinks: c.uplinks, AcceptRisk: c.accept}.checkUplinks() })
		if errors.Is(err, ErrRisky) != c.risky || err != nil && !c.risky {
			t.Errorf("uplinks %v, accepted %v: %v", c.uplinks, c.accept, err)
		}
	}
}
