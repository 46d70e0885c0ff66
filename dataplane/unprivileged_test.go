package dataplane

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// nobody is a user without any right of its own.
const nobody = "65534"

// What an agent may do, and what who loads its programs may.
const (
	enforces = "-all,+bpf,+net_admin"
	loads    = enforces + ",+perfmon"
)

// asNobody is a command line that runs a program as that user with some capabilities
// and no way to others.
func asNobody(program, caps string) []string {
	return []string{"setpriv", "--reuid", nobody, "--regid", nobody, "--clear-groups", "--no-new-privs",
		"--bounding-set", caps, "--inh-caps", caps, "--ambient-caps", caps, program}
}

// forNobody gives a plane's folder to a user without rights, and returns a program
// that may be run so.
func (p *plane) forNobody() (program string) {
	p.t.Helper()
	must(p.t, p.Close())
	must(p.t, Remove(p.cfg.PinDir)) // of what root made
	reachable(p.t, p.cfg.PinDir)
	must(p.t, Prepare(p.cfg.PinDir, 65534, 65534))
	return executableFor(p.t)
}

// openLeft has a plane begin anew by programs that were loaded for it before.
func (p *plane) openLeft() {
	p.t.Helper()
	must(p.t, p.Close())
	must(p.t, Remove(p.cfg.PinDir))
	p.in(func() error { return Load(p.cfg) })
	p.open()
}

// reachable lets everybody reach a folder of a test.
func reachable(t testing.TB, dir string) {
	t.Helper()
	for dir = filepath.Dir(dir); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
}

// loadAs has a process of its own load the programs. Where it dies before a step, it
// says so.
func (p *plane) loadAs(program string, o order) error {
	p.t.Helper()
	o.Load, o.Config = true, p.cfg
	text, err := json.Marshal(o)
	must(p.t, err)
	line := asNobody(program, loads)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.Stdin = bytes.NewReader(text)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, os.Stderr
	must(p.t, host.Start(p.namespace, cmd))
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, &said)
	}
	return nil
}

// An agent that is not root, with CAP_BPF and CAP_NET_ADMIN only, enforces by programs
// that were loaded for it, is killed, restarts and upgrades to another program and
// another layout, and loses no packet and no connection.
func TestRootUnprivilegedAgent(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)
	program := p.forNobody()
	p.command = asNobody(program, enforces)
	all := order{Attachments: []Attachment{{Ifindex: a.ifindex, Port: a.port}, {Ifindex: b.ifindex, Port: b.port}}, Ruleset: rs}
	must(t, p.loadAs(program, order{}))
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
		must(t, p.loadAs(program, order{}))
		l.more(t, "traffic with other programs loaded")
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

// Without CAP_PERFMON, and without programs that were left for it, an agent says what
// is to be done, and what is in force stays so. Programs of other options are none.
func TestRootUnprivilegedAgentNeedsPrograms(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)
	program := p.forNobody()
	p.command = asNobody(program, enforces)
	all := order{Attachments: []Attachment{{Ifindex: a.ifindex, Port: a.port}, {Ifindex: b.ifindex, Port: b.port}}, Ruleset: rs}
	needs := func(when string) {
		t.Helper()
		if _, err := p.child(all); err == nil || !strings.Contains(err.Error(), "bocage prepare") {
			t.Errorf("%s: %v", when, err)
		}
	}
	needs("nothing there")
	for _, step := range []string{"load", "loaded"} {
		dies := order{Dies: step, Time: 1}
		if err := p.loadAs(program, dies); err == nil {
			t.Errorf("it lived through %q", dies.Dies)
		}
		needs("killed before " + dies.Dies)
	}
	must(t, p.loadAs(program, order{}))
	if err := p.loadAs(program, order{Dies: "replaced", Time: 1}); err == nil {
		t.Error("it lived through its next loading")
	}
	kill := p.startChild(all)
	l := startLoad(t, a, b)
	if err := p.loadAs(program, order{}); err == nil || !strings.Contains(err.Error(), "stop that agent first") {
		t.Errorf("beside an agent: %v", err)
	}
	kill()
	p.cfg.DirectDelivery = true
	needs("other options")
	p.cfg.DirectDelivery = false
	p.startChild(all)() // who had none of theirs has left these alone
	p.cfg.DirectDelivery = true
	l.more(t, "traffic meanwhile")
	must(t, p.loadAs(program, order{}))
	kill = p.startChild(all)
	l.more(t, "traffic with other options")
	kill()
	var kept []string
	entries, err := os.ReadDir(p.layoutDir())
	must(t, err)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), programsPrefix) {
			kept = append(kept, entry.Name())
		}
	}
	if len(kept) != 1 {
		t.Errorf("programs %q are kept, want those of the last options", kept)
	}
	l.end(t)
}

