// Package policytest makes declarations and inventories for the tests of the
// policy room: small ones in which everything meets everything, and large ones
// that look like data centers. Nothing else may use it.
package policytest

import (
	"fmt"
	"net/netip"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Now is the moment at which drawn inputs are compiled.
var Now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

var (
	namespaces = []string{"shop", "pay", "dev"}
	labelPairs = map[string][]string{"app": {"web", "api", "db"}, "env": {"prod", "test"}, "tier": {"edge"}}
	labelKeys  = []string{"app", "env", "tier"}
	classes    = []string{"pci", "pii"}
	prefixes   = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("203.0.113.0/25"),
		netip.MustParsePrefix("203.0.113.128/25"),
		netip.MustParsePrefix("203.0.113.200/32"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2001:db8:1::/48"),
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("::ffff:203.0.113.128/121"),
	}
	// Ports has neighbours and the ends of the range, where mistakes live.
	ports     = []uint16{1, 22, 79, 80, 81, 443, 5432, 65534, 65535}
	protocols = []string{"", "TCP", "UDP", "SCTP", "ICMP", "47"}
	profiles  = []string{"deep", "sql", "web"}
	hosts     = []string{"h1", "h2", "h3"}
	groups    = []string{"partners", "wide", "gone"} // the last is never declared
	spoken    = []string{"", "", "tls", "http"}
	levels    = []string{"", "L0", "L2", "L3"}
)

// Addresses are where flows of drawn inputs come from and go to: some of
// workloads, inside and outside named prefixes, and of nobody.
func Addresses() []netip.Addr {
	var out []netip.Addr
	for i := range 12 {
		out = append(out, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	for _, s := range []string{"203.0.113.1", "203.0.113.129", "203.0.113.200", "198.51.100.7", "192.0.2.1", "2001:db8::1", "2001:db8:1::1", "2001:db9::1", "fd00::1", "fd00::2"} {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// Ports are the ports at which something may change in a drawn input.
func Ports() []uint16 {
	out := []uint16{0, 2, 21, 23, 78, 82, 442, 444, 5431, 5433, 65533}
	return append(out, ports...)
}

// Draw makes an input.
func Draw(t *rapid.T) compile.Input {
	in := compile.Input{Now: Now, Generation: 7}
	for i := range rapid.IntRange(0, 3).Draw(t, "profiles") {
		in.Profiles = append(in.Profiles, &bocage.InspectionProfile{
			ObjectMeta: bocage.ObjectMeta{Name: profiles[i]},
			Spec: bocage.InspectionProfileSpec{
				Signatures: fmt.Sprintf("alert tcp any any -> any any (msg:\"%s\"; sid:%d;)\n", profiles[i], rapid.IntRange(1, 2).Draw(t, "sid")),
				FailMode:   rapid.SampledFrom([]string{"", "open", "closed"}).Draw(t, "fail")},
		})
	}
	for i := range rapid.IntRange(0, 9).Draw(t, "workloads") {
		in.Workloads = append(in.Workloads, drawWorkload(t, i))
	}
	for i := range rapid.IntRange(0, 5).Draw(t, "applications") {
		in.Applications = append(in.Applications, drawApplication(t, i))
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "guardrails") {
		in.Guardrails = append(in.Guardrails, drawGuardrail(t, i))
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "scopes") {
		in.Scopes = append(in.Scopes, &bocage.Scope{
			ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("scope-%d", i)},
			Spec: bocage.ScopeSpec{Namespaces: drawNamespaces(t), Workload: drawSelector(t),
				Mode:        rapid.SampledFrom([]string{bocage.ModeEnforce, bocage.ModeObserve}).Draw(t, "mode"),
				Disposition: rapid.SampledFrom([]string{"", bocage.DispositionDrop, bocage.DispositionReject}).Draw(t, "disposition")},
		})
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "decoys") {
		d := &bocage.Decoy{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("decoy-%d", i)},
			Spec: bocage.DecoySpec{Protocol: "ssh", Port: rapid.SampledFrom(ports[:4]).Draw(t, "port"),
				Banner: rapid.SampledFrom([]string{"", "SSH-2.0-x"}).Draw(t, "banner"),
				For:    drawInside(t), From: drawSide(t)}}
		in.Decoys = append(in.Decoys, d)
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "threats") {
		in.ThreatConditions = append(in.ThreatConditions, DrawThreat(t, i))
	}
	for i := range rapid.IntRange(0, 1).Draw(t, "quarantines") {
		in.Quarantines = append(in.Quarantines, DrawQuarantine(t, i))
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "exceptions") {
		in.Exceptions = append(in.Exceptions, drawException(t, i))
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "responses") {
		in.Responses = append(in.Responses, DrawResponse(t, i))
	}
	drawPlaces(t, &in)
	if rapid.Bool().Draw(t, "kubernetes") {
		drawKubernetes(t, &in)
	}
	return in
}

// drawPlaces makes zones, namespaces, hosts and address groups.
func drawPlaces(t *rapid.T, in *compile.Input) {
	for i, members := range [][]string{{"h1"}, {"h1", "h2"}, {"h3"}} {
		if rapid.Bool().Draw(t, "zone") {
			in.Zones = append(in.Zones, &bocage.Zone{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("z%d", i+1)}, Spec: bocage.ZoneSpec{Hosts: members}})
		}
	}
	for _, name := range namespaces {
		if rapid.Bool().Draw(t, "declared") {
			in.Namespaces = append(in.Namespaces, &bocage.Namespace{ObjectMeta: bocage.ObjectMeta{Name: name, Labels: drawLabels(t)}})
		}
	}
	for i, name := range hosts {
		if rapid.Bool().Draw(t, "known host") {
			h := &bocage.Host{ObjectMeta: bocage.ObjectMeta{Name: name, Labels: drawLabels(t)}}
			if rapid.Bool().Draw(t, "addressed") {
				h.Spec.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}
			}
			in.Hosts = append(in.Hosts, h)
		}
	}
	for _, name := range groups[:2] {
		if rapid.Bool().Draw(t, "group") {
			in.AddressGroups = append(in.AddressGroups, &bocage.AddressGroup{ObjectMeta: bocage.ObjectMeta{Name: name},
				Spec: bocage.AddressGroupSpec{Addresses: append(drawPrefixes(t), drawPrefixes(t)...)}})
		}
	}
}

func drawWorkload(t *rapid.T, i int) *bocage.Workload {
	addresses := []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}
	switch rapid.IntRange(0, 9).Draw(t, "extra") {
	case 0: // somebody else's
		addresses = append(addresses, netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 9).Draw(t, "taken"))}))
		if addresses[0] == addresses[1] {
			addresses = addresses[:1]
		}
	case 1:
		addresses = append(addresses, netip.MustParseAddr("fd00::1"))
	case 2:
		addresses = append(addresses, netip.MustParseAddr("fd00::2"))
	}
	w := &bocage.Workload{
		ObjectMeta: bocage.ObjectMeta{Namespace: rapid.SampledFrom(namespaces).Draw(t, "namespace"), Name: fmt.Sprintf("w%d", i), Labels: drawLabels(t)},
		Spec: bocage.WorkloadSpec{Host: rapid.SampledFrom(hosts).Draw(t, "host"), Interface: fmt.Sprintf("veth%d", i),
			MAC: fmt.Sprintf("02:00:00:00:00:%02x", i), Addresses: addresses},
		Status: bocage.WorkloadStatus{Identity: bocage.IdentityFirst + bocage.Identity(i)},
	}
	switch rapid.IntRange(0, 19).Draw(t, "oddity") {
	case 0:
		w.Spec.Interface = ""
	case 1:
		w.Status.Identity = 0
	case 2: // on an interface of its own
		w.Spec.MoreInterfaces = []bocage.WorkloadInterface{{Interface: fmt.Sprintf("more%d", i), Addresses: addresses[len(addresses)-1:]}}
	}
	w.Status.Assurance = rapid.SampledFrom(levels).Draw(t, "assurance")
	if rapid.IntRange(0, 2).Draw(t, "pod") == 0 {
		w.Spec.Orchestrator = bocage.OrchestratorKubernetes
	}
	for range rapid.IntRange(0, 2).Draw(t, "named ports") {
		w.Spec.Ports = append(w.Spec.Ports, bocage.NamedPort{Name: rapid.SampledFrom(portNames).Draw(t, "port name"),
			Port: rapid.SampledFrom(ports[3:6]).Draw(t, "port"), Protocol: rapid.SampledFrom(protocols[:4]).Draw(t, "protocol")})
	}
	return w
}

