package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
)

func (e *env) explainCommand() *cobra.Command {
	var protocol, generation, at, name string
	var event bool
	cmd := &cobra.Command{Use: "explain FROM TO [PORT] | explain --event", Short: "Say why a flow gets its verdict: the object and the field, and what would change it",
		Long: `Say why a flow gets its verdict. FROM and TO are namespace/name of a workload or
an address. TO may be a DNS name: what a connection gets to whichever addresses the
name has, and what to those of which more is declared; --name says by which name FROM
knows the address TO. With --event the flows are records of "bocage observe -o json" on
standard input, each explained under the generation that decided it, at its time.
The exit code is 0 if the flow is allowed and 4 if it, or one of many, is refused.`,
		Example: "  bocage explain shop/web shop/api 8080\n  bocage explain dev/red shop/db 5432 --generation g41\n  bocage explain shop/web api.example.com 443\n  bocage explain shop/web 203.0.113.9 443 --name api.example.com\n  bocage observe --verdict drop --limit 1 -o json | bocage explain --event",
		Args:    cobra.MaximumNArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			query, err := explainQuery(args, protocol, generation, at, event)
			if err != nil {
				return err
			}
			if query.Name = name; event && name != "" {
				return usage("--name says by which name TO is known: it belongs to one flow, not to recorded ones")
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			if event {
				return e.explainEvents(cmd, c, query)
			}
			explanation, err := c.Explain(cmd.Context(), query)
			if err != nil {
				return err
			}
			if err := e.printExplanation(explanation); err != nil {
				return err
			}
			if at != "" && query.Generation == 0 {
				e.warnYounger(cmd.Context(), c, query.At, explanation.Generation)
			}
			return explained(explanation.Verdict.Allowed())
		}}
	cmd.Flags().StringVar(&protocol, "protocol", "TCP", "TCP, UDP, ICMP, ...")
	cmd.Flags().StringVar(&generation, "generation", "", "explain under a kept generation, such as g41 (default: the one in force)")
	cmd.Flags().StringVar(&at, "at", "", "the moment to decide for, such as 2026-11-24T18:00:00Z (default: now); by the generation in force now, unless --generation names that of the moment")
	cmd.Flags().StringVar(&name, "name", "", "the DNS name that FROM was told the address TO has")
	cmd.Flags().BoolVar(&event, "event", false, "explain the flow records on standard input")
	e.outputFlag(cmd, answerForms)
	return cmd
}

// warnYounger says where an answer about the past comes from a generation that was
// not made yet then.
func (e *env) warnYounger(ctx context.Context, c *client.Client, at time.Time, number uint64) {
	kind, _ := bocage.KindNamed("Generation")
	objects, _, err := c.List(ctx, kind, client.ListOptions{})
	if err != nil {
		if at.Before(time.Now().Add(-time.Second)) {
			fmt.Fprintf(e.err, "! this is what g%d says, and nobody can tell whether that was in force then: %v\n", number, err)
		}
		return
	}
	if text := younger(objects, at, number); text != "" {
		fmt.Fprintln(e.err, "! "+text)
	}
}

// younger compares a moment with when the generation that was asked was made.
func younger(objects []bocage.Resource, at time.Time, number uint64) string {
	var asked, then *bocage.Generation
	for _, object := range objects {
		g, ok := object.(*bocage.Generation)
		if !ok {
			continue
		}
		if g.Status.Number == number {
			asked = g
		}
		if !g.Status.Compiled.After(at) && (then == nil || g.Status.Number > then.Status.Number) {
			then = g
		}
	}
	switch {
	case asked == nil || !asked.Status.Compiled.After(at):
		return ""
	case then == nil:
		return fmt.Sprintf("g%d was made at %s, after %s, and no generation is kept from before that: what was in force then may have decided otherwise", number, moment(asked.Status.Compiled), moment(at))
	}
	return fmt.Sprintf("g%d was made at %s, after %s: for what the newest one of that moment says, add --generation %s", number, moment(asked.Status.Compiled), moment(at), then.Name)
}

func explained(allowed bool) error {
	if allowed {
		return nil
	}
	return &exitError{code: exitDenied}
}

