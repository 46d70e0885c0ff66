package bocage

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whatever pieces come, those that pass make one packet at most for each time that one
// is begun: no byte is said twice, the first eight least of all.
func TestPiecesNeverOverlap(t *testing.T) {
	rs := limited("1/s")
	rs.Default, rs.Rules = 2, nil
	rapid.Check(t, func(t *rapid.T) {
		var p Pieces
		said := map[int]bool{}
		end := 0
		flow := Flow{Source: limitedAddress(0), Destination: limitedAddress(1), Protocol: ProtocolUDP, DestinationPort: 9, At: time.Unix(1000, 0)}
		for range rapid.IntRange(1, 60).Draw(t, "pieces") {
			piece := Piece{Flow: flow, ID: 7, Offset: 8 * rapid.IntRange(0, 12).Draw(t, "offset"),
				Length: 8 * rapid.IntRange(1, 4).Draw(t, "length"), More: rapid.IntRange(0, 5).Draw(t, "more") > 0}
			piece.More = piece.More || piece.Offset == 0
			verdict, reason := p.Decide(rs, piece)
			if !verdict.Allowed() {
				if reason.Code != ReasonFragment {
					t.Fatalf("%+v: %s", piece, reason.Code)
				}
				continue
			}
			if piece.Offset == 0 {
				said, end = map[int]bool{}, 0 // begun, or begun again before anything followed
			}
			for at := piece.Offset; at < piece.Offset+piece.Length; at++ {
				if said[at] || end > 0 && at >= end {
					t.Fatalf("byte %d is said twice, or beyond the end %d, by %+v", at, end, piece)
				}
				said[at] = true
			}
			if !piece.More {
				end = piece.Offset + piece.Length
			}
		}
	})
}

// Pieces in order pass, whatever their sizes; so do those of two packets at once.
func TestPiecesInOrder(t *testing.T) {
	rs := limited("1/s")
	rapid.Check(t, func(t *rapid.T) {
		var p Pieces
		flow := Flow{Source: limitedAddress(0), Destination: limitedAddress(1), Protocol: ProtocolUDP, DestinationPort: 9, At: time.Unix(1000, 0)}
		offsets := [2]int{}
		for range rapid.IntRange(1, 100).Draw(t, "pieces") {
			n := rapid.IntRange(0, 1).Draw(t, "packet")
			length := 8 * rapid.IntRange(1, 200).Draw(t, "length")
			last := offsets[n] > 0 && (offsets[n]+length > 60_000 || rapid.IntRange(0, 9).Draw(t, "last") == 0)
			if verdict, reason := p.Decide(rs, Piece{Flow: flow, ID: uint32(n), Offset: offsets[n], Length: length, More: !last}); !verdict.Allowed() {
				t.Fatalf("packet %d at %d: %s", n, offsets[n], reason.Code)
			}
			if offsets[n] += length; last {
				offsets[n] = 0 // its id is used again
			}
		}
	})
}

// Nobody waits for the rest for ever, and packets of others have nothing to do with it.
func TestPiecesOfOthers(t *testing.T) {
	rs := limited("1/s")
	var p Pieces
	flow := Flow{Source: limitedAddress(0), Destination: limitedAddress(1), Protocol: ProtocolUDP, DestinationPort: 9, At: time.Unix(1000, 0)}
	first, rest := Piece{Flow: flow, ID: 7, Length: 80, More: true}, Piece{Flow: flow, ID: 7, Offset: 80, Length: 8}
	p.Decide(rs, first)
	other := func(change func(*Piece)) Piece { piece := rest; change(&piece); return piece }
	for name, piece := range map[string]Piece{
		"another id":       other(func(x *Piece) { x.ID++ }),
		"another protocol": other(func(x *Piece) { x.Flow.Protocol = ProtocolTCP }),
		"another source":   other(func(x *Piece) { x.Flow.Source = netip.MustParseAddr("10.0.0.2") }),
		"too late":         other(func(x *Piece) { x.Flow.At = x.Flow.At.Add(30 * time.Second) }),
	} {
		q := Pieces{}
		q.Decide(rs, first)
		if verdict, reason := q.Decide(rs, piece); verdict.Allowed() || reason.Code != ReasonFragment {
			t.Errorf("%s: %s, %s", name, verdict, reason.Code)
		}
	}
	if verdict, _ := p.Decide(rs, rest); !verdict.Allowed() {
		t.Error("the rest is refused")
	}
	for n := range 5000 {
		first.ID, first.Flow.At = uint32(n), flow.At.Add(time.Duration(n)*time.Second)
		p.Decide(rs, first)
	}
	if len(p.begun) > 1100 {
		t.Errorf("%d packets are remembered", len(p.begun))
	}
}
