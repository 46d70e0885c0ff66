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
	// pieceBytes is the size of each piece of a parcel except the last.
	pieceBytes = 1 << 20
	// parcelsMost bounds the payloads that are held to be fetched, in bytes. A single one
	// is always accepted.
	parcelsMost = 256 << 20
	// parcelIdle is how long a parcel is kept while nobody fetches pieces of it.
	parcelIdle = 20 * time.Second
	// rejectedMemory is how long it is remembered which parcels found no room.
	rejectedMemory = 5 * time.Minute
)

// Bounds of a parcel, which the receiver checks (Parcel.Check).
const (
	mostAround = 128 << 10 // of an envelope, besides its payload
	leastPiece = 64 << 10
	mostPiece  = 4 << 20
)

// Parcel describes the envelope of a ruleset that is too large for one message. The agent
// fetches its payload in pieces, from any controller, since each makes the same bytes. It
// then puts the envelope together and verifies its signature as usual.
type Parcel struct {
	// Kind is the envelope's.
	Kind string `json:"kind"`
	// Head and Tail are the envelope before and behind its payload.
	Head []byte `json:"head"`
	Tail []byte `json:"tail"`
	// Size is the size of the payload in bytes, Each that of every piece except the last.
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

// Check returns an error if the description is inconsistent or exceeds a bound; most is the
// largest payload that the caller accepts.
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

// Piece returns where a piece of the payload begins and ends.
func (p *Parcel) Piece(number int) (first, end int) {
	return number * p.Each, min((number+1)*p.Each, p.Size)
}

// Is reports whether piece is the piece of the payload with this number.
func (p *Parcel) Is(number int, piece []byte) bool {
	sum := sha256.Sum256(piece)
	return bytes.Equal(sum[:], p.Sums[number])
}

// ErrGone means that the parcel is outdated: the host is to get something newer.
var ErrGone = errors.New("this parcel is not to be had any more: ask for what is new")

// errNoRoom means that others' parcels take all the room there is.
var errNoRoom = errors.New("this controller sends as many large rulesets as it has room for: ask again")

// parcels are the payloads that hosts are about to fetch.
type parcels struct {
	mu    sync.Mutex // guards what follows
	held  map[parcelKey]*heldParcel
	bytes int
	// rejected are those that found no room, so that they are not encoded again before
	// there is room.
	rejected map[parcelKey]rejectedParcel
}

// parcelKey is what a payload was made for: a host has one of a kind.
type parcelKey struct{ host, kind string }

type heldParcel struct {
	made    string // identifies the ruleset (see madeOf)
	name    string
	payload []byte
	parcel  Parcel // but for its Head and Tail
	used    time.Time
	fetched bool // the host was given all of it, so it is dropped first when room is needed
}

// rejectedParcel found no room: for which ruleset (see madeOf), of what size, and when.
type rejectedParcel struct {
	made  string
	bytes int
	at    time.Time
}

// madeOf identifies a payload, among those of one host and kind, without encoding it.
func madeOf(number uint64, confirmBy time.Time) string {
	return fmt.Sprint(number, " ", confirmBy.UnixNano())
}

// of returns the held payload of a ruleset, or nil. It fails if that payload found no room
// before and there still is none.
func (b *parcels) of(host, kind, made string) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := parcelKey{host, kind}
	if h := b.held[key]; h != nil && h.made == made {
		h.used, h.fetched = time.Now(), false
		return h.payload, nil
	}
	if away, known := b.rejected[key]; known && away.made == made && !b.room(away.bytes) {
		return nil, errNoRoom
	}
	return nil, nil
}

// has notes that a host needs nothing new, so that its parcels may be dropped.
func (b *parcels) has(host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, kind := range []string{bocage.SignedRuleset, bocage.SignedCandidate} {
		if h := b.held[parcelKey{host, kind}]; h != nil {
			h.fetched = true
		}
	}
}

// gaveLast notes that a host was given the last piece. Hosts ask for pieces in order.
func (b *parcels) gaveLast(h *heldParcel) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h.fetched = true
}

// room drops idle parcels, and as many fetched ones as necessary, to make room for so many
// bytes. It reports whether there is room now; mu is held.
func (b *parcels) room(bytes int) bool {
	now := time.Now()
	var fetched []parcelKey
	for key, h := range b.held {
		switch {
		case now.Sub(h.used) > parcelIdle:
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

// hold adds a payload, and replaces the earlier one of the same host and kind. It drops
// fetched and idle parcels if there is no room.
func (b *parcels) hold(host, kind, made string, payload []byte) (*heldParcel, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key, now := parcelKey{host, kind}, time.Now()
	if h := b.held[key]; h != nil && h.made == made {
		h.used, h.fetched = now, false
		return h, nil
	}
	b.drop(key)
	maps.DeleteFunc(b.rejected, func(other parcelKey, away rejectedParcel) bool {
		return other == key || now.Sub(away.at) > rejectedMemory
	})
	if !b.room(len(payload)) {
		if b.rejected == nil {
			b.rejected = map[parcelKey]rejectedParcel{}
		}
		b.rejected[key] = rejectedParcel{made, len(payload), now}
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

// around describes an envelope whose payload is h's.
func (h *heldParcel) around(envelope []byte) (*Parcel, error) {
	at := bytes.Index(envelope, h.payload)
	if at < 0 {
		return nil, fmt.Errorf("the envelope of a %s does not hold its payload as it is", h.parcel.Kind)
	}
	parcel := h.parcel
	parcel.Head, parcel.Tail = bytes.Clone(envelope[:at]), bytes.Clone(envelope[at+len(h.payload):])
	return &parcel, parcel.Check(len(h.payload))
}

// isLarge reports whether an envelope with this payload is too large for one message.
func isLarge(payload []byte) bool { return len(payload)+mostAround > answerMost }

// Piece returns one piece of the payload of a parcel. The host may have got the description
// of the parcel from another controller. Name and number are as the host sent them.
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

// makeParcel encodes a payload again that another controller described, or that this one
// has dropped. As long as the host is to get the same ruleset, the bytes are the same.
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
			continue // it has another name, or Piece would have found it
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
