package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/kubernetes"
)

// mostNear bounds how many half contracts are tried for an advice.
const mostNear = 8

// way is one by which a flow's owners would allow it: so many steps at least, which are
// made when they are asked for.
type way struct {
	least int
	make  func() []Step
}

// allow finds the fewest steps by which the flow's owners would allow it. Every
// way was judged that would be taken; of equals, the first counts.
func (j *Judge) allow(g *Judgement, f bocage.Flow) []Step {
	var ways []way
	if len(g.Kubernetes.Withholds) > 0 {
		ways = append(ways, way{1, func() []Step { return j.acceptByKubernetes(g, f) }})
	}
	switch {
	case g.Source.workload == nil && g.Destination.workload == nil:
		ways = append(ways, way{1, func() []Step { return []Step{j.grantStep(g, f)} }})
	case g.Destination.workload == nil:
		ways = append(ways, way{1, func() []Step { return []Step{j.egressStep(g, f)} }})
	case g.Source.workload == nil:
		ways = append(ways, j.ingressWays(g, f)...)
	default:
		ways = append(ways, j.contractWays(g, f)...)
	}
	if g.Kubernetes.unanswered() {
		ways = append(ways, way{1, func() []Step { return j.answer(g, f) }})
	}
	var best []Step
	for _, w := range ways {
		if best != nil && w.least >= len(best) {
			continue
		}
		steps := w.make()
		if !j.possible(steps) || best != nil && len(steps) >= len(best) {
			continue
		}
		next := j.with(changesOf(steps))
		if after := next.Judge(f); len(after.Allows) > 0 || after.Kubernetes.Allows {
			if best = steps; j.tried != nil {
				*j.tried = trial{steps, next, after}
			}
		}
	}
	return best
}

// grantStep is all that allows a flow between two ends outside.
func (j *Judge) grantStep(g *Judgement, f bocage.Flow) Step {
	gr := j.newGuardrail("grant", bocage.GuardrailSpec{Grant: []bocage.CellMatch{cellOf(g, f)}})
	return Step{Change{Object: gr}, "neither end is a workload, so only a Guardrail could allow it: declare one with spec.grant " + flowYAML(gr.Spec.Grant)}
}

// egressStep lets the source's application consume an address outside.
func (j *Judge) egressStep(g *Judgement, f bocage.Flow) Step {
	entry := bocage.Consume{External: bocage.ExternalPrefix(host(g.Destination.address)), Port: portOf(f), Protocol: protocolOf(f)}
	return j.consumeStep(g.Source, entry)
}

// ingressWays open an interface that is there, or a new one, to an address outside.
func (j *Judge) ingressWays(g *Judgement, f bocage.Flow) []way {
	var ways []way
	near := j.contracts(g, f)
	for _, c := range near[:min(len(near), mostNear)] {
		ways = append(ways, way{1, func() []Step {
			after := *c.provider
			after.Spec.Provides = slices.Clone(after.Spec.Provides)
			p := &after.Spec.Provides[c.provide]
			p.ToExternal = append(slices.Clone(p.ToExternal), host(g.Source.address))
			return []Step{{Change{Object: &after}, fmt.Sprintf("in Application %s%s, add to %s:\n  toExternal: [%s]",
				c.provider.NamespacedName(), from(c.provider), at("spec.provides", c.provide), host(g.Source.address))}}
		}})
	}
	return append(ways, way{1, func() []Step {
		entry := bocage.Provide{Name: interfaceName(f), Port: portOf(f), Protocol: protocolOf(f), ToExternal: prefixesOf(g.Source)}
		step, _ := j.provideStep(g.Destination, entry)
		return []Step{step}
	}})
}

// contractWays complete the contracts of which a half is there, or state a new one.
func (j *Judge) contractWays(g *Judgement, f bocage.Flow) []way {
	var ways []way
	near := j.contracts(g, f)
	for _, c := range near[:min(len(near), mostNear)] {
		switch c.halves(g.Source) {
		case providerHalf:
			ways = append(ways, way{1, func() []Step {
				return []Step{j.consumeStep(g.Source, j.consumeOf(g.Source, c.provider, c.declared().Name))}
			}})
		case consumerHalf:
			ways = append(ways, way{1, func() []Step {
				step, name := j.letIn(c, g.Source)
				return j.consumed(g, []Step{step}, c.provider, name)
			}})
		case noHalf:
			ways = append(ways, way{1, func() []Step {
				step, name := j.letIn(c, g.Source)
				return j.consumed(g, []Step{step}, c.provider, name)
			}})
		}
	}
	return append(ways, way{1, func() []Step {
		entry := bocage.Provide{Name: interfaceName(f), Port: portOf(f), Protocol: protocolOf(f), To: j.naming(g.Source)}
		if ns := g.Source.workload.Namespace; ns != g.Destination.workload.Namespace {
			entry.ToNamespaces = []string{ns}
		}
		step, provider := j.provideStep(g.Destination, entry)
		provided := provider.Spec.Provides[len(provider.Spec.Provides)-1].Name
		return j.consumed(g, []Step{step}, provider, provided)
	}})
}

