package api

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// pageSize is how many entries are read from the store at a time.
const pageSize = 1000

// item is one object as it is stored, with what selectors look at.
type item struct {
	namespace, name string
	value           []byte
	revision        store.Revision
}

// items is what a list shows.
type items struct {
	items     []item
	revision  store.Revision
	next      string // continue token
	remaining *int64
}

// get serves one object.
func (s *Server) get(c *call) error {
	if _, err := wantedRevision(c.query, "resourceVersion"); err != nil {
		return err
	}
	entry, err := s.config.Store.Get(c.r.Context(), c.kind.Key(c.namespace, c.name))
	if errors.Is(err, store.ErrNotFound) && c.kind.Name == "Namespace" {
		return s.getNamespace(c)
	}
	if errors.Is(err, store.ErrNotFound) {
		return notFound(c.kind, c.name)
	}
	if err != nil {
		return err
	}
	return c.writeObject(http.StatusOK, withRevision(entry.Value, c.kind, entry.Revision))
}

// list serves a collection.
func (s *Server) list(c *call) error {
	if c.kind.Name == "Namespace" {
		return s.listNamespaces(c)
	}
	found, err := s.collect(c)
	if err != nil {
		return err
	}
	return c.writeList(found)
}

// selection is which objects of a collection are wanted.
type selection struct {
	labels labels.Selector
	fields fields.Selector
	all    bool
}

func readSelection(query url.Values) (selection, error) {
	var s selection
	var err error
	if s.labels, err = labels.Parse(query.Get("labelSelector")); err != nil {
		return s, badRequest("labelSelector %q cannot be read: %v", query.Get("labelSelector"), err)
	}
	if s.fields, err = fields.ParseSelector(query.Get("fieldSelector")); err != nil {
		return s, badRequest("fieldSelector %q cannot be read: %v", query.Get("fieldSelector"), err)
	}
	for _, r := range s.fields.Requirements() {
		if r.Field != "metadata.name" && r.Field != "metadata.namespace" {
			return s, badRequest("field label not supported: %s", r.Field)
		}
	}
	s.all = s.labels.Empty() && s.fields.Empty()
	return s, nil
}

// matches looks into an object no further than it has to.
func (s selection) matches(namespace, name string, value []byte) bool {
	if s.all {
		return true
	}
	if !s.fields.Matches(fields.Set{"metadata.name": name, "metadata.namespace": namespace}) {
		return false
	}
	if s.labels.Empty() {
		return true
	}
	var object struct {
		Metadata struct {
			Labels labels.Set `json:"labels"`
		} `json:"metadata"`
	}
	return json.Unmarshal(value, &object) == nil && s.labels.Matches(object.Metadata.Labels)
}

// continuation is where the next page of a list starts.
type continuation struct {
	Revision store.Revision `json:"r"`
	After    string         `json:"a"`
}

// collect reads the collection that a list or a deletion of many speaks of.
func (s *Server) collect(c *call) (*items, error) {
	selected, err := readSelection(c.query)
	if err != nil {
		return nil, err
	}
	limit, err := wantedLimit(c.query)
	if err != nil {
		return nil, err
	}
	at, after, err := s.wantedPage(c)
	if err != nil {
		return nil, err
	}
	prefix := c.prefix()
	found := &items{revision: at}
	for {
		page, revision, err := s.config.Store.List(c.r.Context(), prefix, after, pageSize, at)
		if err != nil {
			return nil, err
		}
		if found.revision == 0 {
			found.revision = revision
		}
		at = found.revision
		for i, entry := range page {
			namespace, name := splitKey(c.kind, entry.Key)
			if !selected.matches(namespace, name, entry.Value) {
				continue
			}
			if limit > 0 && len(found.items) == limit {
				// There is at least one more.
				if found.next, err = encodeContinuation(continuation{at, lastKey(c.kind, found.items)}); err != nil {
					return nil, err
				}
				if selected.all && len(page) < pageSize {
					remaining := int64(len(page) - i)
					found.remaining = &remaining
				}
				return found, nil
			}
			found.items = append(found.items, item{namespace, name, entry.Value, entry.Revision})
		}
		if len(page) < pageSize {
			return found, nil
		}
		after = page[len(page)-1].Key
	}
}

func lastKey(kind bocage.Kind, found []item) string {
	last := found[len(found)-1]
	return kind.Key(last.namespace, last.name)
}

