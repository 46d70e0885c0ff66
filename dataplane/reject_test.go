package dataplane

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/host/hosttest"
)

const decideReject = bocage.DecisionID(9)

// rejecting makes a ruleset whose default is to reject.
func rejecting(generation uint64, rules []bocage.Rule, ws ...*workload) *bocage.Ruleset {
	rs := ruleset(generation, rules, ws...)
	rs.Decisions = append(rs.Decisions, bocage.Decision{ID: decideReject, Verdict: bocage.VerdictReject, Code: bocage.ReasonDefaultDeny})
	rs.Default = decideReject
	return rs
}

// answered runs a program over a frame and returns what the frame has become.
func (p *plane) answered(from bool, ifindex uint32, b []byte) (returned uint32, out []byte) {
	p.t.Helper()
	program := p.objects.ToWorkload
	if from {
		program = p.objects.FromWorkload
	}
	p.in(func() error {
		options := &ebpf.RunOptions{Data: b, DataOut: make([]byte, 2048), Context: skb{Ifindex: ifindex}}
		var err error
		returned, err = program.Run(options)
		out = options.DataOut
		return err
	})
	return returned, out
}

// onesSum is the sum that checksums are made of: 0xffff where one is right.
func onesSum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// readAnswer checks an answer's frame, IP header and checksums against the refused
// packet's, and returns what is behind the IP header.
func readAnswer(t *testing.T, to frame, b []byte) []byte {
	t.Helper()
	if !bytes.Equal(b[:6], to.from[:]) || !bytes.Equal(b[6:12], to.to[:]) {
		t.Errorf("answer goes from %x to %x", b[6:12], b[:6])
	}
	pseudo := append(append([]byte{}, to.dst.AsSlice()...), to.source.AsSlice()...)
	var l4 []byte
	var protocol byte
	if to.source.Is4() {
		ip := b[14:34]
		if ip[0] != 0x45 || int(binary.BigEndian.Uint16(ip[2:])) != len(b)-14 || onesSum(ip) != 0xffff {
			t.Errorf("IP header % x of a frame of %d bytes", ip, len(b))
		}
		if !bytes.Equal(ip[12:20], pseudo) {
			t.Errorf("answer goes from %v to %v", ip[12:16], ip[16:20])
		}
		l4, protocol = b[34:], ip[9]
	} else {
		ip := b[14:54]
		if ip[0] != 0x60 || int(binary.BigEndian.Uint16(ip[4:])) != len(b)-54 || !bytes.Equal(ip[8:40], pseudo) {
			t.Errorf("IP header % x of a frame of %d bytes", ip, len(b))
		}
		l4, protocol = b[54:], ip[6]
	}
	if protocol == byte(bocage.ProtocolICMP) {
		pseudo = nil
	} else {
		pseudo = append(pseudo, 0, 0, byte(len(l4)>>8), byte(len(l4)), 0, 0, 0, protocol)
	}
	if onesSum(pseudo, l4) != 0xffff {
		t.Errorf("checksum of % x is wrong", l4)
	}
	if (protocol == 6) != (to.protocol == bocage.ProtocolTCP) {
		t.Errorf("answered by protocol %d", protocol)
	}
	return l4
}

