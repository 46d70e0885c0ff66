package dataplane

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/bpf"
	"bocage.dev/bocage/host"
)

// piece is a part of a packet between two workloads.
type slice struct {
	from, to     *workload
	six          bool
	protocol     bocage.Protocol
	sport, dport uint16
	id           uint32
	offset       int
	length       int // of what is behind the IP header
	more         bool
	flags        byte // of TCP
	next         byte // of IPv6: what the fragment header says follows; 0: the protocol
}

func (c slice) addresses() (netip.Addr, netip.Addr) {
	if c.six {
		return c.from.v6, c.to.v6
	}
	return c.from.v4, c.to.v4
}

func (c slice) bytes() []byte {
	f := frame{from: [6]byte(c.from.mac), to: gatewayMAC(c.from), protocol: c.protocol, sport: c.sport, dport: c.dport, tcpFlags: c.flags}
	f.source, f.dst = c.addresses()
	if f.icmpType = 8; c.six {
		f.icmpType = 128
		if c.next != 0 {
			f.protocol = bocage.Protocol(c.next)
		}
	}
	size := 8192
	if !c.more {
		size = max(0, c.length-8)
	}
	head := frame{protocol: c.protocol, sport: c.sport, dport: c.dport, tcpFlags: c.flags, icmpType: f.icmpType, payload: size}.transport()
	f.body = make([]byte, c.length)
	if c.offset == 0 {
		copy(f.body, head)
	}
	if c.six {
		place := uint16(c.offset)
		if c.more {
			place |= 1
		}
		f.extensions = []extension{{44, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{0}, place), c.id)}}
		return f.bytes()
	}
	f.id, f.fragment = uint16(c.id), uint16(c.offset/8)
	if c.more {
		f.fragment |= 0x2000
	}
	return f.bytes()
}

// model is the piece as the model has it.
func (c slice) model(at time.Time) bocage.Piece {
	source, destination := c.addresses()
	flow := bocage.Flow{Source: source, Destination: destination, Protocol: c.protocol, At: at}
	if c.protocol.HasPorts() {
		flow.SourcePort, flow.DestinationPort = c.sport, c.dport
	}
	return bocage.Piece{Flow: flow, ID: c.id, Offset: c.offset, Length: c.length, More: c.more}
}

// decideWhole is a decision that owes whole packets.
const decideWhole = bocage.DecisionID(31)

// inPieces lets TCP to 80 and UDP pass in any form, and UDP to the third workload in
// whole packets only.
func inPieces(generation uint64, a, b, c *workload) *bocage.Ruleset {
	icmp := func(from, to bocage.Group, protocol bocage.Protocol) bocage.Rule {
		return bocage.Rule{From: from, To: to, Protocol: protocol, Ports: bocage.AllPorts, Decision: decideAllow}
	}
	whole := allowUDP(21, 23)
	whole.Decision = decideWhole
	rs := ruleset(generation, []bocage.Rule{allowTCP(21, 22, 80), allowUDPPort(21, 22, 9000), allowUDPPort(22, 21, 9000), whole,
		icmp(21, 22, bocage.ProtocolICMP), icmp(21, 22, bocage.ProtocolICMPv6)}, a, b, c)
	slices.SortFunc(rs.Rules, bocage.CompareRules)
	rs.Decisions = append(rs.Decisions, bocage.Decision{ID: decideWhole, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule,
		Duties: &bocage.Duties{Whole: true}})
	return rs
}

// countsNow tells how many packets were passed and refused, by reason.
func (p *plane) countsNow() (passed, refused map[bocage.ReasonCode]uint64) {
	p.t.Helper()
	counters, err := p.Counters()
	must(p.t, err)
	passed, refused = map[bocage.ReasonCode]uint64{}, map[bocage.ReasonCode]uint64{}
	for reason, n := range counters.Passed {
		passed[reason] = n.Packets
	}
	for reason, n := range counters.Refused {
		refused[reason] = n.Packets
	}
	return passed, refused
}

