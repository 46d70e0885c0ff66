package audit_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/api/audit"
	"bocage.dev/bocage/host/hosttest"
)

// TestRootFullDisk fills the disk under a trail: what cannot be written is
// refused, and the trail goes on where it was once there is room.
func TestRootFullDisk(t *testing.T) {
	hosttest.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("bocage-test", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	trail, stop := open(t, audit.Config{Dir: filepath.Join(dir, "trail"), Node: "c1"})
	written := 0
	for {
		err := trail.Append(context.Background(), audit.Entry{Who: "alice", Verb: "create", Message: strings.Repeat("x", 1000)})
		if err != nil {
			if !strings.Contains(err.Error(), "make room") || trail.Fault() == nil {
				t.Fatalf("%v, fault %v", err, trail.Fault())
			}
			break
		}
		if written++; written > 1000 {
			t.Fatal("a disk of 256 KiB does not get full")
		}
	}
	if err := unix.Mount("bocage-test", dir, "tmpfs", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	add(t, trail, 1)
	if trail.Fault() != nil {
		t.Error(trail.Fault())
	}
	stop()
	summary, err := audit.Verify(filepath.Join(dir, "trail"), 0, &audit.Verifier{})
	if err != nil || summary.Entries != uint64(written)+1 {
		t.Fatalf("%d were acknowledged: %+v, %v", written+1, summary, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "trail")); err != nil {
		t.Error(err)
	}
}
