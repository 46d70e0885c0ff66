package suricata

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host"
)

// processID names one process for ever: numbers are used again, a number with a
// start time is not.
type processID struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since boot (proc(5), stat field 22)
}

// process is a running engine, whoever started it.
type process struct {
	id     processID
	fd     *os.File      // pidfd
	exited chan struct{} // closed when it has ended, or watching has
	gone   chan struct{} // closed only when it has ended
}

// watchProcess takes hold of a process. Its descriptor is opened before the
// start time is compared, so it cannot be another's.
func watchProcess(id processID) (*process, error) {
	fd, err := unix.PidfdOpen(id.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", id.Pid, err)
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	if stat, err := readStat(id.Pid); err != nil || stat.start != id.Start || stat.state == 'Z' {
		file.Close()
		return nil, fmt.Errorf("process %d is not the one that started at %d: %w", id.Pid, id.Start, fs.ErrNotExist)
	}
	p := &process{id: id, fd: file, exited: make(chan struct{}), gone: make(chan struct{})}
	go p.await()
	return p, nil
}

// await waits for the end and reaps, if it is a child of this process.
func (p *process) await() {
	defer close(p.exited)
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return
	}
	err = conn.Read(func(fd uintptr) bool { return ready(int(fd)) })
	if err != nil {
		return // released
	}
	unix.Wait4(p.id.Pid, nil, unix.WNOHANG, nil) // ECHILD: another's child, who reaps it
	close(p.gone)
}

// ready says whether a pidfd's process has ended.
func ready(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}

// alive says whether it runs, be it ever so stuck.
func (p *process) alive() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// release stops watching; the process lives on.
func (p *process) release() {
	p.fd.Close()
	<-p.exited
}

// kill ends it and waits until it is gone, at most for the time given.
func (p *process) kill(patience time.Duration) error {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var signalErr error
	err = conn.Control(func(fd uintptr) { signalErr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if err = errors.Join(err, signalErr); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill engine process %d: %w", p.id.Pid, err)
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-p.gone:
		return nil
	case <-timeout.C:
		return fmt.Errorf("engine process %d survived SIGKILL for %s: %w", p.id.Pid, patience, os.ErrDeadlineExceeded)
	}
}

// starved says whether a silent engine is merely short of CPU: one of its
// threads could run and is not let. A stopped or deadlocked one has none.
func (p *process) starved() bool {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.id.Pid))
	if err != nil {
		return false
	}
	for _, task := range tasks {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", p.id.Pid, task.Name()))
		if err != nil {
			continue
		}
		if stat, err := parseStat(data); err == nil && stat.state == 'R' {
			return true
		}
	}
	return false
}

// stat is what is read of /proc/PID/stat (proc(5)).
type stat struct {
	state byte
	start uint64 // clock ticks since boot
}

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(data)
}

// parseStat starts behind the last parenthesis: the name before it may hold
// anything.
func parseStat(data []byte) (stat, error) {
	i := bytes.LastIndexByte(data, ')')
	fields := strings.Fields(string(data[i+1:]))
	if i < 0 || len(fields) < 20 || len(fields[0]) != 1 {
		return stat{}, fmt.Errorf("process status %q cannot be read", shorten(string(data)))
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("process start time: %w", err)
	}
	return stat{state: fields[0][0], start: start}, nil
}

// runs says whether a process is an engine with this configuration.
func runs(pid int, configuration string) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.Contains(data, []byte("\x00"+configuration+"\x00"))
}

// confine is the command line that runs a program as a user of its own, without
// privileges but the ones named and with none to be had, and with files of at
// most so many bytes: an engine that nobody watches must not fill the disk. Nor
// may its death leave other people's packets in a file.
func confine(uid int, capabilities string, maxFile int64, program string, arguments ...string) []string {
	id := strconv.Itoa(uid)
	confined := []string{
		"prlimit", "--core=0", "--fsize=" + strconv.FormatInt(maxFile, 10),
		"setpriv", "--reuid=" + id, "--regid=" + id, "--clear-groups", "--no-new-privs",
		"--inh-caps=-all" + capabilities, "--ambient-caps=-all" + capabilities, "--bounding-set=-all" + capabilities,
		// A write past the limit is an error to the engine, not its end.
		"env", "--ignore-signal=XFSZ",
		program,
	}
	return append(confined, arguments...)
}

// launch starts the engine, in a session of its own so that it outlives the
// agent, with what it says before its log is open in the file output.
func launch(namespace string, argv []string, output string) (processID, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return processID{}, fmt.Errorf("start engine: %w: install the Debian package util-linux", err)
	}
	file, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return processID{}, fmt.Errorf("start engine: %w", err)
	}
	defer file.Close()
	cmd := &exec.Cmd{Path: path, Args: argv, Dir: "/", Env: engineEnvironment(), Stdout: file, Stderr: file,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}}
	if err := host.Start(namespace, cmd); err != nil {
		return processID{}, fmt.Errorf("start engine: %w", err)
	}
	id := processID{Pid: cmd.Process.Pid}
	stat, err := readStat(id.Pid) // a child that ended is still there until it is reaped
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return processID{}, fmt.Errorf("start engine: %w", err)
	}
	cmd.Process.Release() // reaped by whoever watches it
	id.Start = stat.start
	return id, nil
}

func engineEnvironment() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
}

// engineUser picks a user id for the engine: one of those that systemd gives to
// dynamic users (61184 to 65519, file-hierarchy of UIDs-GIDs.md), so nobody's,
// chosen by directory so that engines of one machine differ.
func engineUser(dir string) int {
	const first, count = 61184, 65519 - 61184 + 1
	var hash uint32 = 2166136261 // FNV-1a
	for _, b := range []byte(filepath.Clean(dir)) {
		hash = (hash ^ uint32(b)) * 16777619
	}
	for i := range uint32(count) {
		uid := first + int((hash+i)%count)
		if _, err := os.Lstat(fmt.Sprintf("/run/systemd/dynamic-uid/%d", uid)); errors.Is(err, fs.ErrNotExist) {
			return uid
		}
	}
	return first
}
