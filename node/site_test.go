package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/policy"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
	"bocage.dev/bocage/store/mem"
)

// shared is an etcd that controllers of a test share.
type shared struct {
	*etcd.Store
	endpoint string
	dir      string
}

func newShared(t *testing.T) *shared {
	t.Helper()
	dir, err := os.MkdirTemp("", "bct") // sockets have short names
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Mkdir(filepath.Join(dir, "etcd"), 0o700))
	socket := filepath.Join(dir, "etcd", "s")
	s, err := etcd.Open(etcd.Config{Dir: filepath.Join(dir, "etcd", "data"), Socket: socket})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return &shared{Store: s, endpoint: "unix://" + socket, dir: dir}
}

// config is that of a controller with a state folder.
func (s *shared) config(t *testing.T, host, folder string, off time.Duration) Config {
	t.Helper()
	begun := time.Now()
	cfg, err := Config{
		Controller: true, Host: host, StateDir: filepath.Join(s.dir, folder, "state"), RunDir: filepath.Join(s.dir, folder),
		TransportListen: "127.0.0.1:0", Etcd: Etcd{Endpoints: []string{s.endpoint}, Prefix: DefaultTrustDomain + "/"}, Logger: slog.New(slog.DiscardHandler),
		clock: func() (time.Time, time.Duration) {
			now := time.Now()
			return now.Round(0).Add(off), now.Sub(begun)
		},
	}.Complete()
	must(t, err)
	must(t, os.MkdirAll(cfg.StateDir, 0o700))
	return cfg
}

// of brings the site's authority into a controller's folder, as people do.
func (s *shared) bring(t *testing.T, from, to Config) {
	t.Helper()
	must(t, os.CopyFS(to.controllerDir("authority"), os.DirFS(from.controllerDir("authority"))))
	for dir, mode := range map[string]os.FileMode{to.controllerDir(""): 0o700, to.controllerDir("authority"): 0o700, filepath.Join(to.controllerDir("authority"), "authority.pem"): 0o600} {
		must(t, os.Chmod(dir, mode))
	}
}

// start runs a whole controller until it is stopped.
func (s *shared) start(t *testing.T, cfg Config) (c *controllerProcess, stop func()) {
	t.Helper()
	registry := newRegistry()
	c, err := openController(t.Context(), cfg, registry)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- c.run(ctx, ready) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", cfg.Host, err)
		}
		c.close()
	}
	t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("%s ended: %v", cfg.Host, err)
	case <-time.After(time.Minute):
		t.Fatalf("%s does not come", cfg.Host)
	}
	return c, stop
}

func (s *shared) declare(t *testing.T, name string, object bocage.Resource) {
	t.Helper()
	kind, _ := bocage.KindNamed(name)
	object.Meta().Generation++
	at, err := etcd.Connect(t.Context(), etcd.Cluster{Endpoints: []string{s.endpoint}, Prefix: DefaultTrustDomain + "/"})
	must(t, err)
	defer at.Close()
	_, err = store.PutObject(t.Context(), at, kind, object, store.AnyRevision)
	must(t, err)
}

