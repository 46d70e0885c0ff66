package explain

import (
	"slices"

	"bocage.dev/bocage"
)

// JudgeNamed is Judge for a flow whose source was told that the destination's
// address is that of these names. Where nobody allows the address and nobody
// refuses it, whoever consumes one of the names does allow it; it owes what flows
// to anywhere outside may owe, since which of those it is may change any moment.
func (j *Judge) JudgeNamed(f bocage.Flow, names ...bocage.DomainName) Judgement {
	g := j.Judge(f)
	withheld := len(g.Cut) == 0 && !g.Would.Allowed() &&
		(g.Code == bocage.ReasonDefaultDeny || g.Code == bocage.ReasonKubernetes && len(g.Kubernetes.Denies) == 0)
	if !withheld || g.Destination.workload != nil || !bocage.NamesMayMean(f.Destination) {
		return g
	}
	f = j.normal(f)
	consumed := map[bocage.DomainName][][]bocage.Ref{}
	var patterns []bocage.DomainName
	for _, a := range j.of(g.Source) {
		for i, c := range a.Spec.Consumes {
			name := c.External.Name
			if name == "" || !covers(f, c.Port, c.EndPort, c.Protocol) || !slices.ContainsFunc(names, name.Matches) {
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
		j.judge(&named, f, nil)
		if named.Would.Allowed() {
			return named
		}
	}
	return g
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
	step := j.consumeStep(g.Source, bocage.Consume{External: bocage.External{Name: name}, Port: portOf(f), Protocol: protocolOf(f)})
	if after := j.with(changesOf([]Step{step})).JudgeNamed(f, name); !after.Would.Allowed() {
		return j.Advise(f) // more than the lack of an allow is in the way
	}
	return Advice{Steps: []Step{step}, Text: textOf([]Step{step})}
}

// closing withdraws who consumes a name, one pattern after the other; nil if it cannot.
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
		if len(objects) == 0 {
			return nil
		}
		var next []Step
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
