package bocage

import (
	"fmt"
	"strconv"
)

// Identity is the number by which the dataplane, events and detectors know one
// workload. The api room allocates it when a Workload is created and never uses
// a number twice.
type Identity uint32

// Reserved identities. Numbers from IdentityFirst up belong to workloads.
const (
	IdentityUnknown Identity = 0  // an interface that nothing has vouched for
	IdentityWorld   Identity = 1  // an address that belongs to no workload
	IdentityFirst   Identity = 16 // first number given to a workload
)

// Group numbers a set of identities that policy cannot tell apart: the same
// namespace, labels, data classes and threat conditions. Rules are written
// between groups, so their number grows with the kinds of workload, not with
// the count. A number is a hash of what the group has in common, so it stays the
// same from one generation to the next.
type Group uint32

// Reserved groups.
const (
	GroupAny   Group = 0  // in a rule only: every group
	GroupWorld Group = 1  // addresses that belong to no workload and to no declared prefix
	GroupFirst Group = 16 // first number given to a set of workloads or external prefixes
)

// DecisionID names one Decision of a generation. Zero is "no decision": the
// verdict came from the enforcement point itself (a malformed packet, say).
type DecisionID uint32

// String writes the number as JSON and tables have it, so that one can be looked for in
// the other.
func (d DecisionID) String() string { return strconv.FormatUint(uint64(d), 10) }

// Protocol is an IP protocol number (IANA Assigned Internet Protocol Numbers).
type Protocol uint8

// Protocols that rules name. ProtocolAny matches all of them.
const (
	ProtocolAny    Protocol = 0
	ProtocolICMP   Protocol = 1
	ProtocolTCP    Protocol = 6
	ProtocolUDP    Protocol = 17
	ProtocolICMPv6 Protocol = 58
	ProtocolSCTP   Protocol = 132
)

var protocolNames = map[Protocol]string{
	ProtocolAny: "any", ProtocolICMP: "ICMP", ProtocolTCP: "TCP", ProtocolUDP: "UDP",
	ProtocolICMPv6: "ICMPv6", ProtocolSCTP: "SCTP",
}

func (p Protocol) String() string {
	if name, ok := protocolNames[p]; ok {
		return name
	}
	return strconv.Itoa(int(p))
}

// MarshalText writes the protocol as [Protocol.String] does.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what [ParseProtocol] reads.
func (p *Protocol) UnmarshalText(text []byte) error {
	parsed, err := ParseProtocol(string(text))
	if err != nil {
		return err
	}
	*p = parsed
	return nil
}

// ParseProtocol reads a protocol's name in any case, or its number from 0 to 255.
func ParseProtocol(s string) (Protocol, error) {
	for p, name := range protocolNames {
		if equalFold(name, s) {
			return p, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("protocol %q is neither TCP, UDP, ICMP, ICMPv6, SCTP, any nor a number from 0 to 255", s)
	}
	return Protocol(n), nil
}

// HasPorts reports whether flows of the protocol are told apart by port numbers.
func (p Protocol) HasPorts() bool {
	return p == ProtocolTCP || p == ProtocolUDP || p == ProtocolSCTP
}

func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		x, y := a[i]|0x20, b[i]|0x20
		if x != y {
			return false
		}
	}
	return true
}