// ruleset is what a host gets of a controller, once it has some.
func ruleset(t *testing.T, c *controllerProcess, least uint64) (payload []byte, rs *bocage.Ruleset) {
	t.Helper()
	for begun := time.Now(); time.Since(begun) < time.Minute; {
		answer, err := c.policy.Answer(t.Context(), "h1", policy.Question{})
		if err == nil && len(answer.Ruleset) > 0 {
			payload, err := payloadOf(c, answer.Ruleset)
			must(t, err)
			rs, err := policy.DecodeRuleset(payload)
			must(t, err)
			if rs.Generation >= least {
				return payload, rs
			}
		}
		select {
		case <-t.Context().Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatalf("%s gives no ruleset from %d on", c.cfg.Host, least)
	return nil, nil
}

func payloadOf(c *controllerProcess, envelope []byte) ([]byte, error) {
	payload, _, err := c.authority.Bundle().Open(envelope, bocage.SignedRuleset, time.Now())
	return payload, err
}

// TestControllersShareAStore runs two whole controllers on one etcd, one of which has a
// clock that is wrong by a day: both give the same bytes, nothing ends early, and who is
// wrong says so. Then the one whose clock is right dies.
func TestControllersShareAStore(t *testing.T) {
	for _, off := range []time.Duration{26 * time.Hour, -26 * time.Hour} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			s := newShared(t)
			first, second := s.config(t, "c1", "1", 0), s.config(t, "c2", "2", off)
			a, stop := s.start(t, first)
			s.declare(t, "Host", &bocage.Host{ObjectMeta: bocage.ObjectMeta{Name: "h1"}})
			s.declare(t, "Scope", &bocage.Scope{ObjectMeta: bocage.ObjectMeta{Name: "all"}, Spec: bocage.ScopeSpec{Mode: bocage.ModeEnforce}})
			s.declare(t, "Workload", &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "web"},
				Spec:   bocage.WorkloadSpec{Host: "h1", Interface: "work0", Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.1")}},
				Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst}})
			s.declare(t, "Quarantine", &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "web"},
				Spec: bocage.QuarantineSpec{Workload: "shop/web", Until: time.Now().Add(time.Hour).UTC().Truncate(time.Second)}})
			s.declare(t, "Quarantine", &bocage.Quarantine{ObjectMeta: bocage.ObjectMeta{Name: "ended"},
				Spec: bocage.QuarantineSpec{Workload: "shop/web", Until: time.Now().Add(-time.Hour).UTC().Truncate(time.Second)}})
			quarantined := func(c *controllerProcess) (payload []byte, number uint64) {
				t.Helper()
				for number := uint64(1); ; number++ {
					payload, rs := ruleset(t, c, number)
					if number = rs.Generation; len(rs.Refused) == 1 {
						return payload, number
					}
				}
			}
			before, number := quarantined(a)

			// It has no part in the site yet, and makes nothing of its own.
			if _, err := openController(t.Context(), second, newRegistry()); err == nil || !strings.Contains(err.Error(), "copy the folder authority") {
				t.Fatalf("without the site's authority: %v", err)
			}
			s.bring(t, first, second)
			b, _ := s.start(t, second)
			after, same := quarantined(b)
			if !bytes.Equal(before, after) || number != same {
				t.Errorf("%s gives generation %d, and %s %d:\n%s\n%s", a.cfg.Host, number, b.cfg.Host, same, before, after)
			}
			if a.clock.fault() != nil || b.clock.fault() == nil {
				t.Errorf("whose clock is wrong: %v, %v", a.clock.fault(), b.clock.fault())
			}
			if leaf := b.svid.Load(); leaf.Expires().Sub(time.Now().Add(controllerLife)).Abs() > time.Minute {
				t.Errorf("the certificate of %s ends at %s", b.cfg.Host, leaf.Expires())
			}
			// Another of its name, from another folder, is turned away.
			third := s.config(t, "c2", "3", 0)
			s.bring(t, first, third)
			if _, err := openController(t.Context(), third, newRegistry()); err == nil || !strings.Contains(err.Error(), "another controller called c2") {
				t.Errorf("a second c2: %v", err)
			}
			stop()
			s.declare(t, "Workload", &bocage.Workload{ObjectMeta: bocage.ObjectMeta{Namespace: "shop", Name: "db"},
				Spec:   bocage.WorkloadSpec{Host: "h1", Interface: "work1", Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.2")}},
				Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + 1}})
			if _, rs := ruleset(t, b, number+1); len(rs.Refused) != 1 || rs.Generation != number+1 {
				t.Errorf("alone, %s gives generation %d, which refuses %v", b.cfg.Host, rs.Generation, rs.Refused)
			}
			if b.clock.fault() == nil {
				t.Error("it forgot that its clock is wrong")
			}
		})
	}
}

// TestAnotherAuthority: a controller with certificates of its own is turned away, since
// agents would trust only one of them.
func TestAnotherAuthority(t *testing.T) {
	s := newShared(t)
	first, second := s.config(t, "c1", "1", 0), s.config(t, "c2", "2", 0)
	a, err := openController(t.Context(), first, newRegistry())
	must(t, err)
	a.close()
	alone := second
	alone.Etcd = Etcd{}
	b, err := openController(t.Context(), alone, newRegistry())
	must(t, err)
	b.close()
	if _, err := openController(t.Context(), second, newRegistry()); err == nil || !strings.Contains(err.Error(), "agents would trust only one of them") {
		t.Errorf("another authority: %v", err)
	}
}

// TestStoreThatCannotBeOpened ends a controller with words, whichever store it is.
func TestStoreThatCannotBeOpened(t *testing.T) {
	s := newShared(t)
	away, own := s.config(t, "c1", "1", 0), s.config(t, "c1", "2", 0)
	away.Etcd.Endpoints = []string{"unix://" + filepath.Join(s.dir, "nobody")}
	own.Etcd = Etcd{}
	must(t, os.MkdirAll(own.controllerDir(""), 0o700))
	must(t, os.WriteFile(own.controllerDir("state"), nil, 0o600))
	for _, cfg := range []Config{away, own} {
		if _, err := openController(t.Context(), cfg, newRegistry()); err == nil || !strings.Contains(err.Error(), "open the store") {
			t.Errorf("%v", err)
		}
	}
}

