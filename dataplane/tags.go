package dataplane

import "encoding/binary"

// lane is the part of a wire that a frame is of: no VLAN, one of 802.1Q, one of
// 802.1ad (service), or one of 802.1Q inside either. Nothing is shared between two of
// them but policy and limits.
type lane struct {
	outer, inner uint16 // ids; 0: none
	service      bool
}

// untag reads the tags of a frame as wires do, and returns it without them. Known is
// false of tags that nobody can say the meaning of: more than two, one of 802.1ad
// inside another, the id that no VLAN has.
func untag(frame []byte) (of lane, untagged []byte, known bool) {
	const customer, service, mostTags, reserved = 0x8100, 0x88a8, 2, 0xfff
	be := binary.BigEndian
	known = true
	rest := frame
	for n := 1; n <= mostTags+1 && len(rest) >= 18; n++ {
		kind, id := be.Uint16(rest[12:]), be.Uint16(rest[14:])&reserved
		if kind != customer && kind != service {
			break
		}
		if n > mostTags || n > 1 && kind == service || id == reserved {
			known = false
		}
		switch {
		case id == 0: // says how urgent it is, and no more
		case of.outer == 0:
			of.outer, of.service = id, kind == service
		default:
			of.inner = id
		}
		rest = append(append(make([]byte, 0, len(rest)-4), frame[:12]...), rest[16:]...)
	}
	return of, rest, known
}