// explainQuery reads the command line. Of an event, the rest comes with its record.
func explainQuery(args []string, protocol, generation, at string, event bool) (bocage.ExplainQuery, error) {
	var query bocage.ExplainQuery
	var err error
	if generation != "" {
		if query.Generation, err = generationNumber(generation); err != nil {
			return query, err
		}
	}
	if at != "" {
		if query.At, err = time.Parse(time.RFC3339, at); err != nil {
			return query, usage("--at %q is not a time such as 2026-11-24T18:00:00Z", at)
		}
		if query.At.IsZero() {
			return query, usage("--at %q stands for no moment: leave it out to ask about now", at)
		}
	}
	switch {
	case event && len(args) > 0:
		return query, usage("--event takes its flows from standard input: leave out %s", strings.Join(args, " "))
	case event:
		return query, nil
	case len(args) < 2:
		return query, usage("explain needs FROM and TO, or --event: see `bocage explain --help`")
	}
	query.From, query.To = args[0], args[1]
	if err := query.Protocol.UnmarshalText([]byte(protocol)); err != nil {
		return query, usage("--protocol: %v", err)
	}
	if len(args) == 3 {
		if _, err := fmt.Sscanf(args[2], "%d", &query.Port); err != nil || fmt.Sprint(query.Port) != args[2] {
			return query, usage("port %q is not a number from 0 to 65535 (--protocol names a protocol)", args[2])
		}
	} else if query.Protocol.HasPorts() {
		return query, usage("%s needs a destination port", query.Protocol)
	}
	return query, nil
}

// explainEvents explains the records on standard input, one after another.
func (e *env) explainEvents(cmd *cobra.Command, c *client.Client, asked bocage.ExplainQuery) error {
	decoder := json.NewDecoder(e.in)
	allowed := true
	for n := 1; ; n++ {
		var record bocage.FlowRecord
		switch err := decoder.Decode(&record); {
		case errors.Is(err, io.EOF) && n == 1:
			return usage("standard input holds no flow record: `bocage observe -o json` prints some")
		case errors.Is(err, io.EOF):
			return explained(allowed)
		case err != nil:
			return fmt.Errorf("record %d is not what `bocage observe -o json` prints: %w", n, err)
		}
		query, err := recordQuery(record, asked)
		if err != nil {
			return fmt.Errorf("record %d %w", n, err)
		}
		explanation, err := c.Explain(cmd.Context(), query)
		if err != nil {
			return fmt.Errorf("record %d: %w", n, err)
		}
		if err := e.printExplanation(explanation); err != nil {
			return err
		}
		e.printUnkept(record)
		e.printGreeting(record)
		allowed = allowed && explanation.Verdict.Allowed() && (!unkept(record.Reason) || record.Verdict.Allowed())
	}
}

// unkept reports whether a flow that policy allows did not keep a duty, which policy
// cannot know.
func unkept(code bocage.ReasonCode) bool {
	return code == bocage.ReasonProtocolMismatch || code == bocage.ReasonRateLimited || code == bocage.ReasonFragmented
}

// printUnkept says which duty of the flow of a record was not kept.
func (e *env) printUnkept(record bocage.FlowRecord) {
	if !unkept(record.Reason) || e.output != "" && e.output != "table" && e.output != "wide" {
		return
	}
	done := "refused it"
	if record.Verdict.Allowed() {
		done = "let it pass, for scopes merely observe"
	}
	what := fmt.Sprintf("it spoke %s, not what the duty above says", record.Spoken)
	switch record.Reason {
	case bocage.ReasonRateLimited:
		what = "it was one new flow too many at the rate of the duty above"
	case bocage.ReasonFragmented:
		what = "it came in pieces, not in whole packets as the duty above says"
	}
	fmt.Fprintf(e.out, "  but       %s: %s, and the enforcement point %s\n", record.Reason, what, done)
}

// printGreeting says what a client of TLS asked for, of a record that tells it.
func (e *env) printGreeting(record bocage.FlowRecord) {
	if record.Greeting == nil || e.output != "" && e.output != "table" && e.output != "wide" {
		return
	}
	fmt.Fprintf(e.out, "  client    %s\n", greetingText(record.Greeting))
}

