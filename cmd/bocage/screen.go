package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// screen shows what would move a terminal's cursor, colour it or turn the direction
// of what follows, instead of having the terminal do so: texts that come from
// declarations and from the network are anybody's. What it writes for such a
// character JSON reads as the same character; YAML it leaves as it is, which would not.
type screen struct {
	to  io.Writer
	env *env

	mu   sync.Mutex // answers and warnings come from several at once
	held []byte     // the beginning of a character
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.env.output == "yaml" {
		return s.to.Write(p)
	}
	text := append(s.held, p...)
	s.held = nil
	shown := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && size == 1 && !utf8.FullRune(text):
			s.held = append([]byte{}, text...)
			size = len(text)
		case r != '\n' && r != '\t' && moves(r):
			shown = fmt.Appendf(shown, `\u%04x`, r)
		default:
			shown = append(shown, text[:size]...)
		}
		text = text[size:]
	}
	if _, err := s.to.Write(shown); err != nil {
		return 0, err
	}
	return len(p), nil
}

// end writes what was held back.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) > 0 {
		_, _ = s.to.Write(s.held)
		s.held = nil
	}
}

// moves reports whether a character does something to a terminal.
func moves(r rune) bool {
	return unicode.Is(unicode.Cc, r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029'
}

// oneLine is a text that stays in its line and its column.
func oneLine(text string) string { return lineEnds.Replace(text) }

var lineEnds = strings.NewReplacer("\n", `\n`, "\r", `\r`, "\t", `\t`, "\v", `\v`, "\f", `\f`)
