package jetstream_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"bocage.dev/bocage/identity"
	"bocage.dev/bocage/stream"
	"bocage.dev/bocage/stream/jetstream"
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

// One agent that asks too much keeps no other waiting.
func TestOneAgentDoesNotCrowdOutOthers(t *testing.T) {
	s := newSite(t, nil)
	release := make(chan struct{})
	serve(t, s.server.Exchange(), "agent.*.slow", func(_ context.Context, r stream.Request) ([]byte, error) {
		if r.Sender == "spiffe://bocage.local/agent/h1" {
			<-release
		}
		return nil, nil
	})
	h1, h2 := s.agent(t, "h1").Exchange(), s.agent(t, "h2").Exchange()
	if _, err := ask(t, h2, "agent.h2.slow", ""); err != nil { // serves now
		t.Fatal(err)
	}
	const questions = 100
	answers := make(chan error, questions)
	for range questions {
		go func() {
			_, err := h1.Ask(t.Context(), "agent.h1.slow", nil)
			answers <- err
		}()
	}
	shed := 0
	for ; shed < questions-32; shed++ { // 32 of one agent wait
		if err := <-answers; !errors.Is(err, stream.ErrUnavailable) {
			t.Fatalf("one question too many: %v, want ErrUnavailable", err)
		}
	}
	if _, err := h2.Ask(t.Context(), "agent.h2.slow", nil); err != nil {
		t.Errorf("another agent: %v", err)
	}
	close(release)
	for range questions - shed {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	c := s.server.Counters()
	if c.Shed != uint64(shed) || c.Asked != c.Answered+c.Refused+c.Shed {
		t.Errorf("counted %+v, and %d were shed", c, shed)
	}
}

// A connection made anew shows the identity that is current then.
func TestReconnectShowsTheRenewedIdentity(t *testing.T) {
	s := newSite(t, nil)
	var shown atomic.Int64
	svid, err := s.authority.IssueSVID("/agent/h1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	changes := make(chan bool, 10)
	conn, err := jetstream.Connect(t.Context(), jetstream.ConnConfig{
		Addresses: []string{s.server.Address()}, Bundle: s.authority.Bundle(), Logger: logger(t),
		SVID:    func() *identity.SVID { shown.Add(1); return svid },
		Changed: func(connected bool) { changes <- connected },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	before := shown.Load()
	<-changes
	if n := s.server.Disconnect(svid.ID()); n != 1 {
		t.Errorf("%d connections were cut", n)
	}
	if first, second := <-changes, <-changes; first || !second {
		t.Errorf("the connection went %t and came %t", !first, second)
	}
	if shown.Load() == before {
		t.Error("the identity was not asked for again")
	}
}
