package simulate

import (
	"cmp"
	"fmt"
	"slices"

	"bocage.dev/bocage"
)

// mostCells bounds a matrix that is made in one piece; EachCell has no bound.
const mostCells = 2_000_000

// Matrix is who may open what to whom among the workloads of the namespaces; of
// all, if none is named.
func (s *Simulator) Matrix(namespaces []string) (bocage.ReachMatrix, error) {
	m := bocage.ReachMatrix{Workloads: []string{}, Cells: []bocage.ReachCell{}}
	for _, i := range s.rows(namespaces) {
		m.Workloads = append(m.Workloads, s.workloads[i].name)
	}
	err := s.EachCell(namespaces, func(cell bocage.ReachCell) error {
		if len(m.Cells) == mostCells {
			return fmt.Errorf("more than %d pairs of workloads may talk: ask for fewer namespaces", mostCells)
		}
		m.Cells = append(m.Cells, cell)
		return nil
	})
	return m, err
}

// Rows lists the workloads of a matrix over the namespaces, sorted.
func (s *Simulator) Rows(namespaces []string) []string {
	rows := s.rows(namespaces)
	names := make([]string, len(rows))
	for i, n := range rows {
		names[i] = s.workloads[n].name
	}
	return names
}

func (s *Simulator) rows(namespaces []string) []int32 {
	var rows []int32
	for i := range s.workloads {
		if len(namespaces) == 0 || slices.Contains(namespaces, s.workloads[i].object.Namespace) {
			rows = append(rows, int32(i))
		}
	}
	return rows
}

// EachCell calls each with the allowed cells of every pair that has some, in the
// order of the workloads' names, and ends at its first error. Cells share memory:
// they are for reading.
func (s *Simulator) EachCell(namespaces []string, each func(bocage.ReachCell) error) error {
	rows := s.rows(namespaces)
	known := map[[2][2]int32][]bocage.ReachSet{}
	for _, i := range rows {
		for _, j := range rows {
			pairs, n := pairsOf(s.workloads[i].ends, s.workloads[j].ends)
			if n == 0 {
				continue
			}
			if i == j && s.isItself(pairs[0].from, pairs[0].to) {
				itself := []bocage.ReachSet{{Protocol: bocage.ProtocolAny, Ports: bocage.AllPorts}}
				if err := each(bocage.ReachCell{From: s.workloads[i].name, To: s.workloads[i].name, Ports: itself}); err != nil {
					return err
				}
				continue
			}
			between := [2][2]int32{{none, none}, {none, none}} // groups, by family
			for _, p := range pairs[:n] {
				at := 0
				if !p.from.Address.Is4() {
					at = 1
				}
				between[at] = [2]int32{p.from.group, p.to.group}
				if s.refused(p.from) || s.refused(p.to) {
					between[at] = [2]int32{shut, shut}
				}
			}
			sets, decided := known[between]
			if !decided {
				if len(known) >= 1<<20 {
					clear(known)
				}
				sets = s.setsBetween(between)
				known[between] = sets
			}
			if len(sets) == 0 {
				continue
			}
			if err := each(bocage.ReachCell{From: s.workloads[i].name, To: s.workloads[j].name, Ports: sets}); err != nil {
				return err
			}
		}
	}
	return nil
}

// shut stands for the group of who is cut off, as none does for that of nobody.
const shut = none - 1

// setsBetween lists what is open between two groups of each family. What is open in
// one of two families only says so.
func (s *Simulator) setsBetween(groups [2][2]int32) []bocage.ReachSet {
	var open [2][]bocage.ReachSet
	for at, g := range groups {
		if g[0] >= 0 {
			open[at] = s.reachSets(g[0], g[1])
		}
	}
	switch {
	case groups[0] == groups[1], groups[1][0] == none:
		return open[0]
	case groups[0][0] == none:
		return open[1]
	}
	var sets []bocage.ReachSet
	for at, name := range [2]string{bocage.FamilyIPv4, bocage.FamilyIPv6} {
		for _, set := range open[at] {
			both := slices.ContainsFunc(open[1-at], func(other bocage.ReachSet) bool {
				return set.Protocol == other.Protocol && set.Ports == other.Ports && slices.Equal(set.Duties, other.Duties) && slices.Equal(set.By, other.By)
			})
			if both && at == 1 {
				continue // it is there
			}
			if !both {
				set.Family = name
			}
			sets = append(sets, set)
		}
	}
	slices.SortStableFunc(sets, func(a, b bocage.ReachSet) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Ports.First, b.Ports.First))
	})
	return sets
}

