package dataplane

import (
	"errors"
	"fmt"
	"maps"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage/dataplane/bpf"
)

// Slots of a row's versions, and what the stage program does (see abi.h).
const (
	slots    = 4
	slotMask = slots - 1

	forever = ^uint64(0)

	orderPut   = 1
	orderCopy  = 2
	orderPrune = 3
	orderCount = 4

	orderNew   = 1
	orderEmpty = 2
	orders     = 2048

	tablePeers       = 0
	tablePrefixes    = 1
	tableGroups      = 2
	tableCells       = 3
	tableRefused     = 4
	tableSuccessions = 5
	tableLimits      = 6
	tableNames       = 7
	tableRanks       = 8
	tables           = 9

	ruleReason      = 0x80
	formAnyProtocol = 17
	groupHere       = 1
	groupEnforces   = 2
	decisionEnds    = 1
	decisionYields  = 2
	decisionRanked  = 4
)

// batch is what is to be done to rows of every table.
type batch struct {
	what  uint32
	slots uint32      // a bit for each
	like  uint32      // slot
	empty *changes    // told: rows that have no version left; may be nil
	fresh [tables]int // told: rows that there were not
}

// stage does a batch to the rows of changes, of which it needs the versions only
// for orderPut. It goes on where the kernel has no memory for a moment; on an
// error, some of it is done.
func (d *Dataplane) stage(b *batch, rows *changes) error {
	var none changes
	empty := b.empty
	if empty == nil {
		empty = &none
	}
	return errors.Join(
		stageRows(d, b, tablePeers, rows.peers, empty.peers),
		stageRows(d, b, tablePrefixes, rows.prefixes, empty.prefixes),
		stageRows(d, b, tableGroups, rows.groups, empty.groups),
		stageRows(d, b, tableCells, rows.cells, empty.cells),
		stageRows(d, b, tableRefused, rows.refused, empty.refused),
		stageRows(d, b, tableSuccessions, rows.successions, empty.successions),
		stageRows(d, b, tableLimits, rows.limits, empty.limits),
		stageRows(d, b, tableNames, rows.names, empty.names),
		stageRows(d, b, tableRanks, rows.ranks, empty.ranks),
	)
}

