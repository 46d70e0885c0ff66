package api

import (
	"encoding/json"
	"errors"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"bocage.dev/bocage"
)

// strategic says whether a kind is one of those that kubectl has compiled in, for
// which it sends strategic merge patches. For all others, as for Kubernetes'
// custom resources, it sends merge patches.
func strategic(kind bocage.Kind) bool {
	return kind.APIVersion == bocage.NamespaceAPIVersion || kind.APIVersion == bocage.NetworkPolicyAPIVersion
}

// strategicPatch reads a strategic merge patch: lists are merged by the keys that
// the kind's schema names, and replaced where it names none.
func (s *Server) strategicPatch(kind bocage.Kind, data []byte) (func([]byte) ([]byte, error), error) {
	var patch map[string]any
	if err := json.Unmarshal(data, &patch); err != nil {
		return nil, badRequest("the strategic merge patch is no JSON object: %v", err)
	}
	if patch == nil {
		return nil, badRequest("the strategic merge patch is no JSON object but null: send what is to change")
	}
	meta := strategicpatch.PatchMetaFromOpenAPIV3{SchemaList: s.schemas.definitions, Schema: s.schemas.of(kind)}
	return func(document []byte) ([]byte, error) {
		patched, err := strategicpatch.StrategicMergePatchUsingLookupPatchMeta(document, data, meta)
		switch {
		case errors.Is(err, mergepatch.ErrBadJSONDoc):
			return nil, badRequest("the strategic merge patch cannot be read: %v", err)
		case err != nil:
			return nil, newProblem(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid,
				"the strategic merge patch cannot be applied: %v", err)
		}
		return patched, nil
	}, nil
}
