package node

import (
	"context"
	"maps"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// What the kernel lost is told with the next batch, by its cause, and counted as
// offered, as everything is that was due.
func TestKernelLossesAreTold(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		log := &fakeLog{}
		p := testPublisher(t, log, dir)
		p.Lose(causeRingFull, 0)
		p.Lose(causeRingFull, 40)
		p.Lose(causeRingFull, 2)
		p.Flows(flows(3))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(2 * batchAge)
		cancel()
		<-done
		if n, lost := log.records(); n != 3 || lost != 42 {
			t.Errorf("%d records and %d lost were told", n, lost)
		}
		if offered, lost := p.Counts(); offered != 45 || lost != 42 {
			t.Errorf("offered %d, lost %d", offered, lost)
		}
		if got := p.Losses(); !maps.Equal(got, map[string]uint64{causeRingFull: 42}) {
			t.Errorf("lost %v", got)
		}
		log.mu.Lock()
		defer log.mu.Unlock()
		if got := log.batches[0].Lost; got[causeRingFull] != 42 {
			t.Errorf("told %v", got)
		}
	})
}

func TestLostSince(t *testing.T) {
	for _, c := range []struct{ now, told, want uint64 }{{5, 0, 5}, {5, 5, 0}, {7, 5, 2}, {3, 5, 3}, {0, 5, 0}} {
		if got := lostSince(c.now, c.told); got != c.want {
			t.Errorf("%d after %d: %d new ones instead of %d", c.now, c.told, got, c.want)
		}
	}
	path := filepath.Join(t.TempDir(), "n")
	if got := readCount(path); got != 0 {
		t.Errorf("no file says %d", got)
	}
	if err := writeFile(path, []byte("17"), 0o600); err != nil || readCount(path) != 17 {
		t.Errorf("read %d: %v", readCount(path), err)
	}
}
