package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/internal/pump"
)

// watchName is the metadata that gives each watch a stream of its own: etcd answers
// how far a stream is only once all its watches have caught up, and one that reads a
// long history would keep the others waiting.
const watchName = "bocage-watch"

// watch is a running watch.
type watch struct {
	*pump.Pump
	store *Store
	key   string // all that it watches begins so
	named metadata.MD
	// asked is set once etcd was asked how far the watch is: an answer by a member that
	// may say too much would be taken for a word of its own accord otherwise.
	asked atomic.Bool
	// fenced is the revision of the last fence that came, or what the watch began after.
	fenced atomic.Int64
	ended  atomic.Bool

	mu sync.Mutex // orders what is delivered and guards at
	at store.Revision
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Revision) (store.Watch, error) {
	if err := s.usable(ctx); err != nil {
		return nil, fmt.Errorf("watch %q: %w", prefix, err)
	}
	// "From now on" needs a number, and so does "never was": one linearisable read.
	now, err := s.read(ctx, s.prefix)
	if err != nil {
		return nil, fmt.Errorf("watch %q: %w", prefix, s.explain(ctx, err))
	}
	current := store.Revision(now.Header.Revision)
	if after == 0 {
		after = current
	}
	var forgotten error
	if after > current {
		forgotten = fmt.Errorf("watch %q after %d: %w: the store is at %d", prefix, after, store.ErrCompacted, current)
	} else if after < current {
		if forgotten, err = s.forgotten(ctx, after); err != nil {
			return nil, fmt.Errorf("watch %q: %w", prefix, err)
		}
	}

	if !s.enter() {
		return nil, fmt.Errorf("watch %q: %w", prefix, ErrClosed)
	}
	inner, stop := context.WithCancel(ctx)
	w := &watch{Pump: pump.Start(ctx, stop), store: s, key: s.prefix + prefix, at: after, named: s.streamOf(strconv.FormatInt(s.streams.Add(1), 10))}
	w.fenced.Store(int64(after))
	if forgotten != nil {
		w.ended.Store(true)
		w.End(forgotten)
		s.watches.Done()
		return w, nil
	}
	detach := context.AfterFunc(s.ctx, stop)
	s.fences.join(w.key)
	go func() {
		defer s.watches.Done()
		defer detach()
		err := w.follow(inner, after, current)
		w.ended.Store(true)
		stop()
		w.End(err)
		s.leave(w.key)
	}()
	return w, nil
}

// forgotten tells whether the history after a revision is gone, which the first
// answer of a watch may be late to say.
func (s *Store) forgotten(ctx context.Context, after store.Revision) (why, err error) {
	_, err = s.read(ctx, s.prefix, clientv3.WithRev(int64(after)))
	if err == nil {
		return nil, nil
	}
	if err = s.explain(ctx, err); errors.Is(err, store.ErrCompacted) {
		return fmt.Errorf("watch after %d: %w", after, err), nil
	}
	return nil, err
}

// follow feeds the pump until the context, the store or etcd ends it.
func (w *watch) follow(ctx context.Context, after, current store.Revision) error {
	s, name := w.store, w.key[len(w.store.prefix):]
	from := after + 1
	if after < current {
		// etcd refuses to begin before what it has compacted, but forgets that the key
		// was deleted at that very revision. So the watch begins one before.
		from = after
	}
	options := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(int64(from)), clientv3.WithPrevKV(), clientv3.WithProgressNotify()}
	for response := range s.client.Watch(metadata.NewOutgoingContext(ctx, w.named), w.key, options...) {
		if err := response.Err(); err != nil {
			return fmt.Errorf("watch %q: %w", name, s.explain(ctx, err))
		}
		if response.IsProgressNotify() {
			if w.asked.Load() && !s.mayTell(response.Header.GetMemberId()) {
				return fmt.Errorf("watch %q: the member of etcd that said how far it is may say too much: it begins anew", name)
			}
			if to := store.Revision(response.Header.GetRevision()); to >= after {
				w.push(to, store.Event{Progress: true, Revision: to})
			}
			continue
		}
		// A response holds whole revisions, one or several.
		for events := response.Events; len(events) > 0; {
			n := 1
			for n < len(events) && events[n].Kv.ModRevision == events[0].Kv.ModRevision {
				n++
			}
			revision := store.Revision(events[0].Kv.ModRevision)
			// What it has begun before, and what is told twice after a connection broke,
			// was delivered.
			if revision > after {
				if more, err := w.deliver(events[:n], revision); err != nil || !more {
					return err
				}
				after = revision
			}
			events = events[n:]
		}
	}
	if s.ctx.Err() != nil {
		return fmt.Errorf("watch %q: %w", name, ErrClosed)
	}
	return fmt.Errorf("watch %q: etcd ended it", name) // unless ctx has, which the pump sees
}

