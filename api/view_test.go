package api

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
)

// TestViewIsTheStore: whatever is written, in whichever transactions, the view
// shows what the store has, as it is and as it was, and whoever follows it from
// any revision on ends with the same.
func TestViewIsTheStore(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := New(Config{Store: mem.New(), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			rt.Fatal(err)
		}
		v := s.view
		done := make(chan struct{})
		go func() { defer close(done); v.run(ctx) }()
		defer func() { cancel(); <-done }()

		app := kind("Application")
		var revisions []store.Revision
		if err := v.fresh(ctx); err != nil {
			rt.Fatal(err)
		}
		at, _ := v.position()
		revisions = append(revisions, at)
		for range rapid.IntRange(1, 30).Draw(rt, "transactions") {
			ops := map[string]store.Op{}
			for range rapid.IntRange(1, 5).Draw(rt, "writes") {
				namespace := rapid.SampledFrom([]string{"a", "b", "default"}).Draw(rt, "namespace")
				name := rapid.SampledFrom([]string{"x", "y", "z"}).Draw(rt, "name")
				key := app.Key(namespace, name)
				op := store.Op{Key: key, IfWas: store.AnyRevision, Delete: rapid.Bool().Draw(rt, "delete")}
				if !op.Delete {
					op.Value, err = store.EncodeObject(app, &bocage.Application{ObjectMeta: bocage.ObjectMeta{
						Namespace: namespace, Name: name, Labels: map[string]string{"n": fmt.Sprint(rapid.IntRange(0, 2).Draw(rt, "label"))},
					}})
					if err != nil {
						rt.Fatal(err)
					}
				}
				ops[key] = op
			}
			if rapid.Bool().Draw(rt, "elsewhere") {
				ops["counters/x"] = store.Op{Key: "counters/x", Value: []byte("1"), IfWas: store.AnyRevision}
			}
			at, err := v.store.Apply(ctx, slices.Collect(maps.Values(ops))...)
			if err != nil {
				rt.Fatal(err)
			}
			revisions = append(revisions, at)
		}
		if err := v.fresh(ctx); err != nil {
			rt.Fatal(err)
		}
		namespace := rapid.SampledFrom([]string{"", "a", "b"}).Draw(rt, "listed namespace")
		prefix := app.KeyPrefix()
		if namespace != "" {
			prefix += namespace + "/"
		}
		atRevision := func(at store.Revision) string {
			entries, _, err := v.store.List(ctx, prefix, "", 0, at)
			if err != nil {
				rt.Fatal(err)
			}
			var out []string
			for _, e := range entries {
				out = append(out, fmt.Sprintf("%s@%d", strings.TrimPrefix(e.Key, app.KeyPrefix()), e.Revision))
			}
			return strings.Join(out, " ")
		}
		shown := func(objects []*object) string {
			var out []string
			for _, o := range objects {
				out = append(out, fmt.Sprintf("%s@%d", o.key, o.revision))
			}
			return strings.Join(out, " ")
		}
		for _, at := range revisions {
			objects, ok := v.snapshotAt("applications", namespace, "", at)
			if want := atRevision(at); !ok || shown(objects) != want {
				rt.Fatalf("at %d the view shows %q, the store has %q", at, shown(objects), want)
			}
			follows(rt, v, namespace, at, objects, atRevision(0))
		}
		inhabited := map[string]bool{"default": true}
		entries, _, err := v.store.List(ctx, app.KeyPrefix(), "", 0, 0)
		if err != nil {
			rt.Fatal(err)
		}
		for _, e := range entries {
			namespace, _ := splitKey(app, e.Key)
			inhabited[namespace] = true
		}
		namespaces, _, _ := v.snapshot("namespaces", "")
		var names []string
		for _, o := range namespaces {
			names = append(names, o.name)
		}
		if want := slices.Sorted(maps.Keys(inhabited)); !slices.Equal(names, want) {
			rt.Fatalf("namespaces %v, want %v", names, want)
		}
	})
}

// follows starts from what was at a revision, and must come to what is.
func follows(rt *rapid.T, v *view, namespace string, at store.Revision, from []*object, want string) {
	f, _, _, missing, err := v.join("applications", namespace, selection{all: true}, &at)
	if err != nil || missing {
		rt.Fatal(err, missing)
	}
	defer v.leave(f)
	state := map[string]store.Revision{}
	for _, o := range from {
		state[o.key] = o.revision
	}
	steps, _, err := v.news(f)
	if err != nil {
		rt.Fatal(err)
	}
	for _, ch := range steps {
		o := ch.is
		if o == nil {
			o = ch.was
		}
		if namespace != "" && o.namespace != namespace {
			continue
		}
		if ch.is == nil {
			delete(state, o.key)
		} else {
			state[o.key] = ch.is.revision
		}
	}
	var out []string
	for _, key := range slices.Sorted(maps.Keys(state)) {
		out = append(out, fmt.Sprintf("%s@%d", key, state[key]))
	}
	if got := strings.Join(out, " "); got != want {
		rt.Fatalf("who follows from %d on comes to %q, want %q", at, got, want)
	}
}

