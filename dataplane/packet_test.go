package dataplane

import (
	"encoding/binary"
	"net/netip"

	"bocage.dev/bocage"
)

// frame describes a packet to build. Zero fields mean the ordinary.
type frame struct {
	from, to    [6]byte // MACs
	source, dst netip.Addr
	protocol    bocage.Protocol
	sport       uint16
	dport       uint16
	tcpFlags    byte
	icmpType    byte
	icmpCode    byte
	payload     int
	extensions  []extension // IPv6
	options     []byte      // IPv4, a multiple of 4 bytes
	fragment    uint16      // IPv4 flags and offset
	id          uint16
	hops        byte
	body        []byte // instead of a transport header and payload
	tags        []tag  // the outer one first
}

// tag is a VLAN's: of 802.1Q, or of 802.1ad.
type tag struct {
	service bool
	control uint16
}

// customer and service are tags with an id alone.
func customer(id uint16) tag { return tag{control: id} }
func service(id uint16) tag  { return tag{true, id} }

func (t tag) kind() uint16 {
	if t.service {
		return 0x88a8
	}
	return 0x8100
}

type extension struct {
	kind byte
	data []byte // 6 bytes, or 6 more than a multiple of 8
}

const (
	fin = 0x01
	syn = 0x02
	urg = 0x20
	rst = 0x04
	ack = 0x10
)

func (f frame) bytes() []byte {
	be := binary.BigEndian
	var b []byte
	b = append(b, f.to[:]...)
	b = append(b, f.from[:]...)
	for _, t := range f.tags {
		b = be.AppendUint16(be.AppendUint16(b, t.kind()), t.control)
	}
	start := len(b) + 2
	l4 := f.body
	if l4 == nil {
		l4 = f.transport()
	}
	hops := f.hops
	if hops == 0 {
		hops = 64
	}
	if f.source.Is4() {
		b = be.AppendUint16(b, 0x0800)
		header := 20 + len(f.options)
		b = append(b, 0x40|byte(header/4), 0)
		b = be.AppendUint16(b, uint16(header+len(l4)))
		b = be.AppendUint16(b, f.id)
		b = be.AppendUint16(b, f.fragment)
		b = append(b, hops, byte(f.protocol), 0, 0)
		b = append(b, f.source.AsSlice()...)
		b = append(b, f.dst.AsSlice()...)
		b = append(b, f.options...)
		var sum uint32
		for i := start; i < start+header; i += 2 {
			sum += uint32(be.Uint16(b[i:]))
		}
		sum = sum&0xffff + sum>>16
		be.PutUint16(b[start+10:], ^uint16(sum&0xffff+sum>>16))
		return append(b, l4...)
	}
	var chain []byte
	next := byte(f.protocol)
	for i := len(f.extensions) - 1; i >= 0; i-- {
		e := f.extensions[i]
		chain = append(append([]byte{next}, e.data...), chain...)
		next = e.kind
	}
	b = be.AppendUint16(b, 0x86dd)
	b = append(b, 0x60, 0, 0, 0)
	b = be.AppendUint16(b, uint16(len(chain)+len(l4)))
	b = append(b, next, hops)
	b = append(b, f.source.AsSlice()...)
	b = append(b, f.dst.AsSlice()...)
	return append(append(b, chain...), l4...)
}

func (f frame) transport() []byte {
	be := binary.BigEndian
	var b []byte
	switch f.protocol {
	case bocage.ProtocolTCP:
		b = be.AppendUint16(b, f.sport)
		b = be.AppendUint16(b, f.dport)
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, f.tcpFlags, 0xff, 0xff, 0, 0, 0, 0)
	case bocage.ProtocolUDP:
		b = be.AppendUint16(b, f.sport)
		b = be.AppendUint16(b, f.dport)
		b = be.AppendUint16(b, uint16(8+f.payload))
		b = append(b, 0, 0)
	case bocage.ProtocolSCTP:
		b = be.AppendUint16(b, f.sport)
		b = be.AppendUint16(b, f.dport)
		b = append(b, make([]byte, 8)...)
	case bocage.ProtocolICMP, bocage.ProtocolICMPv6:
		b = append(b, f.icmpType, f.icmpCode, 0, 0)
		b = be.AppendUint16(b, f.sport)
		b = append(b, 0, 1)
	}
	return append(b, make([]byte, f.payload)...)
}

// wellFormed is a second, plain reading of what a frame must be, by which the
// parser in the kernel is judged.
func wellFormed(b []byte) bool {
	if len(b) < 14 || b[6]&1 != 0 {
		return false
	}
	kind, b := binary.BigEndian.Uint16(b[12:]), b[14:]
	switch kind {
	case 0x0800:
		return wellFormed4(b)
	case 0x86dd:
		return wellFormed6(b)
	case 0x0806:
		return len(b) >= 28 && string(b[:6]) == "\x00\x01\x08\x00\x06\x04" && b[6] == 0 && (b[7] == 1 || b[7] == 2)
	case 0x8100, 0x88a8:
		return len(b) >= 4 // what is tagged has a type
	}
	return true
}

