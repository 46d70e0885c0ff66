package policy

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/explain"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/policy/simulate"
	"bocage.dev/bocage/store"
)

// outcome is one compilation with what came of it. Nobody changes it.
type outcome struct {
	input   compile.Input
	output  compile.Output
	policy  *snapshot // what the input was made of
	rest    *snapshot
	proofs  []bocage.Proof
	early   []bocage.Proof // what was shown before it went ahead of its proofs
	tests   []bocage.TestResult
	testsOf []*bocage.PolicyTest // whose results those are
	number  uint64
	blocked string // why it may not come into force
	spared  string // which tests that block fail and do not keep it back
	lacks   bool   // since it may lack what cannot be read
	at      time.Time
	took    time.Duration

	judge     func() *explain.Judge
	simulator func() *simulate.Simulator
	cutter    func() *compile.Cutter
	encoder   func() (*encoder, error)
	compared  *atomic.Pointer[difference] // with the outcome that it was compared with last
	tried     *atomic.Pointer[testRun]    // of tests that it was not judged by
	made      *made                       // shared with the outcomes before and after; may be nil
}

// made is what was made of an outcome of a line last, to make the next of.
type made struct {
	cutter  atomic.Pointer[compile.Cutter]
	encoder atomic.Pointer[encoder]
}

// complete makes what is only made where somebody asks for it.
func (o *outcome) complete() *outcome {
	o.judge = sync.OnceValue(func() *explain.Judge { return explain.NewJudge(o.input) })
	o.simulator = sync.OnceValue(func() *simulate.Simulator { return simulate.New(o.input, o.output.Ruleset()) })
	if o.made == nil {
		o.made = &made{}
	}
	o.cutter = sync.OnceValue(func() *compile.Cutter {
		cutter := o.made.cutter.Load().Follow(o.output.Ruleset(), o.input)
		o.made.cutter.Store(cutter)
		return cutter
	})
	o.encoder = sync.OnceValues(func() (*encoder, error) {
		e, err := newEncoder(o.output.Ruleset(), o.cutter().Cut, o.made.encoder.Load())
		if err == nil {
			o.made.encoder.Store(e)
		}
		return e, err
	})
	o.compared, o.tried = &atomic.Pointer[difference]{}, &atomic.Pointer[testRun]{}
	return o
}

// carrying returns the outcome with what was shown and tested of another one, and
// nothing of its own: it is not kept back.
func (o *outcome) carrying(from *outcome) *outcome {
	copied := *o
	copied.proofs, copied.early, copied.tests, copied.testsOf = from.proofs, from.early, from.tests, from.testsOf
	copied.blocked, copied.spared, copied.lacks = "", "", false
	return copied.complete()
}

// numbered returns the outcome under another number.
func (o *outcome) numbered(number uint64) *outcome {
	if o.number == number {
		return o
	}
	copied := *o
	copied.number, copied.input.Generation = number, number
	copied.output = o.output.Numbered(number)
	return copied.complete()
}

// line compiles one policy again and again as the rest changes.
type line struct {
	run  func(compile.Input) compile.Output
	last *outcome
	made *made
}

func newLine() *line { return &line{run: compile.NewCompiler().Compile, made: &made{}} }

// compile makes the outcome of an input, or returns the last one if that is still
// what it would be.
func (l *line) compile(p *Policy, in compile.Input, policy, rest *snapshot, number uint64, now time.Time) *outcome {
	if o := l.last; o != nil && o.policy.hash == policy.hash && o.rest.hash == rest.hash &&
		!now.Before(o.input.Now) && (o.output.Expires.IsZero() || now.Before(o.output.Expires)) {
		return o
	}
	in.Now, in.Generation = now, number
	started := time.Now()
	o := &outcome{input: in, output: l.run(in), policy: policy, rest: rest, number: number, at: now, made: l.made}
	o.took = time.Since(started)
	p.counters.compiled.Add(1)
	l.last = o.complete()
	return l.last
}

// judged returns the outcome with what was proved of it, tests it and says whether it
// may come into force. inForce is what is in force now, nil if nothing is.
func (o *outcome) judged(proofs []bocage.Proof, inForce *outcome, tests []*bocage.PolicyTest) *outcome {
	results := o.tests
	known := o.proofs != nil && o.tests != nil && same(o.testsOf, tests)
	if !known {
		results = o.test(tests)
	}
	blocked, spared := o.blockedBy(results, inForce, tests)
	if failed := prove.Failed(proofs); len(failed) > 0 {
		blocked = fmt.Sprintf("a proof failed: %s (%s), yet: %s", failed[0].Statement, failed[0].By, failed[0].Counterexample)
	}
	if known && blocked == o.blocked && spared == o.spared {
		return o
	}
	checked := *o
	o = checked.complete()
	o.proofs, o.tests, o.testsOf, o.blocked, o.spared = proofs, results, tests, blocked, spared
	return o
}

