package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// table is a list as people read it: the columns of the kind between name and age.
type table struct {
	kind    bocage.Kind
	columns []metav1.TableColumnDefinition
	include metav1.IncludeObjectPolicy
}

func newTable(kind bocage.Kind, include string) (*table, error) {
	t := &table{kind: kind, include: metav1.IncludeObjectPolicy(include)}
	switch t.include {
	case "":
		t.include = metav1.IncludeMetadata
	case metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject:
	default:
		return nil, badRequest("includeObject %q is not None, Metadata or Object", include)
	}
	t.columns = append(t.columns,
		metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: "The object's name."})
	for _, column := range kind.Columns {
		priority := int32(0)
		if column.Wide {
			priority = 1
		}
		t.columns = append(t.columns, metav1.TableColumnDefinition{
			Name: column.Name, Type: "string", Description: column.Path, Priority: priority,
		})
	}
	t.columns = append(t.columns,
		metav1.TableColumnDefinition{Name: "Age", Type: "string", Description: "Time since the object was made."})
	return t, nil
}

// row is one object's, with its resourceVersion.
func (t *table) row(value []byte) ([]byte, error) {
	var object map[string]any
	if err := json.Unmarshal(value, &object); err != nil {
		return nil, fmt.Errorf("print a %s: %w", t.kind.Name, err)
	}
	row := metav1.TableRow{Cells: []any{bocage.Column{Path: "metadata.name"}.Value(object)}}
	for _, column := range t.kind.Columns {
		row.Cells = append(row.Cells, t.cell(column, object))
	}
	row.Cells = append(row.Cells, t.since(object, "metadata.creationTimestamp"))
	switch t.include {
	case metav1.IncludeObject:
		row.Object = runtime.RawExtension{Raw: value}
	case metav1.IncludeMetadata:
		partial, err := partialJSON(value)
		if err != nil {
			return nil, err
		}
		row.Object = runtime.RawExtension{Raw: partial}
	}
	return json.Marshal(row)
}

// head is everything of a Table before its rows.
func (t *table) head(meta metav1.ListMeta, columns bool) ([]byte, error) {
	head := metav1.Table{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "Table"}, ListMeta: meta}
	if columns {
		head.ColumnDefinitions = t.columns
	}
	head.Rows = []metav1.TableRow{}
	data, err := json.Marshal(head)
	return bytes.TrimSuffix(data, []byte("]}")), err
}

// around is a Table of one row.
func (t *table) around(row []byte, at store.Revision, columns bool) []byte {
	head, err := t.head(metav1.ListMeta{ResourceVersion: formatRevision(at)}, columns)
	if err != nil {
		panic("api: " + err.Error()) // strings only
	}
	return append(append(head, row...), "]}"...)
}

// cell is a column's value; an Event's are told as Kubernetes tells them.
func (t *table) cell(column bocage.Column, object map[string]any) string {
	switch {
	case t.kind.Name != "Event":
	case column.Path == "lastTimestamp":
		return t.since(object, column.Path)
	case column.Path == "involvedObject.name":
		return strings.ToLower(bocage.Column{Path: "involvedObject.kind"}.Value(object)) + "/" + column.Value(object)
	}
	return column.Value(object)
}

func (t *table) since(object map[string]any, path string) string {
	at, err := time.Parse(time.RFC3339, bocage.Column{Path: path}.Value(object))
	if err != nil {
		return "<unknown>"
	}
	return duration.HumanDuration(time.Since(at))
}
