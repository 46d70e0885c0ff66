package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"bocage.dev/bocage"
	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/node"
)

// Exit codes: what a script can rely on.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 2
	exitDifference = 3 // plan: something would change
	exitDenied     = 4 // explain: the flow is refused (who may not ask gets exitFailed)
	exitNotReady   = 5 // doctor: something that is needed is missing; quarantine: not in force yet
	exitRisky      = 6 // refused because it might cut you off
	exitDisagree   = 7 // trace: the programs in the kernel and the model differ
)

// exitError carries an exit code; its text may be empty when all is said.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Sprintf(format, args...)}
}

// env is everything a command touches besides the network, so that tests can
// replace it.
type env struct {
	in       io.Reader
	out, err io.Writer
	terminal bool

	// Persistent flags.
	runDir      string
	server      string
	ca          string
	trustDomain string
	token       string
	certificate string
	output      string
	debug       bool

	// endless says that the command goes on until somebody ends it.
	endless bool
	// held is what was said last of policy that is held.
	held string
}

func environment() *env {
	info, err := os.Stdout.Stat()
	return &env{in: os.Stdin, out: os.Stdout, err: os.Stderr,
		terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, e *env, args []string) int {
	out, fault := &screen{to: e.out, env: e}, &screen{to: e.err, env: &env{}}
	e.out, e.err = out, fault
	defer out.end()
	defer fault.end()
	root := e.rootCommand()
	root.SetArgs(args)
	root.SetIn(e.in)
	root.SetOut(e.out)
	root.SetErr(e.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var faults bocage.Faults
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		if exit.text != "" {
			fmt.Fprintln(e.err, "bocage: "+exit.text)
		}
		return exit.code
	case errors.As(err, &faults) && onlyReads(cmd):
		for _, fault := range faults {
			fmt.Fprintln(e.err, "bocage: "+fault.String())
		}
		return exitFailed
	case errors.As(err, &faults):
		fmt.Fprintf(e.err, "bocage: %d %s; nothing was changed:\n", len(faults), plural(len(faults), "fault"))
		for _, fault := range faults {
			fmt.Fprintln(e.err, "  "+fault.String())
		}
		return exitFailed
	case ctx.Err() != nil && e.endless:
		return exitOK // the person ended what has no end of its own
	case ctx.Err() != nil:
		fmt.Fprintln(e.err, "bocage: interrupted: "+err.Error())
		return exitFailed
	default:
		fmt.Fprintln(e.err, "bocage: "+err.Error())
		if e.server == "" && (errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)) && errors.As(err, new(*net.OpError)) {
			fmt.Fprintln(e.err, "  start one here with `bocage up`, or name another with --server or --run-dir")
		}
		if plural, _, found := strings.Cut(err.Error(), ".bocage.dev "); found && client.HasReason(err, client.ReasonNotFound) {
			fmt.Fprintf(e.err, "  `bocage get %s` lists those that there are\n", plural)
		}
		return exitFailed
	}
}

func plural(n int, word string) string { return either(n, word, word+"s") }

// either picks the words for one thing or for many.
func either(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func (e *env) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "bocage", Version: version,
		Short: "A hedge around every workload of a data center",
		Long: `Bocage filters, inspects, deceives, recognises and decides between any two
workloads, outside all of them. Start with "bocage up" (monitor mode: nothing is
refused), look with "bocage observe -f", and let "bocage policy suggest" write
the first policy.

Exit codes: 0 ok, 1 failed, 2 usage, 3 difference found, 4 the flow is refused, 5 not ready,
6 refused as risky, 7 kernel and model disagree.`,
		SilenceUsage: true, SilenceErrors: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&e.runDir, "run-dir", node.DefaultRunDir, "folder with the local controller's socket")
	flags.StringVar(&e.server, "server", os.Getenv("BOCAGE_SERVER"), "URL of a controller's API (default: the local socket; env BOCAGE_SERVER)")
	flags.StringVar(&e.ca, "ca", os.Getenv("BOCAGE_CA"), "file with the trust bundle of --server (env BOCAGE_CA)")
	flags.StringVar(&e.token, "token-file", os.Getenv("BOCAGE_TOKEN_FILE"), "file with a bearer token for --server (env BOCAGE_TOKEN_FILE)")
	flags.StringVar(&e.certificate, "certificate", os.Getenv("BOCAGE_CERTIFICATE"), "file with a client certificate and its key for --server, as bocage user certificate makes it (env BOCAGE_CERTIFICATE)")
	flags.StringVar(&e.trustDomain, "trust-domain", node.DefaultTrustDomain, "SPIFFE trust domain")
	flags.BoolVar(&e.debug, "debug", false, "log what happens in detail, on standard error")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("%v: see `%s --help`", err, cmd.CommandPath())
	})
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run"},
		&cobra.Group{ID: "see", Title: "See"},
		&cobra.Group{ID: "decide", Title: "Decide"},
		&cobra.Group{ID: "defend", Title: "Defend"},
	)
	group := func(id string, commands ...*cobra.Command) {
		for _, command := range commands {
			command.GroupID = id
			root.AddCommand(command)
		}
	}
	group("run", e.upCommand(), e.agentCommand(), e.controllerCommand(), e.demoCommand(), e.labCommand(), e.installCommand(), e.uninstallCommand(), e.offCommand(), e.doctorCommand(), e.userCommand(), e.loginCommand(), e.logoutCommand(), e.whoamiCommand())
	group("see", e.observeCommand(), e.getCommand(), e.watchCommand(), e.huntCommand(), e.auditCommand(), e.failsafeCommand(), e.graphCommand())
	group("decide", e.applyCommand(), e.deleteCommand(), e.planCommand(), e.policyCommand(), e.explainCommand(), e.traceCommand(), e.simulateCommand(), e.approveCommand())
	group("defend", e.incidentCommand(), e.quarantineCommand(), e.decoyCommand())
	root.AddCommand(e.versionCommand(), e.prepareCommand())
	root.AddCommand(helperCommands()...)
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetOut(e.out) // completion keeps what it is now
	helpErrors(root)
	usageErrors(root)
	return root
}

// logger writes to standard error; quiet unless --debug for one-shot commands.
func (e *env) logger(level slog.Level) *slog.Logger {
	if e.debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(e.err, &slog.HandlerOptions{Level: level}))
}

func (e *env) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(e.out, version) }}
}

func (e *env) graphCommand() *cobra.Command {
	return &cobra.Command{Use: "graph", Short: "Print which function writes and reads which word", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return node.WriteGraph(e.out) }}
}
