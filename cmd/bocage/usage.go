package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// usageErrors makes wrong arguments exit with exitUsage, and say what is wrong with them.
func usageErrors(command *cobra.Command) {
	if check := command.Args; check != nil {
		command.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			switch {
			case err == nil || errors.As(err, new(*exitError)):
				return err
			case strings.Contains(err.Error(), "arg(s)") || strings.HasPrefix(err.Error(), "unknown command"):
				return usage("%s: see `%s --help`", argumentsText(cmd, args), cmd.CommandPath())
			}
			return usage("%v: see `%s --help`", err, cmd.CommandPath())
		}
	}
	for _, child := range command.Commands() {
		usageErrors(child)
	}
}

// argumentsText says what is wrong with arguments that a command does not take.
func argumentsText(cmd *cobra.Command, args []string) string {
	switch {
	case cmd.HasAvailableSubCommands() && len(args) > 0:
		text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
		if cmd.SuggestionsMinimumDistance = 2; len(cmd.SuggestionsFor(args[0])) > 0 {
			return text + ": did you mean " + strings.Join(cmd.SuggestionsFor(args[0]), " or ") + "?"
		}
		if cmd.HasParent() {
			var names []string
			for _, child := range cmd.Commands() {
				if child.IsAvailableCommand() {
					names = append(names, child.Name())
				}
			}
			text += ", which has " + strings.Join(names, ", ")
		}
		return text
	case !strings.Contains(cmd.Use, " "):
		return fmt.Sprintf("%q takes no argument, and %q was given", cmd.CommandPath(), args[0])
	}
	return fmt.Sprintf("write `%s %s`: %d %s given", strings.TrimSuffix(cmd.CommandPath(), " "+cmd.Name()), cmd.Use, len(args), either(len(args), "argument was", "arguments were"))
}

// helpErrors makes help and completion of what there is not exit with exitUsage.
func helpErrors(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, command := range root.Commands() {
		switch command.Name() {
		case "help":
			command.Args = func(_ *cobra.Command, args []string) error {
				of, rest, err := root.Find(args)
				if err == nil && len(rest) == 0 {
					return nil
				}
				if of == nil {
					of = root
				}
				return usage("%s: see `bocage --help`", argumentsText(of, slices.Concat(rest, args)))
			}
		case "completion":
			command.Args = cobra.NoArgs
			command.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
}

// onlyReads reports whether a command changes nothing, so that nobody need be told that
// nothing was changed.
func onlyReads(cmd *cobra.Command) bool {
	return cmd != nil && slices.Contains([]string{"get", "watch", "observe", "hunt", "explain", "trace", "plan", "suggest", "test", "blast", "matrix",
		"history", "show", "verify", "audit", "failsafe", "doctor", "whoami", "simulate", "ls", "sessions"}, cmd.Name())
}

// flowEnd checks one end of the flows that are asked for.
func flowEnd(flag, end string) error {
	if end == "" || strings.Contains(end, "/") {
		return nil // a prefix, or one that the controller knows or does not
	}
	if _, err := netip.ParseAddr(end); err == nil {
		return nil
	}
	return usage("%s %q names nobody: write namespace/name of a workload (`bocage get workloads` lists them), namespace/ for all in a namespace, an address or a prefix", flag, end)
}
