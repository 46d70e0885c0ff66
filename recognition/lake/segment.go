package lake

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
)

// segment is one file: the messages from first to last, as far as they have
// records for its partition.
type segment struct {
	partition   string // class=…/day=…/hour=…
	first, last uint64
	bytes       int64
}

func (s segment) name() string { return fmt.Sprintf("%020d-%020d.parquet", s.first, s.last) }

func (s segment) path(dir string) string { return filepath.Join(dir, s.partition, s.name()) }

// covers reports whether s holds everything that t holds.
func (s segment) covers(t segment) bool {
	return s.first <= t.first && t.last <= s.last && s != t
}

func compareSegments(a, b segment) int {
	return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.last, a.last))
}

var (
	segmentName   = regexp.MustCompile(`^([0-9]{20})-([0-9]{20})\.parquet$`)
	partitionName = regexp.MustCompile(`^class=[a-z_]+/day=[0-9]{8}/hour=[0-9]{2}$`)
)

func parseSegment(partition, name string) (segment, bool) {
	match := segmentName.FindStringSubmatch(name)
	if match == nil || !partitionName.MatchString(partition) {
		return segment{}, false
	}
	first, errFirst := strconv.ParseUint(match[1], 10, 64)
	last, errLast := strconv.ParseUint(match[2], 10, 64)
	return segment{partition: partition, first: first, last: last}, errFirst == nil && errLast == nil && first <= last
}

// recover brings the folder to a state that some moment without a crash could
// have left: what was being written goes, what was committed is completed, what
// was merged into a larger segment goes.
func (l *Lake) recover() error {
	if err := os.RemoveAll(filepath.Join(l.cfg.Dir, tempDir)); err != nil {
		return err
	}
	for _, dir := range []string{tempDir, landingDir} {
		if err := os.MkdirAll(filepath.Join(l.cfg.Dir, dir), 0o750); err != nil {
			return err
		}
	}
	committed, err := os.ReadDir(filepath.Join(l.cfg.Dir, landingDir))
	if err != nil {
		return err
	}
	for _, entry := range committed {
		if err := l.distribute(filepath.Join(l.cfg.Dir, landingDir, entry.Name())); err != nil {
			return err
		}
	}
	if err := l.scan(); err != nil {
		return err
	}
	return l.readState()
}

// scan reads which segments there are, and removes those that others cover.
func (l *Lake) scan() error {
	for _, class := range classes() {
		root := filepath.Join(l.cfg.Dir, "class="+class)
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && path == root {
				return nil
			}
			if err != nil || entry.IsDir() {
				return err
			}
			partition, err := filepath.Rel(l.cfg.Dir, filepath.Dir(path))
			if err != nil {
				return err
			}
			s, ok := parseSegment(partition, entry.Name())
			if !ok {
				l.cfg.Logger.Warn("file in the lake left alone: it is no segment", "path", path)
				return nil
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			s.bytes = info.Size()
			l.segments[partition] = append(l.segments[partition], s)
			return nil
		})
		if err != nil {
			return err
		}
	}
	for partition, all := range l.segments {
		kept, covered := resolve(all)
		for _, s := range covered {
			if err := os.Remove(s.path(l.cfg.Dir)); err != nil {
				return err
			}
		}
		l.segments[partition] = kept
		for _, s := range kept {
			l.position = max(l.position, s.last)
		}
	}
	return nil
}

// resolve sorts segments and tells which are covered by others.
func resolve(all []segment) (kept, covered []segment) {
	slices.SortFunc(all, compareSegments) // a larger one before those that it covers
	for _, s := range all {
		if n := len(kept); n > 0 && kept[n-1].covers(s) {
			covered = append(covered, s)
		} else {
			kept = append(kept, s)
		}
	}
	return kept, covered
}

func (l *Lake) readState() error {
	data, err := os.ReadFile(filepath.Join(l.cfg.Dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("%s: %w", stateFile, err)
	}
	l.base = s.Base
	l.position = max(l.position, s.Base)
	return nil
}

func (l *Lake) writeState(s state) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	temp := filepath.Join(l.cfg.Dir, tempDir, stateFile)
	if err := writeDurably(temp, func(w io.Writer) error { _, err := w.Write(data); return err }); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(l.cfg.Dir, stateFile)); err != nil {
		return err
	}
	return syncDir(l.cfg.Dir)
}

