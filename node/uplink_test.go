package node

import (
	"errors"
	"fmt"
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

// Every link that is left alone is told, with whom it is left alone for.
func TestRootFailsafe(t *testing.T) {
	hosttest.Root(t)
	here, there := hosttest.Namespace(t), hosttest.Namespace(t)
	for i, name := range []string{"eth0", "eth1", "eth2", "work0"} {
		must(t, host.CreateVeth(host.Veth{Name: name, Namespace: here, Peer: name, PeerNamespace: there}))
		must(t, host.AddAddress(here, name, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 98, byte(i), 1}), 24)))
	}
	must(t, host.AddRoute(here, host.Route{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.98.0.254")}))
	t.Setenv("SSH_CONNECTION", "10.98.1.9 50000 10.98.1.1 22")
	c := Config{Controllers: []string{"10.98.1.7:4222", "10.98.2.7:4222"}, Uplinks: []string{"eth2"}}
	must(t, host.In(here, func() error {
		links, err := host.Links("")
		if err != nil {
			return err
		}
		entries, err := c.failsafe(links)
		got := fmt.Sprint(entries)
		if want := "[{eth0 [the default route]} {eth1 [the administrator at 10.98.1.9 the controller at 10.98.1.7:4222]}]"; got != want {
			t.Errorf("failsafe %s, want %s", got, want)
		}
		return err
	}))
}
