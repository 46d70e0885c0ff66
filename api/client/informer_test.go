package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
)

// script is a source that a test plays: what a list holds, and what each watch
// shows before it ends.
type script struct {
	mu      sync.Mutex
	list    []bocage.Resource
	at      string
	listErr error
	lists   int
	froms   []string // the revisions that watches began at
	watches chan []any
}

func (s *script) List(context.Context, bocage.Kind, ListOptions) ([]bocage.Resource, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists++
	return slices.Clone(s.list), s.at, s.listErr
}

func (s *script) watchOnce(ctx context.Context, _ bocage.Kind, _ ListOptions, revision *string, each func(Event) error) error {
	s.mu.Lock()
	s.froms = append(s.froms, *revision)
	s.mu.Unlock()
	select {
	case steps := <-s.watches:
		for _, step := range steps {
			switch step := step.(type) {
			case Event:
				if err := each(step); err != nil {
					return &eachError{err}
				}
				*revision = step.Object.Meta().ResourceVersion
			case error:
				return step
			}
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func app(name, revision, team string) *bocage.Application {
	return &bocage.Application{ObjectMeta: bocage.ObjectMeta{
		Namespace: "shop", Name: name, ResourceVersion: revision, Labels: map[string]string{"team": team},
	}}
}

// told records changes as text: +name, ~name, -name, =name of a resync.
type told struct {
	mu   sync.Mutex
	text []string
}

func (l *told) handle(c Change[*bocage.Application]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case c.Was == nil:
		l.text = append(l.text, "+"+c.Is.Name)
	case c.Is == nil:
		l.text = append(l.text, "-"+c.Was.Name)
	case c.Was == c.Is:
		l.text = append(l.text, "="+c.Is.Name)
	default:
		l.text = append(l.text, "~"+c.Is.Name)
	}
}

func (l *told) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.Join(l.text, " ")
	l.text = nil
	return text
}

func names(list []*bocage.Application) string {
	var out []string
	for _, a := range list {
		out = append(out, a.Name)
	}
	return strings.Join(out, " ")
}

// TestInformer plays a life: a list, changes, a broken connection, a history that
// is gone, and a resync.
func TestInformer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{list: []bocage.Resource{app("a", "1", "x"), app("b", "2", "y")}, at: "2", watches: make(chan []any)}
		var l told
		i, err := newInformer(s, InformerOptions[*bocage.Application]{
			Handle: l.handle, Resync: time.Hour,
			Indexers: map[string]func(*bocage.Application) []string{
				"team": func(a *bocage.Application) []string { return []string{a.Labels["team"]} },
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- i.Run(ctx) }()
		<-i.Synced()
		want := func(changes, objects, ofX string) {
			t.Helper()
			synctest.Wait()
			if got := l.take(); got != changes {
				t.Errorf("told %q, want %q", got, changes)
			}
			if got := names(i.List()); got != objects || i.Len() != len(i.List()) {
				t.Errorf("there are %q, want %q", got, objects)
			}
			if got := names(i.ByIndex("team", "x")); got != ofX {
				t.Errorf("of team x are %q, want %q", got, ofX)
			}
		}
		want("+a +b", "a b", "a")

		s.watches <- []any{Event{Modified, app("b", "3", "x")}, Event{Added, app("c", "4", "z")}, Event{Deleted, app("a", "5", "x")}}
		want("~b +c -a", "b c", "b")
		if _, ok := i.Get("shop", "a"); ok {
			t.Error("a is there still")
		}

		// A connection that breaks is resumed; a deletion of what is unknown is none.
		s.watches <- []any{errors.New("connection reset"), Event{Modified, app("b", "6", "x")}}
		s.watches <- []any{Event{Deleted, app("nobody", "6", "")}}
		want("", "b c", "b")

		// A history that is gone is made up for by a list.
		s.mu.Lock()
		s.list, s.at = []bocage.Resource{app("b", "3", "x"), app("d", "9", "x")}, "9"
		s.mu.Unlock()
		s.watches <- []any{&Error{Code: http.StatusGone, Reason: ReasonExpired}}
		s.watches <- nil
		want("-c +d", "b d", "b d")
		s.mu.Lock()
		if s.lists != 2 || fmt.Sprint(s.froms[:5]) != "[2 5 5 6 9]" {
			t.Errorf("listed %d times, watched from %v", s.lists, s.froms)
		}
		s.mu.Unlock()

		time.Sleep(time.Hour) // the bubble's clock, not the machine's
		want("=b =d", "b d", "b d")
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestInformerEnds: what cannot be mended ends it, everything else is tried again
// with patience.
func TestInformerEnds(t *testing.T) {
	for name, test := range map[string]struct {
		source *script
		most   int
		want   error
	}{
		"forbidden":            {&script{listErr: &Error{Code: 403, Reason: ReasonForbidden}}, 0, &Error{}},
		"too many in a list":   {&script{list: []bocage.Resource{app("a", "1", ""), app("b", "2", "")}}, 1, ErrTooManyObjects},
		"too many in a watch":  {&script{list: []bocage.Resource{app("a", "1", "")}, watches: oneWatch(Event{Added, app("b", "2", "")})}, 1, ErrTooManyObjects},
		"an object of another": {&script{list: []bocage.Resource{&bocage.Scope{}}}, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i, err := newInformer(test.source, InformerOptions[*bocage.Application]{MaxObjects: test.most})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				err = i.Run(ctx)
				var answer *Error
				switch {
				case test.want == nil: // a server that is not ours may come to its senses
					if !errors.Is(err, context.DeadlineExceeded) || test.source.lists < 300 || test.source.lists > 2000 {
						t.Errorf("%v after %d attempts in an hour", err, test.source.lists)
					}
				case errors.As(test.want, &answer):
					if !errors.As(err, &answer) || answer.Code != 403 {
						t.Error(err)
					}
				case !errors.Is(err, test.want):
					t.Error(err)
				}
			})
		})
	}
	if _, err := newInformer[bocage.Resource](&script{}, InformerOptions[bocage.Resource]{}); err == nil {
		t.Error("an informer of no kind")
	}
}

func oneWatch(steps ...any) chan []any {
	c := make(chan []any, 1)
	c <- steps
	return c
}
