package dataplane

import (
	"testing"

	"bocage.dev/bocage"
)

// Whoever is in quarantine is cut off where nobody enforces too, and by what belongs to
// no flow as well: the middle of a connection, a stray piece, an error, a frame of no
// protocol that policy knows, a packet in another's name.
func TestRootQuarantineCutsWhatHasNoFlow(t *testing.T) {
	t.Parallel()
	p := newPlane(t)
	a, b, c := p.workload(1, 101, 21), p.workload(2, 102, 22), p.workload(3, 103, 23)
	p.attach(a, b, c)
	for _, w := range []*workload{a, b, c} { // nothing is picked up
		p.settleLongAgo(w)
	}
	sent := func(protocol bocage.Protocol) frame {
		return frame{from: [6]byte(a.mac), to: gatewayMAC(a), source: a.v4, dst: b.v4, protocol: protocol, sport: 5000, dport: 80, payload: 64}
	}
	middle, piece, fault, foreign := sent(bocage.ProtocolTCP), sent(bocage.ProtocolUDP), sent(bocage.ProtocolICMP), sent(bocage.ProtocolUDP)
	middle.tcpFlags = ack
	piece.fragment, piece.id = 0x0064, 9
	fault.icmpType = 3
	foreign.source = c.v4
	odd := append(append(append([]byte{}, b.mac...), a.mac...), 0x88, 0xb5)
	odd = append(odd, make([]byte, 60)...)
	frames := map[string][]byte{"the middle of a connection": middle.bytes(), "a stray piece": piece.bytes(),
		"an error": fault.bytes(), "another's name": foreign.bytes(), "no protocol": odd}
	arriving := func(raw []byte) []byte { // the same at the other workload's point
		return append(append(append([]byte{}, b.mac...), gatewayMACOf(b)...), raw[12:]...)
	}
	rs := ruleset(1, nil, a, b, c)
	rs.Groups = nil // merely observed
	for _, refused := range []bocage.Identity{0, 101, 102} {
		want := next
		if refused != 0 {
			want, rs = dropped, renumbered(rs, rs.Generation+1)
			rs.Refused = []bocage.Refusal{{Identity: refused, Decision: decideQuarantine}}
		}
		must(t, p.Apply(rs))
		for name, raw := range frames {
			wanted := want
			if refused == 102 && name == "no protocol" {
				wanted = next // it says nothing of whom it is for
			}
			if got := p.judgedHere(true, a.ifindex, raw); got != wanted {
				t.Errorf("%s of %d in quarantine, at the sender: program returned %d, want %d", name, refused, int32(got), int32(wanted))
			}
			if refused == 101 && (name == "no protocol" || name == "another's name") {
				continue // nor of whom it is from
			}
			if got := p.judgedHere(false, b.ifindex, arriving(raw)); got != want {
				t.Errorf("%s of %d in quarantine, at the receiver: program returned %d, want %d", name, refused, int32(got), int32(want))
			}
		}
	}
	if n := p.passedOf(t); n[bocage.ReasonQuarantine] != 0 {
		t.Errorf("passed: %v", n)
	}
}

func gatewayMACOf(w *workload) []byte {
	mac := gatewayMAC(w)
	return mac[:]
}

func (p *plane) passedOf(t testing.TB) map[bocage.ReasonCode]uint64 {
	t.Helper()
	c, err := p.Counters()
	must(t, err)
	n := map[bocage.ReasonCode]uint64{}
	for reason, count := range c.Passed {
		n[reason] = count.Packets
	}
	return n
}
