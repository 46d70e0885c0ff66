// Package compile turns declarations, inventory and prevailing threat
// conditions into one Ruleset.
//
// It promises to be pure, total and free of order: the same objects in any order
// give the same bytes on every replica, and every object either takes effect as
// a whole or is reported as a Finding. Authors are combined by a lattice, so
// nothing can conflict: allows are united, refusals meet (a Guardrail's never
// beats every contract), duties are joined, and threat conditions only tighten.
//
// It never reads a clock, a store or a map in iteration order, and it never
// changes the objects that it is given.
package compile

import (
	"time"

	"bocage.dev/bocage"
)

// Input is everything that policy depends on. Objects are only read.
type Input struct {
	Applications     []*bocage.Application
	Guardrails       []*bocage.Guardrail
	Scopes           []*bocage.Scope
	Profiles         []*bocage.InspectionProfile
	Decoys           []*bocage.Decoy
	Quarantines      []*bocage.Quarantine
	ThreatConditions []*bocage.ThreatCondition
	Workloads        []*bocage.Workload
	Exceptions       []*bocage.Exception
	Responses        []*bocage.Response
	AddressGroups    []*bocage.AddressGroup
	Zones            []*bocage.Zone
	// Namespaces are those that were declared; others have no labels but their name.
	Namespaces             []*bocage.Namespace
	NetworkPolicies        []*bocage.NetworkPolicy
	ClusterNetworkPolicies []*bocage.ClusterNetworkPolicy
	// Hosts are there for policies that mean a host itself: its labels and
	// spec.addresses count, its status does not.
	Hosts []*bocage.Host
	// Generation is the number that the ruleset will carry. It is no part of
	// the digest.
	Generation uint64
	// Now decides which quarantines and threat conditions have expired.
	Now time.Time
}

// Output is what comes of it. It shares with the outputs before it what did not
// change: making one costs what changed, and the flat lists of Ruleset and Findings
// are made where somebody asks for them.
type Output struct {
	// Faults are those of objects that are not valid by themselves; such objects
	// were left out.
	Faults bocage.Faults
	// Expires is the first moment after Now at which the same objects compile to
	// something else; zero if there is none.
	Expires time.Time

	whole    *whole
	findings *later
}

// Ruleset is the whole: Cut makes a host's out of it.
func (o Output) Ruleset() *bocage.Ruleset { return o.whole.flat() }

// Digest is the ruleset's.
func (o Output) Digest() string { return o.whole.digest }

// Findings say what of the input takes no effect, or less than its author may
// think, sorted by object. Who asks right after an edit waits until they are found
// out: nobody who enforces does (later.go).
func (o Output) Findings() []Finding { return o.findings.wait().flat() }

// Numbered returns the output with another generation.
func (o Output) Numbered(generation uint64) Output {
	o.whole = o.whole.next()
	o.whole.generation = generation
	return o
}

// Replaced returns the output with another ruleset.
func (o Output) Replaced(rs *bocage.Ruleset) Output {
	o.whole = wholeOf(rs)
	return o
}

// Compile makes the ruleset from nothing. A Compiler does the same for inputs that
// follow each other.
func Compile(in Input) Output { return NewCompiler().Compile(in) }

// Compiler compiles inputs that follow each other. It gives the very bytes that
// Compile gives, and keeps what it found out: a compilation costs what has
// changed since the one before. Objects are never changed once they were given;
// a changed object is another one. Lists may come in any order; in that of names
// they cost least.
//
// It is for one goroutine at a time.
type Compiler struct {
	spelled int
	narrow  int
	left    int
	hands   hands
	last    *compiler
}

// NewCompiler returns a Compiler that knows nothing yet.
func NewCompiler() *Compiler {
	return &Compiler{spelled: mostSpelled, narrow: mostNarrowAllowed, left: mostLeft, hands: allHands()}
}

