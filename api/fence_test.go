package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
	"bocage.dev/bocage/store/etcd/etcdtest"
)

// shared runs a test against the etcds that sites share: Debian's, which answers too
// early how far a watch is, and one like the embedded.
func shared(t *testing.T, run func(t *testing.T, endpoint string)) {
	t.Run("debian", func(t *testing.T) { run(t, etcdtest.Start(t).Endpoint) })
	t.Run("embedded", func(t *testing.T) {
		dir := shortDir(t)
		config := etcd.Config{Dir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s", "etcd")}
		s, err := etcd.Open(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		run(t, "unix://"+config.Socket)
	})
}

// replica starts a server on a shared etcd.
func replica(t *testing.T, endpoint string) *bench {
	t.Helper()
	s, err := etcd.Connect(t.Context(), etcd.Cluster{Endpoints: []string{endpoint}, Patience: time.Minute, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *Config) { c.Store, c.Listen, c.RequestsPerSecond = s, "", 1e6 })
	t.Cleanup(func() {
		b.stop()
		_ = s.Close()
	})
	return b
}

// listed is what a list of scopes shows.
func (b *bench) listed(t *testing.T, query string) (names map[string]string, revision string) {
	t.Helper()
	for {
		code, text, _ := b.raw(t, "GET", scopesPath+query, "", "")
		if code == http.StatusGatewayTimeout || code == http.StatusServiceUnavailable {
			continue // it says that it cannot yet, and may be asked again
		}
		var list struct {
			Metadata struct{ ResourceVersion string }
			Items    []struct{ Metadata bocage.ObjectMeta }
		}
		if err := json.Unmarshal([]byte(text), &list); err != nil || code != http.StatusOK {
			t.Fatalf("%d %.200s %v", code, text, err)
		}
		names = map[string]string{}
		for _, item := range list.Items {
			names[item.Metadata.Name] = item.Metadata.ResourceVersion
		}
		return names, list.Metadata.ResourceVersion
	}
}

// resumed reads a watch after a revision until every name has come, or it says that
// it cannot tell. A bookmark before that would say that nothing is missing.
func (b *bench) resumed(ctx context.Context, after string, want ...string) error {
	request, err := http.NewRequestWithContext(ctx, "GET", "http://bocage"+scopesPath+"?watch=true&allowWatchBookmarks=true&timeoutSeconds=3&resourceVersion="+after, nil)
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Transport: unixTransport(b.socket)}).Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode == http.StatusGone {
		return nil
	}
	missing := map[string]bool{}
	for _, name := range want {
		missing[name] = true
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	for len(missing) > 0 && lines.Scan() {
		var e struct {
			Type   string
			Object struct {
				Code     int
				Metadata bocage.ObjectMeta
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return err
		}
		switch {
		case e.Type == "ERROR" && e.Object.Code == http.StatusGone:
			return nil
		case e.Type == "ERROR":
			return fmt.Errorf("after %s: %s", after, lines.Text())
		case e.Type == "BOOKMARK":
			return fmt.Errorf("after %s: %d of %d changes are missing at the bookmark of %s", after, len(missing), len(want), e.Object.Metadata.ResourceVersion)
		}
		delete(missing, e.Object.Metadata.Name)
	}
	if len(missing) > 0 {
		return fmt.Errorf("after %s: %d of %d changes did not come: %w", after, len(missing), len(want), lines.Err())
	}
	return nil
}

// TestResumeOnSharedStore: a watch that goes on at a controller that was started
// since tells all that came between, or that it cannot, while others write and watch.
func TestResumeOnSharedStore(t *testing.T) {
	t.Parallel()
	shared(t, func(t *testing.T, endpoint string) {
		first := replica(t, endpoint)
		first.mustScope(t, "POST", "before", "")
		_, from := first.listed(t, "")
		var names []string
		for i := range 5 {
			names = append(names, fmt.Sprintf("s%d", i))
			first.mustScope(t, "POST", names[i], "")
		}
		ctx, stop := context.WithCancel(t.Context())
		var writing sync.WaitGroup
		writing.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				_, err := store.Put(ctx, first.store, fmt.Sprintf("elsewhere/%d", i%10), []byte("1"), store.AnyRevision)
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
		for range 3 {
			second := replica(t, endpoint) // knows nothing of what was before
			var watching sync.WaitGroup
			for i := range 20 {
				watching.Go(func() {
					if err := second.resumed(ctx, []string{from, "1", "2"}[i%3], names...); err != nil {
						t.Error(err)
					}
				})
			}
			watching.Wait()
			second.stop()
		}
		stop()
		writing.Wait()
		// What is compacted is said to be gone, always.
		_, now := first.listed(t, "")
		at, err := wantedRevision(map[string][]string{"at": {now}}, "at")
		if err != nil {
			t.Fatal(err)
		}
		if err := first.store.(*etcd.Store).Compact(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		second := replica(t, endpoint)
		for range 5 {
			for _, from := range []string{from, "1", "2"} {
				if event, _ := second.watch(t, "&allowWatchBookmarks=true&timeoutSeconds=3&resourceVersion="+from).next(); event != "ERROR 410" {
					t.Errorf("after %s, which is compacted: %s", from, event)
				}
			}
		}
	})
}

// TestListsOfAReplicaThatWasHeldUp: what was written meanwhile is in the first list
// that it answers.
func TestListsOfAReplicaThatWasHeldUp(t *testing.T) {
	t.Parallel()
	shared(t, func(t *testing.T, endpoint string) {
		way := newValve(t, strings.TrimPrefix(endpoint, "unix://"))
		first, second := replica(t, endpoint), replica(t, "unix://"+way.path)
		note := strings.Repeat("x", 3000)
		count := 0
		for range 3 {
			way.shut()
			for range 10 {
				ops := make([]store.Op, 100)
				for i := range ops {
					value := fmt.Sprintf(`{"apiVersion":"bocage.dev/v1","kind":"Scope","metadata":{"name":"s%d","uid":"u%d","annotations":{"a":"%s"}},"spec":{"mode":"observe"}}`, count, count, note)
					ops[i] = store.Op{Key: fmt.Sprintf("resources/scopes/s%d", count), Value: []byte(value), IfWas: store.Absent}
					count++
				}
				if _, err := first.store.Apply(t.Context(), ops...); err != nil {
					t.Fatal(err)
				}
			}
			var lists sync.WaitGroup
			way.open()
			for i := range 10 {
				lists.Go(func() {
					query := ""
					if i%2 == 1 {
						query = "?limit=1000000"
					}
					if names, revision := second.listed(t, query); len(names) != count {
						t.Errorf("at %s there are %d scopes, want %d", revision, len(names), count)
					}
				})
			}
			lists.Wait()
		}
		// Both show the same at the same revision.
		all, revision := first.listed(t, "")
		same, _ := second.listed(t, "?resourceVersionMatch=Exact&resourceVersion="+revision)
		if len(all) != count || len(same) != count {
			t.Errorf("%d and %d scopes, want %d", len(all), len(same), count)
		}
	})
}

// valve carries connections to a socket, and holds back what comes from there while
// it is shut, as a process does that is stopped.
type valve struct {
	path string

	mu   sync.Mutex
	flow chan struct{} // closed while it is open
}

func newValve(t *testing.T, to string) *valve {
	t.Helper()
	v := &valve{path: filepath.Join(shortDir(t), "s"), flow: make(chan struct{})}
	v.open()
	listener, err := net.Listen("unix", v.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var all sync.WaitGroup
	t.Cleanup(func() {
		stop()
		_ = listener.Close()
		v.open()
		all.Wait()
	})
	all.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				far, err := net.Dial("unix", to)
				if err != nil {
					_ = near.Close()
					return
				}
				end := func() { _, _ = near.Close(), far.Close() }
				detach := context.AfterFunc(ctx, end)
				defer detach()
				var both sync.WaitGroup
				both.Go(func() { defer end(); _, _ = io.Copy(far, near) })
				both.Go(func() { defer end(); _, _ = io.Copy(struct{ io.Writer }{near}, held{far, v}) })
				both.Wait()
			})
		}
	})
	return v
}

func (v *valve) shut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.flow = make(chan struct{})
}

func (v *valve) open() {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.flow:
	default:
		close(v.flow)
	}
}

// held reads only while the valve is open.
type held struct {
	io.Reader
	v *valve
}

func (h held) Read(data []byte) (int, error) {
	n, err := h.Reader.Read(data)
	h.v.mu.Lock()
	flow := h.v.flow
	h.v.mu.Unlock()
	<-flow
	return n, err
}
