package bocage

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// TracePacket describes a packet to trace at an enforcement point of one host.
type TracePacket struct {
	// Interface is the enforcement point's. Empty: that of the source if it is a workload
	// on this host, else that of the destination.
	Interface string `json:"interface,omitempty"`
	// Direction is seen from the workload behind the interface; nil: it follows from how
	// Interface was found.
	Direction *Direction `json:"direction,omitempty"`
	// Source and Destination are addresses, or namespace/name of a workload. Destination
	// may be a DNS name; then the packet goes to an address that the source knows by it.
	Source      string   `json:"source,omitempty"`
	Destination string   `json:"destination,omitempty"`
	Protocol    Protocol `json:"protocol,omitempty"`
	// SourcePort of zero is 49152, the first dynamic port.
	SourcePort      uint16 `json:"sourcePort,omitempty"`
	DestinationPort uint16 `json:"destinationPort,omitempty"`
	// Flags are the TCP flags, such as syn and ack; none means syn.
	Flags []string `json:"flags,omitempty"`
	// ICMPType and ICMPCode are for ICMP and ICMPv6; a nil type is an echo request.
	ICMPType *uint8 `json:"icmpType,omitempty"`
	ICMPCode uint8  `json:"icmpCode,omitempty"`
	// SourceMAC and DestinationMAC, if empty, are those of the two ends of the interface.
	SourceMAC      string `json:"sourceMAC,omitempty"`
	DestinationMAC string `json:"destinationMAC,omitempty"`
	// Fragment makes it the first fragment of a larger packet.
	Fragment bool   `json:"fragment,omitempty"`
	VLAN     uint16 `json:"vlan,omitempty"`
	Payload  []byte `json:"payload,omitempty"`
	// Frame is the whole packet, for instance from a capture. Then, of the other fields,
	// only Interface and Direction count.
	Frame []byte `json:"frame,omitempty"`
}

// tcpFlags are the names of TCP's flags, by bit.
var tcpFlags = []string{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"}

// TCPFlags are the flags as the header has them.
func (p *TracePacket) TCPFlags() byte {
	if len(p.Flags) == 0 {
		return 1 << slices.Index(tcpFlags, "syn")
	}
	var flags byte
	for _, name := range p.Flags {
		if bit := slices.Index(tcpFlags, strings.ToLower(name)); bit >= 0 {
			flags |= 1 << bit
		}
	}
	return flags
}

// Validate names all faults of the description at once.
func (p *TracePacket) Validate() Faults {
	const most = 9000
	var faults Faults
	if len(p.Interface) > 15 {
		faults.Add("interface", "%q is longer than the 15 characters of a Linux interface", p.Interface)
	}
	if len(p.Frame) > 0 {
		if p.Interface == "" || p.Direction == nil {
			faults.Add("frame", "needs the interface and the direction in which it passes it")
		}
		if len(p.Frame) < 14 || len(p.Frame) > most {
			faults.Add("frame", "has %d bytes: between 14 and %d can be asked about", len(p.Frame), most)
		}
		return faults
	}
	for field, end := range map[string]string{"source": p.Source, "destination": p.Destination} {
		if end == "" {
			faults.Add(field, "is missing: an address, or namespace/name of a workload")
		}
	}
	for _, name := range p.Flags {
		if !slices.Contains(tcpFlags, strings.ToLower(name)) {
			faults.Add("flags", "%q is none of %s", name, strings.Join(tcpFlags, ", "))
		}
	}
	if len(p.Flags) > 0 && p.Protocol != ProtocolTCP {
		faults.Add("flags", "belong to TCP, and the protocol is %s", p.Protocol)
	}
	if p.ICMPType != nil && p.Protocol != ProtocolICMP && p.Protocol != ProtocolICMPv6 {
		faults.Add("icmpType", "belongs to ICMP and ICMPv6, and the protocol is %s", p.Protocol)
	}
	if p.Protocol == ProtocolAny {
		faults.Add("protocol", "is missing: tcp/80, udp/53, icmp, icmpv6, or a number")
	}
	for field, mac := range map[string]string{"sourceMAC": p.SourceMAC, "destinationMAC": p.DestinationMAC} {
		if hardware, err := net.ParseMAC(mac); mac != "" && (err != nil || len(hardware) != 6) {
			faults.Add(field, "%q is not a MAC such as 02:00:00:00:00:01", mac)
		}
	}
	if p.VLAN > 4094 {
		faults.Add("vlan", "%d is not between 1 and 4094", p.VLAN)
	}
	if len(p.Payload) > most-100 {
		faults.Add("payload", "has %d bytes: at most %d", len(p.Payload), most-100)
	}
	slices.SortFunc(faults, func(a, b Fault) int { return strings.Compare(a.Field, b.Field) })
	return faults
}

// Trace is the result of tracing a packet: what the programs in the kernel decide on their
// live maps, and beside it what the model decides.
type Trace struct {
	Host      string    `json:"host"`
	Interface string    `json:"interface"`
	Direction Direction `json:"direction"`
	// Workload is the one behind the interface; empty: it is not known.
	Workload string `json:"workload,omitempty"`
	// Packet is the flow of the packet, in the packet's direction; nil if it is not IP.
	Packet *Flow  `json:"packet,omitempty"`
	Frame  []byte `json:"frame"`
	// Outcome is passes, dropped, answered, steered or diverted. Target is the link by
	// which the packet leaves, if that is not the one it would take without Bocage.
	Outcome string `json:"outcome"`
	Target  string `json:"target,omitempty"`
	// Kernel is the decision of the programs, Model that of Ruleset.DecideNamed; nil if the
	// enforcement point decides without the ruleset.
	Kernel TraceDecision  `json:"kernel"`
	Model  *TraceDecision `json:"model,omitempty"`
	Steps  []TraceStep    `json:"steps"`
	// Names are the names in the ruleset by which the source knows the destination's
	// address, from DNS answers.
	Names []TraceName `json:"names,omitempty"`
	// Disagreement says how Kernel and Model differ; empty if they agree.
	Disagreement string `json:"disagreement,omitempty"`
}

// TraceName is a name by which a workload knows an address.
type TraceName struct {
	Name DomainName `json:"name"`
	// Until is when the name stops opening the address to new flows.
	Until time.Time `json:"until"`
}

// TraceDecision is the decision of one side: of the kernel or of the model.
type TraceDecision struct {
	Generation  uint64     `json:"generation"`
	Source      Identity   `json:"source"`
	Destination Identity   `json:"destination"`
	Verdict     Verdict    `json:"verdict"`
	Would       Verdict    `json:"would"`
	Reason      ReasonCode `json:"reason"`
	Decision    DecisionID `json:"decision"`
	// By lists the objects and fields that decided.
	By []Ref `json:"by,omitempty"`
}

func (d TraceDecision) String() string {
	text := fmt.Sprintf("%s, %s", d.Verdict, d.Reason)
	if d.Would != d.Verdict {
		text = fmt.Sprintf("%s (would %s), %s", d.Verdict, d.Would, d.Reason)
	}
	if d.Decision != 0 {
		text += fmt.Sprintf(", decision %s of g%d", d.Decision, d.Generation)
	}
	if len(d.By) > 0 {
		text += " by " + d.By[0].String()
	}
	return text
}

// TraceStep is one step of the packet's path.
type TraceStep struct {
	Name string `json:"name"`
	Said string `json:"said"`
}

// End parses an end of a packet. It returns its address, or false if it is a name.
func End(text string) (netip.Addr, bool) {
	address, err := netip.ParseAddr(text)
	return address.Unmap(), err == nil
}
