package suricata

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// desk is a directory with an event log, and what a reader has read of it.
type desk struct {
	t       *testing.T
	dir     string
	limit   int64
	reopens int
	skips   int
	lines   []string
	tail    *tail
}

func newDesk(t *testing.T) *desk {
	d := &desk{t: t, dir: t.TempDir(), limit: 1 << 20}
	d.open()
	return d
}

func (d *desk) path(name string) string { return filepath.Join(d.dir, name) }

// open begins as an agent does that starts.
func (d *desk) open() {
	d.t.Helper()
	if d.tail != nil {
		d.tail.close()
	}
	var err error
	d.tail, err = openTail(&tail{path: d.path("eve"), before: d.path("eve.1"), limit: d.limit,
		reopen: func() error { d.reopens++; return nil }, skipped: func(n int) { d.skips += n },
		log: slog.New(slog.NewTextHandler(io.Discard, nil))}, d.path("position"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(d.tail.close)
}

func (d *desk) write(name, text string) {
	d.t.Helper()
	f, err := os.OpenFile(d.path(name), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
		f.Close()
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// read reads what there is and compares it.
func (d *desk) read(want ...string) {
	d.t.Helper()
	d.lines = nil
	if err := d.tail.read(d.t.Context(), func(line []byte) { d.lines = append(d.lines, string(line)) }); err != nil {
		d.t.Fatal(err)
	}
	if !slices.Equal(d.lines, want) {
		d.t.Fatalf("read %q, want %q", d.lines, want)
	}
}

func TestTailReadsEachLineOnce(t *testing.T) {
	d := newDesk(t)
	d.read()
	d.write("eve", "one\ntwo\nthr")
	d.read("one", "two")
	d.open() // an agent that starts
	d.write("eve", "ee\n\nfour\n")
	d.read("three", "four")
	d.open()
	d.read()
	d.write("eve", "five\n")
	d.read("five")
}

func TestTailPutsAsideAndGoesOn(t *testing.T) {
	d := newDesk(t)
	d.limit = 10
	d.open()
	d.write("eve", "one\ntwo\nthree\n")
	d.read("one", "two", "three")
	if d.reopens != 1 {
		t.Fatalf("the engine was told %d times", d.reopens)
	}
	d.write("eve.1", "four\n") // the engine has not heard yet
	d.read("four")
	d.write("eve.1", "five\ncut")
	d.write("eve", "six\n")
	d.read("five", "six")
	if _, err := os.Stat(d.path("eve.1")); err == nil || d.skips != 1 || d.reopens != 1 {
		t.Errorf("the old log: %v, %d lines skipped, %d times told", err, d.skips, d.reopens)
	}
}

func TestTailOfAnAgentThatDiedWhilePuttingAside(t *testing.T) {
	d := newDesk(t)
	d.write("eve", "one\n")
	d.read("one")
	if err := os.Rename(d.path("eve"), d.path("eve.1")); err != nil {
		t.Fatal(err)
	}
	d.open()
	d.write("eve.1", "two\n")
	d.read("two")
	if d.reopens != 1 {
		t.Errorf("the engine was told %d times by the next agent", d.reopens)
	}
	d.write("eve", "three\n")
	d.open()
	d.read("three")
}

func TestTailOfALogThatWasEmptiedOrReplaced(t *testing.T) {
	d := newDesk(t)
	d.write("eve", "one\ntwo\n")
	d.read("one", "two")
	if err := os.Truncate(d.path("eve"), 0); err != nil {
		t.Fatal(err)
	}
	d.read()
	d.write("eve", "three\n")
	d.read("three")
	if err := os.Rename(d.path("eve"), d.path("elsewhere")); err != nil {
		t.Fatal(err)
	}
	d.write("eve", "four\n")
	d.read("four")
	for _, position := range []string{"", "rubbish", "1 2 -3", strings.Repeat("9", 200)} {
		if err := os.WriteFile(d.path("position"), []byte(position), 0o600); err != nil {
			t.Fatal(err)
		}
		d.open()
		d.read("four")
	}
}

func TestTailSkipsLinesWithoutEnd(t *testing.T) {
	d := newDesk(t)
	d.write("eve", "one\n"+strings.Repeat("x", 2*maxLine)+"\ntwo\n")
	d.read("one", "two")
	if d.skips != 1 {
		t.Errorf("%d lines skipped", d.skips)
	}
}

func TestTailFollowsNoLink(t *testing.T) {
	d := newDesk(t)
	d.write("secret", "root:x\n")
	if err := os.Symlink(d.path("secret"), d.path("eve")); err != nil {
		t.Fatal(err)
	}
	if err := d.tail.read(t.Context(), func(line []byte) { t.Errorf("read %q", line) }); err == nil {
		t.Error("a link was followed")
	}
}

func TestFixedRecordNeedsNoRoom(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "record"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, data := range []string{"long enough", "s", ""} {
		if err := fixedRecord(f, 16, []byte(data)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(f.Name())
		if err != nil || len(got) != 16 || strings.TrimSpace(string(got)) != data {
			t.Errorf("record %d: %q %v", i, got, err)
		}
	}
	if err := fixedRecord(f, 16, make([]byte, 16)); err == nil {
		t.Error("a record that is too long was written")
	}
}

func FuzzTail(f *testing.F) {
	f.Add([]byte("one\ntwo"), []byte("\nthree\n"))
	f.Add([]byte("\n\n"), []byte("\x00\n\xff"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d := newDesk(t)
		var got []byte
		for _, part := range [][]byte{first, second} {
			d.write("eve", string(part))
			err := d.tail.read(t.Context(), func(line []byte) { got = fmt.Appendf(got, "%s\n", line) })
			if err != nil {
				t.Fatal(err)
			}
			d.open()
		}
		want := ""
		for line := range strings.Lines(string(first) + string(second)) {
			if strings.HasSuffix(line, "\n") && line != "\n" {
				want += line
			}
		}
		if string(got) != want {
			t.Errorf("%q then %q: read %q, want %q", first, second, got, want)
		}
	})
}
