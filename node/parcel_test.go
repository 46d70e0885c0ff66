package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/policy"
	"bocage.dev/bocage/stream"
)

// parcelOf puts an envelope in pieces, as a controller does.
func parcelOf(t testing.TB, kind string, envelope, payload []byte) *policy.Parcel {
	t.Helper()
	const each = 64 << 10
	at := bytes.Index(envelope, payload)
	p := &policy.Parcel{Kind: kind, Head: envelope[:at], Tail: envelope[at+len(payload):], Size: len(payload), Each: each}
	for first := 0; first < len(payload); first += each {
		sum := sha256.Sum256(payload[first:min(first+each, len(payload))])
		p.Sums = append(p.Sums, sum[:])
	}
	if at < 0 || p.Check(len(payload)) != nil {
		t.Fatalf("no parcel: %v", p.Check(len(payload)))
	}
	return p
}

// depot answers questions for rulesets with a parcel, and gives its pieces as a test
// wants.
type depot struct {
	stream.Exchange
	mu      sync.Mutex // guards what follows
	parcel  *policy.Parcel
	payload []byte
	confirm []byte
	asked   []int
	give    func(number int, piece []byte) ([]byte, error) // nil: the piece
}

func (d *depot) Ask(_ context.Context, subject string, data []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if strings.HasSuffix(subject, ".ruleset") {
		var q rulesetQuestion
		if err := json.Unmarshal(data, &q); err != nil || !q.Pieces {
			return nil, errors.New("it does not fetch pieces")
		}
		if q.Have > 0 {
			return nil, nil
		}
		return json.Marshal(rulesetAnswer{Confirm: d.confirm, Parcel: d.parcel})
	}
	var q pieceQuestion
	if err := json.Unmarshal(data, &q); err != nil || q.Parcel != d.parcel.Name() {
		return nil, errors.New("no such parcel")
	}
	d.asked = append(d.asked, q.Number)
	first, end := d.parcel.Piece(q.Number)
	piece := d.payload[first:end]
	if d.give != nil {
		return d.give(q.Number, piece)
	}
	return piece, nil
}

func (d *depot) say(give func(number int, piece []byte) ([]byte, error)) (asked []int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.give, asked, d.asked = give, d.asked, nil
	return asked
}

// bulky is a ruleset that takes several pieces.
func bulky(generation uint64) *bocage.Ruleset {
	random := rand.New(rand.NewPCG(3, generation))
	rs := &bocage.Ruleset{Generation: generation, Host: "h1", Default: 1,
		Decisions: []bocage.Decision{{ID: 1, Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny}}}
	for range 4000 {
		rs.Decisions = append(rs.Decisions, bocage.Decision{ID: bocage.DecisionID(len(rs.Decisions) + 1), Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule,
			By: []bocage.Ref{{Kind: "Application", Name: fmt.Sprint(random.Uint64())}}})
	}
	rs.Digest = rs.ContentDigest()
	return rs
}

// A ruleset in pieces is taken when all are there and it is signed; what came is kept
// through damage, absence and the end of the process, and nothing is fetched twice.
func TestCollect(t *testing.T) {
	sign := newSigner(t)
	cfg := Config{Host: "h1", TrustDomain: "test.internal", StateDir: t.TempDir()}
	have := sign.credentials(cfg.agentDir("identity"))
	rs := bulky(1)
	payload, err := json.Marshal(rs)
	if err != nil {
		t.Fatal(err)
	}
	envelope := sign.sign(bocage.SignedRuleset, rs)
	d := &depot{parcel: parcelOf(t, bocage.SignedRuleset, envelope, payload), payload: payload,
		confirm: sign.sign(bocage.SignedConfirm, bocage.Confirmation{Generation: 5})}
	pieces := len(d.parcel.Sums)
	if pieces < 5 {
		t.Fatalf("%d pieces: this shows nothing", pieces)
	}
	process := func() *rulesetSource {
		joined := make(chan struct{})
		close(joined)
		s := &rulesetSource{agent: &agentProcess{cfg: cfg, logger: slog.New(slog.DiscardHandler), exchange: d, bundle: have.bundle}, joined: joined,
			arrived: true, shelf: openShelf(cfg.agentDir("identity"), have, "h1", slog.New(slog.DiscardHandler))}
		return s
	}
	s := process()
	d.say(func(number int, piece []byte) ([]byte, error) {
		switch {
		case number < 2:
			return piece, nil
		case number == 2:
			return append(slices.Clone(piece[1:]), 0), nil
		}
		t.Errorf("piece %d is asked for, and the one before is not there", number)
		return nil, errors.New("not yet")
	})
	if s.ask(t.Context()); s.shelf.newest() != 0 {
		t.Error("a ruleset of damaged pieces is taken")
	}
	if text := s.agent.faults.String(); !strings.Contains(text, "piece 3 of the") {
		t.Errorf("fault %q", text)
	}
	if s.shelf.confirmed != 5 {
		t.Error("what came at once waits for what is to be fetched")
	}
	if asked := d.say(nil); !slices.Equal(asked, []int{0, 1, 2, 2, 2, 2}) {
		t.Errorf("asked for %v", asked)
	}
	// The next process goes on where this one ended, when a controller is there again.
	s = process()
	d.say(func(number int, piece []byte) ([]byte, error) {
		if number == 3 {
			return nil, stream.ErrUnavailable
		}
		return piece, nil
	})
	if s.ask(t.Context()); s.shelf.newest() != 0 {
		t.Error("a ruleset that lacks a piece is taken")
	}
	if asked := d.say(nil); !slices.Equal(asked, []int{2, 3, 3, 3, 3}) {
		t.Errorf("asked for %v", asked)
	}
	s = process()
	if !s.ask(t.Context()) || s.shelf.newest() != 1 {
		t.Fatalf("newest %d, %s", s.shelf.newest(), s.agent.faults.String())
	}
	asked := d.say(nil)
	if len(asked) != pieces-3 || asked[0] != 3 {
		t.Errorf("asked for %v of %d", asked, pieces)
	}
	if _, err := os.Stat(s.arriving()); err == nil {
		t.Error("what came stays on disk")
	}
	reopened := openShelf(cfg.agentDir("identity"), have, "h1", slog.New(slog.DiscardHandler))
	if got, _ := reopened.standing(time.Now()); got == nil || got.ContentDigest() != rs.Digest {
		t.Error("what was kept is another ruleset")
	}
}

