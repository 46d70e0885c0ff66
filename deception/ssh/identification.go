package ssh

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
)

// maxIdentification is how many bytes of a line OpenSSH reads before it calls
// the line too long (SSH_MAX_BANNER_LEN).
const maxIdentification = 8192

// Answers to an identification that will not do, as sshd gives them before any
// packet. An empty one is a connection closed in silence.
const (
	sayInvalid  = "Invalid SSH identification string."
	sayMismatch = "Protocol major versions differ."
)

// refusedIdentification is why a client's first line ends the connection.
type refusedIdentification struct {
	say string
}

func (e refusedIdentification) Error() string {
	return "client identification refused: " + e.say
}

// identify exchanges identifications, as kex_exchange_identification of OpenSSH
// does: ours is sent first, and nothing but theirs is taken.
func (c *session) identify() error {
	if _, err := io.WriteString(c.conn, c.server.banner+"\r\n"); err != nil {
		return fmt.Errorf("send identification: %w", err)
	}
	line, err := readIdentification(c.wire.r)
	c.clientID = line
	if err == nil {
		err = checkIdentification(line)
	}
	if refused, ok := errors.AsType[refusedIdentification](err); ok {
		c.decline(refused.say)
	}
	return err
}

// decline says a last sentence. sshd writes it and its end apart, so the end is
// lost when the client said more than was read.
func (c *session) decline(sentence string) {
	if sentence == "" {
		return
	}
	io.WriteString(c.conn, sentence)
	io.WriteString(c.conn, "\r\n")
}

// readIdentification reads the client's first line, without its end. With an
// error, what was read so far comes along.
func readIdentification(r io.ByteReader) (string, error) {
	var line []byte
	for ended := false; ; {
		b, err := r.ReadByte()
		if err != nil {
			return string(line), fmt.Errorf("read identification: %w", err)
		}
		switch {
		case b == '\r':
			ended = true
			continue
		case b == '\n':
			return string(line), nil
		case b == 0 || ended:
			return string(line), refusedIdentification{sayInvalid}
		}
		if line = append(line, b); len(line) > maxIdentification {
			return string(line), refusedIdentification{sayInvalid}
		}
	}
}

// checkIdentification says what sshd thinks of a client's identification.
func checkIdentification(line string) error {
	major, minor, software, ok := scanIdentification(line)
	switch {
	case !ok:
		return refusedIdentification{sayInvalid}
	case major == 1 && minor == 99, major == 2:
	default:
		return refusedIdentification{sayMismatch}
	}
	// Two scanners that compat.c knows, and drops without a word.
	for _, pattern := range []string{"Probe-*", "*SSH_Version_Mapper*"} {
		if match, _ := path.Match(pattern, strings.ReplaceAll(software, "/", "_")); match {
			return refusedIdentification{}
		}
	}
	return nil
}

// scanIdentification is sscanf(line, "SSH-%d.%d-%[^\n]"): numbers may have
// blanks and a sign before them, and something has to follow the second dash.
func scanIdentification(line string) (major, minor int64, software string, ok bool) {
	if len(line) <= 4 || !strings.HasPrefix(line, "SSH-") {
		return 0, 0, "", false
	}
	major, rest, ok := scanNumber(line[4:])
	if !ok || !strings.HasPrefix(rest, ".") {
		return 0, 0, "", false
	}
	minor, rest, ok = scanNumber(rest[1:])
	if !ok || len(rest) < 2 || rest[0] != '-' {
		return 0, 0, "", false
	}
	return major, minor, rest[1:], true
}

func scanNumber(s string) (n int64, rest string, ok bool) {
	s = strings.TrimLeft(s, " \t\n\v\f\r")
	end := 0
	if end < len(s) && (s[end] == '+' || s[end] == '-') {
		end++
	}
	first := end
	for end < len(s) && '0' <= s[end] && s[end] <= '9' {
		end++
	}
	if end == first {
		return 0, "", false
	}
	n, _ = strconv.ParseInt(s[:end], 10, 64)
	return int64(int32(n)), s[end:], true // %d keeps 32 bits
}
