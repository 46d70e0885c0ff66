package storetest

import (
	"context"

	"bocage.dev/bocage/store"
)

// LargeWrites is from how many changes on a write is large to [FullAfter].
const LargeWrites = 100

// FullAfter is a store that is full after so many large writes; small ones go on.
type FullAfter struct {
	store.Store
	Left int
}

// Apply implements [store.Store].
func (f *FullAfter) Apply(ctx context.Context, ops ...store.Op) (store.Revision, error) {
	if len(ops) > LargeWrites {
		if f.Left--; f.Left < 0 {
			return 0, store.ErrFull
		}
	}
	return f.Store.Apply(ctx, ops...)
}
