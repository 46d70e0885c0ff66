package policy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/store"
	"bocage.dev/bocage/store/mem"
)

// million is a whole ruleset of a million rules that no compression makes small: pairs
// of a thousand groups, each with a port of its own.
func million(host string) *bocage.Ruleset {
	const side = 1000
	random := rand.New(rand.NewPCG(1, 2))
	rs := &bocage.Ruleset{Host: host, Default: 1}
	for d := range bocage.DecisionID(side) {
		rs.Decisions = append(rs.Decisions, bocage.Decision{ID: d + 1, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule})
	}
	for g := range bocage.Group(side) {
		address := binary.BigEndian.AppendUint32(nil, 10<<24|uint32(g))
		rs.Peers = append(rs.Peers, bocage.Peer{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte(address)), 32), Identity: bocage.Identity(100 + g), Group: 100 + g})
		rs.Groups = append(rs.Groups, bocage.GroupInfo{Group: 100 + g, Enforce: true})
		for to := range bocage.Group(side) {
			port := uint16(1 + random.IntN(65000))
			rs.Rules = append(rs.Rules, bocage.Rule{From: 100 + g, To: 100 + to, Protocol: bocage.ProtocolTCP, Ports: bocage.PortRange{First: port, Last: port},
				Decision: bocage.DecisionID(1 + random.IntN(side))})
		}
	}
	return rs
}

// serving is a room that has just this to serve.
func serving(t *testing.T, whole *bocage.Ruleset, hosts map[string][2]uint64) (*Policy, *served) {
	t.Helper()
	s := mem.New()
	t.Cleanup(func() { s.Close() })
	p, err := New(Config{Store: s, Sign: func(kind string, payload []byte) ([]byte, error) {
		return slices.Concat([]byte(kind+":"), payload, []byte("signed")), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	o := &outcome{}
	o.complete()
	o.encoder = func() (*encoder, error) {
		return newEncoder(whole, func(host string) *bocage.Ruleset {
			cut := whole.Copy()
			cut.Host = host
			return cut
		}, nil)
	}
	now := &served{record: record{Hosts: hosts}, base: o, candidate: o}
	p.served.Store(now)
	return p, now
}

// A ruleset of a million rules takes more than a message: it comes in pieces, which
// any controller gives that has the same to serve, and is whole then.
func TestMillionRulesInPieces(t *testing.T) {
	whole := million("")
	hosts := map[string][2]uint64{"h1": {7, 0}}
	p, now := serving(t, whole, hosts)
	a, err := p.answer(now, "h1", Question{Pieces: true})
	if err != nil || a.Parcel == nil || a.Ruleset != nil || a.Empty() {
		t.Fatalf("answer %+v, %v", a, err)
	}
	t.Logf("%d rules are %d bytes, in %d pieces", len(whole.Rules), a.Parcel.Size, len(a.Parcel.Sums))
	if a.Parcel.Size <= answerMost {
		t.Fatalf("%d bytes would fit into a message: this shows nothing", a.Parcel.Size)
	}
	if err := a.Parcel.Check(64 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := p.answer(now, "h1", Question{}); err == nil {
		t.Error("an agent that fetches no pieces is answered")
	}
	again, err := p.answer(now, "h1", Question{Pieces: true})
	if err != nil || again.Parcel.Name() != a.Parcel.Name() {
		t.Errorf("asked again: %v", err)
	}
	other, _ := serving(t, whole, hosts)
	envelope := bytes.Clone(a.Parcel.Head)
	for number := range a.Parcel.Sums {
		from := p
		if number%2 == 1 {
			from = other
		}
		piece, err := from.Piece(t.Context(), "h1", a.Parcel.Name(), number)
		if err != nil || !a.Parcel.Is(number, piece) {
			t.Fatalf("piece %d: %d bytes, %v", number, len(piece), err)
		}
		envelope = append(envelope, piece...)
	}
	envelope = append(envelope, a.Parcel.Tail...)
	payload := bytes.TrimSuffix(bytes.TrimPrefix(envelope, []byte(bocage.SignedRuleset+":")), []byte("signed"))
	rs, err := DecodeRuleset(payload)
	if err != nil {
		t.Fatal(err)
	}
	if rs.Generation != 7 || rs.Host != "h1" || len(rs.Rules) != len(whole.Rules) || rs.ContentDigest() != rs.Digest {
		t.Errorf("generation %d of %s has %d rules, digest %s of %s", rs.Generation, rs.Host, len(rs.Rules), rs.Digest, rs.ContentDigest())
	}
	for name, ask := range map[string]func() ([]byte, error){
		"another host's": func() ([]byte, error) { return p.Piece(t.Context(), "h2", a.Parcel.Name(), 0) },
		"another name":   func() ([]byte, error) { return p.Piece(t.Context(), "h1", strings.Repeat("0", 64), 0) },
	} {
		if _, err := ask(); !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "x", "h1", strings.Repeat("x", 64), a.Parcel.Name() + "00", "../" + a.Parcel.Name()} {
		if _, err := p.Piece(t.Context(), "h1", name, 0); err == nil || errors.Is(err, ErrGone) {
			t.Errorf("the name %q: %v", name, err)
		}
	}
	for _, number := range []int{-1, len(a.Parcel.Sums)} {
		if _, err := p.Piece(t.Context(), "h1", a.Parcel.Name(), number); err == nil {
			t.Errorf("there is a piece %d", number)
		}
	}
	// What comes next is told by how it differs, and fits again.
	less := whole.Copy()
	less.Rules = whole.Rules[1:]
	q, next := serving(t, less, map[string][2]uint64{"h1": {8, 0}})
	q.deliveries.note(nil, rs)
	if a, err := q.answer(next, "h1", Question{Have: 7, Base: 7, Pieces: true}); err != nil || len(a.Amendment) == 0 || a.Parcel != nil {
		t.Errorf("the next ruleset: %v", err)
	}
}

// A host asks for a piece by the words that its own question is known by here, while
// that is being answered: neither gets what the other asked for.
func TestPieceByTheNameOfAQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := serving(t, &bocage.Ruleset{Default: 1, Decisions: []bocage.Decision{{ID: 1, Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny}}},
			map[string][2]uint64{"h1": {7, 0}})
		op, err := s.record.op(store.Absent)
		if err != nil {
			t.Fatal(err)
		}
		if s.revision, err = p.store.Apply(t.Context(), op); err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		p.sign = func(string, []byte) ([]byte, error) {
			<-release
			return []byte("signed"), nil
		}
		q := Question{Pieces: true}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			if a, err := p.Answer(t.Context(), "h1", q); err != nil || string(a.Ruleset) != "signed" {
				t.Errorf("answer %+v, %v", a, err)
			}
		}()
		synctest.Wait() // until it waits for its signature
		refused := make(chan struct{})
		go func() {
			defer close(refused)
			if piece, err := p.Piece(t.Context(), "h1", fmt.Sprint(q, " ", s.revision), 0); err == nil {
				t.Errorf("a piece of %d bytes", len(piece))
			}
		}()
		synctest.Wait()
		select {
		case <-refused:
		default:
			t.Error("a piece waits for the answer to a question")
		}
		close(release)
		<-refused
		<-answered
	})
}

