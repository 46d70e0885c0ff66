package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestTextsStayTexts: what somebody declares can neither move the cursor of who looks at
// it, nor write lines of its own.
func TestTextsStayTexts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "test.yaml")
	text := "apiVersion: bocage.dev/v1\nkind: Workload\nmetadata: {name: a, namespace: x}\nspec: {host: h, addresses: [10.0.0.1]}\n---\n" +
		"apiVersion: bocage.dev/v1\nkind: PolicyTest\nmetadata: {name: t, namespace: x}\nspec:\n  cases:\n" +
		"  - {name: \"n\\e[2J\", from: x/a, to: 192.0.2.1, port: 1, expect: {reach: allow}, because: \"a\\e[2Jb\\rc\\n1 passed, 0 failed\\u202ed\\x9be\"}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, code := invoke(t, "", "policy", "test", "-f", file)
	if code != exitFailed || !strings.Contains(out, `because a\u001b[2Jb\rc\n1 passed, 0 failed\u202ed\u009be`) || strings.ContainsAny(out, "\x1b\r\u202e\u009b") {
		t.Errorf("%q", out)
	}
	if out, _, _ = invoke(t, "", "policy", "test", "-f", file, "-o", "json"); !strings.Contains(out, `\u202e`) || strings.ContainsRune(out, '\u202e') {
		t.Errorf("%q", out)
	}
}

// TestScreenKeepsCharactersWhole: a character that comes in pieces is one.
func TestScreenKeepsCharactersWhole(t *testing.T) {
	var out bytes.Buffer
	s := &screen{to: &out, env: &env{}}
	for _, b := range []byte("→ \u202e é\x1b[0m\t\xff\n\xe2\x80") {
		if n, err := s.Write([]byte{b}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	s.end()
	if got, want := out.String(), "→ \\u202e é\\u001b[0m\t\xff\n\xe2\x80"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestScreenTakesSeveralWriters: what several write at once comes whole, in some order.
func TestScreenTakesSeveralWriters(t *testing.T) {
	var out bytes.Buffer
	s := &screen{to: &out, env: &env{}}
	const each = 100
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for range each {
				_, _ = s.Write([]byte("→ a line\n"))
			}
		})
	}
	writers.Wait()
	s.end()
	if out.String() != strings.Repeat("→ a line\n", 4*each) {
		t.Errorf("%d bytes, not whole lines", out.Len())
	}
}
