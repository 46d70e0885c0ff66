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
	// usageKey is where controllers keep how much each declaration is used: below it,
	// each what it counted; itself, where several that nothing tells apart share one
	// history, and each time is counted by whoever takes it first.
	usageKey   = "policy/usage"
	usageEvery = time.Minute
	// usageLate is how long the events of a moment are waited for. What comes
	// later is in the history and not in the count.
	usageLate = 10 * time.Second
	// usageMost bounds the fields that are counted; those that were not used for
	// the longest time are dropped.
	usageMost = 20_000
	// usageRecalls bounds the kept generations that are asked in one turn for
	// decisions that are no longer in force.
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
	shelf, err := p.readUses(ctx)
	if err != nil {
		return err
	}
	defer func() {
		all := shelf.all()
		all.index()
		p.uses.Store(all)
		wake(p.report)
	}()
	until := p.now().Add(-usageLate)
	if shelf.own.Until.After(p.now()) { // by a clock that was wrong; until that moment comes, nothing would be counted
		back := *shelf.own
		back.Until = until.Add(-usageEvery)
		shelf.own = &back
	}
	if p.inForce() == nil || until.Sub(shelf.own.Until) < usageEvery/2 {
		return nil // nothing to name decisions by, or who shares the history has just counted
	}
	uses, err := p.usage(ctx, shelf.own.Until, until)
	if err != nil {
		return err
	}
	next := p.add(ctx, shelf.own, uses)
	next.Until = until
	value, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if value, err = compress(value); err != nil {
		return err
	}
	ops := []store.Op{{Key: p.usageOwn(), Value: value, IfWas: shelf.revision}}
	if shelf.adopted != nil {
		ops = append(ops, store.Op{Key: shelf.adopted.Key, Delete: true, IfWas: shelf.adopted.Revision})
	}
	_, err = p.store.Apply(ctx, ops...)
	switch {
	case errors.Is(err, store.ErrConflict):
		again, err := p.readUses(ctx) // another was faster
		if err == nil {
			shelf = again
		}
		return err
	case err != nil:
		return fmt.Errorf("write how declarations are used: %w", err)
	}
	shelf.own = next
	return nil
}

// usageOwn is the key of what this controller counts: each has the history of the
// agents that speak to it, and keeps it whatever name it goes by.
func (p *Policy) usageOwn() string { return p.usageFormer()[0] }

// usageFormer are the keys that what it counted may stand at, the newest first: those
// of versions before are its name's, and one that all controllers had.
func (p *Policy) usageFormer() []string {
	var keys []string
	for _, name := range []string{p.instance, p.node} {
		if name != "" {
			keys = append(keys, usageKey+"/"+name)
		}
	}
	return append(keys, usageKey)
}

// useShelf is what all controllers counted.
type useShelf struct {
	own      *useBook
	revision store.Revision // of own
	// adopted is where a version before kept what became this one's, if it did.
	adopted *store.Entry
	others  []*useBook
}

func (p *Policy) readUses(ctx context.Context) (useShelf, error) {
	shelf := useShelf{own: &useBook{}, revision: store.Absent}
	entries, _, err := p.store.List(ctx, usageKey, "", 0, 0)
	if err != nil {
		return shelf, fmt.Errorf("read how declarations are used: %w", err)
	}
	keys := p.usageFormer()
	best := len(keys)
	for _, entry := range entries {
		age := slices.Index(keys, entry.Key)
		if age == 0 {
			shelf.revision = entry.Revision
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
		if age < 0 || age > best {
			shelf.others = append(shelf.others, book)
			continue
		}
		if best < len(keys) { // an older one was taken for its own
			shelf.others = append(shelf.others, shelf.own)
		}
		best, shelf.own, shelf.adopted = age, book, nil
		if age > 0 {
			shelf.adopted = &entry
		}
	}
	if shelf.revision != store.Absent && best > 0 {
		// Its own cannot be read: what versions before kept was adopted long ago.
		if best < len(keys) {
			shelf.others = append(shelf.others, shelf.own)
		}
		shelf.own, shelf.adopted = &useBook{}, nil
	}
	return shelf, nil
}

// all adds up what was counted.
func (s useShelf) all() *useBook {
	if len(s.others) == 0 {
		return s.own
	}
	sum := map[usedField]bocage.Usage{}
	for _, book := range append([]*useBook{s.own}, s.others...) {
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
	return bookOf(sum)
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
