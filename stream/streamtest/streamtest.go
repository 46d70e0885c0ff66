// Package streamtest is the conformance suite of stream engines: every sentence
// of package stream's comments as a test. An engine that passes may be exchanged
// for any other.
package streamtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage/stream"
)

// patience bounds every wait: what takes longer has failed.
const patience = 20 * time.Second

// RunLog tests logs. open returns an empty log that takes the subjects events.*
// and refuses more than maxBytes of data, or a little less; it is closed by the
// engine's own test.
func RunLog(t *testing.T, open func(t *testing.T, maxBytes int64) stream.Log) {
	const plenty = 64 << 20
	for _, test := range []struct {
		name     string
		maxBytes int64
		run      func(t *testing.T, l stream.Log)
	}{
		{"an empty log", plenty, emptyLog},
		{"append and read", plenty, appendAndRead},
		{"read from a sequence", plenty, readFrom},
		{"read waits for new messages", plenty, readWaits},
		{"the reader's error ends it", plenty, readStops},
		{"many readers", plenty, manyReaders},
		{"an id is kept once", plenty, ids},
		{"concurrent writers", plenty, concurrentWriters},
		{"large and empty messages", plenty, sizes},
		{"what may not be appended", plenty, malformedMessages},
		{"messages that are gone", plenty, goneMessages},
		{"trimmed under a reader", plenty, trimmedUnderReader},
		{"a full log loses nothing", 1 << 20, full},
		{"contexts that have ended", plenty, logContexts},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t, test.maxBytes)) })
	}
}

// RunExchange tests exchanges. open returns two ends of one: what one asks the
// other may serve. Both may use subjects below test.
func RunExchange(t *testing.T, open func(t *testing.T) (a, b stream.Exchange)) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, a, b stream.Exchange)
	}{
		{"ask and answer", askAndAnswer},
		{"a pattern serves many subjects", servePattern},
		{"errors arrive as errors", answerErrors},
		{"nobody serves", nobodyServes},
		{"an asker's patience ends", askerGoes},
		{"Serve ends with its context", serveEnds},
		{"several serve, one answers", severalServe},
		{"questions are answered concurrently", concurrentAnswers},
		{"large questions and answers", largeQuestions},
		{"malformed subjects", malformedSubjects},
		{"notices reach all who listen", notices},
		{"a listener that has gone", listenEnds},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := open(t)
			test.run(t, a, b)
		})
	}
}

func emptyLog(t *testing.T, l stream.Log) {
	bounds(t, l, 1, 0)
	if got := readN(t, l, 0, 0); len(got) != 0 {
		t.Errorf("an empty log holds %v", got)
	}
	add(t, l, "events.a", "1", "x", 1)
	bounds(t, l, 1, 1)
}

func appendAndRead(t *testing.T, l stream.Log) {
	start := time.Now().Add(-time.Minute)
	for i := range 20 {
		add(t, l, fmt.Sprintf("events.h%d", i%3), fmt.Sprint("id", i), fmt.Sprint("data", i), uint64(i+1))
	}
	for i, m := range readN(t, l, 0, 20) {
		want := stream.Message{Subject: fmt.Sprintf("events.h%d", i%3), Sequence: uint64(i + 1), Data: fmt.Append(nil, "data", i), ID: fmt.Sprint("id", i)}
		if m.Subject != want.Subject || m.Sequence != want.Sequence || !bytes.Equal(m.Data, want.Data) || m.ID != want.ID {
			t.Errorf("message %d is %+v, want %+v", i, m, want)
		}
		if m.Time.Before(start) || m.Time.After(time.Now().Add(time.Minute)) {
			t.Errorf("message %d is of %s", i, m.Time)
		}
	}
	bounds(t, l, 1, 20)
}

func readFrom(t *testing.T, l stream.Log) {
	for i := range 10 {
		add(t, l, "events.a", "", fmt.Sprint(i), uint64(i+1))
	}
	for from := uint64(1); from <= 10; from++ {
		got := readN(t, l, from, int(11-from))
		if got[0].Sequence != from || got[len(got)-1].Sequence != 10 {
			t.Errorf("from %d came %d to %d", from, got[0].Sequence, got[len(got)-1].Sequence)
		}
	}
	if got := readN(t, l, 11, 0); len(got) != 0 { // the next one may be waited for
		t.Errorf("from 11 came %v", got)
	}
}

