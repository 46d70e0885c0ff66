// Package store keeps the words that describe the desired and the reported
// state: replicated, versioned and watchable. It promises strict serialisable
// reads and writes by key, revisions that only grow, and watches that miss
// nothing. It knows nothing of what the values mean.
//
// Engines live in sub-packages: mem for tests and offline work, etcd for
// everything else. storetest holds the conformance suite that both pass.
package store

import (
	"context"
	"errors"
	"fmt"
)

// Revision counts every change of a store; an entry's revision is that of its
// last change.
type Revision int64

// Preconditions for Put and Delete besides an exact revision.
const (
	AnyRevision Revision = -1 // write whatever is there
	Absent      Revision = 0  // write only if the key does not exist
)

// Errors that every engine returns, wrapped with the key.
var (
	ErrNotFound  = errors.New("not found")
	ErrConflict  = errors.New("changed meanwhile")
	ErrCompacted = errors.New("revision is too old: list again")
	ErrTooLarge  = errors.New("value is too large")
	// ErrFull means that the engine refuses writes to protect its disk; reads go on.
	ErrFull = errors.New("store is full")
	// ErrUnavailable means that the engine did not answer. What was to be written may
	// have been, or may still be.
	ErrUnavailable = errors.New("the store does not answer")
)

// Limits that every engine keeps.
const (
	// MaxValue is the largest value in bytes, MaxKey the longest key.
	MaxValue = 4 << 20
	MaxKey   = 1 << 10
	// MaxOps is the most writes of one Apply, MaxApply the most bytes of all its
	// keys and values together.
	MaxOps   = 1 << 10
	MaxApply = 8 << 20
	// MaxBacklog is how many changes wait for a watch's reader before it is cut
	// off, MaxBacklogBytes how many bytes they may hold.
	MaxBacklog      = 1 << 14
	MaxBacklogBytes = 64 << 20
)

// Entry is one key with its value.
type Entry struct {
	Key      string
	Value    []byte
	Revision Revision
}

// Op is one write of a transaction.
type Op struct {
	Key    string
	Value  []byte
	IfWas  Revision
	Delete bool // delete the key; Value is ignored
}

// Event is one change. Value is nil for a deletion, Previous for a creation.
type Event struct {
	Key      string
	Value    []byte
	Previous []byte
	Revision Revision
	// Progress marks an event without a key that only says how far the watch is.
	Progress bool
	// Last marks the last change of its revision: with it the revision is whole.
	Last bool
}

// Deleted reports whether the event removed its key.
func (e Event) Deleted() bool { return e.Value == nil && !e.Progress }

// Store is implemented by every engine and safe for concurrent use.
type Store interface {
	// Get returns the entry, or ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns the entries whose keys start with prefix, sorted by key,
	// beginning after the key "after" (empty: from the start), at most limit
	// (0: all), with the revision that they were read at. at selects an older
	// revision (0: now) and may return ErrCompacted. The revision is never 0, so
	// that a Watch after it misses nothing, even of an empty store.
	List(ctx context.Context, prefix, after string, limit int, at Revision) ([]Entry, Revision, error)
	// Apply does all writes or none: ErrConflict if a precondition fails,
	// ErrNotFound if an exact revision is asked of a key that is gone. No key
	// may appear twice. It returns the one revision that all writes carry.
	// Deleting a key that does not exist, where the precondition allows it,
	// changes nothing. What is larger than the limits is ErrTooLarge. After any
	// other error the writes may have happened, or may still.
	Apply(ctx context.Context, ops ...Op) (Revision, error)
	// Watch delivers every change of keys with the prefix after revision
	// (0: from now on), in order, to the returned channel, which is closed when
	// ctx ends or the watch breaks; Err on the Watch then tells why. Changes of
	// one revision follow each other in the order of their Ops, and a channel
	// that closes while ctx goes on has delivered whole revisions.
	Watch(ctx context.Context, prefix string, after Revision) (Watch, error)
	// Close releases the engine.
	Close() error
}

// Watch is a running watch.
type Watch interface {
	// Events is closed when the watch ends. A slow reader is cut off rather
	// than served from memory without limit.
	Events() <-chan Event
	// Err returns why Events was closed: nil if the context ended,
	// ErrCompacted if changes were missed or the reader was too slow. It is
	// valid once Events is closed.
	Err() error
	// Progress asks that the watch tell, by a Progress event, once it has delivered
	// everything up to a revision: least, which the store has come to, or if that is 0
	// one not older than the call. An engine that is not sure yet may leave the event
	// out: who needs it asks again. ErrFull means that it cannot tell while it is full.
	Progress(ctx context.Context, least Revision) error
}

// CheckOps returns what is wrong with a transaction before any engine sees it.
func CheckOps(ops []Op) error {
	if len(ops) == 0 {
		return errors.New("apply: there is nothing to write")
	}
	if len(ops) > MaxOps {
		return fmt.Errorf("apply %d writes: %w: at most %d go together", len(ops), ErrTooLarge, MaxOps)
	}
	size := 0
	seen := make(map[string]bool, len(ops))
	for _, op := range ops {
		switch {
		case op.Key == "":
			return errors.New("apply: a key is empty")
		case len(op.Key) > MaxKey:
			return fmt.Errorf("write %.64q...: %w: the key has %d bytes, at most %d are allowed", op.Key, ErrTooLarge, len(op.Key), MaxKey)
		case seen[op.Key]:
			return fmt.Errorf("apply: %q appears twice", op.Key)
		case op.IfWas < AnyRevision:
			return fmt.Errorf("write %q: %d is no revision", op.Key, op.IfWas)
		case !op.Delete && len(op.Value) > MaxValue:
			return fmt.Errorf("write %q: %w: it has %d bytes, at most %d are allowed", op.Key, ErrTooLarge, len(op.Value), MaxValue)
		}
		seen[op.Key] = true
		size += len(op.Key)
		if !op.Delete {
			size += len(op.Value)
		}
	}
	if size > MaxApply {
		return fmt.Errorf("apply %d writes: %w: together they have %d bytes, at most %d are allowed", len(ops), ErrTooLarge, size, MaxApply)
	}
	return nil
}

// Put is Apply of one write.
func Put(ctx context.Context, s Store, key string, value []byte, ifWas Revision) (Revision, error) {
	return s.Apply(ctx, Op{Key: key, Value: value, IfWas: ifWas})
}

// Delete is Apply of one deletion.
func Delete(ctx context.Context, s Store, key string, ifWas Revision) (Revision, error) {
	return s.Apply(ctx, Op{Key: key, Delete: true, IfWas: ifWas})
}
