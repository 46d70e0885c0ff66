package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/audit"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/node"
)

// sessionFile is where a login leaves its token, and commands look for it.
func sessionFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find a place for the session: %w: name one with --token-file", err)
	}
	return filepath.Join(dir, "bocage", "session"), nil
}

// bearer reads the token that a command comes with: the one that is named, else
// the session that a login left, if there is one.
func (e *env) bearer() (string, error) {
	path, named := e.token, e.token != ""
	if !named {
		var err error
		if path, err = sessionFile(); err != nil {
			return "", nil
		}
	}
	token, err := os.ReadFile(path)
	if !named && errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the bearer token: %w", err)
	}
	return strings.TrimSpace(string(token)), nil
}

func (e *env) loginCommand() *cobra.Command {
	var admin string
	cmd := &cobra.Command{Use: "login", Short: "Exchange the one-time token of a new controller for an administrator's session",
		Long: `Exchange the one-time token of a new controller for an administrator's session,
which commands with --server then use by themselves. The token is in a file that
only root on the controller's host can read; it works once, within ten minutes of
the controller's start.`,
		Example: "  sudo bocage login\n  bocage login --server https://127.0.0.1:8443 --ca bundle.pem --admin-token admin-token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := e.token
			if path == "" {
				var err error
				if path, err = sessionFile(); err != nil {
					return err
				}
			}
			secret, err := os.ReadFile(admin)
			if err != nil {
				return fmt.Errorf("read the one-time token: %w: a new controller leaves it there until somebody logs in; --admin-token names another file", err)
			}
			c, err := e.clientWith(strings.TrimSpace(string(secret)))
			if err != nil {
				return err
			}
			session, err := c.Login(cmd.Context())
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				return fmt.Errorf("leave the session: %w", err)
			}
			// Never widen what is there: a file of others is replaced, not written into.
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("leave the session: %w", err)
			}
			if err := os.WriteFile(path, []byte(session.Token+"\n"), 0o600); err != nil {
				return fmt.Errorf("leave the session: %w", err)
			}
			fmt.Fprintf(e.out, "%s is %s until %s; the session is in %s\n", session.Person.Name, session.Person.Role, moment(session.Expires), path)
			return nil
		}}
	cmd.Flags().StringVar(&admin, "admin-token", node.AdminTokenFile(node.DefaultStateDir), "file with the one-time token")
	return cmd
}

func (e *env) logoutCommand() *cobra.Command {
	return &cobra.Command{Use: "logout", Short: "End the session, and what was made with it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			token, err := e.bearer()
			if err != nil {
				return err
			}
			if token == "" {
				return errors.New("there is no session: nobody logged in here")
			}
			c, err := e.clientWith(token)
			if err != nil {
				return err
			}
			ended, err := c.EndSessions(cmd.Context(), "")
			if err != nil {
				return err
			}
			fmt.Fprintf(e.out, "%d %s ended\n", ended, plural(ended, "session"))
			if path, err := sessionFile(); e.token == "" && err == nil {
				return os.Remove(path)
			}
			return nil
		}}
}

func (e *env) whoamiCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "whoami", Short: "Print who the controller takes you for, and your roles", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			person, err := c.WhoAmI(cmd.Context())
			if err != nil {
				return err
			}
			if e.output != "" && e.output != "table" && e.output != "wide" {
				return e.printValue(person)
			}
			fmt.Fprintln(e.out, person.Name)
			for _, grant := range person.Grants {
				where, by := "everywhere", ""
				if len(grant.Namespaces) > 0 {
					where = "in " + strings.Join(grant.Namespaces, ", ")
				}
				if grant.Binding != "" {
					by = ", by RoleBinding " + grant.Binding
				}
				fmt.Fprintf(e.out, "  %s %s%s\n", grant.Role, where, by)
			}
			return nil
		}}
	e.outputFlag(cmd, answerForms)
	return cmd
}

