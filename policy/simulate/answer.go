package simulate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bocage.dev/bocage"
)

// Answer decides one probe. What cannot be decided says so in Error.
func (s *Simulator) Answer(p bocage.SimulateProbe) bocage.SimulateAnswer {
	answer, advise := s.decided(p)
	answer.Missing = advise()
	return answer
}

// Verdict is Answer without the smallest change, to find which takes most of the
// time.
func (s *Simulator) Verdict(p bocage.SimulateProbe) bocage.SimulateAnswer {
	answer, _ := s.decided(p)
	return answer
}

// decided decides a probe; advise finds the smallest change.
func (s *Simulator) decided(p bocage.SimulateProbe) (answer bocage.SimulateAnswer, advise func() string) {
	nothing := func() string { return "" }
	answer = bocage.SimulateAnswer{SimulateProbe: p, Duties: []string{}}
	moment := p.At
	if moment.IsZero() {
		moment = s.in.Now
	}
	s = s.at(moment)
	q, err := s.question(p)
	if err != nil {
		answer.Error = err.Error()
		return answer, nothing
	}
	f := bocage.Flow{Source: q.from.Address, Destination: q.to.Address, DestinationPort: q.port, Protocol: q.protocol, At: moment}
	verdict, reason := s.decideOne(q, q.port, moment)
	answer.Families = s.families(q, q.port, moment, reason)
	answer.Verdict, answer.Disposition = "deny", reason.Would.String()
	if reason.Would.Allowed() {
		answer.Verdict = "allow"
	}
	answer.Reason = reason.Code.String()
	answer.Enforced = !verdict.Allowed()
	decision := s.decision(reason.Decision)
	if reason.Would.Allowed() {
		answer.Duties = duties(decision)
	}
	decider, ok := Decider(decision)
	if !ok && answer.Verdict == "allow" && s.isOnItsHost(q.from, q.to) {
		decider, ok = s.near().judge(nil, s.workloadAt(q.to), f).OwnNode(f)
	}
	if ok {
		file, line := s.place(decider)
		answer.Decision = bocage.SimulateDecision{Kind: decider.Kind, Namespace: decider.Namespace, Name: decider.Name, Field: decider.Field, File: file, Line: line}
	}
	if reason.Decision == 0 {
		return answer, nothing // no ruleset decided it, so none has to change
	}
	return answer, func() string {
		return s.missing(q, f)
	}
}

// isOnItsHost reports whether the source has an address of the host that the
// destination runs on, which Kubernetes' policies cannot keep out.
func (s *Simulator) isOnItsHost(from, to End) bool {
	w := s.workloadAt(to)
	return w != nil && w.Spec.Host != "" && s.workloadAt(from) == nil && slices.Contains(s.hosts[w.Spec.Host], from.Address)
}

// decide is Decide, and accepts what Kubernetes accepts where rulesets, which speak
// of groups of workloads, have no cell: nothing stands between a Pod and itself,
// and no policy selects a node or a Pod in its network.
func (s *Simulator) decide(from, to End, protocol bocage.Protocol, port uint16, at time.Time) (bocage.Verdict, bocage.Reason) {
	accepted := bocage.Reason{Code: bocage.ReasonKubernetes, Would: bocage.VerdictAllow}
	if s.isItself(from, to) {
		return bocage.VerdictAllow, accepted
	}
	verdict, reason := s.Decide(from, to, protocol, port, at)
	if reason.Code == bocage.ReasonDefaultDeny && s.acceptsBystanders(from, to) {
		return bocage.VerdictAllow, accepted
	}
	return verdict, reason
}

// Bystanders is what becomes of flows neither end of which is a workload: nobody can
// declare anything about them but guardrails, and no enforcement point sees them.
type Bystanders uint8

// What becomes of bystanders' flows. Of zero, those of the nodes of a cluster are
// accepted, as in Kubernetes, and all others refused.
const (
	BystandersOfClusters Bystanders = iota
	BystandersAccepted
	BystandersRefused
)

// Bystanders has flows between ends that are no workloads be answered so. It is to be
// called before anything is asked.
func (s *Simulator) Bystanders(b Bystanders) { s.bystanders = b }

// BystandersAs has them be answered as another Simulator answers them.
func (s *Simulator) BystandersAs(other *Simulator) { s.bystanders = other.bystanders }

func (s *Simulator) acceptsBystanders(from, to End) bool {
	switch s.bystanders {
	case BystandersAccepted:
		return s.workloadAt(from) == nil && s.workloadAt(to) == nil
	case BystandersRefused:
		return false
	}
	return s.isNodes(from, to)
}

// isItself reports whether both ends are one Pod. Its addresses may be in several
// groups.
func (s *Simulator) isItself(from, to End) bool {
	if from.peer == none || to.peer == none || s.rs.Peers[from.peer].Identity != s.rs.Peers[to.peer].Identity {
		return false
	}
	w := s.workloadAt(from)
	return w != nil && w == s.workloadAt(to) && w.Spec.Orchestrator == bocage.OrchestratorKubernetes
}

// isNodes reports whether, in a cluster, neither end is a workload and one is a
// node or a Pod in a node's network.
func (s *Simulator) isNodes(from, to End) bool {
	if s.workloadAt(from) != nil || s.workloadAt(to) != nil || !s.isCluster() {
		return false
	}
	for _, named := range []map[string][]netip.Addr{s.hosts, s.others} {
		for _, addresses := range named {
			if slices.Contains(addresses, from.Address) || slices.Contains(addresses, to.Address) {
				return true
			}
		}
	}
	return false
}

