package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
)

// watching is an open watch whose events a test reads one by one.
type watching struct {
	t     *testing.T
	lines *bufio.Scanner
	end   context.CancelFunc
}

func (b *bench) watch(t *testing.T, query string, headers ...string) *watching {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, "GET", "http://bocage"+scopesPath+"?watch=true"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	answer, err := (&http.Client{Transport: unixTransport(b.socket)}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = answer.Body.Close() })
	if answer.StatusCode != 200 {
		t.Fatalf("watch: %s", answer.Status)
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	return &watching{t, lines, cancel}
}

// next returns the next event as TYPE name, or TYPE annotation of a bookmark.
func (w *watching) next() (event string, revision string) {
	w.t.Helper()
	if !w.lines.Scan() {
		w.t.Fatalf("the watch ended: %v", w.lines.Err())
	}
	var e struct {
		Type   string
		Object struct {
			Code     int
			Metadata bocage.ObjectMeta
		}
	}
	if err := json.Unmarshal(w.lines.Bytes(), &e); err != nil {
		w.t.Fatal(err)
	}
	switch e.Type {
	case "BOOKMARK":
		return fmt.Sprintf("BOOKMARK %v", e.Object.Metadata.Annotations), e.Object.Metadata.ResourceVersion
	case "ERROR":
		return fmt.Sprintf("ERROR %d", e.Object.Code), ""
	}
	return e.Type + " " + e.Object.Metadata.Name, e.Object.Metadata.ResourceVersion
}

func (w *watching) want(events ...string) (revision string) {
	w.t.Helper()
	for _, want := range events {
		var got string
		if got, revision = w.next(); got != want {
			w.t.Fatalf("event %q, want %q", got, want)
		}
	}
	return revision
}

func (b *bench) mustScope(t *testing.T, method, name, body string) {
	t.Helper()
	path, contentType := scopesPath+"/"+name, mergeType
	switch method {
	case "POST":
		path, contentType, body = scopesPath, jsonType, scopeJSON(name, "observe", "")
	case "DELETE":
		contentType = ""
	}
	if code, text, _ := b.raw(t, method, path, contentType, body); code/100 != 2 {
		t.Fatalf("%s %s: %d %s", method, name, code, text)
	}
}

func TestWatch(t *testing.T) {
	b := start(t, nil)
	b.mustScope(t, "POST", "a", "")

	all := b.watch(t, "")
	all.want("ADDED a")
	labelled := b.watch(t, "&labelSelector=x%3D1")
	listed := b.watch(t, "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
	listed.want("ADDED a", "BOOKMARK map[k8s.io/initial-events-end:true]")
	table := b.watch(t, "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	if !table.lines.Scan() || !strings.Contains(table.lines.Text(), `"columnDefinitions":[{"name":"Name"`) {
		t.Errorf("table: %s", table.lines.Text())
	}

	b.mustScope(t, "POST", "b", "")
	b.mustScope(t, "PATCH", "a", `{"metadata":{"labels":{"x":"1"}}}`)
	b.mustScope(t, "PATCH", "a", `{"metadata":{"labels":{"y":"1"}}}`)
	b.mustScope(t, "PATCH", "a", `{"metadata":{"labels":{"x":"2"}}}`)
	b.mustScope(t, "PATCH", "b", `{"metadata":{"labels":{"x":"1"}}}`)
	b.mustScope(t, "DELETE", "b", "")

	from := all.want("ADDED b")
	all.want("MODIFIED a", "MODIFIED a", "MODIFIED a", "MODIFIED b", "DELETED b")
	listed.want("ADDED b", "MODIFIED a")
	// A selection sees objects come and go as they match.
	labelled.want("ADDED a", "MODIFIED a", "DELETED a", "ADDED b", "DELETED b")
	// A watch is resumed where it was.
	b.watch(t, "&resourceVersion="+from).want("MODIFIED a", "MODIFIED a", "MODIFIED a", "MODIFIED b", "DELETED b")
	b.watch(t, "&fieldSelector=metadata.name%3Db&resourceVersion="+from).want("MODIFIED b", "DELETED b")
}

func TestWatchEndsInTime(t *testing.T) {
	b := start(t, nil)
	w := b.watch(t, "&timeoutSeconds=1")
	if w.lines.Scan() || w.lines.Err() != nil {
		t.Errorf("%q, %v", w.lines.Text(), w.lines.Err())
	}
}

func TestWatchOfForgottenRevisions(t *testing.T) {
	inner := mem.New()
	at, err := store.Put(t.Context(), inner, "elsewhere", []byte("1"), store.Absent)
	if err != nil {
		t.Fatal(err)
	}
	if err := inner.Compact(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *Config) { c.Store = forgetful{inner} })
	b.watch(t, "&resourceVersion=1").want("ERROR 410")
	code, text, _ := b.raw(t, "GET", scopesPath+"?resourceVersion=1&resourceVersionMatch=Exact", "", "")
	if code != 410 {
		t.Error(code, text)
	}
}

// forgetful has compacted everything but the present.
type forgetful struct{ store.Store }

func (f forgetful) List(ctx context.Context, prefix, after string, limit int, at store.Revision) ([]store.Entry, store.Revision, error) {
	if at != 0 {
		return nil, 0, fmt.Errorf("list at %d: %w", at, store.ErrCompacted)
	}
	return f.Store.List(ctx, prefix, after, limit, at)
}

