package dataplane

import (
	"bocage.dev/bocage/dataplane/bpf"
)

// Lengths of prefixes as the kernel counts them, and flags of a peer (see abi.h).
const (
	hostLength = 128
	ipv4Length = 96

	peerHere     = 1
	peerLonger   = 2
	peerEnrolled = 4
	peerCovered  = 8
)

// prefixRows are the rows by which the kernel finds the longest prefix that has an
// address (see identify.h): it halves the lengths, and a row in the middle, made
// for every prefix that is longer, tells it to look for more. Each row knows the
// longest prefix up to its own length, so that a search that was led on in vain
// ends well.
type prefixRows struct {
	rows         map[prefixPlace]*prefixRow
	used4, used6 [hostLength]int // prefixes of each length, of IPv4 less 96
}

type prefixPlace struct {
	high, low uint64
	length    uint8
}

type prefixRow struct {
	peer    *bpf.KernelPeer // what is here; nil: nothing
	longer  int             // prefixes that are found by way of this row
	version bpf.KernelPeer  // as it was last told
}

func newPrefixRows() prefixRows { return prefixRows{rows: map[prefixPlace]*prefixRow{}} }

func (p prefixPlace) isIPv4() bool {
	return p.length >= ipv4Length && p.high == 0 && p.low>>32 == 0xffff
}

// base is the length that the family's lengths count from, and half of the
// lengths that there are.
func (p prefixPlace) base() (base, half uint8) {
	if p.isIPv4() {
		return ipv4Length, 16
	}
	return 0, 64
}

// cut is the place of the first bits.
func (p prefixPlace) cut(length uint8) prefixPlace {
	switch {
	case length == 0:
		return prefixPlace{}
	case length <= 64:
		return prefixPlace{p.high & (^uint64(0) << (64 - length)), 0, length}
	}
	return prefixPlace{p.high, p.low & (^uint64(0) << (128 - length)), length}
}

// way visits the places that lead to this one.
func (p prefixPlace) way(visit func(prefixPlace)) {
	base, half := p.base()
	for length, step := half, half; step > 0 && length != p.length-base; {
		longer := p.length-base > length
		if longer {
			visit(p.cut(base + length))
		}
		if step >>= 1; longer {
			length += step
		} else {
			length -= step
		}
	}
}

func (p prefixPlace) covers(other prefixPlace) bool {
	return other.length >= p.length && other.isIPv4() == p.isIPv4() && other.cut(p.length) == p
}

func (r *prefixRows) used(p prefixPlace) *int {
	if p.isIPv4() {
		return &r.used4[p.length-ipv4Length]
	}
	return &r.used6[p.length]
}

func (r *prefixRows) row(p prefixPlace) *prefixRow {
	row := r.rows[p]
	if row == nil {
		row = &prefixRow{}
		r.rows[p] = row
	}
	return row
}

// exchange takes prefixes out and puts others in, and writes the versions of rows
// that are not what they were.
func (r *prefixRows) exchange(gone, come []peer, out map[bpf.KernelPrefixKey]bpf.KernelPeer) {
	if len(gone)+len(come) == 0 {
		return
	}
	affected := map[prefixPlace]bool{}
	moved := map[prefixPlace]bool{} // there before and not after, or the other way round
	put := func(p peer, by int) {
		place := prefixPlace{p.high, p.low, p.length}
		affected[place] = true
		moved[place] = !moved[place]
		row := r.row(place)
		row.peer = nil
		if by > 0 {
			version := p.version()
			row.peer = &version
		}
		*r.used(place) += by
		place.way(func(on prefixPlace) {
			affected[on] = true
			r.row(on).longer += by
		})
	}
	for _, p := range gone {
		put(p, -1)
	}
	for _, p := range come {
		put(p, 1)
	}
	// Rows below know which prefix covers them.
	var above []prefixPlace
	for place, is := range moved {
		if is {
			above = append(above, place)
		}
	}
	const few = 4
	switch {
	case len(above) > few:
		for place := range r.rows {
			affected[place] = true
		}
	case len(above) > 0:
		for place := range r.rows {
			for _, p := range above {
				if p.covers(place) {
					affected[place] = true
				}
			}
		}
	}
	for place := range affected {
		r.tell(place, out)
	}
}

// tell writes the version of a row, if it is not what it was.
func (r *prefixRows) tell(p prefixPlace, out map[bpf.KernelPrefixKey]bpf.KernelPeer) {
	row := r.rows[p]
	var version bpf.KernelPeer
	if row.peer != nil {
		version = *row.peer
	}
	if row.longer > 0 {
		version.Flags |= peerLonger
	}
	if version.Flags != 0 {
		if best, is := r.best(p); is {
			version.Best, version.Flags = best, version.Flags|peerCovered
		}
	} else {
		delete(r.rows, p)
	}
	if version != row.version {
		row.version = version
		out[prefixKey(p.high, p.low, p.length)] = version
	}
}

// best is the length of the longest prefix that covers a place, its own included.
func (r *prefixRows) best(p prefixPlace) (uint8, bool) {
	base, _ := p.base()
	for length := int(p.length); length >= int(base); length-- {
		at := p.cut(uint8(length))
		if p.isIPv4() && r.used4[length-ipv4Length] == 0 || !p.isIPv4() && r.used6[length] == 0 {
			continue
		}
		if row := r.rows[at]; row != nil && row.peer != nil {
			return uint8(length), true
		}
	}
	return 0, false
}

// lengths are the lengths in use, a bit for each.
func (r *prefixRows) lengths() (four uint32, six [2]uint64) {
	for length, n := range r.used4[:32] {
		if n > 0 {
			four |= 1 << length
		}
	}
	for length, n := range r.used6 {
		if n > 0 {
			six[length/64] |= 1 << (length % 64)
		}
	}
	return four, six
}