// said runs a piece through the programs, and says what was counted of it.
func (p *plane) said(c slice) (uint32, bocage.ReasonCode) {
	p.t.Helper()
	passed, refused := p.countsNow()
	returned := p.judgedHere(true, c.from.ifindex, c.bytes())
	nowPassed, nowRefused := p.countsNow()
	for _, pair := range [2][2]map[bocage.ReasonCode]uint64{{passed, nowPassed}, {refused, nowRefused}} {
		for reason, n := range pair[1] {
			if n != pair[0][reason] {
				return returned, reason
			}
		}
	}
	p.t.Fatalf("%+v was not counted", c)
	return 0, 0
}

// silence keeps links from saying anything of their own.
func (p *plane) silence(ws ...*workload) {
	p.t.Helper()
	for _, w := range ws {
		p.in(func() error { return exec.Command("ip", "link", "set", w.link, "down").Run() })
	}
}

// The programs follow pieces as the model does: in any order and size, over each other
// and with ids used again, in both families and directions, under policies that refuse
// some flows, and some only in pieces; also when nobody waits for the rest any more.
func TestRootPiecesAreTheModels(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
	p.attach(a, b, c)
	p.silence(a, b, c)
	r := newRandom(t)
	rs := inPieces(1, a, b, c)
	must(t, p.Apply(rs))
	model := &bocage.Pieces{}
	at := time.Unix(1000, 0)
	seen := map[string]int{}
	for n := range 4000 {
		switch r.IntN(400) {
		case 0: // nobody waits any more
			at = at.Add(61 * time.Second)
			p.expirePieces()
		case 1: // what is merely observed, and enforced again
			rs = rs.Copy()
			rs.Generation++
			rs.Groups = slices.Clone(rs.Groups)
			enforce := !rs.Groups[0].Enforce
			for i := range rs.Groups {
				rs.Groups[i].Enforce = enforce
			}
			must(t, p.Apply(rs))
		}
		c := randomPiece(r, a, b, c)
		verdict, reason := model.Decide(rs, c.model(at))
		returned, said := p.said(c)
		p.holdPieces()
		want := uint32(next)
		if !verdict.Allowed() {
			want = dropped
		}
		code := reason.Code
		if verdict.Allowed() && code == bocage.ReasonFragmented && c.offset == 0 {
			code = bocage.ReasonRule // told beside, and passed by its rule
		}
		if returned != want || said != code {
			t.Fatalf("piece %d: %+v\nkernel %d, %s\nmodel  %s, %+v", n, c, int32(returned), said, verdict, reason)
		}
		seen[fmt.Sprint(verdict, " ", reason.Code)]++
	}
	t.Log(seen)
	for _, kind := range []string{"allow rule", "drop fragment", "drop fragmented", "drop default-deny", "allow fragment"} {
		if seen[kind] < 20 {
			t.Errorf("%s: too few", kind)
		}
	}
}

// randomPiece draws from few packets, so that pieces meet.
func randomPiece(r *rand.Rand, a, b, c *workload) slice {
	x := slice{from: a, to: b, six: r.IntN(2) == 0, id: uint32(r.IntN(3)), sport: 5000, flags: syn}
	switch r.IntN(5) {
	case 0:
		x.from, x.to = b, a
	case 1:
		x.to = c
	}
	x.protocol = pick(r, []bocage.Protocol{bocage.ProtocolUDP, bocage.ProtocolUDP, bocage.ProtocolTCP, bocage.ProtocolICMP})
	if x.protocol == bocage.ProtocolICMP && x.six {
		x.protocol = bocage.ProtocolICMPv6
	}
	switch x.protocol {
	case bocage.ProtocolTCP:
		x.dport = pick(r, []uint16{80, 80, 81})
	case bocage.ProtocolUDP:
		x.dport = pick(r, []uint16{9000, 9000, 9001})
	}
	x.offset, x.length, x.more = 8*r.IntN(8), 8*(1+r.IntN(3)), r.IntN(4) > 0
	if r.IntN(3) == 0 {
		x.offset = 0
	}
	if x.offset == 0 { // the header is whole, or the packet is malformed
		x.length, x.more = max(x.length, 24), true
	}
	if x.offset == 8 && x.protocol == bocage.ProtocolTCP && !x.six {
		x.offset = 16 // malformed by itself (RFC 3128)
	}
	if !x.more {
		x.length -= r.IntN(7)
	}
	return x
}

