package bocage

import (
	"net/netip"
	"slices"
	"time"
)

// Piece is one IP fragment: the packet that it belongs to, and its part of the bytes.
type Piece struct {
	// Flow is that of the packet's headers, with At when the fragment came. For a later
	// fragment only the addresses, the protocol (IPv4 only) and At count.
	Flow Flow
	ID   uint32
	// Offset and Length are in bytes, counted from the end of the IP header (IPv6: of the
	// fragment header). More says that this is not the last fragment.
	Offset, Length int
	More           bool
}

// Pieces is the model of how one enforcement point tracks fragmented packets: Decide with
// a memory of incomplete packets. The zero Pieces is ready for use.
//
// The first fragment has the headers that policy decides on. Later ones get its verdict. A
// later fragment is refused if the first one was not seen or did not pass, if it overlaps
// another, if it is beyond the packet's end, or if it would leave a second gap. A first
// fragment is refused while another packet with its id is incomplete.
type Pieces struct {
	begun map[packetID]*begun
	most  int // when begun has as many entries, expired ones are dropped
}

type packetID struct {
	source, destination netip.Addr
	protocol            Protocol
	id                  uint32
}

// begun is a packet of which the first fragment was seen.
type begun struct {
	flow    Flow
	refused ReasonCode // of the first, if all are to be for its reason
	seen    [][2]int   // from and to, in units of eight bytes, in order
	last    int        // the packet's end; 0: not known
	until   time.Time
}

// How long later fragments are expected: as long as receivers wait for them.
const (
	piecesPeriod4 = 30 * time.Second
	piecesPeriod6 = 60 * time.Second
)

// Whole reports whether the decision's flows must not be fragmented.
func (d *Decision) Whole() bool { return d.Duties != nil && d.Verdict.Allowed() && d.Duties.Whole }

// Decide decides on a fragment, and remembers it if it passes.
func (p *Pieces) Decide(r *Ruleset, piece Piece) (Verdict, Reason) {
	at := piece.Flow.At
	p.forget(at)
	period := piecesPeriod4
	key := packetID{piece.Flow.Source, piece.Flow.Destination, piece.Flow.Protocol, piece.ID}
	if piece.Flow.Source.Is6() {
		key.protocol, period = 0, piecesPeriod6 // only the first piece's counts
	}
	known := p.begun[key]
	if known != nil && !at.Before(known.until) {
		delete(p.begun, key)
		known = nil
	}
	span := [2]int{piece.Offset / 8, (piece.Offset + piece.Length + 7) / 8}
	if piece.Offset > 0 {
		switch {
		case known == nil:
			return p.refuse(r, piece.Flow, Reason{Code: ReasonFragment})
		case known.refused != 0:
			return p.refuse(r, piece.Flow, Reason{Code: known.refused})
		case !known.take(span, piece.More):
			return p.refuse(r, piece.Flow, Reason{Code: ReasonFragment})
		}
		flow := known.flow
		flow.At = at
		return r.Decide(flow)
	}
	again := known != nil && len(known.seen) == 1 && known.last == 0 && known.seen[0] == span && known.sameFlow(piece.Flow)
	if known != nil && known.refused == 0 && !known.whole() && !again {
		return p.refuse(r, piece.Flow, Reason{Code: ReasonFragment})
	}
	verdict, reason := r.Decide(piece.Flow)
	first := &begun{flow: piece.Flow, seen: [][2]int{span}, until: at.Add(period)}
	if d, _ := r.Decision(reason.Decision); reason.Would.Allowed() && d.Whole() {
		if verdict, reason = p.refuse(r, piece.Flow, Reason{Code: ReasonFragmented, Decision: d.ID}); !verdict.Allowed() {
			first.refused = reason.Code
		}
	}
	if verdict.Allowed() || first.refused != ReasonNone {
		p.begun[key] = first
	}
	return verdict, reason
}

// forget drops what nobody waits for any more.
func (p *Pieces) forget(at time.Time) {
	if p.begun == nil {
		p.begun, p.most = map[packetID]*begun{}, 1024
	}
	if len(p.begun) < p.most {
		return
	}
	for key, b := range p.begun {
		if !at.Before(b.until) {
			delete(p.begun, key)
		}
	}
	p.most = 2*len(p.begun) + 1024
}

// refuse is what comes of what the point refuses by itself: who is cut off is refused
// for that.
func (p *Pieces) refuse(r *Ruleset, f Flow, reason Reason) (Verdict, Reason) {
	if verdict, why := r.Decide(f); why.Code == ReasonQuarantine {
		return verdict, why
	}
	reason.Would = VerdictDrop
	groups := r.indexed().groups.find()
	if groups[r.Lookup(f.Source).Group].Enforce || groups[r.Lookup(f.Destination).Group].Enforce {
		return VerdictDrop, reason
	}
	return VerdictAllow, reason
}

func (b *begun) sameFlow(f Flow) bool {
	f.At = b.flow.At
	return f == b.flow
}

// whole reports whether every piece was seen.
func (b *begun) whole() bool { return b.last > 0 && len(b.seen) == 1 && b.seen[0][1] == b.last }

// take notes a later piece, if it fits.
func (b *begun) take(span [2]int, more bool) bool {
	reach := b.seen[len(b.seen)-1][1]
	if !more && (b.last > 0 || span[1] < reach) || b.last > 0 && span[1] > b.last {
		return false
	}
	for _, s := range b.seen {
		if span[0] < s[1] && s[0] < span[1] {
			return false
		}
	}
	seen := append(slices.Clone(b.seen), span)
	slices.SortFunc(seen, func(a, b [2]int) int { return a[0] - b[0] })
	joined := seen[:1]
	for _, s := range seen[1:] {
		if end := &joined[len(joined)-1]; end[1] == s[0] {
			end[1] = s[1]
		} else {
			joined = append(joined, s)
		}
	}
	if len(joined) > 2 { // one stretch may be missing
		return false
	}
	b.seen = joined
	if !more {
		b.last = span[1]
	}
	return true
}
