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
	// usageKey is where controllers keep, together, how much each declaration is
	// used. Each time is counted by whoever takes it first.
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
	book, revision, err := p.readUses(ctx)
	if err != nil {
		return err
	}
	defer func() {
		book.index()
		p.uses.Store(book)
		wake(p.report)
	}()
	until := time.Now().Add(-usageLate)
	if p.inForce() == nil || until.Sub(book.Until) < usageEvery/2 {
		return nil // nothing to name decisions by, or another controller has just counted
	}
	uses, err := p.usage(ctx, book.Until, until)
	if err != nil {
		return err
	}
	next := p.add(ctx, book, uses)
	next.Until = until
	value, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if value, err = compress(value); err != nil {
		return err
	}
	_, err = store.Put(ctx, p.store, usageKey, value, revision)
	switch {
	case errors.Is(err, store.ErrConflict):
		book, _, err = p.readUses(ctx) // another controller was faster
		return err
	case err != nil:
		return fmt.Errorf("write how declarations are used: %w", err)
	}
	book = next
	return nil
}

func (p *Policy) readUses(ctx context.Context) (*useBook, store.Revision, error) {
	book := &useBook{}
	entry, err := p.store.Get(ctx, usageKey)
	if errors.Is(err, store.ErrNotFound) {
		return book, store.Absent, nil
	}
	if err != nil {
		return book, 0, fmt.Errorf("read how declarations are used: %w", err)
	}
	plain, err := decompress(entry.Value)
	if err == nil {
		err = json.Unmarshal(plain, book)
	}
	if err != nil {
		return &useBook{}, entry.Revision, fmt.Errorf("read how declarations are used: %w", err)
	}
	return book, entry.Revision, nil
}

// add counts what flows used. Whoever decided counts, and whoever added a duty.
func (p *Policy) add(ctx context.Context, book *useBook, uses []DecisionUse) *useBook {
	type field struct {
		useKey
		name string
	}
	known := map[field]bocage.Usage{}
	for _, u := range book.Uses {
		if p.counts(u.useKey) {
			known[field{u.useKey, u.Field}] = u.Usage
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
		told := map[field]bool{}
		for _, by := range d.By {
			f := field{useKey{by.Kind, by.Namespace, by.Name}, by.Field}
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
