package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
)

// A controller that is gone leaves its counts in the store. After a while any controller
// adds them to one common book and removes them, so that neither hits are lost nor a
// book stays for each controller that ever was. The common book notes how far each of
// them had counted: one that comes back goes on from there.

const (
	// usageGone is the key of the common book. No controller has that name.
	usageGone = usageKey + "/-gone"
	// usageGoneAfter is how long a controller counts nothing before it counts as gone.
	usageGoneAfter = 7 * 24 * time.Hour
	// usageGoneMost bounds the controllers whose position is noted; those that counted
	// last stay.
	usageGoneMost = 1000
	// usageFoldMost bounds the books that are added in one transaction.
	usageFoldMost = 64
)

// othersBook is what another controller counted.
type othersBook struct {
	*useBook
	entry store.Entry
}

// foldGone adds the books of controllers that are gone to the common one. All of it is
// one transaction under the revisions that were read: of several controllers that try,
// one succeeds, and one that was not gone after all wins by writing its book.
func (p *Policy) foldGone(ctx context.Context, counts usageCounts, now time.Time) error {
	next := useBook{Folded: map[string]time.Time{}}
	sum := map[usedField]bocage.Usage{}
	var ops []store.Op
	if counts.gone != nil {
		maps.Copy(next.Folded, counts.gone.Folded)
		sumUses(sum, counts.gone)
	}
	for _, other := range counts.others {
		if other.useBook == counts.gone || now.Sub(other.Until) < usageGoneAfter || len(ops) == usageFoldMost {
			continue
		}
		sumUses(sum, other.useBook)
		next.Folded[other.entry.Key] = other.Until
		ops = append(ops, store.Op{Key: other.entry.Key, Delete: true, IfWas: other.entry.Revision})
	}
	if len(ops) == 0 {
		return nil
	}
	maps.DeleteFunc(sum, func(f usedField, _ bocage.Usage) bool { return !p.counts(f.useKey) })
	next.Uses = bookOf(sum).Uses
	if keys := slices.SortedFunc(maps.Keys(next.Folded), func(a, b string) int { return next.Folded[b].Compare(next.Folded[a]) }); len(keys) > usageGoneMost {
		for _, key := range keys[usageGoneMost:] {
			delete(next.Folded, key)
		}
	}
	value, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if value, err = compress(value); err != nil {
		return err
	}
	ops = append(ops, store.Op{Key: usageGone, Value: value, IfWas: counts.goneRevision})
	if _, err = p.store.Apply(ctx, ops...); err != nil && !errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("add up what controllers that are gone counted: %w", err)
	}
	return nil
}

// goOn lets a controller without a book of its own, whose counts were added to the common
// one, count from where it was.
func (c *usageCounts) goOn(keys []string) {
	if c.gone == nil {
		return
	}
	for _, key := range keys {
		if until, was := c.gone.Folded[key]; was {
			c.own = &useBook{Until: until}
			return
		}
	}
}
