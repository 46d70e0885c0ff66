package suricata

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
)

// keepAlive asks again and again over one connection.
// ask sends one request and fails the test if no answer comes.
func TestRootProfilesChangeWhileFlowsLive(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7, 8)
	b.serve()
	h := b.run(web(evil))
	lives, other := b.keepAlive("10.0.7.2:80"), b.keepAlive("10.0.8.2:80")
	lives.ask("/tomorrow")
	other.ask("/tomorrow")

	changed := web(evil + `drop http any any -> any any (msg:"tomorrow"; http.uri; content:"tomorrow"; sid:103;)` + "\n")
	db := bocage.Profile{Number: 8, Name: "db", Signatures: `drop http any any -> any any (msg:"eight"; http.uri; content:"eight"; sid:1;)`}
	pid := h.running().id
	b.must(h.Load([]bocage.Profile{db, changed}))
	b.must(h.Load([]bocage.Profile{changed, db})) // again: nothing to do
	if n := strings.Count(b.logged.String(), "inspection profile changed"); n != 3 {
		t.Errorf("%d changes of profiles, want 3: add web, change web, add db", n)
	}
	lives.ask("/fine") // the same connection
	other.ask("/fine")
	if b.keepAlive("10.0.7.2:80").try("/tomorrow", "", refusal) == nil {
		t.Error("the new signature of a live profile does not block")
	}
	if b.keepAlive("10.0.8.2:80").try("/eight", "", refusal) == nil {
		t.Error("a profile that was added does not block")
	}
	if lives.try("/evil", "", refusal) == nil {
		t.Error("the old signature does not block on an old connection")
	}

	b.must(h.Load([]bocage.Profile{db}))
	b.keepAlive("10.0.7.2:80").ask("/evil") // nobody's any more
	other.ask("/fine")
	b.must(h.Load([]bocage.Profile{db, web(evil)}))
	if b.keepAlive("10.0.7.2:80").try("/evil", "", refusal) == nil {
		t.Error("a profile that came back does not block")
	}
	if h.running().id != pid {
		t.Error("the engine was restarted for a change of profiles")
	}
	entries, err := os.ReadDir(h.layout.etc())
	b.must(err)
	profiles := 0
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "profile-") {
			profiles++
		}
	}
	if profiles != 4 {
		t.Errorf("%d files of 2 profiles", profiles)
	}
}

func TestRootBadProfilesAreRefusedAndTheRunningOnesStay(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	b.serve()
	h := b.run(web(evil))
	good := `alert tcp any any -> any any (msg:"x"; content:"x"; sid:5;)`
	for _, c := range []struct {
		name, signatures string
		number           uint16
		want             []string
	}{
		{"unknown keyword", "# one\n" + good + "\nalert tcp any any -> any any (msg:\"y\"; kontent:\"y\"; sid:6;)\n", 8,
			[]string{`"bad"`, "line 3", "kontent", "sid:6"}},
		{"rubbish", "this is no signature\n", 8, []string{`"bad"`, "line 1", "this is no signature"}},
		{"two faults", "drop nothing\n\nalert tcp any any -> any any (sid:1\n", 8, []string{"line 1", "line 3"}},
		{"the same id twice", good + "\n" + good, 8, []string{"line 2", "uplicate"}},
		{"only comments", "# nothing\n\n", 8, []string{`"bad"`, "no signature"}},
		{"empty", "", 8, []string{"no signature"}},
		{"programs", `alert tcp any any -> any any (msg:"l"; lua:x.lua; sid:1;)`, 8, []string{"line 1", "ua"}},
		{"files", `alert http any any -> any any (msg:"d"; http.uri; dataset:set,d,type string,save /etc/passwd; sid:1;)`, 8, []string{"line 1", "disabled"}},
		{"files, relative", `alert http any any -> any any (msg:"d"; http.uri; dataset:set,d,type string,save d.txt; sid:1;)`, 8, []string{"line 1"}},
		{"NUL", good + "\n\x00", 8, []string{"line 2", "NUL"}},
		{"number", good, 4095, []string{"4095"}},
		{"number taken", good, 7, []string{"web", "bad", "7"}},
	} {
		err := h.Load([]bocage.Profile{web(evil), {Number: c.number, Name: "bad", Signatures: c.signatures}})
		if err == nil {
			t.Errorf("%s: was loaded", c.name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error does not say %q:\n%v", c.name, want, err)
			}
		}
	}
	if b.get("http://10.0.7.2/evil", refusal) != 0 {
		t.Error("the running profile does not block any more")
	}
	if b.get("http://10.0.7.2/fine", patience) != 200 {
		t.Error("the running profile does not pass any more")
	}
	if p := h.snapshot().Wanted; len(p) != 1 || p[0].Name != "web" {
		t.Errorf("profiles %+v, want web", p)
	}
}

