package lake

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"bocage.dev/bocage"
)

// Use says how many flows a decision was made on.
type Use struct {
	Decision bocage.DecisionID
	// Generation is the last that made it (the low 32 bits of its number).
	Generation  uint32
	Hits        int64
	First, Last time.Time
}

// maxUses bounds the decisions of one answer; the least used are left out.
const maxUses = 100_000

// usageSQL counts each flow at the point before its source and at the point before
// its destination, and takes the larger, as edgesSQL does. Refusals are told
// together, with the number of attempts.
const usageSQL = `
WITH told AS (
  SELECT decision, direction, generation, time_ms, CASE event WHEN 'refused' THEN greatest(packets, 1) ELSE 1 END AS flows
  FROM flows
  WHERE time_ms >= %d AND time_ms < %d AND decision <> 0 AND event IN ('start', 'refused')
), counted AS (
  SELECT decision, direction, sum(flows) AS hits, max(generation) AS generation, min(time_ms) AS first, max(time_ms) AS last
  FROM told GROUP BY decision, direction
)
SELECT decision, max(generation) AS generation, CAST(max(hits) AS BIGINT) AS hits, min(first) AS first, max(last) AS last
FROM counted GROUP BY decision ORDER BY hits DESC, decision`

// Usage returns how many flows each decision was made on from a moment up to
// another. Call Flush first to have the last seconds.
func (l *Lake) Usage(ctx context.Context, since, until time.Time) ([]Use, error) {
	var from int64
	if !since.IsZero() {
		from = since.UnixMilli()
	}
	result, err := l.ask(ctx, fmt.Sprintf(usageSQL, from, until.UnixMilli()), maxUses)
	if err != nil {
		return nil, fmt.Errorf("usage since %s: %w", since.Format(time.RFC3339), err)
	}
	if result.Truncated {
		l.cfg.Logger.Warn("more decisions than are read at once: the least used are left out", "decisions", maxUses)
	}
	uses := make([]Use, len(result.Rows))
	for i, row := range result.Rows {
		var n [5]int64
		for j := range n {
			number, ok := row[j].(json.Number)
			if !ok {
				return nil, fmt.Errorf("usage: column %d is %T", j, row[j])
			}
			if n[j], err = number.Int64(); err != nil {
				return nil, fmt.Errorf("usage: %w", err)
			}
		}
		uses[i] = Use{Decision: bocage.DecisionID(n[0]), Generation: uint32(n[1]), Hits: n[2], First: time.UnixMilli(n[3]).UTC(), Last: time.UnixMilli(n[4]).UTC()}
	}
	return uses, nil
}
