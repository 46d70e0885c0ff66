package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/store"
)

// recalled caches the generations that were asked for most recently.
type recalled struct {
	mu       sync.Mutex // guards outcomes, and lets one be made at a time
	outcomes []*outcome // the last asked first
}

// mostRecalled is how many generations are held in memory besides those in force.
const mostRecalled = 2

// recall returns the outcome of a kept generation: from memory, or compiled again from its
// snapshot. If its environment was too large to be kept, today's is used instead.
func (p *Policy) recall(ctx context.Context, number uint64) (*outcome, error) {
	if s := p.served.Load(); s != nil {
		for _, o := range []*outcome{s.base, s.candidate} {
			if o != nil && o.number == number {
				return o, nil
			}
		}
	}
	p.recalled.mu.Lock()
	defer p.recalled.mu.Unlock()
	for i, o := range p.recalled.outcomes {
		if o.number == number {
			copy(p.recalled.outcomes[1:i+1], p.recalled.outcomes[:i])
			p.recalled.outcomes[0] = o
			return o, nil
		}
	}
	entry, err := p.store.Get(ctx, snapshotKey(number))
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("generation %d: %w", number, errNotKept)
	}
	if err != nil {
		return nil, fmt.Errorf("read generation %d: %w", number, err)
	}
	var list snapshotList
	if err := json.Unmarshal(entry.Value, &list); err != nil {
		return nil, fmt.Errorf("read generation %d: %w", number, err)
	}
	in, whole, err := readSnapshot(ctx, p.store, list)
	if err != nil {
		return nil, err
	}
	if !whole {
		in = withPolicy(p.mirror.view().input, in)
		in.Generation, in.Now = number, p.now()
	}
	policy, err := namedSnapshot(list)
	if err != nil {
		return nil, err
	}
	rest, err := namedSnapshot(snapshotList{Number: number, Policy: list.Environment})
	if err != nil {
		return nil, err
	}
	o := &outcome{input: in, output: compile.Compile(in), policy: policy, environment: rest, number: number, at: in.Now}
	p.counters.compiled.Add(1)
	p.recalled.outcomes = append([]*outcome{o.complete()}, p.recalled.outcomes...)
	p.recalled.outcomes = p.recalled.outcomes[:min(len(p.recalled.outcomes), mostRecalled)]
	return o, nil
}
