package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// stateEvery is how often the state folder is tried.
const stateEvery = 5 * time.Second

// watchState tells, as a fault of the host, when what the agent must remember can
// not be written: a full disk, a file system that became read-only. Enforcement
// goes on; a restart would know only what was kept before.
func (a *agentProcess) watchState(ctx context.Context) error {
	tick := time.NewTicker(stateEvery)
	defer tick.Stop()
	for {
		if err := tryState(a.cfg.agentDir("")); err != nil {
			a.faults.set("state", fmt.Sprintf("the state folder cannot be written, so a restart would not know the newest ruleset: %v", err))
		} else {
			a.faults.clear("state")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// tryState writes as much as a small ruleset has, and takes it away again.
func tryState(dir string) error {
	const enough = 64 << 10
	path := filepath.Join(dir, ".try")
	err := os.WriteFile(path, make([]byte, enough), 0o600)
	if removed := os.Remove(path); err == nil && removed != nil {
		err = removed
	}
	return err
}
