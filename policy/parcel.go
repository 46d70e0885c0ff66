package policy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"bocage.dev/bocage"
)

const (
	// pieceBytes is what one piece of a parcel has, but for the last.
	pieceBytes = 1 << 20
	// parcelsMost bounds the payloads that wait here to be fetched, in bytes. One
	// always finds a place.
	parcelsMost = 256 << 20
	// parcelRest is how long a parcel keeps its place when nobody fetches of it.
	parcelRest = 20 * time.Second
	// awayRest is how long it is remembered what found no room.
	awayRest = 5 * time.Minute
)

// Bounds of a parcel that whoever fetches one holds it to.
const (
	mostAround = 128 << 10 // of an envelope, besides its payload
	leastPiece = 64 << 10
	mostPiece  = 4 << 20
)

// Parcel stands for the envelope of a whole ruleset that no message takes: its payload
// is fetched in pieces, of any controller, since each makes the same, and the envelope
// is what it always is when all are there. Who signed it counts then, for what came in
// it.
type Parcel struct {
	// Kind is the envelope's.
	Kind string `json:"kind"`
	// Head and Tail are the envelope before and behind its payload.
	Head []byte `json:"head"`
	Tail []byte `json:"tail"`
	// Size is how many bytes the payload has, Each how many every piece but the last.
	Size int `json:"size"`
	Each int `json:"each"`
	// Sums are the SHA-256 of the pieces, in order.
	Sums [][]byte `json:"sums"`
}

// Name tells a payload from others, whoever signed it.
func (p *Parcel) Name() string {
	sum := sha256.New()
	for _, s := range p.Sums {
		sum.Write(s) // a hash never fails to write
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// Check says what about a parcel cannot be, of one with a payload of at most some bytes.
func (p *Parcel) Check(most int) error {
	switch {
	case p.Size <= 0 || p.Size > most:
		return fmt.Errorf("a parcel of %d bytes: want at most %d", p.Size, most)
	case p.Each < leastPiece || p.Each > mostPiece:
		return fmt.Errorf("a parcel in pieces of %d bytes: want %d to %d", p.Each, leastPiece, mostPiece)
	case len(p.Sums) != (p.Size+p.Each-1)/p.Each:
		return fmt.Errorf("a parcel of %d bytes in %d pieces of %d", p.Size, len(p.Sums), p.Each)
	case len(p.Head)+len(p.Tail) > mostAround:
		return fmt.Errorf("an envelope has %d bytes around its payload: want at most %d", len(p.Head)+len(p.Tail), mostAround)
	}
	return nil
}

// Piece is where a piece of the payload begins and ends.
func (p *Parcel) Piece(number int) (first, end int) {
	return number * p.Each, min((number+1)*p.Each, p.Size)
}

// Is reports whether some bytes are a piece of the payload.
func (p *Parcel) Is(number int, piece []byte) bool {
	sum := sha256.Sum256(piece)
	return bytes.Equal(sum[:], p.Sums[number])
}

// ErrGone means that what a piece is asked of is not what a host is to get any more.
var ErrGone = errors.New("this parcel is not to be had any more: ask for what is new")

// errNoRoom means that others' parcels take all the room there is.
var errNoRoom = errors.New("this controller sends as many large rulesets as it has room for: ask again")

// parcels are the payloads that hosts are about to fetch.
type parcels struct {
	mu    sync.Mutex // guards what follows
	held  map[parcelKey]*heldParcel
	bytes int
	// away are those that found no room, so that they are not made again before there
	// is some.
	away map[parcelKey]turnedAway
}

// parcelKey is what a payload was made for: a host has one of a kind.
type parcelKey struct{ host, kind string }

type heldParcel struct {
	made    string // of which ruleset (see madeOf)
	name    string
	payload []byte
	parcel  Parcel // but for its Head and Tail
	used    time.Time
	fetched bool // the host was given all of it: it makes room first
}

// turnedAway is what found no room: of which ruleset, of how many bytes, and when.
type turnedAway struct {
	made  string
	bytes int
	at    time.Time
}

// madeOf tells payloads of one host and kind apart before they are made.
func madeOf(number uint64, confirmBy time.Time) string {
	return fmt.Sprint(number, " ", confirmBy.UnixNano())
}

// of returns the payload that was made of a ruleset, or nil. It fails where one was
// made that found no room, and there still is none.
func (b *parcels) of(host, kind, made string) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := parcelKey{host, kind}
	if h := b.held[key]; h != nil && h.made == made {
		h.used, h.fetched = time.Now(), false
		return h.payload, nil
	}
	if away, known := b.away[key]; known && away.made == made && !b.room(away.bytes) {
		return nil, errNoRoom
	}
	return nil, nil
}

// has notes that a host has all that it is to get.
func (b *parcels) has(host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, kind := range []string{bocage.SignedRuleset, bocage.SignedCandidate} {
		if h := b.held[parcelKey{host, kind}]; h != nil {
			h.fetched = true
		}
	}
}

// gaveLast notes that a host was given the last piece: it asks for them in order.
func (b *parcels) gaveLast(h *heldParcel) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h.fetched = true
}

