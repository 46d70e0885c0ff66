package lake

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"bocage.dev/bocage"
)

// Limits of answers.
const (
	defaultRows = 1000
	maxRows     = 100_000
	maxAnswer   = 256 << 20 // bytes of the child's output
	maxLine     = 8 << 20
	maxSQL      = 64 << 10
	maxCell     = 64 << 10 // bytes of one text
)

// ErrNoAnswers is returned where this build or configuration cannot run questions.
var ErrNoAnswers = errors.New("questions to the history cannot be answered here")

// question is what the child is asked: one line of JSON on its standard input.
// After it, the end of input means that nobody waits for the answer any more.
type question struct {
	Dir     string              `json:"dir"`
	Files   map[string][]string `json:"files"` // by class
	SQL     string              `json:"sql"`
	Limit   int                 `json:"limit"`
	Memory  int64               `json:"memory"` // bytes
	Threads int                 `json:"threads"`
}

// answer is one line of the child's standard output: the columns, then rows, then
// the end or an error.
type answer struct {
	Columns   []string `json:"columns,omitempty"`
	Row       []any    `json:"row,omitempty"`
	Done      bool     `json:"done,omitempty"`
	Truncated bool     `json:"truncated,omitempty"`
	Error     string   `json:"error,omitempty"`
}

// Query answers one SELECT over the views that Views lists, with at most limit
// rows (0: 1,000). Times come as RFC 3339 text.
func (l *Lake) Query(ctx context.Context, sql string, limit int) (bocage.HuntResult, error) {
	if limit <= 0 {
		limit = defaultRows
	}
	return l.ask(ctx, sql, min(limit, maxRows))
}

func (l *Lake) ask(ctx context.Context, sql string, limit int) (bocage.HuntResult, error) {
	if len(l.cfg.QueryProgram) == 0 {
		return bocage.HuntResult{}, fmt.Errorf("%w: no program for them is configured", ErrNoAnswers)
	}
	if len(sql) > maxSQL {
		return bocage.HuntResult{}, fmt.Errorf("the question has %d bytes: at most %d are read", len(sql), maxSQL)
	}
	select {
	case l.asking <- struct{}{}:
		defer func() { <-l.asking }()
	case <-ctx.Done():
		return bocage.HuntResult{}, fmt.Errorf("wait for %d earlier questions: %w", maxQuestion, ctx.Err())
	}
	files, release := l.snapshot()
	defer release()
	l.counts.questions.Add(1)
	result, err := l.child(ctx, question{
		Dir: l.cfg.Dir, Files: files, SQL: sql, Limit: limit, Memory: l.cfg.QueryMemory, Threads: l.cfg.QueryThreads,
	})
	if err != nil {
		l.counts.stopped.Add(1)
	}
	return result, err
}

// child runs one question in a process of its own, which does not outlive it.
func (l *Lake) child(ctx context.Context, q question) (bocage.HuntResult, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.cfg.QueryTime, errDeadline)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cmd := exec.CommandContext(ctx, l.cfg.QueryProgram[0], l.cfg.QueryProgram[1:]...)
	cmd.Env = append(childEnvironment(), lakeEnv+"="+l.cfg.Dir)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = childAttributes()
	stderr := &tail{}
	cmd.Stderr = stderr
	input, err := cmd.StdinPipe() // stays open until the child is done: its end ends the child
	if err != nil {
		return bocage.HuntResult{}, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return bocage.HuntResult{}, err
	}
	if err := cmd.Start(); err != nil {
		return bocage.HuntResult{}, fmt.Errorf("start %s: %w", l.cfg.QueryProgram[0], err)
	}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watchMemory(ctx, stop, cmd.Process.Pid, q.Memory+besides)
	}()
	defer func() { <-watched }()
	defer stop(nil)
	encoded, err := json.Marshal(q)
	if err == nil {
		_, err = input.Write(append(encoded, '\n'))
	}
	var result bocage.HuntResult
	if err == nil {
		result, err = readAnswer(output)
	}
	if err != nil {
		stop(err)
	}
	_ = input.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(output, maxAnswer))
	waited := cmd.Wait()
	var told sqlError
	switch cause := context.Cause(ctx); {
	case errors.As(err, &told):
		return bocage.HuntResult{}, told
	case errors.Is(cause, errDeadline):
		return bocage.HuntResult{}, fmt.Errorf("the question was stopped after %s: ask for less time or fewer rows", l.cfg.QueryTime)
	case errors.Is(cause, errMemory):
		return bocage.HuntResult{}, fmt.Errorf("the question was stopped: it wanted more than its %d MiB of memory", l.cfg.QueryMemory>>20)
	case err == nil:
		return result, nil
	case cause != nil && !errors.Is(cause, err):
		return bocage.HuntResult{}, cause
	default:
		return bocage.HuntResult{}, fmt.Errorf("the question's process ended early (%w): %s",
			cmpErr(waited, err), stderr)
	}
}

// Why a child is stopped.
var (
	errDeadline = errors.New("deadline of the question")
	errMemory   = errors.New("memory of the question")
)

// besides is what the child itself needs of memory, beyond what the engine is
// allowed. The engine does not count every string that it builds, so the kernel's
// count decides in the end.
const besides = 256 << 20

const memoryEvery = 20 * time.Millisecond

func watchMemory(ctx context.Context, stop context.CancelCauseFunc, pid int, limit int64) {
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if resident(pid) > limit {
				stop(errMemory)
			}
		}
	}
}

func cmpErr(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

// sqlError is what the engine said of a question.
type sqlError string

func (e sqlError) Error() string { return string(e) }

// readAnswer reads the child's output. Numbers keep their digits.
func readAnswer(output io.Reader) (bocage.HuntResult, error) {
	result := bocage.HuntResult{Columns: []string{}, Rows: [][]any{}}
	lines := bufio.NewScanner(io.LimitReader(output, maxAnswer))
	lines.Buffer(make([]byte, 64<<10), maxLine)
	for lines.Scan() {
		decoder := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		decoder.UseNumber()
		var line answer
		if err := decoder.Decode(&line); err != nil {
			return result, fmt.Errorf("read the answer: %w", err)
		}
		switch {
		case line.Error != "":
			return result, sqlError(line.Error)
		case line.Done:
			result.Truncated = line.Truncated
			return result, nil
		case line.Columns != nil:
			result.Columns = line.Columns
		default:
			result.Rows = append(result.Rows, line.Row)
		}
	}
	if err := lines.Err(); err != nil {
		return result, fmt.Errorf("read the answer: %w", err)
	}
	return result, io.ErrUnexpectedEOF
}

// childEnvironment is next to nothing: a question has no use for secrets.
func childEnvironment() []string {
	env := []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "LANG=C.UTF-8", "TZ=UTC", "GOMAXPROCS=2", "GOTRACEBACK=single"}
	for _, name := range []string{"GOCOVERDIR", "LD_LIBRARY_PATH"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// tail keeps the first bytes of what a child complains of.
type tail struct{ text []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b[:min(len(b), 512-min(512, len(t.text)))]...)
	return len(b), nil
}

func (t *tail) String() string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(t.text)), "\n")
	if line == "" {
		return "it said nothing"
	}
	return line
}
