package recognition

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/recognition/evidence"
	"bocage.dev/bocage/store"
)

// maxFormer bounds the names of workloads that are gone but may still be in events.
const maxFormer = 16384

// ledger is what recognition needs of the store, followed by watches: who the
// workloads are, which incidents and threat conditions there are, when hosts last
// reported. It holds briefs, not objects.
type ledger struct {
	store  store.Store
	logger *slog.Logger

	mu         sync.RWMutex // guards all below
	workloads  map[string]workloadBrief
	named      map[bocage.Identity]string
	former     map[bocage.Identity]formerWorkload
	formerAge  []bocage.Identity
	vacant     map[netip.Addr]bocage.Identity // addresses of former workloads
	addresses  map[netip.Addr]bocage.Identity
	placed     map[bocage.Identity]string // host
	members    map[string]int             // workloads by namespace
	incidents  map[string]incidentBrief
	attackers  map[string][]string // incidents by attacker's name
	conditions map[string]conditionBrief
	hosts      map[string]time.Time
}

type workloadBrief struct {
	identity  bocage.Identity
	addresses []netip.Addr
}

type formerWorkload struct {
	name      string
	addresses []netip.Addr
}

type incidentBrief struct {
	phase       string
	first, last time.Time
	attackers   []string
}

type conditionBrief struct {
	workload string
	level    bocage.Level
	expires  time.Time
	incident string
}

func (c conditionBrief) holds(now time.Time) bool { return now.Before(c.expires) }

func newLedger(s store.Store, logger *slog.Logger) *ledger {
	return &ledger{
		store: s, logger: logger,
		workloads: map[string]workloadBrief{}, named: map[bocage.Identity]string{},
		former: map[bocage.Identity]formerWorkload{}, vacant: map[netip.Addr]bocage.Identity{},
		addresses: map[netip.Addr]bocage.Identity{},
		placed:    map[bocage.Identity]string{}, members: map[string]int{}, incidents: map[string]incidentBrief{}, attackers: map[string][]string{},
		conditions: map[string]conditionBrief{}, hosts: map[string]time.Time{},
	}
}

// chapter is one kind that the ledger follows.
type chapter struct {
	kind  bocage.Kind
	put   func(*ledger, string, bocage.Resource)
	strip func(*ledger, string)
	known func(*ledger) []string
}

