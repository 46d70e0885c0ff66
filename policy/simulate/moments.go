package simulate

import (
	"sync"
	"time"

	"bocage.dev/bocage/policy/compile"
)

// moments keeps a Simulator for each stretch of time in which the same objects
// compile to the same: from one beginning or end of something to the next.
type moments struct {
	in   compile.Input
	most int

	mu   sync.Mutex // guards list
	list []stretch  // the last used first
}

type stretch struct {
	from, until time.Time // until is zero if nothing ends it
	simulator   *Simulator
}

// newMoments bounds how many stretches are kept by the size of what each holds.
func newMoments(in compile.Input, peers int) *moments {
	return &moments{in: in, most: min(max(1_000_000/max(peers, 1), 2), 64)}
}

func (m *moments) keep(s *Simulator, from, until time.Time) {
	m.list = append([]stretch{{from, until, s}}, m.list[:min(len(m.list), m.most-1)]...)
}

// at returns the simulator for a moment.
func (s *Simulator) at(moment time.Time) *Simulator {
	if moment.Equal(s.in.Now) {
		return s
	}
	m := s.moments
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, known := range m.list {
		if !moment.Before(known.from) && (known.until.IsZero() || moment.Before(known.until)) {
			copy(m.list[1:i+1], m.list[:i])
			m.list[0] = known
			return known.simulator
		}
	}
	in := m.in
	in.Now = moment
	out := compile.Compile(in)
	for i, known := range m.list {
		// What ends at the same moment is the same stretch, seen from earlier on.
		if moment.Before(known.from) && known.until.Equal(out.Expires) {
			m.list[i].from = moment
			return known.simulator
		}
	}
	then := newSimulator(in, out.Ruleset())
	then.reject(out.Findings())
	then.moments, then.place, then.others, then.gone, then.bystanders = m, s.place, s.others, s.gone, s.bystanders
	m.keep(then, moment, out.Expires)
	return then
}
