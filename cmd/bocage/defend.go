package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
)

// listCommand is the ls that several nouns have.
func (e *env) listCommand(kind, short string) *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.list(cmd.Context(), kind) }}
	e.outputFlag(cmd, objectForms)
	return cmd
}

func noun(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(children...)
	return cmd
}

func (e *env) incidentCommand() *cobra.Command {
	show := &cobra.Command{Use: "show NAME", Short: "Show one incident with its evidence and what was done", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, _ := bocage.KindNamed("Incident")
			c, err := e.client()
			if err != nil {
				return err
			}
			object, err := c.Get(cmd.Context(), kind, "", args[0])
			if err != nil {
				return err
			}
			if e.output != "" && e.output != "table" && e.output != "wide" {
				return e.printObject(kind, object)
			}
			incident, ok := object.(*bocage.Incident)
			if !ok {
				return fmt.Errorf("the server answered with a %T", object)
			}
			return e.printIncident(incident)
		}}
	e.outputFlag(show, objectForms)
	return noun("incident", "Incidents that recognition raised", e.listCommand("Incident", "List incidents"), show)
}

func (e *env) printIncident(incident *bocage.Incident) error {
	s := incident.Status
	fmt.Fprintf(e.out, "%s  %s, %s: %s\n", incident.Name, s.Severity, s.Phase, oneLine(s.Title))
	fmt.Fprintf(e.out, "  %s to %s, score %.1f, %s\n", moment(s.First), moment(s.Last), s.Score, strings.Join(s.Techniques, " "))
	for _, entity := range s.Entities {
		fmt.Fprintf(e.out, "  %-9s %s %s\n", entity.Role, entity.Type, entity.Name)
	}
	for _, evidence := range s.Evidence {
		decisive := ""
		if evidence.Decisive {
			decisive = ", decisive"
		}
		fmt.Fprintf(e.out, "  %s  %-12s %s (weight %.1f%s, seen %d %s)\n", moment(evidence.Time), evidence.Kind, oneLine(evidence.Text), evidence.Weight, decisive, evidence.Count, plural(int(evidence.Count), "time"))
		if e.output == "wide" {
			for _, record := range evidence.Records {
				fmt.Fprintf(e.out, "              %s\n", record)
			}
		}
	}
	for _, name := range s.ThreatConditions {
		fmt.Fprintf(e.out, "  followed by ThreatCondition %s\n", name)
	}
	return nil
}

func (e *env) quarantineCommand() *cobra.Command {
	var reason string
	var duration, wait time.Duration
	add := &cobra.Command{Use: "add NAMESPACE/NAME", Short: "Cut a workload off, established connections included", Args: cobra.ExactArgs(1),
		Long: `Cut a workload off, established connections included, and wait until it is. The exit
code is 5 if it is declared and no host has been seen to enforce it: it comes into force
on each host as soon as that takes it.`,
		Example: "  bocage quarantine add shop/web --for 15m --reason 'odd outbound traffic'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("for") && duration <= 0 {
				return usage("--for %s is not a time to come: leave it out to quarantine until released", duration)
			}
			if wait < 0 {
				return usage("--wait cannot be negative")
			}
			kind, _ := bocage.KindNamed("Quarantine")
			quarantine := &bocage.Quarantine{
				TypeMeta:   bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: kind.Name},
				ObjectMeta: bocage.ObjectMeta{Name: strings.ReplaceAll(args[0], "/", ".")},
				Spec:       bocage.QuarantineSpec{Workload: args[0], Reason: reason},
			}
			if duration > 0 {
				quarantine.Spec.Until = time.Now().Add(duration).UTC().Truncate(time.Second)
			}
			if faults := quarantine.Validate(); len(faults) > 0 {
				return usage("%s: `bocage get workloads` lists whom there is to cut off", faults[len(faults)-1].Message)
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			workload, _ := bocage.KindNamed("Workload")
			namespace, name, _ := strings.Cut(args[0], "/")
			if _, err := c.Get(cmd.Context(), workload, namespace, name); client.HasReason(err, client.ReasonNotFound) {
				return fmt.Errorf("there is no workload %s: `bocage get workloads` lists them", args[0])
			} else if err != nil {
				return err
			}
			if _, err := c.ApplyObject(cmd.Context(), kind, quarantine, client.WriteOptions{Force: true}); err != nil {
				return err
			}
			until := "until it is released"
			if duration > 0 {
				until = "until " + moment(quarantine.Spec.Until)
			}
			lift := fmt.Sprintf("  lift it: bocage quarantine release %s\n", args[0])
			if wait == 0 {
				fmt.Fprintf(e.out, "quarantine of %s declared, %s; `bocage quarantine ls` says whether it is enforced\n%s", args[0], until, lift)
				return nil
			}
			if err := e.awaitEnforced(cmd.Context(), c, kind, quarantine.Name, wait); err != nil {
				fmt.Fprintf(e.out, "quarantine of %s declared, %s\n%s", args[0], until, lift)
				return err
			}
			fmt.Fprintf(e.out, "■ %s is quarantined %s\n%s", args[0], until, lift)
			return nil
		}}
	add.Flags().StringVar(&reason, "reason", "", "why, for those who find it")
	add.Flags().DurationVar(&duration, "for", 0, "end it by itself, such as 15m (default: until released)")
	add.Flags().DurationVar(&wait, "wait", enforcePatience, "how long to wait until it is enforced; 0: only declare it")
	release := &cobra.Command{Use: "release NAMESPACE/NAME", Short: "Lift a quarantine, a person's or recognition's", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return e.release(cmd, args[0]) }}
	return noun("quarantine", "Workloads that are cut off", e.listCommand("Quarantine", "List quarantines that people declared"), add, release)
}

