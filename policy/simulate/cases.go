package simulate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Test decides every case of the tests and compares it with what is expected,
// in the order of the tests. A case about many flows holds if it does for every
// one; one about nobody fails, for it shows nothing.
func (s *Simulator) Test(tests []*bocage.PolicyTest) []bocage.TestResult {
	results := []bocage.TestResult{}
	for _, t := range tests {
		for i, c := range t.Spec.Cases {
			r := s.testCase(c)
			r.Test, r.Case, r.Because = t.NamespacedName(), c.Name, c.Because
			if r.Case == "" {
				r.Case = fmt.Sprintf("cases[%d]", i)
			}
			ref := compile.Ref("PolicyTest", t, fmt.Sprintf("spec.cases[%d]", i))
			if file, line := s.place(ref); line > 0 {
				r.Source = fmt.Sprintf("%s:%d", file, line)
			} else {
				r.Source = ref.Source
			}
			results = append(results, r)
		}
	}
	return results
}

// testCase decides one case.
func (s *Simulator) testCase(c bocage.PolicyTestCase) bocage.TestResult {
	result := bocage.TestResult{Want: wanted(c.Expect)}
	moment := c.At
	if moment.IsZero() {
		moment = s.in.Now
	}
	s = s.at(moment)
	protocol, ports, err := bocage.Transport(c.Port, 0, c.Protocol)
	if err != nil {
		result.Got = err.Error()
		return result
	}
	sources, err := s.party("from", c.From, c.FromAll, protocol, ports.First, nil)
	if err != nil {
		result.Got = err.Error()
		return result
	}
	destinations, err := s.party("to", c.To, c.ToAll, protocol, ports.First, nil)
	if err != nil {
		result.Got = err.Error()
		return result
	}
	if c.From != "" && c.To != "" {
		return s.namedCase(c, result, sources, destinations, protocol, moment)
	}
	compared := false
	for _, from := range sources {
		for _, to := range destinations {
			if from.end.Address.Is4() != to.end.Address.Is4() || !carries(from.end, protocol) {
				continue
			}
			compared = true
			s.caseBetween(c, &result, from, to, protocol, moment)
			if !result.Passed {
				return result
			}
		}
	}
	switch {
	case !compared:
		result.Got = "no flow: the two sides have no address of the same family"
		if protocol == bocage.ProtocolICMP || protocol == bocage.ProtocolICMPv6 {
			result.Got += " that carries " + protocol.String()
		}
	case len(sources)*len(destinations) > 1:
		result.Flow = "" // all of them
	}
	return result
}

// Regression finds a flow of a case that does not hold, did before, and is not decided
// by an object of a kind that is excused. Test says of a case that fails the first
// flow that does; another may fail for another reason.
func (s *Simulator) Regression(before *Simulator, c bocage.PolicyTestCase, excused func(kind string) bool) (bocage.TestResult, bool) {
	now, then := s.in.Now, before.in.Now
	if !c.At.IsZero() {
		now, then = c.At, c.At
	}
	s, before = s.at(now), before.at(then)
	protocol, ports, err := bocage.Transport(c.Port, 0, c.Protocol)
	if err != nil {
		return bocage.TestResult{}, false
	}
	sources, err := s.party("from", c.From, c.FromAll, protocol, ports.First, before)
	if err != nil {
		return bocage.TestResult{}, false
	}
	destinations, err := s.party("to", c.To, c.ToAll, protocol, ports.First, before)
	if err != nil {
		return bocage.TestResult{}, false
	}
	as := func(m member) member {
		m.end = before.peers.find(m.end.Address)
		return m
	}
	for _, from := range sources {
		for _, to := range destinations {
			if from.end.Address.Is4() != to.end.Address.Is4() || !carries(from.end, protocol) {
				continue
			}
			result := bocage.TestResult{Want: wanted(c.Expect)}
			if s.caseBetween(c, &result, from, to, protocol, now); result.Passed || excused(result.By.Kind) {
				continue
			}
			was := result
			if before.caseBetween(c, &was, as(from), as(to), protocol, then); was.Passed {
				return result, true
			}
		}
	}
	return bocage.TestResult{}, false
}

// namedCase decides a case about one flow, which holds if it does in each family of
// which both ends have addresses.
func (s *Simulator) namedCase(c bocage.PolicyTestCase, result bocage.TestResult, sources, destinations []member, protocol bocage.Protocol, moment time.Time) bocage.TestResult {
	ends := func(members []member) []End {
		list := make([]End, len(members))
		for i, m := range members {
			list[i] = m.end
		}
		return list
	}
	pairs, n, err := pairsFor(ends(sources), ends(destinations), protocol, c.From, c.To)
	if err != nil {
		result.Got = "no flow: " + err.Error()
		return result
	}
	first := result
	for i, pair := range pairs[:n] {
		one := result
		s.caseBetween(c, &one, member{c.From, pair.from, ""}, member{c.To, pair.to, destinations[0].domain}, protocol, moment)
		if !one.Passed {
			if n > 1 {
				one.Flow += " over " + pair.family()
			}
			return one
		}
		if i == 0 {
			first = one
		}
	}
	return first
}

