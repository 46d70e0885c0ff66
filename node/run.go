package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"bocage.dev/bocage/store/etcd"
)

// Run makes the process that the configuration describes and serves until ctx
// ends. With both roles in one process the agent is admitted at once. It calls ready
// once every role does its work: an agent when what it has is enforced again. systemd is
// told then too, but waits for no agent that is not admitted yet.
func Run(ctx context.Context, cfg Config, ready func()) error {
	cfg, err := cfg.Complete()
	if err != nil {
		return err
	}
	if err := cfg.checkUplinks(); err != nil {
		return err
	}
	// The engine and the decoys run as users of their own, below the run folder.
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return fmt.Errorf("make the run folder: %w", err)
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	release, err := claim(cfg)
	if err != nil {
		return err
	}
	defer release()
	registry := newRegistry()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	if cfg.Controller {
		etcd.UseThreads()
		controller, err := openController(ctx, cfg, registry)
		if err != nil {
			return err
		}
		defer controller.close()
		started := make(chan struct{})
		group.Go(func() error { return controller.run(ctx, started) })
		if cfg.Agent {
			cfg.Controllers = []string{controller.transport.Address()}
			if cfg.JoinToken, err = controller.admitOwnAgent(ctx); err != nil {
				cancel()
				return errors.Join(err, ended(group.Wait()))
			}
		}
		select {
		case <-started:
		case <-ctx.Done():
			return ended(group.Wait())
		}
	}
	standing := make(chan struct{})
	if cfg.Agent {
		group.Go(func() error { return runAgent(ctx, cfg, registry, func() { close(standing) }) })
	} else {
		close(standing)
	}
	announce(ctx, group, cfg, standing, standPatience, ready)
	return ended(group.Wait())
}

// announce calls ready once everything stands. It tells systemd when patience is over at
// the latest: an agent that waits to be admitted has nothing to enforce, and nobody who
// starts workloads shall wait with it, nor it be ended for having waited.
func announce(ctx context.Context, group *errgroup.Group, cfg Config, standing <-chan struct{}, patience time.Duration, ready func()) {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case <-standing:
	case <-limit.C:
	case <-ctx.Done():
		return
	}
	if err := notify("READY=1"); err != nil {
		cfg.Logger.Warn("tell that it is ready", "error", err)
	}
	group.Go(func() error { return beat(ctx, func() bool { return true }) })
	select {
	case <-standing:
		if ready != nil && ctx.Err() == nil {
			ready()
		}
	case <-ctx.Done():
	}
}

// ended is nil for a part that ended because it was told to.
func ended(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// admitOwnAgent makes a token for the agent of the same process, which then
// joins over the network like any other.
func (c *controllerProcess) admitOwnAgent(ctx context.Context) (string, error) {
	return c.tokens.Create(ctx, "/agent/"+c.cfg.Host, time.Minute)
}

// claim makes sure that one process only has a role in a run folder, and leaves its
// number there for `bocage off`. A controller and an agent that are two processes
// share a folder, as two users.
func claim(cfg Config) (release func(), err error) {
	path := filepath.Join(cfg.RunDir, pidFile(cfg))
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600) // others may write in this folder
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", cfg.RunDir, err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(path)
		file.Close()
		return nil, fmt.Errorf("process %s uses %s already: stop it, or give this one another --run-dir and --state-dir", strings.TrimSpace(string(pid)), cfg.RunDir)
	}
	err = file.Truncate(0)
	if err == nil {
		_, err = file.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	}
	if err == nil {
		err = leave(filepath.Join(cfg.RunDir, hostFile), cfg.Host)
	}
	if err == nil && cfg.Agent {
		err = leave(filepath.Join(cfg.RunDir, pinsFile), cfg.BPFFS)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("claim %s: %w", cfg.RunDir, err)
	}
	return func() { file.Close() }, nil // the files stay, for bocage off
}

// leave writes a word for those who come later, unless it is there already.
func leave(path, word string) error {
	if was, err := readWord(path); err == nil && was == word {
		return nil
	}
	return writeFile(path, []byte(word), 0o644)
}

// readWord reads what was left, from the file itself: others may write in its folder,
// so no link is followed, and nothing waited for.
func readWord(path string) (string, error) {
	file, err := openWord(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	word, err := io.ReadAll(io.LimitReader(file, 1<<12))
	return string(word), err
}

func openWord(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
}

// What a process leaves in its run folder: the host's name, and where its agent
// pins, by which bocage off and doctor find its things.
const (
	hostFile = "host"
	pinsFile = "bpffs"
)

// found fills in what the process of a run folder left there, where it was not said.
func (c Config) found() Config {
	for name, field := range map[string]*string{hostFile: &c.Host, pinsFile: &c.BPFFS} {
		if word, err := readWord(filepath.Join(c.RunDir, name)); err == nil && *field == "" {
			*field = word
		}
	}
	return c
}

// Files with the numbers of processes: of one that is an agent only, and of others.
const (
	agentPIDFile = "agent.pid"
	otherPIDFile = "bocage.pid"
)

func pidFile(cfg Config) string {
	if cfg.Controller {
		return otherPIDFile
	}
	return agentPIDFile
}

// running returns the processes that hold the run folder, as far as that can be seen.
func running(dir string) []int {
	pids, _ := holders(dir)
	return pids
}

// holders returns the processes that hold the run folder, and why there may be others
// that cannot be seen.
func holders(dir string) ([]int, error) {
	var pids []int
	var unseen error
	for _, name := range []string{otherPIDFile, agentPIDFile} {
		pid, err := holder(filepath.Join(dir, name))
		if unseen == nil {
			unseen = err
		}
		if pid != 0 {
			pids = append(pids, pid)
		}
	}
	return pids, unseen
}

func runningAs(path string) int {
	pid, _ := holder(path)
	return pid
}

// holder returns the process that holds a file; 0 is none.
func holder(path string) (int, error) {
	file, err := openWord(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer file.Close()
	if syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil {
		return 0, nil // nobody holds it: left by a killed process
	}
	word, err := readWord(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(word))
	if err != nil {
		return 0, fmt.Errorf("%s holds %q, which is no process", path, word)
	}
	return pid, nil
}
