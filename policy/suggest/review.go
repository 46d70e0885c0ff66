package suggest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// ephemeral is the lowest port that is assigned to clients dynamically (49152 in RFC 6335,
// 32768 in Linux).
const ephemeral = 32768

// Thresholds from which on an edge is doubtful.
const (
	manyUnanswered = 10 // unanswered targets of one source
	scannedPorts   = 10 // rarely used ports between two ends: a scan
	manyHighPorts  = 3  // high ports between two ends: not a service
	rareFlows      = 2  // flows of an edge, at most
)

// selectUsual returns the edges that look like normal use. It counts those that policy
// allows already. To review go edges that were not answered, that no contract can name or
// open, and rare ones that look like a search for targets or a port scan.
func (s *suggestion) selectUsual(lines []*line) []*line {
	type ends struct{ source, destination string }
	type tally struct{ answered, unanswered int }
	bySource := map[string]*tally{}
	rarePorts, high := map[ends]int{}, map[ends]int{}
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
		if l.edge.Flows <= rareFlows && l.edge.Protocol.HasPorts() {
			rarePorts[e]++
		}
		if l.edge.DestinationPort >= ephemeral && l.edge.Protocol.HasPorts() {
			high[e]++
		}
	}
	var usual []*line
	for _, l := range lines {
		e, t := ends{l.sourceName, l.destinationName}, bySource[l.sourceName]
		isRare := l.edge.Flows <= rareFlows
		switch {
		case l.sourceName == "" || l.destinationName == "":
			s.addReview(l, "an end is neither a workload that is there nor an address that a contract can name")
		case l.source == nil && l.destination == nil:
			s.addReview(l, "neither end is a workload: only a Guardrail's grant could allow it")
		case l.edge.Protocol == bocage.ProtocolAny || l.edge.Protocol.HasPorts() && l.edge.DestinationPort == 0:
			s.addReview(l, "no contract can name its protocol or port")
		case s.allowedAlready(l):
			s.declared++
		case l.edge.Replied == 0:
			s.addReview(l, "nobody answered")
		case isRare && t.unanswered >= manyUnanswered && t.unanswered > 2*t.answered:
			s.addReview(l, fmt.Sprintf("rare, and its source met nobody at %d of %d other targets: it may be searching", t.unanswered, t.unanswered+t.answered-1))
		case isRare && rarePorts[e] >= scannedPorts:
			s.addReview(l, fmt.Sprintf("rare, and one of %d ports that its source tried there: it may be a scan", rarePorts[e]))
		case l.edge.DestinationPort >= ephemeral && l.edge.Protocol.HasPorts() && high[e] >= manyHighPorts:
			s.addReview(l, fmt.Sprintf("one of %d high ports between the two: such ports are given to clients, or agreed on elsewhere", high[e]))
		default:
			usual = append(usual, l)
		}
	}
	return s.reviewRefused(usual)
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

// allowedAlready reports whether a declaration allows the edge. What Kubernetes accepts by
// default, because no policy selects its ends, does not count.
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

// reviewRefused sends to review what somebody refuses whom no contract can overrule.
func (s *suggestion) reviewRefused(lines []*line) []*line {
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
		s.addReview(l, "refused, so that no contract can open it, by "+strings.Join(by, " and "))
		return true
	})
}

// reviewRare sends to review what was seen only once or twice, and not for long, beside
// what was used often: between two applications where the usual contract was; at a service
// that others use often; and all of an application that does nothing else. Whether that
// needs a contract is a person's decision. Where nothing was used often, the recording is
// too short to tell.
func (s *suggestion) reviewRare(lines []*line) []*line {
	const (
		enough = 10 // contracts to compare the median of
		often  = 10 // flows
		// A single flow that is told of for so long is no rare one, such as of a pool. An
		// enforcement point tells that a flow ended up to ten minutes after its last packet.
		long = 15 * time.Minute
	)
	type contract struct {
		from, to string
		service  service
	}
	type offer struct {
		to      string
		service service
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
	flows, lasts := map[contract]int64{}, map[contract]bool{}
	for _, l := range lines {
		c := key(l)
		flows[c] += l.edge.Flows
		lasts[c] = lasts[c] || l.edge.Flows == 1 && l.edge.Last.Sub(l.edge.First) >= long
	}
	rare := func(c contract) bool { return flows[c] <= rareFlows && !lasts[c] }
	counts := make([]int64, 0, len(flows))
	usersMost, sourceUsual := map[offer]int64{}, map[string]bool{}
	for c, n := range flows {
		counts = append(counts, n)
		of := offer{c.to, c.service}
		usersMost[of] = max(usersMost[of], n)
		sourceUsual[c.from] = sourceUsual[c.from] || !rare(c)
	}
	if len(counts) == 0 {
		return lines
	}
	slices.Sort(counts)
	median, most := counts[len(counts)/2], counts[len(counts)-1]
	return slices.DeleteFunc(lines, func(l *line) bool {
		c := key(l)
		n, others := flows[c], usersMost[offer{c.to, c.service}]
		switch {
		case !rare(c):
			return false
		case len(counts) >= enough && median >= often:
			s.addReview(l, fmt.Sprintf("rare: seen %d times in all, where half of what is seen comes %d times or more", n, median))
		case others >= often:
			s.addReview(l, fmt.Sprintf("rare: seen %d times in all, where others use that service up to %d times", n, others))
		case most >= often && !sourceUsual[c.from]:
			s.addReview(l, fmt.Sprintf("rare: seen %d times in all, and its source does nothing more often, where others do something up to %d times", n, most))
		default:
			return false
		}
		return true
	})
}
