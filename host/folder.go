package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Folder opens a folder, by name only (O_PATH), and makes it, and what leads to it,
// where it is not there. No symbolic link is followed on the way: whoever may write in
// one of the folders above could have put it there for root to follow.
func Folder(dir string) (*os.File, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("%q is not an absolute path", dir)
	}
	const how = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Open("/", how, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	at, mode := "/", uint32(0o711)
	for rest := strings.TrimPrefix(filepath.Clean(dir), "/"); rest != ""; {
		var name string
		if name, rest, _ = strings.Cut(rest, "/"); rest == "" {
			mode = 0o700
		}
		at = filepath.Join(at, name)
		next, err := unix.Openat(fd, name, how, 0)
		if errors.Is(err, unix.ENOENT) {
			if err = unix.Mkdirat(fd, name, mode); err == nil || errors.Is(err, unix.EEXIST) {
				next, err = unix.Openat(fd, name, how, 0)
			}
		}
		unix.Close(fd)
		if errors.Is(err, unix.ENOTDIR) {
			return nil, fmt.Errorf("%s is no folder, or a symbolic link, which is not followed here: remove it, or name the folder itself", at)
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: at, Err: err}
		}
		fd = next
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// HandOver gives what is root's in an open folder to a user, with the folder itself.
// What is another's stays theirs. No link is followed, no other file system entered,
// and a file that has a second name is left alone: that may be anywhere.
func HandOver(folder *os.File, uid, gid int) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(folder.Fd()), &st); err != nil {
		return fmt.Errorf("hand %s over: %w", folder.Name(), err)
	}
	if err := handOver(int(folder.Fd()), ".", folder.Name(), st.Dev, uid, gid); err != nil {
		return fmt.Errorf("hand over to user %d: %w", uid, err)
	}
	return nil
}

// HandOverFile gives one file or socket in an open folder to a user, likewise; nil if it
// is not there.
func HandOverFile(folder *os.File, name string, uid, gid int) error {
	fd, st, err := look(int(folder.Fd()), name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "hand over", Path: filepath.Join(folder.Name(), name), Err: err}
	}
	defer unix.Close(fd)
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFSOCK || st.Nlink != 1 {
		return fmt.Errorf("%s is not a file of its own: remove it", filepath.Join(folder.Name(), name))
	}
	return give(fd, uid, gid)
}

func look(at int, name string) (fd int, st unix.Stat_t, err error) {
	if fd, err = unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		return -1, st, err
	}
	if err = unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

func give(fd, uid, gid int) error { return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH) }

func handOver(at int, name, path string, device uint64, uid, gid int) error {
	fd, st, err := look(at, name)
	if errors.Is(err, unix.ENOENT) {
		return nil // gone meanwhile
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	isFolder := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if st.Dev != device || !isFolder && st.Nlink != 1 {
		return nil
	}
	if st.Uid == 0 {
		if err := give(fd, uid, gid); err != nil {
			return &fs.PathError{Op: "chown", Path: path, Err: err}
		}
	}
	if !isFolder {
		return nil
	}
	inside, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(inside), path)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := handOver(inside, name, filepath.Join(path, name), device, uid, gid); err != nil {
			return err
		}
	}
	return nil
}
