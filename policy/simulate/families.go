package simulate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// pair is two ends of one family of addresses.
type pair struct{ from, to End }

func (p pair) family() string { return family(p.from) }

// family names the family of an end's address.
func family(e End) string {
	if e.Address.Is4() {
		return bocage.FamilyIPv4
	}
	return bocage.FamilyIPv6
}

// pairsOf finds two ends in each family of which both sides have addresses, and in how
// many that is. The first is the family that Kubernetes calls a Pod's address: that
// of the first address of the source to which the destination has a like.
func pairsOf(from, to []End) (pairs [2]pair, n int) {
	for _, source := range from {
		if n == 1 && source.Address.Is4() == pairs[0].from.Address.Is4() {
			continue
		}
		for _, destination := range to {
			if source.Address.Is4() == destination.Address.Is4() {
				pairs[n], n = pair{source, destination}, n+1
				break
			}
		}
		if n == len(pairs) {
			break
		}
	}
	return pairs, n
}

// carries reports whether a protocol is one of an end's family: each has an ICMP of
// its own.
func carries(e End, protocol bocage.Protocol) bool {
	switch protocol {
	case bocage.ProtocolICMP:
		return e.Address.Is4()
	case bocage.ProtocolICMPv6:
		return !e.Address.Is4()
	}
	return true
}

// pairsFor is pairsOf for the families of a protocol. There is one at least if there
// is no error.
func pairsFor(from, to []End, protocol bocage.Protocol, fromName, toName string) (pairs [2]pair, n int, err error) {
	pairs, n = pairsOf(from, to)
	if n == 0 {
		return pairs, 0, fmt.Errorf("%s and %s have no address of the same family", fromName, toName)
	}
	if n == 2 && !carries(pairs[0].from, protocol) {
		pairs[0], pairs[1], n = pairs[1], pair{}, 1
	} else if n == 2 && !carries(pairs[1].from, protocol) {
		pairs[1], n = pair{}, 1
	}
	if n > 1 || carries(pairs[0].from, protocol) {
		return pairs, n, nil
	}
	own, other, instead := bocage.FamilyIPv6, bocage.FamilyIPv4, bocage.ProtocolICMP
	if protocol == bocage.ProtocolICMP {
		own, other, instead = bocage.FamilyIPv4, bocage.FamilyIPv6, bocage.ProtocolICMPv6
	}
	return pairs, 0, fmt.Errorf("protocol: %s is %s's, and %s and %s have addresses of %s in common only: ask for %s", protocol, own, fromName, toName, other, instead)
}

// EndsFor picks two ends of one family that carries a protocol, the first that there
// are; the names of both are for the message if there are none.
func EndsFor(from, to []End, protocol bocage.Protocol, fromName, toName string) (End, End, error) {
	pairs, _, err := pairsFor(from, to, protocol, fromName, toName)
	return pairs[0].from, pairs[0].to, err
}

// Families is the field Families of the answer to a probe.
func (s *Simulator) Families(p bocage.SimulateProbe) map[string]string {
	return s.Verdict(p).Families
}

// decideOne decides a question, by name if it has one.
func (s *Simulator) decideOne(q question, port uint16, at time.Time) (bocage.Verdict, bocage.Reason) {
	verdict, reason := s.decide(q.from, q.to, q.protocol, port, at)
	if q.name != "" {
		verdict, reason = s.named(q, port, at, verdict, reason)
	}
	return verdict, reason
}

// families says what a flow gets in each family, by its name, if it does not get the
// same in both: which of them is used is not up to who asks by name.
func (s *Simulator) families(q question, port uint16, at time.Time, reason bocage.Reason) map[string]string {
	if !q.other.from.Address.IsValid() {
		return nil
	}
	other := q
	other.from, other.to = q.other.from, q.other.to
	_, there := s.decideOne(other, port, at)
	return familiesOf(family(q.from), s.gets(reason), family(other.from), s.gets(there))
}

// got is what a flow gets, as far as families may differ in it.
type got struct {
	would  bocage.Verdict
	duties []string
}

// gets is what a reason gives.
func (s *Simulator) gets(reason bocage.Reason) got {
	g := got{would: reason.Would}
	if reason.Would.Allowed() {
		g.duties = duties(s.decision(reason.Decision))
	}
	return g
}

// familiesOf writes what two families get; nil if that is the same.
func familiesOf(one string, first got, other string, second got) map[string]string {
	if first.would == second.would && slices.Equal(first.duties, second.duties) {
		return nil
	}
	words := func(g got) string {
		switch {
		case first.would.Allowed() != second.would.Allowed() && g.would.Allowed():
			return "allow"
		case first.would.Allowed() != second.would.Allowed():
			return "deny"
		case !g.would.Allowed():
			return "deny by " + g.would.String()
		case len(g.duties) == 0:
			return "allow without a duty"
		}
		return "allow with " + strings.Join(g.duties, ", ")
	}
	return map[string]string{one: words(first), other: words(second)}
}
