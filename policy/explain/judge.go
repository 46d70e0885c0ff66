package explain

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/kubernetes"
)

// Judge reads declarations and says what they mean for one flow at a time. It
// knows nothing of groups, tables or rules: it is the second opinion that the
// compiler's work is checked against, so it shares no step with it.
//
// It judges a flow for the moment that the flow names, or for Input.Now if it
// names none: of what had begun by Input.Now, it counts what has not ended.
type Judge struct {
	in           compile.Input                    // valid objects only, by name
	applications map[string][]*bocage.Application // by namespace: an application selects there only
	workloads    map[netip.Addr]*bocage.Workload
	profiles     map[string]*bocage.InspectionProfile
	zones        map[string]string // host -> Zone
	groups       map[string][]netip.Prefix
	exceptions   map[string][]*bocage.Exception // by guardrail: those that it admits
	spares       map[string]bool                // workloads that an automated quarantine cuts off but for protected cells
	kubernetes   *kubernetes.Evaluator
	// somewhere is an address that stands for wherever the name called is, if one does.
	somewhere netip.Addr
	called    bocage.DomainName
	// valid remembers, for one advice, which objects of its steps are valid: nil
	// where none is being made.
	valid map[bocage.Resource]bool
	// known are labels that need not be put together again.
	known []Known
	// tried are the last steps that were judged, for who takes them.
	tried *trial
}

// Known are the labels that a workload has in a zone. Nobody changes them.
type Known struct {
	Workload *bocage.Workload
	Zone     string
	Labels   map[string]string
}

// trial is what comes of steps.
type trial struct {
	steps []Step
	judge *Judge
	after Judgement
}

// NewJudge prepares to judge flows under the given objects.
func NewJudge(in compile.Input) *Judge {
	j := &Judge{in: in}
	j.admit()
	j.place(in.Workloads)
	j.kubernetes = j.newEvaluator()
	j.derive()
	return j
}

// Judgement is what the declarations say of one flow, author by author.
type Judgement struct {
	Source, Destination party
	At                  time.Time // the moment that it is for
	// asked is the name by which the source is said to know the destination.
	asked bocage.DomainName

	// Allows are the contracts and grants that open it, each with its halves.
	Allows [][]bocage.Ref
	// Kubernetes is what policies in Kubernetes' own words say.
	Kubernetes KubernetesSay

	// The refusals, by class: automated quarantines that spare protected cells,
	// what guardrails never allow or keep apart, and responses to threats.
	Quarantines []bocage.Ref
	Nevers      []bocage.Ref
	Responses   []bocage.Ref
	// Impossible are duties that cannot be kept; they refuse what is allowed.
	Impossible []bocage.Ref
	// Protected are the guardrails that keep quarantines and responses off.
	Protected []bocage.Ref
	// Lifted are the guardrails that would speak here but for an exception.
	Lifted []Lift

	// Duties are those of the flow if it is allowed, with their authors; Owed
	// joins them.
	Duties   []bocage.Duty
	Owed     bocage.Duties
	Profiles []string // of Owed.Inspect, sorted
	Log      bool     // keep it in full detail: owed if it is allowed, or for a prevailing condition
	// Threats are the prevailing conditions of either end.
	Threats []bocage.Ref

	// Cut are the quarantines of an identity in force at the moment, CutUntil the
	// end of the last one; zero if it has none.
	Cut      []bocage.Ref
	CutUntil time.Time

	// Decoys are those that wait for it if it is refused; Wishes say otherwise
	// how a refusal should look.
	Decoys []bocage.Ref
	Wishes []Wish
	// EnforcedBy are the scopes and conditions that make a refusal hold.
	EnforcedBy []bocage.Ref

	// Verdict and Code are the outcome, Would the verdict under enforcing scopes.
	Verdict, Would bocage.Verdict
	Code           bocage.ReasonCode
	// By are the authors in the order in which a Decision names them: those who
	// refuse, by class; or those who allow and then those to whom a duty is owed;
	// then the prevailing conditions and the decoys.
	By []bocage.Ref
}

// Lift is a guardrail's say that an exception lifts.
type Lift struct {
	Guardrail bocage.Ref // the field that would have spoken
	Exception bocage.Ref
	Until     time.Time
}

// Wish is a disposition that an author asks for.
type Wish struct {
	Disposition string
	By          bocage.Ref
}

// Judge gives a flow its judgement. The steps are in the order of the layers:
// who allows it, who refuses it, what it would owe, how a refusal looks and
// whether it holds.
func (j *Judge) Judge(f bocage.Flow) Judgement {
	f = j.normal(f)
	g := Judgement{Source: j.party(f.Source), Destination: j.party(f.Destination), At: f.At}
	j.judge(&g, f, j.base(&g, f))
	return g
}

// normal fills in the moment, and takes away ports that the protocol has not.
func (j *Judge) normal(f bocage.Flow) bocage.Flow {
	if f.At.IsZero() {
		f.At = j.in.Now
	}
	if !f.Protocol.HasPorts() {
		f.DestinationPort = 0
	}
	return f
}

