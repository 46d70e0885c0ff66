package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// Only what is root's and in the folder alone is handed over: nothing that a link leads
// to, nothing with a name elsewhere, nothing of another user's.
func TestRootHandOver(t *testing.T) {
	t.Parallel()
	hosttest.Root(t)
	root := t.TempDir()
	in := func(name string) string { return filepath.Join(root, name) }
	err := errors.Join(os.MkdirAll(in("dir/below"), 0o700), os.MkdirAll(in("other"), 0o700),
		os.WriteFile(in("dir/below/plain"), nil, 0o600), os.WriteFile(in("other/secret"), nil, 0o600), os.WriteFile(in("dir/theirs"), nil, 0o600),
		os.Link(in("other/secret"), in("dir/hard")), os.Symlink(in("other"), in("dir/soft")), os.Chown(in("dir/theirs"), 4711, 4711))
	if err != nil {
		t.Fatal(err)
	}
	folder, err := host.Folder(in("dir"))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	if err := host.HandOver(folder, 65534, 65534); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"hard", "soft", "below"} {
		if err := host.HandOverFile(folder, name, 65534, 65534); err == nil {
			t.Errorf("%s is handed over as a file", name)
		}
	}
	if err := errors.Join(host.HandOverFile(folder, "theirs", 65534, 65534), host.HandOverFile(folder, "none", 65534, 65534)); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]uint32{"dir": 65534, "dir/below": 65534, "dir/below/plain": 65534, "dir/theirs": 65534, "other": 0, "other/secret": 0} {
		info, err := os.Lstat(in(name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Sys().(*syscall.Stat_t).Uid; got != want {
			t.Errorf("%s belongs to user %d, want %d", name, got, want)
		}
	}
}