// isCluster reports whether the input comes from Kubernetes.
func (s *Simulator) isCluster() bool {
	return len(s.in.NetworkPolicies) > 0 || len(s.in.ClusterNetworkPolicies) > 0 ||
		slices.ContainsFunc(s.in.Workloads, func(w *bocage.Workload) bool { return w.Spec.Orchestrator == bocage.OrchestratorKubernetes })
}

// workloadAt is the workload at an end; nil if none is there.
func (s *Simulator) workloadAt(e End) *bocage.Workload {
	if e.peer == none || s.rs.Peers[e.peer].Workload == "" {
		return nil
	}
	if i, known := s.byName[s.rs.Peers[e.peer].Workload]; known {
		return s.workloads[i].object
	}
	return nil
}

// question is a probe whose parts are understood.
type question struct {
	from, to End
	other    pair // of the other family; nobody if there is one only
	protocol bocage.Protocol
	port     uint16            // 0 where the protocol has none
	name     bocage.DomainName // that the source knows to by
	anywhere bool              // to is any address that has the name
}

func (s *Simulator) question(p bocage.SimulateProbe) (question, error) {
	protocol := bocage.ProtocolTCP
	if p.Protocol != "" {
		var err error
		if protocol, err = bocage.ParseProtocol(p.Protocol); err != nil {
			return question{}, err
		}
	}
	switch {
	case protocol == bocage.ProtocolAny:
		return question{}, fmt.Errorf("protocol: name one protocol, such as TCP, UDP, SCTP, ICMP or a number from 1 to 255")
	case protocol.HasPorts() && p.Port == 0:
		return question{}, fmt.Errorf("port: %s needs a destination port from 1 to 65535", protocol)
	case !protocol.HasPorts():
		p.Port = 0 // scripts write one with every protocol
	}
	from, err := s.Resolve(p.From)
	if err != nil {
		return question{}, fmt.Errorf("from: %w", err)
	}
	q := question{protocol: protocol, port: p.Port}
	if p.Name != "" {
		if q.name, err = bocage.ParseDomainName(p.Name); err != nil {
			return question{}, fmt.Errorf("name: %w", err)
		}
	}
	to, name, err := s.Destination(p.To)
	if name != "" && p.Name != "" {
		to, err = s.Resolve(p.To) // it has no other name
	}
	if err != nil {
		return question{}, fmt.Errorf("to: %w", err)
	}
	if name != "" {
		q.name, q.anywhere = name, true
	}
	if err := oneName(q.name); err != nil {
		return question{}, err
	}
	pairs, _, err := pairsFor(from, to, protocol, p.From, p.To)
	if err != nil {
		return question{}, err
	}
	q.from, q.to, q.other = pairs[0].from, pairs[0].to, pairs[1]
	return q, nil
}

// duties lists what the decision's flows owe.
func duties(d bocage.Decision) []string {
	if d.Duties == nil {
		return []string{}
	}
	if list := d.Duties.List(); list != nil {
		return list
	}
	return []string{}
}

// Decider is the place that decided; false for default deny, and for what
// Kubernetes accepts because no policy says anything.
func Decider(d bocage.Decision) (bocage.Ref, bool) {
	switch {
	case len(d.By) == 0 || d.Code == bocage.ReasonDefaultDeny:
		return bocage.Ref{}, false
	case d.Code == bocage.ReasonKubernetes && d.By[0].Kind != "NetworkPolicy" && d.By[0].Kind != "ClusterNetworkPolicy":
		return bocage.Ref{}, false // the first is who added a duty
	}
	return d.By[0], true
}

// placeOfSource reads file:line of the source annotation.
func placeOfSource(ref bocage.Ref) (file string, line int) {
	file, number, found := cutLast(ref.Source, ":")
	if line, err := strconv.Atoi(number); found && err == nil {
		return file, line
	}
	return ref.Source, 0
}

func cutLast(s, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(s, separator); i >= 0 {
		return s[:i], s[i+len(separator):], true
	}
	return s, "", false
}

// advice remembers the smallest change for flows that were asked about: to find
// it takes a thousand times as long as a verdict, and probes repeat.
type advice struct {
	mu   sync.Mutex // guards both maps
	new  map[adviceKey]string
	last map[adviceKey]string
}

type adviceKey struct {
	source, destination netip.Addr
	port                uint16
	protocol            bocage.Protocol
	at                  time.Time
	name                bocage.DomainName
	anywhere            bool
}

// onlyObserved ends what the judge says of refusals that no scope enforces.
const onlyObserved = "To have it allowed for good: "

// mostAdvice bounds each of the two maps; when one is full, the older goes.
const mostAdvice = 1 << 15

func (s *Simulator) missing(q question, f bocage.Flow) string {
	k := adviceKey{f.Source, f.Destination, f.DestinationPort, f.Protocol, time.Time{}, q.name, q.anywhere}
	if !f.At.Equal(s.in.Now) {
		k.at = f.At.UTC()
	}
	a := s.advice
	a.mu.Lock()
	text, known := a.new[k]
	if !known {
		text, known = a.last[k]
	}
	a.mu.Unlock()
	if !known {
		judge := s.near().judge(s.workloadAt(q.from), s.workloadAt(q.to), f)
		if q.anywhere {
			judge = judge.Somewhere(f.Destination, q.name)
		}
		if q.name != "" {
			text = judge.AdviseNamed(f, q.name).Text
		} else {
			text = judge.Advise(f).Text
		}
		// An answer says what policy decides, enforced or not: what it takes to
		// enforce it is beside the point.
		if _, change, only := strings.Cut(text, onlyObserved); only {
			text = change
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.new) >= mostAdvice || a.new == nil {
		a.new, a.last = make(map[adviceKey]string, 64), a.new
	}
	a.new[k] = text
	return text
}
