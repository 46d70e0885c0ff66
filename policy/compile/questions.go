package compile

import (
	"net/netip"
	"slices"
	"strconv"

	"bocage.dev/bocage"
)

type label struct{ key, value string }

// asked is what all declarations together ask about workloads: two that answer
// everything alike are one to policy. It counts who asks what.
type asked struct {
	values  map[label]int32        // is this label this value?
	exists  map[string]int32       // is this label there?
	which   map[string]int32       // what is this label's value?
	ports   map[string]int32       // which ports have this name?
	blocks  map[netip.Prefix]int32 // is an address in here?
	lengths []int                  // of blocks, longest first
	sign    int32                  // 1 to ask, -1 to ask no longer
	touched map[any]bool           // what may have changed, and whether it was asked before; nil: all
}

func newAsked() *asked {
	return &asked{values: map[label]int32{}, exists: map[string]int32{}, which: map[string]int32{}, ports: map[string]int32{},
		blocks: map[netip.Prefix]int32{}, sign: 1}
}

// Kinds of question, but for values, which are labels.
type (
	askedExists string
	askedWhich  string
	askedPort   string
	askedBlock  netip.Prefix
)

func count[K comparable](q *asked, counts map[K]int32, key K, question any) {
	if q.touched != nil {
		if _, known := q.touched[question]; !known {
			q.touched[question] = counts[key] > 0
		}
	}
	if counts[key] += q.sign; counts[key] <= 0 {
		delete(counts, key)
	}
}

// value asks whether a label has a value.
func (q *asked) value(l label) { count(q, q.values, l, l) }

// port asks what ports the workloads have under a name.
func (q *asked) port(name string) { count(q, q.ports, name, askedPort(name)) }

// block asks which workloads have an address in a prefix.
func (q *asked) block(prefix netip.Prefix) {
	if prefix = canonicalPrefix(prefix); !prefix.IsValid() {
		return
	}
	if count(q, q.blocks, prefix, askedBlock(prefix)); q.blocks[prefix] == 0 || slices.Contains(q.lengths, prefix.Bits()) {
		return // a length too many does no harm
	}
	q.lengths = append(q.lengths, prefix.Bits())
	slices.Sort(q.lengths)
	slices.Reverse(q.lengths)
}

// changed lists what is asked now and was not, or the other way round, since it
// was called last.
func (q *asked) changed() []any {
	var out []any
	defer func() { q.touched = map[any]bool{} }()
	for question, before := range q.touched {
		var now int32
		switch question := question.(type) {
		case label:
			now = q.values[question]
		case askedExists:
			now = q.exists[string(question)]
		case askedWhich:
			now = q.which[string(question)]
		case askedPort:
			now = q.ports[string(question)]
		case askedBlock:
			now = q.blocks[netip.Prefix(question)]
		}
		if before != (now > 0) {
			out = append(out, question)
		}
	}
	return out
}

func (q *asked) application(a *bocage.Application) {
	q.selector(&a.Spec.Workload)
	for i := range a.Spec.Provides {
		q.selector(&a.Spec.Provides[i].To)
	}
}

// scope asks what a Scope asks, and so on.
func (q *asked) scope(s *bocage.Scope) { q.selector(&s.Spec.Workload) }

func (q *asked) exception(e *bocage.Exception) { q.match(&e.Spec.Match) }

func (q *asked) decoy(d *bocage.Decoy) {
	q.selector(d.Spec.For.Workload)
	q.selector(d.Spec.From.Workload)
}

func (q *asked) threatCondition(t *bocage.ThreatCondition) {
	if t.Spec.Zone != "" {
		q.value(label{bocage.LabelZone, t.Spec.Zone})
	}
}

// askChanged brings up to date what the declarations of a kind ask.
func askChanged[T resource](q *asked, was, now []T, ask func(T)) {
	eachChange(was, now, compareNames[T], func(o T) {
		q.sign = -1
		ask(o)
	}, func(o T) {
		q.sign = 1
		ask(o)
	})
}

// follow brings up to date what everything but Applications asks.
func (q *asked) follow(was, now *admitted, d *change) {
	if d.of(kindGuardrail) {
		askChanged(q, was.guardrails, now.guardrails, q.guardrail)
	}
	if d.of(kindException) {
		askChanged(q, was.exceptions, now.exceptions, q.exception)
	}
	if d.of(kindScope) {
		askChanged(q, was.scopes, now.scopes, q.scope)
	}
	if d.of(kindDecoy) {
		askChanged(q, was.decoys, now.decoys, q.decoy)
	}
	if d.of(kindResponse) {
		askChanged(q, was.responses, now.responses, func(r *bocage.Response) { q.response(&r.Spec) })
	}
	if d.of(kindThreatCondition) {
		askChanged(q, was.threatConditions, now.threatConditions, q.threatCondition)
	}
	if d.of(kindNetworkPolicy) {
		askChanged(q, was.networkPolicies, now.networkPolicies, q.networkPolicy)
	}
	if d.of(kindClusterNetworkPolicy) {
		askChanged(q, was.clusterNetworkPolicies, now.clusterNetworkPolicies, q.clusterNetworkPolicy)
	}
	if d.of(kindHost, kindNetworkPolicy, kindClusterNetworkPolicy) && !sameNodes(was, now) {
		q.sign = -1
		q.nodes(was)
		q.sign = 1
		q.nodes(now)
	}
}

