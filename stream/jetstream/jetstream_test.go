package jetstream_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/stream"
	"bocage.dev/bocage/stream/jetstream"
	"bocage.dev/bocage/stream/streamtest"
)

// site is a trust domain with a controller.
type site struct {
	dir       string
	authority *identity.Authority
	server    *jetstream.Server
}

func newSite(t testing.TB, change func(*jetstream.ServerConfig)) *site {
	t.Helper()
	dir := t.TempDir()
	authority, err := identity.OpenAuthority(filepath.Join(dir, "authority"), identity.DefaultTrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := authority.IssueSVID("/controller/c1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	config := jetstream.ServerConfig{
		Dir: filepath.Join(dir, "stream"), Listen: "127.0.0.1:0",
		SVID: func() *identity.SVID { return svid }, Bundle: authority.Bundle(),
		Logger: logger(t),
	}
	if change != nil {
		change(&config)
	}
	server, err := jetstream.StartServer(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return &site{dir, authority, server}
}

func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// agent connects an agent with a fresh identity.
func (s *site) agent(t testing.TB, name string) *jetstream.Conn {
	t.Helper()
	conn, err := s.connect(t, name, time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (s *site) connect(t testing.TB, name string, life time.Duration, changed func(bool)) (*jetstream.Conn, error) {
	t.Helper()
	svid, err := s.authority.IssueSVID("/agent/"+name, life)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := jetstream.Connect(ctx, jetstream.ConnConfig{
		Addresses: []string{s.server.Address()}, SVID: func() *identity.SVID { return svid }, Bundle: s.authority.Bundle(),
		Changed: changed, Logger: logger(t),
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return conn, nil
}

func TestLogConformance(t *testing.T) {
	streamtest.RunLog(t, func(t *testing.T, maxBytes int64) stream.Log {
		s := newSite(t, func(c *jetstream.ServerConfig) { c.MaxBytes = maxBytes })
		l, err := s.server.Log("EVENTS", "events.*")
		if err != nil {
			t.Fatal(err)
		}
		return l
	})
}

func TestExchangeConformance(t *testing.T) {
	s := newSite(t, nil)
	streamtest.RunExchange(t, func(t *testing.T) (a, b stream.Exchange) {
		return s.server.Exchange(), s.server.Exchange()
	})
}
