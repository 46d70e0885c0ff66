package suricata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxLine      = 1 << 20 // bytes of EVE; the engine's longest are 64 kB
	fullLogs     = 4       // limits that the log may grow to while nobody puts it aside
	positionSize = 64
	tailRetry    = time.Second // looks again even if nothing was told
)

// tail reads the engine's event log line by line and remembers how far it came,
// in a file, after each line. So lines written while no agent runs are read
// later, and none is read twice, unless the agent dies between handling a line
// and remembering it.
type tail struct {
	path, before string       // the log, and its name once it is put aside
	limit        int64        // bytes at which the log is put aside
	reopen       func() error // has the engine open a new log
	skipped      func(n int)  // hears of lines too long or cut short
	log          *slog.Logger

	remembered *os.File
	position   position
	file       *os.File // being read; nil until there is one
	pending    []byte   // read, not yet a whole line
	skipping   bool     // inside a line that is too long
	told       bool     // the engine knows that the file was put aside
}

// position is how far which file was read.
type position struct {
	Device, Inode uint64
	Offset        int64
}

// openTail finds the place where the last reader stopped.
func openTail(t *tail, positionPath string) (*tail, error) {
	remembered, err := os.OpenFile(positionPath, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open event position: %w", err)
	}
	data := make([]byte, positionSize)
	n, err := remembered.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		remembered.Close()
		return nil, fmt.Errorf("read event position: %w", err)
	}
	t.remembered = remembered
	if _, err := fmt.Sscanf(string(data[:n]), "%d %d %d", &t.position.Device, &t.position.Inode, &t.position.Offset); err != nil {
		t.position = position{} // never read: from the start
	}
	if err := t.remember(); err != nil { // while there is room for it
		remembered.Close()
		return nil, err
	}
	return t, nil
}

func (t *tail) close() {
	t.remembered.Close()
	if t.file != nil {
		t.file.Close()
	}
}

// follow hands over every line until ctx ends. The line is each's only during
// the call.
func (t *tail) follow(ctx context.Context, each func(line []byte)) error {
	wake, stop, err := watchDirectory(filepath.Dir(t.path))
	if err != nil {
		return err
	}
	defer stop()
	retry := time.NewTicker(tailRetry)
	defer retry.Stop()
	for {
		if err := t.read(ctx, each); err != nil {
			t.log.Error("reading inspection events goes wrong, trying again", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-retry.C:
		}
	}
}

// read hands over all there is, and puts the log aside when it is long enough.
func (t *tail) read(ctx context.Context, each func(line []byte)) error {
	for ctx.Err() == nil {
		if t.file == nil {
			if found, err := t.open(); !found {
				return err
			}
		}
		if err := t.drain(ctx, each); err != nil {
			return err
		}
		current, err := t.isCurrent()
		switch {
		case err != nil:
			return err
		case current:
			return t.rotate()
		}
		successor, err := exists(t.path)
		if err != nil || !successor {
			return errors.Join(err, t.tellEngine())
		}
		// The engine writes to the next file, so this one is complete.
		if err := t.drain(ctx, each); err != nil || ctx.Err() != nil {
			return err
		}
		if err := t.finish(); err != nil {
			return err
		}
	}
	return nil
}

// open takes the file that was being read, or else the oldest.
func (t *tail) open() (found bool, err error) {
	for _, path := range []string{t.before, t.path} {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			return false, err
		}
		if !info.Mode().IsRegular() {
			f.Close()
			return false, fmt.Errorf("%s is not a regular file", path)
		}
		device, inode := identify(info)
		if t.position.Device != device || t.position.Inode != inode || info.Size() < t.position.Offset {
			t.position = position{Device: device, Inode: inode}
		}
		t.file, t.pending, t.skipping, t.told = f, nil, false, false
		return true, nil
	}
	return false, nil
}

func identify(info fs.FileInfo) (device, inode uint64) {
	s := info.Sys().(*syscall.Stat_t)
	return s.Dev, s.Ino
}

// drain reads to the end of the file, for now.
func (t *tail) drain(ctx context.Context, each func(line []byte)) error {
	chunk := make([]byte, 64<<10)
	for ctx.Err() == nil {
		n, err := t.file.ReadAt(chunk, t.position.Offset+int64(len(t.pending)))
		t.pending = append(t.pending, chunk[:n]...)
		if err := t.lines(ctx, each); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read inspection events: %w", err)
		}
	}
	return nil
}

// lines hands over the whole lines of what is pending.
func (t *tail) lines(ctx context.Context, each func(line []byte)) error {
	for ctx.Err() == nil {
		end := bytes.IndexByte(t.pending, '\n')
		if end < 0 {
			if len(t.pending) < maxLine {
				return nil
			}
			t.skipping = true
			if err := t.advance(len(t.pending)); err != nil {
				return err
			}
			return nil
		}
		line := t.pending[:end]
		switch {
		case t.skipping:
			t.skipping = false
			t.skipped(1)
		case len(line) > 0:
			each(line)
		}
		if err := t.advance(end + 1); err != nil {
			return err
		}
	}
	return nil
}

// advance remembers that bytes have been handled.
func (t *tail) advance(bytes int) error {
	t.pending = t.pending[bytes:]
	t.position.Offset += int64(bytes)
	return t.remember()
}

func (t *tail) remember() error {
	record := fmt.Sprintf("%d %d %d", t.position.Device, t.position.Inode, t.position.Offset)
	if err := fixedRecord(t.remembered, positionSize, []byte(record)); err != nil {
		return fmt.Errorf("remember event position: %w", err)
	}
	return nil
}

// isCurrent says whether the file being read is the one that the engine's next
// line goes to.
func (t *tail) isCurrent() (bool, error) {
	info, err := os.Lstat(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	device, inode := identify(info)
	if t.position.Device != device || t.position.Inode != inode {
		return false, nil
	}
	if info.Size() < t.position.Offset { // somebody emptied it
		t.position.Offset, t.pending, t.skipping = 0, nil, false
	}
	return true, nil
}

// rotate puts the file aside once it is long enough. The engine goes on writing
// to it until it is told.
func (t *tail) rotate() error {
	if t.position.Offset < t.limit {
		return nil
	}
	if t.position.Offset > (fullLogs-1)*t.limit {
		t.log.Error("inspection event log was full, later events may be lost", slog.Int64("bytes", t.position.Offset))
	}
	if err := os.Rename(t.path, t.before); err != nil {
		return fmt.Errorf("put the event log aside: %w", err)
	}
	return t.tellEngine()
}

// tellEngine has the engine open a new log; it does so with its next event. An
// agent may die between putting the log aside and telling, so the next one tells
// wherever the log is missing.
func (t *tail) tellEngine() error {
	if t.told {
		return nil
	}
	if err := t.reopen(); err != nil {
		return fmt.Errorf("have the engine open a new event log: %w", err)
	}
	t.told = true
	return nil
}

// finish leaves a file that is complete.
func (t *tail) finish() error {
	if len(t.pending) > 0 {
		t.skipped(1) // cut short, and nothing will follow
	}
	err := errors.Join(t.file.Close(), os.Remove(t.before))
	t.file, t.pending = nil, nil
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// watchDirectory wakes its reader after changes in a directory.
func watchDirectory(dir string) (wake <-chan struct{}, stop func(), err error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	file := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		file.Close()
		return nil, nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	signal, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 4<<10)
		for {
			if _, err := file.Read(buffer); err != nil {
				return // closed
			}
			select {
			case signal <- struct{}{}:
			default: // it will look anyway
			}
		}
	}()
	return signal, func() { file.Close(); <-done }, nil
}
