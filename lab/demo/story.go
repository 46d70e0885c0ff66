// Package demo shows the whole loop on a small data center, as a user would see
// it: it runs the bocage command, real servers, a real scanner and a real
// exploit request in network namespaces, and believes nothing that it has not
// measured. Every line it prints is an assertion that held.
//
// It touches nothing outside its own namespaces and folder, and leaves nothing.
package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// teller prints what happened, with the time since the beginning.
type teller struct {
	out   io.Writer
	begun time.Time
}

func (t *teller) chapter(number int, title string) {
	fmt.Fprintf(t.out, "\n%d. %s\n", number, title)
}

func (t *teller) held(format string, args ...any) {
	fmt.Fprintf(t.out, "   %6.1f s  ✓ %s\n", time.Since(t.begun).Seconds(), fmt.Sprintf(format, args...))
}

func (t *teller) show(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Fprintf(t.out, "             │ %s\n", strings.TrimRight(line, "\n"))
	}
}

// command runs the bocage binary as a user does.
type command struct {
	program string
	runDir  string
}

// outcome is what a user sees of a command.
type outcome struct {
	out, err string
	code     int
}

func (c command) run(ctx context.Context, stdin string, args ...string) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.program, append([]string{"--run-dir", c.runDir}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	result := outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		err = nil
	}
	if err != nil {
		return result, fmt.Errorf("bocage %s: %w: %s", strings.Join(args, " "), err, result.err)
	}
	return result, nil
}

// must runs a command that has to end with the given exit code.
func (c command) must(ctx context.Context, code int, stdin string, args ...string) (outcome, error) {
	result, err := c.run(ctx, stdin, args...)
	if err == nil && result.code != code {
		err = fmt.Errorf("bocage %s: exit code %d, want %d:\n%s%s", strings.Join(args, " "), result.code, code, result.out, result.err)
	}
	return result, err
}

// read decodes the JSON that a command prints.
func (c command) read(ctx context.Context, into any, args ...string) error {
	result, err := c.must(ctx, 0, "", args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(result.out), into); err != nil {
		return fmt.Errorf("bocage %s: %w: %.200s", strings.Join(args, " "), err, result.out)
	}
	return nil
}

// within tries until it holds, looking often, and says what it waited for. A try
// that holds with an error ends the waiting: it cannot hold any more.
func within(ctx context.Context, limit time.Duration, what string, holds func() (bool, error)) (time.Duration, error) {
	begun := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := holds()
		if ok {
			return time.Since(begun), err
		}
		if time.Since(begun) > limit {
			return 0, errors.Join(fmt.Errorf("within %s: %s: did not happen", limit, what), err)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
	}
}

func write(dir, name, text string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}
