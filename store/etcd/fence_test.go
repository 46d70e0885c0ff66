package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
	"bocage.dev/bocage/store/etcd/etcdtest"
	"bocage.dev/bocage/store/storetest"
)

// engines are the etcds that a site may have: the one that Debian has, which answers
// too early how far a watch is, and the one that is embedded here, through its socket.
func engines(t *testing.T, run func(t *testing.T, endpoint string, asks bool)) {
	t.Run("debian", func(t *testing.T) { run(t, etcdtest.Start(t).Endpoint, false) })
	t.Run("embedded", func(t *testing.T) {
		dir := shortDir(t)
		config := etcd.Config{Dir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s", "etcd")}
		member := open(t, config)
		t.Cleanup(func() { _ = member.Close() })
		run(t, "unix://"+config.Socket, true)
	})
}

func connect(t testing.TB, endpoint, prefix string) *etcd.Store {
	t.Helper()
	s, err := etcd.Connect(t.Context(), etcd.Cluster{Endpoints: []string{endpoint}, Prefix: prefix, Patience: time.Minute,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestClusterConformance: an etcd that runs elsewhere is as good as the embedded one.
func TestClusterConformance(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t)
	n := 0
	storetest.Run(t, func(t *testing.T) store.Store {
		n++
		return connect(t, server.Endpoint, fmt.Sprintf("site-%d", n))
	})
}

func TestDoubt(t *testing.T) {
	t.Parallel()
	engines(t, func(t *testing.T, endpoint string, asks bool) {
		s := connect(t, endpoint, "")
		defer s.Close()
		if doubt := s.Doubt(); (doubt == "") != asks {
			t.Errorf("doubt %q", doubt)
		}
	})
}

// TestProgressComesLast: what a watch says that it has delivered, it has, however it
// began and whatever happens meanwhile. Watches that begin far back, at the same time,
// while others write, are those whose engine has caught up last.
func TestProgressComesLast(t *testing.T) {
	t.Parallel()
	engines(t, func(t *testing.T, endpoint string, _ bool) {
		s, other := connect(t, endpoint, ""), connect(t, endpoint, "")
		defer s.Close()
		defer other.Close()
		ctx, stop := context.WithCancel(t.Context())
		first, err := store.Put(ctx, s, "elsewhere", []byte("1"), store.AnyRevision)
		if err != nil {
			t.Fatal(err)
		}
		const before = 300
		for i := range before {
			if _, err := store.Put(ctx, s, fmt.Sprintf("p/%04d", i), []byte("1"), store.Absent); err != nil {
				t.Fatal(err)
			}
		}
		var writing sync.WaitGroup
		writing.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				_, err := store.Put(ctx, other, fmt.Sprintf("p/%04d", i%before), fmt.Append(nil, i), store.AnyRevision)
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
		var watching sync.WaitGroup
		for n := range 20 {
			watching.Go(func() {
				for round := range 5 {
					if err := watchFrom(ctx, s, first); err != nil {
						t.Errorf("watch %d.%d: %v", n, round, err)
					}
				}
			})
		}
		watching.Wait()
		stop()
		writing.Wait()
		if entries, _, err := s.List(t.Context(), "p/", "", 1, 0); err != nil || len(entries) != 1 || entries[0].Key != "p/0000" {
			t.Errorf("the first is %v, %v", entries, err)
		}
		if entries, _, err := s.List(t.Context(), "", "", 0, 0); err != nil || len(entries) != before+1 {
			t.Errorf("%d keys are there, %v, want %d", len(entries), err, before+1)
		}
	})
}

// watchFrom watches from far back to now, and compares what came with what is there.
func watchFrom(ctx context.Context, s store.Store, after store.Revision) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	entries, now, err := s.List(ctx, "p/", "", 0, 0)
	if err != nil {
		return err
	}
	w, err := s.Watch(ctx, "p/", after)
	if err != nil {
		return err
	}
	found := map[string]store.Revision{}
	ask := time.NewTicker(10 * time.Millisecond)
	defer ask.Stop()
	last := after
	for {
		select {
		case e, open := <-w.Events():
			switch {
			case !open:
				return fmt.Errorf("the watch ended: %w", w.Err())
			case e.Revision < last:
				return fmt.Errorf("%d came after %d", e.Revision, last)
			case e.Key != "" && e.Revision <= now:
				found[e.Key] = e.Revision
			case e.Revision < now:
			default: // progress, or a change behind: what was before has come
				for _, entry := range entries {
					if found[entry.Key] != entry.Revision {
						return fmt.Errorf("at %d the change %d of %s is missing, the last that came is %d", e.Revision, entry.Revision, entry.Key, found[entry.Key])
					}
				}
				return nil
			}
			last = e.Revision
		case <-ask.C:
			if err := w.Progress(ctx, now); err != nil {
				return err
			}
		}
	}
}

// TestWatchOfWhatIsCompacted never says that nothing happened.
func TestWatchOfWhatIsCompacted(t *testing.T) {
	t.Parallel()
	engines(t, func(t *testing.T, endpoint string, _ bool) {
		s := connect(t, endpoint, "")
		defer s.Close()
		ctx := t.Context()
		var revisions []store.Revision
		for i := range 20 {
			at, err := store.Put(ctx, s, "p/a", fmt.Append(nil, i), store.AnyRevision)
			if err != nil {
				t.Fatal(err)
			}
			revisions = append(revisions, at)
		}
		gone, err := store.Delete(ctx, s, "p/a", store.AnyRevision)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Compact(ctx, gone); err != nil {
			t.Fatal(err)
		}
		for _, after := range append([]store.Revision{1}, revisions...) {
			w, err := s.Watch(ctx, "p/", after)
			if err != nil {
				t.Fatal(err)
			}
			// The deletion is what etcd forgets: who began before must not miss it.
			if e, open := <-w.Events(); open {
				t.Errorf("after %d, of what is known from %d on: %+v", after, gone, e)
			}
			if !errors.Is(w.Err(), store.ErrCompacted) {
				t.Errorf("after %d: %v", after, w.Err())
			}
		}
		if err := watchFrom(ctx, s, gone); err != nil {
			t.Errorf("after the compaction: %v", err)
		}
	})
}

// TestFencesLeaveNothing: one key for what is watched, none afterwards.
func TestFencesLeaveNothing(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t)
	s := connect(t, server.Endpoint, "")
	defer s.Close()
	all, err := s.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	w, err := s.Watch(ctx, "p/", 0)
	if err != nil {
		t.Fatal(err)
	}
	var at store.Revision
	for range 3 {
		if err := w.Progress(ctx, 0); err != nil {
			t.Fatal(err)
		}
		e := <-w.Events()
		if !e.Progress || e.Revision <= at {
			t.Fatalf("%+v after %d", e, at)
		}
		at = e.Revision
		if e := <-all.Events(); !e.Progress || e.Revision != at {
			t.Errorf("who watches all is told %+v", e)
		}
	}
	if _, err := store.Put(t.Context(), s, "p/\x00fence", nil, store.AnyRevision); err == nil {
		t.Error("a key of the store's own can be written")
	}
	stop()
	for range w.Events() { // until it has ended
	}
	// Its fence goes, which others are told as progress.
	if e := <-all.Events(); !e.Progress || e.Revision <= at {
		t.Errorf("%+v", e)
	}
}

// TestClosingLeavesNoFence: builds that know no fences would take one for an object, so
// the one of a watch that ran until the end goes, too.
func TestClosingLeavesNoFence(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{server.Endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	count := func() int64 {
		found, err := client.Get(t.Context(), etcd.DefaultPrefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			t.Fatal(err)
		}
		return found.Count
	}
	s := connect(t, server.Endpoint, "")
	w, err := s.Watch(t.Context(), "p/", 0)
	if err == nil {
		err = w.Progress(t.Context(), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 1 {
		t.Errorf("%d keys, want the fence", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}

// TestManyBeginAndAsk: some begin to watch while others ask how far they are, each of
// something else, and nobody keeps the others waiting for ever.
func TestManyBeginAndAsk(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t)
	s := connect(t, server.Endpoint, "")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const askers, rounds = 200, 3
	failed := make(chan error, askers)
	for n := range askers {
		go func() {
			failed <- func() error {
				for round := range rounds {
					if err := beginAndAsk(ctx, s, fmt.Sprintf("p/%d/", n)); err != nil {
						return fmt.Errorf("watch %d.%d: %w", n, round, err)
					}
				}
				return nil
			}()
		}()
	}
	for n := range askers {
		select {
		case err := <-failed:
			if err != nil {
				t.Error(err)
			}
		case <-ctx.Done(): // a lock is waited for whatever ctx says, and by Close, too
			t.Fatalf("%d of %d still wait", askers-n, askers)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func beginAndAsk(ctx context.Context, s store.Store, prefix string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w, err := s.Watch(ctx, prefix, 0)
	if err != nil {
		return err
	}
	if err := w.Progress(ctx, 0); err != nil {
		return err
	}
	if e, open := <-w.Events(); !open || !e.Progress {
		return fmt.Errorf("%+v came instead of progress: %w", e, w.Err())
	}
	return nil
}

// TestMemberRestarts: watches go on where they were, on an engine that is away for a
// while.
func TestMemberRestarts(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t)
	s := connect(t, server.Endpoint, "")
	defer s.Close()
	first, err := store.Put(t.Context(), s, "p/0", []byte("1"), store.Absent)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := watchFrom(t.Context(), s, first-1); err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
		server.Restart(t)
		if _, err := store.Put(t.Context(), s, fmt.Sprintf("p/%d", i+1), []byte("1"), store.AnyRevision); err != nil {
			t.Fatal(err)
		}
	}
	if err := watchFrom(t.Context(), s, first-1); err != nil {
		t.Fatal(err)
	}
}
