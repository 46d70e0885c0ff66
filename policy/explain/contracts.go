package explain

import (
	"net/netip"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// contract is a provide with who consumes it, if anybody does.
type contract struct {
	provider, consumer *bocage.Application
	provide, consume   int
}

func (c contract) provideRef() bocage.Ref {
	return ref("Application", c.provider, at("spec.provides", c.provide))
}

func (c contract) consumeRef() bocage.Ref {
	return ref("Application", c.consumer, at("spec.consumes", c.consume))
}

// declared is the provider's half.
func (c contract) declared() bocage.Provide { return c.provider.Spec.Provides[c.provide] }

// halves of a contract that are there.
type halves uint8

const (
	noHalf halves = iota
	providerHalf
	consumerHalf
	bothHalves
)

func (c contract) halves(source party) halves {
	lets := letsIn(c.provider, c.provide, source)
	switch {
	case lets && c.consumer != nil:
		return bothHalves
	case lets:
		return providerHalf
	case c.consumer != nil:
		return consumerHalf
	default:
		return noHalf
	}
}

func letsIn(a *bocage.Application, provide int, source party) bool {
	if source.workload == nil {
		return false
	}
	p, namespace := a.Spec.Provides[provide], source.workload.Namespace
	open := slices.Contains(p.ToNamespaces, namespace) || slices.Contains(p.ToNamespaces, "*") ||
		len(p.ToNamespaces) == 0 && namespace == a.Namespace
	return open && p.To.Matches(source.labels)
}

// base finds the contracts with both halves, what is open to outside, and the
// grants. It returns the contracts that allow, for what they owe.
func (j *Judge) base(g *Judgement, f bocage.Flow) []contract {
	var allowing []contract
	for _, c := range j.contracts(g, f) {
		if c.halves(g.Source) == bothHalves {
			allowing = append(allowing, c)
		}
	}
	for _, c := range allowing {
		g.Allows = append(g.Allows, []bocage.Ref{c.provideRef(), c.consumeRef()})
	}
	for _, a := range j.of(g.Source) {
		for i, c := range a.Spec.Consumes {
			if c.External.Prefix.IsValid() && covers(f, c.Port, c.EndPort, c.Protocol) && g.Destination.within([]netip.Prefix{c.External.Prefix}) {
				g.Allows = append(g.Allows, []bocage.Ref{ref("Application", a, at("spec.consumes", i))})
			}
		}
	}
	for _, a := range j.of(g.Destination) {
		for i, p := range a.Spec.Provides {
			if !covers(f, p.Port, p.EndPort, p.Protocol) {
				continue
			}
			open := false
			for k := range p.ToExternal {
				if g.Source.within(p.ToExternal[k : k+1]) {
					open = true
					g.Allows = append(g.Allows, []bocage.Ref{ref("Application", a, at(at("spec.provides", i)+".toExternal", k))})
				}
			}
			if open {
				allowing = append(allowing, contract{provider: a, provide: i})
			}
		}
	}
	for _, gr := range j.in.Guardrails {
		for i, m := range gr.InForce().Grant {
			if j.matches(m, g, f) {
				g.Allows = append(g.Allows, []bocage.Ref{ref("Guardrail", gr, at("spec.grant", i))})
			}
		}
	}
	slices.SortFunc(g.Allows, func(a, b []bocage.Ref) int { return slices.CompareFunc(a, b, compareRefs) })
	g.Kubernetes = kubernetesOf(j.kubernetes, g.Source, g.Destination, f)
	return allowing
}

// contracts lists the pairs of a provide that serves the flow's destination and
// port with everything that the source consumes of that application, or with
// nothing if it consumes none of it.
func (j *Judge) contracts(g *Judgement, f bocage.Flow) []contract {
	var out []contract
	consumers := j.of(g.Source)
	for _, a := range j.of(g.Destination) {
		for i, p := range a.Spec.Provides {
			if !covers(f, p.Port, p.EndPort, p.Protocol) {
				continue
			}
			found := false
			for _, b := range consumers {
				for k, c := range b.Spec.Consumes {
					if c.Service != "" && serviceOf(b, c) == a.NamespacedName() && (c.Interface == "" || c.Interface == p.Name) {
						found = true
						out = append(out, contract{a, b, i, k})
					}
				}
			}
			if !found {
				out = append(out, contract{provider: a, provide: i})
			}
		}
	}
	return out
}

func serviceOf(b *bocage.Application, c bocage.Consume) string {
	if strings.ContainsRune(c.Service, '/') {
		return c.Service
	}
	return b.Namespace + "/" + c.Service
}

// contractDuties are what the allowing contracts say is spoken.
func (j *Judge) contractDuties(g *Judgement, allowing []contract) {
	slices.SortStableFunc(allowing, func(a, b contract) int { return compareRefs(a.provideRef(), b.provideRef()) })
	for _, c := range allowing {
		if p := c.declared(); p.AppProtocol != "" {
			g.owe(bocage.Duties{Verify: bocage.CanonicalAppProtocol(p.AppProtocol)}, ref("Application", c.provider, at("spec.provides", c.provide)+".appProtocol"))
		}
	}
}