// A disk that keeps nothing of what comes keeps no ruleset away: not where the file
// cannot be opened, and not where it takes nothing. It is told once, not of every piece.
func TestCollectWithoutDisk(t *testing.T) {
	sign := newSigner(t)
	rs := bulky(1)
	payload, err := json.Marshal(rs)
	if err != nil {
		t.Fatal(err)
	}
	parcel := parcelOf(t, bocage.SignedRuleset, sign.sign(bocage.SignedRuleset, rs), payload)
	for name, spoil := range map[string]func(path string) error{
		"a directory is there": func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(path+"/file", nil, 0o600))
		},
		"nothing is taken": func(path string) error { return os.Symlink("/dev/full", path) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Host: "h1", TrustDomain: "test.internal", StateDir: t.TempDir()}
			have := sign.credentials(cfg.agentDir("identity"))
			var said bytes.Buffer
			logger := slog.New(slog.NewTextHandler(&said, nil))
			joined := make(chan struct{})
			close(joined)
			d := &depot{parcel: parcel, payload: payload}
			s := &rulesetSource{agent: &agentProcess{cfg: cfg, logger: logger, exchange: d, bundle: have.bundle}, joined: joined,
				shelf: openShelf(cfg.agentDir("identity"), have, "h1", slog.New(slog.DiscardHandler))}
			if err := spoil(s.arriving()); err != nil {
				t.Fatal(err)
			}
			if !s.ask(t.Context()) || s.shelf.newest() != 1 {
				t.Errorf("newest %d, %s", s.shelf.newest(), s.agent.faults.String())
			}
			if got, _ := s.shelf.standing(time.Now()); got == nil || got.ContentDigest() != rs.Digest {
				t.Error("what was taken is another ruleset")
			}
			if asked := d.say(nil); len(asked) != len(parcel.Sums) {
				t.Errorf("asked for %v", asked)
			}
			if n := strings.Count(said.String(), "keep the pieces"); n != 1 {
				t.Errorf("told %d times:\n%s", n, said.String())
			}
		})
	}
}

// What no controller signed is not taken, whatever its pieces' sums, nor is what cannot
// be a parcel; and the same does not come again and again from the disk.
func TestCollectRefuses(t *testing.T) {
	sign, stranger := newSigner(t), newSigner(t)
	rs := bulky(1)
	payload, err := json.Marshal(rs)
	if err != nil {
		t.Fatal(err)
	}
	foreign := parcelOf(t, bocage.SignedRuleset, stranger.sign(bocage.SignedRuleset, rs), payload)
	own := parcelOf(t, bocage.SignedRuleset, sign.sign(bocage.SignedRuleset, rs), payload)
	other, small := *own, *own
	other.Kind, small.Each = bocage.SignedConfirm, 1
	for name, c := range map[string]struct {
		parcel *policy.Parcel
		says   string
	}{
		"of a stranger":    {foreign, "not trusted"},
		"of another kind":  {&other, "parcel of kind"},
		"of small pieces":  {&small, "in pieces of 1 bytes"},
		"as it is to come": {own, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Host: "h1", TrustDomain: "test.internal", StateDir: t.TempDir()}
			have := sign.credentials(cfg.agentDir("identity"))
			joined := make(chan struct{})
			close(joined)
			s := &rulesetSource{agent: &agentProcess{cfg: cfg, logger: slog.New(slog.DiscardHandler), bundle: have.bundle,
				exchange: &depot{parcel: c.parcel, payload: payload}}, joined: joined,
				shelf: openShelf(cfg.agentDir("identity"), have, "h1", slog.New(slog.DiscardHandler))}
			taken := s.ask(t.Context())
			if text := s.agent.faults.String(); taken != (c.says == "") || !strings.Contains(text, c.says) || (s.shelf.newest() == 1) != taken {
				t.Errorf("taken: %v, fault %q", taken, text)
			}
		})
	}
}
