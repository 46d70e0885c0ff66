package policy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// DecisionUse says how many flows a decision was made on.
type DecisionUse struct {
	Decision bocage.DecisionID
	// Generation is the last that made it (the low 32 bits of its number).
	Generation  uint32
	Hits        int64
	First, Last time.Time
}

const (
	// usageKey is where controllers keep how much each declaration is used. Each keeps
	// what it counted under a key of its own below this one. Controllers that have neither
	// an instance nor a name share the key itself; each period is then counted by the
	// controller that writes first.
	usageKey   = "policy/usage"
	usageEvery = time.Minute
	// usageLate is how long counting waits for the events of a moment. Later events are
	// in the history and are not counted.
	usageLate = 10 * time.Second
	// usageMost bounds the fields that are counted; those that were not used for
	// the longest time are dropped.
	usageMost = 20_000
	// usageRecalls bounds how many kept generations are compiled again in one turn, to
	// look up decisions that are no longer in force.
	usageRecalls = 4
)

// useKey names a field of an object.
type useKey struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// useBook is what was counted until a moment. Nobody changes it.
type useBook struct {
	Until time.Time `json:"until"`
	Uses  []use     `json:"uses"`
	// Folded is of the common book alone (see usagefold.go): how far the controllers had
	// counted whose books it took over, by key.
	Folded map[string]time.Time `json:"folded,omitempty"`

	byObject map[useKey][]bocage.Usage
}

type use struct {
	useKey
	bocage.Usage
}

