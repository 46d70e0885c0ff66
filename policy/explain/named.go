package explain

import (
	"fmt"
	"net/netip"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/kubernetes"
)

// JudgeNamed is Judge for a flow whose source was told that the destination's
// address is that of these names. Where nobody allows the address and nobody
// refuses it, whoever consumes one of the names does allow it; and Kubernetes'
// policies are asked again, as if the name were part of the address, whatever they
// said of the address alone. Who else refuses that goes on refusing it. It owes what
// flows to anywhere outside may owe, since which of those it is may change any moment.
func (j *Judge) JudgeNamed(f bocage.Flow, names ...bocage.DomainName) Judgement {
	g := j.Judge(f)
	for _, named := range j.byName(&g, f, names) {
		if named.Would.Allowed() {
			return named
		}
	}
	return g
}

// byName judges a flow once for each pattern of the names that may open what is
// refused of the address alone.
func (j *Judge) byName(g *Judgement, f bocage.Flow, names []bocage.DomainName) []Judgement {
	byKubernetes := g.Code == bocage.ReasonKubernetes && len(g.Responses) == 0
	if len(names) == 0 || len(g.Cut) > 0 || g.Would.Allowed() || !g.bySilence() && !byKubernetes || !g.Destination.nameable() {
		return nil
	}
	f = j.normal(f)
	consumed := map[bocage.DomainName][][]bocage.Ref{}
	patterns := j.accepted(names)
	for _, a := range j.of(g.Source) {
		for i, c := range a.Spec.Consumes {
			name := c.External.Name
			if !g.bySilence() || name == "" || !covers(f, c.Port, c.EndPort, c.Protocol) || !slices.ContainsFunc(names, name.Matches) {
				continue
			}
			consumed[name] = append(consumed[name], []bocage.Ref{ref("Application", a, at("spec.consumes", i))})
			patterns = append(patterns, name)
		}
	}
	slices.Sort(patterns)
	var out []Judgement
	for _, pattern := range slices.Compact(patterns) {
		to := g.Destination
		to.named = true
		named := Judgement{Source: g.Source, Destination: to, At: g.At, Allows: consumed[pattern]}
		slices.SortFunc(named.Allows, func(a, b []bocage.Ref) int { return slices.CompareFunc(a, b, compareRefs) })
		if len(named.Allows) == 0 {
			named.Kubernetes = kubernetesOf(j.kubernetes, g.Source, g.Destination, f, pattern)
		}
		j.judge(&named, f, nil)
		out = append(out, named)
	}
	return out
}

// bySilence reports whether a flow is refused merely because nobody allows it.
func (g *Judgement) bySilence() bool {
	return g.Code == bocage.ReasonDefaultDeny || g.Code == bocage.ReasonKubernetes && !g.Would.Allowed() && len(g.Kubernetes.Denies) == 0
}

// nameable reports whether a name can mean the party at all.
func (p party) nameable() bool { return p.workload == nil && bocage.NamesMayMean(p.address) }

// Somewhere returns a judge to whom an address outside merely stands for wherever a
// name is: it speaks of the name instead, and advises nothing about the address.
func (j *Judge) Somewhere(address netip.Addr, name bocage.DomainName) *Judge {
	own := *j
	own.somewhere, own.called = address.Unmap(), name
	return &own
}

// accepted lists the patterns of these names that ClusterNetworkPolicies accept; of
// none, all.
func (j *Judge) accepted(names []bocage.DomainName) []bocage.DomainName {
	var out []bocage.DomainName
	for _, p := range j.in.ClusterNetworkPolicies {
		for _, r := range p.Spec.Egress {
			for _, peer := range r.To {
				for _, text := range peer.DomainNames {
					if pattern, err := bocage.ParseDomainName(text); err == nil && (len(names) == 0 || slices.ContainsFunc(names, pattern.Matches)) {
						out = append(out, pattern)
					}
				}
			}
		}
	}
	return out
}

