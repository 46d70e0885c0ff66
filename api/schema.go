package api

import (
	_ "embed"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"k8s.io/kube-openapi/pkg/validation/spec"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
)

// descriptions maps "Type" and "Type.Field" to their doc comments in the root
// package.
//
//go:generate go test -run ^TestDescriptions$ -update
//go:embed descriptions.json
var descriptions []byte

// Names of schemas: tools know metadata by the name that Kubernetes gives it.
const (
	schemaPrefix           = "dev.bocage.v1."
	metaSchemaPrefix       = "io.k8s.apimachinery.pkg.apis.meta.v1."
	networkingSchemaPrefix = "io.k8s.api.networking.v1."
	policySchemaPrefix     = "io.k8s.networking.policy.v1alpha2."
	coreSchemaPrefix       = "io.k8s.api.core.v1."
	refPrefix              = "#/components/schemas/"
)

// schemas describes every kind, drawn from the Go types that read and write
// them, so that the two cannot disagree.
type schemas struct {
	definitions map[string]*spec.Schema
	docs        map[string]string
}

func newSchemas() (*schemas, error) {
	s := &schemas{definitions: map[string]*spec.Schema{}}
	if err := json.Unmarshal(descriptions, &s.docs); err != nil {
		return nil, fmt.Errorf("read descriptions: %w", err)
	}
	for _, kind := range bocage.Kinds() {
		typ := reflect.TypeOf(kind.New()).Elem()
		if _, err := s.define(typ); err != nil {
			return nil, fmt.Errorf("%s: %w", kind.Name, err)
		}
		definition := s.definitions[schemaName(typ)]
		definition.Required = nil // the server says what is missing, in better words
		var versions []any
		for _, version := range kind.Versions() {
			versions = append(versions, map[string]any{"group": kind.Group(), "version": kind.In(version).Version(), "kind": kind.Name})
		}
		definition.AddExtension("x-kubernetes-group-version-kind", versions)
	}
	return s, nil
}

// reachable are the schemas that the kinds of a group version are made of.
func (s *schemas) reachable(groupVersion string) map[string]*spec.Schema {
	found := map[string]*spec.Schema{}
	for _, kind := range kindsIn(groupVersion) {
		s.reach(found, schemaName(reflect.TypeOf(kind.New()).Elem()))
	}
	return found
}

func (s *schemas) reach(found map[string]*spec.Schema, name string) {
	if found[name] != nil {
		return
	}
	found[name] = s.definitions[name]
	var walk func(*spec.Schema)
	walk = func(schema *spec.Schema) {
		if ref := schema.Ref.String(); ref != "" {
			s.reach(found, strings.TrimPrefix(ref, refPrefix))
		}
		for _, all := range schema.AllOf {
			walk(&all)
		}
		for _, property := range schema.Properties {
			walk(&property)
		}
		if schema.Items != nil && schema.Items.Schema != nil {
			walk(schema.Items.Schema)
		}
		if schema.AdditionalProperties != nil && schema.AdditionalProperties.Schema != nil {
			walk(schema.AdditionalProperties.Schema)
		}
	}
	walk(s.definitions[name])
}

// of returns a kind's schema.
func (s *schemas) of(kind bocage.Kind) *spec.Schema {
	return s.definitions[schemaName(reflect.TypeOf(kind.New()).Elem())]
}

// schemaName is Kubernetes' own for what is Kubernetes' own.
func schemaName(typ reflect.Type) string {
	switch name := typ.Name(); {
	case name == "ObjectMeta", name == "OwnerReference", name == "Condition":
		return metaSchemaPrefix + name
	case name == "Selector":
		return metaSchemaPrefix + "LabelSelector"
	case name == "Requirement":
		return metaSchemaPrefix + "LabelSelectorRequirement"
	case name == "IntOrString":
		return "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
	case name == "IPBlock", strings.HasPrefix(name, "NetworkPolicy"):
		return networkingSchemaPrefix + name
	case name == "NamespacedPod", strings.HasPrefix(name, "ClusterNetworkPolicy"):
		return policySchemaPrefix + name
	case name == "ObjectEvent":
		return coreSchemaPrefix + "Event"
	case strings.HasPrefix(name, "Namespace"), name == "ObjectReference", name == "EventSource":
		return coreSchemaPrefix + name
	default:
		return schemaPrefix + name
	}
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	timeType        = reflect.TypeFor[time.Time]()
	rawType         = reflect.TypeFor[json.RawMessage]()
	// numberOrNameType is written as either.
	numberOrNameType = reflect.TypeFor[bocage.IntOrString]()
)

