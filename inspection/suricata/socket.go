package suricata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// protocolVersion is that of the engine's command socket (Suricata user guide,
// "Interacting via Unix Socket").
const protocolVersion = "0.2"

// maxAnswer bounds what the engine may answer: dump-counters, the longest, has
// 20 kB.
const maxAnswer = 4 << 20

// errUnreachable means that nobody answers on the command socket.
var errUnreachable = errors.New("the engine's command socket does not answer")

// commander gives the engine commands over its unix socket, one at a time.
type commander struct {
	conn    net.Conn
	answers *json.Decoder
	limit   *io.LimitedReader
}

// dial connects and greets.
func dial(ctx context.Context, path string, patience time.Duration) (*commander, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	limit := &io.LimitedReader{R: conn}
	c := &commander{conn: conn, answers: json.NewDecoder(limit), limit: limit}
	if _, err := c.ask(map[string]string{"version": protocolVersion}, patience); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet the engine: %w", err)
	}
	return c, nil
}

func (c *commander) close() { c.conn.Close() }

type command struct {
	Name      string `json:"command"`
	Arguments any    `json:"arguments,omitempty"`
}

// run gives one command and returns the engine's message.
func (c *commander) run(name string, arguments any, patience time.Duration) (json.RawMessage, error) {
	message, err := c.ask(command{name, arguments}, patience)
	if err != nil {
		return nil, fmt.Errorf("engine command %s: %w", name, err)
	}
	return message, nil
}

func (c *commander) ask(question any, patience time.Duration) (json.RawMessage, error) {
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	data, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	if _, err := c.conn.Write(append(data, '\n')); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	var answer struct {
		Return  string          `json:"return"`
		Message json.RawMessage `json:"message"`
	}
	c.limit.N = maxAnswer
	if err := c.answers.Decode(&answer); err != nil { // answers may come in pieces
		return nil, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	if answer.Return != "OK" {
		return nil, fmt.Errorf("the engine answers %q: %s", answer.Return, shorten(string(answer.Message)))
	}
	return answer.Message, nil
}

// The arguments of the tenant commands.
type (
	tenantFile struct {
		ID   uint16 `json:"id"`
		File string `json:"filename"`
	}
	tenantID struct {
		ID uint16 `json:"id"`
	}
	tenantHandler struct {
		ID   uint16 `json:"id"`
		Type string `json:"htype"`
		VLAN uint16 `json:"hargs"`
	}
)

// tenantCount is one entry of the answer to ruleset-stats.
type tenantCount struct {
	ID     int `json:"id"`
	Loaded int `json:"rules_loaded"`
	Failed int `json:"rules_failed"`
}
