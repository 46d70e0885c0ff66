// Package account tells what is new from what came before, by the numbers that
// senders give: a window of bits behind the highest. It promises the same answer
// in whichever order the numbers come, as far as the window reaches, and never
// grows.
package account

// Size is how far behind the highest number the window remembers.
const Size = 4096

// Outcome is what a number is to the account.
type Outcome int

// Outcomes.
const (
	Fresh     Outcome = iota
	Duplicate         // it came before
	Stale             // too far behind to tell
)

// Window remembers which numbers came. Its zero value has seen nothing.
type Window struct {
	highest, lowest uint64
	seen            [Size / 64]uint64
}

// Highest is the highest number that came; 0 if none did.
func (w *Window) Highest() uint64 { return w.highest }

// Add accounts for a number, from 1 up. The first one that ever comes tells
// nothing about those before it: they are fresh, should they still come.
func (w *Window) Add(n uint64) Outcome {
	switch {
	case w.highest == 0:
		w.highest, w.lowest = n, n
	case n > w.highest:
		for clear := w.highest + 1; clear <= n && clear <= w.highest+Size; clear++ {
			w.set(clear, false)
		}
		w.highest = n
	case w.highest-n >= Size:
		return Stale
	case n < w.lowest:
		for clear := n; clear < w.lowest; clear++ {
			w.set(clear, false)
		}
		w.lowest = n
	case w.has(n):
		return Duplicate
	}
	w.set(n, true)
	return Fresh
}

func (w *Window) has(n uint64) bool { return w.seen[n%Size/64]&(1<<(n%64)) != 0 }

func (w *Window) set(n uint64, seen bool) {
	if seen {
		w.seen[n%Size/64] |= 1 << (n % 64)
	} else {
		w.seen[n%Size/64] &^= 1 << (n % 64)
	}
}
