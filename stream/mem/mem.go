// Package mem carries messages inside one process, for tests and for rooms that
// are tried without a node. It promises what every stream does except to outlive
// the process. It never touches a disk or a network.
package mem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bocage.dev/bocage/stream"
)

const (
	// remembered is how many ids a log knows.
	remembered = 1 << 16
	// waiting is how many notices wait for a listener before they are lost.
	waiting = 256
	// askPatience is how long Ask waits if its context has no deadline.
	askPatience = 10 * time.Second
)

// Log is a bounded log in memory. See [NewLog].
type Log struct {
	maxBytes int64

	mu      sync.Mutex // guards the fields below
	grown   chan struct{}
	first   uint64 // sequence of messages[0], or the next one
	bytes   int64
	kept    []stream.Message
	ids     map[string]uint64
	idQueue []string
}

// NewLog returns an empty log that refuses messages past maxBytes of data (0: no
// limit).
func NewLog(maxBytes int64) *Log {
	return &Log{maxBytes: maxBytes, grown: make(chan struct{}), first: 1, ids: make(map[string]uint64)}
}

// Append implements stream.Log.
func (l *Log) Append(ctx context.Context, subject, id string, data []byte) (uint64, error) {
	if err := checkMessage(ctx, subject, data); err != nil {
		return 0, fmt.Errorf("append to %s: %w", subject, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := subject + "/" + id
	if sequence, known := l.ids[key]; known && id != "" {
		return sequence, nil
	}
	if l.maxBytes > 0 && l.bytes+int64(len(data)) > l.maxBytes {
		return 0, fmt.Errorf("append to %s: %w: %d of %d bytes are in use", subject, stream.ErrFull, l.bytes, l.maxBytes)
	}
	sequence := l.first + uint64(len(l.kept))
	l.kept = append(l.kept, stream.Message{Subject: subject, Sequence: sequence, Time: time.Now(), Data: bytes.Clone(data), ID: id})
	l.bytes += int64(len(data))
	if id != "" {
		l.remember(key, sequence)
	}
	close(l.grown)
	l.grown = make(chan struct{})
	return sequence, nil
}

func (l *Log) remember(key string, sequence uint64) {
	l.ids[key] = sequence
	if l.idQueue = append(l.idQueue, key); len(l.idQueue) > remembered {
		delete(l.ids, l.idQueue[0])
		l.idQueue = l.idQueue[1:]
	}
}

// Read implements stream.Log.
func (l *Log) Read(ctx context.Context, from uint64, each func(stream.Message) error) error {
	next := from
	for ctx.Err() == nil {
		message, grown, err := l.at(next, next == 0)
		if err != nil {
			return fmt.Errorf("read from %d: %w", next, err)
		}
		if grown != nil {
			select {
			case <-ctx.Done():
			case <-grown:
			}
			continue
		}
		if err := each(message); err != nil {
			return err
		}
		next = message.Sequence + 1
	}
	return nil
}

// at returns a message, or a channel that is closed when there may be one.
func (l *Log) at(sequence uint64, oldest bool) (stream.Message, <-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if oldest {
		sequence = l.first
	}
	end := l.first + uint64(len(l.kept))
	switch {
	case sequence < l.first, sequence > end:
		return stream.Message{}, nil, fmt.Errorf("%w: the log keeps %d to %d", stream.ErrGone, l.first, end-1)
	case sequence == end:
		return stream.Message{}, l.grown, nil
	}
	message := l.kept[sequence-l.first]
	message.Data = bytes.Clone(message.Data)
	return message, nil, nil
}

// Bounds implements stream.Log.
func (l *Log) Bounds(ctx context.Context) (first, last uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first, l.first + uint64(len(l.kept)) - 1, ctx.Err()
}

// Trim implements stream.Trimmer.
func (l *Log) Trim(ctx context.Context, before uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.kept) > 0 && l.first < before {
		l.bytes -= int64(len(l.kept[0].Data))
		l.kept[0] = stream.Message{} // for the collector
		l.kept = l.kept[1:]
		l.first++
	}
	return ctx.Err()
}

// Exchange carries questions and notices between those who share it. Its zero
// value is not usable: see [NewExchange].
type Exchange struct {
	*hub
	sender string
}

type hub struct {
	mu        sync.Mutex // guards the fields below
	services  map[*service]struct{}
	listeners map[*listener]struct{}
}

type service struct {
	pattern string
	ctx     context.Context // what Serve runs in; answers end with it
	answer  func(context.Context, stream.Request) ([]byte, error)
	running sync.WaitGroup
}

type listener struct {
	pattern string
	notices chan stream.Request
}

// NewExchange returns an exchange where everybody is without a name; [Exchange.As]
// gives one.
func NewExchange() *Exchange {
	return &Exchange{hub: &hub{services: make(map[*service]struct{}), listeners: make(map[*listener]struct{})}}
}

// As returns the same exchange for a peer with a SPIFFE id.
func (x *Exchange) As(sender string) *Exchange { return &Exchange{hub: x.hub, sender: sender} }

// Ask implements stream.Exchange.
func (x *Exchange) Ask(ctx context.Context, subject string, data []byte) ([]byte, error) {
	if err := checkMessage(ctx, subject, data); err != nil {
		return nil, fmt.Errorf("ask %s: %w", subject, err)
	}
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, askPatience)
		defer cancel()
	}
	s := x.find(subject)
	if s == nil {
		return nil, fmt.Errorf("ask %s: %w: nobody serves it", subject, stream.ErrUnavailable)
	}
	type answer struct {
		data []byte
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		defer s.running.Done()
		data, err := s.answer(s.ctx, stream.Request{Subject: subject, Data: bytes.Clone(data), Sender: x.sender})
		answered <- answer{bytes.Clone(data), err}
	}()
	select {
	case a := <-answered:
		if a.err != nil {
			return nil, fmt.Errorf("ask %s: %w", subject, a.err)
		}
		return append([]byte{}, a.data...), nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fmt.Errorf("ask %s: %w: %w", subject, stream.ErrUnavailable, ctx.Err())
		}
		return nil, fmt.Errorf("ask %s: %w", subject, ctx.Err())
	}
}