// layoutDir is the folder of the layout that this plane has open, or would open.
func (p *plane) layoutDir() string {
	p.t.Helper()
	spec, err := loadSpec(p.cfg.withDefaults())
	must(p.t, err)
	return filepath.Join(p.cfg.PinDir, layoutOf(spec))
}

// pinnedPrograms is the one folder of programs that are pinned in the layout's.
func (p *plane) pinnedPrograms() string {
	p.t.Helper()
	found, err := filepath.Glob(filepath.Join(p.layoutDir(), programsPrefix+"*"))
	must(p.t, err)
	if len(found) != 1 {
		p.t.Fatalf("programs in %q, want one folder", found)
	}
	return found[0]
}

// missing is what an examination says of programs that are not there any more.
func (p *plane) missing() []string {
	p.t.Helper()
	var e Examination
	p.in(func() (err error) { e, err = Examine(p.cfg); return err })
	if len(e.Layouts) != 1 {
		p.t.Fatalf("layouts %+v", e.Layouts)
	}
	return e.Layouts[0].MissingPrograms
}

// pinnedID is the kernel's number of the program that is pinned at a path.
func pinnedID(t *testing.T, path string) ebpf.ProgramID {
	t.Helper()
	program, err := ebpf.LoadPinnedProgram(path, nil)
	must(t, err)
	defer program.Close()
	info, err := program.Info()
	must(t, err)
	id, _ := info.ID()
	return id
}

// Whatever of the pinned programs is lost, or is another by the same name: it is taken
// for none, and the next loading puts all of it back while enforcement goes on.
func TestRootProgramsLostOrForeign(t *testing.T) {
	t.Parallel()
	p := newPlane(t, unshelved)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)
	program := p.forNobody()
	p.command = asNobody(program, enforces)
	all := order{Attachments: []Attachment{{Ifindex: a.ifindex, Port: a.port}, {Ifindex: b.ifindex, Port: b.port}}, Ruleset: rs}
	must(t, p.loadAs(program, order{}))
	p.startChild(all)()
	l := startLoad(t, a, b)
	dir := p.pinnedPrograms()
	pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Name: programFrom,
		Instructions: asm.Instructions{asm.LoadImm(asm.R0, -1, asm.DWord), asm.Return()}})
	must(t, err)
	defer pass.Close()
	for name, c := range map[string]struct {
		at      string // what is harmed
		by      string // what is pinned there instead; empty: nothing
		missing bool
		asks    bool // only questions suffer
	}{
		"a program lost":               {at: programTo, missing: true},
		"its own map lost":             {at: ownMap, missing: true},
		"a question's program lost":    {at: "asker/" + programFrom, missing: true, asks: true},
		"a question's map lost":        {at: "asker/" + steps, missing: true, asks: true},
		"a program that passes all":    {at: programFrom, by: "pass"},
		"another of the programs":      {at: programFrom, by: programTo},
		"the one that only answers":    {at: programFrom, by: "asker/" + programFrom},
		"another map of the same form": {at: ownMap, by: "asker/" + ownMap},
		"a question's that enforces":   {at: "asker/" + programFrom, by: programFrom, asks: true},
		"a question's enforced flows":  {at: "asker/flows", by: "../map/flows", asks: true},
	} {
		restore := p.harm(dir, c.at, c.by, pass)
		if got := p.missing(); slices.Contains(got, c.at) != c.missing || len(got) > 1 {
			t.Errorf("%s: missing %q", name, got)
		}
		if taken, asker := p.taken(dir); taken != c.asks || asker == c.asks {
			t.Errorf("%s: programs are taken %v, those for questions %v", name, taken, asker)
		}
		restore()
		if taken, asker := p.taken(dir); !taken || !asker {
			t.Errorf("%s, and put back: programs are taken %v, those for questions %v", name, taken, asker)
		}
	}
	before := pinnedID(t, filepath.Join(dir, programTo))
	p.harm(dir, programFrom, "pass", pass)
	needs := func() {
		t.Helper()
		if _, err := p.child(all); err == nil || !strings.Contains(err.Error(), "bocage prepare") {
			t.Errorf("an agent takes what is not whole: %v", err)
		}
	}
	needs()
	for _, lost := range []string{ownMap, programFrom, "asker/" + programFrom, "asker/" + steps} { // half a folder
		must(t, os.Remove(filepath.Join(dir, lost)))
	}
	needs()
	l.more(t, "traffic by what was loaded first")
	must(t, p.loadAs(program, order{}))
	if got := p.pinnedPrograms(); got != dir || len(p.missing()) != 0 || pinnedID(t, filepath.Join(dir, programTo)) == before {
		t.Errorf("after the next loading %s lacks %q, or is what it was", got, p.missing())
	}
	l.more(t, "traffic with others loaded")
	kill := p.startChild(all)
	l.more(t, "traffic by others")
	if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
		t.Errorf("refused flow: %v, want a timeout", err)
	}
	kill()
	l.end(t)
}

