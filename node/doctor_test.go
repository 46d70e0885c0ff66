package node

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// ask asks one check of a patient.
func (p *patient) ask(t *testing.T, code string) host.Finding {
	t.Helper()
	for _, c := range slices.Concat(p.processChecks(), p.kernelChecks(), p.pathChecks(), p.diskChecks()) {
		if c.Code == code {
			return host.Examine(t.Context(), []host.Check{c})[0]
		}
	}
	t.Fatalf("there is no check %s", code)
	return host.Finding{}
}

// expect asks a check, and wants an outcome that says some words.
func (p *patient) expect(t *testing.T, code string, state host.State, says string) {
	t.Helper()
	f := p.ask(t, code)
	if f.State != state || !strings.Contains(f.Detail, says) || (f.Cure == "") == (state == host.Failed) {
		t.Errorf("%+v, want %s that says %q", f, state, says)
	}
}

// healthy is a patient of whom nothing is wrong.
func healthy(t *testing.T) *patient {
	return &patient{cfg: Config{Host: "h1", RunDir: t.TempDir(), Version: "1"}, pid: os.Getpid(), state: t.TempDir(),
		report: AgentReport{Version: "1", Host: "h1", PID: os.Getpid(), User: 100, Started: time.Now(), Generation: 3, Since: time.Now(),
			Connected: true, Answered: time.Now(), ControllerVersion: "1", CertificateExpires: time.Now().Add(20 * time.Hour)},
		kernel: dataplane.Examination{Layouts: []dataplane.Layout{{Name: "a", Current: true}}},
	}
}

