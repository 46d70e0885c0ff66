package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bocage.dev/bocage/api/client"
	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/deception"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/lab"
	"bocage.dev/bocage/node"
	"bocage.dev/bocage/recognition/lake"
)

// nodeFlags adds the flags that say where a process keeps its things.
func (e *env) nodeFlags(cmd *cobra.Command, cfg *node.Config) {
	flags := cmd.Flags()
	flags.StringVar(&cfg.Host, "host", "", "name of this host (default: the machine's)")
	flags.StringVar(&cfg.StateDir, "state-dir", node.DefaultStateDir, "folder for what must survive: keys, state, events, history")
}

func controllerFlags(cmd *cobra.Command, cfg *node.Config) {
	flags := cmd.Flags()
	flags.StringVar(&cfg.APIListen, "api-listen", node.DefaultAPIListen, "address of the HTTPS API; empty for the local socket only")
	flags.StringVar(&cfg.TransportListen, "transport-listen", node.DefaultTransportListen, "address that agents connect to")
	flags.StringSliceVar(&cfg.Etcd.Endpoints, "etcd", nil, "endpoints of an etcd cluster that this controller shares with others (default: a store of its own)")
	flags.StringVar(&cfg.Etcd.CAFile, "etcd-ca", "", "certificates that the shared etcd's are signed by (default: the system's)")
	flags.StringVar(&cfg.Etcd.CertFile, "etcd-cert", "", "this controller's certificate for the shared etcd")
	flags.StringVar(&cfg.Etcd.KeyFile, "etcd-key", "", "the key of that certificate")
	flags.StringVar(&cfg.Etcd.Prefix, "etcd-prefix", "", "prefix of all keys, for several sites on one etcd")
	flags.BoolVar(&cfg.TwoPerson, "two-person", false, "let guardrails take effect, and go, once a second person approves")
	flags.StringToIntVar(&cfg.Quotas, "quota", nil, "most objects of a kind in each namespace, such as applications=500")
	flags.StringVar(&cfg.OIDC.Issuer, "oidc-issuer", "", "URL of the OpenID Connect provider whose tokens are accepted")
	flags.StringVar(&cfg.OIDC.ClientID, "oidc-client-id", "", "audience that the provider's tokens must have")
	flags.StringVar(&cfg.OIDC.CAFile, "oidc-ca-file", "", "certificates that the provider's is signed by (default: the system's)")
	flags.StringVar(&cfg.OIDC.UsernameClaim, "oidc-username-claim", "", "claim that names the person (default: email; a token without it is refused)")
	flags.StringVar(&cfg.OIDC.GroupsClaim, "oidc-groups-claim", "groups", "claim that names the person's groups")
	flags.StringToStringVar(&cfg.OIDC.RequiredClaims, "oidc-required-claim", nil, "claim that tokens must have, as NAME=VALUE; may be repeated")
	flags.DurationVar(&cfg.QuarantineFor, "quarantine-for", 15*time.Minute, "how long a quarantine by recognition lasts")
}

func agentFlags(cmd *cobra.Command, cfg *node.Config) {
	flags := cmd.Flags()
	flags.StringVar(&cfg.BPFFS, "bpffs", node.DefaultBPFFS, "folder in a bpffs for what enforces")
	flags.BoolVar(&cfg.NoInspection, "no-inspection", false, "do without the inspection engine on this host")
	flags.StringSliceVar(&cfg.Uplinks, "uplink", nil, "interface that carries the host's own traffic and may be enforced on all the same")
	flags.BoolVar(&cfg.AcceptRisk, "accept-risk", false, "allow --uplink to name the interface that carries your session")
	flags.BoolVar(&cfg.DirectDelivery, "direct-delivery", false, "hand packets between workloads of this host past the host's own firewall and stack")
	flags.StringToIntVar(&cfg.TableEntries, "table-entries", nil, "most rows of tables in the kernel, such as rules=1000000,flows=500000 (docs/operations.md, Sizes)")
	flags.StringSliceVar(&cfg.WatchBridges, "watch-bridge", nil, "bridge whose veths and taps are enforcement points from the moment they join")
	flags.StringSliceVar(&cfg.RuntimeSockets, "runtime-socket", nil, "socket of a container runtime, as PATH or PATH=NAMESPACE (default: dockerd's and podman's, where they exist)")
	flags.BoolVar(&cfg.NoDiscovery, "no-discovery", false, "read no container runtime: workloads are those that are declared")
	flags.StringVar(&cfg.WorkloadNamespace, "workload-namespace", "default", "namespace of containers of which no label says another")
	flags.StringSliceVar(&cfg.TrustLabels, "trust-label", nil, "label that containers' owners may choose as it is; all others begin with container/")
	flags.BoolVar(&cfg.NoDeception, "no-deception", false, "do without decoys on this host")
}