func readWaits(t *testing.T, l stream.Log) {
	messages := follow(t, l, 0)
	for i := range 50 {
		add(t, l, "events.a", "", fmt.Sprint(i), uint64(i+1))
		if m := take(t, messages); string(m.Data) != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, m.Data)
		}
	}
}

func readStops(t *testing.T, l stream.Log) {
	for i := range 5 {
		add(t, l, "events.a", "", fmt.Sprint(i), uint64(i+1))
	}
	enough := errors.New("enough")
	calls := 0
	err := l.Read(t.Context(), 0, func(m stream.Message) error {
		if calls++; m.Sequence == 3 {
			return enough
		}
		return nil
	})
	if err != enough || calls != 3 {
		t.Errorf("Read = %v after %d messages, want the reader's own error after 3", err, calls)
	}
}

func manyReaders(t *testing.T, l stream.Log) {
	var readers []<-chan stream.Message
	for range 4 {
		readers = append(readers, follow(t, l, 1))
	}
	for i := range 30 {
		add(t, l, "events.a", "", fmt.Sprint(i), uint64(i+1))
	}
	for _, r := range readers {
		for i := range 30 {
			if m := take(t, r); m.Sequence != uint64(i+1) {
				t.Fatalf("message %d has sequence %d", i, m.Sequence)
			}
		}
	}
}

func ids(t *testing.T, l stream.Log) {
	add(t, l, "events.a", "one", "x", 1)
	add(t, l, "events.a", "one", "x", 1)
	add(t, l, "events.b", "one", "y", 2) // another's id is another id
	add(t, l, "events.a", "", "z", 3)
	add(t, l, "events.a", "", "z", 4)
	add(t, l, "events.b", "one", "y", 2)
	bounds(t, l, 1, 4)
	var group sync.WaitGroup
	sequences := make(chan uint64, 20)
	for range cap(sequences) {
		group.Go(func() {
			sequence, err := l.Append(t.Context(), "events.a", "same", []byte("x"))
			if err != nil {
				t.Errorf("append: %v", err)
			}
			sequences <- sequence
		})
	}
	group.Wait()
	close(sequences)
	for sequence := range sequences {
		if sequence != 5 {
			t.Errorf("a repeated message got sequence %d, want 5", sequence)
		}
	}
	bounds(t, l, 1, 5)
}

func concurrentWriters(t *testing.T, l stream.Log) {
	messages := follow(t, l, 0)
	const writers, writes = 8, 25
	var group sync.WaitGroup
	for writer := range writers {
		group.Go(func() {
			for i := range writes {
				if _, err := l.Append(t.Context(), fmt.Sprintf("events.w%d", writer), fmt.Sprint(i), fmt.Append(nil, i)); err != nil {
					t.Errorf("append: %v", err)
					return
				}
			}
		})
	}
	next := make(map[string]int)
	for i := range writers * writes {
		m := take(t, messages)
		if m.Sequence != uint64(i+1) {
			t.Fatalf("message %d has sequence %d", i+1, m.Sequence)
		}
		if string(m.Data) != fmt.Sprint(next[m.Subject]) {
			t.Fatalf("of %s came %s, want %d", m.Subject, m.Data, next[m.Subject])
		}
		next[m.Subject]++
	}
	group.Wait()
}

func sizes(t *testing.T, l stream.Log) {
	large := bytes.Repeat([]byte{0, 0xff, '\r', '\n'}, stream.MaxMessage/4)
	add(t, l, "events.a", "", "", 1)
	add(t, l, "events.a", "", string(large), 2)
	got := readN(t, l, 1, 2)
	if len(got[0].Data) != 0 || !bytes.Equal(got[1].Data, large) {
		t.Errorf("read %d and %d bytes, want 0 and %d unchanged", len(got[0].Data), len(got[1].Data), len(large))
	}
	if _, err := l.Append(t.Context(), "events.a", "", make([]byte, stream.MaxMessage+1)); err == nil {
		t.Error("a message over the limit was kept")
	}
}

