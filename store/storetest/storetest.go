// Package storetest is the conformance suite of store engines: every sentence of
// package store's comments as a test. An engine that passes may be exchanged for
// any other.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage/store"
)

// Run tests the engine. open returns a store that is empty under the prefixes
// that the suite uses; it is closed by the suite, and may be opened many times.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s store.Store)
	}{
		{"an empty store", emptyStore},
		{"preconditions of one write", preconditions},
		{"what may not be written", malformed},
		{"apply is all or nothing", allOrNothing},
		{"apply carries one revision", oneRevision},
		{"deleting what is not there", deleteNothing},
		{"keys and values are bytes", binary},
		{"an empty value is not a deletion", emptyValue},
		{"limits", limits},
		{"list in order, by prefix, in pages", list},
		{"list at an older revision", listOlder},
		{"pages of one revision while others write", pagesOfOneRevision},
		{"compaction", compaction},
		{"watch from now on", watchNow},
		{"watch after a revision", watchAfter},
		{"watch tells values before and after", watchPrevious},
		{"watch keeps the order of writes", watchOrder},
		{"watch misses nothing under concurrent writers", watchConcurrent},
		{"watch only what has the prefix", watchPrefix},
		{"watch resumes where it broke", watchResume},
		{"watch tells how far it is", watchProgress},
		{"a slow reader is cut off", watchSlow},
		{"contexts that have ended", contexts},
		{"compare and set by many", compareAndSet},
		{"reads never go back", monotonicReads},
		{"against a model", model},
		{"nothing works after Close", closed},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			test.run(t, s)
		})
	}
}

// Reopen tests an engine that outlives its process: open is called again and
// again for the same data.
func Reopen(t *testing.T, open func(t *testing.T) store.Store) {
	ctx := t.Context()
	s := open(t)
	must(t)(store.Put(ctx, s, "a", []byte("1"), store.Absent))
	last := must(t)(store.Put(ctx, s, "b", []byte("2"), store.Absent))
	check(t, s.Close())

	s = open(t)
	entries, at, err := s.List(ctx, "", "", 0, 0)
	check(t, err)
	if len(entries) != 2 || at < last {
		t.Fatalf("after reopening there are %v at %d: want a and b at %d or later", entries, at, last)
	}
	if entries[1].Revision != last {
		t.Errorf("b is at revision %d, want %d", entries[1].Revision, last)
	}
	w := watch(t, s, "", last-1)
	expect(t, w, put("b", "2"))
	if next := must(t)(store.Put(ctx, s, "b", []byte("3"), last)); next <= last {
		t.Errorf("revision went from %d to %d", last, next)
	}
	expect(t, w, put("b", "3"))
	check(t, s.Close())
}

func emptyStore(t *testing.T, s store.Store) {
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get = %v, want ErrNotFound", err)
	}
	entries, at, err := s.List(t.Context(), "", "", 0, 0)
	check(t, err)
	if len(entries) != 0 || at <= 0 {
		t.Errorf("List = %v at %d, want nothing at a revision above 0", entries, at)
	}
	must(t)(store.Put(t.Context(), s, "a", []byte("1"), store.Absent))
	expect(t, watch(t, s, "", at), put("a", "1"))
}

