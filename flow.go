package bocage

import (
	"fmt"
	"net/netip"
	"time"
)

// Flow is one direction-bearing 5-tuple: Source opened it. Ports are zero for
// protocols without ports.
type Flow struct {
	Source          netip.Addr `json:"source"`
	Destination     netip.Addr `json:"destination"`
	SourcePort      uint16     `json:"sourcePort,omitempty"`
	DestinationPort uint16     `json:"destinationPort,omitempty"`
	Protocol        Protocol   `json:"protocol"`
	// At is the moment for which expiries are read. Zero means before all of
	// them: everything that was declared holds.
	At time.Time `json:"at,omitzero"`
}

func (f Flow) String() string {
	if f.Protocol.HasPorts() {
		return fmt.Sprintf("%s -> %s %s/%d",
			netip.AddrPortFrom(f.Source, f.SourcePort), f.Destination, f.Protocol, f.DestinationPort)
	}
	return fmt.Sprintf("%s -> %s %s", f.Source, f.Destination, f.Protocol)
}

// PortRange is a closed interval of port numbers.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// AllPorts is the range of every port; protocols without ports have only this one.
var AllPorts = PortRange{0, 65535}

// Contains reports whether the port lies in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

func (r PortRange) String() string {
	switch {
	case r == AllPorts:
		return "all"
	case r.First == r.Last:
		return fmt.Sprint(r.First)
	default:
		return fmt.Sprintf("%d-%d", r.First, r.Last)
	}
}
