package host_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

func TestRootMountBPFFS(t *testing.T) {
	hosttest.Root(t)
	dir := filepath.Join(t.TempDir(), "bpf")
	for i := range 2 {
		mounted, err := host.MountBPFFS(dir)
		if err != nil || mounted != (i == 0) {
			t.Errorf("time %d: mounted %v, %v", i, mounted, err)
		}
	}
	if !host.IsBPFFS(dir) || host.IsBPFFS(filepath.Dir(dir)) {
		t.Error("the directory is no bpffs, or its parent is")
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
}

func TestRootFirewallTables(t *testing.T) {
	name := hosttest.Namespace(t)
	if tables, err := host.FirewallTables(name); err != nil || len(tables) != 0 {
		t.Errorf("a new namespace has tables %q, %v", tables, err)
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft is not installed: only the empty case was tested")
	}
	cmd := exec.Command(nft, "add table inet filter; add table netdev wall; add table bridge b")
	cmd.Stderr = os.Stderr
	if err := host.Start(name, cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Skipf("this kernel's nftables refuse: %v", err)
	}
	want := []string{"bridge b", "inet filter", "netdev wall"}
	if tables, err := host.FirewallTables(name); err != nil || !slices.Equal(tables, want) {
		t.Errorf("tables %q, %v; want %q", tables, err, want)
	}
}

func TestRootBPFObjects(t *testing.T) {
	hosttest.Root(t)
	programs := func() map[uint32]bool {
		objects, err := host.BPFObjects()
		if err != nil {
			t.Fatal(err)
		}
		found := map[uint32]bool{}
		for _, o := range objects {
			if o.Kind == "program" {
				found[o.ID] = true
			}
		}
		return found
	}
	before := programs()
	fd, err := host.LoadPass()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	added := 0
	for id := range programs() {
		if !before[id] {
			added++
		}
	}
	// Others may load programs at the same time, too.
	if added == 0 {
		t.Error("a program that was loaded is not listed")
	}
}
