package agent

import (
	"bytes"
	"cmp"
	"net"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/dataplane/discover"
	"bocage.dev/bocage/host"
)

// Watch says which interfaces become enforcement points without being named by
// a ruleset: the veths and taps on one of the bridges that are not uplinks.
type Watch struct{ Bridges, Uplinks []string }

// Wanted is what should be attached.
type Wanted struct {
	Attachments []dataplane.Attachment // by ifindex
	Wires       []dataplane.Wire       // by name
	Missing     []bocage.Port          // declared in the ruleset, without an interface of that name
	Unfit       []bocage.Port          // on interfaces that carry no frames
	Cut         []bocage.Wire          // wires without one of their interfaces
}

// Scene is what there is to stand in front of.
type Scene struct {
	Ruleset *bocage.Ruleset // nil: none is known
	Links   []host.Link
	Watch   Watch
	Found   discover.Found
	Have    []dataplane.Attachment
}

// Fold gives the enforcement points that there should be.
func Fold(s Scene) Wanted {
	var want Wanted
	named := make(map[uint32]bool)
	enforced := make(map[string]bool) // workloads of the ruleset
	if s.Ruleset != nil {
		groups := make(map[bocage.Group]bool, len(s.Ruleset.Groups))
		for _, g := range s.Ruleset.Groups {
			groups[g.Group] = g.Enforce
		}
		wired := want.foldWires(s.Ruleset, s.Links, named)
		for _, p := range s.Ruleset.Ports {
			if wired[p.Interface] {
				continue
			}
			enforced[p.Workload] = enforced[p.Workload] || groups[p.Group]
			l, ok := s.linkOf(p)
			switch {
			case !ok && p.Instance == "":
				want.Missing = append(want.Missing, p)
			case !ok || named[l.Index]: // the first port that claims an interface has it
			case !l.Ethernet:
				want.Unfit = append(want.Unfit, p)
			default:
				named[l.Index] = true
				want.Attachments = append(want.Attachments, dataplane.Attachment{Ifindex: l.Index, Port: p})
			}
		}
	}
	want.keepRenamed(&s, named)
	watched := s.watched()
	for _, l := range s.Links {
		bridge, watched := watched[l.Master]
		if !watched || named[l.Index] || l.Kind != "veth" && l.Kind != "tuntap" || slices.Contains(s.Watch.Uplinks, l.Name) {
			continue
		}
		want.Attachments = append(want.Attachments,
			dataplane.Attachment{Ifindex: l.Index, Port: bocage.Port{Interface: l.Name}, Closed: s.closed(l, bridge, enforced)})
	}
	slices.SortFunc(want.Attachments, func(a, b dataplane.Attachment) int { return cmp.Compare(a.Ifindex, b.Ifindex) })
	return want
}

// keepRenamed keeps enforcement points at interfaces that have lost the name by which
// they are declared, unless somebody else is declared at them: a name is no reason to let
// a workload go. They stay among the missing, so that it is told.
func (want *Wanted) keepRenamed(s *Scene, named map[uint32]bool) {
	for _, p := range want.Missing {
		theirs := func(a dataplane.Attachment) bool {
			return a.Port.Identity == p.Identity && p.Identity != bocage.IdentityUnknown && !named[a.Ifindex] &&
				(a.Port.MAC == "" || p.MAC == "" || sameMAC(a.Port.MAC, p.MAC))
		}
		i := slices.IndexFunc(s.Have, func(a dataplane.Attachment) bool { return theirs(a) && a.Port.Interface == p.Interface })
		if i < 0 { // what an agent before attached goes by its name of today, and names nobody
			i = slices.IndexFunc(s.Have, func(a dataplane.Attachment) bool { return theirs(a) && a.Port.Workload == "" })
		}
		if i < 0 {
			continue
		}
		if l, ok := s.link(func(l host.Link) bool { return l.Index == s.Have[i].Ifindex }); ok && l.Ethernet {
			named[l.Index] = true
			want.Attachments = append(want.Attachments, dataplane.Attachment{Ifindex: l.Index, Port: p})
		}
	}
}

// sameMAC compares them however they are written.
func sameMAC(a, b string) bool {
	first, err := net.ParseMAC(a)
	second, other := net.ParseMAC(b)
	return err == nil && other == nil && bytes.Equal(first, second)
}

