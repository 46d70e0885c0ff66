package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bocage.dev/bocage/identity"
)

// userCommand gathers what makes credentials for people and ends them.
func (e *env) userCommand() *cobra.Command {
	return noun("user", "Make credentials for people and tools, and end them", e.certificateCommand(), e.sessionCommand(), e.sessionsCommand())
}

// certificateCommand makes a client certificate whose key never leaves this place.
func (e *env) certificateCommand() *cobra.Command {
	var groups []string
	var life time.Duration
	var path string
	cmd := &cobra.Command{Use: "certificate NAME", Short: "Make a client certificate that says who somebody is",
		Long: `Make a client certificate that says who somebody is: spiffe://DOMAIN/user/NAME, in
the groups that are named. What they may do, RoleBindings say at every request, so
a role can be given and taken back while the certificate lives, at most a week.
The key is made here and the controller never sees it. Root on a controller's host
makes certificates; nobody else vouches for others.`,
		Example: `  bocage user certificate alice --group ops --for 24h
  kubectl --server https://127.0.0.1:8443 --client-certificate alice.pem --client-key alice.pem --certificate-authority bundle.pem get guardrails
  bocage --server https://127.0.0.1:8443 --ca bundle.pem --certificate alice.pem whoami`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := lasting(life, mostCertificate); err != nil {
				return err
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			key, csr, err := identity.NewKey()
			if err != nil {
				return err
			}
			made, err := c.CreateCertificate(cmd.Context(), args[0], groups, csr, life)
			if err != nil {
				return err
			}
			svid, err := identity.NewSVID(key, []byte(made.Chain))
			if err != nil {
				return fmt.Errorf("read the certificate that the controller made: %w", err)
			}
			if path == "" {
				path = args[0] + ".pem"
			}
			if err := svid.SaveFile(path); err != nil {
				return fmt.Errorf("keep the certificate: %w", err)
			}
			fmt.Fprintf(e.out, "%s is %s until %s; key and certificate are in %s\n", args[0], made.ID, moment(made.Expires), path)
			if len(made.Roles) == 0 {
				subjects := append([]string{made.ID}, groupSubjects(groups)...)
				fmt.Fprintf(e.err, "! nobody gave them a role yet: name %s in a RoleBinding\n", strings.Join(subjects, " or "))
			}
			for _, g := range made.Roles {
				fmt.Fprintf(e.out, "  %s%s, by RoleBinding %s\n", g.Role, within(g.Namespaces), g.Binding)
			}
			return nil
		}}
	cmd.Flags().StringSliceVar(&groups, "group", nil, "groups that the person is in, as RoleBindings name them behind group:")
	cmd.Flags().DurationVar(&life, "for", 24*time.Hour, "how long it is good for, at most 168h")
	cmd.Flags().StringVar(&path, "out", "", "file for key and certificate (default: NAME.pem)")
	return cmd
}

func groupSubjects(groups []string) []string {
	subjects := make([]string, len(groups))
	for i, group := range groups {
		subjects[i] = "group:" + group
	}
	return subjects
}

func within(namespaces []string) string {
	if len(namespaces) == 0 {
		return ""
	}
	return " in " + strings.Join(namespaces, ", ")
}
