// Package plan says what declarations would change before they do: it compiles
// them together with what is declared, proves and tests what comes of it,
// compares its reach with what is in force, and replays recorded flows on it.
//
// It promises that the outcome is the one that declaring the objects would have,
// proofs and tests included, and that what the recording cannot show is said: a
// nightly job is in no recording of an afternoon. It never writes anything, and
// reads neither a clock nor a store.
package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
	"bocage.dev/bocage/policy/simulate"
)

// mostChanges bounds how many changes of one sort a plan lists.
const mostChanges = 2000

// Situation is what a plan starts from.
type Situation struct {
	// Declared is everything that is declared and known.
	Declared compile.Input
	// Enforced is what InForce was made of; Declared if it is not given.
	Enforced compile.Input
	// InForce answers for the policy that enforcement points have.
	InForce *simulate.Simulator
	// Ruleset is what InForce was made of.
	Ruleset *bocage.Ruleset
	// Tests are the PolicyTests that are declared.
	Tests []*bocage.PolicyTest
	// Hosts are as their agents last reported, with administrators' sessions.
	Hosts []*bocage.Host
	// Edges are the recorded flows, Recorded whether any recording is kept.
	Edges    []bocage.Edge
	Recorded bool
	// TwoPeople says that two decide on guardrails and on what decides their reach.
	TwoPeople bool
	// Now is the moment for which all is decided.
	Now time.Time
	// Prove proves a candidate.
	Prove func(compile.Input, *bocage.Ruleset) []bocage.Proof
	// Worse returns those failed proofs of a candidate that keep it back (see
	// prove.Prover.Worse); nil: all do.
	Worse func(failed []bocage.Proof, before, after compile.Input) []bocage.Proof
	// Policy is the policy in force, with the inventory of Declared.
	Policy compile.Input
}

// Make plans the objects. One with a deletionTimestamp stands for its deletion.
func Make(s Situation, objects []bocage.Resource) bocage.PlanResult {
	var result bocage.PlanResult
	if result.Faults = validate(s, objects); len(result.Faults) > 0 {
		return result
	}
	input := Merge(s.Declared, objects, s.Now)
	simulator, output := simulate.Compile(input)
	if s.InForce != nil {
		simulator.BystandersAs(s.InForce)
	}
	result.Faults, result.Findings = sortFindings(output.Findings(), objects)
	if len(result.Faults) > 0 {
		result.Findings = nil
		return result
	}
	candidate := output.Ruleset()
	result.Digest = candidate.Digest
	result.Proofs = s.Prove(input, candidate)
	if failed := prove.Failed(result.Proofs); s.Worse != nil && len(failed) > 0 {
		before := Merge(s.Policy, inventoryOf(objects), s.Now)
		result.Proofs = prove.Standing(result.Proofs, s.Worse(failed, before, input))
	}
	result.Tests = simulate.Failed(simulator.Test(mergeTests(s.Tests, objects)))
	now := compare(s.Ruleset, candidate, s.Now)
	result.Reach = limited(&result, "changes of reach", now.reach)
	result.Findings = append(result.Findings, approvals(s, objects)...)
	result.Enforced = limited(&result, "workloads whose refusals begin to hold", now.enforced)
	result.Observed = limited(&result, "workloads whose refusals cease to hold", now.observed)
	result.Quarantined = limited(&result, "workloads that are cut off", now.quarantined)
	result.Released = limited(&result, "workloads that are no longer cut off", now.released)
	later(s, input, candidate, objects, now, &result)
	result.Cut = cutSessions(s.Hosts, input, candidate, s.Now)
	if s.Recorded {
		r := replay{situation: s, input: input, candidate: candidate, after: simulator, result: &result, used: map[bocage.Ref]bool{}}
		r.run()
		result.Unused = unused(objects, r.used)
		result.Findings = append(result.Findings, warnings(&result, s.Edges)...)
	}
	return result
}

