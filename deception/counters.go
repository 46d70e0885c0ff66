package deception

import (
	"maps"
	"sync"
)

// Counters tell what happened to everything that came. Offered is Served plus
// the sum of Shed; Engagements is Reported plus Waiting plus the sum of Lost.
// What a child that was killed counted in its last second is missing on both
// sides.
type Counters struct {
	Offered     uint64            `json:"offered"`          // connections that reached a decoy
	Served      uint64            `json:"served"`           // that were talked to
	Shed        map[string]uint64 `json:"shed,omitempty"`   // that were closed at once, by cause
	Panics      uint64            `json:"panics,omitempty"` // served ones that ended by a fault of ours
	Engagements uint64            `json:"engagements"`      // made
	Reported    uint64            `json:"reported"`         // handed to Run's report
	Waiting     uint64            `json:"waiting"`          // in the agent's queue
	Lost        map[string]uint64 `json:"lost,omitempty"`   // by cause
	Restarts    uint64            `json:"restarts"`         // of the child
}

// Causes of Counters.Shed: the limit that was reached.
const (
	ShedSource   = "source"   // connections of one source
	ShedDecoy    = "decoy"    // connections to one decoy
	ShedTotal    = "total"    // connections of all
	ShedUnplaced = "unplaced" // no decoy stands in for the address and port
)

// Causes of Counters.Lost.
const (
	LostChild     = "child-queue" // the child's queue was full
	LostQueue     = "queue"       // the agent's queue was full
	LostMalformed = "malformed"   // the child reported what cannot be
)

// counts is the child's share, from its start.
type counts struct {
	Offered     uint64            `json:"offered"`
	Served      uint64            `json:"served"`
	Panics      uint64            `json:"panics"`
	Shed        map[string]uint64 `json:"shed,omitempty"`
	Engagements uint64            `json:"engagements"`
	Lost        uint64            `json:"lost"`
}

func (c counts) clone() counts {
	c.Shed = maps.Clone(c.Shed)
	return c
}

// tally adds up over all lives of the child.
type tally struct {
	mu       sync.Mutex
	past     counts // of children that are gone
	present  counts // of the one that runs
	lost     map[string]uint64
	handed   uint64
	restarts uint64
}

// childCounts takes what the running child says it has counted so far.
func (t *tally) childCounts(c counts) {
	for cause := range c.Shed {
		switch cause {
		case ShedSource, ShedDecoy, ShedTotal, ShedUnplaced:
		default: // the child is not believed: it cannot invent metrics
			delete(c.Shed, cause)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.present = c
}

// childGone closes the book of a child.
func (t *tally) childGone() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.past = sum(t.past, t.present)
	t.present = counts{}
}

func (t *tally) restarted() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.restarts++
}

func (t *tally) reported() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.handed++
}

func (t *tally) lose(cause string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lost == nil {
		t.lost = make(map[string]uint64)
	}
	t.lost[cause]++
}

func (t *tally) read(waiting int) Counters {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := sum(t.past, t.present)
	c := Counters{
		Offered: all.Offered, Served: all.Served, Shed: all.Shed, Panics: all.Panics,
		Engagements: all.Engagements, Reported: t.handed, Waiting: uint64(waiting),
		Lost: maps.Clone(t.lost), Restarts: t.restarts,
	}
	if all.Lost > 0 {
		if c.Lost == nil {
			c.Lost = make(map[string]uint64)
		}
		c.Lost[LostChild] += all.Lost
	}
	return c
}

func sum(a, b counts) counts {
	out := counts{
		Offered: a.Offered + b.Offered, Served: a.Served + b.Served, Panics: a.Panics + b.Panics,
		Engagements: a.Engagements + b.Engagements, Lost: a.Lost + b.Lost,
		Shed: make(map[string]uint64),
	}
	for _, shed := range []map[string]uint64{a.Shed, b.Shed} {
		for cause, n := range shed {
			out.Shed[cause] += n
		}
	}
	return out
}