// busy is what a machine that runs ten other things may add to a crash told at
// once, or a hang told within 100 ms; what it took is logged.
const busy = time.Second

func TestRootCrashIsToldAtOnceAndRepaired(t *testing.T) {
	b := newBed(t, 7)
	site := b.serve()
	h := b.run(web(evil))
	lives := b.keepAlive("10.0.7.2:80")
	lives.ask("/fine")
	for range 2 {
		killed := time.Now()
		b.must(unix.Kill(h.running().id.Pid, unix.SIGKILL))
		h.awaitState(t, false)
		told := time.Since(killed)
		if told > busy {
			t.Errorf("the crash was told after %s", told)
		}
		h.awaitState(t, true)
		t.Logf("told %s, up %s after kill -9", told, time.Since(killed))
		if b.get("http://10.0.7.2/evil", refusal) != 0 || site.reached("/evil") {
			t.Error("an exploit passed the engine that was restarted")
		}
		lives.ask("/fine") // a connection from before
	}
	if c := h.Counters(); c.Crashes != 2 || c.Restarts != 2 {
		t.Errorf("counters %+v, want 2 crashes and 2 restarts", c)
	}
}

func TestRootHangIsToldAndPasses(t *testing.T) {
	b := newBed(t, 7)
	b.serve()
	h := b.run(web(evil))
	pid := h.running().id.Pid
	stopped := time.Now()
	b.must(unix.Kill(pid, unix.SIGSTOP))
	h.awaitState(t, false)
	if told := time.Since(stopped); told > busy {
		t.Errorf("the hang was told after %s", told)
	} else {
		t.Logf("told %s after SIGSTOP", told)
	}
	b.must(unix.Kill(pid, unix.SIGCONT))
	h.awaitState(t, true)
	if h.running().id.Pid != pid {
		t.Error("an engine that came back was replaced")
	}
	b.must(unix.Kill(pid, unix.SIGSTOP))
	h.awaitState(t, false)
	h.awaitState(t, true) // another one
	if h.running().id.Pid == pid {
		t.Error("an engine that hangs for good was not replaced")
	}
	if b.get("http://10.0.7.2/evil", refusal) != 0 {
		t.Error("the engine that replaced it does not block")
	}
}

func TestRootAgentsComeAndGoWhileFlowsLive(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	b.serve()
	h := b.run(web(evil))
	lives := b.keepAlive("10.0.7.2:80")
	lives.ask("/odd-1")
	if e := h.awaitEvent(t, 101); e.Profile != "web" {
		t.Errorf("event %+v", e)
	}
	pid := h.running().id
	if _, err := Start(t.Context(), b.cfg); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second agent on the same directory: %v", err)
	}
	h.stop()
	for i := range 20 {
		lives.ask(fmt.Sprintf("/odd-between-%d", i))
	}
	next := b.begin() // without Load
	next.awaitState(t, true)
	if next.running().id != pid {
		t.Fatalf("engine %v, was %v: it was not taken over", next.running().id, pid)
	}
	for range 20 {
		if e := next.awaitEvent(t, 101); e.Profile != "web" {
			t.Errorf("event written between agents: %+v", e)
		}
	}
	b.must(next.Load([]bocage.Profile{web(evil)}))
	lives.ask("/odd-2")
	next.awaitEvent(t, 101)
	select {
	case e := <-next.events:
		if e.Signature == 101 {
			t.Errorf("event told twice: %+v", e)
		}
	default:
	}
	if strings.Count(b.logged.String(), "inspection profile changed") != 1 {
		t.Error("the profile was loaded again for an agent that came back")
	}
	if lives.try("/evil", "", refusal) == nil {
		t.Error("nothing blocks after the agent came back")
	}

	// An engine that does not answer is not taken over.
	next.stop()
	b.must(unix.Kill(pid.Pid, unix.SIGSTOP))
	last := b.begin()
	last.awaitState(t, true)
	if last.running().id == pid {
		t.Error("an engine that hangs was taken over")
	}
	if _, err := readStat(pid.Pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the engine that hung is still there: %v", err)
	}
}

// agentVariable makes a test process an agent, with the configuration that it holds.
const agentVariable = "BOCAGE_TEST_AGENT"