func preconditions(t *testing.T, s store.Store) {
	ctx := t.Context()
	first := must(t)(store.Put(ctx, s, "there", []byte("1"), store.AnyRevision))
	second := must(t)(store.Put(ctx, s, "there", []byte("2"), first))
	gone := must(t)(store.Put(ctx, s, "gone", []byte("1"), store.Absent))
	must(t)(store.Delete(ctx, s, "gone", gone))
	tests := []struct {
		name string
		op   store.Op
		want error
	}{
		{"create what exists", store.Op{Key: "there", Value: []byte("x"), IfWas: store.Absent}, store.ErrConflict},
		{"change an old revision", store.Op{Key: "there", Value: []byte("x"), IfWas: first}, store.ErrConflict},
		{"change a later revision", store.Op{Key: "there", Value: []byte("x"), IfWas: second + 1000}, store.ErrConflict},
		{"delete an old revision", store.Op{Key: "there", Delete: true, IfWas: first}, store.ErrConflict},
		{"delete as absent what exists", store.Op{Key: "there", Delete: true, IfWas: store.Absent}, store.ErrConflict},
		{"change what is gone", store.Op{Key: "gone", Value: []byte("x"), IfWas: gone}, store.ErrNotFound},
		{"delete what is gone", store.Op{Key: "gone", Delete: true, IfWas: gone}, store.ErrNotFound},
		{"change what never was", store.Op{Key: "never", Value: []byte("x"), IfWas: first}, store.ErrNotFound},
		{"create again what is gone", store.Op{Key: "gone", Value: []byte("2"), IfWas: store.Absent}, nil},
		{"change whatever is there", store.Op{Key: "there", Value: []byte("3"), IfWas: store.AnyRevision}, nil},
		{"write whatever is not there", store.Op{Key: "new", Value: []byte("1"), IfWas: store.AnyRevision}, nil},
		{"delete whatever is there", store.Op{Key: "new", Delete: true, IfWas: store.AnyRevision}, nil},
	}
	for _, test := range tests {
		before, _, err := s.List(ctx, "", "", 0, 0)
		check(t, err)
		revision, err := s.Apply(ctx, test.op)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if err != nil && !strings.Contains(err.Error(), test.op.Key) {
			t.Errorf("%s: %q does not name the key", test.name, err)
		}
		after, _, err := s.List(ctx, "", "", 0, 0)
		check(t, err)
		if changed := !equalEntries(before, after); changed != (test.want == nil) {
			t.Errorf("%s: changed %t, from %v to %v", test.name, changed, before, after)
		}
		if test.want == nil && revision <= second {
			t.Errorf("%s: revision %d does not follow %d", test.name, revision, second)
		}
	}
	entry, err := s.Get(ctx, "there")
	check(t, err)
	if entry.Key != "there" || string(entry.Value) != "3" || entry.Revision <= second {
		t.Errorf("Get = %+v", entry)
	}
}

func malformed(t *testing.T, s store.Store) {
	for name, ops := range map[string][]store.Op{
		"nothing":           {},
		"an empty key":      {{Key: "", IfWas: store.AnyRevision}},
		"a key twice":       {{Key: "a", IfWas: store.AnyRevision}, {Key: "b", IfWas: store.AnyRevision}, {Key: "a", Delete: true, IfWas: store.AnyRevision}},
		"a strange precond": {{Key: "a", IfWas: -2}},
	} {
		if _, err := s.Apply(t.Context(), ops...); err == nil {
			t.Errorf("%s was applied", name)
		}
	}
	if entries, _, err := s.List(t.Context(), "", "", 0, 0); err != nil || len(entries) != 0 {
		t.Errorf("List = %v, %v: want nothing", entries, err)
	}
}

func allOrNothing(t *testing.T, s store.Store) {
	ctx := t.Context()
	a := must(t)(store.Put(ctx, s, "a", []byte("1"), store.Absent))
	w := watch(t, s, "", 0)
	_, err := s.Apply(ctx,
		store.Op{Key: "a", Value: []byte("2"), IfWas: a},
		store.Op{Key: "b", Value: []byte("2"), IfWas: store.Absent},
		store.Op{Key: "c", Value: []byte("2"), IfWas: a})
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Apply = %v, want ErrNotFound", err)
	}
	_, err = s.Apply(ctx,
		store.Op{Key: "b", Value: []byte("2"), IfWas: store.AnyRevision},
		store.Op{Key: "a", Delete: true, IfWas: store.Absent})
	if !errors.Is(err, store.ErrConflict) {
		t.Errorf("Apply = %v, want ErrConflict", err)
	}
	if entries, _, err := s.List(ctx, "", "", 0, 0); err != nil || len(entries) != 1 || string(entries[0].Value) != "1" {
		t.Errorf("List = %v, %v: want a as it was", entries, err)
	}
	must(t)(store.Put(ctx, s, "z", []byte("1"), store.AnyRevision))
	expect(t, w, put("z", "1")) // nobody sees what was refused
}

