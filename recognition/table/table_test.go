package table

import (
	"encoding/binary"
	"testing"
)

func key(n int) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(n)) }

func TestTouchRemembers(t *testing.T) {
	table := New[int](1024, nil, nil)
	for n := range 300 {
		value, fresh := table.Touch(key(n), int64(n))
		if !fresh {
			t.Fatalf("key %d was known before its time", n)
		}
		*value = n
	}
	if table.Evicted() != 0 {
		t.Fatalf("%d evictions at 300 of %d", table.Evicted(), table.Cap())
	}
	for n := range 300 {
		if value, fresh := table.Touch(key(n), 0); fresh || *value != n {
			t.Fatalf("key %d: %d, fresh %v", n, *value, fresh)
		}
	}
}

func TestEvictionTakesTheOldestAndSparesTheKept(t *testing.T) {
	table := New(Ways, func(v *int) bool { return *v == 1 }, nil)
	for n := range Ways {
		value, _ := table.Touch(key(n), int64(n))
		if n == 0 {
			*value = 1 // the oldest, but kept
		}
	}
	table.Touch(key(100), 100)
	if _, fresh := table.Touch(key(0), 101); fresh {
		t.Error("the kept entry was evicted")
	}
	if _, fresh := table.Touch(key(1), 102); !fresh {
		t.Error("the oldest entry that is not kept is still there")
	}
	if table.Evicted() != 2 || table.Len() != Ways {
		t.Errorf("%d evictions, %d entries", table.Evicted(), table.Len())
	}
}

func BenchmarkTouch(b *testing.B) {
	table := New[[4]uint64](1<<18, nil, nil)
	var k [20]byte
	for n := 0; b.Loop(); n++ {
		binary.LittleEndian.PutUint64(k[:], uint64(n&(1<<17-1)))
		table.Touch(k[:], int64(n))
	}
}