// holdPieces has whoever waits wait until expirePieces, however slow the machine is: the
// programs go by the real clock, and the model by the test's.
func (p *plane) holdPieces() {
	p.t.Helper()
	changeRows(p.t, p.objects.Fragments, func(_ bpf.KernelFragmentKey, row *bpf.KernelFragment) bool {
		waits := row.Until > 1 && row.Until < math.MaxUint32
		if waits {
			row.Until = math.MaxUint32
		}
		return waits
	})
}

// expirePieces has nobody wait any more.
func (p *plane) expirePieces() {
	p.t.Helper()
	changeRows(p.t, p.objects.Fragments, func(_ bpf.KernelFragmentKey, row *bpf.KernelFragment) bool {
		row.Until = 1
		return true
	})
}

// Attacks by pieces, one after another, each on packets of its own.
func TestRootPiecesThatAttack(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
	p.attach(a, b, c)
	p.silence(a, b, c)
	must(t, p.Apply(inPieces(1, a, b, c)))
	const (
		rule       = bocage.ReasonRule
		fragment   = bocage.ReasonFragment
		fragmented = bocage.ReasonFragmented
		malformed  = bocage.ReasonMalformed
		denied     = bocage.ReasonDefaultDeny
	)
	udp := func(offset, length int, more bool) slice {
		return slice{from: a, to: b, protocol: bocage.ProtocolUDP, sport: 5000, dport: 9000, offset: offset, length: length, more: more}
	}
	tcp := func(offset, length int, more bool) slice {
		return slice{from: a, to: b, protocol: bocage.ProtocolTCP, sport: 5000, dport: 80, flags: syn, offset: offset, length: length, more: more}
	}
	with := func(c slice, change func(*slice)) slice { change(&c); return c }
	type step struct {
		piece slice
		says  bocage.ReasonCode
	}
	id := uint32(100)
	for name, steps := range map[string][]step{
		"in order":                          {{udp(0, 800, true), rule}, {udp(800, 800, true), rule}, {udp(1600, 100, false), rule}},
		"a later piece before the first":    {{udp(800, 800, false), fragment}, {udp(0, 800, true), rule}, {udp(800, 800, false), rule}},
		"the last before the middle":        {{udp(0, 800, true), rule}, {udp(1600, 100, false), rule}, {udp(800, 800, true), rule}},
		"backwards behind the first":        {{udp(0, 8, true), rule}, {udp(24, 8, true), rule}, {udp(16, 8, true), rule}, {udp(8, 8, true), rule}},
		"two stretches missing":             {{udp(0, 8, true), rule}, {udp(16, 8, true), rule}, {udp(32, 8, true), fragment}, {udp(8, 8, true), rule}},
		"a first piece that is refused":     {{with(udp(0, 800, true), func(c *slice) { c.dport = 9001 }), denied}, {udp(800, 800, false), fragment}},
		"teardrop":                          {{udp(0, 40, true), rule}, {udp(24, 8, false), fragment}},
		"over the header":                   {{tcp(0, 24, true), rule}, {tcp(16, 8, true), fragment}, {tcp(24, 8, false), rule}},
		"over the flags":                    {{tcp(0, 24, true), rule}, {tcp(8, 16, true), malformed}},
		"a piece of a piece again":          {{udp(0, 80, true), rule}, {udp(80, 80, true), rule}, {udp(80, 80, true), fragment}, {udp(88, 8, true), fragment}},
		"half over the next":                {{udp(0, 80, true), rule}, {udp(160, 80, true), rule}, {udp(120, 80, true), fragment}, {udp(80, 80, true), rule}},
		"beyond the end":                    {{udp(0, 80, true), rule}, {udp(80, 8, false), rule}, {udp(88, 8, true), fragment}, {udp(96, 8, false), fragment}},
		"an end before what was seen":       {{udp(0, 80, true), rule}, {udp(160, 80, true), rule}, {udp(80, 80, false), fragment}},
		"a tiny first piece":                {{tcp(0, 8, true), malformed}, {tcp(8, 16, false), malformed}, {tcp(16, 16, false), fragment}},
		"a first piece short of its header": {{tcp(0, 16, true), malformed}, {tcp(16, 16, false), fragment}},
		"ids used again":                    {{udp(0, 80, true), rule}, {udp(80, 80, false), rule}, {udp(0, 80, true), rule}, {udp(80, 80, false), rule}},
		"the first piece twice":             {{udp(0, 80, true), rule}, {udp(0, 80, true), rule}, {udp(80, 80, false), rule}},
		"another first piece":               {{tcp(0, 24, true), rule}, {with(tcp(0, 24, true), func(c *slice) { c.sport++ }), fragment}, {tcp(24, 8, false), rule}},
		"a first piece late":                {{udp(0, 80, true), rule}, {udp(80, 80, true), rule}, {udp(0, 80, true), fragment}},
		"a longer first piece":              {{udp(0, 80, true), rule}, {udp(0, 160, true), fragment}},
		"in whole packets only": {{with(udp(0, 80, true), func(x *slice) { x.to = c }), fragmented},
			{with(udp(80, 80, true), func(x *slice) { x.to = c }), fragmented}, {with(udp(160, 80, false), func(x *slice) { x.to = c }), fragmented}},
	} {
		for _, six := range []bool{false, true} {
			id++
			for i, s := range steps {
				s.piece.id, s.piece.six = id, six
				want := s.says
				if six && name == "over the flags" && i == 1 {
					want = fragment // not known by its place alone: what was seen says it
				}
				if six && name == "a tiny first piece" && i == 1 {
					want = fragment
				}
				returned, said := p.said(s.piece)
				if passes := want == rule; said != want || (returned == next) != passes {
					t.Errorf("%s (IPv6 %v), piece %d: %s, %d, want %s", name, six, i+1, said, int32(returned), want)
				}
			}
		}
	}

	// IPv6: what follows is what the first piece says, whatever later ones do; and one
	// packet's pieces are not another protocol's.
	begin := with(udp(0, 8, true), func(c *slice) { c.six, c.id = true, 7 })
	for i, s := range []step{{begin, rule},
		{with(begin, func(c *slice) { c.protocol, c.dport, c.length, c.flags = bocage.ProtocolTCP, 80, 24, syn }), fragment},
		{with(begin, func(c *slice) { c.offset, c.next = 8, byte(bocage.ProtocolTCP) }), rule},
		{with(begin, func(c *slice) { c.offset, c.next = 8, byte(bocage.ProtocolUDP) }), fragment}} {
		if _, said := p.said(s.piece); said != s.says {
			t.Errorf("IPv6 with another next header, piece %d: %s, want %s", i+1, said, s.says)
		}
	}
	// A chain of headers that does not end in the first piece (RFC 7112).
	chain := with(udp(0, 8, true), func(c *slice) { c.six, c.id, c.next = true, 8, 60 })
	raw := chain.bytes()
	raw[14+40+8] = 17 // the options' next header; its length says 8 bytes, and nothing follows
	if got := p.judgedHere(true, a.ifindex, raw); got != dropped {
		t.Errorf("a chain that goes on in the next piece: %d", int32(got))
	}
	// Atomic fragments are whole packets (RFC 6946), judged by their header, and pass
	// where whole packets are asked for.
	atomic := with(udp(0, 64, false), func(c *slice) { c.six, c.id = true, 9 })
	for want, x := range map[bocage.ReasonCode]slice{rule: atomic, denied: with(atomic, func(c *slice) { c.dport = 9001 })} {
		if _, said := p.said(x); said != want {
			t.Errorf("an atomic fragment: %s, want %s", said, want)
		}
	}
	if returned, said := p.said(with(atomic, func(x *slice) { x.to = c })); returned != next || said != rule {
		t.Errorf("an atomic fragment where packets must be whole: %d, %s", int32(returned), said)
	}
	if _, said := p.said(with(udp(8, 8, false), func(c *slice) { c.six, c.id = true, 9 })); said != fragment {
		t.Errorf("a piece of an atomic fragment: %s", said)
	}
}

