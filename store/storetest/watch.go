package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage/store"
)

func watchNow(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t)(store.Put(ctx, s, "a", []byte("before"), store.Absent))
	w := watch(t, s, "", 0)
	must(t)(store.Put(ctx, s, "a", []byte("after"), store.AnyRevision))
	expect(t, w, put("a", "after"))
}

func watchAfter(t *testing.T, s store.Store) {
	ctx := t.Context()
	var revisions []store.Revision
	for i := range 5 {
		revisions = append(revisions, must(t)(store.Put(ctx, s, "a", fmt.Append(nil, i), store.AnyRevision)))
	}
	for i, revision := range revisions {
		w := watch(t, s, "", revision)
		for j := i + 1; j < len(revisions); j++ {
			if e := expect(t, w, put("a", fmt.Sprint(j)))[0]; e.Revision != revisions[j] {
				t.Errorf("event %d carries revision %d, want %d", j, e.Revision, revisions[j])
			}
		}
	}
}

func watchPrevious(t *testing.T, s store.Store) {
	ctx := t.Context()
	w := watch(t, s, "", 0)
	must(t)(store.Put(ctx, s, "a", []byte("1"), store.Absent))
	must(t)(store.Put(ctx, s, "a", []byte("2"), store.AnyRevision))
	must(t)(store.Delete(ctx, s, "a", store.AnyRevision))
	must(t)(store.Put(ctx, s, "a", []byte("3"), store.Absent))
	for i, want := range []struct{ previous, value string }{{"", "1"}, {"1", "2"}, {"2", ""}, {"", "3"}} {
		e := next(t, w)
		if string(e.Previous) != want.previous || string(e.Value) != want.value ||
			(e.Previous == nil) != (want.previous == "") || e.Deleted() != (want.value == "") {
			t.Errorf("event %d: %q to %q, want %q to %q", i, e.Previous, e.Value, want.previous, want.value)
		}
	}
}

func watchOrder(t *testing.T, s store.Store) {
	ctx := t.Context()
	w := watch(t, s, "", 0)
	const writes = 200
	var writer sync.WaitGroup
	defer writer.Wait() // the last event may be faster than its acknowledgement
	writer.Go(func() {
		for i := range writes {
			if _, err := store.Put(ctx, s, fmt.Sprintf("k%d", i%7), fmt.Append(nil, i), store.AnyRevision); err != nil {
				t.Errorf("put: %v", err)
				return
			}
		}
	})
	var last store.Revision
	for i := range writes {
		e := next(t, w)
		if string(e.Value) != fmt.Sprint(i) || e.Revision <= last {
			t.Fatalf("event %d is %s=%s at %d after %d", i, e.Key, e.Value, e.Revision, last)
		}
		last = e.Revision
	}
}

func watchConcurrent(t *testing.T, s store.Store) {
	ctx := t.Context()
	const writers, writes = 8, 40
	watches := []store.Watch{watch(t, s, "", 0)}
	var group sync.WaitGroup
	for writer := range writers {
		group.Go(func() {
			for i := range writes {
				if _, err := s.Apply(ctx,
					store.Op{Key: fmt.Sprintf("w/%d", writer), Value: fmt.Append(nil, i), IfWas: store.AnyRevision},
					store.Op{Key: "w/all", Value: fmt.Appendf(nil, "%d/%d", writer, i), IfWas: store.AnyRevision}); err != nil {
					t.Errorf("apply: %v", err)
					return
				}
			}
		})
	}
	// Watches that begin in the middle of it, after what they listed.
	var listed []map[string]string
	listed = append(listed, map[string]string{})
	for range 4 {
		entries, at, err := s.List(ctx, "w/", "", 0, 0)
		check(t, err)
		state := make(map[string]string)
		for _, e := range entries {
			state[e.Key] = string(e.Value)
		}
		listed, watches = append(listed, state), append(watches, watch(t, s, "w/", at))
	}
	group.Wait()
	entries, end, err := s.List(ctx, "w/", "", 0, 0)
	check(t, err)
	want := make(map[string]string)
	for _, e := range entries {
		want[e.Key] = string(e.Value)
	}
	for i, w := range watches {
		state, seen := listed[i], map[string]int{}
		for last := store.Revision(0); last < end; {
			e := next(t, w)
			if e.Revision < last {
				t.Fatalf("watch %d goes back from %d to %d", i, last, e.Revision)
			}
			if e.Key != "w/all" && state[e.Key] != string(e.Previous) {
				t.Fatalf("watch %d missed a change of %s: it was %q, now it has been %q", i, e.Key, state[e.Key], e.Previous)
			}
			last = e.Revision
			state[e.Key] = string(e.Value)
			if seen[e.Key]++; last == end && e.Key != "w/all" { // the pair's second follows
				e = next(t, w)
				state[e.Key] = string(e.Value)
			}
		}
		if !maps.Equal(state, want) {
			t.Errorf("watch %d ends with %v, want %v", i, state, want)
		}
		if i == 0 && seen["w/0"] != writes {
			t.Errorf("watch %d saw %d changes of w/0, want %d", i, seen["w/0"], writes)
		}
	}
}

