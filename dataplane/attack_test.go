package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// join connects two hosts by a cable, each with routes to the other's workloads.
func join(t testing.TB, one, other *plane, ofOne, ofOther []*workload) {
	t.Helper()
	macs := [2]net.HardwareAddr{{2, 0, 0, 0, 2, 1}, {2, 0, 0, 0, 2, 2}}
	must(t, host.CreateVeth(host.Veth{Name: "up", Namespace: one.namespace, Peer: "up", PeerNamespace: other.namespace, MAC: macs[0], PeerMAC: macs[1]}))
	for i, way := range []struct {
		at *plane
		to []*workload
	}{{one, ofOther}, {other, ofOne}} {
		for _, via := range []netip.Addr{netip.MustParseAddr("169.254.2.1"), netip.MustParseAddr("fe80::2:1")} {
			must(t, host.AddNeighbor(way.at.namespace, "up", via, macs[1-i]))
			for _, w := range way.to {
				a := w.v4
				if via.Is6() {
					a = w.v6
				}
				must(t, host.AddRoute(way.at.namespace, host.Route{Destination: netip.PrefixFrom(a, a.BitLen()), Gateway: via, Link: "up", OnLink: true}))
			}
		}
	}
}

// machine makes a workload behind a tap, as virtual machines are: what it sends goes
// through a process that reads and writes the tap.
func (p *plane) machine(address byte, identity bocage.Identity, group bocage.Group) *workload {
	p.t.Helper()
	w := p.workload(address, identity, group)
	gateway, tap := gatewayMAC(w), "tap"+w.link[2:]
	p.offload(w, "tx", "off", "tso", "off", "gso", "off", "gro", "off") // the process knows of none
	var file *os.File
	var cable int
	p.in(func() (err error) {
		if file, err = openTap(tap); err != nil {
			return err
		}
		if cable, err = packetSocket(w.link); err != nil {
			return err
		}
		l, err := netlink.LinkByName(tap)
		if err != nil {
			return err
		}
		w.ifindex = uint32(l.Attrs().Index)
		return errors.Join(netlink.LinkSetHardwareAddr(l, gateway[:]), netlink.LinkSetUp(l),
			unix.SetsockoptInt(cable, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	})
	for _, a := range []netip.Addr{w.v4, w.v6} {
		p.in(func() error {
			return netlink.RouteReplace(&netlink.Route{LinkIndex: int(w.ifindex), Scope: netlink.SCOPE_LINK,
				Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}})
		})
		must(p.t, host.AddNeighbor(p.namespace, tap, a, w.mac))
	}
	done := make(chan struct{})
	var pumps sync.WaitGroup
	pumps.Go(func() {
		for b := make([]byte, 1<<16); ; {
			n, err := file.Read(b)
			if err != nil {
				return
			}
			_ = unix.Send(cable, b[:n], 0)
		}
	})
	pumps.Go(func() {
		for b := make([]byte, 1<<16); ; {
			select {
			case <-done:
				return
			default:
			}
			if n, _, err := unix.Recvfrom(cable, b, 0); err == nil {
				_, _ = file.Write(b[:n])
			}
		}
	})
	p.t.Cleanup(func() {
		close(done)
		file.Close()
		pumps.Wait()
		unix.Close(cable)
	})
	w.link, w.port.Interface = tap, tap
	return w
}

// openTap makes a tap whose reads end when it is closed.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// arrivals is a socket for frames that reach a workload.
func (w *workload) arrivals(t testing.TB) (socket int) {
	t.Helper()
	must(t, host.In(w.namespace, func() (err error) {
		if socket, err = packetSocket("eth0"); err != nil {
			return err
		}
		return unix.SetsockoptInt(socket, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	}))
	return socket
}

// witness sees every IP packet that reaches a workload.
type witness struct {
	mu   sync.Mutex
	seen map[string]int // by ends, without the sender's port
}

func (w *workload) witness(t testing.TB) *witness {
	t.Helper()
	socket := w.arrivals(t)
	x, done, stopped := &witness{seen: map[string]int{}}, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for b := make([]byte, 1<<16); ; {
			select {
			case <-done:
				return
			default:
			}
			if n, _, err := unix.Recvfrom(socket, b, 0); err == nil {
				x.see(b[:n])
			}
		}
	}()
	t.Cleanup(func() {
		close(done)
		<-stopped
		unix.Close(socket)
	})
	return x
}

func (x *witness) see(b []byte) {
	if len(b) < 34 {
		return
	}
	var source netip.Addr
	what := ""
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		source = netip.AddrFrom4([4]byte(b[26:30]))
		what = fmt.Sprintf("IPv4 %d", b[23])
		if head := 14 + int(b[14]&15)*4; (b[23] == 6 || b[23] == 17) && len(b) >= head+4 && b[20]&0x1f == 0 && b[21] == 0 {
			what += fmt.Sprintf(" to port %d", binary.BigEndian.Uint16(b[head+2:]))
		}
	case 0x86dd:
		if len(b) < 58 {
			return
		}
		source = netip.AddrFrom16([16]byte(b[22:38]))
		if source.IsUnspecified() || source.IsLinkLocalUnicast() || b[20] == 58 && b[54] >= 133 { // what links need
			return
		}
		what = fmt.Sprintf("IPv6 %d to port %d", b[20], binary.BigEndian.Uint16(b[56:]))
	default:
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.seen[source.String()+" "+what]++
}

// only says what was seen beside what was to be.
func (x *witness) only(allowed ...string) (beside []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for what, n := range x.seen {
		if !slices.Contains(allowed, what) {
			beside = append(beside, fmt.Sprintf("%d of %s", n, what))
		}
	}
	slices.Sort(beside)
	return beside
}

// refusedAs is how many packets were refused for a reason.
func (p *plane) refusedAs(reason bocage.ReasonCode) uint64 {
	p.t.Helper()
	c, err := p.Counters()
	must(p.t, err)
	return c.Refused[reason].Packets
}

// attack is what people attack with, and what it must be refused as at the point that
// it starts from.
type attack struct {
	name, command string
	reason        bocage.ReasonCode
}

func attacks(target, bystander *workload) []attack {
	nmap := "nmap -n -Pn -T5 --max-retries 0 --host-timeout 60s -e eth0 "
	to, other := target.v4.String(), bystander.v4.String()
	const deny, odd, false_, none = bocage.ReasonDefaultDeny, bocage.ReasonMalformed, bocage.ReasonSpoofed, bocage.ReasonInvalidState
	return []attack{
		{"SYN scan", nmap + "-sS -p 20-99 " + to, deny},
		{"FIN scan", nmap + "-sF -p 20-40 " + to, odd},
		{"Xmas scan", nmap + "-sX -p 20-40 " + to, odd},
		{"null scan", nmap + "-sN -p 20-40 " + to, odd},
		{"SYN and FIN", nmap + "-sS --scanflags SYNFIN -p 20-40 " + to, odd},
		{"ACK scan", nmap + "-sA -p 20-40 " + to, none},
		{"window scan", nmap + "-sW -p 20-40 " + to, none},
		{"Maimon scan", nmap + "-sM -p 20-40 " + to, none},
		{"UDP scan", nmap + "-sU -p 53,67-69,123,161 " + to, deny},
		{"SCTP scan", nmap + "-sY -p 20-40 " + to, deny},
		{"scan of protocols", nmap + "-sO -p 2-30 " + to, deny},
		{"operating system", nmap + "-O --osscan-guess --max-os-tries 1 -p 22,80 " + to, deny},
		{"tiny pieces", nmap + "-sS -f -p 20-40 " + to, odd},
		{"pieces", nmap + "-sS --mtu 24 -p 20-40 " + to, deny},
		{"decoys", nmap + "-sS -D RND:4," + other + ",ME -p 78-82 " + to, false_},
		{"another's MAC", nmap + "-sS --spoof-mac 02:00:00:00:00:77 --send-eth -p 78-82 " + to, false_},
		{"source route", "hping3 -q -c 5 -i u1000 -S -p 80 --lsrr " + other + " " + to, odd},
		{"idle scan", "hping3 -q -c 5 -i u1000 -S -p 80 -a " + other + " " + to, false_},
		{"SYN flood", "timeout 1 hping3 -q --flood -S -p 81 " + to, deny},
		{"SYN flood from everywhere", "timeout 1 hping3 -q --flood --rand-source -S -p 80 " + to, false_},
		{"UDP flood", "timeout 1 hping3 -q --flood --udp -p 53 " + to, deny},
		{"ICMP flood", "timeout 1 hping3 -q --flood --icmp " + to, deny},
		{"large pings in pieces", "ping -q -n -c 2 -i 0.2 -W 1 -s 6000 " + to, deny},
		{"false ARP", "nping -q --arp --arp-type ARP-reply --arp-sender-ip " + other + " --arp-sender-mac 02:00:00:00:00:77 -c 3 --delay 10ms " + to, false_},
		{"by IPv6", "nmap -6 -n -Pn -T5 --max-retries 0 --host-timeout 60s -e eth0 -sS -p 20-60 " + target.v6.String(), deny},
		{"another's IPv6 address", "nmap -6 -n -Pn -T5 --max-retries 0 --host-timeout 60s -e eth0 -sS -S " + bystander.v6.String() + " -p 78-82 " + target.v6.String(), false_},
	}
}

// Whatever people attack with, from behind every kind of point, on a host with others
// and towards another host: nothing reaches the target but what policy lets through,
// each packet is counted under its reason, and who does nothing wrong notices nothing.
func TestRootAttackTools(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"nmap", "nping", "hping3", "ping", "timeout"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not installed: run scripts/setup", tool)
		}
	}
	short := []string{"SYN scan", "Xmas scan", "ACK scan", "tiny pieces", "decoys", "another's MAC", "SYN flood", "SYN flood from everywhere", "by IPv6"}
	for _, kind := range []string{"veth", "tap"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			here, there := newPlane(t), newPlane(t, func(c *Config) { c.Host = "h2" })
			attacker := here.workload
			if kind == "tap" {
				attacker = here.machine
			}
			a, v, b := attacker(1, 101, 21), here.workload(3, 103, 23), there.workload(2, 102, 22)
			join(t, here, there, []*workload{a, v}, []*workload{b})
			rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 79), allowTCP(23, 22, 80)}, a, v, b)
			for _, p := range []*plane{here, there} {
				must(t, p.Apply(rs))
				p.run()
			}
			here.attach(a, v)
			there.attach(b)
			for _, w := range []*workload{a, v} { // as if attached long ago: nothing is picked up
				here.settleLongAgo(w)
			}
			beset(t, here, a, v, b, func(x attack) bool { return kind == "veth" || slices.Contains(short, x.name) })
		})
	}
	t.Run("wire", func(t *testing.T) {
		t.Parallel()
		p := newPlane(t)
		a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
		v := p.workload(3, 103, 23) // who is named in vain
		must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 79), allowTCP(23, 22, 80)}, a, b, v)))
		p.wire(a, b, true, a)
		p.run()
		beset(t, p, a, nil, b, func(x attack) bool {
			return slices.Contains(short, x.name) && x.name != "ACK scan" // a wire picks up what was there
		})
	})
}

