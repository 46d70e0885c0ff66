package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/store"
)

// maxAttempts bounds how often a change is prepared again because somebody else
// was faster.
const maxAttempts = 20

// change is one write in the making.
type change struct {
	access
	version string // in which it is written; empty: that in which objects are kept
	name    string
	manager string
	dryRun  bool
	// validation says what becomes of unknown fields and keys given twice.
	validation string
	warnings   []string
	// source is the file and line that an apply names; see sourced.
	source string
	// mayNotCreate is the answer to an apply that would create what the person
	// may only change.
	mayNotCreate error
	// mayNotChange is that to one that would change what they may only create.
	mayNotChange error
	// by is who makes the change; nobody is the system itself.
	by Person
	// vouching says that a host makes the change, of a workload that it sees.
	vouching bool
	// approving is there if the change is an approval.
	approving *approval
	told      []notice

	old      *stored // nil: nothing is there
	value    []byte  // as it will be stored
	created  bool
	same     bool // nothing changes
	removed  bool // the last finalizer went
	revision store.Revision
}

// stored is an object as it is.
type stored struct {
	object   *unstructured.Unstructured
	value    []byte
	revision store.Revision
	// virtual says that it is not in the store: a namespace that nobody declared.
	virtual bool
}

// writtenIn is the version in which the change is written.
func (ch *change) writtenIn() string { return cmp.Or(ch.version, ch.kind.APIVersion) }

// now is the time as objects carry it.
func (s *Server) now() time.Time { return s.config.Now().UTC().Truncate(time.Second) }

func (s *Server) load(ctx context.Context, kind bocage.Kind, namespace, name string) (*stored, error) {
	entry, err := s.config.Store.Get(ctx, kind.Key(namespace, name))
	if err != nil {
		return nil, err
	}
	object, err := decodeStored(entry.Value)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", entry.Key, err)
	}
	return &stored{object: object, value: entry.Value, revision: entry.Revision}, nil
}

func decodeStored(value []byte) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	return u, utiljson.Unmarshal(value, &u.Object)
}

// newChange reads what the query says of a write.
func (s *Server) newChange(c *call) (*change, error) {
	ch := &change{access: c.access, version: c.version, name: c.name, by: c.person, manager: c.query.Get("fieldManager"), validation: c.query.Get("fieldValidation")}
	if wrong := managerFault(ch.manager); wrong != "" {
		return nil, wrongOption(optionsOf(c.verb), "fieldManager", "%s", wrong)
	}
	if ch.manager == "" {
		ch.manager = managerOf(c.r.UserAgent())
	}
	switch ch.validation {
	case "":
		// Kubernetes would warn. A policy with a misspelled field is no policy.
		ch.validation = metav1.FieldValidationStrict
	case metav1.FieldValidationStrict, metav1.FieldValidationWarn, metav1.FieldValidationIgnore:
	default:
		return nil, wrongOption(optionsOf(c.verb), "fieldValidation", "%q is not Strict, Warn or Ignore", ch.validation)
	}
	var err error
	ch.dryRun, err = dryRun(c.verb, c.query["dryRun"])
	return ch, err
}

// longestManager is the longest name of a field manager, in bytes, as in Kubernetes.
const longestManager = 128

// managerFault says what keeps a text from being a field manager's name; "" if nothing
// does.
func managerFault(name string) string {
	if len(name) > longestManager {
		return fmt.Sprintf("is longer than %d characters", longestManager)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return "should only contain printable characters"
		}
	}
	return ""
}

// managerOf is the field manager of a client that names none: the first part of what it
// calls itself, as far as that may be a name.
func managerOf(userAgent string) string {
	client, _, _ := strings.Cut(userAgent, "/")
	var name strings.Builder
	for _, r := range client {
		if !unicode.IsPrint(r) {
			continue
		}
		if name.Len()+utf8.RuneLen(r) > longestManager {
			break
		}
		name.WriteRune(r)
	}
	return name.String()
}

func dryRun(verb string, values []string) (bool, error) {
	for _, v := range values {
		if v != metav1.DryRunAll {
			return false, wrongOption(optionsOf(verb), "dryRun", "%q is not All", v)
		}
	}
	return len(values) > 0, nil
}

