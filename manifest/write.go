package manifest

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"

	"bocage.dev/bocage"
)

// Write writes resources as YAML documents that Read takes back: fields in the
// order of their declaration, map keys sorted, long texts as blocks, no empty
// status and nothing that only the api room reads.
func Write(w io.Writer, resources ...bocage.Resource) error {
	for i, resource := range resources {
		data, err := json.Marshal(resource)
		if err != nil {
			return fmt.Errorf("write %s: %w", resource.Meta().NamespacedName(), err)
		}
		var object *node
		if err := parseJSON(data, 1, func(n *node) { object = n }); err != nil {
			return fmt.Errorf("write %s: %w", resource.Meta().NamespacedName(), err)
		}
		if i > 0 {
			if _, err := io.WriteString(w, "---\n"); err != nil {
				return err
			}
		}
		encoder := yaml.NewEncoder(w)
		encoder.SetIndent(2)
		if err := encoder.Encode(tidy(object).yaml()); err != nil {
			return fmt.Errorf("write %s: %w", resource.Meta().NamespacedName(), err)
		}
		if err := encoder.Close(); err != nil {
			return err
		}
	}
	return nil
}

// tidy drops what is of no use to a reader.
func tidy(object *node) *node {
	object = without(object, func(key string, value *node) bool {
		return key == "status" && len(value.Content) == 0
	})
	if metadata := object.value("metadata"); metadata != nil {
		*metadata = *without(metadata, func(key string, _ *node) bool { return key == "managedFields" })
	}
	return object
}

func without(n *node, drop func(key string, value *node) bool) *node {
	kept := *n
	kept.Content = nil
	for i := 0; i+1 < len(n.Content); i += 2 {
		if !drop(n.Content[i].Value, n.Content[i+1]) {
			kept.Content = append(kept.Content, n.Content[i], n.Content[i+1])
		}
	}
	return &kept
}

func (n *node) yaml() *yaml.Node {
	y := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value}
	switch {
	case n.Kind == mapping && len(n.Content) == 0, n.Kind == sequence && len(n.Content) == 0:
		y.Style = yaml.FlowStyle
	case n.Tag == "!!str" && strings.Contains(n.Value, "\n"):
		y.Style = yaml.LiteralStyle
	case n.Tag == "!!str" && isBoolean(n.Value):
		y.Style = yaml.DoubleQuotedStyle // else Kubernetes reads true or false
	}
	for _, c := range n.Content {
		y.Content = append(y.Content, c.yaml())
	}
	return y
}
