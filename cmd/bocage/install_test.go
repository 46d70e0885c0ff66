package main

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage/packaging"
)

// filesIn lists the files below a folder.
func filesIn(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			name, _ := filepath.Rel(root, path)
			all = append(all, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What install installs, uninstall removes, into the last file.
func TestInstallAndUninstall(t *testing.T) {
	for _, functions := range []bool{false, true} {
		root := t.TempDir()
		do := func(args ...string) {
			t.Helper()
			var out, fault bytes.Buffer
			e := &env{in: strings.NewReader(""), out: &out, err: &fault}
			if code := run(context.Background(), e, args); code != exitOK {
				t.Fatalf("%v: exit code %d: %s%s", args, code, out.String(), fault.String())
			}
		}
		want := []string{packaging.Program}
		for _, f := range packaging.Files() {
			if !f.Optional || functions {
				want = append(want, f.Path)
			}
		}
		slices.Sort(want)
		for range 2 { // again is no harm
			install := []string{"install", "--root", root}
			if functions {
				install = append(install, "--functions")
			}
			do(install...)
			if got := filesIn(t, root); !slices.Equal(got, want) {
				t.Errorf("installed %v, want %v", got, want)
			}
		}
		info, err := os.Stat(filepath.Join(root, packaging.Program))
		if err != nil || info.Mode().Perm() != 0o755 || info.Size() == 0 {
			t.Errorf("the program: %v, %v", info, err)
		}
		options := filepath.Join(root, "etc/bocage/agent.env")
		if err := os.WriteFile(options, []byte("X=1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		do("uninstall", "--root", root)
		if got := filesIn(t, root); !slices.Equal(got, []string{"etc/bocage/agent.env"}) {
			t.Errorf("left without --purge: %v", got)
		}
		do("uninstall", "--purge", "--root", root)
		if got := filesIn(t, root); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
	}
}
