package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/speech"
	"bocage.dev/bocage/dataplane/speech/speechtest"
	"bocage.dev/bocage/host"
)

// moment is what something refused is waited for; a retransmission is in it.
const moment = 120 * time.Millisecond

// decideVerify is the first of the decisions that allow what speaks a protocol:
// the protocol's number is added.
const decideVerify = bocage.DecisionID(1000)

// verifying is a ruleset in which port 1000+p of TCP and UDP must speak protocol p,
// and ports from 3000 on what others say. Where nobody enforces, scopes observe.
func verifying(generation uint64, enforce bool, from, to *workload, others ...bocage.AppProtocol) *bocage.Ruleset {
	rs := ruleset(generation, nil, from, to)
	for i, p := range others {
		for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP} {
			rs.Rules = append(rs.Rules, bocage.Rule{From: from.port.Group, To: to.port.Group, Protocol: protocol,
				Ports: bocage.PortRange{First: 3000 + uint16(i), Last: 3000 + uint16(i)}, Decision: decideVerify + bocage.DecisionID(p)})
		}
	}
	for p := bocage.SpeechTLS; p <= bocage.SpeechRedis; p++ {
		rs.Decisions = append(rs.Decisions, bocage.Decision{ID: decideVerify + bocage.DecisionID(p), Verdict: bocage.VerdictAllow,
			Code: bocage.ReasonRule, Duties: &bocage.Duties{Verify: p.String()}})
		port := bocage.PortRange{First: 1000 + uint16(p), Last: 1000 + uint16(p)}
		for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP} {
			rs.Rules = append(rs.Rules, bocage.Rule{From: from.port.Group, To: to.port.Group, Protocol: protocol, Ports: port,
				Decision: decideVerify + bocage.DecisionID(p)})
		}
	}
	for _, protocol := range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP} {
		rs.Rules = append(rs.Rules, bocage.Rule{From: from.port.Group, To: to.port.Group, Protocol: protocol,
			Ports: bocage.PortRange{First: 999, Last: 999}, Decision: decideAllow})
	}
	slices.SortFunc(rs.Rules, bocage.CompareRules)
	for i := range rs.Groups {
		rs.Groups[i].Enforce = enforce
	}
	return rs
}

func portOf(p bocage.AppProtocol) uint16 { return 1000 + uint16(p) }

// script is a conversation over a stream: who says what, in order.
type script []line

type line struct {
	server bool
	bytes  []byte
}

// scriptOf plays a capture as it was: MySQL's and SSH's servers speak first.
func scriptOf(c speechtest.Capture) script {
	asks, answers := line{false, c.Asks}, line{true, c.Answers}
	if len(c.Answers) < 2 {
		return script{asks} // or agrees to encrypt, and what follows is not recorded
	}
	if c.Protocol == bocage.SpeechMySQL || c.Protocol == bocage.SpeechSSH {
		return script{answers, asks}
	}
	return script{asks, answers}
}

// everyLine is more lines than a script has.
const everyLine = 1000

// play has two programs say a script to each other, in pieces of some size, 0 for
// all at once; then who has spoken says "done". So many lines are waited for until they
// come, and the others for a moment. It returns what of all this went through.
func play(t testing.TB, from, to *workload, address netip.Addr, port uint16, lines script, piece, pass int) (asked, answered []byte, whole bool) {
	t.Helper()
	for _, spoken := range lines[:min(2, len(lines))] {
		lines = append(slices.Clone(lines), line{spoken.server, []byte("done")})
	}
	at := netip.AddrPortFrom(address, port).String()
	l := freed(t, to, func() (net.Listener, error) { return net.Listen("tcp", at) })
	defer l.Close()
	type result struct {
		heard []byte
		err   error
	}
	served := make(chan result, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- result{err: err}
			return
		}
		defer c.Close()
		heard, err := converse(c, lines, true, piece, pass)
		served <- result{heard, err}
	}()
	c, err := dial(t, from, address, port, long)
	if err != nil {
		t.Fatalf("connect to port %d: %v", port, err)
	}
	answered, err = converse(c, lines, false, piece, pass)
	c.Close()
	other := <-served
	return other.heard, answered, err == nil && other.err == nil
}

// converse plays one side of a script and returns what it heard.
func converse(c net.Conn, lines script, server bool, piece, pass int) (heard []byte, err error) {
	for i, line := range lines {
		wait := long
		if i >= pass {
			wait = moment
		}
		if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
			return heard, err
		}
		if line.server == server {
			for rest, sent := line.bytes, 1; len(rest) > 0; sent++ {
				n := len(rest)
				if piece > 0 {
					n = min(piece, n)
				}
				if _, err := c.Write(rest[:n]); err != nil {
					return heard, err
				}
				rest = rest[n:]
				if sent%100 == 0 { // before what is known counts, at most 256 segments pass
					if err := acknowledged(c.(*net.TCPConn), wait); err != nil {
						return heard, err
					}
				}
			}
			continue
		}
		b := make([]byte, len(line.bytes))
		n, err := io.ReadFull(c, b)
		if heard = append(heard, b[:n]...); err != nil {
			return heard, err
		}
		if !bytes.Equal(b, line.bytes) {
			return heard, errors.New("heard something else")
		}
	}
	return heard, nil
}

