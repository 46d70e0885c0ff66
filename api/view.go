package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// Limits of the view.
const (
	viewPrefix = "resources/"
	// viewPage is how many entries are read from the store at a time.
	viewPage = 2000
	// nothingPrefix is one that no key has.
	nothingPrefix = "nothing/"
	// reachLimit is how long a request waits for the view to come far enough, and
	// askInterval how often the store is asked meanwhile how far it is.
	reachLimit = 3 * time.Second
	// fillLimit is how long it waits for the view to be filled at all.
	fillLimit   = 20 * time.Second
	askInterval = 25 * time.Millisecond
	// newsDelay is how long what was just written has to come by itself, before the
	// store is asked.
	newsDelay = 3 * time.Millisecond
	// idleInterval is how often a quiet view asks, so that bookmarks move.
	idleInterval = 20 * time.Second
	retryAtMost  = 5 * time.Second
)

// view is every object as the store has it, with the last changes: one copy that
// answers all lists and watches. One watch of the store keeps it; revisions are
// taken in whole, so that what it shows is always what the store had at seen.
//
// Lock order: mu, then a change's own.
type view struct {
	store   store.Store
	logger  *slog.Logger
	metrics *metrics
	kinds   map[string]*seenKind // by plural

	mu          sync.RWMutex // guards everything below
	filled      bool
	source      store.Watch // nil while there is none
	seen        store.Revision
	collections map[string]*collection // by plural
	// inhabited counts the objects of each namespace; see namespace.go.
	inhabited map[string]int
	tended    map[string]*tended // by plural and key; see sweep.go
	advanced  chan struct{}      // closed, and made anew, when seen or filled changes

	sweeping chan struct{} // holds a token when there may be something to sweep

	asking sync.Mutex // one asks the store how far it is at a time
	asked  time.Time
	stuck  chan struct{} // holds a token when the store could not tell that and has to be read
}

func newView(s store.Store, logger *slog.Logger, m *metrics) *view {
	v := &view{store: s, logger: logger, metrics: m, kinds: map[string]*seenKind{}, advanced: make(chan struct{}), sweeping: make(chan struct{}, 1), stuck: make(chan struct{}, 1)}
	for _, kind := range bocage.Kinds() {
		v.kinds[kind.Plural] = &seenKind{kind, selectableFields(kind)}
	}
	return v
}

// run keeps the view until ctx ends.
func (v *view) run(ctx context.Context) {
	wait := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		err := v.keep(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			wait = 0
		}
		wait = min(max(2*wait, 50*time.Millisecond), retryAtMost)
		v.logger.Warn("the view of the store broke", "error", err, "retryIn", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// keep fills the view if it has to, and follows the store until that ends.
func (v *view) keep(ctx context.Context) error {
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from, filled := v.position()
	if !filled {
		var err error
		if from, err = v.fill(ctx); err != nil {
			return err
		}
	}
	source, err := v.store.Watch(ctx, viewPrefix, from)
	if err != nil {
		if errors.Is(err, store.ErrCompacted) {
			v.empty()
		}
		return fmt.Errorf("follow the store: %w", err)
	}
	v.follows(source)
	defer v.follows(nil)
	return v.follow(ctx, source, &asking)
}

// follows notes what the view is kept by.
func (v *view) follows(source store.Watch) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.source = source
}

func (v *view) position() (store.Revision, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.seen, v.filled
}

// fill reads everything there is, at one revision.
func (v *view) fill(ctx context.Context) (store.Revision, error) {
	var at store.Revision
	entries := map[string][]*object{}
	for after := ""; ; {
		page, revision, err := v.store.List(ctx, viewPrefix, after, viewPage, at)
		if err != nil {
			return 0, fmt.Errorf("fill the view: %w", err)
		}
		at = revision
		for _, entry := range page {
			kind, key, ok := v.kindAndKey(entry.Key)
			if ok {
				entries[kind.Plural] = append(entries[kind.Plural], newObject(kind, key, entry.Value, entry.Revision))
			}
		}
		if len(page) < viewPage {
			break
		}
		after = page[len(page)-1].Key
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.collections, v.inhabited, v.tended = map[string]*collection{}, map[string]int{}, map[string]*tended{}
	for plural, kind := range v.kinds {
		c := newCollection(kind, at)
		c.objects = entries[plural] // keys come sorted
		v.collections[plural] = c
		for _, o := range c.objects {
			v.tendTo(kind, o.key, o)
		}
	}
	v.fillNamespaces(at)
	v.filled, v.seen = true, at
	v.advance()
	return at, nil
}

// empty gives up what the view holds, since changes were missed. Those who follow
// begin anew.
func (v *view) empty() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.filled = false
	for _, c := range v.collections {
		for _, followers := range c.followers {
			for f := range followers {
				f.cut = true
				select {
				case f.ready <- struct{}{}:
				default:
				}
			}
		}
	}
	v.advance()
}

// advance tells those who wait that the view has moved; the lock is held.
func (v *view) advance() {
	close(v.advanced)
	v.advanced = make(chan struct{})
}

// follow takes in what changes, a whole revision at a time.
func (v *view) follow(ctx context.Context, source store.Watch, asking *sync.WaitGroup) error {
	select {
	case <-v.stuck: // that was about what has been read anew since
	default:
	}
	quiet := time.NewTicker(idleInterval)
	defer quiet.Stop()
	var revision []store.Event
	for {
		select {
		case event, open := <-source.Events():
			switch {
			case !open:
				err := source.Err()
				if errors.Is(err, store.ErrCompacted) {
					v.empty()
				}
				return fmt.Errorf("follow the store: %w", err)
			case event.Progress:
				v.moved(event.Revision)
			default:
				if revision = append(revision, event); event.Last {
					v.take(revision)
					revision = revision[:0]
				}
			}
		case <-v.stuck:
			v.empty()
			return errors.New("the store is full and cannot tell how far it is: it is read anew")
		case <-quiet.C:
			// Apart, since it may take a while.
			asking.Go(func() {
				if err := v.ask(ctx, 0); err != nil && ctx.Err() == nil {
					v.logger.Warn("ask the store how far it is", "error", err)
				}
			})
		}
	}
}

func (v *view) moved(to store.Revision) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if to > v.seen {
		v.seen = to
		v.advance()
	}
}