func malformedMessages(t *testing.T, l stream.Log) {
	for _, subject := range []string{"", ".", "events.", ".a", "events..a", "events.*", "events.>", ">", "events.a b", "events.a\r\nPUB x", "events.é", "events." + strings.Repeat("x", 300)} {
		if _, err := l.Append(t.Context(), subject, "", nil); err == nil {
			t.Errorf("%q was taken as a subject", subject)
		}
	}
	bounds(t, l, 1, 0)
}

func goneMessages(t *testing.T, l stream.Log) {
	for i := range 10 {
		add(t, l, "events.a", "", fmt.Sprint(i), uint64(i+1))
	}
	trim := l.(stream.Trimmer).Trim
	check(t, trim(t.Context(), 0))
	bounds(t, l, 1, 10)
	check(t, trim(t.Context(), 6))
	bounds(t, l, 6, 10)
	for _, from := range []uint64{1, 5, 12, 1000} {
		err := l.Read(t.Context(), from, func(m stream.Message) error { return fmt.Errorf("read %d", m.Sequence) })
		if !errors.Is(err, stream.ErrGone) {
			t.Errorf("Read from %d = %v, want ErrGone", from, err)
		}
	}
	if got := readN(t, l, 0, 5); got[0].Sequence != 6 {
		t.Errorf("the oldest kept is %d, want 6", got[0].Sequence)
	}
	check(t, trim(t.Context(), 6)) // again is no fault
	check(t, trim(t.Context(), 1000))
	bounds(t, l, 11, 10)
	add(t, l, "events.a", "", "x", 11)
	if got := readN(t, l, 0, 1); got[0].Sequence != 11 {
		t.Errorf("the oldest kept is %d, want 11", got[0].Sequence)
	}
}

func trimmedUnderReader(t *testing.T, l stream.Log) {
	const messages = 3000 // more than an engine reads ahead
	for i := range messages {
		add(t, l, "events.a", "", fmt.Sprint(i), uint64(i+1))
	}
	last := uint64(0)
	err := l.Read(t.Context(), 1, func(m stream.Message) error {
		if m.Sequence != last+1 {
			return fmt.Errorf("%d follows %d", m.Sequence, last)
		}
		if last = m.Sequence; last == 1 {
			return l.(stream.Trimmer).Trim(t.Context(), messages)
		}
		if last == messages {
			return errors.New("nothing was missed")
		}
		return nil
	})
	if !errors.Is(err, stream.ErrGone) {
		t.Errorf("Read = %v after %d, want ErrGone", err, last)
	}
}

func full(t *testing.T, l stream.Log) {
	data := bytes.Repeat([]byte("x"), 10_000)
	var kept []uint64
	for len(kept) < 1000 {
		sequence, err := l.Append(t.Context(), "events.a", fmt.Sprint("id", len(kept)), data)
		if errors.Is(err, stream.ErrFull) {
			break
		}
		check(t, err)
		kept = append(kept, sequence)
	}
	if len(kept) < 50 || len(kept) > 110 {
		t.Fatalf("%d messages of 10 kB fit into 1 MiB", len(kept))
	}
	for range 3 {
		if _, err := l.Append(t.Context(), "events.b", "", data); !errors.Is(err, stream.ErrFull) {
			t.Fatalf("Append = %v, want ErrFull", err)
		}
	}
	for i, m := range readN(t, l, 0, len(kept)) {
		if m.Sequence != kept[i] || !bytes.Equal(m.Data, data) {
			t.Errorf("message %d was lost", i)
		}
	}
	check(t, l.(stream.Trimmer).Trim(t.Context(), kept[len(kept)/2]))
	next := kept[len(kept)-1] + 1
	add(t, l, "events.b", "again", string(data), next) // what was refused left no trace
	bounds(t, l, kept[len(kept)/2], next)
}

