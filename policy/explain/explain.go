// Package explain answers why a flow gets its verdict: what every author said,
// which object and field decided, which duties the flow owes to whom, and the
// smallest change that would turn the verdict.
//
// It promises an answer for every flow, default deny included, and that the
// verdict it names is the one that the enforcement points apply, for it asks
// the ruleset itself; the layers come from the objects. Where the two should
// disagree it says so instead of choosing. It never changes anything.
package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Names of layers, in order.
const (
	LayerBase        = "base"
	LayerGuardrails  = "guardrails"
	LayerThreat      = "threat"
	LayerDisposition = "disposition"
	LayerScope       = "scope"
)

// Explain explains one flow under a ruleset that was compiled from the input.
func Explain(in compile.Input, rs *bocage.Ruleset, f bocage.Flow) bocage.Explanation {
	return NewJudge(in).Explain(rs, f)
}

// Explain explains one flow under a ruleset that was compiled from the judge's
// objects.
func (j *Judge) Explain(rs *bocage.Ruleset, f bocage.Flow) bocage.Explanation {
	g := j.Judge(f)
	e := bocage.Explanation{
		Flow: f, Source: rs.Lookup(f.Source), Destination: rs.Lookup(f.Destination), Generation: rs.Generation,
	}
	e.Verdict, e.Reason = rs.Decide(f)
	decision, _ := rs.Decision(e.Reason.Decision)
	switch {
	case len(decision.By) > 0 && e.Reason.Code != bocage.ReasonDefaultDeny:
		e.Decider = decision.By[0]
	default:
		e.Decider = bocage.Ref{Kind: "Default", Name: "deny"}
	}
	e.Layers = []bocage.Layer{j.baseLayer(&g, f), g.guardrailLayer(), g.threatLayer(), g.dispositionLayer(decision), g.scopeLayer()}
	if e.Verdict.Allowed() && e.Reason.Would.Allowed() {
		e.Duties = g.Duties
	}
	e.Missing = j.missing(&g, f)
	if e.Verdict != g.Verdict || e.Reason.Code != g.Code {
		e.Layers = append(e.Layers, bocage.Layer{Name: "check", Result: fmt.Sprintf(
			"the objects themselves say %s (%s), which the ruleset does not: it is older than they are, or the compiler is wrong", g.Verdict, g.Code)})
	}
	return e
}

func (j *Judge) baseLayer(g *Judgement, f bocage.Flow) bocage.Layer {
	layer := bocage.Layer{Name: LayerBase}
	if len(g.Allows) > 0 {
		for _, by := range g.Allows {
			for _, ref := range by {
				if !slices.Contains(layer.By, ref) {
					layer.By = append(layer.By, ref)
				}
			}
		}
		layer.Result = "allowed"
		return layer
	}
	layer.Result = "nothing allows it: default deny"
	var near []string
	for _, c := range j.contracts(g, f) {
		layer.By = append(layer.By, c.provideRef())
		name := c.provider.Spec.Provides[c.provide].Name
		switch c.halves(g.Source) {
		case providerHalf:
			near = append(near, fmt.Sprintf("%s lets %s in to %q, but nothing that selects %s consumes it", c.provider.NamespacedName(), g.Source, name, g.Source))
		case consumerHalf:
			near = append(near, fmt.Sprintf("%s consumes %q of %s, which does not let it in", c.consumer.NamespacedName(), name, c.provider.NamespacedName()))
		default:
			near = append(near, fmt.Sprintf("%s provides %q there, but neither lets %s in nor is consumed by it", c.provider.NamespacedName(), name, g.Source))
		}
	}
	if len(near) > 0 {
		layer.Result += ". Nearly: " + strings.Join(near, "; ")
	}
	return layer
}

func (g *Judgement) guardrailLayer() bocage.Layer {
	layer := bocage.Layer{Name: LayerGuardrails}
	switch {
	case len(g.Nevers) > 0:
		layer.By, layer.Result = g.Nevers, "refused: no contract can open it"
	case len(g.Impossible) > 0:
		layer.By, layer.Result = g.Impossible, "refused: an inspection that it owes cannot be done, for the profile does not exist"
		if len(g.Allows) == 0 {
			layer.Result = "nothing to add: it is not allowed anyway"
		}
	default:
		for _, d := range g.Duties {
			if d.By.Kind == "Guardrail" {
				layer.By = append(layer.By, d.By)
			}
		}
		layer.Result = "no objection"
		if len(layer.By) > 0 {
			layer.Result += ", with duties if it is allowed"
		}
	}
	return layer
}

