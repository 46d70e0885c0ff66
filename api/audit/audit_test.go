package audit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"bocage.dev/bocage/api/audit"
	"bocage.dev/bocage/store/mem"
)

// open runs a trail until the test ends or stop is called.
func open(t *testing.T, config audit.Config) (trail *audit.Trail, stop func()) {
	t.Helper()
	trail, err := audit.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = trail.Run(ctx)
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			<-done
			if err := trail.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return trail, stop
}

func add(t *testing.T, trail *audit.Trail, n int) {
	t.Helper()
	for i := range n {
		if err := trail.Append(context.Background(), audit.Entry{Who: "alice", Verb: "create", Resource: "applications", Name: fmt.Sprint("a", i), Code: 201}); err != nil {
			t.Fatal(err)
		}
	}
}

// only returns the one file of a trail.
func only(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "audit-*.jsonl"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files: %v, %v", files, err)
	}
	return files[0]
}

func TestTrailHoldsOverRestarts(t *testing.T) {
	dir, kept := t.TempDir(), mem.New()
	for i := range 3 {
		trail, stop := open(t, audit.Config{Dir: dir, Node: "c1", Store: kept})
		add(t, trail, 10)
		stop()
		anchor, known, err := audit.ReadAnchor(context.Background(), kept, "c1")
		if err != nil || !known || anchor.Sequence != uint64(10*(i+1)) {
			t.Fatalf("anchor %+v, %v, %v", anchor, known, err)
		}
		summary, err := audit.Verify(dir, 0, &audit.Verifier{Anchors: map[uint64]string{anchor.Sequence: anchor.Hash}})
		if err != nil || summary.Entries != uint64(10*(i+1)) {
			t.Fatalf("%+v, %v", summary, err)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	trail, stop := open(t, audit.Config{Dir: dir, Node: "c1"})
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			for range 20 {
				if err := trail.Append(context.Background(), audit.Entry{Who: "bob", Verb: "update", Code: 200}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	stop()
	if summary, err := audit.Verify(dir, 0, &audit.Verifier{}); err != nil || summary.Entries != 400 {
		t.Fatalf("%+v, %v", summary, err)
	}
}

// TestTampering changes a trail in the ways that somebody with something to hide
// would: each is noticed, at the place.
func TestTampering(t *testing.T) {
	line := func(lines [][]byte, n int) *[]byte { return &lines[n-1] }
	for _, test := range []struct {
		name   string
		tamper func([][]byte) [][]byte
		at     string
	}{
		{"a name is changed", func(l [][]byte) [][]byte {
			*line(l, 5) = bytes.Replace(*line(l, 5), []byte("alice"), []byte("mallo"), 1)
			return l
		}, "entry 5"},
		{"an entry is taken out", func(l [][]byte) [][]byte { return append(l[:4:4], l[5:]...) }, "entry 6"},
		{"two are swapped", func(l [][]byte) [][]byte { l[3], l[4] = l[4], l[3]; return l }, "entry 5"},
		{"the end is cut off", func(l [][]byte) [][]byte { return l[:7] }, "entry 10"},
		{"the beginning is cut off and the rest kept", func(l [][]byte) [][]byte { return l[2:] }, ""},
		{"a line is garbage", func(l [][]byte) [][]byte { *line(l, 3) = []byte("{"); return l }, ":3"},
		{"a field is added", func(l [][]byte) [][]byte {
			*line(l, 3) = bytes.Replace(*line(l, 3), []byte("{"), []byte(`{"note":"x",`), 1)
			return l
		}, ":3"},
		{"a key is given twice", replacing(`"who":"alice"`, `"who":"mallory","who":"alice"`), ":3"},
		{"a key is given twice, in other letters", replacing(`"who":"alice"`, `"who":"alice","WHO":"alice"`), ":3"},
		{"a key is in other letters", replacing(`"who"`, `"Who"`), ":3"},
		{"a letter is escaped", replacing("alice", `\u0061lice`), ":3"},
		{"what is empty is written", replacing(`"code"`, `"message":"","code"`), ":3"},
		{"a space is added", replacing(`,"code"`, `, "code"`), ":3"},
		{"a carriage return is added", func(l [][]byte) [][]byte { *line(l, 3) = append(*line(l, 3), '\r'); return l }, ":3"},
		{"something stands behind it", func(l [][]byte) [][]byte { *line(l, 3) = append(*line(l, 3), "{}"...); return l }, ":3"},
		{"an empty line is added", func(l [][]byte) [][]byte { return slices.Insert(l, 2, []byte{}) }, ":3"},
		{"the whole is replaced by later entries", func([][]byte) [][]byte {
			return [][]byte{[]byte(sealed(audit.Entry{Sequence: 12, Node: "c1", Who: "mallory", Verb: "create", Previous: "none"}))}
		}, "entry 12"},
		{"the whole is replaced by the next entry", func([][]byte) [][]byte {
			return [][]byte{[]byte(sealed(audit.Entry{Sequence: 11, Node: "c1", Who: "mallory", Verb: "create", Previous: "none"}))}
		}, "entry 11"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, kept := t.TempDir(), mem.New()
			trail, stop := open(t, audit.Config{Dir: dir, Node: "c1", Store: kept})
			add(t, trail, 10)
			stop()
			file := only(t, dir)
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			lines := test.tamper(bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")))
			if err := os.WriteFile(file, append(bytes.Join(lines, []byte("\n")), '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
			anchor, _, err := audit.ReadAnchor(context.Background(), kept, "c1")
			if err != nil {
				t.Fatal(err)
			}
			summary, err := audit.Verify(dir, 0, &audit.Verifier{Anchors: map[uint64]string{anchor.Sequence: anchor.Hash}})
			var broken *audit.Break
			switch {
			case test.at == "":
				// What is older than the first entry is told, not hidden.
				if err != nil || summary.First != 3 {
					t.Fatalf("%+v, %v", summary, err)
				}
			case !errors.As(err, &broken) || !strings.Contains(broken.At, test.at):
				t.Fatalf("%v is not at %s", err, test.at)
			}
		})
	}
}

// replacing changes something in the third line.
func replacing(old, with string) func([][]byte) [][]byte {
	return func(lines [][]byte) [][]byte {
		lines[2] = bytes.Replace(lines[2], []byte(old), []byte(with), 1)
		return lines
	}
}

// sealed is an entry's line with its hash, as whoever knows how can make it.
func sealed(e audit.Entry) string {
	text, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	e.Hash = fmt.Sprintf("%x", sha256.Sum256(text))
	if text, err = json.Marshal(e); err != nil {
		panic(err)
	}
	return string(text)
}

// TestTexts: what clients send as names and texts does not make a trail that cannot
// be read again.
func TestTexts(t *testing.T) {
	dir := t.TempDir()
	trail, stop := open(t, audit.Config{Dir: dir, Node: "c1"})
	texts := []string{strings.Repeat("x", 1<<20), strings.Repeat("<", 1<<12), "\xff\xfe", strings.Repeat("ä", 1023) + "\xc3", "a\x00b\u2028\r\n\ufffd"}
	for _, text := range texts {
		e := audit.Entry{Who: text, Role: text, From: text, Verb: text, Resource: text, Namespace: text, Name: text, Message: text, Object: text}
		if err := trail.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	read := 0
	if err := trail.Read(0, func(audit.Entry) error { read++; return nil }); err != nil || read != len(texts) {
		t.Errorf("%d were read: %v", read, err)
	}
	stop()
	if summary, err := audit.Verify(dir, 0, &audit.Verifier{}); err != nil || summary.Entries != uint64(len(texts)) {
		t.Errorf("%+v, %v", summary, err)
	}
}

// TestReadWhileWriting: who reads a trail that is being written never sees half an
// entry, and sees what somebody else wrote into it.
func TestReadWhileWriting(t *testing.T) {
	dir := t.TempDir()
	trail, _ := open(t, audit.Config{Dir: dir, Node: "c1"})
	add(t, trail, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 200 {
			if err := trail.Append(context.Background(), audit.Entry{Who: "bob", Verb: "update", Message: strings.Repeat("x", 1000)}); err != nil {
				t.Error(err)
			}
		}
	}()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		v := audit.Verifier{}
		if err := trail.Read(0, v.Next); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.OpenFile(only(t, dir), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString("{}\n"); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	for _, from := range []uint64{0, 1000} {
		var broken *audit.Break
		if err := trail.Read(from, func(audit.Entry) error { return nil }); !errors.As(err, &broken) {
			t.Errorf("from %d: %v", from, err)
		}
	}
}

// TestRewrittenTrail replaces a trail by one that is whole in itself.
func TestRewrittenTrail(t *testing.T) {
	kept := mem.New()
	trail, stop := open(t, audit.Config{Dir: t.TempDir(), Node: "c1", Store: kept})
	add(t, trail, 5)
	stop()
	forged := t.TempDir()
	other, stopOther := open(t, audit.Config{Dir: forged, Node: "c1"})
	add(t, other, 5)
	stopOther()
	anchor, _, err := audit.ReadAnchor(context.Background(), kept, "c1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Verify(forged, 0, &audit.Verifier{Anchors: map[uint64]string{anchor.Sequence: anchor.Hash}}); err == nil || !strings.Contains(err.Error(), "rewritten") {
		t.Fatal(err)
	}
}

// TestKilledWhileWriting leaves half a line behind, as a crash does.
func TestKilledWhileWriting(t *testing.T) {
	dir := t.TempDir()
	trail, stop := open(t, audit.Config{Dir: dir, Node: "c1"})
	add(t, trail, 3)
	stop()
	file := only(t, dir)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(data, data[:40]...), 0o600); err != nil {
		t.Fatal(err)
	}
	trail, stop = open(t, audit.Config{Dir: dir, Node: "c1"})
	add(t, trail, 1)
	stop()
	summary, err := audit.Verify(dir, 0, &audit.Verifier{})
	if err != nil || summary.Entries != 5 { // three, the recovery, one
		t.Fatalf("%+v, %v", summary, err)
	}
	if torn, err := os.ReadFile(file + ".torn"); err != nil || len(torn) != 40 {
		t.Fatalf("%d bytes were set aside, %v", len(torn), err)
	}
}

// TestReadFrom reads the rest of a trail.
func TestReadFrom(t *testing.T) {
	trail, _ := open(t, audit.Config{Dir: t.TempDir(), Node: "c1"})
	add(t, trail, 10)
	var got []uint64
	if err := trail.Read(8, func(e audit.Entry) error { got = append(got, e.Sequence); return nil }); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != "[8 9 10]" {
		t.Fatal(got)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"sequence":1,"previous":"","hash":"x"}` + "\n"))
	f.Add([]byte(sealed(audit.Entry{Sequence: 1, Node: "c1", Who: "alice", Verb: "create"}) + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "audit-00000000000000000001.jsonl"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := audit.Verify(dir, 0, &audit.Verifier{}); err == nil {
			// There is one text for what it says.
			var lines []string
			if err := audit.ReadDir(dir, 0, func(e audit.Entry) error {
				e.Hash = ""
				lines = append(lines, sealed(e)+"\n")
				return nil
			}); err != nil || strings.Join(lines, "") != string(data) {
				t.Errorf("%q holds: %v", data, err)
			}
		}
		trail, err := audit.Open(audit.Config{Dir: dir, Node: "c1"})
		if err == nil {
			_ = trail.Close()
		}
	})
}

// Whoever stops a controller can do to its files what he likes: what the store has the
// hash of has to be there when it begins again, or is known to be missing for good.
func TestCutWhileStopped(t *testing.T) {
	cut := func(entries int) func([]string) []string { return func(all []string) []string { return all[:entries] } }
	for name, c := range map[string]struct {
		change  func(lines []string) []string
		missing string // of the entry that says so; empty: nothing is
	}{
		"untouched":          {cut(10), ""},
		"its end":            {cut(4), "entries 5 to 10 are missing"},
		"all but its end":    {func(all []string) []string { return all[8:] }, ""},
		"everything":         {cut(0), "entries 1 to 10 are missing"},
		"rewritten":          {func([]string) []string { return strings.SplitAfter(string(rewritten(t)), "\n") }, "entry 10 is not the one"},
		"rewritten, shorter": {func([]string) []string { return strings.SplitAfter(string(rewritten(t)), "\n")[:3] }, "entries 4 to 10 are missing"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, kept := t.TempDir(), mem.New()
			trail, stop := open(t, audit.Config{Dir: dir, Node: "c1", Store: kept})
			add(t, trail, 10)
			stop()
			file := only(t, dir)
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if left := strings.Join(c.change(strings.SplitAfter(strings.TrimSuffix(string(data), "\n"), "\n")), ""); left == "" {
				err = os.Remove(file)
			} else {
				err = os.WriteFile(file, []byte(strings.TrimSuffix(left, "\n")+"\n"), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			for round := range 3 { // what is missing stays missing, and is told once
				trail, stop := open(t, audit.Config{Dir: dir, Node: "c1", Store: kept})
				add(t, trail, 1)
				stop()
				anchor, _, err := audit.ReadAnchor(context.Background(), kept, "c1")
				if err != nil {
					t.Fatal(err)
				}
				if anchor.Sequence <= 10 {
					t.Fatalf("round %d: the store's hash is of entry %d, and was of entry 10", round, anchor.Sequence)
				}
				anchors := map[uint64]string{anchor.Sequence: anchor.Hash}
				_, err = audit.Verify(dir, 0, &audit.Verifier{Anchors: anchors})
				if c.missing == "" {
					if err != nil {
						t.Fatalf("round %d: %v", round, err)
					}
					continue
				}
				if err == nil {
					t.Fatalf("round %d: the trail holds", round)
				}
				told, behind := 0, uint64(0)
				if err := audit.ReadDir(dir, 0, func(e audit.Entry) error {
					if strings.Contains(e.Message, c.missing) {
						told, behind = told+1, e.Sequence+1
					}
					return nil
				}); err != nil || told != 1 {
					t.Fatalf("round %d: %q is told %d times, %v", round, c.missing, told, err)
				}
				if _, err := audit.Verify(dir, behind, &audit.Verifier{Anchors: anchors}); err != nil && round > 0 {
					t.Fatalf("round %d: what came after does not hold: %v", round, err)
				}
			}
		})
	}
}

// rewritten is a trail of ten other entries, each of which names the one before.
func rewritten(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	trail, stop := open(t, audit.Config{Dir: dir, Node: "c1"})
	for range 10 {
		if err := trail.Append(context.Background(), audit.Entry{Who: "mallory", Verb: "get"}); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	data, err := os.ReadFile(only(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(data, []byte("\n"))
}

func TestNotedHash(t *testing.T) {
	dir := t.TempDir()
	trail, stop := open(t, audit.Config{Dir: dir, Node: "c1"})
	add(t, trail, 3)
	stop()
	noted, err := audit.Verify(dir, 0, &audit.Verifier{})
	if err != nil {
		t.Fatal(err)
	}
	trail, stop = open(t, audit.Config{Dir: dir, Node: "c1"})
	add(t, trail, 3)
	stop()
	if _, err := audit.Verify(dir, 0, &audit.Verifier{Has: noted.Hash}); err != nil {
		t.Error(err)
	}
	file := only(t, dir)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Join(bytes.SplitAfter(data, []byte("\n"))[:2], nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Verify(dir, 0, &audit.Verifier{Has: noted.Hash}); err == nil || !strings.Contains(err.Error(), noted.Hash) {
		t.Errorf("the trail without its end holds: %v", err)
	}
}
