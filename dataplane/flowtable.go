package dataplane

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage/dataplane/bpf"
)

// The table of flows (see table.h of the bpf package), from the Go side.

// ways is how many rows are in a bucket.
const ways = len(bpf.KernelBucket{}.Rows)

// Flags of a row, and the units of its times, as shifts of nanoseconds.
const (
	flowLive    = 0x400000
	flowWriting = 0x800000
	beatShift   = 22
	roundShift  = 30
)

func bucketsOf(cfg Config) uint32 { return uint32((cfg.FlowEntries + ways - 1) / ways) }

// cadenceSets is a power of two, so that about a quarter of the flows may have a
// cadence: most flows are over before they are silent.
func cadenceSets(cfg Config) uint32 {
	flows := uint32(cfg.FlowEntries) / 4 / uint32(len(bpf.KernelPaces{}.Rows))
	return max(1, uint32(1)<<bits.Len32(flows)>>1)
}

// seed draws what the hash of flows starts from, or takes what the table that is
// there was made with: with another seed, nothing would be found in it.
func seed(spec *ebpf.CollectionSpec, made *ebpf.Map) error {
	variable := spec.Variables["flow_seeds"]
	seeds := make([]uint64, variable.Size()/8)
	if made != nil {
		for i := range seeds {
			if err := made.Lookup(uint32(i), &seeds[i]); err != nil {
				return err
			}
		}
		return variable.Set(seeds)
	}
	drawn := make([]byte, variable.Size())
	rand.Read(drawn)
	m := spec.Maps["seeds"]
	m.Contents = nil
	for i := range seeds {
		seeds[i] = binary.NativeEndian.Uint64(drawn[8*i:]) | 1 // some are factors, and must be odd
		m.Contents = append(m.Contents, ebpf.MapKV{Key: uint32(i), Value: seeds[i]})
	}
	return variable.Set(seeds)
}

// share says how many flows one enforcement point may hold: all, if there is only
// one.
func (d *Dataplane) share() error {
	rows := d.cfg.FlowsPerPort
	if len(d.ports) < 2 {
		rows = d.cfg.FlowEntries
	}
	if err := d.objects.Holdings.Put(uint32(0), bpf.KernelHolding{Rows: uint64(rows)}); err != nil {
		return fmt.Errorf("write share of the table of flows: %w", err)
	}
	return nil
}