func logContexts(t *testing.T, l stream.Log) {
	add(t, l, "events.a", "", "x", 1)
	ended, stop := context.WithCancel(t.Context())
	stop()
	if _, err := l.Append(ended, "events.a", "", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Append = %v, want context.Canceled", err)
	}
	if err := l.Read(ended, 0, func(stream.Message) error { return nil }); err != nil {
		t.Errorf("Read = %v, want nil", err)
	}
	reading, stop := context.WithCancel(t.Context())
	if err := l.Read(reading, 0, func(stream.Message) error { stop(); return nil }); err != nil {
		t.Errorf("Read = %v, want nil", err)
	}
	stop()
	bounds(t, l, 1, 1)
}

func askAndAnswer(t *testing.T, a, b stream.Exchange) {
	serve(t, b, "test.echo", func(_ context.Context, r stream.Request) ([]byte, error) {
		return append([]byte(r.Subject+":"), r.Data...), nil
	})
	for _, question := range []string{"", "hello", "\x00\xff\r\n"} {
		answer, err := ask(t, a, "test.echo", question)
		check(t, err)
		if answer != "test.echo:"+question {
			t.Errorf("the answer to %q is %q", question, answer)
		}
	}
}

func servePattern(t *testing.T, a, b stream.Exchange) {
	serve(t, b, "test.*.one", func(_ context.Context, r stream.Request) ([]byte, error) { return []byte(r.Subject), nil })
	for _, subject := range []string{"test.a.one", "test.b.one"} {
		answer, err := ask(t, a, subject, "")
		check(t, err)
		if answer != subject {
			t.Errorf("the answer on %s is %q", subject, answer)
		}
	}
	for _, subject := range []string{"test.a.two", "test.a.b.one", "test.one"} {
		if _, err := a.Ask(t.Context(), subject, nil); !errors.Is(err, stream.ErrUnavailable) {
			t.Errorf("Ask on %s = %v, want ErrUnavailable", subject, err)
		}
	}
}

func answerErrors(t *testing.T, a, b stream.Exchange) {
	answers := map[string]error{
		"other": errors.New("no such thing: \"x\"\r\n é"), "full": fmt.Errorf("outer: %w", stream.ErrFull), "gone": stream.ErrGone,
		"denied": stream.ErrDenied, "unavailable": stream.ErrUnavailable,
	}
	serve(t, b, "test.fails", func(_ context.Context, r stream.Request) ([]byte, error) {
		return []byte("ignored"), answers[string(r.Data)]
	})
	if _, err := ask(t, a, "test.fails", ""); err != nil { // serves now
		t.Fatal(err)
	}
	for name, want := range answers {
		answer, err := a.Ask(t.Context(), "test.fails", []byte(name))
		if err == nil || answer != nil || !strings.Contains(err.Error(), want.Error()) {
			t.Errorf("Ask = %q, %v: want %v", answer, err, want)
		}
		for _, kind := range []error{stream.ErrFull, stream.ErrGone, stream.ErrDenied, stream.ErrUnavailable} {
			if errors.Is(err, kind) != errors.Is(want, kind) {
				t.Errorf("%q is %v: %t, want %t", err, kind, errors.Is(err, kind), errors.Is(want, kind))
			}
		}
	}
}

