package dataplane

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// The table of flows (see table.h of the bpf package), from the Go side.

// ways is how many rows are in a bucket.
const ways = len(bpf.KernelBucket{}.Rows)

// Flags of a row, and the units of its times, as shifts of nanoseconds.
const (
	flowSecond      = 0x1
	flowTo          = 0x2
	flowReplied     = 0x4
	flowFinished    = 0x18 // by both ends
	flowReset       = 0x20
	flowEstablished = 0x1000
	flowWatched     = 0x8000
	flowLive        = 0x400000
	flowWriting     = 0x800000
	beatShift       = 22
	roundShift      = 30
)

// How many kinds of flows have a patience of their own; those that are over, by a reset
// and by both ends; and the one whose patience is that of picking up.
const (
	kinds        = 8
	kindClosed   = 0
	kindSilenced = 6
	kindFinished = 7
)

// flowTable is the table of flows as it lies in the kernel, read in place.
type flowTable struct {
	memory   []byte
	rows     []bpf.KernelFlow
	patience [kinds]uint32 // by kind; see patience.h
}

func mapFlows(m *ebpf.Map, spec *ebpf.CollectionSpec) (*flowTable, error) {
	t := &flowTable{}
	if err := spec.Variables["patience"].Get(&t.patience); err != nil {
		return nil, fmt.Errorf("read how long flows wait: %w", err)
	}
	memory, err := mapMemory(m, unix.PROT_READ)
	if err != nil {
		return nil, fmt.Errorf("map table of flows: %w", err)
	}
	t.memory = memory
	t.rows = unsafe.Slice((*bpf.KernelFlow)(unsafe.Pointer(&memory[0])), int(m.MaxEntries())*ways)
	return t, nil
}

// mapMemory maps the values of an array into this process. The mapping holds the map:
// it is unmapped by whoever closes, not by a collector of garbage some time later as
// that of [ebpf.Memory], or the map outlives its removal.
func mapMemory(m *ebpf.Map, protection int) ([]byte, error) {
	size, page := int(m.MaxEntries())*int(m.ValueSize()), os.Getpagesize()
	return unix.Mmap(m.FD(), 0, (size+page-1)/page*page, protection, unix.MAP_SHARED)
}

func (t *flowTable) close() error { return unix.Munmap(t.memory) }

// live yields the rows of flows by number. A row may change, or become another
// flow's, while it is looked at: whoever needs it whole reads its word again.
func (t *flowTable) live(yield func(uint32, *bpf.KernelFlow) bool) {
	for i := range t.rows {
		row := &t.rows[i]
		if atomic.LoadUint64(&row.Word)&flowLive != 0 && !yield(uint32(i+1), row) {
			return
		}
	}
}

// isOver says whether a flow has waited for longer than flows of its kind may.
func (t *flowTable) isOver(row *bpf.KernelFlow, beat uint32) bool {
	idle := int32(beat - row.Seen)
	return idle >= 0 && uint32(idle) >= t.patience[kindOf(row)]
}

// crowding knows where rows may be wanted, so that what is finished goes early.
type crowding struct {
	table  bool // much of it is taken
	share  uint64
	rows   *ebpf.Map       // that owners hold
	owners map[uint32]bool // that were looked at
}

// isOver says the same of a flow whose row may be wanted (see patience_with in patience.h).
func (c *crowding) isOver(t *flowTable, row *bpf.KernelFlow, beat uint32) bool {
	if t.isOver(row, beat) {
		return true
	}
	idle := int32(beat - row.Seen)
	if idle < 0 || uint32(idle) < t.patience[kindClosed] || kindOf(row) != kindFinished {
		return false
	}
	return c.table || c.isPressed(holderOf(row))
}

func (c *crowding) isPressed(owner uint32) bool {
	pressed, known := c.owners[owner]
	if !known {
		var holding bpf.KernelHolding
		pressed = c.rows.Lookup(owner, &holding) == nil && c.share > 0 && holding.Rows > c.share/2
		c.owners[owner] = pressed
	}
	return pressed
}

// crowding says where rows may be wanted when so many flows live.
func (d *Dataplane) crowding(live uint64) (*crowding, error) {
	var most bpf.KernelHolding
	if err := d.objects.Shares.Lookup(uint32(0), &most); err != nil {
		return nil, fmt.Errorf("read share of the table of flows: %w", err)
	}
	return &crowding{table: live > uint64(d.cfg.FlowEntries)/2, share: most.Rows, rows: d.objects.Holdings,
		owners: make(map[uint32]bool)}, nil
}

