package compile

import (
	"fmt"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// inForce returns the guardrails as they count: with the declaration that was
// approved last, where two people decide.
func (a *admitted) inForce(guardrails []*bocage.Guardrail) []*bocage.Guardrail {
	var out []*bocage.Guardrail
	for _, g := range guardrails {
		spec := g.InForce()
		switch {
		case spec == nil:
			a.findings = append(a.findings, Unapproved("Guardrail", g, g.Status.Approval, false))
			continue
		case spec != &g.Spec:
			a.findings = append(a.findings, Unapproved("Guardrail", g, g.Status.Approval, true))
			approved := *g
			approved.Spec = *spec
			g = &approved
		}
		out = append(out, g)
	}
	return out
}

// Unapproved tells the author of what waits for somebody else; stands says that a
// declaration before it is in force meanwhile.
func Unapproved(kind string, o bocage.Resource, a *bocage.Approval, stands bool) Finding {
	f := Finding{Object: Ref(kind, o, ""), Reason: NotApproved, Rejected: true}
	command := "bocage approve " + strings.ToLower(kind) + " " + o.Meta().Name
	f.Message = fmt.Sprintf("takes no effect until %s approves it", approvers(a))
	if stands {
		f.Object.Field = "spec"
		f.Message = fmt.Sprintf("what was approved before stays in force until %s approves this", approvers(a))
	}
	if a.Reason != "" {
		f.Message += ", since " + a.Reason
	}
	f.Message += ": " + command
	return f
}

// approvers says who may approve, for people.
func approvers(a *bocage.Approval) string {
	if len(a.Approvers) == 0 {
		return "somebody other than its author"
	}
	return strings.Join(a.Approvers, " or ")
}

// admitExceptions returns the exceptions that are in force now, and tells the
// authors of the others why they are not.
func (a *admitted) admitExceptions(exceptions []*bocage.Exception, now time.Time) []*bocage.Exception {
	guardrails := byName(a.guardrails)
	var out []*bocage.Exception
	for _, e := range exceptions {
		if len(e.Validate()) > 0 {
			out = append(out, e) // for admitKind to refuse
			continue
		}
		if a.excepts(e, guardrails[e.Spec.Guardrail], now) {
			out = append(out, e)
		}
	}
	return out
}

// excepts reports whether a valid exception is in force.
func (a *admitted) excepts(e *bocage.Exception, g *bocage.Guardrail, now time.Time) bool {
	begins := e.Begins()
	lasts := e.Spec.Until.Sub(begins)
	if begins.IsZero() {
		lasts = e.Spec.Until.Sub(now)
	}
	switch {
	case g == nil:
		a.findings.reject(Ref("Exception", e, "spec.guardrail"), UnknownGuardrail, "there is no Guardrail %s in force: an exception is to one by its name", e.Spec.Guardrail)
	case !g.Spec.Exceptions.Allowed:
		a.findings.reject(Ref("Exception", e, "spec.guardrail"), NotAdmitted,
			"Guardrail %s admits no exceptions: its owner would have to set spec.exceptions.allowed", g.Name)
	case g.Spec.Exceptions.Longest() > 0 && lasts > g.Spec.Exceptions.Longest():
		a.findings.reject(Ref("Exception", e, "spec.until"), TooLong, "it would last %s, and Guardrail %s admits %s at most: end it by %s",
			lasts.Round(time.Second), g.Name, g.Spec.Exceptions.Max, latest(begins, now).Add(g.Spec.Exceptions.Longest()).UTC().Format(time.RFC3339))
		if begins.IsZero() { // what is left of it gets shorter
			a.changesAt(e.Spec.Until.Add(-g.Spec.Exceptions.Longest()))
		}
	case e.Status.Approval.Waits(e.Generation):
		a.findings = append(a.findings, Unapproved("Exception", e, e.Status.Approval, false))
	case !now.Before(e.Spec.Until):
		a.findings.note(Ref("Exception", e, ""), Expired, "ended at %s", e.Spec.Until.UTC().Format(time.RFC3339))
	case now.Before(begins):
		a.findings.note(Ref("Exception", e, ""), NotBegun, "begins at %s", begins.UTC().Format(time.RFC3339))
		a.changesAt(begins)
	default:
		a.changesAt(e.Spec.Until)
		return true
	}
	return false
}

// latest is where a period is measured from: a beginning, if there is one.
func latest(begins, now time.Time) time.Time {
	if begins.IsZero() {
		return now
	}
	return begins
}

// changesAt notes a moment at which the same objects compile to something else.
func (a *admitted) changesAt(moment time.Time) {
	if a.expires.IsZero() || moment.Before(a.expires) {
		a.expires = moment
	}
}

// stateExceptions lifts a guardrail from the cells of its exceptions. Only what
// the guardrail says something about is stated, so that a broad exception to a
// narrow guardrail stays narrow.
//
// What is owed to the guardrail is owed towards names too, where it means addresses
// outside: a name may have any of them. So an exception lifts it there where it
// lifts it from all of these addresses.
func (c *compiler) stateExceptions(g *bocage.Guardrail) {
	owing := c.pop.side(g.Spec.Match.To)
	for _, e := range c.exceptions[g.Name] {
		ref := Ref("Exception", e, "spec.match")
		stated := len(c.stated)
		lift := func(shy bool, matches ...bocage.CellMatch) {
			for _, b := range c.resolve(append(matches, g.Spec.Match, e.Spec.Match)...) {
				if len(matches) == 0 && b.to.equal(owing) {
					b.to = c.pop.orNames(b.to) // as what it lifts: see stateRequire
				}
				c.state(statement{kind: except, from: b.from, to: b.to, ports: b.ports, by: []bocage.Ref{ref},
					guardrail: g.Name, until: e.Spec.Until, shy: shy})
			}
		}
		for _, never := range g.Spec.Never {
			lift(false, never)
		}
		if g.Spec.Separate != nil {
			lift(false)
		} else if g.Spec.Require != nil {
			lift(true)
		}
		c.checkSide("Exception", e, "spec.match.from", &e.Spec.Match.From)
		c.checkSide("Exception", e, "spec.match.to", &e.Spec.Match.To)
		if len(c.stated) == stated {
			c.findings.note(ref, NothingMatches, "Guardrail %s says nothing today that it would lift: compare it with spec.match there", g.Name)
		}
	}
}