// inventoryOf are those of the objects that are no policy: a candidate is held against the
// policy in force under the same inventory.
func inventoryOf(objects []bocage.Resource) []bocage.Resource {
	return slices.DeleteFunc(slices.Clone(objects), func(o bocage.Resource) bool {
		switch kind(o) {
		case "Workload", "Host", "Zone", "Namespace", "Quarantine", "ThreatCondition":
			return false
		}
		return true
	})
}

// limited cuts a list and says so.
func limited[T any](result *bocage.PlanResult, what string, list []T) []T {
	if more := len(list) - mostChanges; more > 0 {
		result.Findings = append(result.Findings, bocage.Fault{Message: fmt.Sprintf("%d more %s are not listed", more, what)})
		return list[:mostChanges]
	}
	return list
}

// deleted reports whether an object stands for its deletion.
func deleted(object bocage.Resource) bool { return object.Meta().DeletionTimestamp != nil }

// name is how a plan names an object.
func name(object bocage.Resource) string { return kind(object) + " " + object.Meta().NamespacedName() }

func kind(object bocage.Resource) string {
	if k := object.Type().Kind; k != "" {
		return k
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", object), "*bocage.") // as Go code makes objects
}

// validate finds what is wrong with the objects by themselves, and deletions of
// what is not there.
func validate(s Situation, objects []bocage.Resource) bocage.Faults {
	var faults bocage.Faults
	seen := map[string]bool{}
	for _, object := range objects {
		var found bocage.Faults
		switch {
		case seen[name(object)]:
			found.Add("", "is there twice: a plan takes each object once")
		case !deleted(object):
			found = object.Validate()
		case !there(s, object):
			found.Add("", "is not declared, so that it cannot be deleted")
		}
		seen[name(object)] = true
		for _, f := range found {
			f.Field, f.Source = strings.TrimSpace(name(object)+" "+f.Field), object.Meta().Annotations[bocage.SourceAnnotation]
			faults = append(faults, f)
		}
	}
	return faults
}

// there reports whether an object of a kind that policy reads is declared. Of
// other kinds nothing is known here.
func there(s Situation, object bocage.Resource) bool {
	if t, is := object.(*bocage.PolicyTest); is {
		return slices.ContainsFunc(s.Tests, func(o *bocage.PolicyTest) bool { return o.NamespacedName() == t.NamespacedName() })
	}
	_, known, read := find(s.Declared, object)
	return known || !read
}

// sameJSON compares two values as they would be written: what is empty and what is not
// there are the same.
func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// approvals tells of the objects that wait for a second person before what is
// planned here comes true.
func approvals(s Situation, objects []bocage.Resource) bocage.Faults {
	var out bocage.Faults
	in := s.Declared
	reach := bocage.ReachOf(in.Guardrails, in.Exceptions, in.Scopes, s.Now)
	for _, object := range objects {
		fault := bocage.Fault{Field: name(object), Source: object.Meta().Annotations[bocage.SourceAnnotation]}
		switch o := object.(type) {
		case *bocage.Guardrail:
			old, known, _ := find(in, object)
			var was *bocage.Guardrail
			if known {
				was = old.(*bocage.Guardrail)
			}
			same := was != nil && was.InForce() != nil && sameJSON(was.InForce(), &o.Spec) && !deleted(object)
			if !same && (s.TwoPeople || was != nil && was.Status.Approval != nil && !deleted(object)) {
				fault.Message = "a second person has to approve it before it counts: the plan is of what comes then"
				out = append(out, fault)
			}
		case *bocage.Exception:
			i := slices.IndexFunc(in.Guardrails, func(g *bocage.Guardrail) bool { return g.Name == o.Spec.Guardrail })
			if i < 0 || deleted(object) || in.Guardrails[i].InForce() == nil {
				continue
			}
			if approvers := in.Guardrails[i].InForce().Exceptions.Approvers; len(approvers) > 0 {
				fault.Message = "has to be approved by " + strings.Join(approvers, " or ") + " before it counts: the plan is of what comes then"
				out = append(out, fault)
			}
		default:
			before, known, _ := find(in, object)
			after := object
			if deleted(object) {
				after = nil
			}
			if !known {
				before = nil
			}
			if why := reach.Weakens(before, after); s.TwoPeople && why != "" {
				fault.Message = "a second person has to approve it, since " + why + ": the plan is of what comes then"
				out = append(out, fault)
			}
		}
	}
	return out
}

// sortFindings tells what is wrong with the objects from what is only remarkable.
// A service that nobody declares yet is remarkable: its owner may come later. So is what
// others refuse as a whole: it would be no fault if they had been declared after it.
func sortFindings(findings []compile.Finding, objects []bocage.Resource) (faults, remarks bocage.Faults) {
	planned := map[string]bool{}
	for _, o := range objects {
		planned[name(o)] = true
	}
	for _, f := range findings {
		object := f.Object.Kind + " " + strings.TrimPrefix(f.Object.Namespace+"/"+f.Object.Name, "/")
		fault := bocage.Fault{Field: strings.TrimSpace(object + " " + f.Object.Field), Message: f.Message, Source: f.Object.Source}
		if planned[object] && f.Rejected && f.Reason != compile.UnknownApplication && f.Reason != compile.Contradiction {
			faults = append(faults, fault)
		} else {
			remarks = append(remarks, fault)
		}
	}
	return faults, remarks
}

// enforcementChanges lists the workloads whose refusals would begin and cease to hold.
func enforcementChanges(before, after *bocage.Ruleset) (begins, ends []string) {
	was, is := enforced(before), enforced(after)
	for workload, now := range is {
		if now && !was[workload] {
			begins = append(begins, workload)
		} else if !now && was[workload] {
			ends = append(ends, workload)
		}
	}
	slices.Sort(begins)
	slices.Sort(ends)
	return begins, ends
}

func enforced(rs *bocage.Ruleset) map[string]bool {
	groups := make(map[bocage.Group]bool, len(rs.Groups))
	for _, g := range rs.Groups {
		groups[g.Group] = g.Enforce
	}
	out := make(map[string]bool, len(rs.Peers))
	for _, p := range rs.Peers {
		if p.Workload != "" {
			out[p.Workload] = groups[p.Group]
		}
	}
	return out
}

// unused lists the contracts and grants of the objects that no recorded flow used.
func unused(objects []bocage.Resource, used map[bocage.Ref]bool) []bocage.Ref {
	var out []bocage.Ref
	for _, object := range objects {
		if deleted(object) {
			continue
		}
		var fields []string
		switch o := object.(type) {
		case *bocage.Application:
			for i := range o.Spec.Provides {
				fields = append(fields, fmt.Sprintf("spec.provides[%d]", i))
			}
			for i := range o.Spec.Consumes {
				fields = append(fields, fmt.Sprintf("spec.consumes[%d]", i))
			}
		case *bocage.Guardrail:
			for i := range o.Spec.Grant {
				fields = append(fields, fmt.Sprintf("spec.grant[%d]", i))
			}
		case *bocage.NetworkPolicy:
			for i := range o.Spec.Ingress {
				fields = append(fields, fmt.Sprintf("spec.ingress[%d]", i))
			}
			for i := range o.Spec.Egress {
				fields = append(fields, fmt.Sprintf("spec.egress[%d]", i))
			}
		}
		meta := object.Meta()
		for _, field := range fields {
			ref := bocage.Ref{Kind: kind(object), Namespace: meta.Namespace, Name: meta.Name, Field: field}
			if !used[ref] {
				ref.Source = meta.Annotations[bocage.SourceAnnotation]
				out = append(out, ref)
			}
		}
	}
	return out
}