func nobodyServes(t *testing.T, a, _ stream.Exchange) {
	start := time.Now()
	if _, err := a.Ask(t.Context(), "test.nobody", nil); !errors.Is(err, stream.ErrUnavailable) {
		t.Errorf("Ask = %v, want ErrUnavailable", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s to learn that nobody serves", took)
	}
}

func askerGoes(t *testing.T, a, b stream.Exchange) {
	release := make(chan struct{})
	serve(t, b, "test.slow", func(_ context.Context, r stream.Request) ([]byte, error) {
		if len(r.Data) > 0 {
			<-release
		}
		return nil, nil
	})
	defer close(release)
	if _, err := ask(t, a, "test.slow", ""); err != nil {
		t.Fatal(err)
	}
	short, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if _, err := a.Ask(short, "test.slow", []byte("x")); !errors.Is(err, stream.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ask past its deadline = %v, want ErrUnavailable and DeadlineExceeded", err)
	}
	ended, stop := context.WithCancel(t.Context())
	stop()
	if _, err := a.Ask(ended, "test.slow", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Ask = %v, want context.Canceled", err)
	}
}

func serveEnds(t *testing.T, a, b stream.Exchange) {
	ctx, stop := context.WithCancel(t.Context())
	asked := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- b.Serve(ctx, "test.ends", func(ctx context.Context, r stream.Request) ([]byte, error) {
			if len(r.Data) > 0 {
				close(asked)
				<-ctx.Done() // what is being answered learns of it
			}
			return []byte("yes"), nil
		})
	}()
	if _, err := ask(t, a, "test.ends", ""); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = a.Ask(t.Context(), "test.ends", []byte("x")) }() // its answer is not the question here
	<-asked
	stop()
	select {
	case err := <-done:
		check(t, err)
	case <-time.After(patience):
		t.Fatal("Serve did not end with its context")
	}
	if _, err := a.Ask(t.Context(), "test.ends", nil); !errors.Is(err, stream.ErrUnavailable) {
		t.Errorf("Ask of who has gone = %v, want ErrUnavailable", err)
	}
}

func severalServe(t *testing.T, a, b stream.Exchange) {
	var mu sync.Mutex
	answered := 0
	for _, x := range []stream.Exchange{b, b, b} {
		serve(t, x, "test.several", func(context.Context, stream.Request) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			answered++
			return nil, nil
		})
	}
	before := 0
	if _, err := ask(t, a, "test.several", ""); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	before = answered
	mu.Unlock()
	for range 20 {
		_, err := a.Ask(t.Context(), "test.several", nil)
		check(t, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if answered != before+20 {
		t.Errorf("20 questions were answered %d times", answered-before)
	}
}

func concurrentAnswers(t *testing.T, a, b stream.Exchange) {
	const together = 8
	var waiting sync.WaitGroup
	waiting.Add(together)
	serve(t, b, "test.together", func(_ context.Context, r stream.Request) ([]byte, error) {
		if len(r.Data) > 0 {
			waiting.Done()
			waiting.Wait() // for all the others to be asked
		}
		return r.Data, nil
	})
	if _, err := ask(t, a, "test.together", ""); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range together {
		group.Go(func() {
			answer, err := a.Ask(t.Context(), "test.together", fmt.Append(nil, i))
			if err != nil || string(answer) != fmt.Sprint(i) {
				t.Errorf("the answer to %d is %q, %v", i, answer, err)
			}
		})
	}
	group.Wait()
}

func largeQuestions(t *testing.T, a, b stream.Exchange) {
	serve(t, b, "test.large", func(_ context.Context, r stream.Request) ([]byte, error) { return r.Data, nil })
	large := strings.Repeat("x", stream.MaxMessage)
	answer, err := ask(t, a, "test.large", large)
	check(t, err)
	if answer != large {
		t.Errorf("the answer has %d bytes, want %d", len(answer), len(large))
	}
	if _, err := a.Ask(t.Context(), "test.large", make([]byte, stream.MaxMessage+1)); err == nil {
		t.Error("a question over the limit was asked")
	}
}

func malformedSubjects(t *testing.T, a, _ stream.Exchange) {
	for _, subject := range []string{"", "test.", "test.>", "test. x", "test..x"} {
		if _, err := a.Ask(t.Context(), subject, nil); err == nil {
			t.Errorf("Ask took %q", subject)
		}
		if err := a.Notify(t.Context(), subject, nil); err == nil {
			t.Errorf("Notify took %q", subject)
		}
		if err := a.Serve(t.Context(), subject, nil); err == nil {
			t.Errorf("Serve took %q", subject)
		}
		if err := a.Listen(t.Context(), subject, nil); err == nil {
			t.Errorf("Listen took %q", subject)
		}
	}
	if _, err := a.Ask(t.Context(), "test.*", nil); err == nil {
		t.Error("Ask took a wildcard")
	}
}

func notices(t *testing.T, a, b stream.Exchange) {
	heard := make([]chan string, 3)
	for i, x := range []stream.Exchange{a, b, b} {
		heard[i] = make(chan string, 1000)
		listen(t, x, []string{"test.news", "test.*", "test.news"}[i], func(subject string, data []byte) {
			heard[i] <- subject + ":" + string(data)
		})
	}
	// A notice may be lost, so it is given until everybody has heard one.
	missing := map[int]bool{0: true, 1: true, 2: true}
	late := time.After(patience)
	for n := 0; len(missing) > 0; n++ {
		check(t, a.Notify(t.Context(), "test.news", []byte("42")))
		for i := range missing {
			select {
			case got := <-heard[i]:
				if got != "test.news:42" {
					t.Fatalf("listener %d heard %q", i, got)
				}
				delete(missing, i)
			case <-time.After(time.Millisecond):
			case <-late:
				t.Fatalf("listeners %v heard nothing", missing)
			}
		}
	}
	check(t, a.Notify(t.Context(), "test.nobody", nil))
}

func listenEnds(t *testing.T, _, b stream.Exchange) {
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Listen(ctx, "test.news", func(string, []byte) {}) }()
	stop()
	select {
	case err := <-done:
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Listen = %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Listen did not end with its context")
	}
}

