package simulate

import (
	"net/netip"
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
		sheet := ix.pair(q.from.group, group)
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