// countUsage adds up the usage of declarations once a minute.
func (p *Policy) countUsage(ctx context.Context) error {
	if p.usage == nil {
		return nil
	}
	tick := time.NewTicker(usageEvery)
	defer tick.Stop()
	for {
		if err := p.countOnce(ctx); err != nil && ctx.Err() == nil {
			p.logger.WarnContext(ctx, "count how declarations are used", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (p *Policy) countOnce(ctx context.Context) error {
	counts, err := p.readUses(ctx)
	if err != nil {
		return err
	}
	defer func() {
		all := counts.all()
		all.index()
		p.uses.Store(all)
		wake(p.report)
	}()
	until := p.now().Add(-usageLate)
	if counts.own.Until.After(p.now()) { // by a clock that was wrong; until that moment comes, nothing would be counted
		back := *counts.own
		back.Until = until.Add(-usageEvery)
		counts.own = &back
	}
	if p.inForce() == nil || until.Sub(counts.own.Until) < usageEvery/2 {
		return nil // nothing to name decisions by, or who shares the history has just counted
	}
	uses, err := p.usage(ctx, counts.own.Until, until)
	if err != nil {
		return err
	}
	next := p.add(ctx, counts.own, uses)
	next.Until = until
	value, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if value, err = compress(value); err != nil {
		return err
	}
	ops := []store.Op{{Key: p.usageOwnKey(), Value: value, IfWas: counts.revision}}
	if counts.adopted != nil {
		ops = append(ops, store.Op{Key: counts.adopted.Key, Delete: true, IfWas: counts.adopted.Revision})
	}
	_, err = p.store.Apply(ctx, ops...)
	switch {
	case errors.Is(err, store.ErrConflict):
		again, err := p.readUses(ctx) // another was faster
		if err == nil {
			counts = again
		}
		return err
	case err != nil:
		return fmt.Errorf("write how declarations are used: %w", err)
	}
	counts.own = next
	return p.foldGone(ctx, counts, until)
}

// usageOwnKey is the key of what this controller counts: the events of the agents that
// speak to it. It stays the same if the controller is renamed.
func (p *Policy) usageOwnKey() string { return p.usageKeys()[0] }

// usageKeys are the keys under which its counts may be stored, the current one first.
// Earlier versions used the controller's name, and before that one key for all.
func (p *Policy) usageKeys() []string {
	var keys []string
	for _, name := range []string{p.instance, p.node} {
		if name != "" {
			keys = append(keys, usageKey+"/"+name)
		}
	}
	return append(keys, usageKey)
}

// usageCounts is what all controllers counted.
type usageCounts struct {
	own      *useBook
	revision store.Revision // of own
	// adopted is the entry of an earlier version of the software from which own was taken;
	// nil if it was not.
	adopted *store.Entry
	others  []othersBook
	// gone is the one of the others that holds what controllers counted that are gone;
	// nil if there is none.
	gone         *useBook
	goneRevision store.Revision
}

func (p *Policy) readUses(ctx context.Context) (usageCounts, error) {
	counts := usageCounts{own: &useBook{}, revision: store.Absent, goneRevision: store.Absent}
	entries, _, err := p.store.List(ctx, usageKey, "", 0, 0)
	if err != nil {
		return counts, fmt.Errorf("read how declarations are used: %w", err)
	}
	keys := p.usageKeys()
	best := len(keys)
	var ownEntry store.Entry // that own was read from
	for _, entry := range entries {
		age := slices.Index(keys, entry.Key)
		if age == 0 {
			counts.revision = entry.Revision
		}
		book := &useBook{}
		plain, err := decompress(entry.Value)
		if err == nil {
			err = json.Unmarshal(plain, book)
		}
		if err != nil {
			// One that nobody can read keeps nobody from counting. This controller's own
			// is written anew, from the history.
			p.logger.WarnContext(ctx, "what was counted of the use of declarations cannot be read", slog.String("at", entry.Key), slog.Any("error", err))
			continue
		}
		if entry.Key == usageGone {
			counts.gone, counts.goneRevision = book, entry.Revision
		}
		if age < 0 || age > best {
			counts.others = append(counts.others, othersBook{book, entry})
			continue
		}
		if best < len(keys) { // an older one was taken for its own
			counts.others = append(counts.others, othersBook{counts.own, ownEntry})
		}
		best, counts.own, counts.adopted, ownEntry = age, book, nil, entry
		if age > 0 {
			counts.adopted = &entry
		}
	}
	if best == len(keys) && counts.revision == store.Absent {
		counts.goOn(keys)
	}
	if counts.revision != store.Absent && best > 0 {
		// Its own cannot be read: what versions before kept was adopted long ago.
		if best < len(keys) {
			counts.others = append(counts.others, othersBook{counts.own, ownEntry})
		}
		counts.own, counts.adopted = &useBook{}, nil
	}
	return counts, nil
}

// all adds up the counts of all controllers.
func (s usageCounts) all() *useBook {
	if len(s.others) == 0 {
		return s.own
	}
	sum := map[usedField]bocage.Usage{}
	sumUses(sum, s.own)
	for _, other := range s.others {
		sumUses(sum, other.useBook)
	}
	return bookOf(sum)
}

// sumUses adds a book to a sum.
func sumUses(sum map[usedField]bocage.Usage, book *useBook) {
	for _, u := range book.Uses {
		f := usedField{u.useKey, u.Field}
		k, known := sum[f]
		if !known {
			sum[f] = u.Usage
			continue
		}
		k.Hits += u.Hits
		if u.FirstSeen.Before(k.FirstSeen) {
			k.FirstSeen = u.FirstSeen
		}
		if u.LastSeen.After(k.LastSeen) {
			k.LastSeen = u.LastSeen
		}
		sum[f] = k
	}
}

// add counts what flows used. Whoever decided counts, and whoever added a duty.
func (p *Policy) add(ctx context.Context, book *useBook, uses []DecisionUse) *useBook {
	known := map[usedField]bocage.Usage{}
	for _, u := range book.Uses {
		if p.counts(u.useKey) {
			known[usedField{u.useKey, u.Field}] = u.Usage
		}
	}
	slices.SortFunc(uses, func(a, b DecisionUse) int { return cmp.Compare(b.Generation, a.Generation) })
	recalled := map[uint32]*outcome{}
	for _, u := range uses {
		d, ok := p.Decision(u.Generation, u.Decision)
		if !ok && u.Decision != 0 {
			if _, asked := recalled[u.Generation]; !asked && len(recalled) < usageRecalls {
				recalled[u.Generation], _ = p.recall(ctx, uint64(u.Generation)) // nil if it is not kept
			}
			if o := recalled[u.Generation]; o != nil {
				d, _ = o.output.Decision(u.Decision)
			}
		}
		told := map[usedField]bool{}
		for _, by := range d.By {
			f := usedField{useKey{by.Kind, by.Namespace, by.Name}, by.Field}
			if told[f] || !p.counts(f.useKey) {
				continue
			}
			told[f] = true
			k := known[f]
			k.Field, k.Hits = by.Field, k.Hits+u.Hits
			if k.FirstSeen.IsZero() || u.First.Before(k.FirstSeen) {
				k.FirstSeen = u.First.UTC().Truncate(time.Second)
			}
			if u.Last.After(k.LastSeen) {
				k.LastSeen = u.Last.UTC().Truncate(time.Second)
			}
			known[f] = k
		}
	}
	return bookOf(known)
}

// usedField is what is counted.
type usedField struct {
	useKey
	name string
}

// bookOf puts counts into the order of a book, and leaves out what are too many.
func bookOf(known map[usedField]bocage.Usage) *useBook {
	next := &useBook{Uses: make([]use, 0, len(known))}
	for f, u := range known {
		next.Uses = append(next.Uses, use{f.useKey, u})
	}
	slices.SortFunc(next.Uses, func(a, b use) int { return b.LastSeen.Compare(a.LastSeen) })
	next.Uses = next.Uses[:min(len(next.Uses), usageMost)]
	slices.SortFunc(next.Uses, func(a, b use) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Field, b.Field))
	})
	return next
}

// counts reports whether an object is there and has a place for its usage.
func (p *Policy) counts(of useKey) bool {
	switch of.Kind {
	case "Application", "Guardrail", "Exception":
		kind, _ := bocage.KindNamed(of.Kind)
		return p.mirror.find(kind.Key(of.Namespace, of.Name)) != nil
	}
	return false
}

func (b *useBook) index() {
	b.byObject = map[useKey][]bocage.Usage{}
	for _, u := range b.Uses {
		b.byObject[u.useKey] = append(b.byObject[u.useKey], u.Usage)
	}
}

// of returns the usage of an object.
func (b *useBook) of(kind string, meta *bocage.ObjectMeta) []bocage.Usage {
	if b == nil {
		return nil
	}
	return b.byObject[useKey{kind, meta.Namespace, meta.Name}]
}

// hits is the sum of a list. It only grows, which tells the newer of two.
func hits(list []bocage.Usage) int64 {
	var sum int64
	for _, u := range list {
		sum += u.Hits
	}
	return sum
}
