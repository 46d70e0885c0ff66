package lake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"bocage.dev/bocage/host/hosttest"
	streammem "bocage.dev/bocage/stream/mem"
)

// A disk that is really full: what landed stays whole, the rest waits in the log,
// and once there is room every record is there once.
func TestRootFullDisk(t *testing.T) {
	hosttest.Root(t)
	mount := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("bct-lake", mount, "tmpfs", 0, "size=600k"); err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(mount, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	l := newLake(t, func(c *Config) { c.Dir = filepath.Join(mount, "lake") })
	log := streammem.NewLog(1 << 30)
	stop := land(t, l, log)
	sent := uint64(0)
	for l.Fault() == nil && sent < 5000 {
		for range 20 {
			sent++
			appendTo(t, log, fmt.Sprint(sent), batch(sent, morning, 200))
		}
		waiting, done := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_ = l.Flush(waiting)
		done()
	}
	if fault := l.Fault(); !errors.Is(fault, syscall.ENOSPC) {
		t.Fatalf("after %d batches: %v", sent, fault)
	}
	for range 50 {
		sent++
		appendTo(t, log, fmt.Sprint(sent), batch(sent, morning, 200))
	}
	landed := l.Landed()
	if got := fmt.Sprint(query(t, l, "SELECT count(*), count(DISTINCT record) FROM flows").Rows); got != fmt.Sprintf("[[%d %d]]", landed*200, landed*200) {
		t.Errorf("with a full disk, %d landed: %s", landed, got)
	}
	if err := syscall.Mount("", mount, "", syscall.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatalf("make room: %v", err)
	}
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	if got, want := fmt.Sprint(query(t, l, "SELECT count(*), count(DISTINCT record) FROM flows").Rows), fmt.Sprintf("[[%d %d]]", sent*200, sent*200); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if l.Fault() != nil {
		t.Error(l.Fault())
	}
}
