package dataplane

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

// onWires runs a test on a wire that the stack forwards on, and on one that drivers do.
func onWires(t *testing.T, test func(t *testing.T, drivers bool)) {
	hosttest.Root(t)
	t.Parallel()
	for name, drivers := range map[string]bool{"stack": false, "drivers": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, drivers)
		})
	}
}

// beCable makes a workload's end behave as the far end of a cable: it takes frames from
// drivers, and leaves no checksum and no tag to a card that there is not.
func (w *workload) beCable(t testing.TB) {
	t.Helper()
	must(t, host.In(w.namespace, func() error {
		for _, set := range []struct {
			feature string
			on      bool
		}{{"rx-gro", true}, {"tx-checksum-ip-generic", false}, {"tx-checksum-sctp", false}, {"tx-vlan-hw-insert", false}, {"tx-vlan-stag-hw-insert", false}} {
			if _, err := host.SetFeature("eth0", set.feature, set.on); err != nil {
				return err
			}
		}
		return nil
	}))
}

// feature tells whether a feature of a link of the host's is on.
func (p *plane) feature(link, name string) (on bool) {
	p.t.Helper()
	p.in(func() (err error) {
		on, err = host.HasFeature(link, name)
		return err
	})
	return on
}

// driverOf tells whether an XDP program is on a link of the host's, in its driver.
func (p *plane) driverOf(name string) (there bool) {
	p.t.Helper()
	p.in(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		there = l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached
		return nil
	})
	return there
}

// What drivers forward is judged as on any wire, goes on without the stack once its flow
// is known, and without an agent; taken off, nothing is left of it.
func TestRootWireByDrivers(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	p.drivers = true
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	for _, port := range []uint16{80, 81} {
		echo(t, b, b.v4, port)
		echo(t, b, b.v6, port)
	}
	p.run()
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	stripped := p.feature(a.link, "rx-vlan-hw-parse")
	p.wire(a, b, true, a)
	if !p.driverOf(a.link) || !p.driverOf(b.link) {
		t.Fatal("no program is in the drivers")
	}
	p.in(func() error {
		checks := host.Machine{}.Checks()
		i := slices.IndexFunc(checks, func(c host.Check) bool { return c.Code == "net.xdp" })
		if answer := checks[i].Ask(t.Context()); answer.State != host.Passed {
			t.Errorf("doctor takes our own programs for others': %+v", answer)
		}
		return nil
	})
	four, six := mustDial(t, a, b.v4, 80), mustDial(t, a, b.v6, 80)
	must(t, ping(four, long))
	must(t, ping(six, long))
	if _, err := dial(t, a, b.v4, 81, short); !isTimeout(err) {
		t.Errorf("refused flow: %v, want a timeout", err)
	}
	e := p.await("a refusal in a driver", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventRefused && e.DestinationPort == 81 })
	if e.Reason != bocage.ReasonDefaultDeny || e.Source != 101 || e.Destination != 102 || e.Direction != bocage.DirectionFrom {
		t.Errorf("refusal %+v", e)
	}
	sent := make([]byte, 8<<20)
	rand.Read(sent)
	go four.Write(sent)
	got := make([]byte, len(sent))
	four.SetReadDeadline(time.Now().Add(60 * time.Second))
	if _, err := io.ReadFull(four, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("8 MiB there and back: %v, equal %v", err, bytes.Equal(got, sent))
	}

	// Without the stack's part what is known goes on, and nothing new begins.
	for _, w := range []*workload{a, b} {
		must(t, p.pins.detach(w.ifindex, programAcross))
	}
	must(t, ping(four, long))
	must(t, ping(six, long))
	if _, err := dial(t, a, b.v4, 80, short); !isTimeout(err) {
		t.Errorf("a new flow by the drivers alone: %v, want a timeout", err)
	}
	p.in(func() error {
		done, err := p.Repair()
		if len(done) != 2 {
			t.Errorf("repair found %q", done)
		}
		return err
	})

	// The process may go and come, and what policy revokes ends.
	p.Close()
	must(t, ping(four, long))
	p.open()
	if ws := p.Wires(); len(ws) != 1 || !ws[0].Drivers {
		t.Fatalf("wires after a restart: %+v", ws)
	}
	must(t, ping(mustDial(t, a, b.v4, 80), long))
	p.wire(a, b, true, a)
	must(t, ping(four, long))
	must(t, p.Apply(ruleset(2, nil, a, b)))
	if err := ping(four, short); !isTimeout(err) {
		t.Errorf("revoked flow: %v, want a timeout", err)
	}
	must(t, p.Apply(ruleset(3, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))

	// Back to the stack, and off.
	p.drivers = false
	p.wire(a, b, true, a)
	if p.driverOf(a.link) || p.driverOf(b.link) || p.feature(a.link, "rx-vlan-hw-parse") != stripped {
		t.Error("something is left in the drivers")
	}
	must(t, ping(mustDial(t, a, b.v4, 80), long))
	p.drivers = true
	p.wire(a, b, true, a)
	p.in(func() error { return p.DetachWire(a.ifindex) })
	if p.driverOf(a.link) || p.driverOf(b.link) || p.feature(a.link, "rx-vlan-hw-parse") != stripped {
		t.Error("a wire that is no more left something in the drivers")
	}
	if n := len(rowsIn[uint32](t, p.objects.Crossings)); n != 0 {
		t.Errorf("%d crossings are left", n)
	}
	p.wire(a, b, true, a)
	p.Close()
	p.in(func() error { return Remove(p.cfg.PinDir) })
	if p.driverOf(a.link) || p.driverOf(b.link) || p.feature(a.link, "rx-vlan-hw-parse") != stripped || promiscuity(p, a, b) != 0 {
		t.Error("removal left something at the interfaces")
	}
}

