package api

import (
	"bytes"
	"encoding/json"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// Limits of what a collection remembers of the past, so that watches can be
// resumed and slow readers can catch up.
const (
	maxChanges     = 1 << 13
	maxChangeBytes = 32 << 20
)

// seenKind is a kind with what can be selected by.
type seenKind struct {
	bocage.Kind
	selectable []string
}

// object is one object as the store has it. It never changes, but for what is
// read out of it once and kept.
type object struct {
	kind            *seenKind
	key             string // within its collection: namespace/name, or the name
	namespace, name string
	revision        store.Revision
	value           []byte // as clients see it, with its resourceVersion
	virtual         bool   // a namespace that nobody declared

	readLabels sync.Once
	labels     pairs
	readFields sync.Once
	fields     []string // the values of what can be selected by
}

func newObject(kind *seenKind, key string, value []byte, revision store.Revision) *object {
	o := &object{kind: kind, key: key, name: key, revision: revision, value: withRevision(value, kind.Kind, revision)}
	if kind.Namespaced {
		o.namespace, o.name, _ = strings.Cut(key, "/")
	}
	return o
}

// keyIn orders the objects of a collection.
func keyIn(kind bocage.Kind, namespace, name string) string {
	if kind.Namespaced {
		return namespace + "/" + name
	}
	return name
}

// Labels are read once, when somebody selects by them first.
func (o *object) Labels() pairs {
	o.readLabels.Do(func() {
		var read struct {
			Metadata struct {
				Labels map[string]string `json:"labels"`
			} `json:"metadata"`
		}
		if json.Unmarshal(o.value, &read) == nil {
			for key, value := range read.Metadata.Labels {
				o.labels = append(o.labels, key, value)
			}
		}
	})
	return o.labels
}

// Has implements fields.Fields.
func (o *object) Has(field string) bool { return selectable(o.kind.Kind, field) }

// Get implements fields.Fields.
func (o *object) Get(field string) string {
	switch field {
	case "metadata.name":
		return o.name
	case "metadata.namespace":
		return o.namespace
	}
	i := slices.Index(o.kind.selectable, field)
	if i < 0 {
		return ""
	}
	o.readFields.Do(func() {
		var decoded map[string]any
		_ = json.Unmarshal(o.value, &decoded)
		for _, path := range o.kind.selectable {
			if path == "source" { // of an Event, as Kubernetes has it
				path = "source.component"
			}
			o.fields = append(o.fields, bocage.Column{Path: path}.Value(decoded))
		}
	})
	return o.fields[i]
}

// pairs are labels in little space: key, value, key, value.
type pairs []string

// Lookup implements labels.Labels.
func (p pairs) Lookup(label string) (string, bool) {
	for i := 0; i+1 < len(p); i += 2 {
		if p[i] == label {
			return p[i+1], true
		}
	}
	return "", false
}

// Get implements labels.Labels.
func (p pairs) Get(label string) string { value, _ := p.Lookup(label); return value }

// Has implements labels.Labels.
func (p pairs) Has(label string) bool { _, ok := p.Lookup(label); return ok }

// step is one object's step from one revision to the next. What clients are
// shown of it is written once for all of them.
type step struct {
	revision store.Revision
	is, was  *object // nil: it is gone, it is new

	mu      sync.Mutex // guards written
	written map[rendering][]byte
}

// rendering names one way of showing an object.
type rendering struct {
	form    string // as form.as names it; "" is JSON
	version string // that is not the one in which objects are kept; else empty
	include string // of a table
	gone    bool   // the object as it was, at the revision of its deletion
}

// shown returns the object in a form, written once.
func (ch *step) shown(r rendering, write func(value []byte) ([]byte, error)) ([]byte, error) {
	if r.form == "" && r.version == "" && !r.gone {
		return ch.is.value, nil
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if data, ok := ch.written[r]; ok {
		return data, nil
	}
	var value []byte
	if r.gone {
		value = atRevision(ch.was.value, ch.was.kind.Kind, ch.revision)
	} else {
		value = ch.is.value
	}
	if r.version != "" {
		kind := ch.kind()
		value = otherVersion(value, kind.APIVersion, r.version)
	}
	data := value
	if r.form != "" {
		var err error
		if data, err = write(value); err != nil {
			return nil, err
		}
	}
	if ch.written == nil {
		ch.written = map[rendering][]byte{}
	}
	ch.written[r] = data
	return data, nil
}

// kind is that of the object.
func (ch *step) kind() bocage.Kind {
	if ch.is != nil {
		return ch.is.kind.Kind
	}
	return ch.was.kind.Kind
}

func (ch *step) bytes() int {
	n := 200
	for _, o := range []*object{ch.is, ch.was} {
		if o != nil {
			n += len(o.value)
		}
	}
	return n
}

// collection is all objects of a kind, with the last changes and those who follow
// them. The view's lock guards it.
type collection struct {
	kind    *seenKind
	objects []*object // sorted by key

	// changes are the last ones, in order; the first has the number first.
	changes []*step
	first   int64
	bytes   int
	// since is the revision after which no change is missing.
	since store.Revision

	// followers are indexed by what they can see: everything (""), a namespace
	// ("ns/") or one object (its key).
	followers map[string]map[*follower]struct{}
}

func newCollection(kind *seenKind, at store.Revision) *collection {
	return &collection{kind: kind, since: at, followers: map[string]map[*follower]struct{}{}}
}

func (c *collection) find(key string) (int, bool) {
	return slices.BinarySearchFunc(c.objects, key, func(o *object, key string) int { return strings.Compare(o.key, key) })
}

func (c *collection) get(key string) *object {
	if i, ok := c.find(key); ok {
		return c.objects[i]
	}
	return nil
}

// behind returns the objects behind a key, in a namespace or in all of them.
func (c *collection) behind(namespace, key string) []*object {
	from, to := 0, len(c.objects)
	if namespace != "" && c.kind.Namespaced {
		from, _ = c.find(namespace + "/")
		to, _ = c.find(namespace + "0") // the character behind the slash
	}
	if key != "" {
		i, found := c.find(key)
		if found {
			i++
		}
		from = max(from, i)
	}
	return slices.Clone(c.objects[min(from, to):to])
}

// set puts an object in the place of what was there (is nil: removes it), and
// tells those who follow.
func (c *collection) set(key string, is *object, revision store.Revision) (was *object) {
	i, found := c.find(key)
	if found {
		was = c.objects[i]
	}
	switch {
	case is == nil && !found:
		return nil
	case is == nil:
		c.objects = slices.Delete(c.objects, i, i+1)
	case found:
		c.objects[i] = is
	default:
		c.objects = slices.Insert(c.objects, i, is)
	}
	c.tell(&step{revision: revision, is: is, was: was})
	return was
}

// put is set without telling anybody.
func (c *collection) put(key string, o *object) {
	if i, found := c.find(key); found {
		c.objects[i] = o
	} else {
		c.objects = slices.Insert(c.objects, i, o)
	}
}

// tell appends a change, forgets what is too much, and wakes those concerned.
func (c *collection) tell(ch *step) {
	number := c.first + int64(len(c.changes))
	c.changes = append(c.changes, ch)
	c.bytes += ch.bytes()
	forget := 0
	for len(c.changes)-forget > maxChanges || c.bytes > maxChangeBytes && len(c.changes)-forget > 1 {
		c.bytes -= c.changes[forget].bytes()
		c.since = c.changes[forget].revision
		c.changes[forget] = nil // for the collector
		forget++
	}
	c.changes, c.first = c.changes[forget:], c.first+int64(forget)
	subject := ch.is
	if subject == nil {
		subject = ch.was
	}
	c.wake("", ch, number)
	if c.kind.Namespaced {
		c.wake(subject.namespace+"/", ch, number)
	}
	c.wake(subject.key, ch, number)
}

func (c *collection) wake(index string, ch *step, number int64) {
	for f := range c.followers[index] {
		if f.from >= 0 || !f.concerned(ch) {
			continue
		}
		f.from = number
		select {
		case f.ready <- struct{}{}:
		default:
		}
	}
}

// numberAfter finds the first change after a revision; ok is false if changes
// after it have been forgotten.
func (c *collection) numberAfter(revision store.Revision) (number int64, ok bool) {
	if revision < c.since {
		return 0, false
	}
	i := sort.Search(len(c.changes), func(i int) bool { return c.changes[i].revision > revision })
	return c.first + int64(i), true
}

// follower is one who follows a collection. It holds no changes of its own: it
// remembers from where on the collection has something for it.
type follower struct {
	collection *collection
	index      string
	selected   selection
	ready      chan struct{} // holds a token when there is something new

	// The view's lock guards the rest.
	from int64 // the first change that concerns it; -1: none
	cut  bool  // the collection begins anew
}

// concerned reports whether a change is within what a follower selects.
func (f *follower) concerned(ch *step) bool {
	return ch.is != nil && f.selected.picks(ch.is) || ch.was != nil && f.selected.picks(ch.was)
}

// atRevision replaces the resourceVersion of an object's JSON.
func atRevision(value []byte, kind bocage.Kind, revision store.Revision) []byte {
	start := startOf(kind) + `"resourceVersion":"`
	if rest, ok := bytes.CutPrefix(value, []byte(start)); ok {
		if _, rest, ok := bytes.Cut(rest, []byte(`"`)); ok {
			out := make([]byte, 0, len(value)+8)
			out = strconv.AppendInt(append(out, start...), int64(revision), 10)
			return append(append(out, '"'), rest...)
		}
	}
	return withDecodedRevision(value, revision)
}
