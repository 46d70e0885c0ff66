package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
)

func (e *env) policyCommand() *cobra.Command {
	return noun("policy", "Suggest policy from what was seen, and plan changes before they happen",
		e.suggestCommand(), e.planCommand(), e.historyCommand())
}

func (e *env) suggestCommand() *cobra.Command {
	var since time.Duration
	var namespaces []string
	cmd := &cobra.Command{Use: "suggest", Short: "Write Applications that cover the flows that were seen and answered",
		Long: `Write Applications that cover the flows that were seen and answered, as YAML on
standard output. Rare and unanswered flows are left out and listed on standard
error for review. Nothing is applied.`,
		Example: "  bocage policy suggest -n shop > shop.yaml\n  bocage apply -f shop.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			result, err := c.Suggest(cmd.Context(), since, namespaces)
			if err != nil {
				return err
			}
			if len(result.Applications) == 0 {
				return fmt.Errorf("no answered flow was seen yet: is there traffic? `bocage observe -f` shows it")
			}
			resources := make([]bocage.Resource, len(result.Applications))
			for i, application := range result.Applications {
				resources[i] = application
			}
			if err := manifest.Write(e.out, resources...); err != nil {
				return err
			}
			if len(result.Review) > 0 {
				fmt.Fprintf(e.err, "left out for your review, %d %s:\n", len(result.Review), plural(len(result.Review), "kind of flow"))
				return e.printEdges(e.err, result.Review)
			}
			return nil
		}}
	cmd.Flags().DurationVar(&since, "since", 0, "how far back to look (default: all that is kept)")
	cmd.Flags().StringSliceVarP(&namespaces, "namespace", "n", nil, "write for these namespaces (default: all)")
	return cmd
}

func (e *env) printEdges(out io.Writer, edges []bocage.Edge) error {
	table := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
	for _, edge := range edges {
		fmt.Fprintf(table, "  %s\t→ %s\t%s/%d\t%d seen, %d answered\tlast %s\n", edge.Source, edge.Destination,
			edge.Protocol, edge.DestinationPort, edge.Flows, edge.Replied, edge.Last.Local().Format(time.DateTime))
	}
	return table.Flush()
}

func (e *env) planCommand() *cobra.Command {
	var files []string
	cmd := &cobra.Command{Use: "plan -f FILE...", Short: "Show what declarations would change, without changing it",
		Long: `Show what declarations would change: reach that opens or closes, and proofs that
would fail. The exit code is 0 if nothing would change, 3 if something would, and
1 if the declarations could not be activated.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			documents, err := e.read(files)
			if err != nil {
				return err
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			plan, err := c.Plan(cmd.Context(), documents)
			if err != nil {
				return err
			}
			if e.output != "" && e.output != "table" && e.output != "wide" {
				if err := e.printValue(plan); err != nil {
					return err
				}
			} else if err := e.printPlan(plan); err != nil {
				return err
			}
			return planOutcome(plan)
		}}
	fileFlag(cmd, &files)
	e.outputFlag(cmd)
	return cmd
}

func planOutcome(plan bocage.PlanResult) error {
	if err := plan.Faults.Err(); err != nil {
		return err
	}
	for _, proof := range plan.Proofs {
		if !proof.Holds {
			return &exitError{exitFailed, "a proof fails: applied, this would not be activated"}
		}
	}
	if len(plan.Reach) > 0 {
		return &exitError{code: exitDifference}
	}
	return nil
}

func (e *env) printPlan(plan bocage.PlanResult) error {
	for _, finding := range plan.Findings {
		fmt.Fprintf(e.out, "! %s\n", finding)
	}
	for _, proof := range plan.Proofs {
		mark := "✓"
		if !proof.Holds {
			mark = "✗"
		}
		fmt.Fprintf(e.out, "%s proof: %s (%s)\n", mark, proof.Statement, proof.By)
		if proof.Counterexample != "" {
			fmt.Fprintf(e.out, "  counterexample: %s\n", proof.Counterexample)
		}
	}
	table := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	for _, change := range plan.Reach {
		sign := "~"
		switch {
		case change.After.Allowed() && !change.Before.Allowed():
			sign = "+"
		case change.Before.Allowed() && !change.After.Allowed():
			sign = "-"
		}
		fmt.Fprintf(table, "%s %s\t→ %s\t%s/%s\t%s → %s\t%s\n", sign, change.From, change.To, change.Protocol, change.Ports, change.Before, change.After, change.By)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(plan.Reach) == 0 && len(plan.Faults) == 0 {
		fmt.Fprintln(e.out, "no reach changes")
	}
	if plan.Replayed > 0 {
		fmt.Fprintf(e.out, "replayed %d kinds of recorded flow: %d newly refused, %d newly allowed\n", plan.Replayed, len(plan.NewlyRefused), len(plan.NewlyAllowed))
		edges := make([]bocage.Edge, len(plan.NewlyRefused))
		for i, refused := range plan.NewlyRefused {
			edges[i] = refused.Edge
		}
		return e.printEdges(e.out, edges)
	}
	return nil
}

func (e *env) historyCommand() *cobra.Command {
	cmd := e.listCommand("Generation", "List the generations that are kept")
	cmd.Use = "history"
	return cmd
}
