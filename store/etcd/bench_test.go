package etcd_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/etcd"
)

func BenchmarkPut(b *testing.B) {
	s := open(b, etcd.Config{})
	defer s.Close()
	value := make([]byte, 1024)
	for b.Loop() {
		if _, err := store.Put(b.Context(), s, "k", value, store.AnyRevision); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPutBy64(b *testing.B) {
	s := open(b, etcd.Config{})
	defer s.Close()
	value := make([]byte, 1024)
	var next atomic.Int64
	b.SetParallelism(32) // of two processors
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		key := fmt.Sprint("k", next.Add(1))
		for pb.Next() {
			if _, err := store.Put(b.Context(), s, key, value, store.AnyRevision); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	s := open(b, etcd.Config{})
	defer s.Close()
	if _, err := store.Put(b.Context(), s, "k", make([]byte, 1024), store.AnyRevision); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Get(b.Context(), "k"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApply is a transaction of 1,000 keys of 1 KiB.
func BenchmarkApply(b *testing.B) {
	s := open(b, etcd.Config{})
	defer s.Close()
	ops := make([]store.Op, 1000)
	for i := range ops {
		ops[i] = store.Op{Key: fmt.Sprintf("k%04d", i), Value: make([]byte, 1024), IfWas: store.AnyRevision}
	}
	for b.Loop() {
		if _, err := s.Apply(b.Context(), ops...); err != nil {
			b.Fatal(err)
		}
	}
}
