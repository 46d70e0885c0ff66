package deception

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	xssh "golang.org/x/crypto/ssh"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// The test binary is the child too, as it is everything that has to be a
// process of its own.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		role := map[string]func() error{
			"decoy-serve":  func() error { return Serve(context.Background(), os.Stdin, os.Stdout) },
			"decoy-agent":  actAsAgent,
			"decoy-escape": actAsProwler,
		}[os.Args[1]]
		if role != nil {
			if err := role(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// Addresses of the tests. Victims are any address behind the wire.
var (
	client4 = netip.MustParseAddr("10.9.0.1")
	client6 = netip.MustParseAddr("fd09::1")
	victim4 = netip.MustParseAddr("10.77.3.4")
	victim6 = netip.MustParseAddr("fd77::3:4")
)

const patienceOfTests = 30 * time.Second

// stage is a host with decoys and a client in one namespace: what the dataplane
// redirects comes, without one, by routes and a neighbour that is not asked.
type stage struct {
	t         testing.TB
	namespace string // the host's, where the client is
	cfg       Config
	decoys    *Decoys
	events    chan bocage.EngagementEvent
}

func newStage(t testing.TB, placements ...bocage.DecoyPlacement) *stage {
	t.Helper()
	s := prepareStage(t)
	err := host.In(s.namespace, func() (err error) {
		s.decoys, err = Start(t.Context(), s.cfg)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.wire()
	if err := s.decoys.Place(placements); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		err := s.decoys.Run(ctx, func(e bocage.EngagementEvent) {
			select {
			case s.events <- e:
			default:
				t.Error("the test does not read its events")
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return s
}

// prepareStage makes the namespace and what is cleaned up with it.
func prepareStage(t testing.TB) *stage {
	t.Helper()
	s := &stage{
		t: t, namespace: hosttest.Namespace(t), events: make(chan bocage.EngagementEvent, 10000),
		cfg: Config{Host: "h1", Namespace: hosttest.Name(t), Dir: t.TempDir(), Program: []string{os.Args[0], "decoy-serve"}},
	}
	t.Cleanup(func() {
		if err := host.In(s.namespace, func() error { return Remove(s.cfg) }); err != nil {
			t.Error(err)
		}
	})
	return s
}

// wire leads everything from the client to the decoys.
func (s *stage) wire() {
	s.t.Helper()
	link := hostLink(s.cfg.Namespace)
	err := host.Sysctl(s.namespace, "net.ipv6.conf."+link+".disable_ipv6", "0")
	for _, f := range []struct {
		client, gateway netip.Addr
		any             string
		bits            int
	}{
		{client4, netip.MustParseAddr("10.9.0.2"), "0.0.0.0/0", 24},
		{client6, netip.MustParseAddr("fd09::2"), "::/0", 64},
	} {
		err = errors.Join(err,
			host.AddAddress(s.namespace, link, netip.PrefixFrom(f.client, f.bits)),
			host.AddNeighbor(s.namespace, link, f.gateway, decoyMAC),
			host.AddRoute(s.namespace, host.Route{Destination: netip.MustParsePrefix(f.any), Gateway: f.gateway, Link: link, OnLink: true}),
			// Any of these is a client's address too.
			host.AddRoute(s.namespace, host.Route{Destination: netip.MustParsePrefix("10.50.0.0/16"), Link: "lo", Local: true, Table: 255}),
		)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// dial connects from a client's address to a victim.
func (s *stage) dial(from netip.Addr, to netip.Addr, port uint16) net.Conn {
	s.t.Helper()
	var conn net.Conn
	err := host.In(s.namespace, func() (err error) {
		dialer := net.Dialer{Timeout: patienceOfTests, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		conn, err = dialer.Dial("tcp", netip.AddrPortFrom(to, port).String())
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patienceOfTests))
	return conn
}

// run runs a program where the client is, and returns what it says.
func (s *stage) run(program string, arguments ...string) string {
	s.t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		s.t.Fatalf("needs %s: %v", program, err)
	}
	var out strings.Builder
	cmd := exec.CommandContext(s.t.Context(), path, arguments...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := host.Start(s.namespace, cmd); err != nil {
		s.t.Fatal(err)
	}
	cmd.Wait() // ssh ends with an error, which is what it is to say
	return out.String()
}

// await returns the next event that matches.
func (s *stage) await(what string, match func(bocage.EngagementEvent) bool) bocage.EngagementEvent {
	s.t.Helper()
	timeout := time.After(patienceOfTests)
	for {
		select {
		case e := <-s.events:
			if match(e) {
				return e
			}
		case <-timeout:
			s.t.Fatalf("no event: %s", what)
		}
	}
}

func depth(d bocage.Depth) func(bocage.EngagementEvent) bool {
	return func(e bocage.EngagementEvent) bool { return e.Depth == d }
}

func readLine(t testing.TB, conn net.Conn) string {
	t.Helper()
	var line []byte
	one := make([]byte, 1)
	for {
		if _, err := conn.Read(one); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		if line = append(line, one[0]); one[0] == '\n' {
			return string(line)
		}
	}
}

var sshDecoy = bocage.DecoyPlacement{Name: "front", Protocol: "ssh", Port: 22, Banner: "SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10"}

// A decoy wears whatever address was tried, of either family, and says so.
func TestRootDecoyWearsTheVictimsAddress(t *testing.T) {
	s := newStage(t, sshDecoy)
	for _, pair := range [][2]netip.Addr{{client4, victim4}, {client6, victim6}, {client4, netip.MustParseAddr("203.0.113.9")}} {
		conn := s.dial(pair[0], pair[1], 22)
		if got := readLine(t, conn); got != sshDecoy.Banner+"\r\n" {
			t.Errorf("%s says %q", pair[1], got)
		}
		e := s.await("touch", depth(bocage.DepthTouch))
		want := bocage.Flow{Source: pair[0], Destination: pair[1], DestinationPort: 22, Protocol: bocage.ProtocolTCP,
			SourcePort: uint16(conn.LocalAddr().(*net.TCPAddr).Port)}
		if e.Flow != want {
			t.Errorf("flow is %v, want %v", e.Flow, want)
		}
		if e.Decoy != "front" || e.Source != 0 || e.Destination != 0 || len(e.Session) != 16 {
			t.Errorf("event is %+v", e)
		}
	}
}

// The real client is taken all the way to its refusal, and every step is told
// under one session.
func TestRootRealClientIsRecorded(t *testing.T) {
	s := newStage(t, sshDecoy)
	key := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	fingerprint, err := exec.Command("ssh-keygen", "-l", "-f", key).Output()
	if err != nil {
		t.Fatal(err)
	}
	out := s.run("ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "BatchMode=yes", "-i", key, "admin@"+victim4.String(), "id")
	if !strings.Contains(out, "admin@10.77.3.4: Permission denied (publickey,password).") {
		t.Errorf("ssh said %q", out)
	}
	touch := s.await("touch", depth(bocage.DepthTouch))
	probe := s.await("probe", depth(bocage.DepthProbe))
	login := s.await("login", depth(bocage.DepthLogin))
	if !strings.HasPrefix(probe.Detail["client"], "SSH-2.0-OpenSSH_") || len(probe.Detail["hassh"]) != 32 {
		t.Errorf("probe tells %v", probe.Detail)
	}
	if login.Detail["user"] != "admin" || login.Detail["method"] != "publickey" ||
		login.Detail["key"] != strings.Fields(string(fingerprint))[1] || login.Detail["outcome"] != "refused" {
		t.Errorf("login tells %v", login.Detail)
	}
	if touch.Session != probe.Session || touch.Session != login.Session {
		t.Error("one contact has several sessions")
	}
}

// nmap's version detection names what the decoy claims.
func TestRootNmapBelievesTheVersion(t *testing.T) {
	s := newStage(t, sshDecoy)
	out := s.run("nmap", "-n", "-Pn", "-sV", "-p", "22", victim4.String())
	if !strings.Contains(out, "OpenSSH 9.2p1 Debian 2+deb12u10 (protocol 2.0)") {
		t.Errorf("nmap said:\n%s", out)
	}
}

// An address shows the same host keys after a restart of everything, and another
// address shows others.
func TestRootHostKeysBelongToTheAddress(t *testing.T) {
	s := newStage(t, sshDecoy)
	scan := func(victim netip.Addr) string {
		out := s.run("ssh-keyscan", "-T", "20", victim.String())
		var keys []string
		for line := range strings.Lines(out) {
			if fields := strings.Fields(line); len(fields) == 3 && !strings.HasPrefix(line, "#") {
				keys = append(keys, fields[1]+" "+fields[2])
			}
		}
		if len(keys) != 3 {
			t.Errorf("ssh-keyscan found %d keys:\n%s", len(keys), out)
		}
		slices.Sort(keys) // they come as they are answered
		return strings.Join(keys, "\n")
	}
	first := scan(victim4)
	if scan(netip.MustParseAddr("10.77.3.5")) == first {
		t.Error("two addresses show the same keys")
	}
	s.killChild()
	if scan(victim4) != first {
		t.Error("the keys changed with the child")
	}
}

// child is the process that serves, once there is one that is not old.
func (s *stage) child(old int) int {
	s.t.Helper()
	for deadline := time.Now().Add(patienceOfTests); time.Now().Before(deadline); {
		pids, err := host.Pids(s.cfg.Namespace)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, pid := range pids {
			if status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline"); err == nil && pid != old && strings.Contains(string(status), "decoy-serve") {
				return pid
			}
		}
	}
	s.t.Fatal("there is no child")
	return 0
}

// killChild kills the process that serves and returns its number.
func (s *stage) killChild() int {
	s.t.Helper()
	pid := s.child(0)
	if err := host.KillProcess(pid, patienceOfTests); err != nil {
		s.t.Fatal(err)
	}
	return pid
}

// A child that dies is replaced; who connects meanwhile waits, and is served.
func TestRootChildComesBack(t *testing.T) {
	s := newStage(t, sshDecoy)
	readLine(t, s.dial(client4, victim4, 22))
	old := s.killChild()
	conn := s.dial(client4, victim4, 22)
	if got := readLine(t, conn); got != sshDecoy.Banner+"\r\n" {
		t.Errorf("decoy says %q", got)
	}
	if s.child(old) == old {
		t.Error("it is the old child")
	}
	if c := s.decoys.Counters(); c.Restarts != 1 {
		t.Errorf("counters are %+v", c)
	}
}

// Two decoys may share a port and stand in for different addresses; taking one
// away ends its sessions and leaves the other's alone.
func TestRootDecoysShareAPort(t *testing.T) {
	anybody := sshDecoy
	special := bocage.DecoyPlacement{Name: "special", Protocol: "ssh", Port: 22, Banner: "SSH-2.0-OpenSSH_8.4p1 Debian-5+deb11u3",
		For: []netip.Prefix{netip.PrefixFrom(victim4, 32)}}
	s := newStage(t, anybody, special)
	toSpecial, toAnybody := s.dial(client4, victim4, 22), s.dial(client4, netip.MustParseAddr("10.77.3.5"), 22)
	if got := readLine(t, toSpecial); got != special.Banner+"\r\n" {
		t.Errorf("the special decoy says %q", got)
	}
	if got := readLine(t, toAnybody); got != anybody.Banner+"\r\n" {
		t.Errorf("the other decoy says %q", got)
	}
	if err := s.decoys.Place([]bocage.DecoyPlacement{anybody}); err != nil {
		t.Fatal(err)
	}
	if _, err := toSpecial.Read(make([]byte, 1)); err == nil {
		t.Error("a decoy that is not placed goes on talking")
	}
	if _, err := toAnybody.Write([]byte("nonsense\r\n")); err != nil {
		t.Error(err)
	}
	if got := readLine(t, toAnybody); !strings.HasPrefix(got, "Invalid SSH identification string.") {
		t.Errorf("the decoy that stays says %q", got)
	}
}

// What cannot be served is told, and the rest is served.
func TestRootPlaceTellsFaults(t *testing.T) {
	s := newStage(t)
	err := s.decoys.Place([]bocage.DecoyPlacement{
		{Name: "telnet", Protocol: "telnet", Port: 23}, {Name: "portless", Protocol: "ssh"},
		{Name: "loud", Protocol: "ssh", Port: 22, Banner: "SSH-2.0-\x07"}, {Protocol: "ssh", Port: 22},
		sshDecoy, sshDecoy,
	})
	for _, want := range []string{`protocol "telnet"`, "portless: it has no port", "not printable", "it has no name", "front: it is there twice"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not tell %q", err, want)
		}
	}
	if got := readLine(t, s.dial(client4, victim4, 22)); got != sshDecoy.Banner+"\r\n" {
		t.Errorf("the decoy that is right says %q", got)
	}
}

// A source that guesses long enough meets the shell, which needs nothing that
// the confined child does not have.
func TestRootShellOfTheConfinedChild(t *testing.T) {
	t.Parallel() // it waits for the refusals
	s := newStage(t, sshDecoy)
	var client *xssh.Client
	for range 20 {
		conn, channels, requests, err := xssh.NewClientConn(s.dial(client4, victim4, 22), "", &xssh.ClientConfig{
			User: "root", HostKeyCallback: xssh.InsecureIgnoreHostKey(),
			Auth: []xssh.AuthMethod{xssh.RetryableAuthMethod(xssh.Password("hunter2"), 5)},
		})
		if err == nil {
			client = xssh.NewClient(conn, channels, requests)
			break
		}
		if !strings.Contains(err.Error(), "unable to authenticate") {
			t.Fatal(err)
		}
	}
	if client == nil {
		t.Fatal("never let in")
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := session.CombinedOutput("date +%Y; cat /etc/passwd | head -1; ls ~nobody 2>&1; (sleep 0.01; uname -n) | cat")
	if want := "\nroot:x:0:0:root:/root:/bin/bash\nls: cannot access '~nobody': No such file or directory\nip-10-77-3-4\n"; err != nil || !strings.HasSuffix(string(out), want) {
		t.Errorf("the shell says %q (%v)", out, err)
	}
	e := s.await("command", depth(bocage.DepthCommand))
	if e.Detail["command"] != "date +%Y; cat /etc/passwd | head -1; ls ~nobody 2>&1; (sleep 0.01; uname -n) | cat" || e.Detail["user"] != "root" {
		t.Errorf("told was %v", e.Detail)
	}
	if c := s.decoys.Counters(); c.Panics != 0 {
		t.Errorf("counters are %+v", c)
	}
}
