package node

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/stream"
)

// fakeLog is a log that can refuse.
type fakeLog struct {
	mu      sync.Mutex
	refuse  error
	batches []bocage.Batch
	ids     map[string]bool
}

func (l *fakeLog) Append(_ context.Context, _, id string, data []byte) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return 0, l.refuse
	}
	if l.ids[id] {
		return 0, nil
	}
	if l.ids == nil {
		l.ids = map[string]bool{}
	}
	l.ids[id] = true
	var batch bocage.Batch
	if err := json.Unmarshal(data, &batch); err != nil {
		return 0, err
	}
	l.batches = append(l.batches, batch)
	return uint64(len(l.batches)), nil
}

func (l *fakeLog) setRefuse(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = err
}

func (l *fakeLog) records() (n int, lost uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, batch := range l.batches {
		n += len(batch.Flows) / bocage.FlowEventSize
		for _, count := range batch.Lost {
			lost += count
		}
	}
	return n, lost
}

func (l *fakeLog) Read(context.Context, uint64, func(stream.Message) error) error { return nil }
func (l *fakeLog) Bounds(context.Context) (uint64, uint64, error)                 { return 0, 0, nil }

func unsigned(_ string, payload []byte) ([]byte, error) { return payload, nil }

func testPublisher(t *testing.T, log stream.Log, dir string) *publisher {
	t.Helper()
	p, err := newPublisher("h1", dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p.identify("spiffe://test/agent/h1", unsigned)
	p.connect(log)
	return p
}

func flows(n int) []bocage.FlowEvent { return make([]bocage.FlowEvent, n) }

// TestPublisherDeliversInOrder checks that every record arrives once, in numbered
// and chained batches.
func TestPublisherDeliversInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &fakeLog{}
		p := testPublisher(t, log, t.TempDir())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		for range 10 {
			p.Flows(flows(700))
			synctest.Wait()
		}
		p.Engagement(bocage.EngagementEvent{Decoy: "ssh"})
		time.Sleep(2 * batchAge)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n, lost := log.records(); n != 7000 || lost != 0 {
			t.Errorf("delivered %d records and %d lost, want 7000 and 0", n, lost)
		}
		for i, batch := range log.batches {
			if batch.Sequence != uint64(i+1) || (i > 0) != (len(batch.Previous) == 32) {
				t.Errorf("batch %d has sequence %d and a previous hash of %d bytes", i, batch.Sequence, len(batch.Previous))
			}
		}
	})
}

// TestPublisherSpools checks that a refusing log loses nothing: batches wait in
// memory, then on disk, also for the next process.
func TestPublisherSpools(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		log := &fakeLog{refuse: stream.ErrFull}
		p := testPublisher(t, log, dir)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		for range queueBatches + 50 {
			p.Flows(flows(1))
			time.Sleep(2 * batchAge)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
	left, err := filepath.Glob(filepath.Join(dir, "*.batch"))
	if err != nil || len(left) != queueBatches+50 {
		t.Fatalf("%d batches on disk (%v), want %d", len(left), err, queueBatches+50)
	}
	// A half-written file of a killed process is not a batch.
	if err := os.WriteFile(filepath.Join(dir, ".new-1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		log := &fakeLog{}
		p := testPublisher(t, log, dir)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		p.Flows(flows(1))
		time.Sleep(2 * batchAge)
		time.Sleep(2 * batchAge)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if n, _ := log.records(); n != queueBatches+51 {
			t.Errorf("the next process delivered %d records, want %d", n, queueBatches+51)
		}
	})
}

// TestPublisherCountsLoss checks that what does not fit is counted and told.
func TestPublisherCountsLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &fakeLog{}
		p := testPublisher(t, log, t.TempDir())
		p.Flows(flows(openRecords))
		p.Flows(flows(7)) // no room
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(2 * batchAge)
		log.setRefuse(errors.New("gone"))
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		n, lost := log.records()
		if n != openRecords || lost != 7 {
			t.Errorf("delivered %d and told of %d lost, want %d and 7", n, lost, openRecords)
		}
		if offered, lost := p.Counts(); offered != openRecords+7 || lost != 7 {
			t.Errorf("counts say %d offered and %d lost", offered, lost)
		}
	})
}

func TestEndMatcher(t *testing.T) {
	for _, c := range []struct {
		pattern, workload, address string
		want                       bool
	}{
		{"", "", "", true},
		{"shop/web", "shop/web", "10.0.0.1", true},
		{"shop/web", "shop/webs", "10.0.0.1", false},
		{"shop/", "shop/webs", "10.0.0.1", true},
		{"10.0.0.0/8", "shop/web", "10.0.0.1", true},
		{"10.0.0.2", "shop/web", "10.0.0.1", false},
		{"fd00::/8", "", "fd00::1", true},
		{"10.0.0.0/8", "", "", false},
	} {
		match, err := endMatcher(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := match(c.workload, c.address); got != c.want {
			t.Errorf("%q on %q %q: got %v", c.pattern, c.workload, c.address, got)
		}
	}
	if _, err := endMatcher("Not a name"); err == nil {
		t.Error("a pattern that is nothing was taken")
	}
}