// TestWatchThatMissedChanges: a watch that the store cuts off ends with an error
// that makes the client list again.
func TestWatchThatMissedChanges(t *testing.T) {
	breaking := &breakable{Store: mem.New(), events: make(chan store.Event)}
	b := start(t, func(c *Config) { c.Store = breaking })
	w := b.watch(t, "")
	close(breaking.events)
	w.want("ERROR 410")
	if w.lines.Scan() {
		t.Errorf("more: %s", w.lines.Text())
	}
	if _, text, _ := b.raw(t, "GET", "/metrics", "", ""); !strings.Contains(text, "bocage_api_watches_cut_off_total 1") {
		t.Error("the cut is not counted")
	}
}

// breakable has watches that a test ends.
type breakable struct {
	store.Store
	events chan store.Event
}

func (b *breakable) Watch(context.Context, string, store.Revision) (store.Watch, error) {
	return b, nil
}
func (b *breakable) Events() <-chan store.Event { return b.events }
func (b *breakable) Err() error                 { return store.ErrCompacted }

func (b *breakable) Progress(context.Context, store.Revision) error { return nil }

func TestWatchesAreBounded(t *testing.T) {
	b := start(t, func(c *Config) { c.MaxWatches = 2 })
	first := b.watch(t, "")
	b.watch(t, "")
	if code, text, header := b.raw(t, "GET", scopesPath+"?watch=1", "", ""); code != 429 || header.Get("Retry-After") == "" {
		t.Error(code, text)
	}
	if _, text, _ := b.raw(t, "GET", "/metrics", "", ""); !strings.Contains(text, "bocage_api_watches 2") ||
		!strings.Contains(text, `bocage_api_refused_total{limit="watches"} 1`) {
		t.Error("watches are not counted")
	}
	first.end()
	// The place is free once the server has seen the client go.
	deadline := time.Now().Add(10 * time.Second)
	for b.server.limits.following() == 2 && time.Now().Before(deadline) {
		b.raw(t, "GET", "/livez", "", "")
	}
	b.watch(t, "")
}

// TestSlowWatcher: a client that reads nothing is cut off, and delays nobody.
func TestSlowWatcher(t *testing.T) {
	b := start(t, nil)
	ctx := t.Context()
	request, err := http.NewRequestWithContext(ctx, "GET", "http://bocage"+scopesPath+"?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := (&http.Client{Transport: unixTransport(b.socket)}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	quick := b.watch(t, "")
	large := strings.Repeat("x", 200<<10)
	b.mustScope(t, "POST", "a", "")
	quick.want("ADDED a")
	for i := range 40 {
		b.mustScope(t, "PATCH", "a", fmt.Sprintf(`{"metadata":{"annotations":{"a":"%s%d"}}}`, large, i))
		quick.want("MODIFIED a")
	}
}

func TestClientWatch(t *testing.T) {
	b := start(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b.mustScope(t, "POST", "a", "")
	viewer := b.as(t, RoleViewer) // over HTTP/2
	seen := make(chan string, 10)
	done := make(chan error, 1)
	enough := errors.New("enough")
	go func() {
		done <- viewer.Watch(ctx, kind("Scope"), client.ListOptions{}, func(e client.Event) error {
			seen <- string(e.Type) + " " + e.Object.Meta().Name
			if e.Type == client.Deleted {
				return enough
			}
			return nil
		})
	}()
	if got := <-seen; got != "ADDED a" {
		t.Error(got)
	}
	b.mustScope(t, "PATCH", "a", `{"spec":{"mode":"enforce"}}`)
	if got := <-seen; got != "MODIFIED a" {
		t.Error(got)
	}
	b.mustScope(t, "DELETE", "a", "")
	if err := <-done; !errors.Is(err, enough) {
		t.Error(err)
	}
}

func TestWaitCondition(t *testing.T) {
	b := start(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b.mustScope(t, "POST", "a", "")
	done := make(chan error, 1)
	go func() {
		said, err := b.client.WaitCondition(ctx, kind("Scope"), "", "a", "Enforced", "True")
		if err == nil && said.Status != "True" {
			err = fmt.Errorf("it is said to be %+v", said)
		}
		done <- err
	}()
	for _, status := range []string{"False", "True"} {
		err := store.UpdateObject(ctx, b.store, kind("Scope"), "", "a", func(s *bocage.Scope) (bool, error) {
			s.Status.Conditions = bocage.SetCondition(s.Status.Conditions, bocage.Condition{Type: "Enforced", Status: status, ObservedGeneration: 1})
			return true, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	short, cancelShort := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancelShort()
	_, err := b.client.WaitCondition(short, kind("Scope"), "", "a", "Proved", "True")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nothing is said of it") {
		t.Error(err)
	}
}

// TestClosing: a server that stops lets watches go at once.
func TestClosing(t *testing.T) {
	b := start(t, nil)
	other, err := New(Config{Store: b.store, Socket: b.socket + "2", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- other.Run(ctx) }()
	if _, err := other.Addresses(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := &bench{server: other, socket: b.socket + "2"}
	w := second.watch(t, "")
	began := time.Now()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if w.lines.Scan() || time.Since(began) > shutdownLimit {
		t.Errorf("stopping took %s", time.Since(began))
	}
}
