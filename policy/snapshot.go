package policy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
	"bocage.dev/bocage/store"
)

// What a generation was compiled from is kept beside it, so that it can be asked,
// and gone back to, when the declarations have long changed. Objects lie in
// buckets by the hash of their key, and a bucket is stored once under the hash of
// what is in it: a change of one object writes one small chunk and a list.
const (
	snapshots = "policy/snapshots/" // lists of chunks, by generation
	chunks    = "policy/chunks/"    // by hash
	// restMost bounds the compressed size up to which everything besides policy
	// (the inventory, threat conditions, quarantines) is kept, too.
	restMost = 8 << 20
)

// buckets holds objects by the hash of their keys.
type buckets struct {
	list   []bucket
	count  int
	latest *snapshot // nil: something changed since
}

type bucket struct {
	objects map[string]*object
	chunk   *chunk // nil: something changed since
}

// snapshot is what buckets held at one moment. Nobody changes it.
type snapshot struct {
	hash   digest // of everything in it
	chunks []*chunk
}

// chunk is one bucket's objects, sorted by key.
type chunk struct {
	hash    digest
	objects []*object
}

func newBuckets() *buckets { return &buckets{list: make([]bucket, 1)} }

// spread is how many buckets a number of objects is spread over. The steps are
// wide, so that it seldom changes.
func spread(count int) int {
	switch {
	case count <= 64:
		return 1
	case count <= 4096:
		return 64
	default:
		return 512
	}
}

func (b *buckets) of(key string) *bucket {
	h := fnv.New32a()
	h.Write([]byte(key))
	return &b.list[h.Sum32()%uint32(len(b.list))]
}

// note takes over one object; nil deletes it.
func (b *buckets) note(key string, o *object) {
	b.latest = nil
	at := b.of(key)
	_, was := at.objects[key]
	at.chunk = nil
	switch {
	case o == nil:
		delete(at.objects, key)
	case at.objects == nil:
		at.objects = map[string]*object{key: o}
	default:
		at.objects[key] = o
	}
	if o != nil && !was {
		b.count++
	} else if o == nil && was {
		b.count--
	}
}

// snapshot returns what is in the buckets.
func (b *buckets) snapshot() *snapshot {
	if b.latest != nil {
		return b.latest
	}
	if n := spread(b.count); n != len(b.list) {
		old := b.list
		b.list, b.count = make([]bucket, n), 0
		for _, bucket := range old {
			for key, o := range bucket.objects {
				b.note(key, o)
			}
		}
	}
	s := &snapshot{}
	whole := sha256.New()
	for i := range b.list {
		at := &b.list[i]
		if len(at.objects) == 0 {
			continue
		}
		if at.chunk == nil {
			at.chunk = newChunk(at.objects)
		}
		s.chunks = append(s.chunks, at.chunk)
		whole.Write(at.chunk.hash[:])
	}
	whole.Sum(s.hash[:0])
	b.latest = s
	return s
}

// tightened returns the snapshot with the threat conditions and quarantines of an
// input that has everything else that is in it, and no more.
func (s *snapshot) tightened(in compile.Input) *snapshot {
	b, left := s.buckets(in), map[string]bool{}
	for i := range b.list {
		for key, o := range b.list[i].objects {
			left[key] = tightens(o.kind)
		}
	}
	each(in, func(name string, resource bocage.Resource) {
		kind, _ := bocage.KindNamed(name)
		if !tightens(kind) {
			return
		}
		key := kind.Key(resource.Meta().Namespace, resource.Meta().Name)
		left[key] = false
		if was := b.of(key).objects[key]; was == nil || was.input != resource {
			b.note(key, &object{key: key, kind: kind, resource: resource, input: resource, print: fingerprint(resource)})
		}
	})
	for key, gone := range left {
		if gone {
			b.note(key, nil)
		}
	}
	return b.snapshot()
}