// commit prepares a write and does it, again if somebody else was faster: what is
// prepared anew sees what they wrote, and refuses if it was told not to.
func (s *Server) commit(ctx context.Context, changes []*change, prepare func(*batch) error) error {
	for attempt := 1; ; attempt++ {
		b := newBatch(ctx, s)
		if err := prepare(b); err != nil {
			return err
		}
		if changes[0].dryRun || len(b.ops) == 0 {
			return nil
		}
		revision, err := s.config.Store.Apply(ctx, b.ops...)
		if err == nil {
			for _, ch := range changes {
				if !ch.same {
					ch.revision = revision
				}
				s.tell(ctx, ch)
			}
			return nil
		}
		if !isAny(err, store.ErrConflict, store.ErrNotFound) || attempt == maxAttempts {
			return err
		}
	}
}

// create serves POST.
func (s *Server) create(c *call) error {
	ch, err := s.newChange(c)
	if err != nil {
		return err
	}
	declared, err := c.body()
	if err != nil {
		return err
	}
	err = s.commit(c.r.Context(), []*change{ch}, func(b *batch) error { return b.create(ch, declared) })
	c.name = ch.name
	return s.answer(c, ch, err)
}

// update serves PUT.
func (s *Server) update(c *call) error {
	ch, err := s.newChange(c)
	if err != nil {
		return err
	}
	declared, err := c.body()
	if err != nil {
		return err
	}
	err = s.commit(c.r.Context(), []*change{ch}, func(b *batch) error {
		if err := b.load(ch); err != nil {
			return err
		}
		object, faults, err := ch.read(declared)
		if err != nil {
			return err
		}
		// Kubernetes takes its own kinds as they come, and custom ones with their version.
		if object.GetResourceVersion() == "" && !strategic(ch.kind) {
			faults.Add("metadata.resourceVersion", "is missing: a replacement says what it replaces")
		}
		if object.GetName() != ch.name {
			// It is about another object: whether it is the newest of that is not asked.
			return badRequest("the name of the object (%s) does not match the name on the URL (%s)", object.GetName(), ch.name)
		}
		if err := ch.precondition(object); err != nil {
			return err
		}
		return b.replace(ch, object, faults, func(live, object *unstructured.Unstructured) (*unstructured.Unstructured, error) {
			updated := s.fields.of(ch).UpdateNoErrors(live, object, ch.manager)
			return updated.(*unstructured.Unstructured), nil
		})
	})
	return s.answer(c, ch, err)
}

// answer writes the outcome of a change.
func (s *Server) answer(c *call, ch *change, err error) error {
	for _, warning := range ch.warnings {
		c.warn(warning)
	}
	if err != nil {
		c.outcome = "refused"
		return err
	}
	c.warn(waiting(ch.kind, ch.value))
	s.warnHeld(c, ch)
	code := http.StatusOK
	c.outcome, c.stored = ch.outcome(), ch.value
	if ch.created {
		code = http.StatusCreated
	}
	return c.writeObject(code, withRevision(ch.value, ch.kind, ch.revision))
}

// warn has clients such as kubectl tell people something beside the answer.
func (c *call) warn(text string) {
	if text != "" {
		c.w.Header().Add("Warning", "299 - "+strconv.Quote(text))
	}
}

// mostWarnings is how many things of one kind are told beside an answer.
const mostWarnings = 20

// warn has clients such as kubectl tell people of things that are no faults.
func (ch *change) warn(about bocage.Faults) {
	for _, fault := range about[:min(len(about), mostWarnings)] {
		ch.warnings = append(ch.warnings, bocage.Fault{Field: fault.Field, Message: fault.Message}.String())
	}
}

// outcome is what became of a change, for people.
func (ch *change) outcome() string {
	switch {
	case ch.created:
		return "created"
	case ch.same:
		return "unchanged"
	case ch.removed:
		return "deleted"
	default:
		return "configured"
	}
}

