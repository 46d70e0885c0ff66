package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"bocage.dev/bocage/stream"
)

const (
	// keptPrefix is before the subjects of kept messages, so that what agents
	// publish reaches a log only through the controller, who looks at it first.
	keptToken, keptPrefix = "kept", "kept."

	// appendPatience bounds one Append if its context has no deadline.
	appendPatience = 30 * time.Second
	// readAhead bounds what a reader's connection holds, in messages and bytes.
	readAheadMessages, readAheadBytes = 256, 64 << 20

	// JetStream's error codes (server/errors.json).
	codeInsufficientResources = 10023
	codeStorageExceeded       = 10047
	codeStoreFailed           = 10077
)

// log is stream.Log on a JetStream stream.
type log struct {
	server *Server
	stream jetstream.Stream
	name   string
	// subjects may be appended to.
	subjects []string
}

// Log opens the log with a name, creating it on first use, and takes what agents
// append to its subjects, which may hold "*" for one token.
func (s *Server) Log(name string, subjects ...string) (stream.Log, error) {
	ctx, cancel := context.WithTimeout(s.ctx, startPatience)
	defer cancel()
	kept := make([]string, len(subjects))
	for i, subject := range subjects {
		if err := stream.CheckSubject(subject, true); err != nil {
			return nil, fmt.Errorf("open log %s: %w", name, err)
		}
		kept[i] = keptPrefix + subject
	}
	opened, err := s.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: name, Subjects: kept, Storage: jetstream.FileStorage,
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
		MaxBytes: s.config.MaxBytes, MaxAge: s.config.MaxAge,
		Duplicates: dedupWindow(s.config.MaxAge),
	})
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", name, err)
	}
	l := &log{server: s, stream: opened, name: name, subjects: subjects}
	for _, subject := range subjects {
		subscription, err := s.peer.subscribe(ctx, subject, queueGroup)
		if err != nil {
			return nil, fmt.Errorf("open log %s for %s: %w", name, subject, err)
		}
		s.relays.Go(func() {
			if err := s.peer.serve(s.ctx, subscription, l.relay); err != nil {
				s.logger.Error("log takes nothing from agents any more", "log", name, "error", err)
			}
		})
	}
	return l, nil
}

// dedupWindow may not exceed how long messages are kept.
func dedupWindow(maxAge time.Duration) time.Duration {
	if maxAge > 0 {
		return min(idMemory, maxAge)
	}
	return idMemory
}

// relay appends what an agent sends.
func (l *log) relay(ctx context.Context, message *nats.Msg, _ string) (*nats.Msg, error) {
	sequence, err := l.append(ctx, message.Subject, message.Header.Get(headerID), message.Data)
	if err != nil {
		return nil, err
	}
	return &nats.Msg{Header: nats.Header{headerSequence: {strconv.FormatUint(sequence, 10)}}}, nil
}

// Append implements stream.Log.
func (l *log) Append(ctx context.Context, subject, id string, data []byte) (uint64, error) {
	if err := checkMessage(ctx, subject, data); err != nil {
		return 0, fmt.Errorf("append to %s: %w", subject, err)
	}
	sequence, err := l.append(ctx, subject, id, data)
	if err != nil {
		return 0, fmt.Errorf("append to %s: %w", subject, err)
	}
	return sequence, nil
}

func (l *log) append(ctx context.Context, subject, id string, data []byte) (uint64, error) {
	if !l.takes(subject) {
		return 0, fmt.Errorf("%w: log %s does not take it", stream.ErrDenied, l.name)
	}
	if err := l.server.room(); err != nil {
		return 0, err
	}
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, appendPatience)
		defer cancel()
	}
	if err := checkID(id); err != nil {
		return 0, err
	}
	message := &nats.Msg{Subject: keptPrefix + subject, Data: data, Header: nats.Header{}}
	if id != "" {
		// JetStream's ids are of the whole log: with the subject in them nobody can
		// use up another's.
		message.Header.Set(jetstream.MsgIDHeader, subject+"/"+id)
	}
	ack, err := l.server.js.PublishMsg(ctx, message)
	if err != nil {
		return 0, l.explain(ctx, err)
	}
	return ack.Sequence, nil
}

// maxID is the longest id of a message in bytes.
const maxID = 128

// checkID keeps an id to what a header can hold.
func checkID(id string) error {
	if len(id) > maxID {
		return fmt.Errorf("a message id of %d bytes is longer than %d", len(id), maxID)
	}
	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("message id %q holds more than printable ASCII", id)
		}
	}
	return nil
}

