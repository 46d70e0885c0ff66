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

// An object that cannot be read, damaged or written by a newer version, is not an
// object that is gone: a guardrail that nobody can read must not stop to hold.
// What was known of it last stays in force, also after a restart, when that is
// read from what the newest generation was compiled from. Where nothing was ever
// known of it, everything new is held back until it can be read or is deleted,
// and what is in force stays, tightened by today's quarantines.

// unreadable is one such object.
type unreadable struct {
	kind     bocage.Kind
	key      string
	revision store.Revision
	err      error
	held     bool // the last that was readable counts
}

// what names it and what is wrong.
func (u *unreadable) what() string {
	return fmt.Sprintf("%s %s cannot be read: %v", u.kind.Name, u.name(), errors.Unwrap(u.err))
}

func (u *unreadable) name() string { return strings.TrimPrefix(u.key, u.kind.KeyPrefix()) }

// spoil notes that an object cannot be read as of a revision; m.mu is held.
func (m *mirror) spoil(kind bocage.Kind, key string, revision store.Revision, err error) {
	shelf := m.shelves[kind.Plural]
	old := shelf.objects[key]
	was := m.unreadable[key]
	if old != nil && old.revision >= revision || was != nil && was.revision >= revision {
		return
	}
	m.unreadable[key] = &unreadable{kind: kind, key: key, revision: revision, err: err, held: old != nil}
	m.toldOf = false
	wake(m.changed)
}

// spoiled lists what cannot be read, sorted by key, and reports whether that is
// another list than the last time.
func (m *mirror) spoiled() (list []unreadable, news bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(m.unreadable)) {
		list = append(list, *m.unreadable[key])
	}
	news, m.toldOf = !m.toldOf, true
	return list, news
}

// unread counts what cannot be read.
func (m *mirror) unread() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.unreadable)
}

// recover takes over what was known of an object before it became unreadable. The
// revision is that of its creation at the earliest, so that whatever the watch
// brings counts more.
func (m *mirror) recover(u unreadable, resource bocage.Resource) {
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

// mend looks after what cannot be read: what the newest generation knew of it
// counts, and where nothing is known of it nothing new may come into force.
func (b *build) mend(ctx context.Context) error {
	p := b.p
	list, news := p.mirror.spoiled()
	if slices.ContainsFunc(list, func(u unreadable) bool { return !u.held }) {
		if err := b.recall(ctx, list); err != nil {
			return err
		}
		b.v = p.mirror.view()
		list, _ = p.mirror.spoiled()
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

// recall looks for objects in what the newest kept generation was compiled from.
func (b *build) recall(ctx context.Context, list []unreadable) error {
	p := b.p
	kept := slices.SortedFunc(maps.Values(p.library.lists), func(x, y shelfList) int { return cmp.Compare(y.Number, x.Number) })
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
			p.mirror.recover(u, o)
		}
	}
	return nil
}

// tellUnreadable tells people, once for each state of the object.
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

// unread holds back a new outcome if it may lack something that cannot be read:
// what is declared lacks it always, an older policy only if it is no policy.
func (b *build) unread(o *outcome) *outcome {
	lost := b.lost
	if o.policy.name() != b.v.policy.name() {
		lost = slices.DeleteFunc(slices.Clone(lost), func(u unreadable) bool { return isPolicy(u.kind.Name) })
	}
	if len(lost) == 0 || o.blocked != "" {
		return o
	}
	copied := *o
	copied.lacks = true
	if copied.blocked = lost[0].what(); len(lost) > 1 {
		copied.blocked += fmt.Sprintf(" (and %d more)", len(lost)-1)
	}
	return copied.complete()
}
