package bocage

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"time"
)

// Limit is the limit on new flows of a decision that owes a rate. Flows are counted for
// each pair of identities, over all decisions that owe the rate of the same declarations:
// other ports or a new generation do not give a source a new allowance.
type Limit struct {
	// Number identifies the limit, in every generation.
	Number uint64
	// Every is the interval between two flows.
	Every time.Duration
}

// LimitAhead is how long before its due time a flow is admitted: a burst of a quarter of a
// second's worth of flows, and one more.
const LimitAhead = 250 * time.Millisecond

// Limit returns the limit that the decision's rate sets; false if it owes no rate.
func (d *Decision) Limit() (Limit, bool) {
	if d.Duties == nil || !d.Verdict.Allowed() || d.Duties.RatePerSecond() <= 0 {
		return Limit{}, false
	}
	rate := time.Duration(d.Duties.RatePerSecond())
	limit := Limit{Number: uint64(d.ID), Every: (time.Second + rate - 1) / rate}
	var authors []string
	for _, r := range d.By {
		if strings.HasSuffix(r.Field, ".rate") {
			authors = append(authors, strings.Join([]string{r.Kind, r.Namespace, r.Name, r.Field}, "\x00"))
		}
	}
	if len(authors) > 0 {
		slices.Sort(authors)
		sum := sha256.Sum256([]byte(strings.Join(authors, "\x01")))
		limit.Number = binary.LittleEndian.Uint64(sum[:])
	}
	return limit, true
}

// Take admits one more flow at a moment, or refuses it, by the generic cell rate algorithm.
// due is the due time that the last call returned, zero before the first one.
func (l Limit) Take(due, at time.Time) (time.Time, bool) {
	turn := at
	if due.After(at) {
		turn = due
	}
	if turn.Sub(at) > LimitAhead {
		return due, false
	}
	return turn.Add(l.Every), true
}

// Meter is the model of how one enforcement point counts new flows: Decide with a memory.
// The zero Meter is ready for use.
type Meter struct {
	due  map[metered]time.Time
	most int // when due has as many entries, expired ones are dropped
}

type metered struct {
	limit               uint64
	source, destination Identity
}

// Open decides on a flow that begins at f.At, and counts it if it is admitted.
func (m *Meter) Open(r *Ruleset, f Flow) (Verdict, Reason) {
	verdict, reason := r.Decide(f)
	decision, _ := r.Decision(reason.Decision)
	limit, limited := decision.Limit()
	if !limited || !reason.Would.Allowed() {
		return verdict, reason
	}
	source, destination := r.Lookup(f.Source), r.Lookup(f.Destination)
	m.forget(f.At)
	key := metered{limit.Number, source.Identity, destination.Identity}
	due, may := limit.Take(m.due[key], f.At)
	if may {
		m.due[key] = due
		return verdict, reason
	}
	reason.Code, reason.Would = ReasonRateLimited, VerdictDrop
	if groups := r.indexed().groups.find(); groups[source.Group].Enforce || groups[destination.Group].Enforce {
		return VerdictDrop, reason
	}
	return VerdictAllow, reason
}

// forget drops entries whose due time has passed, which have no effect any more.
func (m *Meter) forget(at time.Time) {
	if m.due == nil {
		m.due, m.most = map[metered]time.Time{}, 1024
	}
	if len(m.due) < m.most {
		return
	}
	for key, due := range m.due {
		if !due.After(at) {
			delete(m.due, key)
		}
	}
	m.most = 2*len(m.due) + 1024
}
