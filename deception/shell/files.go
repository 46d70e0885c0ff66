package shell

import (
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// Bounds of what a login may leave behind, all of it in memory and gone with it.
const (
	maxNewFiles = 256
	maxNewBytes = 512 << 10
	maxPathSize = 1024
)

// file is one entry of the tree.
type file struct {
	dir      bool
	mode     uint32
	owner    string
	size     int // as ls tells it; content may be shorter
	content  string
	modified time.Time
	private  bool   // only root reads it
	program  string // the command that it runs
}

// files is the tree: what the machine came with, and over it what was changed.
type files struct {
	base  map[string]*file
	over  map[string]*file // nil: removed
	bytes int
}

func (f *files) get(where string) *file {
	if changed, ok := f.over[where]; ok {
		return changed
	}
	return f.base[where]
}

func (f *files) content(where string) string {
	if entry := f.get(where); entry != nil {
		return entry.content
	}
	return ""
}

// children lists the names in a folder, sorted.
func (f *files) children(dir string) []string {
	prefix := strings.TrimSuffix(dir, "/") + "/"
	names := make(map[string]bool)
	for _, tree := range []map[string]*file{f.base, f.over} {
		for where := range tree {
			rest, ok := strings.CutPrefix(where, prefix)
			if ok && rest != "" && !strings.Contains(rest, "/") && f.get(where) != nil && where != "/etc/motd.rendered" {
				names[rest] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// list is ReadDir for patterns.
func (f *files) list(dir string) ([]fs.DirEntry, error) {
	entry := f.get(dir)
	if entry == nil || !entry.dir {
		return nil, fs.ErrNotExist
	}
	var out []fs.DirEntry
	for _, name := range f.children(dir) {
		out = append(out, direntry{name, f.get(path.Join(dir, name))})
	}
	return out, nil
}

// direntry is a file as io/fs has it.
type direntry struct {
	name string
	file *file
}

func (d direntry) Name() string { return d.name }
func (d direntry) IsDir() bool  { return d.file.dir }
func (d direntry) Type() fs.FileMode {
	if d.file.dir {
		return fs.ModeDir
	}
	return 0
}
func (d direntry) Info() (fs.FileInfo, error) { return d, nil }
func (d direntry) Size() int64                { return int64(d.file.size) }
func (d direntry) Mode() fs.FileMode          { return d.Type() | fs.FileMode(d.file.mode) }
func (d direntry) ModTime() time.Time         { return d.file.modified }
func (d direntry) Sys() any                   { return nil }

// put keeps an entry over the base, within the bounds. It returns what the
// kernel would say, "" for nothing.
func (f *files) put(where string, entry *file) string {
	old := f.over[where]
	size := f.bytes
	if old != nil {
		size -= len(old.content)
	}
	size += len(entry.content)
	switch {
	case len(where) > maxPathSize:
		return "File name too long"
	case old == nil && len(f.over) >= maxNewFiles, size > maxNewBytes:
		return "No space left on device"
	}
	f.over[where], f.bytes = entry, size
	return ""
}

// write makes a file or replaces its content.
func (f *files) write(where, content, owner string, now time.Time) string {
	entry := &file{mode: 0o644, owner: owner}
	if old := f.get(where); old != nil {
		copied := *old
		entry = &copied
	}
	entry.content, entry.size, entry.modified, entry.program = content, len(content), now, ""
	return f.put(where, entry)
}

func (f *files) remove(where string) string {
	if old := f.over[where]; old != nil {
		f.bytes -= len(old.content)
	}
	if _, ok := f.over[where]; !ok && len(f.over) >= maxNewFiles {
		return "Read-only file system"
	}
	f.over[where] = nil
	return ""
}

// mayWrite says why a file cannot be written, "" if it can.
func (s *Shell) mayWrite(where string) string {
	entry := s.files.get(where)
	parent := s.files.get(path.Dir(where))
	switch {
	case entry != nil && entry.dir:
		return "Is a directory"
	case parent == nil:
		return "No such file or directory"
	case !parent.dir:
		return "Not a directory"
	case strings.HasPrefix(where, "/proc/") || strings.HasPrefix(where, "/sys/"):
		return "Permission denied"
	case entry != nil && s.user != "root" && entry.owner != s.user && entry.mode&0o002 == 0:
		return "Permission denied"
	case entry == nil && !s.mayWriteIn(parent):
		return "Permission denied"
	}
	return ""
}

func (s *Shell) mayWriteIn(dir *file) bool {
	return s.user == "root" || dir.owner == s.user || dir.mode&0o002 != 0
}