func chapters() []chapter {
	kind := func(name string) bocage.Kind { k, _ := bocage.KindNamed(name); return k }
	return []chapter{
		{kind("Workload"), (*ledger).putWorkload, (*ledger).dropWorkload,
			func(l *ledger) []string { return keys(l.workloads) }},
		{kind("Incident"), (*ledger).putIncident, (*ledger).dropIncident,
			func(l *ledger) []string { return keys(l.incidents) }},
		{kind("ThreatCondition"), (*ledger).putCondition, func(l *ledger, name string) { delete(l.conditions, name) },
			func(l *ledger) []string { return keys(l.conditions) }},
		{kind("Host"), (*ledger).putHost, func(l *ledger, name string) { delete(l.hosts, name) },
			func(l *ledger) []string { return keys(l.hosts) }},
	}
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

// load reads a kind whole and returns the revision to watch from.
func (l *ledger) load(ctx context.Context, c chapter) (store.Revision, error) {
	entries, at, err := l.store.List(ctx, c.kind.KeyPrefix(), "", 0, 0)
	if err != nil {
		return 0, fmt.Errorf("list %s: %w", c.kind.Plural, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	gone := map[string]bool{}
	for _, name := range c.known(l) {
		gone[name] = true
	}
	for _, entry := range entries {
		delete(gone, strings.TrimPrefix(entry.Key, c.kind.KeyPrefix()))
		l.take(c, entry)
	}
	for name := range gone {
		c.strip(l, name)
	}
	return at, nil
}

// take reads one entry; mu is held. An object that cannot be read is left out
// and told of: it is not for recognition to stop at it.
func (l *ledger) take(c chapter, entry store.Entry) {
	object, err := store.DecodeObject(c.kind, entry)
	if err != nil {
		l.logger.Warn("object left out", "key", entry.Key, "error", err)
		return
	}
	c.put(l, strings.TrimPrefix(entry.Key, c.kind.KeyPrefix()), object)
}

// follow keeps a chapter up to date until ctx ends.
func (l *ledger) follow(ctx context.Context, c chapter, from store.Revision) error {
	for {
		err := l.watch(ctx, c, from)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.logger.Warn("watch broke, reading again", "kind", c.kind.Name, "error", err)
		if from, err = l.reload(ctx, c); err != nil {
			return err
		}
	}
}

// reload loads a chapter, as often as it takes.
func (l *ledger) reload(ctx context.Context, c chapter) (store.Revision, error) {
	for backoff := 100 * time.Millisecond; ; backoff = min(backoff*2, 5*time.Second) {
		from, err := l.load(ctx, c)
		if err == nil {
			return from, nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		l.logger.Warn("read state", "kind", c.kind.Name, "error", err)
		if err := pause(ctx, backoff); err != nil {
			return 0, err
		}
	}
}

func (l *ledger) watch(ctx context.Context, c chapter, from store.Revision) error {
	w, err := l.store.Watch(ctx, c.kind.KeyPrefix(), from)
	if err != nil {
		return err
	}
	for event := range w.Events() {
		if event.Progress {
			continue
		}
		l.mu.Lock()
		if event.Deleted() {
			c.strip(l, strings.TrimPrefix(event.Key, c.kind.KeyPrefix()))
		} else {
			l.take(c, store.Entry{Key: event.Key, Value: event.Value, Revision: event.Revision})
		}
		l.mu.Unlock()
	}
	if err := w.Err(); err != nil {
		return err
	}
	return errors.New("watch ended")
}

func (l *ledger) putWorkload(name string, object bocage.Resource) {
	w := object.(*bocage.Workload)
	l.dropWorkload(name)
	if w.Status.Identity < bocage.IdentityFirst {
		return // the api room has not numbered it yet
	}
	brief := workloadBrief{w.Status.Identity, w.Spec.Addresses}
	l.workloads[name] = brief
	l.named[brief.identity] = name
	l.placed[brief.identity] = w.Spec.Host
	for _, a := range brief.addresses {
		l.addresses[a.Unmap()] = brief.identity
	}
	l.members[w.Namespace]++
}

// dropWorkload forgets a workload but for its name: events of it are still on
// their way.
func (l *ledger) dropWorkload(name string) {
	brief, ok := l.workloads[name]
	if !ok {
		return
	}
	delete(l.workloads, name)
	delete(l.named, brief.identity)
	delete(l.placed, brief.identity)
	for _, a := range brief.addresses {
		if l.addresses[a.Unmap()] == brief.identity {
			delete(l.addresses, a.Unmap())
		}
	}
	space, _, _ := strings.Cut(name, "/")
	if l.members[space]--; l.members[space] == 0 {
		delete(l.members, space)
	}
	l.retire(name, brief)
}

// retire keeps the name and the addresses of a workload that is gone, of the
// latest so many.
func (l *ledger) retire(name string, brief workloadBrief) {
	if _, known := l.former[brief.identity]; !known {
		l.formerAge = append(l.formerAge, brief.identity)
		if len(l.formerAge) > maxFormer {
			oldest := l.formerAge[0]
			for _, a := range l.former[oldest].addresses {
				if l.vacant[a.Unmap()] == oldest {
					delete(l.vacant, a.Unmap())
				}
			}
			delete(l.former, oldest)
			l.formerAge = slices.Delete(l.formerAge, 0, 1)
		}
	}
	l.former[brief.identity] = formerWorkload{name, brief.addresses}
	for _, a := range brief.addresses {
		l.vacant[a.Unmap()] = brief.identity
	}
}

// formerly reports whether a workload that is gone, or has moved, had an address:
// its clients may not know yet.
func (l *ledger) formerly(address netip.Addr) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	_, ok := l.vacant[address.Unmap()]
	return ok
}

func (l *ledger) putIncident(name string, object bocage.Resource) {
	i := object.(*bocage.Incident)
	l.dropIncident(name)
	brief := incidentBrief{phase: i.Status.Phase, first: i.Status.First, last: i.Status.Last}
	for _, e := range i.Status.Entities {
		if e.Role == "attacker" {
			brief.attackers = append(brief.attackers, e.Name)
			l.attackers[e.Name] = append(l.attackers[e.Name], name)
		}
	}
	l.incidents[name] = brief
}

func (l *ledger) dropIncident(name string) {
	for _, attacker := range l.incidents[name].attackers {
		rest := slices.DeleteFunc(l.attackers[attacker], func(n string) bool { return n == name })
		if len(rest) == 0 {
			delete(l.attackers, attacker)
		} else {
			l.attackers[attacker] = rest
		}
	}
	delete(l.incidents, name)
}

func (l *ledger) putCondition(name string, object bocage.Resource) {
	t := object.(*bocage.ThreatCondition)
	l.conditions[name] = conditionBrief{t.Spec.Workload, t.Spec.Level, t.Spec.Expires, t.Spec.Incident}
}

func (l *ledger) putHost(name string, object bocage.Resource) {
	l.hosts[name] = object.(*bocage.Host).Status.LastSeen
}

// name implements names.
func (l *ledger) name(identity bocage.Identity) (string, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if name, ok := l.named[identity]; ok {
		return name, true
	}
	former, ok := l.former[identity]
	return former.name, ok
}

// present returns the name of a workload that exists now.
func (l *ledger) present(identity bocage.Identity) (string, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	name, ok := l.named[identity]
	return name, ok
}

// who spells a party, by the inventory where an event carries no identity.
func (l *ledger) who(identity bocage.Identity, address netip.Addr) evidence.Party {
	if identity < bocage.IdentityFirst {
		l.mu.RLock()
		identity = l.addresses[address.Unmap()]
		l.mu.RUnlock()
	}
	return evidence.Who(identity, address)
}

// mayReport tells whether a host can have seen a flow: one of its ends is placed
// there, or is a workload of which nothing is known yet.
func (l *ledger) mayReport(host string, from, to evidence.Party) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	elsewhere := false
	for _, p := range [2]evidence.Party{from, to} {
		if !p.Member() {
			continue
		}
		at, known := l.placed[p.Identity]
		if !known || at == host {
			return true
		}
		elsewhere = true
	}
	return !elsewhere
}

// adopt finds an incident that already tells of an attacker at a moment, or
// within the idle time before it.
func (l *ledger) adopt(attacker evidence.Party, at time.Time, idle time.Duration) string {
	called := (&description{named: l}).entity(attacker, "attacker").Name
	l.mu.RLock()
	defer l.mu.RUnlock()
	found := ""
	for _, name := range l.attackers[called] {
		i := l.incidents[name]
		if i.attackers[0] == called && !at.Before(i.first.Add(-time.Minute)) && !at.After(i.last.Add(idle)) &&
			(found == "" || name < found) {
			found = name
		}
	}
	return found
}

// contained counts the other workloads of a namespace that automation holds in
// quarantine, and all of its workloads.
func (l *ledger) contained(workload string, now time.Time) (held, members int) {
	space, _, _ := strings.Cut(workload, "/")
	l.mu.RLock()
	defer l.mu.RUnlock()
	others := map[string]bool{}
	for _, c := range l.conditions {
		if c.incident != "" && c.level == bocage.LevelQuarantine && c.holds(now) && c.workload != workload &&
			strings.HasPrefix(c.workload, space+"/") {
			others[c.workload] = true
		}
	}
	return len(others), l.members[space]
}

// phase tells where an incident stands, by its conditions and its age.
func (l *ledger) phase(name string, last, now time.Time, idle time.Duration) string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	watched := false
	for _, c := range l.conditions {
		if c.incident != name || !c.holds(now) {
			continue
		}
		if c.level.Includes(bocage.LevelRestrict) {
			return phaseContained
		}
		watched = true
	}
	if !watched && now.Sub(last) > idle {
		return phaseClosed
	}
	return phaseOpen
}

// seen returns when hosts last reported.
func (l *ledger) seen() map[string]time.Time {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := make(map[string]time.Time, len(l.hosts))
	for host, at := range l.hosts {
		out[host] = at
	}
	return out
}

// pause waits, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
