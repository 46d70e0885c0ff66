package explain

import (
	"fmt"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/kubernetes"
)

// Names of layers, in order. Those of Kubernetes are there where its policies or
// Pods are concerned, LayerCheck where the ruleset and the objects disagree.
const (
	LayerName        = "name"                // what the DNS name opens that the flow goes to
	LayerBase        = "base"                // contracts of applications
	LayerGrants      = "grants"              // what guardrails allow
	LayerAdmin       = "kubernetes-admin"    // ClusterNetworkPolicies before NetworkPolicies
	LayerPolicies    = "kubernetes-policies" // NetworkPolicies
	LayerBaseline    = "kubernetes-baseline" // ClusterNetworkPolicies after them
	LayerGuardrails  = "guardrails"          // what is never allowed, kept apart, required
	LayerProtect     = "protect"             // what threats cannot take away
	LayerThreat      = "threat"              // prevailing conditions and responses
	LayerQuarantine  = "quarantine"          // who is cut off
	LayerDisposition = "disposition"         // what becomes of it
	LayerScope       = "scope"               // whether that holds
	LayerCheck       = "check"
)

func (j *Judge) layers(g *Judgement, f bocage.Flow) []bocage.Layer {
	layers := []bocage.Layer{j.baseLayer(g, f), j.grantLayer(g, f)}
	layers = append(layers, j.kubernetesLayers(g, f)...)
	return append(layers, j.guardrailLayer(g), g.protectLayer(), j.threatLayer(g), g.quarantineLayer(), g.dispositionLayer(), g.scopeLayer())
}

// baseLayer tells the contracts that allow, or all that nearly do.
func (j *Judge) baseLayer(g *Judgement, f bocage.Flow) bocage.Layer {
	layer := bocage.Layer{Name: LayerBase}
	for _, by := range g.Allows {
		if by[0].Kind == "Application" {
			layer.By = append(layer.By, by...)
		}
	}
	if layer.By = once(layer.By); len(layer.By) > 0 {
		layer.Result = "allowed"
		return layer
	}
	layer.Result = "no contract allows it: default deny, unless something below does"
	near, refs := j.near(g, f)
	layer.By = refs
	if len(near) > 0 {
		layer.Result += ". Nearly: " + strings.Join(shorten(near), "; ")
	}
	return layer
}

// near tells the contracts of which one thing is missing: a half, or the port.
func (j *Judge) near(g *Judgement, f bocage.Flow) (texts []string, refs []bocage.Ref) {
	say := func(by []bocage.Ref, format string, args ...any) {
		texts, refs = append(texts, fmt.Sprintf(format, args...)), append(refs, by...)
	}
	for _, c := range j.contracts(g, f) {
		name := c.declared().Name
		switch c.halves(g.Source) {
		case providerHalf:
			say([]bocage.Ref{c.provideRef()}, "%s lets %s in to %q, but nothing that selects %s consumes it", c.provider.NamespacedName(), g.Source, name, g.Source)
		case consumerHalf:
			say([]bocage.Ref{c.provideRef(), c.consumeRef()}, "%s consumes %q of %s, which does not let it in", c.consumer.NamespacedName(), name, c.provider.NamespacedName())
		default:
			say([]bocage.Ref{c.provideRef()}, "%s provides %q there, but neither lets %s in nor is consumed by it", c.provider.NamespacedName(), name, g.Source)
		}
	}
	for _, a := range j.of(g.Destination) {
		for i, p := range a.Spec.Provides {
			if covers(f, p.Port, p.EndPort, p.Protocol) {
				continue
			}
			for _, b := range j.of(g.Source) {
				for k, c := range b.Spec.Consumes {
					if c.Service != "" && serviceOf(b, c) == a.NamespacedName() && (c.Interface == "" || c.Interface == p.Name) && letsIn(a, i, g.Source) {
						say([]bocage.Ref{ref("Application", a, at("spec.provides", i)), ref("Application", b, at("spec.consumes", k))},
							"%s and %s agree on %q, which is %s", b.NamespacedName(), a.NamespacedName(), p.Name, transportText(p.Port, p.EndPort, p.Protocol))
					}
				}
			}
			if g.Source.within(p.ToExternal) {
				say([]bocage.Ref{ref("Application", a, at("spec.provides", i)+".toExternal")},
					"%s opens %q to %s, which is %s", a.NamespacedName(), p.Name, g.Source, transportText(p.Port, p.EndPort, p.Protocol))
			}
		}
	}
	for _, a := range j.of(g.Source) {
		for i, c := range a.Spec.Consumes {
			if pattern := c.External.Name; g.asked != "" && pattern != "" && g.Destination.workload == nil {
				if parent, below := pattern.Wildcard(); pattern.Matches(g.asked) {
					say([]bocage.Ref{ref("Application", a, at("spec.consumes", i))}, "%s consumes %s at %s", a.NamespacedName(), pattern, transportText(c.Port, c.EndPort, c.Protocol))
				} else if below && parent == g.asked {
					say([]bocage.Ref{ref("Application", a, at("spec.consumes", i))}, "%s consumes %s at %s, which is every name below %s and not that itself",
						a.NamespacedName(), pattern, transportText(c.Port, c.EndPort, c.Protocol), parent)
				}
			} else if pattern != "" && g.Destination.workload == nil {
				say([]bocage.Ref{ref("Application", a, at("spec.consumes", i))},
					"%s consumes %s at %s: that allows it where the DNS told %s that this is its address", a.NamespacedName(), c.External, transportText(c.Port, c.EndPort, c.Protocol), g.Source)
			}
			if c.External.Prefix.IsValid() && g.Destination.workload == nil && contains(c.External.Prefix, g.Destination.address) {
				say([]bocage.Ref{ref("Application", a, at("spec.consumes", i))}, "%s consumes %s at %s", a.NamespacedName(), c.External, transportText(c.Port, c.EndPort, c.Protocol))
			}
		}
	}
	return texts, once(refs)
}

