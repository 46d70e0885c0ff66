package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/recognition/lake"
)

// marks tell verdicts apart by shape and word, never by colour alone.
var marks = map[bocage.Verdict]string{
	bocage.VerdictNone: "·", bocage.VerdictAllow: "✓", bocage.VerdictInspect: "◎", bocage.VerdictDrop: "✗", bocage.VerdictReject: "⊘", bocage.VerdictDecoy: "◆",
}

func (e *env) observeCommand() *cobra.Command {
	var query bocage.FlowsQuery
	var since time.Duration
	var verdict, protocol string
	cmd := &cobra.Command{Use: "observe", Short: "Show flows with identities, verdict and reason, and what would be refused",
		Args:    cobra.NoArgs,
		Example: "  bocage observe -f\n  bocage observe --verdict drop --to shop/db --since 10m\n  bocage observe --would-refuse",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if verdict != "" {
				if err := query.Verdict.UnmarshalText([]byte(verdict)); err != nil {
					return usage("--verdict: %v", err)
				}
			}
			if protocol != "" {
				if err := query.Protocol.UnmarshalText([]byte(protocol)); err != nil {
					return usage("--protocol: %v", err)
				}
			}
			for _, end := range [][2]string{{"--from", query.From}, {"--to", query.To}} {
				if err := flowEnd(end[0], end[1]); err != nil {
					return err
				}
			}
			if since < 0 || query.Limit < 0 {
				return usage("--since and --limit cannot be negative")
			}
			if since > 0 {
				query.Since = time.Now().Add(-since)
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			e.endless = query.Follow
			seen := false
			err = c.Flows(cmd.Context(), query, func(record bocage.FlowRecord) error { seen = true; return e.printFlow(record) })
			if err == nil && !seen && !query.Follow {
				fmt.Fprintln(e.err, "no flow that was asked for has been recorded: -f waits for some")
			}
			return err
		}}
	flags := cmd.Flags()
	flags.BoolVarP(&query.Follow, "follow", "f", false, "go on showing flows as they happen")
	flags.StringVar(&query.From, "from", "", "source: namespace/name, namespace/, address or prefix")
	flags.StringVar(&query.To, "to", "", "destination, likewise")
	flags.Uint16Var(&query.Port, "port", 0, "destination port")
	flags.StringVar(&protocol, "protocol", "", "TCP, UDP, ICMP, ...")
	flags.StringVar(&verdict, "verdict", "", "allow, inspect, drop, reject or decoy")
	flags.BoolVar(&query.WouldRefuse, "would-refuse", false, "only what passes because its scope merely observes")
	flags.DurationVar(&since, "since", 0, "how far back, such as 10m")
	flags.IntVar(&query.Limit, "limit", 0, "stop after so many flows")
	e.outputFlag(cmd, streamForms)
	return cmd
}

func (e *env) printFlow(record bocage.FlowRecord) error {
	if e.output == "json" || e.output == "jsonl" || e.output == "" && !e.terminal {
		return json.NewEncoder(e.out).Encode(record)
	}
	_, err := fmt.Fprintln(e.out, flowLine(record, e.output == "wide"))
	return err
}

// flowLine is one flow for people.
func flowLine(r bocage.FlowRecord, wide bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s → %s %s", moment(r.Time),
		end(r.SourceWorkload, r.SourceAddress), end(r.DestinationWorkload, r.DestinationAddress), r.Protocol)
	if r.Protocol.HasPorts() {
		fmt.Fprintf(&b, "/%d", r.DestinationPort)
	}
	fmt.Fprintf(&b, "  %s %s", marks[r.Verdict], r.Verdict)
	if r.Would != r.Verdict && r.Would != bocage.VerdictNone {
		fmt.Fprintf(&b, ", would %s %s", marks[r.Would], r.Would)
	}
	fmt.Fprintf(&b, "  %s", r.Reason)
	if r.Decision != 0 {
		fmt.Fprintf(&b, " g%d %s", r.Generation, r.Decision)
	}
	if r.Decider != "" {
		fmt.Fprintf(&b, " by %s", r.Decider)
	}
	if r.Spoken != bocage.SpeechUnknown {
		fmt.Fprintf(&b, ", speaks %s", r.Spoken)
	}
	if r.Greeting != nil {
		fmt.Fprintf(&b, ", %s", greetingText(r.Greeting))
	}
	if r.Kind != bocage.EventStart || wide {
		what := r.Kind.String()
		if r.Kind == bocage.EventRefused && r.Verdict.Allowed() {
			what = "would be refused" // its scope merely observes
		}
		fmt.Fprintf(&b, "  [%s", what)
		if r.Packets > 0 {
			fmt.Fprintf(&b, " %d %s %d B", r.Packets, either(int(r.Packets), "packet", "packets"), r.Bytes)
		}
		b.WriteString("]")
	}
	if wide {
		fmt.Fprintf(&b, "  host %s, %s → %s:%d", r.Host, r.SourceAddress, r.DestinationAddress, r.DestinationPort)
	}
	return b.String()
}

// greetingText is what a client of TLS asked for. It is the client's word: quoted.
func greetingText(g *bocage.Greeted) string {
	var b strings.Builder
	switch {
	case g.Ambiguous:
		return "asked for whom nobody can tell: the same bytes came twice and otherwise"
	case g.ServerName == "":
		b.WriteString("asked for nobody by name")
	default:
		fmt.Fprintf(&b, "asked for %q", g.ServerName)
	}
	if g.Hidden {
		b.WriteString(", with another name encrypted")
	}
	for i, protocol := range g.ALPN {
		fmt.Fprintf(&b, "%s%q", []string{", offered ", ", "}[min(i, 1)], protocol)
	}
	return b.String()
}

func end(workload, address string) string {
	if workload != "" {
		return workload
	}
	if address == "" {
		return "unknown"
	}
	return address
}

func (e *env) huntCommand() *cobra.Command {
	var limit int
	cmd := &cobra.Command{Use: "hunt SQL", Short: "Ask the flow history a question in SQL",
		Long:    huntHelp(),
		Example: `  bocage hunt "SELECT source, destination, destination_port, count(*) n FROM flows GROUP BY ALL ORDER BY n DESC LIMIT 10"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(args[0]) == "" {
				return usage("the question is empty: write it in SQL, such as \"SELECT * FROM flows LIMIT 10\"")
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			result, err := c.Hunt(cmd.Context(), args[0], limit)
			if err != nil {
				return err
			}
			return e.printRows(result)
		}}
	cmd.Flags().IntVar(&limit, "limit", 1000, "largest number of rows")
	e.outputFlag(cmd, answerForms)
	return cmd
}

// list shows all objects of a kind for a person's command.
func (e *env) list(ctx context.Context, kindName string) error {
	kind, err := kindArgument(kindName)
	if err != nil {
		return err
	}
	c, err := e.client()
	if err != nil {
		return err
	}
	objects, _, err := c.List(ctx, kind, client.ListOptions{})
	if err != nil {
		return err
	}
	return e.printObjects(kind, objects)
}

// huntHelp describes the tables, so that a question can be written without asking.
func huntHelp() string {
	var b strings.Builder
	b.WriteString("Ask the flow history a question in SQL. The query runs in a process of its own,\nread-only, with limited memory and time.\n")
	for _, view := range lake.Views() {
		fmt.Fprintf(&b, "\n%s: %s\n", view.Name, view.Doc)
		for _, column := range view.Columns {
			fmt.Fprintf(&b, "  %-18s %s\n", column.Name, column.Doc)
		}
	}
	return b.String()
}
