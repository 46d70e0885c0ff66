package node

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// asked is the siege's host with its port attached and a ruleset in force.
func (s *siege) enforce(t *testing.T, rs *bocage.Ruleset) {
	t.Helper()
	must(t, host.In(s.here, func() error {
		link, err := host.LinkNamed("", "work0")
		if err != nil {
			return err
		}
		if err := s.agent.dataplane.Attach(dataplane.Attachment{Ifindex: link.Index, Port: rs.Ports[0]}); err != nil {
			return err
		}
		return s.agent.dataplane.Apply(rs)
	}))
	s.agent.ruleset.Store(rs)
}

func (s *siege) trace(t *testing.T, p bocage.TracePacket) (trace bocage.Trace, err error) {
	t.Helper()
	must(t, host.In(s.here, func() error { trace, err = s.agent.trace(p); return nil }))
	return trace, err
}

// A packet is found its enforcement point, goes through the programs, and stands
// beside what the model says.
func TestRootTrace(t *testing.T) {
	s := newSiege(t)
	s.enforce(t, s.ruleset(1, true))
	from, to := bocage.DirectionFrom, bocage.DirectionTo
	echoReply := uint8(0)
	work, err := host.LinkNamed(s.there, "eth0")
	must(t, err)
	unknown := make([]byte, 40) // by its own address: it may be known by then, since IPv6 sends by itself
	copy(unknown[6:], work.MAC)
	for _, c := range []struct {
		packet              bocage.TracePacket
		direction           bocage.Direction
		outcome, says, said string
		reason              bocage.ReasonCode
	}{
		{bocage.TracePacket{Source: "a/b", Destination: s.local.String(), Protocol: bocage.ProtocolTCP, DestinationPort: 22}, from,
			"passes", "rule", "one of kind", bocage.ReasonRule},
		{bocage.TracePacket{Source: s.local.String(), Destination: "a/b", Protocol: bocage.ProtocolTCP, DestinationPort: 22}, to,
			"dropped", "rule", "the default decides", bocage.ReasonDefaultDeny},
		{bocage.TracePacket{Source: "a/b", Destination: s.local.String(), Protocol: bocage.ProtocolTCP, DestinationPort: 22, Flags: []string{"rst"}}, from,
			"passes", "flow", "none is known", bocage.ReasonRule},
		{bocage.TracePacket{Source: "10.96.0.77", Destination: s.local.String(), Protocol: bocage.ProtocolTCP, DestinationPort: 22, Interface: "work0", Direction: &from}, from,
			"dropped", "admit", "not the port's", bocage.ReasonSpoofed},
		{bocage.TracePacket{Source: "a/b", Destination: s.local.String(), Protocol: bocage.ProtocolICMP}, from,
			"dropped", "rule", "the default decides", bocage.ReasonDefaultDeny},
		{bocage.TracePacket{Source: "a/b", Destination: s.local.String(), Protocol: bocage.ProtocolICMP, ICMPType: &echoReply}, from,
			"dropped", "decision", "invalid-state", bocage.ReasonInvalidState},
		{bocage.TracePacket{Interface: "work0", Direction: &from, Frame: unknown}, from, "dropped", "", "", bocage.ReasonDefaultDeny},
	} {
		trace, err := s.trace(t, c.packet)
		if err != nil {
			t.Errorf("%+v: %v", c.packet, err)
			continue
		}
		if trace.Outcome != c.outcome || trace.Direction != c.direction || trace.Interface != "work0" || trace.Disagreement != "" ||
			trace.Kernel.Reason != c.reason || trace.Kernel.Generation != 1 {
			t.Errorf("%+v: %+v", c.packet, trace)
		}
		found := c.says == ""
		for _, step := range trace.Steps {
			found = found || step.Name == c.says && strings.Contains(step.Said, c.said)
		}
		if !found {
			t.Errorf("%+v: no step %s says %q: %+v", c.packet, c.says, c.said, trace.Steps)
		}
	}
	for says, p := range map[string]bocage.TracePacket{
		"no such workload":     {Source: "a/nobody", Destination: s.local.String(), Protocol: bocage.ProtocolTCP, DestinationPort: 1},
		"no enforcement point": {Source: "a/b", Destination: s.local.String(), Protocol: bocage.ProtocolTCP, DestinationPort: 1, Interface: "eth9"},
		"say --interface":      {Source: "10.1.1.1", Destination: "10.1.1.2", Protocol: bocage.ProtocolTCP, DestinationPort: 1},
		"say --direction":      {Source: "10.1.1.1", Destination: "10.1.1.2", Protocol: bocage.ProtocolTCP, DestinationPort: 1, Interface: "work0"},
		"not of one family":    {Source: "a/b", Destination: "fd00::1", Protocol: bocage.ProtocolTCP, DestinationPort: 1},
		"protocol: is missing": {Source: "a/b", Destination: s.local.String()},
	} {
		if _, err := s.trace(t, p); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want an error that says %q", p, err, says)
		}
	}
	// A model that says otherwise than the kernel is told, loudly.
	other := s.ruleset(1, false)
	s.agent.ruleset.Store(other)
	trace, err := s.trace(t, bocage.TracePacket{Source: "a/b", Destination: s.local.String(), Protocol: bocage.ProtocolTCP, DestinationPort: 22})
	if err != nil || !strings.Contains(trace.Disagreement, "decision") {
		t.Errorf("another model: %+v, %v", trace, err)
	}
	s.agent.ruleset.Store(nil)
	if trace, err = s.trace(t, bocage.TracePacket{Source: s.admin.String(), Destination: s.local.String(), Protocol: bocage.ProtocolTCP, DestinationPort: 22}); err != nil || trace.Model != nil {
		t.Errorf("without a model: %+v, %v", trace, err)
	}
}