// body reads a request's one object, without asking yet whether it is right.
func (c *call) body() (*manifest.Tree, error) {
	contentType, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if c.r.Header.Get("Content-Type") == "" {
		contentType = "application/json"
	} else if err != nil {
		return nil, badRequest("the Content-Type cannot be read: %v", err)
	}
	switch contentType {
	case "application/json", "application/yaml", "application/x-yaml", "text/yaml":
	case protobufType:
		if fields := objectMessage(c.kind); fields != nil {
			return c.protobufBody(fields)
		}
		fallthrough
	default:
		return nil, newProblem(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
			"the body is %s: send application/json or application/yaml", contentType)
	}
	data, err := c.readBody()
	if err != nil {
		return nil, err
	}
	tree, err := c.parse(data)
	if err == nil && contentType == "application/json" && !json.Valid(data) {
		// It was read as YAML, in which 0x50 is a number.
		return nil, badRequest("the %s cannot be read: the body is no JSON: %v: send YAML as application/yaml", c.kind.Name, json.Unmarshal(data, new(json.RawMessage)))
	}
	return tree, err
}

// protobufBody reads an object of a kind that clients have compiled in.
func (c *call) protobufBody(fields message) (*manifest.Tree, error) {
	data, err := c.readBody()
	if err != nil {
		return nil, err
	}
	if data, err = protobufAsJSON(data, fields); err != nil {
		return nil, badRequest("the %s cannot be read: %v", c.kind.Name, err)
	}
	return c.parse(data)
}

func (c *call) readBody() ([]byte, error) {
	if encoding := c.r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return nil, newProblem(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
			"the body is encoded as %s: send it as it is", encoding)
	}
	small, err := io.ReadAll(io.LimitReader(c.r.Body, largeBody))
	if err != nil || len(small) < largeBody {
		return small, err
	}
	// Few large bodies are read and understood at a time: what they take in memory
	// is a multiple of their size.
	select {
	case c.large <- struct{}{}:
		c.holdsLarge = true
	case <-c.r.Context().Done():
		return nil, c.r.Context().Err()
	}
	rest, err := io.ReadAll(c.r.Body)
	return append(small, rest...), err
}

func (c *call) parse(data []byte) (*manifest.Tree, error) {
	trees, faults := manifest.Parse("", data)
	switch {
	case len(faults) > 0:
		return nil, malformed(c.kind, c.name, faults)
	case len(trees) != 1:
		return nil, badRequest("the body holds %d objects where one is needed", len(trees))
	case trees[0].Object() == nil:
		return nil, badRequest("the body is no object")
	case len(trees[0].JSON()) > store.MaxValue:
		return nil, store.ErrTooLarge // before what costs memory
	}
	return trees[0], nil
}

// read checks a declared object against its kind and the path, and returns it
// with every fault that no later check would find.
func (ch *change) read(tree *manifest.Tree) (*unstructured.Unstructured, bocage.Faults, error) {
	unknown, faults := tree.Check(ch.kind)
	var unexpected bocage.Faults
	for _, fault := range unknown {
		switch fault.Field {
		case "metadata.selfLink", "metadata.deletionGracePeriodSeconds":
			// Kubernetes' clients write these, and they mean nothing here.
		default:
			unexpected = append(unexpected, fault)
		}
	}
	switch ch.validation {
	case metav1.FieldValidationStrict:
		faults = append(unexpected, faults...)
	case metav1.FieldValidationWarn:
		ch.warnings = nil
		ch.warn(unexpected)
	}
	ch.warn(tree.Notes())
	u := &unstructured.Unstructured{}
	if err := utiljson.Unmarshal(tree.JSON(), &u.Object); err != nil {
		return nil, nil, badRequest("the body cannot be read: %v", err)
	}
	if strategic(ch.kind) && u.GetAPIVersion() == "" && u.GetKind() == "" {
		// Clients that have a kind compiled in leave it to the path to name it.
		u.SetAPIVersion(ch.writtenIn())
		u.SetKind(ch.kind.Name)
	}
	if apiVersion, want := u.GetAPIVersion(), ch.writtenIn(); apiVersion != want {
		faults.Add("apiVersion", "%q is not %s", apiVersion, want)
	}
	if kind := u.GetKind(); kind != ch.kind.Name {
		faults.Add("kind", "%q is not %s, which the path names", kind, ch.kind.Name)
	}
	if namespace := u.GetNamespace(); namespace == "" && ch.kind.Namespaced {
		u.SetNamespace(ch.namespace)
	} else if namespace != ch.namespace && ch.kind.Namespaced {
		faults.Add("metadata.namespace", "%q is not %q, which the path names", namespace, ch.namespace)
	}
	if name := u.GetName(); ch.name != "" && name == "" {
		u.SetName(ch.name)
	} else if ch.name != "" && name != ch.name {
		faults.Add("metadata.name", "%q is not %q, which the path names", name, ch.name)
	}
	u.SetAPIVersion(ch.kind.APIVersion)
	u.SetKind(ch.kind.Name)
	if !readableOwners(u) {
		faults.Add("metadata.managedFields", "cannot be read: leave it out")
		delete(metadataOf(u), "managedFields")
	}
	return u, faults, nil
}

