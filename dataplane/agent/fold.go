package agent

import (
	"cmp"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
)

// Watch says which interfaces become enforcement points without being named by
// a ruleset: those on one of the bridges that are not uplinks.
type Watch struct{ Bridges, Uplinks []string }

// Wanted is what should be attached.
type Wanted struct {
	Attachments []dataplane.Attachment // by ifindex
	Wires       []dataplane.Wire       // by name
	Missing     []bocage.Port          // of the ruleset, without an interface
	Cut         []bocage.Wire          // wires without one of their interfaces
}

// Fold gives the enforcement points that there should be on the links that
// exist. The ruleset may be nil.
func Fold(rs *bocage.Ruleset, links []host.Link, watch Watch) Wanted {
	var want Wanted
	byName := make(map[string]host.Link, len(links))
	bridges := make(map[uint32]bool)
	for _, l := range links {
		byName[l.Name] = l
		if slices.Contains(watch.Bridges, l.Name) {
			bridges[l.Index] = true
		}
	}
	named := make(map[uint32]bool)
	if rs != nil {
		wired := want.foldWires(rs, byName, named)
		for _, p := range rs.Ports {
			if wired[p.Interface] {
				continue
			}
			l, ok := byName[p.Interface]
			if !ok {
				want.Missing = append(want.Missing, p)
				continue
			}
			if named[l.Index] {
				continue // the first port that claims an interface has it
			}
			named[l.Index] = true
			want.Attachments = append(want.Attachments, dataplane.Attachment{Ifindex: l.Index, Port: p})
		}
	}
	for _, l := range links {
		if bridges[l.Master] && !named[l.Index] && !slices.Contains(watch.Uplinks, l.Name) {
			want.Attachments = append(want.Attachments,
				dataplane.Attachment{Ifindex: l.Index, Port: bocage.Port{Interface: l.Name}})
		}
	}
	slices.SortFunc(want.Attachments, func(a, b dataplane.Attachment) int { return cmp.Compare(a.Ifindex, b.Ifindex) })
	return want
}

// foldWires gives the wires that there should be, each with who is at its inside.
// It returns the names that are wires', and names the interfaces that they take.
func (want *Wanted) foldWires(rs *bocage.Ruleset, byName map[string]host.Link, named map[uint32]bool) map[string]bool {
	wired := make(map[string]bool, len(rs.Wires))
	if len(rs.Wires) == 0 {
		return wired
	}
	enforces := make(map[bocage.Group]bool, len(rs.Groups))
	for _, g := range rs.Groups {
		enforces[g.Group] = g.Enforce
	}
	for _, w := range rs.Wires {
		wired[w.Name] = true
		inside, ok := byName[w.Inside]
		outside, there := byName[w.Outside]
		if !ok || !there {
			want.Cut = append(want.Cut, w)
			continue
		}
		named[inside.Index], named[outside.Index] = true, true
		wire := dataplane.Wire{Name: w.Name, Inside: inside.Index, Outside: outside.Index}
		for _, p := range rs.Ports {
			if p.Interface == w.Name {
				wire.Residents = append(wire.Residents, p)
				wire.Closed = wire.Closed || enforces[p.Group]
			}
		}
		want.Wires = append(want.Wires, wire)
	}
	slices.SortFunc(want.Wires, func(a, b dataplane.Wire) int { return strings.Compare(a.Name, b.Name) })
	return wired
}

// rewire is what must be done to get from the wires that are to those that should
// be. Where no ruleset is known, only what lost an interface is detached.
func rewire(want, have []dataplane.Wire, links []host.Link, ruled bool) (attach []dataplane.Wire, detach []uint32) {
	exists := func(ifindex uint32) bool {
		return slices.ContainsFunc(links, func(l host.Link) bool { return l.Index == ifindex })
	}
	same := func(a, b dataplane.Wire) bool { return a.Inside == b.Inside && a.Outside == b.Outside }
	for _, h := range have {
		stays := slices.ContainsFunc(want, func(w dataplane.Wire) bool { return same(w, h) })
		if !exists(h.Inside) || !exists(h.Outside) || ruled && !stays {
			detach = append(detach, h.Inside)
		}
	}
	for _, w := range want {
		i := slices.IndexFunc(have, func(h dataplane.Wire) bool { return same(w, h) })
		if i < 0 || have[i].Name != w.Name || have[i].Closed != w.Closed || !slices.EqualFunc(have[i].Residents, w.Residents, samePort) {
			attach = append(attach, w)
		}
	}
	return attach, detach
}

// difference is what must be done to get from what is to what should be. Where
// no ruleset is known, only what lost its interface is detached.
func difference(want, have []dataplane.Attachment, links []host.Link, ruled bool) (attach []dataplane.Attachment, detach []uint32) {
	wanted := make(map[uint32]bool, len(want))
	current := make(map[uint32]dataplane.Attachment, len(have))
	exists := make(map[uint32]bool, len(links))
	for _, l := range links {
		exists[l.Index] = true
	}
	for _, a := range have {
		current[a.Ifindex] = a
	}
	for _, a := range want {
		wanted[a.Ifindex] = true
		is, attached := current[a.Ifindex]
		if !attached || (!samePort(is.Port, a.Port) && (ruled || a.Port.Identity != bocage.IdentityUnknown)) {
			attach = append(attach, a)
		}
	}
	for _, a := range have {
		if !exists[a.Ifindex] || (ruled && !wanted[a.Ifindex]) {
			detach = append(detach, a.Ifindex)
		}
	}
	return attach, detach
}

func samePort(a, b bocage.Port) bool {
	if a.Interface != b.Interface || a.Identity != b.Identity || a.Group != b.Group || a.Workload != b.Workload ||
		a.MAC != b.MAC || len(a.Addresses) != len(b.Addresses) {
		return false
	}
	for _, address := range a.Addresses {
		if !slices.Contains(b.Addresses, address) {
			return false
		}
	}
	return true
}
