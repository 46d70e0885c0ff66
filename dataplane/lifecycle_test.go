package dataplane

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// childVariable makes the test binary an agent that can be killed.
const childVariable = "BOCAGE_TEST_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if err := child(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	hosttest.ManyAtOnce()
	os.Exit(m.Run())
}

// order is what a child does before it says that it is ready.
type order struct {
	Config      Config
	Attachments []Attachment
	Wires       []Wire
	Ruleset     *bocage.Ruleset
	// Then are applied in turn, and again and again where Forever says so, in
	// generations of their own.
	Then    []*bocage.Ruleset
	Forever bool
	// Load has it load programs for others, and end.
	Load bool
	// Dies is the step before which the child is killed, Time the how manieth of that
	// name; empty: it lives.
	Dies string
	Time int
}

func child() error {
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		return err
	}
	o.Config.before = func(step string) error {
		if step == o.Dies {
			if o.Time--; o.Time == 0 {
				return syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
		}
		return nil
	}
	if o.Load {
		fmt.Println("ready")
		return Load(o.Config)
	}
	d, err := Open(o.Config)
	if err != nil {
		return err
	}
	for _, a := range o.Attachments {
		if err := d.Attach(a); err != nil {
			return err
		}
	}
	for _, w := range o.Wires {
		if err := d.AttachWire(w); err != nil {
			return err
		}
	}
	if o.Ruleset != nil {
		if err := d.Apply(o.Ruleset); err != nil {
			return err
		}
	}
	for _, rs := range o.Then {
		if err := d.Apply(rs); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	for o.Forever {
		for _, rs := range o.Then {
			rs := rs.Copy()
			rs.Generation = d.Generation() + 1
			if err := d.Apply(rs); err != nil {
				return err
			}
		}
	}
	return d.Run(context.Background(), func([]bocage.FlowEvent, []bocage.Cadence) {})
}

// startChild starts an agent process in the host's namespace.
func (p *plane) startChild(o order) (kill func()) {
	p.t.Helper()
	kill, died := p.child(o)
	if died != nil {
		p.t.Fatal(died)
	}
	return kill
}

// child starts an agent process, and waits until it is ready or died.
func (p *plane) child(o order) (kill func(), died error) {
	p.t.Helper()
	o.Config = p.cfg
	cmd := exec.Command("/proc/self/exe")
	if len(p.command) > 0 {
		cmd = exec.Command(p.command[0], p.command[1:]...)
	}
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(p.t, err)
	stdout, err := cmd.StdoutPipe()
	must(p.t, err)
	must(p.t, host.Start(p.namespace, cmd))
	must(p.t, json.NewEncoder(stdin).Encode(o))
	stdin.Close()
	killed := false
	kill = func() {
		if !killed {
			killed = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	p.t.Cleanup(kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "ready\n" {
		rest, _ := io.ReadAll(stdout)
		kill()
		return kill, fmt.Errorf("agent said %q: %w %s, and ended: %s", line, err, rest, cmd.ProcessState)
	}
	return kill, nil
}

// load is steady traffic whose every packet is counted.
type load struct {
	sent, arrived atomic.Int64
	failed        atomic.Value // error of the TCP connection
	stop, done    chan struct{}
	collect       func()
}

// startLoad sends a datagram and a TCP ping every half millisecond or so.
func startLoad(t testing.TB, from, to *workload) *load {
	t.Helper()
	l := &load{stop: make(chan struct{}), done: make(chan struct{}, 2)}
	echo(t, to, to.v4, 80)
	arrived := sink(t, to, to.v4, 9000)
	c := mustDial(t, from, to.v4, 80)
	var u net.Conn
	must(t, host.In(from.namespace, func() (err error) {
		u, err = net.Dial("udp", netip.AddrPortFrom(to.v4, 9000).String())
		return err
	}))
	go func() {
		defer func() { l.done <- struct{}{} }()
		tick := time.NewTicker(500 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-tick.C:
				if _, err := u.Write([]byte("count me")); err == nil {
					l.sent.Add(1)
				}
			}
		}
	}()
	go func() {
		defer func() { l.done <- struct{}{} }()
		for {
			select {
			case <-l.stop:
				return
			default:
				if err := ping(c, long); err != nil {
					l.failed.Store(err)
					return
				}
			}
		}
	}()
	hosttest.Await(t, "traffic", func() bool { return l.sent.Load() > 50 })
	t.Cleanup(func() { u.Close() })
	l.collect = func() { l.arrived.Store(arrived.Load()) }
	return l
}

// end stops the traffic and fails the test if anything was lost.
func (l *load) end(t testing.TB) {
	t.Helper()
	close(l.stop)
	<-l.done
	<-l.done
	if err := l.failed.Load(); err != nil {
		t.Errorf("TCP connection: %v", err)
	}
	hosttest.Await(t, "the last datagrams", func() bool { l.collect(); return l.arrived.Load() >= l.sent.Load() })
	t.Logf("%d of %d datagrams arrived", l.arrived.Load(), l.sent.Load())
}

// Killing the agent and starting it again loses no packet and no connection.
func TestRootKillLosesNothing(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)
	must(t, p.Close())
	all := order{Attachments: []Attachment{{Ifindex: a.ifindex, Port: a.port}, {Ifindex: b.ifindex, Port: b.port}}, Ruleset: rs}
	kill := p.startChild(all)
	l := startLoad(t, a, b)
	for range 3 {
		kill()
		sent := l.sent.Load()
		hosttest.Await(t, "traffic without an agent", func() bool { return l.sent.Load() > sent+50 })
		kill = p.startChild(all)
	}
	kill()
	p.open()
	if g := p.Generation(); g != 1 {
		t.Errorf("generation %d after taking over, want 1", g)
	}
	attached := p.Attached()
	if len(attached) != 2 || attached[0].Port.Identity != 101 || attached[0].Port.Interface != a.link || len(attached[0].Port.Addresses) != 2 {
		t.Errorf("attached after taking over: %+v", attached)
	}
	l.end(t)
	if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
		t.Errorf("refused flow after taking over: %v, want a timeout", err)
	}
}

// A process with another layout of maps moves enforcement over once it has a
// ruleset, and not before; connections live on, and the old state goes.
func TestRootLayoutChanges(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	rs := ruleset(7, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)
	must(t, p.Apply(rs))
	l := startLoad(t, a, b)
	must(t, p.Close())

	p.cfg.FlowEntries *= 2
	p.open()
	if g := p.Generation(); g != 0 {
		t.Errorf("generation %d in new state, want none", g)
	}
	p.attach(a, b)
	if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
		t.Errorf("refused flow between layouts: %v, want a timeout", err)
	}
	must(t, p.Apply(rs))
	if _, err := dial(t, b, a.v4, 80, short); !isTimeout(err) {
		t.Errorf("refused flow after the move: %v, want a timeout", err)
	}
	sent := l.sent.Load()
	hosttest.Await(t, "traffic after the move", func() bool { return l.sent.Load() > sent+50 })
	l.end(t)
	c, err := p.Counters()
	must(t, err)
	if c.Passed[bocage.ReasonRule].Packets == 0 {
		t.Error("the new state counts nothing")
	}
	layouts, err := filepath.Glob(filepath.Join(p.cfg.PinDir, "*", "map"))
	if err != nil || len(layouts) != 1 {
		t.Errorf("layouts left: %v %v", layouts, err)
	}
}

