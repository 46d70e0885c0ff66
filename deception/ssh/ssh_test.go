package ssh

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage"
)

// event is one report of a session.
type event struct {
	depth  bocage.Depth
	detail map[string]string
}

// served is a decoy on a loopback address with what it reported.
type served struct {
	address *net.TCPAddr
	mu      sync.Mutex
	events  []event
}

func serve(t testing.TB, cfg Config) *served {
	t.Helper()
	if cfg.Secret == nil {
		cfg.Secret = []byte("a secret for tests")
	}
	server, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server.delay = 4 * time.Millisecond
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &served{address: listener.Addr().(*net.TCPAddr)}
	ctx, cancel := context.WithCancel(context.Background())
	var sessions sync.WaitGroup
	sessions.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			sessions.Go(func() {
				defer conn.Close()
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				defer stop()
				server.Serve(ctx, conn, s.report)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		listener.Close()
		sessions.Wait()
	})
	return s
}

func (s *served) report(depth bocage.Depth, detail map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, event{depth, detail})
}

func (s *served) reported() []event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]event(nil), s.events...)
}