// harm takes away what is pinned at a place in a folder, and pins something else there;
// restore puts it back.
func (p *plane) harm(dir, at, by string, pass *ebpf.Program) (restore func()) {
	p.t.Helper()
	path := filepath.Join(dir, at)
	was := openPinned(p.t, path)
	var other pinner
	switch by {
	case "":
	case "pass":
		clone, err := pass.Clone()
		must(p.t, err)
		other = clone
	default:
		other = openPinned(p.t, filepath.Join(dir, by))
	}
	must(p.t, os.Remove(path))
	if other != nil {
		must(p.t, other.Pin(path))
		must(p.t, os.Chown(path, 65534, 65534))
		must(p.t, other.Close())
	}
	return func() {
		p.t.Helper()
		if other != nil {
			must(p.t, os.Remove(path))
		}
		must(p.t, was.Pin(path))
		must(p.t, os.Chown(path, 65534, 65534))
		must(p.t, was.Close())
	}
}

// pinner is a map or a program.
type pinner interface {
	Pin(path string) error
	Close() error
}

// openPinned takes what is pinned at a path, to be pinned at others.
func openPinned(t testing.TB, path string) pinner {
	t.Helper()
	if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
		defer m.Close()
		clone, err := m.Clone()
		must(t, err)
		return clone
	}
	program, err := ebpf.LoadPinnedProgram(path, nil)
	must(t, err)
	defer program.Close()
	clone, err := program.Clone()
	must(t, err)
	return clone
}

// taken says what of the programs that were left a process would take.
func (p *plane) taken(dir string) (programs, asker bool) {
	p.t.Helper()
	cfg := p.cfg.withDefaults()
	spec, err := loadSpec(cfg)
	must(p.t, err)
	shared := map[string]*ebpf.Map{}
	objects := &bpf.KernelObjects{}
	for name := range mapsOf(objects) {
		m, err := ebpf.LoadPinnedMap(filepath.Join(p.layoutDir(), "map", name), nil)
		must(p.t, err)
		defer m.Close()
		shared[name] = m
	}
	must(p.t, seed(spec, shared["seeds"], nil))
	folder := &pins{root: cfg.PinDir, layout: layoutOf(spec)}
	left, err := folder.left(spec, shared)
	must(p.t, err)
	if left != nil {
		defer left.Close()
	}
	fields := reflect.ValueOf(&objects.KernelMaps).Elem()
	for i := range fields.NumField() {
		if m := shared[fields.Type().Field(i).Tag.Get("ebpf")]; m != nil {
			fields.Field(i).Set(reflect.ValueOf(m))
		}
	}
	asks, err := leftAsker(filepath.Join(dir, askerDir), cfg, objects)
	must(p.t, err)
	if asks != nil {
		defer asks.close()
	}
	return left != nil, asks != nil
}

// Where what was left for questions is lost under an agent that may not load, it says
// what to do; one that may loads it, and after the next loading it is there again.
func TestRootQuestionsWithoutTheirPrograms(t *testing.T) {
	t.Parallel()
	p := newPlane(t, unshelved)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.openLeft()
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	p.attach(a, b)
	must(t, os.RemoveAll(p.pins.dir()))
	p.repaired("every map's pin")
	k := &packetBench{plane: p, from: a, to: b}
	ask := func() (err error) {
		_, err = p.Trace(Question{Ifindex: a.ifindex, From: true, Frame: k.out(bocage.ProtocolTCP).bytes()})
		return err
	}
	lacking(t, unix.CAP_PERFMON, unix.CAP_SYS_ADMIN)(func() {
		if err := ask(); err == nil || !strings.Contains(err.Error(), "restart the agent") {
			t.Errorf("asked without the right to load: %v", err)
		}
	})
	must(t, ask())
	must(t, p.Close())
	p.in(func() error { return Load(p.cfg) })
	if missing := p.missing(); len(missing) > 0 {
		t.Errorf("missing %q after the next loading", missing)
	}
	p.open()
	must(t, ask())
}

// lacking runs something on a thread that lacks capabilities, which ends with it.
func lacking(t *testing.T, caps ...int) func(func()) {
	return func(do func()) {
		t.Helper()
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			err := unix.Capget(&header, &data[0])
			for _, c := range caps {
				data[c/32].Effective &^= 1 << (c % 32)
			}
			if err == nil {
				err = unix.Capset(&header, &data[0])
			}
			if err == nil {
				do()
			}
			done <- err
		}()
		must(t, <-done)
	}
}