// kindOf is the twin of kind_of in patience.h.
func kindOf(row *bpf.KernelFlow) int {
	const opening, established, datagram, stream, other = 1, 2, 3, 4, 5
	const unproven = flowReset | flowEstablished | flowWatched
	word := row.Word
	switch bocage.Protocol(row.Key.Protocol) {
	case bocage.ProtocolTCP:
		switch {
		case word&unproven == unproven && row.Expects != 0:
			return kindSilenced
		case word&flowReset != 0:
			return kindClosed
		case word&flowFinished == flowFinished:
			return kindFinished
		case word&flowEstablished != 0:
			return established
		}
		return opening
	case bocage.ProtocolUDP:
		if word&flowReplied != 0 {
			return stream
		}
		return datagram
	case bocage.ProtocolICMP, bocage.ProtocolICMPv6:
		return datagram
	}
	return other
}

func holderOf(row *bpf.KernelFlow) uint32 {
	if (row.Word&flowSecond != 0) != (row.Word&flowTo != 0) {
		return row.Ifindex[1]
	}
	return row.Ifindex[0]
}

// endFlows ends the flows that are over, and all that an interface owns, if it is
// not 0; it is told how many lived, and returns how many live on. What the ring has no
// room for waits.
func (d *Dataplane) endFlows(ifindex uint32, lived uint64) (live uint64, err error) {
	d.mapped.RLock()
	defer d.mapped.RUnlock()
	if d.flows == nil {
		return 0, nil
	}
	crowding, err := d.crowding(lived)
	if err != nil {
		return 0, err
	}
	tables := uint32(sweepFlows)
	if crowding.table {
		tables |= sweepCrowded
	}
	beat := uint32(readClock().ns >> beatShift)
	var list bpf.KernelEndings
	count, full, ended := 0, false, uint64(0)
	end := func() {
		d.ending.Lock()
		defer d.ending.Unlock()
		order := bpf.KernelSweepOrder{Tables: tables, Ifindex: ifindex, Count: uint32(count)}
		if err = d.objects.Endings.Put(uint32(0), list); err == nil {
			_, err = d.objects.Sweep.Run(&ebpf.RunOptions{Context: &order, ContextOut: &order})
		}
		ended, full, count = ended+order.Ended, order.Full != 0, 0
	}
	for number, row := range d.flows.live {
		live++
		if full || err != nil || !(crowding.isOver(d.flows, row, beat) || (ifindex != 0 && holderOf(row) == ifindex)) {
			continue
		}
		list.Row[count] = number
		if count++; count == len(list.Row) {
			end()
		}
	}
	if count > 0 && !full && err == nil {
		end()
	}
	if err != nil {
		return live, fmt.Errorf("end flows: %w", err)
	}
	return live - min(ended, live), nil
}

// endFlowsOf ends all flows of an enforcement point that is no more.
func (d *Dataplane) endFlowsOf(ifindex uint32) (err error) {
	if d.live, err = d.endFlows(ifindex, d.live); err != nil {
		return err
	}
	if err := d.objects.Holdings.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete holding of port: %w", err)
	}
	return nil
}

func bucketsOf(cfg Config) uint32 { return uint32((cfg.FlowEntries + ways - 1) / ways) }

// cadenceSets is a power of two, so that about a quarter of the flows may have a
// cadence: most flows are over before they are silent.
func cadenceSets(cfg Config) uint32 {
	flows := uint32(cfg.FlowEntries) / 4 / uint32(len(bpf.KernelPaces{}.Rows))
	return max(1, uint32(1)<<bits.Len32(flows)>>1)
}

// seed draws what the hash of flows starts from, or takes what the table that is
// there was made with: with another seed, nothing would be found in it.
// Those of names are kept where state before had some.
func seed(spec *ebpf.CollectionSpec, made *ebpf.Map, names []uint64) error {
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
	}
	copy(seeds[addressSeed:], names)
	for i := range seeds {
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
	if err := d.objects.Shares.Put(uint32(0), bpf.KernelHolding{Rows: uint64(rows)}); err != nil {
		return fmt.Errorf("write share of the table of flows: %w", err)
	}
	return nil
}
