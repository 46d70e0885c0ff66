package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"bocage.dev/bocage/store"
)

// Who is content with what the controller has (resourceVersion=0, discovery) need not
// wait for a store that does not answer. Who they are is asked all the same, of what
// the controller heard of them last: for a while, since what was taken from them since
// cannot be known.

const (
	// rememberedLimit is how long what was heard of a credential or of roles counts
	// without the store.
	rememberedLimit = 5 * time.Minute
	// contentLimit is how long those who are content wait for the store, and
	// awayLimit how long they do not even try after that.
	contentLimit = time.Second
	awayLimit    = 5 * time.Second
	// rememberedSessions bounds what is remembered: more than may be open at once.
	rememberedSessions = 2 * sessionsAtMost
)

// remembered is what the store last said about who people are.
type remembered struct {
	mu       sync.Mutex // guards what follows
	sessions map[string]heardSession
	roles    time.Time // when the view was known to show the newest
	away     time.Time // until then nobody who is content tries
}

type heardSession struct {
	entry store.Entry
	at    time.Time
}

// contentKey marks the context of a request that is content with what there is.
type contentKey struct{}

// content reports whether a request asks for nothing that is newer than what the
// controller has.
func content(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	path := strings.TrimSuffix(r.URL.Path, "/")
	if isResource(path) {
		query := r.URL.Query()
		return query.Get("resourceVersion") == "0" && query.Get("continue") == ""
	}
	switch {
	case strings.HasPrefix(path, functionsPath+"/"):
		return false
	case path == "", path == "/version", path == "/api", path == "/apis":
		return true
	}
	for _, prefix := range []string{"/api/", "/apis/", "/openapi/"} {
		if strings.HasPrefix(path, prefix) {
			return true
		}
	}
	return false
}

func isContent(ctx context.Context) bool { return ctx.Value(contentKey{}) != nil }

// ask asks the store, unless it is known not to answer whoever is content. recall is
// what is told instead; it returns nil if there is nothing.
func (m *remembered) ask(ctx context.Context, ask func(context.Context) error, recall func() error) error {
	if !isContent(ctx) {
		err := ask(ctx)
		if err == nil {
			m.answers()
		}
		return err
	}
	m.mu.Lock()
	away := time.Now().Before(m.away)
	m.mu.Unlock()
	if !away {
		short, cancel := context.WithTimeout(ctx, contentLimit)
		defer cancel()
		if err := ask(short); err == nil || !silent(err) || ctx.Err() != nil {
			return err
		}
		m.mu.Lock()
		m.away = time.Now().Add(awayLimit)
		m.mu.Unlock()
	}
	if recall() == nil {
		return nil
	}
	return fmt.Errorf("%w, and of who asks %w", store.ErrUnavailable, errForgotten)
}

// answers notes that the store does.
func (m *remembered) answers() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away = time.Time{}
}

// silent tells a store that does not answer from one that says no.
func silent(err error) bool {
	var p *problem
	if errors.As(err, &p) {
		return p.Code == http.StatusGatewayTimeout || p.Code == http.StatusServiceUnavailable
	}
	return errors.Is(err, store.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

// sessionEntry reads a session.
func (s *Server) sessionEntry(ctx context.Context, key string) (entry store.Entry, err error) {
	m := &s.remembered
	err = m.ask(ctx, func(ctx context.Context) error {
		var err error
		entry, err = s.config.Store.Get(ctx, key)
		m.mu.Lock()
		defer m.mu.Unlock()
		switch {
		case err == nil:
			m.keep(key, entry)
		case errors.Is(err, store.ErrNotFound):
			delete(m.sessions, key)
		}
		return err
	}, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		heard, ok := m.sessions[key]
		if !ok || time.Since(heard.at) > rememberedLimit {
			return errForgotten
		}
		entry = heard.entry
		return nil
	})
	return entry, err
}

// errForgotten is why nobody is told what the controller has.
var errForgotten = errors.New("nothing was heard lately")

// keep notes a session; the lock is held.
func (m *remembered) keep(key string, entry store.Entry) {
	if m.sessions == nil || len(m.sessions) >= rememberedSessions {
		m.sessions = map[string]heardSession{} // those that are used come back
	}
	m.sessions[key] = heardSession{entry, time.Now()}
}

// newestRoles waits until the view shows every RoleBinding.
func (b *bindings) newestRoles(ctx context.Context) error {
	m := b.remembered
	return m.ask(ctx, func(ctx context.Context) error {
		asked := time.Now()
		err := b.view.fresh(ctx)
		if err == nil {
			m.mu.Lock()
			m.roles = asked
			m.mu.Unlock()
		}
		return err
	}, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		if _, filled := b.view.position(); !filled || time.Since(m.roles) > rememberedLimit {
			return errForgotten
		}
		return nil
	})
}
