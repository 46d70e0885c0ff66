package lab

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// resp speaks to Redis (its protocol is called RESP): two commands over one
// connection that is kept, and opened again when it broke.
type resp struct {
	address string

	mu   sync.Mutex // guards what follows: one exchange at a time
	conn net.Conn
	read *bufio.Reader
}

// respPatience is how long one exchange may take.
const respPatience = 2 * time.Second

// largestReply bounds what a server may make us read, in bytes.
const largestReply = 1 << 20

func newRESP(address string) *resp { return &resp{address: address} }

// Get returns a key's value and whether there is one.
func (r *resp) Get(key string) (value []byte, found bool, err error) {
	return r.do("GET", key)
}

// Set gives a key a value for some time.
func (r *resp) Set(key string, value []byte, ttl time.Duration) error {
	_, _, err := r.do("SET", key, string(value), "PX", strconv.FormatInt(ttl.Milliseconds(), 10))
	return err
}

// Close ends the connection.
func (r *resp) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return nil
	}
	return r.conn.Close()
}

// do sends one command and reads its reply. After an error the connection is
// given up, since nobody knows what comes next on it.
func (r *resp) do(command ...string) (value []byte, found bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		if r.conn, err = net.DialTimeout("tcp", r.address, respPatience); err != nil {
			r.conn = nil
			return nil, false, err
		}
		r.read = bufio.NewReader(r.conn)
	}
	defer func() {
		if err != nil {
			r.conn.Close()
			r.conn = nil
		}
	}()
	if err := r.conn.SetDeadline(time.Now().Add(respPatience)); err != nil {
		return nil, false, err
	}
	if _, err := io.WriteString(r.conn, encodeRESP(command)); err != nil {
		return nil, false, err
	}
	return decodeRESP(r.read)
}

// encodeRESP writes a command as an array of bulk strings.
func encodeRESP(command []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(command))
	for _, word := range command {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(word), word)
	}
	return b.String()
}

// decodeRESP reads a reply that is a string, a number, nothing or an error.
func decodeRESP(from *bufio.Reader) (value []byte, found bool, err error) {
	line, err := from.ReadSlice('\n') // at most the reader's buffer
	if err != nil {
		return nil, false, err
	}
	text := strings.TrimSuffix(string(line), "\r\n")
	if text == "" {
		return nil, false, fmt.Errorf("empty reply: %w", io.ErrUnexpectedEOF)
	}
	switch text[0] {
	case '+', ':':
		return []byte(text[1:]), true, nil
	case '-':
		return nil, false, fmt.Errorf("refused: %s", text[1:])
	case '$':
		size, err := strconv.Atoi(text[1:])
		if err != nil || size > largestReply || size < -1 {
			return nil, false, fmt.Errorf("reply of length %q", text[1:])
		}
		if size == -1 {
			return nil, false, nil
		}
		value = make([]byte, size+2)
		if _, err := io.ReadFull(from, value); err != nil {
			return nil, false, err
		}
		if string(value[size:]) != "\r\n" {
			return nil, false, fmt.Errorf("a reply of %d bytes does not end there", size)
		}
		return value[:size], true, nil
	default:
		return nil, false, fmt.Errorf("reply of unknown kind %q", text[0])
	}
}