// consumed adds that the source consumes the interface which the steps make, unless
// it says so already: of the whole application, or of what had no such interface.
func (j *Judge) consumed(g *Judgement, steps []Step, provider *bocage.Application, name string) []Step {
	for _, a := range j.of(g.Source) {
		for _, c := range a.Spec.Consumes {
			if c.Service != "" && serviceOf(a, c) == provider.NamespacedName() && (c.Interface == "" || c.Interface == name) {
				return steps
			}
		}
	}
	return append(steps, j.with(changesOf(steps)).consumeStep(g.Source, j.consumeOf(g.Source, provider, name)))
}

// letIn has a provider let a workload in: by what one part of the interface
// says, if that is all that keeps it out; otherwise by an interface beside it,
// so that nobody else comes in. It returns the name of the interface to consume.
func (j *Judge) letIn(c contract, source party) (Step, string) {
	after := *c.provider
	after.Spec.Provides = slices.Clone(after.Spec.Provides)
	p := &after.Spec.Provides[c.provide]
	namespace, field := source.workload.Namespace, at("spec.provides", c.provide)
	open := slices.Contains(p.ToNamespaces, namespace) || slices.Contains(p.ToNamespaces, "*") ||
		len(p.ToNamespaces) == 0 && namespace == c.provider.Namespace
	picked := p.To.Matches(source.labels)
	in := fmt.Sprintf("in Application %s%s, ", c.provider.NamespacedName(), from(c.provider))
	if !open && picked {
		namespaces := slices.Clone(p.ToNamespaces)
		if len(namespaces) == 0 {
			namespaces = []string{c.provider.Namespace}
		}
		p.ToNamespaces = append(namespaces, namespace)
		return Step{Change{Object: &after}, fmt.Sprintf("%sset %s.toNamespaces to %s", in, field, flowYAML(p.ToNamespaces))}, p.Name
	}
	if wider, ok := widened(p.To, source.labels); ok && open {
		p.To = wider
		return Step{Change{Object: &after}, fmt.Sprintf("%sset %s.to to %s", in, field, flowYAML(p.To))}, p.Name
	}
	beside := *p
	beside.Name = freeInterface(c.provider, p.Name)
	beside.To, beside.ToNamespaces, beside.ToExternal = j.naming(source), nil, nil
	if namespace != c.provider.Namespace {
		beside.ToNamespaces = []string{namespace}
	}
	after.Spec.Provides = append(after.Spec.Provides, beside)
	return Step{Change{Object: &after}, in + "add to spec.provides:\n  - " + flowYAML(beside)}, beside.Name
}

// widened adds one more value to a selector of values of one label.
func widened(s bocage.Selector, labels map[string]string) (bocage.Selector, bool) {
	var key string
	var values []string
	switch {
	case len(s.MatchLabels) == 1 && len(s.MatchExpressions) == 0:
		for k, v := range s.MatchLabels {
			key, values = k, []string{v}
		}
	case len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 1 && s.MatchExpressions[0].Operator == "In":
		key, values = s.MatchExpressions[0].Key, slices.Clone(s.MatchExpressions[0].Values)
	}
	value, has := labels[key]
	if !has {
		return s, false
	}
	values = append(values, value)
	slices.Sort(values)
	return bocage.Selector{MatchExpressions: []bocage.Requirement{{Key: key, Operator: "In", Values: slices.Compact(values)}}}, true
}

// consumeOf is a need for an interface of an application.
func (j *Judge) consumeOf(source party, provider *bocage.Application, name string) bocage.Consume {
	c := bocage.Consume{Service: provider.NamespacedName(), Interface: name}
	if source.workload.Namespace == provider.Namespace {
		c.Service = provider.Name
	}
	return c
}

// consumeStep has the source's application declare a need.
func (j *Judge) consumeStep(source party, entry bocage.Consume) Step {
	a, text := j.applicationOf(source)
	a.Spec.Consumes = append(slices.Clone(a.Spec.Consumes), entry)
	return Step{Change{Object: a}, text + "add to spec.consumes:\n  - " + flowYAML(entry)}
}