// sessionsCommand lists and ends sessions.
func (e *env) sessionsCommand() *cobra.Command {
	var end string
	cmd := &cobra.Command{Use: "sessions", Short: "List the sessions that there are, or end those of somebody",
		Example: "  bocage controller sessions\n  bocage controller sessions --end alice", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			if end != "" {
				ended, err := c.EndSessions(cmd.Context(), end)
				if err != nil {
					return err
				}
				fmt.Fprintf(e.out, "%d %s ended\n", ended, plural(ended, "session"))
				return nil
			}
			sessions, err := c.Sessions(cmd.Context())
			if err != nil {
				return err
			}
			if e.output != "" && e.output != "table" && e.output != "wide" {
				return printEach(e, sessions)
			}
			table := tabwriter.NewWriter(e.out, 0, 0, 3, ' ', 0)
			fmt.Fprintln(table, "NAME\tROLE\tNAMESPACES\tMADE BY\tUNTIL")
			for _, s := range sessions {
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", s.Person.Name, s.Person.Role, dash(strings.Join(s.Person.Namespaces, ",")), dash(s.Person.Maker), moment(s.Expires))
			}
			return table.Flush()
		}}
	cmd.Flags().StringVar(&end, "end", "", "end every session of this name, and those that were made with them")
	e.outputFlag(cmd, answerForms)
	return cmd
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func (e *env) approveCommand() *cobra.Command {
	var generation int64
	var deletion bool
	cmd := &cobra.Command{Use: "approve KIND NAME", Short: "Agree, as a second person, to a guardrail, an exception, what takes from guardrails' reach, or a deletion",
		Example: "  bocage get guardrail pci -o yaml\n  bocage approve guardrail pci --generation 3\n  bocage approve exception audit-tool\n  bocage approve guardrail pci --deletion",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, ok := bocage.KindNamed(args[0])
			if !ok || !bocage.Approvable(kind.Name) {
				return usage("%q cannot be approved: guardrails, exceptions, scopes, address groups, inspection profiles and zones can", args[0])
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			if deletion {
				if _, err := c.ApproveDeletion(cmd.Context(), kind, "", args[1], generation); err != nil {
					return err
				}
				fmt.Fprintf(e.out, "%s/%s: its deletion is approved\n", kind.Plural, args[1])
				return nil
			}
			object, err := c.Approve(cmd.Context(), kind, "", args[1], generation)
			if err != nil {
				return err
			}
			fmt.Fprintf(e.out, "%s/%s approved: generation %d is in force\n", kind.Plural, args[1], object.Meta().Generation)
			return nil
		}}
	cmd.Flags().Int64Var(&generation, "generation", 0, "approve this generation and no other (default: the one that is there)")
	cmd.Flags().BoolVar(&deletion, "deletion", false, "agree that it goes")
	return cmd
}

// shortMessage is how many letters of a message the trail's table shows unless it is wide.
const shortMessage = 100

func (e *env) auditCommand() *cobra.Command {
	var from uint64
	var who string
	cmd := &cobra.Command{Use: "audit", Short: "Show who changed what, from where and with which outcome",
		Long: `Show who changed what, or tried to, from where and with which outcome: the trail of
the controller that answers. It is for administrators and auditors.`,
		Example: "  bocage audit --who alice@example.org\n  bocage audit verify", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			var table *tabwriter.Writer
			told := false
			if e.output == "" || e.output == "table" || e.output == "wide" {
				table = tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(table, "ENTRY\tTIME\tWHO\tFROM\tVERB\tWHAT\tCODE\tMESSAGE")
			}
			err = c.Audit(cmd.Context(), from, func(entry audit.Entry) error {
				if who != "" && entry.Who != who && !strings.HasPrefix(entry.Who, who+" of ") {
					return nil
				}
				if table == nil {
					return json.NewEncoder(e.out).Encode(entry)
				}
				what := entry.Resource
				if entry.Name != "" {
					what += " " + strings.TrimPrefix(entry.Namespace+"/"+entry.Name, "/")
				}
				if entry.DryRun {
					what += " (dry run)"
				}
				message := strings.ReplaceAll(entry.Message, "\n", "; ")
				if text := []rune(message); len(text) > shortMessage && e.output != "wide" {
					message = string(text[:shortMessage]) + "…"
				}
				told = true
				_, err := fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", entry.Sequence, moment(entry.Time),
					entry.Who, dash(entry.From), entry.Verb, what, entry.Code, message)
				return err
			})
			if table != nil && (told || err == nil) {
				err = errors.Join(err, table.Flush())
			}
			return err
		}}
	cmd.Flags().Uint64Var(&from, "from", 0, "number of the first entry")
	cmd.Flags().StringVar(&who, "who", "", "only what this person did")
	e.outputFlag(cmd, streamForms)
	cmd.AddCommand(e.auditVerifyCommand())
	return cmd
}

