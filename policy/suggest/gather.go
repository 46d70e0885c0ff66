package suggest

import (
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// consumers are those of one service.
type consumers struct {
	groups    map[*group]bool
	addresses []netip.Addr
	outside   []netip.Prefix
	spoken    bocage.AppProtocol // by all of them, as Edge has it
}

// use is what an application consumes: a service of a group, or one outside.
type use struct {
	of       *group
	external netip.Prefix
	service  service
}

// gather notes what the lines show: who offers what to whom.
func (s *suggestion) gather(lines []*line) {
	type outgoing struct {
		from    *group
		service service
	}
	sent := map[outgoing][]netip.Addr{}
	for _, g := range s.groups {
		g.provides, g.uses = map[service]*consumers{}, map[use]bool{}
	}
	for _, l := range lines {
		sv := l.service()
		if l.destination == nil {
			if a, err := netip.ParseAddr(l.destinationName); err == nil {
				o := outgoing{l.source.group, sv}
				sent[o] = append(sent[o], a)
			}
			continue
		}
		provider := l.destination.group
		c := provider.provides[sv]
		if c == nil {
			c = &consumers{groups: map[*group]bool{}}
			provider.provides[sv] = c
		}
		c.spoken = alike(c.spoken, l.edge.Spoken)
		if l.source != nil {
			c.groups[l.source.group] = true
			l.source.group.uses[use{of: provider, service: sv}] = true
		} else if a, err := netip.ParseAddr(l.sourceName); err == nil {
			c.addresses = append(c.addresses, a)
		}
	}
	for o, addresses := range sent {
		for _, prefix := range prefixes(addresses) {
			o.from.uses[use{external: prefix, service: o.service}] = true
		}
	}
	for _, g := range s.groups {
		for _, c := range g.provides {
			c.outside = prefixes(c.addresses)
		}
	}
}

// alike is what two kinds of flow speak together: what says nothing contradicts nobody.
func alike(a, b bocage.AppProtocol) bocage.AppProtocol {
	switch {
	case a == b || b == bocage.SpeechUnknown:
		return a
	case a == bocage.SpeechUnknown:
		return b
	}
	return bocage.SpeechOther
}

// declaredAs names what a service speaks, for a contract: empty if it is not one
// protocol that flows over that transport can be held to.
func declaredAs(spoken bocage.AppProtocol, transport bocage.Protocol) string {
	if !slices.Contains(spoken.Carriers(), transport) {
		return ""
	}
	return spoken.String()
}
