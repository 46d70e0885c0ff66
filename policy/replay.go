package policy

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/simulate"
)

// trial is the result of replaying the recorded flows on a candidate.
type trial struct {
	policy   string    // of the candidate
	since    time.Time // when the stage began, perhaps by another controller's clock
	begun    time.Time // when the flows were asked for
	edges    int
	refused  int64
	examples []string
	err      error
}

const (
	// replayEvery is how often recorded flows are replayed during a stage, at most.
	replayEvery = 5 * time.Second
	// mostExamples bounds the flows that are told by name.
	mostExamples = 3
)

// replayFlows replays the recorded flows on the candidate, repeatedly while it is in shadow
// or canary, because new flows are recorded meanwhile.
func (p *Policy) replayFlows(ctx context.Context) error {
	if p.edges == nil {
		return nil
	}
	var last trial
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.replays:
		}
		for {
			s := p.served.Load()
			if s == nil || s.candidate == nil || s.record.Candidate == nil {
				break
			}
			if wait := replayEvery - time.Since(last.begun); last.policy == s.record.Candidate.Policy && wait > 0 && last.since.Equal(s.record.Candidate.Since) {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(wait):
					continue // and see whether it is still on its way
				}
			}
			last = p.replayOnce(ctx, s)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			p.replayed.Store(&last)
			wake(p.mirror.changed)
			wake(p.report)
		}
	}
}

func (p *Policy) replayOnce(ctx context.Context, s *served) trial {
	r := trial{policy: s.record.Candidate.Policy, since: s.record.Candidate.Since, begun: time.Now()}
	edges, err := p.edges(ctx)
	if err != nil {
		r.err = err
		p.notices.tell("Generation", "", generationName(s.candidate.number), "ReplayFailed",
			fmt.Sprintf("the recorded flows cannot be read, so its rollout waits: %v", err), true)
		p.logger.WarnContext(ctx, "replay recorded flows on a candidate", slog.Uint64("generation", s.candidate.number), slog.Any("error", err))
		return r
	}
	r.edges = len(edges)
	p.counters.replayed.Add(uint64(len(edges)))
	s.replay(&r, edges, p.now())
	return r
}

// mostReplayed is how many recorded flows are decided together.
const mostReplayed = 256

// replay counts the recorded flows that were answered and are allowed by the base, and
// that the candidate would refuse.
func (s *served) replay(r *trial, edges []bocage.Edge, at time.Time) {
	was, is := s.base.simulator(), s.candidate.simulator()
	before, after := make([]bocage.Flow, 0, mostReplayed), make([]bocage.Flow, 0, mostReplayed)
	places := make([]int, 0, mostReplayed) // of flows, in edges
	had, has := make([]simulate.Decided, mostReplayed), make([]simulate.Decided, mostReplayed)
	decide := func() {
		was.DecideFlows(before, had)
		is.DecideFlows(after, has)
		for i, place := range places {
			if !had[i].Reason.Would.Allowed() || has[i].Reason.Would.Allowed() {
				continue
			}
			r.refused++
			if len(r.examples) < mostExamples {
				r.examples = append(r.examples, edgeText(edges[place]))
			}
		}
		before, after, places = before[:0], after[:0], places[:0]
	}
	for i, e := range edges {
		if e.Replied == 0 {
			continue
		}
		q := bocage.ExplainQuery{From: e.Source, To: e.Destination, Port: e.DestinationPort, Protocol: e.Protocol, At: at}
		b, err := s.base.flow(q)
		if err != nil {
			continue // of a workload that is gone
		}
		a, err := s.candidate.flow(q)
		if err != nil {
			continue
		}
		if before, after, places = append(before, b), append(after, a), append(places, i); len(places) == mostReplayed {
			decide()
		}
	}
	decide()
}

func edgeText(e bocage.Edge) string {
	if e.Protocol.HasPorts() {
		return fmt.Sprintf("%s to %s on %s/%d", e.Source, e.Destination, e.Protocol, e.DestinationPort)
	}
	return fmt.Sprintf("%s to %s on %s", e.Source, e.Destination, e.Protocol)
}

// facts gathers what a rollout depends on.
func (p *Policy) facts(r record, v view) facts {
	f := facts{refusing: map[uint64][]string{}}
	c := r.Candidate
	f.absent, f.unheard = r.absent(v.hosts, p.now())
	for _, h := range v.hosts {
		numbers := r.Hosts[h.Name]
		for _, condition := range h.Status.Conditions {
			about := uint64(max(condition.ObservedGeneration, 0))
			if condition.Type != bocage.ConditionReady || condition.Status != "False" || condition.Reason != notApplied || about == 0 {
				continue
			}
			of := uint64(0)
			switch {
			case c != nil && (about == numbers[1] || r.canary(h.Name) && about == numbers[0]):
				of = c.Number
			case about == numbers[0]:
				of = r.Base.Number
			}
			f.refusing[of] = append(f.refusing[of], "host "+h.Name)
		}
		if p.edges == nil && c != nil && h.Status.Candidate == numbers[1] && numbers[1] != 0 {
			f.refused += h.Status.CandidateDiffers
		}
	}
	if c == nil {
		return f
	}
	if p.edges == nil {
		f.replayed = true
		return f
	}
	if last := p.replayed.Load(); last != nil && last.policy == c.Policy && last.err == nil {
		f.refused, f.examples = last.refused, last.examples
		f.replayed = last.since.Equal(c.Since)
	}
	return f
}

// absent lists the canaries that give no information about the candidate: hosts without an
// agent, with a silent agent, or that never took what they were given. unheard says that a
// canary has not reported lately. Then the stage does not end yet, but the rollout is not
// given up either: the controllers may have been away, not the canary.
func (r record) absent(hosts []*bocage.Host, now time.Time) (absent []string, unheard bool) {
	if r.Candidate == nil {
		return nil, false
	}
	const takesMost = 15 * time.Second // until an agent has what is new, and says so
	for _, name := range r.Candidate.Canary {
		i := slices.IndexFunc(hosts, func(h *bocage.Host) bool { return h.Name == name })
		if i < 0 || hosts[i].Status.Generation < r.Hosts[name][0] && now.Sub(r.Moved) > takesMost ||
			slices.ContainsFunc(hosts[i].Status.Conditions, func(c bocage.Condition) bool {
				return c.Type == bocage.ConditionReady && c.Status == "Unknown"
			}) {
			absent = append(absent, name)
		} else if now.Sub(hosts[i].Status.LastSeen) > takesMost {
			unheard = true
		}
	}
	return absent, unheard
}

// notApplied is the reason of a host that cannot apply the ruleset that it was
// given; the observed generation is that ruleset's.
const notApplied = "NotApplied"
