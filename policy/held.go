package policy

import (
	"context"
	"fmt"

	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/store"
)

// Held says what keeps what is declared out of force: shortly, and with the reason, which
// may name flows of anybody. Both are empty if nothing does. It waits until declarations up
// to a revision were compiled, proved and tested, or ctx ends: then it says what it knows.
func (p *Policy) Held(ctx context.Context, inputs store.Revision) (what, why string) {
	for {
		p.mu.Lock()
		advanced := p.advanced
		p.mu.Unlock()
		if s := p.served.Load(); s != nil && s.inputs >= inputs {
			break
		}
		select {
		case <-advanced:
			continue
		case <-ctx.Done():
		}
		break
	}
	s, o := p.served.Load(), p.current.Load()
	switch {
	case s == nil:
	case s.record.Blocked != nil && o != nil && o.blocked != "":
		return fmt.Sprintf("generation %d is kept back, so that what is declared is not in force: see bocage policy history", s.record.Blocked.Number), o.blocked
	case s.record.Pin != nil:
		return s.record.held(), ""
	}
	return "", ""
}

// Fault says what people should mend of policy: that it is held, or that a statement about
// it does not hold. It is empty if there is nothing. Anybody may hear it, so it names no flow.
func (p *Policy) Fault() string {
	done, cancel := context.WithCancel(context.Background())
	cancel()
	if what, _ := p.Held(done, 0); what != "" {
		return what
	}
	if s := p.served.Load(); s != nil && s.base != nil {
		if failed := prove.Failed(s.base.proofs); len(failed) > 0 {
			return fmt.Sprintf("a statement of %s about generation %d, which is in force, does not hold: see bocage get generation g%d -o yaml", failed[0].By, s.base.number, s.base.number)
		}
	}
	return ""
}