// buckets returns what is in the snapshot, with its chunks, to be changed. Of one of
// which only the names of the chunks are known, that is made of an input that has it.
func (s *snapshot) buckets(in compile.Input) *buckets {
	b := newBuckets()
	for _, c := range s.chunks {
		if c.objects == nil {
			each(in, func(name string, resource bocage.Resource) {
				if kind, _ := bocage.KindNamed(name); !isPolicy(name) {
					key := kind.Key(resource.Meta().Namespace, resource.Meta().Name)
					b.note(key, &object{key: key, kind: kind, resource: resource, input: resource, print: fingerprint(resource)})
				}
			})
			return b
		}
		b.count += len(c.objects)
	}
	b.list = make([]bucket, spread(b.count))
	for _, c := range s.chunks {
		at := b.of(c.objects[0].key)
		at.objects, at.chunk = make(map[string]*object, len(c.objects)), c
		for _, o := range c.objects {
			at.objects[o.key] = o
		}
	}
	return b
}

func newChunk(objects map[string]*object) *chunk {
	c := &chunk{objects: make([]*object, 0, len(objects))}
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		c.objects = append(c.objects, objects[key])
	}
	h := sha256.New()
	for _, o := range c.objects {
		h.Write([]byte(o.key))
		h.Write([]byte{0})
		h.Write(o.print[:])
	}
	h.Sum(c.hash[:0])
	return c
}

// name is a snapshot's hash as records carry it.
func (s *snapshot) name() string { return hex.EncodeToString(s.hash[:]) }

// keptObject is what is kept of an object: what policy depends on.
type keptObject struct {
	bocage.TypeMeta `json:",inline"`
	Metadata        bocage.ObjectMeta `json:"metadata"`
	Spec            any               `json:"spec,omitempty"`
	Status          any               `json:"status,omitempty"`
}

func keepObject(o *object) keptObject {
	meta := o.input.Meta()
	kept := keptObject{TypeMeta: bocage.TypeMeta{APIVersion: o.kind.APIVersion, Kind: o.kind.Name}, Spec: specOf(o.input),
		Metadata: bocage.ObjectMeta{Name: meta.Name, Namespace: meta.Namespace, UID: meta.UID, Generation: meta.Generation,
			CreationTimestamp: meta.CreationTimestamp, Labels: meta.Labels}}
	if source := meta.Annotations[bocage.SourceAnnotation]; source != "" {
		kept.Metadata.Annotations = map[string]string{bocage.SourceAnnotation: source}
	}
	switch x := o.input.(type) {
	case *bocage.Workload:
		kept.Status = bocage.WorkloadStatus{Identity: x.Status.Identity, Assurance: x.Status.Assurance}
	case *bocage.Guardrail:
		kept.Status = bocage.GuardrailStatus{Approval: x.Status.Approval}
	case *bocage.Exception:
		kept.Status = bocage.ExceptionStatus{Approval: x.Status.Approval}
	}
	return kept
}

func (c *chunk) encode() ([]byte, error) {
	if c.objects == nil {
		return nil, nil
	}
	list := make([]keptObject, len(c.objects))
	for i, o := range c.objects {
		list[i] = keepObject(o)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("keep what a generation is compiled from: %w", err)
	}
	return compress(b)
}

