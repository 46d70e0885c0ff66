package recognition

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// Limits of the writer.
const (
	writePatience = 5 * time.Second
	finalPatience = 2 * time.Second
	minBackoff    = 50 * time.Millisecond
	saveEvery     = 5 * time.Second
	maxIncidents  = 10_000 // closed ones beyond it go, the oldest first
	upkeepEvery   = time.Second
	maxPending    = maxCases
)

// writer carries incidents and threat conditions to the store, in a goroutine of
// its own. What waits is bounded: one post for each incident, the latest. A store
// that is slow or full delays it and nothing else.
type writer struct {
	store   store.Store
	node    string
	ledger  *ledger
	ttl     TTLs
	share   float64
	retain  time.Duration
	now     func() time.Time
	logger  *slog.Logger
	wake    chan struct{}
	written atomic.Uint64
	refused atomic.Uint64 // attempts that failed and are made again
	shed    atomic.Uint64 // posts given up for lack of room

	mu      sync.Mutex // guards all below
	pending map[string]*post
	order   []string // of pending, oldest first
	reached checkpoint

	// The writer's goroutine alone uses what follows.
	held    map[heldKey]answer   // answers that still hold
	made    map[string]time.Time // conditions that were written, until when
	lifted  map[heldKey]answer   // answers whose condition a person deleted
	saved   checkpoint
	savedAt time.Time
}

type heldKey struct {
	incident string
	identity bocage.Identity
}

func newWriter(c Config, l *ledger) *writer {
	return &writer{
		store: c.Store, node: c.Node, ledger: l, ttl: c.TTLs(), now: c.Now, share: c.QuarantineShare, retain: c.Retain, logger: c.Logger,
		wake: make(chan struct{}, 1), pending: map[string]*post{}, held: map[heldKey]answer{},
		made: map[string]time.Time{}, lifted: map[heldKey]answer{},
	}
}

// add takes a post; it never blocks.
func (w *writer) add(p *post) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, waiting := w.pending[p.name]; !waiting {
		if len(w.order) >= maxPending {
			w.shed.Add(1)
			return
		}
		w.order = append(w.order, p.name)
	}
	w.pending[p.name] = p
	w.ring()
}

func (w *writer) next() *post {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.order) == 0 {
		return nil
	}
	name := w.order[0]
	w.order = slices.Delete(w.order, 0, 1)
	p := w.pending[name]
	delete(w.pending, name)
	return p
}

// again puts a post back that could not be written, unless a newer one waits.
func (w *writer) again(p *post) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, newer := w.pending[p.name]; newer {
		return
	}
	w.pending[p.name] = p
	w.order = append(w.order, p.name)
}

// waiting is the number of posts that are not written yet.
func (w *writer) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.order)
}

// mark notes how far the log was folded; it is saved now and then.
func (w *writer) mark(at checkpoint) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reached = at
}

// run writes until ctx ends, then what is left, once.
func (w *writer) run(ctx context.Context) {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	backoff := minBackoff
	for {
		select {
		case <-ctx.Done():
			final, cancel := context.WithTimeout(context.WithoutCancel(ctx), finalPatience)
			defer cancel()
			if w.drain(final) {
				w.save(final)
			}
			return
		case <-w.wake:
		case now := <-tick.C:
			w.upkeep(ctx, now)
			if now.Sub(w.savedAt) >= saveEvery {
				w.savedAt = now
				w.save(ctx)
			}
		}
		if w.drain(ctx) {
			backoff = minBackoff
			continue
		}
		_ = pause(ctx, backoff)
		backoff = min(backoff*2, writePatience)
		w.ring()
	}
}

func (w *writer) ring() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *writer) save(ctx context.Context) {
	w.mu.Lock()
	reached := w.reached
	w.mu.Unlock()
	if reached == w.saved {
		return
	}
	attempt, cancel := context.WithTimeout(ctx, writePatience)
	defer cancel()
	if err := saveCheckpoint(attempt, w.store, w.node, reached); err != nil {
		w.logger.Warn("checkpoint waits", "error", err)
		return
	}
	w.saved = reached
}

// drain writes what waits. It stops at the first failure.
func (w *writer) drain(ctx context.Context) bool {
	for p := w.next(); p != nil; p = w.next() {
		attempt, cancel := context.WithTimeout(ctx, writePatience)
		err := w.write(attempt, p, w.now())
		cancel()
		if err != nil {
			w.refused.Add(1)
			w.again(p)
			if ctx.Err() == nil {
				w.logger.Warn("incident waits", "incident", p.name, "waiting", w.waiting(), "error", err)
			}
			return false
		}
		w.written.Add(1)
	}
	return true
}