func (g *Judgement) threatLayer() bocage.Layer {
	switch {
	case len(g.Cut) > 0:
		result := "refused: quarantine"
		if !g.CutUntil.IsZero() {
			result += " until " + g.CutUntil.UTC().Format(time.RFC3339)
		}
		return bocage.Layer{Name: LayerThreat, By: g.Cut, Result: result}
	case len(g.Threats) > 0:
		return bocage.Layer{Name: LayerThreat, By: g.Threats, Result: "tightened"}
	default:
		return bocage.Layer{Name: LayerThreat, Result: "no condition prevails"}
	}
}

func (g *Judgement) dispositionLayer(decision bocage.Decision) bocage.Layer {
	layer := bocage.Layer{Name: LayerDisposition}
	switch {
	case g.Would.Allowed() && len(g.Profiles) > 0:
		layer.Result = "steered through inspection with " + strings.Join(g.Profiles, " and ")
		for _, d := range g.Duties {
			if strings.HasPrefix(d.Duty, "inspect") {
				layer.By = append(layer.By, d.By)
			}
		}
	case g.Would.Allowed():
		layer.Result = "passed on"
	case g.Would == bocage.VerdictDecoy:
		layer.By, layer.Result = g.Decoys, "the source meets a decoy"
	default:
		layer.Result = "dropped in silence"
	}
	if decision.Log {
		layer.Result += "; kept in full detail"
	}
	return layer
}

func (g *Judgement) scopeLayer() bocage.Layer {
	switch {
	case g.Would.Allowed():
		return bocage.Layer{Name: LayerScope, By: g.EnforcedBy, Result: "nothing to enforce"}
	case g.Code == bocage.ReasonQuarantine:
		return bocage.Layer{Name: LayerScope, By: g.EnforcedBy, Result: "enforced: quarantine always is"}
	case len(g.EnforcedBy) > 0:
		return bocage.Layer{Name: LayerScope, By: g.EnforcedBy, Result: "enforced"}
	default:
		return bocage.Layer{Name: LayerScope, Result: "only observed: the flow passes and is reported as refused"}
	}
}

// missing is the smallest change that would turn the verdict.
func (j *Judge) missing(g *Judgement, f bocage.Flow) string {
	switch {
	case len(g.Cut) > 0:
		return missingFromCut(g)
	case len(g.Nevers) > 0:
		return fmt.Sprintf("no contract can open this: it would take a change of %s by its owner", refList(g.Nevers))
	case g.Code == bocage.ReasonGuardrail:
		return fmt.Sprintf("declare the InspectionProfile that %s names", refList(g.Impossible))
	case g.Would.Allowed():
		return fmt.Sprintf("to refuse it, withdraw %s, or add a Guardrail with spec.never", allowList(g.Allows))
	case g.Verdict.Allowed():
		return "it passes because scopes only observe: a Scope with mode: enforce that picks " + g.workloadsText() + " would refuse it. To have it allowed for good: " + j.missingContract(g, f)
	default:
		return j.missingContract(g, f)
	}
}

func missingFromCut(g *Judgement) string {
	var parts []string
	for _, ref := range g.Cut {
		parts = append(parts, fmt.Sprintf("bocage delete %s %s", strings.ToLower(ref.Kind), ref.Name))
	}
	text := "lift it: " + strings.Join(parts, " and ")
	if !g.CutUntil.IsZero() {
		text += ", or wait until " + g.CutUntil.UTC().Format(time.RFC3339)
	}
	return text
}

// missingContract says what would have to be declared for default deny to end.
func (j *Judge) missingContract(g *Judgement, f bocage.Flow) string {
	switch {
	case g.Source.workload == nil && g.Destination.workload == nil:
		return "neither end is a workload: only a Guardrail's spec.grant could allow it"
	case g.Destination.workload == nil:
		return j.missingEgress(g, f)
	}
	offered := j.contracts(g, f)
	if len(offered) == 0 {
		return j.missingProvide(g, f)
	}
	if g.Source.workload == nil {
		c := offered[0]
		return fmt.Sprintf("in Application %s, add to %s:\n  toExternal: [%s]", c.provider.NamespacedName(), at("spec.provides", c.provide), host(g.Source.address))
	}
	// Of several contracts, the one that lacks one half lacks least.
	best := slices.MaxFunc(offered, func(a, b contract) int { return rank(a.halves(g.Source)) - rank(b.halves(g.Source)) })
	switch best.halves(g.Source) {
	case providerHalf:
		return j.missingConsume(g, best)
	case consumerHalf:
		return compile.LetInAdvice(best.provider, best.provide, g.Source.workload.Namespace, j.namingLabels(g.Source))
	default:
		return compile.LetInAdvice(best.provider, best.provide, g.Source.workload.Namespace, j.namingLabels(g.Source)) + "; and " + j.missingConsume(g, best)
	}
}

