package dataplane

import (
	"bytes"
	"iter"
	"slices"
)

// blockSize is how many elements a block of a sorted list has at first; one of
// twice as many is cut in two.
const blockSize = 256

// sorted is a list in order, without equals, in blocks: putting one element in or
// taking one out costs a block and the list of blocks, not the list.
type sorted[T any] struct {
	compare func(a, b T) int
	blocks  [][]T // none is empty
	count   int
}

// place is where an element is, or would be: a block, and the place in it.
func (s *sorted[T]) place(x T) (block, at int, found bool) {
	block, found = slices.BinarySearchFunc(s.blocks, x, func(b []T, x T) int { return s.compare(b[0], x) })
	if found {
		return block, 0, true
	}
	if block == 0 {
		return 0, 0, false
	}
	at, found = slices.BinarySearchFunc(s.blocks[block-1], x, s.compare)
	return block - 1, at, found
}

// find returns the element that compares equal.
func (s *sorted[T]) find(x T) (T, bool) {
	block, at, found := s.place(x)
	if !found {
		var none T
		return none, false
	}
	return s.blocks[block][at], true
}

// around returns the elements before and after the one that compares equal; nil
// where there is none.
func (s *sorted[T]) around(x T) (before, after *T) {
	block, at, found := s.place(x)
	if block >= len(s.blocks) {
		return nil, nil
	}
	next := at
	if found {
		next++
	}
	switch {
	case at > 0:
		before = &s.blocks[block][at-1]
	case block > 0:
		before = &s.blocks[block-1][len(s.blocks[block-1])-1]
	}
	switch {
	case next < len(s.blocks[block]):
		after = &s.blocks[block][next]
	case block+1 < len(s.blocks):
		after = &s.blocks[block+1][0]
	}
	return before, after
}

// all visits the elements in order.
func (s *sorted[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, block := range s.blocks {
			for _, x := range block {
				if !yield(x) {
					return
				}
			}
		}
	}
}

// exchange takes elements out and puts others in; both are in order. What comes in
// the place of its equal must be in both.
func (s *sorted[T]) exchange(gone, come []T) {
	if len(gone)+len(come) > s.count/8 {
		s.merge(gone, come)
		return
	}
	for _, x := range gone {
		s.remove(x)
	}
	for _, x := range come {
		s.insert(x)
	}
}

func (s *sorted[T]) remove(x T) {
	block, at, found := s.place(x)
	if !found {
		return
	}
	s.count--
	if s.blocks[block] = slices.Delete(s.blocks[block], at, at+1); len(s.blocks[block]) == 0 {
		s.blocks = slices.Delete(s.blocks, block, block+1)
	}
}

func (s *sorted[T]) insert(x T) {
	s.count++
	if len(s.blocks) == 0 {
		s.blocks = append(s.blocks, append(make([]T, 0, blockSize), x))
		return
	}
	block, at, _ := s.place(x)
	b := slices.Insert(s.blocks[block], at, x)
	s.blocks[block] = b
	if len(b) >= 2*blockSize {
		s.blocks[block] = b[:blockSize:blockSize]
		s.blocks = slices.Insert(s.blocks, block+1, slices.Clone(b[blockSize:]))
	}
}

// merge is exchange by going through all of the list.
func (s *sorted[T]) merge(gone, come []T) {
	out := sorted[T]{compare: s.compare}
	put := func(x T) {
		if n := len(out.blocks); n == 0 || len(out.blocks[n-1]) == blockSize {
			out.blocks = append(out.blocks, make([]T, 0, blockSize))
		}
		last := &out.blocks[len(out.blocks)-1]
		*last = append(*last, x)
		out.count++
	}
	for x := range s.all() {
		for len(come) > 0 && s.compare(come[0], x) < 0 {
			put(come[0])
			come = come[1:]
		}
		for len(gone) > 0 && s.compare(gone[0], x) < 0 {
			gone = gone[1:]
		}
		if len(gone) > 0 && s.compare(gone[0], x) == 0 {
			continue
		}
		put(x)
	}
	for _, x := range come {
		put(x)
	}
	*s = out
}

// differences compares a list with another one, which should be in the same order:
// what is in the list only, or differs, has gone; what the other has instead has
// come. It is false if the other is out of order, or has equals. Blocks that the two
// have in common are passed over without looking at what is in them.
func (s *sorted[T]) differences(other []T, same func(a, b T) bool) (gone, come []T, ordered bool) {
	var last *T
	ordered = true
	take := func() {
		ordered = ordered && (last == nil || s.compare(*last, other[0]) < 0)
		last, other = &other[0], other[1:]
	}
	for _, block := range s.blocks {
		if n := len(block); len(other) >= n && bytes.Equal(bytesOf(other[:n]), bytesOf(block)) {
			take()
			if n > 1 {
				last, other = &other[n-2], other[n-1:]
			}
			continue
		}
		for _, x := range block {
			for len(other) > 0 && s.compare(other[0], x) < 0 {
				come = append(come, other[0])
				take()
			}
			if len(other) == 0 || s.compare(other[0], x) != 0 {
				gone = append(gone, x)
				continue
			}
			if !same(other[0], x) {
				gone, come = append(gone, x), append(come, other[0])
			}
			take()
		}
	}
	for len(other) > 0 {
		come = append(come, other[0])
		take()
	}
	return gone, come, ordered
}
