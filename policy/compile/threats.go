package compile

import (
	"cmp"
	"slices"
	"time"

	"bocage.dev/bocage"
)

// refusal is a workload that is cut off.
type refusal struct {
	identity bocage.Identity
	by       []bocage.Ref
	until    time.Time
}

// conditionsByWorkload sorts prevailing threat conditions by whom they concern.
func conditionsByWorkload(in *admitted, findings *findings) map[string][]*bocage.ThreatCondition {
	known := make(map[string]bool, len(in.workloads))
	if len(in.threatConditions) > 0 {
		for _, w := range in.workloads {
			known[w.NamespacedName()] = true
		}
	}
	out := map[string][]*bocage.ThreatCondition{}
	for _, t := range in.threatConditions {
		if !known[t.Spec.Workload] {
			findings.reject(Ref("ThreatCondition", t, "spec.workload"), UnknownWorkload, "there is no workload %s that policy knows", t.Spec.Workload)
			continue
		}
		out[t.Spec.Workload] = append(out[t.Spec.Workload], t)
	}
	return out
}

// stateThreats states what threat conditions and quarantines tighten.
func (c *compiler) stateThreats() {
	for i := c.pop.workloads; i < len(c.pop.subjects); i++ {
		for _, t := range c.pop.subjects[i].threats {
			c.stateThreat(int32(i), t)
		}
	}
	c.stateQuarantines()
	c.mergeRefusals()
}

func (c *compiler) stateThreat(i int32, t *bocage.ThreatCondition) {
	s := &c.pop.subjects[i]
	scoped := s.enforce // by a Scope: an automated quarantine needs that
	ref := Ref("ThreatCondition", t, "spec.level")
	who, anyone := side{list: []int32{i}}, side{any: true}
	both := func(st statement) {
		st.ports, st.by = everything, []bocage.Ref{ref}
		st.from, st.to = who, anyone
		c.state(st)
		st.from, st.to = anyone, who
		c.state(st)
	}
	both(statement{kind: mark, duty: duty{log: true}})
	if t.Spec.Level.Includes(bocage.LevelDeepen) {
		switch {
		case t.Spec.Profile == "":
			if t.Spec.Level == bocage.LevelDeepen {
				c.findings.note(Ref("ThreatCondition", t, "spec.profile"), NothingToDo, "names no InspectionProfile: its flows are only kept in full detail")
			}
		case !c.hasProfile(t.Spec.Profile):
			c.findings.reject(Ref("ThreatCondition", t, "spec.profile"), UnknownProfile,
				"there is no InspectionProfile %s: its flows are not inspected", t.Spec.Profile)
		default:
			both(statement{kind: owe, duty: duty{profile: t.Spec.Profile}})
		}
	}
	if t.Spec.Level != bocage.LevelQuarantine {
		return
	}
	if !scoped {
		c.findings.note(ref, NotEnforced, "no Scope enforces %s: an automated quarantine does not cut it off, only a Quarantine does", t.Spec.Workload)
		return
	}
	for _, w := range s.members {
		c.refusals = append(c.refusals, refusal{w.Status.Identity, []bocage.Ref{ref}, t.Spec.Expires})
	}
}

// restricted reports whether a threat condition enforces the subject's refusals.
func (s *subject) restricted() bool {
	return slices.ContainsFunc(s.threats, func(t *bocage.ThreatCondition) bool { return t.Spec.Level.Includes(bocage.LevelRestrict) })
}

func (c *compiler) stateQuarantines() {
	if len(c.in.quarantines) == 0 {
		return
	}
	numbers := make(map[string]bocage.Identity, len(c.in.workloads))
	for _, w := range c.in.workloads {
		numbers[w.NamespacedName()] = w.Status.Identity
	}
	for _, q := range c.in.quarantines {
		ref := Ref("Quarantine", q, "spec.workload")
		identity, known := numbers[q.Spec.Workload]
		if !known {
			c.findings.reject(ref, UnknownWorkload, "there is no workload %s that policy knows", q.Spec.Workload)
			continue
		}
		c.refusals = append(c.refusals, refusal{identity, []bocage.Ref{ref}, q.Spec.Until})
	}
}

// mergeRefusals joins those of one workload: it stays cut off until the last of
// them ends, so for ever if one has no end.
func (c *compiler) mergeRefusals() {
	slices.SortFunc(c.refusals, func(a, b refusal) int {
		return cmp.Or(cmp.Compare(a.identity, b.identity), compareRefs(a.by[0], b.by[0]))
	})
	var merged []refusal
	for _, r := range c.refusals {
		if n := len(merged); n > 0 && merged[n-1].identity == r.identity {
			last := &merged[n-1]
			last.by = append(last.by, r.by...)
			if last.until.IsZero() || r.until.IsZero() {
				last.until = time.Time{}
			} else if r.until.After(last.until) {
				last.until = r.until
			}
			continue
		}
		merged = append(merged, r)
	}
	c.refusals = merged
}
