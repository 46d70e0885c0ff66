package dataplane

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// clock ties wall time to the kernel's monotonic time at one moment.
type clock struct {
	wall time.Time
	ns   int64
}

func readClock() clock {
	var ts unix.Timespec
	// CLOCK_MONOTONIC always exists.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return clock{wall: time.Now().Round(0), ns: ts.Nano()}
}

// monotonic is at least 1, which is long ago, and at most what fits, which never
// comes: years of wall time may lie outside of the kernel's.
func (c clock) monotonic(t time.Time) int64 {
	d := int64(t.Sub(c.wall))
	if d > math.MaxInt64-c.ns {
		return math.MaxInt64
	}
	return max(c.ns+d, 1)
}

func (c clock) time(ns uint64) time.Time {
	return c.wall.Add(time.Duration(int64(ns) - c.ns)).UTC()
}

// drifted says whether the two clocks have moved against each other since, by more
// than reading them takes.
func (c clock) drifted(now clock) bool {
	return (now.wall.Sub(c.wall) - time.Duration(now.ns-c.ns)).Abs() > clockError
}

// clockError is how far two readings of both clocks may be apart and still be of
// one moment.
const clockError = time.Millisecond
