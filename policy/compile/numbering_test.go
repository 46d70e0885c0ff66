package compile

import (
	"maps"
	"math"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// TestNumberingForgets changes sets of keys in a crowded space of numbers: the
// numbers are those that the set would get by itself.
func TestNumberingForgets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const least = math.MaxUint32 - 15 // most hashes fall on the first number, and there are 16
		n := newNumbering(least, nil)
		held := map[string]bool{}
		for range rapid.IntRange(1, 20).Draw(t, "changes") {
			var removed, added []string
			for i := range 12 {
				key := strconv.Itoa(i)
				if !rapid.Bool().Draw(t, "change "+key) {
					continue
				}
				if held[key] {
					removed = append(removed, key)
				} else {
					added = append(added, key)
				}
				held[key] = !held[key]
			}
			before := maps.Clone(n.number)
			moved := map[string]bool{}
			for _, key := range n.change(removed, added) {
				moved[key] = true
			}
			var keys []string
			for key, there := range held {
				if there {
					keys = append(keys, key)
				}
			}
			fresh := newNumbering(least, keys)
			if !maps.Equal(fresh.number, n.number) || !maps.Equal(fresh.holder, n.holder) {
				t.Fatalf("changed to %v, by itself it is %v", n.number, fresh.number)
			}
			for key, number := range n.number {
				if was, there := before[key]; there && moved[key] != (was != number) {
					t.Fatalf("%s was %d, is %d, moved: %v", key, was, number, moved[key])
				}
			}
		}
	})
}
