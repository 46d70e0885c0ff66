// Package etcdtest runs the etcd that operators run, Debian's, for tests: what is
// embedded here is newer and answers differently. It listens on a socket of the
// test's own, and is gone when the test ends.
package etcdtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// patience is how long a server may take to start on a busy machine.
const patience = time.Minute

// Server is a running etcd of one member.
type Server struct {
	// Endpoint is what clients connect to.
	Endpoint string

	dir     string
	command *exec.Cmd
	log     bytes.Buffer
}

// Start runs an etcd with a data folder of its own.
func Start(t testing.TB) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "bct") // sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// An address of a socket has the form of a host's: it is the name of a file.
	s := &Server{Endpoint: "unix://" + filepath.Join(dir, "bct:1"), dir: dir}
	s.start(t)
	t.Cleanup(func() { s.end(t) })
	return s
}

func (s *Server) start(t testing.TB) {
	t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		t.Fatal("etcd is not installed: run scripts/setup test")
	}
	s.command = exec.Command(path, "--data-dir", "data", "--listen-client-urls", "unix://bct:1", "--advertise-client-urls", "unix://bct:1",
		"--listen-peer-urls", "unix://bct:2", "--initial-advertise-peer-urls", "unix://bct:2", "--initial-cluster", "default=unix://bct:2",
		"--max-txn-ops", "1024", "--max-request-bytes", "10551296", "--log-level", "error")
	s.command.Dir = s.dir
	s.command.Stdout, s.command.Stderr = &s.log, &s.log
	s.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.command.Start(); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		select {
		case <-tick.C:
			if _, err := os.Stat(filepath.Join(s.dir, "bct:1")); err == nil {
				return
			}
		case <-late:
			s.end(t)
			t.Fatalf("etcd did not start in %s:\n%s", patience, s.log.String())
		}
	}
}

func (s *Server) end(t testing.TB) {
	if s.command.Process == nil || s.command.ProcessState != nil {
		return
	}
	_ = s.command.Process.Kill()
	var exit *exec.ExitError
	if err := s.command.Wait(); err != nil && !errors.As(err, &exit) {
		t.Errorf("end etcd: %v", err)
	}
}

// Stop makes the server silent, as one is whose machine hangs.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	s.signal(t, syscall.SIGSTOP)
	// A thread that runs on another processor goes on until it is interrupted.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); !s.stopped(t); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("etcd did not stop in %s", patience)
		}
	}
}

// stopped reports whether every thread stands still.
func (s *Server) stopped(t testing.TB) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.command.Process.Pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("look at etcd: %v", err)
	}
	for _, path := range threads {
		// PID (NAME) STATE ..., proc(5)
		data, err := os.ReadFile(path)
		if _, state, _ := bytes.Cut(data, []byte(") ")); err == nil && !bytes.HasPrefix(state, []byte("T")) {
			return false
		}
	}
	return true
}

// Continue lets it go on.
func (s *Server) Continue(t testing.TB) { s.signal(t, syscall.SIGCONT) }

func (s *Server) signal(t testing.TB, what syscall.Signal) {
	t.Helper()
	if err := s.command.Process.Signal(what); err != nil {
		t.Fatal(err)
	}
}

// Restart kills the server and starts it on the same data.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.end(t)
	if err := os.Remove(filepath.Join(s.dir, "bct:1")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	s.start(t)
}