func drawLabels(t *rapid.T) map[string]string {
	labels := map[string]string{}
	for _, key := range labelKeys {
		switch rapid.IntRange(0, 8).Draw(t, "has "+key) {
		case 0, 1, 2, 3:
		case 4:
			labels[key] = "" // is another thing than no label
		default:
			labels[key] = rapid.SampledFrom(labelPairs[key]).Draw(t, key)
		}
	}
	return labels
}

func drawSelector(t *rapid.T) bocage.Selector {
	var s bocage.Selector
	if rapid.IntRange(0, 9).Draw(t, "inherent") == 0 {
		where := [][2]string{{bocage.LabelHost, "h1"}, {bocage.LabelZone, "z1"}, {bocage.LabelZone, "z2"}, {bocage.LabelZone, "z3"}, {bocage.LabelAssurance, "L1"}, {bocage.LabelAssurance, "L2"}, {bocage.LabelNamespace, "pay"}}
		label := rapid.SampledFrom(where).Draw(t, "label")
		operator := rapid.SampledFrom([]string{"In", "NotIn"}).Draw(t, "operator")
		s.MatchExpressions = []bocage.Requirement{{Key: label[0], Operator: operator, Values: label[1:]}}
		return s
	}
	label := func(key, value string) {
		if s.MatchLabels == nil {
			s.MatchLabels = map[string]string{}
		}
		s.MatchLabels[key] = value
	}
	for range rapid.IntRange(0, 2).Draw(t, "terms") {
		key := rapid.SampledFrom(labelKeys).Draw(t, "key")
		values := labelPairs[key]
		switch rapid.IntRange(0, 5).Draw(t, "operator") {
		case 0:
			s.MatchExpressions = append(s.MatchExpressions, bocage.Requirement{Key: key, Operator: "In", Values: values[:rapid.IntRange(1, len(values)).Draw(t, "n")]})
		case 1:
			s.MatchExpressions = append(s.MatchExpressions, bocage.Requirement{Key: key, Operator: "NotIn", Values: values[:1]})
		case 2:
			s.MatchExpressions = append(s.MatchExpressions, bocage.Requirement{Key: key, Operator: "Exists"})
		case 3:
			s.MatchExpressions = append(s.MatchExpressions, bocage.Requirement{Key: key, Operator: "DoesNotExist"})
		case 4:
			label(bocage.LabelName, fmt.Sprintf("w%d", rapid.IntRange(0, 3).Draw(t, "named")))
		default:
			label(key, rapid.SampledFrom(values).Draw(t, "value"))
		}
	}
	return s
}