// rowsIn lists the keys of a map.
func rowsIn[K comparable](t testing.TB, m *ebpf.Map) (keys []K) {
	for key, err := range keysIn[K](m) {
		must(t, err)
		keys = append(keys, key)
	}
	return keys
}

// promiscuity counts the host's links that take frames to any MAC.
func promiscuity(p *plane, ends ...*workload) (n int) {
	p.in(func() error {
		for _, w := range ends {
			l, err := netlink.LinkByName(w.link)
			if err != nil {
				return err
			}
			n += l.Attrs().Promisc
		}
		return nil
	})
	return n
}

// A driver that cannot, or is another's, is told of, and the wire stands all the same.
// One that cannot any more loses nothing.
func TestRootWireByDriversFaults(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
	echo(t, b, b.v4, 80)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	w := Wire{Name: "wire", Inside: a.ifindex, Outside: b.ifindex, Closed: true, Drivers: true, Residents: []bocage.Port{a.port}}
	attach := func(want string) {
		t.Helper()
		p.in(func() error {
			err := p.AttachWire(w)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%v, want %q", err, want)
			}
			return nil
		})
		if ws := p.Wires(); len(ws) != 1 || ws[0].Drivers != (want == "") {
			t.Errorf("wires %+v", ws)
		}
		must(t, ping(mustDial(t, a, b.v4, 80), long))
	}
	attach("takes no frames from other drivers") // the far ends are veths as they come
	a.beCable(t)
	b.beCable(t)
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, License: "GPL"})
	must(t, err)
	defer other.Close()
	var others link.Link
	p.in(func() (err error) {
		others, err = link.AttachXDP(link.XDPOptions{Program: other, Interface: int(b.ifindex), Flags: link.XDPDriverMode})
		return err
	})
	attach("another XDP program is on " + b.link)
	if p.driverOf(a.link) {
		t.Error("half of the wire is left in a driver")
	}
	must(t, others.Close())
	attach("")
	c := mustDial(t, a, b.v4, 80)
	must(t, ping(c, long))

	// The far end stops taking frames from drivers, and does again.
	repaired := func(want string) {
		t.Helper()
		p.in(func() error {
			done, err := p.Repair()
			if err != nil || len(done) != 1 || !strings.Contains(done[0], want) {
				t.Errorf("repair found %q, %v, want %q", done, err, want)
			}
			return nil
		})
		must(t, ping(c, long))
	}
	gro := func(on bool) {
		must(t, host.In(b.namespace, func() error { _, err := host.SetFeature("eth0", "rx-gro", on); return err }))
	}
	gro(false)
	repaired("takes no frames from other drivers")
	gro(true)
	repaired("forward again")

	// Somebody has an interface take tags off frames, which its driver's program is not
	// to be without.
	p.in(func() error { _, err := host.SetFeature(b.link, "rx-vlan-hw-parse", true); return err })
	repaired(b.link + " took VLAN tags off frames")
	p.repaired()
	if p.feature(b.link, "rx-vlan-hw-parse") {
		t.Error("tags are still taken off frames")
	}

	// An interface that goes takes its wire with it, and no more.
	p.in(func() error {
		l, err := netlink.LinkByName(b.link)
		must(t, err)
		return netlink.LinkDel(l)
	})
	if err := ping(c, short); err == nil {
		t.Error("something answers by an interface that is not there")
	}
	p.in(func() error {
		_, err := p.Repair()
		return err
	})
	p.in(func() error { return p.DetachWire(a.ifindex) })
	if p.driverOf(a.link) || len(rowsIn[uint32](t, p.objects.Crossings)) != 0 {
		t.Error("half of the wire is left in a driver")
	}
	if _, err := os.Stat(filepath.Join(p.pins.linksDir(), linkName(b.ifindex, programDriver))); err == nil {
		t.Error("a link is pinned whose interface is gone")
	}
}

