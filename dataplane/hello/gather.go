package hello

import (
	"time"

	"bocage.dev/bocage"
)

// Limits of a Gatherer. What is older or more makes room.
const (
	mostFlows = 4096
	mostHeld  = 16 << 20 // bytes, of all flows
	patience  = 10 * time.Second
)

// Key names a flow among those that are gathered.
type Key struct {
	Interface                   uint32
	Source, Destination         bocage.Identity
	SourcePort, DestinationPort uint16
	Remote                      [16]byte
	To                          bool
}

// KeyOf is a flow's.
func KeyOf(e *bocage.FlowEvent) Key {
	k := Key{Interface: e.Interface, Source: e.Source, Destination: e.Destination, SourcePort: e.SourcePort,
		DestinationPort: e.DestinationPort, To: e.Direction == bocage.DirectionTo}
	if e.Remote.IsValid() {
		k.Remote = e.Remote.As16()
	}
	return k
}

// Gatherer puts ClientHellos together from pieces that come in any order, some of
// them more than once. Whoever uses it takes care that one goroutine does.
type Gatherer struct {
	flows map[Key]*gathered
	order []arrival // oldest first; some are gone
	held  int
	// Given up are flows that were forgotten unfinished, because they took too long
	// or others needed the room.
	GivenUp uint64
}

type arrival struct {
	key   Key
	since time.Time
}

// gathered is what came of one flow.
type gathered struct {
	since time.Time
	bytes []byte
	have  []bool
	solid int // so many bytes without a gap
	over  bool
}

// Add takes a piece, by its place in what the client says, and returns what the
// client said once it is all there, or once it is known to be ambiguous: a copy of
// bytes differs. Done is true once for a flow.
func (g *Gatherer) Add(key Key, place int, piece []byte, now time.Time) (h Hello, ambiguous, done bool) {
	if place < 0 || place >= MostBytes {
		return Hello{}, false, false
	}
	if g.flows == nil {
		g.flows = map[Key]*gathered{}
	}
	f := g.flows[key]
	if f != nil && f.over && place == 0 && now.Sub(f.since) > patience {
		g.forget(key) // the ports are used again
		f = nil
	}
	if f == nil {
		f = &gathered{since: now}
		g.flows[key] = f
		g.order = append(g.order, arrival{key, now})
		g.tidy(now)
	}
	if f.over {
		return Hello{}, false, false
	}
	if !f.put(place, piece[:min(len(piece), MostBytes-place)], &g.held) {
		f.finish(&g.held)
		return Hello{}, true, true
	}
	hello, answer := Parse(f.bytes[:f.solid])
	if answer == No && f.solid > 0 || answer == Yes {
		f.finish(&g.held)
	}
	g.tidy(now)
	return hello, false, answer == Yes
}

// put writes a piece where it belongs; false if other bytes were there.
func (f *gathered) put(place int, piece []byte, held *int) bool {
	if end := place + len(piece); end > len(f.bytes) {
		*held += end - len(f.bytes)
		f.bytes = append(f.bytes, make([]byte, end-len(f.bytes))...)
		f.have = append(f.have, make([]bool, end-len(f.have))...)
	}
	for i, c := range piece {
		if f.have[place+i] && f.bytes[place+i] != c {
			return false
		}
		f.bytes[place+i], f.have[place+i] = c, true
	}
	for f.solid < len(f.have) && f.have[f.solid] {
		f.solid++
	}
	return true
}

// finish lets go of the bytes; the flow is remembered, so that what is sent again
// says nothing new.
func (f *gathered) finish(held *int) {
	*held -= len(f.bytes)
	f.bytes, f.have, f.solid, f.over = nil, nil, 0, true
}

func (g *Gatherer) forget(key Key) {
	if f := g.flows[key]; f != nil {
		if !f.over {
			g.GivenUp++
		}
		f.finish(&g.held)
		delete(g.flows, key)
	}
}

// tidy forgets the oldest, as long as there are too many, or they are too old.
func (g *Gatherer) tidy(now time.Time) {
	for len(g.order) > 1 {
		oldest := g.order[0]
		f := g.flows[oldest.key]
		there := f != nil && f.since.Equal(oldest.since)
		if there && len(g.flows) <= mostFlows && g.held <= mostHeld && now.Sub(f.since) <= patience {
			return
		}
		if there {
			g.forget(oldest.key)
		}
		g.order = g.order[1:]
	}
}
