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

// readClock reads both clocks. Where the processor was taken away in between it reads
// them again: moments that are told by the one and come by the other would be as far off.
func readClock() clock {
	var read clock
	for least, try := int64(math.MaxInt64), 0; least > clockError.Nanoseconds()/20 && try < 100; try++ {
		before := monotonic()
		wall := time.Now().Round(0)
		if took := monotonic() - before; took < least {
			read, least = clock{wall: wall, ns: before + took/2}, took
		}
	}
	return read
}

func monotonic() int64 {
	var ts unix.Timespec
	// CLOCK_MONOTONIC always exists.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
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
// than reading them takes, and long before another process would see other moments.
func (c clock) drifted(now clock) bool {
	return (now.wall.Sub(c.wall) - time.Duration(now.ns-c.ns)).Abs() > clockError/4
}

// clockError is how far two readings of both clocks may be apart and still be of
// one moment.
const clockError = time.Millisecond