func decodeChunk(value []byte, in *compile.Input) error {
	b, err := decompress(value)
	if err != nil {
		return err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	for _, raw := range list {
		var t bocage.TypeMeta
		if err := json.Unmarshal(raw, &t); err != nil {
			return err
		}
		kind, known := bocage.KindNamed(t.Kind)
		if !known {
			return fmt.Errorf("%q is no kind", t.Kind)
		}
		o := kind.New()
		if err := json.Unmarshal(raw, o); err != nil {
			return err
		}
		add(in, o)
	}
	return nil
}

// shelfList is the list of chunks that is kept of a generation.
type shelfList struct {
	Number uint64 `json:"number"`
	// Of names the policy: the hash of its snapshot.
	Of     string     `json:"of"`
	Policy []chunkRef `json:"policy"`
	// Rest is absent where there was too much of it.
	Rest []chunkRef `json:"rest,omitempty"`
	// Now is the moment that was compiled for.
	Now time.Time `json:"now"`
}

type chunkRef struct {
	Hash string `json:"hash"`
	Size int    `json:"size"` // compressed
}

// library is what one controller knows of the snapshots in the store. It is of
// the builder alone.
type library struct {
	known bool
	at    store.Revision // of the record for which that is so
	lists map[uint64]shelfList
	sizes map[string]int // of chunks in the store or seen, by hash
	there map[string]bool
}

// learn reads which snapshots there are.
func (l *library) learn(ctx context.Context, s store.Store, at store.Revision) error {
	entries, _, err := listAll(ctx, s, snapshots)
	if err != nil {
		return err
	}
	l.lists, l.there = map[uint64]shelfList{}, map[string]bool{}
	if l.sizes == nil {
		l.sizes = map[string]int{}
	}
	for _, e := range entries {
		var list shelfList
		if err := json.Unmarshal(e.Value, &list); err != nil {
			return fmt.Errorf("read %s: %w", e.Key, err)
		}
		l.lists[list.Number] = list
		for _, ref := range slices.Concat(list.Policy, list.Rest) {
			l.there[ref.Hash], l.sizes[ref.Hash] = true, ref.Size
		}
	}
	l.known, l.at = true, at
	return nil
}

// shelve makes the writes that keep what a generation was compiled from: new
// chunks, and its list, which has to be the last.
func (l *library) shelve(o *outcome) (chunkOps []store.Op, list store.Op, err error) {
	kept := shelfList{Number: o.number, Of: o.policy.name(), Now: o.input.Now}
	fresh, total := map[string][]byte{}, 0
	for _, part := range []struct {
		refs *[]chunkRef
		of   *snapshot
	}{{&kept.Policy, o.policy}, {&kept.Rest, o.rest}} {
		if *part.refs, err = l.weigh(part.of, fresh); err != nil {
			return nil, store.Op{}, err
		}
		for _, ref := range *part.refs {
			total += ref.Size
		}
	}
	parts := []*snapshot{o.policy, o.rest}
	if total > restMost {
		kept.Rest, parts = nil, parts[:1]
	} else if kept.Rest == nil {
		kept.Rest = []chunkRef{} // nothing, and that is all of it
	}
	for _, part := range parts {
		ops, err := l.missing(part, fresh)
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

func snapshotKey(number uint64) string { return snapshots + "g" + strconv.FormatUint(number, 10) }

// weigh lists a snapshot's chunks. What had to be encoded for that goes into fresh.
func (l *library) weigh(s *snapshot, fresh map[string][]byte) ([]chunkRef, error) {
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

// missing makes the writes of a snapshot's chunks that are not in the store.
func (l *library) missing(s *snapshot, fresh map[string][]byte) ([]store.Op, error) {
	var ops []store.Op
	for _, c := range s.chunks {
		hash := hex.EncodeToString(c.hash[:])
		if l.there[hash] {
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
			continue // known by name only: it was there
		}
		if len(value) > store.MaxValue {
			return nil, fmt.Errorf("%d objects are too large to be kept together: %w", len(c.objects), store.ErrTooLarge)
		}
		ops = append(ops, store.Op{Key: chunks + hash, Value: value, IfWas: store.AnyRevision})
	}
	return ops, nil
}

// prune forgets the sizes of chunks that were never stored.
func (l *library) prune() {
	const most = 1 << 14
	if len(l.sizes) <= most {
		return
	}
	maps.DeleteFunc(l.sizes, func(hash string, _ int) bool { return !l.there[hash] })
}

// forget makes the deletions of snapshots that no longer count, and of the chunks
// that only they had.
func (l *library) forget(keep func(shelfList) bool, coming []store.Op) []store.Op {
	const most = 256 // in one go
	var ops []store.Op
	used := map[string]bool{}
	for _, op := range coming {
		used[strings.TrimPrefix(op.Key, chunks)] = true
	}
	for _, number := range slices.Sorted(maps.Keys(l.lists)) {
		list := l.lists[number]
		if !keep(list) && len(ops) < most {
			ops = append(ops, store.Op{Key: snapshotKey(number), Delete: true, IfWas: store.AnyRevision})
			delete(l.lists, number)
			continue
		}
		for _, ref := range slices.Concat(list.Policy, list.Rest) {
			used[ref.Hash] = true
		}
	}
	for _, hash := range slices.Sorted(maps.Keys(l.there)) {
		if !used[hash] && len(ops) < most {
			ops = append(ops, store.Op{Key: chunks + hash, Delete: true, IfWas: store.AnyRevision})
			delete(l.there, hash)
			delete(l.sizes, hash)
		}
	}
	return ops
}

// has reports whether it is kept what an outcome was compiled from.
func (l *library) has(o *outcome) bool {
	_, has := l.lists[o.number]
	return has
}

// wrote notes chunks that are in the store now.
func (l *library) wrote(ops []store.Op) {
	for _, op := range ops {
		if hash, is := strings.CutPrefix(op.Key, chunks); is && !op.Delete {
			l.there[hash] = true
		}
	}
}

// policyNamed finds a list with the policy of that name.
func (l *library) policyNamed(name string) (shelfList, bool) {
	for _, number := range slices.Sorted(maps.Keys(l.lists)) {
		if list := l.lists[number]; list.Of == name {
			return list, true
		}
	}
	return shelfList{}, false
}

// errNotKept means that a generation's snapshot is not there any more.
var errNotKept = errors.New("it is not kept any more")

// readSnapshot reads what was kept of a generation. whole says that everything
// that it was compiled from is there, and not its policy alone.
func readSnapshot(ctx context.Context, s store.Store, list shelfList) (in compile.Input, whole bool, err error) {
	for _, ref := range slices.Concat(list.Policy, list.Rest) {
		entry, err := s.Get(ctx, chunks+ref.Hash)
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
	return in, list.Rest != nil, nil
}

// namedSnapshot is a snapshot of which only the names of the chunks are known: they
// are in the store.
func namedSnapshot(list shelfList) (*snapshot, error) {
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

// sortInput puts every list into the order in which the mirror has it.
func sortInput(in *compile.Input) {
	sortByKey(in.Applications, "Application")
	sortByKey(in.Guardrails, "Guardrail")
	sortByKey(in.Scopes, "Scope")
	sortByKey(in.Profiles, "InspectionProfile")
	sortByKey(in.Decoys, "Decoy")
	sortByKey(in.Exceptions, "Exception")
	sortByKey(in.Responses, "Response")
	sortByKey(in.AddressGroups, "AddressGroup")
	sortByKey(in.NetworkPolicies, "NetworkPolicy")
	sortByKey(in.ClusterNetworkPolicies, "ClusterNetworkPolicy")
	sortByKey(in.Quarantines, "Quarantine")
	sortByKey(in.ThreatConditions, "ThreatCondition")
	sortByKey(in.Workloads, "Workload")
	sortByKey(in.Hosts, "Host")
	sortByKey(in.Zones, "Zone")
	sortByKey(in.Namespaces, "Namespace")
}

func sortByKey[T bocage.Resource](list []T, kind string) {
	k, _ := bocage.KindNamed(kind)
	slices.SortFunc(list, func(a, b T) int {
		return cmp.Compare(k.Key(a.Meta().Namespace, a.Meta().Name), k.Key(b.Meta().Namespace, b.Meta().Name))
	})
}
