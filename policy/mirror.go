package policy

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// resources is the store's prefix for objects of every kind.
const resources = "resources/"

// page is how many entries one read of a list asks for.
const page = 1000

type digest [sha256.Size]byte

// object is one resource as the store has it. It is immutable.
type object struct {
	key      string
	kind     bocage.Kind
	resource bocage.Resource
	// input is the resource as it counts (see bocage.AsAgreed), as of the last change of
	// something that policy depends on; nil if it does not count yet. Until the next such
	// change the pointer stays the same, so that the compiler can recognise unchanged
	// objects by comparing pointers.
	input    bocage.Resource
	changed  store.Revision // of input
	value    []byte
	revision store.Revision
	print    digest // of what policy depends on
	report   digest // of what only statuses depend on
}

// mirror is the controller's copy of the store's resources.
type mirror struct {
	changed    chan struct{}          // holds a token when an input of policy changed
	tightening chan struct{}          // holds a token when one of those changes tightens
	kinds      map[string]bocage.Kind // that policy reads, by plural

	mu          sync.Mutex // guards the fields below
	byKind      map[string]*kindObjects
	revision    store.Revision    // everything up to here is in
	tightened   bool              // one of the changes tightens
	onOther     func(bocage.Kind) // told of changes that only statuses depend on
	environment *buckets          // the inventory, threat conditions, quarantines (see snapshot.go)
	policies    *buckets          // of what people declare as policy
	// unreadable holds, by key, the objects that cannot be read (see unreadable.go);
	// toldOf says whether all of them were reported.
	unreadable map[string]*unreadable
	toldOf     bool
}

func newMirror() *mirror {
	m := &mirror{changed: make(chan struct{}, 1), tightening: make(chan struct{}, 1), kinds: map[string]bocage.Kind{}, byKind: map[string]*kindObjects{},
		environment: newBuckets(), policies: newBuckets(), onOther: func(bocage.Kind) {}, unreadable: map[string]*unreadable{}}
	for _, kind := range bocage.Kinds() {
		switch kind.Name {
		case "Incident", "Event", "RoleBinding": // nothing here depends on them
		default:
			m.kinds[kind.Plural] = kind
			m.byKind[kind.Plural] = newKindObjects()
		}
	}
	return m
}

// kindObjects holds the objects of one kind. Its lists are replaced and never changed.
type kindObjects struct {
	objects map[string]*object
	list    []*object       // sorted by key, but for the keys in pending
	pending map[string]bool // keys that changed since list was made
	inputs  any             // what the compiler gets of list: []*bocage.Application, ...
	stale   bool            // inputs are not those of list
}

func newKindObjects() *kindObjects {
	return &kindObjects{objects: map[string]*object{}, pending: map[string]bool{}, stale: true}
}

// put replaces the object with the key; nil deletes it.
func (s *kindObjects) put(key string, o *object) {
	old := s.objects[key]
	if old != nil || o != nil {
		s.pending[key] = true
	}
	if old == nil || o == nil || old.input != o.input {
		s.stale = true
	}
	if o == nil {
		delete(s.objects, key)
		return
	}
	s.objects[key] = o
}

// settled returns the sorted list.
func (s *kindObjects) settled() []*object {
	if len(s.pending) == 0 {
		return s.list
	}
	keys := make([]string, 0, len(s.pending))
	for key := range s.pending {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	list := make([]*object, 0, len(s.objects))
	rest := s.list
	for _, key := range keys {
		i, found := slices.BinarySearchFunc(rest, key, func(o *object, key string) int { return strings.Compare(o.key, key) })
		list, rest = append(list, rest[:i]...), rest[i:]
		if found {
			rest = rest[1:]
		}
		if o := s.objects[key]; o != nil {
			list = append(list, o)
		}
	}
	s.list = append(list, rest...)
	s.pending = map[string]bool{}
	return s.list
}

// inputsOf returns the objects of a kind as the compiler gets them: the same slice as
// long as nothing in it changes.
func inputsOf[T bocage.Resource](s *kindObjects) []T {
	list := s.settled()
	if old, ok := s.inputs.([]T); ok && !s.stale {
		return old
	}
	inputs := make([]T, 0, len(list))
	for _, o := range list {
		if o.input != nil {
			inputs = append(inputs, o.input.(T))
		}
	}
	s.inputs, s.stale = inputs, false
	return inputs
}

// urgent reports, once, whether a change since the last call tightens.
func (m *mirror) urgent() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	hurry := m.tightened
	m.tightened = false
	return hurry
}

