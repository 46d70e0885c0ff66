package manifest

import (
	"encoding/json"
	"strconv"
	"strings"

	"bocage.dev/bocage"
)

// Object returns the document as plain maps, lists and scalars; numbers are
// json.Number. It is nil if the document is no map.
func (t *Tree) Object() map[string]any {
	object, _ := t.node.plain().(map[string]any)
	return object
}

// Value returns the document whatever it is.
func (t *Tree) Value() any { return t.node.plain() }

// JSON returns the document in JSON.
func (t *Tree) JSON() []byte {
	data, err := json.Marshal(t.node.plain())
	if err != nil {
		// plain builds nothing that JSON cannot hold.
		panic("manifest: " + err.Error())
	}
	return data
}

// Source returns the file and line of a field, or of the nearest part of its
// path that exists. The empty path is the document's start.
func (t *Tree) Source(field string) string {
	line := t.node.Line
	for n := t.node; ; {
		var step string
		if step, field = nextStep(field); step == "" {
			return position(t.name, line)
		}
		n, line = n.child(step, line)
		if n == nil {
			return position(t.name, line)
		}
	}
}

// child follows one step of a path; line is where its key stands.
func (n *node) child(step string, line int) (*node, int) {
	switch n.Kind {
	case mapping:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i+1], n.Content[i].Line
			}
		}
	case sequence:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i], n.Content[i].Line
		}
	}
	return nil, line
}

// nextStep cuts the first step off a path such as spec.provides[0].port or
// metadata.labels[app.kubernetes.io/name].
func nextStep(field string) (step, rest string) {
	field = strings.TrimPrefix(field, ".")
	if inner, ok := strings.CutPrefix(field, "["); ok {
		step, rest, _ = strings.Cut(inner, "]")
		return step, rest
	}
	if i := strings.IndexAny(field, ".["); i >= 0 {
		return field[:i], field[i:]
	}
	return field, ""
}

// place fills in the sources of faults.
func (t *Tree) place(faults bocage.Faults) bocage.Faults {
	for i := range faults {
		if faults[i].Source == "" {
			faults[i].Source = t.Source(faults[i].Field)
		}
	}
	return faults
}

// Text returns the text at a path of keys, if there is some.
func (t *Tree) Text(keys ...string) (string, bool) {
	n := t.node
	for _, key := range keys {
		if n = n.value(key); n == nil {
			return "", false
		}
	}
	if n.Kind != scalar || n.Tag == "!!null" {
		return "", false
	}
	return n.Value, true
}
