package dataplane

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// stacked is how many packets the host's own stack has sent out to a workload.
func (p *plane) stacked(w *workload) (packets uint64) {
	p.t.Helper()
	p.in(func() error {
		l, err := netlink.LinkByName(w.link)
		if err == nil {
			packets = l.Attrs().Statistics.TxPackets
		}
		return err
	})
	return packets
}

// arrivedAt is how many frames and bytes a workload's link has taken in.
func arrivedAt(t *testing.T, w *workload) (c Count) {
	t.Helper()
	must(t, host.In(w.namespace, func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			c = Count{l.Attrs().Statistics.RxPackets, l.Attrs().Statistics.RxBytes}
		}
		return err
	}))
	return c
}

// backlogOverflows is how many packets the processors have lost on their way from one
// interface to another, of all namespaces: each has room for net.core.netdev_max_backlog.
func backlogOverflows(t *testing.T) (packets uint64) {
	t.Helper()
	text, err := os.ReadFile("/proc/net/softnet_stat")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		n, err := strconv.ParseUint(strings.Fields(line)[1], 16, 32)
		must(t, err)
		packets += n
	}
	return packets
}

func (p *plane) topology() uint32 {
	p.t.Helper()
	var t bpf.KernelTopology
	must(p.t, p.objects.Topology.Lookup(uint32(0), &t))
	return t.Number
}

func (p *plane) counted(reason bocage.ReasonCode) Count {
	p.t.Helper()
	c, err := p.Counters()
	must(p.t, err)
	return c.Passed[reason]
}

// total is how many packets and bytes all live flows have had, by their owners.
func (p *plane) total() (c Count) {
	p.eachRow(func(_ uint32, row *bpf.KernelFlow) bool {
		c.Packets += row.Packets
		c.Bytes += row.Bytes
		return false
	})
	return c
}

func newDirect(t *testing.T, bridged bool) (p *plane, a, b *workload) {
	p = newPlane(t, func(c *Config) { c.DirectDelivery = true })
	a, b = p.workload(1, 101, 21), p.workload(2, 102, 22)
	if bridged {
		p.bridge(a, b)
	}
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80), allowUDP(21, 22)}, a, b)))
	p.run()
	return p, a, b
}

// What passes between two workloads of a host goes past the host's stack, whole,
// and is counted by both points.
func TestRootDirectDelivery(t *testing.T) {
	t.Parallel()
	for _, bridged := range []bool{false, true} {
		t.Run(fmt.Sprintf("bridged=%v", bridged), func(t *testing.T) {
			t.Parallel()
			p, a, b := newDirect(t, bridged)
			for _, address := range []netip.Addr{b.v4, b.v6} {
				echo(t, b, address, 80)
				c := mustDial(t, a, address, 80)
				hosttest.Await(t, "packets to go straight", func() bool {
					before := p.stacked(b)
					for range 50 {
						must(t, ping(c, long))
					}
					return p.stacked(b)-before < 20
				})
				before := p.stacked(a) + p.stacked(b)
				var passed, total Count
				// Of one moment: the last reply's acknowledgement may still be on its way.
				hosttest.Await(t, "a moment without packets", func() bool {
					total = p.total()
					passed = p.counted(bocage.ReasonRule)
					return p.total() == total
				})
				overflown := backlogOverflows(t)
				received := arrivedAt(t, b)
				must(t, transfer(c, 4<<20))
				after := arrivedAt(t, b)
				received = Count{after.Packets - received.Packets, after.Bytes - received.Bytes}
				if mean := received.Bytes / max(received.Packets, 1); received.Bytes < 4<<20 || mean < 4000 {
					t.Errorf("%s: %+v arrived, %d bytes at a time: super-frames were cut up", address, received, mean)
				}
				for range 500 {
					must(t, ping(c, long))
				}
				if n := p.stacked(a) + p.stacked(b) - before; n > 300 { // others speak too
					t.Errorf("%s: %d packets went through the stack", address, n)
				}
				var points, flows, lost Count
				t.Cleanup(func() {
					if t.Failed() {
						t.Logf("%s: the points counted %+v, the flows %+v, %d overflowed", address, points, flows, lost.Packets)
					}
				})
				hosttest.Await(t, "both points to have counted all", func() bool {
					after, both := p.counted(bocage.ReasonRule), p.total()
					points = Count{after.Packets - passed.Packets, after.Bytes - passed.Bytes}
					flows = Count{both.Packets - total.Packets, both.Bytes - total.Bytes}
					// What went through the stack may be lost between the points if others flood this processor.
					lost.Packets = backlogOverflows(t) - overflown
					lost.Bytes = lost.Packets << 16
					return points.Packets <= 2*flows.Packets && points.Packets+lost.Packets >= 2*flows.Packets &&
						points.Bytes <= 2*flows.Bytes && points.Bytes+lost.Bytes >= 2*flows.Bytes
				})
				if flows.Packets < 1000 || flows.Bytes < 8<<20 {
					t.Errorf("%s: %+v counted", address, flows)
				}
			}
			// Cut at the next packet.
			c := mustDial(t, a, b.v4, 80)
			must(t, ping(c, long))
			rs := ruleset(2, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)
			rs.Refused = []bocage.Refusal{{Identity: 102, Decision: decideQuarantine}}
			must(t, p.Apply(rs))
			if err := ping(c, short); !isTimeout(err) {
				t.Errorf("in quarantine: %v, want a timeout", err)
			}
		})
	}
}

