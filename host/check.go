package host

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Check is one question about a machine or an installation. Checks are entries of
// tables: adding one is adding an entry.
type Check struct {
	// Code names it for scripts: area.thing. It is never used for another thing.
	Code     string
	Severity Severity
	// Cure says, in one line, what to do if it fails. An Answer may know better.
	Cure string
	Ask  func(ctx context.Context) Answer
}

// Severity says what a failed check means.
type Severity string

// Severities.
const (
	Needed   Severity = "needed"   // nothing works without it
	Degraded Severity = "degraded" // something is not done that should be, or will soon not be
	Advice   Severity = "advice"   // it works; it would work better
)

// Answer is what a check found.
type Answer struct {
	State  State
	Detail string
	Cure   string // instead of the check's own; empty: that
}

// State is the outcome of a check.
type State string

// States.
const (
	Passed  State = "ok"
	Failed  State = "failed"
	Unknown State = "unknown" // it could not be asked; Detail says why
	Skipped State = "skipped" // it has nothing to ask here
)

// Well, Ill, Unclear and Apart make answers.
func Well(format string, args ...any) Answer {
	return Answer{State: Passed, Detail: fmt.Sprintf(format, args...)}
}

// Ill is an answer of a check that fails.
func Ill(format string, args ...any) Answer {
	return Answer{State: Failed, Detail: fmt.Sprintf(format, args...)}
}

// Unclear is the answer of a check that could not be asked.
func Unclear(err error) Answer { return Answer{State: Unknown, Detail: err.Error()} }

// Apart is the answer of a check that has nothing to ask here.
func Apart(format string, args ...any) Answer {
	return Answer{State: Skipped, Detail: fmt.Sprintf(format, args...)}
}

// CuredBy returns the answer with a cure that knows more than the check's.
func (a Answer) CuredBy(format string, args ...any) Answer {
	a.Cure = fmt.Sprintf(format, args...)
	return a
}

// Finding is a check with its answer.
type Finding struct {
	Code     string   `json:"code"`
	State    State    `json:"state"`
	Severity Severity `json:"severity"`
	Detail   string   `json:"detail"`
	// Cure is what to do if the check failed; or, if that is known, to have it asked.
	Cure string `json:"cure,omitempty"`
}

// checkPatience bounds one check.
const checkPatience = 5 * time.Second

// Examine asks the checks in their order. It changes nothing.
func Examine(ctx context.Context, checks []Check) []Finding {
	findings := make([]Finding, 0, len(checks))
	for _, check := range checks {
		attempt, cancel := context.WithTimeout(ctx, checkPatience)
		answer := check.Ask(attempt)
		cancel()
		f := Finding{Code: check.Code, State: answer.State, Severity: check.Severity, Detail: answer.Detail}
		// A check's own cure is that of its failure, which nobody found where it could not
		// be asked.
		switch {
		case f.State == Failed:
			f.Cure = cmp.Or(answer.Cure, check.Cure)
		case f.State == Unknown:
			f.Cure = answer.Cure
		}
		findings = append(findings, f)
	}
	return findings
}

// Missing returns the first needed thing that a machine does not have, or false.
func Missing(ctx context.Context, m Machine) (Finding, bool) {
	for _, f := range Examine(ctx, m.Checks()) {
		if f.Severity == Needed && f.State == Failed {
			return f, true
		}
	}
	return Finding{}, false
}

// Machine is what is asked: its files are below Root, and its network is that of
// the calling thread's namespace.
type Machine struct {
	// Root is where the machine's files are; "" is "/".
	Root string
}

func (m Machine) path(name string) string { return filepath.Join("/", m.Root, name) }

// read reads a small file of the kernel's, without the newline at its end.
func (m Machine) read(name string) (string, error) {
	data, err := os.ReadFile(m.path(name))
	return strings.TrimSpace(string(data)), err
}

// Checks are the machine's own, needed ones first.
func (m Machine) Checks() []Check {
	return append(m.kernelChecks(), m.networkChecks()...)
}
