package api

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	// An example is shell, and after it what its output holds.
	example = regexp.MustCompile("(?s)```sh\n(.*?)```\n(?:```text\n(.*?)```)?")
)

// TestDocumentedRequests runs every example of the document with the real curl,
// one after the other, and looks for what the document says of the output.
func TestDocumentedRequests(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("BOCAGE_REQUIRE_ROOT") != "" {
			t.Fatal("curl is not installed: run scripts/setup test")
		}
		t.Skip("curl is not installed")
	}
	text, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *Config) { c.Functions = answers() })
	examples := example.FindAllStringSubmatch(string(text), -1)
	if len(examples) < 10 {
		t.Fatalf("only %d examples: is the search for them broken?", len(examples))
	}
	for _, e := range examples {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		shell := exec.CommandContext(ctx, "sh", "-euc", strings.ReplaceAll(e[1], "/run/bocage/api.sock", b.socket))
		shell.Dir = filepath.Dir(b.socket)
		output, err := shell.CombinedOutput()
		cancel()
		if err != nil {
			t.Errorf("%s\n%s%v", e[1], output, err)
			continue
		}
		if e[2] == "" {
			t.Errorf("%s\nthe document does not say what comes out", e[1])
		}
		for _, line := range strings.Split(strings.TrimSpace(e[2]), "\n") {
			if !strings.Contains(string(output), line) {
				t.Errorf("%s\nthe output does not hold %s:\n%s", e[1], line, output)
			}
		}
	}
}
