package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"bocage.dev/bocage/lab"
	"bocage.dev/bocage/lab/demo"
)

func (e *env) demoCommand() *cobra.Command {
	var cfg demo.Config
	var down string
	cmd := &cobra.Command{Use: "demo", Short: "Show the whole loop on a small data center in network namespaces",
		Long: `Show the whole loop on a small data center in network namespaces: monitor,
suggest, prove, enforce, scan, decoy, exploit, quarantine, recovery, killed agents,
removal. Every line printed is an assertion that held; the exit code is 0 only if
all did. It needs root, nmap, nginx, PostgreSQL, Redis and Suricata: "make demo"
installs them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := labName(cfg.Prefix); err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return &exitError{exitNotReady, "the demo makes network namespaces and needs root: run it with sudo"}
			}
			program, err := os.Executable()
			if err != nil {
				return err
			}
			cfg.Program, cfg.Out = program, e.out
			if down != "" {
				return demo.Down(cmd.Context(), cfg, down)
			}
			return demo.Run(cmd.Context(), cfg)
		}}
	cmd.Flags().StringVar(&cfg.Prefix, "name", "demo", "beginning of the namespaces' names")
	cmd.Flags().BoolVar(&cfg.Keep, "keep", false, "leave everything running and say what to try next")
	cmd.Flags().StringVar(&down, "down", "", "take down the kept demo of this folder")
	return cmd
}

func (e *env) labCommand() *cobra.Command {
	var config lab.Config
	up := &cobra.Command{Use: "up", Short: "Stand up two hosts with a shop, its client and an attacker's box, under load",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Up(cmd.Context(), config)
			if err != nil {
				return err
			}
			fmt.Fprintf(e.out, "lab %s stands, under load\n", config.Prefix)
			for _, w := range l.Workloads() {
				fmt.Fprintf(e.out, "  %-14s on %s, namespace %s, %s\n", w.NamespacedName(), w.Spec.Host, l.Namespace(w.NamespacedName()), w.Spec.Addresses[0])
			}
			fmt.Fprintf(e.out, "next: ip netns exec %s bocage up --host h1 &\n      bocage lab workloads --name %s | bocage apply -f -\ntake it down: bocage lab down --name %s\n",
				l.HostNamespace("h1"), config.Prefix, config.Prefix)
			return nil
		}}
	down := &cobra.Command{Use: "down", Short: "Take a lab down, also after a crash", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			stands, err := lab.Exists(config.Prefix)
			if err != nil {
				return err
			}
			if !stands {
				fmt.Fprintf(e.out, "there is no lab %s: nothing to take down (--name names another)\n", config.Prefix)
				return nil
			}
			if err := lab.Down(config.Prefix); err != nil {
				return err
			}
			fmt.Fprintf(e.out, "lab %s is gone\n", config.Prefix)
			return nil
		}}
	workloads := &cobra.Command{Use: "workloads", Short: "Write a lab's Workloads as YAML", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := lab.Open(config)
			if err != nil {
				return err
			}
			return l.WriteWorkloads(e.out)
		}}
	cmd := noun("lab", "Data centers in network namespaces, to try things on", up, down, workloads)
	cmd.PersistentFlags().StringVar(&config.Prefix, "name", "lab", "beginning of the namespaces' names")
	for _, child := range cmd.Commands() {
		child.PreRunE = func(*cobra.Command, []string) error { return labName(config.Prefix) }
	}
	return cmd
}

// labName checks --name.
func labName(name string) error {
	if !lab.ValidName(name) {
		return usage("--name %q cannot begin namespaces' names: at most 12 lower-case letters and digits can, a letter first", name)
	}
	return nil
}
