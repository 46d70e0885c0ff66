package policy

import (
	"context"
	"fmt"
	"sync"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/plan"
	"bocage.dev/bocage/policy/prove"
)

// planProver proves what is planned. It is apart from the builder's prover, so that
// generations never wait for a plan; plans wait for each other.
type planProver struct {
	mu     sync.Mutex // guards prover
	prover prove.Prover
}

func (v *planProver) prove(in compile.Input, rs *bocage.Ruleset) []bocage.Proof {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.prover.Prove(in, rs)
}

func (v *planProver) worse(failed []bocage.Proof, before, after compile.Input) []bocage.Proof {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.prover.Worse(failed, before, after)
}

// Plan says what the objects would change if they were declared, or deleted where
// they have a deletionTimestamp: it compiles, proves and tests them together with
// what is there, replays recorded flows, and writes nothing.
func (p *Policy) Plan(ctx context.Context, objects []bocage.Resource) (bocage.PlanResult, error) {
	current, active := p.current.Load(), p.inForce()
	if current == nil {
		return bocage.PlanResult{}, ErrNoPolicy
	}
	situation := plan.Situation{
		Declared: current.input, Enforced: active.input, InForce: active.simulator(), Ruleset: active.output.Ruleset(),
		Tests: p.mirror.view().tests, Recorded: p.edges != nil, Now: p.now(), Prove: p.planned.prove,
		Hosts: p.mirror.view().hosts, TwoPeople: p.twoPerson,
		Worse: p.planned.worse, Policy: withPolicy(current.input, active.input),
	}
	if p.edges != nil {
		var err error
		if situation.Edges, err = p.edges(ctx); err != nil {
			return bocage.PlanResult{}, fmt.Errorf("read recorded flows to replay them: %w", err)
		}
	}
	return plan.Make(situation, objects), nil
}