func transportText(port, endPort uint16, protocol string) string {
	p, r, err := bocage.Transport(port, endPort, protocol)
	switch {
	case err != nil:
		return "nothing"
	case p.HasPorts():
		return fmt.Sprintf("%s/%s", p, r)
	default:
		return p.String()
	}
}

// shorten keeps a list readable.
func shorten(texts []string) []string {
	const most = 12
	if len(texts) <= most {
		return texts
	}
	return append(slices.Clone(texts[:most]), fmt.Sprintf("and %d more", len(texts)-most))
}

func (j *Judge) grantLayer(g *Judgement, f bocage.Flow) bocage.Layer {
	layer := bocage.Layer{Name: LayerGrants, Result: "no guardrail grants it"}
	for _, by := range g.Allows {
		if by[0].Kind == "Guardrail" {
			layer.By = append(layer.By, by...)
			layer.Result = "granted, without any contract"
		}
	}
	if len(layer.By) > 0 {
		return layer
	}
	var near []string
	for _, gr := range j.in.Guardrails {
		for i, m := range gr.InForce().Grant {
			anyPort := bocage.CellMatch{From: m.From, To: m.To}
			if len(m.Ports) > 0 && j.matches(anyPort, g, f) {
				by := ref("Guardrail", gr, at("spec.grant", i))
				layer.By = append(layer.By, by)
				near = append(near, fmt.Sprintf("%s grants other ports", by))
			}
		}
	}
	if len(near) > 0 {
		layer.Result += ". Nearly: " + strings.Join(shorten(near), "; ")
	}
	return layer
}

