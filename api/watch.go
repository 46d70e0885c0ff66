package api

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage/store"
)

const (
	// bookmarkInterval is how often a quiet watch is told how far it is.
	bookmarkInterval = 30 * time.Second
	// catchUpLimit is how long the store has to tell what the view has forgotten, and
	// catchUpAsk how often it is asked at least whether that was all.
	catchUpLimit = 30 * time.Second
	catchUpAsk   = time.Second
)

// watch serves changes as they happen, until the client leaves, its time is up,
// or it is too slow.
func (s *Server) watch(c *call) error {
	selected, err := c.selection()
	if err != nil {
		return err
	}
	lifetime, err := wantedLifetime(c.query.Get("timeoutSeconds"))
	if err != nil {
		return err
	}
	w, err := newWatcher(s, c, selected)
	if err != nil {
		return err
	}
	if !s.limits.watch(c.person.principal()) {
		s.metrics.refused.WithLabelValues("watches").Inc()
		return newProblem(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests,
			"%d watches are open already, or %d of them are yours", s.limits.maxWatch, s.limits.share()).retryAfter(5)
	}
	defer s.limits.leave(c.person.principal())
	s.metrics.watches.Inc()
	defer s.metrics.watches.Dec()

	start, err := s.startWatch(c, selected)
	if err != nil {
		return err
	}
	defer s.view.leave(start.follower)
	if err := endless(w.answer); err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json;stream=watch")
	c.w.WriteHeader(http.StatusOK)
	ctx := c.r.Context()
	if start.after != nil {
		// The client learns at once that it is connected.
		if err = w.flush(); err == nil {
			err = w.catchUp(ctx, start)
		}
	} else {
		err = w.begin(start)
	}
	if err == nil {
		err = w.follow(ctx, start.follower, lifetime)
	}
	w.end(err)
	return nil
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

// watchStart is where a watch begins.
type watchStart struct {
	follower *follower
	// initial is what is shown first, if initially is set, at revision.
	initial   []*object
	initially bool
	revision  store.Revision
	// after is set if the view no longer knows what came between it and revision:
	// the store may.
	after *store.Revision
}

// startWatch finds what is shown first, and from where to go on. Without a
// resourceVersion, or with 0, everything that is there is shown first; so it is
// when the client asks for initial events, which end in a bookmark that says so.
func (s *Server) startWatch(c *call, selected selection) (*watchStart, error) {
	version, err := wantedRevision(c.query, "resourceVersion")
	if err != nil {
		return nil, err
	}
	sendInitial := c.query.Get("sendInitialEvents")
	match := c.query.Get("resourceVersionMatch")
	switch {
	case sendInitial == "" && match != "":
		return nil, wrongOption(listOptions, "resourceVersionMatch", "is forbidden for watch unless sendInitialEvents is provided")
	case sendInitial != "" && match != string(metav1.ResourceVersionMatchNotOlderThan):
		return nil, wrongOption(listOptions, "resourceVersionMatch", "sendInitialEvents requires it to be NotOlderThan")
	case c.query.Get("continue") != "":
		return nil, badRequest("a watch has no pages: leave out continue")
	}
	if c.query.Get("resourceVersion") == "" {
		err = s.view.fresh(c.r.Context())
	} else {
		err = s.view.reach(c.r.Context(), version)
	}
	if err != nil {
		return nil, err
	}
	start := &watchStart{initially: says(c.query, "sendInitialEvents") || sendInitial == "" && version == 0}
	var after *store.Revision
	if !start.initially && version != 0 {
		after = &version
	}
	var missing bool
	start.follower, start.initial, start.revision, missing, err = s.view.join(c.kind.Plural, c.namespace, selected, after)
	switch {
	case err != nil:
		return nil, err
	case missing && c.kind.Name == "Namespace":
		// Those that nobody declared are not in the store.
		s.view.leave(start.follower)
		return nil, expired()
	case missing:
		start.after = after
	}
	return start, nil
}

// watcher shows one client what changes.
type watcher struct {
	server   *Server
	call     *call
	selected selection
	answer   *http.ResponseController
	books    bool // bookmarks are wanted
	table    *table
	columns  bool // the table's columns have been sent
	revision store.Revision
}

func newWatcher(s *Server, c *call, selected selection) (*watcher, error) {
	w := &watcher{
		server: s, call: c, selected: selected, answer: http.NewResponseController(c.w),
		books: says(c.query, "allowWatchBookmarks"),
	}
	var err error
	if c.form.as == "Table" {
		w.table, err = newTable(c.kind, c.query.Get("includeObject"))
	}
	return w, err
}

// begin shows what is there.
func (w *watcher) begin(start *watchStart) error {
	if err := w.deadline(); err != nil {
		return err
	}
	for _, o := range start.initial {
		if !w.selected.picks(o) {
			continue
		}
		if err := w.event("ADDED", &step{revision: o.revision, is: o}, false); err != nil {
			return err
		}
	}
	w.revision = max(w.revision, start.revision)
	if says(w.call.query, "sendInitialEvents") && w.books {
		if err := w.bookmark(map[string]string{metav1.InitialEventsAnnotationKey: "true"}); err != nil {
			return err
		}
	}
	return w.flush()
}

// catchUp shows what came after a revision that the view has forgotten, as long
// as the store remembers it.
func (w *watcher) catchUp(ctx context.Context, start *watchStart) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	source, err := w.server.config.Store.Watch(ctx, w.call.prefix(), *start.after)
	if err != nil {
		return err
	}
	kind := w.server.view.kinds[w.call.kind.Plural]
	pause := askInterval
	ask := time.NewTimer(pause)
	defer ask.Stop()
	for {
		select {
		case event, open := <-source.Events():
			switch {
			case !open:
				if err := source.Err(); err != nil {
					return err
				}
				return ctx.Err()
			case event.Revision > start.revision, event.Progress && event.Revision >= start.revision:
				return w.caughtUp(ctx, *start.after)
			case event.Progress:
				continue
			}
			ch := &step{revision: event.Revision}
			key := event.Key[len(kind.KeyPrefix()):]
			if event.Value != nil {
				ch.is = newObject(kind, key, event.Value, event.Revision)
			}
			if event.Previous != nil {
				ch.was = newObject(kind, key, event.Previous, event.Revision)
			}
			if err := w.step(ch); err != nil {
				return err
			}
		case <-ask.C:
			err := source.Progress(ctx, start.revision)
			if errors.Is(err, store.ErrFull) {
				return expired() // whether that was all cannot be known
			}
			if err != nil {
				return err
			}
			pause = min(2*pause, catchUpAsk)
			ask.Reset(pause)
		}
	}
}