func drawNamespaces(t *rapid.T) []string {
	if rapid.Bool().Draw(t, "everywhere") {
		return nil
	}
	return namespaces[:rapid.IntRange(1, 2).Draw(t, "namespaces")]
}

// drawInside picks workloads.
func drawInside(t *rapid.T) bocage.Side {
	var s bocage.Side
	s.Namespaces = drawNamespaces(t)
	if rapid.Bool().Draw(t, "by label") {
		selector := drawSelector(t)
		s.Workload = &selector
	}
	return s
}

func drawSide(t *rapid.T) bocage.Side {
	switch rapid.IntRange(0, 3).Draw(t, "side") {
	case 0:
		return bocage.Side{}
	case 1:
		switch rapid.IntRange(0, 3).Draw(t, "grouped") {
		case 0:
			return bocage.Side{AddressGroups: []string{rapid.SampledFrom(groups).Draw(t, "group")}}
		case 1:
			return bocage.Side{External: drawPrefixes(t), AddressGroups: groups[:1]}
		}
		return bocage.Side{External: drawPrefixes(t)}
	default:
		return drawInside(t)
	}
}

func drawPrefixes(t *rapid.T) []netip.Prefix {
	return []netip.Prefix{rapid.SampledFrom(prefixes).Draw(t, "prefix")}
}

func drawTransport(t *rapid.T) (uint16, uint16, string) {
	protocol := rapid.SampledFrom(protocols).Draw(t, "protocol")
	if p, _, err := bocage.Transport(0, 0, protocol); err == nil && !p.HasPorts() {
		return 0, 0, protocol
	}
	i := rapid.IntRange(0, len(ports)-1).Draw(t, "first")
	if rapid.IntRange(0, 2).Draw(t, "range") > 0 {
		return ports[i], 0, protocol
	}
	return ports[i], ports[rapid.IntRange(i, len(ports)-1).Draw(t, "last")], protocol
}