// blockedBy says which test that blocks fails and keeps back what it was run on; empty
// if none does. A case does so only if it holds in what is in force: else whoever may
// write one that fails holds up everybody. And nobody keeps out what is decided above
// him: of that it is only told. Of a case about many flows each counts by itself. spared
// lists the cases that fail all the same.
func (o *outcome) blockedBy(results []bocage.TestResult, inForce *outcome, tests []*bocage.PolicyTest) (blocked, spared string) {
	blocking := map[string]bool{}
	var cases []bocage.PolicyTestCase // by result
	for _, t := range tests {
		blocking[t.NamespacedName()] = t.Spec.Blocks
		if len(t.Validate()) == 0 {
			cases = append(cases, t.Spec.Cases...)
		}
	}
	var texts []string
	for i, result := range results {
		if result.Passed || !blocking[result.Test] {
			continue
		}
		text := fmt.Sprintf("PolicyTest %s failed: %s", result.Test, resultText(result))
		if inForce != nil && blocked == "" && (aboveOwners(result.By.Kind) || inForce.failed(i, tests)) {
			if other, found := o.simulator().Regression(inForce.simulator(), cases[i], aboveOwners); found {
				other.Case, other.Because = result.Case, result.Because
				blocked = fmt.Sprintf("PolicyTest %s failed: %s", result.Test, resultText(other))
				continue
			}
		}
		switch {
		case aboveOwners(result.By.Kind):
			texts = append(texts, text+", which no PolicyTest keeps out")
		case inForce != nil && inForce.failed(i, tests):
			texts = append(texts, text+", as before")
		case blocked == "":
			blocked = text
		}
	}
	return blocked, joined(texts)
}

// aboveOwners reports whether objects of a kind decide over the heads of those who own
// namespaces: so they do over those of their tests.
func aboveOwners(kind string) bool {
	switch kind {
	case "Guardrail", "ClusterNetworkPolicy", "Quarantine", "ThreatCondition", "Response":
		return true
	}
	return false
}

// test runs tests on what came out.
func (o *outcome) test(tests []*bocage.PolicyTest) []bocage.TestResult {
	valid := make([]*bocage.PolicyTest, 0, len(tests))
	for _, t := range tests {
		if len(t.Validate()) == 0 {
			valid = append(valid, t)
		}
	}
	if len(valid) == 0 {
		return []bocage.TestResult{}
	}
	return o.simulator().Test(valid)
}

// failed reports whether the case that the i-th result of these tests is about fails
// here, too: by its place, since cases may share a name. What is in force may not have
// been tested, if it went ahead, or not with these tests.
func (o *outcome) failed(i int, tests []*bocage.PolicyTest) bool {
	results := o.tests
	if results == nil || !same(o.testsOf, tests) {
		run := o.tried.Load()
		if run == nil || !same(run.tests, tests) {
			run = &testRun{o, tests, o.test(tests)}
			o.tried.Store(run)
		}
		results = run.results
	}
	return !results[i].Passed
}

func resultText(r bocage.TestResult) string {
	const decider = ", decided by "
	got := r.Got
	if i := strings.LastIndex(got, decider); i >= 0 && r.By.Kind != "" {
		got = got[:i] + decider + r.By.String() // with the field, and where it is written
	}
	text := fmt.Sprintf("%s: %s: want %s, got %s", r.Case, r.Flow, r.Want, got)
	if r.Because != "" {
		text += " (" + r.Because + ")"
	}
	return text
}

// served is what hosts are answered from: the record at a revision, with what its
// versions compile to.
type served struct {
	record    record
	revision  store.Revision
	spec      bocage.RolloutSpec
	base      *outcome
	candidate *outcome       // nil: there is none
	inputs    store.Revision // declarations up to here are in
}

// of returns what a host enforces, and what it evaluates beside that (or nil).
func (s *served) of(host string) (enforced, evaluated *outcome) {
	switch {
	case s.record.canary(host):
		return s.candidate, nil
	case s.record.Candidate != nil && s.record.Candidate.Stage == bocage.StageShadow:
		return s.base, s.candidate
	}
	return s.base, nil
}
