package api

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	fieldpath "k8s.io/apimachinery/pkg/util/validation/field"

	"bocage.dev/bocage"
)

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
	// Names themselves the root package checks; one that a name is drawn from may stand
	// beside a name, too.
	name := func(name string, prefix bool) []string {
		if !prefix {
			return nil
		}
		return validation.NameIsDNSSubdomain(name, prefix)
	}
	for _, wrong := range validation.ValidateObjectMeta(&checked, false, name, fieldpath.NewPath("metadata")) {
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
