package prove

import (
	"fmt"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// A name is wherever whoever answers for it says. So what consumes or accepts one may
// allow a flow to any address that a name can mean, and what guardrails say of addresses
// outside has to hold there: the imagined flow goes to an address that they mean, and
// its source was told that this is the name's.

// acceptances lists the names that ClusterNetworkPolicies accept, for whom and at which
// ports. What these policies refuse besides is left out: it would only hide what else
// there is to see.
func acceptances(in compile.Input) []allowance {
	var out []allowance
	var places *places
	for _, p := range byName(in.ClusterNetworkPolicies) {
		var subject []bocage.Side
		for i, rule := range p.Spec.Egress {
			ports, some := portsOf(rule.Protocols)
			for _, peer := range rule.To {
				for _, text := range peer.DomainNames {
					name, err := bocage.ParseDomainName(text)
					if err != nil || !some || rule.Action != bocage.ActionAccept {
						continue
					}
					if places == nil {
						places = placesOf(in)
					}
					if subject == nil {
						subject = places.subject(p.Spec.Subject)
					}
					for n, side := range subject {
						ref := compile.Ref("ClusterNetworkPolicy", p, fmt.Sprintf("spec.egress[%d]", i))
						out = append(out, allowance{by: ref, name: anyOf(name), objects: []bocage.Resource{p}, detail: fmt.Sprint(n, name, side.Namespaces, side.Workload),
							cells: box{from: []bocage.Side{side}, to: []bocage.Side{{External: anywhere()}}, ports: [][]bocage.PortMatch{ports}}})
					}
				}
			}
		}
	}
	return out
}

// portsOf are the ports of a rule towards names; none: all. It is false for a rule that
// means none: the names of ports are those of workloads.
func portsOf(protocols []bocage.ClusterNetworkPolicyProtocol) ([]bocage.PortMatch, bool) {
	var out []bocage.PortMatch
	for _, p := range protocols {
		for _, transport := range []struct {
			of       *bocage.ClusterNetworkPolicyTransport
			protocol bocage.Protocol
		}{{p.TCP, bocage.ProtocolTCP}, {p.UDP, bocage.ProtocolUDP}, {p.SCTP, bocage.ProtocolSCTP}} {
			if transport.of == nil {
				continue
			}
			m := bocage.PortMatch{Protocol: transport.protocol.String(), EndPort: 65535}
			if port := transport.of.DestinationPort; port != nil && port.Number != nil {
				m.Port, m.EndPort = uint16(*port.Number), 0
			} else if port != nil && port.Range != nil {
				m.Port, m.EndPort = uint16(port.Range.Start), uint16(port.Range.End)
			}
			out = append(out, m)
		}
	}
	return out, len(out) > 0 || len(protocols) == 0
}

// places are the namespaces that guardrails tell apart: whoever is in another one is as
// good as in any other.
type places struct {
	declared map[string]*bocage.Namespace
	names    []string // of declared ones, sorted
	told     []string // by guardrails and exceptions, sorted
}

func placesOf(in compile.Input) *places {
	p := &places{declared: map[string]*bocage.Namespace{}}
	for _, n := range byName(in.Namespaces) {
		p.declared[n.Name] = n
		p.names = append(p.names, n.Name)
	}
	for _, o := range obligations(in) {
		for _, b := range append([]box{o.cells}, o.excuses...) {
			for _, side := range slices.Concat(b.from, b.to) {
				p.told = append(p.told, side.Namespaces...)
				if side.Workload == nil {
					continue
				}
				if value, asked := side.Workload.MatchLabels[bocage.LabelNamespace]; asked {
					p.told = append(p.told, value)
				}
				for _, r := range side.Workload.MatchExpressions {
					if r.Key == bocage.LabelNamespace {
						p.told = append(p.told, r.Values...)
					}
				}
			}
		}
	}
	slices.Sort(p.told)
	p.told = slices.Compact(p.told)
	return p
}

// subject says whom a policy is about: workloads of namespaces that guardrails name, and
// of one that stands for all others, where it is about some.
func (p *places) subject(s bocage.ClusterNetworkPolicySubject) []bocage.Side {
	namespaces, pods := s.Namespaces, &bocage.Selector{}
	if s.Pods != nil {
		namespaces = &s.Pods.NamespaceSelector
		if s.Pods.PodSelector != nil {
			pods = s.Pods.PodSelector
		}
	}
	if namespaces == nil {
		return nil
	}
	picks := func(name string) bool {
		if n := p.declared[name]; n != nil {
			return namespaces.Matches(n.AllLabels())
		}
		return namespaces.Matches(map[string]string{bocage.LabelNamespaceName: name})
	}
	var in []string
	for _, name := range p.told {
		if picks(name) {
			in = append(in, name)
		}
	}
	others := slices.Concat(p.names, namesAsked(namespaces))
	if i := slices.IndexFunc(others, func(name string) bool { return !slices.Contains(p.told, name) && picks(name) }); i >= 0 {
		in = append(in, others[i])
	} else if picks(unaskedNamespace) {
		in = append(in, unaskedNamespace)
	}
	if len(in) == 0 {
		return nil
	}
	return []bocage.Side{{Namespaces: in, Workload: pods}}
}

// unaskedNamespace is one that nobody declares or names.
const unaskedNamespace = "unasked"

// namesAsked are the names of namespaces that a selector asks for.
func namesAsked(s *bocage.Selector) []string {
	var out []string
	if name, asked := s.MatchLabels[bocage.LabelNamespaceName]; asked {
		out = append(out, name)
	}
	for _, r := range s.MatchExpressions {
		if r.Key == bocage.LabelNamespaceName {
			out = append(out, r.Values...)
		}
	}
	return out
}

// nameable says that a name can mean where the flow goes.
func (f *formula) nameable() statement {
	var never []statement
	for _, p := range bocage.NeverNamed() {
		never = append(never, f.within(destination, p))
	}
	return every(outside(destination), not(either(never...)))
}

// withoutRefusals is the input without what Kubernetes' policies refuse: with it more is
// open, and the guardrails have to hold there, too.
func withoutRefusals(in compile.Input) compile.Input {
	in.NetworkPolicies = nil
	in.ClusterNetworkPolicies = slices.Clone(in.ClusterNetworkPolicies)
	for i, p := range in.ClusterNetworkPolicies {
		accepting := *p
		accepting.Spec.Ingress = nil
		accepting.Spec.Egress = slices.DeleteFunc(slices.Clone(p.Spec.Egress), func(r bocage.ClusterNetworkPolicyEgressRule) bool { return r.Action != bocage.ActionAccept })
		in.ClusterNetworkPolicies[i] = &accepting
	}
	return in
}
