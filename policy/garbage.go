package policy

import (
	"context"
	"runtime"
	gc "runtime/metrics"
)

// leastGarbage is how much garbage there must be before it is collected between builds.
const leastGarbage = 64 << 20

// collectGarbage runs the garbage collector after builds, while nobody waits for one. At
// a large site one collection takes a tenth of a second or more, and if the runtime started
// it, it would be in the middle of an edit. So it is started here, at half of the growth at
// which the runtime would start it.
func (p *Policy) collectGarbage(ctx context.Context) error {
	samples := []gc.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.built:
		}
		gc.Read(samples)
		live, all := samples[0].Value.Uint64(), samples[1].Value.Uint64()
		if all > live+max(live/2, leastGarbage) {
			runtime.GC()
		}
	}
}
