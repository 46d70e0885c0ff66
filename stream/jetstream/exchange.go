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
	// answering is how many questions of one Serve are answered at a time; the
	// others wait, of one sender so many and in all so many, and the rest are
	// refused. So one who asks too much keeps nobody else waiting.
	answering, waitingEach, waitingAll = 64, 32, 4096
	// What the connection holds for a Serve or Listen that is behind; past it
	// messages are lost, and counted.
	behindMessages, behindBytes = 8192, 128 << 20

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
	// sender says whose question a message is, and whether it is this end's own;
	// nil where nobody else's can come.
	sender func(*nats.Msg) (id string, own bool, err error)
	// changed, if set, hears of the connection's coming and going.
	changed func(connected bool)
	counts  counts

	mu    sync.Mutex // guards waits
	waits map[*wait]struct{}
}

type counts struct{ asked, answered, refused, shed, lost atomic.Uint64 }

// wait is an Ask, a Serve or a Listen that the connection's troubles end early.
type wait struct {
	verb    string // publish or subscription, as the server's errors have it
	subject string
	fail    context.CancelCauseFunc
}

// begin returns a context that ends with ctx, with done, or with such troubles.
func (x *exchange) begin(ctx context.Context, verb, subject string) (waiting context.Context, done func()) {
	waiting, fail := context.WithCancelCause(ctx)
	w := &wait{verb, subject, fail}
	x.mu.Lock()
	x.waits[w] = struct{}{}
	x.mu.Unlock()
	return waiting, func() {
		fail(nil)
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.waits, w)
	}
}

// fail ends those that wait on a verb and subject; an empty subject stands for all.
func (x *exchange) fail(verb, subject string, cause error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for w := range x.waits {
		if w.verb == verb && (subject == "" || w.subject == subject) {
			w.fail(cause)
		}
	}
}

const publishing, subscribing = "publish", "subscription"

func newExchange(logger *slog.Logger, sender func(*nats.Msg) (string, bool, error)) *exchange {
	return &exchange{logger: logger, sender: sender, waits: make(map[*wait]struct{})}
}

// options let the exchange hear of its connection's troubles.
func (x *exchange) options() []nats.Option {
	return []nats.Option{
		nats.ReconnectBufSize(-1), // a question is not kept for later: its asker decides
		nats.PermissionErrOnSubscribe(true),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			x.fail(publishing, "", fmt.Errorf("%w: the connection broke", stream.ErrUnavailable))
			x.tell(false)
		}),
		nats.ConnectHandler(func(*nats.Conn) { x.tell(true) }),
		nats.ReconnectHandler(func(*nats.Conn) { x.tell(true) }),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			switch {
			case errors.Is(err, nats.ErrPermissionViolation):
				for _, verb := range []string{publishing, subscribing} {
					if subject, ok := refusedSubject(err, verb); ok {
						x.fail(verb, subject, stream.ErrDenied)
					}
				}
			case errors.Is(err, nats.ErrSlowConsumer) && s != nil:
				if n := x.counts.lost.Add(1); rarely(n) {
					x.logger.Warn("messages lost", "subject", s.Subject, "lost", n)
				}
			}
		}),
	}
}

// rarely is true of the first, second, fourth and so on, so that whoever causes a
// message cannot fill a disk with it.
func rarely(n uint64) bool { return n&(n-1) == 0 }

func (x *exchange) tell(connected bool) {
	if x.changed != nil {
		x.changed(connected)
	}
}

