package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host"
	"bocage.dev/bocage/node"
	"bocage.dev/bocage/packaging"
)

// prepareCommand does, as root, what the agent's own user may not: it is a step of
// the agent's unit, with the agent's options.
func (e *env) prepareCommand() *cobra.Command {
	var name string
	cfg := node.Config{Agent: true, Controller: true} // which needs no address of one
	cmd := &cobra.Command{Use: "prepare", Short: "Mount a bpffs and load programs for an agent that is not root; a step of its unit", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			owner, err := user.Lookup(name)
			if err != nil {
				return fmt.Errorf("--user: %w: systemd-sysusers makes it", err)
			}
			uid, bad := strconv.Atoi(owner.Uid)
			gid, also := strconv.Atoi(owner.Gid)
			if err := errors.Join(bad, also); err != nil {
				return fmt.Errorf("--user %s: %w", name, err)
			}
			cfg.RunDir, cfg.TrustDomain, cfg.Logger = e.runDir, e.trustDomain, e.logger(slog.LevelWarn)
			return node.Prepare(cfg, uid, gid, func(cfg node.Config) error {
				return loadAs(cmd.Context(), cfg, uid, gid, e.err)
			})
		}}
	e.nodeFlags(cmd, &cfg)
	agentFlags(cmd, &cfg)
	joinFlags(cmd, &cfg, new(string))
	cmd.Flags().StringVar(&name, "user", "bocage", "user that the agent runs as, who must be able to reach --bpffs: /sys/fs/bpf is root's alone on most machines, /run/bocage/bpf is made for this")
	return cmd
}

// loadAs has the agent's programs loaded by its own user, whom what is pinned belongs
// to then, with the one capability more that this takes. Nobody else is there while
// root looks into a folder of that user's.
func loadAs(ctx context.Context, cfg node.Config, uid, gid int, errs io.Writer) error {
	programs := cfg.Dataplane()
	programs.Logger = nil // it has its own
	text, err := json.Marshal(programs)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "load-programs", string(text))
	cmd.Args[0], cmd.Stdout, cmd.Stderr = os.Args[0], errs, errs
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
		AmbientCaps: []uintptr{unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON},
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("load the agent's programs as user %d: %w", uid, err)
	}
	return nil
}

// installation is where an installation goes.
type installation struct {
	root string
	out  io.Writer
}

