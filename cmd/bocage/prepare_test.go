package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host/hosttest"
	"bocage.dev/bocage/node"
)

// What the unit's step as root leaves belongs to the agent's user, and an agent with the
// same options finds it: the folder, and in it what it enforces by.
func TestRootPrepareLeavesProgramsToTheAgent(t *testing.T) {
	hosttest.Root(t)
	dir := filepath.Join(t.TempDir(), "bpf")
	for above := filepath.Dir(dir); above != os.TempDir() && above != "/"; above = filepath.Dir(above) {
		if err := os.Chmod(above, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	pins := node.Config{Host: "h1", RunDir: node.DefaultRunDir, BPFFS: dir}.PinDir()
	t.Cleanup(func() {
		if err := dataplane.Remove(pins); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	for range 2 { // as at each start of the unit
		out, err := exec.Command("bocage", "prepare", "--user", "nobody", "--bpffs", dir, "--host", "h1",
			"--controllers", "192.0.2.1:4222", "--join", "/does/not/matter").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	programs, owned := 0, 0
	err := filepath.WalkDir(pins, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Sys().(*syscall.Stat_t).Uid != 65534 {
			t.Errorf("%s belongs to user %d", path, info.Sys().(*syscall.Stat_t).Uid)
		}
		owned++
		if strings.Contains(path, "/programs-") && d.Name() == "from_workload" {
			programs++
		}
		return nil
	})
	if err != nil || programs != 2 || owned < 40 { // one to enforce, and one to be asked
		t.Errorf("%d programs, %d files, %v", programs, owned, err)
	}
	out, err := exec.Command("bocage", "prepare", "--user", "nobody", "--bpffs", dir, "--host", "Not A Name").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "is not a lower-case DNS label") {
		t.Errorf("%v: %s", err, out)
	}
}
