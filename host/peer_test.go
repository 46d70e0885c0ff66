package host_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// The host finds out which of its interfaces lead into a namespace, and the MACs
// at the other ends, without a thread of its own being there.
func TestRootSandboxIsSeenFromOutside(t *testing.T) {
	here, there := hosttest.Namespace(t), hosttest.Namespace(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	err := host.In(here, func() error {
		sandbox, err := host.OpenSandbox(filepath.Join(host.NamespaceDir, there))
		if err != nil {
			return err
		}
		defer sandbox.Close()
		if number, err := sandbox.Number(); err != nil || number != host.NoNamespace {
			t.Errorf("number %d, %v of a namespace that nothing leads to", number, err)
		}
		if owner, err := sandbox.Owner(); err != nil || owner != 0 {
			t.Errorf("owner %d, %v", owner, err)
		}
		for _, name := range []string{"a", "b"} {
			v := host.Veth{Name: "v" + name, Namespace: here, Peer: "p" + name, PeerNamespace: there}
			if name == "b" {
				v.PeerMAC = mac
			}
			if err := host.CreateVeth(v); err != nil {
				return err
			}
		}
		number, err := sandbox.Number()
		if err != nil || number < 0 {
			t.Errorf("number %d, %v", number, err)
		}
		cmd := exec.Command("sleep", "60")
		if err := host.Start(there, cmd); err != nil {
			return err
		}
		if byProcess, err := host.NumberOfProcess(cmd.Process.Pid); err != nil || byProcess != number {
			t.Errorf("number %d by the process, %v; want %d", byProcess, err, number)
		}
		if err := cmd.Process.Kill(); err != nil {
			return err
		}
		cmd.Wait()
		far, err := host.FarLinks(number)
		if err != nil || len(far) != 3 {
			t.Fatalf("far links %+v, %v; want lo and two veths", far, err)
		}
		links, err := host.Links("")
		if err != nil {
			return err
		}
		found := 0
		for _, l := range links {
			for _, f := range far {
				if l.Kind != "veth" || l.Peer != f.Index {
					continue
				}
				found++
				if l.PeerNamespace != number || f.Kind != "veth" || f.Parent != l.Index || f.Name != "p"+l.Name[1:] || !f.Up {
					t.Errorf("%+v has %+v at its other end", l, f)
				}
				if l.Name == "vb" && f.MAC.String() != mac.String() {
					t.Errorf("MAC %s", f.MAC)
				}
			}
		}
		if found != 2 {
			t.Errorf("%d of the 2 pairs found", found)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := host.FarLinks(4711); err == nil {
		t.Error("links of a namespace that does not exist")
	}
}

// What a runtime names as a sandbox is taken for one only if it is.
func TestRootOpenSandboxRefusesOtherFiles(t *testing.T) {
	hosttest.Root(t)
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, plain, dir, "/proc/self/ns/mnt", "/dev/null"} {
		if s, err := host.OpenSandbox(path); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s: %v, %v", path, s, err)
		}
	}
	if _, err := host.OpenSandbox(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}
