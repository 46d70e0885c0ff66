package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"bocage.dev/bocage/stream"
)

// BenchmarkAppend is 16 agents that append batches of 40 kB over TLS, four at a
// time each, every message on disk before it is acknowledged.
func BenchmarkAppend(b *testing.B) {
	s := newSite(b, nil)
	if _, err := s.server.Log("EVENTS", "events.*"); err != nil {
		b.Fatal(err)
	}
	var logs []stream.Log
	for i := range 16 {
		logs = append(logs, s.agent(b, fmt.Sprintf("h%d", i)).Log("EVENTS"))
	}
	data := make([]byte, 40_000)
	var next atomic.Int64
	b.SetBytes(int64(len(data)))
	b.SetParallelism(32) // of two processors
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		host := int(next.Add(1)) % len(logs)
		subject := fmt.Sprintf("events.h%d", host)
		for pb.Next() {
			if _, err := logs[host].Append(context.Background(), subject, fmt.Sprint(next.Add(1)), data); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	s := newSite(b, nil)
	log, err := s.server.Log("EVENTS", "events.*")
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 40_000)
	const messages = 500
	for range messages {
		if _, err := log.Append(b.Context(), "events.h1", "", data); err != nil {
			b.Fatal(err)
		}
	}
	enough := errors.New("enough")
	b.SetBytes(messages * int64(len(data)))
	for b.Loop() {
		err := log.Read(b.Context(), 1, func(m stream.Message) error {
			if m.Sequence == messages {
				return enough
			}
			return nil
		})
		if err != enough {
			b.Fatal(err)
		}
	}
}

func BenchmarkAsk(b *testing.B) {
	s := newSite(b, nil)
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	go func() {
		_ = s.server.Exchange().Serve(ctx, "agent.*.ruleset", func(context.Context, stream.Request) ([]byte, error) { return nil, nil })
	}()
	x := s.agent(b, "h1").Exchange()
	for b.Loop() {
		if _, err := x.Ask(ctx, "agent.h1.ruleset", nil); err != nil && !errors.Is(err, stream.ErrUnavailable) {
			b.Fatal(err)
		}
	}
}