// enforcePatience is how long a command waits for what it declared to come into force.
const enforcePatience = 10 * time.Second

// awaitEnforced waits until every host concerned enforces an object. What is not, in
// time, is an error that says who has not taken it.
func (e *env) awaitEnforced(ctx context.Context, c *client.Client, kind bocage.Kind, name string, wait time.Duration) error {
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	said, err := c.WaitCondition(within, kind, "", name, bocage.ConditionEnforced, "True")
	switch {
	case err == nil && said.Reason == "NoWorkloads":
		return &exitError{exitNotReady, fmt.Sprintf("%s %s is declared, and nothing enforces it: %s", kind.Name, name, said.Message)}
	case err == nil:
		return nil
	case ctx.Err() == nil && within.Err() != nil:
		why := cmp.Or(said.Message, "no controller has said anything of it")
		return &exitError{exitNotReady, fmt.Sprintf("%s %s is declared, and was not in force within %s: %s (`bocage get hosts` tells which agents answer)", kind.Name, name, wait, why)}
	}
	return err
}

// release deletes whatever holds the workload: quarantines and threat conditions.
func (e *env) release(cmd *cobra.Command, workload string) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	released := 0
	for _, name := range []string{"Quarantine", "ThreatCondition"} {
		kind, _ := bocage.KindNamed(name)
		objects, _, err := c.List(cmd.Context(), kind, client.ListOptions{})
		if err != nil {
			return err
		}
		for _, object := range objects {
			if !holds(object, workload) {
				continue
			}
			if err := e.delete(cmd.Context(), c, kind, "", object.Meta().Name); err != nil {
				return err
			}
			released++
		}
	}
	if released == 0 {
		return fmt.Errorf("nothing holds %s: `bocage quarantine ls` and `bocage get threatconditions` list what holds whom", workload)
	}
	return nil
}

func holds(object bocage.Resource, workload string) bool {
	switch o := object.(type) {
	case *bocage.Quarantine:
		return o.Spec.Workload == workload
	case *bocage.ThreatCondition:
		return o.Spec.Workload == workload && o.Spec.Level.Includes(bocage.LevelRestrict)
	default:
		return false
	}
}

func (e *env) decoyCommand() *cobra.Command {
	var protocol, banner string
	var port uint16
	var namespaces []string
	add := &cobra.Command{Use: "add NAME", Short: "Let refused connections to a port meet a decoy at the target's own address", Args: cobra.ExactArgs(1),
		Example: "  bocage decoy add ssh --port 22 --namespace shop",
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, _ := bocage.KindNamed("Decoy")
			decoy := &bocage.Decoy{
				TypeMeta:   bocage.TypeMeta{APIVersion: bocage.APIVersion, Kind: kind.Name},
				ObjectMeta: bocage.ObjectMeta{Name: args[0]},
				Spec:       bocage.DecoySpec{Protocol: protocol, Port: port, Banner: banner, For: bocage.Side{Namespaces: namespaces}},
			}
			if err := decoy.Validate().Err(); err != nil {
				return err
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			if _, err := c.ApplyObject(cmd.Context(), kind, decoy, client.WriteOptions{Force: true}); err != nil {
				return err
			}
			fmt.Fprintf(e.out, "Decoy %s declared: refused connections to port %d meet it on each host that has taken it (`bocage decoy ls`: ENFORCED)\n", args[0], port)
			return nil
		}}
	add.Flags().StringVar(&protocol, "protocol", "ssh", "what it speaks")
	add.Flags().Uint16Var(&port, "port", 22, "port that it answers on")
	add.Flags().StringVar(&banner, "banner", "", "identification that it wears (default: a current Debian's)")
	add.Flags().StringSliceVarP(&namespaces, "namespace", "n", nil, "namespaces whose workloads it stands for (default: all)")
	rm := &cobra.Command{Use: "rm NAME", Short: "Remove a decoy", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, _ := bocage.KindNamed("Decoy")
			c, err := e.client()
			if err != nil {
				return err
			}
			return e.delete(cmd.Context(), c, kind, "", args[0])
		}}
	return noun("decoy", "False targets", e.listCommand("Decoy", "List decoys"), add, rm)
}
