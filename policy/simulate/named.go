package simulate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"bocage.dev/bocage"
)

// anywhere is an address outside for each family, of which as little is declared as
// may be: what a name has of which nothing else is known.
func (s *Simulator) anywhere() []End {
	narrow := func(e End) int {
		if e.peer == none {
			return -1
		}
		return s.rs.Peers[e.peer].Prefix.Bits()
	}
	least := func(at func(i int) netip.Addr) (best End) {
		for i := range 256 {
			e := s.peers.find(at(i))
			if s.isOutside(e) && (!best.Address.IsValid() || narrow(e) < narrow(best)) {
				best = e
			}
		}
		return best
	}
	var ends []End
	for _, e := range []End{
		least(func(i int) netip.Addr { return netip.AddrFrom4([4]byte{byte(1 + i), 113, 57, 201}) }),
		least(func(i int) netip.Addr {
			return netip.AddrFrom16([16]byte{0x20 + byte(i>>4), byte(i) << 4, 0x71, 0x39, 15: 0xc9})
		}),
	} {
		if e.Address.IsValid() {
			ends = append(ends, e)
		}
	}
	return ends
}

// Destination finds the ends that are meant by the destination of a question: those that
// Resolve finds; or, of a DNS name, which it returns too, an address of each family that
// stands for wherever the name is.
func (s *Simulator) Destination(to string) ([]End, bocage.DomainName, error) {
	ends, err := s.Resolve(to)
	if err == nil {
		return ends, "", nil
	}
	name, wrong := bocage.ParseDomainName(to)
	if wrong != nil {
		return nil, "", err
	}
	if err := oneName(name); err != nil {
		return nil, "", err
	}
	return s.anywhere(), name, nil
}

// oneName refuses patterns: a flow goes to one name.
func oneName(name bocage.DomainName) error {
	if _, pattern := name.Wildcard(); pattern {
		return fmt.Errorf("%s is a pattern of names: name one of them", name)
	}
	return nil
}

const (
	mostElsewhere = 24 // outcomes that are told
	mostPrefixes  = 8  // of each
)

// Elsewhere says what a flow to a name gets otherwise: at its own address if the source
// does not know that by the name, and, if the address stands for wherever the name is,
// at those outside of which more is declared.
func (s *Simulator) Elsewhere(f bocage.Flow, name bocage.DomainName, anywhere bool) []bocage.Elsewhere {
	s = s.at(f.At)
	from, to := s.peers.find(f.Source), s.peers.find(f.Destination)
	q := question{from: from, to: to, protocol: f.Protocol, name: name}
	verdict, bare := s.decide(from, to, f.Protocol, f.DestinationPort, f.At)
	_, usual := s.named(q, f.DestinationPort, f.At, verdict, bare)
	var out []bocage.Elsewhere
	if bare != usual {
		out = append(out, s.elsewhere(verdict, bare))
	}
	if !anywhere {
		return out
	}
	sources := map[bool]End{from.Address.Is4(): from}
	if w := s.workloadAt(from); w != nil {
		for _, e := range s.workloads[s.byName[w.NamespacedName()]].ends {
			if _, has := sources[e.Address.Is4()]; !has {
				sources[e.Address.Is4()] = e
			}
		}
	}
	places := map[bocage.Reason]int{} // in out, from the address that has not the name on
	for i, p := range s.rs.Peers {
		if p.Workload != "" || p.Identity != bocage.IdentityWorld {
			continue
		}
		source, speaks := sources[p.Prefix.Addr().Is4()]
		if !speaks {
			continue
		}
		q.from, q.to = source, End{Address: p.Prefix.Addr(), who: s.peers.known[i], peer: int32(i)}
		verdict, reason := s.decide(q.from, q.to, f.Protocol, f.DestinationPort, f.At)
		if s.decision(reason.Decision).MayYield() {
			q.to.Address = f.Destination // which names may mean, as some of the prefix
			verdict, reason = s.named(q, f.DestinationPort, f.At, verdict, reason)
		}
		if reason == usual {
			continue
		}
		at, known := places[reason]
		if known && len(out[at].Addresses) >= mostPrefixes {
			out[at].More++
			continue
		}
		if end, some := s.somebody(p.Prefix); !some || end.peer != int32(i) || !s.holdsNamed(p.Prefix) {
			continue
		}
		if !known {
			if len(out) >= mostElsewhere {
				continue
			}
			at = len(out)
			places[reason] = at
			out = append(out, s.elsewhere(verdict, reason))
		}
		out[at].Addresses = append(out[at].Addresses, p.Prefix)
	}
	return out
}

