package dataplane

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// Candidate is a ruleset that is evaluated beside the one in force, and what came
// of it: how often it was asked (once for every judgement of a flow, and for every
// packet that is refused), and how often it would have let pass what was refused
// or refused what passed.
type Candidate struct {
	Generation         uint64 // 0: there is none
	Evaluated, Differs uint64
}

// Shadow has a candidate evaluated from now on, in the place of the one before and
// counting from zero; nil ends that. It never changes what becomes of a packet.
// Every flow is judged once more on its next packet, so that those which live are
// evaluated, too; events say where the candidate differs. On any error there is no
// candidate. A candidate has the room that rulesets leave, and makes way for the
// next to be enforced.
func (d *Dataplane) Shadow(rs *bocage.Ruleset) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if rs == nil {
		if d.candidate() == 0 {
			return nil
		}
		if err := d.dropCandidate(); err != nil {
			return fmt.Errorf("end the evaluation of the candidate: %w", err)
		}
		d.log.Info("candidate is no longer evaluated")
		return nil
	}
	start := time.Now()
	if err := d.shadow(rs); err != nil {
		return fmt.Errorf("evaluate candidate %d: %w", rs.Generation, err)
	}
	d.log.Info("candidate is evaluated", "generation", rs.Generation, "peers", len(rs.Peers), "rules", len(rs.Rules),
		"took", time.Since(start))
	return nil
}

func (d *Dataplane) shadow(rs *bocage.Ruleset) error {
	// Without one while rows change, so nothing is evaluated by halves of two.
	if err := d.dropCandidate(); err != nil {
		return err
	}
	f, err := d.readForce()
	if err != nil {
		return err
	}
	if f.header == nil {
		return errors.New("no ruleset is in force to compare it with: apply one first")
	}
	next, err := d.weigh(rs, f, readClock())
	if err != nil {
		return err
	}
	next.undo() // the content is that of what is in force
	target, err := d.makeRoom(next, f)
	if err != nil {
		return err
	}
	if err := d.evaluate(next, f, target); err != nil {
		return errors.Join(err, d.abandon(next.rows, f, target))
	}
	if d.content != nil {
		d.noteStale(target, next.rows)
	}
	return nil
}

// evaluate writes a candidate to a slot and has it evaluated.
func (d *Dataplane) evaluate(next *coming, f *force, target uint32) error {
	if err := d.stage(&batch{what: orderPut, slots: 1 << target}, next.rows); err != nil {
		return err
	}
	if err := d.writeHeader(next, target); err != nil {
		return err
	}
	if err := d.objects.Comparisons.Put(uint32(0), make([]bpf.KernelComparison, ebpf.MustPossibleCPU())); err != nil {
		return fmt.Errorf("reset comparison: %w", err)
	}
	// Its number is the epoch's, which no candidate before had.
	f.row.Candidate, f.row.CandidateSlot = uint32(f.epoch())|1<<31, target
	if err := d.objects.Active.Put(uint32(0), f.row); err != nil {
		return fmt.Errorf("activate candidate: %w", err)
	}
	return d.rejudge(f)
}

// dropCandidate ends the evaluation, if there is one, and gives its room back.
func (d *Dataplane) dropCandidate() error {
	f, err := d.readForce()
	if err != nil || f.row.Candidate == 0 {
		return err
	}
	f.row.Candidate = 0
	if err := d.objects.Active.Put(uint32(0), f.row); err != nil {
		return fmt.Errorf("end candidate: %w", err)
	}
	if err := d.await(); err != nil {
		return fmt.Errorf("await packets that are evaluated: %w", err)
	}
	if d.content == nil {
		return nil // what it left is found when all rows are compared
	}
	return d.tidy(f, &changes{})
}

// candidate is the number of the candidate that is evaluated, or 0.
func (d *Dataplane) candidate() uint32 {
	f, err := d.readForce()
	if err != nil {
		return 0
	}
	return f.row.Candidate
}

// Candidate says which ruleset is evaluated beside the one in force, that of an
// earlier process included, and what came of it so far.
func (d *Dataplane) Candidate() (Candidate, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.readForce()
	if err != nil || f.row.Candidate == 0 {
		return Candidate{}, err
	}
	header, err := d.readHeader(f.row.CandidateSlot & slotMask)
	if err != nil {
		return Candidate{}, err
	}
	var perCPU []bpf.KernelComparison
	if err := d.objects.Comparisons.Lookup(uint32(0), &perCPU); err != nil {
		return Candidate{}, fmt.Errorf("read comparison: %w", err)
	}
	c := Candidate{Generation: header.Generation}
	for _, row := range perCPU {
		c.Evaluated += row.Evaluated
		c.Differs += row.Differs
	}
	return c, nil
}
