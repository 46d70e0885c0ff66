package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// Bits of the word in the active map (see abi.h): the slot of the ruleset's
// rows, the slot of what of it is in terms of time (its refused set and the ends
// of its decisions), and above them the epoch.
const (
	wordSlot    = 1
	wordRefused = 2
	wordShift   = 2
)

// Generation is the generation in force; 0 before any.
func (d *Dataplane) Generation() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	header, _, err := d.inForce()
	if err != nil || header == nil {
		return 0
	}
	return header.Generation
}

// inForce reads which ruleset the kernel goes by; nil before any.
func (d *Dataplane) inForce() (*bpf.KernelRuleset, bpf.KernelActive, error) {
	var active bpf.KernelActive
	if err := d.objects.Active.Lookup(uint32(0), &active); err != nil {
		return nil, active, fmt.Errorf("read active generation: %w", err)
	}
	if active.Word == 0 {
		return nil, active, nil
	}
	header, err := d.readHeader(uint32(active.Word & (wordSlot | wordRefused)))
	return header, active, err
}

func (d *Dataplane) readHeader(index uint32) (*bpf.KernelRuleset, error) {
	var header bpf.KernelRuleset
	if err := d.objects.Rulesets.Lookup(index, &header); err != nil {
		return nil, fmt.Errorf("read ruleset: %w", err)
	}
	return &header, nil
}

// Apply makes a ruleset the one in force, at one moment for all packets. When it
// returns, no packet is judged by the ruleset before. Flows are judged again on
// their next packet. A generation lower than the one in force is refused, as is
// the same one with other content; then, and on any error, nothing has changed.
func (d *Dataplane) Apply(rs *bocage.Ruleset) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.enforce(rs, forward)
}

// Revert is Apply for the one case in which an agent goes back: to the generation
// that was in force before one that nobody confirmed. Whoever calls it answers for
// what the ruleset must bring along (see Ruleset.WithRefusals).
func (d *Dataplane) Revert(rs *bocage.Ruleset) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.enforce(rs, back)
}

// direction says whether an older generation may take the place of a newer one.
type direction bool

const (
	forward direction = false
	back    direction = true
)

func (d *Dataplane) enforce(rs *bocage.Ruleset, direction direction) error {
	start := time.Now()
	t, err := compile(rs)
	if err == nil {
		err = d.checkRoom(t)
	}
	if err == nil {
		err = d.apply(t, direction)
	}
	if isFull(err) && d.candidate() != 0 {
		// What is only evaluated must not stand in the way of what is enforced.
		d.log.Warn("candidate dropped: it leaves no room for the next ruleset", "generation", rs.Generation)
		if err = d.dropCandidate(); err == nil {
			err = d.apply(t, direction)
		}
	}
	if err != nil {
		return fmt.Errorf("apply generation %d: %w", rs.Generation, err)
	}
	d.log.Info("applied ruleset", "generation", rs.Generation, "back", bool(direction), "peers", len(rs.Peers),
		"rules", len(rs.Rules), "refused", len(rs.Refused), "took", time.Since(start))
	return nil
}

func (d *Dataplane) apply(t *tables, direction direction) error {
	before, active, err := d.inForce()
	if err != nil {
		return err
	}
	word := active.Word
	same := before != nil && before.Digest == binary.BigEndian.Uint64(t.digest[:8])
	if before != nil && direction == forward && t.generation < before.Generation {
		return fmt.Errorf("generation %d is in force, and there is no way back", before.Generation)
	}
	if before != nil && direction == forward && t.generation == before.Generation && !same {
		return errors.New("this generation is in force with other content: give the new content a higher generation")
	}

	slot, refusedSlot := uint32(word&wordSlot), uint32(word&wordRefused)/wordRefused^1
	if !same {
		slot ^= 1
		if err := d.clearRuleset(slot); err != nil {
			return err
		}
		if err := d.writeRuleset(t, slot); err != nil {
			return errors.Join(err, d.clearRuleset(slot))
		}
	}
	refused, err := d.writeRefused(t, refusedSlot)
	if err != nil {
		return err
	}
	index := slot*wordSlot | refusedSlot*wordRefused
	if err := d.objects.Rulesets.Put(index, t.header(slot, refusedSlot, refused)); err != nil {
		return fmt.Errorf("write ruleset: %w", err)
	}
	active.Word = nextEpoch(word, index)
	if err := d.objects.Active.Put(uint32(0), active); err != nil {
		return fmt.Errorf("activate: %w", err)
	}
	d.afterFlip(same, slot, refusedSlot)
	return nil
}