// write brings one post to the store: containment first, the record of it second.
func (w *writer) write(ctx context.Context, p *post, now time.Time) error {
	if p.into != "" {
		return w.foldInto(ctx, p)
	}
	for _, identity := range slices.Sorted(maps.Keys(p.answers)) {
		key := heldKey{p.name, identity}
		if !w.answers(key, p.answers[identity]) {
			continue
		}
		w.held[key] = w.held[key].join(p.answers[identity])
		condition, note, err := w.hold(ctx, key, now)
		if err != nil {
			return err
		}
		if condition != "" {
			p.status.ThreatConditions = union(p.status.ThreatConditions, []string{condition}, maxConditions)
		}
		if note != "" {
			p.status.Notes = union(p.status.Notes, []string{note}, maxNotes)
		}
	}
	return w.record(ctx, p, now)
}

// answers reports whether an answer counts: after a person has lifted a condition
// only new evidence brings it back, and not what trickles in of the old.
func (w *writer) answers(key heldKey, a answer) bool {
	lifted, ok := w.lifted[key]
	if !ok {
		return true
	}
	if !a.quarantine.After(lifted.quarantine.Add(trickle)) && !a.watch.After(lifted.watch.Add(trickle)) {
		return false
	}
	delete(w.lifted, key)
	return true
}

// trickle is how long evidence of one flow may follow: TCP sends again what was
// blocked, a few times.
const trickle = 10 * time.Second

func (h answer) join(other answer) answer {
	h.watch = later(h.watch, other.watch)
	h.quarantine = later(h.quarantine, other.quarantine)
	h.ttl = max(h.ttl, other.ttl)
	h.reason = cmp.Or(other.reason, h.reason)
	return h
}

// level is what an answer asks for at a moment, and until when.
func (h answer) level(now time.Time) (bocage.Level, time.Time) {
	switch {
	case now.Before(h.quarantine):
		return bocage.LevelQuarantine, h.quarantine
	case now.Before(h.watch):
		return bocage.LevelWatch, h.watch
	default:
		return "", time.Time{}
	}
}

// conditionName is the one condition of an incident on a workload.
func conditionName(incident, workload string) string {
	return incident + "-" + digestOf(workload)[:8]
}

// hold writes the threat condition that an answer asks for. It returns its name,
// and a note where less was done than asked.
func (w *writer) hold(ctx context.Context, key heldKey, now time.Time) (condition, note string, err error) {
	held := w.held[key]
	level, until := held.level(now)
	if level == "" {
		delete(w.held, key)
		return "", "", nil
	}
	workload, present := w.ledger.present(key.identity)
	if !present {
		return "", "", nil // it is gone, or not known yet: upkeep asks again
	}
	if level == bocage.LevelQuarantine {
		if others, members := w.ledger.contained(workload, now); others >= w.allowed(members) {
			level = bocage.LevelRestrict
			space, _, _ := strings.Cut(workload, "/")
			note = fmt.Sprintf("%s is restricted and not quarantined: automation may cut off %d of the %d workloads of %s at once",
				workload, w.allowed(members), members, space)
		}
	}
	condition = conditionName(key.incident, workload)
	spec := bocage.ThreatConditionSpec{
		Workload: workload, Level: level, Reason: held.reason, Expires: until.UTC(), Incident: key.incident,
	}
	err = w.tighten(ctx, condition, spec, held.ttl, now)
	if errors.Is(err, errLifted) {
		w.lifted[key] = held
		delete(w.held, key)
		return "", workload + " was released by a person", nil
	}
	return condition, note, err
}

// errLifted means that somebody deleted a condition while it held.
var errLifted = errors.New("lifted by a person")

// allowed is how many workloads of a namespace automation may quarantine.
func (w *writer) allowed(members int) int { return max(1, int(w.share*float64(members))) }

