package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/manifest"
)

// client reaches a controller: the local socket unless --server names another.
func (e *env) client() (*client.Client, error) {
	if e.server == "" && e.token == "" {
		return e.clientWith("") // whoever may open the socket needs no token
	}
	if e.certificate != "" && e.token == "" {
		return e.clientWith("") // the certificate says who it is
	}
	token, err := e.bearer()
	if err != nil {
		return nil, err
	}
	return e.clientWith(token)
}

// clientWith makes a client with a bearer token; empty is none.
func (e *env) clientWith(token string) (*client.Client, error) {
	if e.server == "" {
		return client.New(client.Config{Socket: filepath.Join(e.runDir, "api.sock"), Token: token, Held: e.tellHeld})
	}
	if !strings.HasPrefix(e.server, "https://") {
		return nil, usage("--server %q is not the URL of a controller's API such as https://127.0.0.1:8443", e.server)
	}
	if e.ca == "" {
		return nil, usage("--server needs --ca: the trust bundle is the file authority/bundle.pem in the controller's state folder")
	}
	pem, err := os.ReadFile(e.ca)
	if err != nil {
		return nil, fmt.Errorf("read the trust bundle: %w", err)
	}
	bundle, err := identity.ParseBundle(e.trustDomain, pem)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.ca, err)
	}
	var own *identity.SVID
	if e.certificate != "" {
		if own, err = identity.LoadSVIDFile(e.certificate); err != nil {
			return nil, fmt.Errorf("read the client certificate: %w", err)
		}
		if time.Now().After(own.Expires().Add(identity.ClockTolerance)) {
			return nil, fmt.Errorf("the client certificate %s in %s ended on %s: have a new one made with `bocage user certificate`",
				own.ID(), e.certificate, moment(own.Expires()))
		}
	}
	return client.New(client.Config{
		Address: e.server, Token: token, Held: e.tellHeld,
		TLS: identity.ClientTLS(func() *identity.SVID { return own }, bundle, "/controller/"),
	})
}

// tellHeld says, once, that what was written is not in force.
func (e *env) tellHeld(text string) {
	if e.held != text {
		fmt.Fprintf(e.err, "! %s\n", oneLine(text))
	}
	e.held = text
}

// kindArgument reads a kind's name as people type it.
func kindArgument(name string) (bocage.Kind, error) {
	kind, ok := bocage.KindNamed(name)
	if !ok {
		near := ""
		for _, k := range bocage.Kinds() {
			for _, word := range append([]string{k.Plural, strings.ToLower(k.Name)}, k.Short...) {
				if near == "" && (strings.TrimSuffix(strings.ToLower(name), "s") == word || len(name) > 3 && strings.HasPrefix(word, strings.ToLower(name))) {
					near = fmt.Sprintf(": did you mean %s?", k.Plural)
				}
			}
		}
		return kind, usage("there is no kind %q%s; there are: %s", name, near, kindNames())
	}
	return kind, nil
}

// kindNames lists the kinds as they are asked for.
func kindNames() string {
	var names []string
	for _, k := range bocage.Kinds() {
		names = append(names, k.Plural)
	}
	return strings.Join(names, ", ")
}

// someKind wants a kind first, and says which there are if there is none.
func someKind(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("name a kind: %s", kindNames())
		}
		return cobra.RangeArgs(least, most)(cmd, args)
	}
}

func completeKinds(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, kind := range bocage.Kinds() {
		names = append(names, kind.Plural)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// scopeFlags pick which objects of a kind are meant.
type scopeFlags struct {
	namespace string
	all       bool
	selector  string
}

func (s *scopeFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.namespace, "namespace", "n", "", "namespace (default: all)")
	cmd.Flags().BoolVarP(&s.all, "all-namespaces", "A", false, "all namespaces, whatever -n says")
	cmd.Flags().StringVarP(&s.selector, "selector", "l", "", "label selector, such as app=shop,env!=dev")
}

func (s *scopeFlags) options() client.ListOptions {
	options := client.ListOptions{Namespace: s.namespace, LabelSelector: s.selector}
	if s.all {
		options.Namespace = ""
	}
	return options
}

func (e *env) getCommand() *cobra.Command {
	var scope scopeFlags
	cmd := &cobra.Command{Use: "get KIND [NAME] | get KIND/NAME", Short: "Show objects", Args: someKind(1, 2),
		Long:              "Show objects. Kinds are " + kindNames() + ".",
		ValidArgsFunction: completeKinds,
		Example:           "  bocage get workloads\n  bocage get application shop/api -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if kind, name, found := strings.Cut(args[0], "/"); found && len(args) == 1 {
				args = []string{kind, name} // as -o name writes it
			}
			kind, err := kindArgument(args[0])
			if err != nil {
				return err
			}
			if len(args) == 2 && scope.all {
				return usage("-A shows the %s of all namespaces: leave it out, or the name", kind.Plural)
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			if len(args) == 2 {
				namespace, name, err := objectName(kind, scope.namespace, args[1])
				if err != nil {
					return err
				}
				object, err := c.Get(cmd.Context(), kind, namespace, name)
				if err != nil {
					return err
				}
				return e.printObject(kind, object)
			}
			objects, _, err := c.List(cmd.Context(), kind, scope.options())
			if err != nil {
				return err
			}
			return e.printObjects(kind, objects)
		}}
	scope.add(cmd)
	e.outputFlag(cmd, objectForms)
	return cmd
}