// readableOwners says whether what a client sends as managedFields has their form.
func readableOwners(u *unstructured.Unstructured) bool {
	data, err := json.Marshal(metadataOf(u)["managedFields"])
	var owners []metav1.ManagedFieldsEntry
	return err == nil && json.Unmarshal(data, &owners) == nil && !slices.ContainsFunc(owners, func(o metav1.ManagedFieldsEntry) bool {
		_, err := schema.ParseGroupVersion(o.APIVersion)
		return err != nil
	})
}

// precondition refuses an object that was made for another revision or for an
// object that is gone.
func (ch *change) precondition(object *unstructured.Unstructured) error {
	if version := object.GetResourceVersion(); version != "" && version != formatRevision(ch.old.revision) {
		return conflict(ch.kind, ch.name,
			"the object has been modified; please apply your changes to the latest version and try again")
	}
	if uid := object.GetUID(); uid != "" && uid != ch.old.object.GetUID() {
		return conflict(ch.kind, ch.name, fmt.Sprintf("Precondition failed: UID in precondition: %s, UID in object meta: %s",
			uid, ch.old.object.GetUID()))
	}
	return nil
}

// load finds what a change starts from.
func (b *batch) load(ch *change) error {
	var err error
	ch.old, err = b.server.load(b.ctx, ch.kind, ch.namespace, ch.name)
	if errors.Is(err, store.ErrNotFound) && ch.kind.Name == "Namespace" {
		ch.old, err = b.server.loadUndeclared(ch.name)
	}
	if errors.Is(err, store.ErrNotFound) {
		return notFound(ch.kind, ch.name)
	}
	return err
}

// create prepares a new object.
func (b *batch) create(ch *change, declared *manifest.Tree) error {
	object, faults, err := ch.read(declared)
	if err != nil {
		return err
	}
	if err := b.free(ch, object); err != nil {
		return err
	}
	if object.GetResourceVersion() != "" {
		faults.Add("metadata.resourceVersion", "must not be set on objects to be created")
	}
	return b.add(ch, object, faults, func(empty, object *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		updated := b.server.fields.of(ch).UpdateNoErrors(empty, object, ch.manager)
		return updated.(*unstructured.Unstructured), nil
	})
}

// Names that are made: a prefix that leaves room for a few letters more, as in
// Kubernetes, and how often one is drawn that is not taken yet.
const (
	maxGeneratedPrefix = 58
	generatedLetters   = 5
	maxDrawn           = 8
)

// free sees that a new object's name is not taken; one that leaves its name to the
// server gets one here.
func (b *batch) free(ch *change, object *unstructured.Unstructured) error {
	prefix := object.GetGenerateName()
	draws := prefix != "" && object.GetName() == ""
	for drawn := 1; ; drawn++ {
		if draws {
			object.SetName(prefix[:min(len(prefix), maxGeneratedPrefix)] + rand.String(generatedLetters))
		}
		_, err := b.server.load(b.ctx, ch.kind, ch.namespace, object.GetName())
		switch {
		case errors.Is(err, store.ErrNotFound):
			return nil
		case err != nil:
			return err
		case !draws || drawn == maxDrawn:
			return newProblem(http.StatusConflict, metav1.StatusReasonAlreadyExists,
				"%s %q already exists", qualified(ch.kind), object.GetName()).about(ch.kind, object.GetName())
		}
	}
}