// TestResumeAfterRestart: a server that just started knows nothing of what was
// before, and a watch is resumed all the same, from the store.
func TestResumeAfterRestart(t *testing.T) {
	s := mem.New()
	first := start(t, func(c *Config) { c.Store = s })
	first.mustScope(t, "POST", "a", "")
	from := first.watch(t, "").want("ADDED a")
	first.mustScope(t, "PATCH", "a", `{"metadata":{"labels":{"x":"1"}}}`)
	first.mustScope(t, "POST", "b", "")
	first.mustScope(t, "DELETE", "a", "")

	second := start(t, func(c *Config) { c.Store = s })
	w := second.watch(t, "&resourceVersion="+from)
	w.want("MODIFIED a", "ADDED b", "DELETED a")
	selected := second.watch(t, "&labelSelector=x&resourceVersion="+from)
	selected.want("ADDED a", "DELETED a")
	second.mustScope(t, "PATCH", "b", `{"metadata":{"labels":{"x":"1"}}}`)
	w.want("MODIFIED b")
	selected.want("ADDED b")

	// So is a list in pages that began elsewhere.
	for _, name := range []string{"c", "d"} {
		first.mustScope(t, "POST", name, "")
	}
	_, text, _ := first.raw(t, "GET", scopesPath+"?limit=1", "", "")
	token := between(text, `"continue":"`, `"`)
	first.mustScope(t, "DELETE", "c", "")
	third := start(t, func(c *Config) { c.Store = s })
	_, text, _ = third.raw(t, "GET", scopesPath+"?limit=5&continue="+token, "", "")
	if strings.Count(text, `"kind":"Scope"`) != 2 || !strings.Contains(text, `"name":"c"`) {
		t.Errorf("the second page: %s", text)
	}
	// What the store forgot is gone for good.
	at, err := store.Put(t.Context(), s, "elsewhere", []byte("1"), store.AnyRevision)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Compact(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	fourth := start(t, func(c *Config) { c.Store = s })
	fourth.watch(t, "&resourceVersion="+from).want("ERROR 410")
	if code, text, _ := fourth.raw(t, "GET", scopesPath+"?limit=5&continue="+token, "", ""); code != http.StatusGone {
		t.Error(code, text)
	}
}

func between(text, before, after string) string {
	_, rest, _ := strings.Cut(text, before)
	found, _, _ := strings.Cut(rest, after)
	return found
}

// TestMemoryOfChangesIsBounded: what a collection remembers has an end, whoever
// follows it.
func TestMemoryOfChangesIsBounded(t *testing.T) {
	kind := &seenKind{Kind: kind("Scope")}
	c := newCollection(kind, 1)
	slow := &follower{collection: c, selected: selection{all: true}, ready: make(chan struct{}, 1), from: -1}
	c.followers[""] = map[*follower]struct{}{slow: {}}
	for i := range 2 * maxChanges {
		at := store.Revision(2 + i)
		c.set("a", newObject(kind, "a", []byte(`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"a"}}`), at), at)
	}
	if len(c.changes) != maxChanges || len(c.objects) != 1 {
		t.Errorf("%d changes are kept of %d objects", len(c.changes), len(c.objects))
	}
	v := &view{collections: map[string]*collection{"scopes": c}, filled: true}
	if _, _, err := v.news(slow); err == nil {
		t.Error("a follower that missed changes was not told")
	}
	if _, ok := c.numberAfter(5); ok {
		t.Error("a revision that was forgotten counts as known")
	}
	if _, ok := c.numberAfter(store.Revision(2 * maxChanges)); !ok {
		t.Error("a revision that is kept counts as forgotten")
	}
	large := []byte(`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"a","annotations":{"x":"` + strings.Repeat("x", 1<<20) + `"}}}`)
	for i := range 100 {
		at := store.Revision(1e6 + i)
		c.set("a", newObject(kind, "a", large, at), at)
	}
	if c.bytes > maxChangeBytes+4<<20 {
		t.Errorf("%d MiB are kept", c.bytes>>20)
	}
}

// TestOneCopyOfAnEvent: what many watchers are shown is written once.
func TestOneCopyOfAnEvent(t *testing.T) {
	kind := &seenKind{Kind: kind("Scope")}
	was := newObject(kind, "a", []byte(`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"a"},"spec":{"mode":"observe"}}`), 7)
	ch := &step{revision: 9, was: was}
	written := 0
	for range 3 {
		data, err := ch.shown(rendering{form: "PartialObjectMetadata", gone: true}, func(value []byte) ([]byte, error) {
			written++
			return partialJSON(value)
		})
		if err != nil || !strings.Contains(string(data), `"resourceVersion":"9"`) || strings.Contains(string(data), "observe") {
			t.Errorf("%s, %v", data, err)
		}
	}
	if written != 1 {
		t.Errorf("written %d times", written)
	}
	data, err := ch.shown(rendering{gone: true}, nil)
	if err != nil || string(data) != `{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"resourceVersion":"9","name":"a"},"spec":{"mode":"observe"}}` {
		t.Errorf("%s, %v", data, err)
	}
}

// TestSlowWatcherIsCutOff: a client that takes nothing loses its watch when its
// time is over, and is counted.
func TestSlowWatcherIsCutOff(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes as long as a client is given")
	}
	b := start(t, nil)
	request, err := http.NewRequestWithContext(t.Context(), "GET", "http://bocage"+scopesPath+"?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := (&http.Client{Transport: unixTransport(b.socket)}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	b.mustScope(t, "POST", "a", "")
	large := strings.Repeat("x", 200<<10)
	for n := range 20 { // more than the socket holds
		b.mustScope(t, "PATCH", "a", fmt.Sprintf(`{"metadata":{"annotations":{"a":"%s%d"}}}`, large, n))
	}
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(writeLimit + 20*time.Second); b.server.limits.following() > 0; <-look.C {
		if time.Now().After(deadline) {
			t.Fatal("the watch is open still")
		}
	}
	if _, text, _ := b.raw(t, "GET", "/metrics", "", ""); !strings.Contains(text, "bocage_api_watches_cut_off_total 1") {
		t.Error("the cut is not counted")
	}
}
