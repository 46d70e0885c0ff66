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
