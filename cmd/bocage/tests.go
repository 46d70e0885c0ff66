package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
)

func (e *env) policyTestCommand() *cobra.Command {
	var from offline
	var live bool
	cmd := &cobra.Command{Use: "test [-f FILE...]", Short: "Run PolicyTests: on policy in files, or on the policy in force",
		Long: `Run PolicyTests. With -f everything comes from files, policy, inventory and tests,
and no controller is needed, as in CI. Without, those that are declared are run on
the policy in force. With -f and --live, the files' tests are run on what would be
in force if the rest of the files were applied.

The exit code is 1 if a case fails. -o wide lists those that pass, too.`,
		Example: "  bocage policy test -f policy/ -f inventory.yaml\n  bocage policy test\n  bocage policy test --live -f change.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			results, err := e.runTests(cmd, &from, live)
			if err != nil {
				return err
			}
			return e.printTests(results)
		}}
	from.flags(cmd)
	cmd.Flags().BoolVar(&live, "live", false, "ask the controller, with the files applied to what is in force")
	e.outputFlag(cmd, answerForms)
	return cmd
}

func (e *env) runTests(cmd *cobra.Command, from *offline, live bool) ([]bocage.TestResult, error) {
	if from.given() && !live {
		simulator, gathered, err := from.load(e)
		if err != nil {
			return nil, err
		}
		if len(gathered.Tests) == 0 {
			return nil, fmt.Errorf("the files hold no PolicyTest: nothing was tested")
		}
		return simulator.Test(gathered.Tests), nil
	}
	documents, err := e.readSome(from.files)
	if err != nil {
		return nil, err
	}
	c, err := e.client()
	if err != nil {
		return nil, err
	}
	results, err := c.Test(cmd.Context(), documents)
	if err == nil && len(results) == 0 {
		return nil, fmt.Errorf("no PolicyTest is declared: nothing was tested")
	}
	return results, err
}

func (e *env) printTests(results []bocage.TestResult) error {
	failed := 0
	for _, r := range results {
		if !r.Passed {
			failed++
		}
	}
	switch e.output {
	case "json", "yaml":
		if err := e.printValue(results); err != nil {
			return err
		}
	case "jsonl":
		for _, r := range results {
			if err := e.printValue(r); err != nil {
				return err
			}
		}
	default:
		for _, r := range results {
			if !r.Passed || e.output == "wide" {
				e.printTest(r)
			}
		}
		fmt.Fprintf(e.out, "%d passed, %d failed\n", len(results)-failed, failed)
	}
	if failed > 0 {
		return &exitError{code: exitFailed}
	}
	return nil
}

// printTest shows one case; of one that fails, what was wanted and what came.
func (e *env) printTest(r bocage.TestResult) {
	mark := "✗"
	if r.Passed {
		mark = "✓"
	}
	fmt.Fprintf(e.out, "%s %s, %s", mark, r.Test, oneLine(r.Case))
	if r.Source != "" {
		fmt.Fprintf(e.out, " (%s)", r.Source)
	}
	fmt.Fprintln(e.out)
	if r.Passed {
		return
	}
	if r.Flow != "" {
		fmt.Fprintf(e.out, "    %s\n", oneLine(r.Flow))
	}
	fmt.Fprintf(e.out, "  - want %s\n  + got  %s\n", oneLine(r.Want), oneLine(r.Got))
	if r.By.Source != "" {
		fmt.Fprintf(e.out, "    decided at %s\n", r.By.Source)
	}
	if r.Because != "" {
		fmt.Fprintf(e.out, "    because %s\n", oneLine(r.Because))
	}
}
