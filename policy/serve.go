package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"bocage.dev/bocage"
)

// Question is what an agent reports to have when it asks for something new.
type Question struct {
	// Have is the highest generation that it ever took, Candidate the one that it
	// evaluates in shadow (0: none), Confirmed that of the last confirmation.
	Have, Candidate, Confirmed uint64
	// Base is the generation whose ruleset it enforces, so that the answer may be an
	// amendment of it. 0: it wants the whole ruleset.
	Base uint64
	// Pieces says that it can fetch a large payload in pieces (see Parcel).
	Pieces bool
	// Left is Have if the agent went back from that generation, because nobody had
	// confirmed it in time.
	Left uint64
	// Proves says that it can show the signed ruleset that it has, and Shown that it did.
	// Proved is the highest generation in what it showed that a controller has signed.
	Proves, Shown bool
	Proved        uint64
}

// Answer is what is new for an agent: signed envelopes.
type Answer struct {
	Confirm, Ruleset, Candidate []byte
	// Amendment replaces Ruleset if little differs from Base.
	Amendment []byte
	// Parcel replaces Ruleset or Candidate if that is too large for one message.
	Parcel *Parcel
	// NoCandidate ends the evaluation of a candidate.
	NoCandidate bool
	// Prove asks the agent to show what it has (see renumber.go).
	Prove bool
}

// Empty reports whether nothing is new.
func (a Answer) Empty() bool {
	return len(a.Confirm) == 0 && len(a.Ruleset) == 0 && len(a.Amendment) == 0 && len(a.Candidate) == 0 && a.Parcel == nil && !a.NoCandidate && !a.Prove
}

const (
	// answerMost is the largest total size of an answer's envelopes, in bytes: an answer
	// travels as text in one message. What is larger is fetched in pieces.
	answerMost = 5 << 20
	// catchUpTime is how long a question waits for this controller to have what
	// another one has published already.
	catchUpTime = 3 * time.Second
)

// errCutOff means that the store does not answer this controller.
var errCutOff = errors.New("this controller cannot look up what is in force: its store does not answer")

// ErrNotYet means that this controller does not know yet what is in force: ask
// again, or another one.
var ErrNotYet = errors.New("this controller does not know yet what is in force")

// Answer tells the agent of a host what is new for it. Everything is signed as it
// is asked for, and is the same whichever controller is asked.
func (p *Policy) Answer(ctx context.Context, host string, q Question) (Answer, error) {
	// An agent that has no answer goes to another controller, which may reach the store.
	ctx, cancel := context.WithTimeout(ctx, catchUpTime)
	defer cancel()
	r, revision, err := readRecord(ctx, p.store)
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", errCutOff, ctx.Err())
	}
	if err != nil {
		return Answer{}, err
	}
	numbers, known := r.Hosts[host]
	if known && r.unknownTo(host, q) {
		return p.answerUnknown(ctx, r, host, q)
	}
	if known && r.revertedAfterConfirm(host, q) {
		return Answer{}, p.renumber(ctx, q.Left, slog.String("host", host))
	}
	if !known || numbers[0] <= q.Have && numbers[1] == q.Candidate && r.ConfirmedUpTo <= q.Confirmed {
		p.parcels.has(host)
		p.remake(host, q, revision)
		return Answer{}, nil
	}
	var s *served
	for {
		p.mu.Lock()
		advanced := p.advanced
		p.mu.Unlock()
		if s = p.served.Load(); s != nil && s.revision >= revision {
			break
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return Answer{}, ErrNotYet
		}
	}
	// What is large takes longer to make than an agent waits for an answer: it asks
	// again, and then for what is being made.
	a, err, _ := p.answering.Do(fmt.Sprint(host, " ", q, " ", s.revision), func() (any, error) { return p.answer(s, host, q) })
	return a.(Answer), err
}