// Payloads that wait to be fetched are bounded: one more finds no room until another
// was not fetched of for a while, and the newest of a host takes the place of the last.
func TestParcelsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b parcels
		holds := func(host, made string) bool {
			payload, err := b.of(host, bocage.SignedRuleset, made)
			return payload != nil && err == nil
		}
		large := make([]byte, parcelsMost/2-1)
		for _, host := range []string{"a", "b"} {
			if _, err := b.hold(host, bocage.SignedRuleset, "1", large); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := b.hold("c", bocage.SignedRuleset, "1", large); !errors.Is(err, errNoRoom) {
			t.Errorf("a third: %v", err)
		}
		if _, err := b.hold("a", bocage.SignedRuleset, "2", large); err != nil {
			t.Errorf("the next of the same host: %v", err)
		}
		time.Sleep(parcelIdle/2 + 1)
		if !holds("a", "2") || holds("a", "1") {
			t.Error("what is held is not the newest")
		}
		time.Sleep(parcelIdle/2 + 1)
		if _, err := b.hold("c", bocage.SignedRuleset, "1", large); err != nil {
			t.Errorf("nobody fetches of one, and there is no room: %v", err)
		}
		if holds("b", "1") || !holds("a", "2") || b.bytes > parcelsMost {
			t.Errorf("%d bytes are held", b.bytes)
		}
		// One that is larger than all the room finds some when it is alone.
		time.Sleep(parcelIdle + 1)
		if _, err := b.hold("d", bocage.SignedRuleset, "1", make([]byte, parcelsMost+1)); err != nil || len(b.held) != 1 {
			t.Errorf("%d are held, %v", len(b.held), err)
		}
	})
}

// wordy is a ruleset of few rows that no message takes: a decision with many authors.
func wordy() *bocage.Ruleset {
	random := rand.New(rand.NewPCG(5, 6))
	allow := bocage.Decision{ID: 2, Verdict: bocage.VerdictAllow, Code: bocage.ReasonRule}
	for range 700_000 {
		allow.By = append(allow.By, bocage.Ref{Kind: "Application", Name: strconv.FormatUint(random.Uint64(), 36)})
	}
	return &bocage.Ruleset{Default: 1, Decisions: []bocage.Decision{{ID: 1, Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny}, allow}}
}

