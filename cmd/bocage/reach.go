package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
)

func (e *env) blastCommand() *cobra.Command {
	var from offline
	var query bocage.BlastQuery
	var generation string
	cmd := &cobra.Command{Use: "blast FROM", Short: "Say what can be reached from somewhere, hop by hop, along allowed flows",
		Long: `Say what can be reached from somewhere, hop by hop, along flows that policy
allows, with a shortest way to each workload. FROM is namespace/name of a
workload, "namespace/" for all of a namespace, or an address, such as one outside.
A workload weighs 1, or the number in its label bocage.dev/weight. With -f the
policy is that of files, otherwise the one in force, or of the --generation.

Whoever is cut off now by a quarantine or a threat condition is left out. With
--lasting they count as over, as they do for a guardrail's blastRadius.`,
		Example: "  bocage policy blast shop/web --hops 2\n  bocage policy blast 198.51.100.1 -f policy/ --uninspected",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if query.Hops < 0 {
				return usage("--hops %d: 0 is to the end, otherwise say how far to look", query.Hops)
			}
			if query.LeastWeight < 0 {
				return usage("--least-weight %d is negative", query.LeastWeight)
			}
			if generation != "" {
				if from.given() {
					return usage("--generation is of a controller: leave it out, or -f")
				}
				var err error
				if query.Generation, err = generationNumber(generation); err != nil {
					return err
				}
			}
			query.From = args[0]
			result, err := e.blast(cmd, &from, query)
			if err != nil {
				return err
			}
			return e.printBlast(result, query)
		}}
	from.flags(cmd)
	cmd.Flags().IntVar(&query.Hops, "hops", 0, "how far to look (default: to the end)")
	cmd.Flags().BoolVar(&query.Uninspected, "uninspected", false, "leave out flows that the inspection engine sees")
	cmd.Flags().BoolVar(&query.Lasting, "lasting", false, "as if quarantines and threat conditions were over")
	cmd.Flags().IntVar(&query.LeastWeight, "least-weight", 0, "what a workload counts at least, whatever its label says")
	cmd.Flags().StringVar(&generation, "generation", "", "ask a generation that is kept, such as g41, also one that is kept back")
	e.outputFlag(cmd, answerForms)
	return cmd
}

func (e *env) blast(cmd *cobra.Command, from *offline, query bocage.BlastQuery) (bocage.BlastResult, error) {
	if from.given() {
		simulator, _, err := from.load(e)
		if err != nil {
			return bocage.BlastResult{}, err
		}
		return simulator.Blast(query)
	}
	c, err := e.client()
	if err != nil {
		return bocage.BlastResult{}, err
	}
	return c.Blast(cmd.Context(), query)
}

func (e *env) printBlast(r bocage.BlastResult, query bocage.BlastQuery) error {
	switch e.output {
	case "json", "yaml":
		return e.printValue(r)
	case "jsonl":
		for _, target := range r.Reached {
			if err := e.printValue(target); err != nil {
				return err
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	for _, target := range r.Reached {
		fmt.Fprintf(table, "%d\t%s\t%s\n", target.Hops, target.Workload, strings.Join(target.Path, " → "))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	within := "in any number of hops"
	if query.Hops > 0 {
		within = fmt.Sprintf("in %d %s", query.Hops, plural(query.Hops, "hop"))
	}
	if query.Lasting {
		within += ", once quarantines and threat conditions are over"
	}
	fmt.Fprintf(e.out, "from %s, %d of %d workloads can be reached %s; together they weigh %d\n", fewOf(r.From, 3), len(r.Reached), r.Total, within, r.Weight)
	return nil
}

func (e *env) matrixCommand() *cobra.Command {
	var from offline
	var namespaces []string
	cmd := &cobra.Command{Use: "matrix", Short: "Print who may open what to whom, among all workloads",
		Long: `Print who may open what to whom, among all workloads or those of some namespaces.
With -f the policy is that of files, otherwise the one in force.`,
		Example: "  bocage policy matrix -n shop\n  bocage policy matrix -f policy/ -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from.given() {
				simulator, _, err := from.load(e)
				if err != nil {
					return err
				}
				return e.printMatrix(simulator, namespaces)
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			matrix, err := c.Matrix(cmd.Context(), namespaces)
			if err != nil {
				return err
			}
			switch e.output {
			case "json", "yaml":
				return e.printValue(matrix)
			case "jsonl":
				for _, cell := range matrix.Cells {
					if err := e.printValue(cell); err != nil {
						return err
					}
				}
				return nil
			}
			table := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
			for _, cell := range matrix.Cells {
				fmt.Fprintf(table, "%s\t→ %s\t%s\n", cell.From, cell.To, portsText(cell.Ports))
			}
			return table.Flush()
		}}
	from.flags(cmd)
	cmd.Flags().StringSliceVarP(&namespaces, "namespace", "n", nil, "only workloads of these namespaces (default: all)")
	e.outputFlag(cmd, answerForms)
	return cmd
}