// acknowledged waits until the other end has all that was sent.
func acknowledged(c *net.TCPConn, wait time.Duration) (failed error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	late, tick := time.After(wait), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		unsent := 0
		if err := raw.Control(func(fd uintptr) { unsent, failed = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil {
			return err
		}
		if failed != nil || unsent == 0 {
			return failed
		}
		select {
		case <-tick.C:
		case <-late:
			return os.ErrDeadlineExceeded
		}
	}
}

// exchange sends a datagram and, if it comes in time, waits for an answer.
func exchange(t testing.TB, from, to *workload, address netip.Addr, port uint16, asks, answers []byte, there, back time.Duration) (asked, answered bool) {
	t.Helper()
	at := netip.AddrPortFrom(address, port).String()
	server := freed(t, to, func() (net.PacketConn, error) { return net.ListenPacket("udp", at) })
	defer server.Close()
	var client net.Conn
	must(t, host.In(from.namespace, func() (err error) {
		client, err = net.Dial("udp", at)
		return err
	}))
	defer client.Close()
	must(t, server.SetDeadline(time.Now().Add(there)))
	if _, err := client.Write(asks); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, peer, err := server.ReadFrom(b)
	if asked = err == nil && bytes.Equal(b[:n], asks); !asked || len(answers) == 0 {
		return asked, false
	}
	if _, err := server.WriteTo(answers, peer); err != nil {
		t.Fatal(err)
	}
	must(t, client.SetDeadline(time.Now().Add(back)))
	n, err = client.Read(b)
	return true, err == nil && bytes.Equal(b[:n], answers)
}

// a protocol whose readings have nothing to do with that of another.
func another(p bocage.AppProtocol) bocage.AppProtocol {
	if p == bocage.SpeechSSH {
		return bocage.SpeechTLS
	}
	return bocage.SpeechSSH
}

func wrong(all []speechtest.Capture) (protocols []bocage.AppProtocol) {
	for _, c := range all {
		protocols = append(protocols, another(c.Protocol))
	}
	return protocols
}

// Every capture passes where its protocol must be spoken, whole, and where nothing
// need be; where another must be it is refused, by a decision that says so.
func TestRootVerifyStreams(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	must(t, p.Apply(verifying(1, true, a, b, wrong(captures(t))...)))
	for i, c := range captures(t) {
		if c.Datagram {
			continue
		}
		address := []netip.Addr{b.v4, b.v6}[len(c.Program)%2]
		for _, port := range []uint16{portOf(c.Protocol), 999} {
			if _, _, whole := play(t, a, b, address, port, scriptOf(c), 0, everyLine); !whole {
				t.Errorf("%s of %s did not pass through port %d", c.Protocol, c.Program, port)
			}
		}
		wrong, port := another(c.Protocol), 3000+uint16(i)
		asked, answered, whole := play(t, a, b, address, port, scriptOf(c), 0, 0)
		if whole || len(asked) > 0 || len(answered) > 0 {
			t.Errorf("%s of %s passed where %s must be spoken: %q, %q", c.Protocol, c.Program, wrong, asked, answered)
		}
		e := p.await("a refusal of "+c.Program, func(e bocage.FlowEvent) bool {
			return e.Kind == bocage.EventRefused && e.DestinationPort == port
		})
		if e.Reason != bocage.ReasonProtocolMismatch || e.Decision != decideVerify+bocage.DecisionID(wrong) || e.Spoken != c.Protocol ||
			e.Verdict != bocage.VerdictDrop || e.Would != bocage.VerdictDrop || e.Source != 101 || e.Destination != 102 {
			t.Errorf("%s of %s was told of as %+v", c.Protocol, c.Program, e)
		}
	}
}

func TestRootVerifyDatagrams(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	all := captures(t)
	right := []bocage.AppProtocol{}
	for _, c := range all {
		right = append(right, c.Protocol)
	}
	must(t, p.Apply(verifying(1, true, a, b, right...)))
	for i, c := range all {
		if !c.Datagram {
			continue
		}
		answers := c.Answers
		if len(answers) == 0 && c.Protocol == bocage.SpeechDNS {
			answers = slices.Clone(c.Asks)
			answers[2] |= 0x80
		}
		for _, port := range []uint16{portOf(c.Protocol), 999} {
			asked, answered := exchange(t, a, b, b.v4, port, c.Asks, answers, long, long)
			if !asked || len(answers) > 0 && !answered {
				t.Errorf("%s of %s through port %d: asked %v, answered %v", c.Protocol, c.Program, port, asked, answered)
			}
		}
		if asked, _ := exchange(t, a, b, b.v4, portOf(bocage.SpeechSSH), c.Asks, nil, moment, moment); asked {
			t.Errorf("%s of %s passed where ssh must be spoken", c.Protocol, c.Program)
		}
		e := p.await("a refusal of "+c.Program, func(e bocage.FlowEvent) bool { return e.Kind == bocage.EventRefused })
		if e.Reason != bocage.ReasonProtocolMismatch || e.Spoken != c.Protocol {
			t.Errorf("%s of %s was told of as %+v", c.Protocol, c.Program, e)
		}
		// A server that answers something else is cut as well. On a port of its own:
		// another socket of the client may have the port of the one before.
		port := 3000 + uint16(i)
		if asked, answered := exchange(t, a, b, b.v4, port, c.Asks, []byte("something else altogether"), long, moment); !asked || answered {
			t.Errorf("%s of %s: asked %v, and something else answered %v", c.Protocol, c.Program, asked, answered)
		}
		p.await("a refusal of an answer", func(e bocage.FlowEvent) bool {
			return e.Kind == bocage.EventRefused && e.Reason == bocage.ReasonProtocolMismatch && e.DestinationPort == port
		})
	}
}

// Whatever the sizes of segments are, the answer is the same; what passes before it
// is known is less than a window.
func TestRootVerifyPieces(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	must(t, p.Apply(verifying(1, true, a, b)))
	seen := map[bocage.AppProtocol]bool{}
	for _, c := range captures(t) {
		if c.Datagram || seen[c.Protocol] || len(c.Answers) < 2 {
			continue
		}
		seen[c.Protocol] = true
		for _, piece := range []int{1, 3, 7} {
			if _, _, whole := play(t, a, b, b.v4, portOf(c.Protocol), scriptOf(c), piece, everyLine); !whole {
				t.Errorf("%s of %s in pieces of %d did not pass", c.Protocol, c.Program, piece)
			}
		}
		asked, answered, whole := play(t, a, b, b.v4, portOf(another(c.Protocol)), scriptOf(c), 1, 0)
		if whole || len(asked) >= speech.Window || len(answered) >= speech.Window {
			t.Errorf("%s of %s in pieces of 1 passed %d and %d bytes", c.Protocol, c.Program, len(asked), len(answered))
		}
	}
	// All at once, with a request behind it that needs super-frames.
	big := script{{false, append([]byte("POST / HTTP/1.1\r\nHost: b\r\n\r\n"), make([]byte, 1<<20)...)}, {true, []byte("HTTP/1.1 200 OK\r\n\r\n")}}
	if _, _, whole := play(t, a, b, b.v4, portOf(bocage.SpeechHTTP), big, 0, everyLine); !whole {
		t.Error("a large request did not pass")
	}
	if asked, _, _ := play(t, a, b, b.v4, portOf(bocage.SpeechRedis), big, 0, 0); len(asked) > 0 {
		t.Errorf("%d bytes of a large request passed", len(asked))
	}
}

// The server's bytes count by themselves: a client that speaks as it must, to a
// server that does not.
func TestRootVerifyAnswers(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	must(t, p.Apply(verifying(1, true, a, b)))
	for _, c := range captures(t) {
		if c.Datagram {
			continue
		}
		lie := script{{false, c.Asks}, {true, []byte("\x7fwhatever this is, nobody asked for it")}}
		asked, answered, _ := play(t, a, b, b.v4, portOf(c.Protocol), lie, 0, 1)
		if !bytes.Equal(asked, c.Asks) || len(answered) > 0 {
			t.Errorf("%s of %s: %d of %d bytes asked, %q answered", c.Protocol, c.Program, len(asked), len(c.Asks), answered)
		}
		p.await("a refusal of an answer", func(e bocage.FlowEvent) bool {
			return e.Kind == bocage.EventRefused && e.Reason == bocage.ReasonProtocolMismatch && e.DestinationPort == portOf(c.Protocol) &&
				e.Spoken == bocage.SpeechOther
		})
	}
}

// Where scopes observe, nothing is refused, and what would be is told.
func TestRootVerifyObserved(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	must(t, p.Apply(verifying(1, false, a, b)))
	http := script{{false, []byte("GET / HTTP/1.1\r\nHost: b\r\n\r\n")}, {true, []byte("HTTP/1.1 200 OK\r\n\r\n")}}
	if _, _, whole := play(t, a, b, b.v4, portOf(bocage.SpeechTLS), http, 0, everyLine); !whole {
		t.Fatal("refused where nobody enforces")
	}
	p.await("what would be refused", func(e bocage.FlowEvent) bool {
		return e.Kind == bocage.EventRefused && e.Reason == bocage.ReasonProtocolMismatch && e.Verdict == bocage.VerdictAllow &&
			e.Would == bocage.VerdictDrop && e.Spoken == bocage.SpeechHTTP && e.Decision == decideVerify+bocage.DecisionID(bocage.SpeechTLS)
	})
	// And what nothing declares is told of with what it speaks.
	if _, _, whole := play(t, a, b, b.v4, 500, http, 0, everyLine); !whole {
		t.Fatal("refused where nobody enforces")
	}
	p.in(func() error { _, err := p.endFlows(a.ifindex, 0); return err })
	p.await("an end with what was spoken", func(e bocage.FlowEvent) bool {
		return e.Kind == bocage.EventEnd && e.DestinationPort == 500 && e.Spoken == bocage.SpeechHTTP
	})
}

// A flow that was cut stays cut, goes on once policy lets it speak what it speaks,
// and a flow that lives is cut once policy wants something else of it.
func TestRootVerifyNewGeneration(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	must(t, p.Apply(verifying(1, true, a, b)))
	echo(t, b, b.v4, portOf(bocage.SpeechSSH))
	c := mustDial(t, a, b.v4, portOf(bocage.SpeechSSH))
	say := func(text string, wait time.Duration) error {
		must(t, c.SetDeadline(time.Now().Add(wait)))
		if _, err := io.WriteString(c, text); err != nil {
			return err
		}
		b := make([]byte, len(text))
		_, err := io.ReadFull(c, b)
		return err
	}
	must(t, say("SSH-2.0-echo\r\n", long))
	must(t, say("anything", long))
	now := verifying(2, true, a, b)
	for i, d := range now.Decisions {
		if d.ID == decideVerify+bocage.DecisionID(bocage.SpeechSSH) {
			now.Decisions[i].Duties = &bocage.Duties{Verify: "tls"}
		}
	}
	must(t, p.Apply(now))
	if err := say("more", moment); !isTimeout(err) {
		t.Fatalf("goes on, or otherwise: %v", err)
	}
	p.await("a refusal", func(e bocage.FlowEvent) bool {
		return e.Kind == bocage.EventRefused && e.Reason == bocage.ReasonProtocolMismatch && e.Spoken == bocage.SpeechSSH
	})
	must(t, p.Apply(verifying(3, true, a, b)))
	must(t, c.SetDeadline(time.Now().Add(long)))
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatalf("does not go on: %v", err)
	}
}