// deliver hands on one revision. A fence says that everything before it has come.
func (w *watch) deliver(events []*clientv3.Event, at store.Revision) (more bool, err error) {
	revision := make([]store.Event, 0, len(events))
	for _, e := range events {
		if isFence(e.Kv.Key) {
			if string(e.Kv.Key) == w.key+fenceName {
				w.fenced.Store(int64(at))
			}
			continue
		}
		event, ok := w.store.event(e)
		if !ok {
			return false, fmt.Errorf("watch %q: %w", w.key[len(w.store.prefix):], store.ErrCompacted)
		}
		revision = append(revision, event)
	}
	if len(revision) == 0 {
		revision = append(revision, store.Event{Progress: true, Revision: at})
	}
	return w.push(at, revision...), nil // the pump knows why if it takes no more
}

// push hands events on, which brings the watch to a revision.
func (w *watch) push(at store.Revision, events ...store.Event) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at = max(w.at, at)
	return w.Push(events...)
}

// there says so if the watch has come to a revision already.
func (w *watch) there(least store.Revision) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if least == 0 || w.at < least {
		return false
	}
	w.Push(store.Event{Progress: true, Revision: w.at})
	return true
}

// Progress implements store.Watch.
func (w *watch) Progress(ctx context.Context, least store.Revision) error {
	s := w.store
	if err := s.usable(ctx); err != nil {
		return fmt.Errorf("ask for progress: %w", err)
	}
	if w.ended.Load() || w.there(least) {
		return nil // its reader will see
	}
	if s.mayTell(0) {
		// The request goes the way of the watch, which its name decides.
		w.asked.Store(true)
		if err := s.client.RequestProgress(metadata.NewOutgoingContext(ctx, w.named)); err != nil {
			return fmt.Errorf("ask for progress: %w", s.explain(ctx, err))
		}
		return nil
	}
	if err := s.fence(ctx, w.key, least, store.Revision(w.fenced.Load())); err != nil {
		return fmt.Errorf("ask for progress: %w", err)
	}
	return nil
}

// streamOf is the metadata of a stream.
func (s *Store) streamOf(name string) metadata.MD {
	ctx := metadata.AppendToOutgoingContext(context.Background(), watchName, name)
	if s.engine == nil {
		ctx = clientv3.WithRequireLeader(ctx) // a watch should rather end than be silent behind a partition
	}
	named, _ := metadata.FromOutgoingContext(ctx)
	return named
}

// event translates a change; ok is false if its previous value was compacted away.
func (s *Store) event(e *clientv3.Event) (event store.Event, ok bool) {
	event = store.Event{Key: string(e.Kv.Key[len(s.prefix):]), Revision: store.Revision(e.Kv.ModRevision)}
	if e.PrevKv != nil {
		event.Previous = copied(e.PrevKv.Value)
	}
	if e.Type == clientv3.EventTypePut {
		event.Value = copied(e.Kv.Value)
	}
	return event, event.Previous != nil || e.IsCreate()
}
