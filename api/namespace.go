package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// Namespaces are virtual: one exists while something is declared in it, and
// "default" always does. They are served for tools that ask.

func namespaceObject(name string) []byte {
	data, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{"name": name, "labels": map[string]string{"kubernetes.io/metadata.name": name}},
		"spec":     map[string]any{}, "status": map[string]any{"phase": "Active"},
	})
	if err != nil {
		panic("api: " + err.Error()) // strings only
	}
	return data
}

func (s *Server) serveNamespaces(c *call) error {
	name := strings.Trim(strings.TrimPrefix(c.r.URL.Path, "/api/v1/namespaces"), "/")
	if strings.Contains(name, "/") || isTrue(c.query.Get("watch")) {
		return newProblem(http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource")
	}
	selected, err := readSelection(c.query)
	if err != nil {
		return err
	}
	names, revision, err := s.namespaces(c)
	if err != nil {
		return err
	}
	c.kind = bocage.Kind{Name: "Namespace", Plural: "namespaces"}
	c.verb = verbList
	if name != "" {
		c.verb = verbGet
		if !slices.Contains(names, name) {
			p := newProblem(http.StatusNotFound, metav1.StatusReasonNotFound, "namespaces %q not found", name)
			p.Details = &metav1.StatusDetails{Kind: "namespaces", Name: name}
			return p
		}
		return c.writeObject(http.StatusOK, namespaceObject(name))
	}
	found := &items{revision: revision}
	for _, name := range names {
		if value := namespaceObject(name); selected.matches("", name, value) {
			found.items = append(found.items, item{name: name, value: value})
		}
	}
	if c.form.as == "" {
		list := map[string]any{
			"apiVersion": "v1", "kind": "NamespaceList",
			"metadata": map[string]any{"resourceVersion": formatRevision(revision)}, "items": []json.RawMessage{},
		}
		for _, item := range found.items {
			list["items"] = append(list["items"].([]json.RawMessage), item.value)
		}
		writeJSON(c.w, http.StatusOK, list)
		return nil
	}
	return c.writeList(found)
}

// namespaces lists those that a person may know of.
func (s *Server) namespaces(c *call) ([]string, store.Revision, error) {
	names := []string{"default"}
	var revision store.Revision
	for _, kind := range bocage.Kinds() {
		if !kind.Namespaced {
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
			namespace, _ := splitKey(kind, page[0].Key)
			names = append(names, namespace)
			after = kind.KeyPrefix() + namespace + "/\xff"
		}
	}
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(name string) bool {
		return !c.person.mayRead(name)
	})
	return names, revision, nil
}
