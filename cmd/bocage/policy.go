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
	return noun("policy", "Suggest, test and plan policy, and roll it out",
		e.suggestCommand(), e.planCommand(), e.policyTestCommand(), e.blastCommand(), e.matrixCommand(),
		e.historyCommand(), e.confirmCommand(), e.promoteCommand(), e.rollbackCommand())
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
