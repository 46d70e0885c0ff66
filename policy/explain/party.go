package explain

import (
	"net/netip"
	"slices"

	"bocage.dev/bocage"
)

// party is one end of a flow.
type party struct {
	address  netip.Addr
	workload *bocage.Workload // nil outside the inventory
	zone     string
	labels   map[string]string
	// named is an end that is only known to go by a name: somewhere outside.
	named bool
	// called is the name that the address merely stands for, if it does.
	called bocage.DomainName
}

func (j *Judge) party(address netip.Addr) party {
	p := party{address: address.Unmap()}
	if w := j.workloads[p.address]; w != nil {
		p.workload, p.zone = w, j.zones[w.Spec.Host]
		p.labels = j.labelsOf(w, p.zone)
	} else if p.address == j.somewhere {
		p.called = j.called
	}
	return p
}

// labelsOf are the labels that a workload has in a zone. They are for reading.
func (j *Judge) labelsOf(w *bocage.Workload, zone string) map[string]string {
	for i := range j.known {
		if k := &j.known[i]; k.Workload == w && k.Zone == zone {
			return k.Labels
		}
	}
	return w.LabelsIn(zone)
}

// String names the party for people.
func (p party) String() string {
	switch {
	case p.called != "":
		return string(p.called)
	case p.workload == nil:
		return p.address.String()
	}
	return p.workload.NamespacedName()
}

// picked reports whether the party is a workload of the namespaces (none: all)
// that the selector (nil: all) picks.
func (p party) picked(namespaces []string, s *bocage.Selector) bool {
	return p.workload != nil &&
		(len(namespaces) == 0 || slices.Contains(namespaces, p.workload.Namespace)) &&
		(s == nil || s.Matches(p.labels))
}

// within reports whether the party lies outside the inventory and in one of the prefixes.
func (p party) within(prefixes []netip.Prefix) bool {
	return p.workload == nil && !p.named && slices.ContainsFunc(prefixes, func(prefix netip.Prefix) bool { return contains(prefix, p.address) })
}

// contains also reads an IPv4 prefix that is written in its IPv6-mapped form.
func contains(prefix netip.Prefix, a netip.Addr) bool {
	return prefix.Contains(a) || a.Is4() && prefix.Addr().Is4In6() && prefix.Contains(netip.AddrFrom16(a.As16()))
}

// assurance is how far the party's identity is vouched for.
func (p party) assurance() int {
	text := p.workload.Status.Assurance
	if text == "" {
		text = bocage.AssuranceOfDeclared
	}
	level, _ := bocage.AssuranceLevel(text)
	return level
}

// matches reports whether a corporate declaration's match covers the flow.
func (j *Judge) matches(m bocage.CellMatch, g *Judgement, f bocage.Flow) bool {
	return j.side(m.From, g.Source, f) && j.side(m.To, g.Destination, f) && portsCover(m.Ports, f)
}

// side reports whether one end of the flow is meant.
func (j *Judge) side(s bocage.Side, p party, f bocage.Flow) bool {
	if s.Outside() {
		return p.within(j.outside(s))
	}
	if (len(s.Namespaces) > 0 || s.Workload != nil) && !p.picked(s.Namespaces, s.Workload) {
		return false
	}
	return len(s.Data) == 0 || j.offers(p, s.Data, f)
}

// outside lists the prefixes that a side names, by itself or by group.
func (j *Judge) outside(s bocage.Side) []netip.Prefix {
	prefixes := slices.Clone(s.External)
	for _, name := range s.AddressGroups {
		prefixes = append(prefixes, j.groups[name]...)
	}
	return prefixes
}

// offers reports whether the flow's port is an interface of the party with one
// of the data classes.
func (j *Judge) offers(p party, classes []string, f bocage.Flow) bool {
	for _, a := range j.of(p) {
		for _, provide := range a.Spec.Provides {
			if covers(f, provide.Port, provide.EndPort, provide.Protocol) && classed(provide, classes) {
				return true
			}
		}
	}
	return false
}

func classed(provide bocage.Provide, classes []string) bool {
	return slices.ContainsFunc(provide.Data, func(class string) bool { return slices.Contains(classes, class) })
}

func portsCover(ports []bocage.PortMatch, f bocage.Flow) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p bocage.PortMatch) bool { return covers(f, p.Port, p.EndPort, p.Protocol) })
}

func covers(f bocage.Flow, port, endPort uint16, protocol string) bool {
	p, r, err := bocage.Transport(port, endPort, protocol)
	return err == nil && p == f.Protocol && r.Contains(f.DestinationPort)
}

// of lists the applications that select a party, by name.
func (j *Judge) of(p party) []*bocage.Application {
	if p.workload == nil {
		return nil
	}
	var out []*bocage.Application
	for _, a := range j.applications[p.workload.Namespace] {
		if a.Spec.Workload.Matches(p.labels) {
			out = append(out, a)
		}
	}
	return out
}

// Owners names the Applications that select the workload at an address, the most
// particular first.
func (j *Judge) Owners(address netip.Addr) []string {
	selecting := slices.Clone(j.of(j.party(address)))
	slices.SortStableFunc(selecting, func(a, b *bocage.Application) int { return terms(b.Spec.Workload) - terms(a.Spec.Workload) })
	names := make([]string, len(selecting))
	for i, a := range selecting {
		names[i] = a.NamespacedName()
	}
	return names
}