// provideStep has the destination's application offer an interface, and returns
// the application as it then is.
func (j *Judge) provideStep(destination party, entry bocage.Provide) (Step, *bocage.Application) {
	a, text := j.applicationOf(destination)
	entry.Name = freeInterface(a, entry.Name)
	a.Spec.Provides = append(slices.Clone(a.Spec.Provides), entry)
	return Step{Change{Object: a}, text + "add to spec.provides:\n  - " + flowYAML(entry)}, a
}

// freeInterface is a name that none of the application's interfaces has.
func freeInterface(a *bocage.Application, name string) string {
	free := name
	for n := 2; slices.ContainsFunc(a.Spec.Provides, func(p bocage.Provide) bool { return p.Name == free }); n++ {
		suffix := "-" + strconv.Itoa(n)
		free = strings.TrimRight(name[:min(len(name), 63-len(suffix))], "-") + suffix
	}
	return free
}

// applicationOf is a copy of the Application to change, or of one to write, with
// the words that lead to it.
func (j *Judge) applicationOf(p party) (*bocage.Application, string) {
	if selecting := j.of(p); len(selecting) > 0 {
		// Of several, the one that selects least is the workload's own.
		own := slices.MinFunc(selecting, func(a, b *bocage.Application) int { return terms(b.Spec.Workload) - terms(a.Spec.Workload) })
		after := *own
		return &after, fmt.Sprintf("in Application %s%s, ", own.NamespacedName(), from(own))
	}
	base := p.workload.Name
	for _, key := range []string{"app.kubernetes.io/name", "app"} {
		if value := strings.ToLower(p.labels[key]); value != "" && applicationName(value) {
			base = value
			break
		}
	}
	name := base
	for n := 2; slices.ContainsFunc(j.applications[p.workload.Namespace], func(a *bocage.Application) bool { return a.Name == name }); n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	a := &bocage.Application{TypeMeta: bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: "Application"},
		ObjectMeta: bocage.ObjectMeta{Namespace: p.workload.Namespace, Name: name}, Spec: bocage.ApplicationSpec{Workload: j.naming(p)}}
	return a, fmt.Sprintf("declare an Application %s with spec.workload %s, and ", a.NamespacedName(), flowYAML(a.Spec.Workload))
}

func applicationName(name string) bool {
	return bocage.IsServiceName(name) && !strings.Contains(name, "/")
}

func terms(s bocage.Selector) int { return len(s.MatchLabels) + len(s.MatchExpressions) }

// naming is what best names a workload to a selector: the selector of the
// Application that selects it, its app label, or its name.
func (j *Judge) naming(p party) bocage.Selector {
	selecting := slices.DeleteFunc(j.of(p), func(a *bocage.Application) bool { return terms(a.Spec.Workload) == 0 })
	if len(selecting) > 0 {
		return slices.MinFunc(selecting, func(a, b *bocage.Application) int { return terms(b.Spec.Workload) - terms(a.Spec.Workload) }).Spec.Workload
	}
	for _, key := range []string{"app.kubernetes.io/name", "app"} {
		if value, ok := p.labels[key]; ok && len(value) <= 63 {
			return bocage.Selector{MatchLabels: map[string]string{key: value}}
		}
	}
	return itself(p.workload)
}

// withdrawals take away what allows the flow, and nothing besides: of contracts the
// consumer's half, for the provider's may serve others; of what Kubernetes' policies
// say one end, for either refuses it.
func (j *Judge) withdrawals(g *Judgement, f bocage.Flow) []Step {
	ends := [][]bocage.Ref{nil}
	if k := g.Kubernetes; k.Allows && len(k.By) > 0 {
		ends = nil
		for _, end := range []kubernetes.Direction{k.Ingress, k.Egress} {
			if end.Outcome == kubernetes.OutcomeAccept && len(end.By) > 0 {
				ends = append(ends, end.By)
			}
		}
	}
	var best []Step
	for _, end := range ends {
		steps := j.withdrawing(append(slices.Clone(g.Allows), single(end)...))
		if !j.possible(steps) || !j.refused(steps, f) {
			continue
		}
		for i := 0; i < len(steps) && len(steps) > 1; {
			// An Admin tier's refusal leaves nothing to withdraw for others.
			if without := slices.Delete(slices.Clone(steps), i, i+1); j.refused(without, f) {
				steps = without
			} else {
				i++
			}
		}
		if best == nil || len(steps) < len(best) {
			best = steps
		}
	}
	return best
}

// refused reports whether a flow is refused once steps are made.
func (j *Judge) refused(steps []Step, f bocage.Flow) bool {
	after := j.with(changesOf(steps)).Judge(f)
	return !after.Would.Allowed()
}