// tighten creates or extends a condition. While a stored one holds, it is never
// weakened or shortened. An extension that changes little waits until it matters,
// since each one is a new generation of policy.
func (w *writer) tighten(ctx context.Context, name string, spec bocage.ThreatConditionSpec, ttl time.Duration, now time.Time) error {
	kind, _ := bocage.KindNamed("ThreatCondition")
	err := store.UpdateObject(ctx, w.store, kind, "", name, func(t *bocage.ThreatCondition) (bool, error) {
		if now.Before(t.Spec.Expires) {
			switch {
			case t.Spec.Level.Includes(spec.Level) && t.Spec.Level != spec.Level:
				return false, nil
			case t.Spec.Level == spec.Level && !worthExtending(t.Spec.Expires, spec.Expires, ttl, now):
				return false, nil
			}
		}
		t.Spec = spec
		t.Generation++
		w.ledger.note(name, spec)
		return true, nil
	})
	if err == nil {
		w.made[name] = spec.Expires
	}
	if !errors.Is(err, store.ErrNotFound) {
		return wrap(err, "tighten %s", name)
	}
	if now.Before(w.made[name]) {
		delete(w.made, name)
		return errLifted
	}
	t := &bocage.ThreatCondition{ObjectMeta: store.NewMeta(name, now), Spec: spec}
	if faults := t.Validate(); faults != nil {
		return fmt.Errorf("threat condition %s: %w", name, faults)
	}
	if _, err := store.PutObject(ctx, w.store, kind, t, store.Absent); err != nil {
		return fmt.Errorf("create threat condition %s: %w", name, err) // another replica was faster: the next attempt joins
	}
	w.made[name] = spec.Expires
	w.ledger.note(name, spec)
	return nil
}

func worthExtending(stored, wanted time.Time, ttl time.Duration, now time.Time) bool {
	more := wanted.Sub(stored)
	return more > 0 && (more >= ttl/6 || stored.Sub(now) < ttl/2)
}

// note tells the ledger at once what the watch will tell it later, so that the
// share of a namespace is counted right.
func (l *ledger) note(name string, spec bocage.ThreatConditionSpec) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conditions[name] = conditionBrief{spec.Workload, spec.Level, spec.Expires, spec.Incident}
}

// record writes the incident, joined with what is there.
func (w *writer) record(ctx context.Context, p *post, now time.Time) error {
	kind, _ := bocage.KindNamed("Incident")
	err := store.UpdateObject(ctx, w.store, kind, "", p.name, func(i *bocage.Incident) (bool, error) {
		merged := merge(i.Status, p.status)
		merged.Phase = w.ledger.phase(p.name, later(merged.Last, p.arrived), now, w.ttl.Idle)
		if equal(i.Status, merged) {
			return false, nil
		}
		i.Status = merged
		return true, nil
	})
	if !errors.Is(err, store.ErrNotFound) {
		return wrap(err, "update incident %s", p.name)
	}
	i := &bocage.Incident{ObjectMeta: store.NewMeta(p.name, now), Status: p.status}
	i.Status.Phase = w.ledger.phase(p.name, later(p.status.Last, p.arrived), now, w.ttl.Idle)
	_, err = store.PutObject(ctx, w.store, kind, i, store.Absent)
	return wrap(err, "create incident %s", p.name)
}

