package tidy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What the gate repeats is a test that failed by itself among others that passed; all
// else that can be in a log stays a failure (scripts/again).
func TestGateRepeatsLoneTestsOnly(t *testing.T) {
	// This go fails the tests whose names say so, and says what it was asked for.
	const fakeGo = "#!/bin/sh\n" +
		"[ \"$1\" = list ] && { case $4 in */drawn) echo '[] [pgregory.net/rapid]';; *) echo '[] []';; esac; exit; }\n" +
		"echo \"ran $*\"\n" +
		"case \"$*\" in *Always*) exit 1;; esac\n"
	tools := t.TempDir()
	if err := os.WriteFile(filepath.Join(tools, "go"), []byte(fakeGo), 0o755); err != nil {
		t.Fatal(err)
	}
	const passed = "ok  \texample.org/a\t0.1s\n"
	failed := func(pkg string, names ...string) string {
		var b strings.Builder
		for _, name := range names {
			b.WriteString("--- FAIL: " + name + " (0.10s)\n    --- FAIL: " + name + "/part (0.10s)\n        x_test.go:1: no\n")
		}
		return b.String() + "FAIL\nFAIL\texample.org/" + pkg + "\t0.2s\nFAIL\n"
	}
	for _, x := range []struct {
		name, log string
		passes    bool
		want      string
	}{
		{"one test", passed + failed("b", "TestOnce"), true, "UNSTEADY: TestOnce of example.org/b"},
		{"each in its package", failed("b", "TestOnce", "TestTwice") + passed + failed("c", "TestThrice"), true, "-run ^TestThrice$ example.org/c"},
		{"with its seed", failed("drawn", "TestOnce"), true, "example.org/drawn -rapid.seed=7"},
		{"one that fails again", failed("b", "TestOnce") + failed("c", "TestAlways"), false, "TestAlways failed alone, too"},
		{"too many", failed("b", "TestA", "TestB", "TestC", "TestD"), false, "more than 3"},
		{"no test", "make: *** [Makefile:41: generate-check] Error 1\n", false, "what failed is no test"},
		{"a package without a test", failed("b", "TestOnce") + "FAIL\texample.org/c\t0.2s\n", false, "without one of its tests"},
		{"a package that does not build", failed("b", "TestOnce") + "FAIL\texample.org/c [build failed]\n", false, "crashed or does not build"},
		{"a crash", "--- FAIL: TestOnce (0.10s)\npanic: runtime error [recovered]\n" + failed("b", "TestOnce"), false, "crashed"},
		{"out of time", "panic: test timed out after 30m0s\nFAIL\texample.org/b\t1800.0s\n", false, "crashed"},
		{"a race", "WARNING: DATA RACE\n" + failed("b", "TestOnce"), false, "crashed"},
	} {
		log := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(log, []byte(x.log), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("../../scripts/again", log)
		cmd.Env = append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"), "BOCAGE_SEED=7")
		out, err := cmd.CombinedOutput()
		if (err == nil) != x.passes || !strings.Contains(string(out), x.want) {
			t.Errorf("%s: %v, want passing %v and %q:\n%s", x.name, err, x.passes, x.want, out)
		}
	}
}