// Frames of every size that fits cross by drivers, those in several pieces of memory and
// those whose tags come on top included; what does not fit does not.
func TestRootWireByDriversFits(t *testing.T) {
	t.Parallel()
	for _, mtu := range []int{1500, 9000} {
		p := newPlane(t)
		p.drivers = true
		a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
		p.setMTU(a, mtu+4, mtu) // so that who sends may add a second tag
		p.setMTU(b, mtu+4, mtu)
		must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b)))
		p.wire(a, b, true, a)
		p.run()
		seen := b.listenTags(t)
		x := frame{from: [6]byte(a.mac), to: [6]byte(b.mac), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 4000, dport: 80}
		for _, x.tags = range crossed {
			most := mtu - 28 - 4*max(0, len(x.tags)-1) // a link takes one tag more than its MTU says
			for _, x.payload = range []int{18, 1000, most} {
				for range 3 { // the long way, then the short one
					sendFrame(t, a, x.bytes())
					if got, ok := seen(bocage.ProtocolUDP, x.sport, 80, true); !ok || fmt.Sprint(got) != fmt.Sprint(x.tags) {
						t.Errorf("MTU %d: %d bytes in %v came by %v (%v)", mtu, x.payload, x.tags, got, ok)
					}
				}
			}
			x.sport++
		}
	}
}

// What was set at a wire's interfaces is taken back by whoever takes the wire off, in
// whatever layout it was set.
func TestRootWireSettingsMoveAlong(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*plane) error{
		"another layout": func(p *plane) error { p.cfg.FlowEntries *= 2; return nil },
		"put aside":      func(p *plane) error { return os.Remove(filepath.Join(p.pins.mapsDir(), "cells")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			p.drivers = true
			a, b := p.neighbour(1, 101, 21), p.neighbour(2, 102, 22)
			echo(t, b, b.v4, 80)
			rs := ruleset(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)
			must(t, p.Apply(rs))
			p.wire(a, b, true, a)
			set := func() string {
				return fmt.Sprint(promiscuity(p, a, b), p.feature(a.link, "rx-vlan-hw-parse"), p.feature(b.link, "rx-vlan-hw-parse"))
			}
			if got := set(); got != "2 false false" {
				t.Fatalf("on a wire: %s", got)
			}
			must(t, p.Close())
			must(t, change(p))
			p.open()
			p.wire(a, b, true, a)
			must(t, p.Apply(rs))
			if len(p.moves) != 0 || set() != "2 false false" || !p.driverOf(a.link) {
				t.Errorf("%d links wait, set is %s", len(p.moves), set())
			}
			must(t, ping(mustDial(t, a, b.v4, 80), long))
			p.in(func() error { return p.DetachWire(a.ifindex) })
			if got := set(); got != "0 true true" || p.driverOf(a.link) || p.driverOf(b.link) {
				t.Errorf("off a wire: %s", got)
			}
		})
	}
}

// An interface that goes while its settings are taken back has gone with all of them.
func TestRootStripTagsOfWhatGoes(t *testing.T) {
	t.Parallel()
	namespace := hosttest.Namespace(t)
	for i := range 60 {
		must(t, host.CreateVeth(host.Veth{Name: "going", Namespace: namespace, Peer: "gone"}))
		link, err := host.LinkNamed(namespace, "going")
		must(t, err)
		must(t, host.In(namespace, func() error {
			_, err := host.SetFeature("going", strippers[0].feature, false)
			return err
		}))
		deleted := make(chan error)
		go func() {
			<-time.After(time.Duration(i) * 20 * time.Microsecond) // to meet every step in turn
			deleted <- host.DeleteLink(namespace, "going")
		}()
		must(t, host.In(namespace, func() (err error) {
			for err == nil && nameOf(link.Index) == "going" {
				err = stripTags(link.Index, strippers[0].flag)
			}
			return err
		}))
		must(t, <-deleted)
	}
}

// driverBench runs a driver's program over frames, and the stack's over those that it
// hands up.
type driverBench struct{ *wireBench }

