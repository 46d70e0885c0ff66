package node

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"bocage.dev/bocage/api"
)

// The first administrator comes in with a token that only root on the
// controller's host can read. It works once, for a while, and is made at each
// start until somebody has used one.

// adminTokenLife is how long api takes the token, from the start on.
const adminTokenLife = 10 * time.Minute

// AdminTokenFile is where a controller with a state folder leaves the one-time
// token.
func AdminTokenFile(stateDir string) string {
	return filepath.Join(stateDir, "controller", "admin-token")
}

// makeAdminToken makes the token and its file; empty if one was used before.
func (c *controllerProcess) makeAdminToken(ctx context.Context) (string, error) {
	path := AdminTokenFile(c.cfg.StateDir)
	used, err := api.LoggedInOnce(ctx, c.store)
	if err != nil {
		return "", fmt.Errorf("look for a first login: %w", err)
	}
	if used {
		return "", c.dropAdminToken()
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return "", fmt.Errorf("make a one-time token: %w", err)
	}
	token := base64.RawURLEncoding.EncodeToString(secret)
	if err := writeFile(path, []byte(token+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("leave the one-time token: %w", err)
	}
	c.logger.Info("a one-time token admits the first administrator: bocage login --admin-token PATH",
		slog.String("path", path), slog.Duration("for", adminTokenLife))
	return token, nil
}

func (c *controllerProcess) dropAdminToken() error {
	if err := os.Remove(AdminTokenFile(c.cfg.StateDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the one-time token: %w", err)
	}
	return nil
}

// endAdminToken removes the file when the token works no more.
func (c *controllerProcess) endAdminToken(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-time.After(adminTokenLife):
	}
	if err := c.dropAdminToken(); err != nil {
		c.logger.Warn("the one-time token", "error", err)
	}
	<-ctx.Done()
	return ctx.Err()
}