func oneRevision(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t)(store.Put(ctx, s, "b", []byte("1"), store.AnyRevision))
	w := watch(t, s, "", 0)
	// Not in the order of keys: events follow the order of the writes.
	revision, err := s.Apply(ctx,
		store.Op{Key: "c", Value: []byte("1"), IfWas: store.Absent},
		store.Op{Key: "b", Delete: true, IfWas: store.AnyRevision},
		store.Op{Key: "a", Value: []byte("1"), IfWas: store.Absent})
	check(t, err)
	entries, at, err := s.List(ctx, "", "", 0, 0)
	check(t, err)
	if at != revision || len(entries) != 2 || entries[0].Revision != revision || entries[1].Revision != revision {
		t.Errorf("List = %v at %d, want all at %d", entries, at, revision)
	}
	for _, e := range expect(t, w, put("c", "1"), gone("b"), put("a", "1")) {
		if e.Revision != revision {
			t.Errorf("event of %s carries revision %d, want %d", e.Key, e.Revision, revision)
		}
	}
}

func deleteNothing(t *testing.T, s store.Store) {
	ctx := t.Context()
	w := watch(t, s, "", 0)
	for _, ifWas := range []store.Revision{store.AnyRevision, store.Absent} {
		_, err := store.Delete(ctx, s, "never", ifWas)
		check(t, err)
	}
	revision, err := s.Apply(ctx,
		store.Op{Key: "never", Delete: true, IfWas: store.AnyRevision},
		store.Op{Key: "a", Value: []byte("1"), IfWas: store.Absent})
	check(t, err)
	if e := expect(t, w, put("a", "1"))[0]; e.Revision != revision {
		t.Errorf("event carries revision %d, want %d", e.Revision, revision)
	}
}