// define returns a type's schema; structs become definitions of their own.
func (s *schemas) define(typ reflect.Type) (*spec.Schema, error) {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	switch {
	case typ == timeType:
		return spec.DateTimeProperty(), nil
	case typ == rawType: // managedFields
		entry := new(spec.Schema).Typed("object", "")
		entry.AddExtension("x-kubernetes-preserve-unknown-fields", true)
		return spec.ArrayProperty(entry), nil
	case typ == numberOrNameType:
		name := schemaName(typ)
		s.definitions[name] = new(spec.Schema).Typed("string", "int-or-string")
		return spec.RefProperty(refPrefix + name), nil
	case reflect.PointerTo(typ).Implements(textUnmarshaler):
		return spec.StringProperty(), nil
	}
	switch typ.Kind() {
	case reflect.Struct:
		return s.defineStruct(typ)
	case reflect.Map:
		value, err := s.define(typ.Elem())
		if err != nil {
			return nil, err
		}
		return spec.MapProperty(value), nil
	case reflect.Slice:
		item, err := s.define(typ.Elem())
		if err != nil {
			return nil, err
		}
		return spec.ArrayProperty(item), nil
	case reflect.String:
		return spec.StringProperty(), nil
	case reflect.Bool:
		return spec.BoolProperty(), nil
	case reflect.Float64:
		return spec.Float64Property(), nil
	case reflect.Int32:
		return spec.Int32Property(), nil
	case reflect.Int, reflect.Int64:
		return spec.Int64Property(), nil
	case reflect.Uint64:
		return spec.Int64Property().WithMinimum(0, false), nil
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		most := float64(uint64(1)<<typ.Bits() - 1)
		return spec.Int64Property().WithMinimum(0, false).WithMaximum(most, false), nil
	}
	return nil, fmt.Errorf("no schema for %s", typ)
}

func (s *schemas) defineStruct(typ reflect.Type) (*spec.Schema, error) {
	name := schemaName(typ)
	ref := spec.RefProperty(refPrefix + name)
	if _, done := s.definitions[name]; done {
		return ref, nil
	}
	definition := new(spec.Schema).Typed("object", "")
	definition.Description = s.docs[typ.Name()]
	definition.Properties = map[string]spec.Schema{}
	s.definitions[name] = definition
	if typ.Name() == "Selector" {
		// As in Kubernetes: two people do not own one selector by halves.
		definition.AddExtension("x-kubernetes-map-type", "atomic")
	}
	for _, field := range manifest.Fields(typ) {
		property, err := s.define(field.Type)
		if err != nil {
			return nil, fmt.Errorf("%s.%s: %w", typ.Name(), field.Name, err)
		}
		if property.Ref.String() != "" {
			// A reference stands alone, so what is said beside it wraps it.
			property = new(spec.Schema).WithAllOf(*property)
		}
		property.Description = s.docs[owner(typ, field)+"."+field.Name]
		mergeAs(property, field.JSON)
		definition.Properties[field.JSON] = *property
		scalar := field.Type.Kind() != reflect.Struct && field.Type.Kind() != reflect.Pointer
		if !field.Optional && scalar && !strings.HasSuffix(typ.Name(), "Status") && typ.Name() != "ObjectMeta" {
			definition.Required = append(definition.Required, field.JSON)
		}
	}
	return ref, nil
}

// owner is the struct in which an inlined field is declared.
func owner(typ reflect.Type, field manifest.Field) string {
	for _, i := range field.Index[:len(field.Index)-1] {
		typ = typ.Field(i).Type
	}
	return typ.Name()
}

// mergeAs says how lists are merged when several people apply the same object.
// Lists that are not named here belong to one of them as a whole.
func mergeAs(property *spec.Schema, field string) {
	switch field {
	case "conditions":
		mergeByKey(property, "type")
	case "ownerReferences":
		mergeByKey(property, "uid")
	case "finalizers":
		property.AddExtension("x-kubernetes-list-type", "set")
		property.AddExtension("x-kubernetes-patch-strategy", "merge")
	}
}

func mergeByKey(property *spec.Schema, key string) {
	property.AddExtension("x-kubernetes-list-type", "map")
	property.AddExtension("x-kubernetes-list-map-keys", []any{key})
	property.AddExtension("x-kubernetes-patch-strategy", "merge")
	property.AddExtension("x-kubernetes-patch-merge-key", key)
}