// A first piece that comes again on another processor while the rest does takes back
// nothing of what was seen.
func TestRootPiecesInARace(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.silence(a, b)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b)))
	first := slice{from: a, to: b, six: true, protocol: bocage.ProtocolUDP, sport: 5000, dport: 9000, length: 80, more: true}
	rest := first
	rest.offset = 80
	total := 0
	for id := range uint32(300) {
		first.id, rest.id = id, id
		if id%2 == 1 { // of a packet that was whole before
			end := rest
			end.more = false
			p.judgedHere(true, a.ifindex, first.bytes())
			p.judgedHere(true, a.ifindex, end.bytes())
		}
		begun, repeated := make(chan struct{}), make(chan error, 1)
		go func() {
			repeated <- host.In(p.namespace, func() error {
				close(begun)
				_, err := p.objects.FromWorkload.Run(&ebpf.RunOptions{Data: first.bytes(), Repeat: 1000, Context: skb{Ifindex: a.ifindex}})
				return err
			})
		}()
		<-begun
		passed := 0
		p.in(func() error {
			for range 20 {
				p.judged(true, a.ifindex, first.bytes())
			}
			for range 100 {
				if p.judged(true, a.ifindex, rest.bytes()) == next {
					passed++
				}
			}
			return nil
		})
		must(t, <-repeated)
		if passed > 1 {
			t.Fatalf("a later piece of packet %d passed %d times", id, passed)
		}
		total += passed
	}
	if total < 100 {
		t.Errorf("%d later pieces passed", total)
	}
}

