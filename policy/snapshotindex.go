package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/store"
)

// snapshotList is stored for each kept generation: the chunks of its snapshot.
type snapshotList struct {
	Number uint64 `json:"number"`
	// PolicyName is the hash of the policy's part of the snapshot.
	PolicyName string     `json:"of"`
	Policy     []chunkRef `json:"policy"`
	// Environment is absent if it was larger than environmentMost.
	Environment []chunkRef `json:"rest,omitempty"`
	// Now is the moment that the generation was compiled for.
	Now time.Time `json:"now"`
}

type chunkRef struct {
	Hash string `json:"hash"`
	Size int    `json:"size"` // compressed
}

// snapshotIndex is what this controller knows of the snapshots in the store. Only the
// builder uses it.
type snapshotIndex struct {
	known  bool
	at     store.Revision // of the record for which it is up to date
	lists  map[uint64]snapshotList
	sizes  map[string]int // of chunks in the store or seen, by hash
	stored map[string]bool
}

// load reads which snapshots there are.
func (l *snapshotIndex) load(ctx context.Context, s store.Store, at store.Revision) error {
	entries, _, err := listAll(ctx, s, snapshotPrefix)
	if err != nil {
		return err
	}
	l.lists, l.stored = map[uint64]snapshotList{}, map[string]bool{}
	if l.sizes == nil {
		l.sizes = map[string]int{}
	}
	for _, e := range entries {
		var list snapshotList
		if err := json.Unmarshal(e.Value, &list); err != nil {
			return fmt.Errorf("read %s: %w", e.Key, err)
		}
		l.lists[list.Number] = list
		for _, ref := range slices.Concat(list.Policy, list.Environment) {
			l.stored[ref.Hash], l.sizes[ref.Hash] = true, ref.Size
		}
	}
	l.known, l.at = true, at
	return nil
}

// saveOps returns the writes that store the snapshot of a generation: its new chunks, and
// its list, which must be written last.
func (l *snapshotIndex) saveOps(o *outcome) (chunkOps []store.Op, list store.Op, err error) {
	kept := snapshotList{Number: o.number, PolicyName: o.policy.name(), Now: o.input.Now}
	fresh, total := map[string][]byte{}, 0
	for _, part := range []struct {
		refs *[]chunkRef
		of   *snapshot
	}{{&kept.Policy, o.policy}, {&kept.Environment, o.environment}} {
		if *part.refs, err = l.chunkRefs(part.of, fresh); err != nil {
			return nil, store.Op{}, err
		}
		for _, ref := range *part.refs {
			total += ref.Size
		}
	}
	parts := []*snapshot{o.policy, o.environment}
	if total > environmentMost {
		kept.Environment, parts = nil, parts[:1]
	} else if kept.Environment == nil {
		kept.Environment = []chunkRef{} // nothing, and that is all of it
	}
	for _, part := range parts {
		ops, err := l.missingChunkOps(part, fresh)
		if err != nil {
			return nil, store.Op{}, err
		}
		chunkOps = append(chunkOps, ops...)
	}
	value, err := json.Marshal(kept)
	if err != nil {
		return nil, store.Op{}, err
	}
	l.lists[o.number] = kept
	l.prune()
	return chunkOps, store.Op{Key: snapshotKey(o.number), Value: value, IfWas: store.AnyRevision}, nil
}

func snapshotKey(number uint64) string { return snapshotPrefix + "g" + strconv.FormatUint(number, 10) }

// chunkRefs lists a snapshot's chunks with their sizes. It adds to fresh those that it had
// to encode for that.
func (l *snapshotIndex) chunkRefs(s *snapshot, fresh map[string][]byte) ([]chunkRef, error) {
	var refs []chunkRef
	for _, c := range s.chunks {
		hash := hex.EncodeToString(c.hash[:])
		if _, seen := l.sizes[hash]; !seen {
			value, err := c.encode()
			if err != nil {
				return nil, err
			}
			fresh[hash], l.sizes[hash] = value, len(value)
		}
		refs = append(refs, chunkRef{hash, l.sizes[hash]})
	}
	return refs, nil
}