// kindOf finds the kind of a key.
func (m *mirror) kindOf(key string) (bocage.Kind, bool) {
	plural, _, _ := strings.Cut(strings.TrimPrefix(key, resources), "/")
	kind, known := m.kinds[plural]
	return kind, known
}

func decode(kind bocage.Kind, key string, value []byte, revision store.Revision) (*object, error) {
	resource, err := store.DecodeObject(kind, store.Entry{Key: key, Value: value, Revision: revision})
	if err != nil {
		return nil, err
	}
	counts := bocage.AsAgreed(resource)
	return &object{key: key, kind: kind, resource: resource, input: counts, changed: revision, value: value, revision: revision,
		print: fingerprint(counts), report: reportPrint(resource)}, nil
}

// fingerprint covers what policy depends on, so that status writes and
// heartbeats compile nothing.
func fingerprint(resource bocage.Resource) digest {
	if specOf(resource) == nil {
		return digest{} // Generation, and what does not count
	}
	return printOf(relevant(resource))
}

// reportPrint covers what statuses depend on and policy does not.
func reportPrint(resource bocage.Resource) digest {
	switch o := resource.(type) {
	case *bocage.Host:
		s := o.Status
		s.LastSeen, s.Since = time.Time{}, time.Time{}
		s.Conditions = slices.Clone(s.Conditions)
		for i := range s.Conditions {
			s.Conditions[i].LastTransitionTime = time.Time{}
		}
		return printOf([]any{s})
	case *bocage.Workload:
		return digest{} // policy is told all that there is to tell
	default:
		return sha256.Sum256([]byte(resource.Meta().ResourceVersion))
	}
}

func printOf(parts []any) digest {
	b, err := json.Marshal(parts)
	if err != nil {
		return sha256.Sum256([]byte(err.Error()))
	}
	return sha256.Sum256(b)
}

// input reports whether what controllers publish depends on objects of the kind.
func input(kind bocage.Kind) bool { return kind.Name != "Generation" }

// tightens reports whether a change of the kind must not wait for others.
func tightens(kind bocage.Kind) bool {
	return kind.Name == "Quarantine" || kind.Name == "ThreatCondition"
}

