package agent

import (
	"cmp"
	"slices"

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
	Missing     []bocage.Port          // of the ruleset, without an interface
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
		for _, p := range rs.Ports {
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
