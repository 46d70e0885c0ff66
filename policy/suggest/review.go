package suggest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// ephemeral is where ports begin that clients are given (RFC 6335 has 49152,
// Linux 32768).
const ephemeral = 32768

// What makes an edge doubtful.
const (
	fruitless = 10 // so many unanswered targets make a source suspicious
	walk      = 20 // so many rarely used ports of one destination are a scan
	replies   = 3  // so many high ports between two ends are no service
	rare      = 2  // flows
)

// setApart returns what looks like use. What policy allows already is counted;
// what nobody answered, what cannot be named or opened, and the rare attempts of
// a source that mostly meets nobody or walks through ports go to review.
func (s *suggestion) setApart(lines []*line) []*line {
	type ends struct{ source, destination string }
	type tally struct{ answered, unanswered int }
	bySource := map[string]*tally{}
	walked, high := map[ends]int{}, map[ends]int{}
	for _, l := range lines {
		t := bySource[l.sourceName]
		if t == nil {
			t = &tally{}
			bySource[l.sourceName] = t
		}
		if l.edge.Replied == 0 {
			t.unanswered++
		} else {
			t.answered++
		}
		e := ends{l.sourceName, l.destinationName}
		if l.edge.Flows <= rare && l.edge.Protocol.HasPorts() {
			walked[e]++
		}
		if l.edge.DestinationPort >= ephemeral && l.edge.Protocol.HasPorts() {
			high[e]++
		}
	}
	var usual []*line
	for _, l := range lines {
		e, t := ends{l.sourceName, l.destinationName}, bySource[l.sourceName]
		seldom := l.edge.Flows <= rare
		switch {
		case l.sourceName == "" || l.destinationName == "":
			s.setAside(l, "an end is neither a workload that is there nor an address that a contract can name")
		case l.source == nil && l.destination == nil:
			s.setAside(l, "neither end is a workload: only a Guardrail's grant could allow it")
		case l.edge.Protocol == bocage.ProtocolAny || l.edge.Protocol.HasPorts() && l.edge.DestinationPort == 0:
			s.setAside(l, "no contract can name its protocol or port")
		case s.allowedAlready(l):
			s.declared++
		case l.edge.Replied == 0:
			s.setAside(l, "nobody answered")
		case seldom && t.unanswered >= fruitless && t.unanswered > 2*t.answered:
			s.setAside(l, fmt.Sprintf("rare, and its source met nobody at %d of %d other targets: it may be searching", t.unanswered, t.unanswered+t.answered-1))
		case seldom && walked[e] >= walk:
			s.setAside(l, fmt.Sprintf("rare, and one of %d ports that its source tried there: it may be a scan", walked[e]))
		case l.edge.DestinationPort >= ephemeral && l.edge.Protocol.HasPorts() && high[e] >= replies:
			s.setAside(l, fmt.Sprintf("one of %d high ports between the two: such ports are given to clients, or agreed on elsewhere", high[e]))
		default:
			usual = append(usual, l)
		}
	}
	return s.refusedApart(usual)
}

func (s *suggestion) flow(l *line) bocage.Flow {
	address := func(m *member, name string) netip.Addr {
		if m != nil && len(m.workload.Spec.Addresses) > 0 {
			return m.workload.Spec.Addresses[0]
		}
		a, err := netip.ParseAddr(name)
		if err != nil {
			return netip.Addr{} // nobody's: nothing allows it
		}
		return a
	}
	return bocage.Flow{Source: address(l.source, l.sourceName), Destination: address(l.destination, l.destinationName),
		Protocol: l.edge.Protocol, DestinationPort: l.service().port}
}

// allowedAlready reports whether somebody declares the line. That Kubernetes
// accepts what no policy is about is nobody's declaration.
func (s *suggestion) allowedAlready(l *line) bool {
	if s.nothingDeclared() {
		return false
	}
	g := s.judge.Judge(s.flow(l))
	return g.Would.Allowed() && len(g.Allows)+len(g.Kubernetes.By) > 0
}

func (s *suggestion) nothingDeclared() bool {
	return len(s.in.Applications)+len(s.in.Guardrails)+len(s.in.NetworkPolicies)+len(s.in.ClusterNetworkPolicies)+len(s.in.Quarantines)+len(s.in.ThreatConditions) == 0
}

// refusedApart sets apart what somebody refuses whom no contract can overrule.
func (s *suggestion) refusedApart(lines []*line) []*line {
	if s.nothingDeclared() {
		return lines
	}
	return slices.DeleteFunc(lines, func(l *line) bool {
		g := s.judge.Judge(s.flow(l))
		if g.Would.Allowed() || g.Code == bocage.ReasonDefaultDeny || g.Code == bocage.ReasonKubernetes && len(g.Kubernetes.Denies) == 0 {
			return false
		}
		var by []string
		for _, ref := range g.By {
			by = append(by, ref.String())
		}
		s.setAside(l, "refused, so that no contract can open it, by "+strings.Join(by, " and "))
		return true
	})
}

// setRareApart sets apart what two applications did once or twice while others
// did what they do often: one more contract for it is a person's decision.
func (s *suggestion) setRareApart(lines []*line) []*line {
	const (
		enough = 10 // contracts to compare with
		often  = 10 // flows of the one in the middle
	)
	type contract struct {
		from, to string
		service  service
	}
	key := func(l *line) contract {
		c := contract{l.sourceName, l.destinationName, l.service()}
		if l.source != nil {
			c.from = l.source.group.key()
		}
		if l.destination != nil {
			c.to = l.destination.group.key()
		}
		return c
	}
	flows := map[contract]int64{}
	for _, l := range lines {
		flows[key(l)] += l.edge.Flows
	}
	counts := make([]int64, 0, len(flows))
	for _, n := range flows {
		counts = append(counts, n)
	}
	slices.Sort(counts)
	if len(counts) < enough || counts[len(counts)/2] < often {
		return lines
	}
	return slices.DeleteFunc(lines, func(l *line) bool {
		n := flows[key(l)]
		if n > rare {
			return false
		}
		s.setAside(l, fmt.Sprintf("rare: seen %d times in all, where half of what is seen comes %d times or more", n, counts[len(counts)/2]))
		return true
	})
}
