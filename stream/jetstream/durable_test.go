package jetstream_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host/hosttest"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/stream"
	"bocage.dev/bocage/stream/jetstream"
)

// crashDir, in the environment, makes TestCrash the child that is killed.
const crashDir = "BOCAGE_TEST_CRASH_DIR"

// start runs a server on the authority and logs of a directory; the caller closes it.
func start(t testing.TB, dir string, change func(*jetstream.ServerConfig)) (*site, error) {
	t.Helper()
	authority, err := identity.OpenAuthority(filepath.Join(dir, "authority"), identity.DefaultTrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := authority.IssueSVID("/controller/c1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	config := jetstream.ServerConfig{
		Dir: filepath.Join(dir, "stream"), Listen: "127.0.0.1:0",
		SVID: func() *identity.SVID { return svid }, Bundle: authority.Bundle(), Logger: logger(t),
	}
	if change != nil {
		change(&config)
	}
	server, err := jetstream.StartServer(config)
	if err != nil {
		return nil, err
	}
	return &site{dir, authority, server}, nil
}

// TestCrash kills a process while it appends, again and again, and looks for
// every message that was acknowledged.
func TestCrash(t *testing.T) {
	if dir := os.Getenv(crashDir); dir != "" {
		appendUntilKilled(t, dir)
		return
	}
	dir := t.TempDir()
	acked := make(map[uint64]string)
	for round := range 5 {
		acks := killWriter(t, dir, func(line string) {
			number, id, _ := strings.Cut(line, " ")
			sequence, err := strconv.ParseUint(number, 10, 64)
			if err != nil || acked[sequence] != "" {
				t.Fatalf("the writer says %q, and sequence %s was %q", line, number, acked[sequence])
			}
			acked[sequence] = id
		})
		began := time.Now()
		s, err := start(t, dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		log, err := s.server.Log("EVENTS", "events.*")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: %d messages acknowledged, open again after %s", round, acks, time.Since(began))
		_, last, err := log.Bounds(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		found, ids := 0, make(map[string]uint64)
		enough := errors.New("enough")
		err = log.Read(t.Context(), 1, func(m stream.Message) error {
			if id, ok := acked[m.Sequence]; ok {
				found++
				if id != m.ID || string(m.Data) != strings.Repeat(id, 100) {
					t.Errorf("message %d is %s, and %s was acknowledged", m.Sequence, m.ID, id)
				}
			}
			if other := ids[m.ID]; other != 0 {
				t.Errorf("message %s is there as %d and %d", m.ID, other, m.Sequence)
			}
			ids[m.ID] = m.Sequence
			if m.Sequence == last {
				return enough
			}
			return nil
		})
		if err != enough || found != len(acked) {
			t.Errorf("of %d acknowledged messages %d are there: %v", len(acked), found, err)
		}
		if err := s.server.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killWriter runs the child, kills it somewhere in the middle and returns how
// many acknowledgements it gave.
func killWriter(t *testing.T, dir string, each func(line string)) int {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestCrash$", "-test.timeout=60s")
	child.Env = append(os.Environ(), crashDir+"="+dir)
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	enough := 50 + rand.IntN(400)
	lines, acks := bufio.NewScanner(out), 0
	for lines.Scan() {
		line, ok := strings.CutPrefix(lines.Text(), "acked ")
		if !ok {
			continue // what the test framework says
		}
		each(line)
		if acks++; acks == enough {
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := child.Wait(); err == nil || acks < enough {
		t.Fatalf("the writer ended by itself after %d messages: %v", acks, err)
	}
	return acks
}

// appendUntilKilled lets agents append over the network, and the controller too.
func appendUntilKilled(t *testing.T, dir string) {
	s, err := start(t, dir, func(c *jetstream.ServerConfig) { c.Logger = nil })
	if err != nil {
		t.Fatal(err)
	}
	own, err := s.server.Log("EVENTS", "events.*")
	if err != nil {
		t.Fatal(err)
	}
	logs := map[string]stream.Log{"events.own": own}
	for _, name := range []string{"h1", "h2", "h3"} {
		logs["events."+name] = s.agent(t, name).Log("EVENTS")
	}
	var out sync.Mutex
	var group sync.WaitGroup
	for subject, log := range logs {
		group.Go(func() {
			for n := 0; ; n++ {
				id := fmt.Sprintf("%s/%d/%d", subject, os.Getpid(), n)
				sequence, err := log.Append(t.Context(), subject, id, []byte(strings.Repeat(id, 100)))
				if err != nil {
					t.Error(err)
					return
				}
				out.Lock()
				_, err = fmt.Printf("acked %d %s\n", sequence, id)
				out.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	group.Wait()
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	for round := range uint64(3) {
		s, err := start(t, dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		log, err := s.server.Log("EVENTS", "events.*")
		if err != nil {
			t.Fatal(err)
		}
		if first, last, err := log.Bounds(t.Context()); err != nil || first != 1 || last != round {
			t.Errorf("the log keeps %d to %d, %v: want 1 to %d", first, last, err, round)
		}
		if sequence, err := log.Append(t.Context(), "events.h1", fmt.Sprint(round), []byte("x")); err != nil || sequence != round+1 {
			t.Errorf("Append = %d, %v", sequence, err)
		}
		if _, err := start(t, dir, nil); err == nil || !strings.Contains(err.Error(), "another process") {
			t.Errorf("a directory was used twice: %v", err)
		}
		if err := s.server.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamage(t *testing.T) {
	dir := t.TempDir()
	s, err := start(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.server.Close(); err != nil {
		t.Fatal(err)
	}
	// A file where the directory of the logs was.
	data := filepath.Join(dir, "stream", "jetstream")
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(data, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err = start(t, dir, nil)
	if err == nil {
		s.server.Close()
		t.Fatal("it started")
	}
	if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "restore it from a backup") {
		t.Errorf("%v does not say where and what to do", err)
	}
}

// A controller that restarts finds its agents again, and they lose nothing.
func TestAgentsComeBack(t *testing.T) {
	dir := t.TempDir()
	s, err := start(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	address := s.server.Address()
	open := func(s *site) stream.Log {
		log, err := s.server.Log("EVENTS", "events.*")
		if err != nil {
			t.Fatal(err)
		}
		return log
	}
	open(s)
	changes := make(chan bool, 100)
	h1, err := s.connect(t, "h1", time.Hour, func(connected bool) { changes <- connected })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h1.Log("EVENTS").Append(t.Context(), "events.h1", "1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	notices := make(chan string, 100)
	listening, stop := context.WithCancel(t.Context())
	listened := make(chan error, 1)
	go func() {
		listened <- h1.Exchange().Listen(listening, "ruleset.revision", func(_ string, data []byte) { notices <- string(data) })
	}()
	if err := s.server.Close(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if got := <-changes; got != want {
			t.Fatalf("connected %t, want %t", got, want)
		}
	}
	asked := time.Now()
	if _, err := h1.Log("EVENTS").Append(t.Context(), "events.h1", "2", []byte("x")); !errors.Is(err, stream.ErrUnavailable) {
		t.Errorf("Append without a controller = %v, want ErrUnavailable", err)
	}
	if _, err := h1.Exchange().Ask(t.Context(), "agent.h1.x", nil); !errors.Is(err, stream.ErrUnavailable) {
		t.Errorf("Ask without a controller = %v, want ErrUnavailable", err)
	}
	if took := time.Since(asked); took > 2*time.Second {
		t.Errorf("it took %s to say so", took)
	}
	s, err = start(t, dir, func(c *jetstream.ServerConfig) { c.Listen = address })
	if err != nil {
		t.Fatal(err)
	}
	defer s.server.Close()
	log := open(s)
	if connected := <-changes; !connected {
		t.Fatal("the agent lost a connection that it did not have")
	}
	if sequence, err := h1.Log("EVENTS").Append(t.Context(), "events.h1", "2", []byte("x")); err != nil || sequence != 2 {
		t.Errorf("Append = %d, %v", sequence, err)
	}
	if first, last, err := log.Bounds(t.Context()); err != nil || first != 1 || last != 2 {
		t.Errorf("the log keeps %d to %d, %v: want 1 to 2", first, last, err)
	}
	// It listens again without being told to.
	for heard := false; !heard; {
		if err := s.server.Exchange().Notify(t.Context(), "ruleset.revision", []byte("7")); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-notices:
			heard = got == "7"
		case err := <-listened:
			t.Fatalf("Listen ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop()
	if err := <-listened; err != nil {
		t.Error(err)
	}
}

func TestReserve(t *testing.T) {
	dir := t.TempDir()
	s, err := start(t, dir, func(c *jetstream.ServerConfig) { c.Reserve = 1 << 60 }) // more than any disk has
	if err != nil {
		t.Fatal(err)
	}
	defer s.server.Close()
	log, err := s.server.Log("EVENTS", "events.*")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.Append(t.Context(), "events.h1", "", []byte("x")); !errors.Is(err, stream.ErrFull) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("Append = %v, want ErrFull that says what to do", err)
	}
	if _, err := s.agent(t, "h1").Log("EVENTS").Append(t.Context(), "events.h1", "", []byte("x")); !errors.Is(err, stream.ErrFull) {
		t.Errorf("an agent's Append = %v, want ErrFull", err)
	}
}

// TestRootFullDisk fills a small file system up to the last byte.
func TestRootFullDisk(t *testing.T) {
	hosttest.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("bct", dir, "tmpfs", 0, "size=64m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	small := func(c *jetstream.ServerConfig) { c.Reserve = 8 << 20 }
	s, err := start(t, dir, small)
	if err != nil {
		t.Fatal(err)
	}
	log, err := s.server.Log("EVENTS", "events.*")
	if err != nil {
		t.Fatal(err)
	}
	h1 := s.agent(t, "h1").Log("EVENTS")
	data := bytes.Repeat([]byte("x"), 100_000)
	kept := uint64(0)
	for {
		sequence, err := h1.Append(t.Context(), "events.h1", fmt.Sprint(kept), data)
		if errors.Is(err, stream.ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kept = sequence
	}
	// And then somebody else takes what was kept free.
	filler := filepath.Join(dir, "filler")
	file, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = file.Write(data)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Append(t.Context(), "events.h1", "", []byte("x")); !errors.Is(err, stream.ErrFull) {
		t.Errorf("Append to a full disk = %v, want ErrFull", err)
	}
	if err := s.server.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if s, err = start(t, dir, small); err != nil {
		t.Fatal(err)
	}
	defer s.server.Close()
	if log, err = s.server.Log("EVENTS", "events.*"); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	read := uint64(0)
	err = log.Read(t.Context(), 1, func(m stream.Message) error {
		if !bytes.Equal(m.Data, data) {
			t.Errorf("message %d is not what was kept", m.Sequence)
		}
		if read++; read == kept {
			return enough
		}
		return nil
	})
	if err != enough {
		t.Errorf("of %d messages %d are there: %v", kept, read, err)
	}
	if err := log.(stream.Trimmer).Trim(t.Context(), kept-10); err != nil {
		t.Fatal(err)
	}
	// Files are removed in the background.
	late, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	for {
		sequence, err := log.Append(late, "events.h1", "after", data)
		if err == nil {
			if sequence != kept+1 {
				t.Errorf("after making room came sequence %d, want %d", sequence, kept+1)
			}
			break
		}
		if !errors.Is(err, stream.ErrFull) {
			t.Fatalf("after making room: %v", err)
		}
	}
}
