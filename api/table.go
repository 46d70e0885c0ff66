package api

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"

	"bocage.dev/bocage"
)

// table is a list as people read it: the columns of the kind between name and age.
type table struct {
	metav1.Table
	kind    bocage.Kind
	include metav1.IncludeObjectPolicy
	now     time.Time
}

func newTable(kind bocage.Kind, include string) (*table, error) {
	t := &table{kind: kind, include: metav1.IncludeObjectPolicy(include), now: time.Now()}
	switch t.include {
	case "":
		t.include = metav1.IncludeMetadata
	case metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject:
	default:
		return nil, badRequest("includeObject %q is not None, Metadata or Object", include)
	}
	t.APIVersion, t.Kind = "meta.k8s.io/v1", "Table"
	t.Rows = []metav1.TableRow{}
	t.ColumnDefinitions = append(t.ColumnDefinitions,
		metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: "The object's name."})
	for _, column := range kind.Columns {
		priority := int32(0)
		if column.Wide {
			priority = 1
		}
		t.ColumnDefinitions = append(t.ColumnDefinitions, metav1.TableColumnDefinition{
			Name: column.Name, Type: "string", Description: column.Path, Priority: priority,
		})
	}
	t.ColumnDefinitions = append(t.ColumnDefinitions,
		metav1.TableColumnDefinition{Name: "Age", Type: "string", Description: "Time since the object was made."})
	return t, nil
}

// add appends the row of one object, with its resourceVersion.
func (t *table) add(value []byte) error {
	var object map[string]any
	if err := decodeNumbers(value, &object); err != nil {
		return fmt.Errorf("print a %s: %w", t.kind.Name, err)
	}
	row := metav1.TableRow{Cells: []any{cell(object, "metadata.name")}}
	for _, column := range t.kind.Columns {
		row.Cells = append(row.Cells, cell(object, column.Path))
	}
	row.Cells = append(row.Cells, t.age(object))
	switch t.include {
	case metav1.IncludeObject:
		row.Object = runtime.RawExtension{Raw: value}
	case metav1.IncludeMetadata:
		partial, err := partialOf(value)
		if err != nil {
			return err
		}
		data, err := json.Marshal(partial)
		if err != nil {
			return err
		}
		row.Object = runtime.RawExtension{Raw: data}
	}
	t.Rows = append(t.Rows, row)
	return nil
}

func (t *table) age(object map[string]any) string {
	created, err := time.Parse(time.RFC3339, cell(object, "metadata.creationTimestamp"))
	if err != nil {
		return "<unknown>"
	}
	return duration.HumanDuration(t.now.Sub(created))
}

// cell finds a column's value: a dotted path in which [*] is every item of a
// list, and conditions[Type] that condition's status. Several values are joined
// by commas.
func cell(object map[string]any, path string) string {
	values := []any{object}
	for path != "" {
		var step string
		step, path, _ = strings.Cut(path, ".")
		name, index, indexed := strings.Cut(strings.TrimSuffix(step, "]"), "[")
		var next []any
		for _, v := range values {
			m, ok := v.(map[string]any)
			if !ok || m[name] == nil {
				continue
			}
			if !indexed {
				next = append(next, m[name])
				continue
			}
			list, _ := m[name].([]any)
			if index == "*" {
				next = append(next, list...)
				continue
			}
			for _, item := range list {
				if condition, ok := item.(map[string]any); ok && condition["type"] == index {
					next = append(next, condition["status"])
				}
			}
		}
		values = next
	}
	texts := make([]string, 0, len(values))
	for _, v := range values {
		if text := plainText(v); text != "" {
			texts = append(texts, text)
		}
	}
	return strings.Join(texts, ",")
}

func plainText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	default:
		return ""
	}
}
