// Package lake keeps the history of events in Parquet files and answers
// questions to it in SQL.
//
// Every record of the log lands exactly once, whatever is killed when: segments
// are named by the first and last message that they hold, a restart resumes after
// the newest name, and there is no other checkpoint. While the disk is full
// nothing is lost, since the log keeps what has not landed. Files are plain
// Parquet with zstd, one class of event (OCSF 1.x names where it has them) and one
// hour of event time to a folder, so that other engines read them too:
//
//	class=network_activity/day=20260301/hour=09/FIRST-LAST.parquet
//
// Questions run in a child process, which holds DuckDB: read-only, within a
// folder, with a limit of memory, threads, rows and time. A crash or a hostile
// question ends the child and nothing else. The package never changes what
// landed, but for merging small segments into larger ones and removing the oldest.
package lake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"bocage.dev/bocage"
)

// Config says where the lake is and what bounds it. Dir is needed.
type Config struct {
	Dir string
	// QueryProgram is the argv of the child that answers questions: it must call
	// ServeQuery with its standard input and output. Without it there are no answers.
	QueryProgram []string
	// Name returns a workload's namespace/name, or nothing. Names land with the
	// records, since identities mean little to people later.
	Name   func(bocage.Identity) string
	Logger *slog.Logger

	// FlushEvery is how long a record waits at most before it lands: 2 s.
	FlushEvery time.Duration
	// FlushRecords is how many records wait at most: 100,000.
	FlushRecords int
	// MaxAge and MaxBytes bound what is kept: 30 days, 10 GiB. The oldest go first.
	MaxAge   time.Duration
	MaxBytes int64
	// MinFree is how much of the disk landing leaves to others: 256 MiB.
	MinFree int64
	// QueryMemory bounds a question's memory in bytes: 512 MiB.
	QueryMemory int64
	// QueryTime bounds its time: 30 s.
	QueryTime time.Duration
	// QueryThreads bounds its processors: 2.
	QueryThreads int

	tidyEvery time.Duration // 10 s
}

func (c Config) complete() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("the lake needs a folder")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return c, err
	}
	c.Dir = dir
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&c.FlushEvery, 2 * time.Second}, {&c.MaxAge, 30 * 24 * time.Hour}, {&c.QueryTime, 30 * time.Second},
		{&c.tidyEvery, 10 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	for _, n := range []struct {
		field *int64
		value int64
	}{{&c.MaxBytes, 10 << 30}, {&c.MinFree, 256 << 20}, {&c.QueryMemory, 512 << 20}} {
		if *n.field == 0 {
			*n.field = n.value
		}
	}
	if c.FlushRecords == 0 {
		c.FlushRecords = 100_000
	}
	if c.QueryThreads == 0 {
		c.QueryThreads = 2
	}
	if c.Name == nil {
		c.Name = func(bocage.Identity) string { return "" }
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.FlushEvery < 0 || c.MaxAge < 0 || c.MaxBytes < 0 || c.QueryTime < 0 || c.QueryMemory < 16<<20 || c.QueryThreads < 0 || c.FlushRecords < 0 {
		return c, errors.New("limits of the lake cannot be negative, and a question needs 16 MiB at least")
	}
	return c, nil
}

// Lake is one folder of history. One process at a time has it open.
type Lake struct {
	cfg     Config
	lock    *os.File
	asking  chan struct{} // one token for each question that may run
	flushes chan flushRequest
	counts  counts

	mu       sync.Mutex // guards all below
	closed   bool
	landing  bool
	segments map[string][]segment // by partition, sorted
	position uint64               // the last message in a segment
	passed   uint64               // the last message that need not be read again by this process
	base     uint64               // added to the log's sequences, see state
	fault    error                // why landing waits, if it does
	pins     map[int]bool         // snapshots that questions are reading
	nextPin  int
	doomed   []doomedFile // merged into others, but perhaps being read
}

// doomedFile may go when every question that began before it was doomed is over.
type doomedFile struct {
	path   string
	before int
}

const (
	stateFile   = "state.json"
	lockFile    = "lock"
	landingDir  = "landing"
	tempDir     = "temp"
	maxQuestion = 2 // questions that run at once
)

// state survives restarts. A log that was made anew counts from 1 again: Base is
// what its sequences begin at in the names of segments.
type state struct {
	Base uint64 `json:"base"`
}

// Open opens the lake, creating the folder if needed, and finishes or undoes what
// a killed process left.
func Open(cfg Config) (*Lake, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the lake: %w", err)
	}
	l := &Lake{
		cfg: cfg, asking: make(chan struct{}, maxQuestion), flushes: make(chan flushRequest),
		segments: map[string][]segment{}, pins: map[int]bool{},
	}
	if l.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	if err := l.recover(); err != nil {
		_ = l.lock.Close()
		return nil, fmt.Errorf("recover the lake %s: %w", cfg.Dir, err)
	}
	return l, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock the lake: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("the lake %s is open in another process: %w", dir, err)
	}
	return f, nil
}

// Close lets another process open the lake. Land must have returned.
func (l *Lake) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.lock.Close()
}

// Landed is the sequence of the last message of the log whose records are in the
// lake. The log may let go of it and of those before it.
func (l *Lake) Landed() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := max(l.position, l.passed)
	return at - min(at, l.base)
}

