package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/dataplane"
	"bocage.dev/bocage/host"
)

// Prepare makes ready, as root, for an agent that runs as a user: the bpffs that it
// pins in, the programs in it, which load leaves as that user, and what an agent that
// ran as root left. First it leaves word of what it is about to make, so that Off finds
// it though no agent ever runs.
func Prepare(cfg Config, uid, gid int, load func(Config) error) error {
	cfg, err := cfg.Complete()
	if err != nil {
		return err
	}
	if pid := runningAs(filepath.Join(cfg.RunDir, agentPIDFile)); pid != 0 {
		return fmt.Errorf("prepare %s: process %d is its agent: stop it first", cfg.RunDir, pid)
	}
	run, err := openRunDir(cfg.RunDir, gid)
	if err != nil {
		return fmt.Errorf("make the run folder: %w", err)
	}
	defer run.Close()
	for name, word := range map[string]string{hostFile: cfg.Host, pinsFile: cfg.BPFFS} {
		if err := leave(filepath.Join(cfg.RunDir, name), word); err != nil {
			return fmt.Errorf("leave word in %s: %w", cfg.RunDir, err)
		}
	}
	if err := dataplane.Prepare(cfg.BPFFS, uid, gid); err != nil {
		return err
	}
	if err := load(cfg); err != nil {
		return err
	}
	// The run folder is sticky: only who has a file may replace it.
	for _, name := range []string{agentPIDFile, "agent.sock", hostFile, pinsFile} {
		if err := host.HandOverFile(run, name, uid, gid); err != nil {
			return err
		}
	}
	return handOverState(cfg.agentDir(""), uid, gid)
}

// openRunDir makes the run folder as systemd-tmpfiles does, where that did not.
func openRunDir(dir string, gid int) (*os.File, error) {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		if err = os.Chown(dir, 0, gid); err == nil {
			err = os.Chmod(dir, 0o775|fs.ModeSticky)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.Open(dir)
}

// handOverState gives the agent's state to its user, where it is a folder of its own
// that is there.
func handOverState(dir string, uid, gid int) error {
	if uid == 0 {
		return nil
	}
	folder, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("hand over the agent's state: %w", err)
	}
	defer folder.Close()
	return host.HandOver(folder, uid, gid)
}
