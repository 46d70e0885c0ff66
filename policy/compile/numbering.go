package compile

import (
	"cmp"
	"math"
	"slices"
)

// numbering gives keys numbers: a hash of the key. Of two with one hash, the later
// in the order of keys moves on to the next free number. So the numbers follow
// from the set of keys and not from its history, and a changed set renumbers
// next to nothing.
type numbering struct {
	least  uint32 // numbers below it are reserved
	holder map[uint32]string
	number map[string]uint32
}

func newNumbering(least uint32, keys []string) *numbering {
	n := &numbering{least: least, holder: make(map[uint32]string, len(keys)), number: make(map[string]uint32, len(keys))}
	n.settle(keys)
	return n
}

func (n *numbering) of(key string) uint32 { return n.number[key] }

func (n *numbering) wanted(key string) uint32 { return max(hash32(key), n.least) }

func (n *numbering) next(i uint32) uint32 {
	if i == math.MaxUint32 {
		return n.least
	}
	return i + 1
}

// settle gives keys numbers in their order, among those that have theirs.
func (n *numbering) settle(keys []string) {
	slices.SortFunc(keys, cmp.Compare[string])
	for _, key := range keys {
		i := n.wanted(key)
		for n.taken(i) {
			i = n.next(i)
		}
		n.holder[i], n.number[key] = key, i
	}
}

func (n *numbering) taken(i uint32) bool {
	_, taken := n.holder[i]
	return taken
}

// change takes keys out and puts others in. It returns the keys that were there
// and stay, but have another number now.
func (n *numbering) change(removed, added []string) []string {
	unsettled := map[string]uint32{} // keys whose number has to be found again, with their old one
	for _, key := range removed {
		i := n.number[key]
		delete(n.number, key)
		delete(n.holder, i)
		delete(unsettled, key)
		// Whoever was pushed past this number may move back.
		n.unsettle(unsettled, n.next(i))
	}
	keys := slices.Clone(added)
	for _, key := range added {
		// Whoever comes later in the order of keys may have to make room.
		n.unsettle(unsettled, n.wanted(key))
	}
	for key := range unsettled {
		keys = append(keys, key)
	}
	for {
		n.settle(keys)
		// Who was settled next to others before may have come in their way.
		more := false
		for _, key := range keys {
			if i := n.next(n.number[key]); n.taken(i) {
				if _, known := unsettled[n.holder[i]]; !known && !slices.Contains(added, n.holder[i]) {
					n.unsettle(unsettled, i)
					more = true
				}
			}
		}
		if !more {
			break
		}
		for _, key := range keys {
			delete(n.holder, n.number[key])
		}
		keys = slices.Clone(added)
		for key := range unsettled {
			keys = append(keys, key)
		}
	}
	var moved []string
	for key, old := range unsettled {
		if n.number[key] != old {
			moved = append(moved, key)
		}
	}
	return moved
}

// unsettle takes the numbers of a run of keys from i on.
func (n *numbering) unsettle(unsettled map[string]uint32, i uint32) {
	for n.taken(i) {
		n.take(unsettled, i)
		i = n.next(i)
	}
}

func (n *numbering) take(unsettled map[string]uint32, i uint32) {
	key := n.holder[i]
	if _, known := unsettled[key]; !known {
		unsettled[key] = i
	}
	delete(n.holder, i)
}
