package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
)

func (e *env) policyCommand() *cobra.Command {
	return noun("policy", "Suggest, test and plan policy, and roll it out",
		e.suggestCommand(), e.planCommand(), e.policyTestCommand(), e.blastCommand(), e.matrixCommand(),
		e.historyCommand(), e.confirmCommand(), e.promoteCommand(), e.rollbackCommand(), e.acceptRiskCommand())
}

func (e *env) suggestCommand() *cobra.Command {
	var since time.Duration
	var namespaces []string
	cmd := &cobra.Command{Use: "suggest", Short: "Write Applications that cover the flows that were seen and answered",
		Long: `Write Applications that cover the flows that were seen and answered, as YAML on
standard output. What nobody answered, what looks like a scan, and what is rare
beside the rest is left out and listed on standard error for review. Nothing is
applied.`,
		Example: "  bocage policy suggest -n shop > shop.yaml\n  bocage apply -f shop.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since < 0 {
				return usage("--since cannot be negative")
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			result, err := c.Suggest(cmd.Context(), since, namespaces)
			if err != nil {
				return err
			}
			if len(result.Applications) == 0 {
				if result.Declared > 0 {
					fmt.Fprintf(e.err, "nothing to suggest: what was declared allows %d %s seen\n", result.Declared, either(result.Declared, "kind of flow", "kinds of flow"))
					return e.printSuggestion(bocage.SuggestResult{Review: result.Review, Why: result.Why})
				}
				if len(namespaces) > 0 {
					return fmt.Errorf("no answered flow of a workload%s was seen: `bocage get workloads` lists who is where, `bocage observe -f` shows traffic", inNamespaces(namespaces))
				}
				return fmt.Errorf("no answered flow was seen yet: is there traffic? `bocage observe -f` shows it")
			}
			resources := make([]bocage.Resource, len(result.Applications))
			for i, application := range result.Applications {
				resources[i] = application
			}
			if err := manifest.Write(e.out, resources...); err != nil {
				return err
			}
			return e.printSuggestion(result)
		}}
	cmd.Flags().DurationVar(&since, "since", 0, "how far back to look (default: all that is kept)")
	cmd.Flags().StringSliceVarP(&namespaces, "namespace", "n", nil, "write for these namespaces (default: all)")
	return cmd
}

// printSuggestion says on standard error what a suggestion covers, what it opens
// besides, and what is left out and why.
func (e *env) printSuggestion(result bocage.SuggestResult) error {
	if result.Covered > 0 {
		fmt.Fprintf(e.err, "covers %d %s seen and answered", result.Covered, either(result.Covered, "kind of flow", "kinds of flow"))
		if result.Unseen > 0 {
			fmt.Fprintf(e.err, "; opens %d between pairs that were not seen, since members of one application are taken to be alike", result.Unseen)
		}
		fmt.Fprintln(e.err)
	}
	if len(result.Review) == 0 {
		return nil
	}
	fmt.Fprintf(e.err, "left out for your review, %d %s:\n", len(result.Review), either(len(result.Review), "kind of flow", "kinds of flow"))
	table := tabwriter.NewWriter(e.err, 2, 0, 2, ' ', 0)
	for i, edge := range result.Review {
		why := ""
		if i < len(result.Why) {
			why = result.Why[i]
		}
		fmt.Fprintf(table, "  %s\t→ %s\t%s/%d\t%d seen, %d answered\t%s\n", edge.Source, edge.Destination,
			edge.Protocol, edge.DestinationPort, edge.Flows, edge.Replied, why)
	}
	return table.Flush()
}
