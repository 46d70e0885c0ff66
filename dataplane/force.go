package dataplane

import (
	"fmt"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// Bits of the word in the active map (see abi.h): a slot, which of the two terms is
// the word's own, and above them the epoch.
const (
	wordTerm  = 4
	wordShift = 3
)

// force is which ruleset the kernel goes by at a moment.
type force struct {
	row     bpf.KernelActive
	word    uint64             // that counts: the row's, or the one that it went back to
	expired bool               // the row's own was not confirmed in time
	header  *bpf.KernelRuleset // of what counts; nil before any
	left    *bpf.KernelRuleset // what was left because nobody confirmed it, if that is so
}

func (d *Dataplane) readForce() (*force, error) {
	f := &force{}
	if err := d.objects.Active.Lookup(uint32(0), &f.row); err != nil {
		return nil, fmt.Errorf("read active generation: %w", err)
	}
	if f.word = f.row.Word; f.word == 0 {
		return f, nil
	}
	var err error
	if term := f.term(); uint64(readClock().ns) >= term.Deadline {
		if f.left, err = d.readHeader(f.last()); err != nil {
			return nil, err
		}
		f.expired, f.word = true, term.Back
	}
	f.header, err = d.readHeader(f.slot())
	return f, err
}

func (d *Dataplane) readHeader(slot uint32) (*bpf.KernelRuleset, error) {
	var header bpf.KernelRuleset
	if err := d.objects.Rulesets.Lookup(slot, &header); err != nil {
		return nil, fmt.Errorf("read ruleset: %w", err)
	}
	return &header, nil
}

// slot is that of the ruleset that counts.
func (f *force) slot() uint32 { return uint32(f.word & slotMask) }

// last is the slot of the ruleset that was brought in last.
func (f *force) last() uint32 { return uint32(f.row.Word & slotMask) }

// term is the word's own.
func (f *force) term() *bpf.KernelTerm { return &f.row.Terms[f.row.Word/wordTerm&1] }

// waits says whether the ruleset that was brought in last has a deadline, be it over
// or to come.
func (f *force) waits() bool { return f.row.Word != 0 && f.term().Deadline != forever }

// pinned are the slots that something counts on, a bit for each.
func (f *force) pinned() uint32 {
	if f.row.Word == 0 {
		return 0
	}
	pinned := uint32(1) << f.last()
	if f.waits() {
		pinned |= 1 << (f.term().Back & slotMask)
	}
	if f.row.Candidate != 0 {
		pinned |= 1 << (f.row.CandidateSlot & slotMask)
	}
	return pinned
}

// freeSlots lists the others; there is always one.
func (f *force) freeSlots() []uint32 {
	var free []uint32
	for slot := range uint32(slots) {
		if f.pinned()>>slot&1 == 0 {
			free = append(free, slot)
		}
	}
	return free
}

// epoch is one that no flow was judged in, nor will be by what is there.
func (f *force) epoch() uint64 {
	return max(f.row.Word, f.row.Terms[0].Back, f.row.Terms[1].Back)>>wordShift + 1
}

// permits says whether a ruleset may come after what is in force.
func (f *force) permits(rs *bocage.Ruleset, direction direction) error {
	if f.header == nil || direction == back {
		return nil
	}
	if f.left != nil && rs.Generation == f.left.Generation {
		return fmt.Errorf("nobody confirmed it in time, and generation %d is in force again: give it a higher generation", f.header.Generation)
	}
	if rs.Generation < f.header.Generation {
		return fmt.Errorf("generation %d is in force, and there is no way back", f.header.Generation)
	}
	return nil
}

// termFor is the term of a ruleset that comes now: until when it counts without a
// confirmation, and what then. Where something waits for one already, that goes
// back to what it would have gone back to. What is gone back to waits for none, nor
// does what there is nothing before.
func (f *force) termFor(rs *bocage.Ruleset, direction direction, now clock) (bpf.KernelTerm, error) {
	if rs.ConfirmBy.IsZero() || direction == back || f.header == nil || rs.Generation == f.header.Generation && !f.waits() {
		return bpf.KernelTerm{Deadline: forever}, nil
	}
	deadline := now.monotonic(rs.ConfirmBy)
	if deadline <= now.ns {
		return bpf.KernelTerm{}, fmt.Errorf("it was to be confirmed by %s, which is over", rs.ConfirmBy.Format(time.RFC3339))
	}
	to := uint64(f.slot())
	if f.waits() {
		to = f.term().Back & slotMask
	}
	return bpf.KernelTerm{Deadline: uint64(deadline), Back: (f.epoch()+1)<<wordShift | to}, nil
}

// flip makes a slot's ruleset the one in force. The term is written first, where
// nothing looks at it: the store of the word brings both.
func (d *Dataplane) flip(f *force, slot uint32, term bpf.KernelTerm) error {
	row := f.row
	own := 1 - row.Word/wordTerm&1
	row.Terms[own] = term
	if err := d.step("term"); err != nil {
		return err
	}
	if err := d.objects.Active.Put(uint32(0), row); err != nil {
		return fmt.Errorf("write term: %w", err)
	}
	row.Word = f.epoch()<<wordShift | own*wordTerm | uint64(slot)
	if err := d.step("word"); err != nil {
		return err
	}
	if err := d.objects.Active.Put(uint32(0), row); err != nil {
		return fmt.Errorf("activate: %w", err)
	}
	return nil
}

// rejudge begins another epoch, in which every flow is judged once more by what is
// in force.
func (d *Dataplane) rejudge(f *force) error {
	epoch := f.epoch() << wordShift
	const below = 1<<wordShift - 1
	if f.expired {
		f.term().Back = epoch | f.term().Back&below
	} else {
		f.row.Word = epoch | f.row.Word&below
	}
	if err := d.objects.Active.Put(uint32(0), f.row); err != nil {
		return fmt.Errorf("activate: %w", err)
	}
	return nil
}

// Generation is the generation in force; 0 before any.
func (d *Dataplane) Generation() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.readForce()
	if err != nil || f.header == nil {
		return 0
	}
	return f.header.Generation
}

// Left is the generation that the kernel went back from by itself, because nobody
// had confirmed it in time; 0 if it did not, or something else was applied since.
func (d *Dataplane) Left() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.readForce()
	if err != nil || f.left == nil {
		return 0
	}
	return f.left.Generation
}