// kubernetesLayers tell what each tier says of each end, as if it stood alone
// for what it decides: the first tier that decides an end counts.
func (j *Judge) kubernetesLayers(g *Judgement, f bocage.Flow) []bocage.Layer {
	pod := func(p party) bool {
		return p.workload != nil && p.workload.Spec.Orchestrator == bocage.OrchestratorKubernetes
	}
	k := g.Kubernetes
	undecided := func(d kubernetes.Direction) bool {
		return d.Outcome == kubernetes.OutcomeNone || d.Outcome == kubernetes.OutcomeDefault
	}
	if !pod(g.Source) && !pod(g.Destination) && undecided(k.Egress) && undecided(k.Ingress) {
		return nil
	}
	layers := make([]bocage.Layer, 0, 3)
	for _, tier := range []struct {
		name string
		of   func(kubernetes.Direction) bool
		none string
	}{
		{LayerAdmin, func(d kubernetes.Direction) bool {
			return d.Outcome == kubernetes.OutcomeDenyAdmin || d.Outcome == kubernetes.OutcomeAccept && j.isTier(d.By, bocage.TierAdmin)
		}, "nothing here decides, or passes it on"},
		{LayerPolicies, func(d kubernetes.Direction) bool {
			return d.Outcome == kubernetes.OutcomeIsolated || d.Outcome == kubernetes.OutcomeAccept && (len(d.By) == 0 || d.By[0].Kind == "NetworkPolicy")
		}, "none selects it, or an earlier tier decided"},
		{LayerBaseline, func(d kubernetes.Direction) bool {
			return d.Outcome == kubernetes.OutcomeDenyBaseline || d.Outcome == kubernetes.OutcomeAccept && j.isTier(d.By, bocage.TierBaseline)
		}, "nothing here decides, or an earlier tier decided"},
	} {
		layer := bocage.Layer{Name: tier.name}
		var said []string
		for _, e := range g.ends(f) {
			if e.subject.workload == nil || !tier.of(e.Direction) {
				continue
			}
			layer.By = append(layer.By, e.By...)
			said = append(said, fmt.Sprintf("%s of %s: %s", e.named, e.subject, outcomeText(e.Direction)))
		}
		if layer.Result = strings.Join(said, "; "); len(said) == 0 {
			layer.Result = tier.none
		}
		layers = append(layers, layer)
	}
	last := &layers[len(layers)-1]
	for _, e := range g.ends(f) {
		if e.subject.workload != nil && e.Outcome == kubernetes.OutcomeDefault {
			last.Result += fmt.Sprintf("; %s of %s: no tier decides, so Kubernetes accepts", e.named, e.subject)
		}
	}
	switch {
	case k.Allows:
		last.Result += ". Together: allowed"
	case len(k.Denies) > 0:
		last.Result += ". Together: refused, and no contract can open it"
	case len(k.Withholds) > 0:
		last.Result += ". Together: not allowed, unless a contract or a grant does"
	case k.unanswered():
		last.Result += fmt.Sprintf(". Together: not allowed, for the policy lets it out of %s and speaks for no other end: nobody accepts it at %s, which is no Pod", g.Source, g.Destination)
	default:
		last.Result += ". Together: no say, for an end is no Pod and no policy allows it"
	}
	if !k.Allows && g.Source.workload != nil && g.Destination.workload == nil {
		j.nameLayers(g, f, layers)
	}
	return layers
}

// nameLayers tells, in the layers of their tiers, the names by which Kubernetes would
// allow the flow if the source knew the destination so.
func (j *Judge) nameLayers(g *Judgement, f bocage.Flow, layers []bocage.Layer) {
	near := map[string][]string{}
	var known []bocage.DomainName
	if g.asked != "" {
		known = []bocage.DomainName{g.asked}
	}
	patterns := j.accepted(known)
	slices.Sort(patterns)
	for _, pattern := range slices.Compact(patterns) {
		say := kubernetesOf(j.kubernetes, g.Source, g.Destination, f, pattern)
		if !say.Allows || len(say.By) == 0 {
			continue
		}
		i := slices.IndexFunc(layers, func(l bocage.Layer) bool {
			return l.Name == LayerAdmin && j.isTier(say.By, bocage.TierAdmin) || l.Name == LayerBaseline && j.isTier(say.By, bocage.TierBaseline)
		})
		if i < 0 {
			continue
		}
		layers[i].By = once(append(layers[i].By, say.By...))
		near[layers[i].Name] = append(near[layers[i].Name], fmt.Sprintf("%s accepts %s where the DNS told %s that this is its address", say.By[0], pattern, g.Source))
	}
	for i := range layers {
		if texts := near[layers[i].Name]; len(texts) > 0 {
			layers[i].Result += ". Nearly: " + strings.Join(shorten(texts), "; ")
		}
	}
}

func (j *Judge) isTier(by []bocage.Ref, tier string) bool {
	if len(by) == 0 || by[0].Kind != "ClusterNetworkPolicy" {
		return false
	}
	policy, ok := j.clusterPolicy(by[0].Name)
	return ok && policy.Spec.Tier == tier
}

func outcomeText(d kubernetes.Direction) string {
	switch d.Outcome {
	case kubernetes.OutcomeAccept:
		if len(d.By) == 0 {
			return "accepted: no rule allows it, but a node always reaches the Pods that run on it"
		}
		return "accepted"
	case kubernetes.OutcomeIsolated:
		return "isolated, and no rule allows it"
	default:
		return "denied"
	}
}

func (j *Judge) guardrailLayer(g *Judgement) bocage.Layer {
	layer := bocage.Layer{Name: LayerGuardrails}
	var said []string
	switch {
	case len(g.Nevers) > 0:
		layer.By = g.Nevers
		said = append(said, "refused: no contract can open it")
	case len(g.Impossible) > 0:
		layer.By = g.Impossible
		said = append(said, impossibleText(g))
		if len(g.Allows) == 0 && !g.Kubernetes.Allows {
			said[0] = "nothing to add: it is not allowed anyway"
		}
	default:
		for _, d := range g.Duties {
			if d.By.Kind == "Guardrail" {
				layer.By = append(layer.By, d.By)
			}
		}
		said = append(said, "no objection")
		if len(layer.By) > 0 {
			said[0] += ", with duties if it is allowed"
		}
	}
	for _, l := range g.Lifted {
		layer.By = append(layer.By, l.Exception)
		said = append(said, fmt.Sprintf("%s would count, but %s lifts it until %s", l.Guardrail, l.Exception, moment(l.Until)))
	}
	layer.By, layer.Result = once(layer.By), strings.Join(said, "; ")
	return layer
}