func joinFlags(cmd *cobra.Command, cfg *node.Config, tokenFile *string) {
	cmd.Flags().StringSliceVar(&cfg.Controllers, "controllers", nil, "transport addresses of controllers")
	cmd.Flags().StringVar(tokenFile, "join", "", "file with a join token; needed once")
}

func (e *env) serve(cmd *cobra.Command, cfg node.Config) error {
	cfg.RunDir, cfg.TrustDomain, cfg.Version = e.runDir, e.trustDomain, version
	cfg.Logger = e.logger(slog.LevelInfo)
	if cfg.Agent {
		if f, missing := host.Missing(cmd.Context(), host.Machine{}); missing {
			return &exitError{exitNotReady, fmt.Sprintf("%s: %s: %s (`bocage doctor` shows all)", f.Code, f.Detail, f.Cure)}
		}
	}
	err := node.Run(cmd.Context(), cfg, func() { e.greet(cfg) })
	if errors.Is(err, node.ErrRisky) {
		return &exitError{exitRisky, err.Error()}
	}
	return err
}

// greet says what runs now and what to do next.
func (e *env) greet(cfg node.Config) {
	if !cfg.Controller {
		fmt.Fprintf(e.err, "✓ agent enforces what it has; controllers: %s\n", strings.Join(cfg.Controllers, ", "))
		return
	}
	fmt.Fprintf(e.err, "✓ API on %s", filepath.Join(cfg.RunDir, "api.sock"))
	if cfg.APIListen != "" {
		fmt.Fprintf(e.err, " and https://%s", cfg.APIListen)
	}
	fmt.Fprintf(e.err, "\n✓ agents connect to %s\n", cfg.TransportListen)
	fmt.Fprintln(e.err, "✓ monitor mode: nothing is refused until a Scope enforces")
	fmt.Fprintln(e.err, "  next: bocage observe -f")
}

func (e *env) upCommand() *cobra.Command {
	cfg := node.Config{Controller: true, Agent: true}
	cmd := &cobra.Command{Use: "up", Short: "Run controller and agent in one process, everything embedded, in monitor mode",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.serve(cmd, cfg) }}
	e.nodeFlags(cmd, &cfg)
	controllerFlags(cmd, &cfg)
	agentFlags(cmd, &cfg)
	return cmd
}

func (e *env) controllerCommand() *cobra.Command {
	cfg := node.Config{Controller: true}
	cmd := &cobra.Command{Use: "controller", Short: "Run a controller", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.serve(cmd, cfg) }}
	e.nodeFlags(cmd, &cfg)
	controllerFlags(cmd, &cfg)
	cmd.AddCommand(e.sessionCommand(), e.sessionsCommand())
	return cmd
}

// How long the API makes credentials, and risks that are accepted, good for at most.
const (
	mostSession     = 30 * 24 * time.Hour
	mostCertificate = 7 * 24 * time.Hour
	mostRisk        = time.Hour
)

// lasting refuses a --for that the API would take for another, or in words of its own.
func lasting(life, most time.Duration) error {
	if life < time.Second || life > most {
		return usage("--for %s is out of range: from 1s to %s", life, most)
	}
	return nil
}

