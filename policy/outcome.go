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

// outcome is one compilation with its proofs and test results. It is immutable.
type outcome struct {
	input       compile.Input
	output      compile.Output
	policy      *snapshot // what the input was made of
	environment *snapshot
	proofs      []bocage.Proof
	early       []bocage.Proof // the quick proof with which it went ahead of the others
	tests       []bocage.TestResult
	testedBy    []*bocage.PolicyTest // the tests whose results these are
	number      uint64
	blocked     string // why it may not come into force
	spared      string // blocking tests that fail and still do not block it
	incomplete  bool   // blocked, because objects that cannot be read may be missing
	at          time.Time
	took        time.Duration

	judge       func() *explain.Judge
	simulator   func() *simulate.Simulator
	cutter      func() *compile.Cutter
	encoder     func() (*encoder, error)
	compared    *atomic.Pointer[difference] // the last comparison with another outcome
	lastTestRun *atomic.Pointer[testRun]    // of other tests than testedBy
	derived     *derived                    // shared with the outcomes before and after; may be nil
}

// derived holds the last cutter and encoder of a policyCompiler's outcomes. The next ones
// are made from them incrementally.
type derived struct {
	cutter  atomic.Pointer[compile.Cutter]
	encoder atomic.Pointer[encoder]
}

// complete sets up what is made lazily, when it is first asked for.
func (o *outcome) complete() *outcome {
	o.judge = sync.OnceValue(func() *explain.Judge { return explain.NewJudge(o.input) })
	o.simulator = sync.OnceValue(func() *simulate.Simulator { return simulate.New(o.input, o.output.Ruleset()) })
	if o.derived == nil {
		o.derived = &derived{}
	}
	o.cutter = sync.OnceValue(func() *compile.Cutter {
		cutter := o.derived.cutter.Load().Follow(o.output.Ruleset(), o.input)
		o.derived.cutter.Store(cutter)
		return cutter
	})
	o.encoder = sync.OnceValues(func() (*encoder, error) {
		e, err := newEncoder(o.output.Ruleset(), o.cutter().Cut, o.derived.encoder.Load())
		if err == nil {
			o.derived.encoder.Store(e)
		}
		return e, err
	})
	o.compared, o.lastTestRun = &atomic.Pointer[difference]{}, &atomic.Pointer[testRun]{}
	return o
}

// carrying returns the outcome with the proofs and test results of another one instead of
// its own. It is not blocked.
func (o *outcome) carrying(from *outcome) *outcome {
	copied := *o
	copied.proofs, copied.early, copied.tests, copied.testedBy = from.proofs, from.early, from.tests, from.testedBy
	copied.blocked, copied.spared, copied.incomplete = "", "", false
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

// policyCompiler compiles one policy incrementally as its environment changes.
type policyCompiler struct {
	run     func(compile.Input) compile.Output
	last    *outcome
	derived *derived
}

func newPolicyCompiler() *policyCompiler {
	return &policyCompiler{run: compile.NewCompiler().Compile, derived: &derived{}}
}

// compile makes the outcome of an input, or returns the last one if that is still
// what it would be.
func (l *policyCompiler) compile(p *Policy, in compile.Input, policy, rest *snapshot, number uint64, now time.Time) *outcome {
	if o := l.last; o != nil && o.policy.hash == policy.hash && o.environment.hash == rest.hash &&
		!now.Before(o.input.Now) && (o.output.Expires.IsZero() || now.Before(o.output.Expires)) {
		return o
	}
	in.Now, in.Generation = now, number
	started := time.Now()
	o := &outcome{input: in, output: l.run(in), policy: policy, environment: rest, number: number, at: now, derived: l.derived}
	o.took = time.Since(started)
	p.counters.compiled.Add(1)
	l.last = o.complete()
	return l.last
}

// judged returns the outcome with its proofs, its test results and whether these block
// it. worse are the failed proofs that do (see keepingBack); inForce is the outcome in force
// now, nil if there is none.
func (o *outcome) judged(proofs, worse []bocage.Proof, inForce *outcome, tests []*bocage.PolicyTest) *outcome {
	results := o.tests
	known := o.proofs != nil && o.tests != nil && same(o.testedBy, tests)
	if !known {
		results = o.test(tests)
	}
	blocked, spared := o.blockedBy(results, inForce, tests)
	if len(worse) > 0 {
		blocked = fmt.Sprintf("a proof failed: %s (%s), yet: %s", worse[0].Statement, worse[0].By, worse[0].Counterexample)
	}
	proofs = prove.Standing(proofs, worse)
	if known && blocked == o.blocked && spared == o.spared {
		return o
	}
	checked := *o
	o = checked.complete()
	o.proofs, o.tests, o.testedBy, o.blocked, o.spared = proofs, results, tests, blocked, spared
	return o
}

// blockedBy evaluates the test results of an outcome. blocked names a failed case that
// blocks it; empty if none does. spared lists the other failed cases of blocking tests.
//
// A failed case blocks only a regression, that is, if it holds in the outcome in force:
// otherwise anybody who may write a failing test could stop everybody's changes. It does
// not block if the failure was decided by a kind above namespace owners (aboveOwners). In
// a case about many flows, each flow counts by itself.
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

// aboveOwners reports whether objects of a kind overrule the owners of namespaces, and
// therefore their tests, too.
func aboveOwners(kind string) bool {
	switch kind {
	case "Guardrail", "ClusterNetworkPolicy", "Quarantine", "ThreatCondition", "Response":
		return true
	}
	return false
}

// test runs the valid tests on the outcome.
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

// failed reports whether the case of the i-th result of these tests fails on this outcome,
// too. Cases are matched by position, since they may share a name. The tests are run if
// they were not yet: an outcome that went ahead was not tested, or with other tests.
func (o *outcome) failed(i int, tests []*bocage.PolicyTest) bool {
	results := o.tests
	if results == nil || !same(o.testedBy, tests) {
		run := o.lastTestRun.Load()
		if run == nil || !same(run.tests, tests) {
			run = &testRun{o, tests, o.test(tests)}
			o.lastTestRun.Store(run)
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

// served is what hosts are answered from: the record at a revision, with the outcomes of
// its versions.
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