// Every check tells what is well from what is not, by what the agent and the
// kernel say.
func TestPatientFacts(t *testing.T) {
	for _, c := range []struct {
		code, says string
		spoil      func(*patient)
	}{
		{"agent.running", "no process holds", func(p *patient) { p.pid = 0 }},
		{"agent.answers", "refused", func(p *patient) { p.silent = errors.New("connection refused") }},
		{"agent.faults", "attach: no", func(p *patient) { p.report.Faults = []string{"attach: no"} }},
		{"agent.generation", "no ruleset", func(p *patient) { p.report.Generation = 0 }},
		{"agent.applied", "generation 4", func(p *patient) { p.report.NotApplied = 4 }},
		{"agent.confirmed", "went back", func(p *patient) { p.report.RevertedFrom = 4 }},
		{"agent.confirmed", "goes back at", func(p *patient) { p.report.ConfirmBy = time.Now().Add(time.Minute) }},
		{"agent.connected", "ever", func(p *patient) { p.report.Connected, p.report.Answered = false, time.Time{} }},
		{"agent.certificate", "expired on", func(p *patient) { p.report.CertificateExpires = time.Now().Add(-time.Minute) }},
		{"agent.certificate", "not renewed", func(p *patient) { p.report.CertificateExpires = time.Now().Add(time.Hour) }},
		{"agent.version", `"0"`, func(p *patient) { p.report.Version, p.report.ControllerVersion = "0", "0" }},
		{"controller.version", `"2"`, func(p *patient) { p.report.ControllerVersion = "2" }},
		{"inspection.up", "not up", func(p *patient) { p.report.Inspection = FunctionReport{Wanted: true} }},
		{"decoys.up", "not up", func(p *patient) { p.report.Decoys = FunctionReport{Wanted: true} }},
		{"dataplane.pins", "cells", func(p *patient) { p.kernel.Layouts[0].MissingMaps = []string{"cells"} }},
		{"dataplane.pins", "asker/steps", func(p *patient) { p.kernel.Layouts[0].MissingPrograms = []string{"asker/steps"} }},
		{"dataplane.layout", "another version", nil},
		{"dataplane.layout", "cut short", func(p *patient) {
			p.kernel.Layouts = append(p.kernel.Layouts, dataplane.Layout{Name: "draft-b", Draft: true})
		}},
		{"dataplane.layout", "no state", func(p *patient) { p.kernel.Layouts = nil }},
		{"dataplane.links", "detached from work0", func(p *patient) {
			p.kernel.Layouts[0].Links = []dataplane.PinnedLink{{Ifindex: 7, Interface: "work0", Program: "from_workload"}}
		}},
		{"dataplane.links", "0 of 2", func(p *patient) { p.report.Ports = []PortReport{{Interface: "work0", Ifindex: 7}} }},
		{"dataplane.others", "from_workload of work0", func(p *patient) {
			p.kernel.Layouts[0].Links = []dataplane.PinnedLink{{Ifindex: 7, Interface: "work0", Program: "from_workload", Attached: true, Others: 1, Ahead: 1}}
		}},
		{"dataplane.lost", "5 of 10", func(p *patient) { p.kernel.Lost, p.kernel.Offered = 5, 10 }},
		{"dataplane.names", "7 addresses and questions", func(p *patient) { p.kernel.NamesUnlearned, p.kernel.NamesAnswered = 7, 9 }},
		{"dataplane.fill", "cells 80 %", func(p *patient) { p.kernel.Fill = []dataplane.Fill{{Table: "cells", Rows: 80, Max: 100}} }},
		{"agent.ports-missing", "work1 of a/b", func(p *patient) { p.report.Missing = []PortReport{{Interface: "work1", Workload: "a/b"}} }},
		{"events.lost", "1 of 2", func(p *patient) { p.report.Events = EventsReport{Offered: 2, Lost: 1} }},
		{"admin.sessions", "would cut them", func(p *patient) {
			p.report.Ports = []PortReport{{Interface: "work0"}}
			p.report.Sessions = []bocage.AdministratorSession{{Service: "ssh", Interface: "work0"}}
		}},
	} {
		p := healthy(t)
		before := p.ask(t, c.code)
		if before.State != host.Passed && before.State != host.Skipped {
			t.Errorf("on the healthy: %+v", before)
		}
		if c.spoil == nil {
			p.kernel.Layouts = append(p.kernel.Layouts, dataplane.Layout{Name: "b"})
		} else {
			c.spoil(p)
		}
		p.expect(t, c.code, host.Failed, c.says)
	}
	// Where nothing is installed nothing is wrong, and where an agent should be
	// and is silent, nothing is claimed.
	p := healthy(t)
	p.pid, p.silent, p.blind = 0, fs.ErrNotExist, fs.ErrNotExist
	p.expect(t, "agent.running", host.Skipped, "no agent is installed")
	p.expect(t, "agent.applied", host.Skipped, "no agent is installed")
	p.expect(t, "dataplane.pins", host.Skipped, "nothing is pinned")
	p.blind = nil
	p.expect(t, "agent.running", host.Failed, "stays in force")
	if f := p.ask(t, "agent.applied"); f.State != host.Unknown || f.Cure == "" {
		t.Errorf("a silent agent: %+v", f)
	}
	p.blind = errors.New("not in a bpffs")
	if f := p.ask(t, "dataplane.pins"); f.State != host.Unknown || f.Cure != "" {
		t.Errorf("a folder that cannot be read: %+v", f)
	}
	// Whoever may not look is told so, and nothing else: neither that nothing runs nor
	// how to mend what nobody found.
	p.blind, p.silent, p.unseen = fs.ErrPermission, fs.ErrPermission, fs.ErrPermission
	for _, code := range []string{"agent.running", "agent.answers", "agent.applied", "dataplane.fill"} {
		if f := p.ask(t, code); f.State != host.Unknown || !strings.Contains(f.Cure, "as root") {
			t.Errorf("%s without rights: %+v", code, f)
		}
	}
}