// missingChunkOps returns the writes of a snapshot's chunks that are not in the store.
func (l *snapshotIndex) missingChunkOps(s *snapshot, fresh map[string][]byte) ([]store.Op, error) {
	var ops []store.Op
	for _, c := range s.chunks {
		hash := hex.EncodeToString(c.hash[:])
		if l.stored[hash] {
			continue
		}
		value := fresh[hash]
		if value == nil {
			var err error
			if value, err = c.encode(); err != nil {
				return nil, err
			}
		}
		if len(value) == 0 {
			continue // only its hash is known, because it is in the store
		}
		if len(value) > store.MaxValue {
			return nil, fmt.Errorf("%d objects are too large to be kept together: %w", len(c.objects), store.ErrTooLarge)
		}
		ops = append(ops, store.Op{Key: chunkPrefix + hash, Value: value, IfWas: store.AnyRevision})
	}
	return ops, nil
}

// prune forgets the sizes of chunks that were never stored.
func (l *snapshotIndex) prune() {
	const most = 1 << 14
	if len(l.sizes) <= most {
		return
	}
	maps.DeleteFunc(l.sizes, func(hash string, _ int) bool { return !l.stored[hash] })
}

// deleteOps returns the deletions of the snapshots that are not to be kept, and of the
// chunks that only they had. coming are the writes that are about to be made.
func (l *snapshotIndex) deleteOps(keep func(snapshotList) bool, coming []store.Op) []store.Op {
	const most = 256 // in one go
	var ops []store.Op
	used := map[string]bool{}
	for _, op := range coming {
		used[strings.TrimPrefix(op.Key, chunkPrefix)] = true
	}
	for _, number := range slices.Sorted(maps.Keys(l.lists)) {
		list := l.lists[number]
		if !keep(list) && len(ops) < most {
			ops = append(ops, store.Op{Key: snapshotKey(number), Delete: true, IfWas: store.AnyRevision})
			delete(l.lists, number)
			continue
		}
		for _, ref := range slices.Concat(list.Policy, list.Environment) {
			used[ref.Hash] = true
		}
	}
	for _, hash := range slices.Sorted(maps.Keys(l.stored)) {
		if !used[hash] && len(ops) < most {
			ops = append(ops, store.Op{Key: chunkPrefix + hash, Delete: true, IfWas: store.AnyRevision})
			delete(l.stored, hash)
			delete(l.sizes, hash)
		}
	}
	return ops
}

// has reports whether the snapshot of an outcome is stored.
func (l *snapshotIndex) has(o *outcome) bool {
	_, has := l.lists[o.number]
	return has
}

// noteWritten notes chunks that are in the store now.
func (l *snapshotIndex) noteWritten(ops []store.Op) {
	for _, op := range ops {
		if hash, is := strings.CutPrefix(op.Key, chunkPrefix); is && !op.Delete {
			l.stored[hash] = true
		}
	}
}

// policyNamed finds a list with the policy of that name.
func (l *snapshotIndex) policyNamed(name string) (snapshotList, bool) {
	for _, number := range slices.Sorted(maps.Keys(l.lists)) {
		if list := l.lists[number]; list.PolicyName == name {
			return list, true
		}
	}
	return snapshotList{}, false
}

// errNotKept means that a generation's snapshot is not there any more.
var errNotKept = errors.New("it is not kept any more")

// readSnapshot reads the snapshot of a generation. whole says that it has the environment
// as well as the policy.
func readSnapshot(ctx context.Context, s store.Store, list snapshotList) (in compile.Input, whole bool, err error) {
	for _, ref := range slices.Concat(list.Policy, list.Environment) {
		entry, err := s.Get(ctx, chunkPrefix+ref.Hash)
		if errors.Is(err, store.ErrNotFound) {
			return in, false, fmt.Errorf("read what generation %d was compiled from: %w", list.Number, errNotKept)
		}
		if err != nil {
			return in, false, fmt.Errorf("read what generation %d was compiled from: %w", list.Number, err)
		}
		if err := decodeChunk(entry.Value, &in); err != nil {
			return in, false, fmt.Errorf("read what generation %d was compiled from: %w", list.Number, err)
		}
	}
	sortInput(&in)
	in.Generation, in.Now = list.Number, list.Now
	return in, list.Environment != nil, nil
}

// namedSnapshot returns the policy's part of a snapshot by the hashes of its chunks alone:
// their content is in the store.
func namedSnapshot(list snapshotList) (*snapshot, error) {
	s := &snapshot{}
	whole := sha256.New()
	for _, ref := range list.Policy {
		c := &chunk{}
		if n, err := hex.Decode(c.hash[:], []byte(ref.Hash)); err != nil || n != len(c.hash) {
			return nil, fmt.Errorf("read what generation %d was compiled from: %q is no hash", list.Number, ref.Hash)
		}
		s.chunks = append(s.chunks, c)
		whole.Write(c.hash[:])
	}
	whole.Sum(s.hash[:0])
	return s, nil
}