// track merges or notes who owns what; the object it returns is the one to store.
type track func(live, object *unstructured.Unstructured) (*unstructured.Unstructured, error)

// add finishes a new object: what the system says of it, its owners, its faults.
func (b *batch) add(ch *change, object *unstructured.Unstructured, faults bocage.Faults, own track) error {
	ch.old, ch.created, ch.same = nil, true, false
	if err := b.withinQuota(ch, object.GetName()); err != nil {
		return err
	}
	if ch.kind.Namespaced {
		if err := b.server.accepting(ch, object.GetName()); err != nil {
			return err
		}
	}
	delete(object.Object, "status")
	metadata := metadataOf(object)
	for _, field := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"} {
		delete(metadata, field)
	}
	empty, err := same{}.New(object.GroupVersionKind())
	if err != nil {
		return err
	}
	object, err = b.normal(ch, object, faults, func(u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		return own(empty.(*unstructured.Unstructured), u)
	})
	if err != nil {
		return err
	}
	object.SetUID(uuid.NewUUID())
	object.SetGeneration(1)
	object.SetCreationTimestamp(metav1.Time{Time: b.server.now()})
	ch.name = object.GetName()
	return b.put(ch, object)
}

// replace finishes a changed object.
func (b *batch) replace(ch *change, object *unstructured.Unstructured, faults bocage.Faults, own track) error {
	ch.created, ch.removed, ch.same = false, false, false
	old := ch.old.object
	b.keep(ch, object)
	live := old.DeepCopy()
	live.SetResourceVersion("")
	object, err := b.normal(ch, object, faults, func(u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		return own(live, u)
	})
	if err != nil {
		return err
	}
	b.keep(ch, object)
	before, err := defaulted(ch.kind, old)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(object.Object["spec"], before["spec"]) {
		object.SetGeneration(old.GetGeneration() + 1)
		sourced(object, old, ch.source)
	}
	return b.put(ch, object)
}

// defaulted is a stored object with the defaults that it means: those that come to one
// from before they were written down are no change of what it says.
func defaulted(kind bocage.Kind, stored *unstructured.Unstructured) (map[string]any, error) {
	if kind.Name != "NetworkPolicy" {
		return stored.Object, nil
	}
	resource, err := typed(kind, stored)
	if err != nil {
		return nil, err
	}
	resource.(*bocage.NetworkPolicy).Default()
	written, err := untyped(kind, resource)
	if err != nil {
		return nil, err
	}
	return written.Object, nil
}

// sourced keeps the file and line that an object says it was declared in true: a
// change that did not come from a file leaves no source behind.
func sourced(object, old *unstructured.Unstructured, source string) {
	annotations := object.GetAnnotations()
	if was, ok := old.GetAnnotations()[bocage.SourceAnnotation]; source == "" && ok && annotations[bocage.SourceAnnotation] == was {
		delete(annotations, bocage.SourceAnnotation)
		object.SetAnnotations(annotations)
	}
}

// keep restores what a write of this path does not reach: the system's part of
// the metadata always, the status from the main path, all else from the status
// path.
func (b *batch) keep(ch *change, object *unstructured.Unstructured) {
	old := ch.old.object
	metadata, was := metadataOf(object), metadataOf(old)
	delete(metadata, "resourceVersion")
	restore(metadata, was, "uid", "generation", "creationTimestamp", "deletionTimestamp")
	if ch.subresource != "status" {
		restore(object.Object, old.Object, "status")
		if ch.kind.Name == "Namespace" {
			restore(object.Object, old.Object, "spec")
		}
		return
	}
	restore(object.Object, old.Object, "spec")
	restore(metadata, was, "labels", "annotations", "finalizers", "ownerReferences")
}

func restore(to, from map[string]any, keys ...string) {
	for _, key := range keys {
		if value, ok := from[key]; ok {
			to[key] = value
		} else {
			delete(to, key)
		}
	}
}

func metadataOf(u *unstructured.Unstructured) map[string]any {
	metadata, ok := u.Object["metadata"].(map[string]any)
	if !ok {
		metadata = map[string]any{}
		u.Object["metadata"] = metadata
	}
	return metadata
}