func impossibleText(g *Judgement) string {
	var said []string
	for _, by := range g.Impossible {
		text := "an inspection that it owes cannot be done, for the profile does not exist"
		if strings.HasSuffix(by.Field, ".assurance") {
			text = "an end's identity is not vouched for as far as is asked"
		}
		if !slices.Contains(said, text) {
			said = append(said, text)
		}
	}
	return "refused: " + strings.Join(said, ", and ")
}

func (g *Judgement) protectLayer() bocage.Layer {
	if len(g.Protected) == 0 {
		return bocage.Layer{Name: LayerProtect, Result: "not protected from threat conditions and responses"}
	}
	return bocage.Layer{Name: LayerProtect, By: g.Protected, Result: "protected: no threat condition and no response refuses it, or asks of it what may cost it packets"}
}

func (j *Judge) threatLayer(g *Judgement) bocage.Layer {
	layer := bocage.Layer{Name: LayerThreat, By: slices.Concat(g.Responses, g.Threats)}
	var said []string
	if len(g.Responses) > 0 {
		said = append(said, "refused by a response")
	}
	told := map[string]bool{}
	for _, t := range j.prevailing(g) {
		if !told[t.Name] {
			told[t.Name] = true
			said = append(said, fmt.Sprintf("tightened: %s of %s until %s", t.Spec.Level, concernedText(t), moment(t.Spec.Expires)))
		}
	}
	if layer.Result = strings.Join(said, "; "); len(said) == 0 {
		layer.Result = "no condition prevails"
	}
	return layer
}

func concernedText(t prevails) string {
	switch {
	case t.Spec.All:
		return "everything"
	case t.Spec.Zone != "":
		return "zone " + t.Spec.Zone
	default:
		return t.Spec.Workload
	}
}

func (g *Judgement) quarantineLayer() bocage.Layer {
	layer := bocage.Layer{Name: LayerQuarantine, By: slices.Concat(g.Cut, g.Quarantines), Result: "neither end is cut off"}
	switch {
	case len(g.Cut) > 0:
		layer.Result = "refused: quarantine"
		if !g.CutUntil.IsZero() {
			layer.Result += " until " + moment(g.CutUntil)
		}
	case len(g.Quarantines) > 0:
		layer.Result = "refused: quarantine of everything that no guardrail protects"
	}
	return layer
}

func (g *Judgement) dispositionLayer() bocage.Layer {
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
	case g.Would == bocage.VerdictReject:
		layer.Result = "rejected: the source is told"
		for _, w := range g.Wishes {
			if w.Disposition == bocage.DispositionReject {
				layer.By = append(layer.By, w.By)
			}
		}
	default:
		layer.Result = "dropped in silence"
		if i := slices.IndexFunc(g.Wishes, func(w Wish) bool { return w.Disposition == bocage.DispositionDecoy }); i >= 0 && len(g.Cut) == 0 {
			layer.By = []bocage.Ref{g.Wishes[i].By}
			layer.Result += fmt.Sprintf(": %s asks for a decoy, and none stands there", g.Wishes[i].By)
		}
	}
	if g.Log {
		layer.Result += "; kept in full detail"
	}
	return layer
}

func (g *Judgement) scopeLayer() bocage.Layer {
	layer := bocage.Layer{Name: LayerScope, By: g.EnforcedBy}
	switch {
	case g.ToItself():
		layer.By, layer.Result = nil, "nothing to enforce: what a workload sends to itself passes no enforcement point"
	case g.Would.Allowed():
		layer.Result = "nothing to enforce"
	case len(g.Cut) > 0:
		layer.Result = "enforced: quarantine always is"
	case len(g.EnforcedBy) > 0:
		layer.Result = "enforced"
	case g.Source.workload == nil && g.Destination.workload == nil:
		layer.Result = "neither end is a workload, so nobody enforces: the flow is only observed"
	default:
		layer.Result = "no scope enforces " + g.workloadsText() + ": only observed, so the flow passes and is reported as refused"
	}
	return layer
}
