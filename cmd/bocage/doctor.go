package main

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/node"
)

func (e *env) doctorCommand() *cobra.Command {
	cfg := node.Config{Agent: true, Controller: true}
	failAt := string(host.Degraded)
	cmd := &cobra.Command{Use: "doctor [CODE...]", Short: "Check this machine and what runs on it, with a cure for whatever fails",
		Long: `Check this machine and the agent and controller on it; nothing is changed. Each
check has a code, such as kernel.tcx or dataplane.links; name some, or the area
before the dot, to ask only these. The exit code is 5 if something fails that an
agent needs, 1 if something is not done that should be, else 0; --fail-at says
from which severity on: needed, degraded or advice.`,
		Example: "  bocage doctor\n  bocage doctor dataplane agent.connected -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			severities := []host.Severity{host.Needed, host.Degraded, host.Advice}
			most := slices.Index(severities, host.Severity(failAt))
			if most < 0 {
				return usage("--fail-at: %q is not needed, degraded or advice", failAt)
			}
			cfg.RunDir, cfg.TrustDomain, cfg.Version, cfg.Logger = e.runDir, e.trustDomain, version, e.logger(slog.LevelWarn)
			checks, err := node.Doctor(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			if checks, err = chosen(checks, args); err != nil {
				return err
			}
			findings := host.Examine(cmd.Context(), checks)
			switch e.output {
			case "json", "jsonl", "yaml":
				err = printEach(e, findings)
			default:
				e.printFindings(findings)
			}
			if err != nil {
				return err
			}
			return verdictOf(findings, severities[:most+1])
		}}
	e.nodeFlags(cmd, &cfg)
	cmd.Flags().StringVar(&failAt, "fail-at", failAt, "least severity that makes the exit code other than 0")
	e.outputFlag(cmd, answerForms)
	return cmd
}

// chosen keeps the checks that are named by code or by area; all if none is.
func chosen(checks []host.Check, names []string) ([]host.Check, error) {
	if len(names) == 0 {
		return checks, nil
	}
	var kept []host.Check
	for _, c := range checks {
		area, _, _ := strings.Cut(c.Code, ".")
		if slices.Contains(names, c.Code) || slices.Contains(names, area) {
			kept = append(kept, c)
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(kept, func(c host.Check) bool { return c.Code == name || strings.HasPrefix(c.Code, name+".") }) {
			return nil, usage("there is no check %q: bocage doctor lists them", name)
		}
	}
	return kept, nil
}

// lack is why checks could not be asked, and what would help.
type lack struct{ detail, cure string }

// printFindings lists what passed shortly and what did not with its cure; and what
// could not be asked by what was missing, each once.
func (e *env) printFindings(findings []host.Finding) {
	marks := map[host.State]string{host.Passed: "✓", host.Failed: "✗", host.Skipped: "·"}
	apart := 0
	var unasked []lack
	codes := map[lack][]string{}
	for _, f := range findings {
		if f.State == host.Unknown {
			why := lack{f.Detail, f.Cure}
			if codes[why] == nil {
				unasked = append(unasked, why)
			}
			codes[why] = append(codes[why], f.Code)
			continue
		}
		if f.State == host.Skipped && len(findings) > 1 {
			apart++
			continue
		}
		mark := marks[f.State]
		if f.State == host.Failed && f.Severity != host.Needed {
			mark = "!"
		}
		fmt.Fprintf(e.out, "%s %-24s %s\n", mark, f.Code, f.Detail)
		if f.Cure != "" {
			fmt.Fprintf(e.out, "  %s: %s\n", f.Severity, f.Cure)
		}
	}
	for _, why := range unasked {
		fmt.Fprintf(e.out, "? not asked: %s\n", why.detail)
		if why.cure != "" {
			fmt.Fprintf(e.out, "  %s\n", why.cure)
		}
		fmt.Fprintf(e.out, "  %s\n", strings.Join(codes[why], ", "))
	}
	if apart > 0 {
		fmt.Fprintf(e.out, "· %d more %s nothing to ask here: see -o json\n", apart, either(apart, "check has", "checks have"))
	}
}

// verdictOf is the outcome as an exit code.
func verdictOf(findings []host.Finding, counted []host.Severity) error {
	failed := map[host.Severity]int{}
	for _, f := range findings {
		if f.State == host.Failed && slices.Contains(counted, f.Severity) {
			failed[f.Severity]++
		}
	}
	if n := failed[host.Needed]; n > 0 {
		return &exitError{exitNotReady, fmt.Sprintf("%d %s missing that an agent needs", n, plural(n, "thing"))}
	}
	if n := failed[host.Degraded] + failed[host.Advice]; n > 0 {
		return &exitError{exitFailed, fmt.Sprintf("%d of %d checks failed", n, len(findings))}
	}
	return nil
}
