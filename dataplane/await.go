package dataplane

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage/dataplane/bpf"
)

// How long a change waits until what it wrote is seen by every processor, which
// takes nanoseconds, and until every processor has come out of the packet that it
// was in, which takes microseconds unless the machine itself stands still.
const (
	seenAfter = 10 * time.Microsecond
	outAfter  = 100 * time.Millisecond
)

// await returns once no packet is judged any more by what was chosen before: every
// processor was seen outside of a packet, or has come out of one since.
func (d *Dataplane) await() error {
	if d.preemptible {
		return d.barrier.wait()
	}
	begun := time.Now()
	for time.Since(begun) < seenAfter {
	}
	var before, now []bpf.KernelPresence
	if err := d.objects.Presences.Lookup(uint32(0), &before); err != nil {
		return fmt.Errorf("see where packets are: %w", err)
	}
	for now = before; isInside(before, now); {
		if time.Since(begun) > outAfter {
			return d.barrier.wait()
		}
		if err := d.objects.Presences.Lookup(uint32(0), &now); err != nil {
			return fmt.Errorf("see where packets are: %w", err)
		}
	}
	return nil
}

func isInside(before, now []bpf.KernelPresence) bool {
	for i := range now {
		if before[i].Inside != 0 && now[i].Inside != 0 && now[i].Turns == before[i].Turns {
			return true
		}
	}
	return false
}

// isPreemptible says whether the kernel may stop a program in the middle for
// another one: then processors cannot be watched.
func isPreemptible() bool {
	text, err := os.ReadFile("/sys/kernel/realtime")
	return err == nil && strings.TrimSpace(string(text)) == "1"
}

// barrier waits until every program that was running has ended, however long that
// takes: the kernel does so before a change of a map of maps returns.
type barrier struct{ outer, inner *ebpf.Map }

func newBarrier() (*barrier, error) {
	innerSpec := &ebpf.MapSpec{Name: "barrier_inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	inner, err := ebpf.NewMap(innerSpec)
	if err != nil {
		return nil, fmt.Errorf("make barrier: %w", err)
	}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Name: "barrier", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4,
		MaxEntries: 1, InnerMap: innerSpec})
	if err != nil {
		inner.Close()
		return nil, fmt.Errorf("make barrier: %w", err)
	}
	return &barrier{outer, inner}, nil
}

func (b *barrier) wait() error { return b.outer.Put(uint32(0), b.inner) }

func (b *barrier) Close() error { return errors.Join(b.outer.Close(), b.inner.Close()) }
