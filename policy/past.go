package policy

import (
	"sync"

	"bocage.dev/bocage"
)

// mostPast bounds how many decisions of former generations are remembered.
const mostPast = 1 << 16

// past remembers decisions that are no longer in force, so that events of a
// moment ago can still be told. When it is full it forgets the older half.
type past struct {
	mu         sync.Mutex // guards both maps
	young, old map[bocage.DecisionID]meaning
}

// meaning is what a decision said, and the low half of the number of the last
// generation in which it said so: what its guardrails ask for, and who they are, may
// be something else now under the same id.
type meaning struct {
	decision   bocage.Decision
	generation uint32
}

func (p *past) remember(decisions []bocage.Decision, generation uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range decisions {
		if len(p.young) >= mostPast/2 {
			p.young, p.old = nil, p.young
		}
		if p.young == nil {
			p.young = map[bocage.DecisionID]meaning{}
		}
		p.young[d.ID] = meaning{d, uint32(generation)}
	}
}

func (p *past) find(id bocage.DecisionID) (meaning, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m, ok := p.young[id]; ok {
		return m, true
	}
	m, ok := p.old[id]
	return m, ok
}
