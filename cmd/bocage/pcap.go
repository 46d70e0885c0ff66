package main

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// captured reads one packet of a capture in the form of libpcap (not pcapng), of
// Ethernet.
func captured(data []byte, number int) ([]byte, error) {
	const head, recordHead, ethernet = 24, 16, 1
	if len(data) < head {
		return nil, errors.New("is too short for a capture")
	}
	var order binary.ByteOrder
	switch magic := binary.LittleEndian.Uint32(data); magic {
	case 0xa1b2c3d4, 0xa1b23c4d: // microseconds, nanoseconds
		order = binary.LittleEndian
	case 0xd4c3b2a1, 0x4d3cb2a1:
		order = binary.BigEndian
	case 0x0a0d0d0a:
		return nil, errors.New("is in the form of pcapng: write it anew with `tcpdump -r FILE -w FILE.pcap`, or `editcap -F pcap`")
	default:
		return nil, fmt.Errorf("does not begin as a capture does (%#08x)", magic)
	}
	if link := order.Uint32(data[20:]) & 0xffff; link != ethernet {
		return nil, fmt.Errorf("holds packets of link type %d, and enforcement points see Ethernet (%d)", link, ethernet)
	}
	data = data[head:]
	for n := 1; ; n++ {
		if len(data) < recordHead {
			return nil, fmt.Errorf("has no packet %d", number)
		}
		length, whole := order.Uint32(data[8:]), order.Uint32(data[12:])
		data = data[recordHead:]
		if uint64(length) > uint64(len(data)) {
			return nil, fmt.Errorf("ends within packet %d", n)
		}
		if n == number {
			if length < whole {
				return nil, fmt.Errorf("has %d of the %d bytes of packet %d: capture with `tcpdump -s 0`", length, whole, n)
			}
			return data[:length], nil
		}
		data = data[length:]
	}
}
