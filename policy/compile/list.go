package compile

import (
	"slices"
	"sync"
)

// blockSize is how many elements a block of a list is made with.
const blockSize = 128

// list is a sorted list in blocks. It is never changed: an edit makes another
// one, which shares every block in which nothing is new. So an edit costs what it
// changes, and the generations before stay as they were. How a list is cut into
// blocks depends on its history and shows nowhere.
type list[T any] struct {
	blocks [][]T // none is empty
	count  int
	once   sync.Once
	whole  []T
}

// newList makes a list of sorted elements.
func newList[T any](sorted []T) *list[T] {
	l := &list[T]{count: len(sorted), blocks: make([][]T, 0, len(sorted)/blockSize+1)}
	l.blocks = appendBlocks(l.blocks, sorted)
	return l
}

// appendBlocks appends elements that are nobody else's, in blocks.
func appendBlocks[T any](blocks [][]T, elements []T) [][]T {
	for len(elements) > 2*blockSize {
		blocks, elements = append(blocks, elements[:blockSize:blockSize]), elements[blockSize:]
	}
	if len(elements) > 0 {
		blocks = append(blocks, elements)
	}
	return blocks
}

// len counts the elements.
func (l *list[T]) len() int { return l.count }

// flat returns the elements as one slice, made when somebody asks first. It is nil
// for none.
func (l *list[T]) flat() []T {
	l.once.Do(func() {
		switch len(l.blocks) {
		case 0:
		case 1:
			l.whole = slices.Clip(l.blocks[0])
		default:
			l.whole = make([]T, 0, l.count)
			for _, block := range l.blocks {
				l.whole = append(l.whole, block...)
			}
		}
	})
	return l.whole
}

// find returns the element that compares equal to a target.
func find[T, K any](l *list[T], target K, compare func(T, K) int) (T, bool) {
	i, found := slices.BinarySearchFunc(l.blocks, target, func(block []T, target K) int { return compare(block[0], target) })
	if !found {
		i--
	}
	var none T
	if i < 0 {
		return none, false
	}
	at, found := slices.BinarySearchFunc(l.blocks[i], target, compare)
	if !found {
		return none, false
	}
	return l.blocks[i][at], true
}

// exchange returns the list without some of its elements and with others, which
// are both used up. What replaces an element compares equal to it.
func (l *list[T]) exchange(removed, added []T, compare func(a, b T) int) *list[T] {
	if len(removed) == 0 && len(added) == 0 {
		return l
	}
	slices.SortFunc(removed, compare)
	slices.SortFunc(added, compare)
	if l.count == 0 {
		return newList(added)
	}
	out := &list[T]{count: l.count - len(removed) + len(added), blocks: make([][]T, 0, len(l.blocks)+len(added)/blockSize+4)}
	rest := l.blocks
	for len(removed) > 0 || len(added) > 0 {
		first := added
		if len(added) == 0 || len(removed) > 0 && compare(removed[0], added[0]) <= 0 {
			first = removed
		}
		// The block that the first change falls into is the last that begins at or before it.
		at, found := slices.BinarySearchFunc(rest, first[0], func(block []T, x T) int { return compare(block[0], x) })
		if !found && at > 0 {
			at--
		}
		out.blocks = append(out.blocks, rest[:at]...)
		block := rest[at]
		rest = rest[at+1:]
		gone, come := len(removed), len(added)
		if len(rest) > 0 {
			before := func(changes []T) int {
				n, _ := slices.BinarySearchFunc(changes, rest[0][0], compare)
				return n
			}
			gone, come = before(removed), before(added)
		}
		out.append(exchanged(block, removed[:gone], added[:come], compare))
		removed, added = removed[gone:], added[come:]
	}
	out.blocks = append(out.blocks, rest...)
	return out
}

// append appends what became of a block, to the one before if both are small.
func (l *list[T]) append(block []T) {
	if n := len(l.blocks); n > 0 && len(l.blocks[n-1])+len(block) < blockSize {
		l.blocks[n-1] = slices.Concat(l.blocks[n-1], block)
		return
	}
	l.blocks = appendBlocks(l.blocks, block)
}

// exchanged returns a copy of a block without some elements and with others, all
// of them sorted.
func exchanged[T any](block, removed, added []T, compare func(a, b T) int) []T {
	out := make([]T, 0, max(len(block)-len(removed)+len(added), 0))
	for len(removed) > 0 || len(added) > 0 {
		order := -1 // of the first that goes and the first that comes
		switch {
		case len(removed) == 0:
			order = 1
		case len(added) > 0:
			order = compare(removed[0], added[0])
		}
		if order > 0 {
			n, _ := slices.BinarySearchFunc(block, added[0], compare)
			out, block = append(append(out, block[:n]...), added[0]), block[n:]
			added = added[1:]
			continue
		}
		n := 0
		if compare(block[0], removed[0]) != 0 { // of many that go, most are the next
			n, _ = slices.BinarySearchFunc(block, removed[0], compare)
		}
		out, block, removed = append(out, block[:n]...), block[n+1:], removed[1:]
		if order == 0 { // it takes the place
			out, added = append(out, added[0]), added[1:]
		}
	}
	return append(out, block...)
}

// eachDifference visits the elements that only one of two lists in one order has,
// and pairs that compare equal but are not the same: a is nil for what only the
// second list has, b for what only the first has. Shared blocks are passed over.
func eachDifference[T any](a, b *list[T], compare func(a, b T) int, same func(a, b *T) bool, visit func(a, b *T)) {
	if a == b {
		return
	}
	x, y := cursor[T]{rest: a.blocks}, cursor[T]{rest: b.blocks}
	for {
		for x.begins() && y.begins() && &x.rest[0][0] == &y.rest[0][0] && len(x.rest[0]) == len(y.rest[0]) {
			x.rest, y.rest = x.rest[1:], y.rest[1:]
		}
		p, q := x.head(), y.head()
		switch {
		case p == nil && q == nil:
			return
		case q == nil || p != nil && compare(*p, *q) < 0:
			visit(p, nil)
			x.next()
		case p == nil || compare(*p, *q) > 0:
			visit(nil, q)
			y.next()
		default:
			if p != q && !same(p, q) {
				visit(p, q)
			}
			x.next()
			y.next()
		}
	}
}

// cursor goes through a list.
type cursor[T any] struct {
	rest [][]T
	at   int // in the first of the rest
}

func (c *cursor[T]) begins() bool { return c.at == 0 && len(c.rest) > 0 }

func (c *cursor[T]) head() *T {
	if len(c.rest) == 0 {
		return nil
	}
	return &c.rest[0][c.at]
}

func (c *cursor[T]) next() {
	if c.at++; c.at == len(c.rest[0]) {
		c.rest, c.at = c.rest[1:], 0
	}
}

// eachElement visits the elements in order.
func eachElement[T any](l *list[T], visit func(*T)) {
	for _, block := range l.blocks {
		for i := range block {
			visit(&block[i])
		}
	}
}
