package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage/store"
)

// bookmarkInterval is how often a quiet watch is told how far it is.
const bookmarkInterval = 30 * time.Second

// watch serves changes as they happen, until the client leaves, its time is up,
// or it is too slow.
func (s *Server) watch(c *call) error {
	selected, err := readSelection(c.query)
	if err != nil {
		return err
	}
	lifetime, err := wantedLifetime(c.query.Get("timeoutSeconds"))
	if err != nil {
		return err
	}
	if !s.limits.watch() {
		s.metrics.refused.WithLabelValues("watches").Inc()
		return newProblem(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests,
			"%d watches are open already", s.limits.maxWatch).retryAfter(5)
	}
	defer s.limits.leave()
	s.metrics.watches.Inc()
	defer s.metrics.watches.Dec()

	ctx, cancel := context.WithTimeout(c.r.Context(), lifetime)
	defer cancel()
	initial, from, err := s.watchFrom(c)
	if err != nil {
		return err
	}
	source, err := s.config.Store.Watch(ctx, c.prefix(), from)
	if err != nil {
		return err
	}
	w := newWatcher(s, c, selected)
	w.revision = from
	if err := endless(w.answer); err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json;stream=watch")
	c.w.WriteHeader(http.StatusOK)
	if err := w.begin(initial); err != nil {
		return err
	}
	return w.follow(ctx, source)
}

func wantedLifetime(text string) (time.Duration, error) {
	if text == "" {
		// Spread, so that clients do not come back all at once.
		return 30*time.Minute + rand.N(30*time.Minute), nil
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 {
		return 0, badRequest("timeoutSeconds %q is not a number from 0 up", text)
	}
	if n == 0 {
		return time.Hour, nil
	}
	return min(time.Duration(n)*time.Second, 24*time.Hour), nil
}

// watchFrom finds what is shown first, and the revision to go on from. Without a
// resourceVersion, or with 0, that is everything that is there; so it is when the
// client asks for initial events, which end in a bookmark that says so.
func (s *Server) watchFrom(c *call) (initial *items, from store.Revision, err error) {
	version, err := wantedRevision(c.query, "resourceVersion")
	if err != nil {
		return nil, 0, err
	}
	sendInitial := c.query.Get("sendInitialEvents")
	match := c.query.Get("resourceVersionMatch")
	switch {
	case sendInitial == "" && match != "":
		return nil, 0, badRequest("resourceVersionMatch is for lists, and for watches with sendInitialEvents")
	case sendInitial != "" && match != string(metav1.ResourceVersionMatchNotOlderThan):
		return nil, 0, badRequest("sendInitialEvents needs resourceVersionMatch=NotOlderThan")
	}
	if err := s.reached(c.r.Context(), version); err != nil {
		return nil, 0, err
	}
	if isTrue(sendInitial) || sendInitial == "" && version == 0 {
		listing := *c
		listing.query = map[string][]string{
			"labelSelector": c.query["labelSelector"], "fieldSelector": c.query["fieldSelector"],
		}
		if initial, err = s.collect(&listing); err != nil {
			return nil, 0, err
		}
		return initial, initial.revision, nil
	}
	if version == 0 {
		_, version, err = s.config.Store.List(c.r.Context(), c.prefix(), "", 1, 0)
	}
	return nil, version, err
}

// watcher turns changes of the store into the events that one client asked for.
type watcher struct {
	server   *Server
	call     *call
	selected selection
	answer   *http.ResponseController
	books    bool // bookmarks are wanted
	revision store.Revision
	columns  bool // the table's columns have been sent
}

func newWatcher(s *Server, c *call, selected selection) *watcher {
	return &watcher{
		server: s, call: c, selected: selected, answer: http.NewResponseController(c.w),
		books: isTrue(c.query.Get("allowWatchBookmarks")),
	}
}

// begin shows what is there.
func (w *watcher) begin(initial *items) error {
	if initial == nil {
		return w.flush()
	}
	for _, item := range initial.items {
		if err := w.object("ADDED", withRevision(item.value, w.call.kind, item.revision)); err != nil {
			return err
		}
	}
	if isTrue(w.call.query.Get("sendInitialEvents")) && w.books {
		if err := w.bookmark(map[string]string{metav1.InitialEventsAnnotationKey: "true"}); err != nil {
			return err
		}
	}
	return w.flush()
}

// follow shows what changes.
func (w *watcher) follow(ctx context.Context, source store.Watch) error {
	ticker := time.NewTicker(bookmarkInterval)
	defer ticker.Stop()
	told := w.revision
	for {
		var err error
		select {
		case event, open := <-source.Events():
			if !open {
				return w.end(ctx, source.Err())
			}
			err = w.event(event)
		case <-ticker.C:
			if w.books && w.revision > told {
				told, err = w.revision, w.bookmark(nil)
			}
		case <-ctx.Done():
			return nil
		case <-w.server.closing:
			return nil
		}
		if err == nil && len(source.Events()) == 0 {
			err = w.flush()
		}
		if err != nil {
			w.server.metrics.cutOff.Inc()
			return nil // the connection is broken or too slow: nobody is left to tell
		}
	}
}

// event shows one change, as the client's selection sees it.
func (w *watcher) event(event store.Event) error {
	w.revision = event.Revision
	if event.Progress {
		return nil
	}
	kind := w.call.kind
	namespace, name := splitKey(kind, event.Key)
	was := event.Previous != nil && w.selected.matches(namespace, name, event.Previous)
	is := event.Value != nil && w.selected.matches(namespace, name, event.Value)
	switch {
	case is && was:
		return w.object("MODIFIED", withRevision(event.Value, kind, event.Revision))
	case is:
		return w.object("ADDED", withRevision(event.Value, kind, event.Revision))
	case was:
		return w.object("DELETED", withRevision(event.Previous, kind, event.Revision))
	}
	return nil
}

// end tells why the watch ends, if the client should know.
func (w *watcher) end(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return nil
	}
	if errors.Is(err, store.ErrCompacted) {
		w.server.metrics.cutOff.Inc()
	}
	status, err := json.Marshal(asProblem(err).Status)
	if err != nil {
		return err
	}
	if err := w.send("ERROR", status); err != nil {
		return nil
	}
	_ = w.flush()
	return nil
}

