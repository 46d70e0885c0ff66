package host_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// Wherever these tests run as root, the machine carries the system.
func TestRootMachinePasses(t *testing.T) {
	hosttest.Root(t)
	seen := map[string]bool{}
	for _, f := range host.Examine(t.Context(), host.Machine{}.Checks()) {
		t.Logf("%-26s %-8s %-8s %s", f.Code, f.Severity, f.State, f.Detail)
		if f.Severity == host.Needed && f.State != host.Passed {
			t.Errorf("%s: %s; %s", f.Code, f.Detail, f.Cure)
		}
		if f.Detail == "" || seen[f.Code] || (f.State == host.Failed) != (f.Cure != "") && f.State != host.Unknown {
			t.Errorf("finding %+v needs a code of its own, a detail, and a cure if it fails", f)
		}
		seen[f.Code] = true
	}
	if f, missing := host.Missing(t.Context(), host.Machine{}); missing {
		t.Errorf("missing %+v", f)
	}
}

// finding asks one check.
func finding(t *testing.T, checks []host.Check, code string) host.Finding {
	t.Helper()
	for _, c := range checks {
		if c.Code == code {
			return host.Examine(t.Context(), []host.Check{c})[0]
		}
	}
	t.Fatalf("there is no check %s", code)
	return host.Finding{}
}

// What the files of a machine can say is told apart: each check passes on what is
// well, and fails on what is not.
func TestMachineFiles(t *testing.T) {
	limit := unix.Rlimit{}
	must(t, unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit))
	low := limit
	low.Cur = 64 << 10
	must(t, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &low))
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit) })
	for _, c := range []struct {
		code, file, well, ill string
		says                  string
	}{
		{"kernel.version", "proc/sys/kernel/osrelease", "6.6.0-1-amd64\n", "6.5.13\n", "6.6 is needed"},
		{"kernel.version", "proc/sys/kernel/osrelease", "7.0\n", "nonsense\n", "nonsense"},
		{"kernel.memlock", "proc/sys/kernel/osrelease", "6.6.0\n", "5.10.0\n", "64 KiB"},
		{"kernel.btf", "sys/kernel/btf/vmlinux", "\x9f\xeb\x01", "\x00\x00", "holds no BTF"},
		{"kernel.privilege", "proc/self/status", "CapEff:\t000000c000001000\n", "CapEff:\t0000000000001000\n", "lacks CAP_BPF"},
		{"kernel.bpffs", "proc/filesystems", "nodev\tproc\nnodev\tbpf\n", "nodev\tproc\n", "no bpffs"},
		{"kernel.namespaces", "proc/thread-self/ns/net", "", "absent", "no such file"},
		{"kernel.jit", "proc/sys/net/core/bpf_jit_enable", "1\n", "0\n", "interpreted"},
		{"kernel.jit", "proc/sys/net/core/bpf_jit_enable", "1\n", "2\n", "kernel log"},
		{"kernel.unprivileged-bpf", "proc/sys/kernel/unprivileged_bpf_disabled", "2\n", "0\n", "every user"},
		{"kernel.lockdown", "sys/kernel/security/lockdown", "none [integrity] confidentiality\n", "none integrity [confidentiality]\n", "confidentiality"},
		{"net.bridge-filter", "proc/sys/net/bridge/bridge-nf-call-arptables", "0\n", "1\n", "arptables"},
	} {
		root := t.TempDir()
		write := func(name, text string) {
			path := filepath.Join(root, name)
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			must(t, os.WriteFile(path, []byte(text), 0o644))
		}
		for _, other := range []string{"iptables", "ip6tables"} {
			write("proc/sys/net/bridge/bridge-nf-call-"+other, "0\n")
		}
		checks := host.Machine{Root: root}.Checks()
		write(c.file, c.well)
		if f := finding(t, checks, c.code); f.State != host.Passed {
			t.Errorf("%s on %q: %+v", c.code, c.well, f)
		}
		write(c.file, c.ill)
		if c.ill == "absent" {
			must(t, os.Remove(filepath.Join(root, c.file)))
		}
		if f := finding(t, checks, c.code); f.State != host.Failed || !strings.Contains(f.Detail, c.says) || f.Cure == "" {
			t.Errorf("%s on %q: %+v, want a failure that says %q", c.code, c.ill, f, c.says)
		}
	}
}

func TestInspectionProgram(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	ask := func() host.Finding { return finding(t, host.Machine{}.Checks(), "inspection.program") }
	if f := ask(); f.State != host.Failed || !strings.Contains(f.Detail, "not installed") {
		t.Errorf("without one: %+v", f)
	}
	for version, want := range map[string]host.State{"6.0.10": host.Failed, "7.0.3": host.Passed, "no idea": host.Failed} {
		script := "#!/bin/sh\necho This is Suricata version " + version + " RELEASE\n"
		must(t, os.WriteFile(filepath.Join(dir, "suricata"), []byte(script), 0o755))
		if f := ask(); f.State != want {
			t.Errorf("version %s: %+v", version, f)
		}
	}
}

