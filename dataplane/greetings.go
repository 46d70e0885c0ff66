package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"bocage.dev/bocage"
	"bocage.dev/bocage/dataplane/hello"
)

// greetingHead is how long a piece of a greeting is without its bytes: the flow's
// event, the place, the size.
const greetingHead = bocage.FlowEventSize + 8

// Listen hands on what clients of TLS ask for, one by one, until the context ends.
// While each runs, pieces wait in a ring buffer of their own; what finds no room
// there is counted as ungreeted. Listen may be called once at a time, beside Run.
func (d *Dataplane) Listen(ctx context.Context, each func(bocage.Greeting)) error {
	reader, err := ringbuf.NewReader(d.objects.Greetings)
	if err != nil {
		return fmt.Errorf("listen: read greetings: %w", err)
	}
	defer reader.Close()
	stop := context.AfterFunc(ctx, func() { reader.Close() })
	defer stop()
	var gatherer hello.Gatherer
	var record ringbuf.Record
	for ctx.Err() == nil {
		if err := reader.ReadInto(&record); errors.Is(err, ringbuf.ErrClosed) {
			return ctx.Err()
		} else if err != nil {
			return fmt.Errorf("listen: read greetings: %w", err)
		}
		piece, err := readPiece(record.RawSample)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		now := time.Now()
		var said hello.Hello
		var ambiguous, done bool
		if len(piece.bytes) == 0 {
			ambiguous = gatherer.Doubt(&piece.flow, now)
			done = ambiguous
		} else {
			said, ambiguous, done = gatherer.Add(&piece.flow, piece.place, piece.bytes, now)
		}
		if !done {
			continue
		}
		piece.flow.Time = readClock().time(uint64(piece.flow.Time.UnixNano()))
		each(bocage.Greeting{Flow: piece.flow,
			Greeted: bocage.Greeted{ServerName: said.ServerName, ALPN: said.ALPN, Hidden: said.Hidden, Ambiguous: ambiguous}})
	}
	return ctx.Err()
}

// piece is some of what a client says first.
type piece struct {
	flow  bocage.FlowEvent
	place int
	bytes []byte // of the record that it was read from
}

func readPiece(record []byte) (piece, error) {
	var p piece
	if len(record) < greetingHead {
		return p, fmt.Errorf("piece of a greeting of %d bytes: it has no head", len(record))
	}
	if err := p.flow.UnmarshalBinary(record[:bocage.FlowEventSize]); err != nil {
		return p, err
	}
	ne := binary.NativeEndian
	place, size := ne.Uint32(record[bocage.FlowEventSize:]), ne.Uint32(record[bocage.FlowEventSize+4:])
	if p.flow.Kind != bocage.EventGreeting || int64(size) > int64(len(record)-greetingHead) {
		return p, fmt.Errorf("piece of a greeting that says it is %s and has %d bytes", p.flow.Kind, size)
	}
	p.place, p.bytes = int(place), record[greetingHead:greetingHead+int(size)]
	return p, nil
}