// object shows one object in the client's form.
func (w *watcher) object(event string, value []byte) error {
	w.server.metrics.events.Inc()
	switch w.call.form.as {
	case "Table":
		t, err := newTable(w.call.kind, w.call.query.Get("includeObject"))
		if err != nil {
			return err
		}
		if err := t.add(value); err != nil {
			return err
		}
		t.ResourceVersion = formatRevision(w.revision)
		if w.columns {
			t.ColumnDefinitions = nil
		}
		w.columns = true
		if value, err = json.Marshal(t.Table); err != nil {
			return err
		}
	case "PartialObjectMetadata":
		partial, err := partialOf(value)
		if err != nil {
			return err
		}
		if value, err = json.Marshal(partial); err != nil {
			return err
		}
	}
	return w.send(event, value)
}

func (w *watcher) bookmark(annotations map[string]string) error {
	value, err := bookmark(w.call.kind, formatRevision(w.revision), annotations)
	if err != nil {
		return err
	}
	switch w.call.form.as {
	case "Table":
		t, err := newTable(w.call.kind, "Object")
		if err != nil {
			return err
		}
		t.ResourceVersion = formatRevision(w.revision)
		t.ColumnDefinitions = nil
		t.Rows = []metav1.TableRow{{Cells: []any{}}}
		t.Rows[0].Object.Raw = value
		if value, err = json.Marshal(t.Table); err != nil {
			return err
		}
	case "PartialObjectMetadata":
		partial, err := partialOf(value)
		if err != nil {
			return err
		}
		if value, err = json.Marshal(partial); err != nil {
			return err
		}
	}
	return w.send("BOOKMARK", value)
}

// send writes one event. A client that does not take it within the write limit
// is cut off.
func (w *watcher) send(event string, object []byte) error {
	if err := w.answer.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w.call.w, "{\"type\":%q,\"object\":%s}\n", event, object)
	return err
}

func (w *watcher) flush() error { return flush(w.answer) }

// endless lifts the server's deadlines from an answer that has no end by itself.
func endless(answer *http.ResponseController) error {
	return errors.Join(answer.SetReadDeadline(time.Time{}), answer.SetWriteDeadline(time.Time{}))
}

// flush sends what was written to a client that must take it within the write
// limit; until the next event it may be idle.
func flush(answer *http.ResponseController) error {
	if err := answer.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	if err := answer.Flush(); err != nil {
		return err
	}
	return answer.SetWriteDeadline(time.Time{})
}
