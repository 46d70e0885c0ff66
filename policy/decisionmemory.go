package policy

import (
	"sync"

	"bocage.dev/bocage"
)

// mostRemembered bounds how many decisions a decisionMemory holds.
const mostRemembered = 1 << 16

// decisionMemory remembers decisions that are no longer in force, so that recent events
// can still be explained. When it is full it forgets the older half.
type decisionMemory struct {
	mu            sync.Mutex // guards both maps
	recent, older map[bocage.DecisionID]meaning
}

// meaning is a decision as it was, with the low 32 bits of the number of the last
// generation that had it so: under the same id, a later generation may have other duties
// and other guardrails.
type meaning struct {
	decision   bocage.Decision
	generation uint32
}

func (p *decisionMemory) remember(decisions []bocage.Decision, generation uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range decisions {
		if len(p.recent) >= mostRemembered/2 {
			p.recent, p.older = nil, p.recent
		}
		if p.recent == nil {
			p.recent = map[bocage.DecisionID]meaning{}
		}
		p.recent[d.ID] = meaning{d, uint32(generation)}
	}
}

func (p *decisionMemory) find(id bocage.DecisionID) (meaning, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m, ok := p.recent[id]; ok {
		return m, true
	}
	m, ok := p.older[id]
	return m, ok
}
