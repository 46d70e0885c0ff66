package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

func conditionOf(conditions []bocage.Condition, kind string) bocage.Condition {
	for _, c := range conditions {
		if c.Type == kind {
			return c
		}
	}
	return bocage.Condition{}
}

// unlessRefused denies that a profile is enforced where an engine does not take it.
func (r *reporter) unlessRefused(conditions []bocage.Condition, profile string, hosts []string) []bocage.Condition {
	for _, host := range hosts {
		words, refused := r.refused[host][profile]
		if !refused {
			continue
		}
		for i := range conditions {
			if conditions[i].Type == bocage.ConditionEnforced {
				conditions[i].Status, conditions[i].Reason = "False", "ProfileRefused"
				conditions[i].Message = "the inspection engine of " + host + " does not take it: " + words
			}
		}
		break
	}
	return conditions
}

// reasonProofFailed is that of conditions that follow from a failed proof.
const reasonProofFailed = "ProofFailed"

// setConditions reports whether anything but the time is another, and writes it
// if asked to.
func setConditions(conditions *[]bocage.Condition, wanted []bocage.Condition, write bool) bool {
	changed := false
	for _, want := range wanted {
		i := slices.IndexFunc(*conditions, func(old bocage.Condition) bool { return old.Type == want.Type })
		if i >= 0 {
			want.LastTransitionTime = (*conditions)[i].LastTransitionTime
			if (*conditions)[i] == want {
				continue
			}
		}
		changed = true
		if write {
			want.LastTransitionTime = time.Now().UTC().Truncate(time.Second)
			*conditions = bocage.SetCondition(*conditions, want)
		}
	}
	return changed
}

// conditions are those that every declaration carries.
func (r *reporter) conditions(object *object, meta *bocage.ObjectMeta, old []bocage.Condition, findings []compile.Finding, hosts []string) []bocage.Condition {
	compiled := bocage.Condition{Type: bocage.ConditionCompiled, Status: "True", ObservedGeneration: meta.Generation,
		Reason: "Compiled", Message: "it is part of what was compiled"}
	out := slices.IndexFunc(findings, func(f compile.Finding) bool {
		return f.Reason == compile.Expired || f.Rejected && (f.Object.Field == "" || f.Reason == compile.UnknownWorkload)
	})
	if out >= 0 {
		compiled.Status, compiled.Reason, compiled.Message = "False", findings[out].Reason, findings[out].Message
	}
	enforced := r.enforced(object, meta, old, out < 0, hosts)
	proved, degraded := r.proved(object, meta, out < 0), r.degraded(object, meta, enforced, hosts)
	if r.o.proofs == nil && r.o.blocked == "" && proved.Status == "True" && degraded.Reason != "Held" {
		// Not proved again yet, as after a start: what was told stands.
		for _, c := range old {
			if c.Reason == reasonProofFailed && c.ObservedGeneration == meta.Generation {
				switch c.Type {
				case proved.Type:
					proved = c
				case degraded.Type:
					degraded = c
				}
			}
		}
	}
	return []bocage.Condition{accepted(meta, findings), compiled, proved, enforced, degraded}
}

// degraded says whether something that is promised is not kept.
func (r *reporter) degraded(object *object, meta *bocage.ObjectMeta, enforced bocage.Condition, hosts []string) bocage.Condition {
	c := bocage.Condition{Type: bocage.ConditionDegraded, Status: "False", ObservedGeneration: meta.Generation, Reason: "AsPromised", Message: "nothing is known to be wrong"}
	var texts []string
	if len(r.unwell) > 0 {
		for _, host := range hosts {
			if words, unwell := r.unwell[host]; unwell {
				texts = append(texts, host+": "+words)
			}
		}
	}
	switch {
	case object.kind.Name == "Guardrail" && r.breaks(meta.Name) && r.o.blocked == "":
		c.Status, c.Reason, c.Message = "True", reasonProofFailed, "a statement of it does not hold: see the condition Proved"
	case enforced.Reason == "Held":
		c.Status, c.Reason, c.Message = "True", "Held", enforced.Message
	case len(texts) > 0:
		c.Status, c.Reason, c.Message = "True", "HostsNotReady", fmt.Sprintf("%d of %d hosts concerned are not well: %s", len(texts), len(hosts), joined(texts))
	}
	return c
}

// breaks reports whether a proof of a guardrail failed.
func (r *reporter) breaks(guardrail string) bool {
	return slices.ContainsFunc(r.failed, func(f bocage.Proof) bool { return f.By.Kind == "Guardrail" && f.By.Name == guardrail })
}

func accepted(meta *bocage.ObjectMeta, findings []compile.Finding) bocage.Condition {
	c := bocage.Condition{Type: bocage.ConditionAccepted, Status: "True", ObservedGeneration: meta.Generation, Reason: "Accepted",
		Message: "it makes sense together with the others"}
	var rejected, notes []compile.Finding
	for _, f := range findings {
		if f.Rejected {
			rejected = append(rejected, f)
		} else {
			notes = append(notes, f)
		}
	}
	switch {
	case len(rejected) > 0:
		c.Status, c.Reason, c.Message = "False", rejected[0].Reason, messages(rejected)
	case len(notes) > 0:
		c.Reason, c.Message = notes[0].Reason, messages(notes)
	}
	return c
}