func (q *asked) guardrail(g *bocage.Guardrail) {
	spec := g.InForce()
	if spec == nil {
		return
	}
	q.match(&spec.Match)
	for _, list := range [][]bocage.CellMatch{spec.Never, spec.Grant, spec.Protect} {
		for i := range list {
			q.match(&list[i])
		}
	}
	if spec.BlastRadius != nil {
		q.selector(spec.BlastRadius.From.Workload)
	}
	if spec.Separate != nil {
		count(q, q.which, spec.Separate.Label(), askedWhich(spec.Separate.Label()))
	}
	q.duties(spec.Require)
}

func (q *asked) response(spec *bocage.ResponseSpec) {
	q.selector(spec.When.Workloads.Workload)
	for _, list := range [][]bocage.ResponseCell{spec.Then.RefuseFrom, spec.Then.RefuseTo} {
		for i := range list {
			q.selector(list[i].Peer.Workload)
		}
	}
	q.duties(spec.Then.Require)
}

// duties asks how identities are vouched for, where a duty depends on it.
func (q *asked) duties(d *bocage.Duties) {
	if d != nil && d.Assurance != "" {
		count(q, q.which, bocage.LabelAssurance, askedWhich(bocage.LabelAssurance))
	}
}

func (q *asked) match(m *bocage.CellMatch) {
	q.selector(m.From.Workload)
	q.selector(m.To.Workload)
}

func (q *asked) selector(s *bocage.Selector) {
	if s == nil {
		return
	}
	for key, value := range s.MatchLabels {
		q.value(label{key, value})
	}
	for _, r := range s.MatchExpressions {
		for _, value := range r.Values {
			q.value(label{r.Key, value})
		}
		if len(r.Values) == 0 {
			count(q, q.exists, r.Key, askedExists(r.Key))
		}
	}
}

// answers appends what the workload answers, sorted: equal answers make
// workloads of one namespace equal before every declaration.
func (q *asked) answers(pairs []string, w *bocage.Workload, zone string) []string {
	answer := func(key, value string) {
		switch {
		case q.tells(key, value):
			pairs = append(pairs, key+"="+value)
		case q.exists[key] > 0:
			pairs = append(pairs, key)
		}
	}
	for key, value := range w.Labels {
		if !inherent(key) {
			answer(key, value)
		}
	}
	answer(bocage.LabelName, w.Name)
	answer(bocage.LabelHost, w.Spec.Host)
	answer(bocage.LabelAssurance, assuranceOf(w))
	if zone != "" {
		answer(bocage.LabelZone, zone)
	}
	for _, p := range w.Spec.Ports {
		if q.ports[p.Name] > 0 {
			pairs = append(pairs, "port "+p.Name+"="+protocolName(p.Protocol)+"/"+strconv.Itoa(int(p.Port)))
		}
	}
	if w.Spec.Orchestrator != "" {
		pairs = append(pairs, "orchestrator "+w.Spec.Orchestrator)
	}
	slices.Sort(pairs)
	return slices.Compact(pairs)
}

// tells reports whether somebody can tell a label's value from others.
func (q *asked) tells(key, value string) bool {
	return q.which[key] > 0 || q.values[label{key, value}] > 0
}

// inherent reports whether a label is one that every workload carries by what it
// is, whatever its own labels claim.
func inherent(key string) bool {
	switch key {
	case bocage.LabelNamespace, bocage.LabelName, bocage.LabelHost, bocage.LabelZone, bocage.LabelAssurance:
		return true
	}
	return false
}

func assuranceOf(w *bocage.Workload) string {
	if w.Status.Assurance == "" {
		return bocage.AssuranceOfDeclared
	}
	return w.Status.Assurance
}

// protocolName completes the protocol of a named port.
func protocolName(s string) string {
	if s == "" {
		return bocage.ProtocolTCP.String()
	}
	return s
}

// blockAt returns the longest block that somebody asks for and that holds the
// address, or an invalid one: the shorter ones follow from it.
func (q *asked) blockAt(address netip.Addr) netip.Prefix {
	for _, bits := range q.lengths {
		if block, err := address.Prefix(bits); err == nil && q.blocks[block] > 0 {
			return block
		}
	}
	return netip.Prefix{}
}
