package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/store"
)

// Limits of a patch, so that a small one cannot make a large object.
const (
	maxPatchOperations = 10_000
	maxPatchCopied     = store.MaxValue
)

// patch serves PATCH.
func (s *Server) patch(c *call) error {
	contentType, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err != nil {
		return badRequest("the Content-Type cannot be read: %v", err)
	}
	ch, err := s.newChange(c)
	if err != nil {
		return err
	}
	if c.query.Has("force") && types.PatchType(contentType) != types.ApplyYAMLPatchType {
		return wrongOption(patchOptions, "force", "may not be specified for non-apply patch")
	}
	var prepare func(*batch) error
	switch form := types.PatchType(contentType); form {
	case types.ApplyYAMLPatchType:
		prepare, err = s.applyPatch(c, ch)
	case types.JSONPatchType, types.MergePatchType:
		prepare, err = s.textPatch(c, ch, form)
	case types.StrategicMergePatchType:
		if strategic(c.kind) {
			prepare, err = s.textPatch(c, ch, form)
			break
		}
		fallthrough
	default:
		err = newProblem(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
			"the body of the request was in an unknown format - accepted media types include: %s", strings.Join(patchForms(c.kind), ", "))
	}
	if err != nil {
		return err
	}
	err = s.commit(c.r.Context(), []*change{ch}, prepare)
	return s.answer(c, ch, err)
}

// applyPatch prepares a server-side apply: the object is made if it is not there.
func (s *Server) applyPatch(c *call, ch *change) (func(*batch) error, error) {
	force := says(c.query, "force")
	if c.query.Get("fieldManager") == "" {
		return nil, wrongOption(patchOptions, "fieldManager", "is required for apply patch")
	}
	data, err := c.readBody()
	if err != nil {
		return nil, err
	}
	declared, err := c.parse(data)
	if err != nil {
		return nil, err
	}
	creating := access{verbCreate, ch.kind, "", ch.namespace}
	if ok, why := c.person.allowed(creating); !ok {
		ch.mayNotCreate = forbidden(c.person, creating, ch.name, why)
	}
	return func(b *batch) error { return b.apply(ch, declared, force) }, nil
}

// apply merges a declared object into what is there by the owners of its fields.
func (b *batch) apply(ch *change, declared *manifest.Tree, force bool) error {
	ch.created = false
	object, faults, err := ch.read(declared)
	if err != nil {
		return err
	}
	if len(object.GetManagedFields()) > 0 {
		return badRequest("metadata.managedFields must be nil")
	}
	var live *unstructured.Unstructured
	ch.old, err = b.server.load(b.ctx, ch.kind, ch.namespace, ch.name)
	switch {
	case errors.Is(err, store.ErrNotFound) && ch.subresource == "":
		ch.old = nil
		if ch.mayNotCreate != nil {
			return ch.mayNotCreate
		}
		if object.GetUID() != "" || object.GetResourceVersion() != "" {
			return conflict(ch.kind, ch.name, "uid or resourceVersion is set, but the object is not there")
		}
		empty, err := same{}.New(object.GroupVersionKind())
		if err != nil {
			return err
		}
		live = empty.(*unstructured.Unstructured)
		live.SetName(ch.name)
		live.SetNamespace(ch.namespace)
	case errors.Is(err, store.ErrNotFound):
		return notFound(ch.kind, ch.name)
	case err != nil:
		return err
	default:
		if ch.mayNotChange != nil {
			return ch.mayNotChange
		}
		if err := ch.precondition(object); err != nil {
			return err
		}
		live = ch.old.object.DeepCopy()
	}
	for _, field := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"} {
		delete(metadataOf(object), field)
	}
	// Where an object was declared last is nobody's own: two people who apply it
	// from different files do not conflict about that.
	ch.source = takeSource(object)
	object.SetAPIVersion(ch.writtenIn())
	applied, err := b.server.fields.of(ch).Apply(live, object, ch.manager, force)
	if err != nil {
		return ch.applyFailed(err, faults)
	}
	merged := applied.(*unstructured.Unstructured)
	if ch.source != "" {
		annotations := merged.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[bocage.SourceAnnotation] = ch.source
		merged.SetAnnotations(annotations)
	}
	asItIs := func(_, u *unstructured.Unstructured) (*unstructured.Unstructured, error) { return u, nil }
	if ch.old == nil {
		return b.add(ch, merged, faults, asItIs)
	}
	return b.replace(ch, merged, faults, asItIs)
}