// Programs that were left answer questions as those do that are loaded for it, again
// and again, and say nothing of the question before.
func TestRootQuestionsToProgramsThatWereLeft(t *testing.T) {
	t.Parallel()
	p := newPlane(t, unshelved)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.openLeft()
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	p.attach(a, b)
	k := &packetBench{plane: p, from: a, to: b}
	ask := func(port uint16) Passage {
		t.Helper()
		f := k.out(bocage.ProtocolTCP)
		f.dport = port
		passage, err := p.Trace(Question{Ifindex: a.ifindex, From: true, Frame: f.bytes()})
		must(t, err)
		return passage
	}
	for range 2 {
		if got := ask(80); got.Outcome != Passes || got.Reason != bocage.ReasonRule || got.Decision != decideAllow || !got.Judged {
			t.Errorf("allowed: %+v", got)
		}
		if got := ask(81); got.Outcome != Dropped || got.Reason != bocage.ReasonDefaultDeny || got.Decision != decideDefault {
			t.Errorf("refused: %+v", got)
		}
	}
	if p.asker == nil || len(p.asker.maps) < 10 {
		t.Fatal("nothing was asked")
	}
	left, err := ebpf.LoadPinnedMap(filepath.Join(p.pins.programsDir(p.spec()), askerDir, steps), nil)
	must(t, err)
	defer left.Close()
	var about bpf.KernelTrace
	must(t, left.Lookup(uint32(0), &about))
	if about.Judged == 0 {
		t.Error("those that were left were not asked")
	}
}

// spec is what this plane's programs are loaded from.
func (p *plane) spec() *ebpf.CollectionSpec {
	p.t.Helper()
	spec, err := loadSpec(p.cfg.withDefaults())
	must(p.t, err)
	must(p.t, seed(spec, p.objects.Seeds, nil))
	return spec
}

// executableFor copies the test's own program to where anybody may run it.
func executableFor(t testing.TB) string {
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
	reachable(t, dir)
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

// An agent that was root, and one that is not, follow upon each other in one folder, each
// way, under traffic.
func TestRootPrepareHandsOver(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)
	program := p.forNobody()
	all := order{Attachments: []Attachment{{Ifindex: a.ifindex, Port: a.port}, {Ifindex: b.ifindex, Port: b.port}}, Ruleset: rs}
	asRoot := p.command
	must(t, Prepare(p.cfg.PinDir, 0, 0))
	kill := p.startChild(all)
	l := startLoad(t, a, b)
	for range 2 {
		kill()
		must(t, Prepare(p.cfg.PinDir, 65534, 65534))
		must(t, filepath.WalkDir(p.cfg.PinDir, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && userOf(info) != 65534 {
				t.Errorf("%s belongs to user %d", path, userOf(info))
			}
			return err
		}))
		must(t, p.loadAs(program, order{}))
		p.command = asNobody(program, enforces)
		kill = p.startChild(all)
		l.more(t, "traffic with an agent that is not root")
		kill()
		must(t, Prepare(p.cfg.PinDir, 0, 0))
		p.command = asRoot
		kill = p.startChild(all)
		l.more(t, "traffic with an agent that is root")
	}
	l.end(t)
}

// Where somebody else may write, a link leads root nowhere.
func TestRootPrepareFollowsNoLink(t *testing.T) {
	t.Parallel()
	hosttest.Root(t)
	root := t.TempDir()
	reachable(t, filepath.Join(root, "bpf"))
	target := filepath.Join(root, "target")
	must(t, os.Mkdir(target, 0o755))
	must(t, os.Symlink(target, filepath.Join(root, "link")))
	must(t, os.Symlink(filepath.Join(root, "none"), filepath.Join(root, "dangling")))
	for _, dir := range []string{"link", "dangling", "link/below", "link/far/below", "dangling/below"} {
		if err := Prepare(filepath.Join(root, dir), 65534, 65534); err == nil || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("%s: %v", dir, err)
		}
	}
	info, err := os.Stat(target)
	must(t, err)
	inside, err := os.ReadDir(target)
	must(t, err)
	_, err = os.Lstat(filepath.Join(root, "none"))
	if host.IsBPFFS(target) || userOf(info) != 0 || len(inside) > 0 || err == nil {
		t.Errorf("bpffs: %v, user %d, inside %v, made: %v", host.IsBPFFS(target), userOf(info), inside, err == nil)
	}
}

// A folder that the user cannot reach is refused before anything is mounted.
func TestRootPrepareWantsReach(t *testing.T) {
	t.Parallel()
	hosttest.Root(t)
	root := t.TempDir()
	must(t, os.Chmod(root, 0o700))
	dir := filepath.Join(root, "bpf")
	err := Prepare(dir, 65534, 65534)
	if err == nil || !strings.Contains(err.Error(), "user 65534 may not enter "+root) || !strings.Contains(err.Error(), "--bpffs /run/bocage/bpf") {
		t.Error(err)
	}
	if host.IsBPFFS(dir) {
		t.Error("it was mounted")
	}
}

func userOf(info os.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }
