package spoof

import (
	"net/netip"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/evidence"
)

func TestFlow(t *testing.T) {
	spoofed := func(change func(*bocage.FlowEvent)) bocage.FlowEvent {
		e := bocage.FlowEvent{Kind: bocage.EventRefused, Reason: bocage.ReasonSpoofed, Source: 20, Destination: 21, Protocol: bocage.ProtocolTCP,
			Remote: netip.MustParseAddr("10.0.0.2")}
		if change != nil {
			change(&e)
		}
		return e
	}
	for name, test := range map[string]struct {
		event bocage.FlowEvent
		want  bool
	}{
		"from a port":          {spoofed(nil), true},
		"towards a port":       {spoofed(func(e *bocage.FlowEvent) { e.Direction = bocage.DirectionTo }), false},
		"of nobody":            {spoofed(func(e *bocage.FlowEvent) { e.Source = 0 }), false},
		"refused by policy":    {spoofed(func(e *bocage.FlowEvent) { e.Reason = bocage.ReasonDefaultDeny }), false},
		"to a group":           {spoofed(func(e *bocage.FlowEvent) { e.Remote = netip.MustParseAddr("ff02::16") }), false},
		"link-local":           {spoofed(func(e *bocage.FlowEvent) { e.Remote = netip.MustParseAddr("fe80::1") }), false},
		"DHCP":                 {spoofed(func(e *bocage.FlowEvent) { e.Protocol, e.DestinationPort = bocage.ProtocolUDP, 67 }), false},
		"neighbour discovery":  {spoofed(func(e *bocage.FlowEvent) { e.Protocol, e.DestinationPort = bocage.ProtocolICMPv6, 135<<8 }), false},
		"an echo, over IPv6":   {spoofed(func(e *bocage.FlowEvent) { e.Protocol, e.DestinationPort = bocage.ProtocolICMPv6, 128<<8 }), true},
		"where scopes observe": {spoofed(func(e *bocage.FlowEvent) { e.Verdict, e.Would = bocage.VerdictAllow, bocage.VerdictDrop }), true},
	} {
		item, ok := Flow(&test.event, evidence.Record{})
		if ok != test.want {
			t.Errorf("%s: %v", name, ok)
		}
		if ok && (item.Decisive || item.Attacker != (evidence.Party{Identity: 20}) || len(item.Victims) != 0) {
			t.Errorf("%s: %+v", name, item)
		}
	}
}