func drawApplication(t *rapid.T, i int) *bocage.Application {
	a := &bocage.Application{
		ObjectMeta: bocage.ObjectMeta{Namespace: rapid.SampledFrom(namespaces).Draw(t, "namespace"), Name: fmt.Sprintf("a%d", i)},
		Spec:       bocage.ApplicationSpec{Workload: drawSelector(t)},
	}
	if rapid.Bool().Draw(t, "source") {
		a.Annotations = map[string]string{bocage.SourceAnnotation: fmt.Sprintf("apps.yaml:%d", i)}
	}
	for k := range rapid.IntRange(0, 3).Draw(t, "provides") {
		p := bocage.Provide{Name: fmt.Sprintf("p%d", k), To: drawSelector(t), AppProtocol: rapid.SampledFrom(spoken).Draw(t, "spoken")}
		p.Port, p.EndPort, p.Protocol = drawTransport(t)
		if rapid.Bool().Draw(t, "classified") {
			p.Data = classes[:rapid.IntRange(1, 2).Draw(t, "classes")]
		}
		switch rapid.IntRange(0, 3).Draw(t, "open to") {
		case 0:
			p.ToNamespaces = []string{"*"}
		case 1:
			p.ToNamespaces = drawNamespaces(t)
		case 2:
			p.ToExternal = drawPrefixes(t)
		}
		a.Spec.Provides = append(a.Spec.Provides, p)
	}
	for range rapid.IntRange(0, 3).Draw(t, "consumes") {
		c := bocage.Consume{Service: fmt.Sprintf("a%d", rapid.IntRange(0, 5).Draw(t, "service"))}
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			c = bocage.Consume{External: bocage.ExternalPrefix(rapid.SampledFrom(prefixes).Draw(t, "external"))}
			if rapid.IntRange(0, 2).Draw(t, "named") == 0 {
				c.External = bocage.External{Name: rapid.SampledFrom(Names).Draw(t, "name")}
			}
			c.Port, c.EndPort, c.Protocol = drawTransport(t)
		case 1:
			c.Interface = fmt.Sprintf("p%d", rapid.IntRange(0, 2).Draw(t, "interface"))
		case 2:
			c.Service = rapid.SampledFrom(namespaces).Draw(t, "namespace") + "/" + c.Service
		}
		a.Spec.Consumes = append(a.Spec.Consumes, c)
	}
	return a
}

func drawMatch(t *rapid.T) bocage.CellMatch {
	m := bocage.CellMatch{From: drawSide(t), To: drawSide(t)}
	if !m.To.Outside() && rapid.IntRange(0, 2).Draw(t, "data") == 0 {
		m.To.Data = classes[:rapid.IntRange(1, 2).Draw(t, "classes")]
	}
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		var p bocage.PortMatch
		p.Port, p.EndPort, p.Protocol = drawTransport(t)
		m.Ports = append(m.Ports, p)
	}
	return m
}

// Moments are those at which something ends in a drawn input, and those just
// before.
func Moments() []time.Time {
	out := []time.Time{Now}
	for i := range 4 {
		end := Now.Add(time.Duration(i+1) * time.Minute)
		out = append(out, end.Add(-1), end)
	}
	return out
}

// Flows are all flows between the addresses at the ports: every boundary of a
// drawn input, in every protocol that it may name.
func Flows(visit func(bocage.Flow)) { FlowsOf(Addresses(), visit) }

// FlowsOf are those that come from some of the addresses.
func FlowsOf(sources []netip.Addr, visit func(bocage.Flow)) {
	addresses, ports := Addresses(), Ports()
	for _, source := range sources {
		for _, destination := range addresses {
			if source.Is4() != destination.Is4() || source == destination {
				continue
			}
			f := bocage.Flow{Source: source, Destination: destination, At: Now}
			for _, f.Protocol = range []bocage.Protocol{bocage.ProtocolTCP, bocage.ProtocolUDP, bocage.ProtocolSCTP} {
				for _, f.DestinationPort = range ports {
					visit(f)
				}
			}
			f.DestinationPort = 0
			for _, f.Protocol = range []bocage.Protocol{bocage.ProtocolICMP, bocage.ProtocolICMPv6, 47, 50} {
				visit(f)
			}
		}
	}
}

// Names are those that drawn applications consume.
var Names = []bocage.DomainName{"api.example.com", "*.example.com", "*.b.example.com", "example.com", "db.example.net"}
