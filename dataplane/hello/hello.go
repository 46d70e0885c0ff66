// Package hello reads what clients of TLS say before anything is encrypted, their
// ClientHello (RFC 8446, 4.1.2): whom they ask for, and which protocols they speak
// inside.
//
// It promises to be pure and total, to need no order of the pieces that the message
// comes in, and to say so where two copies of the same bytes differ: then nobody
// knows which the server took. It never looks at what comes behind the message.
package hello

import (
	"fmt"
	"slices"
	"strings"

	"bocage.dev/bocage"
)

// Hello is what a ClientHello says.
type Hello struct {
	// ServerName is whom the client asks for; empty if it does not say.
	ServerName string
	// ALPN lists the protocols that it offers to speak inside, best first.
	ALPN []string
	// Hidden says that the client encrypted whom it truly asks for (Encrypted Client
	// Hello): ServerName is then only who may decrypt it. Or it pretends to, as
	// browsers do where a server has published no key.
	Hidden bool
}

// Answer is what a reading says of a beginning.
type Answer uint8

// Answers.
const (
	No Answer = iota // no ClientHello
	More
	Yes
)

// MostBytes bounds a message: what is longer is no ClientHello.
const MostBytes = 32 << 10

// Numbers of TLS.
const (
	recordHandshake = 22
	recordMost      = 1 << 14
	typeClientHello = 1

	extensionServerName = 0
	extensionALPN       = 16
	extensionECH        = 0xfe0d
)

// Parse reads the beginning of a stream. An answer from a prefix stays true of every
// longer one.
func Parse(stream []byte) (Hello, Answer) {
	var message []byte
	for rest := stream; ; {
		if len(rest) > 0 && rest[0] != recordHandshake || len(rest) > 1 && rest[1] != 3 {
			return Hello{}, No
		}
		if len(rest) < 5 {
			return Hello{}, More
		}
		size := int(rest[3])<<8 | int(rest[4])
		if size == 0 || size > recordMost {
			return Hello{}, No
		}
		rest = rest[5:]
		fragment := rest[:min(size, len(rest))]
		message = append(message, fragment...)
		whole := len(fragment) == size
		if len(message) > 0 && message[0] != typeClientHello {
			return Hello{}, No
		}
		if len(message) >= 4 {
			length := int(message[1])<<16 | int(message[2])<<8 | int(message[3])
			if length > MostBytes {
				return Hello{}, No
			}
			if len(message) >= 4+length {
				return read(message[4 : 4+length])
			}
		}
		if !whole {
			return Hello{}, More
		}
		rest = rest[size:]
	}
}

// reader takes a message apart; what is missing makes it fail for good.
type reader struct {
	left   []byte
	failed bool
}

func (r *reader) take(n int) []byte {
	if r.failed || n > len(r.left) {
		r.failed = true
		return nil
	}
	taken := r.left[:n]
	r.left = r.left[n:]
	return taken
}

func (r *reader) number(bytes int) (n int) {
	for _, b := range r.take(bytes) {
		n = n<<8 | int(b)
	}
	return n
}

// vector takes a length of so many bytes, and what is that long.
func (r *reader) vector(bytes int) reader {
	inner := r.take(r.number(bytes))
	return reader{left: inner, failed: r.failed}
}

func (r *reader) ended() bool { return !r.failed && len(r.left) == 0 }

func read(message []byte) (Hello, Answer) {
	r := reader{left: message}
	version := r.number(2)
	r.take(32) // random
	session, suites, compressions := r.vector(1), r.vector(2), r.vector(1)
	if r.failed || version>>8 != 3 || len(session.left) > 32 || len(suites.left) < 2 || len(suites.left)%2 != 0 || len(compressions.left) < 1 {
		return Hello{}, No
	}
	if r.ended() {
		return Hello{}, Yes // as clients were before there were extensions
	}
	extensions := r.vector(2)
	if !r.ended() {
		return Hello{}, No
	}
	var h Hello
	var seen []int
	for !extensions.ended() {
		kind, body := extensions.number(2), extensions.vector(2)
		if extensions.failed || slices.Contains(seen, kind) {
			return Hello{}, No
		}
		seen = append(seen, kind)
		good := true
		switch kind {
		case extensionServerName:
			h.ServerName, good = serverName(body)
		case extensionALPN:
			h.ALPN, good = alpn(body)
		case extensionECH:
			h.Hidden = true
		}
		if !good {
			return Hello{}, No
		}
	}
	return h, Yes
}

// serverName reads RFC 6066, 3: a list of names, of which one kind was ever defined.
func serverName(body reader) (string, bool) {
	list := body.vector(2)
	if !body.ended() {
		return "", false
	}
	found := ""
	for !list.ended() {
		kind, name := list.number(1), list.vector(2)
		if list.failed || len(name.left) == 0 {
			return "", false
		}
		if kind == 0 {
			if found != "" {
				return "", false
			}
			found = strings.ToLower(strings.TrimSuffix(printed(name.left, bocage.LongestServerName), "."))
		}
	}
	return found, true
}

// alpn reads RFC 7301, 3.1. What is there to be ignored (RFC 8701) is.
func alpn(body reader) ([]string, bool) {
	list := body.vector(2)
	if !body.ended() || len(list.left) == 0 {
		return nil, false
	}
	var offered []string
	for !list.ended() {
		name := list.vector(1)
		if list.failed || len(name.left) == 0 {
			return nil, false
		}
		grease := len(name.left) == 2 && name.left[0] == name.left[1] && name.left[0]&0x0f == 0x0a
		if !grease && len(offered) < bocage.MostALPN {
			offered = append(offered, printed(name.left, bocage.LongestALPN))
		}
	}
	return offered, true
}

// printed is text that is safe to show: what is not printable ASCII is escaped, and
// what is too long is cut.
func printed(b []byte, most int) string {
	var s strings.Builder
	for _, c := range b {
		one := string(rune(c))
		if c <= ' ' || c > '~' || c == '\\' || c == '"' {
			one = fmt.Sprintf(`\x%02x`, c)
		}
		if s.Len()+len(one) > most {
			break
		}
		s.WriteString(one)
	}
	return s.String()
}