func binary(t *testing.T, s store.Store) {
	ctx := t.Context()
	keys := []string{"\x00", "\x00\x00", "\x00\xff", "a", "a\x00", "a\x00b", "a/", "a\xff", "a\xff\xff", "é", "\xff", "\xff\x00", "\xff\xff"}
	slices.Sort(keys)
	value := make([]byte, 256)
	for i := range value {
		value[i] = byte(i)
	}
	start := must(t)(store.Put(ctx, s, "start", nil, store.Absent))
	for _, key := range keys {
		must(t)(store.Put(ctx, s, key, append(value, key...), store.Absent))
	}
	must(t)(store.Delete(ctx, s, "start", start))
	for _, prefix := range []string{"", "\x00", "a", "a\x00", "a\xff", "\xff", "\xff\xff", "\xff\xff\xff"} {
		var want []string
		for _, key := range keys {
			if strings.HasPrefix(key, prefix) {
				want = append(want, key)
			}
		}
		entries, _, err := s.List(ctx, prefix, "", 0, 0)
		check(t, err)
		var got []string
		for _, e := range entries {
			got = append(got, e.Key)
			if !bytes.Equal(e.Value, append(value[:256:256], e.Key...)) {
				t.Errorf("value of %q is %q", e.Key, e.Value)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("List(%q) = %q, want %q", prefix, got, want)
		}
		w := watch(t, s, prefix, start)
		for _, want := range want {
			// Written in sorted order, so they come sorted.
			if e := next(t, w); e.Key != want || !bytes.Equal(e.Value, append(value[:256:256], e.Key...)) {
				t.Errorf("watch of %q yields %q, want %q", prefix, e.Key, want)
			}
		}
	}
}

func emptyValue(t *testing.T, s store.Store) {
	ctx := t.Context()
	w := watch(t, s, "", 0)
	must(t)(store.Put(ctx, s, "a", nil, store.Absent))
	must(t)(store.Put(ctx, s, "a", []byte{}, store.AnyRevision))
	must(t)(store.Delete(ctx, s, "a", store.AnyRevision))
	for i, deleted := range []bool{false, false, true} {
		e := next(t, w)
		if e.Deleted() != deleted || len(e.Value) != 0 {
			t.Errorf("event %d: deleted %t, value %q", i, e.Deleted(), e.Value)
		}
		if created := i == 0; (e.Previous == nil) != created {
			t.Errorf("event %d: previous %v, created %t", i, e.Previous, created)
		}
	}
	must(t)(store.Put(ctx, s, "b", nil, store.Absent))
	entry, err := s.Get(ctx, "b")
	check(t, err)
	if entry.Value == nil {
		t.Error("Get of an empty value returns nil")
	}
}

func limits(t *testing.T, s store.Store) {
	ctx := t.Context()
	large := bytes.Repeat([]byte("x"), store.MaxValue+1)
	many := make([]store.Op, store.MaxOps+1)
	for i := range many {
		many[i] = store.Op{Key: fmt.Sprintf("many/%05d", i), Value: []byte("1"), IfWas: store.Absent}
	}
	for name, ops := range map[string][]store.Op{
		"a value":   {{Key: "large", Value: large, IfWas: store.AnyRevision}},
		"a key":     {{Key: strings.Repeat("k", store.MaxKey+1), IfWas: store.AnyRevision}},
		"the sum":   {{Key: "a", Value: large[1:], IfWas: store.AnyRevision}, {Key: "b", Value: large[1:], IfWas: store.AnyRevision}, {Key: "c", IfWas: store.AnyRevision}},
		"the count": many,
	} {
		if _, err := s.Apply(ctx, ops...); !errors.Is(err, store.ErrTooLarge) {
			t.Errorf("%s over its limit: %v, want ErrTooLarge", name, err)
		}
	}
	must(t)(store.Put(ctx, s, strings.Repeat("k", store.MaxKey), large[1:], store.Absent))
	entry, err := s.Get(ctx, strings.Repeat("k", store.MaxKey))
	check(t, err)
	if len(entry.Value) != store.MaxValue {
		t.Errorf("Get of the largest value has %d bytes", len(entry.Value))
	}
	must(t)(s.Apply(ctx, many[1:]...))
	half := large[:store.MaxApply/2-1]
	must(t)(s.Apply(ctx, store.Op{Key: "a", Value: half, IfWas: store.Absent}, store.Op{Key: "b", Value: half, IfWas: store.Absent}))
	entries, _, err := s.List(ctx, "", "", 0, 0)
	check(t, err)
	if len(entries) != store.MaxOps+3 {
		t.Errorf("List = %d entries", len(entries))
	}
}

func list(t *testing.T, s store.Store) {
	ctx := t.Context()
	keys := []string{"p/a", "p/b", "p/b/c", "p/d", "p0", "q/a", "p"}
	for _, key := range keys {
		must(t)(store.Put(ctx, s, key, []byte(key), store.Absent))
	}
	tests := []struct {
		prefix, after string
		limit         int
		want          []string
	}{
		{"", "", 0, []string{"p", "p/a", "p/b", "p/b/c", "p/d", "p0", "q/a"}},
		{"p/", "", 0, []string{"p/a", "p/b", "p/b/c", "p/d"}},
		{"p/", "", 2, []string{"p/a", "p/b"}},
		{"p/", "p/b", 2, []string{"p/b/c", "p/d"}},
		{"p/", "p/b", 100, []string{"p/b/c", "p/d"}},
		{"p/", "p/b\x00", 1, []string{"p/b/c"}}, // need not exist
		{"p/", "p/d", 0, nil},
		{"p/", "a", 1, []string{"p/a"}}, // before all
		{"p/", "z", 0, nil},             // behind all
		{"p/a", "", 0, []string{"p/a"}},
		{"none", "", 0, nil},
	}
	for _, test := range tests {
		entries, at, err := s.List(ctx, test.prefix, test.after, test.limit, 0)
		check(t, err)
		var got []string
		for _, e := range entries {
			got = append(got, e.Key)
			if string(e.Value) != e.Key || e.Revision <= 0 || e.Revision > at {
				t.Errorf("entry %+v at %d", e, at)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("List(%q, %q, %d) = %q, want %q", test.prefix, test.after, test.limit, got, test.want)
		}
	}
}

func listOlder(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t)(store.Put(ctx, s, "a", []byte("1"), store.Absent))
	then := must(t)(store.Put(ctx, s, "b", []byte("1"), store.Absent))
	must(t)(store.Put(ctx, s, "a", []byte("2"), store.AnyRevision))
	must(t)(store.Delete(ctx, s, "b", store.AnyRevision))
	must(t)(store.Put(ctx, s, "c", []byte("2"), store.Absent))
	entries, at, err := s.List(ctx, "", "", 0, then)
	check(t, err)
	if at != then || len(entries) != 2 || string(entries[0].Value) != "1" || entries[1].Key != "b" {
		t.Errorf("List at %d = %v at %d", then, entries, at)
	}
	if _, _, err := s.List(ctx, "", "", 0, at+1000); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("List at a revision that never was = %v, want ErrCompacted", err)
	}
}