// Bounds that keep conditions readable.
const (
	mostMessages = 50
	mostText     = 8 << 10
)

func messages(findings []compile.Finding) string {
	texts := make([]string, len(findings))
	for i, f := range findings {
		texts[i] = f.Message
		if f.Object.Field != "" {
			texts[i] = f.Object.Field + ": " + f.Message
		}
	}
	return joined(texts)
}

// joined puts texts into one, within bounds.
func joined(texts []string) string {
	size := 0
	for i, text := range texts {
		if size += len(text) + 2; i > 0 && (i == mostMessages || size > mostText) {
			return strings.Join(texts[:i], "; ") + fmt.Sprintf("; and %d more", len(texts)-i)
		}
	}
	return strings.Join(texts, "; ")
}

// missing lists the halves of contracts that the other side owes.
func missing(findings []compile.Finding) []string {
	var out []string
	for _, f := range findings {
		switch f.Reason {
		case compile.PeerMissing, compile.UnknownApplication, compile.UnknownInterface:
			out = append(out, f.Object.Field+": "+f.Message)
		}
	}
	return out
}

// proved tells the owner of a statement that fails, and those whose change has
// to wait for it.
func (r *reporter) proved(object *object, meta *bocage.ObjectMeta, in bool) bocage.Condition {
	c := bocage.Condition{Type: bocage.ConditionProved, Status: "True", ObservedGeneration: meta.Generation, Reason: "Proved",
		Message: "all statements about the policy that it is part of hold"}
	for _, f := range r.failed {
		if f.By.Kind == object.kind.Name && f.By.Namespace == meta.Namespace && f.By.Name == meta.Name {
			c.Status, c.Reason, c.Message = "False", reasonProofFailed, fmt.Sprintf("%s: %s, yet: %s", f.By.Field, f.Statement, f.Counterexample)
			if r.o.blocked == "" {
				c.Message += "; it is in force so: only changes that make this worse are kept back"
			}
			return c
		}
	}
	switch {
	case !in:
		c.Status, c.Reason, c.Message = "False", "NotCompiled", "it is no part of the policy"
	case r.o.blocked != "" && r.differs(object):
		c.Status, c.Reason = "False", "Blocked"
		c.Message = fmt.Sprintf("generation %d was not activated, for %s", r.o.number, r.o.blocked)
	}
	return c
}

// held reports whether a condition was true of this state of the object.
func held(conditions []bocage.Condition, kind string, generation int64) bool {
	return slices.ContainsFunc(conditions, func(c bocage.Condition) bool {
		return c.Type == kind && c.Status == "True" && c.ObservedGeneration == generation
	})
}

// enforced tells whether every host concerned has what it was given last. What was
// enforced before stays so for a moment while a host takes what others' changes
// gave it.
func (r *reporter) enforced(object *object, meta *bocage.ObjectMeta, old []bocage.Condition, in bool, hosts []string) bocage.Condition {
	c := bocage.Condition{Type: bocage.ConditionEnforced, Status: "False", ObservedGeneration: meta.Generation}
	switch {
	case !in:
		c.Reason, c.Message = "NotCompiled", "it is no part of the policy in force"
		return c
	case r.s.base == nil:
		c.Reason, c.Message = "Blocked", "no generation is in force yet"
		if r.o.blocked == "" {
			c.Reason = "Waiting"
		}
		return c
	case r.differs(object):
		c.Reason, c.Message = r.reason, r.held
		return c
	case len(hosts) == 0:
		c.Status, c.Reason, c.Message = "True", "NoWorkloads", "no workload that it concerns is placed on a host"
		return c
	}
	before := held(old, bocage.ConditionEnforced, meta.Generation)
	fresh := enforcedGrace - r.p.now().Sub(r.s.record.Moved)
	var waiting []string
	for _, host := range hosts {
		need := r.s.record.Hosts[host][0]
		if r.reported[host] >= need {
			continue
		}
		if before && fresh > 0 {
			r.wait = fresh // until then it may be on its way
			continue
		}
		waiting = append(waiting, host)
	}
	if len(waiting) == 0 {
		c.Status, c.Reason, c.Message = "True", "AllHosts", fmt.Sprintf("in force on all %d hosts concerned", len(hosts))
		if len(hosts) == 1 {
			c.Message = "in force on " + hosts[0]
		}
		return c
	}
	c.Reason = "Waiting"
	c.Message = fmt.Sprintf("%d of %d hosts concerned have not taken it yet: %s", len(waiting), len(hosts), strings.Join(waiting[:min(len(waiting), 5)], ", "))
	return c
}
