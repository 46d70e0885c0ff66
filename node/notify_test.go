package node

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// systemd is told what it asked for, and not that a process lives which does not.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "20000")
	said := func() string {
		b := make([]byte, 100)
		n, err := socket.Read(b)
		must(t, err)
		return string(b[:n])
	}
	must(t, notify("READY=1"))
	if got := said(); got != "READY=1" {
		t.Errorf("told %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var beats atomic.Int64
	done := make(chan error, 1)
	go func() { done <- beat(ctx, func() bool { return beats.Add(1) != 2 }) }()
	for range 2 {
		if got := said(); got != "WATCHDOG=1" {
			t.Errorf("told %q", got)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || beats.Load() < 3 {
		t.Errorf("%d beats, %v; want one that was not told", beats.Load(), err)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Errorf("where nobody wants to know: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", path+"-gone")
	if err := notify("READY=1"); err == nil {
		t.Error("nobody is there, and it was told")
	}
}