// sessionCommand makes a bearer token for people and tools that come by HTTPS.
func (e *env) sessionCommand() *cobra.Command {
	person := client.Person{}
	var life time.Duration
	cmd := &cobra.Command{Use: "token PERSON", Short: "Make a bearer token for the HTTPS API, with a role and an end",
		Example: "  bocage user token alice --role viewer > alice.token\n  kubectl --server https://127.0.0.1:8443 --token \"$(cat alice.token)\" ...",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			person.Name = args[0]
			if err := lasting(life, mostSession); err != nil {
				return err
			}
			c, err := e.client()
			if err != nil {
				return err
			}
			session, err := c.CreateSession(cmd.Context(), person, life)
			if err != nil {
				return err
			}
			fmt.Fprintln(e.out, session.Token)
			fmt.Fprintf(e.err, "%s is %s until %s\n", session.Person.Name, session.Person.Role, moment(session.Expires))
			return nil
		}}
	cmd.Flags().StringVar(&person.Role, "role", "viewer", "admin, policy-admin, responder, owner, auditor or viewer")
	cmd.Flags().StringSliceVarP(&person.Namespaces, "namespace", "n", nil, "namespaces of an owner or viewer (a viewer's default: all)")
	cmd.Flags().StringSliceVar(&person.Groups, "group", nil, "groups that the person is in")
	cmd.Flags().DurationVar(&life, "for", 12*time.Hour, "how long it is good for, at most 720h")
	return cmd
}

func (e *env) agentCommand() *cobra.Command {
	cfg := node.Config{Agent: true}
	var tokenFile string
	cmd := &cobra.Command{Use: "agent", Short: "Run the agent of this host",
		Example: "  bocage agent token h2 > h2.token                      # on a controller\n  bocage agent --host h2 --controllers 10.0.0.1:4222 --join h2.token   # on h2",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if tokenFile != "" {
				token, err := os.ReadFile(tokenFile)
				if err != nil {
					return fmt.Errorf("read the join token: %w", err)
				}
				if cfg.JoinToken = strings.TrimSpace(string(token)); cfg.JoinToken == "" {
					return fmt.Errorf("the join token in %s is empty: make one with `bocage agent token HOST` on a controller", tokenFile)
				}
			}
			return e.serve(cmd, cfg)
		}}
	e.nodeFlags(cmd, &cfg)
	agentFlags(cmd, &cfg)
	joinFlags(cmd, &cfg, &tokenFile)
	cmd.AddCommand(&cobra.Command{Use: "token HOST", Short: "Make a token that admits the agent of a host once, within an hour",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := e.client()
			if err != nil {
				return err
			}
			token, _, err := c.JoinToken(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			fmt.Fprintln(e.out, token)
			return nil
		}})
	return cmd
}

func (e *env) offCommand() *cobra.Command {
	cfg := node.Config{Agent: true, Controller: true}
	var purge bool
	cmd := &cobra.Command{Use: "off", Short: "Take everything down: process, kernel hooks, engine, decoys; works without a controller",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return &exitError{exitNotReady, "taking hooks out of the kernel needs root: run it with sudo"}
			}
			cfg.RunDir, cfg.TrustDomain, cfg.Logger = e.runDir, e.trustDomain, e.logger(slog.LevelWarn)
			return node.Off(cmd.Context(), cfg, purge, func(format string, args ...any) {
				fmt.Fprintf(e.out, format+"\n", args...)
			})
		}}
	e.nodeFlags(cmd, &cfg)
	cmd.Flags().BoolVar(&purge, "purge", false, "remove the state folder too: keys, policy, events, history")
	return cmd
}

// helperCommands are the children that the process starts of itself.
func helperCommands() []*cobra.Command {
	hidden := func(use, short string, run func(cmd *cobra.Command, args []string) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Hidden: true, DisableFlagParsing: true, RunE: run}
	}
	return []*cobra.Command{
		hidden("decoy-serve", "Serve decoys; started by an agent", func(cmd *cobra.Command, _ []string) error {
			return deception.Serve(cmd.Context(), os.Stdin, os.Stdout)
		}),
		hidden("load-programs", "Load the programs that an agent enforces by; started by prepare", func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage("load-programs needs the dataplane's configuration as JSON")
			}
			var cfg dataplane.Config
			if err := json.Unmarshal([]byte(args[0]), &cfg); err != nil {
				return usage("load-programs: %v", err)
			}
			cfg.Logger = slog.Default()
			return dataplane.Load(cfg)
		}),
		hidden("lake-query", "Answer one question to the history; started by a controller", func(*cobra.Command, []string) error {
			return lake.ServeQuery(os.Stdin, os.Stdout)
		}),
		hidden("lab-api", "The lab's api workload", func(cmd *cobra.Command, args []string) error {
			return lab.ServeAPI(cmd.Context(), args)
		}),
		hidden("lab-load", "The lab's client workload", func(cmd *cobra.Command, args []string) error {
			return lab.ServeLoad(cmd.Context(), args)
		}),
	}
}
