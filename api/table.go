package api

import (
	"encoding/json"
	"fmt"
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
	if err := json.Unmarshal(value, &object); err != nil {
		return fmt.Errorf("print a %s: %w", t.kind.Name, err)
	}
	row := metav1.TableRow{Cells: []any{bocage.Column{Path: "metadata.name"}.Value(object)}}
	for _, column := range t.kind.Columns {
		row.Cells = append(row.Cells, column.Value(object))
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
	created, err := time.Parse(time.RFC3339, bocage.Column{Path: "metadata.creationTimestamp"}.Value(object))
	if err != nil {
		return "<unknown>"
	}
	return duration.HumanDuration(t.now.Sub(created))
}
