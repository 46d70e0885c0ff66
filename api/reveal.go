package api

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
)

// Whoever is held to namespaces learns of flows of which one end lies in one of
// theirs, as explain tells, and of no others: not from a test, dry or declared, nor
// from a plan, a blast, a generation's record, or an event about one.

// notShown stands for what somebody may not see.
const notShown = "what it says is about other namespaces than yours"

// confined says whether the person is held to namespaces.
func (p Person) confined() bool {
	_, all := p.readable()
	return !all
}

// ownCase says whether one end of a test's case lies in namespaces that count, with
// everything that it means: an address is nobody's.
func ownCase(c bocage.PolicyTestCase, mine func(namespace string) bool) bool {
	own := func(name string, all *bocage.Side) bool {
		if all == nil {
			namespace, _, workload := strings.Cut(name, "/")
			return workload && mine(namespace)
		}
		return len(all.Namespaces) > 0 && !all.Outside() && !slices.ContainsFunc(all.Namespaces, func(n string) bool { return !mine(n) })
	}
	return own(c.From, c.FromAll) || own(c.To, c.ToAll)
}

// foreignCases lists the cases of a test of which neither end does.
func foreignCases(t *bocage.PolicyTest, mine func(namespace string) bool) []string {
	var found []string
	for i, c := range t.Spec.Cases {
		if !ownCase(c, mine) {
			found = append(found, fmt.Sprintf("spec.cases[%d]", i))
		}
	}
	return found
}

// mayTest refuses a test that somebody writes of flows which have nothing to do with
// their namespaces: it would tell them what policy decides there, and one that blocks
// would keep others from changing that.
func (b *batch) mayTest(ch *change, t *bocage.PolicyTest) error {
	if ch.by.Name == "" || ch.by.mayChange(ch.kind) {
		return nil
	}
	if ch.old != nil {
		old, err := typed(ch.kind, ch.old.object)
		if err != nil {
			return err
		}
		if sameJSON(old.(*bocage.PolicyTest).Spec, t.Spec) {
			return nil
		}
	}
	foreign := foreignCases(t, func(namespace string) bool {
		ok, _ := ch.by.allowed(access{verb: verbUpdate, kind: ch.kind, namespace: namespace})
		return ok
	})
	if len(foreign) == 0 {
		return nil
	}
	return forbidden(ch.by, ch.access, t.Name, foreignText(foreign))
}

func foreignText(foreign []string) string {
	few, more := foreign[:min(len(foreign), 3)], ""
	if len(foreign) > len(few) {
		more = fmt.Sprintf(" and %d more", len(foreign)-len(few))
	}
	return strings.Join(few, ", ") + more + ": neither end is a workload, or fromAll or toAll, of namespaces of theirs alone"
}

// mayAsk refuses the tests among the objects of a question that ask of flows which
// explain would not tell of.
func (c *call) mayAsk(objects []bocage.Resource) error {
	if !c.person.confined() {
		return nil
	}
	for _, o := range objects {
		t, ok := o.(*bocage.PolicyTest)
		if !ok {
			continue
		}
		if foreign := foreignCases(t, c.person.mayRead); len(foreign) > 0 {
			return forbidden(c.person, access{verbGet, kindNamed("PolicyTest"), "", t.Namespace}, t.Name, foreignText(foreign))
		}
	}
	return nil
}

