package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/manifest"
	"bocage.dev/bocage/policy/gather"
	"bocage.dev/bocage/policy/plan"
	"bocage.dev/bocage/policy/prove"
)

func (e *env) planCommand() *cobra.Command {
	var files, deleted []string
	var base offline
	cmd := &cobra.Command{Use: "plan -f FILE...", Short: "Show what declarations would change, without changing it",
		Long: `Show what declarations would change: reach that opens or closes, duties, proofs
and tests that would fail, and what would become of the flows that were recorded.
With --base everything comes from files, what is declared now as well, and no
controller is needed, as in CI; there is no recording then. What would change, -f and
--delete, is of the kinds that a controller takes: Bocage's own, Namespaces,
NetworkPolicies and ClusterNetworkPolicies. The base may hold Pods and Nodes, and what
controllers of Pods are made from, as well. It is decided as a controller decides: what
is declared as a Workload is no Pod, and what nobody accepts is refused to it, unless
--default says otherwise. What of the base is left out is said on standard error.

What begins or ends later is compared too, at each such moment: a change that holds only
for a time, or not yet, is told with its time.

The exit code is 0 if nothing would change, 3 if something would at any time, and 1 if the
declarations could not be activated or a test would fail. It is 6 if hosts would
not put it in force, because a live administrator's session would be cut.`,
		Example: "  bocage plan -f shop.yaml\n  bocage plan -f shop/ --delete old.yaml -o json\n  bocage plan --base policy/ --base inventory.yaml -f change.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if base.stdin() && (slices.Contains(files, "-") || slices.Contains(deleted, "-")) {
				return usage("standard input cannot hold both what is declared now and what would change")
			}
			if !base.given() && cmd.Flags().Changed("default") {
				return usage("--default is about what --base declares: a controller decides as it does")
			}
			documents, err := e.readPlanned(files, deleted)
			if err != nil {
				return err
			}
			gone, err := e.readSome(deleted)
			if err != nil {
				return err
			}
			planned, err := e.plan(cmd.Context(), &base, documents, gone)
			if err != nil {
				return err
			}
			if e.output != "" && e.output != "table" && e.output != "wide" {
				if err := e.printValue(planned); err != nil {
					return err
				}
			} else if err := e.printPlan(planned); err != nil {
				return err
			}
			return planOutcome(planned)
		}}
	fileFlag(cmd, &files)
	pathsFlag(cmd, &deleted, "delete", "", "files whose objects would be deleted")
	pathsFlag(cmd, &base.files, "base", "", "file or folder with what is declared now, instead of a controller; may be repeated")
	cmd.Flags().StringVar(&base.options.Default, "default", gather.DefaultDeclared, "with --base, what happens where nobody says anything: declared (as a controller does: accept between Pods only), kubernetes (accept), or deny")
	cmd.Flags().BoolVarP(&base.quiet, "quiet", "q", false, "with --base, no notes on standard error")
	e.outputFlag(cmd, answerForms)
	return cmd
}

// plan asks the controller or, where files say what is declared now, those.
func (e *env) plan(ctx context.Context, base *offline, documents, gone []manifest.Document) (bocage.PlanResult, error) {
	if !base.given() {
		c, err := e.client()
		if err != nil {
			return bocage.PlanResult{}, err
		}
		return c.PlanChanges(ctx, documents, gone)
	}
	if base.options.Default == gather.DefaultAuto {
		// What it takes Workloads for hangs on what is declared, which is what changes.
		return bocage.PlanResult{}, usage("--default auto is not for plans: say declared, kubernetes or deny")
	}
	base.bare = true // a plan has findings of its own
	simulator, gathered, err := base.load(e)
	if err != nil {
		return bocage.PlanResult{}, err
	}
	var objects []bocage.Resource
	for _, d := range documents {
		if w, ok := d.Resource.(*bocage.Workload); ok && base.options.Default == gather.DefaultKubernetes {
			w.Spec.Orchestrator = bocage.OrchestratorKubernetes // as those of the base
		}
		objects = append(objects, d.Resource)
	}
	for _, d := range gone {
		o := d.Resource
		o.Meta().DeletionTimestamp = &gathered.Input.Now
		objects = append(objects, o)
	}
	prover := new(prove.Prover)
	result := plan.Make(plan.Situation{Declared: gathered.Input, InForce: simulator, Ruleset: simulator.Ruleset(),
		Tests: gathered.Tests, Now: gathered.Input.Now, Prove: prover.Prove, Worse: prover.Worse, Policy: gathered.Input}, objects)
	result.Findings = slices.DeleteFunc(result.Findings, func(f bocage.Fault) bool {
		return strings.HasSuffix(f.Field, " spec.interface") // files say nothing of enforcement points
	})
	return result, nil
}

