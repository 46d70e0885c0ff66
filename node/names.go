package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// names follows the inventory, so that events, which carry identities, can be
// told in the words that people declared.
type names struct {
	store  store.Store
	logger *slog.Logger

	mu         sync.RWMutex // guards all below
	byIdentity map[bocage.Identity]*bocage.Workload
	byKey      map[string]bocage.Identity
}

func newNames(s store.Store, logger *slog.Logger) *names {
	return &names{store: s, logger: logger, byIdentity: map[bocage.Identity]*bocage.Workload{}, byKey: map[string]bocage.Identity{}}
}

// Workload returns who has the identity, or nil. A workload that is gone keeps
// its name while the process lives: identities are never used twice.
func (n *names) Workload(id bocage.Identity) *bocage.Workload {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.byIdentity[id]
}

// Name returns namespace/name, or "" for an identity without a workload.
func (n *names) Name(id bocage.Identity) string {
	if w := n.Workload(id); w != nil {
		return w.NamespacedName()
	}
	return ""
}

// Run follows the store until ctx ends.
func (n *names) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := n.follow(ctx); err != nil && ctx.Err() == nil {
			n.logger.Warn("follow the inventory", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return ctx.Err()
}

func (n *names) follow(ctx context.Context) error {
	kind, _ := bocage.KindNamed("Workload")
	objects, at, err := store.Objects(ctx, n.store, kind)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.byKey = map[string]bocage.Identity{}
	n.mu.Unlock()
	for _, object := range objects {
		n.put(kind, object)
	}
	watch, err := n.store.Watch(ctx, kind.KeyPrefix(), at)
	if err != nil {
		return err
	}
	for event := range watch.Events() {
		switch {
		case event.Progress:
		case event.Deleted():
			n.mu.Lock()
			delete(n.byKey, event.Key)
			n.mu.Unlock()
		default:
			object, err := store.DecodeObject(kind, store.Entry{Key: event.Key, Value: event.Value, Revision: event.Revision})
			if err != nil {
				return err
			}
			n.put(kind, object)
		}
	}
	if err := watch.Err(); err != nil && !errors.Is(err, store.ErrCompacted) {
		return fmt.Errorf("watch: %w", err)
	}
	return nil
}

func (n *names) put(kind bocage.Kind, object bocage.Resource) {
	workload, ok := object.(*bocage.Workload)
	if !ok || workload.Status.Identity == bocage.IdentityUnknown {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.byIdentity[workload.Status.Identity] = workload
	n.byKey[kind.Key(workload.Namespace, workload.Name)] = workload.Status.Identity
}
