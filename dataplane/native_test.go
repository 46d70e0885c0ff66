package dataplane

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// What reads strangers' bytes in the kernel, built natively with the compiler's
// sanitizers: no access outside of a frame, nothing undefined, and readings that
// keep what they promise of prefixes. More rounds: -fuzz of the other targets, or
//
//	go test -run Sanitizers -count 100 ./dataplane/
func TestReadersWithSanitizers(t *testing.T) {
	program := buildNative(t)
	var inputs strings.Builder
	for _, m := range dnsSpecimens(t) {
		fmt.Fprintf(&inputs, "n %x\n", m)
	}
	for _, f := range specimens() {
		fmt.Fprintf(&inputs, "f %x\n", f.bytes())
	}
	for _, c := range captures(t) {
		kind := "s"
		if c.Datagram {
			kind = "d"
		}
		for _, h := range c.Sides() {
			fmt.Fprintf(&inputs, "%s %x\n", kind, h.Bytes)
		}
	}
	run := exec.Command(program, "200000", strconv.FormatUint(newRandom(t).Uint64(), 10))
	run.Stdin = strings.NewReader(inputs.String())
	var out bytes.Buffer
	run.Stdout, run.Stderr = &out, &out
	if err := run.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	t.Log(strings.TrimSpace(out.String()))
}

func buildNative(t testing.TB) (program string) {
	t.Helper()
	compiler, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc")
	}
	program = filepath.Join(t.TempDir(), "native")
	build := exec.Command(compiler, "-O1", "-g", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused",
		"-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=all", "-o", program,
		"bpf/testdata/native.c", "bpf/testdata/native_main.c")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}