func rank(h halves) int {
	if h == noHalf {
		return 0
	}
	return 1
}

func (j *Judge) missingConsume(g *Judgement, c contract) string {
	provide := c.provider.Spec.Provides[c.provide]
	service := c.provider.NamespacedName()
	if g.Source.workload.Namespace == c.provider.Namespace {
		service = c.provider.Name
	}
	return j.inApplicationOf(g.Source, fmt.Sprintf("add to spec.consumes:\n  - {service: %s, interface: %s}", service, provide.Name))
}

func (j *Judge) missingEgress(g *Judgement, f bocage.Flow) string {
	entry := "external: " + host(g.Destination.address).String() + portText(f)
	return j.inApplicationOf(g.Source, fmt.Sprintf("add to spec.consumes:\n  - {%s}", entry))
}

func (j *Judge) missingProvide(g *Judgement, f bocage.Flow) string {
	entry := fmt.Sprintf("name: %s%s", interfaceName(f), portText(f))
	if g.Source.workload == nil {
		return j.inApplicationOf(g.Destination, fmt.Sprintf("add to spec.provides:\n  - {%s, toExternal: [%s]}", entry, host(g.Source.address)))
	}
	if labels := j.namingLabels(g.Source); len(labels) > 0 {
		entry += ", to: " + compile.FormatLabels(labels)
	}
	if ns := g.Source.workload.Namespace; ns != g.Destination.workload.Namespace {
		entry += fmt.Sprintf(", toNamespaces: [%s]", ns)
	}
	service := g.Destination.workload.Namespace + "/" + j.applicationName(g.Destination)
	if g.Source.workload.Namespace == g.Destination.workload.Namespace {
		service = j.applicationName(g.Destination)
	}
	return j.inApplicationOf(g.Destination, fmt.Sprintf("add to spec.provides:\n  - {%s}", entry)) + "\nand " +
		j.inApplicationOf(g.Source, fmt.Sprintf("add to spec.consumes:\n  - {service: %s, interface: %s}", service, interfaceName(f)))
}

// inApplicationOf names the Application to change, or the one to write.
func (j *Judge) inApplicationOf(p party, change string) string {
	if selecting := j.of(p); len(selecting) > 0 {
		return fmt.Sprintf("in Application %s, %s", selecting[0].NamespacedName(), change)
	}
	return fmt.Sprintf("declare an Application %s with spec.workload %s, and %s",
		p, compile.FormatLabels(j.namingLabels(p)), change)
}

func (j *Judge) applicationName(p party) string {
	if selecting := j.of(p); len(selecting) > 0 {
		return selecting[0].Name
	}
	return p.workload.Name
}

// namingLabels are what best names a workload to a selector: those of the
// Application that selects it, or its app label.
func (j *Judge) namingLabels(p party) map[string]string {
	for _, a := range j.of(p) {
		if len(a.Spec.Workload.MatchLabels) > 0 {
			return a.Spec.Workload.MatchLabels
		}
	}
	for _, key := range []string{"app", "app.kubernetes.io/name", bocage.LabelName} {
		if value, ok := p.labels[key]; ok {
			return map[string]string{key: value}
		}
	}
	return nil
}

func (g *Judgement) workloadsText() string {
	var names []string
	for _, p := range []party{g.Source, g.Destination} {
		if p.workload != nil {
			names = append(names, p.String())
		}
	}
	return strings.Join(names, " or ")
}

func interfaceName(f bocage.Flow) string {
	name := strings.ToLower(f.Protocol.String())
	if f.Protocol.HasPorts() {
		name += "-" + strconv.Itoa(int(f.DestinationPort))
	}
	return name
}

func portText(f bocage.Flow) string {
	var text string
	if f.Protocol.HasPorts() {
		text = fmt.Sprintf(", port: %d", f.DestinationPort)
	}
	if f.Protocol != bocage.ProtocolTCP {
		text += ", protocol: " + f.Protocol.String()
	}
	return text
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func refList(refs []bocage.Ref) string {
	texts := make([]string, len(refs))
	for i, r := range refs {
		texts[i] = r.String()
	}
	return strings.Join(texts, " and ")
}

func allowList(allows [][]bocage.Ref) string {
	texts := make([]string, len(allows))
	for i, by := range allows {
		texts[i] = by[0].String()
	}
	return strings.Join(texts, " and ")
}

func at(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }
