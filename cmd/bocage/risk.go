package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/manifest"
)

// riskPeriod is how long hosts put in force what cuts sessions after
// --accept-risk: enough for a generation to be compiled and to arrive.
const riskPeriod = 5 * time.Minute

func riskFlag(cmd *cobra.Command, accept *bool) {
	cmd.Flags().BoolVar(accept, "accept-risk", false, "let it cut administrators' live sessions")
}

// keepSessions asks whether changes would cut an administrator off from a host
// that reports live sessions. Where the risk is accepted, hosts are told first.
func (e *env) keepSessions(ctx context.Context, c *client.Client, applied, deleted []manifest.Document, accept bool) error {
	kind, _ := bocage.KindNamed("Host")
	objects, _, err := c.List(ctx, kind, client.ListOptions{})
	if client.HasReason(err, client.ReasonForbidden) {
		return nil // agents refuse by themselves
	}
	if err != nil {
		return err
	}
	watched := slices.ContainsFunc(objects, func(o bocage.Resource) bool {
		h, ok := o.(*bocage.Host)
		return ok && slices.ContainsFunc(h.Status.Sessions, func(s bocage.AdministratorSession) bool { return s.Interface != "" })
	})
	if !watched {
		return nil
	}
	plan, err := c.PlanChanges(ctx, applied, deleted)
	if err != nil || len(plan.Faults) > 0 || len(plan.Cut) == 0 {
		return nil // what is wrong with them, applying tells better
	}
	if !accept {
		return risky("refused, since it would cut off who is in command of a host", plan.Cut, "or say --accept-risk")
	}
	var hosts []string
	for _, cut := range plan.Cut {
		fmt.Fprintf(e.err, "! %s; the risk is accepted\n", cut)
		hosts = append(hosts, cut.Host)
	}
	slices.Sort(hosts)
	return e.acceptRisk(ctx, c, slices.Compact(hosts), riskPeriod)
}

// risky says which sessions would be cut, and what to do all the same.
func risky(what string, cut []bocage.CutSession, advice string) error {
	lines := make([]string, len(cut))
	for i, c := range cut {
		lines[i] = "  " + c.String()
	}
	return &exitError{exitRisky, fmt.Sprintf("%s:\n%s\n  %s", what, strings.Join(lines, "\n"), advice)}
}

func (e *env) acceptRisk(ctx context.Context, c *client.Client, hosts []string, period time.Duration) error {
	_, err := c.Rollout(ctx, bocage.RolloutRequest{Action: "accept-risk", Hosts: hosts, Seconds: int64(period.Seconds())})
	return err
}

func (e *env) acceptRiskCommand() *cobra.Command {
	var period time.Duration
	cmd := &cobra.Command{Use: "accept-risk HOST...", Short: "Let hosts put in force for a while what cuts administrators' sessions",
		Args: cobra.MinimumNArgs(1), Example: "  bocage policy accept-risk h1 --for 5m",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := lasting(period, mostRisk); err != nil {
				return err
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			if err := e.acceptRisk(cmd.Context(), c, args, period); err != nil {
				return err
			}
			fmt.Fprintf(e.out, "%s may cut sessions until %s\n", strings.Join(args, ", "), moment(time.Now().Add(period)))
			return nil
		}}
	cmd.Flags().DurationVar(&period, "for", riskPeriod, "how long")
	return cmd
}

// failsafeCommand shows who is in command of hosts, and which interfaces are left
// alone whatever policy says.
func (e *env) failsafeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "failsafe [HOST]", Short: "Show administrators' sessions, and the interfaces that hosts leave alone whatever policy says",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			kind, _ := bocage.KindNamed("Host")
			objects, _, err := c.List(cmd.Context(), kind, client.ListOptions{})
			if err != nil {
				return err
			}
			var safes []hostFailsafe
			for _, o := range objects {
				if h, ok := o.(*bocage.Host); ok && (len(args) == 0 || h.Name == args[0]) {
					safes = append(safes, hostFailsafe{h.Name, append([]bocage.AdministratorSession{}, h.Status.Sessions...), h.Status.Failsafe, h.Status.RiskAccepted})
				}
			}
			if len(args) == 1 && len(safes) == 0 {
				return fmt.Errorf("there is no host %s: see bocage get hosts", args[0])
			}
			if e.output != "" && e.output != "table" && e.output != "wide" {
				return printEach(e, safes)
			}
			for _, s := range safes {
				e.printFailsafe(s)
			}
			return nil
		}}
	e.outputFlag(cmd, answerForms)
	return cmd
}

type hostFailsafe struct {
	Host         string                        `json:"host"`
	Sessions     []bocage.AdministratorSession `json:"sessions"`
	Failsafe     []bocage.FailsafeEntry        `json:"failsafe"`
	RiskAccepted bocage.RiskAcceptance         `json:"riskAccepted,omitzero"`
}

func (e *env) printFailsafe(s hostFailsafe) {
	fmt.Fprintln(e.out, s.Host)
	for _, session := range s.Sessions {
		fmt.Fprintf(e.out, "  live     %s\n", session)
	}
	for _, f := range s.Failsafe {
		end := ""
		if !f.Until.IsZero() {
			end = ", whose sessions are over, until " + moment(f.Until)
		}
		fmt.Fprintf(e.out, "  failsafe %s is left alone for %s%s\n", f.Interface, strings.Join(f.For, ", "), end)
	}
	if time.Now().Before(s.RiskAccepted.Until) {
		fmt.Fprintf(e.out, "  accepted that sessions are cut, until %s, by %s\n", moment(s.RiskAccepted.Until), s.RiskAccepted.By)
	}
	if len(s.Sessions)+len(s.Failsafe) == 0 {
		fmt.Fprintln(e.out, "  no session is live, and no interface is left alone")
	}
}