// readPlanned reads what would be applied, which may be nothing if something
// would be deleted.
func (e *env) readPlanned(files, deleted []string) ([]manifest.Document, error) {
	if len(files) == 0 && len(deleted) > 0 {
		return nil, nil
	}
	return e.read(files)
}

func (e *env) readSome(files []string) ([]manifest.Document, error) {
	if len(files) == 0 {
		return nil, nil
	}
	return e.read(files)
}

func planOutcome(plan bocage.PlanResult) error {
	if err := plan.Faults.Err(); err != nil {
		return err
	}
	if len(plan.Cut) > 0 {
		return risky("applied, hosts would not put it in force, since it would cut off who is in command of them", plan.Cut,
			"or apply it with --accept-risk")
	}
	for _, proof := range plan.Proofs {
		if !proof.Holds && !proof.Standing {
			return &exitError{exitFailed, "a proof fails: applied, this would not be activated"}
		}
	}
	failed := 0
	for _, result := range plan.Tests {
		if !result.Passed {
			failed++
		}
	}
	if failed > 0 {
		return &exitError{exitFailed, fmt.Sprintf("%d %s would fail", failed, plural(failed, "policy test"))}
	}
	if differs(plan) {
		return &exitError{code: exitDifference}
	}
	return nil
}

// differs reports whether anything would be decided or enforced otherwise, now or at any
// time, as far as is known.
func differs(plan bocage.PlanResult) bool {
	now := len(plan.Reach) + len(plan.Enforced) + len(plan.Observed) + len(plan.Quarantined) + len(plan.Released)
	return now+len(plan.Times)+plan.Uncompared+len(plan.NewlyRefused)+len(plan.NewlyAllowed)+len(plan.DutyChanged) > 0
}

func (e *env) printPlan(plan bocage.PlanResult) error {
	if len(plan.Faults) > 0 {
		return nil // they are the outcome
	}
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
		if proof.Standing {
			fmt.Fprintln(e.out, "  this does not hold now either, and would be no worse: it keeps nothing back")
		}
	}
	for _, result := range plan.Tests {
		if !result.Passed {
			e.printTest(result)
		}
	}
	if err := e.printReach(plan); err != nil {
		return err
	}
	return e.printReplay(plan)
}

// fewReach is how many changes of reach of each kind are shown, if there are more than
// three times as many; -o wide shows all.
const fewReach = 30

// reachSign tells reach that is gained, lost, or has other duties.
func reachSign(change bocage.ReachChange) string {
	switch {
	case change.After.Allowed() && !change.Before.Allowed():
		return "+"
	case change.Before.Allowed() && !change.After.Allowed():
		return "-"
	}
	return "~"
}

// shownReach picks the changes to show: all in their order; or of many the first of each
// kind, what is lost first, with the number of those left out.
func (e *env) shownReach(changes []bocage.ReachChange, indent string) (shown []bocage.ReachChange, left int) {
	if e.output == "wide" || len(changes) <= 3*fewReach {
		return changes, 0
	}
	counts := map[string]int{}
	for _, sign := range []string{"-", "+", "~"} {
		for _, change := range changes {
			if reachSign(change) != sign {
				continue
			}
			if counts[sign]++; counts[sign] <= fewReach {
				shown = append(shown, change)
			}
		}
	}
	fmt.Fprintf(e.out, "%s%d changes of reach: %d lost, %d gained, %d with another disposition or other duties\n", indent, len(changes), counts["-"], counts["+"], counts["~"])
	return shown, len(changes) - len(shown)
}

func (e *env) printReach(plan bocage.PlanResult) error {
	switch {
	case len(plan.Reach)+len(plan.Quarantined)+len(plan.Released) > 0:
	case len(plan.Times)+plan.Uncompared > 0:
		fmt.Fprintln(e.out, "no reach changes now")
	default:
		fmt.Fprintln(e.out, "no reach changes")
	}
	if err := e.printChanges(bocage.PlannedTime{Reach: plan.Reach, Enforced: plan.Enforced, Observed: plan.Observed,
		Quarantined: plan.Quarantined, Released: plan.Released}, ""); err != nil {
		return err
	}
	for _, t := range plan.Times {
		fmt.Fprintf(e.out, "%s:\n", stretchText(t))
		if err := e.printChanges(t, "  "); err != nil {
			return err
		}
	}
	return nil
}