func pagesOfOneRevision(t *testing.T, s store.Store) {
	ctx := t.Context()
	for i := range 20 {
		must(t)(store.Put(ctx, s, fmt.Sprintf("k%02d", i), []byte("old"), store.Absent))
	}
	var at store.Revision
	var after string
	for page := range 5 {
		entries, revision, err := s.List(ctx, "k", after, 4, at)
		check(t, err)
		if page > 0 && revision != at {
			t.Errorf("page %d is of revision %d, want %d", page, revision, at)
		}
		at = revision
		for i, e := range entries {
			if want := fmt.Sprintf("k%02d", page*4+i); e.Key != want || string(e.Value) != "old" {
				t.Errorf("page %d holds %s=%s, want %s=old", page, e.Key, e.Value, want)
			}
			after = e.Key
			must(t)(store.Put(ctx, s, e.Key+"x", []byte("new"), store.AnyRevision))
		}
		must(t)(store.Put(ctx, s, fmt.Sprintf("k%02d", 19-page), []byte("new"), store.AnyRevision))
	}
}

// compacter is implemented by every engine, for its own housekeeping.
type compacter interface {
	Compact(ctx context.Context, before store.Revision) error
}

func compaction(t *testing.T, s store.Store) {
	ctx := t.Context()
	first := must(t)(store.Put(ctx, s, "a", []byte("1"), store.Absent))
	must(t)(store.Put(ctx, s, "b", []byte("1"), store.Absent))
	kept := must(t)(store.Put(ctx, s, "a", []byte("2"), store.AnyRevision))
	last := must(t)(store.Put(ctx, s, "a", []byte("3"), store.AnyRevision))
	running := watch(t, s, "", first)
	check(t, s.(compacter).Compact(ctx, kept))

	if _, _, err := s.List(ctx, "", "", 0, first); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("List at a compacted revision = %v, want ErrCompacted", err)
	}
	entries, _, err := s.List(ctx, "", "", 0, kept)
	check(t, err)
	if len(entries) != 2 || string(entries[0].Value) != "2" {
		t.Errorf("List at %d = %v", kept, entries)
	}
	if entry, err := s.Get(ctx, "b"); err != nil || string(entry.Value) != "1" {
		t.Errorf("Get of what did not change = %v, %v", entry, err)
	}
	expectEnd(t, watch(t, s, "", first), store.ErrCompacted)
	if e := expect(t, watch(t, s, "", kept), put("a", "3"))[0]; e.Revision != last || string(e.Previous) != "2" {
		t.Errorf("event %+v", e)
	}
	// A watch that was under way may have been overtaken, but not in silence.
	for _, want := range []string{"b=1", "a=2", "a=3"} {
		e, ok := receive(t, running)
		if !ok {
			if !errors.Is(running.Err(), store.ErrCompacted) {
				t.Errorf("the running watch ended with %v", running.Err())
			}
			break
		}
		if got := e.Key + "=" + string(e.Value); got != want {
			t.Errorf("the running watch yields %s, want %s", got, want)
		}
	}
	expectEnd(t, watch(t, s, "", last+1000), store.ErrCompacted)
	check(t, s.(compacter).Compact(ctx, kept)) // again is no fault
}

func contexts(t *testing.T, s store.Store) {
	ended, stop := context.WithCancel(t.Context())
	w, err := s.Watch(ended, "", 0)
	check(t, err)
	stop()
	if _, err := s.Get(ended, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("Get = %v, want context.Canceled", err)
	}
	if _, _, err := s.List(ended, "", "", 0, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("List = %v, want context.Canceled", err)
	}
	if _, err := store.Put(ended, s, "a", nil, store.AnyRevision); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply = %v, want context.Canceled", err)
	}
	if _, err := s.Watch(ended, "", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v, want context.Canceled", err)
	}
	expectEnd(t, w, nil)
	late, stop := context.WithTimeout(t.Context(), -time.Second)
	defer stop()
	if _, err := s.Get(late, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get = %v, want context.DeadlineExceeded", err)
	}
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("what was cancelled happened: %v", err)
	}
}