func stageRows[K comparable, V any](d *Dataplane, b *batch, table uint32, rows, empty map[K]V) error {
	if len(rows) == 0 {
		return nil
	}
	page := d.page[:0]
	keys := make([]K, 0, min(len(rows), orders))
	flush := func() error {
		err := d.run(b, table, page)
		for i, order := range page {
			if order.Found&orderEmpty != 0 && empty != nil {
				var zero V
				empty[keys[i]] = zero
			}
			if order.Found&orderNew != 0 {
				b.fresh[table]++
			}
		}
		page, keys = page[:0], keys[:0]
		return err
	}
	for key, version := range rows {
		page = append(page, bpf.KernelOrder{What: b.what})
		order := &page[len(page)-1]
		*(*K)(unsafe.Pointer(&order.Key)) = key
		*(*V)(unsafe.Pointer(&order.Value)) = version
		keys = append(keys, key)
		if len(page) == orders {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(page) == 0 {
		return nil
	}
	return flush()
}

// step is called before each change of what the kernel has.
func (d *Dataplane) step(name string) error {
	if d.before == nil {
		return nil
	}
	return d.before(name)
}

// mostAttempts bounds how often a batch goes on after the kernel had no memory.
const mostAttempts = 1000

// run has the kernel carry out a page of orders, and reads what it found.
func (d *Dataplane) run(b *batch, table uint32, page []bpf.KernelOrder) error {
	attempts := 0
	for rest := page; len(rest) > 0; {
		if err := d.step("rows"); err != nil {
			return err
		}
		copy(d.orders, bytesOf(rest))
		order := bpf.KernelBatch{Table: table, Count: uint32(len(rest)), Slots: b.slots, Like: b.like}
		_, err := d.objects.Stage.Run(&ebpf.RunOptions{Context: &order, ContextOut: &order})
		if err != nil {
			return fmt.Errorf("change rows: %w", err)
		}
		d.steps++
		d.ordered += int(order.Done)
		done := rest[:order.Done]
		copy(bytesOf(done), d.orders)
		d.count[table] += int(order.RowsMore) - int(order.RowsLess)
		rest = rest[order.Done:]
		if order.Error == 0 {
			continue
		}
		if err := unix.Errno(-order.Error); err != unix.ENOMEM || attempts == mostAttempts {
			return fmt.Errorf("change rows of %s: %w", d.mapOf(table), err)
		}
		if order.Done == 0 {
			attempts++
		} else {
			attempts = 0
		}
	}
	return nil
}

// prune deletes rows that have no version. No packet may look at them any more,
// and none may be made before another await. What could not be deleted is, next time.
func (d *Dataplane) prune(rows *changes) error {
	if d.empty != nil {
		rows.add(d.empty)
	}
	if rows.len() == 0 {
		return nil
	}
	d.settled, d.empty = false, rows
	err := d.stage(&batch{what: orderPrune}, rows)
	if err == nil {
		d.empty = nil
	}
	return err
}

func (d *Dataplane) mapOf(table uint32) *ebpf.Map {
	o := d.objects
	return [tables]*ebpf.Map{o.Peers, o.Prefixes, o.Groups, o.Cells, o.RefusedIdentities, o.Successions, o.Limits, o.Names, o.Rankings}[table]
}

// compareAll reads every row of every table, and leaves in wanted those of which
// some slot has another version. It counts rows, and says whether the versions of
// one slot are as wanted, those of who is refused apart.
func (d *Dataplane) compareAll(wanted *changes, slot uint32) (same bool, err error) {
	same, refusedSame := true, true
	err = errors.Join(
		compareRows(d, tablePeers, wanted.peers, slot, &same, nil),
		compareRows(d, tablePrefixes, wanted.prefixes, slot, &same, nil),
		compareRows(d, tableGroups, wanted.groups, slot, &same, nil),
		compareRows(d, tableCells, wanted.cells, slot, &same, nil),
		compareRows(d, tableRefused, wanted.refused, slot, &refusedSame, func(want, have bpf.KernelRefused) bpf.KernelRefused {
			want.Until = closeTo(want.Until, have.Until)
			return want
		}),
		compareRows(d, tableSuccessions, wanted.successions, slot, &same, func(want, have bpf.KernelSuccession) bpf.KernelSuccession {
			want.Until = closeTo(want.Until, have.Until)
			return want
		}),
		compareRows(d, tableLimits, wanted.limits, slot, &same, nil),
		compareRows(d, tableNames, wanted.names, slot, &same, nil),
		compareRows(d, tableRanks, wanted.ranks, slot, &same, nil),
	)
	return same, err
}

// closeTo is a moment as another process wrote it down, if it is the same one.
func closeTo(want, have uint64) uint64 {
	if most := uint64(clockError); want != 0 && have != 0 && want-have+most <= 2*most {
		return have
	}
	return want
}

// compareRows is compareAll for one table; settle is what a version is to be where
// there is one already.
func compareRows[K, V comparable](d *Dataplane, table uint32, wanted map[K]V, slot uint32, same *bool, settle func(want, have V) V) error {
	m := d.mapOf(table)
	d.count[table] = 0
	var zero V
	differing := map[K]V{}
	keys, values := make([]K, 4096), make([][slots]V, 4096)
	var cursor ebpf.MapBatchCursor
	for done := false; !done; {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, unix.ENOSPC) && len(keys) < 1<<20 { // a crowded bucket
			keys, values = make([]K, 2*len(keys)), make([][slots]V, 2*len(keys))
			continue
		}
		if done = errors.Is(err, ebpf.ErrKeyNotExist); err != nil && !done {
			return fmt.Errorf("read rows of %s: %w", m, err)
		}
		d.count[table] += n
		for i, key := range keys[:n] {
			want := wanted[key]
			delete(wanted, key)
			if settle != nil {
				want = settle(want, values[i][slot])
			}
			if values[i][slot] != want {
				*same = false
			}
			if values[i] != [slots]V{want, want, want, want} || want == zero {
				differing[key] = want
			}
		}
	}
	for key, want := range wanted {
		if want == zero {
			delete(wanted, key)
		} else {
			*same = false
		}
	}
	maps.Copy(wanted, differing)
	return nil
}

// bytesOf views rows as bytes, padding included; the rows are the kernel's own
// layout, with all padding named.
func bytesOf[T any](rows []T) []byte {
	if len(rows) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&rows[0])), len(rows)*int(unsafe.Sizeof(rows[0])))
}
