package api

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"bocage.dev/bocage"
)

// reach answers what decides whom guardrails reach. It reads the guardrails, the
// exceptions and the scopes from the view, and again only when one of them changed.
type reach struct {
	view *view

	mu    sync.Mutex // guards what follows
	of    [3][]*object
	until time.Time // when an exception is over, which counts until then; zero: none is
	known bocage.Reach
}

// now returns it as of what was written before the question, on whichever replica.
func (r *reach) now(ctx context.Context, at time.Time) (bocage.Reach, error) {
	if err := r.view.fresh(ctx); err != nil {
		return bocage.Reach{}, err
	}
	var of [3][]*object
	for i, plural := range []string{"guardrails", "exceptions", "scopes"} {
		of[i], _, _ = r.view.snapshot(plural, "")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	same := r.known.Known()
	for i := range of {
		same = same && slices.Equal(of[i], r.of[i])
	}
	if same && (r.until.IsZero() || at.Before(r.until)) {
		return r.known, nil
	}
	unread := ""
	guardrails, exceptions, scopes := read[*bocage.Guardrail](of[0], &unread), read[*bocage.Exception](of[1], &unread), read[*bocage.Scope](of[2], &unread)
	r.until = time.Time{}
	for _, e := range exceptions {
		if end := e.Spec.Until; at.Before(end) && (r.until.IsZero() || end.Before(r.until)) {
			r.until = end
		}
	}
	r.of, r.known = of, bocage.ReachOf(guardrails, exceptions, scopes, at)
	if unread != "" {
		r.known = r.known.Unread(unread)
	}
	return r.known, nil
}

// read decodes the objects of one kind, and names one that cannot be read.
func read[T bocage.Resource](objects []*object, unread *string) []T {
	var list []T
	for _, o := range objects {
		resource := o.kind.New()
		if json.Unmarshal(o.value, resource) != nil {
			*unread = o.kind.Name + " " + o.name
			continue
		}
		list = append(list, resource.(T))
	}
	return list
}

// weakens says why two people decide about a change, of an object as it counts for
// policy to another; empty: one does.
func (s *Server) weakens(ctx context.Context, before, after bocage.Resource) (string, error) {
	if !s.config.TwoPerson {
		return "", nil
	}
	r, err := s.reach.now(ctx, s.config.Now())
	if err != nil {
		return "", err
	}
	return r.Weakens(before, after), nil
}
