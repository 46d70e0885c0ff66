package dataplane

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// nobody is a user without any right of its own.
const nobody = "65534"

// asNobody is a command line that runs a program as that user with the agent's three
// capabilities and no way to others.
func asNobody(program string) []string {
	const caps = "-all,+bpf,+net_admin,+perfmon"
	return []string{"setpriv", "--reuid", nobody, "--regid", nobody, "--clear-groups", "--no-new-privs",
		"--bounding-set", caps, "--inh-caps", caps, "--ambient-caps", caps, program}
}

// An agent that is not root, with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON only, enforces, is
// killed, restarts and upgrades to another program and another layout, and loses no
// packet and no connection.
func TestRootUnprivilegedAgent(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) {
		if err := Prepare(c.PinDir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	})
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)
	must(t, p.Close())
	must(t, Remove(p.cfg.PinDir)) // of what root made
	must(t, Prepare(p.cfg.PinDir, 65534, 65534))
	for dir := filepath.Dir(p.cfg.PinDir); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	p.command = asNobody(executableFor(t))
	all := order{Attachments: []Attachment{{Ifindex: a.ifindex, Port: a.port}, {Ifindex: b.ifindex, Port: b.port}}, Ruleset: rs}
	kill := p.startChild(all)
	l := startLoad(t, a, b)
	refused := func() {
		t.Helper()
		if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
			t.Errorf("refused flow: %v, want a timeout", err)
		}
	}
	refused()
	kill()
	l.more(t, "traffic without an agent")
	refused()
	for _, change := range []func(*Config){
		func(*Config) {}, // the same again
		func(c *Config) { c.AnswersPerSecond = 17 },
		func(c *Config) { c.FlowEntries *= 2 },
	} {
		change(&p.cfg)
		kill = p.startChild(all)
		l.more(t, "traffic with the next agent")
		refused()
		kill()
	}
	var e Examination
	p.in(func() (err error) { e, err = Examine(p.cfg); return err })
	if len(e.Layouts) != 1 || len(e.Layouts[0].Links) != 4 {
		t.Errorf("layouts %+v", e.Layouts)
	}
	p.open() // root may take over, too
	l.end(t)
}

// executableFor copies the test's own program to where anybody may run it.
func executableFor(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bct")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	from, err := os.Open("/proc/self/exe")
	must(t, err)
	defer from.Close()
	path := filepath.Join(dir, "agent")
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o755)
	must(t, err)
	_, err = io.Copy(to, from)
	must(t, err)
	must(t, to.Close())
	return path
}

// Preparing takes what is there, and gives it away.
func TestRootPrepare(t *testing.T) {
	t.Parallel()
	hosttest.Root(t)
	dir := filepath.Join(t.TempDir(), "bpf")
	for range 2 {
		must(t, Prepare(dir, 65534, 65534))
	}
	info, err := os.Stat(dir)
	must(t, err)
	if !host.IsBPFFS(dir) || !isOwnMount(dir) || userOf(info) != 65534 {
		t.Errorf("%s is a bpffs: %v, ours: %v, of user %d", dir, host.IsBPFFS(dir), isOwnMount(dir), userOf(info))
	}
	must(t, Remove(dir))
	if host.IsBPFFS(dir) {
		t.Error("the mount is left")
	}
}

func userOf(info os.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }
