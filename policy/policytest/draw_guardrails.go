package policytest

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// drawGuardrail makes a guardrail of any of its parts, approved or waiting.
func drawGuardrail(t *rapid.T, i int) *bocage.Guardrail {
	g := &bocage.Guardrail{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("g%d", i), Generation: 2}, Spec: drawGuardrailSpec(t)}
	switch rapid.IntRange(0, 9).Draw(t, "approval") {
	case 0: // nothing of it was ever approved
		g.Status.Approval = &bocage.Approval{}
	case 1:
		approved := drawGuardrailSpec(t)
		g.Status.Approval = &bocage.Approval{Generation: 1, Approved: &approved}
	case 2:
		approved := g.Spec
		g.Status.Approval = &bocage.Approval{Generation: 2, Approved: &approved}
	}
	return g
}

func drawGuardrailSpec(t *rapid.T) bocage.GuardrailSpec {
	var s bocage.GuardrailSpec
	if rapid.Bool().Draw(t, "narrowed") {
		s.Match = drawMatch(t)
	}
	for range rapid.IntRange(0, 2).Draw(t, "nevers") {
		s.Never = append(s.Never, drawMatch(t))
	}
	for range rapid.IntRange(0, 1).Draw(t, "grants") {
		s.Grant = append(s.Grant, drawMatch(t))
	}
	if rapid.IntRange(0, 2).Draw(t, "protects") == 0 {
		s.Protect = append(s.Protect, drawMatch(t))
	}
	if rapid.IntRange(0, 4).Draw(t, "separates") == 0 {
		s.Separate = &bocage.Separate{By: rapid.SampledFrom([]string{"env", "tier", "namespace", "zone", "zone", bocage.LabelHost, bocage.LabelName, bocage.LabelAssurance}).Draw(t, "by")}
	}
	if len(s.Never)+len(s.Grant) == 0 || rapid.Bool().Draw(t, "requires") {
		s.Require = drawDuties(t)
	}
	s.Disposition = drawDisposition(t)
	if rapid.IntRange(0, 3).Draw(t, "excepted") > 0 {
		s.Exceptions = bocage.ExceptionTerms{Allowed: true, Max: rapid.SampledFrom([]string{"", "2m", "10m"}).Draw(t, "max")}
	}
	return s
}

func drawDisposition(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", bocage.DispositionDrop, bocage.DispositionReject, bocage.DispositionDecoy}).Draw(t, "disposition")
}

func drawDuties(t *rapid.T) *bocage.Duties {
	d := &bocage.Duties{}
	if rapid.Bool().Draw(t, "inspect") {
		d.Inspect = rapid.SampledFrom([]string{"deep", "sql"}).Draw(t, "profile")
	}
	if rapid.Bool().Draw(t, "log") {
		d.Log = "full"
	}
	if rapid.Bool().Draw(t, "more duties") {
		d.Verify = rapid.SampledFrom([]string{"", "tls", "ssh"}).Draw(t, "verify")
		d.Rate = rapid.SampledFrom([]string{"", "5/s", "20/s"}).Draw(t, "rate")
		d.Whole = rapid.Bool().Draw(t, "whole")
		d.Witness = rapid.Bool().Draw(t, "witness")
		d.Provenance = rapid.Bool().Draw(t, "provenance")
		d.Assurance = rapid.SampledFrom([]string{"", "L1", "L2", "L3"}).Draw(t, "assurance")
	}
	if d.Empty() {
		d.Log = "full"
	}
	return d
}

// drawException makes an exception to one of the guardrails or to none, in any
// state of approval, before, in or after its time.
func drawException(t *rapid.T, i int) *bocage.Exception {
	created := Now.Add(-time.Duration(rapid.IntRange(0, 2).Draw(t, "age")) * time.Minute)
	e := &bocage.Exception{
		ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("e%d", i), Generation: 1},
		Spec: bocage.ExceptionSpec{Guardrail: fmt.Sprintf("g%d", rapid.SampledFrom([]int{0, 0, 0, 1, 2, 7}).Draw(t, "guardrail")),
			Match: drawMatch(t), Until: drawEnd(t)},
	}
	switch rapid.IntRange(0, 2).Draw(t, "begins") {
	case 0:
		e.CreationTimestamp = &created
	case 1:
		e.Spec.From = Now.Add(time.Duration(rapid.IntRange(-1, 2).Draw(t, "from")) * time.Minute)
	}
	switch rapid.IntRange(0, 4).Draw(t, "approval") {
	case 0:
		e.Status.Approval = &bocage.Approval{}
	case 1:
		e.Status.Approval = &bocage.Approval{Generation: 1}
	}
	return e
}

func drawEnd(t *rapid.T) time.Time {
	return Now.Add(time.Duration(rapid.IntRange(-1, 3).Draw(t, "minutes")) * time.Minute)
}

// DrawResponse makes a response to threat conditions.
func DrawResponse(t *rapid.T, i int) *bocage.Response {
	r := &bocage.Response{ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("r%d", i)}}
	r.Spec.When.Level = rapid.SampledFrom(bocage.Levels()[:3]).Draw(t, "level")
	if rapid.Bool().Draw(t, "of some") {
		r.Spec.When.Workloads = drawInside(t)
	}
	then := &r.Spec.Then
	for range rapid.IntRange(0, 2).Draw(t, "refuses from") {
		m := drawMatch(t)
		then.RefuseFrom = append(then.RefuseFrom, bocage.ResponseCell{Peer: m.To, Ports: m.Ports})
	}
	for range rapid.IntRange(0, 1).Draw(t, "refuses to") {
		m := drawMatch(t)
		then.RefuseTo = append(then.RefuseTo, bocage.ResponseCell{Peer: m.From, Ports: m.Ports})
	}
	if rapid.IntRange(0, 2).Draw(t, "requires") == 0 {
		then.Require = drawDuties(t)
	}
	then.Disposition = drawDisposition(t)
	return r
}

// DrawThreat makes a threat condition, expired or not.
func DrawThreat(t *rapid.T, i int) *bocage.ThreatCondition {
	c := &bocage.ThreatCondition{
		ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("t%d", i)},
		Spec: bocage.ThreatConditionSpec{
			Level:  rapid.SampledFrom(bocage.Levels()).Draw(t, "level"),
			Reason: "drawn", Expires: drawEnd(t),
			Profile: rapid.SampledFrom([]string{"", "deep", "sql", "none"}).Draw(t, "profile"),
		},
	}
	switch kind := rapid.IntRange(0, 5).Draw(t, "concerns"); {
	case kind == 0 && c.Spec.Level != bocage.LevelQuarantine:
		c.Spec.All = true
	case kind == 1 && c.Spec.Level != bocage.LevelQuarantine:
		c.Spec.Zone = rapid.SampledFrom([]string{"z1", "z2", "z3", "z9"}).Draw(t, "zone")
	default:
		c.Spec.Workload = drawWorkloadName(t)
	}
	return c
}

// DrawQuarantine makes a quarantine, expired or not.
func DrawQuarantine(t *rapid.T, i int) *bocage.Quarantine {
	q := &bocage.Quarantine{
		ObjectMeta: bocage.ObjectMeta{Name: fmt.Sprintf("q%d", i)},
		Spec:       bocage.QuarantineSpec{Workload: drawWorkloadName(t)},
	}
	if rapid.Bool().Draw(t, "limited") {
		q.Spec.Until = drawEnd(t)
	}
	return q
}

func drawWorkloadName(t *rapid.T) string {
	return rapid.SampledFrom(namespaces).Draw(t, "namespace") + fmt.Sprintf("/w%d", rapid.IntRange(0, 5).Draw(t, "workload"))
}