// objectName reads "namespace/name", or a name together with -n.
func objectName(kind bocage.Kind, namespace, name string) (string, string, error) {
	if !kind.Namespaced {
		return "", name, nil
	}
	if dir, base := filepath.Split(name); dir != "" {
		return filepath.Clean(dir), base, nil
	}
	if namespace == "" {
		return "", "", usage("%s %q needs its namespace: NAMESPACE/%s, or -n", kind.Name, name, name)
	}
	return namespace, name, nil
}

func (e *env) watchCommand() *cobra.Command {
	var scope scopeFlags
	cmd := &cobra.Command{Use: "watch KIND", Short: "Show objects, then every change of them", Args: someKind(1, 1),
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := kindArgument(args[0])
			if err != nil {
				return err
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			e.endless = true
			printer := e.newPrinter(kind)
			return c.Watch(cmd.Context(), kind, scope.options(), func(event client.Event) error {
				return printer.event(strings.ToLower(string(event.Type)), event.Object)
			})
		}}
	scope.add(cmd)
	e.outputFlag(cmd, objectForms)
	return cmd
}

func (e *env) applyCommand() *cobra.Command {
	var files []string
	var dryRun, force, acceptRisk bool
	cmd := &cobra.Command{Use: "apply -f FILE...", Short: "Declare objects: all of them, or none if any has a fault",
		Long: `Declare objects: all of them, or none if any has a fault. What would cut a live
administrator's session on some host is refused with exit code 6; --accept-risk
declares it all the same, and lets the hosts put it in force.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("files are named with -f: bocage apply -f %s", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			documents, err := e.read(files)
			if err != nil {
				return err
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			if err := e.keepSessions(cmd.Context(), c, documents, nil, acceptRisk && !dryRun); err != nil {
				return err
			}
			return e.apply(cmd.Context(), c, documents, client.WriteOptions{DryRun: dryRun, Force: force})
		}}
	fileFlag(cmd, &files)
	riskFlag(cmd, &acceptRisk)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "let the server check everything and change nothing")
	cmd.Flags().BoolVar(&force, "force", false, "take over fields that another manager set")
	return cmd
}

func fileFlag(cmd *cobra.Command, files *[]string) {
	pathsFlag(cmd, files, "file", "f", "file, folder, or - for standard input; may be repeated")
}

// read reads every file and returns every fault of all of them.
func (e *env) read(files []string) ([]manifest.Document, error) {
	if len(files) == 0 {
		return nil, usage("name the files with -f, or - for standard input")
	}
	var documents []manifest.Document
	var faults bocage.Faults
	reader := manifest.Reader{Namespace: "default", Seen: manifest.NewSeen(), Note: func(note bocage.Fault) { fmt.Fprintln(e.err, "note: "+note.String()) }}
	for _, file := range files {
		read, found := e.readOne(reader, file)
		documents, faults = append(documents, read...), append(faults, found...)
	}
	return documents, faults.Err()
}

func (e *env) readOne(reader manifest.Reader, file string) ([]manifest.Document, bocage.Faults) {
	if file != "-" {
		return reader.ReadPath(file)
	}
	data, err := io.ReadAll(io.LimitReader(e.in, manifest.MaxBytes+1))
	if err != nil {
		return nil, bocage.Faults{{Source: "standard input", Message: err.Error()}}
	}
	return reader.Read("standard input", data)
}

// refers reports whether objects of the kind name others that have to exist.
func refers(kind string) bool {
	return slices.Contains([]string{"Guardrail", "Exception", "Response", "Decoy", "Quarantine", "ThreatCondition"}, kind)
}

// apply declares all documents together or none. Where they name others, what is
// in force is asked first: a name that does not exist is a fault like any other.
func (e *env) apply(ctx context.Context, c *client.Client, documents []manifest.Document, options client.WriteOptions) error {
	if slices.ContainsFunc(documents, func(d manifest.Document) bool { return refers(d.Resource.Type().Kind) }) {
		if err := e.foresee(ctx, c, documents); err != nil {
			return err
		}
	}
	result, err := c.Apply(ctx, documents, options)
	if err != nil && len(result.Objects) == 0 {
		return err
	}
	suffix := ""
	if result.DryRun {
		suffix = " (dry run)"
	}
	written := 0
	for _, object := range result.Objects {
		if object.Outcome == bocage.OutcomePending {
			object.Outcome = "NOT applied"
		} else {
			written++
		}
		fmt.Fprintf(e.out, "%s %s %s%s\n", object.Kind, kindName(object.Namespace, object.Name), object.Outcome, suffix)
		if object.Note != "" {
			fmt.Fprintf(e.err, "! %s\n", oneLine(object.Note))
		}
	}
	if err != nil {
		// What one write of the store does not hold goes in parts.
		return &exitError{exitFailed, fmt.Sprintf("%d of %d objects were applied, and %d were not, as listed above: %v\n  apply the same again: what was applied stays as it is",
			written, len(result.Objects), len(result.Objects)-written, err)}
	}
	return nil
}

// planPatience is how long an apply waits to hear what it would change. The
// answer is advice: without it the objects are declared all the same.
const planPatience = 30 * time.Second

// foresee refuses documents that make no sense together with what is in force,
// and says what of the rest is remarkable: not least that it would not come into
// force.
func (e *env) foresee(ctx context.Context, c *client.Client, documents []manifest.Document) error {
	within, cancel := context.WithTimeout(ctx, planPatience)
	defer cancel()
	plan, err := c.Plan(within, documents)
	switch {
	case ctx.Err() == nil && errors.Is(within.Err(), context.DeadlineExceeded):
		fmt.Fprintf(e.err, "! what this changes could not be told within %s; `bocage plan` takes its time\n", planPatience)
		return nil
	case err != nil:
		return err
	}
	if err := plan.Faults.Err(); err != nil {
		return err
	}
	for _, finding := range plan.Findings {
		fmt.Fprintf(e.err, "! %s\n", finding)
	}
	for _, proof := range plan.Proofs {
		if !proof.Holds && !proof.Standing {
			fmt.Fprintf(e.err, "! it would not come into force: %s does not hold: %s\n", proof.Statement, proof.Counterexample)
		}
	}
	for _, test := range plan.Tests {
		fmt.Fprintf(e.err, "! PolicyTest %s, %s fails then: want %s, got %s\n", test.Test, test.Case, test.Want, test.Got)
	}
	return nil
}

func (e *env) deleteCommand() *cobra.Command {
	var namespace string
	var files []string
	var acceptRisk bool
	cmd := &cobra.Command{Use: "delete KIND NAME | delete -f FILE", Short: "Delete objects", Args: cobra.RangeArgs(0, 2),
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			if len(files) > 0 {
				documents, err := e.read(files)
				if err != nil {
					return err
				}
				if err := e.keepSessions(cmd.Context(), c, nil, documents, acceptRisk); err != nil {
					return err
				}
				for _, document := range documents {
					kind, _ := bocage.KindNamed(document.Resource.Type().Kind)
					meta := document.Resource.Meta()
					if err := e.delete(cmd.Context(), c, kind, meta.Namespace, meta.Name); err != nil {
						return err
					}
				}
				return nil
			}
			if len(args) != 2 {
				return usage("delete needs a kind and a name, or -f")
			}
			kind, err := kindArgument(args[0])
			if err != nil {
				return err
			}
			space, name, err := objectName(kind, namespace, args[1])
			if err != nil {
				return err
			}
			object, err := c.Get(cmd.Context(), kind, space, name)
			if err != nil {
				return err
			}
			document, err := documentOf(object)
			if err != nil {
				return err
			}
			if err := e.keepSessions(cmd.Context(), c, nil, []manifest.Document{document}, acceptRisk); err != nil {
				return err
			}
			return e.delete(cmd.Context(), c, kind, space, name)
		}}
	riskFlag(cmd, &acceptRisk)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "namespace")
	pathsFlag(cmd, &files, "file", "f", "delete the objects that these files declare")
	return cmd
}

func (e *env) delete(ctx context.Context, c *client.Client, kind bocage.Kind, namespace, name string) error {
	held, err := c.Delete(ctx, kind, namespace, name, client.WriteOptions{})
	switch {
	case err != nil:
		return err
	case held == nil:
		fmt.Fprintf(e.out, "%s %s deleted\n", kind.Name, kindName(namespace, name))
	case slices.Contains(held.Meta().Finalizers, bocage.FinalizerApproval):
		fmt.Fprintf(e.out, "%s %s not deleted yet: it stays in force until a second person agrees: bocage approve %s %s --deletion\n",
			kind.Name, kindName(namespace, name), strings.ToLower(kind.Name), name)
	case len(held.Meta().Finalizers) > 0:
		fmt.Fprintf(e.out, "%s %s marked for deletion: it goes once %s let go of it\n",
			kind.Name, kindName(namespace, name), strings.Join(held.Meta().Finalizers, ", "))
	default:
		fmt.Fprintf(e.out, "%s %s is being deleted\n", kind.Name, kindName(namespace, name))
	}
	return nil
}

// documentOf writes an object as if it had been read from a file.
func documentOf(object bocage.Resource) (manifest.Document, error) {
	data, err := json.Marshal(object)
	return manifest.Document{Resource: object, JSON: data}, err
}

func kindName(namespace, name string) string {
	return (&bocage.ObjectMeta{Namespace: namespace, Name: name}).NamespacedName()
}
