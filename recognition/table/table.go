// Package table is the bounded memory of detectors: a set-associative table of
// fixed size with a keyed hash. It promises that it never grows, that a hostile
// choice of keys cannot crowd one bucket on purpose (the key of the hash is drawn
// when the table is made), and that every eviction is counted, so that a detector
// knows when its memory has holes. It never keeps pointers to keys: a key is
// known by 64 bits of its hash, which two keys share with probability 2^-64.
package table

import (
	"hash/maphash"
)

// Ways is the number of entries that compete for one place.
const Ways = 8

// Table maps keys to values of fixed size. It is not safe for concurrent use.
type Table[V any] struct {
	seed    maphash.Seed
	buckets [][Ways]entry[V]
	mask    uint64
	keep    func(*V) bool
	gone    func(*V)
	used    int
	evicted uint64
}

type entry[V any] struct {
	key   uint64 // 0: empty
	touch int64
	value V
}

// New makes a table for at least size entries. Entries for which keep returns
// true are evicted only where all competitors are kept too; gone sees each entry
// that gives way. Both may be nil.
func New[V any](size int, keep func(*V) bool, gone func(*V)) *Table[V] {
	buckets := 1
	for buckets*Ways < size {
		buckets *= 2
	}
	return &Table[V]{
		seed: maphash.MakeSeed(), buckets: make([][Ways]entry[V], buckets),
		mask: uint64(buckets - 1), keep: keep, gone: gone,
	}
}

// Touch returns the key's value, making it if it is absent: fresh says so. now,
// in any unit that grows, marks the entry as used; where a place is full, the
// entry that was not used for longest gives way. The pointer holds until the
// next Touch.
func (t *Table[V]) Touch(key []byte, now int64) (value *V, fresh bool) {
	h := maphash.Bytes(t.seed, key)
	if h == 0 {
		h = 1
	}
	bucket := &t.buckets[h&t.mask]
	victim, victimKept := -1, false
	for i := range bucket {
		e := &bucket[i]
		if e.key == h {
			e.touch = max(e.touch, now)
			return &e.value, false
		}
		if e.key == 0 {
			t.used++
			*e = entry[V]{key: h, touch: now}
			return &e.value, true
		}
		kept := t.keep != nil && t.keep(&e.value)
		if victim < 0 || victimKept && !kept || victimKept == kept && e.touch < bucket[victim].touch {
			victim, victimKept = i, kept
		}
	}
	t.evicted++
	if t.gone != nil {
		t.gone(&bucket[victim].value)
	}
	bucket[victim] = entry[V]{key: h, touch: now}
	return &bucket[victim].value, true
}

// Len is the number of entries in use.
func (t *Table[V]) Len() int { return t.used }

// Cap is the number of places.
func (t *Table[V]) Cap() int { return len(t.buckets) * Ways }

// Evicted counts entries that gave way to others since the table was made.
func (t *Table[V]) Evicted() uint64 { return t.evicted }