// withdrawing takes everything away that is said, object by object.
func (j *Judge) withdrawing(said [][]bocage.Ref) []Step {
	type object struct{ kind, namespace, name string }
	fields := map[object][]string{}
	seen := map[bocage.Ref]bool{}
	var order []object
	for _, by := range said {
		half := by[len(by)-1]
		o := object{half.Kind, half.Namespace, half.Name}
		if fields[o] == nil {
			order = append(order, o)
		}
		if !seen[half] {
			seen[half] = true
			fields[o] = append(fields[o], half.Field)
		}
	}
	var steps []Step
	for _, o := range order {
		slices.SortFunc(fields[o], func(a, b string) int { return lastIndex(a) - lastIndex(b) })
		step, ok := j.withdrawal(o.kind, o.namespace, o.name, fields[o])
		if !ok {
			return nil
		}
		steps = append(steps, step)
	}
	return steps
}

func single(refs []bocage.Ref) [][]bocage.Ref {
	out := make([][]bocage.Ref, len(refs))
	for i, r := range refs {
		out[i] = []bocage.Ref{r}
	}
	return out
}

// withdrawal takes the fields, in the order of their indices, out of one object.
func (j *Judge) withdrawal(kind, namespace, name string, fields []string) (Step, bool) {
	switch kind {
	case "Application":
		i := slices.IndexFunc(j.applications[namespace], func(a *bocage.Application) bool { return a.Name == name })
		if i < 0 {
			return Step{}, false
		}
		before := j.applications[namespace][i]
		after := *before
		consumes, prefixes := map[int]bool{}, map[int]map[int]bool{}
		for _, field := range fields {
			if k, of := index(field, "spec.consumes"); of {
				consumes[k] = true
				continue
			}
			var provide, prefix int
			if _, err := fmt.Sscanf(field, "spec.provides[%d].toExternal[%d]", &provide, &prefix); err != nil {
				return Step{}, false
			}
			if prefixes[provide] == nil {
				prefixes[provide] = map[int]bool{}
			}
			prefixes[provide][prefix] = true
		}
		after.Spec.Consumes, after.Spec.Provides = without(before.Spec.Consumes, consumes), slices.Clone(before.Spec.Provides)
		for provide, gone := range prefixes {
			p := &after.Spec.Provides[provide]
			p.ToExternal = without(p.ToExternal, gone)
		}
		return Step{Change{Object: &after}, "withdraw " + ref(kind, before, joined(fields)).String()}, true
	case "Guardrail":
		i := slices.IndexFunc(j.in.Guardrails, func(gr *bocage.Guardrail) bool { return gr.Name == name })
		if i < 0 {
			return Step{}, false
		}
		step := withdraw(j.in.Guardrails[i], fields)
		step.Text = "withdraw " + ref(kind, j.in.Guardrails[i], joined(fields)).String()
		return step, true
	default:
		return j.withdrawFromKubernetes(kind, namespace, name, fields)
	}
}

// index reads the index of an element of a list from the path of a field.
func index(field, list string) (int, bool) {
	inside, found := strings.CutPrefix(field, list+"[")
	if !found || !strings.HasSuffix(inside, "]") {
		return 0, false
	}
	i, err := strconv.Atoi(strings.TrimSuffix(inside, "]"))
	return i, err == nil
}

// lastIndex is the last index in a path; -1 if there is none.
func lastIndex(field string) int {
	open := strings.LastIndexByte(field, '[')
	if open < 0 {
		return -1
	}
	i, err := strconv.Atoi(strings.TrimSuffix(field[open+1:], "]"))
	if err != nil {
		return -1
	}
	return i
}

func interfaceName(f bocage.Flow) string {
	name := strings.ToLower(f.Protocol.String())
	if name[0] >= '0' && name[0] <= '9' {
		name = "protocol-" + name
	}
	if f.Protocol.HasPorts() {
		name += "-" + strconv.Itoa(int(f.DestinationPort))
	}
	return name
}

// portOf and protocolOf are as a declaration writes them.
func portOf(f bocage.Flow) uint16 {
	if !f.Protocol.HasPorts() {
		return 0
	}
	return f.DestinationPort
}

func protocolOf(f bocage.Flow) string {
	if f.Protocol == bocage.ProtocolTCP {
		return ""
	}
	return f.Protocol.String()
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// prefixesOf is where an end outside is.
func prefixesOf(p party) []netip.Prefix {
	if p.called != "" {
		return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	}
	return []netip.Prefix{host(p.address)}
}

// from leads to the file of an object, where it is known.
func from(object bocage.Resource) string {
	if source := object.Meta().Annotations[bocage.SourceAnnotation]; source != "" {
		return " (" + source + ")"
	}
	return ""
}