func (l *log) takes(subject string) bool {
	for _, pattern := range l.subjects {
		if stream.Match(pattern, subject) {
			return true
		}
	}
	return false
}

// room refuses a message that the disk might not take: JetStream on a full disk
// says nothing at all.
func (s *Server) room() error {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(s.config.Dir, &stat); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", s.config.Dir, err)
	}
	if free := int64(stat.Bavail) * stat.Bsize; free < s.config.Reserve {
		return fmt.Errorf("%w: the disk of %s has %d MiB left and %d MiB have to stay free: make room on it; reading goes on",
			stream.ErrFull, s.config.Dir, free>>20, s.config.Reserve>>20)
	}
	return nil
}

func (l *log) explain(ctx context.Context, err error) error {
	var refused *jetstream.APIError
	if errors.As(err, &refused) {
		switch refused.ErrorCode {
		case codeInsufficientResources, codeStorageExceeded, codeStoreFailed:
			return fmt.Errorf("%w: %d MiB may be kept in %s: let its readers catch up and trim it (%s)",
				stream.ErrFull, l.server.config.MaxBytes>>20, l.name, refused.Description)
		}
		return err
	}
	if errors.Is(ctx.Err(), context.Canceled) && l.server.ctx.Err() == nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", stream.ErrUnavailable, err)
}

// Bounds implements stream.Log.
func (l *log) Bounds(ctx context.Context) (first, last uint64, err error) {
	info, err := l.stream.Info(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("look at log %s: %w", l.name, l.explain(ctx, err))
	}
	first, last = info.State.FirstSeq, info.State.LastSeq
	if info.State.Msgs == 0 {
		first = last + 1
	}
	return first, last, nil
}

// Trim implements stream.Trimmer.
func (l *log) Trim(ctx context.Context, before uint64) error {
	first, last, err := l.Bounds(ctx)
	if err != nil || before <= first {
		return err
	}
	// JetStream would count on from a sequence that never was.
	if err := l.stream.Purge(ctx, jetstream.WithPurgeSequence(min(before, last+1))); err != nil {
		return fmt.Errorf("trim log %s: %w", l.name, l.explain(ctx, err))
	}
	return nil
}

// Read implements stream.Log.
func (l *log) Read(ctx context.Context, from uint64, each func(stream.Message) error) error {
	var stopped error
	err := l.read(ctx, from, func(m stream.Message) error {
		stopped = each(m)
		return stopped
	})
	switch {
	case stopped != nil:
		return stopped
	case ctx.Err() != nil:
		return nil
	}
	return fmt.Errorf("read log %s from %d: %w", l.name, from, err)
}

func (l *log) read(ctx context.Context, from uint64, each func(stream.Message) error) error {
	next, err := l.check(ctx, from)
	if err != nil {
		return err
	}
	consumer, err := l.stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: next,
	})
	if err != nil {
		return l.explain(ctx, err)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(readAheadMessages, readAheadBytes))
	if err != nil {
		return l.explain(ctx, err)
	}
	defer messages.Stop()
	for ; ; next++ {
		raw, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return l.explain(ctx, err)
		}
		meta, err := raw.Metadata()
		if err != nil {
			return err
		}
		if meta.Sequence.Stream != next {
			// The log was trimmed under the reader's feet, or has a hole.
			if _, err := l.check(ctx, next); err != nil {
				return err
			}
			l.server.logger.Warn("log has a hole", "log", l.name, "from", next, "to", meta.Sequence.Stream)
			next = meta.Sequence.Stream
		}
		subject := strings.TrimPrefix(raw.Subject(), keptPrefix)
		if err := each(stream.Message{
			Subject: subject, Sequence: next, Time: meta.Timestamp, Data: raw.Data(),
			ID: strings.TrimPrefix(raw.Headers().Get(jetstream.MsgIDHeader), subject+"/"),
		}); err != nil {
			return err
		}
	}
}

// check returns the sequence to read from, or stream.ErrGone if it is not there.
func (l *log) check(ctx context.Context, from uint64) (uint64, error) {
	first, last, err := l.Bounds(ctx)
	if err != nil {
		return 0, err
	}
	if from == 0 {
		return first, nil
	}
	if from < first || from > last+1 {
		return 0, fmt.Errorf("%w: it keeps %d to %d", stream.ErrGone, first, last)
	}
	return from, nil
}
