package explain

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// Judge reads declarations and says what they mean for one flow at a time. It
// knows nothing of groups, tables or rules: it is the second opinion that the
// compiler's work is checked against, so it shares no step with it.
type Judge struct {
	in           compile.Input
	applications map[string][]*bocage.Application // by namespace: an application selects there only
	workloads    map[netip.Addr]*bocage.Workload
	profiles     map[string]bool
}

// NewJudge prepares to judge flows under the given objects.
func NewJudge(in compile.Input) *Judge {
	j := &Judge{in: in, applications: map[string][]*bocage.Application{}, workloads: map[netip.Addr]*bocage.Workload{}, profiles: map[string]bool{}}
	for _, a := range valid(in.Applications) {
		j.applications[a.Namespace] = append(j.applications[a.Namespace], a)
	}
	j.in.Guardrails = valid(in.Guardrails)
	j.in.Scopes = valid(in.Scopes)
	j.in.Profiles = valid(in.Profiles)
	j.in.Decoys = valid(in.Decoys)
	j.in.Quarantines = slices.DeleteFunc(valid(in.Quarantines), func(q *bocage.Quarantine) bool {
		return !q.Spec.Until.IsZero() && !in.Now.Before(q.Spec.Until)
	})
	j.in.ThreatConditions = slices.DeleteFunc(valid(in.ThreatConditions), func(t *bocage.ThreatCondition) bool {
		return !in.Now.Before(t.Spec.Expires)
	})
	for _, p := range j.in.Profiles {
		j.profiles[p.Name] = true
	}
	j.place(in.Workloads)
	return j
}

func valid[T bocage.Resource](objects []T) []T {
	var out []T
	for _, o := range objects {
		if len(o.Validate()) == 0 {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b T) int { return cmp.Compare(a.Meta().NamespacedName(), b.Meta().NamespacedName()) })
	return out
}

