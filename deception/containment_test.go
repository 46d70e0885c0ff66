package deception

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
)

// The child has nothing that could be turned against anybody.
func TestRootChildHasNothing(t *testing.T) {
	s := newStage(t, sshDecoy)
	readLine(t, s.dial(client4, victim4, 22)) // it is past giving up
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.child(0)))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		got[name] = strings.Join(strings.Fields(value), " ")
	}
	for name, want := range map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
		"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "",
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got[name] != want {
			t.Errorf("%s of the child is %q, want %q", name, got[name], want)
		}
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", s.child(0)))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", s.child(0), thread.Name()))
		if err != nil || !strings.Contains(string(status), "Seccomp:\t2\n") {
			t.Errorf("thread %s is not confined (%v)", thread.Name(), err)
		}
	}
}

// What a child may try, were it taken over.
var escapes = []struct {
	name string
	try  func() error
}{
	{"connect", func() error {
		conn, err := net.Dial("tcp", "127.0.0.1:9")
		if err == nil {
			conn.Close()
		}
		return err
	}},
	{"send a datagram", func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); return err }},
	{"open a raw socket", func() error { _, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); return err }},
	{"open netlink", func() error { _, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, 0); return err }},
	{"reach the agent's sockets", func() error { _, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err }},
	{"read a file", func() error { _, err := os.ReadFile("/etc/passwd"); return err }},
	{"write a file", func() error { return os.WriteFile("/tmp/decoy-escape", nil, 0o600) }},
	{"list a folder", func() error { _, err := os.ReadDir("/"); return err }},
	{"stat a file", func() error { _, err := os.Stat("/"); return err }},
	{"start a program", func() error { return exec.Command("/bin/true").Run() }},
	{"become a program", func() error { return unix.Exec("/bin/true", []string{"true"}, nil) }},
	{"fork", func() error {
		_, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
		if errno == 0 {
			return nil
		}
		return errno
	}},
	{"signal others", func() error { return unix.Kill(os.Getppid(), 0) }},
	{"trace others", func() error { return unix.PtraceAttach(os.Getppid()) }},
	{"enter a namespace", func() error { return unix.Unshare(unix.CLONE_NEWUSER) }},
	{"map code", func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	}},
	{"listen", func() error { _, err := net.Listen("tcp", "127.0.0.1:0"); return err }},
	{"load a program into the kernel", func() error {
		_, _, errno := unix.Syscall(unix.SYS_BPF, 0, 0, 0)
		return errno
	}},
	{"queue system calls", func() error {
		_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0)
		return errno
	}},
}

// actAsProwler is a child that was taken over: it confines itself as a child
// does and then tries to get out. It prints what each attempt was answered.
func actAsProwler() error {
	if err := confine(); err != nil {
		return err
	}
	answers := map[string]string{}
	for _, e := range escapes {
		err := e.try()
		answers[e.name] = fmt.Sprint(err)
		for wrapped := err; wrapped != nil; {
			if errno, ok := wrapped.(syscall.Errno); ok {
				answers[e.name] = unix.ErrnoName(errno)
				break
			}
			w, ok := wrapped.(interface{ Unwrap() error })
			if !ok {
				break
			}
			wrapped = w.Unwrap()
		}
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}

func TestNothingGetsOut(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), os.Args[0], "decoy-escape").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var answers map[string]string
	if err := json.Unmarshal(out, &answers); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, e := range escapes {
		if answers[e.name] != "EPERM" {
			t.Errorf("%s: %s", e.name, answers[e.name])
		}
	}
}

// Nothing leaves the decoys' wire but answers to who came: no packet of another
// port, no question for an address, no router solicitation.
func TestRootNothingOriginates(t *testing.T) {
	s := newStage(t, sshDecoy)
	tap := s.listenOnWire()
	s.run("ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "root@"+victim4.String())
	s.run("ssh-keyscan", "-T", "20", victim6.String())
	s.run("nmap", "-n", "-Pn", "-sV", "-p", "22", victim4.String())
	s.killChild()
	readLine(t, s.dial(client4, victim4, 22))

	answers := 0
	buffer := make([]byte, 65536)
	for {
		n, err := unix.Read(tap, buffer)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		frame := buffer[:n]
		if len(frame) < 14 || string(frame[6:12]) != string(decoyMAC) {
			continue
		}
		if what := originated(frame); what != "" {
			t.Errorf("a decoy sent %s: %x", what, frame[:min(n, 64)])
		}
		answers++
	}
	if answers < 20 {
		t.Errorf("the tap saw %d answers: it does not see the wire", answers)
	}
}

// listenOnWire opens a packet socket at the host's side of the wire.
func (s *stage) listenOnWire() int {
	s.t.Helper()
	link, err := host.LinkNamed(s.namespace, hostLink(s.cfg.Namespace))
	if err != nil {
		s.t.Fatal(err)
	}
	all := uint16(unix.ETH_P_ALL)<<8 | unix.ETH_P_ALL>>8
	var fd int
	err = host.In(s.namespace, func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(link.Index)})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// originated says what a frame is if it is not an answer of the SSH port.
func originated(frame []byte) string {
	packet := frame[14:]
	var protocol byte
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		protocol, packet = packet[9], packet[int(packet[0]&15)*4:]
	case unix.ETH_P_IPV6:
		protocol, packet = packet[6], packet[40:]
	default:
		return "neither IPv4 nor IPv6"
	}
	switch {
	case protocol != unix.IPPROTO_TCP:
		return fmt.Sprintf("IP protocol %d", protocol)
	case binary.BigEndian.Uint16(packet) != 22:
		return "from another port"
	case packet[13]&0x12 == 0x02:
		return "a SYN"
	}
	return ""
}

