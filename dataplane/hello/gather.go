package hello

import (
	"bytes"
	"time"

	"bocage.dev/bocage"
)

// Limits of a Gatherer. What is older or more makes room.
const (
	mostFlows = 4096
	mostHeld  = 16 << 20 // bytes, of all flows
	patience  = 10 * time.Second
)

// key names a flow among those that are gathered.
type key struct {
	Interface                   uint32
	Source, Destination         bocage.Identity
	SourcePort, DestinationPort uint16
	Remote                      [16]byte
	To                          bool
}

func keyOf(e *bocage.FlowEvent) key {
	k := key{Interface: e.Interface, Source: e.Source, Destination: e.Destination, SourcePort: e.SourcePort,
		DestinationPort: e.DestinationPort, To: e.Direction == bocage.DirectionTo}
	if e.Remote.IsValid() {
		k.Remote = e.Remote.As16()
	}
	return k
}

// Gatherer puts ClientHellos together from pieces that come in any order, some of
// them more than once. Whoever uses it takes care that one goroutine does.
type Gatherer struct {
	flows map[key]*gathered
	order []arrival // oldest first; some are gone
	held  int
	// Given up are flows that were forgotten unfinished, because they took too long
	// or others needed the room.
	GivenUp uint64
}

type arrival struct {
	key   key
	since time.Time
}

// gathered is what came of one flow.
type gathered struct {
	since   time.Time
	bytes   []byte
	have    []bool
	solid   int    // so many bytes without a gap
	packets uint32 // of the flow, when its last piece came
	over    bool   // it was told, or is none; the bytes are kept, so that others are noticed
	vain    bool   // nothing more is to be told
}

// Add takes a piece, by its place in what the client of a flow says, and returns what
// it said once it is all there, or once it is known to be ambiguous: a copy of bytes
// differs. Done is true once for a flow, and once more if such a copy comes after.
func (g *Gatherer) Add(flow *bocage.FlowEvent, place int, piece []byte, now time.Time) (h Hello, ambiguous, done bool) {
	if place < 0 || place >= MostBytes {
		return Hello{}, false, false
	}
	piece = piece[:min(len(piece), MostBytes-place)]
	k := keyOf(flow)
	f := g.flows[k]
	// Ports are used again. What a flow says again comes behind other packets of it.
	if f != nil && f.over && place == 0 && (now.Sub(f.since) > patience || flow.Packets <= f.packets && !f.repeats(place, piece)) {
		g.forget(k)
		f = nil
	}
	if f == nil {
		f = g.begin(k, now)
		g.tidy(now)
	}
	if f.vain || f.over && f.repeats(place, piece) {
		return Hello{}, false, false
	}
	if f.over || !f.put(place, piece, &g.held) {
		f.drop(&g.held)
		return Hello{}, true, true
	}
	f.packets = max(f.packets, flow.Packets)
	hello, answer := Parse(f.bytes[:f.solid])
	if answer == No && f.solid > 0 || answer == Yes {
		f.finish(&g.held)
	}
	g.tidy(now)
	return hello, false, answer == Yes
}

// Doubt says that what the client of a flow says cannot be known. It returns whether
// that is news.
func (g *Gatherer) Doubt(flow *bocage.FlowEvent, now time.Time) bool {
	k := keyOf(flow)
	f := g.flows[k]
	if f != nil && f.over && (now.Sub(f.since) > patience || flow.Packets < f.packets) { // ports are used again
		g.forget(k)
		f = nil
	}
	if f == nil {
		f = g.begin(k, now)
	}
	news := !f.vain
	f.packets = max(f.packets, flow.Packets)
	f.drop(&g.held)
	g.tidy(now)
	return news
}

// begin makes the row of a flow that is heard of for the first time.
func (g *Gatherer) begin(k key, now time.Time) *gathered {
	if g.flows == nil {
		g.flows = map[key]*gathered{}
	}
	f := &gathered{since: now}
	g.flows[k] = f
	g.order = append(g.order, arrival{k, now})
	return f
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

// repeats reports whether a piece says nothing else than what a finished flow has said.
func (f *gathered) repeats(place int, piece []byte) bool {
	said := f.bytes[min(place, len(f.bytes)):]
	n := min(len(said), len(piece))
	return bytes.Equal(said[:n], piece[:n])
}

// finish keeps what was said without a gap, so that what is sent again says nothing
// new, and what is sent otherwise does.
func (f *gathered) finish(held *int) {
	*held -= len(f.bytes) - f.solid
	f.bytes, f.have, f.over = bytes.Clone(f.bytes[:f.solid]), nil, true
}

// drop lets go of the bytes.
func (f *gathered) drop(held *int) {
	*held -= len(f.bytes)
	f.bytes, f.have, f.solid, f.over, f.vain = nil, nil, 0, true, true
}

func (g *Gatherer) forget(k key) {
	if f := g.flows[k]; f != nil {
		if !f.over {
			g.GivenUp++
		}
		f.drop(&g.held)
		delete(g.flows, k)
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
