package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NamespaceDir is where iproute2 keeps the names of network namespaces.
const NamespaceDir = "/run/netns"

// threadNamespace is the namespace of the thread that opens it.
const threadNamespace = "/proc/thread-self/ns/net"

// CreateNamespace makes a named network namespace with its loopback up. The
// error wraps [os.ErrExist] if the name is taken.
func CreateNamespace(name string) error {
	if err := validName(name); err != nil {
		return err
	}
	unlock, err := prepareNamespaceDir()
	if err != nil {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	err = onThread(func() error { return nameNewNamespace(name) })
	unlock()
	if err != nil {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	if err := SetUp(name, "lo"); err != nil {
		return errors.Join(fmt.Errorf("create namespace %s: %w", name, err), DeleteNamespace(name))
	}
	return nil
}

// nameNewNamespace moves the calling thread into a new namespace and gives it
// a name by mounting it on a file. The directory is locked by the caller.
func nameNewNamespace(name string) error {
	file := namespacePath(name)
	if NamespaceExists(name) {
		return fmt.Errorf("%s: %w", file, fs.ErrExist)
	}
	// A file that nothing is mounted on was left by a creation that died
	// half-way: the lock says that nobody is at it now.
	f, err := os.OpenFile(file, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return errors.Join(fmt.Errorf("unshare: %w", err), os.Remove(file))
	}
	if err := unix.Mount(threadNamespace, file, "none", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("mount on %s: %w", file, err), os.Remove(file))
	}
	return nil
}

// prepareNamespaceDir makes the directory a shared mount, as iproute2 does, so
// that a name made or removed in one mount namespace is made or removed in all.
// Until unlock is called nobody else who asks for the lock changes it.
func prepareNamespaceDir() (unlock func(), err error) {
	dir, err := lockNamespaceDir(true)
	if err != nil {
		return nil, err
	}
	err = unix.Mount("", NamespaceDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(NamespaceDir, NamespaceDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", NamespaceDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("share %s: %w", NamespaceDir, err)
	}
	return func() { dir.Close() }, nil
}

// lockNamespaceDir locks the directory until it is closed, making it first if
// told to. Whoever held the lock before may have removed what was locked.
func lockNamespaceDir(create bool) (*os.File, error) {
	for {
		if create {
			if err := os.MkdirAll(NamespaceDir, 0o755); err != nil {
				return nil, err
			}
		}
		dir, err := os.Open(NamespaceDir)
		if create && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := ignoringEINTR(func() error { return unix.Flock(int(dir.Fd()), unix.LOCK_EX) }); err != nil {
			dir.Close()
			return nil, fmt.Errorf("lock %s: %w", NamespaceDir, err)
		}
		locked, err := dir.Stat()
		if err != nil {
			dir.Close()
			return nil, err
		}
		if there, err := os.Stat(NamespaceDir); err == nil && os.SameFile(locked, there) {
			return dir, nil
		}
		dir.Close()
	}
}

// NamespaceDirExists says whether anybody has made a named namespace since the
// machine started: the directory of names stays, even if it is empty.
func NamespaceDirExists() bool {
	_, err := os.Stat(NamespaceDir)
	return err == nil
}

// RemoveNamespaceDir removes the directory of names and its mount, if no name
// is left. It is for whoever found none and wants to leave none.
func RemoveNamespaceDir() error {
	dir, err := lockNamespaceDir(false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", NamespaceDir, err)
	}
	defer dir.Close()
	if names, err := dir.Readdirnames(1); len(names) > 0 || !errors.Is(err, io.EOF) {
		return err
	}
	if err := unix.Unmount(NamespaceDir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove %s: unmount: %w", NamespaceDir, err)
	}
	if err := os.Remove(NamespaceDir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", NamespaceDir, err)
	}
	return nil
}

// DeleteNamespace removes a name; nil if it is absent. The namespace itself
// goes when the last process and the last open file in it are gone, and takes
// its links along.
func DeleteNamespace(name string) error {
	if err := validName(name); err != nil {
		return err
	}
	file := namespacePath(name)
	// A name may have been mounted more than once; EINVAL says no more.
	for {
		err := unix.Unmount(file, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("delete namespace %s: unmount: %w", name, err)
		}
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete namespace %s: %w", name, err)
	}
	return nil
}

// NamespaceExists says whether the name leads to a network namespace.
func NamespaceExists(name string) bool {
	if validName(name) != nil {
		return false
	}
	var st unix.Statfs_t
	return unix.Statfs(namespacePath(name), &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Namespaces lists the named network namespaces, sorted.
func Namespaces() ([]string, error) {
	entries, err := os.ReadDir(NamespaceDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if NamespaceExists(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil // ReadDir sorts
}

// In runs fn on a thread inside a namespace and returns what it returns.
//
// fn runs in a goroutine of its own, locked to its thread: sockets opened and
// processes started by fn itself belong to the namespace, those of goroutines
// that fn starts do not. A panic or runtime.Goexit (t.FailNow) in fn continues
// in the caller. A thread that cannot be brought back is thrown away. With ""
// fn is simply called.
func In(namespace string, fn func() error) error {
	if namespace == "" {
		return fn()
	}
	target, err := openNamespace(namespace)
	if err != nil {
		return err
	}
	defer target.Close()
	return onThread(func() error {
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", namespace, err)
		}
		return fn()
	})
}

// onThread calls fn, which may change the thread's network namespace, on a
// thread that nobody else uses meanwhile.
func onThread(fn func() error) (err error) {
	var (
		done     = make(chan struct{})
		returned bool
		panicked any
	)
	go func() {
		defer close(done)
		runtime.LockOSThread() // not unlocked unless restored: then the thread ends with the goroutine
		home, openErr := os.Open(threadNamespace)
		if openErr != nil {
			err, returned = openErr, true
			runtime.UnlockOSThread()
			return
		}
		defer func() {
			if !returned {
				panicked = recover() // nil for Goexit
			}
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			home.Close()
		}()
		err = fn()
		returned = true
	}()
	<-done
	switch {
	case returned:
		return err
	case panicked != nil:
		panic(panicked)
	default:
		runtime.Goexit()
		return nil
	}
}

// Start starts a command inside a namespace. Only the network changes: the
// child sees the caller's files, among them a /sys that shows the caller's
// links. Do not combine it with SysProcAttr.Pdeathsig, which follows the thread
// and not the process.
func Start(namespace string, cmd *exec.Cmd) error {
	if err := In(namespace, cmd.Start); err != nil {
		return fmt.Errorf("start %s in namespace %q: %w", filepath.Base(cmd.Path), namespace, err)
	}
	return nil
}

// Pids lists the processes whose network namespace this is, in ascending
// order. Processes that end meanwhile are left out.
func Pids(namespace string) ([]int, error) {
	file := threadNamespace
	if namespace != "" {
		if !NamespaceExists(namespace) {
			return nil, fmt.Errorf("namespace %s: %w", namespace, fs.ErrNotExist)
		}
		file = namespacePath(namespace)
	}
	wanted, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("processes of namespace %q: %w", namespace, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("processes of namespace %q: %w", namespace, err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if got, err := os.Stat("/proc/" + e.Name() + "/ns/net"); err == nil && os.SameFile(got, wanted) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// openNamespace opens a named namespace, or the thread's own for "".
func openNamespace(namespace string) (*os.File, error) {
	if namespace == "" {
		f, err := os.Open(threadNamespace)
		if err != nil {
			return nil, fmt.Errorf("open own namespace: %w", err)
		}
		return f, nil
	}
	if err := validName(namespace); err != nil {
		return nil, err
	}
	if !NamespaceExists(namespace) {
		return nil, fmt.Errorf("namespace %s: %w", namespace, fs.ErrNotExist)
	}
	f, err := os.Open(namespacePath(namespace))
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", namespace, err)
	}
	return f, nil
}

func namespacePath(name string) string { return filepath.Join(NamespaceDir, name) }

// validName keeps a name from leaving the directory of names.
func validName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("namespace name %q: %w", name, fs.ErrInvalid)
	}
	return nil
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// dump repeats a netlink dump that a concurrent change interrupted, a few times.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	var (
		all []T
		err error
	)
	for range 10 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