// put takes over one change unless something newer is known.
func (m *mirror) put(key string, value []byte, revision store.Revision) {
	kind, known := m.kindOf(key)
	if !known {
		return
	}
	var o *object
	if value != nil {
		var err error
		if o, err = decode(kind, key, value, revision); err != nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.markUnreadable(kind, key, revision, err)
			return
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.take(kind, key, o, revision)
}

// take replaces one object; m.mu is held.
func (m *mirror) take(kind bocage.Kind, key string, o *object, revision store.Revision) {
	objects := m.byKind[kind.Plural]
	old := objects.objects[key]
	if u := m.unreadable[key]; u != nil && u.revision < revision {
		delete(m.unreadable, key)
		m.toldOf = false
		wake(m.changed)
	}
	if old != nil && old.revision >= revision || old == nil && o == nil {
		return
	}
	changed := old == nil || o == nil || old.print != o.print
	if !changed {
		o.input, o.changed = old.input, old.changed
	}
	objects.put(key, o)
	switch {
	case changed && input(kind):
		m.note(kind, key, o)
		if tightens(kind) {
			m.tightened = true
			wake(m.tightening)
		}
		wake(m.changed)
	case old == nil || o == nil || old.report != o.report:
		m.onOther(kind)
	}
}

// note tells the buckets of snapshots; m.mu is held.
func (m *mirror) note(kind bocage.Kind, key string, o *object) {
	if o != nil && o.input == nil {
		o = nil // it does not count
	}
	if to := m.bucketsOf(kind); to != nil {
		to.note(key, o)
	}
}

func (m *mirror) bucketsOf(kind bocage.Kind) *buckets {
	switch {
	case isPolicy(kind.Name):
		return m.policies
	case kind.Name == "Generation" || kind.Name == "PolicyTest" || kind.Name == "Rollout":
		return nil
	}
	return m.environment
}

// replace takes over a whole list, unless the watch has brought the mirror past
// it already.
func (m *mirror) replace(entries []store.Entry, at store.Revision) {
	m.mu.Lock()
	known := make(map[string]store.Revision)
	for _, objects := range m.byKind {
		for key, o := range objects.objects {
			known[key] = o.revision
		}
	}
	m.mu.Unlock()
	listed := make(map[string]bool, len(entries))
	var fresh []*object
	var spoiled []unreadable
	for _, e := range entries {
		kind, is := m.kindOf(e.Key)
		if !is {
			continue
		}
		if known[e.Key] == e.Revision {
			listed[e.Key] = true
			continue
		}
		listed[e.Key] = true
		o, err := decode(kind, e.Key, e.Value, e.Revision)
		if err != nil {
			spoiled = append(spoiled, unreadable{kind: kind, key: e.Key, revision: e.Revision, err: err})
			continue
		}
		fresh = append(fresh, o)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tightened = true
	wake(m.tightening)
	wake(m.changed)
	if at <= m.revision {
		return
	}
	for _, o := range fresh {
		if old := m.byKind[o.kind.Plural].objects[o.key]; old != nil && o.revision < old.revision && old.revision <= at {
			m.take(o.kind, o.key, nil, at) // the store was restored to before it, and its revisions go on above ours
		}
		m.take(o.kind, o.key, o, o.revision)
	}
	for _, u := range spoiled {
		m.markUnreadable(u.kind, u.key, u.revision, u.err)
	}
	for key, u := range m.unreadable {
		if !listed[key] && u.revision <= at { // unknown before, and gone by now
			m.take(u.kind, key, nil, at)
		}
	}
	for _, objects := range m.byKind {
		for key, o := range objects.objects {
			if !listed[key] && o.revision <= at { // a newer one is our own write, which the watch will bring
				m.take(o.kind, key, nil, at)
			}
		}
	}
	m.revision = at
}

// reached notes that everything up to a revision is in.
func (m *mirror) reached(revision store.Revision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision = max(m.revision, revision)
}

func (m *mirror) seen() store.Revision {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.revision
}

// follow keeps the mirror up to date until ctx ends: list, then watch, and again
// whenever the watch breaks.
func (p *Policy) follow(ctx context.Context) error {
	pause := retryFirst
	for {
		err := p.resync(ctx)
		if err == nil {
			pause = retryFirst
			err = p.watch(ctx)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.counters.relists.Add(1)
		p.logger.WarnContext(ctx, "watch of declarations broke", slog.Any("error", err), slog.Duration("retry", pause))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMost)
	}
}

func (p *Policy) resync(ctx context.Context) error {
	entries, at, err := listAll(ctx, p.store, resources)
	if err != nil {
		return err
	}
	p.mirror.replace(entries, at)
	return nil
}

// listAll reads every entry under a prefix at one revision.
func listAll(ctx context.Context, s store.Store, prefix string) (entries []store.Entry, at store.Revision, err error) {
	for after := ""; ; {
		part, revision, err := s.List(ctx, prefix, after, page, at)
		if err != nil {
			return nil, 0, fmt.Errorf("list %s: %w", prefix, err)
		}
		entries, at = append(entries, part...), revision
		if len(part) < page {
			return entries, at, nil
		}
		after = part[len(part)-1].Key
	}
}

// watch takes over changes until the watch breaks.
func (p *Policy) watch(ctx context.Context) error {
	w, err := p.store.Watch(ctx, resources, p.mirror.seen())
	if err != nil {
		return fmt.Errorf("watch %s: %w", resources, err)
	}
	for e := range w.Events() {
		if e.Progress {
			p.mirror.reached(e.Revision)
			continue
		}
		p.mirror.put(e.Key, e.Value, e.Revision)
		p.mirror.reached(e.Revision)
	}
	return w.Err()
}