// holdsNamed reports whether a name can have an address in a prefix.
func (s *Simulator) holdsNamed(p netip.Prefix) bool {
	for _, never := range bocage.NeverNamed() {
		if never.Bits() <= p.Bits() && never.Contains(p.Addr()) {
			return false
		}
	}
	return true
}

func (s *Simulator) elsewhere(verdict bocage.Verdict, reason bocage.Reason) bocage.Elsewhere {
	e := bocage.Elsewhere{Verdict: verdict, Reason: reason, Decider: bocage.Ref{Kind: "Default", Name: "deny"}}
	if by, ok := Decider(s.decision(reason.Decision)); ok {
		e.Decider = by
	} else if reason.Would.Allowed() {
		e.Decider.Name = "accept"
	}
	return e
}

// isOutside reports whether an address is one that a name may open.
func (s *Simulator) isOutside(e End) bool {
	outside := e.peer == none || s.rs.Peers[e.peer].Workload == "" && s.rs.Peers[e.peer].Identity == bocage.IdentityWorld
	return outside && bocage.NamesMayMean(e.Address)
}

// yields reports whether a name may allow what was decided of its address.
func (s *Simulator) yields(q question, reason bocage.Reason) bool {
	return s.isOutside(q.to) && reason.Code != bocage.ReasonQuarantine && s.decision(reason.Decision).MayYield()
}

// named goes on where DecideNamed does after Decide.
func (s *Simulator) named(q question, port uint16, at time.Time, verdict bocage.Verdict, reason bocage.Reason) (bocage.Verdict, bocage.Reason) {
	if !s.yields(q, reason) {
		return verdict, reason
	}
	ix, base := s.index, s.decision(reason.Decision)
	if !q.protocol.HasPorts() {
		port = 0
	}
	for _, n := range s.rs.Names {
		group, known := ix.groups[n.Group]
		if !known || !n.Name.Matches(q.name) {
			continue
		}
		sheet := ix.towards(q.from.group, group)
		if sheet.count == 0 {
			continue
		}
		if i, found := ix.within(sheet, q.protocol, port); found {
			d := &ix.decisions[ix.at(i, at)]
			if s.decision(d.id).Opens(base) {
				return d.verdict, bocage.Reason{Code: d.code, Decision: d.id, Would: d.verdict}
			}
		}
	}
	return verdict, reason
}

// namedSheet is what is said of many groups towards a name.
type namedSheet struct {
	from  []uint64 // a bit for each group
	sheet sheet
}

// addNamings adds what is said of many groups towards names.
func (ix *index) addNamings(rs *bocage.Ruleset) {
	ix.named, ix.apart = map[int32][]namedSheet{}, make(map[[2]int32]bool, len(rs.Apart))
	sets := map[*bocage.Group][]uint64{} // by the first of a list
	for _, n := range rs.Namings {
		from, known := sets[&n.From[0]]
		if !known {
			from = make([]uint64, len(ix.names)/64+1)
			for _, g := range n.From {
				i := ix.groups[g]
				from[i/64] |= 1 << (i % 64)
			}
			sets[&n.From[0]] = from
		}
		cells := slices.SortedFunc(slices.Values(n.Cells), func(a, b bocage.NamedCell) int {
			return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Ports.Last, b.Ports.Last))
		})
		s := sheet{first: int32(len(ix.spans)), count: int32(len(cells))}
		for _, c := range cells {
			ix.spans = append(ix.spans, span{key(c.Protocol, c.Ports.Last), c.Ports.First, ix.numbers[c.Decision]})
		}
		for _, to := range n.To {
			ix.named[ix.groups[to]] = append(ix.named[ix.groups[to]], namedSheet{from, s})
		}
	}
	for _, p := range rs.Apart {
		ix.apart[[2]int32{ix.groups[p.From], ix.groups[p.To]}] = true
	}
}

// towards is the sheet of a group and a name.
func (ix *index) towards(from, name int32) sheet {
	if s := ix.pair(from, name); s.count > 0 {
		return s
	}
	for _, s := range ix.named[name] {
		if s.from[from/64]&(1<<(from%64)) != 0 && !ix.apart[[2]int32{from, name}] {
			return s.sheet
		}
	}
	return sheet{}
}
