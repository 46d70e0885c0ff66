package dataplane

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// offload switches what a card, or a veth in its place, does for the stack, at both
// ends of a workload's cable: super-frames sent and received, checksums left open.
func (p *plane) offload(w *workload, set ...string) {
	p.t.Helper()
	ethtool, err := exec.LookPath("ethtool")
	if err != nil {
		p.t.Fatal("ethtool is not installed: run scripts/setup")
	}
	for namespace, link := range map[string]string{p.namespace: w.link, w.namespace: "eth0"} {
		cmd := exec.Command(ethtool, append([]string{"-K", link}, set...)...)
		said := &lines{}
		cmd.Stdout, cmd.Stderr = said, said
		must(p.t, host.Start(namespace, cmd))
		if err := cmd.Wait(); err != nil {
			p.t.Fatalf("ethtool -K %s %v: %v: %s", link, set, err, said)
		}
	}
}

// lines keeps what a program says.
type lines struct{ text []byte }

func (l *lines) Write(b []byte) (int, error) { l.text = append(l.text, b...); return len(b), nil }
func (l *lines) String() string              { return string(l.text) }

// setMTU sets that of both ends of a workload's cable.
func (p *plane) setMTU(w *workload, own, hosts int) {
	p.t.Helper()
	for _, end := range []struct {
		namespace, link string
		mtu             int
	}{{p.namespace, w.link, hosts}, {w.namespace, "eth0", own}} {
		must(p.t, host.In(end.namespace, func() error {
			l, err := netlink.LinkByName(end.link)
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, end.mtu)
		}))
	}
}

// What a card does for the stack changes nothing of what arrives: with super-frames and
// without, with checksums left open and without, whatever fits into a frame, where
// policy is enforced and where it is observed, by the stack, straight and by a wire.
func TestRootOffloads(t *testing.T) {
	t.Parallel()
	off := []string{"tx", "off", "tso", "off", "gso", "off", "gro", "off"}
	settings := [][2][]string{ // of the two workloads
		{nil, nil},
		{{"tso", "off", "gso", "off"}, {"gro", "off"}},
		{{"gro", "on"}, {"gro", "on"}},
		{{"tx", "off"}, {"rx", "off"}},
		{off, off},
		{off, nil},
		{nil, off},
	}
	for _, way := range []string{"stack", "straight", "wire"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t, func(c *Config) { c.DirectDelivery = way == "straight" })
			make := p.workload
			if way == "wire" {
				make = p.neighbour
			}
			a, b := make(1, 101, 21), make(2, 102, 22)
			rules := []bocage.Rule{allowTCP(21, 22, 80)}
			must(t, p.Apply(ruleset(1, rules, a, b)))
			if way == "wire" {
				p.wire(a, b, true, a)
			} else {
				p.attach(a, b)
			}
			p.run()
			for _, address := range []netip.Addr{b.v4, b.v6} {
				echo(t, b, address, 80)
			}
			generation := uint64(1)
			for i, set := range settings {
				for _, mtu := range []int{1280, 1500, 9000} {
					if i%3 != mtu/1000%3 && i > 1 { // each setting with one, the first two with all
						continue
					}
					what := fmt.Sprintf("%q, MTU %d", set, mtu)
					for end, w := range []*workload{a, b} {
						p.offload(w, "tx", "on", "rx", "on", "tso", "on", "gso", "on", "gro", "off")
						if set[end] != nil {
							p.offload(w, set[end]...)
						}
						if way != "wire" {
							p.setMTU(w, mtu, mtu)
						}
					}
					generation++
					rs := ruleset(generation, rules, a, b)
					if generation%2 == 0 {
						rs.Groups = nil // merely observed
					}
					must(t, p.Apply(rs))
					for _, address := range []netip.Addr{b.v4, b.v6} {
						c, err := dial(t, a, address, 80, long)
						if err == nil {
							err = transfer(c, 1<<20)
						}
						if err != nil {
							t.Fatalf("%s, observed %v, to %s: %v", what, rs.Groups == nil, address, err)
						}
						c.Close()
					}
				}
			}
			counters, err := p.Counters()
			must(t, err)
			for _, reason := range []bocage.ReasonCode{bocage.ReasonMalformed, bocage.ReasonInvalidState, bocage.ReasonFragment, bocage.ReasonSpoofed} {
				if n := counters.Refused[reason].Packets; n > 0 {
					t.Errorf("%d packets refused as %s", n, reason)
				}
			}
		})
	}
}

