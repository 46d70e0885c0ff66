package suricata

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// layout names what lies in Config.Dir. The engine's user reads etc and writes
// log, and nothing else is its own.
type layout struct{ dir string }

func (l layout) lock() string          { return filepath.Join(l.dir, "lock") }
func (l layout) process() string       { return filepath.Join(l.dir, "engine.json") }
func (l layout) ledger() string        { return filepath.Join(l.dir, "profiles.json") }
func (l layout) position() string      { return filepath.Join(l.dir, "position") }
func (l layout) etc() string           { return filepath.Join(l.dir, "etc") }
func (l layout) configuration() string { return filepath.Join(l.etc(), "suricata.yaml") }
func (l layout) check() string         { return filepath.Join(l.etc(), "check.yaml") }
func (l layout) classification() string {
	return filepath.Join(l.etc(), "classification.config")
}
func (l layout) reference() string { return filepath.Join(l.etc(), "reference.config") }
func (l layout) threshold() string { return filepath.Join(l.etc(), "threshold.config") }
func (l layout) profile(number uint16, digest, kind string) string {
	return filepath.Join(l.etc(), "profile-"+strconv.Itoa(int(number))+"-"+digest+kind)
}
func (l layout) log() string       { return filepath.Join(l.dir, "log") }
func (l layout) socket() string    { return filepath.Join(l.log(), "socket") }
func (l layout) eve() string       { return filepath.Join(l.log(), "eve.json") }
func (l layout) eveBefore() string { return filepath.Join(l.log(), "eve.json.1") }
func (l layout) engineLog() string { return filepath.Join(l.log(), "suricata.log") }

// output is what the engine says before its log is open; the agent's file.
func (l layout) output() string { return filepath.Join(l.dir, "output") }

// Ends of a profile's files.
const (
	kindRules  = ".rules"
	kindTenant = ".yaml"
)

// maxSocketPath is the length of a unix socket's path (unix(7), sun_path less
// the final NUL).
const maxSocketPath = 107

// prepare makes the directories and returns the engine's user.
func (l layout) prepare() (uid int, err error) {
	if err := os.MkdirAll(l.dir, 0o711); err != nil {
		return 0, err
	}
	uid = engineUser(l.dir)
	if info, err := os.Lstat(l.log()); err == nil && owner(info) != 0 {
		uid = owner(info) // as before
	}
	for _, d := range []struct {
		path     string
		mode     fs.FileMode
		uid, gid int
	}{{l.etc(), 0o750, 0, uid}, {l.log(), 0o700, uid, uid}} {
		if err := os.Mkdir(d.path, d.mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return 0, err
		}
		if err := errors.Join(os.Chown(d.path, d.uid, d.gid), os.Chmod(d.path, d.mode)); err != nil {
			return 0, err
		}
	}
	return uid, traversable(l.dir)
}

func owner(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

// traversable refuses a place that the engine's user cannot reach.
func traversable(dir string) error {
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("directory %s keeps the engine, which runs as a user of its own, from its files: chmod o+x %s, or choose another Dir", dir, dir)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return nil
		}
		dir = parent
	}
}

// acquire takes the directory for this agent, until the file is closed or the
// process ends.
func (l layout) acquire() (*os.File, error) {
	file, err := os.OpenFile(l.lock(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another agent: stop it first", l.dir)
		}
		return nil, fmt.Errorf("lock %s: %w", l.lock(), err)
	}
	return file, nil
}

// writeFor writes a file that the engine's group may read, whole or not at all,
// and leaves one alone that is as it should be: a restart needs no room on disk.
func writeFor(gid int, path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return replace(path, data, func(f *os.File) error { return errors.Join(f.Chown(0, gid), f.Chmod(0o640)) })
}

// replace publishes a file's new content by a rename.
func replace(path string, data []byte, prepare func(*os.File) error) error {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && prepare != nil {
		err = prepare(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return nil
}

// fixedRecord writes a small record over the one before without needing new
// room, so that it works on a full disk once the file is there.
func fixedRecord(f *os.File, size int, data []byte) error {
	if len(data) >= size {
		return fmt.Errorf("record of %d bytes for %s: at most %d", len(data), f.Name(), size-1)
	}
	padded := bytes.Repeat([]byte{' '}, size)
	copy(padded, data)
	padded[size-1] = '\n'
	_, err := f.WriteAt(padded, 0)
	return err
}

// remove takes away what this room put there, and the directory if nothing else
// is in it.
func (l layout) remove() error {
	err := errors.Join(os.RemoveAll(l.etc()), os.RemoveAll(l.log()))
	for _, path := range []string{l.process(), l.ledger(), l.ledger() + ".new", l.position(), l.output(), l.lock()} {
		if e := os.Remove(path); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if e := os.Remove(l.dir); !errors.Is(e, fs.ErrNotExist) && !errors.Is(e, unix.ENOTEMPTY) {
		err = errors.Join(err, e)
	}
	return err
}