// mayMean reports whether a match for prefixes covers a flow to some of them.
func (j *Judge) mayMean(m bocage.CellMatch, g *Judgement, f bocage.Flow) bool {
	return m.To.Outside() && j.somebody(m.To, nil) && j.side(m.From, g.Source, f) && portsCover(m.Ports, f)
}

// nameLayer tells what a name has to do with the verdict on the flow to it.
func (j *Judge) nameLayer(g *Judgement, f bocage.Flow) bocage.Layer {
	layer := bocage.Layer{Name: LayerName}
	say := func(format string, args ...any) { layer.Result = string(g.asked) + ": " + fmt.Sprintf(format, args...) }
	bare := j.Judge(f)
	meaning := j.byName(&bare, f, []bocage.DomainName{g.asked})
	for _, named := range meaning {
		layer.By = append(layer.By, named.openers()...)
	}
	layer.By = once(layer.By)
	switch {
	case g.Destination.workload != nil:
		say("a name opens nothing inside, so that nobody who answers for it opens the way to a neighbour: what is declared of %s counts", g.Destination)
	case !g.Destination.nameable():
		say("no name stands for %s: it means something on one host or one link only", g.Destination.address)
	case bare.Would.Allowed():
		layer.By = nil
		say("not needed: the address is allowed, whatever it is called")
	case g.Would.Allowed():
		layer.By = g.openers()
		say("opened, for as long as the DNS told %s that the address is the name's; a flow that began then may go on", g.Source)
	case len(meaning) == 0 && (bare.bySilence() || bare.Code == bocage.ReasonKubernetes):
		say("nobody consumes it, and no ClusterNetworkPolicy accepts it, for %s at %s", g.Source, transportOf(f))
	case len(meaning) == 0:
		say("opens nothing: what is refused of the address, by any name, stays refused")
	case slices.ContainsFunc(meaning, func(n Judgement) bool { return len(n.Impossible) > 0 }):
		say("opens nothing, for what a flow to anywhere outside owes cannot be kept")
	default:
		say("opens nothing here: what refuses the address comes first")
	}
	return layer
}

// openers are the contracts that consume the name of a judgement by name, or the rules
// that accept it.
func (g *Judgement) openers() []bocage.Ref {
	if len(g.Allows) > 0 {
		return slices.Concat(g.Allows...)
	}
	return g.Kubernetes.By
}

func transportOf(f bocage.Flow) string {
	if f.Protocol.HasPorts() {
		return fmt.Sprintf("%s/%d", f.Protocol, f.DestinationPort)
	}
	return f.Protocol.String()
}

// AdviseNamed is Advise for a flow whose source was told that the destination's
// address is that of a name: where a name can decide, it is what is changed.
func (j *Judge) AdviseNamed(f bocage.Flow, name bocage.DomainName) Advice {
	own := *j
	own.valid = map[bocage.Resource]bool{}
	j = &own
	g := j.JudgeNamed(f, name)
	switch {
	case !g.Destination.nameable():
		return j.Advise(f)
	case g.Would.Allowed():
		return j.adviseToClose(&g, f, name)
	}
	a := Advice{Steps: j.openingByName(f, name)}
	a.Text = textOf(a.Steps)
	switch {
	case len(a.Steps) > 0:
	case g.Destination.called == "":
		return j.Advise(f) // to open the address is all that is left
	default:
		a.Text = j.hopeless(&g, f)
	}
	return j.orEnforce(a, &g)
}

// adviseToClose finds what would have to be withdrawn.
func (j *Judge) adviseToClose(g *Judgement, f bocage.Flow, name bocage.DomainName) Advice {
	never := j.neverStep(g, f)
	a := Advice{Steps: j.closing(f, name), Otherwise: []Step{never}}
	if len(a.Steps) == 0 {
		a.Steps, a.Otherwise = a.Otherwise, nil
		a.Text = "to refuse it, " + never.Text
		return a
	}
	a.Text = "to refuse it, " + textOf(a.Steps) + ", or " + never.Text
	return a
}

