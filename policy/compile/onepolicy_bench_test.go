package compile_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// BenchmarkOnePolicy100k changes one policy after the other in a site of 100,000
// workloads: each drawn from all 10,000 alike, whatever kind it is of, and changed in a
// drawn way. One that was taken away comes back with the next edit. The figures are
// those of BenchmarkOneEdit100k, of all and of each kind of change.
func BenchmarkOnePolicy100k(b *testing.B) {
	in := variedSite(100_000, 10_000)
	m := newMeasured(b)
	compiler := compile.NewCompiler()
	compiler.Compile(in)
	r := rand.New(rand.NewPCG(3, 4))
	var back func(compile.Input) compile.Input
	var kind string
	n := 0
	for b.Loop() {
		for range 2_000 {
			if n++; back != nil {
				in, back, kind = back(in), nil, strings.Replace(kind, "-goes", "-returns", 1)
			} else {
				in, back, kind = onePolicy(in, r, n)
			}
			m.measure(kind, func() compile.Output { return compiler.Compile(in) })
		}
	}
	m.report()
}

// onePolicy changes a policy that is drawn from all of them, and says which way. Of one
// that it takes away, it returns how it comes back.
func onePolicy(in compile.Input, r *rand.Rand, n int) (compile.Input, func(compile.Input) compile.Input, string) {
	at := r.IntN(len(in.Applications) + len(in.Guardrails) + len(in.Quarantines) + len(in.NetworkPolicies) + len(in.ClusterNetworkPolicies))
	away := r.IntN(6) == 0
	if at < len(in.Applications) {
		if away {
			return taken(in, at, "application-goes", func(in *compile.Input) *[]*bocage.Application { return &in.Applications })
		}
		other, how := otherApplication(in, at, r, n)
		in.Applications = replaced(in.Applications, at, other)
		return in, nil, "application-" + how
	}
	if at -= len(in.Applications); at < len(in.Guardrails) {
		if away {
			return taken(in, at, "guardrail-goes", func(in *compile.Input) *[]*bocage.Guardrail { return &in.Guardrails })
		}
		in.Guardrails = replaced(in.Guardrails, at, otherGuardrail(in.Guardrails[at], r, n))
		return in, nil, "guardrail"
	}
	if at -= len(in.Guardrails); at < len(in.Quarantines) {
		if away {
			return taken(in, at, "quarantine-goes", func(in *compile.Input) *[]*bocage.Quarantine { return &in.Quarantines })
		}
		q := *in.Quarantines[at]
		q.Spec.Workload = in.Workloads[r.IntN(len(in.Workloads))].NamespacedName()
		in.Quarantines = replaced(in.Quarantines, at, &q)
		return in, nil, "quarantine"
	}
	if at -= len(in.Quarantines); at < len(in.NetworkPolicies) {
		if away {
			return taken(in, at, "network-policy-goes", func(in *compile.Input) *[]*bocage.NetworkPolicy { return &in.NetworkPolicies })
		}
		in.NetworkPolicies = replaced(in.NetworkPolicies, at, otherNetworkPolicy(in, in.NetworkPolicies[at], r, n))
		return in, nil, "network-policy"
	}
	at -= len(in.NetworkPolicies)
	if away {
		return taken(in, at, "cluster-network-policy-goes", func(in *compile.Input) *[]*bocage.ClusterNetworkPolicy { return &in.ClusterNetworkPolicies })
	}
	p := *in.ClusterNetworkPolicies[at]
	rule := p.Spec.Ingress[0]
	rule.From = []bocage.ClusterNetworkPolicyIngressPeer{{Namespaces: &bocage.Selector{
		MatchLabels: map[string]string{bocage.LabelNamespaceName: in.Workloads[r.IntN(len(in.Workloads))].Namespace}}}}
	p.Spec.Ingress = []bocage.ClusterNetworkPolicyIngressRule{rule}
	in.ClusterNetworkPolicies = replaced(in.ClusterNetworkPolicies, at, &p)
	return in, nil, "cluster-network-policy"
}