// normal brings an object into the form in which it is stored, with its owners,
// and refuses it with all its faults.
func (b *batch) normal(ch *change, object *unstructured.Unstructured, faults bocage.Faults, own func(*unstructured.Unstructured) (*unstructured.Unstructured, error)) (*unstructured.Unstructured, error) {
	resource, err := typed(ch.kind, object)
	if err != nil {
		return nil, badRequest("the %s cannot be read: %v", ch.kind.Name, err)
	}
	// A version may be stricter than the one in which objects are kept. What a client
	// of it leaves as it was is not held against it.
	if ch.version != "" && (ch.old == nil || !reflect.DeepEqual(ch.old.object.Object["spec"], object.Object["spec"])) {
		resource.Type().APIVersion = ch.version
	}
	if policy, ok := resource.(*bocage.NetworkPolicy); ok {
		policy.Default()
		ch.warn(policy.Warnings())
	}
	for _, fault := range resource.Validate() {
		if !slices.ContainsFunc(faults, func(f bocage.Fault) bool { return related(f.Field, fault.Field) }) {
			faults = append(faults, fault)
		}
	}
	more, err := b.admit(ch, resource)
	if err != nil {
		return nil, err
	}
	if faults = append(faults, more...); len(faults) > 0 {
		return nil, invalid(ch.kind, object.GetName(), faults)
	}
	if object, err = untyped(ch.kind, resource); err != nil {
		return nil, err
	}
	return own(object)
}

// related reports whether one field lies in the other, so that one fault may be
// the cause of both.
func related(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	rest, ok := strings.CutPrefix(b, a)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

func typed(kind bocage.Kind, object *unstructured.Unstructured) (bocage.Resource, error) {
	data, err := json.Marshal(object.Object)
	if err != nil {
		return nil, err
	}
	resource := kind.New()
	return resource, json.Unmarshal(data, resource)
}

func untyped(kind bocage.Kind, resource bocage.Resource) (*unstructured.Unstructured, error) {
	value, err := store.EncodeObject(kind, resource)
	if err != nil {
		return nil, err
	}
	return decodeStored(value)
}

// put adds an object's write to the batch, unless it changes nothing.
func (b *batch) put(ch *change, object *unstructured.Unstructured) error {
	resource, err := typed(ch.kind, object)
	if err != nil {
		return fmt.Errorf("read back %s: %w", ch.name, err)
	}
	if ch.subresource == "" {
		if err := b.place(ch, resource); err != nil {
			return err
		}
		if err := b.awaitApproval(ch, resource); err != nil {
			return err
		}
	}
	if err := b.keepHold(ch, resource); err != nil {
		return err
	}
	held := len(resource.Meta().Finalizers) > 0
	if namespace, ok := resource.(*bocage.Namespace); ok {
		complete(namespace, ch.old == nil, b.server.now())
		held = held || len(namespace.Spec.Finalizers) > 0
	}
	if ch.value, err = store.EncodeObject(ch.kind, resource); err != nil {
		return err
	}
	if len(ch.value) > store.MaxValue {
		return store.ErrTooLarge
	}
	op := store.Op{Key: ch.kind.Key(ch.namespace, ch.name), Value: ch.value, IfWas: store.Absent}
	if ch.old != nil {
		op.IfWas, ch.revision = ch.old.revision, ch.old.revision
		if ch.old.virtual {
			op.IfWas = store.Absent
		}
		if unchanged(ch.old.value, ch.value) {
			ch.same, ch.value = true, ch.old.value
			return nil
		}
		if ch.removed = resource.Meta().DeletionTimestamp != nil && !held; ch.removed {
			return b.remove(ch)
		}
	}
	return b.write(op)
}

// unchanged compares two stored objects but for the times at which their fields'
// owners last wrote.
func unchanged(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, errX := decodeStored(a)
	y, errY := decodeStored(b)
	if errX != nil || errY != nil {
		return false
	}
	for _, u := range []*unstructured.Unstructured{x, y} {
		owners := u.GetManagedFields()
		for i := range owners {
			owners[i].Time = nil
		}
		u.SetManagedFields(owners)
	}
	return reflect.DeepEqual(x.Object, y.Object)
}

func formatRevision(r store.Revision) string { return strconv.FormatInt(int64(r), 10) }
