package api

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"bocage.dev/bocage"
)

// bindings answers who has which roles by RoleBindings. It reads them from the
// view, and again only when one of them changed.
type bindings struct {
	view       *view
	remembered *remembered

	mu      sync.Mutex // guards what follows
	objects []*object
	grants  map[string][]Grant // by subject
}

// of returns what RoleBindings give a person. What was written before the
// question counts, on whichever replica, unless the store does not answer and the
// request is content with what there is.
func (b *bindings) of(ctx context.Context, p Person) ([]Grant, error) {
	if err := b.newestRoles(ctx); err != nil {
		return nil, err
	}
	objects, _, _ := b.view.snapshot("rolebindings", "")
	if len(objects) == 0 {
		return nil, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.objects, objects) {
		b.objects, b.grants = objects, grantsIn(objects)
	}
	found := slices.Clone(b.grants[p.Name])
	for _, group := range p.Groups {
		found = append(found, b.grants[bocage.GroupSubject+group]...)
	}
	return found, nil
}

func grantsIn(objects []*object) map[string][]Grant {
	grants := map[string][]Grant{}
	for _, o := range objects {
		var binding bocage.RoleBinding
		// What is invalid was not written by this program: it gives nobody anything.
		if json.Unmarshal(o.value, &binding) != nil || len(binding.Validate()) > 0 {
			continue
		}
		for _, subject := range binding.Spec.Subjects {
			grants[subject] = append(grants[subject], Grant{Role: binding.Spec.Role, Namespaces: binding.Spec.Namespaces, Binding: o.name})
		}
	}
	return grants
}

// withBindings adds what RoleBindings give. Whoever came with a token has what it
// was made with, and the local administrator has everything.
func (s *Server) withBindings(ctx context.Context, p Person) (Person, error) {
	if ownName(p.Name) {
		return p, nil
	}
	found, err := s.bindings.of(ctx, p)
	p.Grants = append(slices.Clone(p.Grants), found...)
	return p, err
}

// Names that this room gives, and nobody else may bear.
const (
	localName     = "local:"
	tokenName     = "token:"
	bootstrapName = "bootstrap:"
)

// ownName says whether a name is one that this room gives.
func ownName(name string) bool {
	return slices.ContainsFunc([]string{localName, tokenName, bootstrapName, "system:"}, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}

// aboveAll says whether a person is whoever has the machine: root there, or the
// one who read the token that only root can read.
func (p Person) aboveAll() bool {
	return strings.HasPrefix(p.Name, localName) || strings.HasPrefix(p.Name, bootstrapName)
}
