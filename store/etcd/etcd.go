// Package etcd is the store on etcd 3: embedded in this process, or a cluster
// that somebody else runs.
//
// It promises strict serialisable reads and writes, every acknowledged write on
// disk before it is acknowledged, and watches that miss nothing. The embedded
// server listens nowhere unless asked to, and then only on a socket in a
// directory of its owner's; it keeps its history short, gives space back, and
// refuses writes with store.ErrFull before the disk is full, rather than after.
//
// It never turns fsync off, and never opens a TCP port.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"bocage.dev/bocage/store"
)

// DefaultPrefix is what all keys start with in etcd, so that a cluster can be
// shared and an embedded store moved to it.
const DefaultPrefix = "bocage/"

// ErrClosed is why everything fails after Close, and why a watch ended by it.
var ErrClosed = errors.New("the store is closed")

// Store is a store on etcd; see [Open] and [Connect].
type Store struct {
	client *clientv3.Client
	prefix string
	// engine is the embedded server, nil if etcd runs elsewhere.
	engine *engine
	// patience is how long one that runs elsewhere has for an answer.
	patience time.Duration
	// history tells whether one that runs elsewhere is still what it was.
	history *history
	// members tells whether one that runs elsewhere can be asked how far a watch is;
	// fences are what it is asked with if not.
	members *members
	fences  fences
	streams atomic.Int64 // counts the watches' streams, for their names
	// ctx ends with Close, and with it every watch.
	ctx    context.Context
	cancel context.CancelFunc
	close  func() error
	// watches counts the goroutines that Close waits for; mu orders its growth
	// before the end, and is held for nothing else.
	//
	// Lock order: fences.mu, then mu.
	mu      sync.Mutex
	watches sync.WaitGroup
}

func newStore(client *clientv3.Client, prefix string, e *engine, closeAll func() error) *Store {
	ctx, cancel := context.WithCancel(context.Background())
	return &Store{client: client, prefix: prefix, engine: e, ctx: ctx, cancel: cancel, close: sync.OnceValue(closeAll)}
}

// Close implements store.Store: it ends every watch and, of an embedded server,
// the server.
func (s *Store) Close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	s.watches.Wait()
	return s.close()
}

// enter counts one more whom Close waits for, until watches.Done. It reports whether
// there is still time.
func (s *Store) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.watches.Add(1)
	return true
}

// begin runs something that Close waits for.
func (s *Store) begin(run func()) bool {
	if !s.enter() {
		return false
	}
	go func() {
		defer s.watches.Done()
		run()
	}()
	return true
}

// patient bounds the wait for a cluster that may have no majority, or be behind a
// partition: it would be waited for as long as the caller has, which may be for ever.
func (s *Store) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.engine != nil {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.patience)
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	if err := s.usable(ctx); err != nil {
		return store.Entry{}, fmt.Errorf("read %q: %w", key, err)
	}
	response, err := s.read(ctx, s.prefix+key)
	if err != nil {
		return store.Entry{}, fmt.Errorf("read %q: %w", key, s.explain(ctx, err))
	}
	if len(response.Kvs) == 0 {
		return store.Entry{}, fmt.Errorf("read %q: %w", key, store.ErrNotFound)
	}
	kv := response.Kvs[0]
	return store.Entry{Key: key, Value: copied(kv.Value), Revision: store.Revision(kv.ModRevision)}, nil
}

// read asks etcd for what every acknowledged write has left. In a cluster that
// takes a word of the leader's. The embedded server is its only member, which has
// applied, on disk, whatever it acknowledged: what it has is what there is, and
// asking its log for leave would make each read wait for the disk behind the
// writes of others.
func (s *Store) read(ctx context.Context, key string, options ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if s.engine != nil {
		options = append(options, clientv3.WithSerializable())
	}
	ctx, cancel := s.patient(ctx)
	defer cancel()
	before := s.history.far()
	response, err := s.client.Get(ctx, key, options...)
	if err != nil {
		return nil, err
	}
	return response, s.history.follows(before, response.Header)
}

// Responsive asks etcd for a word that only comes while its log and its disk work:
// reads of the embedded server do without.
func (s *Store) Responsive(ctx context.Context) error {
	if err := s.usable(ctx); err != nil {
		return fmt.Errorf("ask the store: %w", err)
	}
	if _, err := s.client.Get(ctx, s.prefix, clientv3.WithCountOnly(), clientv3.WithLimit(1)); err != nil {
		return fmt.Errorf("ask the store: %w", s.explain(ctx, err))
	}
	return nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix, after string, limit int, at store.Revision) ([]store.Entry, store.Revision, error) {
	if err := s.usable(ctx); err != nil {
		return nil, 0, fmt.Errorf("list %q: %w", prefix, err)
	}
	start, end := s.prefix+prefix, clientv3.GetPrefixRangeEnd(s.prefix+prefix)
	if behind := s.prefix + after + "\x00"; after != "" && behind > start {
		start = behind
	}
	options := []clientv3.OpOption{clientv3.WithRange(end)}
	if start >= end { // nothing is behind the last, but the revision is still asked for
		start, options = s.prefix, []clientv3.OpOption{clientv3.WithCountOnly()}
	}
	var entries []store.Entry
	for {
		room := 0
		if limit > 0 {
			room = limit - len(entries)
		}
		response, err := s.read(ctx, start, append(options, clientv3.WithLimit(int64(room)), clientv3.WithRev(int64(at)))...)
		if err != nil {
			return nil, 0, fmt.Errorf("list %q: %w", prefix, s.explain(ctx, err))
		}
		if at == 0 {
			at = store.Revision(response.Header.Revision)
		}
		if entries == nil {
			entries = make([]store.Entry, 0, len(response.Kvs))
		}
		for _, kv := range response.Kvs {
			start = string(kv.Key) + "\x00"
			if !isFence(kv.Key) {
				entries = append(entries, store.Entry{Key: string(kv.Key[len(s.prefix):]), Value: copied(kv.Value), Revision: store.Revision(kv.ModRevision)})
			}
		}
		if limit == 0 || len(response.Kvs) < room || len(entries) == limit {
			return entries, at, nil
		}
	}
}

// Apply implements store.Store.
func (s *Store) Apply(ctx context.Context, ops ...store.Op) (store.Revision, error) {
	if err := store.CheckOps(ops); err != nil {
		return 0, err
	}
	if i := slices.IndexFunc(ops, func(op store.Op) bool { return isFence([]byte(op.Key)) }); i >= 0 {
		return 0, fmt.Errorf("write %q: keys that end in %q are the store's own", ops[i].Key, fenceName)
	}
	name := fmt.Sprintf("write %q", ops[0].Key)
	if len(ops) > 1 {
		name = fmt.Sprintf("apply %d writes from %q on", len(ops), ops[0].Key)
	}
	if err := s.usable(ctx); err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	if s.engine != nil && slices.ContainsFunc(ops, func(op store.Op) bool { return !op.Delete }) {
		if err := s.engine.room(); err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
	}
	var conditions []clientv3.Cmp
	var writes, looks []clientv3.Op
	for _, op := range ops {
		key := s.prefix + op.Key
		switch op.IfWas {
		case store.AnyRevision:
		case store.Absent:
			conditions = append(conditions, clientv3.Compare(clientv3.CreateRevision(key), "=", 0))
			looks = append(looks, clientv3.OpGet(key, clientv3.WithKeysOnly()))
		default:
			conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(key), "=", int64(op.IfWas)))
			looks = append(looks, clientv3.OpGet(key, clientv3.WithKeysOnly()))
		}
		if op.Delete {
			writes = append(writes, clientv3.OpDelete(key))
		} else {
			writes = append(writes, clientv3.OpPut(key, string(op.Value)))
		}
	}
	attempt, cancel := s.patient(ctx)
	defer cancel()
	before := s.history.far()
	response, err := s.client.Txn(attempt).If(conditions...).Then(writes...).Else(looks...).Commit()
	if err == nil {
		err = s.history.follows(before, response.Header)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, s.explain(ctx, err))
	}
	if !response.Succeeded {
		return 0, failedPrecondition(ops, response)
	}
	return store.Revision(response.Header.Revision), nil
}

// failedPrecondition finds the first that failed, from what the transaction saw.
func failedPrecondition(ops []store.Op, response *clientv3.TxnResponse) error {
	look := 0
	for _, op := range ops {
		if op.IfWas == store.AnyRevision {
			continue
		}
		found := response.Responses[look].GetResponseRange().Kvs
		look++
		switch {
		case op.IfWas == store.Absent && len(found) > 0:
			return fmt.Errorf("write %q: %w: it exists", op.Key, store.ErrConflict)
		case op.IfWas != store.Absent && len(found) == 0:
			return fmt.Errorf("write %q: %w", op.Key, store.ErrNotFound)
		case op.IfWas != store.Absent && found[0].ModRevision != int64(op.IfWas):
			return fmt.Errorf("write %q: %w: it is at revision %d, not %d", op.Key, store.ErrConflict, found[0].ModRevision, op.IfWas)
		}
	}
	return fmt.Errorf("write %q: %w", ops[0].Key, store.ErrConflict)
}

// Compact forgets what was before a revision: reads at and watches after an older
// one fail with store.ErrCompacted.
func (s *Store) Compact(ctx context.Context, before store.Revision) error {
	if err := s.usable(ctx); err != nil {
		return fmt.Errorf("compact before %d: %w", before, err)
	}
	_, err := s.client.Compact(ctx, int64(before))
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact before %d: %w", before, s.explain(ctx, err))
	}
	return nil
}

func (s *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.ctx.Err() != nil {
		return ErrClosed
	}
	if s.engine != nil {
		return s.engine.failure()
	}
	return s.history.failure()
}

// explain turns etcd's errors into the store's.
func (s *Store) explain(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case s.ctx.Err() != nil:
		return ErrClosed
	case s.engine != nil && s.engine.failure() != nil:
		return s.engine.failure()
	case s.history.failure() != nil:
		return s.history.failure()
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, rpctypes.ErrFutureRev):
		return fmt.Errorf("%w: %w", store.ErrCompacted, err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps),
		strings.Contains(err.Error(), "larger than max"): // gRPC's own limit has no other mark
		return fmt.Errorf("%w: %w: raise etcd's --max-request-bytes to %d and --max-txn-ops to %d", store.ErrTooLarge, err, maxRequest, store.MaxOps)
	case errors.Is(err, rpctypes.ErrNoSpace):
		if s.engine != nil {
			return s.engine.full()
		}
		return fmt.Errorf("%w: etcd has used up its quota: compact and defragment it, or raise --quota-backend-bytes, then disarm its alarm", store.ErrFull)
	}
	return unanswered(err)
}

// unanswered marks an error that says that etcd has no leader, cannot be reached or is
// not done in time.
func unanswered(err error) error {
	code := status.Code(err)
	if known := (rpctypes.EtcdError{}); errors.As(err, &known) {
		code = known.Code()
	}
	switch {
	case code == codes.Unavailable, code == codes.DeadlineExceeded, errors.Is(err, context.DeadlineExceeded),
		code == codes.Unknown && strings.Contains(err.Error(), context.DeadlineExceeded.Error()): // gRPC's own has no other mark
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	return err
}

// copied is never nil, and shares nothing with the server in this process.
func copied(value []byte) []byte { return append([]byte{}, value...) }
