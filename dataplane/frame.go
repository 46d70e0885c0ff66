package dataplane

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// Ends are the addresses and hardware addresses between which a described packet
// goes.
type Ends struct {
	Source, Destination       netip.Addr
	SourceMAC, DestinationMAC net.HardwareAddr
}

// traceSourcePort is the first port of the dynamic range (RFC 6335).
const traceSourcePort = 49152

// Frame builds the frame that a description means, with right lengths and
// checksums.
func Frame(p bocage.TracePacket, ends Ends) ([]byte, error) {
	if ends.Source.Is4() != ends.Destination.Is4() {
		return nil, fmt.Errorf("%s and %s are not of one family", ends.Source, ends.Destination)
	}
	four := ends.Source.Is4()
	if p.Protocol == bocage.ProtocolICMP && !four || p.Protocol == bocage.ProtocolICMPv6 && four {
		return nil, fmt.Errorf("%s does not go from %s to %s", p.Protocol, ends.Source, ends.Destination)
	}
	be := binary.BigEndian
	var b []byte
	b = append(b, ends.DestinationMAC...)
	b = append(b, ends.SourceMAC...)
	if p.VLAN != 0 {
		b = be.AppendUint16(be.AppendUint16(b, 0x8100), p.VLAN)
	}
	body := transport(p, ends)
	if over := len(body) % 8; p.Fragment && over != 0 { // pieces but the last are multiples of 8
		p.Payload = append(slices.Clone(p.Payload), make([]byte, 8-over)...)
		body = transport(p, ends)
	}
	if four {
		var fragment uint16
		if p.Fragment {
			fragment = 0x2000 // more to come
		}
		b = be.AppendUint16(b, 0x0800)
		head := len(b)
		b = append(b, 0x45, 0)
		b = be.AppendUint16(b, uint16(20+len(body)))
		b = be.AppendUint16(b, 1)
		b = be.AppendUint16(b, fragment)
		b = append(b, 64, byte(p.Protocol), 0, 0)
		b = append(b, ends.Source.AsSlice()...)
		b = append(b, ends.Destination.AsSlice()...)
		be.PutUint16(b[head+10:], checksum(0, b[head:]))
		return append(b, body...), nil
	}
	next := byte(p.Protocol)
	var extension []byte
	if p.Fragment {
		const fragmentHeader = 44
		extension = []byte{next, 0, 0, 1, 0, 0, 0, 1} // offset 0, more to come
		next = fragmentHeader
	}
	b = be.AppendUint16(b, 0x86dd)
	b = append(b, 0x60, 0, 0, 0)
	b = be.AppendUint16(b, uint16(len(extension)+len(body)))
	b = append(b, next, 64)
	b = append(b, ends.Source.AsSlice()...)
	b = append(b, ends.Destination.AsSlice()...)
	return append(append(b, extension...), body...), nil
}

// transport is what follows the IP header.
func transport(p bocage.TracePacket, ends Ends) []byte {
	be := binary.BigEndian
	source := p.SourcePort
	if source == 0 {
		source = traceSourcePort
	}
	var b []byte
	sumAt := -1
	switch p.Protocol {
	case bocage.ProtocolTCP:
		b = be.AppendUint16(be.AppendUint16(b, source), p.DestinationPort)
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, p.TCPFlags(), 0xff, 0xff, 0, 0, 0, 0)
		sumAt = 16
	case bocage.ProtocolUDP:
		b = be.AppendUint16(be.AppendUint16(b, source), p.DestinationPort)
		b = append(be.AppendUint16(b, uint16(8+len(p.Payload))), 0, 0)
		sumAt = 6
	case bocage.ProtocolSCTP:
		b = be.AppendUint16(be.AppendUint16(b, source), p.DestinationPort)
		b = append(b, make([]byte, 8)...) // of which nobody reads the checksum here
	case bocage.ProtocolICMP, bocage.ProtocolICMPv6:
		kind := uint8(8)
		if p.Protocol == bocage.ProtocolICMPv6 {
			kind = 128
		}
		if p.ICMPType != nil {
			kind = *p.ICMPType
		}
		b = be.AppendUint16(append(b, kind, p.ICMPCode, 0, 0), source)
		b = append(b, 0, 1)
		sumAt = 2
	}
	b = append(b, p.Payload...)
	if sumAt >= 0 {
		var start uint32
		if p.Protocol != bocage.ProtocolICMP {
			start = pseudoSum(p.Protocol, ends, len(b))
		}
		be.PutUint16(b[sumAt:], checksum(start, b))
	}
	return b
}

// pseudoSum adds up what checksums cover beyond the packet itself.
func pseudoSum(protocol bocage.Protocol, ends Ends, length int) uint32 {
	sum := uint32(protocol) + uint32(length)
	for _, address := range []netip.Addr{ends.Source, ends.Destination} {
		raw := address.AsSlice()
		for i := 0; i < len(raw); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(raw[i:]))
		}
	}
	return sum
}

// checksum is that of RFC 1071.
func checksum(sum uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// FlowOf reads the ends of a frame: false if it holds no IP, or is cut short. It is
// for telling people and the model what a frame is; the programs have their own
// way of reading.
func FlowOf(frame []byte) (bocage.Flow, bool) {
	be := binary.BigEndian
	if len(frame) < 14 {
		return bocage.Flow{}, false
	}
	kind, b := be.Uint16(frame[12:]), frame[14:]
	var f bocage.Flow
	switch {
	case kind == 0x0800 && len(b) >= 20 && int(b[0]&15)*4 >= 20 && len(b) >= int(b[0]&15)*4:
		f.Source, f.Destination = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		f.Protocol = bocage.Protocol(b[9])
		if be.Uint16(b[6:])&0x1fff != 0 {
			return f, true // a later piece, which has no header behind IP
		}
		b = b[int(b[0]&15)*4:]
	case kind == 0x86dd && len(b) >= 40:
		f.Source, f.Destination = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		var first bool
		if f.Protocol, b, first = extensions(b[6], b[40:]); !first {
			return f, true
		}
	default:
		return f, false
	}
	if f.Protocol.HasPorts() && len(b) >= 4 {
		f.SourcePort, f.DestinationPort = be.Uint16(b), be.Uint16(b[2:])
	}
	return f, true
}

// FlowOnWire reads the ends of a frame that crosses a wire, where what is in a VLAN, or
// in one of another, is judged as without; false where a frame has tags
// that nobody can say the meaning of.
func FlowOnWire(frame []byte) (bocage.Flow, bool) {
	_, untagged, known := untag(frame)
	if !known {
		return bocage.Flow{}, false
	}
	return FlowOf(untagged)
}

// extensions passes over those of IPv6; first is false behind a later piece's.
func extensions(next byte, b []byte) (protocol bocage.Protocol, rest []byte, first bool) {
	for range 8 {
		switch {
		case next == 44 && len(b) >= 8:
			if binary.BigEndian.Uint16(b[2:])&0xfff8 != 0 {
				return bocage.Protocol(b[0]), nil, false
			}
			next, b = b[0], b[8:]
		case (next == 0 || next == 43 || next == 60) && len(b) >= 2 && len(b) >= int(b[1])*8+8:
			next, b = b[0], b[int(b[1])*8+8:]
		default:
			return bocage.Protocol(next), b, true
		}
	}
	return bocage.Protocol(next), nil, false
}
