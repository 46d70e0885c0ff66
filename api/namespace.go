package api

import (
	"encoding/json"
	"net/http"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// A namespace that nobody declared exists while something is declared in it, and
// "default" always does.

const defaultNamespace = "default"

func namespaceObject(name string) []byte {
	data, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{"name": name, "labels": map[string]string{bocage.LabelNamespaceName: name}},
		"status":   map[string]any{"phase": "Active"},
	})
	if err != nil {
		panic("api: " + err.Error()) // strings only
	}
	return data
}

func (s *Server) getNamespace(c *call) error {
	names, _, err := s.namespaces(c)
	if err != nil {
		return err
	}
	if !slices.Contains(names, c.name) {
		return notFound(c.kind, c.name)
	}
	return c.writeObject(http.StatusOK, namespaceObject(c.name))
}

func (s *Server) listNamespaces(c *call) error {
	selected, err := readSelection(c.query)
	if err != nil {
		return err
	}
	names, revision, err := s.namespaces(c)
	if err != nil {
		return err
	}
	found := &items{revision: revision}
	for _, name := range names {
		value := namespaceObject(name)
		entry, err := s.config.Store.Get(c.r.Context(), c.kind.Key("", name))
		if err == nil {
			value = entry.Value
		}
		if selected.matches("", name, value) {
			found.items = append(found.items, item{name: name, value: value, revision: entry.Revision})
		}
	}
	return c.writeList(found)
}

// namespaces lists those that a person may know of.
func (s *Server) namespaces(c *call) ([]string, store.Revision, error) {
	names := []string{defaultNamespace}
	var revision store.Revision
	for _, kind := range bocage.Kinds() {
		if !kind.Namespaced && kind.Name != "Namespace" {
			continue
		}
		// One entry of each namespace tells that it exists; the next look-up skips
		// the rest of it.
		after := ""
		for {
			page, at, err := s.config.Store.List(c.r.Context(), kind.KeyPrefix(), after, 1, 0)
			if err != nil {
				return nil, 0, err
			}
			revision = max(revision, at)
			if len(page) == 0 {
				break
			}
			namespace, name := splitKey(kind, page[0].Key)
			if !kind.Namespaced {
				namespace = name
				after = page[0].Key
			} else {
				after = kind.KeyPrefix() + namespace + "/\xff"
			}
			names = append(names, namespace)
		}
	}
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(name string) bool {
		return !c.person.mayRead(name)
	})
	return names, revision, nil
}
