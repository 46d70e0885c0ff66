package e2e

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"

	"bocage.dev/bocage/host/hosttest"
)

// binary builds the program that users run.
func binary(t *testing.T) string {
	t.Helper()
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