// refusedSubject finds the subject in the server's `Permissions Violation for
// Publish to "SUBJECT"`, or of Subscription to.
func refusedSubject(err error, verb string) (string, bool) {
	text := err.Error()
	_, rest, ok := strings.Cut(strings.ToLower(text), verb+` to "`)
	if !ok {
		return "", false
	}
	subject, _, ok := strings.Cut(text[len(text)-len(rest):], `"`) // in its own case
	return subject, ok
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
	asking, done := x.begin(ctx, publishing, message.Subject)
	defer done()
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
	defer x.unsubscribe(subscription)
	var answers sync.WaitGroup
	defer answers.Wait()
	room := make(chan struct{}, answering)
	turns := &turns{each: make(map[string]int)}
	waiting, done := x.begin(ctx, subscribing, subscription.Subject)
	defer done()
	for {
		message, err := subscription.NextMsgWithContext(waiting)
		if over, err := x.over(ctx, waiting, err); over {
			return wrap("serve "+subscription.Subject, err)
		} else if message == nil {
			continue
		}
		x.counts.asked.Add(1)
		sender, own, err := x.whose(message)
		if err != nil {
			if n := x.counts.refused.Add(1); rarely(n) {
				x.logger.Warn("question refused", "subject", message.Subject, "refused", n, "error", err)
			}
			continue // and no answer: it would go to somebody else
		}
		if !turns.take(sender, own) {
			x.counts.shed.Add(1)
			x.respond(message, nil, fmt.Errorf("%w: too many questions wait already", stream.ErrUnavailable))
			continue
		}
		answers.Go(func() {
			defer turns.leave(sender)
			select {
			case room <- struct{}{}:
				defer func() { <-room }()
			case <-ctx.Done():
				x.counts.shed.Add(1)
				x.respond(message, nil, fmt.Errorf("%w: it is not served any more", stream.ErrUnavailable))
				return
			}
			reply, err := answer(ctx, message, sender)
			x.counts.answered.Add(1)
			x.respond(message, reply, err)
		})
	}
}

func (x *exchange) respond(message, reply *nats.Msg, err error) {
	if message.Reply == "" {
		return
	}
	if err != nil {
		reply = &nats.Msg{Data: []byte(err.Error()), Header: nats.Header{headerError: {errorKind(err)}}}
	}
	// An asker who has gone asks again.
	if err := message.RespondMsg(reply); err != nil {
		x.logger.Debug("answer not sent", "subject", message.Subject, "error", err)
	}
}

// whose returns the sender of a question and whether that is this end's own side.
func (x *exchange) whose(message *nats.Msg) (sender string, own bool, err error) {
	if x.sender == nil {
		return "", true, nil
	}
	return x.sender(message)
}

// turns counts the questions that wait or are being answered.
type turns struct {
	mu   sync.Mutex // guards the fields below
	all  int
	each map[string]int
}

func (t *turns) take(sender string, own bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all >= waitingAll || !own && t.each[sender] >= waitingEach {
		return false
	}
	t.all++
	t.each[sender]++
	return true
}

func (t *turns) leave(sender string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all--
	if t.each[sender]--; t.each[sender] == 0 {
		delete(t.each, sender)
	}
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
	waiting, done := x.begin(ctx, subscribing, subject)
	defer done()
	for {
		message, err := subscription.NextMsgWithContext(waiting)
		if over, err := x.over(ctx, waiting, err); over {
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
	if err := subscription.SetPendingLimits(behindMessages, behindBytes); err != nil {
		return nil, err
	}
	// Once the server has answered, the subscription is in force, or refused.
	flushing, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	if err := x.conn.FlushWithContext(flushing); err != nil && ctx.Err() == nil {
		x.logger.Debug("subscription waits for the connection", "subject", subject, "error", err)
	}
	return subscription, nil
}

func (x *exchange) unsubscribe(s *nats.Subscription) {
	if err := s.Unsubscribe(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, nats.ErrBadSubscription) {
		x.logger.Debug("subscription not ended", "subject", s.Subject, "error", err)
	}
}

// over says whether a subscription has ended, and why.
func (x *exchange) over(ctx, waiting context.Context, err error) (bool, error) {
	switch {
	case ctx.Err() != nil:
		return true, nil
	case waiting.Err() != nil:
		return true, context.Cause(waiting)
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
