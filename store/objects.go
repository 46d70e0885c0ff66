package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"bocage.dev/bocage"
)

// Object reads one resource; its resourceVersion is the entry's revision.
func Object(ctx context.Context, s Store, kind bocage.Kind, namespace, name string) (bocage.Resource, Revision, error) {
	entry, err := s.Get(ctx, kind.Key(namespace, name))
	if err != nil {
		return nil, 0, err
	}
	object, err := DecodeObject(kind, entry)
	return object, entry.Revision, err
}

// Objects reads every resource of a kind, sorted by key.
func Objects(ctx context.Context, s Store, kind bocage.Kind) ([]bocage.Resource, Revision, error) {
	entries, at, err := s.List(ctx, kind.KeyPrefix(), "", 0, 0)
	if err != nil {
		return nil, 0, err
	}
	objects := make([]bocage.Resource, len(entries))
	for i, entry := range entries {
		if objects[i], err = DecodeObject(kind, entry); err != nil {
			return nil, 0, err
		}
	}
	return objects, at, nil
}

// DecodeObject reads a resource from its entry.
func DecodeObject(kind bocage.Kind, entry Entry) (bocage.Resource, error) {
	object := kind.New()
	if err := json.Unmarshal(entry.Value, object); err != nil {
		return nil, fmt.Errorf("decode %s: %w", entry.Key, err)
	}
	object.Meta().ResourceVersion = strconv.FormatInt(int64(entry.Revision), 10)
	return object, nil
}

// EncodeObject writes a resource as it is stored: without its resourceVersion.
func EncodeObject(kind bocage.Kind, object bocage.Resource) ([]byte, error) {
	meta := object.Meta()
	version := meta.ResourceVersion
	meta.ResourceVersion = ""
	defer func() { meta.ResourceVersion = version }()
	*object.Type() = bocage.TypeMeta{APIVersion: kind.APIVersion, Kind: kind.Name}
	return json.Marshal(object)
}

// NewMeta is the metadata of a cluster-wide object that a room other than the api
// makes: its first generation, created now, with a UID of its own.
func NewMeta(name string, now time.Time) bocage.ObjectMeta {
	created := now.UTC().Truncate(time.Second)
	return bocage.ObjectMeta{Name: name, UID: newUID(), Generation: 1, CreationTimestamp: &created}
}

// newUID returns a random UUID (RFC 9562, version 4).
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// PutObject writes a resource under a precondition.
func PutObject(ctx context.Context, s Store, kind bocage.Kind, object bocage.Resource, ifWas Revision) (Revision, error) {
	value, err := EncodeObject(kind, object)
	if err != nil {
		return 0, err
	}
	meta := object.Meta()
	return Put(ctx, s, kind.Key(meta.Namespace, meta.Name), value, ifWas)
}

// UpdateObject reads a resource, lets change alter it and writes it back, again
// if somebody else was faster. change returns false to leave it as it is.
func UpdateObject[T bocage.Resource](ctx context.Context, s Store, kind bocage.Kind, namespace, name string, change func(T) (bool, error)) error {
	for {
		object, revision, err := Object(ctx, s, kind, namespace, name)
		if err != nil {
			return err
		}
		typed, ok := object.(T)
		if !ok {
			return fmt.Errorf("%s is no %T", kind.Key(namespace, name), typed)
		}
		changed, err := change(typed)
		if err != nil || !changed {
			return err
		}
		if _, err = PutObject(ctx, s, kind, object, revision); !errors.Is(err, ErrConflict) {
			return err
		}
	}
}
