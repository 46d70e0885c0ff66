package compile

import (
	"runtime"
	"sync"
)

// leastWork is how many pieces of work are worth being divided.
const leastWork = 64

// hands are those who share work within one compilation, where no piece depends on
// another. What comes of it does not depend on how many they are.
type hands struct {
	count int
	least int // pieces of work that are worth being divided
}

// allHands is one for each processor.
func allHands() hands { return hands{runtime.GOMAXPROCS(0), leastWork} }

// worth reports whether so many pieces of work should be divided.
func (h hands) worth(pieces int) bool { return h.count > 1 && pieces >= h.least }

// divide gives every hand a part of n pieces of work, and waits for all.
func (h hands) divide(n int, work func(hand, first, last int)) {
	var all sync.WaitGroup
	for hand := range h.count {
		first, last := hand*n/h.count, (hand+1)*n/h.count
		if hand == h.count-1 {
			work(hand, first, last)
			break
		}
		if first < last {
			all.Go(func() { work(hand, first, last) })
		}
	}
	all.Wait()
}

// together does two things that do not depend on each other, at once if that is worth
// it.
func (h hands) together(worth bool, one, other func()) {
	if !worth || h.count < 2 {
		one()
		other()
		return
	}
	var both sync.WaitGroup
	both.Go(one)
	other()
	both.Wait()
}

// judge decides cells, with room of its own for what that takes.
type judge struct {
	c      *compiler // whose statements are read
	decide func(covering []int32) int32

	general, covering, counted []int32
	edges                      []edge
}