// taken takes one of a list away, and returns how it comes back.
func taken[T any](in compile.Input, at int, kind string, of func(*compile.Input) *[]T) (compile.Input, func(compile.Input) compile.Input, string) {
	gone := (*of(&in))[at]
	*of(&in) = slices.Delete(slices.Clone(*of(&in)), at, at+1)
	return in, func(in compile.Input) compile.Input {
		*of(&in) = slices.Insert(slices.Clone(*of(&in)), at, gone)
		return in
	}, kind
}

// otherApplication provides or consumes something else, and says what.
func otherApplication(in compile.Input, at int, r *rand.Rand, n int) (*bocage.Application, string) {
	a := *in.Applications[at]
	a.Spec.Provides, a.Spec.Consumes = slices.Clone(a.Spec.Provides), slices.Clone(a.Spec.Consumes)
	switch r.IntN(6) {
	case 0:
		a.Spec.Provides[0].Port = uint16(20_000 + n%40_000)
		return &a, "port"
	case 1:
		a.Spec.Provides[0].To = bocage.Selector{MatchLabels: map[string]string{"tier": tiers[r.IntN(len(tiers))]}}
		return &a, "to"
	case 2:
		a.Spec.Provides[0].ToNamespaces = []string{"*"}
		return &a, "namespaces"
	case 3:
		a.Spec.Provides[0].Data = []string{classes[1+r.IntN(len(classes)-1)]}
		return &a, "data-" + a.Spec.Provides[0].Data[0]
	case 4:
		a.Spec.Consumes = append(a.Spec.Consumes, bocage.Consume{Service: in.Applications[r.IntN(len(in.Applications))].NamespacedName()})
		return &a, "consumes"
	default:
		a.Spec.Consumes = append(a.Spec.Consumes, bocage.Consume{Port: 443,
			External: bocage.ExternalPrefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}), 32))})
		return &a, "external"
	}
}

// otherGuardrail refuses, asks for or grants something else, or of others.
func otherGuardrail(g *bocage.Guardrail, r *rand.Rand, n int) *bocage.Guardrail {
	other := *g
	port := []bocage.PortMatch{{Port: uint16(1 + n%1000)}}
	elsewhere := r.IntN(2) == 0
	switch {
	case len(g.Spec.Never) > 0:
		other.Spec.Never = []bocage.CellMatch{g.Spec.Never[0]}
		if elsewhere {
			other.Spec.Never[0].From = teamOf(r)
		} else {
			other.Spec.Never[0].Ports = port
		}
	case g.Spec.Require != nil:
		if elsewhere {
			other.Spec.Match.From = teamOf(r)
		} else {
			other.Spec.Require = &bocage.Duties{Log: "full", Rate: fmt.Sprintf("%d/s", 1+n)}
		}
	default:
		other.Spec.Grant = []bocage.CellMatch{g.Spec.Grant[0]}
		if elsewhere {
			other.Spec.Grant[0].From = teamOf(r)
		} else {
			other.Spec.Grant[0].Ports = port
		}
	}
	return &other
}

// otherNetworkPolicy selects others or lets them be reached elsewhere.
func otherNetworkPolicy(in compile.Input, p *bocage.NetworkPolicy, r *rand.Rand, n int) *bocage.NetworkPolicy {
	if r.IntN(2) == 0 {
		return networkPolicyOf(in.Workloads[r.IntN(len(in.Workloads))], fmt.Sprintf("%s-%d", p.Name, n))
	}
	other := *p
	other.Spec.Ingress = []bocage.NetworkPolicyIngressRule{{From: p.Spec.Ingress[0].From,
		Ports: []bocage.NetworkPolicyPort{{Port: &bocage.IntOrString{Number: int32(1000 + n%60_000)}}}}}
	return &other
}
