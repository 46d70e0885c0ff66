// Package spoof recognises workloads that send under another's address.
//
//	evidence    "spoof"; not decisive: leases change, virtual addresses move, and one
//	            wrong source proves less than what follows it
//	ATT&CK      T1036 Masquerading; the ground of T1557 Adversary-in-the-Middle
//	roles       attacker: the workload behind the port, which is known because the
//	            port is bound to it; never the one whose address was claimed
//	state       none
//
// The enforcement point has already dropped the packets. Weight 1. Traffic that a
// kernel sends by itself while an interface comes up (link-local and multicast
// targets, DHCP) is no evidence.
package spoof

import (
	"net/netip"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/evidence"
)

// Kind is the kind of evidence.
const Kind = "spoof"

const halfLife = time.Hour

// Flow weighs one event; it returns false where it is no evidence.
func Flow(e *bocage.FlowEvent, record evidence.Record) (evidence.Item, bool) {
	if e.Kind != bocage.EventRefused || e.Reason != bocage.ReasonSpoofed || e.Direction != bocage.DirectionFrom {
		return evidence.Item{}, false
	}
	from := evidence.Who(e.Source, netip.Addr{})
	if from.IsZero() || innocent(e) {
		return evidence.Item{}, false
	}
	return evidence.Item{
		Kind: Kind, Stage: evidence.StageSpoofing, Technique: "T1036", Severity: evidence.Medium,
		Answer: evidence.AnswerWatch, Weight: 1, HalfLife: halfLife, Attacker: from,
		Time: e.Time, First: e.Time,
		Facts:   evidence.Text("sent packets under an address that is not its own"),
		Records: []evidence.Record{record},
	}, true
}

// innocent is what a kernel sends by itself.
func innocent(e *bocage.FlowEvent) bool {
	r := e.Remote
	switch {
	case r.IsMulticast(), r.IsLinkLocalUnicast(), r.IsUnspecified(), r == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return true
	case e.Protocol == bocage.ProtocolUDP && (e.DestinationPort == 67 || e.DestinationPort == 547):
		return true // DHCP
	case e.Protocol == bocage.ProtocolICMPv6 && e.DestinationPort>>8 >= 130 && e.DestinationPort>>8 <= 143:
		return true // multicast listeners and neighbour discovery
	}
	return false
}
