package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What the disk itself takes, in the run whose latencies it bounds: an event
// cannot arrive before its write is on the disk.

const (
	// probeEvery is how often the disk is asked while others write to it, and
	// probeBytes how much is written then: about what one write of an object is.
	probeEvery = 50 * time.Millisecond
	probeBytes = 4 << 10
	probeFile  = 4 << 20
)

// diskFigures are the disk's.
type diskFigures struct {
	Syncs int `json:"syncs"`
	// P50, P99 and Worst are of one sync after another in a file of its own, made
	// before, while the store writes.
	P50   time.Duration `json:"p50Nanoseconds"`
	P99   time.Duration `json:"p99Nanoseconds"`
	Worst time.Duration `json:"worstNanoseconds"`
	// Log and Commit are etcd's own figures: of its log, which every write waits
	// for, and of its database, which is brought up to date now and then.
	Log    syncFigures `json:"etcdLog"`
	Commit syncFigures `json:"etcdDatabase"`
}

// syncFigures are read from a histogram: each is at most what it says.
type syncFigures struct {
	Count  float64       `json:"count"`
	AtMost time.Duration `json:"p50AtMostNanoseconds"`
	Tail   time.Duration `json:"p99AtMostNanoseconds"`
}

// probeDisk syncs a file of its own in a folder, again and again, until ctx ends.
func probeDisk(ctx context.Context, dir string) (f diskFigures, err error) {
	file, err := os.OpenFile(filepath.Join(dir, "probe"), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	// Written before, so that a sync is one of data and nothing else.
	if _, err := file.Write(make([]byte, probeFile)); err != nil {
		return f, err
	}
	if err := file.Sync(); err != nil {
		return f, err
	}
	var took []time.Duration
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for n := int64(0); ; n++ {
		select {
		case <-ctx.Done():
			f.Syncs, f.P50, f.P99, f.Worst = len(took), quantile(took, .5), quantile(took, .99), quantile(took, 1)
			return f, nil
		case <-tick.C:
		}
		began := time.Now()
		if _, err := file.WriteAt(bytes.Repeat([]byte{byte(n)}, probeBytes), n*probeBytes%probeFile); err != nil {
			return f, err
		}
		if err := syscall.Fdatasync(int(file.Fd())); err != nil {
			return f, fmt.Errorf("sync %s: %w", file.Name(), err)
		}
		took = append(took, time.Since(began))
	}
}

// histogram is one of the server's: counts by upper bound in seconds.
type histogram struct {
	bounds []float64
	counts []float64 // cumulative
}

// histograms reads those of the server whose names are given.
func (p *process) histograms(ctx context.Context, names ...string) (map[string]histogram, error) {
	t := p.transport(true)
	defer t.CloseIdleConnections()
	answer, err := p.get(ctx, &http.Client{Transport: t}, "/metrics")
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return readHistograms(answer.Body, names...)
}

// readHistograms reads Prometheus' text.
func readHistograms(r io.Reader, names ...string) (map[string]histogram, error) {
	found := map[string]histogram{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		for _, name := range names {
			rest, ok := strings.CutPrefix(lines.Text(), name+`_bucket{le="`)
			if !ok {
				continue
			}
			bound, count, _ := strings.Cut(rest, `"} `)
			h := found[name]
			b, err := strconv.ParseFloat(bound, 64)
			c, err2 := strconv.ParseFloat(count, 64)
			if err := errors.Join(err, err2); err != nil {
				return nil, fmt.Errorf("read the metric %s: %w", name, err)
			}
			h.bounds, h.counts = append(h.bounds, b), append(h.counts, c)
			found[name] = h
		}
	}
	return found, lines.Err()
}

// since is what was counted after an earlier look.
func (h histogram) since(before histogram) syncFigures {
	counts := append([]float64{}, h.counts...)
	for i := range before.counts {
		counts[i] -= before.counts[i]
	}
	if len(counts) == 0 {
		return syncFigures{}
	}
	f := syncFigures{Count: counts[len(counts)-1]}
	at := func(q float64) time.Duration {
		for i, c := range counts {
			if c >= q*f.Count && !math.IsInf(h.bounds[i], 1) {
				return time.Duration(h.bounds[i] * float64(time.Second))
			}
		}
		return math.MaxInt64
	}
	f.AtMost, f.Tail = at(.5), at(.99)
	return f
}