func newDriverBench(t testing.TB) *driverBench {
	k := &driverBench{newWireBench(t)}
	k.drivers = true
	k.wire(k.inside, k.outside, true, k.inside)
	return k
}

const redirectXDP = 4

// run passes a frame to the driver's program; what it returns, and what becomes of the
// frame in the end.
func (k *driverBench) run(b []byte, from bool) (driver, becomes uint32, err error) {
	at := k.outside.ifindex
	if from {
		at = k.inside.ifindex
	}
	// struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
	context := [6]uint32{1: uint32(len(b)), 3: at}
	k.in(func() error {
		driver, err = k.objects.AcrossDrivers.Run(&ebpf.RunOptions{Data: b, Context: context})
		return nil
	})
	switch {
	case err != nil:
		return driver, 0, err
	case driver == redirectXDP:
		return driver, redirect, nil
	case driver == 1:
		return driver, dropped, nil
	}
	k.in(func() error {
		becomes, err = k.objects.AcrossWire.Run(&ebpf.RunOptions{Data: b, Context: skb{Ifindex: at}})
		return nil
	})
	return driver, becomes, err
}

// Drivers and the stack decide together as the stack does alone, and count alike, also
// of packets that are nearly those of an established flow.
func TestRootWireByDriversAgreesWithTheStack(t *testing.T) {
	t.Parallel()
	r := newRandom(t)
	one, other := newDriverBench(t), newWireBench(t)
	other.wire(other.inside, other.outside, true, other.inside)
	alone := func(b []byte, from bool) (returned uint32, err error) {
		context := skb{Ifindex: other.outside.ifindex}
		if from {
			context.Ifindex = other.inside.ifindex
		}
		other.in(func() error {
			returned, err = other.objects.AcrossWire.Run(&ebpf.RunOptions{Data: b, Context: context})
			return nil
		})
		return returned, err
	}
	both := func(b []byte, from bool) (driver, becomes uint32) {
		t.Helper()
		driver, becomes, err := one.run(b, from)
		want, also := alone(b, from)
		if err != nil || also != nil {
			if (err == nil) != (also == nil) && driver == 2 {
				t.Fatalf("one program ran and the other did not: %v, %v", err, also)
			}
			return driver, becomes
		}
		if becomes != want {
			t.Errorf("from the inside: %v, the driver returned %d and it becomes %d; by the stack alone %d: % x", from, driver, int32(becomes), int32(want), b)
		}
		return driver, becomes
	}
	var flows []frame
	for _, f := range []frame{one.out(bocage.ProtocolTCP), one.out(bocage.ProtocolUDP)} {
		six := f
		six.source, six.dst = one.inside.v6, one.outside.v6
		for _, f := range []frame{f, six} {
			for _, f.tags = range crossed {
				reply := answerTo(f)
				reply.tcpFlags = syn | ack
				both(f.bytes(), true)
				both(reply.bytes(), false)
				f.tcpFlags = ack
				both(f.bytes(), true)
				if driver, _ := both(f.bytes(), true); driver != redirectXDP {
					t.Errorf("%s in %v: the driver returned %d of a packet of a known flow", f.protocol, f.tags, driver)
				}
				flows = append(flows, f)
			}
		}
	}
	seen := map[uint32]int{}
	const packets = 4000
	for range packets {
		f, from := pick(r, flows), r.IntN(2) == 0
		switch r.IntN(6) {
		case 0:
			f.sport, f.tcpFlags = uint16(2000+r.IntN(1000)), syn
			f.dport = pick(r, []uint16{80, 81})
		case 1:
			f.source = f.source.Next().Next().Next()
		}
		if !from {
			f = answerTo(f)
		}
		if f.payload = r.IntN(40); r.IntN(8) == 0 {
			from = !from
		}
		b := f.bytes()
		for range r.IntN(3) {
			b[r.IntN(min(len(b), 88))] ^= 1 << r.IntN(8)
		}
		if binary.BigEndian.Uint16(b[12:]) == 0x0806 {
			continue // what the namespaces' own kernels say too
		}
		driver, _ := both(b, from)
		seen[driver]++
		if t.Failed() && seen[driver] > 20 {
			t.FailNow()
		}
	}
	if seen[1] < packets/50 || seen[2] < packets/50 || seen[redirectXDP] < packets/10 {
		t.Errorf("drivers dropped %d, handed up %d and forwarded %d of %d: the draw proves little", seen[1], seen[2], seen[redirectXDP], packets)
	}
	sameState(t, one.plane, other.plane, len(flows))
}
