package etcd_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
	"bocage.dev/bocage/store/storetest"
)

func TestConfigSaysAllFaults(t *testing.T) {
	_, err := etcd.Open(etcd.Config{Quota: -1, Socket: "relative"})
	for _, want := range []string{"no directory", "negative", "absolute"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open = %v, want it to say %q", err, want)
		}
	}
}

func TestQuota(t *testing.T) {
	s := open(t, etcd.Config{Quota: 8 << 20})
	defer s.Close()
	ctx := t.Context()
	value := bytes.Repeat([]byte("x"), 256<<10)
	written := 0
	var err error
	// etcd looks at the size of its last commit, so it is some writes late.
	for ; written < 2000; written++ {
		if _, err = store.Put(ctx, s, fmt.Sprintf("k%04d", written), value, store.Absent); err != nil {
			break
		}
	}
	if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), "quota") {
		t.Fatalf("after %d writes of 256 KiB into 8 MiB: %v, want ErrFull that speaks of the quota", written, err)
	}
	// Reads, lists, watches and deletions go on, and nothing is lost.
	entries, at, err := s.List(ctx, "k", "", 0, 0)
	if err != nil || len(entries) != written {
		t.Fatalf("List = %d entries, %v: want %d", len(entries), err, written)
	}
	w, err := s.Watch(ctx, "k", at)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Put(ctx, s, "small", []byte("x"), store.AnyRevision); !errors.Is(err, store.ErrFull) {
		t.Errorf("a small write = %v, want ErrFull", err)
	}
	for i := range written - 2 {
		if _, err := store.Delete(ctx, s, fmt.Sprintf("k%04d", i), store.AnyRevision); err != nil {
			t.Fatal(err)
		}
	}
	if e := <-w.Events(); !e.Deleted() || e.Key != "k0000" {
		t.Errorf("the watch yields %+v", e)
	}
	// Space comes back by itself.
	for late := time.Now().Add(20 * time.Second); ; {
		_, err = store.Put(ctx, s, "again", value, store.AnyRevision)
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrFull) || time.Now().After(late) {
			t.Fatalf("writing after making room: %v", err)
		}
	}
	if entries, _, err := s.List(ctx, "k", "", 0, 0); err != nil || len(entries) != 2 {
		t.Errorf("List = %d entries, %v: want 2", len(entries), err)
	}
}

func TestReserve(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, etcd.Config{Dir: dir})
	if _, err := store.Put(t.Context(), s, "a", []byte("1"), store.Absent); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, etcd.Config{Dir: dir, Reserve: 1 << 60}) // more than any disk has
	defer s.Close()
	if _, err := store.Put(t.Context(), s, "b", nil, store.Absent); !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("Put = %v, want ErrFull that says what to do", err)
	}
	if entry, err := s.Get(t.Context(), "a"); err != nil || string(entry.Value) != "1" {
		t.Errorf("Get = %v, %v", entry, err)
	}
	if _, err := store.Delete(t.Context(), s, "a", store.AnyRevision); err != nil {
		t.Errorf("Delete = %v", err)
	}
}

func TestOneProcessPerDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, etcd.Config{Dir: dir})
	defer s.Close()
	if _, err := etcd.Open(etcd.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
}

func TestDamage(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, member string){
		"the database is garbage": func(t *testing.T, member string) {
			overwrite(t, filepath.Join(member, "snap", "db"), 0)
		},
		"the log is garbage": func(t *testing.T, member string) {
			logs, err := filepath.Glob(filepath.Join(member, "wal", "*.wal"))
			if err != nil || len(logs) == 0 {
				t.Fatal(logs, err)
			}
			overwrite(t, logs[0], 0)
		},
		"the log is gone": func(t *testing.T, member string) {
			logs, err := filepath.Glob(filepath.Join(member, "wal", "*.wal"))
			if err != nil || len(logs) == 0 {
				t.Fatal(logs, err)
			}
			for _, log := range logs {
				if err := os.Remove(log); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(untidyDir(t), "store")
			s := open(t, etcd.Config{Dir: dir})
			for i := range 20 {
				if _, err := store.Put(t.Context(), s, fmt.Sprint(i), bytes.Repeat([]byte("x"), 1000), store.Absent); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			damage(t, filepath.Join(dir, "etcd", "member"))
			s, err := etcd.Open(etcd.Config{Dir: dir})
			if err == nil {
				s.Close()
				t.Fatal("it opened")
			}
			for _, want := range []string{dir, "restore it from a backup"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
		})
	}
}

// untidyDir is for an etcd that ends itself: a goroutine of it may still make a
// file while the directory is being removed.
func untidyDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bct")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 1000 {
			if err = os.RemoveAll(dir); err == nil {
				return
			}
		}
		t.Error(err)
	})
	return dir
}

