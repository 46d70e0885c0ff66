package plan

import (
	"fmt"
	"time"

	"bocage.dev/bocage"
)

const (
	day  = 24 * time.Hour
	week = 7 * day
)

// warnings say what the replayed recording cannot show. A flow that comes
// seldom is in a short recording once or not at all, and then no replay misses it.
func warnings(result *bocage.PlanResult, edges []bocage.Edge) bocage.Faults {
	var out bocage.Faults
	warn := func(format string, args ...any) {
		out = append(out, bocage.Fault{Field: "replay", Message: fmt.Sprintf(format, args...)})
	}
	span := result.Recorded.Last.Sub(result.Recorded.First)
	if len(edges) == 0 || result.Recorded.First.IsZero() {
		warn("no flow is recorded: that none is newly refused says nothing")
		return out
	}
	switch {
	case span < day:
		warn("the recording covers %s: what happens once a day, such as a nightly job, may be missing", rounded(span))
	case span < week:
		warn("the recording covers %s: what happens once a week may be missing", rounded(span))
	}
	once, twice, slow := 0, 0, 0
	longest, example := time.Duration(0), ""
	for _, e := range edges {
		switch e.Flows {
		case 1:
			once++
		case 2:
			twice++
		}
		if period, known := periodOf(e); known && span < 2*period {
			slow++
			if period > longest {
				longest, example = period, fmt.Sprintf("%s to %s %s/%d", e.Source, e.Destination, e.Protocol, e.DestinationPort)
			}
		}
	}
	if slow > 0 {
		warn("%s less often than twice in the recorded time (%s, about every %s): others like that may be missing",
			counted(slow, "recorded kind of flow comes back", "recorded kinds of flow come back"), example, rounded(longest))
	}
	if unseen := unseen(once, twice); unseen > 0 && once > 0 {
		warn("%s seen only once: by that, about %d more that come as seldom, or more than that, were not seen yet",
			counted(once, "kind of flow was", "kinds of flow were"), unseen)
	}
	return out
}

// counted puts a number before the one of two texts that goes with it.
func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// periodOf estimates how long it takes until a flow of an edge comes back.
func periodOf(e bocage.Edge) (time.Duration, bool) {
	if e.Flows < 2 || !e.Last.After(e.First) {
		return 0, false
	}
	return e.Last.Sub(e.First) / time.Duration(e.Flows-1), true
}

// unseen is a lower bound of the edges that exist and were not seen, from those
// that were seen once and twice (Chao 1984, in its bias-corrected form).
func unseen(once, twice int) int { return once * (once - 1) / (2 * (twice + 1)) }

// rounded is a time as people say it.
func rounded(d time.Duration) string {
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%.1f days", d.Hours()/24)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%.0f hours", d.Hours())
	case d >= 2*time.Minute:
		return fmt.Sprintf("%.0f minutes", d.Minutes())
	case d.Round(time.Second) == time.Second:
		return "1 second"
	case d < time.Second:
		return "less than a second"
	default:
		return fmt.Sprintf("%.0f seconds", d.Seconds())
	}
}