// No packet is judged by halves of two generations: each allows the flow by
// other groups, so any mixture would refuse it.
func TestRootSwapIsAtomic(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	generation := func(n uint64) *bocage.Ruleset {
		a.port.Group, b.port.Group = bocage.Group(100+2*n), bocage.Group(101+2*n)
		return ruleset(n, []bocage.Rule{allowTCP(a.port.Group, b.port.Group, 80), allowUDP(a.port.Group, b.port.Group)}, a, b)
	}
	must(t, p.Apply(generation(1)))
	p.attach(a, b)
	l := startLoad(t, a, b)
	stop, done := make(chan struct{}), make(chan error, 1)
	var opened atomic.Int64
	go func() {
		done <- host.In(p.namespace, func() error {
			f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 1, dport: 53, payload: 8}
			for {
				select {
				case <-stop:
					return nil
				default:
				}
				f.sport++
				if returned := p.judged(true, a.ifindex, f.bytes()); returned != next {
					return fmt.Errorf("a new flow was refused at generation %d", p.Generation())
				}
				opened.Add(1)
			}
		})
	}()
	var longest time.Duration
	const swaps = 60
	for n := uint64(2); n < swaps; n++ {
		start := time.Now()
		must(t, p.Apply(generation(n)))
		longest = max(longest, time.Since(start))
	}
	close(stop)
	must(t, <-done)
	l.end(t)
	t.Logf("%d flows opened during %d swaps, the longest of %s", opened.Load(), swaps-2, longest)
}