// TestAgentProcess is the agent of TestRootAgentKilled, not a test. It prints
// "up", and a line for each event.
func TestAgentProcess(t *testing.T) {
	configuration := os.Getenv(agentVariable)
	if configuration == "" {
		t.Skip("runs as a child of another test")
	}
	var cfg Config
	if err := json.Unmarshal([]byte(configuration), &cfg); err != nil {
		t.Fatal(err)
	}
	e, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Load([]bocage.Profile{web(evil)}); err != nil {
		t.Fatal(err)
	}
	e.Run(t.Context(), func(e bocage.InspectionEvent) {
		if e.Signature == 101 {
			os.Stdout.WriteString("event\n")
		}
	}, func(up bool) {
		if up {
			os.Stdout.WriteString("up\n")
		}
	})
}

func TestRootAgentKilledLeavesTheEngineAndItsEvents(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	b.serve()
	cfg := b.cfg
	cfg.Logger = nil
	configuration, err := json.Marshal(cfg)
	b.must(err)
	agent := exec.Command(os.Args[0], "-test.run=^TestAgentProcess$")
	agent.Env = append(os.Environ(), agentVariable+"="+string(configuration))
	output, err := agent.StdoutPipe()
	b.must(err)
	b.must(host.Start(b.agent, agent))
	t.Cleanup(func() { agent.Process.Kill() })
	said := bufio.NewScanner(output)
	told := 0
	next := func(want string) {
		for said.Scan() {
			if said.Text() == "event" {
				told++
			}
			if said.Text() == want {
				return
			}
		}
		t.Fatalf("the agent ended without %q", want)
	}
	next("up")
	b.lay()
	lives := b.keepAlive("10.0.7.2:80")
	const before, between = 30, 30
	for i := range before {
		lives.ask(fmt.Sprintf("/odd-%d", i))
	}
	next("event")
	b.must(agent.Process.Kill())
	for said.Scan() {
		if said.Text() == "event" {
			told++
		}
	}
	agent.Wait()
	record, err := readProcessRecord(layout{b.cfg.Dir})
	b.must(err)
	for i := range between {
		lives.ask(fmt.Sprintf("/odd-between-%d", i))
	}
	h := b.begin()
	h.awaitState(t, true)
	if h.running().id != record.processID {
		t.Error("the engine of an agent that was killed was not taken over")
	}
	for told < before+between {
		h.awaitEvent(t, 101)
		told++
	}
	lives.ask("/odd-last")
	h.awaitEvent(t, 101)
	again := 0
	for len(h.events) > 0 {
		if e := <-h.events; e.Signature == 101 {
			again++
		}
	}
	if again > 1 { // one, if it was killed between telling and remembering
		t.Errorf("%d events told again", again)
	}
}

func TestRootStrangerIsNotTakenForTheEngine(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h := b.begin()
	h.awaitState(t, true)
	h.stop()
	pid := h.running().id.Pid
	// The number of the engine's process, with another's start.
	b.must(writeProcessRecord(h.layout, processRecord{processID{pid, 1}, h.settingsDigest()}))
	next := b.begin()
	next.awaitState(t, true)
	if next.running().id.Pid == pid {
		t.Error("an engine that the record does not name was taken over")
	}
	next.stop()
	// This very process, which must survive what follows.
	stat, err := readStat(os.Getpid())
	b.must(err)
	b.must(writeProcessRecord(h.layout, processRecord{processID{os.Getpid(), stat.start}, h.settingsDigest()}))
	last := b.begin()
	last.awaitState(t, true)
}

// blocked passes on the next event of a block.
func TestRootEventLogIsPutAsideWithoutLoss(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	b.cfg.MaxLog = 32 << 10 // about 40 events
	b.serve()
	h := b.run(web(`alert http any any -> any any (msg:"each"; flow:to_server; http.uri; content:"/"; sid:1;)`))
	lives := b.keepAlive("10.0.7.2:80")
	const count = 1000
	for i := range count {
		lives.ask(fmt.Sprintf("/%d", i))
		if i == count/2 {
			h.stop()
			h = b.resume(h)
		}
	}
	for i := range count {
		select {
		case <-h.events:
		case <-time.After(patience):
			t.Fatalf("%d events of %d", i, count)
		}
	}
	lives.ask("/last")
	h.awaitEvent(t, 1)
	if n := len(h.events); n != 0 {
		t.Errorf("%d events too many", n)
	}
	for _, path := range []string{h.layout.eve(), h.layout.eveBefore()} {
		if info, err := os.Stat(path); err == nil && info.Size() > 2*b.cfg.MaxLog {
			t.Errorf("%s has %d bytes, limit %d", path, info.Size(), b.cfg.MaxLog)
		}
	}
	if c := h.Counters(); c.Malformed != 0 {
		t.Errorf("counters %+v", c)
	}
}

