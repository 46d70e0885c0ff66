package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host/hosttest"
)

// A state folder that cannot be written is told, and told no more when it can.
func TestRootStateThatCannotBeWritten(t *testing.T) {
	hosttest.Root(t)
	dir := t.TempDir()
	must(t, unix.Mount("bocage-test", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	a := &agentProcess{cfg: Config{StateDir: dir}}
	must(t, os.MkdirAll(a.cfg.agentDir(""), 0o700))
	says := func(words string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // one look
		if err := a.watchState(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if got := a.faults.String(); words == "" && got != "" || !strings.Contains(got, words) {
			t.Errorf("faults %q, want %q", got, words)
		}
	}
	says("")
	big := filepath.Join(dir, "big")
	must(t, os.WriteFile(big, nil, 0o600))
	f, err := os.OpenFile(big, os.O_WRONLY, 0)
	must(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	must(t, f.Close())
	says("no space left")
	must(t, os.Remove(big))
	says("")
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	says("read-only")
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
	says("")
	if left, _ := filepath.Glob(filepath.Join(a.cfg.agentDir(""), ".*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