// A refused packet comes back as the answer that its protocol asks for, on either
// side of a port.
func TestRootRejectAnswers(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(rejecting(1, nil, a, b)))
	tcp := frame{source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 5000, dport: 80, tcpFlags: syn}
	with := func(f frame, change func(*frame)) frame { change(&f); return f }
	six := func(f *frame) { f.source, f.dst = a.v6, b.v6 }
	udp := with(tcp, func(f *frame) { f.protocol, f.payload = bocage.ProtocolUDP, 33 })
	other := with(tcp, func(f *frame) { f.protocol, f.payload = 47, 8 })
	segment := func(flags byte, payload int) func(*frame) {
		return func(f *frame) {
			f.body = append([]byte{0x13, 0x88, 0, 80, 0x10, 0x20, 0x30, 0x40, 0xa0, 0xb0, 0xc0, 0xd0, 0x60, flags, 0xff, 0xff, 0, 0, 0, 0, 1, 1, 1, 1},
				make([]byte, payload)...)
		}
	}
	const sequence, acknowledgement = 0x10203040, 0xa0b0c0d0
	reset := func(seq, ack uint32, flags byte) func(frame, []byte) string {
		return func(_ frame, l4 []byte) string {
			be := binary.BigEndian
			if len(l4) != 20 || be.Uint16(l4) != 80 || be.Uint16(l4[2:]) != 5000 || l4[12] != 0x50 {
				return "no TCP header to the sender"
			}
			if be.Uint32(l4[4:]) != seq || be.Uint32(l4[8:]) != ack || l4[13] != flags {
				return fmt.Sprintf("sequence %#x acknowledges %#x with %#x, want %#x %#x %#x", be.Uint32(l4[4:]), be.Uint32(l4[8:]), l4[13], seq, ack, flags)
			}
			return ""
		}
	}
	unreachable := func(kind, code byte) func(frame, []byte) string {
		return func(f frame, l4 []byte) string {
			refused := f.bytes()[14:]
			quoted := 28
			if f.source.Is6() {
				quoted = 48
			}
			if l4[0] != kind || l4[1] != code || !bytes.Equal(l4[4:8], []byte{0, 0, 0, 0}) {
				return fmt.Sprintf("ICMP header % x", l4[:8])
			}
			if !bytes.Equal(l4[8:], refused[:quoted]) {
				return "does not quote what was refused"
			}
			return ""
		}
	}
	tests := []struct {
		name string
		f    frame
		want func(frame, []byte) string
	}{
		{"a SYN", tcp, reset(0, 2, rst|ack)},
		{"a SYN by IPv6", with(tcp, six), reset(0, 2, rst|ack)},
		{"a SYN with options and data", with(tcp, segment(syn, 101)), reset(0, sequence+1+101, rst|ack)},
		{"a segment in the middle", with(tcp, segment(ack, 77)), reset(acknowledgement, 0, rst)},
		{"a segment in the middle by IPv6", with(with(tcp, six), segment(ack, 1200)), reset(acknowledgement, 0, rst)},
		{"a FIN", with(tcp, segment(fin|ack, 0)), reset(acknowledgement, 0, rst)},
		{"a datagram", udp, unreachable(3, 3)},
		{"a datagram by IPv6", with(udp, six), unreachable(1, 4)},
		{"an empty datagram", with(udp, func(f *frame) { f.payload = 0 }), unreachable(3, 3)},
		{"a large datagram by IPv6", with(with(udp, six), func(f *frame) { f.payload = 1400 }), unreachable(1, 4)},
		{"a ping", with(tcp, func(f *frame) { f.protocol, f.icmpType = bocage.ProtocolICMP, 8 }), unreachable(3, 13)},
		{"a ping by IPv6", with(with(tcp, six), func(f *frame) { f.protocol, f.icmpType = bocage.ProtocolICMPv6, 128 }), unreachable(1, 1)},
		{"GRE", other, unreachable(3, 13)},
		{"GRE by IPv6", with(other, six), unreachable(1, 1)},

		{"a reset", with(tcp, segment(rst, 0)), nil},
		{"a reset by IPv6", with(with(tcp, six), segment(rst|ack, 0)), nil},
		{"an error", with(tcp, func(f *frame) { f.protocol, f.icmpType, f.payload = bocage.ProtocolICMP, 3, 28 }), nil},
		{"an error by IPv6", with(with(tcp, six), func(f *frame) { f.protocol, f.icmpType, f.payload = bocage.ProtocolICMPv6, 1, 48 }), nil},
		{"a first fragment", with(udp, func(f *frame) { f.fragment, f.id, f.payload = 0x2000, 7, 32 }), nil},
		{"a later fragment", with(udp, func(f *frame) { f.fragment, f.id, f.payload = 0x2004, 7, 24 }), nil},
		{"multicast", with(udp, func(f *frame) { f.dst, f.to = netip.MustParseAddr("239.1.1.1"), [6]byte{1, 0, 0x5e, 1, 1, 1} }), nil},
		{"multicast by IPv6", with(with(udp, six), func(f *frame) { f.dst, f.to = netip.MustParseAddr("ff05::9"), [6]byte{0x33, 0x33, 0, 0, 0, 9} }), nil},
		{"multicast to a single MAC", with(udp, func(f *frame) { f.dst = netip.MustParseAddr("239.1.1.1") }), nil},
		{"broadcast", with(udp, func(f *frame) {
			f.dst, f.to = netip.MustParseAddr("10.77.0.255"), [6]byte{255, 255, 255, 255, 255, 255}
		}), nil},
		{"IPv4 options", with(udp, func(f *frame) { f.options = []byte{1, 1, 1, 1} }), nil},
		{"extension headers", with(with(tcp, six), func(f *frame) { f.extensions = []extension{{60, make([]byte, 7)}} }), nil},
		{"too little to quote", with(other, func(f *frame) { f.payload = 7 }), nil},
	}
	for _, test := range tests {
		for _, from := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/from %v", test.name, from), func(t *testing.T) {
				p.forget()
				f, ifindex := test.f, a.ifindex
				f.from = [6]byte(a.mac)
				if f.to == [6]byte{} {
					f.to = gatewayMAC(a)
				}
				if !from {
					ifindex = b.ifindex
					f.from = gatewayMAC(b)
					if f.to == gatewayMAC(a) {
						f.to = [6]byte(b.mac)
					}
				}
				returned, out := p.answered(from, ifindex, f.bytes())
				if test.want == nil {
					if returned != dropped {
						t.Errorf("program returned %d, want a silent refusal", int32(returned))
					}
					return
				}
				if returned != redirect {
					t.Fatalf("program returned %d, want an answer", int32(returned))
				}
				if wrong := test.want(f, readAnswer(t, f, out)); wrong != "" {
					t.Errorf("%s: % x", wrong, out)
				}
			})
		}
	}
	// Where scopes only observe, a packet to be rejected passes and is told.
	observed := rejecting(2, nil, a, b)
	observed.Groups = nil
	must(t, p.Apply(observed))
	p.run()
	tcp.from, tcp.to = [6]byte(a.mac), gatewayMAC(a)
	if got := p.judgedHere(true, a.ifindex, tcp.bytes()); got != next {
		t.Errorf("program returned %d where nobody enforces", int32(got))
	}
	p.await("what would be rejected", func(e bocage.FlowEvent) bool {
		return e.Verdict == bocage.VerdictAllow && e.Would == bocage.VerdictReject && e.Generation == 2
	})
}

