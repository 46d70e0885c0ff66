// Command bocage is the whole system in one binary: controller, agent, and the
// command line that people use.
//
// It parses, calls and prints. What it does is in the rooms.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, environment(), os.Args[1:]))
}