// ownResults are the results of tests that the person may see: of those that are
// declared, or among the objects of the question.
func (s *Server) ownResults(c *call, results []bocage.TestResult, objects []bocage.Resource) ([]bocage.TestResult, error) {
	if !c.person.confined() {
		return results, nil
	}
	if err := s.view.fresh(c.r.Context()); err != nil {
		return nil, err
	}
	kind := kindNamed("PolicyTest")
	shown := map[[2]string]bool{}
	note := func(t *bocage.PolicyTest) {
		for i, tested := range t.Spec.Cases {
			name := tested.Name
			if name == "" {
				name = fmt.Sprintf("cases[%d]", i)
			}
			key := [2]string{t.NamespacedName(), name}
			before, twice := shown[key]
			shown[key] = ownCase(tested, c.person.mayRead) && (before || !twice)
		}
	}
	for _, namespace := range c.person.namespaces() {
		declared, _, _ := s.view.snapshot(kind.Plural, namespace)
		for _, o := range declared {
			var t bocage.PolicyTest
			if err := json.Unmarshal(o.value, &t); err != nil {
				return nil, fmt.Errorf("read PolicyTest %s: %w", o.key, err)
			}
			note(&t)
		}
	}
	for _, o := range objects {
		if t, ok := o.(*bocage.PolicyTest); ok {
			note(t)
		}
	}
	kept := make([]bocage.TestResult, 0, len(results))
	for _, result := range results {
		if c.person.mayRead(namespaceOf(result.Test)) && shown[[2]string{result.Test, result.Case}] {
			kept = append(kept, result)
		}
	}
	return kept, nil
}

// ownPlan takes out of a plan what is about flows of others.
func (s *Server) ownPlan(c *call, plan *bocage.PlanResult, objects []bocage.Resource) error {
	if !c.person.confined() {
		return nil
	}
	var err error
	if plan.Tests, err = s.ownResults(c, plan.Tests, objects); err != nil {
		return err
	}
	planned := map[string]bool{}
	for _, o := range objects {
		planned[o.Type().Kind+" "+o.Meta().NamespacedName()] = true
	}
	plan.Findings = slices.DeleteFunc(plan.Findings, func(f bocage.Fault) bool {
		kind, rest, _ := strings.Cut(f.Field, " ")
		object, _, _ := strings.Cut(rest, " ")
		namespace, _, namespaced := strings.Cut(object, "/")
		return f.Field != "" && !planned[kind+" "+object] && !(namespaced && c.person.mayRead(namespace))
	})
	plan.Proofs = shownProofs(plan.Proofs)
	group := func(name string) bool { // a group's name begins with its namespace
		namespace, _, _ := strings.Cut(name, " ")
		return c.person.mayRead(namespace)
	}
	reach := []*[]bocage.ReachChange{&plan.Reach}
	workloads := []*[]string{&plan.Enforced, &plan.Observed, &plan.Quarantined, &plan.Released}
	for i := range plan.Times {
		t := &plan.Times[i]
		reach = append(reach, &t.Reach)
		workloads = append(workloads, &t.Enforced, &t.Observed, &t.Quarantined, &t.Released)
	}
	for _, list := range reach {
		*list = slices.DeleteFunc(*list, func(r bocage.ReachChange) bool { return !group(r.From) && !group(r.To) })
	}
	for _, list := range workloads {
		*list = slices.DeleteFunc(*list, func(workload string) bool { return !c.person.mayRead(namespaceOf(workload)) })
	}
	plan.Times = slices.DeleteFunc(plan.Times, bocage.PlannedTime.Empty)
	for _, list := range []*[]bocage.PlannedEdge{&plan.NewlyRefused, &plan.NewlyAllowed, &plan.DutyChanged} {
		*list = slices.DeleteFunc(*list, func(e bocage.PlannedEdge) bool { return !c.person.mayReadFlow(e.Source, e.Destination) })
	}
	if len(plan.Cut) > 0 {
		plan.Cut = nil
		plan.Findings.Add("", "administrators' sessions would be cut: ask somebody who sees them before this is declared")
	}
	return nil
}

// mayReadFlow says whether one end of a flow is in a namespace that the person reads.
func (p Person) mayReadFlow(from, to string) bool {
	return p.mayRead(namespaceOf(from)) || p.mayRead(namespaceOf(to))
}

// ownBlast keeps the ways of which the person may see every step.
func (c *call) ownBlast(result *bocage.BlastResult) {
	if !c.person.confined() {
		return
	}
	before := len(result.Reached)
	result.Reached = slices.DeleteFunc(result.Reached, func(t bocage.BlastTarget) bool {
		for i := 1; i < len(t.Path); i++ {
			if !c.person.mayReadFlow(t.Path[i-1], t.Path[i]) {
				return true
			}
		}
		return false
	})
	if len(result.Reached) < before {
		result.Weight = 0 // that of what is left is not known here
	}
}

