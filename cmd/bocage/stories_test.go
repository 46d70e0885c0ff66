package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
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
	readme := offlineReadme(t)
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/stories",
		UpdateScripts: *rewrite,
		Setup: func(env *testscript.Env) error {
			env.Setenv("TZ", "UTC")
			work := env.Getenv("WORK")
			if err := os.WriteFile(filepath.Join(work, "readme.sh"), readme, 0o600); err != nil {
				return err
			}
			return os.Mkdir(work+"/run", 0o700)
		},
	})
}

// offlineReadme are the lines of README.md that need no controller: those that say
// what is there, and those that ask files.
func offlineReadme(t *testing.T) []byte {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var lines []byte
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(text, -1) {
		if bytes.Contains(block[1], []byte("cat > workloads.yaml")) || bytes.Contains(block[1], []byte("bocage simulate")) {
			lines = append(lines, block[1]...)
		}
	}
	return lines
}
