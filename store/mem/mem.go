// Package mem is a store in memory, for tests and for work without a node, such
// as planning from files. It promises what every store does except to outlive
// the process, and keeps a bounded history, after which older revisions are
// compacted. It never touches a disk or a network.
package mem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"

	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/internal/pump"
)

// history is how many revisions are kept for watches and older reads.
const history = 1 << 14

var errClosed = errors.New("the store is closed")

// Store keeps everything in memory. The zero value is not usable: see [New].
type Store struct {
	mu        sync.RWMutex // guards everything below
	closed    bool
	revision  store.Revision
	compacted store.Revision // reads at and watches after an older one fail
	keys      []string       // sorted; also those deleted whose versions are kept
	versions  map[string][]version
	log       []change // every revision after compacted, oldest first
	watches   map[*pump.Pump]string
}

// version is a key's value from a revision on; a nil value means deleted.
type version struct {
	revision store.Revision
	value    []byte
}

// change is all events of one revision.
type change struct {
	revision store.Revision
	events   []store.Event
}

// New returns an empty store.
func New() *Store {
	// Revision 1 is the empty store, so that no list is ever read at 0.
	return &Store{revision: 1, compacted: 1, versions: make(map[string][]version), watches: make(map[*pump.Pump]string)}
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	if err := ctx.Err(); err != nil {
		return store.Entry{}, fmt.Errorf("read %q: %w", key, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return store.Entry{}, fmt.Errorf("read %q: %w", key, errClosed)
	}
	v, ok := s.at(key, s.revision)
	if !ok {
		return store.Entry{}, fmt.Errorf("read %q: %w", key, store.ErrNotFound)
	}
	return store.Entry{Key: key, Value: slices.Clone(v.value), Revision: v.revision}, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix, after string, limit int, at store.Revision) ([]store.Entry, store.Revision, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, fmt.Errorf("list %q: %w", prefix, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.closed:
		return nil, 0, fmt.Errorf("list %q: %w", prefix, errClosed)
	case at == 0:
		at = s.revision
	case at < s.compacted || at > s.revision:
		return nil, 0, fmt.Errorf("list %q at %d: %w", prefix, at, store.ErrCompacted)
	}
	var entries []store.Entry
	for i := sort.SearchStrings(s.keys, max(prefix, after)); i < len(s.keys); i++ {
		key := s.keys[i]
		if !strings.HasPrefix(key, prefix) || limit > 0 && len(entries) == limit {
			break
		}
		if key <= after {
			continue
		}
		if v, ok := s.at(key, at); ok {
			entries = append(entries, store.Entry{Key: key, Value: slices.Clone(v.value), Revision: v.revision})
		}
	}
	return entries, at, nil
}

// at finds a key's version as of a revision.
func (s *Store) at(key string, at store.Revision) (version, bool) {
	versions := s.versions[key]
	for i := len(versions) - 1; i >= 0; i-- {
		if v := versions[i]; v.revision <= at {
			return v, v.value != nil
		}
	}
	return version{}, false
}

// Apply implements store.Store.
func (s *Store) Apply(ctx context.Context, ops ...store.Op) (store.Revision, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("write %q: %w", ops[0].Key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, fmt.Errorf("write %q: %w", ops[0].Key, errClosed)
	}
	for _, op := range ops {
		if err := s.precondition(op); err != nil {
			return 0, err
		}
	}
	next := s.revision + 1
	var events []store.Event
	for _, op := range ops {
		before, existed := s.at(op.Key, s.revision)
		if op.Delete && !existed {
			continue
		}
		e := store.Event{Key: op.Key, Revision: next, Previous: before.value}
		if !op.Delete {
			e.Value = append([]byte{}, op.Value...) // never nil
		}
		s.write(op.Key, version{next, e.Value})
		events = append(events, e)
	}
	if len(events) == 0 {
		return s.revision, nil
	}
	s.revision = next
	s.log = append(s.log, change{next, events})
	if len(s.log) > history {
		s.compact(s.log[len(s.log)-history/2].revision)
	}
	s.publish(events)
	return next, nil
}

func (s *Store) precondition(op store.Op) error {
	if op.IfWas == store.AnyRevision {
		return nil
	}
	v, exists := s.at(op.Key, s.revision)
	switch {
	case op.IfWas == store.Absent && exists:
		return fmt.Errorf("write %q: %w: it exists", op.Key, store.ErrConflict)
	case op.IfWas > 0 && !exists:
		return fmt.Errorf("write %q: %w", op.Key, store.ErrNotFound)
	case op.IfWas > 0 && v.revision != op.IfWas:
		return fmt.Errorf("write %q: %w: it is at revision %d, not %d", op.Key, store.ErrConflict, v.revision, op.IfWas)
	}
	return nil
}

func (s *Store) write(key string, v version) {
	if _, known := s.versions[key]; !known {
		i, _ := slices.BinarySearch(s.keys, key)
		s.keys = slices.Insert(s.keys, i, key)
	}
	s.versions[key] = append(s.versions[key], v)
}

func (s *Store) publish(events []store.Event) {
	for p, prefix := range s.watches {
		if wanted := withPrefix(events, prefix); len(wanted) > 0 && !p.Push(wanted...) {
			delete(s.watches, p)
		}
	}
}

// withPrefix copies the events of keys with the prefix, values and all, since
// readers may keep and change what they get.
func withPrefix(events []store.Event, prefix string) []store.Event {
	var wanted []store.Event
	for _, e := range events {
		if strings.HasPrefix(e.Key, prefix) {
			e.Value, e.Previous = bytes.Clone(e.Value), bytes.Clone(e.Previous)
			wanted = append(wanted, e)
		}
	}
	return wanted
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Revision) (store.Watch, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("watch %q: %w", prefix, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("watch %q: %w", prefix, errClosed)
	}
	var p *pump.Pump
	p = pump.Start(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watches, p)
	})
	switch {
	case after == 0:
	case after < s.compacted || after > s.revision:
		p.End(fmt.Errorf("watch %q after %d: %w", prefix, after, store.ErrCompacted))
		return watch{p, s}, nil
	default:
		first := sort.Search(len(s.log), func(i int) bool { return s.log[i].revision > after })
		for _, c := range s.log[first:] {
			if wanted := withPrefix(c.events, prefix); len(wanted) > 0 && !p.Push(wanted...) {
				return watch{p, s}, nil
			}
		}
	}
	s.watches[p] = prefix
	return watch{p, s}, nil
}