// shownProofs are proofs without the flows that break them.
func shownProofs(proofs []bocage.Proof) []bocage.Proof {
	proofs = slices.Clone(proofs)
	for i := range proofs {
		if proofs[i].Counterexample != "" {
			proofs[i].Counterexample, proofs[i].Workloads = notShown, nil
		}
	}
	return proofs
}

// hides says whether the person sees less of the objects of a kind than is in them.
func (p Person) hides(kind bocage.Kind) bool {
	switch kind.Name {
	case "Generation", "PolicyTest", "Event":
		return p.confined()
	}
	return false
}

// mayReadNamed says whether the person reads an object that is called as records call
// it: "Kind name" or "Kind namespace/name".
func (p Person) mayReadNamed(object string) bool {
	called, name, _ := strings.Cut(object, " ")
	kind, known := bocage.KindNamed(called)
	if !known {
		return false
	}
	if kind.Name == "Namespace" {
		return p.mayRead(name)
	}
	namespace := ""
	if kind.Namespaced {
		namespace = namespaceOf(name)
	}
	ok, _ := p.allowed(access{verb: verbGet, kind: kind, namespace: namespace})
	return ok
}

// revealed is what the person sees of an object of a kind.
func (c *call) revealed(kind bocage.Kind, value []byte) ([]byte, error) {
	if !c.person.hides(kind) {
		return value, nil
	}
	u, err := decodeStored(value)
	if err != nil {
		return nil, err
	}
	resource, err := typed(kind, u)
	if err != nil {
		return nil, err
	}
	var status any
	switch o := resource.(type) {
	case *bocage.Generation:
		changed := len(o.Status.Changed)
		o.Status.Changed = slices.DeleteFunc(o.Status.Changed, func(object string) bool { return !c.person.mayReadNamed(object) })
		if hidden := changed - len(o.Status.Changed); hidden > 0 {
			o.Status.Changed = append(o.Status.Changed, fmt.Sprintf("%d that are not shown", hidden))
		}
		o.Status.Proofs, o.Status.Conditions = shownProofs(o.Status.Proofs), shownConditions(o.Status.Conditions)
		status = o.Status
	case *bocage.PolicyTest:
		if len(foreignCases(o, c.person.mayRead)) == 0 {
			return value, nil
		}
		if len(o.Status.Failed) > 0 {
			o.Status.Failed = []string{notShown}
		}
		o.Status.Conditions = shownConditions(o.Status.Conditions)
		status = o.Status
	case *bocage.ObjectEvent:
		switch o.InvolvedObject.Kind {
		case "Generation", "Rollout":
		default:
			return value, nil
		}
		u.Object["message"] = notShown
		return json.Marshal(u.Object)
	}
	u.Object["status"] = status
	return json.Marshal(u.Object)
}

// shownConditions are conditions without the words of those that may tell of flows.
func shownConditions(conditions []bocage.Condition) []bocage.Condition {
	conditions = slices.Clone(conditions)
	for i := range conditions {
		if c := &conditions[i]; c.Status != string(metav1.ConditionTrue) || c.Type == bocage.ConditionDegraded {
			c.Message = notShown
		}
	}
	return conditions
}

// revealedStep is what the person sees of a change.
func (c *call) revealedStep(ch *step) (*step, error) {
	if !c.person.hides(c.kind) {
		return ch, nil
	}
	shown := &step{revision: ch.revision}
	for _, part := range []struct{ from, to **object }{{&ch.is, &shown.is}, {&ch.was, &shown.was}} {
		o := *part.from
		if o == nil {
			continue
		}
		value, err := c.revealed(c.kind, o.value)
		if err != nil {
			return nil, err
		}
		*part.to = &object{kind: o.kind, key: o.key, name: o.name, namespace: o.namespace, revision: o.revision, virtual: o.virtual, value: value}
	}
	return shown, nil
}
