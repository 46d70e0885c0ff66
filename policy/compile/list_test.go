package compile

import (
	"cmp"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestListsKeepTheirGenerations edits a list again and again, and compares every
// list that there ever was with a plain slice, and each with the one before.
func TestListsKeepTheirGenerations(t *testing.T) {
	type element struct{ key, value int }
	compare := func(a, b element) int { return cmp.Compare(a.key, b.key) }
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{20, 3000}).Draw(t, "most")
		lists, plain := []*list[element]{newList[element](nil)}, [][]element{nil}
		for range rapid.IntRange(1, 12).Draw(t, "edits") {
			before := plain[len(plain)-1]
			there := map[int]element{}
			for _, e := range before {
				there[e.key] = e
			}
			var removed, added []element
			touched := map[int]bool{}
			for range rapid.IntRange(0, most).Draw(t, "changes") {
				key := rapid.IntRange(0, 2*most).Draw(t, "key")
				if touched[key] {
					continue
				}
				touched[key] = true
				e, known := there[key]
				if known {
					removed = append(removed, element{key: e.key})
					delete(there, key)
				}
				if !known || rapid.Bool().Draw(t, "replace") {
					e = element{key, rapid.IntRange(0, 1).Draw(t, "value")}
					added, there[key] = append(added, e), e
				}
			}
			now := make([]element, 0, len(there))
			for _, e := range there {
				now = append(now, e)
			}
			slices.SortFunc(now, compare)
			lists, plain = append(lists, lists[len(lists)-1].exchange(removed, added, compare)), append(plain, now)
		}
		for i, l := range lists {
			if l.len() != len(plain[i]) || !slices.Equal(l.flat(), plain[i]) {
				t.Fatalf("list %d is\n%v\nand was made of\n%v", i, l.flat(), plain[i])
			}
			for _, e := range plain[i] {
				if found, ok := find(l, e.key, func(e element, key int) int { return cmp.Compare(e.key, key) }); !ok || found != e {
					t.Fatalf("list %d finds %v for %v", i, found, e)
				}
			}
			if slices.ContainsFunc(l.blocks, func(block []element) bool { return len(block) == 0 || len(block) > 2*blockSize }) {
				t.Fatalf("list %d has blocks of unlikely sizes", i)
			}
			if i > 0 {
				compareDifferences(t, lists[i-1], l, plain[i-1], plain[i], compare)
			}
		}
	})
}

func compareDifferences[T comparable](t *rapid.T, a, b *list[T], x, y []T, compare func(a, b T) int) {
	var have, want []T
	eachDifference(a, b, compare, func(p, q *T) bool { return *p == *q }, func(p, q *T) {
		if p != nil {
			have = append(have, *p)
		}
		if q != nil {
			have = append(have, *q)
		}
	})
	for len(x) > 0 || len(y) > 0 {
		switch {
		case len(y) == 0 || len(x) > 0 && compare(x[0], y[0]) < 0:
			want, x = append(want, x[0]), x[1:]
		case len(x) == 0 || compare(x[0], y[0]) > 0:
			want, y = append(want, y[0]), y[1:]
		default:
			if x[0] != y[0] {
				want = append(want, x[0], y[0])
			}
			x, y = x[1:], y[1:]
		}
	}
	if !slices.Equal(have, want) {
		t.Fatalf("they differ in %v, found %v", want, have)
	}
}