// settleLongAgo makes a point look as if it had been there for a day.
func (p *plane) settleLongAgo(w *workload) {
	p.t.Helper()
	var row bpf.KernelPort
	must(p.t, p.objects.Ports.Lookup(w.ifindex, &row))
	row.Attached -= uint64(24 * time.Hour)
	must(p.t, p.objects.Ports.Put(w.ifindex, row))
}

// beset attacks b from a, while v, if there is one, talks to b.
func beset(t *testing.T, p *plane, a, v, b *workload, chosen func(attack) bool) {
	echo(t, b, b.v4, 79)
	echo(t, b, b.v4, 80)
	bystander := v
	var live net.Conn
	allowed := []string{a.v4.String() + " IPv4 6 to port 79"}
	if v == nil {
		bystander = &workload{v4: netip.MustParseAddr("10.77.0.3"), v6: netip.MustParseAddr("fd77::3")}
	} else {
		live = mustDial(t, v, b.v4, 80)
		must(t, ping(live, long))
		allowed = append(allowed, v.v4.String()+" IPv4 6 to port 80")
	}
	x := b.witness(t)
	for _, attack := range attacks(b, bystander) {
		if !chosen(attack) {
			continue
		}
		reason := attack.reason
		if v == nil && reason == bocage.ReasonSpoofed && attack.name != "another's MAC" {
			reason = bocage.ReasonIdentityUnknown // a wire vouches for who is inside
		}
		before := p.refusedAs(reason)
		out, begun := said(t, a.namespace, attack.command), time.Now()
		for p.refusedAs(reason) == before && time.Since(begun) < long { // a tool may be over before it has begun
			out += said(t, a.namespace, attack.command)
		}
		if p.refusedAs(reason) == before {
			t.Errorf("%s: no packet refused as %s: %s\n%s", attack.name, reason, attack.command, out)
		}
		if beside := x.only(allowed...); len(beside) > 0 {
			t.Fatalf("%s reached its target: %s\n%s", attack.name, strings.Join(beside, ", "), attack.command)
		}
		if live != nil {
			if err := ping(live, long); err != nil {
				t.Fatalf("another's connection, after %s: %v", attack.name, err)
			}
		}
	}
	// And what is allowed is there after all that.
	must(t, ping(mustDial(t, a, b.v4, 79), long))
	if v != nil {
		must(t, ping(mustDial(t, v, b.v4, 80), long))
	}
	hosttest.Await(t, "a flood to be told", func() bool { return len(p.events) > 0 })
	if c, err := p.Counters(); err != nil || c.Lost != 0 {
		t.Errorf("%d events were lost (%v)", c.Lost, err)
	}
}

