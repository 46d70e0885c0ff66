package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bocage.dev/bocage/host"
)

// mostOutput bounds what is kept of a command's output or an answer's body, in
// bytes.
const mostOutput = 1 << 20

// Run runs a command inside a workload, as somebody would who broke into it,
// and returns what it printed. The command and its children end with ctx.
func (l *Lab) Run(ctx context.Context, workload string, argv ...string) (string, error) {
	path, err := program(argv[0])
	if err != nil {
		return "", err
	}
	out := capped{left: mostOutput}
	cmd := exec.CommandContext(ctx, path, argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := host.Start(l.Namespace(workload), cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s on %s: %w: %s", strings.Join(argv, " "), workload, err, lastOf(out.String(), 500))
	}
	return out.String(), nil
}

// capped keeps the first so many bytes and drops the rest.
type capped struct {
	bytes.Buffer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	keep := min(len(p), c.left)
	c.left -= keep
	c.Buffer.Write(p[:keep])
	return len(p), nil
}

func lastOf(text string, most int) string {
	text = strings.TrimSpace(text)
	return text[max(0, len(text)-most):]
}

// Dial opens a connection from inside a workload to an address and port.
func (l *Lab) Dial(ctx context.Context, from, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := host.In(l.Namespace(from), func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on a port of a workload's own address.
func (l *Lab) Listen(workload string, port uint16) (net.Listener, error) {
	var listener net.Listener
	err := host.In(l.Namespace(workload), func() (err error) {
		listener, err = net.Listen("tcp", l.at(workload, int(port)))
		return err
	})
	return listener, err
}

// destination is where a workload's name, or an address, is reached.
func (l *Lab) destination(to string, port uint16) string {
	if _, err := netip.ParseAddr(to); err == nil {
		return net.JoinHostPort(to, strconv.Itoa(int(port)))
	}
	return l.at(to, int(port))
}

// Connects says whether a TCP connection opens within a time, from a workload
// to another one or to an address. An error is something else than being
// refused or not being answered.
func (l *Lab) Connects(ctx context.Context, from, to string, port uint16, within time.Duration) (bool, error) {
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := l.Dial(limited, from, "tcp", l.destination(to, port))
	if err == nil {
		return true, conn.Close()
	}
	timeout, isTimeout := errors.AsType[net.Error](err)
	switch {
	case ctx.Err() != nil:
		return false, ctx.Err()
	case isTimeout && timeout.Timeout(), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ECONNRESET):
		return false, nil
	}
	return false, err
}

// Response is an answer over HTTP.
type Response struct {
	Status int
	Body   string
}

func (r Response) String() string {
	return fmt.Sprintf("%d %s, %d bytes", r.Status, http.StatusText(r.Status), len(r.Body))
}

// answerDeadline is how long a single request of ours waits.
const answerDeadline = 3 * time.Second

// Get makes one HTTP request from inside a workload over a connection of its
// own. Any answer is a success, whatever its status.
func (l *Lab) Get(ctx context.Context, from, to string, port uint16, path string, header map[string]string) (Response, error) {
	ctx, cancel := context.WithTimeout(ctx, answerDeadline)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.destination(to, port)+path, nil)
	if err != nil {
		return Response{}, err
	}
	for name, value := range header {
		request.Header.Set(name, value)
	}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return l.Dial(ctx, from, network, address)
		}}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return Response{}, fmt.Errorf("request from %s to %s: %w", from, to, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, mostOutput))
	if err != nil {
		return Response{}, fmt.Errorf("request from %s to %s: %w", from, to, err)
	}
	return Response{response.StatusCode, string(body)}, nil
}

// Check sends a request from the client through web to api, which writes a
// fresh word to db and to cache and reads it back: proof that the whole shop
// works.
func (l *Lab) Check(ctx context.Context) (Evidence, error) {
	return l.check(ctx, "users/client", "shop/web", WebPort)
}

// Query is [Lab.Check] without web: the api workload asks itself, so that what
// is proved are its own paths to db and to cache.
func (l *Lab) Query(ctx context.Context, api string) error {
	_, err := l.check(ctx, api, api, APIPort)
	return err
}

func (l *Lab) check(ctx context.Context, from, to string, port uint16) (Evidence, error) {
	nonce := rand.Text()
	response, err := l.Get(ctx, from, to, port, "/check?nonce="+nonce, nil)
	if err != nil {
		return Evidence{}, err
	}
	var e Evidence
	if err := json.Unmarshal([]byte(response.Body), &e); err != nil || response.Status != http.StatusOK {
		return e, fmt.Errorf("check the shop from %s: %s: %s", from, response, lastOf(response.Body, 200))
	}
	if e.Nonce != nonce || e.DB != nonce || e.Cache != nonce {
		return e, fmt.Errorf("check the shop from %s: wrote %s, db says %q, cache says %q", from, nonce, e.DB, e.Cache)
	}
	return e, nil
}

// Held is a connection that is kept open to see whether it is cut.
type Held struct {
	conn net.Conn
	talk talk
}

// Hold opens a connection to one of the shop's servers and lets it answer once.
func (l *Lab) Hold(ctx context.Context, from, to string, port uint16) (*Held, error) {
	talk, err := talkOn(port)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerDeadline)
	defer cancel()
	conn, err := l.Dial(ctx, from, "tcp", l.destination(to, port))
	if err != nil {
		return nil, fmt.Errorf("hold a connection from %s to %s: %w", from, to, err)
	}
	h := &Held{conn, talk}
	if err := h.ask(ctx, answerDeadline); err != nil {
		conn.Close()
		return nil, fmt.Errorf("hold a connection from %s to %s: %w", from, to, err)
	}
	return h, nil
}

// Alive says whether the connection still carries a question and its answer.
func (h *Held) Alive(ctx context.Context, within time.Duration) bool {
	return h.ask(ctx, within) == nil
}

func (h *Held) ask(ctx context.Context, within time.Duration) error {
	stop := context.AfterFunc(ctx, func() { h.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := h.conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := io.WriteString(h.conn, h.talk.question); err != nil {
		return err
	}
	return h.talk.answers(h.conn)()
}

// Close ends the connection.
func (h *Held) Close() error {
	// Reset rather than linger: if the other side is cut off, nobody would answer.
	h.conn.(*net.TCPConn).SetLinger(0)
	return h.conn.Close()
}

// interrupted says whether an error is a connection being reset or cut.
func interrupted(err error) bool {
	return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, io.EOF)
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
