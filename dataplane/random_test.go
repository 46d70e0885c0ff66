package dataplane

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// newRandom returns a source whose seed is printed; BOCAGE_SEED repeats a run.
func newRandom(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	if s := os.Getenv("BOCAGE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("BOCAGE_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
