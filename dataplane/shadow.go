package dataplane

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
)

// Where a candidate lies (see abi.h): its row of the rulesets, and the slot of
// everything else that it has.
const (
	candidateIndex = 4
	candidateSlot  = 2
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
		return fmt.Errorf("evaluate candidate %d: %w", rs.Generation, errors.Join(err, d.dropCandidate()))
	}
	d.log.Info("candidate is evaluated", "generation", rs.Generation, "peers", len(rs.Peers), "rules", len(rs.Rules),
		"took", time.Since(start))
	return nil
}

func (d *Dataplane) shadow(rs *bocage.Ruleset) error {
	t, err := compile(rs)
	if err != nil {
		return err
	}
	if err := d.checkRoom(t); err != nil {
		return err
	}
	// Without one while rows change, so nothing is evaluated by halves of two.
	if err := d.dropCandidate(); err != nil {
		return err
	}
	if err := d.writeRuleset(t, candidateSlot); err != nil {
		return err
	}
	refused, err := d.writeRefused(t, candidateSlot)
	if err != nil {
		return err
	}
	if err := d.objects.Rulesets.Put(uint32(candidateIndex), t.header(candidateSlot, candidateSlot, refused)); err != nil {
		return fmt.Errorf("write candidate: %w", err)
	}
	if err := d.objects.Comparisons.Put(uint32(0), make([]bpf.KernelComparison, ebpf.MustPossibleCPU())); err != nil {
		return fmt.Errorf("reset comparison: %w", err)
	}
	header, active, err := d.inForce()
	if err != nil {
		return err
	}
	if header == nil {
		return errors.New("no ruleset is in force to compare it with: apply one first")
	}
	// Its number is the epoch's, which no candidate before had.
	active.Word = nextEpoch(active.Word, uint32(active.Word&(wordSlot|wordRefused)))
	active.Candidate = uint32(active.Word>>wordShift) | 1<<31
	if err := d.objects.Active.Put(uint32(0), active); err != nil {
		return fmt.Errorf("activate candidate: %w", err)
	}
	return nil
}

// dropCandidate ends the evaluation and clears the candidate's rows, whoever wrote
// them.
func (d *Dataplane) dropCandidate() error {
	_, active, err := d.inForce()
	if err != nil {
		return err
	}
	if active.Candidate != 0 {
		active.Candidate = 0
		if err := d.objects.Active.Put(uint32(0), active); err != nil {
			return fmt.Errorf("end candidate: %w", err)
		}
		if err := d.barrier.wait(); err != nil {
			return fmt.Errorf("await packets that are evaluated: %w", err)
		}
	}
	return errors.Join(d.clearRuleset(candidateSlot), d.clearRefused(candidateSlot))
}

// candidate is the number of the candidate that is evaluated, or 0.
func (d *Dataplane) candidate() uint32 {
	_, active, err := d.inForce()
	if err != nil {
		return 0
	}
	return active.Candidate
}

// Candidate says which ruleset is evaluated beside the one in force, that of an
// earlier process included, and what came of it so far.
func (d *Dataplane) Candidate() (Candidate, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.candidate() == 0 {
		return Candidate{}, nil
	}
	header, err := d.readHeader(candidateIndex)
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