// caseBetween decides a case for two ends of one family.
func (s *Simulator) caseBetween(c bocage.PolicyTestCase, result *bocage.TestResult, from, to member, protocol bocage.Protocol, moment time.Time) {
	_, reason := s.decideOne(question{from: from.end, to: to.end, protocol: protocol, name: to.domain}, c.Port, moment)
	result.Got, result.By, result.Passed = s.compare(c.Expect, reason)
	result.Flow = fmt.Sprintf("%s -> %s %s", from.name, to.name, protocol)
	if protocol.HasPorts() {
		result.Flow += fmt.Sprintf("/%d", c.Port)
	}
}

// wanted writes an expectation for people.
func wanted(x bocage.PolicyExpectation) string {
	text := x.Reach
	if x.Disposition != "" {
		text += " by " + x.Disposition
	}
	if len(x.Duties) > 0 {
		text += " with " + strings.Join(x.Duties, ", ")
	}
	if x.By != "" {
		text += ", decided by " + x.By
	}
	return text
}

// compare holds what was decided against what is expected.
func (s *Simulator) compare(x bocage.PolicyExpectation, reason bocage.Reason) (got string, by bocage.Ref, holds bool) {
	decision := s.decision(reason.Decision)
	owed := duties(decision)
	by, decided := Decider(decision)
	if !decided {
		by = bocage.Ref{Kind: "Default", Name: "deny"}
		if reason.Would.Allowed() {
			by.Name = "accept"
		}
	}
	reach := bocage.ReachRefuse
	if reason.Would.Allowed() {
		reach = bocage.ReachAllow
	}
	got, holds = reach, reach == x.Reach
	if reach == bocage.ReachRefuse {
		if x.Disposition != "" || !holds {
			got += " by " + reason.Would.String()
		}
		holds = holds && (x.Disposition == "" || x.Disposition == reason.Would.String())
	} else if len(x.Duties) > 0 || len(owed) > 0 {
		got += " with " + strings.Join(owed, ", ")
		if len(owed) == 0 {
			got = reach + " without a duty"
		}
	}
	for _, duty := range x.Duties {
		holds = holds && reason.Would.Allowed() && slices.ContainsFunc(owed, func(have string) bool { return satisfies(have, duty) })
	}
	got += fmt.Sprintf(" (%s), decided by %s", reason.Code, objectName(by))
	holds = holds && (x.By == "" || decidedBy(x.By, decision, by, reason))
	return got, by, holds
}

// satisfies reports whether a duty that is owed is the one that is wanted: by
// its name alone, or with a value that is the one owed or one of several.
func satisfies(have, want string) bool {
	name, value, _ := strings.Cut(have, "=")
	wantName, wantValue, valued := strings.Cut(want, "=")
	return name == wantName && (!valued || value == wantValue || slices.Contains(strings.Split(value, "+"), wantValue))
}

func objectName(r bocage.Ref) string {
	if r.Namespace != "" {
		return r.Kind + " " + r.Namespace + "/" + r.Name
	}
	return r.Kind + " " + r.Name
}

// decidedBy reports whether the object is one of those that decided: of several
// that refuse a flow each would by itself, and a contract has two authors.
func decidedBy(want string, d bocage.Decision, by bocage.Ref, reason bocage.Reason) bool {
	if objectName(by) == want {
		return true
	}
	return slices.ContainsFunc(d.By, func(r bocage.Ref) bool {
		adds := strings.HasPrefix(r.Field, "spec.require") || r.Kind == "ThreatCondition" || r.Kind == "Response"
		return objectName(r) == want && !(reason.Would.Allowed() && adds)
	})
}

// member is one end of a case, under the name that people know.
type member struct {
	name   string
	end    End
	domain bocage.DomainName // that the end stands for, if it does for one
}

// party finds the ends that a case means. Of many that policy cannot tell apart,
// one stands for all; nor could that before, if there is one.
func (s *Simulator) party(field, name string, all *bocage.Side, protocol bocage.Protocol, port uint16, before *Simulator) ([]member, error) {
	if all == nil {
		resolve := s.Destination
		if field == "from" {
			resolve = func(name string) ([]End, bocage.DomainName, error) {
				ends, err := s.Resolve(name)
				return ends, "", err
			}
		}
		ends, domain, err := resolve(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		members := make([]member, len(ends))
		for i, end := range ends {
			members[i] = member{name, end, domain}
		}
		return members, nil
	}
	members, err := s.side(*all, protocol, port, before)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%sAll: %w", field, err)
	case len(members) == 0:
		return nil, fmt.Errorf("%sAll: picks nobody, so that the case shows nothing", field)
	}
	return members, nil
}

