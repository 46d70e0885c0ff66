package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
	"bocage.dev/bocage/node"
	"bocage.dev/bocage/packaging"
)

// prepares runs the unit's step as root, for an installation that is a test's own.
func prepares(t *testing.T) (run string, pins string, prepare func(user string)) {
	t.Helper()
	hosttest.Root(t)
	root := t.TempDir()
	for above := root; above != os.TempDir() && above != "/"; above = filepath.Dir(above) {
		if err := os.Chmod(above, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run = filepath.Join(root, "run")
	dir := filepath.Join(run, "bpf")
	pins = node.Config{Host: "h1", RunDir: run, BPFFS: dir}.PinDir()
	t.Cleanup(func() {
		if err := dataplane.Remove(pins); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	return run, pins, func(user string) {
		t.Helper()
		out, err := exec.Command("bocage", "prepare", "--user", user, "--run-dir", run, "--state-dir", filepath.Join(root, "state"),
			"--bpffs", dir, "--host", "h1", "--controllers", "192.0.2.1:4222", "--join", "/does/not/matter").CombinedOutput()
		if err != nil {
			t.Fatalf("prepare for %s: %v: %s", user, err, out)
		}
	}
}

// What the unit's step as root leaves belongs to the agent's user, and an agent with the
// same options finds it: the folder, and in it what it enforces by. It does not matter
// whose agent ran before.
func TestRootPrepareLeavesProgramsToTheAgent(t *testing.T) {
	run, pins, prepare := prepares(t)
	state := filepath.Join(filepath.Dir(run), "state", "agent", "certificate")
	for i, user := range []string{"root", "nobody", "nobody", "root", "nobody"} {
		prepare(user)
		if user == "root" { // an agent that is root leaves files
			for _, path := range []string{state, filepath.Join(run, "agent.pid")} {
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600), os.Chown(path, 0, 0)); err != nil {
					t.Fatal(err)
				}
			}
			continue
		}
		programs, owned := 0, 0
		look := func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if info.Sys().(*syscall.Stat_t).Uid != 65534 {
				t.Errorf("step %d: %s belongs to user %d", i, path, info.Sys().(*syscall.Stat_t).Uid)
			}
			owned++
			if strings.Contains(path, "/programs-") && d.Name() == "from_workload" {
				programs++
			}
			return nil
		}
		if err := filepath.WalkDir(pins, look); err != nil || programs != 2 || owned < 40 { // one to enforce, and one to be asked
			t.Errorf("step %d: %d programs, %d files, %v", i, programs, owned, err)
		}
		for _, path := range []string{filepath.Dir(state), filepath.Join(run, "agent.pid"), filepath.Join(run, "bpffs"), filepath.Join(run, "host")} {
			if err := filepath.WalkDir(path, look); err != nil {
				t.Errorf("step %d: %v", i, err)
			}
		}
	}
	out, err := exec.Command("bocage", "prepare", "--user", "nobody", "--run-dir", run, "--bpffs", filepath.Dir(pins), "--host", "Not A Name").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "is not a lower-case DNS label") {
		t.Errorf("%v: %s", err, out)
	}
}

// What was prepared for an agent that never ran, off finds.
func TestRootOffFindsWhatWasPrepared(t *testing.T) {
	run, pins, prepare := prepares(t)
	prepare("nobody")
	out, err := exec.Command("bocage", "off", "--run-dir", run, "--state-dir", filepath.Join(filepath.Dir(run), "state")).CombinedOutput()
	if err != nil {
		t.Errorf("off: %v: %s", err, out)
	}
	if _, err := os.Lstat(pins); !errors.Is(err, fs.ErrNotExist) || host.IsBPFFS(filepath.Dir(pins)) {
		t.Errorf("%s is left: %v", pins, err)
	}
	if _, err := os.Lstat(run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", run, err)
	}
}

// Where what enforces is in a bpffs that cannot be seen, nobody is told that nothing is
// filtered, and what says where to look stays.
func TestRootOffSeesNoBPFFS(t *testing.T) {
	hosttest.Root(t)
	run := filepath.Join(t.TempDir(), "run")
	word := filepath.Join(run, "bpffs")
	if err := errors.Join(os.Mkdir(run, 0o755), os.WriteFile(word, []byte(filepath.Join(run, "unmounted")), 0o644)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("bocage", "off", "--host", "h2", "--run-dir", run, "--state-dir", run+".state").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no bpffs is mounted there") || strings.Contains(string(out), "nothing is filtered") {
		t.Errorf("off where no bpffs is: %v: %s", err, out)
	}
	if _, err := os.Stat(word); err != nil {
		t.Errorf("what says where to look is gone: %v", err)
	}
}

// A link in the run folder, where others may write, leads root nowhere.
func TestRootPrepareFollowsNoLinkInTheRunFolder(t *testing.T) {
	run, _, prepare := prepares(t)
	secret := filepath.Join(filepath.Dir(run), "secret")
	if err := errors.Join(os.Mkdir(run, 0o755), os.WriteFile(secret, []byte("h1"), 0o600),
		os.Symlink(secret, filepath.Join(run, "host")), os.Symlink(secret, filepath.Join(run, "bpffs"))); err != nil {
		t.Fatal(err)
	}
	prepare("nobody") // puts words of its own in the links' place
	for _, name := range []string{"host", "bpffs"} {
		if info, err := os.Lstat(filepath.Join(run, name)); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	info, err := os.Stat(secret)
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 || info.Size() != 2 {
		t.Errorf("what the links led to: %v, %v", info, err)
	}
}

// systemd makes folders in which nobody can put a thing in the place of root's, and
// leaves what is mounted there as it is.
func TestRootFoldersAreRoots(t *testing.T) {
	hosttest.Root(t)
	tool, err := exec.LookPath("systemd-tmpfiles")
	if err != nil {
		t.Skip("systemd-tmpfiles is not installed")
	}
	root := t.TempDir()
	file := filepath.Join(root, "bocage.conf")
	for path, text := range map[string]string{
		file: folders(t), filepath.Join(root, "etc/passwd"): "root:x:0:0::/:/bin/sh\nbocage:x:4711:4712::/:/bin/sh\nbocage-controller:x:4713:4714::/:/bin/sh\n",
		filepath.Join(root, "etc/group"): "root:x:0:\nbocage:x:4712:\nbocage-controller:x:4714:\n",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	bpf := filepath.Join(root, "run/bocage/bpf")
	create := func(want map[string]string) {
		t.Helper()
		if out, err := exec.Command(tool, "--create", "--root="+root, file).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for name, want := range want {
			info, err := os.Lstat(filepath.Join(root, name))
			if err != nil {
				t.Error(err)
				continue
			}
			st := info.Sys().(*syscall.Stat_t)
			if got := fmt.Sprintf("%o %d:%d", st.Mode&0o7777, st.Uid, st.Gid); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
	}
	create(map[string]string{"run/bocage": "1775 0:4712", "run/bocage/bpf": "700 0:0", "var/lib/bocage/agent": "700 4711:4712"})
	if err := os.Chown(bpf, 4711, 4712); err != nil {
		t.Fatal(err)
	}
	create(map[string]string{"run/bocage/bpf": "700 4711:4712"})
}

func folders(t *testing.T) string {
	t.Helper()
	for _, f := range packaging.Files() {
		if strings.Contains(f.Path, "/tmpfiles.d/") {
			return f.Text
		}
	}
	t.Fatal("there are no folders")
	return ""
}
