package dataplane

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
)

// Where policy is enforced, an interface that nobody vouches for gets nothing
// through, not even a question for a MAC; and whoever then turns out to be behind
// it has what policy gives them, on connections that were begun before as well.
func TestRootClosedNewcomer(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, u := p.workload(1, 101, 21), p.workload(9, 102, 22)
	newcomer := Attachment{Ifindex: u.ifindex, Port: bocage.Port{Interface: u.link}, Closed: true}
	p.attach(a)
	p.in(func() error { return p.Attach(newcomer) })
	echo(t, a, a.v4, 80)
	echo(t, a, a.v4, 81)
	p.run()

	rs := ruleset(1, nil, a)
	rs.Groups[0].Enforce = false
	must(t, p.Apply(rs))
	if _, err := dial(t, u, a.v4, 80, short); !isTimeout(err) {
		t.Fatalf("a newcomer where policy is enforced: %v, want a timeout", err)
	}
	e := p.await("a refused newcomer", func(e bocage.FlowEvent) bool {
		return e.Reason == bocage.ReasonIdentityUnknown && e.Protocol == bocage.ProtocolTCP
	})
	if e.Verdict != bocage.VerdictDrop || e.Source != bocage.IdentityUnknown || e.Destination != 101 {
		t.Errorf("event %+v", e)
	}
	must(t, host.In(u.namespace, forgetNeighbors))
	if _, err := dial(t, u, a.v4, 80, short); err == nil {
		t.Error("a newcomer got through without a neighbour")
	}
	p.await("a newcomer's refused question for a MAC", func(e bocage.FlowEvent) bool {
		return e.Protocol == 0 && e.Reason == bocage.ReasonIdentityUnknown && e.Verdict == bocage.VerdictDrop
	})
	must(t, host.AddNeighbor(u.namespace, "eth0", netip.MustParseAddr("169.254.1.1"), net.HardwareAddr{2, 0, 0, 0, 1, 9}))

	// Observed, it passes; told who it is, its connection lives on if policy has it.
	newcomer.Closed = false
	p.in(func() error { return p.Attach(newcomer) })
	allowed, refused := mustDial(t, u, a.v4, 80), mustDial(t, u, a.v4, 81)
	must(t, ping(allowed, long))
	must(t, ping(refused, long))
	rs = ruleset(2, []bocage.Rule{{From: 22, To: 21, Protocol: bocage.ProtocolTCP, Ports: bocage.PortRange{First: 80, Last: 80}, Decision: decideAllow}}, a, u)
	must(t, p.Apply(rs))
	p.attach(u)
	must(t, ping(allowed, long))
	if err := ping(refused, short); !isTimeout(err) {
		t.Errorf("what policy refuses to it, now that it is known: %v, want a timeout", err)
	}
}

// A new interface with an old one's number is not taken for it.
func TestRootIndexOfAnother(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	const index = 4711
	create := func() {
		t.Helper()
		must(t, host.In(p.namespace, func() error { return addVeth("bct-reused", index) }))
	}
	create()
	attachment := Attachment{Ifindex: index, Port: bocage.Port{Interface: "bct-reused"}, Closed: true}
	p.in(func() error { return p.Attach(attachment) })
	if p.Gone(index) {
		t.Error("gone while it is there")
	}
	must(t, host.DeleteLink(p.namespace, "bct-reused"))
	create()
	if !p.Gone(index) {
		t.Fatal("another interface of the same number is taken for the one that went")
	}
	p.in(func() error { return p.Detach(index) })
	p.in(func() error { return p.Attach(attachment) })
	if p.Gone(index) {
		t.Error("gone after it was attached again")
	}
	if p.Gone(12) {
		t.Error("what was never attached cannot be gone")
	}
}

// Packets of every queue of a tap are judged.
func TestRootTapOfSeveralQueues(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a := p.workload(1, 101, 21)
	var queues []*os.File
	p.in(func() error {
		for range 3 {
			queue, err := openTapQueue("bct-tap")
			if err != nil {
				return err
			}
			queues = append(queues, queue)
		}
		return host.SetUp("", "bct-tap")
	})
	for _, q := range queues {
		defer q.Close()
	}
	link, err := host.LinkNamed(p.namespace, "bct-tap")
	must(t, err)
	if link.Kind != "tuntap" || !link.Ethernet {
		t.Errorf("a tap is %+v", link)
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	port := bocage.Port{Interface: "bct-tap", Identity: 109, Group: 29, Workload: "test/vm", MAC: mac.String(), Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.9")}}
	p.attach(a)
	p.in(func() error { return p.Attach(Attachment{Ifindex: link.Index, Port: port}) })
	rs := ruleset(1, nil, a)
	rs.Ports = append(rs.Ports, port)
	rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.MustParsePrefix("10.77.0.9/32"), Identity: 109, Group: 29, Host: "h1", Workload: "test/vm"})
	rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: 29, Enforce: true})
	must(t, p.Apply(rs))
	p.run()
	for i, queue := range queues {
		frame := udpFrame(link.MAC, mac, netip.MustParseAddr("10.77.0.9"), a.v4, uint16(9000+i))
		if _, err := queue.Write(frame); err != nil {
			t.Fatal(err)
		}
		p.await("a packet of a queue", func(e bocage.FlowEvent) bool {
			return e.DestinationPort == uint16(9000+i) && e.Verdict == bocage.VerdictDrop && e.Source == 109 && e.Reason == bocage.ReasonDefaultDeny
		})
	}
}

// addVeth makes a pair of which one end has a number that the test chose.
func addVeth(name string, index int) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.Index = name, index
	pair := netlink.NewVeth(attributes)
	pair.PeerName = name[:len(name)-1] + "-"
	return netlink.LinkAdd(pair)
}

// forgetNeighbors has the addresses of neighbours asked for again.
func forgetNeighbors() error {
	all, err := netlink.NeighList(0, 0)
	for _, n := range all {
		if err == nil && n.State == netlink.NUD_PERMANENT {
			err = netlink.NeighDel(&n)
		}
	}
	return err
}

func openTapQueue(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// udpFrame is a datagram of one byte, without a checksum.
func udpFrame(to, from net.HardwareAddr, source, destination netip.Addr, port uint16) []byte {
	frame := append(append([]byte{}, to...), from...)
	frame = append(frame, 8, 0, 0x45, 0, 0, 29, 0, 1, 0, 0, 64, 17, 0, 0)
	frame = append(append(frame, source.AsSlice()...), destination.AsSlice()...)
	sum := uint32(0)
	for i := 14; i < 34; i += 2 {
		sum += uint32(frame[i])<<8 | uint32(frame[i+1])
	}
	sum = ^(sum>>16 + sum&0xffff)
	frame[24], frame[25] = byte(sum>>8), byte(sum)
	return append(frame, 0x30, 0x39, byte(port>>8), byte(port), 0, 9, 0, 0, 'x')
}
