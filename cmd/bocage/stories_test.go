package main

import (
	"flag"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// rewrite has the stories' expected output replaced by what comes out.
var rewrite = flag.Bool("rewrite", false, "rewrite the stories' golden output")

// TestMain lets stories run this program.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"bocage": main})
}

// TestStories tells what people do with the commands that need no controller.
func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/stories",
		UpdateScripts: *rewrite,
		Setup: func(env *testscript.Env) error {
			env.Setenv("TZ", "UTC")
			return os.Mkdir(env.Getenv("WORK")+"/run", 0o700)
		},
	})
}