// Once a workload has all the flows that it may have, established ones go on, new ones
// are refused and counted as what they are, others have theirs, and what ends makes room.
func TestRootRealExhaustion(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.FlowEntries, c.FlowsPerPort = 256, 64 })
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
	p.attach(a, b, c)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowTCP(23, 22, 80)}, a, b, c)))
	p.run()
	echo(t, b, b.v4, 80)
	var live []net.Conn
	for len(live) < 200 {
		conn, err := dial(t, a, b.v4, 80, 2*time.Second)
		if isTimeout(err) && p.refusedAs(bocage.ReasonTableFull) == 0 {
			continue // this machine is busy
		}
		if isTimeout(err) {
			break
		}
		if err != nil {
			t.Fatalf("connection %d: %v", len(live), err)
		}
		live = append(live, conn)
		must(t, ping(conn, long))
	}
	if len(live) < 40 || len(live) > 80 { // a share is kept to by buckets
		t.Errorf("%d connections at once: a workload's share is 64 flows", len(live))
	}
	refused := p.refusedAs(bocage.ReasonTableFull)
	if refused == 0 {
		t.Error("no packet is counted as refused for want of room")
	}
	e := p.await("a refusal for want of room", func(e bocage.FlowEvent) bool { return e.Reason == bocage.ReasonTableFull })
	if e.Kind != bocage.EventRefused || e.Verdict != bocage.VerdictDrop || e.Source != 101 || e.DestinationPort != 80 {
		t.Errorf("event %+v", e)
	}
	for i, conn := range live {
		if err := ping(conn, long); err != nil {
			t.Fatalf("established connection %d of %d beside a full table: %v", i, len(live), err)
		}
	}
	must(t, ping(mustDial(t, c, b.v4, 80), long))
	for _, conn := range live[1:] {
		must(t, conn.(*net.TCPConn).SetLinger(0))
		conn.Close()
	}
	must(t, ping(mustDial(t, a, b.v4, 80), long))
	must(t, ping(live[0], long))
}