// sockets are real ones: connect says "refused" at once, by TCP and by UDP, from
// behind a port and from before one, also where the hardware counts no checksums,
// and a live connection is reset when its permission goes.
func TestRootRejectIsHeard(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		attached func(a, b *workload) []*workload
		plain    bool // without offloads
	}{
		{"at the source", func(a, b *workload) []*workload { return []*workload{a, b} }, false},
		{"at the destination", func(a, b *workload) []*workload { return []*workload{b} }, false},
		{"at the source, without offloads", func(a, b *workload) []*workload { return []*workload{a, b} }, true},
		{"at the destination, without offloads", func(a, b *workload) []*workload { return []*workload{b} }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newPlane(t)
			a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
			p.attach(test.attached(a, b)...)
			if test.plain {
				must(t, host.DisableOffloads(p.namespace, a.link))
				must(t, host.DisableOffloads(p.namespace, b.link))
			}
			p.run()
			echo(t, b, b.v4, 80)
			echo(t, b, b.v6, 80)
			must(t, p.Apply(rejecting(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
			for _, to := range []netip.Addr{b.v4, b.v6} {
				live := mustDial(t, a, to, 80)
				must(t, ping(live, long))
				before := p.refusedAs(bocage.ReasonDefaultDeny)
				if _, err := dial(t, a, to, 81, long); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("TCP to %s: %v, want refused", to, err)
				}
				if err := datagram(a, to, 53); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("UDP to %s: %v, want refused", to, err)
				}
				if n := p.refusedAs(bocage.ReasonDefaultDeny) - before; n != 2 {
					t.Errorf("%d packets were refused until both were told, want the first of each", n)
				}
				e := p.await("the refusal", func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventRefused && e.DestinationPort == 81 })
				if e.Verdict != bocage.VerdictReject || e.Would != bocage.VerdictReject || e.Decision != decideReject {
					t.Errorf("event %+v", e)
				}
				p.await("the datagram's refusal", func(e bocage.FlowEvent) bool {
					return e.Verdict == bocage.VerdictReject && e.DestinationPort == 53 && e.Protocol == bocage.ProtocolUDP
				})
			}
			live := mustDial(t, a, b.v4, 80)
			must(t, ping(live, long))
			must(t, p.Apply(rejecting(2, nil, a, b)))
			if err := ping(live, long); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a live connection whose permission is gone: %v, want a reset", err)
			}
		})
	}
}

// A sender in full flow, whose packets are super-frames, is reset at once.
func TestRootRejectStopsBulk(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	echo(t, b, b.v4, 80)
	must(t, p.Apply(rejecting(1, []bocage.Rule{allowTCP(21, 22, 80)}, a, b)))
	c := mustDial(t, a, b.v4, 80)
	go func() { _, _ = io.Copy(io.Discard, c) }()
	stopped := make(chan error, 1)
	sent := new(atomic.Int64)
	go func() {
		chunk := make([]byte, 1<<20)
		for {
			n, err := c.Write(chunk)
			sent.Add(int64(n))
			if err != nil {
				stopped <- err
				return
			}
		}
	}()
	hosttest.Await(t, "bulk", func() bool { return sent.Load() > 64<<20 })
	start := time.Now()
	must(t, p.Apply(rejecting(2, nil, a, b)))
	select {
	case err := <-stopped:
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the sender is told %v, want a reset", err)
		}
		t.Logf("%d MiB sent, reset after %s", sent.Load()>>20, time.Since(start))
	case <-time.After(long):
		t.Error("the sender is not told")
	}
}

