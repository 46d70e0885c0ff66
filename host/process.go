package host

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// killDeadline is how long a killed process may take to be gone: far longer
// than the kernel needs, unless the process hangs in a device.
const killDeadline = 5 * time.Second

// Kill ends every process of a named namespace and waits until they are gone,
// also those that they start meanwhile. The calling process is spared; nil if
// the namespace is absent.
func Kill(namespace string) error {
	deadline := time.Now().Add(killDeadline)
	for NamespaceExists(namespace) {
		pids, err := Pids(namespace)
		if err != nil {
			return err
		}
		alive := 0
		for _, pid := range pids {
			if pid == os.Getpid() {
				continue
			}
			alive++
			if err := KillProcess(pid, time.Until(deadline)); err != nil {
				return fmt.Errorf("kill processes of namespace %s: %w", namespace, err)
			}
		}
		if alive == 0 {
			return nil
		}
	}
	return nil
}

// KillProcess ends one process and waits until it is gone; nil if it is already.
func KillProcess(pid int, wait time.Duration) error {
	// By a descriptor: a number could belong to somebody else by now.
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	gone := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(wait)
	for {
		left := max(time.Until(deadline).Milliseconds(), 0)
		n, err := unix.Poll(gone, int(left))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("await the end of process %d: %w", pid, err)
		case n == 0:
			return fmt.Errorf("process %d survived SIGKILL for %s: %w", pid, wait, os.ErrDeadlineExceeded)
		default:
			return nil
		}
	}
}
