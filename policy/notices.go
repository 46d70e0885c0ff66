package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// noticeBoard writes Events: what people should know of what happened to objects.
// Repetitions are counted in one Event, whose name follows from what it says of
// whom; an Event is forgotten an hour after it last happened, and earlier if there
// are too many. What finds no place while the store is slow is counted and lost:
// conditions say what is.
type noticeBoard struct {
	store  store.Store
	node   string
	logger *slog.Logger
	signal chan struct{}

	written, shed atomic.Uint64

	mu      sync.Mutex // guards waiting
	waiting []bocage.ObjectEvent
}

const (
	noticesWaiting = 256
	noticesMost    = 1000
	noticeLife     = time.Hour
	noticeTidy     = 5 * time.Minute
	// defaultNamespace is where Events about cluster-wide objects are.
	defaultNamespace = "default"
	noticeText       = 1024
)

func newNoticeBoard(s store.Store, node string, logger *slog.Logger) *noticeBoard {
	return &noticeBoard{store: s, node: node, logger: logger, signal: make(chan struct{}, 1)}
}

func eventKind() bocage.Kind {
	kind, _ := bocage.KindNamed("Event")
	return kind
}

// tell notes that something happened to an object. It never blocks.
func (b *noticeBoard) tell(kind, namespace, name, reason, message string, warning bool) {
	of, _ := bocage.KindNamed(kind)
	now := time.Now().UTC().Truncate(time.Second)
	e := bocage.ObjectEvent{
		InvolvedObject: bocage.ObjectReference{APIVersion: of.APIVersion, Kind: kind, Namespace: namespace, Name: name},
		Reason:         reason, Message: strings.ToValidUTF8(message[:min(len(message), noticeText)], ""), Weight: "Normal",
		Source: bocage.EventSource{Component: "policy", Host: b.node}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
		ReportingComponent: "policy", ReportingInstance: b.node,
	}
	if warning {
		e.Weight = "Warning"
	}
	hash := sha256.Sum256([]byte(kind + "\x00" + namespace + "\x00" + name + "\x00" + reason))
	if e.Namespace = namespace; namespace == "" {
		e.Namespace = defaultNamespace
	}
	e.Name = name[:min(len(name), 200)] + "." + hex.EncodeToString(hash[:8])
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.waiting, func(w bocage.ObjectEvent) bool { return w.Namespace == e.Namespace && w.Name == e.Name })
	switch {
	case i >= 0:
		e.Count, e.FirstTimestamp = b.waiting[i].Count+1, b.waiting[i].FirstTimestamp
		b.waiting[i] = e
	case len(b.waiting) >= noticesWaiting:
		b.shed.Add(1)
		return
	default:
		b.waiting = append(b.waiting, e)
	}
	wake(b.signal)
}

// run writes what is told until ctx ends.
func (b *noticeBoard) run(ctx context.Context) error {
	tick := time.NewTicker(noticeTidy)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if err := b.tidy(ctx); err != nil && ctx.Err() == nil {
				b.logger.WarnContext(ctx, "forget old events", slog.Any("error", err))
			}
			continue
		case <-b.signal:
		}
		b.mu.Lock()
		waiting := b.waiting
		b.waiting = nil
		b.mu.Unlock()
		for i := range waiting {
			if err := b.write(ctx, &waiting[i]); err != nil && ctx.Err() == nil {
				b.shed.Add(1)
				b.logger.WarnContext(ctx, "write an event", slog.String("reason", waiting[i].Reason), slog.Any("error", err))
			}
		}
	}
}

func (b *noticeBoard) write(ctx context.Context, e *bocage.ObjectEvent) error {
	kind := eventKind()
	if err := b.identify(ctx, &e.InvolvedObject); err != nil {
		return err
	}
	err := store.UpdateObject(ctx, b.store, kind, e.Namespace, e.Name, func(old *bocage.ObjectEvent) (bool, error) {
		if old.Count += e.Count; old.InvolvedObject.UID != e.InvolvedObject.UID { // another object of that name
			old.Count, old.FirstTimestamp = e.Count, e.FirstTimestamp
		}
		old.InvolvedObject = e.InvolvedObject
		old.LastTimestamp, old.Message, old.Weight = e.LastTimestamp, e.Message, e.Weight
		old.Source, old.ReportingInstance = e.Source, e.ReportingInstance
		return true, nil
	})
	if errors.Is(err, store.ErrNotFound) {
		meta := store.NewMeta(e.Name, time.Now())
		meta.Namespace = e.Namespace
		e.ObjectMeta = meta
		if _, err = store.PutObject(ctx, b.store, kind, e, store.Absent); errors.Is(err, store.ErrConflict) {
			return nil // another controller has just told the same
		}
	}
	if err == nil {
		b.written.Add(1)
	}
	return err
}

// identify adds the object's UID, by which clients ask for what happened to it.
// One that is gone meanwhile, or that cannot be read, keeps its name only.
func (b *noticeBoard) identify(ctx context.Context, of *bocage.ObjectReference) error {
	kind, _ := bocage.KindNamed(of.Kind)
	entry, err := b.store.Get(ctx, kind.Key(of.Namespace, of.Name))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s %s, which an event is about: %w", of.Kind, of.Name, err)
	}
	if object, err := store.DecodeObject(kind, entry); err == nil {
		of.UID = object.Meta().UID
	}
	return nil
}

// tidy forgets Events that are old, and the oldest if there are too many. Those
// that others write are left alone.
func (b *noticeBoard) tidy(ctx context.Context) error {
	objects, _, err := store.Objects(ctx, b.store, eventKind())
	if err != nil {
		return err
	}
	var own []*bocage.ObjectEvent
	for _, o := range objects {
		if e := o.(*bocage.ObjectEvent); e.ReportingComponent == "policy" {
			own = append(own, e)
		}
	}
	slices.SortFunc(own, func(x, y *bocage.ObjectEvent) int { return y.LastTimestamp.Compare(x.LastTimestamp) })
	for i, e := range own {
		if i < noticesMost && time.Since(e.LastTimestamp) < noticeLife {
			continue
		}
		if _, err := store.Delete(ctx, b.store, eventKind().Key(e.Namespace, e.Name), store.AnyRevision); err != nil {
			return err
		}
	}
	return nil
}
