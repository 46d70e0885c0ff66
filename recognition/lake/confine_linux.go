package lake

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confinedEnv marks the process that runs behind the walls that confine puts up.
const confinedEnv = "BOCAGE_QUERY_CONFINED"

// lakeEnv tells the child which folder it may read.
const lakeEnv = "BOCAGE_QUERY_LAKE"

// childAttributes has a terminal's interrupt not reach the child.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// confine leaves this process able to read the lake and what programs need to
// run, to write no file and to open no connection, and has it start itself again
// behind that wall, since Landlock holds for what a thread starts and not for its
// siblings. Where the kernel has no Landlock, limits alone stand behind DuckDB's
// own doors.
func confine() error {
	if os.Getenv(confinedEnv) != "" {
		return nil
	}
	runtime.LockOSThread()
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) // first to go where memory is short
	for resource, limit := range map[int]uint64{unix.RLIMIT_FSIZE: 0, unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: 4096} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("limit the child: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up privileges: %w", err)
	}
	if err := wall(os.Getenv(lakeEnv)); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("put up the wall: %w", err)
	}
	if err := syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), confinedEnv+"=1")); err != nil {
		return fmt.Errorf("start again behind the wall: %w", err)
	}
	return nil
}

// Rights over files by the version of Landlock that brought them, see landlock(7).
const (
	rightsToRead = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_EXECUTE
	rights1      = rightsToRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR |
		unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO |
		unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	rights2 = unix.LANDLOCK_ACCESS_FS_REFER
	rights3 = unix.LANDLOCK_ACCESS_FS_TRUNCATE
	rights4 = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
)

// wall takes every right over files and TCP from this thread and from what it
// starts, but for reading the lake and what the program is made of.
func wall(lake string) error {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return errno
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: rights1}
	size := unsafe.Sizeof(attr.Handled_access_fs)
	if version >= 2 {
		attr.Handled_access_fs |= rights2
	}
	if version >= 3 {
		attr.Handled_access_fs |= rights3
	}
	if version >= 4 {
		attr.Handled_access_net = rights4
		size += unsafe.Sizeof(attr.Handled_access_net)
	}
	set, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(set))
	program, err := mappedFiles()
	if err != nil {
		return err
	}
	for _, path := range append(program, "/proc/self/exe", lake, "/etc/ld.so.cache", "/dev/null", "/dev/urandom", "/proc/self", "/proc/meminfo", "/proc/cpuinfo",
		"/proc/stat", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage", "/usr/share/zoneinfo") {
		if err := letRead(int(set), path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if _, _, errno = unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// letRead allows reading at and beneath a path, if it is there.
func letRead(set int, path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rightsToRead, Parent_fd: int32(fd)}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		rule.Allowed_access &^= unix.LANDLOCK_ACCESS_FS_READ_DIR
	}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// mappedFiles lists the files that this program is made of: itself, its loader,
// its libraries.
func mappedFiles() ([]string, error) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	var files []string
	for line := range strings.Lines(string(maps)) {
		if at := strings.IndexByte(line, '/'); at >= 0 {
			if path := strings.TrimSpace(line[at:]); !slices.Contains(files, path) {
				files = append(files, path)
			}
		}
	}
	return files, nil
}

// resident is how much memory a process has, in bytes; 0 if it is gone.
func resident(pid int) int64 {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(statm), &size, &pages); err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