// take applies the changes of one revision.
func (v *view) take(events []store.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, event := range events {
		kind, key, ok := v.kindAndKey(event.Key)
		if !ok {
			continue
		}
		var is *object
		if event.Value != nil {
			is = newObject(kind, key, event.Value, event.Revision)
		}
		v.tendTo(kind, key, is)
		if kind.Name == "Namespace" {
			v.setNamespace(key, is, event.Revision)
			continue
		}
		was := v.collections[kind.Plural].set(key, is, event.Revision)
		if inhabits(kind.Kind) && (is == nil) != (was == nil) {
			v.settle(kind, key, was == nil, event.Revision)
		}
	}
	v.seen = events[len(events)-1].Revision
	v.advance()
}

// kindAndKey splits a store's key; ok is false for kinds that are not known.
func (v *view) kindAndKey(key string) (kind *seenKind, rest string, ok bool) {
	plural, rest, _ := strings.Cut(strings.TrimPrefix(key, viewPrefix), "/")
	kind, ok = v.kinds[plural]
	return kind, rest, ok && rest != ""
}

// ask has the store tell how far it is, which is a revision at least, unless somebody
// just did.
func (v *view) ask(ctx context.Context, least store.Revision) error {
	if !v.asking.TryLock() {
		return nil // the answer to who asks is for everybody
	}
	defer v.asking.Unlock()
	v.mu.RLock()
	source := v.source
	v.mu.RUnlock()
	if source == nil || time.Since(v.asked) < askInterval/5 {
		return nil
	}
	v.asked = time.Now()
	err := source.Progress(ctx, least)
	if errors.Is(err, store.ErrFull) {
		if least > 0 { // else nobody waits for more than the view has
			select {
			case v.stuck <- struct{}{}:
			default:
			}
		}
		return nil
	}
	return err
}

// reach waits until the view shows at least what the store had at a revision.
func (v *view) reach(ctx context.Context, revision store.Revision) error {
	if err := v.wait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reachLimit)
	defer cancel()
	began := time.Now()
	for asked := false; ; {
		v.mu.RLock()
		seen, filled, advanced := v.seen, v.filled, v.advanced
		v.mu.RUnlock()
		if filled && seen >= revision {
			return nil
		}
		if filled && !asked {
			// What the store has not come to is not worth waiting for.
			asked = true
			now, err := v.now(ctx)
			if err != nil {
				return err
			}
			if revision > now {
				return v.behind(revision, now, true)
			}
		}
		pause := newsDelay
		if time.Since(began) >= newsDelay {
			pause = askInterval
		}
		if filled && pause == askInterval {
			if err := v.ask(ctx, revision); err != nil {
				return err
			}
		}
		again := time.NewTimer(pause)
		select {
		case <-advanced:
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return v.behind(revision, seen, filled)
		}
		again.Stop()
	}
}

// wait waits until the view is filled.
func (v *view) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fillLimit)
	defer cancel()
	for {
		v.mu.RLock()
		filled, advanced := v.filled, v.advanced
		v.mu.RUnlock()
		if filled {
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return v.behind(0, 0, false)
		}
	}
}