// Two protocols at once, and a transport that nobody can read, refuse everything.
func TestRootVerifyContradiction(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.run()
	rs := verifying(1, true, a, b)
	for i := range rs.Decisions {
		if d := rs.Decisions[i].Duties; d != nil {
			rs.Decisions[i].Duties = &bocage.Duties{Verify: "http+" + d.Verify}
		}
	}
	rs.Rules = append(rs.Rules, bocage.Rule{From: 21, To: 22, Protocol: bocage.ProtocolICMP, Ports: bocage.AllPorts, Decision: decideVerify + 1},
		bocage.Rule{From: 21, To: 22, Protocol: 47, Ports: bocage.AllPorts, Decision: decideVerify + 1})
	slices.SortFunc(rs.Rules, bocage.CompareRules)
	must(t, p.Apply(rs))
	for _, c := range captures(t) {
		if !c.Datagram && c.Protocol != bocage.SpeechHTTP {
			if asked, answered, whole := play(t, a, b, b.v4, portOf(c.Protocol), scriptOf(c), 0, 0); whole || len(asked)+len(answered) > 0 {
				t.Errorf("%s passed though it must be http too", c.Protocol)
			}
			break
		}
	}
	must(t, host.In(a.namespace, func() error {
		gre, err := net.Dial("ip4:47", b.v4.String())
		if err != nil {
			return err
		}
		defer gre.Close()
		_, err = gre.Write([]byte{0, 0, 8, 0})
		return err
	}))
	p.await("a refusal of GRE", func(e bocage.FlowEvent) bool {
		return e.Kind == bocage.EventRefused && e.Protocol == 47 && e.Reason == bocage.ReasonProtocolMismatch
	})
	must(t, host.In(a.namespace, func() error {
		icmp, err := (&net.Dialer{}).DialContext(context.Background(), "ip4:1", b.v4.String())
		if err != nil {
			return err
		}
		defer icmp.Close()
		_, err = icmp.Write([]byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1})
		if err != nil {
			return err
		}
		must(t, icmp.SetDeadline(time.Now().Add(long)))
		if _, err := icmp.Read(make([]byte, 64)); err != nil {
			return fmt.Errorf("ICMP, which speaks for others: %w", err)
		}
		return nil
	}))
}
