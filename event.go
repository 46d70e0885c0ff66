package bocage

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// FlowEventSize is the length in bytes of a FlowEvent on the wire.
const FlowEventSize = 64

// FlowEvent is what an enforcement point reports of a flow: its start, its end,
// a refusal. On the wire it is a fixed 64-byte little-endian record, the same
// that the eBPF program writes into its ring buffer, but for the clock.
//
// Packets and Bytes of a start, an update and an end are totals since the flow began,
// counted by one enforcement point: they only grow, also when the flow is judged anew
// or another agent takes over, and an event that is lost is made up for by the next.
// Those of a refusal are what came since the refusal was told last: they add up.
type FlowEvent struct {
	Time            time.Time  `json:"time"`
	Kind            EventKind  `json:"kind"`
	Direction       Direction  `json:"direction"`
	Replied         bool       `json:"replied,omitempty"` // the destination answered
	Closed          bool       `json:"closed,omitempty"`  // FIN or RST was seen
	Differs         bool       `json:"differs,omitempty"` // the candidate in shadow decides its reach otherwise
	Source          Identity   `json:"source"`
	Destination     Identity   `json:"destination"`
	SourcePort      uint16     `json:"sourcePort"`
	DestinationPort uint16     `json:"destinationPort"` // type*256+code of ICMP
	Protocol        Protocol   `json:"protocol"`
	Verdict         Verdict    `json:"verdict"` // what was done
	Would           Verdict    `json:"would"`   // what an enforcing scope would have done
	Reason          ReasonCode `json:"reason"`
	Decision        DecisionID `json:"decision"`
	Generation      uint32     `json:"generation"` // low 32 bits of Ruleset.Generation
	Interface       uint32     `json:"interface"`  // index of the enforcement point's interface on its host
	Packets         uint32     `json:"packets"`    // both directions; of an aggregated refusal, the attempts
	Bytes           uint64     `json:"bytes"`      // both directions, IP header included; below 2^56
	// Spoken is what the flow was heard to speak, where the enforcement point
	// listened: flows that owe to speak something, and those that policy does not know.
	Spoken AppProtocol `json:"spoken,omitempty"`
	// Remote is the address of the end that is not behind the interface.
	Remote netip.Addr `json:"remote"`
}

// EventKind says which moment of a flow an event reports. Numbers are never reused.
type EventKind uint8

// Kinds of flow event.
const (
	EventStart    EventKind = 1 // first packet of an allowed flow
	EventEnd      EventKind = 2 // the flow closed or idled out; counters are final
	EventRefused  EventKind = 3 // refused, or would have been where scopes observe
	EventUpdate   EventKind = 4 // counters of a flow that goes on
	EventCadence  EventKind = 5 // of a Cadence
	EventGreeting EventKind = 6 // of a Greeting
)

var eventKindNames = []string{"", "start", "end", "refused", "update", "cadence", "greeting"}