// room lets go of what nobody fetches any more, and of what was fetched as far as it
// takes for so many bytes, and reports whether there is room for them; mu is held.
func (b *parcels) room(bytes int) bool {
	now := time.Now()
	var fetched []parcelKey
	for key, h := range b.held {
		switch {
		case now.Sub(h.used) > parcelRest:
			b.drop(key)
		case h.fetched:
			fetched = append(fetched, key)
		}
	}
	slices.SortFunc(fetched, func(x, y parcelKey) int { return b.held[x].used.Compare(b.held[y].used) })
	for _, key := range fetched {
		if b.bytes+bytes <= parcelsMost {
			break
		}
		b.drop(key)
	}
	return len(b.held) == 0 || b.bytes+bytes <= parcelsMost
}

// drop takes a payload out, if there is one; mu is held.
func (b *parcels) drop(key parcelKey) {
	if h := b.held[key]; h != nil {
		b.bytes -= len(h.payload)
		delete(b.held, key)
	}
}

// named returns what a host fetches by its name, or nil.
func (b *parcels) named(host, name string) *heldParcel {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, h := range b.held {
		if key.host == host && h.name == name {
			h.used = time.Now()
			return h
		}
	}
	return nil
}

// hold takes a payload in, in the place of the one of the same host and kind. Those that
// were fetched, and those that nobody fetches any more, make room for it.
func (b *parcels) hold(host, kind, made string, payload []byte) (*heldParcel, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key, now := parcelKey{host, kind}, time.Now()
	if h := b.held[key]; h != nil && h.made == made {
		h.used, h.fetched = now, false
		return h, nil
	}
	b.drop(key)
	maps.DeleteFunc(b.away, func(other parcelKey, away turnedAway) bool { return other == key || now.Sub(away.at) > awayRest })
	if !b.room(len(payload)) {
		if b.away == nil {
			b.away = map[parcelKey]turnedAway{}
		}
		b.away[key] = turnedAway{made, len(payload), now}
		return nil, errNoRoom
	}
	h := &heldParcel{made: made, payload: payload, used: now, parcel: Parcel{Kind: kind, Size: len(payload), Each: pieceBytes}}
	for first := 0; first < len(payload); first += pieceBytes {
		sum := sha256.Sum256(payload[first:min(first+pieceBytes, len(payload))])
		h.parcel.Sums = append(h.parcel.Sums, sum[:])
	}
	h.name = h.parcel.Name()
	if b.held == nil {
		b.held = map[parcelKey]*heldParcel{}
	}
	b.held[key] = h
	b.bytes += len(payload)
	return h, nil
}

// around makes the parcel of an envelope, whose payload waits to be fetched.
func (h *heldParcel) around(envelope []byte) (*Parcel, error) {
	at := bytes.Index(envelope, h.payload)
	if at < 0 {
		return nil, fmt.Errorf("the envelope of a %s does not hold its payload as it is", h.parcel.Kind)
	}
	parcel := h.parcel
	parcel.Head, parcel.Tail = bytes.Clone(envelope[:at]), bytes.Clone(envelope[at+len(h.payload):])
	return &parcel, parcel.Check(len(h.payload))
}

// isLarge reports whether no message takes an envelope around so many bytes.
func isLarge(payload []byte) bool { return len(payload)+mostAround > answerMost }

// Piece returns a piece of the payload of a parcel that a host was told of, by this
// controller or another. Name and number are what the host sent.
func (p *Policy) Piece(_ context.Context, host, name string, number int) ([]byte, error) {
	if sum, err := hex.DecodeString(name); err != nil || len(sum) != sha256.Size || number < 0 {
		return nil, fmt.Errorf("no parcel has a piece %d of the name %.80q: ask for what is new", number, name)
	}
	h := p.parcels.named(host, name)
	if h == nil {
		made, err, _ := p.repacking.Do(host+" "+name, func() (any, error) { return p.makeParcel(host, name) })
		if err != nil {
			return nil, err
		}
		h = made.(*heldParcel)
	}
	if number >= len(h.parcel.Sums) {
		return nil, fmt.Errorf("there is no piece %d of %d", number, len(h.parcel.Sums))
	}
	first, end := h.parcel.Piece(number)
	if number == len(h.parcel.Sums)-1 {
		p.parcels.gaveLast(h)
	}
	p.counters.pieces.Add(1)
	return h.payload[first:end], nil
}

// makeParcel makes a payload again that another controller told of, or this one a while
// ago: it is the same as long as it is what the host is to get.
func (p *Policy) makeParcel(host, name string) (*heldParcel, error) {
	s := p.served.Load()
	if s == nil {
		return nil, ErrNotYet
	}
	numbers := s.record.Hosts[host]
	enforced, evaluated := s.of(host)
	for _, part := range []struct {
		of        *outcome
		kind      string
		number    uint64
		confirmBy time.Time
	}{{enforced, bocage.SignedRuleset, numbers[0], s.confirmBy(host)}, {evaluated, bocage.SignedCandidate, numbers[1], time.Time{}}} {
		if part.of == nil || part.number == 0 {
			continue
		}
		made := madeOf(part.number, part.confirmBy)
		held, err := p.parcels.of(host, part.kind, made)
		if err != nil {
			return nil, err
		}
		if held != nil {
			continue // it is another one, or it would have been found
		}
		payload, err := part.of.payload(host, part.number, part.confirmBy)
		if err != nil {
			return nil, err
		}
		if !isLarge(payload) {
			continue // it never was a parcel
		}
		h, err := p.parcels.hold(host, part.kind, made, payload)
		if err != nil {
			return nil, err
		}
		if h.name == name {
			return h, nil
		}
	}
	return nil, ErrGone
}