// A difference that no message takes is not told as one: a controller that never gave
// the ruleset before gives the pieces of the whole.
func TestParcelOfADifference(t *testing.T) {
	whole := wordy()
	had := &bocage.Ruleset{Host: "h1", Generation: 7, Default: 1, Decisions: whole.Decisions[:1]}
	had.Digest = had.ContentDigest()
	p, s := serving(t, whole, map[string][2]uint64{"h1": {8, 0}})
	p.deliveries.note(nil, had)
	a, err := p.answer(s, "h1", Question{Have: 7, Base: 7, Pieces: true})
	if err != nil || a.Parcel == nil || a.Parcel.Kind != bocage.SignedRuleset || a.Amendment != nil {
		t.Fatalf("%d bytes of an amendment, %v", len(a.Amendment), err)
	}
	other, _ := serving(t, whole, map[string][2]uint64{"h1": {8, 0}})
	for number := range a.Parcel.Sums {
		if piece, err := other.Piece(t.Context(), "h1", a.Parcel.Name(), number); err != nil || !a.Parcel.Is(number, piece) {
			t.Fatalf("piece %d: %d bytes, %v", number, len(piece), err)
		}
	}
}

// What finds no room is not made again before there is some, and keeps back nothing else
// of the answer. Whoever was given the last piece, or has everything, makes room at once.
func TestParcelsMakeRoom(t *testing.T) {
	ruleset := wordy()
	p, s := serving(t, ruleset, map[string][2]uint64{"h1": {7, 0}})
	made, signed := 0, 0
	whole, sign := s.base.encoder, p.sign
	s.base.encoder = func() (*encoder, error) { made++; return whole() }
	p.sign = func(kind string, payload []byte) ([]byte, error) { signed++; return sign(kind, payload) }
	others, err := p.parcels.hold("h2", bocage.SignedRuleset, "1", make([]byte, parcelsMost))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := p.answer(s, "h1", Question{Pieces: true}); !errors.Is(err, errNoRoom) {
			t.Fatalf("there is room: %v", err)
		}
	}
	if made != 1 || signed != 0 {
		t.Errorf("made %d times and signed %d times, for nothing", made, signed)
	}
	s.record.ConfirmedUpTo = 5
	if a, err := p.answer(s, "h1", Question{Pieces: true}); err != nil || len(a.Confirm) == 0 || a.Parcel != nil {
		t.Errorf("what is there waits for what has no room: %v", err)
	}
	s.record.ConfirmedUpTo = 0
	q := Question{Have: 6, Base: 6, Pieces: true}
	before := ruleset.Copy()
	before.Host, before.Generation = "h1", 6
	before.Decisions = append(slices.Clone(before.Decisions), bocage.Decision{ID: 3, Verdict: bocage.VerdictDrop, Code: bocage.ReasonDefaultDeny})
	before.Digest = before.ContentDigest()
	p.deliveries.note(nil, before)
	if a, err := p.answer(s, "h1", q); err != nil || len(a.Amendment) == 0 {
		t.Errorf("a small difference waits for room: %v", err)
	}
	p.deliveries = deliveries{}
	made = 1
	for number := range others.parcel.Sums {
		if _, err := p.Piece(t.Context(), "h2", others.name, number); err != nil {
			t.Fatal(err)
		}
		if _, err := p.answer(s, "h1", Question{Pieces: true}); (err == nil) != (number == len(others.parcel.Sums)-1) {
			t.Fatalf("after piece %d of %d: %v", number, len(others.parcel.Sums), err)
		}
	}
	if made != 2 || len(p.parcels.held) != 1 || len(p.parcels.rejected) != 0 {
		t.Errorf("made %d times, %d are held, %d are away", made, len(p.parcels.held), len(p.parcels.rejected))
	}
	large := make([]byte, parcelsMost)
	if _, err := p.parcels.hold("h2", bocage.SignedRuleset, "2", large); !errors.Is(err, errNoRoom) {
		t.Errorf("nobody fetched the other: %v", err)
	}
	p.parcels.has("h1")
	if _, err := p.parcels.hold("h2", bocage.SignedRuleset, "2", large); err != nil || p.parcels.bytes != parcelsMost {
		t.Errorf("%d bytes are held: %v", p.parcels.bytes, err)
	}
}

// What a parcel cannot be is seen before anything is fetched.
func TestParcelCheck(t *testing.T) {
	good := func() *Parcel {
		return &Parcel{Kind: "ruleset", Size: leastPiece + 1, Each: leastPiece, Sums: make([][]byte, 2)}
	}
	for name, c := range map[string]struct {
		change func(*Parcel)
		well   bool
	}{
		"as it is":       {func(*Parcel) {}, true},
		"empty":          {func(p *Parcel) { p.Size = 0 }, false},
		"negative":       {func(p *Parcel) { p.Size = -1 }, false},
		"too large":      {func(p *Parcel) { p.Size = 1 << 30 }, false},
		"no pieces":      {func(p *Parcel) { p.Each = 0 }, false},
		"small pieces":   {func(p *Parcel) { p.Each = 1 }, false},
		"large pieces":   {func(p *Parcel) { p.Each = mostPiece + 1 }, false},
		"a sum too many": {func(p *Parcel) { p.Sums = append(p.Sums, nil) }, false},
		"no sums":        {func(p *Parcel) { p.Sums = nil }, false},
		"much around":    {func(p *Parcel) { p.Tail = make([]byte, mostAround+1) }, false},
	} {
		p := good()
		c.change(p)
		if err := p.Check(64 << 20); (err == nil) != c.well {
			t.Errorf("%s: %v", name, err)
		}
	}
}