func (k EventKind) String() string {
	if int(k) < len(eventKindNames) {
		return eventKindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// MarshalText writes the kind's name.
func (k EventKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a kind's name.
func (k *EventKind) UnmarshalText(text []byte) error {
	for i, name := range eventKindNames {
		if name == string(text) {
			*k = EventKind(i)
			return nil
		}
	}
	return fmt.Errorf("event kind %q is unknown", text)
}

// Direction is seen from the workload behind the enforcement point.
type Direction uint8

// Directions.
const (
	DirectionFrom Direction = 0 // the workload behind the interface sent the first packet
	DirectionTo   Direction = 1 // it was to receive it
)

func (d Direction) String() string { return [2]string{"from", "to"}[d&1] }

// MarshalText writes the direction's name.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a direction's name.
func (d *Direction) UnmarshalText(text []byte) error {
	switch string(text) {
	case "from":
		*d = DirectionFrom
	case "to":
		*d = DirectionTo
	default:
		return fmt.Errorf("direction %q is neither from nor to", text)
	}
	return nil
}

// Bits of byte 21 of the record, above the kind in the low four.
const (
	flagTo      = 0x10
	flagReplied = 0x20
	flagClosed  = 0x40
	flagDiffers = 0x80
)

// The eight bytes from 40 on: the flow's bytes, and what it speaks in the highest.
const (
	flowBytes   = 1<<spokenShift - 1
	spokenShift = 56
)

// AppendBinary appends the 64-byte record. Offsets: 0 time (ns since 1970),
// 8 source, 12 destination, 16 source port, 18 destination port, 20 protocol,
// 21 kind and flags, 22 verdict (low four bits) and would (high), 23 reason,
// 24 decision, 28 generation, 32 interface, 36 packets, 40 bytes (seven), 47 what
// is spoken, 48 remote (IPv4 in its IPv6-mapped form).
func (e *FlowEvent) AppendBinary(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	b = le.AppendUint64(b, uint64(e.Time.UnixNano()))
	b = le.AppendUint32(b, uint32(e.Source))
	b = le.AppendUint32(b, uint32(e.Destination))
	b = le.AppendUint16(b, e.SourcePort)
	b = le.AppendUint16(b, e.DestinationPort)
	flags := byte(e.Kind) & 0x0f
	if e.Direction == DirectionTo {
		flags |= flagTo
	}
	if e.Replied {
		flags |= flagReplied
	}
	if e.Closed {
		flags |= flagClosed
	}
	if e.Differs {
		flags |= flagDiffers
	}
	b = append(b, byte(e.Protocol), flags, byte(e.Verdict)&0x0f|byte(e.Would)<<4, byte(e.Reason))
	b = le.AppendUint32(b, uint32(e.Decision))
	b = le.AppendUint32(b, e.Generation)
	b = le.AppendUint32(b, e.Interface)
	b = le.AppendUint32(b, e.Packets)
	b = le.AppendUint64(b, e.Bytes&flowBytes|uint64(e.Spoken)<<spokenShift)
	remote := netip.IPv6Unspecified().As16()
	if e.Remote.IsValid() {
		remote = e.Remote.As16()
	}
	return append(b, remote[:]...), nil
}

// UnmarshalBinary reads one 64-byte record.
func (e *FlowEvent) UnmarshalBinary(b []byte) error {
	if len(b) != FlowEventSize {
		return fmt.Errorf("flow event of %d bytes: want %d", len(b), FlowEventSize)
	}
	le := binary.LittleEndian
	*e = FlowEvent{
		Time:   time.Unix(0, int64(le.Uint64(b))).UTC(),
		Source: Identity(le.Uint32(b[8:])), Destination: Identity(le.Uint32(b[12:])),
		SourcePort: le.Uint16(b[16:]), DestinationPort: le.Uint16(b[18:]),
		Protocol: Protocol(b[20]), Kind: EventKind(b[21] & 0x0f),
		Direction: Direction(b[21] & flagTo >> 4), Replied: b[21]&flagReplied != 0, Closed: b[21]&flagClosed != 0, Differs: b[21]&flagDiffers != 0,
		Verdict: Verdict(b[22] & 0x0f), Would: Verdict(b[22] >> 4), Reason: ReasonCode(b[23]),
		Decision: DecisionID(le.Uint32(b[24:])), Generation: le.Uint32(b[28:]), Interface: le.Uint32(b[32:]),
		Packets: le.Uint32(b[36:]), Bytes: le.Uint64(b[40:]) & flowBytes, Spoken: AppProtocol(b[47]),
		Remote: netip.AddrFrom16([16]byte(b[48:64])).Unmap(),
	}
	return nil
}

// InspectionEvent is what the inspection engine found in a steered flow.
type InspectionEvent struct {
	Time        time.Time `json:"time"`
	Flow        Flow      `json:"flow"`
	Source      Identity  `json:"source"`
	Destination Identity  `json:"destination"`
	Profile     string    `json:"profile"`
	Signature   int       `json:"signature"` // the engine's signature id
	Title       string    `json:"title"`
	Category    string    `json:"category,omitempty"`
	Severity    int       `json:"severity"` // 1 (worst) to 4, as the engine has it
	Blocked     bool      `json:"blocked"`
	// Technique is the ATT&CK id that the signature's metadata names, if any.
	Technique string `json:"technique,omitempty"`
}

// EngagementEvent is an attacker's contact with a decoy.
type EngagementEvent struct {
	Time        time.Time `json:"time"`
	Flow        Flow      `json:"flow"`        // as the attacker sees it
	Source      Identity  `json:"source"`      // who contacts
	Destination Identity  `json:"destination"` // whose address the decoy wears
	Decoy       string    `json:"decoy"`
	Session     string    `json:"session"` // the same for every event of one contact
	Depth       Depth     `json:"depth"`
	// Detail is what was learned at this depth: a client's banner, a user name
	// and password, a command.
	Detail map[string]string `json:"detail,omitempty"`
}

// Depth is how far an attacker went with a decoy.
type Depth string

// Depths, shallowest first.
const (
	DepthTouch   Depth = "touch"   // connected
	DepthProbe   Depth = "probe"   // spoke the protocol
	DepthLogin   Depth = "login"   // tried a credential
	DepthCommand Depth = "command" // gave a command
)

// Batch is what travels on the stream: records of one kind from one source, in
// order. The envelope around it is signed by the source's identity; Sequence and
// Previous show gaps, forks and silence.
type Batch struct {
	Source   string    `json:"source"` // SPIFFE id of the sender
	Boot     string    `json:"boot"`   // a new one each time the sender starts with an empty history
	Sequence uint64    `json:"sequence"`
	Previous []byte    `json:"previous,omitempty"` // SHA-256 of the previous batch's encoding
	Sent     time.Time `json:"sent"`
	// Lost counts records since the previous batch that could not be kept, by cause.
	Lost        map[string]uint64 `json:"lost,omitempty"`
	Flows       []byte            `json:"flows,omitempty"`    // FlowEvent records, 64 bytes each
	Cadences    []byte            `json:"cadences,omitempty"` // Cadence records, 136 bytes each
	Greetings   []Greeting        `json:"greetings,omitempty"`
	Inspections []InspectionEvent `json:"inspections,omitempty"`
	Engagements []EngagementEvent `json:"engagements,omitempty"`
}

// FlowEvents decodes the batch's flow records.
func (b *Batch) FlowEvents() ([]FlowEvent, error) {
	if len(b.Flows)%FlowEventSize != 0 {
		return nil, fmt.Errorf("batch %d of %s: flows end inside a record", b.Sequence, b.Source)
	}
	events := make([]FlowEvent, len(b.Flows)/FlowEventSize)
	for i := range events {
		if err := events[i].UnmarshalBinary(b.Flows[i*FlowEventSize : (i+1)*FlowEventSize]); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// CadenceRecords decodes the batch's cadences.
func (b *Batch) CadenceRecords() ([]Cadence, error) {
	if len(b.Cadences)%CadenceSize != 0 {
		return nil, fmt.Errorf("batch %d of %s: cadences end inside a record", b.Sequence, b.Source)
	}
	cadences := make([]Cadence, len(b.Cadences)/CadenceSize)
	for i := range cadences {
		if err := cadences[i].UnmarshalBinary(b.Cadences[i*CadenceSize : (i+1)*CadenceSize]); err != nil {
			return nil, err
		}
	}
	return cadences, nil
}