// A routed packet is one hop older when it arrives, and one at its end goes no
// further, though its flow is known.
func TestRootDirectDeliveryCountsHops(t *testing.T) {
	t.Parallel()
	p, a, b := newDirect(t, false)
	arrived := sink(t, b, b.v4, 53)
	from := a.raw(t)
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 5000, dport: 53, payload: 10}
	send := func(hops byte, want int64, what string) {
		t.Helper()
		f.hops = hops
		from.send(f.bytes())
		hosttest.Await(t, what, func() bool { return arrived.Load() == want })
	}
	send(64, 1, "the first by the stack")
	sent := int64(1)
	hosttest.Await(t, "packets to go straight", func() bool {
		before := p.stacked(b)
		for range 10 {
			sent++
			send(64, sent, "one of the flow")
		}
		return p.stacked(b)-before < 5
	})
	before := p.stacked(b)
	for range 20 {
		sent++
		send(2, sent, "one of the flow")
	}
	if n := p.stacked(b) - before; n > 10 {
		t.Errorf("%d packets went through the stack", n)
	}
	f.hops = 1
	from.send(f.bytes())
	send(64, sent+1, "one after that which was at its end")
	// To somebody else's MAC: what the host does not take, nobody hands over.
	stray := f
	stray.hops, stray.to = 64, [6]byte{2, 9, 9, 9, 9, 9}
	from.send(stray.bytes())
	send(64, sent+2, "one after that which was for another")
}

// Packets go straight only as long as the host would send them there.
func TestRootDirectDeliveryFollowsTheHost(t *testing.T) {
	t.Parallel()
	p, a, b := newDirect(t, false)
	echo(t, b, b.v4, 80)
	c := mustDial(t, a, b.v4, 80)
	pings := func(n int) (stacked uint64) {
		t.Helper()
		before := p.stacked(b)
		for range n {
			must(t, ping(c, long))
		}
		return p.stacked(b) - before
	}
	hosttest.Await(t, "packets to go straight", func() bool { return pings(200) < 50 })
	change := func(what string, do func(netlink.Link) error, direct bool) {
		t.Helper()
		before := p.topology()
		p.in(func() error {
			l, err := netlink.LinkByName(b.link)
			if err == nil {
				err = do(l)
			}
			return err
		})
		hosttest.Await(t, "news of "+what, func() bool { return p.topology() != before })
		hosttest.Await(t, what, func() bool { return (pings(200) < 50) == direct })
	}
	change("a link that takes less", func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1400) }, false)
	change("a link that takes as much", func(l netlink.Link) error { return netlink.LinkSetMTU(l, 1500) }, true)
	elsewhere := netip.MustParseAddr("10.77.0.9")
	must(t, host.AddNeighbor(p.namespace, b.link, elsewhere, b.mac))
	detour := netlink.Route{Dst: &net.IPNet{IP: b.v4.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: elsewhere.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Priority: 0}
	change("another gateway at the same MAC", func(l netlink.Link) error {
		detour.LinkIndex = l.Attrs().Index
		return netlink.RouteReplace(&detour)
	}, true)
	must(t, p.addNeighbor(b, elsewhere, net.HardwareAddr{2, 9, 9, 9, 9, 9}))
	if err := ping(c, short); !isTimeout(err) {
		t.Errorf("the host would send it to another: %v, want a timeout", err)
	}
}

func (p *plane) addNeighbor(w *workload, address netip.Addr, mac net.HardwareAddr) error {
	before := p.topology()
	if err := host.AddNeighbor(p.namespace, w.link, address, mac); err != nil {
		return err
	}
	hosttest.Await(p.t, "news of a neighbour", func() bool { return p.topology() != before })
	return nil
}

// Without somebody who watches, packets go through the stack.
func TestRootDirectDeliveryEndsWithTheAgent(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.DirectDelivery = true })
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	stop := p.run()
	echo(t, b, b.v4, 80)
	c := mustDial(t, a, b.v4, 80)
	direct := func() bool {
		before := p.stacked(b)
		for range 100 {
			must(t, ping(c, long))
		}
		return p.stacked(b)-before < 50
	}
	hosttest.Await(t, "packets to go straight", direct)
	stop()
	if t.Failed() {
		return
	}
	must(t, p.changeTopology(func(t *bpf.KernelTopology) { t.DirectUntil = 0 }))
	if direct() {
		t.Error("packets go straight though nobody watches")
	}
}
