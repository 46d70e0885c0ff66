package policy

import (
	"context"
	"runtime"
	gc "runtime/metrics"
)

// leastGarbage is how much has to have gathered before it is collected at rest.
const leastGarbage = 64 << 20

// collectGarbage collects after builds, while nobody waits for one. What a controller
// knows of a large site takes a tenth of a second and more to go through: if the
// collector began by itself, it would begin in the middle of an edit. So it begins
// here, at half of the growth at which it would by itself.
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