// resume starts the next agent, whose events join those of the one before.
func (b *bed) resume(h *held) *held {
	b.t.Helper()
	next := b.begin()
	next.awaitState(b.t, true)
	go func() {
		for {
			select {
			case e := <-h.events:
				next.events <- e
			case <-b.t.Context().Done():
				return
			}
		}
	}()
	return next
}

func TestRootFullDiskStopsNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	b.must(os.Mkdir(b.cfg.Dir, 0o755))
	b.must(unix.Mount("tmpfs", b.cfg.Dir, "tmpfs", 0, "size=1m,mode=0755"))
	t.Cleanup(func() { unix.Unmount(b.cfg.Dir, unix.MNT_DETACH) })
	b.serve()
	h := b.run(web(evil))
	lives := b.keepAlive("10.0.7.2:80")
	lives.ask("/fine")
	fill, err := os.Create(b.cfg.Dir + "/fill")
	b.must(err)
	defer fill.Close()
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	for i := range 100 {
		lives.ask(fmt.Sprintf("/odd-%d", i)) // each one an event, or none
	}
	if b.get("http://10.0.7.2/evil", refusal) != 0 {
		t.Error("an exploit passed while the disk was full")
	}
	if err := h.Load([]bocage.Profile{web(evil + "# changed\n")}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Load on a full disk: %v", err)
	}
	// Even a crash is repaired: what is needed is there.
	b.must(unix.Kill(h.running().id.Pid, unix.SIGKILL))
	h.awaitState(t, false)
	h.awaitState(t, true)
	lives.ask("/fine")
	if b.get("http://10.0.7.2/evil", refusal) != 0 {
		t.Error("an exploit passed after a restart on a full disk")
	}
	b.must(os.Remove(fill.Name()))
	fill.Close()
	b.must(h.Load([]bocage.Profile{web(evil + "# changed\n")}))
	lives.ask("/odd-after")
	h.awaitEvent(t, 101)
}

func TestRootEngineHasNoMoreThanItNeeds(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	h := b.run(web(evil))
	pid := h.running().id.Pid
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	b.must(err)
	const rawSockets = "0000000000002000" // CAP_NET_RAW
	for _, want := range []string{"CapEff:\t" + rawSockets, "CapPrm:\t" + rawSockets, "CapBnd:\t" + rawSockets, "NoNewPrivs:\t1"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the engine's status lacks %q", want)
		}
	}
	if strings.Contains(string(status), "Uid:\t0") {
		t.Error("the engine runs as root")
	}
	addresses := 0
	b.must(host.In(b.cfg.Namespace, func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if all, _ := l.Addrs(); l.Flags&net.FlagLoopback == 0 {
				addresses += len(all)
			}
		}
		return err
	}))
	if addresses != 0 {
		t.Errorf("%d addresses in the engine's namespace", addresses)
	}
}

func TestRootRemoveLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h := b.run()
	pid := h.running().id.Pid
	if err := b.inAgent(func() error { return Remove(b.cfg) }); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("Remove under a running agent: %v", err)
	}
	h.stop()
	for range 2 { // the second time there is nothing to do
		b.must(b.inAgent(func() error { return Remove(b.cfg) }))
	}
	if _, err := readStat(pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the engine is still there: %v", err)
	}
	if host.NamespaceExists(b.cfg.Namespace) {
		t.Error("its namespace is still there")
	}
	if _, err := os.Stat(b.cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its directory is still there: %v", err)
	}
	outside, inside := linkNames(b.cfg.Host)
	for _, name := range []string{outside, inside} {
		if _, err := host.LinkNamed(b.agent, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("link %s is still there: %v", name, err)
		}
	}
}

