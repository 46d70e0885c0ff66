package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// pageSize is how many entries are read from the store at a time.
const pageSize = 1000

// items is what a list shows.
type items struct {
	objects   []*object
	revision  store.Revision
	next      string // continue token
	remaining *int64
}

// get serves one object.
func (s *Server) get(c *call) error {
	version, err := wantedRevision(c.query, "resourceVersion")
	if err != nil {
		return err
	}
	if c.query.Get("resourceVersion") == "0" {
		return s.getAny(c)
	}
	entry, err := s.config.Store.Get(c.r.Context(), c.kind.Key(c.namespace, c.name))
	switch {
	case errors.Is(err, store.ErrNotFound) && c.kind.Name == "Namespace":
		return s.getUndeclared(c)
	case errors.Is(err, store.ErrNotFound):
		return notFound(c.kind, c.name)
	case err != nil:
		return err
	case version > entry.Revision:
		// What was just read is the newest: an object older than asked for is there
		// only if the revision is of something else, or of the future.
		if err := s.view.reach(c.r.Context(), version); err != nil {
			return err
		}
	}
	return c.writeObject(http.StatusOK, withRevision(entry.Value, c.kind, entry.Revision))
}

// getAny serves one object as the view has it, however old that is.
func (s *Server) getAny(c *call) error {
	if err := s.view.wait(c.r.Context()); err != nil {
		return err
	}
	o := s.view.get(c.kind, c.namespace, c.name)
	if o == nil || o.virtual && !c.person.mayRead(c.name) {
		return notFound(c.kind, c.name)
	}
	return c.writeObject(http.StatusOK, o.value)
}

// getUndeclared serves a namespace that is there because something is in it.
func (s *Server) getUndeclared(c *call) error {
	if err := s.view.fresh(c.r.Context()); err != nil {
		return err
	}
	o := s.view.get(c.kind, "", c.name)
	if o == nil || !c.person.mayRead(c.name) {
		return notFound(c.kind, c.name)
	}
	return c.writeObject(http.StatusOK, o.value)
}

// list serves a collection.
func (s *Server) list(c *call) error {
	found, err := s.collect(c)
	if err != nil {
		return err
	}
	return c.writeList(found)
}

// continuation is where the next page of a list starts.
type continuation struct {
	Revision store.Revision `json:"r"`
	After    string         `json:"a"`
}

// collect reads the collection that a list or a deletion of many speaks of: whole
// from the view, in pages or at an older revision from the store.
func (s *Server) collect(c *call) (*items, error) {
	selected, err := c.selection()
	if err != nil {
		return nil, err
	}
	limit, err := wantedLimit(c.query)
	if err != nil {
		return nil, err
	}
	if _, err := wantedLifetime(c.query.Get("timeoutSeconds")); err != nil {
		return nil, err
	}
	at, after, err := s.wantedPage(c)
	if err != nil {
		return nil, err
	}
	// There are never so many namespaces that they need pages, and those that
	// nobody declared are in the view only.
	if (limit > 0 || after != "" || at > 0) && c.kind.Name != "Namespace" {
		return s.collectPage(c, selected, limit, at, after)
	}
	if c.query.Get("resourceVersion") == "" {
		if err := s.view.fresh(c.r.Context()); err != nil {
			return nil, err
		}
	}
	if err := s.view.wait(c.r.Context()); err != nil {
		return nil, err
	}
	objects, revision, filled := s.view.snapshot(c.kind.Plural, c.namespace)
	if !filled {
		return nil, s.view.behind(0, 0, false)
	}
	if !selected.all {
		objects = slices.DeleteFunc(objects, func(o *object) bool { return !selected.picks(o) })
	}
	return &items{objects: objects, revision: revision}, nil
}

