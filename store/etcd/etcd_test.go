package etcd_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
	"bocage.dev/bocage/store/storetest"
)

func open(t testing.TB, config etcd.Config) *etcd.Store {
	t.Helper()
	if config.Dir == "" {
		config.Dir = filepath.Join(t.TempDir(), "store")
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	s, err := etcd.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, etcd.Config{}) })
}

func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	storetest.Reopen(t, func(t *testing.T) store.Store { return open(t, etcd.Config{Dir: dir}) })
}

func isTooLarge(err error) bool { return errors.Is(err, store.ErrTooLarge) }

// shortly is a context for what is expected to fail.
func shortly(t *testing.T) context.Context {
	ctx, stop := context.WithTimeout(t.Context(), 500*time.Millisecond)
	t.Cleanup(stop)
	return ctx
}