// Fault tells why landing waits: nil if it does not.
func (l *Lake) Fault() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault
}

func (l *Lake) setFault(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = err
}

// Edges returns who opened flows to whom since a moment, as far as they were let
// pass: what policy is suggested from. Flows of both of its enforcement points
// count once. Call Flush first to have the last seconds.
func (l *Lake) Edges(ctx context.Context, since time.Time) ([]bocage.Edge, error) {
	var from int64
	if !since.IsZero() {
		from = since.UnixMilli()
	}
	result, err := l.ask(ctx, fmt.Sprintf(edgesSQL, from, from), maxEdges)
	if err != nil {
		return nil, fmt.Errorf("edges since %s: %w", since.Format(time.RFC3339), err)
	}
	if result.Truncated {
		l.cfg.Logger.Warn("more edges than are read at once: the rarest are left out", "edges", maxEdges)
	}
	edges := make([]bocage.Edge, 0, len(result.Rows))
	for _, row := range result.Rows {
		edge, err := edgeOf(row)
		if err != nil {
			return nil, fmt.Errorf("edges: %w", err)
		}
		edges = append(edges, edge)
	}
	return edges, nil
}

const maxEdges = 500_000

// edgesSQL counts each flow at the point before its source and at the point before
// its destination, and takes the larger. An observed refusal is told as such at
// its beginning, with the number of flows that began in a second; its end is told
// as any other's. Flows that go on are told every half a minute.
//
// What was heard is told with the end, with an update, or with what is refused for it.
// A flow that was answered and not listened to may have spoken anything, but for one
// that carried nothing beyond handshakes, as checks of ports do. Where one of the two
// points did not listen, the other's word counts.
//
// A connection over TCP of at most three packets that is closed was refused by its
// destination (SYN, RST), or left before it was one (SYN, SYN and ACK, RST): what scans
// leave behind is no answer.
const edgesSQL = `
WITH told AS (
  SELECT coalesce(nullif(source, ''), source_ip) AS src, coalesce(nullif(destination, ''), destination_ip) AS dst,
         protocol_number AS proto, destination_port AS port, direction, time_ms, event, packets,
         CASE WHEN replied AND NOT (protocol_number = 6 AND closed AND packets <= 3) THEN concat_ws('/', host, interface, source_port, source_ip, destination_ip) END AS answered,
         CASE WHEN spoken <> '' THEN spoken
              WHEN replied AND event IN ('end', 'update') AND NOT (packets <= 12 AND bytes <= 80 * packets) THEN 'unheard' END AS speech
  FROM flows
  WHERE time_ms >= %d AND verdict IN ('allow', 'inspect') AND reason NOT IN ('dark-address', 'control', 'related', 'spoofed')
), counted AS (
  SELECT src, dst, proto, port, direction,
         sum(CASE event WHEN 'start' THEN 1 WHEN 'refused' THEN packets ELSE 0 END) AS begun,
         count(*) FILTER (WHERE event = 'end') AS ended,
         count(*) FILTER (WHERE event = 'update') AS going,
         count(*) FILTER (WHERE event = 'end' AND answered IS NOT NULL) AS answered_ended,
         count(DISTINCT answered) FILTER (WHERE event = 'update') AS answered_going,
         CASE WHEN count(DISTINCT speech) > 1 THEN 'other' ELSE min(speech) END AS speech,
         min(time_ms) AS first, max(time_ms) AS last
  FROM told WHERE src <> '' AND dst <> '' GROUP BY ALL
)
SELECT src, dst, proto, port,
       CAST(max(greatest(begun, ended, least(going, 1))) AS BIGINT) AS flows,
       CAST(max(least(greatest(begun, ended, least(going, 1)), greatest(answered_ended, answered_going))) AS BIGINT) AS replied,
       min(first) AS first, max(last) AS last,
       CASE count(DISTINCT nullif(speech, 'unheard')) WHEN 0 THEN if(count(speech) = 0, '', 'other')
            WHEN 1 THEN min(nullif(speech, 'unheard')) ELSE 'other' END AS spoken
FROM counted GROUP BY src, dst, proto, port HAVING max(last) >= %d
ORDER BY flows DESC, src, dst, proto, port`

// edgeOf reads a row of edgesSQL.
func edgeOf(row []any) (bocage.Edge, error) {
	var numbers [6]int64
	for i, column := range []int{2, 3, 4, 5, 6, 7} {
		n, ok := row[column].(json.Number)
		if !ok {
			return bocage.Edge{}, fmt.Errorf("column %d is %T", column, row[column])
		}
		var err error
		if numbers[i], err = n.Int64(); err != nil {
			return bocage.Edge{}, err
		}
	}
	source, _ := row[0].(string)
	destination, _ := row[1].(string)
	said, _ := row[8].(string)
	var spoken bocage.AppProtocol
	if spoken.UnmarshalText([]byte(said)) != nil {
		spoken = bocage.SpeechOther // of a later version
	}
	return bocage.Edge{
		Source: source, Destination: destination,
		Protocol: bocage.Protocol(numbers[0]), DestinationPort: uint16(numbers[1]),
		Flows: numbers[2], Replied: numbers[3],
		Spoken: spoken,
		First:  time.UnixMilli(numbers[4]).UTC(), Last: time.UnixMilli(numbers[5]).UTC(),
	}, nil
}