// linkOf finds a port's interface: by its name, or where an instance is named by
// what is behind it, since the name may be another's by now.
func (s *Scene) linkOf(p bocage.Port) (host.Link, bool) {
	if p.Instance == "" {
		return s.link(func(l host.Link) bool { return l.Name == p.Interface })
	}
	for _, b := range s.Found.Bindings {
		if b.Instance == p.Instance && b.MAC == p.MAC {
			return s.link(func(l host.Link) bool { return l.Index == b.Ifindex })
		}
	}
	if s.Found.Listed {
		return host.Link{}, false
	}
	// Nobody can say yet what is behind it: who was attached stays.
	for _, a := range s.Have {
		if a.Port.Identity == p.Identity && a.Port.MAC == p.MAC && a.Port.Identity != bocage.IdentityUnknown {
			return s.link(func(l host.Link) bool { return l.Index == a.Ifindex })
		}
	}
	return host.Link{}, false
}

func (s *Scene) link(is func(host.Link) bool) (host.Link, bool) {
	i := slices.IndexFunc(s.Links, is)
	if i < 0 {
		return host.Link{}, false
	}
	return s.Links[i], true
}

// watched finds the bridges that are watched, with what is known of their networks.
func (s *Scene) watched() map[uint32]discover.Network {
	bridges := make(map[uint32]discover.Network)
	for _, l := range s.Links {
		if slices.Contains(s.Watch.Bridges, l.Name) {
			bridges[l.Index] = discover.Network{Bridge: l.Name}
		}
		for _, n := range s.Found.Networks {
			if n.Bridge == l.Name && l.Kind == "bridge" {
				bridges[l.Index] = n
			}
		}
	}
	return bridges
}

// closed says whether an interface that nobody vouches for is refused everything:
// if one who may be behind it would be enforced. Where nothing is known of who may
// be, any enforcement is enough.
func (s *Scene) closed(l host.Link, bridge discover.Network, enforced map[string]bool) bool {
	if s.Ruleset == nil || len(s.Ruleset.Newcomers) == 0 {
		return false
	}
	meant := func(who discover.Newcomer) bool {
		return enforced[who.Workload] ||
			slices.ContainsFunc(s.Ruleset.Newcomers, func(n bocage.Newcomers) bool { return n.Picks(who.Namespace, who.Labels) })
	}
	for _, b := range s.Found.Bindings {
		if b.Ifindex == l.Index {
			return meant(b.Newcomer)
		}
	}
	if bridge.Known && len(bridge.Coming) > 0 {
		return slices.ContainsFunc(bridge.Coming, meant)
	}
	return true
}

// foldWires gives the wires that there should be, each with who is at its inside.
// It returns the names that are wires', and names the interfaces that they take.
func (want *Wanted) foldWires(rs *bocage.Ruleset, links []host.Link, named map[uint32]bool) map[string]bool {
	wired := make(map[string]bool, len(rs.Wires))
	if len(rs.Wires) == 0 {
		return wired
	}
	enforces := make(map[bocage.Group]bool, len(rs.Groups))
	for _, g := range rs.Groups {
		enforces[g.Group] = g.Enforce
	}
	byName := make(map[string]host.Link, len(links))
	for _, l := range links {
		byName[l.Name] = l
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
		wire := dataplane.Wire{Name: w.Name, Inside: inside.Index, Outside: outside.Index, Drivers: w.Forwarding == bocage.ForwardingXDP}
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
	alike := func(a, b dataplane.Wire) bool { return a.Inside == b.Inside && a.Outside == b.Outside }
	for _, h := range have {
		stays := slices.ContainsFunc(want, func(w dataplane.Wire) bool { return alike(w, h) })
		if !exists(h.Inside) || !exists(h.Outside) || ruled && !stays {
			detach = append(detach, h.Inside)
		}
	}
	for _, w := range want {
		i := slices.IndexFunc(have, func(h dataplane.Wire) bool { return alike(w, h) })
		if i < 0 || have[i].Name != w.Name || have[i].Closed != w.Closed || have[i].Drivers != w.Drivers || !slices.EqualFunc(have[i].Residents, w.Residents, samePort) {
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
		if !attached || (!same(is, a) && (ruled || a.Port.Identity != bocage.IdentityUnknown)) {
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

func same(a, b dataplane.Attachment) bool { return a.Closed == b.Closed && samePort(a.Port, b.Port) }

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
