package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bocage.dev/bocage"
)

// invoke runs one command line in a place where no controller is.
func invoke(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	e := &env{in: strings.NewReader(stdin), out: &out, err: &errs}
	code = run(t.Context(), e, append([]string{"--run-dir", t.TempDir()}, args...))
	return out.String(), errs.String(), code
}

// TestExitCodes holds what scripts rely on, with what people are told.
func TestExitCodes(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("apiVersion: bocage.dev/v1\nkind: Scope\nmetadata: {name: s}\nspec: {mod: enforce}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		out  string
		err  string
	}{
		{[]string{"version"}, exitOK, version, ""},
		{[]string{"graph"}, exitOK, "Ruleset", ""},
		{[]string{"completion", "bash"}, exitOK, "bash completion", ""},
		{[]string{"nonsense"}, exitUsage, "", "unknown command"},
		{[]string{"get"}, exitUsage, "", "arg(s)"},
		{[]string{"get", "foo"}, exitUsage, "", `there is no kind "foo"; there are: applications`},
		{[]string{"get", "apps", "-o", "xml"}, exitUsage, "", `-o "xml" is not one of table`},
		{[]string{"get", "application", "api"}, exitUsage, "", "needs its namespace"},
		{[]string{"apply"}, exitUsage, "", "name the files with -f"},
		{[]string{"observe", "--verdict", "maybe"}, exitUsage, "", "is not one of"},
		{[]string{"explain", "a/b", "c/d"}, exitUsage, "", "needs a destination port"},
		{[]string{"explain", "a/b", "c/d", "99999"}, exitUsage, "", "is not a number from 0 to 65535"},
		{[]string{"explain", "a/b", "c/d", "80", "--protocol", "xyz"}, exitUsage, "", "neither TCP"},
		{[]string{"--bogus"}, exitUsage, "", "unknown flag"},
		{[]string{"apply", "-f", bad}, exitFailed, "", bad + ":4: spec.mod: is unknown: did you mean mode?"},
		{[]string{"apply", "-f", "/does/not/exist"}, exitFailed, "", "/does/not/exist"},
		{[]string{"get", "hosts"}, exitFailed, "", "bocage up"},
		{[]string{"--server", "https://127.0.0.1:1", "get", "hosts"}, exitUsage, "", "--server needs --ca"},
		{[]string{"quarantine", "add", "Not A Name"}, exitFailed, "", "is not namespace/name of a workload"},
		{[]string{"decoy", "add", "x", "--port", "0"}, exitFailed, "", "needs a port"},
		{[]string{"controller", "--host", "Not A Name"}, exitFailed, "", "is not a lower-case DNS label"},
	} {
		out, errs, code := invoke(t, "", c.args...)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errs, c.err) {
			t.Errorf("bocage %s: exit code %d, want %d\nstdout: %.200s\nstderr: %.400s\nwant %q and %q", strings.Join(c.args, " "), code, c.code, out, errs, c.out, c.err)
		}
	}
}

func TestCompareNames(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"g2", "g10", -1}, {"g10", "g2", 1}, {"a", "b", -1}, {"g2", "g2", 0}, {"h10", "i2", -1}} {
		if got := compareNames(&bocage.ObjectMeta{Name: c.a}, &bocage.ObjectMeta{Name: c.b}); got != c.want {
			t.Errorf("%s and %s: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
