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
	young, old map[bocage.DecisionID]bocage.Decision
}

func (p *past) remember(decisions []bocage.Decision) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range decisions {
		if len(p.young) >= mostPast/2 {
			p.young, p.old = nil, p.young
		}
		if p.young == nil {
			p.young = map[bocage.DecisionID]bocage.Decision{}
		}
		p.young[d.ID] = d
	}
}

func (p *past) find(id bocage.DecisionID) (bocage.Decision, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d, ok := p.young[id]; ok {
		return d, true
	}
	d, ok := p.old[id]
	return d, ok
}
