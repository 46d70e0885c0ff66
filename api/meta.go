package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	fieldpath "k8s.io/apimachinery/pkg/util/validation/field"

	"bocage.dev/bocage"
)

// metaFaults finds what is wrong with the metadata of a change. What the object had
// already is not held against it: a version before may have taken it.
func (ch *change) metaFaults(meta *bocage.ObjectMeta) (bocage.Faults, error) {
	if ch.old == nil {
		return metaFaults(ch.kind, meta), nil
	}
	resource, err := typed(ch.kind, ch.old.object)
	if err != nil {
		return nil, err
	}
	was := resource.Meta()
	fresh := *meta
	fresh.Annotations = maps.Clone(meta.Annotations)
	maps.DeleteFunc(fresh.Annotations, func(key, _ string) bool { _, had := was.Annotations[key]; return had })
	faults := metaFaults(ch.kind, &fresh)
	var added bocage.Faults
	if was.DeletionTimestamp != nil {
		for _, wrong := range validation.ValidateNoNewFinalizers(meta.Finalizers, was.Finalizers, fieldpath.NewPath("metadata", "finalizers")) {
			added.Add(wrong.Field, "%s", wrong.ErrorBody())
		}
	}
	const most = validation.TotalAnnotationSizeLimitB
	if size := annotationsSize(meta.Annotations); size > max(annotationsSize(was.Annotations), most) && annotationsSize(fresh.Annotations) <= most {
		faults.Add("metadata.annotations", "Too long: may not be more than %d bytes", most)
	}
	if len(faults) == 0 {
		return added, nil
	}
	before := metaFaults(ch.kind, was)
	return append(added, slices.DeleteFunc(faults, func(f bocage.Fault) bool {
		if strings.HasPrefix(f.Field, "metadata.ownerReferences") {
			return sameOwner(f.Field, meta.OwnerReferences, was.OwnerReferences)
		}
		if f.Field == "metadata.annotations" {
			return false // of what is new
		}
		field, _, _ := strings.Cut(f.Field, "[") // the message names which it is
		return slices.ContainsFunc(before, func(b bocage.Fault) bool {
			at, _, _ := strings.Cut(b.Field, "[")
			return at == field && b.Message == f.Message
		})
	})...), nil
}

// sameOwner reports whether what a fault of an owner is about was there before: that
// owner, or, of what owners must not have twice, all of them.
func sameOwner(field string, owners, before []bocage.OwnerReference) bool {
	same := func(a, b bocage.OwnerReference) bool { return reflect.DeepEqual(a, b) }
	for i, owner := range owners {
		rest, is := strings.CutPrefix(field, fmt.Sprintf("metadata.ownerReferences[%d]", i))
		if is && rest != ".controller" {
			return slices.ContainsFunc(before, func(b bocage.OwnerReference) bool { return same(owner, b) })
		}
	}
	return slices.EqualFunc(owners, before, same)
}

// annotationsSize is what Kubernetes bounds of annotations.
func annotationsSize(annotations map[string]string) int {
	size := 0
	for key, value := range annotations {
		size += len(key) + len(value)
	}
	return size
}

// metaFaults finds what Kubernetes finds wrong with an object's metadata and the root
// package does not look at: owners, finalizers, annotations, and what names are drawn
// from.
func metaFaults(kind bocage.Kind, meta *bocage.ObjectMeta) bocage.Faults {
	faults := ownerFaults(meta)
	checked := metav1.ObjectMeta{Name: meta.Name, GenerateName: meta.GenerateName, Annotations: meta.Annotations, Finalizers: meta.Finalizers}
	for _, owner := range meta.OwnerReferences {
		checked.OwnerReferences = append(checked.OwnerReferences, metav1.OwnerReference{APIVersion: owner.APIVersion, Kind: owner.Kind, Name: owner.Name, UID: "checked"})
	}
	_ = json.Unmarshal(meta.ManagedFields, &checked.ManagedFields) // that they can be read was seen to
	if len(checked.ManagedFields) == 1 && reflect.DeepEqual(checked.ManagedFields[0], metav1.ManagedFieldsEntry{}) {
		checked.ManagedFields = nil // an empty entry is how clients drop all of them
	}
	// Names themselves the root package checks; one that a name is drawn from may stand
	// beside a name, too.
	name := func(name string, prefix bool) []string {
		if !prefix {
			return nil
		}
		return validation.NameIsDNSSubdomain(name, prefix)
	}
	for _, wrong := range validation.ValidateObjectMeta(&checked, false, name, fieldpath.NewPath("metadata")) {
		if wrong.Field == "metadata.name" {
			continue // the root package checks it
		}
		if !slices.ContainsFunc(faults, func(f bocage.Fault) bool { return related(f.Field, wrong.Field) }) || strings.Contains(wrong.Field, "finalizers") {
			faults.Add(wrong.Field, "%s", wrong.ErrorBody())
		}
	}
	if !strategic(kind) {
		return faults
	}
	// Of its own kinds Kubernetes takes finalizers without a domain only if they are its own.
	for i, finalizer := range meta.Finalizers {
		switch finalizer {
		case namespaceHold, finalizerForeground, finalizerOrphan:
		default:
			if finalizer != "" && !strings.Contains(finalizer, "/") {
				faults.Add(fmt.Sprintf("metadata.finalizers[%d]", i), "%q is neither a standard finalizer name nor is it fully qualified", finalizer)
			}
		}
	}
	return faults
}

// ownerFaults finds owners that could not be found.
func ownerFaults(meta *bocage.ObjectMeta) bocage.Faults {
	var faults bocage.Faults
	controllers := 0
	for i, owner := range meta.OwnerReferences {
		at := fmt.Sprintf("metadata.ownerReferences[%d]", i)
		for _, part := range []struct{ field, value string }{
			{"apiVersion", owner.APIVersion}, {"kind", owner.Kind}, {"name", owner.Name}, {"uid", owner.UID},
		} {
			if part.value == "" {
				faults.Add(at+"."+part.field, "is missing: an owner is named whole")
			}
		}
		if owner.Controller != nil && *owner.Controller {
			if controllers++; controllers > 1 {
				faults.Add(at+".controller", "another owner is the controller already: there is one at most")
			}
		}
	}
	return faults
}