func TestRootMissingProgramSaysWhatToDo(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.cfg.Program = "/nonexistent/suricata"
	if _, err := Start(t.Context(), b.cfg); err == nil || !strings.Contains(err.Error(), "install the package suricata") {
		t.Errorf("error %v", err)
	}
	b.cfg.Program = "/bin/false" // starts and ends
	err := b.inAgent(func() error {
		_, err := Start(t.Context(), b.cfg)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "it ended") {
		t.Errorf("error of an engine that ends at once: %v", err)
	}
}

func TestRootEventLogOfAnAbsentAgentIsBounded(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	b.cfg.MaxLog = 16 << 10
	b.serve()
	each := web(`alert http any any -> any any (msg:"each"; flow:to_server; http.uri; content:"/"; sid:1;)`)
	h := b.run(each)
	lives := b.keepAlive("10.0.7.2:80")
	h.stop()
	for i := range 300 { // about 250 kB of events
		lives.ask(fmt.Sprintf("/%d", i))
	}
	if info, err := os.Stat(h.layout.eve()); err != nil || info.Size() > fullLogs*b.cfg.MaxLog {
		t.Errorf("the event log nobody reads: %v bytes, %v", info.Size(), err)
	}
	next := b.begin()
	next.awaitState(t, true)
	lives.ask("/a")
	lives.ask("/b")
	deadline := time.After(patience)
	last := time.Now()
	for told := 0; told < 20 || next.Counters().Malformed > 1; told++ {
		select {
		case e := <-next.events:
			last = e.Time
		case <-deadline:
			t.Fatalf("%d events, the last of %s, counters %+v", told, last, next.Counters())
		}
	}
	if next.running().id != h.running().id {
		t.Error("a full event log ended the engine")
	}
}

func TestRootProfilesLoadedWhileTheEngineIsDown(t *testing.T) {
	t.Parallel()
	b := newBed(t, 7)
	b.serve()
	h := b.begin(web(evil))
	h.awaitState(t, true)
	b.must(unix.Kill(h.running().id.Pid, unix.SIGKILL))
	changed := web(evil + `drop http any any -> any any (msg:"tomorrow"; http.uri; content:"tomorrow"; sid:103;)`)
	b.must(h.Load([]bocage.Profile{changed}))
	h.awaitState(t, false)
	h.awaitState(t, true)
	if b.get("http://10.0.7.2/tomorrow", refusal) != 0 {
		t.Error("the engine started without the profile that was loaded while it was down")
	}

	// An agent that starts without its engine has the profiles of the last Load.
	h.stop()
	b.must(unix.Kill(h.running().id.Pid, unix.SIGKILL))
	next := b.begin()
	next.awaitState(t, true)
	if b.get("http://10.0.7.2/tomorrow", refusal) != 0 {
		t.Error("the next agent's engine started without the profiles of the last Load")
	}
	if e := next.awaitEvent(t, 103); e.Profile != "web" {
		t.Errorf("event %+v", e)
	}
}

func TestRootSteeringLinksAreMadeAnew(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	h := b.begin()
	h.awaitState(t, true)
	outside, inside := h.Ports()
	for _, name := range []string{"bocout-", "bocin-"} {
		found := false
		links, err := host.Links(b.agent)
		b.must(err)
		for _, l := range links {
			found = found || strings.HasPrefix(l.Name, name) && (l.Index == outside || l.Index == inside) && len(l.Name) <= 15
		}
		if !found {
			t.Errorf("no link %s… among the ports", name)
		}
	}
	outsideName, _ := linkNames(b.cfg.Host)
	b.must(host.DeleteLink(b.agent, outsideName))
	h.awaitState(t, false)
	select {
	case err := <-h.ended:
		if !errors.Is(err, ErrSteering) {
			t.Errorf("Run: %v, want ErrSteering", err)
		}
	case <-time.After(patience):
		t.Fatal("Run goes on without its links")
	}
	next := b.begin()
	next.awaitState(t, true)
	if again, _ := next.Ports(); again == outside {
		t.Error("a link that was deleted is still a port")
	}
}

func TestRootLinksFollowTheirMTU(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	var before processID
	for _, mtu := range []int{9000, 0} {
		b.cfg.MTU = mtu
		h := b.begin()
		h.awaitState(t, true)
		outside, _ := linkNames(b.cfg.Host)
		link, err := host.LinkNamed(b.agent, outside)
		b.must(err)
		if want := b.cfg.mtu() + tagBytes; link.MTU != want {
			t.Errorf("MTU %d, want %d", link.MTU, want)
		}
		if h.running().id == before {
			t.Error("an engine on links that are gone was taken over")
		}
		before = h.running().id
		h.stop()
	}
}

func TestConfigSaysAllFaultsAtOnce(t *testing.T) {
	err := Config{Dir: "relative", MTU: 5, MaxLog: -1}.Validate()
	if err == nil {
		t.Fatal("a configuration of faults is valid")
	}
	for _, field := range []string{"host:", "namespace:", "dir:", "mtu:", "maxLog:"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("nothing is said of %s %v", field, err)
		}
	}
	long := Config{Host: "h", Namespace: "n", Dir: "/" + strings.Repeat("x", 100)}
	if err := long.Validate(); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a socket of too long a path: %v", err)
	}
}
