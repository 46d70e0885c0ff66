package node

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

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
	for i, name := range []string{"eth0", "eth1", "eth2", "eth3", "work0"} {
		must(t, host.CreateVeth(host.Veth{Name: name, Namespace: here, Peer: name, PeerNamespace: there}))
		must(t, host.AddAddress(here, name, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 98, byte(i), 1}), 24)))
	}
	must(t, host.AddRoute(here, host.Route{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.98.0.254")}))
	t.Setenv("SSH_CONNECTION", "10.98.1.9 50000 10.98.1.1 22")
	c := Config{Controllers: []string{"10.98.2.7:4222", "10.98.3.7:4222"}, Uplinks: []string{"eth2"}}
	must(t, host.In(here, func() error {
		links, err := host.Links("")
		if err != nil {
			return err
		}
		var a starter
		begin := time.Now()
		a.find(begin)
		over := begin.Add(time.Hour)
		for _, step := range []struct {
			at   time.Time
			live []string // sessions, by where they come from; nil: it cannot be known
			want string
		}{
			{begin, nil, "[{eth0 [the default route] lasts} {eth1 [the administrator at 10.98.1.9] lasts} {eth3 [the controller at 10.98.3.7:4222] lasts}]"},
			{over, []string{"10.98.9.9:1", "10.98.1.9:50000"}, "[{eth0 [the default route] lasts} {eth1 [the administrator at 10.98.1.9] lasts} {eth3 [the controller at 10.98.3.7:4222] lasts}]"},
			{over.Add(comeBackWithin - 1), []string{"10.98.9.9:1"}, "[{eth0 [the default route] lasts} {eth1 [the administrator at 10.98.1.9] 10m0s} {eth3 [the controller at 10.98.3.7:4222] lasts}]"},
			{over.Add(comeBackWithin), []string{}, "[{eth0 [the default route] lasts} {eth3 [the controller at 10.98.3.7:4222] lasts}]"},
			{over.Add(time.Hour), nil, "[{eth0 [the default route] lasts} {eth3 [the controller at 10.98.3.7:4222] lasts}]"},
			{over.Add(2 * time.Hour), []string{"10.98.1.9:50001"}, "[{eth0 [the default route] lasts} {eth1 [the administrator at 10.98.1.9] lasts} {eth3 [the controller at 10.98.3.7:4222] lasts}]"},
		} {
			err := a.look(step.at, func() (all []host.Connection, _ []uint16, _ error) {
				if step.live == nil {
					return nil, nil, errors.New("no /proc")
				}
				for _, from := range step.live {
					all = append(all, host.Connection{Peer: netip.MustParseAddrPort(from), Local: netip.MustParseAddrPort("10.98.1.1:22")})
				}
				// Another server's client is none of the administrator's sessions.
				return append(all, host.Connection{Peer: netip.MustParseAddrPort("10.98.1.9:7"), Local: netip.MustParseAddrPort("10.98.1.1:80")}), nil, nil
			})
			if (err != nil) != (step.live == nil) {
				t.Errorf("at %v: %v", step.at.Sub(over), err)
			}
			entries, err := c.failsafe(links, append(a.keeper(step.at), c.controllers()...))
			if err != nil {
				return err
			}
			var got []string
			for _, e := range entries {
				end := "lasts"
				if !e.Until.IsZero() {
					end = e.Until.Sub(over).String()
				}
				got = append(got, fmt.Sprintf("{%s %v %s}", e.Interface, e.For, end))
			}
			if fmt.Sprint(got) != step.want {
				t.Errorf("%v after the session: %s, want %s", step.at.Sub(over), got, step.want)
			}
		}
		// Who shares his way with a controller does not end it.
		both, err := c.failsafe(links, []keeper{{"somebody", netip.MustParseAddr("10.98.3.9"), over}, c.controllers()[1]})
		if err != nil || len(both) != 2 || !both[1].Until.IsZero() || len(both[1].For) != 2 {
			t.Errorf("a way of two: %v, %v", both, err)
		}
		return nil
	}))
}
