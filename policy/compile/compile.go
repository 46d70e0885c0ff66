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

// Output is what comes of it.
type Output struct {
	// Ruleset is the whole: Cut makes a host's out of it.
	Ruleset *bocage.Ruleset
	// Findings say what of the input takes no effect, or less than its author
	// may think, sorted by object.
	Findings []Finding
	// Faults are those of objects that are not valid by themselves; such objects
	// were left out.
	Faults bocage.Faults
	// Expires is the first moment after Now at which the same objects compile to
	// something else; zero if there is none.
	Expires time.Time
}

// Compile makes the ruleset. The steps, in the order of the files that hold them:
//
//  1. admit: sort the objects, set aside those that cannot take effect (admit.go)
//  2. populate: workloads and named prefixes become subjects that policy cannot
//     tell apart (population.go)
//  3. state: each author's declarations become statements over sets of subjects
//     (contracts.go, guardrails.go, threats.go)
//  4. tabulate: statements about one pair of subjects are combined into
//     decisions over protocols and ports, and those that differ from what a
//     wildcard says become rules (pairs.go, table.go, decisions.go)
//  5. number: groups, decisions and profiles get stable numbers (number.go)
func Compile(in Input) Output {
	return compile(in, mostSpelled)
}

// compile is Compile with a bound of choice: see mostSpelled.
func compile(in Input, spelled int) Output {
	c := &compiler{in: admit(in), now: in.Now, spelled: spelled}
	c.findings = c.in.findings
	c.pop = populate(c.in, &c.findings)
	c.stateAll()
	ruleset := c.assemble(c.tabulate())
	ruleset.Generation, ruleset.Digest = in.Generation, c.in.digest
	return Output{
		Ruleset:  ruleset,
		Findings: c.findings.sorted(),
		Faults:   c.in.faults,
		Expires:  c.in.expires,
	}
}

// compiler carries one compilation from step to step.
type compiler struct {
	in         *admitted
	now        time.Time
	findings   findings
	pop        *population
	statements []statement
	refusals   []refusal
	classes    map[string]bool                // of data, that somebody offers
	exceptions map[string][]*bocage.Exception // in force, by guardrail
	protected  []block                        // what guardrails protect
	held       map[int32]bool                 // subjects whose refusals a threat condition enforces
	touched    []int32                        // subjects from or to which something automatic refuses, sorted
	placements []bocage.DecoyPlacement
	profiles   profiles
	decisions  decisions
	spelled    int // most subjects of a class whose refusals are spelled out
}
