package simulate

import (
	"net/netip"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/policytest"
)

// TestBystanders: what becomes of flows between ends that are no workloads is for
// whoever asks to say, at every moment.
func TestBystanders(t *testing.T) {
	in := compile.Input{Now: policytest.Now,
		Workloads: []*bocage.Workload{{ObjectMeta: bocage.ObjectMeta{Namespace: "x", Name: "a"},
			Spec:   bocage.WorkloadSpec{Host: "h", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
			Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst}}},
		Hosts:           []*bocage.Host{{ObjectMeta: bocage.ObjectMeta{Name: "h"}, Spec: bocage.HostSpec{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}},
		NetworkPolicies: []*bocage.NetworkPolicy{{ObjectMeta: bocage.ObjectMeta{Namespace: "y", Name: "p"}}}}
	for _, test := range []struct {
		bystanders Bystanders
		from, to   string
		allow      bool
	}{
		{BystandersOfClusters, "h", "203.0.113.1", true},
		{BystandersOfClusters, "203.0.113.1", "192.0.2.1", true},
		{BystandersOfClusters, "203.0.113.1", "203.0.113.2", false},
		{BystandersAccepted, "203.0.113.1", "203.0.113.2", true},
		{BystandersAccepted, "203.0.113.1", "x/a", false}, // a workload: its own default counts
		{BystandersRefused, "h", "203.0.113.1", false},
		{BystandersRefused, "203.0.113.1", "h", false},
	} {
		asked, _ := Compile(in)
		asked.Bystanders(test.bystanders)
		s, _ := Compile(in)
		s.BystandersAs(asked)
		for _, at := range []time.Time{{}, in.Now.Add(-time.Hour)} {
			a := s.Answer(bocage.SimulateProbe{From: test.from, To: test.to, Port: 80, At: at})
			if a.Error != "" || (a.Verdict == "allow") != test.allow {
				t.Errorf("%d: %s -> %s at %s: %+v", test.bystanders, test.from, test.to, at, a)
			}
		}
	}
}
