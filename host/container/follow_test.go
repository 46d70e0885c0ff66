package container

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// socket serves a runtime that answers as a test says; paths that it does not name
// are answered as by an empty dockerd.
func socket(t *testing.T, answers map[string]http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	usual := map[string]http.HandlerFunc{
		"/version":                    say(`{"Components":[{"Name":"Engine"}]}`),
		"/networks":                   say(`[]`),
		"/containers/json":            say(`[{"Id":"` + id + `"}]`),
		"/containers/" + id + "/json": say(`{"Id":"` + id + `","Name":"/web","State":{"Status":"running","Running":true}}`),
		"/events": func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			t.Errorf("%s %s: this only reads", r.Method, r.URL)
		}
		answer := answers[r.URL.Path]
		if answer == nil {
			answer = usual[r.URL.Path]
		}
		if answer == nil {
			http.NotFound(w, r)
			return
		}
		answer(w, r)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return path
}

func say(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

// first follows until there is an inventory or an end.
func first(t *testing.T, path string) (Inventory, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var got Inventory
	var once sync.Once
	err := New(path).Follow(ctx, func(i Inventory) {
		once.Do(func() { got = i })
		cancel()
	})
	return got, err
}

func TestFollowLists(t *testing.T) {
	got, err := first(t, socket(t, nil))
	if !errors.Is(err, context.Canceled) || len(got.Containers) != 1 || got.Containers[0].Name != "web" || got.Product != docker {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestFollowSaysWhyNot(t *testing.T) {
	dir := t.TempDir()
	if _, err := first(t, filepath.Join(dir, "absent")); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("absent: %v", err)
	}
	plainFile := filepath.Join(dir, "plain")
	if err := os.WriteFile(plainFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := first(t, plainFile); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
}

// No answer, however hostile, makes the reader hang, grow or believe.
func TestFollowOfHostileSockets(t *testing.T) {
	endless := func(w http.ResponseWriter, r *http.Request) {
		for piece := []byte(strings.Repeat(" ", 1<<20)); ; {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}
	for name, test := range map[string]struct {
		path   string
		answer http.HandlerFunc
		breaks bool
	}{
		"an endless version":   {"/version", endless, true},
		"an endless list":      {"/containers/json", endless, true},
		"an endless container": {"/containers/" + id + "/json", endless, true},
		"an endless event":     {"/events", endless, true},
		"a redirect to elsewhere": {"/version", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		}, true},
		"a list that is no list":     {"/containers/json", say(`{"message":"no"}`), true},
		"paths for IDs":              {"/containers/json", say(`[{"Id":"../../x"},{"Id":"` + id + `"}]`), false},
		"half a container":           {"/containers/" + id + "/json", say(`{"Id":"` + id), false},
		"another container":          {"/containers/" + id + "/json", say(`{"Id":"` + strings.Repeat("0", 64) + `"}`), false},
		"a container that went":      {"/containers/" + id + "/json", http.NotFound, false},
		"a container that is denied": {"/containers/" + id + "/json", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, false},
		"events that are none":       {"/events", say("nonsense\n"), true},
		"events that end":            {"/events", say(""), true},
		"a closed connection": {"/version", func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			conn.Close()
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			listed := 0
			err := New(socket(t, map[string]http.HandlerFunc{test.path: test.answer})).Follow(ctx, func(i Inventory) {
				listed++
				for _, c := range i.Containers {
					if c.ID != id || c.Name != "web" {
						t.Errorf("believed %+v", c)
					}
				}
				if !test.breaks {
					cancel()
				}
			})
			if test.breaks && errors.Is(err, context.DeadlineExceeded) || !test.breaks && listed == 0 {
				t.Errorf("listed %d times, ended with %v", listed, err)
			}
		})
	}
}

// A container that the socket refuses to tell about is asked for again, and keeps
// what was known of it meanwhile.
func TestFollowAsksAgainAboutWhatIsRefused(t *testing.T) {
	var mu sync.Mutex
	asked := 0
	path := socket(t, map[string]http.HandlerFunc{
		"/containers/" + id + "/json": func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if asked++; asked == 1 {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			fmt.Fprint(w, `{"Id":"`+id+`","Name":"/web","State":{"Status":"running"}}`)
		}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := New(path).Follow(ctx, func(i Inventory) {
		if len(i.Containers) == 1 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestFollowTakesEvents(t *testing.T) {
	another := strings.Repeat("a", 64)
	tell := make(chan string)
	path := socket(t, map[string]http.HandlerFunc{
		"/containers/" + another + "/json": say(`{"Id":"` + another + `","Name":"/api","State":{"Status":"created"}}`),
		"/events": func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			for {
				select {
				case line := <-tell:
					fmt.Fprintln(w, line)
					w.(http.Flusher).Flush()
				case <-r.Context().Done():
					return
				}
			}
		}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	seen := make(chan Inventory, 10)
	end := make(chan error, 1)
	go func() { end <- New(path).Follow(ctx, func(i Inventory) { seen <- i }) }()
	if i := <-seen; len(i.Containers) != 1 {
		t.Errorf("%+v", i)
	}
	tell <- `{"Type":"container","Action":"create","Actor":{"ID":"` + another + `"}}`
	if i := <-seen; len(i.Containers) != 2 || i.Containers[1].Name != "api" || i.Containers[1].Running {
		t.Errorf("%+v", i)
	}
	cancel()
	if err := <-end; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