// collectPage reads a page. The revision of the first is that of all of them:
// the view takes back what changed since, and what it no longer remembers the
// store does, for a while.
func (s *Server) collectPage(c *call, selected selection, limit int, at store.Revision, after string) (*items, error) {
	ctx := c.r.Context()
	var err error
	switch {
	case at > 0:
		err = s.view.reach(ctx, at)
	case c.query.Get("resourceVersion") != "": // not older than that, which the view is not
		err = s.view.wait(ctx)
	default:
		err = s.view.fresh(ctx)
	}
	if at == 0 {
		at, _ = s.view.position()
	}
	if err != nil {
		return nil, err
	}
	kind := s.view.kinds[c.kind.Plural]
	objects, ok := s.view.snapshotAt(c.kind.Plural, c.namespace, strings.TrimPrefix(after, kind.KeyPrefix()), at)
	if !ok {
		return s.storePage(c, selected, limit, at, after)
	}
	found := &items{revision: at}
	for i, o := range objects {
		if !selected.picks(o) {
			continue
		}
		if limit > 0 && len(found.objects) == limit {
			if found.next, err = encodeContinuation(continuation{at, kind.KeyPrefix() + found.objects[limit-1].key}); err != nil {
				return nil, err
			}
			if selected.all {
				remaining := int64(len(objects) - i)
				found.remaining = &remaining
			}
			return found, nil
		}
		found.objects = append(found.objects, o)
	}
	return found, nil
}

// storePage reads a page from the store.
func (s *Server) storePage(c *call, selected selection, limit int, at store.Revision, after string) (*items, error) {
	kind, prefix := s.view.kinds[c.kind.Plural], c.prefix()
	found := &items{revision: at}
	for {
		size := pageSize
		if limit > 0 && selected.all {
			size = min(size, limit-len(found.objects)+1) // one more tells whether there is more
		}
		page, _, err := s.config.Store.List(c.r.Context(), prefix, after, size, at)
		if err != nil {
			return nil, err
		}
		for _, entry := range page {
			o, picked := selected.picksEntry(kind, entry)
			if !picked {
				continue
			}
			if limit > 0 && len(found.objects) == limit {
				found.next, err = encodeContinuation(continuation{at, kind.KeyPrefix() + found.objects[limit-1].key})
				return found, err
			}
			found.objects = append(found.objects, o)
		}
		if len(page) < size {
			return found, nil
		}
		after = page[len(page)-1].Key
	}
}

// wantedPage reads at which revision and after which key to list.
func (s *Server) wantedPage(c *call) (at store.Revision, after string, err error) {
	version, err := wantedRevision(c.query, "resourceVersion")
	if err != nil {
		return 0, "", err
	}
	if c.query.Get("sendInitialEvents") != "" {
		return 0, "", wrongOption(listOptions, "sendInitialEvents", "is forbidden for list: it is for watches")
	}
	match := c.query.Get("resourceVersionMatch")
	if token := c.query.Get("continue"); token != "" {
		if match != "" {
			return 0, "", wrongOption(listOptions, "resourceVersionMatch", "is forbidden when continue is provided, which has a resourceVersion of its own")
		}
		if version > 0 {
			return 0, "", badRequest("a continue token has its own resourceVersion: leave out resourceVersion")
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
			return 0, "", wrongOption(listOptions, "resourceVersionMatch", "is forbidden unless resourceVersion is provided")
		}
		return 0, "", s.view.reach(c.r.Context(), version)
	case match == "":
		return 0, "", nil
	case match == string(metav1.ResourceVersionMatchExact):
		if version == 0 {
			return 0, "", wrongOption(listOptions, "resourceVersionMatch", "Exact needs a resourceVersion above 0")
		}
		return version, "", s.view.reach(c.r.Context(), version)
	}
	return 0, "", wrongOption(listOptions, "resourceVersionMatch", "%q is neither Exact nor NotOlderThan", match)
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

// startOf is how every stored object of a kind begins: every room writes through
// store.EncodeObject.
func startOf(kind bocage.Kind) string {
	return `{"apiVersion":"` + kind.APIVersion + `","kind":"` + kind.Name + `","metadata":{`
}

// withRevision adds the resourceVersion, which is the store's and not part of
// what is stored. Revision 0 is that of an object that was never stored.
func withRevision(value []byte, kind bocage.Kind, revision store.Revision) []byte {
	if revision == 0 {
		return value
	}
	start := startOf(kind)
	if rest, ok := bytes.CutPrefix(value, []byte(start)); ok && len(rest) > 0 && rest[0] != '}' {
		out := make([]byte, 0, len(value)+40)
		out = append(out, start...)
		out = append(out, `"resourceVersion":"`...)
		out = strconv.AppendInt(out, int64(revision), 10)
		out = append(out, `",`...)
		return append(out, rest...)
	}
	return withDecodedRevision(value, revision)
}

// withDecodedRevision does so to an object that was written by other means.
func withDecodedRevision(value []byte, revision store.Revision) []byte {
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