// Compile makes the ruleset. The steps, in the order of the files that hold them:
//
//  1. admit: sort the objects, set aside those that cannot take effect (admit.go)
//  2. populate: workloads and named prefixes become subjects that policy cannot
//     tell apart (population.go, members.go, prefixes.go)
//  3. say: each author's declarations become statements over sets of subjects
//     (authors.go, applications.go and what they name)
//  4. tabulate: statements about one pair of subjects are combined into
//     decisions over protocols and ports, and those that differ from what lies
//     below become rules (pairs.go, classes.go, table.go, decisions.go)
//  5. assemble: groups, decisions and profiles get stable numbers (assemble.go)
//  6. tell: authors hear of what is empty or cannot be kept (later.go)
//
// Each step takes what changed before it, and says what it changed. The last one may
// go on when Compile has returned.
func (k *Compiler) Compile(in Input) Output {
	c := k.last
	k.last = nil // whatever happens on the way, nothing half-done is kept
	if c == nil {
		c = newCompiler(&admitted{}, k)
	} else {
		c.later.wait()
	}
	was := *c.in
	d := &change{kinds: c.in.admit(in), first: c.pop == nil}
	if !c.follow(in, &was, d) {
		// Too much is another now: only what was found out of the objects is kept.
		c = newCompiler(c.in, k)
		d = &change{first: true}
		c.follow(in, &admitted{}, d)
	}
	c.tell(d)
	k.last = c
	return c.output(in)
}

func newCompiler(in *admitted, k *Compiler) *compiler {
	c := &compiler{in: in, spelled: k.spelled, narrow: k.narrow, left: k.left, told: told{counts: map[Finding]int32{}}, owed: map[string]*owed{}, hands: k.hands}
	c.judge = &judge{c: c, decide: c.decide}
	return c
}

// follow takes every step but the last. It gives up where it would have to begin anew.
func (c *compiler) follow(in Input, was *admitted, d *change) bool {
	if c.crowded() {
		return false
	}
	c.now = in.Now
	c.added, c.withdrawn, c.resided, c.altered = nil, nil, nil, nil
	c.hear(&c.units.admission, func() { c.findings = c.in.findings })
	c.hearInventory(d)
	c.compareApplications(was, d)
	if !c.settle(was, d) {
		return false
	}
	c.say(d)
	c.askOtherwise()
	if !c.tabulate(d) {
		return false
	}
	c.assemble(d)
	return true
}

// crowded reports whether most of what is kept is of no use any more.
func (c *compiler) crowded() bool {
	const room = 1 << 16
	return c.statements != nil && (c.dead > len(c.statements)/2+room || len(c.decisions.list) > 2*c.book.decisions.used()+room ||
		len(c.grid.tables.list) > 4*len(c.grid.tables.byCause)+2*room)
}

func (c *compiler) output(in Input) Output {
	rs := c.book.whole
	rs.generation, rs.digest = in.Generation, c.in.digest
	return Output{Faults: c.in.faults, Expires: c.in.expires, whole: rs, findings: c.later}
}

// compiler carries compilations from step to step.
type compiler struct {
	in      *admitted
	now     time.Time
	spelled int // most subjects of a site whose refusals are spelled out
	narrow  int // most pairs of a narrow statement
	left    int // most statements and classes left behind of which something is known
	pop     *population

	applications
	units units
	told  told
	later *later

	// What the unit that speaks says.
	stated   []statement
	findings findings

	statements       []statement // all that were ever stated, by number
	added, withdrawn []int32
	resided          []resided
	came             map[int32]bool         // subjects that came with the last change
	groupsBefore     map[int32]bocage.Group // subjects that have another group since the last change, with the one before
	dead             int                    // statements that were withdrawn
	pruned           int                    // how many of those are thrown away

	refusals   []refusal                      // those that are being stated
	cutOff     []refusal                      // all of them, one for each workload
	classes    map[string]bool                // of data, that somebody offers
	owed       map[string]*owed               // by guardrail, all that ever asked for something
	altered    []*owed                        // those that ask for something else now
	exceptions map[string][]*bocage.Exception // in force, by guardrail
	protected  []block                        // what guardrails protect
	held       map[int32]bool                 // subjects whose refusals a threat condition enforces
	touched    []int32                        // subjects from or to which something automatic refuses, sorted
	namedPorts map[kubePortName][]namedPort   // what Kubernetes' policies that are being stated call so
	placements []bocage.DecoyPlacement
	proofs     proofs
	decisions  decisions
	grid       *grid
	book       *book

	judge *judge
	hands hands
}