// caughtUp shows what came, if nothing of it can be missing: some engines leave out
// what they forget while they tell it.
func (w *watcher) caughtUp(ctx context.Context, after store.Revision) error {
	if _, _, err := w.server.config.Store.List(ctx, nothingPrefix, "", 1, after); err != nil {
		return err
	}
	return w.flush()
}

// follow shows what changes.
func (w *watcher) follow(ctx context.Context, f *follower, lifetime time.Duration) error {
	ticker := time.NewTicker(bookmarkInterval)
	defer ticker.Stop()
	end := time.NewTimer(lifetime)
	defer end.Stop()
	told := w.revision
	for {
		var err error
		select {
		case <-f.ready:
			err = w.news(f)
		case <-ticker.C:
			if err = w.news(f); err == nil && w.books && w.revision > told {
				told, err = w.revision, w.bookmarkNow()
			}
		case <-end.C:
			if err = w.news(f); err == nil && w.books {
				err = w.bookmarkNow()
			}
			if err == nil {
				return nil
			}
		case <-ctx.Done():
			return nil
		case <-w.server.closing:
			return nil
		}
		switch {
		case errors.Is(err, errCut):
			w.server.metrics.cutOff.Inc()
			return expired()
		case err != nil:
			w.server.metrics.cutOff.Inc()
			return nil // the connection is broken or too slow: nobody is left to tell
		}
	}
}

