package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// An object in the store may be unreadable: damaged, or written by a newer version. It
// must not count as deleted, since an unreadable guardrail has to stay in force. So the
// last version that could be read still counts. After a restart that version is taken
// from the snapshot of the newest generation. If no readable version is known, nothing
// new comes into force until the object can be read or is deleted; what is in force
// stays, tightened by today's quarantines.

// unreadable is one such object.
type unreadable struct {
	kind     bocage.Kind
	key      string
	revision store.Revision
	err      error
	held     bool // an earlier version is known and counts
}

// what names it and what is wrong.
func (u *unreadable) what() string {
	return fmt.Sprintf("%s %s cannot be read: %v", u.kind.Name, u.name(), errors.Unwrap(u.err))
}

func (u *unreadable) name() string { return strings.TrimPrefix(u.key, u.kind.KeyPrefix()) }

// markUnreadable notes that an object cannot be read as of a revision; m.mu is held.
func (m *mirror) markUnreadable(kind bocage.Kind, key string, revision store.Revision, err error) {
	objects := m.byKind[kind.Plural]
	old := objects.objects[key]
	was := m.unreadable[key]
	if old != nil && old.revision >= revision || was != nil && was.revision >= revision {
		return
	}
	m.unreadable[key] = &unreadable{kind: kind, key: key, revision: revision, err: err, held: old != nil}
	m.toldOf = false
	wake(m.changed)
}

// listUnreadable lists what cannot be read, sorted by key, and reports whether the list
// has changed since the last call.
func (m *mirror) listUnreadable() (list []unreadable, news bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(m.unreadable)) {
		list = append(list, *m.unreadable[key])
	}
	news, m.toldOf = !m.toldOf, true
	return list, news
}

// countUnreadable counts the objects that cannot be read.
func (m *mirror) countUnreadable() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.unreadable)
}

// restore puts in the earlier version of an object that is unreadable now. Its revision is
// one below the unreadable one, so that whatever the watch brings replaces it.
func (m *mirror) restore(u unreadable, resource bocage.Resource) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.unreadable[u.key]
	if now == nil || now.held {
		return
	}
	now.held = true
	m.take(u.kind, u.key, &object{key: u.key, kind: u.kind, resource: resource, input: resource, changed: u.revision - 1, revision: u.revision - 1,
		print: fingerprint(resource), report: reportPrint(resource)}, u.revision-1)
}

// mend handles objects that cannot be read: it restores them from the newest snapshot, and
// lists in lost those that are not there.
func (b *build) mend(ctx context.Context) error {
	p := b.p
	list, news := p.mirror.listUnreadable()
	if slices.ContainsFunc(list, func(u unreadable) bool { return !u.held }) {
		if err := b.restoreUnreadable(ctx, list); err != nil {
			return err
		}
		b.v = p.mirror.view()
		list, _ = p.mirror.listUnreadable()
	}
	for _, u := range list {
		if !u.held && input(u.kind) {
			b.lost = append(b.lost, u)
		}
		if news {
			p.tellUnreadable(ctx, u)
		}
	}
	return nil
}

// restoreUnreadable restores objects from the snapshot of the newest kept generation.
func (b *build) restoreUnreadable(ctx context.Context, list []unreadable) error {
	p := b.p
	kept := slices.SortedFunc(maps.Values(p.snapshots.lists), func(x, y snapshotList) int { return cmp.Compare(y.Number, x.Number) })
	if len(kept) == 0 {
		return nil
	}
	in, _, err := readSnapshot(ctx, p.store, kept[0])
	if err != nil && !errors.Is(err, errNotKept) {
		return err
	}
	known := map[string]bocage.Resource{}
	each(in, func(kind string, o bocage.Resource) {
		k, _ := bocage.KindNamed(kind)
		known[k.Key(o.Meta().Namespace, o.Meta().Name)] = o
	})
	for _, u := range list {
		if o := known[u.key]; o != nil && !u.held {
			p.mirror.restore(u, o)
		}
	}
	return nil
}

// tellUnreadable reports an unreadable object, once for each of its states.
func (p *Policy) tellUnreadable(ctx context.Context, u unreadable) {
	message := u.what() + "; what was known of it before stays in force: write it again, or delete it"
	if !u.held {
		message = u.what() + "; nothing is known of it from before, so nothing new comes into force: write it again, or delete it"
	}
	p.logger.ErrorContext(ctx, "unreadable object", slog.String("key", u.key), slog.Bool("held", u.held), slog.Any("error", u.err))
	namespace, name := "", u.name()
	if u.kind.Namespaced {
		namespace, name, _ = strings.Cut(name, "/")
	}
	p.notices.tell(u.kind.Name, namespace, name, "Unreadable", message, true)
}

// holdIfIncomplete blocks a new outcome that may be incomplete because of lost objects.
// The declared policy always is. An older policy was compiled before they were lost, so it
// is only incomplete if one of them belongs to the environment.
func (b *build) holdIfIncomplete(o *outcome) *outcome {
	lost := b.lost
	if o.policy.name() != b.v.policy.name() {
		lost = slices.DeleteFunc(slices.Clone(lost), func(u unreadable) bool { return isPolicy(u.kind.Name) })
	}
	if len(lost) == 0 || o.blocked != "" {
		return o
	}
	copied := *o
	copied.incomplete = true
	if copied.blocked = lost[0].what(); len(lost) > 1 {
		copied.blocked += fmt.Sprintf(" (and %d more)", len(lost)-1)
	}
	return copied.complete()
}
