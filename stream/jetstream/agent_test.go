package jetstream_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"bocage.dev/bocage/stream"
)

func serve(t *testing.T, x stream.Exchange, subject string, answer func(context.Context, stream.Request) ([]byte, error)) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := x.Serve(ctx, subject, answer); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

// ask asks until somebody serves.
func ask(t *testing.T, x stream.Exchange, subject, question string) (string, error) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	for {
		answer, err := x.Ask(ctx, subject, []byte(question))
		if !errors.Is(err, stream.ErrUnavailable) || ctx.Err() != nil {
			return string(answer), err
		}
	}
}

func TestAgentAsksAndAppends(t *testing.T) {
	s := newSite(t, nil)
	log, err := s.server.Log("EVENTS", "events.*")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s.server.Exchange(), "agent.*.ruleset", func(_ context.Context, r stream.Request) ([]byte, error) {
		return []byte(r.Sender + " " + string(r.Data)), nil
	})
	h1 := s.agent(t, "h1")
	answer, err := ask(t, h1.Exchange(), "agent.h1.ruleset", "7")
	if err != nil || answer != "spiffe://bocage.local/agent/h1 7" {
		t.Errorf("the answer is %q, %v", answer, err)
	}
	sequence, err := h1.Log("EVENTS").Append(t.Context(), "events.h1", "b-1", []byte("batch"))
	if err != nil || sequence != 1 {
		t.Fatalf("Append = %d, %v", sequence, err)
	}
	again, err := h1.Log("EVENTS").Append(t.Context(), "events.h1", "b-1", []byte("batch"))
	if err != nil || again != 1 {
		t.Errorf("Append again = %d, %v", again, err)
	}
	stop := errors.New("stop")
	err = log.Read(t.Context(), 1, func(m stream.Message) error {
		if m.Subject != "events.h1" || m.ID != "b-1" || string(m.Data) != "batch" {
			t.Errorf("read %+v", m)
		}
		return stop
	})
	if err != stop {
		t.Error(err)
	}
	for _, subject := range []string{"events.h2", "agent.h2.ruleset", "ruleset.revision", "join", "kept.events.h1"} {
		if _, err := h1.Exchange().Ask(t.Context(), subject, nil); !errors.Is(err, stream.ErrDenied) {
			t.Errorf("h1 asks on %s: %v, want ErrDenied", subject, err)
		}
	}
}
