package account

import (
	"math/rand/v2"
	"testing"
)

func TestWindow(t *testing.T) {
	var w Window
	for _, step := range []struct {
		n    uint64
		want Outcome
	}{
		{100, Fresh}, {100, Duplicate}, {99, Fresh}, {99, Duplicate}, {90, Fresh}, {95, Fresh}, {95, Duplicate},
		{300, Fresh}, {200, Fresh}, {200, Duplicate}, {300 + Size, Fresh}, {301, Fresh}, {300, Stale}, {1, Stale},
		{1 << 40, Fresh}, {1<<40 - 1, Fresh}, {300 + Size, Stale},
	} {
		if got := w.Add(step.n); got != step.want {
			t.Errorf("%d: %d, want %d", step.n, got, step.want)
		}
	}
}

func TestEveryNumberIsFreshOnce(t *testing.T) {
	var w Window
	numbers := rand.New(rand.NewPCG(1, 2)).Perm(Size)
	for round, want := range []Outcome{Fresh, Duplicate} {
		for _, n := range numbers {
			if got := w.Add(uint64(n) + 1); got != want {
				t.Fatalf("round %d, %d: %d", round, n+1, got)
			}
		}
	}
}