// refused reports whether an end is cut off at the simulator's moment.
func (s *Simulator) refused(e End) bool {
	return e.refusal != 0 && (s.index.refusals[e.refusal-1].until.IsZero() || s.in.Now.Before(s.index.refusals[e.refusal-1].until))
}

// reachSets lists what is allowed from one group to another. Protocol "any"
// stands for all of them and stands alone; where protocols differ, those that
// people use and those that policy names are listed one by one.
func (s *Simulator) reachSets(from, to int32) []bocage.ReachSet {
	named := s.index.protocols(from, to)
	rest := s.index.pieces(from, to, unnamed(named))
	uniform := true
	for _, p := range named {
		pieces := s.index.pieces(from, to, p)
		uniform = uniform && len(pieces) == 1 && s.same(pieces[0].decision, rest[0].decision)
	}
	if uniform {
		return s.appendSets(nil, bocage.ProtocolAny, rest)
	}
	var sets []bocage.ReachSet
	for _, p := range named {
		sets = s.appendSets(sets, p, s.index.pieces(from, to, p))
	}
	return sets
}

func (s *Simulator) same(a, b int32) bool {
	return s.index.at(a, s.in.Now) == s.index.at(b, s.in.Now)
}

func (s *Simulator) appendSets(sets []bocage.ReachSet, protocol bocage.Protocol, pieces []piece) []bocage.ReachSet {
	for _, p := range pieces {
		d := s.index.decisions[s.index.at(p.decision, s.in.Now)]
		if !d.verdict.Allowed() {
			continue
		}
		decision := s.decision(d.id)
		set := bocage.ReachSet{Protocol: protocol, Ports: bocage.PortRange{First: p.first, Last: p.last}, Duties: duties(decision), By: decision.By}
		if n := len(sets); n > 0 && sets[n-1].Protocol == protocol && uint32(sets[n-1].Ports.Last)+1 == uint32(p.first) &&
			slices.Equal(sets[n-1].Duties, set.Duties) && slices.Equal(sets[n-1].By, set.By) {
			sets[n-1].Ports.Last = p.last
			continue
		}
		sets = append(sets, set)
	}
	return sets
}

// piece is an interval of ports of one protocol with its decision.
type piece struct {
	first, last uint16
	decision    int32
}

// pieces divides the ports of a protocol between two groups by what decides;
// protocols without ports have one piece.
func (ix *index) pieces(from, to int32, protocol bocage.Protocol) []piece {
	if !protocol.HasPorts() {
		return []piece{{0, 65535, ix.cell(from, to, protocol, 0)}}
	}
	cuts := []uint32{0, 65536}
	for _, s := range ix.levels(from, to) {
		for _, span := range ix.in(s) {
			if p := span.protocol(); p == protocol || p == bocage.ProtocolAny {
				cuts = append(cuts, uint32(span.first), uint32(span.last())+1)
			}
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var out []piece
	for i, cut := range cuts[:len(cuts)-1] {
		p := piece{uint16(cut), uint16(cuts[i+1] - 1), ix.cell(from, to, protocol, uint16(cut))}
		if n := len(out); n > 0 && out[n-1].decision == p.decision {
			out[n-1].last = p.last
			continue
		}
		out = append(out, p)
	}
	return out
}

// protocols lists those that people use and those that rules for the pair name.
func (ix *index) protocols(from, to int32) []bocage.Protocol {
	named := []bocage.Protocol{bocage.ProtocolICMP, bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolICMPv6, bocage.ProtocolSCTP}
	for _, s := range ix.levels(from, to) {
		for _, span := range ix.in(s) {
			if p := span.protocol(); p != bocage.ProtocolAny {
				named = append(named, p)
			}
		}
	}
	slices.Sort(named)
	return slices.Compact(named)
}

// unnamed is a protocol that a sorted list does not hold. There is one: rules of
// one pair name fewer than all 255.
func unnamed(named []bocage.Protocol) bocage.Protocol {
	for p := bocage.Protocol(255); p > 0; p-- {
		if _, found := slices.BinarySearch(named, p); !found {
			return p
		}
	}
	return bocage.Protocol(255)
}
