package deception

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Limits of the child's process.
const (
	memoryLimit = 512 << 20 // bytes of private memory, beyond which allocation fails
	memoryGoal  = 256 << 20 // bytes beyond which the collector works harder
	fileLimit   = maxTotal + 4*maxPlacements + 64
)

// dropCapabilities makes sure that the process has none. One that was started by
// root as nobody has none to begin with. Any other takes them from its thread,
// forbids itself to regain any, and executes itself anew, so that no thread of
// the Go runtime keeps some.
func dropCapabilities() error {
	held, err := holdsCapabilities()
	if err != nil || !held {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Exec("/proc/self/exe", os.Args, os.Environ()); err != nil {
		return fmt.Errorf("start anew without capabilities: %w", err)
	}
	return nil
}

// holdsCapabilities says whether the process could use, or regain, any
// capability.
func holdsCapabilities() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return false, fmt.Errorf("read capabilities: %w", err)
	}
	for _, s := range sets {
		if s.Effective|s.Permitted != 0 {
			return true, nil
		}
	}
	return false, nil
}

// niceness lets whoever works go first: a flood of handshakes takes the
// processor's spare time.
const niceness = 10

// confine takes from the process, in this order: its share of the processor,
// core dumps and the sight of other processes of the same user, files, memory,
// and last every system call that answering connections does not need.
func confine() error {
	if err := yield(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid dumps: %w", err)
	}
	debug.SetMemoryLimit(memoryGoal)
	for _, l := range []struct {
		name     string
		resource int
		limit    uint64
	}{
		{"core dumps", unix.RLIMIT_CORE, 0},
		{"file sizes", unix.RLIMIT_FSIZE, 0},
		{"open files", unix.RLIMIT_NOFILE, fileLimit},
		{"memory", unix.RLIMIT_DATA, memoryLimit},
		{"locked memory", unix.RLIMIT_MEMLOCK, 0},
		{"message queues", unix.RLIMIT_MSGQUEUE, 0},
	} {
		var now unix.Rlimit
		if err := unix.Getrlimit(l.resource, &now); err != nil {
			return fmt.Errorf("limit %s: %w", l.name, err)
		}
		limit := min(l.limit, now.Max)
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("limit %s: %w", l.name, err)
		}
	}
	if err := filterCalls(allowedCalls()); err != nil {
		return fmt.Errorf("limit system calls: %w", err)
	}
	return nil
}

// yield lowers the priority of every thread; later ones inherit it.
func yield() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("lower the priority: %w", err)
	}
	for _, t := range threads {
		thread, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, thread, niceness); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("lower the priority: %w", err)
		}
	}
	return nil
}

// allowedCalls are those that the Go runtime and answering connections need.
// None opens a file or a socket, connects, binds, executes or signals others.
func allowedCalls() []uint32 {
	calls := []uint32{
		// memory; mapping anything as executable is refused by argument
		unix.SYS_BRK, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_MREMAP,
		// threads; new processes are refused by argument
		unix.SYS_FUTEX, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_MEMBARRIER, unix.SYS_SCHED_YIELD,
		unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
		// signals of its own
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
		// time and randomness
		unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_NANOSLEEP, unix.SYS_GETTIMEOFDAY, unix.SYS_GETRANDOM,
		// what is open already
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_FCNTL,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_PIPE2,
		// sockets that others opened; RECVMSG brings new listeners
		unix.SYS_ACCEPT4, unix.SYS_RECVMSG, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
		unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT, unix.SYS_SHUTDOWN,
	}
	return append(calls, archCalls...)
}

// filterCalls installs a seccomp filter, for all threads, that lets the given
// calls pass, some others depending on an argument, and answers EPERM to the
// rest. It cannot be taken back.
func filterCalls(allowed []uint32) error {
	// Offsets in struct seccomp_data: 0 nr, 4 arch, 16 + 8*i the low half of
	// argument i (both architectures are little-endian).
	const nr, arch, argument = 0, 4, 16
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	jump := func(op uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	answer := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	var (
		pass   = answer(unix.SECCOMP_RET_ALLOW)
		refuse = answer(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))
		absent = answer(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))
	)
	program := []unix.SockFilter{
		load(arch),
		jump(unix.BPF_JEQ, auditArch, 1, 0),
		answer(unix.SECCOMP_RET_KILL_PROCESS), // a call of another architecture has other numbers
		load(nr),
	}
	// onArgument passes call only if its argument i, masked, equals want.
	onArgument := func(call uint32, i, mask, want uint32) {
		program = append(program,
			jump(unix.BPF_JEQ, call, 0, 5),
			load(argument+8*i),
			unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask},
			jump(unix.BPF_JEQ, want, 0, 1),
			pass,
			refuse,
		)
	}
	onArgument(unix.SYS_CLONE, 0, unix.CLONE_THREAD|unix.CLONE_NEWUSER, unix.CLONE_THREAD)
	onArgument(unix.SYS_MMAP, 2, unix.PROT_EXEC, 0)
	onArgument(unix.SYS_MPROTECT, 2, unix.PROT_EXEC, 0)
	onArgument(unix.SYS_TGKILL, 0, 0xffffffff, uint32(os.Getpid()))
	// Its flags are in memory, where a filter cannot look: C libraries fall back
	// to clone.
	program = append(program, jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), absent)
	for _, call := range slices.Sorted(slices.Values(allowed)) {
		program = append(program, jump(unix.BPF_JEQ, call, 0, 1), pass)
	}
	program = append(program, refuse)

	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// TSYNC gives the filter, and no_new_privs, to the threads that exist.
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&filter)))
	runtime.KeepAlive(program)
	switch {
	case errno == unix.ENOSYS || errno == unix.EINVAL:
		return fmt.Errorf("this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER), and without one decoys are not served: %w", errno)
	case errno != 0:
		return errno
	case thread != 0:
		return fmt.Errorf("thread %d cannot be confined", thread)
	}
	return nil
}
