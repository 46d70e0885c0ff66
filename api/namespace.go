package api

import (
	"bytes"
	"encoding/json"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// A namespace that nobody declared exists while something is declared in it, and
// "default" always does. The view shows such namespaces beside those that are
// declared, and tells when they come and go.

const (
	defaultNamespace = "default"
	// namespaceHold keeps a namespace that is being deleted until it is empty, as
	// in Kubernetes.
	namespaceHold = "kubernetes"
	phaseActive   = "Active"
	phaseGoing    = "Terminating"
)

// inhabits says whether a namespace exists because an object of a kind is in it.
// What is only told of others makes none.
func inhabits(kind bocage.Kind) bool { return kind.Namespaced && kind.Name != "Event" }

// undeclared is how a namespace that nobody declared is stored once somebody
// changes it.
func undeclared(name string) *bocage.Namespace {
	return &bocage.Namespace{
		TypeMeta:   bocage.TypeMeta{APIVersion: bocage.NamespaceAPIVersion, Kind: "Namespace"},
		ObjectMeta: bocage.ObjectMeta{Name: name, Labels: map[string]string{bocage.LabelNamespaceName: name}},
		Spec:       bocage.NamespaceSpec{Finalizers: []string{namespaceHold}},
		Status:     bocage.NamespaceStatus{Phase: phaseActive},
	}
}

func undeclaredJSON(name string) []byte {
	data, err := json.Marshal(undeclared(name))
	if err != nil {
		panic("api: " + err.Error()) // strings only
	}
	return data
}

// fillNamespaces finds the namespaces that are inhabited; the view's lock is held.
func (v *view) fillNamespaces(at store.Revision) {
	v.inhabited[defaultNamespace] = 1
	for plural, kind := range v.kinds {
		if !inhabits(kind.Kind) {
			continue
		}
		for _, o := range v.collections[plural].objects {
			v.inhabited[o.namespace]++
		}
	}
	namespaces := v.collections["namespaces"]
	for name := range v.inhabited {
		if _, declared := namespaces.find(name); !declared {
			namespaces.put(name, v.undeclared(name, at))
		}
	}
}

func (v *view) undeclared(name string, at store.Revision) *object {
	o := newObject(v.kinds["namespaces"], name, undeclaredJSON(name), at)
	o.virtual = true
	return o
}

// settle counts an object that came to or left a namespace.
func (v *view) settle(kind *seenKind, key string, came bool, at store.Revision) {
	namespace, _ := splitKey(kind.Kind, kind.KeyPrefix()+key)
	if came {
		v.inhabited[namespace]++
	} else if v.inhabited[namespace]--; v.inhabited[namespace] == 0 {
		delete(v.inhabited, namespace)
	}
	namespaces := v.collections["namespaces"]
	o := namespaces.get(namespace)
	switch {
	case came && o == nil:
		namespaces.set(namespace, v.undeclared(namespace, at), at)
	case o != nil && o.virtual && v.inhabited[namespace] == 0:
		namespaces.set(namespace, nil, at)
	}
}

// setNamespace takes in that a namespace was declared, changed, or is declared no
// more; in the last case it goes on to exist while something is in it.
func (v *view) setNamespace(name string, is *object, at store.Revision) {
	if is == nil && v.inhabited[name] > 0 {
		is = v.undeclared(name, at)
	}
	v.collections["namespaces"].set(name, is, at)
}

// emptyNamespace reports whether nothing is in a namespace.
func (v *view) emptyNamespace(name string) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	most := 0
	if name == defaultNamespace {
		most = 1
	}
	return v.filled && v.inhabited[name] <= most
}

// loadUndeclared is what a change of a namespace that nobody declared starts from.
func (s *Server) loadUndeclared(name string) (*stored, error) {
	o := s.view.get(s.kinds["namespaces"], "", name)
	if o == nil || !o.virtual {
		return nil, store.ErrNotFound
	}
	value := undeclaredJSON(name)
	object, err := decodeStored(value)
	return &stored{object: object, value: value, revision: o.revision, virtual: true}, err
}

// complete gives a namespace what every namespace has.
func complete(n *bocage.Namespace, created bool, now time.Time) {
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[bocage.LabelNamespaceName] = n.Name
	if created {
		n.Spec.Finalizers = []string{namespaceHold}
	}
	if n.UID == "" { // it was there, and is declared now
		n.UID, n.Generation = string(uuid.NewUUID()), 1
		n.CreationTimestamp = &now
	}
	n.Status.Phase = phaseActive
	if n.DeletionTimestamp != nil {
		n.Status.Phase = phaseGoing
	}
}

// accepting refuses new objects in a namespace that is being deleted.
func (s *Server) accepting(ch *change, name string) error {
	o := s.view.get(s.kinds["namespaces"], "", ch.namespace)
	if o == nil || !o.going() {
		return nil
	}
	p := newProblem(http.StatusForbidden, metav1.StatusReasonForbidden,
		"%s %q is forbidden: unable to create new content in namespace %s because it is being terminated",
		qualified(ch.kind), name, ch.namespace).about(ch.kind, name)
	p.Details.Causes = []metav1.StatusCause{{
		Type: "NamespaceTerminating", Field: "metadata.namespace",
		Message: "namespace " + ch.namespace + " is being terminated: wait until it is gone",
	}}
	return p
}

// going reports whether an object is being deleted.
func (o *object) going() bool {
	// Within a text the quotes would be escaped.
	return bytes.Contains(o.value, []byte(`"deletionTimestamp":"`))
}