func (e *env) auditVerifyCommand() *cobra.Command {
	var dir, last string
	var from uint64
	cmd := &cobra.Command{Use: "verify", Short: "Check that nothing was changed in, taken out of or cut off the audit trail",
		Long: `Check that every entry of the audit trail is what was written and names the one
before, and that the trail is the one whose newest hash the store keeps, where
every controller has it. With --dir it reads a folder, without any controller,
and cannot know whether entries are missing at the end: --last takes the hash
that an earlier check, or the store, had. A trail that a controller found without
its end when it began does not hold for good; --from checks what came after.`,
		Example: "  bocage audit verify\n  bocage audit verify --dir /mnt/backup/audit --last 1f6b…", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, against := &audit.Verifier{Has: last}, ""
			summary, err := audit.Summary{}, error(nil)
			switch {
			case dir == "":
				summary, against, err = e.verifyTrail(cmd, from, v)
			case last == "":
				summary, err = audit.Verify(dir, from, v)
				against = "; whether entries are missing at the end is not known without --last"
			default:
				summary, err = audit.Verify(dir, from, v)
			}
			var broken *audit.Break
			switch {
			case errors.As(err, &broken):
				return &exitError{exitFailed, "the audit trail is broken: " + broken.Error()}
			case err != nil:
				return err
			case summary.Entries == 0 && from > 0:
				return &exitError{exitFailed, fmt.Sprintf("the audit trail has no entry from %d on", from)}
			case summary.Entries == 0:
				return &exitError{exitFailed, "the audit trail has no entries: if there ever were some, they were taken away"}
			case e.output == "json":
				return e.printValue(summary)
			}
			fmt.Fprintf(e.out, "✓ %d entries, %d to %d%s\n  %s\n", summary.Entries, summary.First, summary.Last, against, summary.Hash)
			if summary.First > max(from, 1) {
				fmt.Fprintf(e.out, "  older entries are elsewhere: the trail here begins at entry %d\n", summary.First)
			}
			return nil
		}}
	cmd.Flags().StringVar(&dir, "dir", "", "check the trail in this folder")
	cmd.Flags().StringVar(&last, "last", "", "an entry with this hash has to be there")
	cmd.Flags().Uint64Var(&from, "from", 0, "check from this entry on")
	e.outputFlag(cmd, answerForms)
	return cmd
}

// verifyTrail checks the trail of the controller that answers.
func (e *env) verifyTrail(cmd *cobra.Command, from uint64, v *audit.Verifier) (audit.Summary, string, error) {
	c, err := e.client()
	if err != nil {
		return audit.Summary{}, "", err
	}
	// The hash is read first: what is written meanwhile is newer.
	controller, anchors, err := c.AuditAnchors(cmd.Context())
	if err != nil {
		return audit.Summary{}, "", err
	}
	against := "; the store has no hash of it yet"
	if anchor, ok := anchors[controller]; ok {
		v.Anchors = map[uint64]string{anchor.Sequence: anchor.Hash}
		against = fmt.Sprintf(", as the store has it at entry %d", anchor.Sequence)
	}
	err = c.Audit(cmd.Context(), from, v.Next)
	var refused *client.Error
	if errors.As(err, &refused) && strings.Contains(refused.Message, "damaged") {
		return audit.Summary{}, "", &audit.Break{At: controller, What: refused.Message}
	}
	if err != nil {
		return audit.Summary{}, "", err
	}
	summary, err := v.End()
	return summary, against, err
}