// datagram sends one by a connected socket and waits for the answer to it.
func datagram(w *workload, to netip.Addr, port uint16) error {
	return host.In(w.namespace, func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(to, port).String())
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("is anybody there?")); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(long)); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return err
	})
}

// What people scan and connect with sees closed ports where policy rejects and
// nothing where it drops, and the host's own processes are told, too.
func TestRootRejectByTools(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	echo(t, b, b.v4, 80)
	echo(t, b, b.v6, 80)
	rules := []bocage.Rule{allowTCP(21, 22, 80), allowTCP(21, 22, 82)}
	rules[1].Decision = decideDefault
	must(t, p.Apply(rejecting(1, rules, a, b)))
	tools := []struct {
		name, command string
		want          []string
	}{
		{"nmap", fmt.Sprintf("nmap -Pn -n -sS --max-retries 1 --host-timeout 60s -p 80,81,82 %s", b.v4), []string{"80/tcp open", "81/tcp closed", "82/tcp filtered"}},
		{"nmap by IPv6", fmt.Sprintf("nmap -6 -Pn -n -sT --max-retries 1 --host-timeout 60s -p 80,81,82 %s", b.v6), []string{"80/tcp open", "81/tcp closed", "82/tcp filtered"}},
		{"nmap by UDP", fmt.Sprintf("nmap -Pn -n -sU --max-retries 1 --host-timeout 60s -p 53 %s", b.v4), []string{"53/udp closed"}},
		{"nmap by SCTP", fmt.Sprintf("nmap -Pn -n -sY --max-retries 1 --host-timeout 60s -p 99 --reason %s", b.v4), []string{"99/sctp filtered", "admin-prohibited"}},
		{"nc", fmt.Sprintf("nc -v -n -w 60 %s 81", b.v4), []string{"refused"}},
		{"nc by UDP", fmt.Sprintf("nc -v -n -u -w 60 %s 53", b.v4), []string{"refused"}},
		{"nc by IPv6 and UDP", fmt.Sprintf("nc -v -n -6 -u -w 60 %s 53", b.v6), []string{"refused"}},
	}
	for _, tool := range tools {
		t.Run(tool.name, func(t *testing.T) {
			out := said(t, a.namespace, tool.command)
			fields := strings.Join(strings.Fields(out), " ")
			for _, want := range tool.want {
				if !strings.Contains(fields, want) {
					t.Errorf("%s: %s, want %q", tool.command, out, want)
				}
			}
		})
	}
	// From the host itself: on the way to the workload.
	var d net.Dialer
	for _, to := range []netip.Addr{b.v4, b.v6} {
		must(t, host.AddAddress(p.namespace, "lo", netip.MustParsePrefix("10.78.0.1/32")))
		must(t, host.AddAddress(p.namespace, "lo", netip.MustParsePrefix("fd78::1/128")))
		p.in(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), long)
			defer cancel()
			_, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, 81).String())
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("the host's own connection to %s: %v, want refused", to, err)
			}
			return nil
		})
	}
}

// said runs a command in a namespace; its exit status does not count.
func said(t *testing.T, namespace, command string) string {
	t.Helper()
	var out bytes.Buffer
	words := strings.Fields(command)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Stdin = &out, &out, strings.NewReader("hello\nhello again\n")
	must(t, host.Start(namespace, cmd))
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String()
}

// A point answers so many refusals a second, and refuses the rest in silence and
// counted.
func TestRootRejectIsBounded(t *testing.T) {
	t.Parallel()
	p := newPlane(t, func(c *Config) { c.AnswersPerSecond = 10 })
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	must(t, p.Apply(rejecting(1, nil, a, b)))
	f := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 5000, dport: 80, tcpFlags: syn}
	var answers, silence uint64
	start := time.Now()
	for range 500 {
		f.sport++
		if got := p.judgedHere(true, a.ifindex, f.bytes()); got == redirect {
			answers++
		} else {
			silence++
		}
	}
	most := 12 + uint64(10*time.Since(start).Seconds()+1)
	if answers < 10 || answers > most {
		t.Errorf("%d answers, want a second's worth, 10, and at most %d", answers, most)
	}
	c, err := p.Counters()
	must(t, err)
	if c.Unanswered != silence || c.Refused[bocage.ReasonDefaultDeny].Packets != 500 {
		t.Errorf("counted %d unanswered of %d refused, want %d of 500", c.Unanswered, c.Refused[bocage.ReasonDefaultDeny].Packets, silence)
	}
	back := frame{from: gatewayMAC(b), to: [6]byte(b.mac), source: a.v4, dst: b.v4, protocol: bocage.ProtocolTCP, sport: 1, dport: 80, tcpFlags: syn}
	if got := p.judgedHere(false, b.ifindex, back.bytes()); got != redirect {
		t.Error("another port has no share of its own")
	}
}
