package api

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
)

// mute is a store that is full and cannot tell how far its watches are.
type mute struct {
	store.Store
	fills atomic.Int64 // how often all was read
	asked atomic.Int64
}

type muteWatch struct {
	store.Watch
	of *mute
}

func (m *mute) List(ctx context.Context, prefix, after string, limit int, at store.Revision) ([]store.Entry, store.Revision, error) {
	if prefix == viewPrefix && after == "" {
		m.fills.Add(1)
	}
	return m.Store.List(ctx, prefix, after, limit, at)
}

func (m *mute) Watch(ctx context.Context, prefix string, after store.Revision) (store.Watch, error) {
	w, err := m.Store.Watch(ctx, prefix, after)
	return muteWatch{w, m}, err
}

func (w muteWatch) Progress(context.Context, store.Revision) error {
	w.of.asked.Add(1)
	return store.ErrFull
}

// TestFullStoreIsReadAnewOnce: while the store is full the view is read anew for those
// who wait for more than it has, and kept otherwise.
func TestFullStoreIsReadAnewOnce(t *testing.T) {
	m := &mute{Store: mem.New()}
	s, err := New(Config{Store: m, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	v := s.view
	v.stuck <- struct{}{} // of a watch before this one
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	done := make(chan struct{})
	go func() { defer close(done); v.run(ctx) }()
	defer func() { cancel(); <-done }()
	if err := v.wait(ctx); err != nil {
		t.Fatal(err)
	}

	// What the view is told comes while nobody has to ask.
	news := func() store.Revision {
		t.Helper()
		value, err := store.EncodeObject(kind("Application"), &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: "a", Name: "x"}})
		if err != nil {
			t.Fatal(err)
		}
		at, err := store.Put(ctx, m.Store, kind("Application").Key("a", "x"), value, store.AnyRevision)
		if err != nil {
			t.Fatal(err)
		}
		until(ctx, t, v, func() bool { seen, filled := v.position(); return filled && seen >= at })
		return at
	}
	ask := func(least store.Revision) {
		t.Helper()
		for before := m.asked.Load(); m.asked.Load() == before; {
			if err := v.ask(ctx, least); err != nil || ctx.Err() != nil {
				t.Fatal(err, ctx.Err())
			}
		}
	}
	var at store.Revision
	for range 10 {
		at = news()
		ask(0)
	}
	at = news()
	if n := m.fills.Load(); n != 1 {
		t.Errorf("everything was read %d times while nobody waited", n)
	}
	ask(at + 1)
	until(ctx, t, v, func() bool { _, filled := v.position(); return filled && m.fills.Load() == 2 })
	news()
	if n := m.fills.Load(); n != 2 {
		t.Errorf("everything was read %d times, want once more", n)
	}
}

// until waits until the view has come to where something holds.
func until(ctx context.Context, t *testing.T, v *view, holds func() bool) {
	t.Helper()
	for {
		v.mu.RLock()
		advanced := v.advanced
		v.mu.RUnlock()
		if holds() {
			return
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
}
