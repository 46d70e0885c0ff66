package bocage

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
	"time"
)

// Limit is how fast new flows may come where a decision owes a rate. It holds for
// each pair of ends, by identity, over everything that owes the same declarations'
// rates: neither many ports nor another generation make more of it.
type Limit struct {
	// Number tells limits apart, in every generation.
	Number uint64
	// Every is the time from one flow's turn to the next one's.
	Every time.Duration
}

// LimitAhead is how long before its turn a flow may come. So a quarter of a second's
// worth may come at once, and one more.
const LimitAhead = 250 * time.Millisecond

// Limit returns what the decision owes of a rate; false if it does not.
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

// Take takes the turn of one more flow at a moment, if it has come, where due is that
// of the last: the generic cell rate algorithm. Before the first, due is zero.
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

// Meter is the model of what counts new flows at one enforcement point: Decide with
// a memory. The zero Meter has seen none.
type Meter struct {
	due  map[metered]time.Time
	most int // forgets what is over when there are as many
}

type metered struct {
	limit               uint64
	source, destination Identity
}

// Open decides on a flow that begins at its own moment, and counts it if it may.
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

// forget drops the turns that are over, which say nothing any more.
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