// recordQuery asks about the flow of a record: between its addresses, for they
// decided then, under its generation and at its time unless others were asked for.
func recordQuery(r bocage.FlowRecord, asked bocage.ExplainQuery) (bocage.ExplainQuery, error) {
	q := bocage.ExplainQuery{From: r.SourceAddress, To: r.DestinationAddress, Protocol: r.Protocol, At: asked.At, Generation: asked.Generation}
	if q.From == "" || q.To == "" {
		return q, errors.New("names no sourceAddress or destinationAddress: it is no flow record of `bocage observe -o json`")
	}
	if r.Protocol.HasPorts() {
		q.Port = r.DestinationPort
	}
	if q.At.IsZero() {
		q.At = r.Time
	}
	if q.Generation == 0 {
		q.Generation, q.Decision = uint64(r.Generation), r.Decision
	}
	return q, nil
}

// bystander reports whether a flow passes no enforcement point at all: both its
// ends are outside, and not cut off.
func bystander(x bocage.Explanation) bool {
	return x.Source.Workload == "" && x.Destination.Workload == "" && x.Reason.Code != bocage.ReasonQuarantine
}

// destinationOf names where a flow goes: a name where that is what was asked about.
func destinationOf(x bocage.Explanation) string {
	if x.Anywhere {
		return string(x.Name)
	}
	text := end(x.Destination.Workload, x.Flow.Destination.String())
	if x.Name != "" {
		text += " as " + string(x.Name)
	}
	return text
}

// elsewhereText says what a flow to a name gets at other addresses.
func elsewhereText(x bocage.Elsewhere) string {
	where := "an address that the DNS did not give for the name"
	if len(x.Addresses) > 0 {
		texts := make([]string, len(x.Addresses))
		for i, p := range x.Addresses {
			texts[i] = p.String()
		}
		if x.More > 0 {
			texts = append(texts, fmt.Sprintf("%d more", x.More))
		}
		where = "if the name has an address in " + strings.Join(texts, ", ")
	}
	text := fmt.Sprintf("%s: %s, %s by %s", where, x.Verdict, x.Reason.Code, x.Decider)
	if x.Reason.Would != x.Verdict {
		text += fmt.Sprintf(" (would %s, if a scope enforced)", x.Reason.Would)
	}
	return text
}

func (e *env) printExplanation(x bocage.Explanation) error {
	switch e.output {
	case "json", "jsonl", "yaml":
		return e.printValue(x)
	}
	fmt.Fprintf(e.out, "%s %s: %s → %s %s", marks[x.Verdict], x.Verdict,
		end(x.Source.Workload, x.Flow.Source.String()), destinationOf(x), x.Flow.Protocol)
	if x.Flow.Protocol.HasPorts() {
		fmt.Fprintf(e.out, "/%d", x.Flow.DestinationPort)
	}
	if bystander(x) {
		fmt.Fprintf(e.out, "\n  because  neither end is behind an enforcement point: nobody here decides about this flow\n")
	} else {
		fmt.Fprintf(e.out, "\n  because  %s: %s\n", x.Reason.Code, x.Decider)
	}
	fmt.Fprintf(e.out, "  decision %s of generation %d\n", x.Reason.Decision, x.Generation)
	if x.Reason.Would != x.Verdict && x.Reason.Would != bocage.VerdictNone && !bystander(x) {
		fmt.Fprintf(e.out, "  would    %s, if a scope enforced\n", x.Reason.Would)
	}
	width := len("disposition")
	for _, layer := range x.Layers {
		width = max(width, len(layer.Name))
	}
	for _, layer := range x.Layers {
		fmt.Fprintf(e.out, "  %-*s  %s\n", width, layer.Name, layer.Result)
		for _, by := range layer.By {
			fmt.Fprintf(e.out, "  %-*s    %s\n", width, "", by)
		}
	}
	if text := familiesText(x.Families); text != "" {
		fmt.Fprintf(e.out, "  %-*s%s: the rest is about the addresses above\n", width, "families", text)
	}
	for _, elsewhere := range x.Elsewhere {
		fmt.Fprintf(e.out, "  %-*s  %s\n", width, "elsewhere", elsewhereText(elsewhere))
	}
	for _, duty := range x.Duties {
		fmt.Fprintf(e.out, "  %-*s  %s, owed to %s\n", width, "duty", duty.Duty, duty.By)
	}
	if x.Missing != "" {
		fmt.Fprintf(e.out, "  to change it: %s\n", strings.ReplaceAll(strings.TrimRight(x.Missing, "\n"), "\n", "\n    "))
	}
	return nil
}
