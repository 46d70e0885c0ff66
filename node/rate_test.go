package node

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/policy/compile"
)

// A rate goes all the way: declared in a guardrail, compiled, cut for the host, kept
// by its enforcement point, and told by whom it was declared.
func TestRootRateIsKept(t *testing.T) {
	s := newSiege(t)
	in := compile.Input{
		Generation: 1, Now: time.Now(),
		Workloads: []*bocage.Workload{{ObjectMeta: bocage.ObjectMeta{Namespace: "a", Name: "b"},
			Spec:   bocage.WorkloadSpec{Host: "h1", Interface: "work0", Addresses: []netip.Addr{s.admin}},
			Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst}}},
		Scopes: []*bocage.Scope{{ObjectMeta: bocage.ObjectMeta{Name: "all"}, Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce}}},
		Guardrails: []*bocage.Guardrail{{ObjectMeta: bocage.ObjectMeta{Name: "slowly"}, Spec: bocage.GuardrailSpec{
			Grant:   []bocage.CellMatch{{From: bocage.Side{Namespaces: []string{"a"}}, To: bocage.Side{External: []netip.Prefix{netip.PrefixFrom(s.local, 32)}}}},
			Require: &bocage.Duties{Rate: "1/s"},
		}}},
	}
	out := compile.Compile(in)
	if out.Faults != nil || len(out.Findings()) > 0 {
		t.Fatalf("%v, %v", out.Faults, out.Findings())
	}
	s.enforce(t, compile.NewCutter(out.Ruleset(), in).Cut("h1"))
	var listener net.Listener
	must(t, host.In(s.here, func() (err error) { listener, err = net.Listen("tcp", s.local.String()+":80"); return err }))
	defer listener.Close()
	packet := bocage.TracePacket{Source: "a/b", Destination: s.local.String(), Protocol: bocage.ProtocolTCP, DestinationPort: 80}
	asked := func(reason bocage.ReasonCode, outcome, said string) (in bool) {
		t.Helper()
		trace, err := s.trace(t, packet)
		if err == nil && trace.Kernel.Reason == bocage.ReasonRule && reason != bocage.ReasonRule {
			return false
		}
		if err != nil || trace.Kernel.Reason != reason || trace.Outcome != outcome || trace.Disagreement != "" {
			t.Fatalf("%+v, %v", trace, err)
		}
		found := false
		for _, step := range trace.Steps {
			found = found || step.Name == "rate" && strings.Contains(step.Said, said)
		}
		by := trace.Kernel.By
		if !found || len(by) != 2 || by[1].String() != "Guardrail slowly spec.require.rate" {
			t.Errorf("by %v: %+v", by, trace.Steps)
		}
		return true
	}
	asked(bocage.ReasonRule, "passes", "turn has come")
	limited := 0
	for begun := time.Now(); limited < 2; { // the second begins by being sent again
		must(t, host.In(s.there, func() error {
			c, err := net.DialTimeout("tcp", listener.Addr().String(), time.Minute)
			if err == nil {
				c.Close()
			}
			return err
		}))
		if asked(bocage.ReasonRateLimited, "dropped", "before its turn") {
			limited++
		} else if time.Since(begun) > time.Minute { // on a busy machine a second is soon over
			t.Fatal("another may always begin, right after one has")
		}
	}
}