// news shows what the view has for this client.
func (w *watcher) news(f *follower) error {
	changes, at, err := w.server.view.news(f)
	if err != nil {
		return err
	}
	if len(changes) > 0 {
		if err := w.deadline(); err != nil {
			return err
		}
	}
	for _, ch := range changes {
		if err := w.step(ch); err != nil {
			return err
		}
	}
	w.revision = max(w.revision, at)
	if len(changes) == 0 {
		return nil
	}
	return w.flush()
}

// step shows one change, as the client's selection sees it.
func (w *watcher) step(ch *step) error {
	was := ch.was != nil && w.here(ch.was)
	is := ch.is != nil && w.here(ch.is)
	switch {
	case is && was:
		return w.event("MODIFIED", ch, false)
	case is:
		return w.event("ADDED", ch, false)
	case was:
		return w.event("DELETED", ch, true)
	}
	return nil
}

// here reports whether an object is in the watched namespace and selected.
func (w *watcher) here(o *object) bool {
	return (w.call.namespace == "" || o.namespace == w.call.namespace) && w.selected.picks(o)
}

// event shows one object in the client's form.
func (w *watcher) event(event string, ch *step, gone bool) error {
	w.server.metrics.events.Inc()
	r := rendering{form: w.call.form.as, gone: gone}
	if w.call.version != w.call.kind.APIVersion {
		r.version = w.call.version
	}
	if w.table != nil {
		r.include = string(w.table.include)
	}
	w.revision = max(w.revision, ch.revision)
	ch, err := w.call.revealedStep(ch)
	if err != nil {
		return err
	}
	data, err := ch.shown(r, func(value []byte) ([]byte, error) {
		if w.table != nil {
			return w.table.row(value)
		}
		return partialJSON(value)
	})
	if err != nil {
		return err
	}
	if w.table != nil {
		data = w.table.around(data, ch.revision, !w.columns)
		w.columns = true
	}
	return w.send(event, data)
}

// bookmarkNow tells how far the watch is.
func (w *watcher) bookmarkNow() error {
	if err := w.deadline(); err != nil {
		return err
	}
	if err := w.bookmark(nil); err != nil {
		return err
	}
	return w.flush()
}

func (w *watcher) bookmark(annotations map[string]string) error {
	value, err := bookmark(w.call.kind.In(w.call.version), formatRevision(w.revision), annotations)
	if err != nil {
		return err
	}
	switch w.call.form.as {
	case "Table":
		value = w.table.around([]byte(`{"cells":[],"object":`+string(value)+`}`), w.revision, false)
	case "PartialObjectMetadata", "PartialObjectMetadataList":
		if value, err = partialJSON(value); err != nil {
			return err
		}
	}
	return w.send("BOOKMARK", value)
}

// send writes one event.
func (w *watcher) send(event string, object []byte) error {
	head := make([]byte, 0, 40)
	head = append(append(append(head, `{"type":"`...), event...), `","object":`...)
	for _, part := range [][]byte{head, object, []byte("}\n")} {
		if _, err := w.call.w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// deadline begins the time within which the client must take what is sent next.
func (w *watcher) deadline() error { return w.answer.SetWriteDeadline(time.Now().Add(writeLimit)) }

func (w *watcher) flush() error { return flush(w.answer) }

// end tells why the watch ends, if the client should know.
func (w *watcher) end(err error) {
	if err == nil || w.call.r.Context().Err() != nil {
		return
	}
	status, jsonErr := json.Marshal(asProblem(err).Status)
	if jsonErr != nil || w.deadline() != nil || w.send("ERROR", status) != nil {
		return
	}
	_ = w.flush()
}

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
