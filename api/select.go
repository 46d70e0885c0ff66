package api

import (
	"net/url"
	"slices"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// maxSelector and maxRequirements bound a selector, since it is compared with many
// objects, and by those who follow with every change.
const (
	maxSelector     = 16 << 10
	maxRequirements = 128
)

// selection is which objects of a collection are wanted.
type selection struct {
	labels labels.Selector
	fields fields.Selector
	// visible, if it is there, says what a person may see at all.
	visible func(namespace, name string) bool
	all     bool
}

// selectableFields lists, for a kind, what can be selected by besides
// metadata.name and metadata.namespace.
func selectableFields(kind bocage.Kind) []string {
	switch kind.Name {
	case "Workload":
		return []string{"spec.host"}
	case "Quarantine":
		return []string{"spec.workload"}
	case "ThreatCondition":
		return []string{"spec.workload", "spec.level"}
	case "Exception":
		return []string{"spec.guardrail"}
	case "Incident":
		return []string{"status.phase", "status.severity"}
	case "Generation":
		return []string{"status.active", "status.stage"}
	case "Decoy":
		return []string{"spec.protocol"}
	case "Scope":
		return []string{"spec.mode"}
	case "ClusterNetworkPolicy":
		return []string{"spec.tier"}
	case "Namespace":
		return []string{"status.phase"}
	case "Event":
		return []string{
			"involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
			"involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath",
			"reason", "reportingComponent", "source", "type",
		}
	}
	return nil
}

func selectable(kind bocage.Kind, field string) bool {
	return field == "metadata.name" || field == "metadata.namespace" || slices.Contains(selectableFields(kind), field)
}

// selection reads which objects a request selects.
func (c *call) selection() (selection, error) {
	selected, err := readSelection(c.kind, c.query)
	if namespaces, all := c.person.readable(); c.kind.Name == "Namespace" && !all {
		selected.visible = func(_, name string) bool { return slices.Contains(namespaces, name) }
		selected.all = false
	}
	return selected, err
}

func readSelection(kind bocage.Kind, query url.Values) (selection, error) {
	var s selection
	var err error
	for _, name := range []string{"labelSelector", "fieldSelector"} {
		if text := query.Get(name); len(text) > maxSelector {
			return s, badRequest("%s has %d characters: at most %d are read", name, len(text), maxSelector)
		}
	}
	if s.labels, err = labels.Parse(query.Get("labelSelector")); err != nil {
		return s, badRequest("labelSelector %q cannot be read: %v", query.Get("labelSelector"), err)
	}
	if s.fields, err = fields.ParseSelector(query.Get("fieldSelector")); err != nil {
		return s, badRequest("fieldSelector %q cannot be read: %v", query.Get("fieldSelector"), err)
	}
	requirements, _ := s.labels.Requirements()
	if asked := max(len(requirements), len(s.fields.Requirements())); asked > maxRequirements {
		return s, badRequest("the selector asks %d things: at most %d can be asked; \"key in (a, b, ...)\" is one", asked, maxRequirements)
	}
	for _, r := range s.fields.Requirements() {
		if !selectable(kind, r.Field) {
			return s, badRequest("field label not supported: %s: %s can be selected by %v", r.Field, kind.Plural,
				append([]string{"metadata.name", "metadata.namespace"}, selectableFields(kind)...))
		}
	}
	s.all = s.labels.Empty() && s.fields.Empty()
	return s, nil
}

// picks looks into an object no further than it has to.
func (s selection) picks(o *object) bool {
	if s.all {
		return true
	}
	if s.visible != nil && !s.visible(o.namespace, o.name) {
		return false
	}
	if !s.fields.Empty() && !s.fields.Matches(o) {
		return false
	}
	return s.labels.Empty() || s.labels.Matches(o.Labels())
}

// named returns the one object that is selected by its name, if that is so.
func (s selection) named() (string, bool) {
	if s.all {
		return "", false
	}
	return s.fields.RequiresExactMatch("metadata.name")
}

// picksEntry is picks for what was just read from the store.
func (s selection) picksEntry(kind *seenKind, entry store.Entry) (*object, bool) {
	o := newObject(kind, entry.Key[len(kind.KeyPrefix()):], entry.Value, entry.Revision)
	return o, s.picks(o)
}
