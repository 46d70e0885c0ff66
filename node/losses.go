package node

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"
)

// causeRingFull names events that found no room between the kernel and the agent.
const causeRingFull = "ring-full"

// lossesEvery is how often the kernel is asked what it lost.
const lossesEvery = time.Second

// followLosses tells with the batches what events found no room in the kernel's
// ring buffer, also while no agent ran: how many were told is kept on disk.
func (a *agentProcess) followLosses(ctx context.Context) error {
	path := a.cfg.agentDir("events-lost")
	told := readCount(path)
	tick := time.NewTicker(lossesEvery)
	defer tick.Stop()
	for {
		counters, err := a.dataplane.Counters()
		if err != nil {
			a.logger.Warn("lost events not counted", "error", err)
		} else if news := lostSince(counters.Lost, told); news > 0 || counters.Lost < told {
			if err := writeFile(path, strconv.AppendUint(nil, counters.Lost, 10), 0o600); err != nil {
				a.logger.Warn("lost events not written down", "error", err) // told all the same: twice after a restart
			}
			a.events.Lose(causeRingFull, news)
			told = counters.Lost
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// lostSince is what a count has grown by. One that is below what was told counts
// from zero: the kernel's state was made anew.
func lostSince(now, told uint64) uint64 {
	if now < told {
		return now
	}
	return now - told
}

// readCount reads a number from a file; zero if there is none.
func readCount(path string) uint64 {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n
}
