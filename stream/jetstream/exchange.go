package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"bocage.dev/bocage/stream"
)

const (
	// askPatience is how long Ask waits if its context has no deadline.
	askPatience = 10 * time.Second
	// answering is how many questions of one Serve are answered at a time.
	answering = 64
	// Questions and notices that wait; past it they are lost, and counted.
	waitingMessages, waitingBytes = 8192, 128 << 20

	queueGroup = "serve"
	// headerError marks an answer that is an error; the value is its kind.
	headerError = "Bocage-Error"
	// headerID carries the id of a message that a log is to keep.
	headerID = "Bocage-Id"
	// headerSequence carries the sequence that a log gave.
	headerSequence = "Bocage-Sequence"
)

// exchange is stream.Exchange over one connection.
type exchange struct {
	conn   *nats.Conn
	logger *slog.Logger
	// sender says whose question a message is; nil where nobody serves others.
	sender func(subject, reply string) (string, error)
	// changed, if set, hears of the connection's coming and going.
	changed func(connected bool)
	lost    atomic.Uint64

	mu      sync.Mutex // guards pending
	pending map[*question]struct{}
}

// question is one Ask that waits, for the connection's troubles to end it early.
type question struct {
	subject string
	fail    context.CancelCauseFunc
}

func newExchange(logger *slog.Logger, sender func(subject, reply string) (string, error)) *exchange {
	return &exchange{logger: logger, sender: sender, pending: make(map[*question]struct{})}
}

// options let the exchange hear of its connection's troubles.
func (x *exchange) options() []nats.Option {
	return []nats.Option{
		nats.ReconnectBufSize(-1), // a question is not kept for later: its asker decides
		nats.PermissionErrOnSubscribe(true),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			x.failPending("", fmt.Errorf("%w: the connection broke", stream.ErrUnavailable))
			x.tell(false)
		}),
		nats.ConnectHandler(func(*nats.Conn) { x.tell(true) }),
		nats.ReconnectHandler(func(*nats.Conn) { x.tell(true) }),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			switch {
			case errors.Is(err, nats.ErrPermissionViolation):
				if subject, ok := refusedSubject(err); ok {
					x.failPending(subject, stream.ErrDenied)
				}
			case errors.Is(err, nats.ErrSlowConsumer) && s != nil:
				x.logger.Warn("messages lost: too many wait", "subject", s.Subject, "lost", x.lost.Add(1))
			}
		}),
	}
}

func (x *exchange) tell(connected bool) {
	if x.changed != nil {
		x.changed(connected)
	}
}

// refusedSubject finds the subject in the server's `Permissions Violation for
// Publish to "SUBJECT"`.
func refusedSubject(err error) (string, bool) {
	text := err.Error()
	_, rest, ok := strings.Cut(strings.ToLower(text), `publish to "`)
	if !ok {
		return "", false
	}
	subject, _, ok := strings.Cut(text[len(text)-len(rest):], `"`) // in its own case
	return subject, ok
}

// failPending ends the waiting questions on a subject, or all.
func (x *exchange) failPending(subject string, cause error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for q := range x.pending {
		if subject == "" || q.subject == subject {
			q.fail(cause)
		}
	}
}

// Ask implements stream.Exchange.
func (x *exchange) Ask(ctx context.Context, subject string, data []byte) ([]byte, error) {
	reply, err := x.ask(ctx, nats.NewMsg(subject), data)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", subject, err)
	}
	return append([]byte{}, reply.Data...), nil
}

func (x *exchange) ask(ctx context.Context, message *nats.Msg, data []byte) (*nats.Msg, error) {
	if err := checkMessage(ctx, message.Subject, data); err != nil {
		return nil, err
	}
	message.Data = data
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, askPatience)
		defer cancel()
	}
	asking, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	q := &question{message.Subject, fail}
	x.mu.Lock()
	x.pending[q] = struct{}{}
	x.mu.Unlock()
	defer func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.pending, q)
	}()
	reply, err := x.conn.RequestMsgWithContext(asking, message)
	if err != nil {
		return nil, explain(ctx, asking, err)
	}
	if kind := reply.Header.Get(headerError); kind != "" {
		return nil, decodeError(kind, string(reply.Data))
	}
	return reply, nil
}

// explain turns what became of a question into one of the stream's errors.
func explain(ctx, asking context.Context, err error) error {
	cause := context.Cause(asking)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w: no answer: %w", stream.ErrUnavailable, ctx.Err())
	case ctx.Err() != nil:
		return ctx.Err()
	case cause != nil:
		return cause
	case errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("%w: nobody serves it", stream.ErrUnavailable)
	case errors.Is(err, nats.ErrMaxPayload):
		return err
	}
	return fmt.Errorf("%w: %w", stream.ErrUnavailable, err)
}