// Whoever sends more than the way takes is told so through the enforcement points, and
// sends less: streams arrive whole, and datagrams know what fits.
func TestRootPathMTU(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"stack", "straight"} {
		for _, observed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/observed=%v", way, observed), func(t *testing.T) {
				t.Parallel()
				p := newPlane(t, func(c *Config) { c.DirectDelivery = way == "straight" })
				a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
				for _, own := range []string{"10.77.0.254/32", "fd77::fe/128"} { // in whose name errors come
					must(t, host.AddAddress(p.namespace, "lo", netip.MustParsePrefix(own)))
				}
				rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)
				if observed {
					rs.Groups = nil
				}
				must(t, p.Apply(rs))
				p.attach(a, b)
				p.run()
				p.setMTU(a, 9000, 9000)
				p.setMTU(b, 9000, 1280) // the way to it is narrower than its own end,
				b.sendAtMost(t, 1280)   // and what it answers is lost without a word
				for _, address := range []netip.Addr{b.v4, b.v6} {
					echo(t, b, address, 80)
					c := mustDial(t, a, address, 80)
					if err := transfer(c, 2<<20); err != nil {
						t.Errorf("a stream to %s: %v", address, err)
					}
					if got := pathMTU(t, a, address); got != 1280 {
						t.Errorf("datagrams to %s may have %d bytes, want 1280", address, got)
					}
				}
			})
		}
	}
}

// sendAtMost has a workload send what its host's end takes: a veth drops what is longer
// than the MTU of its other end, and nobody is there to say so. What others may send to
// it is for them to find out.
func (w *workload) sendAtMost(t testing.TB, mtu int) {
	t.Helper()
	must(t, host.In(w.namespace, func() error {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Gw == nil {
				continue
			}
			r.MTU, r.AdvMSS = mtu, 8900
			if err := netlink.RouteReplace(&r); err != nil {
				return err
			}
		}
		return nil
	}))
}

// pathMTU sends datagrams that may not be taken to pieces until it is said how long
// they may be.
func pathMTU(t testing.TB, w *workload, to netip.Addr) (mtu int) {
	t.Helper()
	level, discover, option, mode := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU, unix.IP_PMTUDISC_DO
	if to.Is6() {
		level, discover, option, mode = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU, unix.IPV6_PMTUDISC_DO
	}
	var c net.Conn
	must(t, host.In(w.namespace, func() (err error) {
		c, err = net.Dial("udp", netip.AddrPortFrom(to, 9).String())
		return err
	}))
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	must(t, err)
	control := func(do func(fd int) error) {
		t.Helper()
		var failed error
		must(t, raw.Control(func(fd uintptr) { failed = do(int(fd)) }))
		must(t, failed)
	}
	control(func(fd int) error { return unix.SetsockoptInt(fd, level, discover, mode) })
	deadline := time.Now().Add(long)
	hosttest.Await(t, "word of what fits", func() bool {
		_, _ = c.Write(make([]byte, 1400)) // refused from then on
		control(func(fd int) (err error) {
			mtu, err = unix.GetsockoptInt(fd, level, option)
			return err
		})
		return mtu < 9000 || time.Now().After(deadline)
	})
	return mtu
}

// An error may quote a packet behind extension headers, or a piece of one: it is about
// the flow all the same.
func TestRootRelatedQuotesHeaders(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b)))
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v6, dst: b.v6, protocol: bocage.ProtocolUDP, sport: 5000, dport: 53, payload: 64}
	tooBig := func(f frame) []byte {
		e := frame{from: gatewayMAC(a), to: [6]byte(a.mac), source: netip.MustParseAddr("fd77::fe"), dst: a.v6, protocol: bocage.ProtocolICMPv6}
		e.body = append([]byte{2, 0, 0, 0, 0, 0, 5, 0}, f.bytes()[14:]...)
		return e.bytes()
	}
	for _, chain := range [][]extension{
		nil,
		{{44, []byte{0, 0, 1, 0, 0, 0, 9}}},
		{{60, make([]byte, 7)}},
		{{0, make([]byte, 7)}, {60, make([]byte, 15)}, {44, []byte{0, 0, 1, 0, 0, 0, 10}}},
	} {
		f.extensions, f.sport = chain, f.sport+1
		if len(chain) == 3 {
			f.extensions[1].data[0] = 1
		}
		if got := p.judgedHere(false, a.ifindex, tooBig(f)); got != dropped {
			t.Errorf("%v: an error about no flow: program returned %d", chain, int32(got))
		}
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got != next {
			t.Fatalf("%v: program returned %d", chain, int32(got))
		}
		if got := p.judgedHere(false, a.ifindex, tooBig(f)); got != next {
			t.Errorf("%v: an error about a flow: program returned %d", chain, int32(got))
		}
	}
}
