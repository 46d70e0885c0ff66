// Package hosttest gives tests that need the kernel what they need, and takes
// it away again.
//
// A test that calls [Root] is named TestRoot…; it is skipped on a laptop and
// fails where the project's test command runs without root. Everything made
// here is gone when the test ends, however it ends.
package hosttest

import (
	"crypto/rand"
	"encoding/hex"
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"bocage.dev/bocage/host"
)

// RequireRoot is the variable that turns a skipped test into a failed one.
const RequireRoot = "BOCAGE_REQUIRE_ROOT"

// Root skips the test unless it runs as root. With BOCAGE_REQUIRE_ROOT=1 it
// fails the test instead.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv(RequireRoot) == "1" {
		t.Fatalf("needs root, and %s=1 says that skipping is a failure: run it with sudo", RequireRoot)
	}
	t.Skip("needs root: run it with sudo")
}

// ManyAtOnce is for a TestMain whose parallel tests wait for most of their time: four of
// them share a processor, unless -parallel says otherwise.
func ManyAtOnce() {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		_ = flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0)))
	}
}

// Name returns a name that nobody else uses: "bct" and eight hexadecimal
// digits, short enough for a link.
func Name(t testing.TB) string {
	t.Helper()
	var random [4]byte
	rand.Read(random[:])
	return "bct" + hex.EncodeToString(random[:])
}

// Namespace makes a network namespace. At cleanup, processes that are still in
// it are killed and it is deleted.
func Namespace(t testing.TB) string {
	t.Helper()
	Root(t)
	name := Name(t)
	if err := host.CreateNamespace(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Kill(name); err != nil {
			t.Error(err)
		}
		if err := host.DeleteNamespace(name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// Await waits for something that others bring about; after a minute the test has
// failed.
func Await(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("still waiting for %s", what)
		}
	}
}