// wantedPage reads at which revision and after which key to list.
func (s *Server) wantedPage(c *call) (at store.Revision, after string, err error) {
	version, err := wantedRevision(c.query, "resourceVersion")
	if err != nil {
		return 0, "", err
	}
	match := c.query.Get("resourceVersionMatch")
	if token := c.query.Get("continue"); token != "" {
		if match != "" || version > 0 {
			return 0, "", badRequest("a continue token has its own resourceVersion: leave out resourceVersion and resourceVersionMatch")
		}
		next, err := decodeContinuation(token)
		if err != nil || !strings.HasPrefix(next.After, c.prefix()) {
			return 0, "", badRequest("the continue token is not one of this list's")
		}
		return next.Revision, next.After, nil
	}
	switch {
	case match == "" && c.query.Get("resourceVersion") != "" || match == string(metav1.ResourceVersionMatchNotOlderThan):
		if c.query.Get("resourceVersion") == "" {
			return 0, "", badRequest("resourceVersionMatch needs a resourceVersion")
		}
		return 0, "", s.reached(c.r.Context(), version)
	case match == "":
		return 0, "", nil
	case match == string(metav1.ResourceVersionMatchExact):
		if version == 0 {
			return 0, "", badRequest("resourceVersionMatch Exact needs a resourceVersion above 0")
		}
		return version, "", s.reached(c.r.Context(), version)
	}
	return 0, "", badRequest("resourceVersionMatch %q is neither Exact nor NotOlderThan", match)
}

// reached refuses a revision that the store has not come to.
func (s *Server) reached(ctx context.Context, version store.Revision) error {
	if version == 0 {
		return nil
	}
	_, now, err := s.config.Store.List(ctx, "resources/", "", 1, 0)
	if err != nil {
		return err
	}
	if version <= now {
		return nil
	}
	p := newProblem(http.StatusGatewayTimeout, metav1.StatusReasonTimeout,
		"Too large resource version: %d, current: %d", version, now).retryAfter(1)
	p.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	return p
}

func wantedRevision(query url.Values, key string) (store.Revision, error) {
	text := query.Get(key)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, badRequest("%s %q is not a number that this interface gave out", key, text)
	}
	return store.Revision(n), nil
}

func wantedLimit(query url.Values) (int, error) {
	text := query.Get("limit")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 {
		return 0, badRequest("limit %q is not a number from 0 up", text)
	}
	return int(n), nil
}

func encodeContinuation(next continuation) (string, error) {
	data, err := json.Marshal(next)
	return base64.RawURLEncoding.EncodeToString(data), err
}

func decodeContinuation(token string) (continuation, error) {
	var next continuation
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		err = json.Unmarshal(data, &next)
	}
	if err == nil && next.Revision <= 0 {
		err = errors.New("no revision")
	}
	return next, err
}

// splitKey is the inverse of Kind.Key.
func splitKey(kind bocage.Kind, key string) (namespace, name string) {
	rest := strings.TrimPrefix(key, kind.KeyPrefix())
	if !kind.Namespaced {
		return "", rest
	}
	namespace, name, _ = strings.Cut(rest, "/")
	return namespace, name
}

// prefix is the store's prefix of the collection that a path names.
func (c *call) prefix() string {
	if c.kind.Namespaced && c.namespace != "" {
		return c.kind.KeyPrefix() + c.namespace + "/"
	}
	return c.kind.KeyPrefix()
}

// withRevision adds the resourceVersion, which is the store's and not part of
// what is stored. Revision 0 is that of an object that was never stored.
func withRevision(value []byte, kind bocage.Kind, revision store.Revision) []byte {
	if revision == 0 {
		return value
	}
	// Every room writes through store.EncodeObject, which begins like this.
	start := `{"apiVersion":"` + kind.APIVersion + `","kind":"` + kind.Name + `","metadata":{`
	if rest, ok := bytes.CutPrefix(value, []byte(start)); ok && len(rest) > 0 && rest[0] != '}' {
		out := make([]byte, 0, len(value)+40)
		out = append(out, start...)
		out = append(out, `"resourceVersion":"`...)
		out = strconv.AppendInt(out, int64(revision), 10)
		out = append(out, `",`...)
		return append(out, rest...)
	}
	object, err := decodeStored(value)
	if err != nil {
		return value
	}
	object.SetResourceVersion(formatRevision(revision))
	if data, err := json.Marshal(object.Object); err == nil {
		return data
	}
	return value
}