func TestEtcdIsNamed(t *testing.T) {
	for want, e := range map[string]Etcd{
		"":                     {},
		"is none of https":     {Endpoints: []string{"http://10.0.0.1:2379"}},
		"go together":          {Endpoints: []string{"https://10.0.0.1:2379"}, CertFile: "c"},
		"name it with --etcd":  {CAFile: "ca"},
		"\x00nothing is wrong": {Endpoints: []string{"https://10.0.0.1:2379", "unix:///run/etcd", "http://127.0.0.1:2379"}, CertFile: "c", KeyFile: "k"},
	} {
		err := e.validate()
		if isFine := want == "" || want[0] == 0; isFine != (err == nil) || !isFine && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", e, err, want)
		}
	}
}

// atOnce is a store in which somebody claims a name right after the first look.
type atOnce struct {
	store.Store
	then func()
}

func (s *atOnce) List(ctx context.Context, prefix, after string, limit int, at store.Revision) ([]store.Entry, store.Revision, error) {
	entries, revision, err := s.Store.List(ctx, prefix, after, limit, at)
	if then := s.then; then != nil {
		s.then = nil
		then()
	}
	return entries, revision, err
}

func claimAs(t *testing.T, s store.Store, name, instance string, at time.Time) {
	t.Helper()
	value, err := json.Marshal(presence{Instance: instance, Wall: at, Agreed: at})
	must(t, err)
	_, err = store.Put(t.Context(), s, claimsPrefix+name, value, store.AnyRevision)
	must(t, err)
}

// TestControllersThatComeAtOnce: who claims a name later goes by the other's time before
// it makes anything, although it found nobody at first.
func TestControllersThatComeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		defer s.Close()
		theirs := time.Now().Add(-3 * time.Hour)
		racing := &atOnce{s, func() { claimAs(t, s, "c1", "1", theirs) }}
		cfg := Config{Host: "c2", StateDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
		clock := newSiteClock(machineClock())
		_, err := joinSite(t.Context(), cfg, "an instance", racing, clock)
		must(t, err)
		if at := clock.Now(); !near(at, theirs) {
			t.Errorf("it goes by %s, and who came first by %s", at, theirs)
		}
	})
}

// TestNameIsLost ends a controller whose name another one has taken.
func TestNameIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New()
		defer s.Close()
		cfg := Config{Host: "c1", StateDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
		j, err := joinSite(t.Context(), cfg, "an instance", s, newSiteClock(machineClock()))
		must(t, err)
		claimAs(t, s, "c1", "another", time.Now())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := j.run(ctx); !errors.As(err, new(errTaken)) || ctx.Err() != nil {
			t.Errorf("it ends with %v, and its context with %v", err, ctx.Err())
		}
	})
}

// TestCertificatesFollowTheTime: those that were made by a time that was hours ahead are
// made again when that is set right, or agents would refuse what they sign until then.
func TestCertificatesFollowTheTime(t *testing.T) {
	cfg := newShared(t).config(t, "c1", "1", 0)
	var ahead atomic.Int64
	ahead.Store(int64(3 * time.Hour))
	machine := cfg.clock
	cfg.clock = func() (time.Time, time.Duration) {
		wall, even := machine()
		return wall.Add(time.Duration(ahead.Load())), even
	}
	c, err := openController(t.Context(), cfg, newRegistry())
	must(t, err)
	defer c.close()
	signed := func() error {
		envelope, err := c.sign(bocage.SignedRuleset, []byte("{}"))
		must(t, err)
		_, _, err = c.authority.Bundle().Open(envelope, bocage.SignedRuleset, time.Now())
		return err
	}
	if signed() == nil {
		t.Fatal("what was signed three hours ahead is taken")
	}
	ahead.Store(0)
	c.timeMoved()
	if err := signed(); err != nil {
		t.Error(err)
	}
	if begins := c.svid.Load().Certificate().Leaf.NotBefore; begins.After(time.Now()) {
		t.Errorf("the controller's certificate begins at %s", begins)
	}
}

// TestBatchesByTheAgreedTime: batches of agents whose certificates were made by the time
// that is agreed on are opened where the machine's is another.
func TestBatchesByTheAgreedTime(t *testing.T) {
	authority, err := identity.OpenAuthority(filepath.Join(t.TempDir(), "authority"), identity.DefaultTrustDomain)
	must(t, err)
	for _, off := range []time.Duration{0, 72 * time.Hour} {
		authority := authority.By(func() time.Time { return time.Now().Add(off) })
		svid, err := authority.IssueSVID("/agent/h1", agentLife)
		must(t, err)
		batch, err := json.Marshal(bocage.Batch{Source: svid.ID()})
		must(t, err)
		envelope, err := svid.Sign(bocage.SignedBatch, batch)
		must(t, err)
		if _, err := openBatch(authority.Bundle())(envelope); err != nil {
			t.Errorf("%s off: %v", off, err)
		}
	}
}
