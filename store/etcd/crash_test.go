package etcd_test

import (
	"bufio"
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

	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
)

// crashDir, in the environment, makes TestCrash the child that is killed.
const crashDir = "BOCAGE_TEST_CRASH_DIR"

// TestCrash kills a process while it writes, again and again, and looks for every
// write that was acknowledged.
func TestCrash(t *testing.T) {
	if dir := os.Getenv(crashDir); dir != "" {
		writeUntilKilled(t, dir)
		return
	}
	dir := filepath.Join(t.TempDir(), "store")
	acked := make(map[string]int) // by key, the highest number
	for round := range 5 {
		acks := killWriter(t, dir, func(line string) {
			key, number, ok := strings.Cut(line, " ")
			n, err := strconv.Atoi(number)
			if !ok || err != nil {
				t.Fatalf("the writer says %q", line)
			}
			acked[key] = max(acked[key], n)
		})
		start := time.Now()
		s := open(t, etcd.Config{Dir: dir})
		t.Logf("round %d: %d writes acknowledged, open again after %s", round, acks, time.Since(start))
		for key, n := range acked {
			entry, err := s.Get(t.Context(), key)
			if err != nil {
				t.Fatalf("%s, which had been written %d times: %v", key, n, err)
			}
			if got, err := strconv.Atoi(string(entry.Value)); err != nil || got < n || got > n+1 {
				t.Errorf("%s is %s, and %d was acknowledged", key, entry.Value, n)
			}
			// Both keys of a transaction or none.
			if twin, err := s.Get(t.Context(), key+"/twin"); err != nil || string(twin.Value) != string(entry.Value) || twin.Revision != entry.Revision {
				t.Errorf("%s is %s and its twin %s, %v", key, entry.Value, twin.Value, err)
			}
		}
		if err := s.Close(); err != nil {
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
		t.Fatalf("the writer ended by itself after %d writes: %v", acks, err)
	}
	return acks
}

func writeUntilKilled(t *testing.T, dir string) {
	s, err := etcd.Open(etcd.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	var out sync.Mutex
	var group sync.WaitGroup
	for writer := range 4 {
		group.Go(func() {
			key := fmt.Sprintf("w%d", writer)
			n := 0
			entry, err := s.Get(t.Context(), key)
			switch {
			case err == nil:
				n, _ = strconv.Atoi(string(entry.Value))
			case !errors.Is(err, store.ErrNotFound):
				t.Error(err)
				return
			}
			for {
				n++
				value := strconv.AppendInt(nil, int64(n), 10)
				if _, err := s.Apply(t.Context(),
					store.Op{Key: key, Value: value, IfWas: store.AnyRevision},
					store.Op{Key: key + "/twin", Value: value, IfWas: store.AnyRevision}); err != nil {
					t.Error(err)
					return
				}
				out.Lock()
				_, err := fmt.Printf("acked %s %d\n", key, n)
				out.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	group.Wait()
}