// What is allowed, refused, led astray and inspected is so to the tools that people
// have, too.
func TestRootDispositionsByTools(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"iperf3", "ncat", "nmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is not installed: run scripts/setup", tool)
		}
	}
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	engine, trap := newForwarder(p), newTrap(p, 22)
	p.attach(a, b)
	p.in(func() error {
		return errors.Join(p.SetInspection(Inspection{Outside: engine.outside, Inside: engine.inside, Up: true}),
			p.SetDecoy(DecoyPort{Ifindex: trap.ifindex, MAC: trap.mac}))
	})
	rule := func(port uint16, decision bocage.DecisionID) bocage.Rule {
		r := allowTCP(21, 22, port)
		r.Decision = decision
		return r
	}
	rules := []bocage.Rule{rule(22, decideDecoy), rule(5201, decideAllow), rule(5202, decideInspect), rule(5203, decideDefault), rule(5204, decideAllow)}
	rs := ruleset(1, rules, a, b)
	rs.Profiles = []bocage.Profile{{Number: 7, Name: "web"}}
	must(t, p.Apply(rs))
	p.run()
	for _, x := range []struct {
		name, command string
		serves        uint16 // the port of iperf3's server, or 0
		want          []string
		inspected     bool
	}{
		{"allowed, by iperf3", "iperf3 -c " + b.v4.String() + " -p 5201 -n 8M -P 2 --connect-timeout 60000", 5201, []string{"receiver"}, false},
		{"allowed, by iperf3 and IPv6", "iperf3 -6 -c " + b.v6.String() + " -p 5204 -n 8M -R --connect-timeout 60000", 5204, []string{"receiver"}, false},
		{"inspected, by iperf3", "iperf3 -c " + b.v4.String() + " -p 5202 -n 8M --connect-timeout 60000", 5202, []string{"receiver"}, true},
		{"dropped, by iperf3", "iperf3 -c " + b.v4.String() + " -p 5203 -n 1M --connect-timeout 1000", 5203, []string{"timed out"}, false},
		{"dropped, by ncat", "ncat -v -n -w 1 " + b.v4.String() + " 5203", 0, []string{"TIMEOUT"}, false},
		{"a decoy, by nmap", "nmap -n -Pn -sS -p 22 --reason " + b.v4.String(), 0, []string{"22/tcp open", "syn-ack"}, false},
		{"a decoy, by ncat", "ncat -v -n -w 60 -i 4 " + b.v4.String() + " 22", 0, []string{"Connected", "hello again"}, false},
	} {
		if x.serves != 0 {
			serveOnce(t, b, x.serves)
		}
		before := engine.frames[0].Load()
		out := strings.Join(strings.Fields(said(t, a.namespace, x.command)), " ")
		for _, want := range x.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: %s: %s, want %q", x.name, x.command, out, want)
			}
		}
		if saw := engine.frames[0].Load() - before; saw > 50 != x.inspected { // links speak, too
			t.Errorf("%s: the engine saw %d frames", x.name, saw)
		}
	}
}

// serveOnce has iperf3 serve one client on the port, and returns when it listens. A
// server that goes on closes its port after each client for a moment, and whoever comes
// in that moment is reset; one that is asked by a connection whether it listens takes
// that for a client.
func serveOnce(t *testing.T, w *workload, port uint16) {
	t.Helper()
	server := exec.Command("iperf3", "-s", "-1", "-p", fmt.Sprint(port))
	must(t, host.Start(w.namespace, server))
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	listens := regexp.MustCompile(fmt.Sprintf(`(?m)^ *\d+: [0-9A-F]+:%04X [0-9A-F:]+ 0A `, port)) // proc_pid_net(5): LISTEN
	hosttest.Await(t, "iperf3 to listen", func() bool {
		sockets, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp6", server.Process.Pid))
		must(t, err)
		return listens.Match(sockets)
	})
}