// place gives every address to the oldest workload that claims it. A workload
// that claims anything of an older one is nobody.
func (j *Judge) place(workloads []*bocage.Workload) {
	byAge := slices.Clone(workloads)
	slices.SortStableFunc(byAge, func(a, b *bocage.Workload) int {
		return cmp.Or(cmp.Compare(a.Status.Identity, b.Status.Identity), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	var placed []*bocage.Workload
	interfaces, numbers := map[string]bool{}, map[bocage.Identity]bool{}
	for _, w := range byAge {
		if w.Status.Identity < bocage.IdentityFirst || len(w.Spec.Addresses) == 0 || numbers[w.Status.Identity] {
			continue
		}
		at := w.Spec.Host + " " + w.Spec.Interface
		if w.Spec.Interface != "" && interfaces[at] {
			continue
		}
		if slices.ContainsFunc(w.Spec.Addresses, func(a netip.Addr) bool { return j.workloads[a] != nil }) {
			continue
		}
		interfaces[at], numbers[w.Status.Identity] = true, true
		for _, a := range w.Spec.Addresses {
			j.workloads[a] = w
		}
		placed = append(placed, w)
	}
	j.in.Workloads = placed
}

// party is one end of a flow.
type party struct {
	address  netip.Addr
	workload *bocage.Workload // nil outside the inventory
	labels   map[string]string
}

func (j *Judge) party(address netip.Addr) party {
	p := party{address: address.Unmap()}
	if p.workload = j.workloads[p.address]; p.workload != nil {
		p.labels = p.workload.AllLabels()
	}
	return p
}

// String names the party for people.
func (p party) String() string {
	if p.workload == nil {
		return p.address.String()
	}
	return p.workload.NamespacedName()
}

func (p party) picked(namespaces []string, s *bocage.Selector) bool {
	return p.workload != nil &&
		(len(namespaces) == 0 || slices.Contains(namespaces, p.workload.Namespace)) &&
		(s == nil || s.Matches(p.labels))
}

func (p party) within(prefixes []netip.Prefix) bool {
	return p.workload == nil && slices.ContainsFunc(prefixes, func(prefix netip.Prefix) bool {
		// An IPv4 prefix may be written in its IPv6-mapped form.
		return prefix.Contains(p.address) || p.address.Is4() && prefix.Addr().Is4In6() && prefix.Contains(netip.AddrFrom16(p.address.As16()))
	})
}

// contract is a provide with who consumes it, if anybody does.
type contract struct {
	provider, consumer *bocage.Application
	provide, consume   int
	by                 []bocage.Ref
}

// Judgement is what the declarations say of one flow, author by author.
type Judgement struct {
	Source, Destination party

	// Allows are the contracts and grants that open it, Nevers the guardrails
	// that close it.
	Allows [][]bocage.Ref
	Nevers []bocage.Ref
	// Impossible are duties that cannot be kept.
	Impossible []bocage.Ref
	// Duties are those of the flow if it is allowed.
	Duties   []bocage.Duty
	Profiles []string // sorted
	Log      bool
	// Threats are the prevailing conditions of either end.
	Threats []bocage.Ref
	// Cut are the quarantines in force at the flow's moment, CutUntil the end of
	// the last one; zero if it has none.
	Cut      []bocage.Ref
	CutUntil time.Time
	// Decoys are those that wait for it if it is refused.
	Decoys []bocage.Ref
	// EnforcedBy are the scopes and conditions that make a refusal hold.
	EnforcedBy []bocage.Ref

	// Verdict and Code are the outcome, Would the verdict under enforcing scopes.
	Verdict, Would bocage.Verdict
	Code           bocage.ReasonCode
}

// Judge gives a flow its judgement.
func (j *Judge) Judge(f bocage.Flow) Judgement {
	g := Judgement{Source: j.party(f.Source), Destination: j.party(f.Destination)}
	if !f.Protocol.HasPorts() {
		f.DestinationPort = 0
	}
	j.base(&g, f)
	j.guardrails(&g, f)
	j.threats(&g, f)
	j.disposition(&g, f)
	j.scope(&g)

	switch {
	case len(g.Nevers) > 0 || len(g.Allows) > 0 && len(g.Impossible) > 0:
		g.Code, g.Would = bocage.ReasonGuardrail, bocage.VerdictDrop
	case len(g.Allows) == 0:
		g.Code, g.Would = bocage.ReasonDefaultDeny, bocage.VerdictDrop
	case len(g.Profiles) > 0:
		g.Code, g.Would = bocage.ReasonRule, bocage.VerdictInspect
	default:
		g.Code, g.Would = bocage.ReasonRule, bocage.VerdictAllow
	}
	if !g.Would.Allowed() && len(g.Decoys) > 0 {
		g.Would = bocage.VerdictDecoy
	}
	g.Verdict = g.Would
	if !g.Would.Allowed() && len(g.EnforcedBy) == 0 {
		g.Verdict = bocage.VerdictAllow
	}
	if len(g.Cut) > 0 {
		g.Verdict, g.Would, g.Code = bocage.VerdictDrop, bocage.VerdictDrop, bocage.ReasonQuarantine
	}
	return g
}

// base finds the contracts with both halves, and the grants.
func (j *Judge) base(g *Judgement, f bocage.Flow) {
	for _, c := range j.contracts(g, f) {
		if c.halves(g) == bothHalves {
			g.Allows = append(g.Allows, c.by)
		}
	}
	for _, a := range j.of(g.Destination) {
		for i, p := range a.Spec.Provides {
			if !covers(f, p.Port, p.EndPort, p.Protocol) {
				continue
			}
			for k := range p.ToExternal {
				if g.Source.within(p.ToExternal[k : k+1]) {
					g.Allows = append(g.Allows, []bocage.Ref{compile.Ref("Application", a, at(at("spec.provides", i)+".toExternal", k))})
				}
			}
		}
	}
	for _, a := range j.of(g.Source) {
		for i, c := range a.Spec.Consumes {
			if c.External.IsValid() && covers(f, c.Port, c.EndPort, c.Protocol) &&
				g.Destination.within([]netip.Prefix{c.External}) {
				g.Allows = append(g.Allows, []bocage.Ref{compile.Ref("Application", a, at("spec.consumes", i))})
			}
		}
	}
	for _, gr := range j.in.Guardrails {
		for i, m := range gr.Spec.Grant {
			if j.matches(m, g, f) {
				g.Allows = append(g.Allows, []bocage.Ref{compile.Ref("Guardrail", gr, at("spec.grant", i))})
			}
		}
	}
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
			provide := compile.Ref("Application", a, at("spec.provides", i))
			found := false
			for _, b := range consumers {
				for k, c := range b.Spec.Consumes {
					if c.Service != "" && serviceOf(b, c) == a.NamespacedName() && (c.Interface == "" || c.Interface == p.Name) {
						found = true
						out = append(out, contract{a, b, i, k, []bocage.Ref{provide, compile.Ref("Application", b, at("spec.consumes", k))}})
					}
				}
			}
			if !found {
				out = append(out, contract{a, nil, i, 0, []bocage.Ref{provide}})
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

// halves of a contract that are there.
type halves uint8

const (
	noHalf halves = iota
	providerHalf
	consumerHalf
	bothHalves
)

func (c contract) halves(g *Judgement) halves {
	lets := c.letsIn(g.Source)
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

func (c contract) letsIn(source party) bool {
	if source.workload == nil {
		return false
	}
	p := c.provider.Spec.Provides[c.provide]
	namespace := source.workload.Namespace
	open := slices.Contains(p.ToNamespaces, namespace) || slices.Contains(p.ToNamespaces, "*") ||
		len(p.ToNamespaces) == 0 && namespace == c.provider.Namespace
	return open && p.To.Matches(source.labels)
}

// of lists the applications that select a party, by name.
func (j *Judge) of(p party) []*bocage.Application {
	if p.workload == nil {
		return nil
	}
	var out []*bocage.Application
	for _, a := range j.applications[p.workload.Namespace] {
		if a.Spec.Workload.Matches(p.labels) {
			out = append(out, a)
		}
	}
	return out
}

func covers(f bocage.Flow, port, endPort uint16, protocol string) bool {
	p, r, err := bocage.Transport(port, endPort, protocol)
	return err == nil && p == f.Protocol && r.Contains(f.DestinationPort)
}

func (j *Judge) guardrails(g *Judgement, f bocage.Flow) {
	for _, gr := range j.in.Guardrails {
		matched := j.matches(gr.Spec.Match, g, f)
		for i, never := range gr.Spec.Never {
			if matched && j.matches(never, g, f) {
				g.Nevers = append(g.Nevers, compile.Ref("Guardrail", gr, at("spec.never", i)))
			}
		}
		require := gr.Spec.Require
		if !matched || require == nil {
			continue
		}
		if require.Inspect != "" {
			ref := compile.Ref("Guardrail", gr, "spec.require.inspect")
			if !j.profiles[require.Inspect] {
				g.Impossible = append(g.Impossible, ref)
			} else {
				g.owe(require.Inspect, ref)
			}
		}
		if require.Log != "" {
			g.Log = true
			g.Duties = append(g.Duties, bocage.Duty{Duty: "keep in full detail", By: compile.Ref("Guardrail", gr, "spec.require.log")})
		}
	}
}

func (g *Judgement) owe(profile string, by bocage.Ref) {
	g.Duties = append(g.Duties, bocage.Duty{Duty: "inspect with " + profile, By: by})
	if i, found := slices.BinarySearch(g.Profiles, profile); !found {
		g.Profiles = slices.Insert(g.Profiles, i, profile)
	}
}

func (j *Judge) threats(g *Judgement, f bocage.Flow) {
	ends := []party{g.Source, g.Destination}
	for _, t := range j.in.ThreatConditions {
		for _, end := range ends {
			if end.workload == nil || end.workload.NamespacedName() != t.Spec.Workload {
				continue
			}
			ref := compile.Ref("ThreatCondition", t, "spec.level")
			if slices.Contains(g.Threats, ref) {
				continue // both ends are this workload
			}
			g.Threats = append(g.Threats, ref)
			g.Log = true
			g.Duties = append(g.Duties, bocage.Duty{Duty: "keep in full detail", By: ref})
			if t.Spec.Level.Includes(bocage.LevelDeepen) && j.profiles[t.Spec.Profile] {
				g.owe(t.Spec.Profile, ref)
			}
			if t.Spec.Level.Includes(bocage.LevelRestrict) {
				g.EnforcedBy = append(g.EnforcedBy, ref)
			}
			if t.Spec.Level == bocage.LevelQuarantine && len(j.enforcing(end)) > 0 {
				g.cut(ref, t.Spec.Expires, f.At)
			}
		}
	}
	for _, q := range j.in.Quarantines {
		for _, end := range ends {
			if end.workload != nil && end.workload.NamespacedName() == q.Spec.Workload {
				g.cut(compile.Ref("Quarantine", q, "spec.workload"), q.Spec.Until, f.At)
			}
		}
	}
}

func (g *Judgement) cut(by bocage.Ref, until, at time.Time) {
	if !until.IsZero() && !at.Before(until) || slices.Contains(g.Cut, by) {
		return
	}
	if len(g.Cut) == 0 || until.IsZero() {
		g.CutUntil = until
	} else if !g.CutUntil.IsZero() && until.After(g.CutUntil) {
		g.CutUntil = until
	}
	g.Cut = append(g.Cut, by)
}

func (j *Judge) disposition(g *Judgement, f bocage.Flow) {
	if f.Protocol != bocage.ProtocolTCP || g.Destination.workload == nil {
		return
	}
	var worn *bocage.Decoy // the first by name gives the port its face
	for _, d := range j.in.Decoys {
		if d.Spec.Port != f.DestinationPort || !j.side(d.Spec.For, g.Destination, f) {
			continue
		}
		if worn == nil {
			worn = d
		}
		if d.Spec.Protocol == worn.Spec.Protocol && d.Spec.Banner == worn.Spec.Banner && j.side(d.Spec.From, g.Source, f) {
			g.Decoys = append(g.Decoys, compile.Ref("Decoy", d, "spec"))
		}
	}
}

func (j *Judge) scope(g *Judgement) {
	for _, end := range []party{g.Source, g.Destination} {
		for _, ref := range j.enforcing(end) {
			if !slices.Contains(g.EnforcedBy, ref) {
				g.EnforcedBy = append(g.EnforcedBy, ref)
			}
		}
	}
}

// enforcing lists the scopes that enforce one end's refusals.
func (j *Judge) enforcing(p party) []bocage.Ref {
	var out []bocage.Ref
	for _, s := range j.in.Scopes {
		if s.Spec.Mode == bocage.ModeEnforce && p.picked(s.Spec.Namespaces, &s.Spec.Workload) {
			out = append(out, compile.Ref("Scope", s, "spec.mode"))
		}
	}
	return out
}

// matches reports whether a guardrail's match covers the flow.
func (j *Judge) matches(m bocage.CellMatch, g *Judgement, f bocage.Flow) bool {
	return j.side(m.From, g.Source, f) && j.side(m.To, g.Destination, f) &&
		(len(m.Ports) == 0 || slices.ContainsFunc(m.Ports, func(p bocage.PortMatch) bool { return covers(f, p.Port, p.EndPort, p.Protocol) }))
}

// side reports whether one end of the flow is meant.
func (j *Judge) side(s bocage.Side, p party, f bocage.Flow) bool {
	if len(s.External) > 0 {
		return p.within(s.External)
	}
	if (len(s.Namespaces) > 0 || s.Workload != nil) && !p.picked(s.Namespaces, s.Workload) {
		return false
	}
	return len(s.Data) == 0 || j.offers(p, s.Data, f)
}

// offers reports whether the flow's port is an interface of the party with one
// of the data classes.
func (j *Judge) offers(p party, classes []string, f bocage.Flow) bool {
	for _, a := range j.of(p) {
		for _, provide := range a.Spec.Provides {
			if covers(f, provide.Port, provide.EndPort, provide.Protocol) &&
				slices.ContainsFunc(provide.Data, func(class string) bool { return slices.Contains(classes, class) }) {
				return true
			}
		}
	}
	return false
}