// Serve implements stream.Exchange.
func (x *exchange) Serve(ctx context.Context, subject string, answer func(context.Context, stream.Request) ([]byte, error)) error {
	subscription, err := x.subscribe(ctx, subject, queueGroup)
	if err != nil {
		return fmt.Errorf("serve %s: %w", subject, err)
	}
	return x.serve(ctx, subscription, func(ctx context.Context, message *nats.Msg, sender string) (*nats.Msg, error) {
		data, err := answer(ctx, stream.Request{Subject: message.Subject, Data: message.Data, Sender: sender})
		if err == nil && len(data) > stream.MaxMessage {
			err = fmt.Errorf("the answer has %d bytes, more than %d", len(data), stream.MaxMessage)
		}
		return &nats.Msg{Data: data}, err
	})
}

func (x *exchange) serve(ctx context.Context, subscription *nats.Subscription, answer func(context.Context, *nats.Msg, string) (*nats.Msg, error)) error {
	var answers sync.WaitGroup
	defer answers.Wait()
	defer x.unsubscribe(subscription)
	room := make(chan struct{}, answering)
	for {
		message, err := subscription.NextMsgWithContext(ctx)
		if done, err := x.over(ctx, err); done {
			return wrap("serve "+subscription.Subject, err)
		} else if message == nil {
			continue
		}
		sender, err := x.whose(message)
		if err != nil {
			x.logger.Warn("question refused", "subject", message.Subject, "err", err, "lost", x.lost.Add(1))
			continue
		}
		room <- struct{}{}
		answers.Go(func() {
			defer func() { <-room }()
			reply, err := answer(ctx, message, sender)
			if err != nil {
				reply = &nats.Msg{Data: []byte(err.Error()), Header: nats.Header{headerError: {errorKind(err)}}}
			}
			if message.Reply == "" {
				return
			}
			// An asker who has gone asks again.
			if err := message.RespondMsg(reply); err != nil {
				x.logger.Debug("answer not sent", "subject", message.Subject, "err", err)
			}
		})
	}
}

func (x *exchange) whose(message *nats.Msg) (string, error) {
	if x.sender == nil {
		return "", nil
	}
	return x.sender(message.Subject, message.Reply)
}

// Notify implements stream.Exchange.
func (x *exchange) Notify(ctx context.Context, subject string, data []byte) error {
	if err := checkMessage(ctx, subject, data); err != nil {
		return fmt.Errorf("notify %s: %w", subject, err)
	}
	if err := x.conn.Publish(subject, data); err != nil {
		return fmt.Errorf("notify %s: %w: %w", subject, stream.ErrUnavailable, err)
	}
	return nil
}

// Listen implements stream.Exchange.
func (x *exchange) Listen(ctx context.Context, subject string, each func(subject string, data []byte)) error {
	subscription, err := x.subscribe(ctx, subject, "")
	if err != nil {
		return fmt.Errorf("listen to %s: %w", subject, err)
	}
	defer x.unsubscribe(subscription)
	for {
		message, err := subscription.NextMsgWithContext(ctx)
		if done, err := x.over(ctx, err); done {
			return wrap("listen to "+subject, err)
		} else if message != nil {
			each(message.Subject, message.Data)
		}
	}
}

func (x *exchange) subscribe(ctx context.Context, subject, queue string) (*nats.Subscription, error) {
	if err := stream.CheckSubject(subject, true); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var subscription *nats.Subscription
	var err error
	if queue == "" {
		subscription, err = x.conn.SubscribeSync(subject)
	} else {
		subscription, err = x.conn.QueueSubscribeSync(subject, queue)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", stream.ErrUnavailable, err)
	}
	return subscription, subscription.SetPendingLimits(waitingMessages, waitingBytes)
}

func (x *exchange) unsubscribe(s *nats.Subscription) {
	if err := s.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
		x.logger.Debug("subscription not ended", "subject", s.Subject, "err", err)
	}
}

// over says whether a subscription has ended, and why.
func (x *exchange) over(ctx context.Context, err error) (bool, error) {
	switch {
	case ctx.Err() != nil:
		return true, nil
	case err == nil, errors.Is(err, nats.ErrSlowConsumer): // counted by the error handler
		return false, nil
	case errors.Is(err, nats.ErrPermissionViolation):
		return true, stream.ErrDenied
	}
	return true, fmt.Errorf("%w: %w", stream.ErrUnavailable, err)
}

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
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

// kinds name the errors that keep their identity on the way.
func kinds() map[string]error {
	return map[string]error{
		"full": stream.ErrFull, "gone": stream.ErrGone, "denied": stream.ErrDenied, "unavailable": stream.ErrUnavailable,
	}
}

func errorKind(err error) string {
	for name, kind := range kinds() {
		if errors.Is(err, kind) {
			return name
		}
	}
	return "other"
}

// remoteError has the text of the other end's error and, if it was one of the
// stream's, its identity.
type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

func decodeError(kind, text string) error { return &remoteError{text, kinds()[kind]} }
