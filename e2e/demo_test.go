package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"bocage.dev/bocage/host/hosttest"
)

// binary is the program that users run: the one that make test has built, or one
// built now.
func binary(t testing.TB) string {
	t.Helper()
	if built := os.Getenv("BOCAGE_PROGRAM"); built != "" {
		return built
	}
	path := filepath.Join(t.TempDir(), "bocage")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "../cmd/bocage")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// TestRootDemo plays the demo: the whole loop, every line of it an assertion.
func TestRootDemo(t *testing.T) {
	hosttest.Root(t)
	name := hosttest.Name(t)
	var out bytes.Buffer
	demo := exec.Command(binary(t), "demo", "--name", name)
	demo.Stdout, demo.Stderr = &out, &out
	if err := demo.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log("\n" + out.String())
}
