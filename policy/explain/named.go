package explain

import (
	"fmt"
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
	bySilence := g.Code == bocage.ReasonDefaultDeny || g.Code == bocage.ReasonKubernetes && len(g.Kubernetes.Denies) == 0
	byKubernetes := g.Code == bocage.ReasonKubernetes && len(g.Responses) == 0
	if len(names) == 0 || len(g.Cut) > 0 || g.Would.Allowed() || !bySilence && !byKubernetes || g.Destination.workload != nil || !bocage.NamesMayMean(f.Destination) {
		return g
	}
	f = j.normal(f)
	consumed := map[bocage.DomainName][][]bocage.Ref{}
	patterns := j.accepted(names)
	for _, a := range j.of(g.Source) {
		for i, c := range a.Spec.Consumes {
			name := c.External.Name
			if !bySilence || name == "" || !covers(f, c.Port, c.EndPort, c.Protocol) || !slices.ContainsFunc(names, name.Matches) {
				continue
			}
			consumed[name] = append(consumed[name], []bocage.Ref{ref("Application", a, at("spec.consumes", i))})
			patterns = append(patterns, name)
		}
	}
	slices.Sort(patterns)
	for _, pattern := range slices.Compact(patterns) {
		named := Judgement{Source: g.Source, Destination: party{address: g.Destination.address, named: true}, At: g.At, Allows: consumed[pattern]}
		slices.SortFunc(named.Allows, func(a, b []bocage.Ref) int { return slices.CompareFunc(a, b, compareRefs) })
		if len(named.Allows) == 0 {
			named.Kubernetes = kubernetesOf(j.kubernetes, g.Source, g.Destination, f, pattern)
		}
		j.judge(&named, f, nil)
		if named.Would.Allowed() {
			return named
		}
	}
	return g
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

// AdviseNamed is Advise for a flow whose source was told that the destination's
// address is that of a name: where a name decides, it is what is changed.
func (j *Judge) AdviseNamed(f bocage.Flow, name bocage.DomainName) Advice {
	plain, g := j.Judge(f), j.JudgeNamed(f, name)
	switch {
	case plain.Would.Allowed():
		return j.Advise(f)
	case g.Would.Allowed():
		steps := j.closing(f, name)
		if len(steps) == 0 {
			return Advice{}
		}
		return Advice{Steps: steps, Text: "to refuse it, " + textOf(steps)}
	case g.Source.workload == nil:
		return j.Advise(f)
	}
	steps := []Step{j.consumeStep(g.Source, bocage.Consume{External: bocage.External{Name: name}, Port: portOf(f), Protocol: protocolOf(f)})}
	if e := g.ends(j.normal(f))[0]; e.Outcome == kubernetes.OutcomeDenyAdmin {
		e.name = name
		if step, ok := j.before(e, bocage.ActionAccept); ok {
			steps = append(steps, step)
		}
	}
	for _, step := range steps {
		if after := j.with(changesOf([]Step{step})).JudgeNamed(f, name); after.Would.Allowed() {
			return Advice{Steps: []Step{step}, Text: textOf([]Step{step})}
		}
	}
	return j.Advise(f) // more than the lack of an allow is in the way
}

// closing withdraws who consumes or accepts a name, one pattern after the other; nil
// if it cannot.
func (j *Judge) closing(f bocage.Flow, name bocage.DomainName) []Step {
	var steps []Step
	for range mostRounds {
		g := j.JudgeNamed(f, name)
		if !g.Would.Allowed() {
			return steps
		}
		fields := map[string][]string{} // by namespace/name
		var objects []bocage.Ref
		for _, refs := range g.Allows {
			for _, r := range refs {
				key := r.Namespace + "/" + r.Name
				if fields[key] == nil {
					objects = append(objects, r)
				}
				fields[key] = append(fields[key], r.Field)
			}
		}
		var next []Step
		if len(objects) == 0 {
			step, ok := j.withoutName(g.Kubernetes.By, name)
			if !ok {
				return nil
			}
			next = append(next, step)
		}
		for _, o := range objects {
			step, ok := j.withdrawal(o.Kind, o.Namespace, o.Name, fields[o.Namespace+"/"+o.Name])
			if !ok {
				return nil
			}
			next = append(next, step)
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
