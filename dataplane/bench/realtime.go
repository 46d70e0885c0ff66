package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ofKernel is the real-time priority of the kernel's own threads that carry
// packets: above those of the ends, which would keep them from their processor
// until the scheduler takes it from real-time threads, 50 ms in every second.
const ofKernel = ofServer + 1

// softirqsAhead lifts the threads that carry packets when no interrupt does, and
// returns how they become what they were.
func softirqsAhead() (restore func() error, err error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, err
	}
	was := map[int]*unix.SchedAttr{}
	restore = func() error {
		var errs []error
		for pid, attr := range was {
			errs = append(errs, unix.SchedSetAttr(pid, attr, 0))
		}
		return errors.Join(errs...)
	}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(comm), "ksoftirqd/") {
			continue // a process that has ended meanwhile is none of them
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return nil, errors.Join(err, restore())
		}
		attr, err := unix.SchedGetAttr(pid, 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("priority of %s: %w", strings.TrimSpace(string(comm)), err), restore())
		}
		ahead := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: ofKernel}
		if err := unix.SchedSetAttr(pid, &ahead, 0); err != nil {
			return nil, errors.Join(fmt.Errorf("put %s ahead: %w", strings.TrimSpace(string(comm)), err), restore())
		}
		was[pid] = attr
	}
	return restore, nil
}
