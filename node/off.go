package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/deception"
	"bocage.dev/bocage/host"
	"bocage.dev/bocage/inspection/suricata"
)

// stopPatience is how long a process may take to end by itself.
const stopPatience = 10 * time.Second

// Off takes an installation down: the process that runs it, every hook and map
// in the kernel, the inspection engine, the decoys, the run folder, and with
// purge the state too. It works without any controller and after a crash, and
// goes on past what fails.
func Off(ctx context.Context, cfg Config, purge bool, say func(format string, args ...any)) error {
	cfg, err := cfg.found().Complete()
	if err != nil {
		return err
	}
	var faults []error
	step := func(what string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", what, err))
			say("✗ %s: %v", what, err)
			return
		}
		say("✓ %s", what)
	}
	pids := running(cfg.RunDir)
	for _, pid := range pids {
		step(fmt.Sprintf("process %d stopped", pid), stop(ctx, pid))
	}
	_, missing := os.Lstat(cfg.PinDir())
	_, unsaid := readWord(filepath.Join(cfg.RunDir, pinsFile))
	elsewhere := unsaid == nil && missing != nil && !host.IsBPFFS(nearest(cfg.BPFFS))
	if elsewhere {
		step("find what enforces", fmt.Errorf("an agent was to pin it in %s, and no bpffs is mounted there: in another mount namespace (ip netns exec makes one) this sees nothing of it; run `bocage off` again where the agent ran, or by nsenter --net", cfg.PinDir()))
	} else {
		step("kernel hooks and maps of "+cfg.PinDir()+" removed", removeHooks(ctx, cfg.PinDir()))
	}
	others, err := otherInstallations(cfg)
	switch {
	case err != nil:
		step("look for what else enforces", err)
	case elsewhere:
	case len(others) == 0:
		say("✓ nothing is filtered")
	case len(pids) == 0 && missing != nil: // so it is probably one of these that was meant
		step("nothing is filtered", fmt.Errorf("nothing of host %s was there, and %s", cfg.Host, stillEnforcing(others)))
	default:
		say("! %s", stillEnforcing(others))
	}
	step("inspection engine removed", suricata.Remove(cfg.inspectionConfig()))
	step("decoys removed", deception.Remove(deception.Config{
		Host: cfg.Host, Namespace: cfg.decoyNamespace(), Dir: cfg.agentDir("decoys"), Logger: cfg.Logger,
	}))
	if elsewhere { // what is left there says where to look
		return errors.Join(faults...)
	}
	step(cfg.RunDir+" cleared", removeOwn(cfg.RunDir, "api.sock", "agent.sock", otherPIDFile, agentPIDFile, hostFile, pinsFile, "inspection"))
	if purge {
		step(cfg.StateDir+" cleared", removeOwn(cfg.StateDir, "controller", "agent"))
	}
	_ = os.Remove(filepath.Dir(cfg.PinDir())) // unless another installation is in it
	return errors.Join(faults...)
}

// nearest is the folder itself or the first above it that there is.
func nearest(dir string) string {
	for {
		if _, err := os.Lstat(dir); err == nil || dir == "/" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// otherInstallations lists the folders in which others than this installation pin what
// enforces, as far as they are where installations usually are.
func otherInstallations(cfg Config) ([]string, error) {
	var found []string
	parents := []string{cfg.BPFFS, DefaultBPFFS, unitBPFFS}
	slices.Sort(parents)
	for _, parent := range slices.Compact(parents) {
		entries, err := os.ReadDir(parent)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			dir := filepath.Join(parent, e.Name())
			if !e.IsDir() || dir == cfg.PinDir() {
				continue
			}
			enforces, err := dataplane.Enforces(dir)
			if err != nil {
				return nil, err
			}
			if enforces {
				found = append(found, dir)
			}
		}
	}
	return found, nil
}

func stillEnforcing(dirs []string) string {
	return fmt.Sprintf("another installation still enforces (%s): `bocage off --host NAME` takes it away, with the --run-dir that it was started with", strings.Join(dirs, ", "))
}

// removeOwn removes what this installation made in a folder, and the folder if
// nothing else is in it.
func removeOwn(dir string, names ...string) error {
	var faults []error
	for _, name := range names {
		faults = append(faults, os.RemoveAll(filepath.Join(dir, name)))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// stop asks the process to end, and ends it if it takes too long.
func stop(ctx context.Context, pid int) error {
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		if errors.Is(err, syscall.ESRCH) {
			return nil
		}
		return err
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for begun := time.Now(); alive(pid); {
		if time.Since(begun) > stopPatience {
			return host.KillProcess(pid, stopPatience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// alive reports whether a process still runs; one that has ended and waits for
// its parent to notice does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, found := strings.Cut(string(stat), ") ") // the name before may hold anything
	return !found || !strings.HasPrefix(rest, "Z")
}

// removeHooks tries for a moment: the kernel lets go of an ended process's files
// a little after the process is gone.
func removeHooks(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for {
		err := dataplane.Remove(dir)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
