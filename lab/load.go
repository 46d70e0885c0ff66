package lab

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Load is what the client has seen since it was started. Two readings tell what
// happened between them.
type Load struct {
	// Offered counts the requests that were due. Each is OK, failed, late (its
	// connection was still busy with the one before) or under way.
	Offered uint64 `json:"offered"`
	OK      uint64 `json:"ok"`
	Failed  uint64 `json:"failed"`
	Late    uint64 `json:"late"`
	// FromDB and FromCache count the answers by where they came from.
	FromDB    uint64 `json:"fromDB"`
	FromCache uint64 `json:"fromCache"`
	// Opened counts connections. They are kept, so that after the first of each
	// worker every further one stands for one that was lost.
	Opened uint64 `json:"opened"`
	// Resets counts connections that the other side, or somebody in its name,
	// reset.
	Resets uint64 `json:"resets"`
	// Lost counts packets that were lost on the way to the shop.
	Lost uint64 `json:"lost"`
	// SlowestMicroseconds is the longest that any answer took.
	SlowestMicroseconds uint64 `json:"slowestMicroseconds"`
	// TotalMicroseconds is the time of all answers together.
	TotalMicroseconds uint64 `json:"totalMicroseconds"`
	// LastError says why the last failed request failed.
	LastError string `json:"lastError,omitempty"`
}

// Since returns what happened between an earlier reading and this one.
// SlowestMicroseconds and LastError stay those of the whole time.
func (l Load) Since(earlier Load) Load {
	l.Offered -= earlier.Offered
	l.OK -= earlier.OK
	l.Failed -= earlier.Failed
	l.Late -= earlier.Late
	l.FromDB -= earlier.FromDB
	l.FromCache -= earlier.FromCache
	l.Opened -= earlier.Opened
	l.Resets -= earlier.Resets
	l.Lost -= min(l.Lost, earlier.Lost) // a late report of a needless repetition lowers it
	l.TotalMicroseconds -= earlier.TotalMicroseconds
	return l
}

// loadWorkers is how many connections the client keeps.
const loadWorkers = 4

// loadPatience is how long the client waits for an answer.
const loadPatience = 2 * time.Second

// ServeLoad is the client workload, run as "bocage lab-load" in its namespace
// until the context ends: a steady rate of requests over a few connections that
// are kept. Whoever connects to the socket is told the [Load] so far, as JSON.
func ServeLoad(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("lab-load", flag.ContinueOnError)
	target := flags.String("target", "", "URL of the shop")
	rate := flags.Int("rate", 50, "requests per second")
	stats := flags.String("stats", "", "path of the socket that tells what was seen")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *rate < 1 {
		return fmt.Errorf("load: a rate of %d requests per second", *rate)
	}
	told, err := net.Listen("unix", *stats)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer told.Close()
	if err := dropPrivilege(); err != nil {
		return err
	}
	load := &loader{target: *target, connections: map[*countedConn]struct{}{}}
	var working sync.WaitGroup
	for range loadWorkers {
		working.Go(func() { load.work(ctx, time.Second*loadWorkers/time.Duration(*rate)) })
	}
	stop := context.AfterFunc(ctx, func() { told.Close() })
	defer stop()
	err = load.tell(told)
	working.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("load: %w", err)
}

// loader makes the requests and counts.
type loader struct {
	target string

	mu          sync.Mutex // guards what follows
	seen        Load
	connections map[*countedConn]struct{}
}

// tell writes the numbers to everyone who connects.
func (l *loader) tell(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		conn.SetDeadline(time.Now().Add(time.Second))
		json.NewEncoder(conn).Encode(l.now()) // whoever left early does not want it
		conn.Close()
	}
}

// now returns the numbers, with the losses of open connections.
func (l *loader) now() Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := l.seen
	for c := range l.connections {
		seen.Lost += lostSegments(c.TCPConn)
	}
	return seen
}

func (l *loader) count(change func(*Load)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.seen)
}

// work makes one request per interval over a connection of its own.
func (l *loader) work(ctx context.Context, interval time.Duration) {
	transport := &http.Transport{DialContext: l.dial, MaxConnsPerHost: 1, MaxIdleConnsPerHost: 1, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: loadPatience}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	begun, due := time.Now(), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		// A ticker drops what nobody waits for: those requests were due, too.
		if now := uint64(time.Since(begun) / interval); now > due+1 {
			l.count(func(s *Load) { s.Offered += now - due - 1; s.Late += now - due - 1 })
			due = now
		} else {
			due++
		}
		l.request(ctx, client)
	}
}

// request makes one request and counts it.
func (l *loader) request(ctx context.Context, client *http.Client) {
	l.count(func(s *Load) { s.Offered++ })
	begun := time.Now()
	source, err := fetch(ctx, client, l.target)
	took := uint64(time.Since(begun).Microseconds())
	l.count(func(s *Load) {
		if err != nil {
			s.Failed++
			s.LastError = err.Error()
			return
		}
		s.OK++
		s.TotalMicroseconds += took
		s.SlowestMicroseconds = max(s.SlowestMicroseconds, took)
		switch source {
		case "db":
			s.FromDB++
		case "cache":
			s.FromCache++
		}
	})
}

// fetch asks for a product, or in one of eight cases searches, and says where
// the answer came from.
func fetch(ctx context.Context, client *http.Client, target string) (source string, err error) {
	path := "/products/" + strconv.Itoa(1+rand.IntN(50))
	if rand.IntN(8) == 0 {
		path = "/search?q=" + strconv.Itoa(rand.IntN(products))
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target+path, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", path, response.Status)
	}
	var p Product
	if json.Unmarshal(body, &p) == nil {
		return p.Source, nil
	}
	return "db", nil // a list: searches are the database's
}

// dial opens a connection that counts.
func (l *loader) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &countedConn{TCPConn: conn.(*net.TCPConn), loader: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen.Opened++
	l.connections[c] = struct{}{}
	return c, nil
}

// countedConn counts its resets and losses.
type countedConn struct {
	*net.TCPConn
	loader *loader
	reset  sync.Once
	closed sync.Once
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.note(err)
	return n, err
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.note(err)
	return n, err
}

func (c *countedConn) note(err error) {
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNABORTED) {
		c.reset.Do(func() { c.loader.count(func(s *Load) { s.Resets++ }) })
	}
}

func (c *countedConn) Close() error {
	c.closed.Do(func() {
		lost := lostSegments(c.TCPConn)
		c.loader.mu.Lock()
		defer c.loader.mu.Unlock()
		c.loader.seen.Lost += lost
		delete(c.loader.connections, c)
	})
	return c.TCPConn.Close()
}

// lostSegments asks the kernel how many segments that a connection sent were
// lost: those sent again, without those that the other side says it had already
// (the kernel repeats the last one early, to be safe).
func lostSegments(conn *net.TCPConn) uint64 {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	var lost uint64
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && info.Total_retrans > info.Dsack_dups {
			lost = uint64(info.Total_retrans - info.Dsack_dups)
		}
	})
	return lost
}

// Load asks the client what it has seen so far.
func (l *Lab) Load() (Load, error) {
	var seen Load
	conn, err := net.DialTimeout("unix", l.statsSocket(), time.Second)
	if err != nil {
		return seen, fmt.Errorf("ask the client of lab %s: %w", l.config.Prefix, err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	if err := json.NewDecoder(conn).Decode(&seen); err != nil {
		return seen, fmt.Errorf("ask the client of lab %s: %w", l.config.Prefix, err)
	}
	return seen, nil
}
