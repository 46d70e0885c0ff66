package policy

import (
	"fmt"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/policy/prove"
)

// A workload that joins, or is labelled otherwise, may break a statement of policy that
// nobody changes, such as a blast radius. That does not hold back today's inventory: a
// workload that is not in force is an unknown address, to which no guardrail applies. It is
// told instead: in the conditions of the guardrail, of the workloads from which too much can
// be reached, and of the generation. See decision 0047.

// heldBack is what of today's inventory is not in force, although the policy is: a test, or a
// proof that only a fault of the compiler breaks, keeps it back.
type heldBack struct {
	base, kept *outcome
	workloads  map[string]*bocage.Workload // in force, by name
}

// newHeldBack compares what is in force with what is kept back; nil if nothing is.
func newHeldBack(base, kept *outcome) *heldBack {
	if kept.blocked == "" || kept.policy.hash != base.policy.hash {
		return nil
	}
	h := &heldBack{base: base, kept: kept, workloads: make(map[string]*bocage.Workload, len(base.input.Workloads))}
	for _, w := range base.input.Workloads {
		h.workloads[w.NamespacedName()] = w
	}
	return h
}

// beginning reports whether an exception has begun, and what is in force is from before.
func (h *heldBack) beginning(e *bocage.Exception) bool {
	return h != nil && e.Begins().After(h.base.input.Now) && !e.Begins().After(h.kept.input.Now)
}

// has reports whether a workload is in force as it is.
func (h *heldBack) has(w *bocage.Workload) bool {
	old, there := h.workloads[w.NamespacedName()]
	return there && (old == w || fingerprint(old) == fingerprint(w))
}

// collectBroken notes the workloads that break a statement about what is in force.
func (r *reporter) collectBroken() {
	if r.s.base == nil {
		return
	}
	for _, f := range prove.Failed(r.s.base.proofs) {
		for _, name := range f.Workloads {
			if r.broken == nil {
				r.broken = map[string]string{}
			}
			if r.broken[name] == "" {
				r.broken[name] = fmt.Sprintf("%s (%s), and from here more can be reached", f.Statement, f.By)
			}
		}
	}
}

// remarkable reports whether there is something to tell of a workload besides findings.
func (r *reporter) remarkable(w *bocage.Workload) bool {
	if _, labelled := w.Labels[bocage.LabelWeight]; labelled {
		if _, fault := w.Weight(); fault != "" {
			return true
		}
	}
	return r.broken[w.NamespacedName()] != "" || r.heldBack != nil && !r.heldBack.has(w)
}

// workloadConditions are those of a workload. Most have none, since there is nothing to tell
// of them; what was told once is taken back.
func (r *reporter) workloadConditions(w *bocage.Workload, findings []compile.Finding) []bocage.Condition {
	told := func(kind string) bool {
		return slices.ContainsFunc(w.Status.Conditions, func(c bocage.Condition) bool { return c.Type == kind })
	}
	var out []bocage.Condition
	take := accepted(&w.ObjectMeta, findings)
	if _, fault := w.Weight(); fault != "" && take.Status == "True" {
		take.Reason, take.Message = "WeightUnreadable", fmt.Sprintf("metadata.labels[%s]: %s", bocage.LabelWeight, fault)
	}
	if take.Status == "False" || take.Reason == "WeightUnreadable" || told(take.Type) {
		out = append(out, take)
	}
	enforced := bocage.Condition{Type: bocage.ConditionEnforced, Status: "True", ObservedGeneration: w.Generation, Reason: "InForce", Message: "policy is in force for it as it is"}
	if r.heldBack != nil && !r.heldBack.has(w) {
		enforced.Status, enforced.Reason = "False", "Blocked"
		enforced.Message = fmt.Sprintf("generation %d is kept back, %s: hosts do not know it as it is", r.o.number, r.o.blocked)
	}
	if enforced.Status == "False" || told(enforced.Type) {
		out = append(out, enforced)
	}
	return out
}

// outOfBounds says in a workload's condition Degraded that too much can be reached from it.
// While that is not known, as after a start, what was told stands.
func (r *reporter) outOfBounds(w *bocage.Workload, c *bocage.Condition) bool {
	if r.s.base != nil && r.s.base.proofs == nil {
		was := conditionOf(w.Status.Conditions, c.Type)
		if was.Reason == reasonBlastRadius {
			*c = was
		}
		return was.Reason == reasonBlastRadius
	}
	text := r.broken[w.NamespacedName()]
	if text != "" {
		c.Status, c.Reason, c.Message = "True", reasonBlastRadius, text
	}
	return text != ""
}

// reasonBlastRadius is that of a workload from which more can be reached than a guardrail
// admits.
const reasonBlastRadius = "BlastRadius"

// bounded reports whether some guardrail in force bounds a blast radius.
func bounded(in compile.Input) bool {
	return slices.ContainsFunc(in.Guardrails, func(g *bocage.Guardrail) bool {
		spec := g.InForce()
		return spec != nil && spec.BlastRadius != nil
	})
}

// weighAlike reports whether the proofs of one outcome count for another with the same
// rules: what workloads weigh is in no rule, and blast radii count it.
func weighAlike(a, b *outcome) bool {
	x, y := a.input.Workloads, b.input.Workloads
	if same(x, y) || !bounded(b.input) {
		return true
	}
	return slices.EqualFunc(x, y, func(v, w *bocage.Workload) bool {
		return v == w || v.Labels[bocage.LabelWeight] == w.Labels[bocage.LabelWeight] && v.NamespacedName() == w.NamespacedName()
	})
}