// An agent that dies takes its child along, whatever kills it.
func TestRootChildDoesNotOutliveItsAgent(t *testing.T) {
	s := prepareStage(t)
	config, err := json.Marshal(agentOrders{s.cfg.Namespace, s.cfg.Dir})
	if err != nil {
		t.Fatal(err)
	}
	agent := exec.Command(os.Args[0], "decoy-agent", string(config))
	agent.Stderr = os.Stderr
	ready, err := agent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(s.namespace, agent); err != nil {
		t.Fatal(err)
	}
	defer agent.Wait()
	defer agent.Process.Kill()
	if line, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
		t.Fatalf("agent said %q: %v", line, err)
	}
	s.wire()
	conn := s.dial(client4, victim4, 22)
	readLine(t, conn)
	child := s.child(0)
	watch, err := unix.PidfdOpen(child, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ended := []unix.PollFd{{Fd: int32(watch), Events: unix.POLLIN}}
	n, err := unix.Poll(ended, int(patienceOfTests.Milliseconds()))
	for errors.Is(err, unix.EINTR) { // by the runtime's own signals
		n, err = unix.Poll(ended, int(patienceOfTests.Milliseconds()))
	}
	if n != 1 {
		t.Errorf("child %d lives without its agent (%v)", child, err)
	}
	// The next agent begins anew where this one ended.
	err = host.In(s.namespace, func() error {
		_, err := Start(t.Context(), s.cfg)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

type agentOrders struct{ Namespace, Dir string }

// actAsAgent runs decoys until it is killed. It says so on its standard output.
func actAsAgent() error {
	var o agentOrders
	if err := json.Unmarshal([]byte(os.Args[2]), &o); err != nil {
		return err
	}
	d, err := Start(context.Background(), Config{Namespace: o.Namespace, Dir: o.Dir, Program: []string{os.Args[0], "decoy-serve"}})
	if err != nil {
		return err
	}
	if err := d.Place([]bocage.DecoyPlacement{sshDecoy}); err != nil {
		return err
	}
	fmt.Println("ready")
	return d.Run(context.Background(), func(bocage.EngagementEvent) {})
}

// A source has 8 connections, whatever it does; the rest is turned away with
// what sshd says, and everything is counted.
func TestRootFloodOfOneSource(t *testing.T) {
	s := newStage(t, sshDecoy)
	const flood = 600
	served, shed := s.flood(flood, func(int) netip.Addr { return client4 })
	if served != maxPerSource || shed != flood-maxPerSource {
		t.Errorf("%d were served and %d turned away", served, shed)
	}
	s.expectCounts(flood, maxPerSource, map[string]uint64{ShedSource: flood - maxPerSource})
}

// A decoy has 512 connections, however many sources there are.
func TestRootFloodOfManySources(t *testing.T) {
	s := newStage(t, sshDecoy)
	const flood = 600
	served, shed := s.flood(flood, func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 50, 1, byte(i % 100)}) })
	if served != maxPerDecoy || shed != flood-maxPerDecoy {
		t.Errorf("%d were served and %d turned away", served, shed)
	}
	s.expectCounts(flood, maxPerDecoy, map[string]uint64{ShedDecoy: flood - maxPerDecoy})
	memory, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.child(0)))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(memory)) {
		if name, value, _ := strings.Cut(line, ":"); name == "VmRSS" {
			kilobytes, _ := strconv.Atoi(strings.Fields(value)[0])
			t.Logf("the child holds %d kB with %d connections", kilobytes, served)
			if kilobytes > 128<<10 {
				t.Errorf("the child holds %d kB", kilobytes)
			}
		}
	}
}

// flood opens connections and counts how they were received.
func (s *stage) flood(n int, from func(int) netip.Addr) (served, shed int) {
	s.t.Helper()
	var conns []net.Conn
	for i := range n {
		conns = append(conns, s.dial(from(i), victim4, 22))
	}
	for _, conn := range conns {
		switch line := readLine(s.t, conn); line {
		case sshDecoy.Banner + "\r\n":
			served++
		case "Exceeded MaxStartups\r\n":
			shed++
		default:
			s.t.Errorf("decoy says %q", line)
		}
	}
	return served, shed
}

func (s *stage) expectCounts(offered, served uint64, shed map[string]uint64) {
	s.t.Helper()
	var c Counters
	for deadline := time.Now().Add(patienceOfTests); time.Now().Before(deadline); {
		if c = s.decoys.Counters(); c.Offered >= offered {
			break
		}
	}
	if c.Offered != offered || c.Served != served || fmt.Sprint(c.Shed) != fmt.Sprint(shed) {
		s.t.Errorf("counters are %+v", c)
	}
	lost := uint64(0)
	for _, n := range c.Lost {
		lost += n
	}
	if c.Engagements != c.Reported+c.Waiting+lost {
		s.t.Errorf("engagements do not add up: %+v", c)
	}
}

// A client that says nothing, or hardly anything, has its time and no more.
func TestRootSlowClientsAreCut(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a silent client is given")
	}
	t.Parallel()
	s := newStage(t, sshDecoy)
	silent := s.dial(client4, victim4, 22)
	start := time.Now()
	readLine(t, silent)
	if _, err := silent.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("silent client: %v", err)
	}
	if took := time.Since(start); took < 9*time.Second || took > time.Minute {
		t.Errorf("a silent client was cut after %s", took)
	}
}
