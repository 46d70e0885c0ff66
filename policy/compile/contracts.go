package compile

import (
	"fmt"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// application is an Application with what it resolves to.
type application struct {
	*bocage.Application
	groups   []int32
	consumes unit      // what it states as a consumer
	provides unit      // what it states as a provider
	prefixes unit      // what it is told of the prefixes that it names
	uses     []use     // what is provided to it
	idle     []Finding // of contracts that nobody is there for
	alone    bool      // it has such contracts
}

// use is one interface that subjects consume with both halves of the contract.
type use struct {
	provider string
	provide  int
	from     []int32
}

// providers lists the names of those that the application consumes from.
func (a *application) providers() []string {
	var out []string
	for _, consume := range a.Spec.Consumes {
		if !consume.External.IsValid() {
			out = append(out, ServiceName(a.Namespace, consume.Service))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// checkApplication tells the author what of it picks nobody, and what nobody speaks.
func (c *compiler) checkApplication(a *application) {
	at := Ref("Application", a, "spec.workload")
	c.checkSelector(at, []string{a.Namespace}, &a.Spec.Workload)
	if len(a.groups) == 0 {
		c.findings.note(at, NoWorkloads, "selects no workload of namespace %s today", a.Namespace)
	}
	for i := range a.Spec.Provides {
		c.checkSelector(Ref("Application", a, field("spec.provides", i)+".to"), LetInNamespaces(a.Application, i), &a.Spec.Provides[i].To)
		c.noteCarrier(Ref("Application", a, field("spec.provides", i)+".appProtocol"), &a.Spec.Provides[i])
	}
}

// collectOffers notes on every subject what its workloads offer, for data classes.
func (c *compiler) collectOffers() {
	for _, i := range c.pop.offering {
		c.pop.subjects[i].offers = nil
	}
	c.classes, c.pop.offering = map[string]bool{}, nil
	for a := range c.withData {
		for _, provide := range a.Spec.Provides {
			if len(provide.Data) == 0 {
				continue
			}
			for _, class := range provide.Data {
				c.classes[class] = true
			}
			o := offer{provide.Data, transport(provide.Port, provide.EndPort, provide.Protocol)}
			for _, g := range a.groups {
				c.pop.subjects[g].offers = append(c.pop.subjects[g].offers, o)
			}
			c.pop.offering = append(c.pop.offering, a.groups...)
		}
	}
	slices.Sort(c.pop.offering)
	c.pop.offering = slices.Compact(c.pop.offering)
}

func offersData(a *bocage.Application) bool {
	return slices.ContainsFunc(a.Spec.Provides, func(p bocage.Provide) bool { return len(p.Data) > 0 })
}

// stateConsumes states every contract from its consumer's side.
func (c *compiler) stateConsumes(a *application) {
	a.uses = nil
	for j, consume := range a.Spec.Consumes {
		at := field("spec.consumes", j)
		half := Ref("Application", a, at)
		if consume.External.Name != "" {
			c.state(statement{kind: allowName, from: side{list: a.groups}, to: side{list: c.pop.domain(domain{name: consume.External.Name})},
				ports: transport(consume.Port, consume.EndPort, consume.Protocol), by: []bocage.Ref{half}})
			continue
		}
		if consume.External.IsValid() {
			c.state(statement{kind: allow, from: side{list: a.groups}, to: side{list: c.pop.under(prefixList(consume.External.Prefix))},
				ports: transport(consume.Port, consume.EndPort, consume.Protocol), by: []bocage.Ref{half}})
			continue
		}
		name := ServiceName(a.Namespace, consume.Service)
		provider := c.apps[name]
		if provider == nil {
			c.findings.reject(Ref("Application", a, at+".service"), UnknownApplication,
				"there is no Application %s: declare it, with an interface under spec.provides that lets %s in", name, a.NamespacedName())
			continue
		}
		c.stateContract(a, j, provider, half)
	}
}

func (c *compiler) stateContract(a *application, j int, provider *application, half bocage.Ref) {
	consume := a.Spec.Consumes[j]
	var offered []string
	matched, whole := false, false
	for i, provide := range provider.Spec.Provides {
		offered = append(offered, provide.Name)
		if consume.Interface != "" && consume.Interface != provide.Name {
			continue
		}
		matched = true
		var from, outside []int32
		open := LetInNamespaces(provider.Application, i)
		for _, g := range a.groups {
			if c.pop.subjects[g].picked(open, &provider.Spec.Provides[i].To) {
				from = append(from, g)
			} else {
				outside = append(outside, g)
			}
		}
		if len(from) > 0 {
			whole = true
			a.uses = append(a.uses, use{provider.NamespacedName(), i, from})
			c.state(spoken(provider, i, statement{from: side{list: from}, to: side{list: provider.groups},
				by: []bocage.Ref{Ref("Application", provider, field("spec.provides", i)), half}}))
		}
		if len(outside) > 0 && consume.Interface != "" {
			c.missingProvide(a, j, provider, i)
			whole = true // said already
		}
	}
	switch {
	case len(offered) == 0:
		c.findings.reject(Ref("Application", a, field("spec.consumes", j)), UnknownInterface,
			"Application %s provides nothing: it has to declare the interface under spec.provides", provider.NamespacedName())
	case !matched:
		c.findings.reject(Ref("Application", a, field("spec.consumes", j)+".interface"), UnknownInterface,
			"Application %s provides no %q: it provides %s", provider.NamespacedName(), consume.Interface, listed(offered))
	case !whole && len(a.groups) > 0:
		c.missingProvide(a, j, provider, 0)
	}
}

// missingProvide tells both sides that the provider does not let the consumer in.
func (c *compiler) missingProvide(consumer *application, j int, provider *application, i int) {
	advice := LetInAdvice(provider.Application, i, consumer.Namespace, consumer.Spec.Workload.MatchLabels)
	c.findings.note(Ref("Application", consumer, field("spec.consumes", j)), PeerMissing,
		"Application %s does not let %s in to %q: %s", provider.NamespacedName(), consumer.NamespacedName(), provider.Spec.Provides[i].Name, advice)
	c.findings.note(Ref("Application", provider, field("spec.provides", i)), PeerMissing,
		"Application %s consumes %q but is not let in: %s", consumer.NamespacedName(), provider.Spec.Provides[i].Name, advice)
}

// stateProvides states what needs no second half, and tells the provider whom it
// lets in by name without being consumed.
func (c *compiler) stateProvides(a *application) {
	for i, provide := range a.Spec.Provides {
		for k := range provide.ToExternal {
			c.state(spoken(a, i, statement{from: side{list: c.pop.under(provide.ToExternal[k : k+1])}, to: side{list: a.groups},
				by: []bocage.Ref{Ref("Application", a, field(field("spec.provides", i)+".toExternal", k))}}))
		}
		if !specific(provide.To) {
			continue
		}
		if idle, count := c.idle(a, i); count > 0 {
			c.findings.note(Ref("Application", a, field("spec.provides", i)), PeerMissing,
				"%s let in to %q but no Application of theirs consumes it: %s", listed(shortened(idle, count)), provide.Name,
				ConsumeAdvice(idle[0], a.Application, i))
		}
	}
}

// idle names the first of the groups of workloads that the i-th interface lets in by
// name and that do not consume it, each by its first member, and counts all of them.
func (c *compiler) idle(a *application, i int) (first []string, count int) {
	provide := &a.Spec.Provides[i]
	open := LetInNamespaces(a.Application, i)
	invited, using := c.pop.match(open, &provide.To), c.using(a, i)
	busy := func(g int32) bool {
		_, found := slices.BinarySearch(using, g)
		return found
	}
	count = len(invited) - len(intersect(invited, using))
	if len(invited) > 4*mostNamed {
		for _, invited := range c.pop.inOrder(open, &provide.To) {
			if len(first) == min(mostNamed, count) {
				break
			}
			if !busy(invited.subject) {
				first = append(first, invited.name)
			}
		}
		return first, count
	}
	for _, g := range invited {
		if !busy(g) {
			first = append(first, c.pop.subjects[g].members[0].NamespacedName())
		}
	}
	slices.Sort(first)
	return first[:min(mostNamed, count)], count
}

// using lists the subjects that consume the i-th interface of a provider, sorted.
func (c *compiler) using(provider *application, i int) []int32 {
	var out []int32
	name := provider.NamespacedName()
	for _, a := range c.consuming[name] {
		for _, use := range a.uses {
			if use.provide == i && use.provider == name {
				out = append(out, use.from...)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// spoken makes a statement an allow on the ports of the provider's i-th
// interface, with the duty to speak what is spoken there.
func spoken(provider *application, i int, s statement) statement {
	provide := provider.Spec.Provides[i]
	s.kind, s.ports = allow, transport(provide.Port, provide.EndPort, provide.Protocol)
	if provide.AppProtocol != "" {
		s.duty.Verify = bocage.CanonicalAppProtocol(provide.AppProtocol)
		s.dutyBy = Ref("Application", provider, field("spec.provides", i)+".appProtocol")
	}
	return s
}

// specific reports whether a selector names whom it picks, rather than whom it
// leaves out.
func specific(s bocage.Selector) bool {
	return len(s.MatchLabels) > 0 || slices.ContainsFunc(s.MatchExpressions, func(r bocage.Requirement) bool {
		return r.Operator == "In" || r.Operator == "Exists"
	})
}

// ServiceName completes Consume.Service of an application in a namespace.
func ServiceName(namespace, service string) string {
	if strings.Contains(service, "/") {
		return service
	}
	return namespace + "/" + service
}

// LetInNamespaces lists the namespaces that the i-th provide is open to; nil is all.
func LetInNamespaces(provider *bocage.Application, i int) []string {
	switch to := provider.Spec.Provides[i].ToNamespaces; {
	case len(to) == 0:
		return []string{provider.Namespace}
	case slices.Contains(to, "*"):
		return nil
	default:
		return to
	}
}

// LetInAdvice says how the provider's half would let in workloads of a namespace
// with these labels.
func LetInAdvice(provider *bocage.Application, i int, namespace string, labels map[string]string) string {
	provide := provider.Spec.Provides[i]
	var parts []string
	if open := LetInNamespaces(provider, i); open != nil && !slices.Contains(open, namespace) {
		to := slices.Clone(provide.ToNamespaces)
		if len(to) == 0 && !emptySelector(provide.To) {
			to = []string{provider.Namespace}
		}
		parts = append(parts, fmt.Sprintf("toNamespaces: [%s]", strings.Join(append(to, namespace), ", ")))
	}
	if !provide.To.Matches(withNamespace(labels, namespace)) {
		parts = append(parts, "to: "+widened(provide.To, labels))
	}
	if len(parts) == 0 {
		parts = append(parts, "to: {} (every workload of its namespaces)")
	}
	return fmt.Sprintf("in Application %s, set %s %s", provider.NamespacedName(), field("spec.provides", i), strings.Join(parts, " and "))
}

// ConsumeAdvice says how the application of a workload would state its half.
func ConsumeAdvice(workload string, provider *bocage.Application, i int) string {
	namespace, _, _ := strings.Cut(workload, "/")
	service := provider.NamespacedName()
	if namespace == provider.Namespace {
		service = provider.Name
	}
	return fmt.Sprintf("in the Application that selects %s, add to spec.consumes {service: %s, interface: %s}",
		workload, service, provider.Spec.Provides[i].Name)
}

// widened is a selector that picks what the old one picks and the labels too,
// in YAML's flow form.
func widened(old bocage.Selector, labels map[string]string) string {
	if len(old.MatchExpressions) == 0 && len(old.MatchLabels) == 1 && len(labels) > 0 {
		for key, value := range old.MatchLabels {
			if other, ok := labels[key]; ok {
				return fmt.Sprintf("{matchExpressions: [{key: %s, operator: In, values: [%s, %s]}]}", key, value, other)
			}
		}
	}
	if emptySelector(old) || len(labels) == 0 {
		return "{}"
	}
	return "a selector that also picks " + FormatLabels(labels)
}

// FormatLabels writes labels as YAML's flow form, sorted.
func FormatLabels(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for key, value := range labels {
		pairs = append(pairs, key+": "+value)
	}
	slices.Sort(pairs)
	return "{matchLabels: {" + strings.Join(pairs, ", ") + "}}"
}

func emptySelector(s bocage.Selector) bool {
	return len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 0
}

func withNamespace(labels map[string]string, namespace string) map[string]string {
	out := make(map[string]string, len(labels)+1)
	for k, v := range labels {
		out[k] = v
	}
	out[bocage.LabelNamespace] = namespace
	return out
}

// mostNamed is how many names a message has before it only counts.
const mostNamed = 5

// shorten keeps messages readable.
func shorten(names []string) []string { return shortened(names, len(names)) }

// shortened does where only the first of so many names are known.
func shortened(names []string, count int) []string {
	if count <= mostNamed {
		return names
	}
	return append(slices.Clone(names[:mostNamed]), fmt.Sprintf("%d more", count-mostNamed))
}

func listed(names []string) string {
	if len(names) == 1 {
		return names[0]
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}
