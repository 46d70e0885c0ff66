package policy

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/store"
)

// resources is the store's prefix for objects of every kind.
const resources = "resources/"

// page is how many entries one read of a list asks for.
const page = 1000

type digest [sha256.Size]byte

// object is one resource as the store has it. Nobody changes it.
type object struct {
	kind     bocage.Kind
	resource bocage.Resource
	value    []byte
	revision store.Revision
	print    digest // of what policy depends on
}

// mirror is the controller's copy of the store's resources.
type mirror struct {
	changed chan struct{}          // holds a token when an input of policy changed
	kinds   map[string]bocage.Kind // that policy reads, by plural

	mu       sync.Mutex // guards the fields below
	objects  map[string]*object
	revision store.Revision // everything up to here is in
	hurry    bool           // one of the changes tightens
	onOther  func()         // told of changes that only statuses depend on
}

func newMirror() *mirror {
	m := &mirror{changed: make(chan struct{}, 1), kinds: map[string]bocage.Kind{}, objects: map[string]*object{}}
	for _, kind := range bocage.Kinds() {
		if kind.Name != "Incident" {
			m.kinds[kind.Plural] = kind
		}
	}
	return m
}

// urgent reports, once, whether a change since the last call tightens.
func (m *mirror) urgent() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	hurry := m.hurry
	m.hurry = false
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
	return &object{kind: kind, resource: resource, value: value, revision: revision, print: fingerprint(resource)}, nil
}

// fingerprint covers what policy depends on, so that status writes and
// heartbeats compile nothing.
func fingerprint(resource bocage.Resource) digest {
	meta := resource.Meta()
	relevant := []any{meta.Annotations[bocage.SourceAnnotation]}
	switch o := resource.(type) {
	case *bocage.Application:
		relevant = append(relevant, o.Spec)
	case *bocage.Guardrail:
		relevant = append(relevant, o.Spec)
	case *bocage.Scope:
		relevant = append(relevant, o.Spec)
	case *bocage.InspectionProfile:
		relevant = append(relevant, o.Spec)
	case *bocage.Decoy:
		relevant = append(relevant, o.Spec)
	case *bocage.Quarantine:
		relevant = append(relevant, o.Spec)
	case *bocage.ThreatCondition:
		relevant = append(relevant, o.Spec)
	case *bocage.Workload:
		relevant = append(relevant, o.Spec, o.Labels, o.Status.Identity)
	default:
		return digest{} // Host: that it exists is what counts; Generation: nothing does
	}
	b, err := json.Marshal(relevant)
	if err != nil {
		return sha256.Sum256([]byte(err.Error()))
	}
	return sha256.Sum256(b)
}

// input reports whether compiling depends on objects of the kind.
func input(kind bocage.Kind) bool { return kind.Name != "Generation" }

// put takes over one change unless something newer is known.
func (m *mirror) put(key string, value []byte, revision store.Revision, logger *slog.Logger) {
	kind, known := m.kindOf(key)
	if !known {
		return
	}
	var o *object
	if value != nil {
		var err error
		if o, err = decode(kind, key, value, revision); err != nil {
			// The api room writes nothing that cannot be read. What can't be is
			// as good as absent, and said once.
			logger.Error("unreadable object is left out", slog.String("key", key), slog.Any("error", err))
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.objects[key]
	if old != nil && old.revision >= revision {
		return
	}
	if o == nil {
		delete(m.objects, key)
	} else {
		m.objects[key] = o
	}
	switch {
	case old == nil && o == nil:
	case input(kind) && (old == nil || o == nil || old.print != o.print):
		m.hurry = m.hurry || kind.Name == "Quarantine" || kind.Name == "ThreatCondition"
		wake(m.changed)
	case m.onOther != nil:
		m.onOther()
	}
}

// replace takes over a whole list, unless the watch has brought the mirror past
// it already.
func (m *mirror) replace(entries []store.Entry, at store.Revision, logger *slog.Logger) {
	m.mu.Lock()
	before := maps.Clone(m.objects)
	m.mu.Unlock()
	objects := make(map[string]*object, len(entries))
	for _, e := range entries {
		kind, known := m.kindOf(e.Key)
		if !known {
			continue
		}
		if old := before[e.Key]; old != nil && old.revision == e.Revision {
			objects[e.Key] = old
			continue
		}
		o, err := decode(kind, e.Key, e.Value, e.Revision)
		if err != nil {
			logger.Error("unreadable object is left out", slog.String("key", e.Key), slog.Any("error", err))
			continue
		}
		objects[e.Key] = o
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hurry = true
	wake(m.changed)
	if at <= m.revision {
		return
	}
	for key, old := range m.objects {
		if old.revision > at {
			objects[key] = old // our own write, which the watch will bring
		}
	}
	m.objects, m.revision = objects, at
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

// view is the mirror at one moment.
type view struct {
	input       compile.Input
	hosts       []*bocage.Host
	generations []*object
	prints      map[string]digest
	objects     map[string]*object
	revision    store.Revision
}

func (m *mirror) view() view {
	m.mu.Lock()
	v := view{revision: m.revision, objects: make(map[string]*object, len(m.objects)), prints: make(map[string]digest, len(m.objects))}
	for key, o := range m.objects {
		v.objects[key] = o
	}
	m.mu.Unlock()
	keys := make([]string, 0, len(v.objects))
	for key := range v.objects {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		o := v.objects[key]
		v.prints[key] = o.print
		if host, ok := o.resource.(*bocage.Host); ok {
			v.hosts = append(v.hosts, host)
		} else if o.kind.Name == "Generation" {
			v.generations = append(v.generations, o)
		} else {
			add(&v.input, o.resource)
		}
	}
	return v
}

// add puts a declaration or a workload into an input.
func add(in *compile.Input, resource bocage.Resource) {
	switch o := resource.(type) {
	case *bocage.Application:
		in.Applications = append(in.Applications, o)
	case *bocage.Guardrail:
		in.Guardrails = append(in.Guardrails, o)
	case *bocage.Scope:
		in.Scopes = append(in.Scopes, o)
	case *bocage.InspectionProfile:
		in.Profiles = append(in.Profiles, o)
	case *bocage.Decoy:
		in.Decoys = append(in.Decoys, o)
	case *bocage.Quarantine:
		in.Quarantines = append(in.Quarantines, o)
	case *bocage.ThreatCondition:
		in.ThreatConditions = append(in.ThreatConditions, o)
	case *bocage.Workload:
		in.Workloads = append(in.Workloads, o)
	}
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
	p.mirror.replace(entries, at, p.logger)
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
		p.mirror.put(e.Key, e.Value, e.Revision, p.logger)
		p.mirror.reached(e.Revision)
	}
	return w.Err()
}