// side lists who a Side means: workloads, addresses outside, or, if it is empty,
// both, the world included.
func (s *Simulator) side(side bocage.Side, protocol bocage.Protocol, port uint16, before *Simulator) ([]member, error) {
	var members []member
	type alike struct {
		who, was who
		v4       bool
	}
	seen := map[alike]bool{}
	add := func(name string, end End) {
		a := alike{who: end.who, v4: end.Address.Is4()}
		if before != nil {
			a.was = before.peers.find(end.Address).who
		}
		if !seen[a] {
			seen[a] = true
			members = append(members, member{name: name, end: end})
		}
	}
	prefixes, err := s.external(side)
	if err != nil {
		return nil, err
	}
	everyone := len(side.Namespaces) == 0 && side.Workload == nil && len(side.Data) == 0 && !side.Outside()
	if everyone {
		prefixes = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	}
	if !side.Outside() {
		zones := bocage.ZonesOfHosts(s.in.Zones)
		for i := range s.workloads {
			w := &s.workloads[i]
			if (len(side.Namespaces) == 0 || slices.Contains(side.Namespaces, w.object.Namespace)) &&
				(side.Workload == nil || side.Workload.Matches(w.object.LabelsIn(zones[w.object.Spec.Host]))) &&
				(len(side.Data) == 0 || s.offers(w.object, zones, side.Data, protocol, port)) {
				for _, end := range w.ends {
					add(w.name, end)
				}
			}
		}
	}
	for _, prefix := range prefixes {
		for _, end := range s.outside(prefix) {
			add(end.Address.String(), end)
		}
		if before != nil {
			for _, end := range before.outside(prefix) {
				if end = s.peers.find(end.Address); end.peer == none || s.rs.Peers[end.peer].Workload == "" {
					add(end.Address.String(), end)
				}
			}
		}
	}
	return members, nil
}

// external lists the addresses that a side names, those of its groups included.
func (s *Simulator) external(side bocage.Side) ([]netip.Prefix, error) {
	prefixes := slices.Clone(side.External)
	for _, name := range side.AddressGroups {
		i := slices.IndexFunc(s.in.AddressGroups, func(g *bocage.AddressGroup) bool { return g.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no AddressGroup %s", name)
		}
		prefixes = append(prefixes, s.in.AddressGroups[i].Spec.Addresses...)
	}
	return prefixes, nil
}

// outside lists an address of everybody outside who is within a prefix: of each
// prefix that policy names, and of what it does not name.
func (s *Simulator) outside(prefix netip.Prefix) []End {
	var ends []End
	if end, ok := s.somebody(prefix); ok {
		ends = append(ends, end)
	}
	for i, p := range s.rs.Peers {
		if p.Workload == "" && p.Prefix.Addr().Is4() == prefix.Addr().Is4() && p.Prefix.Bits() >= prefix.Bits() && prefix.Contains(p.Prefix.Addr()) {
			if end, ok := s.somebody(p.Prefix); ok && end.peer == int32(i) {
				ends = append(ends, end)
			}
		}
	}
	return ends
}

// somebody finds an address in a prefix that no narrower one of a peer holds, so
// that it stands for the prefix itself; false if narrower ones cover all of it.
func (s *Simulator) somebody(prefix netip.Prefix) (End, bool) {
	want := int32(none) // whoever has the prefix itself, or the narrowest around it
	for i, p := range s.rs.Peers {
		if p.Prefix.Addr().Is4() == prefix.Addr().Is4() && p.Prefix.Bits() <= prefix.Bits() && p.Prefix.Contains(prefix.Addr()) &&
			(want == none || p.Prefix.Bits() >= s.rs.Peers[want].Prefix.Bits()) {
			want = int32(i)
		}
	}
	for address := prefix.Masked().Addr(); prefix.Contains(address); {
		end := s.peers.find(address)
		if end.peer == want {
			return end, end.peer == none || s.rs.Peers[end.peer].Workload == ""
		}
		if end.peer == none {
			return End{}, false
		}
		// Skip all that the narrower one holds.
		if address = last(s.rs.Peers[end.peer].Prefix).Next(); !address.IsValid() {
			break
		}
	}
	return End{}, false
}

// last is the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 1 << (7 - bit%8)
	}
	address, _ := netip.AddrFromSlice(raw)
	return address
}

// offers reports whether a port of a workload is an interface with one of the
// classes of data.
func (s *Simulator) offers(w *bocage.Workload, zones map[string]string, classes []string, protocol bocage.Protocol, port uint16) bool {
	for _, a := range s.in.Applications {
		if a.Namespace != w.Namespace || !a.Spec.Workload.Matches(w.LabelsIn(zones[w.Spec.Host])) {
			continue
		}
		for _, p := range a.Spec.Provides {
			offered, ports, err := bocage.Transport(p.Port, p.EndPort, p.Protocol)
			if err == nil && offered == protocol && (!protocol.HasPorts() || ports.Contains(port)) &&
				slices.ContainsFunc(p.Data, func(class string) bool { return slices.Contains(classes, class) }) {
				return true
			}
		}
	}
	return false
}

// Failed leaves out the results that passed.
func Failed(results []bocage.TestResult) []bocage.TestResult {
	return slices.DeleteFunc(slices.Clone(results), func(r bocage.TestResult) bool { return r.Passed })
}
