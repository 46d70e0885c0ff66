package deception

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"bocage.dev/bocage"
)

// The agent and its child talk in JSON lines: orders down a UNIX socket, which
// carries the listening sockets too, and reports up a pipe.

// order is one line from the agent. Exactly one field is set.
type order struct {
	// Listen is a port whose listening sockets, Sockets of them, come with this line.
	Listen  uint16 `json:"listen,omitempty"`
	Sockets int    `json:"sockets,omitempty"`
	// Close is a port that is not listened on any more.
	Close uint16 `json:"close,omitempty"`
	// Roster is all decoys that there are to be.
	Roster *roster `json:"roster,omitempty"`
}

type roster struct {
	Decoys []placed `json:"decoys"`
}

// placed is a placement with what its host keys are derived from.
type placed struct {
	bocage.DecoyPlacement
	Secret []byte `json:"secret"`
}

// report is one line from the child. Exactly one field is set.
type report struct {
	Engagement *bocage.EngagementEvent `json:"engagement,omitempty"`
	Counts     *counts                 `json:"counts,omitempty"`
}

// Bounds of what travels.
const (
	maxOrder   = 4 << 20  // bytes of one order: 64 decoys with many addresses
	maxReport  = 64 << 10 // bytes of one report
	maxDetails = 16       // keys of one engagement's detail
	maxKey     = 64       // bytes of a detail's key
	maxValue   = 8 << 10  // bytes of a detail's value, escapes included
	maxSession = 64       // bytes of a session's id
)

// sanitize makes an engagement that a child reported safe to keep, whatever
// became of the child: every text is printable and bounded, the decoy is one
// that is placed, the clock is ours. It says what it cannot accept.
func sanitize(e *bocage.EngagementEvent, known func(decoy string) bool, now time.Time) error {
	switch e.Depth {
	case bocage.DepthTouch, bocage.DepthProbe, bocage.DepthLogin, bocage.DepthCommand:
	default:
		return fmt.Errorf("depth %q is unknown", printable(string(e.Depth), maxKey))
	}
	if !known(e.Decoy) {
		return fmt.Errorf("decoy %q is not placed", printable(e.Decoy, maxKey))
	}
	if len(e.Session) == 0 || len(e.Session) > maxSession || strings.ContainsFunc(e.Session, notHex) {
		return fmt.Errorf("session %q is not a hexadecimal number", printable(e.Session, maxSession))
	}
	if !e.Flow.Source.IsValid() || !e.Flow.Destination.IsValid() {
		return fmt.Errorf("flow has no addresses")
	}
	if len(e.Detail) > maxDetails {
		return fmt.Errorf("detail has %d keys and not %d at most", len(e.Detail), maxDetails)
	}
	detail := make(map[string]string, len(e.Detail))
	for k, v := range e.Detail {
		detail[printable(k, maxKey)] = bounded(v, maxValue)
	}
	if len(detail) == 0 {
		detail = nil
	}
	// The zone of a link-local address names a link of the decoys' namespace,
	// which means nothing outside.
	e.Flow = bocage.Flow{
		Source: e.Flow.Source.WithZone(""), SourcePort: e.Flow.SourcePort,
		Destination: e.Flow.Destination.WithZone(""), DestinationPort: e.Flow.DestinationPort,
		Protocol: bocage.ProtocolTCP,
	}
	e.Detail, e.Source, e.Destination = detail, 0, 0
	if d := now.Sub(e.Time); d < -time.Minute || d > time.Minute {
		e.Time = now
	}
	e.Time = e.Time.UTC()
	return nil
}

func notHex(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) }

// printable writes text from an attacker such that a terminal, a log and a
// person can take it, and the bytes can be had back: what is not printable, and
// the backslash, is escaped as in a Go string. The result has at most limit
// bytes; "…" at the end says that more came.
func printable(text string, limit int) string {
	const more = "…"
	var b strings.Builder
	whole := 0 // bytes of b after which more would still fit
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		piece := text[:size]
		switch {
		case r == utf8.RuneError && size == 1:
			piece = fmt.Sprintf(`\x%02x`, text[0])
		case r == '\\' || !unicode.IsPrint(r):
			piece = strings.Trim(strconv.QuoteRune(r), "'")
		}
		if b.Len()+len(piece) > limit {
			return b.String()[:whole] + more
		}
		b.WriteString(piece)
		if b.Len()+len(more) <= limit {
			whole = b.Len()
		}
		text = text[size:]
	}
	return b.String()
}

// bounded is printable for text that should be so already: escapes in it stay
// as they are.
func bounded(text string, limit int) string {
	if len(text) <= limit && utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return text
	}
	return printable(text, limit)
}

// covers says whether a placement stands in for an address, and how precisely:
// the more bits the better, 0 for any address, -1 for not at all.
func covers(p bocage.DecoyPlacement, address netip.Addr) int {
	if len(p.For) == 0 {
		return 0
	}
	best := -1
	for _, prefix := range p.For {
		if prefix.Contains(address) {
			best = max(best, 1+prefix.Bits())
		}
	}
	return best
}