// stretchText says when something holds.
func stretchText(t bocage.PlannedTime) string {
	switch {
	case t.Begins.IsZero():
		return "of that, only until " + moment(t.Ends)
	case t.Ends.IsZero():
		return "from " + moment(t.Begins) + " on"
	}
	return "from " + moment(t.Begins) + " until " + moment(t.Ends)
}

// printChanges prints what changes in a stretch of time.
func (e *env) printChanges(plan bocage.PlannedTime, indent string) error {
	table := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	shown, left := e.shownReach(plan.Reach, indent)
	others := false
	for _, change := range shown {
		others = others || change.From == prove.Everyone || change.To == prove.Everyone
		fmt.Fprintf(table, "%s%s %s\t→ %s\t%s/%s\t%s → %s%s\t%s\n", indent, reachSign(change), change.From, change.To, change.Protocol, change.Ports, change.Before, change.After, owing(change), change.By)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if left > 0 {
		fmt.Fprintf(e.out, "%s  and %d more: -o wide shows them, -o json lists them\n", indent, left)
	}
	if others {
		fmt.Fprintf(e.out, "%s  (%s: every workload and address outside without a line of its own)\n", indent, prove.Everyone)
	}
	for _, part := range []struct {
		workloads []string
		format    string
	}{
		{plan.Enforced, "+ enforced: what policy refuses from and to %s would be refused"},
		{plan.Observed, "- enforced: what policy refuses from and to %s would only be reported"},
		{plan.Quarantined, "- quarantined: %s would be cut off from everything"},
		{plan.Released, "+ released: %s would no longer be cut off"},
	} {
		if len(part.workloads) > 0 {
			fmt.Fprintf(e.out, indent+part.format+"\n", fewOf(part.workloads, 10))
		}
	}
	return nil
}

// owing says which duties a change brings or takes.
func owing(change bocage.ReachChange) string {
	switch {
	case slices.Equal(change.BeforeDuties, change.AfterDuties) || !change.After.Allowed():
		return ""
	case !change.Before.Allowed():
		return ", owing " + dutiesText(change.AfterDuties)
	}
	return ", owing " + dutiesText(change.BeforeDuties) + " → " + dutiesText(change.AfterDuties)
}

// printReplay says what would become of the flows that were recorded.
func (e *env) printReplay(plan bocage.PlanResult) error {
	for _, contract := range plan.Unused {
		fmt.Fprintf(e.out, "? unused: no recorded flow needs %s\n", contract)
	}
	if plan.Replayed == 0 {
		return nil // a finding says so
	}
	fmt.Fprintf(e.out, "replayed %d kinds of recorded flow%s: %d newly refused, %d newly allowed, %d with other duties\n",
		plan.Replayed, spanText(plan.Recorded), len(plan.NewlyRefused), len(plan.NewlyAllowed), len(plan.DutyChanged))
	for _, part := range []struct {
		sign  string
		edges []bocage.PlannedEdge
	}{{"-", plan.NewlyRefused}, {"+", plan.NewlyAllowed}, {"~", plan.DutyChanged}} {
		if err := e.printPlannedEdges(part.sign, part.edges); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) printPlannedEdges(sign string, edges []bocage.PlannedEdge) error {
	table := tabwriter.NewWriter(e.out, 2, 0, 2, ' ', 0)
	for _, edge := range edges {
		fmt.Fprintf(table, "%s %s\t→ %s\t%s/%d\t%d seen, %d answered\tlast %s", sign, edge.Source, edge.Destination,
			edge.Protocol, edge.DestinationPort, edge.Flows, edge.Replied, moment(edge.Last))
		if sign == "~" {
			fmt.Fprintf(table, "\towes %s, owed %s", dutiesText(edge.After), dutiesText(edge.Before))
		}
		if sign == "-" && len(edge.After) > 0 { // it is allowed, and does not do what it owes
			fmt.Fprintf(table, "\tspoke %s, owes %s", edge.Spoken, dutiesText(edge.After))
		}
		if edge.By.Kind != "" {
			fmt.Fprintf(table, "\tby %s", edge.By)
		}
		if edge.Owner != "" {
			fmt.Fprintf(table, "\task the owner of %s", edge.Owner)
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

func dutiesText(duties []string) string {
	if len(duties) == 0 {
		return "nothing"
	}
	return strings.Join(duties, ", ")
}

func spanText(s bocage.Span) string {
	if s.First.IsZero() || s.Last.IsZero() {
		return ""
	}
	return fmt.Sprintf(" from %s to %s", moment(s.First), moment(s.Last))
}