// Who does not listen is not reached.
func TestPatientNetworkPeers(t *testing.T) {
	p := healthy(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p.report.Controllers, p.report.Connected = []string{listener.Addr().String()}, false
	p.expect(t, "agent.controllers", host.Passed, "127.0.0.1")
	listener.Close()
	p.expect(t, "agent.controllers", host.Failed, "1 of 1")

	p.expect(t, "controller.ready", host.Skipped, "no controller")
	p.expect(t, "controller.etcd", host.Skipped, "no controller")
	socket, err := net.Listen("unix", p.cfg.Socket())
	must(t, err)
	socket.(*net.UnixListener).SetUnlinkOnClose(false)
	controller := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery == "verbose" {
			_, _ = io.WriteString(w, "[+]store ok\n[!]etcd: members of etcd run 3.4.23\n")
		}
	})}
	served := make(chan error, 1)
	go func() { served <- controller.Serve(socket) }()
	p.expect(t, "controller.ready", host.Passed, "ready")
	p.expect(t, "controller.etcd", host.Failed, "3.4.23")
	must(t, controller.Close())
	<-served
	p.expect(t, "controller.ready", host.Failed, "refused")
}

// Rights are read from the process itself.
func TestRootPatientCapabilities(t *testing.T) {
	hosttest.Root(t)
	for _, c := range []struct {
		caps  string
		user  int
		state host.State
	}{{"+bpf,+net_admin", 65534, host.Passed}, {"+bpf,+net_admin,+perfmon", 65534, host.Failed}, {"+bpf,+net_admin,+sys_admin", 65534, host.Failed}, {"+bpf,+net_admin", 0, host.Failed}} {
		cmd := exec.Command("setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set", "-all,"+c.caps, "--inh-caps", "-all,"+c.caps, "--ambient-caps", "-all,"+c.caps, "sleep", "60")
		must(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		p := healthy(t)
		p.report.PID, p.report.User = cmd.Process.Pid, c.user
		hosttest.Await(t, "the doctor to see it", func() bool { return p.ask(t, "agent.capabilities").State == c.state })
	}
}

// What packets meet on their way, in a namespace where it is really so.
func TestRootPatientPath(t *testing.T) {
	here, there := hosttest.Namespace(t), hosttest.Namespace(t)
	for _, name := range []string{"work0", "engine0", "spare0"} {
		must(t, host.CreateVeth(host.Veth{Name: name, Namespace: here, Peer: name, PeerNamespace: there, MTU: 1500}))
	}
	must(t, host.DisableOffloads(here, "engine0"))
	for key, value := range map[string]string{"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.rp_filter": "0", "net.ipv4.conf.work0.rp_filter": "1"} {
		must(t, host.Sysctl(here, key, value))
	}
	address := netip.MustParseAddr("10.94.0.2")
	must(t, host.AddRoute(here, host.Route{Destination: netip.PrefixFrom(address, 32), Link: "work0"}))
	look := func(p *patient) (work, engine, spare host.Link) {
		must(t, host.In(here, func() (err error) { p.links, err = host.Links(""); return err }))
		for _, l := range p.links {
			switch l.Name {
			case "work0":
				work = l
			case "engine0":
				engine = l
			case "spare0":
				spare = l
			}
		}
		return work, engine, spare
	}
	fresh := func() *patient {
		p := healthy(t)
		work, engine, spare := look(p)
		p.report.Ports = []PortReport{{Interface: "work0", Ifindex: work.Index, Workload: "a/b", Addresses: []string{address.String()}},
			{Interface: "spare0", Ifindex: spare.Index}}
		p.report.Inspection = FunctionReport{Wanted: true, Up: true, Links: []uint32{engine.Index}}
		return p
	}
	run := func(arguments ...string) func() {
		return func() {
			must(t, host.In(here, func() error { return exec.Command(arguments[0], arguments[1:]...).Run() }))
		}
	}
	for _, c := range []struct {
		code, says  string
		spoil, mend func()
	}{
		{"net.forwarding", "ip_forward is 0", func() { must(t, host.Sysctl(here, "net.ipv4.ip_forward", "0")) }, func() { must(t, host.Sysctl(here, "net.ipv4.ip_forward", "1")) }},
		{"net.rp-filter", "10.94.0.2 from work0", run("ip", "route", "replace", "10.94.0.2/32", "dev", "spare0"), run("ip", "route", "replace", "10.94.0.2/32", "dev", "work0")},
		{"inspection.mtu", "9000 bytes", run("ip", "link", "set", "work0", "mtu", "9000"), run("ip", "link", "set", "work0", "mtu", "1500")},
		{"inspection.offloads", "tcp-segmentation", run("ethtool", "-K", "engine0", "tx", "on", "sg", "on", "tso", "on"), func() { must(t, host.DisableOffloads(here, "engine0")) }},
		{"agent.ports-down", "work0 of a/b", run("ip", "link", "set", "work0", "down"), run("ip", "link", "set", "work0", "up")},
		{"agent.uncovered", "bare0", run("ip", "link", "add", "bare0", "type", "veth", "peer", "name", "bare1"), run("ip", "link", "del", "bare0")},
	} {
		ask := func(state host.State, says string) {
			p := fresh()
			must(t, host.In(here, func() error { p.expect(t, c.code, state, says); return nil }))
		}
		ask(host.Passed, "")
		c.spoil()
		ask(host.Failed, c.says)
		c.mend()
		if c.code == "agent.ports-down" {
			must(t, host.AddRoute(here, host.Route{Destination: netip.PrefixFrom(address, 32), Link: "work0"}))
		}
	}
}

// What lies on disk, on a disk of its own.
func TestRootPatientDisk(t *testing.T) {
	hosttest.Root(t)
	p := healthy(t)
	p.cfg.StateDir = p.state
	must(t, os.Chmod(p.state, 0o700))
	must(t, unix.Mount("bocage-test", p.state, "tmpfs", 0, "size=1g,mode=0700"))
	mounted := p.state
	t.Cleanup(func() { unix.Unmount(mounted, unix.MNT_DETACH) })
	for _, dir := range []string{"spool", "identity"} {
		must(t, os.MkdirAll(p.cfg.agentDir(dir), 0o700))
	}
	for _, code := range []string{"disk.space", "disk.writable", "disk.permissions", "disk.spool", "clock.backward"} {
		p.expect(t, code, host.Passed, "")
	}
	kept := filepath.Join(p.cfg.agentDir("identity"), newestFile)
	must(t, os.WriteFile(kept, nil, 0o600))
	later := time.Now().Add(time.Hour)
	must(t, os.Chtimes(kept, later, later))
	p.expect(t, "clock.backward", host.Failed, "the clock went back")
	batch := filepath.Join(p.cfg.agentDir("spool"), "1")
	must(t, os.WriteFile(batch, nil, 0o600))
	must(t, os.Truncate(batch, spoolBytes*9/10))
	p.expect(t, "disk.spool", host.Failed, "1 batches")
	must(t, os.Chmod(p.state, 0o755))
	p.expect(t, "disk.permissions", host.Failed, "0755")
	big, err := os.Create(filepath.Join(p.state, "big"))
	must(t, err)
	must(t, errors.Join(unix.Fallocate(int(big.Fd()), 0, 0, 990<<20), big.Close()))
	p.expect(t, "disk.space", host.Failed, "are free")
	must(t, unix.Mount("", p.state, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	p.expect(t, "disk.writable", host.Failed, "read-only")
	p.state = filepath.Join(p.state, "absent")
	p.expect(t, "disk.space", host.Skipped, "nothing is kept")
}

// The checks of a machine without an installation, as they come.
func TestRootDoctorOfNothing(t *testing.T) {
	hosttest.Root(t)
	name := hosttest.Namespace(t)
	must(t, host.In(name, func() error {
		checks, err := Doctor(context.Background(), Config{Host: "h1", Agent: true, Controller: true, RunDir: t.TempDir(), StateDir: t.TempDir()})
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, f := range host.Examine(t.Context(), checks) {
			if seen[f.Code] || f.Detail == "" {
				t.Errorf("finding %+v", f)
			}
			seen[f.Code] = true
			if f.Severity == host.Needed && f.State != host.Passed {
				t.Errorf("finding %+v", f)
			}
		}
		if len(seen) < 25 {
			t.Errorf("%d checks", len(seen))
		}
		return nil
	}))
}