// A known flow, too, has to come whole once that is asked of it, and no longer when
// it is not.
func TestRootWholePacketsOfKnownFlows(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b := p.workload(1, 101, 21), p.workload(2, 102, 22)
	p.attach(a, b)
	p.silence(a, b)
	p.run()
	allowed := ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b)
	must(t, p.Apply(allowed))
	x := slice{from: a, to: b, protocol: bocage.ProtocolUDP, sport: 5000, dport: 9000, length: 80, more: true, id: 1}
	small := frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 5000, dport: 9000, payload: 8}
	says := func(want bocage.ReasonCode) {
		t.Helper()
		if got := p.judgedHere(true, a.ifindex, small.bytes()); got != next {
			t.Errorf("a whole packet: %d", int32(got))
		}
		x.id++
		if _, said := p.said(x); said != want {
			t.Errorf("a first piece: %s, want %s", said, want)
		}
	}
	says(bocage.ReasonRule)
	whole := ruleset(2, []bocage.Rule{allowUDP(21, 22)}, a, b)
	whole.Rules[0].Decision = decideWhole
	whole.Decisions = append(whole.Decisions, bocage.Decision{ID: decideWhole, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule, Duties: &bocage.Duties{Whole: true}})
	must(t, p.Apply(whole))
	says(bocage.ReasonFragmented)
	says(bocage.ReasonFragmented)
	e := p.await("a refusal", func(e bocage.FlowEvent) bool { return e.Reason == bocage.ReasonFragmented })
	if e.Kind != bocage.EventRefused || e.Verdict != bocage.VerdictDrop || e.Decision != decideWhole || e.DestinationPort != 9000 || e.Source != 101 {
		t.Errorf("event %+v", e)
	}
	allowed = allowed.Copy()
	allowed.Generation = 3
	must(t, p.Apply(allowed))
	says(bocage.ReasonRule)
}