// nextEpoch is the word after word, by which every flow is judged again.
func nextEpoch(word uint64, index uint32) uint64 {
	return (word>>wordShift+1)<<wordShift | uint64(index)
}

// writeRefused writes what is in terms of the kernel's time: who is refused, which
// it counts, and when decisions end.
func (d *Dataplane) writeRefused(t *tables, slot uint32) (int, error) {
	if err := d.clearRefused(slot); err != nil {
		return 0, err
	}
	now := readClock()
	keys, rows := refusedRows(t.refused, slot, now)
	if err := put(d.objects.RefusedIdentities, keys, rows); err != nil {
		return 0, errors.Join(fmt.Errorf("write refused identities: %w", err), d.clearRefused(slot))
	}
	decisions, successions := successionRows(t.endings, slot, now)
	if err := put(d.objects.Successions, decisions, successions); err != nil {
		return 0, errors.Join(fmt.Errorf("write ends of decisions: %w", err), d.clearRefused(slot))
	}
	return len(keys), nil
}

// afterFlip waits until no packet is judged by the old generation, and frees
// it. The new one is in force whatever happens here, so errors are only logged;
// rows left behind are cleared by the next Apply.
func (d *Dataplane) afterFlip(same bool, slot, refusedSlot uint32) {
	if err := d.barrier.wait(); err != nil {
		d.log.Warn("packets of the old generation not awaited", "error", err)
		return
	}
	if !same {
		if err := d.clearRuleset(slot ^ 1); err != nil {
			d.log.Warn("old ruleset not cleared", "error", err)
		}
	}
	if err := d.clearRefused(refusedSlot ^ 1); err != nil {
		d.log.Warn("old refused set not cleared", "error", err)
	}
	d.moveLinks()
}

// checkRoom says before anything is written whether a ruleset fits.
func (d *Dataplane) checkRoom(t *tables) error {
	var faults faults
	check := func(n, room int, what, option string) {
		if n > room {
			faults.add("%d %s and room for %d: raise %s", n, what, room, option)
		}
	}
	check(len(t.peerKeys), d.cfg.PeerEntries, "host addresses", "PeerEntries")
	check(len(t.groupKeys), d.cfg.PeerEntries, "enforcing groups", "PeerEntries")
	check(len(t.prefixKeys), d.cfg.PrefixEntries, "prefixes", "PrefixEntries")
	check(len(t.cellKeys), d.cfg.RuleEntries, "rules after splitting port ranges", "RuleEntries")
	check(len(t.refused), d.cfg.RefusedEntries, "refused identities", "RefusedEntries")
	check(len(t.endings), d.cfg.EndingEntries, "decisions that end", "EndingEntries")
	check(len(t.shapes), len(bpf.KernelRuleset{}.Shapes), "forms of rule", "nothing: report this as a bug")
	return faults.err()
}

func (d *Dataplane) writeRuleset(t *tables, slot uint32) error {
	d.rows[slot] = t
	for i := range t.peerKeys {
		t.peerKeys[i].Slot = uint64(slot)
	}
	for i := range t.prefixKeys {
		t.prefixKeys[i].Slot = slot
	}
	for i := range t.groupKeys {
		t.groupKeys[i].Slot = slot
	}
	for i := range t.cellKeys {
		t.cellKeys[i].Slot = slot
	}
	if err := put(d.objects.Peers, t.peerKeys, t.peers); err != nil {
		return fmt.Errorf("write peers: %w", err)
	}
	if err := put(d.objects.Prefixes, t.prefixKeys, t.prefixes); err != nil {
		return fmt.Errorf("write prefixes: %w", err)
	}
	if err := put(d.objects.Groups, t.groupKeys, t.groups); err != nil {
		return fmt.Errorf("write groups: %w", err)
	}
	if err := put(d.objects.Cells, t.cellKeys, t.cells); err != nil {
		return fmt.Errorf("write rules: %w", err)
	}
	return nil
}

