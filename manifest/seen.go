package manifest

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"path/filepath"

	"bocage.dev/bocage"
)

// Seen remembers what was read, where the paths of one command are read one after
// another: a file that is named twice is read once, and an object that is declared
// twice is a fault only if the declarations differ.
type Seen struct {
	files   map[string]bool
	objects map[objectKey]declaration
	seed    maphash.Seed
}

type objectKey struct{ group, kind, namespace, name string }

// declaration is where an object was declared, and a digest of what was.
type declaration struct {
	source string
	digest uint64
}

// NewSeen remembers nothing yet.
func NewSeen() *Seen {
	return &Seen{files: map[string]bool{}, objects: map[objectKey]declaration{}, seed: maphash.MakeSeed()}
}

// file reports whether a file is read for the first time, by whatever path.
func (s *Seen) file(path string) bool {
	if path == "-" {
		return true
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	first := !s.files[path]
	s.files[path] = true
	return first
}

// same reports whether an object was declared before just as it is here.
func (s *Seen) same(tree *Tree, k objectKey) (source string, same bool) {
	before, twice := s.objects[k]
	return before.source, twice && before.digest == s.digest(tree.node)
}

// once notes where an object is declared. It returns a fault if it was before, and is
// to be another now.
func (s *Seen) once(tree *Tree, k objectKey) bocage.Faults {
	before, twice := s.objects[k]
	if !twice {
		s.objects[k] = declaration{tree.Source(""), s.digest(tree.node)}
		return nil
	}
	return bocage.Faults{{
		Field: "metadata.name", Source: tree.Source("metadata.name"),
		Message: fmt.Sprintf("%s %s is declared at %s already, and not just the same", k.kind, k.String(), before.source),
	}}
}

func (k objectKey) String() string {
	return (&bocage.ObjectMeta{Namespace: k.namespace, Name: k.name}).NamespacedName()
}

// digest is the same for what means the same: the order of a map's keys does not count.
func (s *Seen) digest(n *node) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	h.WriteString(n.Tag)
	h.WriteByte(0)
	h.WriteString(n.Value)
	var sum uint64
	var part [16]byte
	switch n.Kind {
	case mapping:
		for i := 0; i+1 < len(n.Content); i += 2 {
			binary.LittleEndian.PutUint64(part[:8], s.digest(n.Content[i]))
			binary.LittleEndian.PutUint64(part[8:], s.digest(n.Content[i+1]))
			sum += maphash.Bytes(s.seed, part[:])
		}
	case sequence:
		for _, c := range n.Content {
			binary.LittleEndian.PutUint64(part[:8], s.digest(c))
			h.Write(part[:8])
		}
	}
	binary.LittleEndian.PutUint64(part[:8], sum)
	h.Write(part[:8])
	return h.Sum64()
}