func (p *Policy) answer(s *served, host string, q Question) (Answer, error) {
	numbers, known := s.record.Hosts[host]
	var a Answer
	if !known {
		return a, nil
	}
	var err error
	if s.record.ConfirmedUpTo > q.Confirmed {
		payload, err := json.Marshal(bocage.Confirmation{Generation: s.record.ConfirmedUpTo})
		if err != nil {
			return a, err
		}
		if a.Confirm, err = p.signed(bocage.SignedConfirm, host, payload); err != nil {
			return a, err
		}
	}
	enforced, evaluated := s.of(host)
	if enforced == nil {
		return a, ErrNotYet
	}
	if numbers[0] > q.Have {
		if err = p.enforced(&a, enforced, host, numbers[0], s.confirmBy(host), q); err != nil {
			return a.without(err)
		}
	}
	switch {
	case numbers[1] == q.Candidate:
	case numbers[1] == 0:
		a.NoCandidate = true
	case evaluated == nil:
		return a, ErrNotYet
	case a.Parcel != nil: // the agent asks again at once
	default:
		if err = p.evaluated(&a, evaluated, host, numbers[1], q); err != nil {
			return a.without(err)
		}
		if first := len(a.Ruleset) + len(a.Amendment); first > 0 && first+len(a.Candidate) > answerMost {
			a.Candidate = nil // likewise
		}
	}
	return a, nil
}

// without returns the answer so far if only room for a parcel is missing: the agent takes
// that and asks again at once. Other errors are returned.
func (a Answer) without(err error) (Answer, error) {
	if errors.Is(err, errNoRoom) && !a.Empty() {
		return a, nil
	}
	return a, err
}

// confirmBy is when a host goes back by itself. A canary has the time of its stage and
// then as long as every other host.
func (s *served) confirmBy(host string) time.Time {
	if !s.record.canary(host) {
		return s.record.ConfirmBy
	}
	if s.spec.ConfirmSeconds == 0 {
		return time.Time{}
	}
	c := s.record.Candidate
	by := c.Since.Add(stageTime(c.Stage, s.spec) + time.Duration(s.spec.ConfirmSeconds)*time.Second)
	return by.UTC().Truncate(time.Second)
}

// evaluated signs the candidate that a host is to evaluate in shadow.
func (p *Policy) evaluated(a *Answer, o *outcome, host string, number uint64, q Question) error {
	made := madeOf(number, time.Time{})
	payload, err := p.parcels.of(host, bocage.SignedCandidate, made)
	if err != nil {
		return err
	}
	if payload == nil {
		if payload, err = o.payload(host, number, time.Time{}); err != nil {
			return err
		}
	}
	return p.enclose(a, &a.Candidate, bocage.SignedCandidate, host, made, payload, q)
}

// payload encodes a host's part of an outcome.
func (o *outcome) payload(host string, number uint64, confirmBy time.Time) ([]byte, error) {
	e, err := o.encoder()
	if err != nil {
		return nil, err
	}
	return e.encode(e.numbered(host, number, confirmBy))
}

// enclose signs a payload and puts it into an answer: at place if one message can carry
// it, else as a parcel, if there is room for one.
func (p *Policy) enclose(a *Answer, place *[]byte, kind, host, made string, payload []byte, q Question) (err error) {
	if !isLarge(payload) {
		*place, err = p.signed(kind, host, payload)
		return err
	}
	if !q.Pieces {
		p.logger.Error("ruleset is larger than a message, and the agent cannot fetch pieces: upgrade it", slog.String("host", host), slog.Int("bytes", len(payload)))
		return fmt.Errorf("the %s of %s has %d bytes, more than the %d that a message takes, and its agent is of a version that cannot fetch it in pieces: upgrade the agent",
			kind, host, len(payload), answerMost-mostAround)
	}
	held, err := p.parcels.hold(host, kind, made, payload)
	if err != nil {
		return err
	}
	envelope, err := p.signed(kind, host, payload)
	if err != nil {
		return err
	}
	a.Parcel, err = held.around(envelope)
	return err
}

func (p *Policy) signed(kind, host string, payload []byte) ([]byte, error) {
	envelope, err := p.sign(kind, payload)
	if err != nil {
		return nil, fmt.Errorf("sign the %s of %s: %w", kind, host, err)
	}
	p.counters.signed.Add(1)
	return envelope, nil
}
