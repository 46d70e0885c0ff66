package mem_test

import (
	"context"
	"testing"

	"bocage.dev/bocage/stream"
	"bocage.dev/bocage/stream/mem"
	"bocage.dev/bocage/stream/streamtest"
)

func TestLogConformance(t *testing.T) {
	streamtest.RunLog(t, func(_ *testing.T, maxBytes int64) stream.Log { return mem.NewLog(maxBytes) })
}

func TestExchangeConformance(t *testing.T) {
	streamtest.RunExchange(t, func(*testing.T) (a, b stream.Exchange) {
		x := mem.NewExchange()
		return x, x.As("spiffe://bocage.local/agent/b")
	})
}

func TestSenderIsWhoAsks(t *testing.T) {
	x := mem.NewExchange()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		_ = x.Serve(ctx, "agent.*.who", func(_ context.Context, r stream.Request) ([]byte, error) { return []byte(r.Sender), nil })
	}()
	for _, sender := range []string{"", "spiffe://bocage.local/agent/h1"} {
		var answer []byte
		var err error
		for answer, err = x.As(sender).Ask(ctx, "agent.h1.who", nil); err != nil; answer, err = x.As(sender).Ask(ctx, "agent.h1.who", nil) {
		}
		if string(answer) != sender {
			t.Errorf("Sender = %q, want %q", answer, sender)
		}
	}
}