func (e *env) installCommand() *cobra.Command {
	var root string
	var functions bool
	cmd := &cobra.Command{Use: "install", Short: "Install the program, its users, folders and units; start nothing",
		Long: `Install this program as /usr/bin/bocage with systemd units, users and folders.
Nothing is started and nothing is enforced: put options into /etc/bocage/agent.env
(BOCAGE_AGENT_OPTIONS=--controllers 10.0.0.1:4222 --join /etc/bocage/join) and
/etc/bocage/controller.env, then systemctl enable --now bocage-agent.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return installation{root, e.out}.install(functions)
		}}
	cmd.Flags().StringVar(&root, "root", "/", "install below this folder, for an image")
	cmd.Flags().BoolVar(&functions, "functions", false, "let the agent run the inspection engine and decoys too, as root")
	return cmd
}

func (e *env) uninstallCommand() *cobra.Command {
	cfg := node.Config{Agent: true, Controller: true}
	var root string
	var purge bool
	cmd := &cobra.Command{Use: "uninstall", Short: "Take everything down and remove what install installed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i := installation{root, e.out}
			i.run("systemctl", append([]string{"disable", "--now"}, packaging.Units()...)...)
			var faults []error
			if i.isHere() {
				cfg.RunDir, cfg.TrustDomain, cfg.Logger = e.runDir, e.trustDomain, e.logger(slog.LevelWarn)
				faults = append(faults, node.Off(cmd.Context(), cfg, purge, func(format string, args ...any) {
					fmt.Fprintf(e.out, format+"\n", args...)
				}))
			}
			return errors.Join(append(faults, i.uninstall(purge))...)
		}}
	e.nodeFlags(cmd, &cfg)
	cmd.Flags().StringVar(&root, "root", "/", "remove below this folder, of an image")
	cmd.Flags().BoolVar(&purge, "purge", false, "remove state, options and users, too")
	return cmd
}

func (i installation) path(name string) string { return filepath.Join(i.root, name) }

func (i installation) isHere() bool { return filepath.Clean(i.root) == "/" }

// run runs a tool of the machine's, where the installation is of this machine and
// the tool is there: images are finished when they start.
func (i installation) run(name string, arguments ...string) {
	if !i.isHere() {
		return
	}
	if _, err := exec.LookPath(name); err != nil {
		return
	}
	if out, err := exec.Command(name, arguments...).CombinedOutput(); err != nil {
		fmt.Fprintf(i.out, "! %s %s: %v: %s\n", name, strings.Join(arguments, " "), err, bytes.TrimSpace(out))
	}
}

func (i installation) install(functions bool) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if err := copyProgram(program, i.path(packaging.Program)); err != nil {
		return err
	}
	fmt.Fprintf(i.out, "✓ %s\n", i.path(packaging.Program))
	for _, file := range packaging.Files() {
		if file.Optional && !functions {
			continue
		}
		path := i.path(file.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("install %s: %w", path, err)
		}
		if err := os.WriteFile(path, []byte(file.Text), 0o644); err != nil {
			return fmt.Errorf("install %s: %w", path, err)
		}
		fmt.Fprintf(i.out, "✓ %s\n", path)
	}
	if err := os.MkdirAll(i.path("etc/bocage"), 0o755); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	i.run("systemd-sysusers", i.path("usr/lib/sysusers.d/bocage.conf"))
	i.run("systemd-tmpfiles", "--create", i.path("usr/lib/tmpfiles.d/bocage.conf"))
	i.reload()
	fmt.Fprintln(i.out, "  next: options into /etc/bocage/agent.env, then systemctl enable --now bocage-agent")
	return nil
}

// reload has systemd read its units anew, where it runs the machine.
func (i installation) reload() {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		i.run("systemctl", "daemon-reload")
	}
}

// copyProgram replaces the program as a whole, so that one which runs goes on.
func copyProgram(from, to string) error {
	if same, err := sameFile(from, to); same || err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("install %s: %w", to, err)
	}
	source, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("install %s: %w", to, err)
	}
	defer source.Close()
	target, err := os.OpenFile(to+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return fmt.Errorf("install %s: %w", to, err)
	}
	_, err = io.Copy(target, source)
	err = errors.Join(err, target.Close())
	if err == nil {
		err = os.Rename(to+".new", to)
	}
	if err != nil {
		return fmt.Errorf("install %s: %w", to, errors.Join(err, os.Remove(to+".new")))
	}
	return nil
}

func sameFile(a, b string) (bool, error) {
	x, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	y, err := os.Stat(b)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(x, y), err
}

func (i installation) uninstall(purge bool) error {
	var faults []error
	remove := func(name string) {
		path := i.path(name)
		switch err := os.Remove(path); {
		case err == nil:
			fmt.Fprintf(i.out, "✓ %s removed\n", path)
		case !errors.Is(err, fs.ErrNotExist):
			faults = append(faults, err)
		}
	}
	for _, file := range packaging.Files() {
		remove(file.Path)
	}
	if dropIns := i.path("etc/systemd/system/bocage-agent.service.d"); isEmpty(dropIns) {
		faults = append(faults, os.Remove(dropIns))
	}
	remove(packaging.Program)
	if purge {
		for _, dir := range []string{"etc/bocage", "run/bocage", "var/lib/bocage"} {
			if mounted := filepath.Join(i.path(dir), "bpf"); host.IsBPFFS(mounted) {
				faults = append(faults, fmt.Errorf("%s is still mounted: bocage off", mounted))
				continue
			}
			faults = append(faults, os.RemoveAll(i.path(dir)))
		}
		for _, name := range packaging.Users() {
			if _, err := user.Lookup(name); err == nil {
				i.run("userdel", name)
			}
			if _, err := user.LookupGroup(name); err == nil {
				i.run("groupdel", name)
			}
		}
	}
	i.reload()
	return errors.Join(faults...)
}

func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) == 0
}
