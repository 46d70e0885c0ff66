package api

import (
	"fmt"

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
	managers map[string]*managedfields.FieldManager // by kind, and kind/status
}

func newFieldManagers(s *schemas) (*fieldManagers, error) {
	types, err := managedfields.NewTypeConverter(s.definitions, false)
	if err != nil {
		return nil, err
	}
	f := &fieldManagers{managers: map[string]*managedfields.FieldManager{}}
	for _, kind := range bocage.Kinds() {
		version := schema.GroupVersion{Group: kind.Group(), Version: kind.Version()}
		gvk := version.WithKind(kind.Name)
		for _, subresource := range []string{"", "status"} {
			// What a path cannot change, it cannot own.
			reset := fieldpath.NewSet(fieldpath.MakePathOrDie("status"))
			if subresource == "status" {
				reset = fieldpath.NewSet(fieldpath.MakePathOrDie("spec"), fieldpath.MakePathOrDie("metadata"))
			}
			manager, err := managedfields.NewDefaultCRDFieldManager(types, same{}, same{}, same{}, gvk, version, subresource,
				map[fieldpath.APIVersion]fieldpath.Filter{
					fieldpath.APIVersion(version.String()): fieldpath.NewExcludeSetFilter(reset),
				})
			if err != nil {
				return nil, fmt.Errorf("%s: %w", kind.Name, err)
			}
			f.managers[kind.Name+"/"+subresource] = manager
		}
	}
	return f, nil
}

func (f *fieldManagers) of(a access) *managedfields.FieldManager {
	return f.managers[a.kind.Name+"/"+a.subresource]
}

// same stands in for conversion between versions, defaults and construction: fields
// are kept track of in the version that objects are kept in, every other one that is
// served has the same fields, and objects are plain maps.
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

func (same) ConvertToVersion(in runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	return in, nil
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