func TestContainerSocket(t *testing.T) {
	root := t.TempDir()
	checks := host.Machine{Root: root}.Checks()
	if f := finding(t, checks, "containers.socket"); f.State != host.Skipped {
		t.Errorf("without a runtime: %+v", f)
	}
	must(t, os.Mkdir(filepath.Join(root, "run"), 0o755))
	listener, err := net.Listen("unix", filepath.Join(root, "run/docker.sock"))
	must(t, err)
	if f := finding(t, checks, "containers.socket"); f.State != host.Passed {
		t.Errorf("a runtime that answers: %+v", f)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	listener.Close()
	if f := finding(t, checks, "containers.socket"); f.State != host.Failed || !strings.Contains(f.Detail, "does not answer") {
		t.Errorf("a runtime that has died: %+v", f)
	}
}

func TestRootBPFFSPermissions(t *testing.T) {
	hosttest.Root(t)
	root := t.TempDir()
	dir := filepath.Join(root, host.BPFFS)
	checks := host.Machine{Root: root}.Checks()
	if f := finding(t, checks, "kernel.bpffs-permissions"); f.State != host.Skipped {
		t.Errorf("without a mount: %+v", f)
	}
	_, err := host.MountBPFFS(dir)
	must(t, err)
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if f := finding(t, checks, "kernel.bpffs-permissions"); f.State != host.Passed {
		t.Errorf("mode 0700: %+v", f)
	}
	must(t, os.Chmod(dir, 0o777))
	if f := finding(t, checks, "kernel.bpffs-permissions"); f.State != host.Failed {
		t.Errorf("mode 0777: %+v", f)
	}
}

// Each network check fails in a namespace where what it looks for is really there.
func TestRootNetworkChecks(t *testing.T) {
	hosttest.Root(t)
	run := func(name string, arguments ...string) func() error {
		return func() error {
			out, err := exec.Command(name, arguments...).CombinedOutput()
			if err != nil {
				t.Logf("%s %v: %s", name, arguments, out)
			}
			return err
		}
	}
	for _, c := range []struct {
		code, says string
		spoil      func() error
	}{
		{"net.nftables-links", "netdev wall", run("nft", "add table netdev wall")},
		{"net.nftables-drops", "inet wall way", run("nft", "add table inet wall; add chain inet wall way { type filter hook forward priority 0; policy drop; }")},
		{"net.other-programs", "eth0", run("tc", "qdisc", "add", "dev", "eth0", "clsact")},
		{"net.xdp", "eth0", func() error {
			const typeXDP, pass = 6, 2
			program, err := host.LoadReturn(typeXDP, pass)
			if err != nil {
				return err
			}
			defer unix.Close(program)
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetXdpFd(link, program)
		}},
		{"net.uplinks", "no default route", run("ip", "route", "del", "default")},
	} {
		here, there := hosttest.Namespace(t), hosttest.Namespace(t)
		must(t, host.CreateVeth(host.Veth{Name: "eth0", Namespace: here, Peer: "eth0", PeerNamespace: there}))
		must(t, host.AddAddress(here, "eth0", netip.MustParsePrefix("10.95.0.1/24")))
		must(t, host.AddRoute(here, host.Route{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.95.0.2")}))
		must(t, host.In(here, func() error {
			checks := host.Machine{}.Checks()
			if f := finding(t, checks, c.code); f.State != host.Passed {
				t.Errorf("%s before: %+v", c.code, f)
			}
			if err := c.spoil(); err != nil {
				return err
			}
			if f := finding(t, checks, c.code); f.State != host.Failed || !strings.Contains(f.Detail, c.says) || f.Cure == "" {
				t.Errorf("%s: %+v, want a failure that says %q", c.code, f, c.says)
			}
			return nil
		}))
	}
}

// Without privilege nothing can be loaded, and the doctor says so.
func TestRootUnprivileged(t *testing.T) {
	hosttest.Root(t)
	if os.Getenv("BOCAGE_TEST_UNPRIVILEGED") != "" {
		for _, code := range []string{"kernel.privilege", "kernel.tcx"} {
			if f := finding(t, host.Machine{}.Checks(), code); f.State != host.Failed {
				t.Errorf("%+v", f)
			}
		}
		return
	}
	cmd := exec.CommandContext(context.Background(), "setpriv", "--bounding-set", "-all", "--inh-caps", "-all", os.Args[0], "-test.run=^TestRootUnprivileged$")
	cmd.Env = append(os.Environ(), "BOCAGE_TEST_UNPRIVILEGED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