// overwrite replaces some kilobytes of a file.
func overwrite(t *testing.T, path string, at int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt(bytes.Repeat([]byte("garbage!"), 2048), at); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

// Nobody on the machine may reach the store around the API.
func TestNothingListens(t *testing.T) {
	before := listeners(t)
	s := open(t, etcd.Config{})
	defer s.Close()
	for inode, line := range listeners(t) {
		if _, known := before[inode]; !known {
			t.Errorf("the store listens: %s", line)
		}
	}
}

// listeners returns the sockets of this process that listen, by inode.
func listeners(t *testing.T) map[string]string {
	t.Helper()
	own := make(map[string]bool)
	descriptors, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("no /proc: %v", err)
	}
	for _, d := range descriptors {
		if target, err := os.Readlink("/proc/self/fd/" + d.Name()); err == nil && strings.HasPrefix(target, "socket:[") {
			own[strings.Trim(target, "socket:[]")] = true
		}
	}
	found := make(map[string]string)
	for _, table := range []struct {
		name  string
		inode int
		state string
		at    int
	}{{"tcp", 9, "0A", 3}, {"tcp6", 9, "0A", 3}, {"unix", 6, "01", 5}} {
		data, err := os.ReadFile("/proc/self/net/" + table.name)
		if err != nil {
			t.Skipf("no /proc: %v", err)
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.Fields(line)
			listens := len(fields) > table.inode && fields[table.at] == table.state
			if table.name == "unix" {
				listens = listens && fields[3] == "00010000" // SO_ACCEPTCON
			}
			if listens && own[fields[table.inode]] {
				found[fields[table.inode]] = table.name + " " + line
			}
		}
	}
	return found
}

func TestListenersAreFound(t *testing.T) {
	before := len(listeners(t))
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	if n := len(listeners(t)) - before; n != 2 {
		t.Errorf("%d listeners were found, want 2", n)
	}
}

// socketDir is short enough for a socket's path, wherever tests keep their files.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bct") // mode 0700
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestSocketConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		socket := filepath.Join(socketDir(t), "etcd")
		server := open(t, etcd.Config{Socket: socket})
		t.Cleanup(func() { server.Close() })
		s, err := etcd.Connect(t.Context(), etcd.Cluster{Endpoints: []string{"unix://" + socket}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestSocketIsPrivate(t *testing.T) {
	dir := socketDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := etcd.Open(etcd.Config{Dir: filepath.Join(t.TempDir(), "store"), Socket: filepath.Join(dir, "etcd")})
	if err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a socket where others may enter: %v", err)
	}
}

func TestBackup(t *testing.T) {
	s := open(t, etcd.Config{})
	defer s.Close()
	if _, err := store.Put(t.Context(), s, "a", []byte("precious value"), store.Absent); err != nil {
		t.Fatal(err)
	}
	var backup bytes.Buffer
	if err := s.Backup(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	// A snapshot is the database, followed by its SHA-256.
	if backup.Len()%512 != 32 || !bytes.Contains(backup.Bytes(), []byte("precious value")) {
		t.Errorf("the backup of %d bytes is no snapshot", backup.Len())
	}
}

func TestConnectSaysThatNobodyAnswers(t *testing.T) {
	_, err := etcd.Connect(shortly(t), etcd.Cluster{Endpoints: []string{"unix://" + filepath.Join(socketDir(t), "nobody")}})
	if err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("Connect = %v", err)
	}
	if _, err := etcd.Connect(t.Context(), etcd.Cluster{}); err == nil {
		t.Error("connected to nothing")
	}
}
