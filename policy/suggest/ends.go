package suggest

import (
	"cmp"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/explain"
)

// member is a workload with its group.
type member struct {
	workload *bocage.Workload
	labels   map[string]string
	group    *group
}

func (m *member) name() string { return m.workload.NamespacedName() }

// findEnds indexes the inventory.
func (s *suggestion) findEnds() {
	s.judge = explain.NewJudge(s.in)
	zones := bocage.ZonesOfHosts(s.in.Zones)
	sorted := slices.Clone(s.in.Workloads)
	slices.SortFunc(sorted, func(a, b *bocage.Workload) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Status.Identity, b.Status.Identity))
	})
	s.ends, s.byAddr = make(map[string]*member, len(sorted)), make(map[string]*member, len(sorted))
	for _, w := range sorted {
		if s.ends[w.NamespacedName()] != nil {
			continue
		}
		m := &member{workload: w, labels: w.LabelsIn(zones[w.Spec.Host])}
		s.ends[w.NamespacedName()] = m
		s.members = append(s.members, m)
		for _, address := range w.Spec.Addresses {
			if s.byAddr[address.String()] == nil {
				s.byAddr[address.String()] = m
			}
		}
	}
}

// line is the sum of all edges between two ends on one port.
type line struct {
	edge                        bocage.Edge
	source, destination         *member // nil outside
	sourceName, destinationName string  // namespace/name or an address; empty if it is neither
}

func (l *line) service() service {
	if !l.edge.Protocol.HasPorts() {
		return service{protocol: l.edge.Protocol}
	}
	return service{l.edge.Protocol, l.edge.DestinationPort}
}

// concerns reports whether an end lies in one of the namespaces.
func (l *line) concerns(namespaces []string) bool {
	if len(namespaces) == 0 {
		return true
	}
	return slices.ContainsFunc([]*member{l.source, l.destination}, func(m *member) bool {
		return m != nil && slices.Contains(namespaces, m.workload.Namespace)
	})
}

func compareLines(a, b *line) int {
	return cmp.Or(cmp.Compare(a.edge.Source, b.edge.Source), cmp.Compare(a.edge.Destination, b.edge.Destination),
		cmp.Compare(a.edge.Protocol, b.edge.Protocol), cmp.Compare(a.edge.DestinationPort, b.edge.DestinationPort),
		cmp.Compare(a.edge.Flows, b.edge.Flows), cmp.Compare(a.edge.Replied, b.edge.Replied))
}

// resolve finds the ends of the edges, and joins edges with the same ends and port.
func (s *suggestion) resolve(edges []bocage.Edge) []*line {
	type key struct {
		source, destination string
		service             service
	}
	joined := map[key]*line{}
	var lines []*line
	for _, e := range edges {
		l := &line{edge: e}
		l.sourceName, l.source = s.end(e.Source)
		l.destinationName, l.destination = s.end(e.Destination)
		if l.sourceName != "" && l.destinationName != "" {
			k := key{l.sourceName, l.destinationName, l.service()}
			if other := joined[k]; other != nil {
				other.join(e)
				continue
			}
			joined[k] = l
		}
		lines = append(lines, l)
	}
	slices.SortStableFunc(lines, compareLines)
	return lines
}

func (l *line) join(e bocage.Edge) {
	l.edge.Flows += e.Flows
	l.edge.Replied += e.Replied
	if l.edge.First.IsZero() || !e.First.IsZero() && e.First.Before(l.edge.First) {
		l.edge.First = e.First
	}
	if e.Last.After(l.edge.Last) {
		l.edge.Last = e.Last
	}
	l.edge.Spoken = alike(l.edge.Spoken, e.Spoken)
	// An end may be written in two ways; the smaller text wins, whatever the order.
	l.edge.Source, l.edge.Destination = min(l.edge.Source, e.Source), min(l.edge.Destination, e.Destination)
	l.edge.DestinationPort = min(l.edge.DestinationPort, e.DestinationPort)
}

// end resolves a workload's name or an address. The name is empty if it is neither, or an
// address that no rule can name.
func (s *suggestion) end(text string) (name string, m *member) {
	if m := s.ends[text]; m != nil {
		return text, m
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		return "", nil
	}
	address = address.Unmap().WithZone("")
	if m := s.byAddr[address.String()]; m != nil {
		return m.name(), m
	}
	if address.IsMulticast() || address.IsUnspecified() || address.IsLoopback() || address == netip.AddrFrom4([4]byte{255, 255, 255, 255}) ||
		address.Is6() && address.IsLinkLocalUnicast() {
		return "", nil
	}
	return address.String(), nil
}
