// Package stream carries events from where they happen to where they are
// weighed: replicated, ordered, bounded. It also carries the short exchanges
// between agents and controllers, since an agent has one connection only.
//
// A Log keeps messages; an Exchange does not. Engines live in sub-packages: mem
// for tests, jetstream for everything else. streamtest holds the conformance
// suite that both pass.
package stream

import (
	"context"
	"errors"
	"time"
)

// Errors that every engine returns.
var (
	// ErrFull means that the log refuses messages until old ones have left it;
	// the sender keeps the message and tries again.
	ErrFull = errors.New("log is full")
	// ErrGone means that messages from the asked sequence on have left the log.
	ErrGone = errors.New("messages are gone")
	// ErrDenied means that the sender's identity does not allow the subject.
	ErrDenied = errors.New("not permitted")
	// ErrUnavailable means that nobody answers: try again later.
	ErrUnavailable = errors.New("unavailable")
)

// MaxMessage is the most that a message, question, answer or notice carries, in bytes.
const MaxMessage = 7 << 20

// Message is one entry of a log.
type Message struct {
	Subject  string // dotted, such as events.h1
	Sequence uint64 // given by the log, growing, from 1
	Time     time.Time
	Data     []byte
	// ID makes a repeated Append to the same subject harmless within the log's
	// memory of ids: printable ASCII without spaces, at most 128 bytes.
	ID string
}

// Log is an ordered, replicated log.
type Log interface {
	// Append adds a message and returns its sequence once it is durable. With an
	// id that the log remembers it adds nothing and returns the first one's. After
	// ErrUnavailable or the end of ctx the message may have been added: append it
	// again with the same id.
	Append(ctx context.Context, subject, id string, data []byte) (uint64, error)
	// Read calls each for every message from the sequence on (0: the oldest
	// kept), waiting for new ones, until ctx ends or each returns an error,
	// which Read returns; at the end of ctx it returns nil. If the sequence has
	// left the log, also while reading, or the log never came that far, it returns
	// ErrGone.
	Read(ctx context.Context, from uint64, each func(Message) error) error
	// Bounds returns the first and last sequences kept; last is 0 if none ever was.
	// Of a log that keeps nothing any more, first is last+1.
	Bounds(ctx context.Context) (first, last uint64, err error)
}

// Trimmer is a log whose owner lets messages go when everybody who needs them has
// them elsewhere.
type Trimmer interface {
	// Trim removes the messages before a sequence.
	Trim(ctx context.Context, before uint64) error
}

// Request is a question to a served subject.
type Request struct {
	Subject string
	Data    []byte
	// Sender is the SPIFFE id that the engine verified; empty for a peer that
	// has none yet.
	Sender string
}

// Exchange carries notices, and questions with answers. Nothing is kept.
type Exchange interface {
	// Ask sends data to whoever serves the subject and waits for the answer.
	// An answer that is an error arrives as an error: with its text, and as one of
	// this package's if it was one. Without a deadline in ctx it waits 10 seconds.
	Ask(ctx context.Context, subject string, data []byte) ([]byte, error)
	// Serve answers questions on a subject, which may hold "*" for one token,
	// until ctx ends, when it returns nil. Of several who serve a subject one
	// answers. Questions are answered concurrently.
	Serve(ctx context.Context, subject string, answer func(context.Context, Request) ([]byte, error)) error
	// Notify tells everyone who listens. It may be lost: a notice only says that
	// asking is worth while.
	Notify(ctx context.Context, subject string, data []byte) error
	// Listen calls each for every notice on the subject, which may hold "*" for one
	// token, until ctx ends, when it returns nil.
	Listen(ctx context.Context, subject string, each func(subject string, data []byte)) error
}