// takeSource removes the source annotation and returns it.
func takeSource(object *unstructured.Unstructured) string {
	annotations := object.GetAnnotations()
	source, ok := annotations[bocage.SourceAnnotation]
	if ok {
		delete(annotations, bocage.SourceAnnotation)
		object.SetAnnotations(annotations)
	}
	return source
}

// applyFailed keeps the conflicts' owners and fields, and prefers faults that a
// person understands to those of the merge.
func (ch *change) applyFailed(err error, faults bocage.Faults) error {
	var status apierrors.APIStatus
	switch {
	case len(faults) > 0:
		return invalid(ch.kind, ch.name, faults)
	case errors.As(err, &status):
		p := &problem{status.Status()}
		p.Kind, p.APIVersion = "Status", "v1"
		return p.about(ch.kind, ch.name)
	default:
		return badRequest("the %s cannot be applied: %v", ch.kind.Name, err)
	}
}

// textPatch prepares a JSON patch (RFC 6902), a merge patch (RFC 7396) or a
// strategic merge patch.
func (s *Server) textPatch(c *call, ch *change, form types.PatchType) (func(*batch) error, error) {
	data, err := c.readBody()
	if err != nil {
		return nil, err
	}
	var edit func([]byte) ([]byte, error)
	if form == types.StrategicMergePatchType {
		edit, err = s.strategicPatch(c.kind, data)
	} else {
		edit, err = readPatch(form, data)
	}
	if err != nil {
		return nil, err
	}
	return func(b *batch) error {
		if err := b.load(ch); err != nil {
			return err
		}
		patched, err := edit(c.inVersion(withRevision(ch.old.value, ch.kind, ch.old.revision)))
		if err != nil {
			return err
		}
		declared, err := c.parse(patched)
		if err != nil {
			return err
		}
		object, faults, err := ch.read(declared)
		if err != nil {
			return err
		}
		if err := ch.precondition(object); err != nil {
			return err
		}
		return b.replace(ch, object, faults, func(live, object *unstructured.Unstructured) (*unstructured.Unstructured, error) {
			updated := s.fields.of(ch).UpdateNoErrors(live, object, ch.manager)
			return updated.(*unstructured.Unstructured), nil
		})
	}, nil
}

// readPatch returns a function from an object's JSON to the patched one's.
func readPatch(form types.PatchType, data []byte) (func([]byte) ([]byte, error), error) {
	if form == types.MergePatchType {
		var patch map[string]any
		if err := decodeNumbers(data, &patch); err != nil {
			return nil, badRequest("the merge patch is no JSON object: %v", err)
		}
		if patch == nil {
			return nil, badRequest("the merge patch is no JSON object but null: send what is to change")
		}
		return func(document []byte) ([]byte, error) {
			var object map[string]any
			if err := decodeNumbers(document, &object); err != nil {
				return nil, err
			}
			return json.Marshal(merge(object, patch))
		}, nil
	}
	patch, err := jsonpatch.DecodePatch(data)
	if err != nil {
		return nil, badRequest("the JSON patch cannot be read: %v", err)
	}
	if len(patch) > maxPatchOperations {
		return nil, newProblem(http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge,
			"the JSON patch has %d operations: at most %d are allowed", len(patch), maxPatchOperations)
	}
	options := jsonpatch.NewApplyOptions()
	options.AccumulatedCopySizeLimit = maxPatchCopied
	return func(document []byte) ([]byte, error) {
		patched, err := patch.ApplyWithOptions(document, options)
		if err != nil {
			return nil, newProblem(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid,
				"the JSON patch cannot be applied: %v", err)
		}
		return patched, nil
	}, nil
}

// decodeNumbers keeps numbers as they are written.
func decodeNumbers(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("there is more after the first value")
	}
	return nil
}

// merge is RFC 7396's MergePatch on objects.
func merge(target, patch map[string]any) map[string]any {
	if target == nil {
		target = map[string]any{}
	}
	for key, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(target, key)
		case map[string]any:
			inner, _ := target[key].(map[string]any)
			target[key] = merge(inner, value)
		default:
			target[key] = value
		}
	}
	return target
}

// sameJSON compares two values as they would be written.
func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