// clearRuleset deletes every row of a slot, whoever wrote it: if this process
// did, it knows the keys.
func (d *Dataplane) clearRuleset(slot uint32) error {
	if t := d.rows[slot]; t != nil {
		err := errors.Join(
			drop(d.objects.Peers, t.peerKeys), drop(d.objects.Prefixes, t.prefixKeys),
			drop(d.objects.Groups, t.groupKeys), drop(d.objects.Cells, t.cellKeys))
		if err == nil {
			d.rows[slot] = &tables{}
		}
		return err
	}
	err := errors.Join(
		clearRows(d.objects.Peers, func(k bpf.KernelPeerKey) bool { return k.Slot == uint64(slot) }),
		clearRows(d.objects.Prefixes, func(k bpf.KernelPrefixKey) bool { return k.Slot == slot }),
		clearRows(d.objects.Groups, func(k bpf.KernelGroupKey) bool { return k.Slot == slot }),
		clearRows(d.objects.Cells, func(k bpf.KernelRuleKey) bool { return k.Slot == slot }),
	)
	if err == nil {
		d.rows[slot] = &tables{}
	}
	return err
}

func (d *Dataplane) clearRefused(slot uint32) error {
	return errors.Join(
		clearRows(d.objects.RefusedIdentities, func(k bpf.KernelRefusedKey) bool { return k.Slot == slot }),
		clearRows(d.objects.Successions, func(k bpf.KernelSuccessionKey) bool { return k.Slot == slot }))
}

// isFull says whether a map had no room left.
func isFull(err error) bool { return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) }

// put writes rows in one system call.
func put[K, V any](m *ebpf.Map, keys []K, values []V) error {
	if len(keys) == 0 {
		return nil
	}
	n, err := m.BatchUpdate(keys, values, nil)
	// A batch may find the kernel's small store of free rows empty for a moment.
	for attempts := 0; err != nil && errors.Is(err, unix.ENOMEM) && attempts < 100; attempts++ {
		keys, values = keys[n:], values[n:]
		n, err = m.BatchUpdate(keys, values, nil)
	}
	if isFull(err) {
		return fmt.Errorf("the map is full: %w", err)
	}
	return err
}

// drop deletes rows in one system call; rows that are not there are well.
func drop[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n, err := m.BatchDelete(keys, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("clear %s: %w", m, err)
		}
		keys = keys[min(n+1, len(keys)):]
	}
	return nil
}

// clearRows deletes the rows whose key is chosen.
func clearRows[K comparable](m *ebpf.Map, chosen func(K) bool) error {
	var doomed []K
	for key, err := range keysIn[K](m) {
		if err != nil {
			return fmt.Errorf("list %s: %w", m, err)
		}
		if chosen(key) {
			doomed = append(doomed, key)
		}
	}
	for _, key := range doomed {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("clear %s: %w", m, err)
		}
	}
	return nil
}

// keysIn walks the keys of a map that nobody else changes.
func keysIn[K any](m *ebpf.Map) iter.Seq2[K, error] {
	return func(yield func(K, error) bool) {
		var key, next K
		err := m.NextKey(nil, &next)
		for ; err == nil; err = m.NextKey(key, &next) {
			if !yield(next, nil) {
				return
			}
			key = next
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			yield(next, err)
		}
	}
}

// barrier waits until every program that was running has ended: the kernel does
// so before a change of a map of maps returns.
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

func readClock() clock {
	var ts unix.Timespec
	// CLOCK_MONOTONIC always exists.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return clock{wall: time.Now().Round(0), ns: ts.Nano()}
}

// bytesOf views rows as bytes, padding included; the rows are the kernel's own
// layout, with all padding named.
func bytesOf[T any](rows []T) []byte {
	if len(rows) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&rows[0])), len(rows)*int(unsafe.Sizeof(rows[0])))
}

func keysOf[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }

func number(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}
