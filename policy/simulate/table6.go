package simulate

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// wide is an IPv6 address.
type wide struct{ high, low uint64 }

func (w wide) and(o wide) wide { return wide{w.high & o.high, w.low & o.low} }

func (w wide) hash() uint64 { return mix(w.high ^ mix(w.low)) }

func number6(a netip.Addr) wide {
	raw := a.As16()
	return wide{binary.BigEndian.Uint64(raw[:8]), binary.BigEndian.Uint64(raw[8:])}
}

func mask6(bits int) wide {
	return wide{^(uint64(1)<<(64-min(bits, 64)) - 1), ^(uint64(1)<<(64-max(bits-64, 0)) - 1)}
}

// table6 maps the prefixes of one length to numbers, by hashing. What a look-up
// takes is the way to memory, so that it is made to read one line of the cache.
type table6 struct {
	mask  wide
	lines []line6
}

// line6 is a line of the cache with three prefixes, filled from the first on. A
// number is one more than the prefix's; 0 is empty.
type line6 struct {
	high, low [prefixesPerLine]uint64
	numbers   [prefixesPerLine]int32
	full      uint32 // not 0: what had no room is in the next line, or further on
}

const prefixesPerLine = 3

// newTable6 has room for so many prefixes, two thirds of it filled: then one in seven
// lines is full.
func newTable6(length, prefixes int) table6 {
	return table6{mask: mask6(length), lines: make([]line6, prefixes/2+1)}
}

// line is where to look for an address first.
func (t *table6) line(address wide) int {
	n, _ := bits.Mul64(address.hash(), uint64(len(t.lines)))
	return int(n)
}

func (t *table6) after(line int) int {
	if line++; line == len(t.lines) {
		return 0
	}
	return line
}

// put gives a prefix its number; of several the last counts.
func (t *table6) put(address wide, number int32) {
	address = address.and(t.mask)
	for at := t.line(address); ; at = t.after(at) {
		l := &t.lines[at]
		for i := range l.numbers {
			if l.numbers[i] == 0 || l.high[i] == address.high && l.low[i] == address.low {
				l.high[i], l.low[i], l.numbers[i] = address.high, address.low, number+1
				return
			}
		}
		l.full = 1
	}
}

// get is the number of the prefix that has the address, or none.
func (t *table6) get(address wide) int32 {
	address = address.and(t.mask)
	return t.from(t.line(address), address)
}

// from looks for a masked address from a line on.
func (t *table6) from(at int, address wide) int32 {
	for {
		l := &t.lines[at]
		if number := l.find(address); number != 0 || l.full == 0 {
			return number - 1 // none is one less than empty
		}
		at = t.after(at)
	}
}

// find is one more than the number of an address in the line. It compares with all
// without branching, which would be as likely one way as the other.
func (l *line6) find(address wide) int32 {
	first, second, third := l.numbers[0], l.numbers[1], l.numbers[2]
	number := int32(0)
	if (l.high[2]^address.high)|(l.low[2]^address.low) == 0 {
		number = third
	}
	if (l.high[1]^address.high)|(l.low[1]^address.low) == 0 {
		number = second
	}
	if (l.high[0]^address.high)|(l.low[0]^address.low) == 0 {
		number = first
	}
	return number
}