// judge takes the steps after the first: who allows it is known.
func (j *Judge) judge(g *Judgement, f bocage.Flow, contracts []contract) {
	j.protect(g, f)
	j.contractDuties(g, contracts)
	fromContracts := len(g.Duties)
	j.guardrails(g, f)
	prevailing := j.prevailing(g)
	j.threats(g, f, prevailing)
	j.quarantines(g)
	if g.Destination.named {
		// As in guardrails: who asks has seen that nobody refuses the address.
		g.Quarantines, g.Responses = nil, nil
	}
	j.decoys(g, f)
	j.scopes(g)
	g.order(fromContracts)
	g.decide()
	j.wishes(g, f, prevailing)
	g.finish()
}

// order puts each class of authors into the order of their names, in which a
// Decision lists them. The duties of contracts come first, as contracts do.
func (g *Judgement) order(fromContracts int) {
	for _, refs := range [][]bocage.Ref{g.Quarantines, g.Nevers, g.Responses, g.Impossible, g.Threats, g.Cut, g.Decoys} {
		slices.SortFunc(refs, compareRefs)
	}
	slices.SortStableFunc(g.Duties[fromContracts:], func(a, b bocage.Duty) int { return compareRefs(a.By, b.By) })
}

func compareRefs(a, b bocage.Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name),
		cmp.Compare(a.Field, b.Field), cmp.Compare(a.Source, b.Source))
}

// decide finds the verdict, before disposition and scopes, and its authors.
func (g *Judgement) decide() {
	slices.Sort(g.Profiles)
	g.Profiles = slices.Compact(g.Profiles)
	allowed := len(g.Allows) > 0 || g.Kubernetes.Allows
	refusals := slices.Concat(g.Quarantines, g.Nevers, g.Kubernetes.Denies, g.Responses)
	g.Would = bocage.VerdictDrop
	switch {
	case len(g.Quarantines) > 0:
		g.Code, g.By = bocage.ReasonQuarantine, refusals
	case len(g.Nevers) > 0:
		g.Code, g.By = bocage.ReasonGuardrail, refusals
	case len(g.Kubernetes.Denies) > 0:
		g.Code, g.By = bocage.ReasonKubernetes, refusals
	case len(g.Responses) > 0:
		g.Code, g.By = bocage.ReasonThreat, refusals
	case !allowed && len(g.Kubernetes.Withholds) > 0:
		g.Code, g.By = bocage.ReasonKubernetes, slices.Clone(g.Kubernetes.Withholds)
	case !allowed:
		g.Code = bocage.ReasonDefaultDeny
	case len(g.Impossible) > 0:
		g.Code, g.By = bocage.ReasonGuardrail, slices.Clone(g.Impossible)
	default:
		g.Would, g.Code, g.Log = bocage.VerdictAllow, bocage.ReasonRule, g.Log || g.Owed.Log != ""
		if len(g.Profiles) > 0 {
			g.Would = bocage.VerdictInspect
		}
		if len(g.Allows) == 0 {
			g.Code = bocage.ReasonKubernetes
		}
		g.By = slices.Concat(g.Allows...)
		g.By = append(g.By, g.Kubernetes.By...)
		for _, d := range g.Duties {
			g.By = append(g.By, d.By)
		}
		var exceptions []bocage.Ref
		for _, l := range g.Lifted {
			exceptions = append(exceptions, l.Exception)
		}
		slices.SortFunc(exceptions, compareRefs)
		g.By = append(g.By, exceptions...)
	}
	g.By = append(g.By, g.Threats...)
}

// finish applies what comes after the cell's own decision: how a refusal looks,
// whether scopes make it hold, and who is cut off whatever else is said.
func (g *Judgement) finish() {
	if !g.Would.Allowed() {
		switch {
		case len(g.Decoys) > 0:
			g.Would, g.By = bocage.VerdictDecoy, append(g.By, g.Decoys...)
		case slices.ContainsFunc(g.Wishes, func(w Wish) bool { return w.Disposition == bocage.DispositionReject }):
			g.Would = bocage.VerdictReject
		}
	}
	g.Verdict = g.Would
	if !g.Would.Allowed() && len(g.EnforcedBy) == 0 {
		g.Verdict = bocage.VerdictAllow
	}
	if len(g.Cut) > 0 {
		g.Verdict, g.Would, g.Code, g.By = bocage.VerdictDrop, bocage.VerdictDrop, bocage.ReasonQuarantine, slices.Clone(g.Cut)
	}
	g.By = once(g.By)
}

// ToItself reports whether both ends are one workload: no enforcement point sees
// such a flow, and a ruleset, which tells groups apart, has no cell for it.
func (g *Judgement) ToItself() bool {
	return g.Source.workload != nil && g.Source.workload == g.Destination.workload
}

// once drops later mentions and keeps the order.
func once(refs []bocage.Ref) []bocage.Ref {
	var out []bocage.Ref
	said := make(map[bocage.Ref]bool, len(refs))
	for _, r := range refs {
		if !said[r] {
			said[r] = true
			out = append(out, r)
		}
	}
	return out
}

// ref points at a field of an object, or at the whole with an empty field.
func ref(kind string, object bocage.Resource, field string) bocage.Ref {
	meta := object.Meta()
	return bocage.Ref{Kind: kind, Namespace: meta.Namespace, Name: meta.Name, Field: field, Source: meta.Annotations[bocage.SourceAnnotation]}
}