// Compact forgets what was before a revision: reads at and watches after an older
// one fail.
func (s *Store) Compact(_ context.Context, before store.Revision) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before > s.revision {
		return fmt.Errorf("compact before %d: the store is at %d", before, s.revision)
	}
	s.compact(before)
	return nil
}

func (s *Store) compact(before store.Revision) {
	if before <= s.compacted {
		return
	}
	s.compacted = before
	first := sort.Search(len(s.log), func(i int) bool { return s.log[i].revision > before })
	s.log = slices.Clone(s.log[first:])
	s.keys = slices.DeleteFunc(s.keys, func(key string) bool {
		versions := s.versions[key]
		// The newest version at the compacted revision stays readable.
		keep := 0
		for i, v := range versions {
			if v.revision <= before {
				keep = i
			}
		}
		if versions = versions[keep:]; len(versions) == 1 && versions[0].value == nil {
			delete(s.versions, key)
			return true
		}
		s.versions[key] = slices.Clone(versions)
		return false
	})
}

// watch is a running watch.
type watch struct {
	*pump.Pump
	store *Store
}

// Progress implements store.Watch.
func (w watch) Progress(ctx context.Context, _ store.Revision) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("ask for progress: %w", err)
	}
	s := w.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("ask for progress: %w", errClosed)
	}
	if _, runs := s.watches[w.Pump]; runs && !w.Push(store.Event{Progress: true, Revision: s.revision}) {
		delete(s.watches, w.Pump)
	}
	return nil
}

// Close implements store.Store: watches end, and everything is refused.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for p := range s.watches {
		p.End(errClosed)
	}
	clear(s.watches)
	return nil
}
