package lake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"
)

// Segments are merged in two steps, so that a record is written three times in
// all: many small ones as soon as there are many, and those of an hour that is
// over.
const (
	smallBytes   = 1 << 20
	manySmall    = 16
	quietAfter   = 15 * time.Minute // an hour is over, and late records have come
	largestBytes = 64 << 20         // of what is merged into one
	dayForm      = "day=20060102"
)

// tidy merges and removes until ctx ends.
func (l *Lake) tidy(ctx context.Context) {
	tick := time.NewTicker(l.cfg.tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := l.tidyOnce(ctx, now); err != nil && ctx.Err() == nil {
				l.cfg.Logger.Warn("tidy the lake", "error", err)
			}
		}
	}
}

func (l *Lake) tidyOnce(ctx context.Context, now time.Time) error {
	var faults []error
	for _, run := range l.mergeable(now) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := l.merge(ctx, run); err != nil {
			faults = append(faults, fmt.Errorf("merge %d segments of %s: %w", len(run), run[0].partition, err))
			break // most likely there is no room: old segments go first
		}
	}
	return errors.Join(append(faults, l.retire(now), l.sweep())...)
}

// mergeable finds runs of neighbouring segments that are worth merging.
func (l *Lake) mergeable(now time.Time) [][]segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	var runs [][]segment
	for _, partition := range slices.Sorted(maps.Keys(l.segments)) {
		all := l.segments[partition]
		if over(partition, now) {
			runs = append(runs, split(all, func(s segment) bool { return s.bytes < largestBytes }, 2)...)
		} else {
			runs = append(runs, split(all, func(s segment) bool { return s.bytes < smallBytes }, manySmall)...)
		}
	}
	return runs
}

// split returns the runs of at least so many segments that fit, none larger in sum
// than one segment may be.
func split(all []segment, fits func(segment) bool, least int) [][]segment {
	var runs [][]segment
	var run []segment
	sum := int64(0)
	end := func() {
		if len(run) >= least {
			runs = append(runs, run)
		}
		run, sum = nil, 0
	}
	for _, s := range all {
		if !fits(s) {
			end()
			continue
		}
		if sum+s.bytes > largestBytes {
			end()
		}
		run, sum = append(run, s), sum+s.bytes
	}
	end()
	return runs
}

// over reports whether nothing more is to be expected in a partition's hour.
func over(partition string, now time.Time) bool {
	hour, err := hourOf(partition)
	return err == nil && now.Sub(hour) > time.Hour+quietAfter
}

func hourOf(partition string) (time.Time, error) {
	_, rest, _ := strings.Cut(partition, "/")
	return time.Parse(dayForm+"/hour=15", rest)
}

// merge writes one segment that covers several and puts it in their place. While
// both are there, and after a crash in between, the larger one counts: see resolve.
func (l *Lake) merge(ctx context.Context, run []segment) error {
	if err := l.roomToWrite(); err != nil {
		return err
	}
	merged := segment{partition: run[0].partition, first: run[0].first, last: run[len(run)-1].last}
	temp := filepath.Join(l.cfg.Dir, tempDir, "merge.parquet")
	if err := writeDurably(temp, func(out io.Writer) error { return l.concatenate(ctx, out, run) }); err != nil {
		return err
	}
	info, err := os.Stat(temp)
	if err != nil {
		return err
	}
	merged.bytes = info.Size()
	if err := os.Rename(temp, merged.path(l.cfg.Dir)); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(merged.path(l.cfg.Dir))); err != nil {
		return err
	}
	l.counts.merged.Add(uint64(len(run)))
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := slices.DeleteFunc(l.segments[merged.partition], func(s segment) bool { return slices.Contains(run, s) })
	kept = append(kept, merged)
	slices.SortFunc(kept, compareSegments)
	l.segments[merged.partition] = kept
	for _, s := range run {
		l.doom(s)
	}
	return nil
}

// doom has a segment's file removed once no question reads it; mu is held.
func (l *Lake) doom(s segment) {
	l.doomed = append(l.doomed, doomedFile{s.path(l.cfg.Dir), l.nextPin})
}

