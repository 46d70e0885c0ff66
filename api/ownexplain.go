package api

import (
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
)

// hiddenName stands for the name of what somebody may not read.
const hiddenName = "(not shown)"

// whatElse stands for advice about what somebody may not read.
const whatElse = "it takes a change of what you may not read: ask the owners of the other end, or an administrator"

// explainFailed is why a flow is not explained. Whoever is held to namespaces is not
// told what it is about an end in another.
func (c *call) explainFailed(q bocage.ExplainQuery, faults bocage.Faults) error {
	ends := map[string]string{"from": q.From, "to": q.To}
	for _, fault := range faults {
		if end := ends[fault.Field]; namespaceOf(end) != "" && !c.person.mayRead(namespaceOf(end)) {
			return newProblem(http.StatusNotFound, metav1.StatusReasonNotFound, "%s: there is no workload %s of which a flow can be explained", fault.Field, end)
		}
	}
	if slices.ContainsFunc(faults, func(f bocage.Fault) bool { return f.Field == "" }) {
		return functionFailed(faults)
	}
	return queryFaults(faults)
}

// ownExplanation takes out of an explanation what the person may not read: the objects of
// others that had a say, what is theirs in the words, and where they run. That they had a
// say, and what came of it, stays: it is about the person's own flow.
func (c *call) ownExplanation(e *bocage.Explanation) {
	p := c.person
	if !p.confined() {
		return
	}
	foreign := map[string]bool{} // namespaces of the ends that are others'
	for _, end := range []*bocage.Peer{&e.Source, &e.Destination} {
		if namespace := namespaceOf(end.Workload); end.Workload != "" && !p.mayRead(namespace) {
			foreign[namespace] = true
			end.Host = ""
		}
	}
	tells := func(text string) bool { return p.tellsOfOthers(text) }
	e.Decider = p.shownRef(e.Decider)
	e.Layers = slices.Clone(e.Layers)
	for i := range e.Layers {
		layer := &e.Layers[i]
		by := p.shownRefs(layer.By)
		if slices.Equal(by, layer.By) && !tells(layer.Result) {
			continue
		}
		layer.By = by
		// What nearly allows it, or whose wish it is, are others' declarations.
		layer.Result, _, _ = strings.Cut(layer.Result, ". Nearly: ")
		if tells(layer.Result) || layer.Name == "threat" {
			layer.Result = notShown
		}
	}
	e.Duties = slices.Clone(e.Duties)
	for i := range e.Duties {
		e.Duties[i].By = p.shownRef(e.Duties[i].By)
	}
	e.Elsewhere = slices.Clone(e.Elsewhere)
	for i := range e.Elsewhere {
		e.Elsewhere[i].Decider = p.shownRef(e.Elsewhere[i].Decider)
	}
	for namespace := range foreign {
		if strings.Contains(e.Missing, namespace+"/") {
			e.Missing = whatElse
		}
	}
	if tells(e.Missing) {
		e.Missing = whatElse
	}
}

// mayReadRef says whether the person reads what a ref names. What no object says, such as
// a default, is everybody's.
func (p Person) mayReadRef(r bocage.Ref) bool {
	kind, known := bocage.KindNamed(r.Kind)
	switch {
	case !known:
		return r.Namespace == "" || p.mayRead(r.Namespace)
	case kind.Namespaced:
		return p.mayReadNamed(kind.Name + " " + r.Namespace + "/" + r.Name)
	default:
		return p.mayReadNamed(kind.Name + " " + r.Name)
	}
}

func (p Person) shownRef(r bocage.Ref) bocage.Ref {
	if p.mayReadRef(r) {
		return r
	}
	return bocage.Ref{Kind: r.Kind, Name: hiddenName}
}

// shownRefs are refs of which those that are hidden stand there once for each kind.
func (p Person) shownRefs(refs []bocage.Ref) []bocage.Ref {
	var shown []bocage.Ref
	for _, r := range refs {
		if r = p.shownRef(r); r.Name != hiddenName || !slices.Contains(shown, r) {
			shown = append(shown, r)
		}
	}
	return shown
}

// tellsOfOthers says whether a text names an object that the person may not read, as
// texts name objects: "Kind name" or "Kind namespace/name".
func (p Person) tellsOfOthers(text string) bool {
	words := strings.Fields(text)
	for i, word := range words[:max(len(words)-1, 0)] {
		kind, known := bocage.KindNamed(strings.Trim(word, `"'(,;:.`))
		if !known || !strings.Contains(word, kind.Name) {
			continue // not a kind's own name, such as "application" in a sentence
		}
		name := strings.Trim(words[i+1], `"'(),;:.`)
		if kind.Namespaced != strings.Contains(name, "/") {
			continue // "an Application that", and "a NetworkPolicy of"
		}
		if !p.mayReadNamed(kind.Name + " " + name) {
			return true
		}
	}
	return false
}
