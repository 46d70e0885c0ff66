package explain

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bocage.dev/bocage"
)

// TestChangedOnce holds one change against the way that many take: made twice, it is
// the same.
func TestChangedOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		object := func() *bocage.Application {
			return &bocage.Application{ObjectMeta: bocage.ObjectMeta{Namespace: fmt.Sprint(rapid.IntRange(0, 1).Draw(t, "namespace")), Name: fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "name"))}}
		}
		var list []*bocage.Application
		for range rapid.IntRange(0, 6).Draw(t, "objects") {
			list = append(list, object())
		}
		before := slices.Clone(list)
		c := Change{Object: object(), Delete: rapid.Bool().Draw(t, "delete")}
		once, twice := changed(list, []Change{c}), changed(list, []Change{c, c})
		if !slices.Equal(once, twice) {
			t.Fatalf("%+v of %v is %v, and twice %v", c, list, once, twice)
		}
		if !slices.Equal(list, before) {
			t.Fatal("the list was changed")
		}
	})
}
