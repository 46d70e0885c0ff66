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

// conditionsByWorkload sorts the prevailing threat conditions of single workloads
// by name.
func conditionsByWorkload(in *admitted, findings *findings) map[string][]*bocage.ThreatCondition {
	out := map[string][]*bocage.ThreatCondition{}
	if len(in.threatConditions) == 0 {
		return out
	}
	for _, t := range in.threatConditions {
		name := t.Spec.Workload
		_, known := in.find(name)
		switch {
		case name == "":
		case !known:
			findings.reject(Ref("ThreatCondition", t, "spec.workload"), UnknownWorkload, "there is no workload %s that policy knows", name)
		default:
			out[name] = append(out[name], t)
		}
	}
	return out
}

// stateThreats states what threat conditions and quarantines tighten by
// themselves.
func (c *compiler) stateThreats() {
	for _, t := range c.in.threatConditions {
		c.stateThreat(t)
	}
}

func (c *compiler) stateThreat(t *bocage.ThreatCondition) {
	ref := Ref("ThreatCondition", t, "spec.level")
	concerned := c.pop.concerned(t)
	c.checkZone(t, concerned)
	if t.Spec.Level.Includes(bocage.LevelRestrict) {
		for _, i := range concerned {
			c.held[i] = true
		}
	}
	both := func(s statement) {
		s.ports, s.by, s.until = everything, []bocage.Ref{ref}, t.Spec.Expires
		c.stateBoth(s, concerned)
	}
	both(statement{kind: mark})
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
			inspect := bocage.Duties{Inspect: t.Spec.Profile}
			yields := c.mayRefuse(inspect)
			both(statement{kind: owe, duty: duty{Duties: inspect, yields: yields}})
			if yields && len(c.protected) > 0 {
				c.touched = append(c.touched, concerned...)
			}
		}
	}
	if t.Spec.Level != bocage.LevelQuarantine || len(concerned) == 0 {
		return
	}
	if !slices.ContainsFunc(concerned, func(i int32) bool { return c.pop.subjects[i].enforce }) { // an automated quarantine needs a Scope
		c.findings.note(ref, NotEnforced, "no Scope enforces %s: an automated quarantine does not cut it off, only a Quarantine does", t.Spec.Workload)
		return
	}
	if c.protectedAround(concerned) {
		both(statement{kind: isolate})
		c.touched = append(c.touched, concerned...)
		return
	}
	for _, i := range concerned {
		for _, w := range c.pop.subjects[i].members {
			c.refusals = append(c.refusals, refusal{w.Status.Identity, []bocage.Ref{ref}, t.Spec.Expires})
		}
	}
}

// stateBoth states something of all flows from and to some subjects.
func (c *compiler) stateBoth(s statement, subjects []int32) {
	if len(subjects) == 0 {
		return
	}
	s.from, s.to = side{list: subjects}, side{any: true}
	c.state(s)
	s.from, s.to = side{any: true}, side{list: subjects}
	c.state(s)
}

// checkZone tells the author of a condition whom its zone holds.
func (c *compiler) checkZone(t *bocage.ThreatCondition, concerned []int32) {
	ref := Ref("ThreatCondition", t, "spec.zone")
	switch zone := t.Spec.Zone; {
	case zone == "" || len(concerned) > 0:
	case !slices.ContainsFunc(c.in.zones, func(z *bocage.Zone) bool { return z.Name == zone }):
		c.findings.reject(ref, UnknownZone, "there is no Zone %s: declare it with the hosts that stand in it", zone)
	default:
		c.findings.note(ref, NoWorkloads, "no workload stands in Zone %s today", zone)
	}
}

func (c *compiler) stateQuarantines() {
	if len(c.in.quarantines) == 0 {
		return
	}
	for _, q := range c.in.quarantines {
		ref := Ref("Quarantine", q, "spec.workload")
		at, known := c.in.find(q.Spec.Workload)
		if !known {
			c.findings.reject(ref, UnknownWorkload, "there is no workload %s that policy knows", q.Spec.Workload)
			continue
		}
		c.refusals = append(c.refusals, refusal{c.in.workloads[at].Status.Identity, []bocage.Ref{ref}, q.Spec.Until})
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
			last.by = unique(append(last.by, r.by...))
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
