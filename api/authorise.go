package api

import (
	"net/http"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
)

// Verbs, as Kubernetes names them.
const (
	verbGet              = "get"
	verbList             = "list"
	verbWatch            = "watch"
	verbCreate           = "create"
	verbUpdate           = "update"
	verbPatch            = "patch"
	verbDelete           = "delete"
	verbDeleteCollection = "deletecollection"
)

func reading(verb string) bool { return verb == verbGet || verb == verbList || verb == verbWatch }

// verbsOf lists what people, of whatever role, may do with a kind. Objects that
// a room writes are theirs to read; a host that is gone for good may be removed,
// and a case may be annotated and removed.
func verbsOf(kind bocage.Kind) []string {
	verbs := []string{verbGet, verbList, verbWatch}
	switch {
	case kind.Writer == "api" || kind.Name == "ThreatCondition":
		verbs = append(verbs, verbCreate, verbUpdate, verbPatch, verbDelete, verbDeleteCollection)
	case kind.Name == "Incident":
		verbs = append(verbs, verbUpdate, verbPatch, verbDelete)
	case kind.Name == "Host":
		verbs = append(verbs, verbDelete)
	}
	return verbs
}

// statusVerbsOf lists what people may do with a kind's status: read it, and move
// an incident's phase.
func statusVerbsOf(kind bocage.Kind) []string {
	if kind.Name == "Incident" {
		return []string{verbGet, verbUpdate, verbPatch}
	}
	return []string{verbGet}
}

// access is what somebody wants to do to what, as far as authorising it goes.
type access struct {
	verb        string
	kind        bocage.Kind
	subresource string
	namespace   string // empty: in all of them
}

// allowed says whether a person may, and if not why.
func (p Person) allowed(a access) (bool, string) {
	verbs := verbsOf(a.kind)
	if a.subresource == "status" {
		verbs = statusVerbsOf(a.kind)
	}
	if !slices.Contains(verbs, a.verb) {
		if a.subresource == "status" {
			return false, "status is written by the system and not by people"
		}
		return false, "it is written by the " + a.kind.Writer + " room and not by people"
	}
	switch p.Role {
	case RoleAdmin:
		return true, ""
	case RoleViewer:
		return reading(a.verb), "a viewer only reads"
	case RoleResponder:
		writes := a.kind.Name == "Quarantine" || a.kind.Name == "ThreatCondition" ||
			a.kind.Name == "Incident" && a.verb != verbDelete
		return reading(a.verb) || writes, "a responder writes quarantines, threat conditions and incidents' phases"
	case RoleOwner:
		return p.ownerAllowed(a)
	}
	return false, "the role is unknown"
}

// ownerAllowed: owners see what lies in their namespaces and the rules that bind
// them, and write their Applications. Who is suspected of what, and where decoys
// stand, is not theirs to see.
func (p Person) ownerAllowed(a access) (bool, string) {
	if a.kind.Namespaced {
		if !slices.Contains(p.Namespaces, a.namespace) {
			return false, "an owner works in namespaces of their own"
		}
		return reading(a.verb) || a.kind.Name == "Application", "an owner writes Applications"
	}
	switch a.kind.Name {
	case "Namespace": // those of others are not shown
		return reading(a.verb), "an owner reads namespaces"
	case "Guardrail", "Scope", "InspectionProfile", "Generation":
		return reading(a.verb), "an owner reads guardrails and writes Applications"
	}
	return false, "an owner reads guardrails, scopes, profiles and generations"
}

// mayRead says whether a person may read things that belong to a namespace;
// empty is everything.
func (p Person) mayRead(namespace string) bool {
	return p.Role != RoleOwner || slices.Contains(p.Namespaces, namespace)
}

func forbidden(p Person, a access, name, why string) *problem {
	what := a.kind.Plural
	if a.subresource != "" {
		what += "/" + a.subresource
	}
	where := "at the cluster scope"
	if a.kind.Namespaced {
		where = "in all namespaces"
		if a.namespace != "" {
			where = "in the namespace \"" + a.namespace + "\""
		}
	}
	return newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
		"%s %q is forbidden: User %q cannot %s resource %q in API group %q %s: %s",
		qualified(a.kind), name, p.Name, a.verb, what, a.kind.Group(), where, why).about(a.kind, name)
}
