package policy

import (
	"fmt"
	"slices"
	"time"

	"bocage.dev/bocage"
)

// A workload may name a host that has no agent: a misspelled name, or a machine that has
// yet to join. No enforcement point stands before such a workload, and without a word
// about it the workload looks like any other.

const (
	// absentMost bounds the workloads that are told of it in one turn, so that a whole
	// inventory of hosts to come does not hold up other statuses; absentEvery is the time
	// between two such turns.
	absentMost  = 1024
	absentEvery = time.Second
)

// absence says why a host is not there; its zero value: it is.
type absence struct{ reason, message string }

// absentHosts returns those of the named hosts that no agent ever reported for.
func absentHosts(named []string, hosts []*bocage.Host) map[string]absence {
	absent := map[string]absence{}
	for _, name := range named {
		absent[name] = absence{"UnknownHost", fmt.Sprintf("no host %s has joined, so that no enforcement point stands before the workload: correct spec.host, or have the host join with what `bocage agent token %s` prints", name, name)}
	}
	for _, h := range hosts {
		if _, is := absent[h.Name]; !is {
			continue
		}
		if h.Status.LastSeen.IsZero() {
			absent[h.Name] = absence{"HostNotJoined", fmt.Sprintf("host %s is declared and has not joined, so that no enforcement point stands before the workload: have it join with what `bocage agent token %s` prints, or correct spec.host", h.Name, h.Name)}
			continue
		}
		delete(absent, h.Name)
	}
	return absent
}

// hostOf brings up to date, or only compares, what a workload's status says of its host.
// Nothing is said of a host that was there from the beginning.
func (r *reporter) hostOf(w *bocage.Workload, write bool) bool {
	want := bocage.Condition{Type: bocage.ConditionDegraded, Status: "False", ObservedGeneration: w.Generation,
		Reason: "AsPromised", Message: "its host has joined"}
	if a := r.absent[w.Spec.Host]; a.reason != "" {
		want.Status, want.Reason, want.Message = "True", a.reason, a.message
		if also := r.broken[w.NamespacedName()]; also != "" {
			want.Message += "; " + also
		}
	} else if r.outOfBounds(w, &want) {
		return setConditions(&w.Status.Conditions, []bocage.Condition{want}, write)
	} else if !slices.ContainsFunc(w.Status.Conditions, func(c bocage.Condition) bool { return c.Type == want.Type }) {
		return false
	}
	if !write {
		if !setConditions(&w.Status.Conditions, []bocage.Condition{want}, false) {
			return false
		}
		if now := time.Now(); !now.Before(r.p.absentFrom) {
			if r.told++; r.told == absentMost {
				r.p.absentFrom = now.Add(absentEvery)
			}
			return true
		}
		if r.wait == 0 || absentEvery < r.wait {
			r.wait = absentEvery
		}
		return false
	}
	return setConditions(&w.Status.Conditions, []bocage.Condition{want}, true)
}
