package deception

import (
	"net/netip"
	"sync"
)

// Bounds of what a child serves at a time.
const (
	maxPerSource = 8    // connections of one source
	maxPerDecoy  = 512  // connections to one decoy
	maxTotal     = 2048 // connections of all
)

// gate admits connections as long as there is room, and counts both.
type gate struct {
	mu      sync.Mutex
	total   int
	sources map[netip.Addr]int
	decoys  map[string]int
	counts  counts
}

func newGate() *gate {
	return &gate{sources: make(map[netip.Addr]int), decoys: make(map[string]int), counts: counts{Shed: make(map[string]uint64)}}
}

// enter admits a connection of a source to a decoy ("" for none), or says which
// limit it meets. Who was admitted has to leave.
func (g *gate) enter(source netip.Addr, decoy string) (cause string, ok bool) {
	source = sourceOf(source)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.counts.Offered++
	switch {
	case decoy == "":
		cause = ShedUnplaced
	case g.sources[source] >= maxPerSource:
		cause = ShedSource
	case g.decoys[decoy] >= maxPerDecoy:
		cause = ShedDecoy
	case g.total >= maxTotal:
		cause = ShedTotal
	default:
		g.total++
		g.sources[source]++
		g.decoys[decoy]++
		g.counts.Served++
		return "", true
	}
	g.counts.Shed[cause]++
	return cause, false
}

// leave gives back what enter took. Entries at zero go, so the maps are no
// larger than the connections are many.
func (g *gate) leave(source netip.Addr, decoy string) {
	source = sourceOf(source)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if g.sources[source]--; g.sources[source] == 0 {
		delete(g.sources, source)
	}
	if g.decoys[decoy]--; g.decoys[decoy] == 0 {
		delete(g.decoys, decoy)
	}
}

// engaged counts an engagement, kept or not.
func (g *gate) engaged(kept bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.counts.Engagements++
	if !kept {
		g.counts.Lost++
	}
}

func (g *gate) panicked() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.counts.Panics++
}

func (g *gate) read() counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counts.clone()
}

// sourceOf is whom a connection is charged to: an IPv4 address, or the /64 of an
// IPv6 address, since whoever has one address of it has them all.
func sourceOf(address netip.Addr) netip.Addr {
	address = address.Unmap().WithZone("")
	if address.Is4() {
		return address
	}
	prefix, err := address.Prefix(64)
	if err != nil {
		return address
	}
	return prefix.Addr()
}