// behind is the answer to who asks for more than the view has.
func (v *view) behind(revision, seen store.Revision, filled bool) *problem {
	if !filled {
		return newProblem(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable,
			"the controller is reading what there is: try again").retryAfter(1)
	}
	p := newProblem(http.StatusGatewayTimeout, metav1.StatusReasonTimeout,
		"Too large resource version: %d, current: %d", revision, seen).retryAfter(1)
	p.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	return p
}

// fresh waits until the view shows everything that was written before the call.
func (v *view) fresh(ctx context.Context) error {
	now, err := v.now(ctx)
	if err != nil {
		return err
	}
	return v.reach(ctx, now)
}

// now is the revision that the store is at. It is asked with a list of nothing:
// engines count what a list leaves out.
func (v *view) now(ctx context.Context) (store.Revision, error) {
	_, now, err := v.store.List(ctx, nothingPrefix, "", 1, 0)
	return now, err
}

// snapshot returns the objects of a kind in a namespace (empty: all of them) at
// the view's revision.
func (v *view) snapshot(plural, namespace string) ([]*object, store.Revision, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if !v.filled {
		return nil, 0, false
	}
	return v.collections[plural].behind(namespace, ""), v.seen, true
}

// snapshotAt returns the objects of a kind in a namespace behind a key as they
// were at a revision; ok is false if the view does not remember that.
func (v *view) snapshotAt(plural, namespace, after string, at store.Revision) (objects []*object, ok bool) {
	v.mu.RLock()
	if !v.filled || at > v.seen {
		v.mu.RUnlock()
		return nil, false
	}
	c := v.collections[plural]
	number, ok := c.numberAfter(at)
	if !ok {
		v.mu.RUnlock()
		return nil, false
	}
	objects = c.behind(namespace, after)
	since := slices.Clone(c.changes[number-c.first:])
	v.mu.RUnlock()
	return undo(objects, since, namespace, after), true
}

// undo takes changes back from objects, which are sorted and lie behind a key.
func undo(objects []*object, changes []*step, namespace, after string) []*object {
	was := map[string]*object{}
	for _, ch := range slices.Backward(changes) {
		o := ch.is
		if o == nil {
			o = ch.was
		}
		if o.key > after && (namespace == "" || o.namespace == namespace) {
			was[o.key] = ch.was
		}
	}
	if len(was) == 0 {
		return objects
	}
	out := make([]*object, 0, len(objects))
	for _, o := range objects {
		if _, changed := was[o.key]; !changed {
			out = append(out, o)
		}
	}
	for _, o := range was {
		if o != nil {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *object) int { return strings.Compare(a.key, b.key) })
	return out
}

// get returns one object as the view has it.
func (v *view) get(kind bocage.Kind, namespace, name string) *object {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if !v.filled {
		return nil
	}
	return v.collections[kind.Plural].get(keyIn(kind, namespace, name))
}

// join starts to follow a kind: from now on, with what is there, or after a
// revision. missing is set if the view no longer knows what came after it; the
// follower then gets what comes after now.
func (v *view) join(plural, namespace string, selected selection, after *store.Revision) (f *follower, now []*object, at store.Revision, missing bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.filled {
		return nil, nil, 0, false, v.behind(0, 0, false)
	}
	c := v.collections[plural]
	f = &follower{collection: c, selected: selected, ready: make(chan struct{}, 1), from: -1}
	if name, ok := selected.named(); ok && (namespace != "" || !c.kind.Namespaced) {
		f.index = keyIn(c.kind.Kind, namespace, name)
	} else if namespace != "" && c.kind.Namespaced {
		f.index = namespace + "/"
	}
	if c.followers[f.index] == nil {
		c.followers[f.index] = map[*follower]struct{}{}
	}
	c.followers[f.index][f] = struct{}{}
	if after == nil {
		return f, c.behind(namespace, ""), v.seen, false, nil
	}
	from, ok := c.numberAfter(*after)
	if !ok {
		return f, nil, v.seen, true, nil
	}
	if from < c.first+int64(len(c.changes)) {
		f.from = from
		f.ready <- struct{}{}
	}
	return f, nil, *after, false, nil
}

// leave ends a follower.
func (v *view) leave(f *follower) {
	v.mu.Lock()
	defer v.mu.Unlock()
	followers := f.collection.followers[f.index]
	if delete(followers, f); len(followers) == 0 {
		delete(f.collection.followers, f.index)
	}
}

// errCut ends a follower that was too slow, or whose view begins anew.
var errCut = errors.New("changes were missed")

// news returns the next changes for a follower, and how far that brings it. It
// returns none if there are none.
func (v *view) news(f *follower) (changes []*step, at store.Revision, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := f.collection
	switch {
	case f.cut || f.from >= 0 && f.from < c.first:
		return nil, 0, errCut
	case f.from < 0:
		return nil, v.seen, nil
	}
	changes = append(changes, c.changes[f.from-c.first:]...)
	f.from = -1
	return changes, v.seen, nil
}