// openingByName clears one obstacle after the other until the name is open.
func (j *Judge) openingByName(f bocage.Flow, name bocage.DomainName) []Step {
	var steps []Step
	for range mostRounds {
		g := j.JudgeNamed(f, name)
		if g.Would.Allowed() {
			return steps
		}
		next := j.clearForName(&g, f, name)
		if !j.possible(next) {
			return nil
		}
		steps = append(steps, next...)
		j = j.with(changesOf(next))
	}
	return nil
}

// clearForName finds what takes away the obstacle that decides: of what is merely not
// allowed, that nobody consumes the name, or that what it owes cannot be kept.
func (j *Judge) clearForName(g *Judgement, f bocage.Flow, name bocage.DomainName) []Step {
	if g.Source.workload == nil {
		return j.clear(g, f)
	}
	if g.bySilence() {
		for _, named := range j.byName(g, f, []bocage.DomainName{name}) {
			if len(named.Impossible) > 0 {
				return j.clearImpossible(&named, f)
			}
		}
		return []Step{j.consumeStep(g.Source, bocage.Consume{External: bocage.External{Name: name}, Port: portOf(f), Protocol: protocolOf(f)})}
	}
	if g.Code == bocage.ReasonKubernetes {
		if e := g.ends(j.normal(f))[0]; e.Outcome == kubernetes.OutcomeDenyAdmin {
			e.name = name
			if step, ok := j.before(e, bocage.ActionAccept); ok {
				return []Step{step}
			}
		}
	}
	return j.clear(g, f)
}

// closing withdraws who consumes the name, or accepts it, or who allows the address by
// whatever name; nil if it cannot.
func (j *Judge) closing(f bocage.Flow, name bocage.DomainName) []Step {
	var steps []Step
	for range mostRounds {
		bare := j.Judge(f)
		open := slices.DeleteFunc(j.byName(&bare, f, []bocage.DomainName{name}), func(n Judgement) bool { return !n.Would.Allowed() })
		var next []Step
		switch {
		case bare.Would.Allowed():
			next = j.withdrawals(&bare, f)
		case len(open) == 0:
			return steps
		default:
			var consumed Judgement // by all patterns at once: to take one entry away numbers the others anew
			for _, n := range open {
				consumed.Allows = append(consumed.Allows, n.Allows...)
			}
			if next = j.withdrawing(consumed.Allows); len(consumed.Allows) == 0 {
				if step, ok := j.withoutName(open[0].Kubernetes.By, name); ok {
					next = []Step{step}
				}
			}
		}
		if !j.possible(next) {
			return nil
		}
		steps = append(steps, next...)
		j = j.with(changesOf(next))
	}
	return nil
}

// withoutName takes the patterns of a name out of the rule that accepts it, and the
// rule with them where it means nobody else.
func (j *Judge) withoutName(by []bocage.Ref, name bocage.DomainName) (Step, bool) {
	if len(by) == 0 {
		return Step{}, false
	}
	policy, known := j.clusterPolicy(by[0].Name)
	i, of := index(by[0].Field, "spec.egress")
	if !known || !of {
		return Step{}, false
	}
	after := *policy
	after.Spec.Egress = slices.Clone(policy.Spec.Egress)
	rule, gone := &after.Spec.Egress[i], []string(nil)
	rule.To = nil
	for _, peer := range policy.Spec.Egress[i].To {
		if peer.DomainNames != nil {
			peer.DomainNames = slices.DeleteFunc(slices.Clone(peer.DomainNames), func(text string) bool {
				pattern, err := bocage.ParseDomainName(text)
				if err != nil || !pattern.Matches(name) {
					return false
				}
				gone = append(gone, text)
				return true
			})
			if len(peer.DomainNames) == 0 {
				continue
			}
		}
		rule.To = append(rule.To, peer)
	}
	if len(rule.To) == 0 {
		after.Spec.Egress = slices.Delete(after.Spec.Egress, i, i+1)
		return Step{Change{Object: &after}, "withdraw " + by[0].String()}, true
	}
	return Step{Change{Object: &after}, fmt.Sprintf("take %s out of %s", joined(gone), by[0])}, len(gone) > 0
}
