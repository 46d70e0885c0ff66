package node

import (
	"context"
	"time"

	"bocage.dev/bocage/recognition"
	"bocage.dev/bocage/stream"
)

// keepEvents is how long events stay in the log for `bocage observe` once they
// have landed and been weighed.
const keepEvents = time.Hour

// trimLog lets events leave the log once they are in the history and old
// enough. Until they have landed they stay, however old: the log is what a full
// disk of the history is made good from.
func (c *controllerProcess) trimLog(ctx context.Context, recognizer *recognition.Recognizer) error {
	trimmer, ok := c.log.(stream.Trimmer)
	if !ok {
		return nil
	}
	type mark struct {
		at   time.Time
		done uint64
	}
	var marks []mark
	return every(ctx, time.Minute, func() error {
		marks = append(marks, mark{time.Now(), min(c.lake.Landed(), recognizer.Stats().Sequence)})
		old := 0
		for old < len(marks) && time.Since(marks[old].at) > keepEvents {
			old++
		}
		if old == 0 {
			return nil
		}
		before := marks[old-1].done + 1
		marks = marks[old:]
		if err := trimmer.Trim(ctx, before); err != nil {
			c.logger.Warn("trim the log of events", "before", before, "error", err)
		}
		return nil
	})
}