// More packets in pieces than there is room for: whose rest comes too late is refused
// and counted; whole packets, and what others send in pieces, are not hurt.
func TestRootPiecesWithoutRoom(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 21)
	p.attach(a, b, c)
	p.silence(a, b, c)
	must(t, p.Apply(ruleset(1, []bocage.Rule{allowUDP(21, 22)}, a, b, c)))
	room := int(p.objects.Fragments.MaxEntries())
	x := slice{from: a, to: b, six: true, protocol: bocage.ProtocolUDP, sport: 5000, dport: 9000, length: 80, more: true}
	rest := x
	rest.offset, rest.more = 80, false
	other := x
	other.from, other.six, other.id = c, false, 1
	otherRest := other
	otherRest.offset, otherRest.more = 80, false
	small := frame{from: [6]byte(c.mac), to: gatewayMAC(c), source: c.v4, dst: b.v4, protocol: bocage.ProtocolUDP, sport: 5000, dport: 9000, payload: 8}
	lost := 0
	passed, refused := p.countsNow()
	sent := uint64(0)
	p.in(func() error {
		for n := range 4 * room {
			x.id = uint32(n)
			if got := p.judged(true, a.ifindex, x.bytes()); got != next {
				t.Fatalf("first piece %d: %d", n, int32(got))
			}
			sent++
			if n%64 != 0 {
				continue
			}
			other.id++
			otherRest.id = other.id
			for i, b := range [][]byte{small.bytes(), other.bytes(), otherRest.bytes()} {
				if got := p.judged(true, c.ifindex, b); got != next {
					t.Fatalf("what another sends in the middle of it (%d): %d", i, int32(got))
				}
				sent++
			}
		}
		for n := range room {
			rest.id = uint32(n)
			if p.judged(true, a.ifindex, rest.bytes()) == dropped {
				lost++
			}
			sent++
		}
		return nil
	})
	nowPassed, nowRefused := p.countsNow()
	if lost < room/2 || nowRefused[bocage.ReasonFragment]-refused[bocage.ReasonFragment] != uint64(lost) {
		t.Errorf("%d of %d rests were refused, and %d counted", lost, room, nowRefused[bocage.ReasonFragment]-refused[bocage.ReasonFragment])
	}
	if n := nowPassed[bocage.ReasonRule] - passed[bocage.ReasonRule]; n != sent-uint64(lost) {
		t.Errorf("%d passed, want %d", n, sent-uint64(lost))
	}
}

// Real datagrams and echoes of many pieces, through both points and both ways; and
// none of them where packets must be whole.
func TestRootPiecesOfTraffic(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
	p.attach(a, b, c)
	must(t, p.Apply(inPieces(1, a, b, c)))
	for _, address := range []netip.Addr{b.v4, b.v6, c.v4, c.v6} {
		w := b
		if address == c.v4 || address == c.v6 {
			w = c
		}
		echoDatagrams(t, w, address, 9000)
	}
	for _, address := range []netip.Addr{b.v4, b.v6} {
		ping := exec.Command("ping", "-s", "5000", "-c", "5", "-i", "0.05", "-W", "60", address.String())
		var out []byte
		must(t, host.In(a.namespace, func() error { out, _ = ping.CombinedOutput(); return nil }))
		if ping.ProcessState.ExitCode() != 0 {
			t.Errorf("ping with 5000 bytes: %s", out)
		}
		conn := datagrams(t, a, address, 9000)
		for n := range 50 {
			if !answers(conn, 8000+n, long) {
				t.Errorf("datagram %d of 8 kB to %s is not answered", n, address)
			}
		}
	}
	for _, address := range []netip.Addr{c.v4, c.v6} {
		conn := datagrams(t, a, address, 9000)
		if !answers(conn, 1000, long) {
			t.Errorf("a whole datagram to %s is not answered", address)
		}
		if answers(conn, 8000, short) {
			t.Errorf("a datagram in pieces to %s is answered", address)
		}
		if !answers(conn, 1001, long) {
			t.Errorf("a whole datagram to %s is not answered afterwards", address)
		}
	}
	_, refused := p.countsNow()
	if refused[bocage.ReasonFragmented] != 12 || refused[bocage.ReasonFragment] != 0 {
		t.Errorf("refused: %v, want both datagrams' six pieces as %s", refused, bocage.ReasonFragmented)
	}
}

// echoDatagrams sends back what comes to a port.
func echoDatagrams(t testing.TB, w *workload, address netip.Addr, port uint16) {
	t.Helper()
	var c net.PacketConn
	must(t, host.In(w.namespace, func() (err error) {
		c, err = net.ListenPacket("udp", netip.AddrPortFrom(address, port).String())
		return err
	}))
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(b[:n], from)
		}
	}()
}

func datagrams(t testing.TB, w *workload, address netip.Addr, port uint16) net.Conn {
	t.Helper()
	var c net.Conn
	must(t, host.In(w.namespace, func() (err error) {
		c, err = net.Dial("udp", netip.AddrPortFrom(address, port).String())
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

// answers says whether a datagram of a size comes back.
func answers(c net.Conn, size int, wait time.Duration) bool {
	if c.SetDeadline(time.Now().Add(wait)) != nil {
		return false
	}
	if _, err := c.Write(make([]byte, size)); err != nil {
		return false
	}
	b := make([]byte, 1<<16)
	n, err := c.Read(b)
	return err == nil && n == size
}
