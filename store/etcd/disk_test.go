package etcd_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host/hosttest"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
)

// TestRootFullDisk fills a small file system up to the last byte.
func TestRootFullDisk(t *testing.T) {
	hosttest.Root(t)
	dir := t.TempDir()
	// etcd claims two log segments of 64 MiB before it begins, and another later.
	if err := unix.Mount("bct", dir, "tmpfs", 0, "size=384m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	config := etcd.Config{Dir: filepath.Join(dir, "store"), Reserve: 128 << 20}
	s := open(t, config)
	value := bytes.Repeat([]byte("x"), 256<<10)
	written := 0
	for {
		_, err := store.Put(t.Context(), s, fmt.Sprintf("k%04d", written), value, store.Absent)
		if errors.Is(err, store.ErrFull) {
			if !strings.Contains(err.Error(), "make room") {
				t.Errorf("%v does not say what to do", err)
			}
			break
		}
		if err != nil {
			t.Fatalf("write %d: %v", written, err)
		}
		written++
	}
	// And then somebody else takes what was kept free.
	filler := filepath.Join(dir, "filler")
	file, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = file.Write(value)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	// Then etcd may have had to end, but nothing is accepted and lost, and the
	// message names the disk.
	if _, err := store.Put(t.Context(), s, "small", nil, store.AnyRevision); err == nil || !strings.Contains(err.Error(), "disk") {
		t.Errorf("Put on a full disk = %v", err)
	}
	all := func(s store.Store) {
		t.Helper()
		entries, _, err := s.List(t.Context(), "k", "", 0, 0)
		if err != nil || len(entries) != written {
			t.Fatalf("%d of %d entries are there: %v", len(entries), written, err)
		}
		for _, e := range entries {
			if !bytes.Equal(e.Value, value) {
				t.Errorf("%s is not what was written", e.Key)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Logf("close: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	s = open(t, config)
	defer s.Close()
	all(s)
	if _, err := store.Delete(t.Context(), s, "k0000", store.AnyRevision); err != nil {
		t.Errorf("Delete = %v", err)
	}
}