func compareAndSet(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t)(store.Put(ctx, s, "counter", []byte("0"), store.Absent))
	const writers, increments = 6, 20
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for done := 0; done < increments; {
				entry, err := s.Get(ctx, "counter")
				if err != nil {
					t.Errorf("get: %v", err)
					return
				}
				var n int
				fmt.Sscan(string(entry.Value), &n)
				_, err = store.Put(ctx, s, "counter", fmt.Append(nil, n+1), entry.Revision)
				switch {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrConflict):
					t.Errorf("put: %v", err)
					return
				}
			}
		})
	}
	group.Wait()
	entry, err := s.Get(ctx, "counter")
	check(t, err)
	if want := fmt.Sprint(writers * increments); string(entry.Value) != want {
		t.Errorf("the counter is %s, want %s", entry.Value, want)
	}
}

func monotonicReads(t *testing.T, s store.Store) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	acked := make(chan store.Revision, 1)
	acked <- must(t)(store.Put(ctx, s, "a", nil, store.Absent))
	group.Go(func() {
		defer stop()
		for range 200 {
			revision, err := store.Put(t.Context(), s, "a", nil, store.AnyRevision)
			if err != nil {
				t.Errorf("put: %v", err)
				return
			}
			<-acked
			acked <- revision
		}
	})
	for range 4 {
		group.Go(func() {
			for ctx.Err() == nil {
				floor := <-acked
				acked <- floor
				entry, err := s.Get(t.Context(), "a")
				if err != nil || entry.Revision < floor {
					t.Errorf("read revision %d, %v after %d was acknowledged", entry.Revision, err, floor)
					return
				}
			}
		})
	}
	group.Wait()
}

// model compares random work with a map.
func model(t *testing.T, s store.Store) {
	ctx := t.Context()
	random := rand.New(rand.NewPCG(1, 2))
	type value struct {
		revision store.Revision
		text     string
	}
	state := make(map[string]value)
	var last store.Revision
	for step := range 400 {
		var ops []store.Op
		want := error(nil)
		for _, i := range random.Perm(6)[:1+random.IntN(3)] {
			key := fmt.Sprintf("k%d", i)
			old, exists := state[key]
			op := store.Op{Key: key, Value: fmt.Append(nil, step), Delete: random.IntN(4) == 0}
			var fails error
			switch random.IntN(4) {
			case 0:
				op.IfWas = store.AnyRevision
			case 1:
				op.IfWas = store.Absent
				if exists {
					fails = store.ErrConflict
				}
			default:
				op.IfWas = max(old.revision-store.Revision(random.IntN(8)/7), 1)
				switch {
				case !exists:
					fails = store.ErrNotFound
				case op.IfWas != old.revision:
					fails = store.ErrConflict
				}
			}
			if want == nil {
				want = fails
			}
			ops = append(ops, op)
		}
		revision, err := s.Apply(ctx, ops...)
		if !errors.Is(err, want) || want == nil && err != nil {
			t.Fatalf("step %d: Apply(%+v) = %v, want %v", step, ops, err, want)
		}
		if err == nil {
			for _, op := range ops {
				if op.Delete {
					delete(state, op.Key)
				} else {
					state[op.Key] = value{revision, string(op.Value)}
				}
			}
			if revision < last {
				t.Fatalf("step %d: revision went from %d to %d", step, last, revision)
			}
			last = revision
		}
	}
	entries, at, err := s.List(ctx, "", "", 0, 0)
	check(t, err)
	if len(entries) != len(state) || at != last {
		t.Errorf("List = %v at %d, want %v at %d", entries, at, state, last)
	}
	for _, e := range entries {
		if v := state[e.Key]; v.revision != e.Revision || v.text != string(e.Value) {
			t.Errorf("%+v, want %+v", e, v)
		}
	}
}

func closed(t *testing.T, s store.Store) {
	ctx := t.Context()
	w := watch(t, s, "", 0)
	check(t, s.Close())
	for {
		if _, ok := receive(t, w); !ok {
			break
		}
	}
	if w.Err() == nil {
		t.Error("a watch that Close ended gives no reason")
	}
	if _, err := s.Get(ctx, "a"); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get after Close = %v", err)
	}
	if _, err := store.Put(ctx, s, "a", nil, store.AnyRevision); err == nil {
		t.Error("Apply after Close succeeded")
	}
	if _, err := s.Watch(ctx, "", 0); err == nil {
		t.Error("Watch after Close succeeded")
	}
}