func wellFormed4(b []byte) bool {
	be := binary.BigEndian
	if len(b) < 20 || b[0]>>4 != 4 {
		return false
	}
	header, total := int(b[0]&15)*4, int(be.Uint16(b[2:]))
	if header < 20 || total < header || total > len(b) {
		return false
	}
	if !wellFormedOptions(b[20:header]) {
		return false
	}
	if b[12]&0xf0 == 0xe0 || string(b[12:16]) == "\xff\xff\xff\xff" || string(b[12:16]) == string(b[16:20]) {
		return false
	}
	pieces := be.Uint16(b[6:])
	offset, more := int(pieces&0x1fff)*8, pieces&0x2000 != 0
	body := b[header:total]
	if offset > 0 || more {
		if len(body) == 0 || more && len(body)%8 != 0 || offset+total > 0xffff || offset == 8 && b[9] == 6 {
			return false
		}
	}
	if b[9] == 58 {
		return false
	}
	return offset > 0 || wellFormedTransport(b[9], b[8], body, more)
}

// wellFormedOptions refuses source routes and options that do not fit.
func wellFormedOptions(b []byte) bool {
	for len(b) > 0 {
		switch {
		case b[0] == 131 || b[0] == 137:
			return false
		case b[0] == 0:
			return true
		case b[0] == 1:
			b = b[1:]
		case len(b) < 2 || b[1] < 2 || int(b[1]) > len(b):
			return false
		default:
			b = b[b[1]:]
		}
	}
	return true
}

func wellFormed6(b []byte) bool {
	be := binary.BigEndian
	if len(b) < 40 || b[0]>>4 != 6 {
		return false
	}
	length, next := int(be.Uint16(b[4:])), b[6]
	if length > len(b)-40 || b[8] == 0xff || string(b[8:24]) == string(b[24:40]) {
		return false
	}
	mapped := "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff"
	if string(b[8:20]) == mapped || string(b[24:36]) == mapped {
		return false
	}
	hops, body, depth := b[7], b[40:40+length], 54
	fragmented, later := false, false
	for range 6 {
		if later || next != 0 && next != 43 && next != 44 && next != 60 {
			break
		}
		if len(body) < 8 || depth > 256 {
			return false
		}
		size := 8 + 8*int(body[1])
		if next == 43 && (body[3] != 0 || body[2] == 0) {
			return false
		}
		if next == 44 {
			size = 8
			if fragmented {
				return false
			}
			pieces := be.Uint16(body[2:])
			if pieces&0xfff9 != 0 {
				fragmented, later = true, pieces&0xfff8 != 0
				rest := len(body) - 8
				if rest == 0 || pieces&1 != 0 && rest%8 != 0 || int(pieces&0xfff8)+rest > 0xffff {
					return false
				}
			}
		}
		if size > len(body) {
			return false
		}
		next, body, depth = body[0], body[size:], depth+size
	}
	if !later && (next == 0 || next == 43 || next == 44 || next == 60) || next == 1 || depth > 256 {
		return false
	}
	return later || wellFormedTransport(next, hops, body, fragmented)
}

func wellFormedTransport(protocol, hops byte, b []byte, first bool) bool {
	be := binary.BigEndian
	switch protocol {
	case 6:
		if len(b) < 20 {
			return false
		}
		header, flags := int(b[12]>>4)*4, b[13]
		return header >= 20 && header <= len(b) && !(flags&syn != 0 && flags&(fin|rst) != 0) && flags&(syn|rst|ack) != 0
	case 17:
		if len(b) < 8 {
			return false
		}
		length := int(be.Uint16(b[4:]))
		return length >= 8 && (length <= len(b) || first)
	case 132:
		return len(b) >= 12
	case 1:
		return len(b) >= 8
	case 58:
		if len(b) < 8 {
			return false
		}
		if b[0] >= 133 && b[0] <= 137 && (hops != 255 || b[1] != 0) {
			return false
		}
		switch b[0] {
		case 133:
			return wellFormedNeighbour(b[8:])
		case 135, 136:
			return len(b) >= 24 && wellFormedNeighbour(b[24:])
		}
	}
	return true
}

// wellFormedNeighbour refuses options of neighbour discovery that do not fit, are many,
// or speak of two MACs.
func wellFormedNeighbour(b []byte) bool {
	if len(b) > 40 {
		return false
	}
	spoken := 0
	for len(b) > 0 {
		if len(b) < 8 || b[1] == 0 || 8*int(b[1]) > len(b) {
			return false
		}
		if b[0] == 1 || b[0] == 2 {
			if spoken++; b[1] != 1 || spoken > 1 {
				return false
			}
		}
		b = b[8*int(b[1]):]
	}
	return true
}
