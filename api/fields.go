package api

import (
	"fmt"
	"maps"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"bocage.dev/bocage"
)

// fieldManagers know who owns which field of an object, which is what server-side
// apply merges by: Kubernetes' own implementation over our schemas.
type fieldManagers struct {
	// managers are there by version, kind and subresource: an owner's entry names the
	// version in which they wrote.
	managers map[string]*managedfields.FieldManager
}

func newFieldManagers(s *schemas) (*fieldManagers, error) {
	types, err := managedfields.NewTypeConverter(s.definitions, false)
	if err != nil {
		return nil, err
	}
	f := &fieldManagers{managers: map[string]*managedfields.FieldManager{}}
	for _, kind := range bocage.Kinds() {
		kept := groupVersionOf(kind)
		for _, subresource := range []string{"", "status"} {
			// What a path cannot change, it cannot own.
			reset := fieldpath.NewSet(fieldpath.MakePathOrDie("status"))
			if subresource == "status" {
				reset = fieldpath.NewSet(fieldpath.MakePathOrDie("spec"), fieldpath.MakePathOrDie("metadata"))
			}
			filters := map[fieldpath.APIVersion]fieldpath.Filter{}
			for _, version := range kind.Versions() {
				filters[fieldpath.APIVersion(version)] = fieldpath.NewExcludeSetFilter(reset)
			}
			for _, version := range kind.Versions() {
				written := groupVersionOf(kind.In(version))
				manager, err := managedfields.NewDefaultCRDFieldManager(types, same{}, same{}, same{},
					written.WithKind(kind.Name), kept, subresource, filters)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", kind.Name, err)
				}
				f.managers[managerKey(kind, version, subresource)] = manager
			}
		}
	}
	return f, nil
}

func groupVersionOf(kind bocage.Kind) schema.GroupVersion {
	return schema.GroupVersion{Group: kind.Group(), Version: kind.Version()}
}

func managerKey(kind bocage.Kind, version, subresource string) string {
	return version + " " + kind.Name + "/" + subresource
}

// of returns the one that follows a change, in the version that it is written in.
func (f *fieldManagers) of(ch *change) *managedfields.FieldManager {
	return f.managers[managerKey(ch.kind, ch.writtenIn(), ch.subresource)]
}

// same stands in for conversion between versions, defaults and construction: the
// versions of a kind have the same fields, and objects are plain maps.
type same struct{}

func (same) Convert(in, out, _ any) error {
	from, ok := in.(*unstructured.Unstructured)
	to, ok2 := out.(*unstructured.Unstructured)
	if !ok || !ok2 {
		return fmt.Errorf("convert %T to %T", in, out)
	}
	to.Object = from.Object
	return nil
}

// ConvertToVersion writes an object's version; what is in it is shared.
func (same) ConvertToVersion(in runtime.Object, to runtime.GroupVersioner) (runtime.Object, error) {
	from, ok := in.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("convert %T", in)
	}
	is := from.GroupVersionKind()
	want, ok := to.KindForGroupVersionKinds([]schema.GroupVersionKind{is})
	if !ok {
		// An owner's entry that came along from another API: only this error lets the
		// merge drop it alone.
		return nil, runtime.NewNotRegisteredGVKErrForTarget("bocage", is, to)
	}
	if want == is {
		return in, nil
	}
	out := &unstructured.Unstructured{Object: maps.Clone(from.Object)}
	out.SetGroupVersionKind(want)
	return out, nil
}

func (same) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

func (same) Default(runtime.Object) {}

func (same) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(kind)
	return u, nil
}