// foldInto closes an incident that turned out to be part of another.
func (w *writer) foldInto(ctx context.Context, p *post) error {
	kind, _ := bocage.KindNamed("Incident")
	err := store.UpdateObject(ctx, w.store, kind, "", p.name, func(i *bocage.Incident) (bool, error) {
		note := "part of " + p.into
		if i.Status.Phase == phaseClosed && slices.Contains(i.Status.Notes, note) {
			return false, nil
		}
		i.Status.Phase = phaseClosed
		i.Status.Notes = union(i.Status.Notes, []string{note}, maxNotes)
		return true, nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return wrap(err, "close incident %s", p.name)
}

// upkeep does what time alone asks for: answers that fall to a lower rung, phases,
// conditions and incidents that are over.
func (w *writer) upkeep(ctx context.Context, now time.Time) {
	for key := range w.held {
		attempt, cancel := context.WithTimeout(ctx, writePatience)
		_, _, err := w.hold(attempt, key, now)
		cancel()
		if err != nil && !errors.Is(err, store.ErrConflict) {
			w.logger.Warn("threat condition waits", "incident", key.incident, "error", err)
			return
		}
	}
	maps.DeleteFunc(w.lifted, func(_ heldKey, a answer) bool {
		return now.After(later(a.watch, a.quarantine).Add(trickle))
	})
	maps.DeleteFunc(w.made, func(_ string, expires time.Time) bool { return now.After(expires) })
	expired, phases, old := w.ledger.due(now, w.ttl, w.retain)
	for _, name := range expired {
		w.remove(ctx, "ThreatCondition", name)
	}
	for name, phase := range phases {
		w.rephase(ctx, name, phase)
	}
	for _, name := range old {
		w.remove(ctx, "Incident", name)
	}
}

// due lists what time has made of the ledger.
func (l *ledger) due(now time.Time, ttl TTLs, retain time.Duration) (expired []string, phases map[string]string, old []string) {
	l.mu.RLock()
	open := map[string]incidentBrief{}
	for name, c := range l.conditions {
		if now.Sub(c.expires) > ttl.Linger {
			expired = append(expired, name)
		}
	}
	for name, i := range l.incidents {
		switch {
		case i.phase != phaseClosed:
			open[name] = i
		case now.Sub(i.last) > retain:
			old = append(old, name)
		}
	}
	if excess := len(l.incidents) - len(old) - maxIncidents; excess > 0 {
		old = append(old, l.oldestClosed(excess, old)...)
	}
	l.mu.RUnlock()
	phases = map[string]string{}
	for name, i := range open {
		if phase := l.phase(name, i.last, now, ttl.Idle); phase != i.phase {
			phases[name] = phase
		}
	}
	return expired, phases, old
}

// oldestClosed names closed incidents besides some; mu is held.
func (l *ledger) oldestClosed(n int, besides []string) []string {
	var closed []string
	for name, i := range l.incidents {
		if i.phase == phaseClosed && !slices.Contains(besides, name) {
			closed = append(closed, name)
		}
	}
	slices.SortFunc(closed, func(a, b string) int { return l.incidents[a].last.Compare(l.incidents[b].last) })
	return closed[:min(n, len(closed))]
}

func (w *writer) rephase(ctx context.Context, name, phase string) {
	kind, _ := bocage.KindNamed("Incident")
	attempt, cancel := context.WithTimeout(ctx, writePatience)
	defer cancel()
	err := store.UpdateObject(attempt, w.store, kind, "", name, func(i *bocage.Incident) (bool, error) {
		if i.Status.Phase == phaseClosed || i.Status.Phase == phase {
			return false, nil
		}
		i.Status.Phase = phase
		return true, nil
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
		w.logger.Warn("change phase", "incident", name, "phase", phase, "error", err)
	}
}

func (w *writer) remove(ctx context.Context, kindName, name string) {
	kind, _ := bocage.KindNamed(kindName)
	attempt, cancel := context.WithTimeout(ctx, writePatience)
	defer cancel()
	// Read once more: the object may have been extended since the ledger saw it.
	object, revision, err := store.Object(attempt, w.store, kind, "", name)
	if t, ok := object.(*bocage.ThreatCondition); ok && err == nil && w.now().Before(t.Spec.Expires) {
		return
	}
	if err == nil {
		_, err = store.Delete(attempt, w.store, kind.Key("", name), revision)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrConflict) && ctx.Err() == nil {
		w.logger.Warn("delete what is over", "kind", kindName, "name", name, "error", err)
	}
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

// equal compares as written.
func equal(a, b bocage.IncidentStatus) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// checkpoint is where the log was read up to, and from where a new process must
// read so that it knows what this one knew.
type checkpoint struct {
	Sequence uint64 `json:"sequence"`
	From     uint64 `json:"from"`
}

func checkpointKey(node string) string { return "recognition/checkpoint/" + node }

func loadCheckpoint(ctx context.Context, s store.Store, node string) (checkpoint, error) {
	entry, err := s.Get(ctx, checkpointKey(node))
	if errors.Is(err, store.ErrNotFound) {
		return checkpoint{}, nil
	}
	if err != nil {
		return checkpoint{}, fmt.Errorf("read the checkpoint: %w", err)
	}
	var c checkpoint
	if err := json.Unmarshal(entry.Value, &c); err != nil || c.From > c.Sequence {
		return checkpoint{}, nil // replaying everything is always right
	}
	return c, nil
}

func saveCheckpoint(ctx context.Context, s store.Store, node string, c checkpoint) error {
	value := []byte(`{"sequence":` + strconv.FormatUint(c.Sequence, 10) + `,"from":` + strconv.FormatUint(c.From, 10) + `}`)
	_, err := store.Put(ctx, s, checkpointKey(node), value, store.AnyRevision)
	return wrap(err, "write the checkpoint")
}