// concatenate copies the rows of segments, group by group.
func (l *Lake) concatenate(ctx context.Context, out io.Writer, run []segment) error {
	switch {
	case strings.HasPrefix(run[0].partition, "class="+classFlows+"/"):
		return concatenateAs[flowRow](ctx, out, l.cfg.Dir, run)
	case strings.HasPrefix(run[0].partition, "class="+classCadences+"/"):
		return concatenateAs[cadenceRow](ctx, out, l.cfg.Dir, run)
	case strings.HasPrefix(run[0].partition, "class="+classGreetings+"/"):
		return concatenateAs[greetingRow](ctx, out, l.cfg.Dir, run)
	case strings.HasPrefix(run[0].partition, "class="+classDetections+"/"):
		return concatenateAs[detectionRow](ctx, out, l.cfg.Dir, run)
	default:
		return concatenateAs[engagementRow](ctx, out, l.cfg.Dir, run)
	}
}

func concatenateAs[T any](ctx context.Context, out io.Writer, dir string, run []segment) error {
	w := parquet.NewGenericWriter[T](out, writerOptions()...)
	rows := make([]T, 4096)
	for _, s := range run {
		if err := copySegment(ctx, w, s.path(dir), rows); err != nil {
			return fmt.Errorf("copy %s: %w", s.name(), err)
		}
	}
	return w.Close()
}

func copySegment[T any](ctx context.Context, w *parquet.GenericWriter[T], path string, rows []T) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := parquet.NewGenericReader[T](f)
	defer r.Close()
	for ctx.Err() == nil {
		n, err := r.Read(rows)
		if _, writing := w.Write(rows[:n]); writing != nil {
			return writing
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// retire removes what is too old, then the oldest until the rest is small enough.
// The newest segment stays, since its name is where landing goes on.
func (l *Lake) retire(now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	type aged struct {
		partition string
		hour      time.Time
		bytes     int64
	}
	var parts []aged
	total, newest := int64(0), ""
	for partition, all := range l.segments {
		hour, err := hourOf(partition)
		if err != nil {
			return err
		}
		p := aged{partition, hour, 0}
		for _, s := range all {
			p.bytes += s.bytes
			if s.last == l.position {
				newest = partition
			}
		}
		total += p.bytes
		parts = append(parts, p)
	}
	slices.SortFunc(parts, func(a, b aged) int { return a.hour.Compare(b.hour) })
	for _, p := range parts {
		if p.partition == newest || total <= l.cfg.MaxBytes && now.Sub(p.hour) <= l.cfg.MaxAge {
			continue
		}
		total -= p.bytes
		for _, s := range l.segments[p.partition] {
			l.doom(s)
			l.counts.removed.Add(1)
		}
		delete(l.segments, p.partition)
	}
	return nil
}

// sweep removes the files of doomed segments that no question reads any more, and
// folders that are empty.
func (l *Lake) sweep() error {
	l.mu.Lock()
	oldest := l.nextPin
	for pin := range l.pins {
		oldest = min(oldest, pin)
	}
	var gone []string
	l.doomed = slices.DeleteFunc(l.doomed, func(d doomedFile) bool {
		if d.before > oldest {
			return false
		}
		gone = append(gone, d.path)
		return true
	})
	l.mu.Unlock()
	var faults []error
	for _, path := range gone {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			faults = append(faults, err)
		}
	}
	for _, path := range gone {
		// Removing a folder that is not empty fails, which is what is wanted.
		if hour := filepath.Dir(path); os.Remove(hour) == nil {
			_ = os.Remove(filepath.Dir(hour))
		}
	}
	return errors.Join(faults...)
}

// snapshot lists the files of each class as they are now, and keeps them from
// being removed until released.
func (l *Lake) snapshot() (files map[string][]string, release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	files = map[string][]string{}
	for partition, all := range l.segments {
		class, _, _ := strings.Cut(strings.TrimPrefix(partition, "class="), "/")
		for _, s := range all {
			files[class] = append(files[class], s.path(l.cfg.Dir))
		}
	}
	for _, list := range files {
		slices.Sort(list)
	}
	pin := l.nextPin
	l.nextPin++
	l.pins[pin] = true
	return files, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.pins, pin)
	}
}