// What does not fit, or is not valid, changes nothing and says what to do.
func TestRootApplyAllOrNothing(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.PeerEntries, c.RuleEntries = 8, 40 })
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	echo(t, b, b.v4, 80)
	good := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)
	must(t, p.Apply(good))

	crowd := ruleset(2, nil, a, b)
	for i := range 6 {
		crowd.Peers = append(crowd.Peers, bocage.Peer{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 1, byte(i)}), 32), Identity: 200, Group: 21})
	}
	split := ruleset(2, []bocage.Rule{
		{From: 21, To: 22, Protocol: bocage.ProtocolTCP, Ports: bocage.PortRange{First: 1, Last: 65534}, Decision: decideAllow},
		{From: 22, To: 21, Protocol: bocage.ProtocolTCP, Ports: bocage.PortRange{First: 1, Last: 65534}, Decision: decideAllow},
	}, a, b)
	wrong := ruleset(2, []bocage.Rule{{From: 21, To: 22, Protocol: 6, Ports: bocage.AllPorts, Decision: 99}}, a, b)
	overlap := ruleset(2, []bocage.Rule{
		{From: 21, To: 22, Protocol: 6, Ports: bocage.PortRange{First: 1, Last: 10}, Decision: decideAllow},
		{From: 21, To: 22, Protocol: 6, Ports: bocage.PortRange{First: 10, Last: 20}, Decision: decideAllow}}, a, b)
	for say, rs := range map[string]*bocage.Ruleset{"--table-entries addresses=": crowd, "--table-entries rules=": split,
		"decision 99 is not among": wrong, "overlap": overlap, "no way back": ruleset(0, nil, a, b),
		"higher generation": ruleset(1, nil, a, b)} {
		err := p.Apply(rs)
		if err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("error %v, want one that says %q", err, say)
		}
		if g := p.Generation(); g != 1 {
			t.Fatalf("generation %d, want 1", g)
		}
	}
	must(t, ping(mustDial(t, a, b.v4, 80), long))
	must(t, p.Apply(good)) // again, which changes nothing
	must(t, ping(mustDial(t, a, b.v4, 80), long))
}

// Ports come and go, and interfaces vanish under the agent.
func TestRootDetach(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	echo(t, b, b.v4, 80)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	c := mustDial(t, a, b.v4, 80)
	must(t, ping(c, long))
	p.in(func() error { return p.Detach(a.ifindex) })
	p.await("the end of its flow", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventEnd && e.Interface == a.ifindex })
	must(t, ping(c, long)) // b's point picks it up
	must(t, host.DeleteLink(p.namespace, b.link))
	p.in(func() error { return p.Detach(b.ifindex) })
	p.in(func() error { return p.Detach(b.ifindex) })
	if n := len(p.Attached()); n != 0 {
		t.Errorf("%d attached, want none", n)
	}
	links, err := p.pins.links()
	if err != nil || len(links) != 0 {
		t.Errorf("links left: %v %v", links, err)
	}
	// An interface that goes while nobody looks.
	p.attach(a)
	must(t, p.Close())
	must(t, host.DeleteLink(p.namespace, a.link))
	p.open()
	if n := len(p.Attached()); n != 0 {
		t.Errorf("%d attached after the interface went, want none", n)
	}
	for key := range keysIn[uint32](p.objects.Ports) {
		t.Errorf("row of port %d is left", key)
	}
}

// Two agents that start at once on a machine without a bpffs share the one that
// is mounted, and it goes with the last of them.
func TestRootAgentsShareTheMount(t *testing.T) {
	t.Parallel()
	base := filepath.Join(t.TempDir(), "fs")
	dirs := []string{filepath.Join(base, "h1"), filepath.Join(base, "h2")}
	done := make(chan error)
	for range 2 {
		go func() {
			_, err := mount(base)
			done <- err
		}()
	}
	must(t, errors.Join(<-done, <-done))
	namespace := hosttest.Namespace(t)
	must(t, host.In(namespace, func() error {
		for _, dir := range dirs {
			d, err := Open(Config{PinDir: dir, FlowEntries: 1024})
			if err != nil {
				return err
			}
			if err := d.Close(); err != nil {
				return err
			}
		}
		return nil
	}))
	must(t, Remove(dirs[0]))
	if !host.IsBPFFS(base) {
		t.Fatal("the mount went with the first agent")
	}
	must(t, Remove(dirs[1]))
	if host.IsBPFFS(base) {
		t.Error("the mount is left")
	}
}
