package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy/compile"
)

// The input of a generation is kept beside it as a snapshot, so that it can still be
// explained, and rolled back to, after the declarations have changed. The objects are
// spread over buckets by the hash of their key. The content of a bucket is stored as a
// chunk under its own hash, once for all generations that share it. So a change of one
// object writes one small chunk, and a list of chunks for the new generation.
const (
	snapshotPrefix = "policy/snapshots/" // lists of chunks, by generation
	chunkPrefix    = "policy/chunks/"    // by hash
	// environmentMost is the compressed size up to which the environment (the inventory,
	// threat conditions, quarantines) is kept besides policy.
	environmentMost = 8 << 20
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

// snapshot is the content of buckets at one moment. It is immutable.
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

// tightened returns the snapshot with the threat conditions and quarantines of an input.
// Everything else in the input must be what the snapshot has.
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

// buckets returns the objects of the snapshot as buckets that can be changed. If only the
// hashes of its chunks are known, the objects are taken from in.
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

// keptObject holds the parts of an object that policy depends on.
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