// The rest is how the tests speak.

func add(t *testing.T, l stream.Log, subject, id, data string, want uint64) {
	t.Helper()
	sequence, err := l.Append(t.Context(), subject, id, []byte(data))
	check(t, err)
	if sequence != want {
		t.Fatalf("Append returned sequence %d, want %d", sequence, want)
	}
}

func bounds(t *testing.T, l stream.Log, first, last uint64) {
	t.Helper()
	gotFirst, gotLast, err := l.Bounds(t.Context())
	check(t, err)
	if gotFirst != first || gotLast != last {
		t.Errorf("the log keeps %d to %d, want %d to %d", gotFirst, gotLast, first, last)
	}
}

var errEnough = errors.New("enough")

// readN reads n messages; of none it makes sure that nothing comes before a
// marker that it waits for elsewhere, by reading with a context that ends.
func readN(t *testing.T, l stream.Log, from uint64, n int) []stream.Message {
	t.Helper()
	wait := patience
	if n == 0 {
		wait = 50 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	var messages []stream.Message
	err := l.Read(ctx, from, func(m stream.Message) error {
		if messages = append(messages, m); len(messages) >= n {
			return errEnough
		}
		return nil
	})
	if n > 0 && err != errEnough || n == 0 && err != nil {
		t.Fatalf("Read from %d = %v after %d of %d messages", from, err, len(messages), n)
	}
	return messages
}

// follow reads in the background until the test ends.
func follow(t *testing.T, l stream.Log, from uint64) <-chan stream.Message {
	ctx, stop := context.WithCancel(context.Background())
	messages := make(chan stream.Message, 100_000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := l.Read(ctx, from, func(m stream.Message) error { messages <- m; return nil }); err != nil {
			t.Errorf("read: %v", err)
		}
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return messages
}

func take(t *testing.T, messages <-chan stream.Message) stream.Message {
	t.Helper()
	select {
	case m := <-messages:
		return m
	case <-time.After(patience):
		t.Fatalf("nothing came in %s", patience)
	}
	panic("unreachable")
}

// ask asks until somebody serves: Serve has no way to say that it has begun.
func ask(t *testing.T, x stream.Exchange, subject, question string) (string, error) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	for {
		answer, err := x.Ask(ctx, subject, []byte(question))
		if !errors.Is(err, stream.ErrUnavailable) || ctx.Err() != nil {
			return string(answer), err
		}
	}
}

func serve(t *testing.T, x stream.Exchange, subject string, answer func(context.Context, stream.Request) ([]byte, error)) {
	background(t, func(ctx context.Context) error { return x.Serve(ctx, subject, answer) })
}

func listen(t *testing.T, x stream.Exchange, subject string, each func(string, []byte)) {
	background(t, func(ctx context.Context) error { return x.Listen(ctx, subject, each) })
}

func background(t *testing.T, run func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil {
			t.Errorf("in the background: %v", err)
		}
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
