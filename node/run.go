package node

import (
	"context"
	"errors"
	"fmt"
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
// ends. With both roles in one process the agent is admitted at once.
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
	release, err := claim(cfg.RunDir, cfg.Host)
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
	if cfg.Agent {
		group.Go(func() error { return runAgent(ctx, cfg, registry) })
	}
	if ready != nil {
		ready()
	}
	return ended(group.Wait())
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

// claim makes sure that one process only uses a run folder, and leaves its
// number there for `bocage off`.
func claim(dir, host string) (release func(), err error) {
	path := pidPath(dir)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(path)
		file.Close()
		return nil, fmt.Errorf("process %s uses %s already: stop it, or give this one another --run-dir and --state-dir", strings.TrimSpace(string(pid)), dir)
	}
	err = file.Truncate(0)
	if err == nil {
		_, err = file.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	}
	if err == nil {
		err = writeFile(filepath.Join(dir, hostFile), []byte(host), 0o600)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("claim %s: %w", dir, err)
	}
	return func() { file.Close() }, nil // the files stay, for bocage off
}

// hostFile keeps the host's name, by which bocage off finds its things.
const hostFile = "host"

func pidPath(dir string) string { return filepath.Join(dir, "bocage.pid") }

// running returns the process that holds the run folder, or 0.
func running(dir string) int {
	file, err := os.Open(pidPath(dir))
	if err != nil {
		return 0
	}
	defer file.Close()
	if syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil {
		return 0 // nobody holds it: left by a killed process
	}
	data, err := os.ReadFile(pidPath(dir))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	return pid
}
