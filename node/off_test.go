package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What else enforces is what has something attached, and nothing that only lies beside it.
func TestOtherInstallations(t *testing.T) {
	dir := t.TempDir()
	own := Config{Host: "h1", BPFFS: dir}
	for _, path := range []string{"tc/globals", "snap/snap_lxd", "prepared/abc/link", "prepared/program-abc", "former/abc/link/x", filepath.Base(own.PinDir()) + "/abc/link/3-from"} {
		must(t, os.MkdirAll(filepath.Join(dir, path), 0o700))
	}
	others := func() []string {
		all, err := otherInstallations(own)
		must(t, err)
		return slices.DeleteFunc(all, func(d string) bool { return !strings.HasPrefix(d, dir) }) // tests beside this one
	}
	if got := others(); len(got) != 0 {
		t.Errorf("nothing is attached, and these enforce: %q", got)
	}
	must(t, os.MkdirAll(filepath.Join(dir, "other/abc/link/4-to"), 0o700))
	if got := others(); !slices.Equal(got, []string{filepath.Join(dir, "other")}) {
		t.Errorf("these enforce: %q", got)
	}
}
