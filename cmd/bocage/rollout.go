package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
)

func (e *env) confirmCommand() *cobra.Command {
	return e.rolloutCommand("confirm", "Keep the generation in force, which agents would otherwise leave by themselves", "",
		"  bocage policy confirm")
}

func (e *env) promoteCommand() *cobra.Command {
	return e.rolloutCommand("promote", "End the present stage of the rollout now, and begin the next", "",
		"  bocage policy promote")
}

func (e *env) rollbackCommand() *cobra.Command {
	return e.rolloutCommand("rollback", "Go back to the generation before, or to the one that is named",
		`Go back to the generation before, or to the one that is named, and hold it until
"bocage policy confirm". What only tightens, quarantines and threat conditions,
holds meanwhile all the same.`,
		"  bocage policy rollback\n  bocage policy rollback g41")
}

// rolloutCommand asks for one action; only rollback names a generation.
func (e *env) rolloutCommand(action, short, long, example string) *cobra.Command {
	cmd := &cobra.Command{Use: action, Short: short, Long: long, Example: example, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			request := bocage.RolloutRequest{Action: action}
			if len(args) == 1 {
				var err error
				if request.Generation, err = generationNumber(args[0]); err != nil {
					return err
				}
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			status, err := c.Rollout(cmd.Context(), request)
			if err != nil {
				return err
			}
			return e.printRollout(status)
		}}
	if action == "rollback" {
		cmd.Use, cmd.Args = "rollback [gN]", cobra.MaximumNArgs(1)
	}
	e.outputFlag(cmd, answerForms)
	return cmd
}

// generationNumber reads g41, or 41.
func generationNumber(text string) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "g"), 10, 64)
	if err != nil || n == 0 {
		return 0, usage("%q is not a generation such as g41: `bocage policy history` lists those that are kept", text)
	}
	return n, nil
}

func (e *env) printRollout(s bocage.RolloutStatus) error {
	switch e.output {
	case "json", "jsonl", "yaml":
		return e.printValue(s)
	}
	fmt.Fprintf(e.out, "generation g%d is in force", s.Active)
	if s.Generation != s.Active {
		fmt.Fprintf(e.out, "; g%d is newer: %s", s.Generation, stageText(s.Stage))
	} else if s.Stage != "" {
		fmt.Fprintf(e.out, ": %s", stageText(s.Stage))
	}
	if !s.Deadline.IsZero() {
		fmt.Fprintf(e.out, ", until %s", moment(s.Deadline))
	}
	fmt.Fprintln(e.out)
	if s.NewlyRefused > 0 {
		fmt.Fprintf(e.out, "  it would refuse %d %s of flow that were allowed and answered\n", s.NewlyRefused, plural(int(s.NewlyRefused), "kind"))
	}
	return nil
}

// stageText says what a stage means.
func stageText(stage string) string {
	switch stage {
	case bocage.StageShadow:
		return "evaluated beside it, on every new flow"
	case bocage.StageCanary:
		return "in force on some hosts first"
	case bocage.StageConfirming:
		return "waiting for `bocage policy confirm`; otherwise agents go back"
	case bocage.StageRolledBack:
		return "rolled back; `bocage policy confirm` lets go of it"
	case bocage.StageEnded:
		return "its rollout ended before it was in force: `bocage policy history` says why"
	case bocage.StageBlocked:
		return "blocked by a proof or a test: `bocage get generations -o yaml` says which"
	case "", bocage.StageActive:
		return "everywhere"
	}
	return strings.ToLower(stage)
}

// historyCommand lists generations with what changed from one to the next.
func (e *env) historyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "history", Short: "List the generations that are kept, with their stage and what changed", Args: cobra.NoArgs,
		Example: "  bocage policy history\n  bocage policy history -o wide",
		RunE: func(cmd *cobra.Command, _ []string) error {
			kind, err := kindArgument("Generation")
			if err != nil {
				return err
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			objects, _, err := c.List(cmd.Context(), kind, client.ListOptions{})
			if err != nil {
				return err
			}
			if e.output != "" && e.output != "table" && e.output != "wide" {
				return e.printObjects(kind, objects)
			}
			return e.printHistory(objects)
		}}
	e.outputFlag(cmd, objectForms)
	return cmd
}

// fewChanges is how many changed objects a line of history names.
const fewChanges = 3

func (e *env) printHistory(objects []bocage.Resource) error {
	var generations []*bocage.Generation
	for _, object := range objects {
		if g, ok := object.(*bocage.Generation); ok {
			generations = append(generations, g)
		}
	}
	if len(generations) == 0 {
		fmt.Fprintln(e.err, "no generations")
		return nil
	}
	slices.SortFunc(generations, func(a, b *bocage.Generation) int { return compareNames(&a.ObjectMeta, &b.ObjectMeta) })
	table := tabwriter.NewWriter(e.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "GENERATION\tIN-FORCE\tSTAGE\tPROVED\tRULES\tCOMPILED\tCHANGED")
	first := map[string]string{} // the first generation of each content that came into force
	for _, g := range generations {
		s := g.Status
		back := first[s.Digest]
		if back == "" && s.Stage != bocage.StageBlocked && s.Stage != bocage.StageRolledBack && s.Stage != bocage.StageEnded {
			first[s.Digest] = g.Name
		}
		inForce, stage, proved := "", s.Stage, "-"
		if s.Active {
			inForce = "yes"
		}
		if stage == "" {
			stage = "-"
		}
		for _, c := range s.Conditions {
			if c.Type == bocage.ConditionProved {
				proved = c.Status
			}
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", g.Name, inForce, stage, proved, s.Rules, moment(s.Compiled), e.historyText(s, back))
	}
	return table.Flush()
}

// historyText says what became of what a generation changed: it was kept back, given up
// in its rollout, or rolled back, by whom and why; or it says what an earlier one did that
// was in force, and takes changes back.
func (e *env) historyText(s bocage.GenerationStatus, back string) string {
	text := e.changesText(s.Changed)
	conditions := map[string]bocage.Condition{}
	for _, c := range s.Conditions {
		conditions[c.Type] = c
	}
	rolledOut := conditions[bocage.ConditionRolledOut].Message
	switch {
	case s.Stage == bocage.StageBlocked:
		text = "kept back: " + text
		if c := conditions[bocage.ConditionProved]; c.Status == "False" {
			text += ": " + e.shortened(c.Message)
		}
	case s.Stage == bocage.StageEnded:
		text = "never in force everywhere: " + text
	case s.Stage == bocage.StageRolledBack && rolledOut == "":
		text = "rolled back: " + text
	case back != "" && len(s.Changed) > 0:
		text = fmt.Sprintf("back to %s, without %s", back, text)
	case back != "":
		text = "back to " + back
	}
	if rolledOut != "" {
		text += ": " + e.shortened(rolledOut)
	}
	if c := conditions[bocage.ConditionTested]; c.Status == "False" && s.Stage != bocage.StageBlocked {
		text += "; PolicyTests fail, see -o yaml"
	}
	return text
}

// fewLetters is how much of a reason a line of history tells; -o wide tells all of it.
const fewLetters = 120

func (e *env) shortened(text string) string {
	text = oneLine(text)
	if letters := []rune(text); e.output != "wide" && len(letters) > fewLetters {
		return string(letters[:fewLetters]) + "... (-o wide tells all)"
	}
	return text
}

func (e *env) changesText(changed []string) string {
	most := fewChanges
	if e.output == "wide" {
		most = len(changed)
	}
	if len(changed) == 0 {
		return "-"
	}
	return fewOf(changed, most)
}
