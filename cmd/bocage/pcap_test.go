package main

import (
	"encoding/binary"
	"strings"
	"testing"
)

// captureOf writes packets as libpcap does.
func captureOf(order binary.AppendByteOrder, magic, link uint32, packets ...string) []byte {
	b := order.AppendUint32(nil, magic)
	b = append(b, 2, 0, 4, 0)
	for _, word := range []uint32{0, 0, 65535, link} {
		b = order.AppendUint32(b, word)
	}
	for _, p := range packets {
		for _, word := range []uint32{1, 2, uint32(len(p)), uint32(len(p))} {
			b = order.AppendUint32(b, word)
		}
		b = append(b, p...)
	}
	return b
}

func TestCaptured(t *testing.T) {
	little, big := captureOf(binary.LittleEndian, 0xa1b2c3d4, 1, "one", "second"), captureOf(binary.BigEndian, 0xa1b23c4d, 1, "one", "second")
	cut := captureOf(binary.LittleEndian, 0xa1b2c3d4, 1, "one")
	cut[24+12] = 200
	for _, c := range []struct {
		data   []byte
		number int
		want   string
		says   string
	}{
		{little, 1, "one", ""}, {little, 2, "second", ""}, {big, 2, "second", ""},
		{little, 3, "", "no packet 3"},
		{little[:len(little)-1], 2, "", "ends within packet 2"},
		{cut, 1, "", "3 of the 200 bytes"},
		{captureOf(binary.LittleEndian, 0xa1b2c3d4, 113, "one"), 1, "", "link type 113"},
		{captureOf(binary.LittleEndian, 0x0a0d0d0a, 1), 1, "", "pcapng"},
		{captureOf(binary.LittleEndian, 0x12345678, 1), 1, "", "does not begin"},
		{nil, 1, "", "too short"},
	} {
		got, err := captured(c.data, c.number)
		if string(got) != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("packet %d of %x: %q, %v; want %q or %q", c.number, c.data, got, err, c.want, c.says)
		}
	}
}

func FuzzCaptured(f *testing.F) {
	f.Add(captureOf(binary.LittleEndian, 0xa1b2c3d4, 1, "one", "second"), 2)
	f.Add(captureOf(binary.BigEndian, 0xa1b23c4d, 1, ""), 1)
	f.Fuzz(func(t *testing.T, data []byte, number int) {
		packet, err := captured(data, number)
		if err == nil && len(packet) > len(data) {
			t.Fatalf("%d bytes out of %d", len(packet), len(data))
		}
	})
}