// land writes what was gathered of the messages from first to last. All of it is
// in the lake, or nothing is: the renaming of one folder decides.
//
//  1. temp/FIRST-LAST/ takes one file for each partition, each synced
//  2. it is renamed to landing/FIRST-LAST/: from here on it has landed
//  3. its files are renamed to their places; a restart goes on where this ended
func (l *Lake) land(r *rows, first, last uint64) error {
	name := fmt.Sprintf("%020d-%020d", first, last)
	landing := filepath.Join(l.cfg.Dir, landingDir, name)
	if _, err := os.Stat(landing); errors.Is(err, fs.ErrNotExist) {
		if err := l.commit(r, name, landing); err != nil {
			return fmt.Errorf("write messages %d to %d: %w", first, last, err)
		}
	} else if err != nil {
		return err
	}
	// It has landed. What fails from here on is tried again, with the same result.
	if err := errors.Join(syncDir(filepath.Join(l.cfg.Dir, landingDir)), syncDir(filepath.Join(l.cfg.Dir, tempDir))); err != nil {
		return err
	}
	if err := l.distribute(landing); err != nil {
		return fmt.Errorf("put messages %d to %d in place: %w", first, last, err)
	}
	var landed []segment
	for _, partition := range r.partitions() {
		s := segment{partition: partition, first: first, last: last}
		info, err := os.Stat(s.path(l.cfg.Dir))
		if err != nil {
			return err
		}
		s.bytes = info.Size()
		landed = append(landed, s)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range landed {
		l.segments[s.partition] = append(l.segments[s.partition], s)
	}
	l.position = last
	return nil
}

// commit does the first two steps.
func (l *Lake) commit(r *rows, name, landing string) error {
	if err := l.roomToWrite(); err != nil {
		return err
	}
	temp := filepath.Join(l.cfg.Dir, tempDir, name)
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := os.Mkdir(temp, 0o750); err != nil {
		return err
	}
	err := writeRows(temp, r)
	if err == nil {
		err = syncDir(temp)
	}
	if err == nil {
		err = os.Rename(temp, landing)
	}
	if err != nil {
		_ = os.RemoveAll(temp) // makes room, where room was the matter
	}
	return err
}

// roomToWrite keeps landing from taking the last of the disk, which others share.
func (l *Lake) roomToWrite() error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(l.cfg.Dir, &fs); err != nil {
		return fmt.Errorf("ask for the room on disk: %w", err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < l.cfg.MinFree {
		return fmt.Errorf("disk of %s: %w: %d MiB are free, and %d MiB are left to others", l.cfg.Dir, syscall.ENOSPC, free>>20, l.cfg.MinFree>>20)
	}
	return nil
}

// fileOf is a partition's file in a landing folder: slashes become "+".
func fileOf(partition string) string { return strings.ReplaceAll(partition, "/", "+") + ".parquet" }

// partitions lists where the rows belong, sorted.
func (r *rows) partitions() []string {
	var all []string
	all = slices.AppendSeq(all, maps.Keys(r.flows))
	all = slices.AppendSeq(all, maps.Keys(r.cadences))
	all = slices.AppendSeq(all, maps.Keys(r.greetings))
	all = slices.AppendSeq(all, maps.Keys(r.detections))
	all = slices.AppendSeq(all, maps.Keys(r.engagements))
	slices.Sort(all)
	return all
}

// writeRows writes one file for each partition.
func writeRows(dir string, r *rows) error {
	for _, partition := range r.partitions() {
		var encode func(io.Writer) error
		switch {
		case r.flows[partition] != nil:
			encode = encoder(r.flows[partition])
		case r.cadences[partition] != nil:
			encode = encoder(r.cadences[partition])
		case r.greetings[partition] != nil:
			encode = encoder(r.greetings[partition])
		case r.detections[partition] != nil:
			encode = encoder(r.detections[partition])
		default:
			encode = encoder(r.engagements[partition])
		}
		if err := writeDurably(filepath.Join(dir, fileOf(partition)), encode); err != nil {
			return err
		}
	}
	return nil
}

// rowsPerGroup bounds what a writer holds and what a reader can skip.
const rowsPerGroup = 128 << 10

func writerOptions() []parquet.WriterOption {
	return []parquet.WriterOption{
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
		parquet.MaxRowsPerRowGroup(rowsPerGroup),
		parquet.CreatedBy("bocage", "1", ""),
	}
}

func encoder[T any](rows []T) func(io.Writer) error {
	return func(out io.Writer) error {
		w := parquet.NewGenericWriter[T](out, writerOptions()...)
		if _, err := w.Write(rows); err != nil {
			return err
		}
		return w.Close()
	}
}

// distribute moves a committed folder's files to their places. It may be cut off
// and repeated at any point.
func (l *Lake) distribute(landing string) error {
	name := filepath.Base(landing) + ".parquet"
	entries, err := os.ReadDir(landing)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		partition := strings.ReplaceAll(strings.TrimSuffix(entry.Name(), ".parquet"), "+", "/")
		if _, ok := parseSegment(partition, name); !ok {
			return fmt.Errorf("%s in %s is no segment", entry.Name(), landing)
		}
		if err := l.makePartition(partition); err != nil {
			return err
		}
		place := filepath.Join(l.cfg.Dir, partition)
		if err := os.Rename(filepath.Join(landing, entry.Name()), filepath.Join(place, name)); err != nil {
			return err
		}
		if err := syncDir(place); err != nil {
			return err
		}
	}
	if err := os.Remove(landing); err != nil {
		return err
	}
	return syncDir(filepath.Dir(landing))
}

// makePartition creates a partition's folders durably.
func (l *Lake) makePartition(partition string) error {
	at := l.cfg.Dir
	for part := range strings.SplitSeq(partition, "/") {
		next := filepath.Join(at, part)
		if err := os.Mkdir(next, 0o750); err == nil {
			if err := syncDir(at); err != nil {
				return err
			}
		} else if !errors.Is(err, fs.ErrExist) {
			return err
		}
		at = next
	}
	return nil
}

// writeDurably writes a file and syncs it. A file that failed is removed.
func writeDurably(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// quote makes a string constant of SQL.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
