package storetest

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"bocage.dev/bocage/store"
)

// This file is how the tests speak.

// patience bounds every wait: what takes longer has failed.
const patience = 30 * time.Second

type change struct{ key, value string }

func put(key, value string) change { return change{key, value} }
func gone(key string) change       { return change{key, "\x00deleted"} }

func expect(t *testing.T, w store.Watch, want ...change) []store.Event {
	t.Helper()
	var events []store.Event
	for i, c := range want {
		e := next(t, w)
		got := change{e.Key, string(e.Value)}
		if e.Deleted() {
			got = gone(e.Key)
		}
		if got != c {
			t.Fatalf("event %d is %q, want %q", i, got, c)
		}
		events = append(events, e)
	}
	return events
}

func expectEnd(t *testing.T, w store.Watch, want error) {
	t.Helper()
	if e, ok := receive(t, w); ok {
		t.Errorf("the watch yields %+v, want its end", e)
	}
	if err := w.Err(); !errors.Is(err, want) || want == nil && err != nil {
		t.Errorf("Err = %v, want %v", err, want)
	}
}

func watch(t *testing.T, s store.Store, prefix string, after store.Revision) store.Watch {
	t.Helper()
	w, err := s.Watch(t.Context(), prefix, after)
	check(t, err)
	return w
}

func next(t *testing.T, w store.Watch) store.Event {
	t.Helper()
	e, ok := receive(t, w)
	if !ok {
		t.Fatalf("the watch ended: %v", w.Err())
	}
	return e
}

// receive returns the next change, or false at the watch's end.
func receive(t *testing.T, w store.Watch) (store.Event, bool) {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case e, ok := <-w.Events():
			if ok && e.Progress {
				continue
			}
			return e, ok
		case <-late:
			t.Fatalf("nothing came in %s", patience)
		}
	}
}

func equalEntries(a, b []store.Entry) bool {
	return slices.EqualFunc(a, b, func(x, y store.Entry) bool {
		return x.Key == y.Key && x.Revision == y.Revision && bytes.Equal(x.Value, y.Value)
	})
}

// must takes what a write returns, of which the test only needs the revision.
func must(t *testing.T) func(store.Revision, error) store.Revision {
	return func(revision store.Revision, err error) store.Revision {
		t.Helper()
		check(t, err)
		return revision
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