// The socket answers questions, and says what is wrong with those that are none.
func TestRootTraceSocket(t *testing.T) {
	s := newSiege(t)
	s.enforce(t, s.ruleset(1, true))
	s.agent.cfg.RunDir = t.TempDir()
	s.agent.registry = newRegistry()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- host.In(s.here, func() error { return s.agent.serveHealth(ctx) }) }()
	defer func() { cancel(); <-done }()
	hosttest.Await(t, "the doctor to see it", func() bool {
		_, err := TracePacket(ctx, s.agent.cfg, bocage.TracePacket{})
		return err != nil && strings.Contains(err.Error(), "is missing")
	})
	var into any
	if err := askAgent(ctx, s.agent.cfg, http.MethodPost, "/trace", []int{1}, &into); err == nil || !strings.Contains(err.Error(), "no description") {
		t.Errorf("nonsense: %v", err)
	}
}

func TestTracePacketFaults(t *testing.T) {
	kind := uint8(8)
	for says, p := range map[string]bocage.TracePacket{
		"source: is missing":   {Protocol: 6, Destination: "a/b"},
		`flags: "sin" is none`: {Protocol: 6, Source: "a/b", Destination: "a/c", Flags: []string{"sin"}},
		"flags: belong to TCP": {Protocol: 17, Source: "a/b", Destination: "a/c", Flags: []string{"syn"}},
		"icmpType: belongs":    {Protocol: 6, Source: "a/b", Destination: "a/c", ICMPType: &kind},
		"sourceMAC: \"xx\"":    {Protocol: 6, Source: "a/b", Destination: "a/c", SourceMAC: "xx"},
		"vlan: 5000":           {Protocol: 6, Source: "a/b", Destination: "a/c", VLAN: 5000},
		"frame: needs":         {Frame: make([]byte, 60)},
		"frame: has 3 bytes":   {Frame: make([]byte, 3), Interface: "eth0"},
		"payload: has":         {Protocol: 6, Source: "a/b", Destination: "a/c", Payload: make([]byte, 9000)},
	} {
		if err := p.Validate().Err(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", p, err, says)
		}
	}
	if address, ok := bocage.End("::ffff:10.0.0.1"); !ok || address != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("a mapped address is %v, %v", address, ok)
	}
}