func watchPrefix(t *testing.T, s store.Store) {
	ctx := t.Context()
	w := watch(t, s, "p/", 0)
	revision, err := s.Apply(ctx,
		store.Op{Key: "p", Value: []byte("1"), IfWas: store.Absent},
		store.Op{Key: "p/", Value: []byte("1"), IfWas: store.Absent},
		store.Op{Key: "p0", Value: []byte("1"), IfWas: store.Absent},
		store.Op{Key: "p/b", Value: []byte("1"), IfWas: store.Absent})
	check(t, err)
	must(t)(store.Put(ctx, s, "q", []byte("1"), store.Absent))
	must(t)(store.Put(ctx, s, "p/c", []byte("1"), store.Absent))
	events := expect(t, w, put("p/", "1"), put("p/b", "1"), put("p/c", "1"))
	if events[0].Last || !events[1].Last || !events[2].Last {
		t.Errorf("revisions end at %v %v %v, want at the last of each", events[0].Last, events[1].Last, events[2].Last)
	}
	if events[0].Revision != revision || events[2].Revision <= revision+1 {
		t.Errorf("revisions %d %d %d after %d", events[0].Revision, events[1].Revision, events[2].Revision, revision)
	}
}

func watchResume(t *testing.T, s store.Store) {
	ctx, stop := context.WithCancel(t.Context())
	w, err := s.Watch(ctx, "", 0)
	check(t, err)
	const writes = 30
	for i := range writes {
		must(t)(store.Put(t.Context(), s, "a", fmt.Append(nil, i), store.AnyRevision))
	}
	var last store.Revision
	seen := 0
	for range writes / 2 {
		e := next(t, w)
		last = e.Revision
		seen++
	}
	stop()
	for e := range w.Events() { // what was on its way; ends because ctx has
		if !e.Progress {
			last = e.Revision
			seen++
		}
	}
	if err := w.Err(); err != nil {
		t.Errorf("Err after the context ended = %v, want nil", err)
	}
	w = watch(t, s, "", last)
	for ; seen < writes; seen++ {
		if e := next(t, w); string(e.Value) != fmt.Sprint(seen) {
			t.Fatalf("resumed watch yields %s, want %d", e.Value, seen)
		}
	}
}

func watchProgress(t *testing.T, s store.Store) {
	ctx := t.Context()
	w := watch(t, s, "p/", 0)
	must(t)(store.Put(ctx, s, "p/a", []byte("1"), store.Absent))
	now := must(t)(store.Put(ctx, s, "elsewhere", []byte("1"), store.Absent))
	ask := time.NewTicker(20 * time.Millisecond)
	defer ask.Stop()
	limit := time.After(20 * time.Second)
	seen := false
	for {
		select {
		case e, open := <-w.Events():
			switch {
			case !open:
				t.Fatalf("the watch ended: %v", w.Err())
			case !e.Progress:
				seen = seen || e.Key == "p/a"
			case e.Revision >= now && !seen:
				t.Fatalf("the watch is at %d and has not delivered what was before", e.Revision)
			case e.Revision >= now:
				return
			}
		case <-ask.C:
			check(t, w.Progress(ctx, now))
		case <-limit:
			t.Fatalf("the watch never says that it is at %d", now)
		}
	}
}

func watchSlow(t *testing.T, s store.Store) {
	ctx := t.Context()
	slow, quick := watch(t, s, "s/", 0), watch(t, s, "s/", 0)
	other := watch(t, s, "end", 0)
	// Twice what an engine keeps for a reader, and then some: it may hold some
	// more on the way.
	ops := make([]store.Op, store.MaxOps)
	rounds := 2*store.MaxBacklog/store.MaxOps + 2
	read := make(chan struct{})
	go func() {
		defer close(read)
		for n := 0; n < rounds*len(ops); n++ {
			if e, open := <-quick.Events(); !open {
				t.Errorf("who reads at once is cut off: %v", quick.Err())
				return
			} else if e.Progress {
				n--
			}
		}
	}()
	for round := range rounds {
		for i := range ops {
			ops[i] = store.Op{Key: fmt.Sprintf("s/%05d", i), Value: fmt.Append(nil, round), IfWas: store.AnyRevision}
		}
		must(t)(s.Apply(ctx, ops...))
	}
	must(t)(store.Put(ctx, s, "end", []byte("1"), store.Absent))
	expect(t, other, put("end", "1")) // a slow reader holds nobody up
	// When the quick one has all of it, the engine has had as long for the slow one,
	// for whom half would be too much.
	select {
	case <-read:
	case <-time.After(2 * patience):
		t.Fatalf("who reads at once has not got everything in %s", 2*patience)
	}

	perRevision := make(map[store.Revision]int)
	events := 0
	for {
		e, ok := receive(t, slow)
		if !ok {
			break
		}
		perRevision[e.Revision]++
		events++
	}
	if !errors.Is(slow.Err(), store.ErrCompacted) {
		t.Errorf("Err = %v, want ErrCompacted", slow.Err())
	}
	if events >= rounds*len(ops) {
		t.Errorf("all %d events were kept for a reader who did not read", events)
	}
	for revision, n := range perRevision {
		if n != len(ops) {
			t.Errorf("of revision %d came %d changes, want all %d", revision, n, len(ops))
		}
	}
}