// find returns a service with one more answer running.
func (x *Exchange) find(subject string) *service {
	x.mu.Lock()
	defer x.mu.Unlock()
	for s := range x.services { // any of them: the map's order is as good as another
		if stream.Match(s.pattern, subject) {
			s.running.Add(1)
			return s
		}
	}
	return nil
}

// Serve implements stream.Exchange.
func (x *Exchange) Serve(ctx context.Context, subject string, answer func(context.Context, stream.Request) ([]byte, error)) error {
	if err := stream.CheckSubject(subject, true); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	s := &service{pattern: subject, ctx: ctx, answer: answer}
	x.mu.Lock()
	x.services[s] = struct{}{}
	x.mu.Unlock()
	<-ctx.Done()
	x.mu.Lock()
	delete(x.services, s)
	x.mu.Unlock()
	s.running.Wait()
	return nil
}

// Notify implements stream.Exchange.
func (x *Exchange) Notify(ctx context.Context, subject string, data []byte) error {
	if err := checkMessage(ctx, subject, data); err != nil {
		return fmt.Errorf("notify %s: %w", subject, err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for l := range x.listeners {
		if !stream.Match(l.pattern, subject) {
			continue
		}
		select {
		case l.notices <- stream.Request{Subject: subject, Data: bytes.Clone(data)}:
		default: // a notice may be lost
		}
	}
	return nil
}

// Listen implements stream.Exchange.
func (x *Exchange) Listen(ctx context.Context, subject string, each func(subject string, data []byte)) error {
	if err := stream.CheckSubject(subject, true); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l := &listener{pattern: subject, notices: make(chan stream.Request, waiting)}
	x.mu.Lock()
	x.listeners[l] = struct{}{}
	x.mu.Unlock()
	defer func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.listeners, l)
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-l.notices:
			each(n.Subject, n.Data)
		}
	}
}

func checkMessage(ctx context.Context, subject string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(data) > stream.MaxMessage {
		return fmt.Errorf("%d bytes are more than %d", len(data), stream.MaxMessage)
	}
	return stream.CheckSubject(subject, false)
}
