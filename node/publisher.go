package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bocage.dev/bocage"
	"bocage.dev/bocage/stream"
)

// Limits of the publisher. A batch is sealed when it is full or old enough; what
// cannot be sent waits in memory, then on disk, then is counted as lost.
const (
	batchRecords   = 1000
	batchAge       = 20 * time.Millisecond
	queueBatches   = 256
	spoolBytes     = 256 << 20
	openRecords    = 64 * batchRecords
	appendPatience = 5 * time.Second
	// sendTries is how often a batch is tried whose refusal nobody declared to be
	// passing.
	sendTries = 20
)

// publisher turns an agent's events into signed, numbered batches and appends
// them to the log, in order, as long as it takes. offered = sent + waiting + lost.
// Whoever offers waits for no network.
type publisher struct {
	subject string
	spool   spool
	logger  *slog.Logger
	log     atomic.Pointer[stream.Log] // nil until there is a connection

	mu       sync.Mutex // guards all below
	source   string
	sign     func(kind string, payload []byte) ([]byte, error)
	open     []bocage.Batch // the last takes records
	records  int            // in the last of open
	waits    int            // in all of open
	offered  uint64
	lost     map[string]uint64 // since the previous batch
	lostAll  map[string]uint64
	boot     string
	sequence uint64
	previous []byte
	queue    []sealed // older than whatever is in the spool
	wake     chan struct{}
	full     chan struct{}
}

type sealed struct {
	id      string
	data    []byte
	records int
	at      time.Time
}

// newPublisher takes events from now on; they wait until it is run.
func newPublisher(host, dir string, logger *slog.Logger) (*publisher, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the spool of events: %w", err)
	}
	boot := make([]byte, 8)
	if _, err := rand.Read(boot); err != nil {
		return nil, err
	}
	return &publisher{
		subject: "events." + host, logger: logger,
		spool: spool{dir: dir, limit: spoolBytes},
		lost:  map[string]uint64{}, lostAll: map[string]uint64{}, boot: hex.EncodeToString(boot),
		wake: make(chan struct{}, 1), full: make(chan struct{}, 1),
	}, nil
}

// identify says who signs; before Run.
func (p *publisher) identify(source string, sign func(kind string, payload []byte) ([]byte, error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.source, p.sign = source, sign
}

// connect says where batches go from now on.
func (p *publisher) connect(log stream.Log) {
	p.log.Store(&log)
	signal(p.wake)
}

// Flows takes flow events.
func (p *publisher) Flows(events []bocage.FlowEvent) {
	for chunk := range slices.Chunk(events, batchRecords) {
		p.add(len(chunk), func(b *bocage.Batch) {
			for i := range chunk {
				b.Flows, _ = chunk[i].AppendBinary(b.Flows)
			}
		})
	}
}

// Cadences takes the cadences of flows.
func (p *publisher) Cadences(cadences []bocage.Cadence) {
	for chunk := range slices.Chunk(cadences, batchRecords) {
		p.add(len(chunk), func(b *bocage.Batch) {
			for i := range chunk {
				b.Cadences, _ = chunk[i].AppendBinary(b.Cadences)
			}
		})
	}
}

// Greeting takes what a client of TLS asked for.
func (p *publisher) Greeting(g bocage.Greeting) {
	p.add(1, func(b *bocage.Batch) { b.Greetings = append(b.Greetings, g) })
}

// Inspection takes one finding of the inspection engine.
func (p *publisher) Inspection(e bocage.InspectionEvent) {
	p.add(1, func(b *bocage.Batch) { b.Inspections = append(b.Inspections, e) })
}

// Engagement takes one contact with a decoy.
func (p *publisher) Engagement(e bocage.EngagementEvent) {
	p.add(1, func(b *bocage.Batch) { b.Engagements = append(b.Engagements, e) })
}

func (p *publisher) add(n int, put func(*bocage.Batch)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offered += uint64(n)
	if p.waits+n > openRecords {
		p.lose("publisher-full", n)
		return
	}
	if len(p.open) == 0 || p.records+n > batchRecords {
		p.open, p.records = append(p.open, bocage.Batch{}), 0
	}
	put(&p.open[len(p.open)-1])
	p.records += n
	p.waits += n
	if p.records >= batchRecords {
		signal(p.full)
	}
}

// lose counts records that are given up; mu is held.
func (p *publisher) lose(cause string, n int) {
	p.lost[cause] += uint64(n)
	p.lostAll[cause] += uint64(n)
}

// Lose takes word of records that were lost before they came here.
func (p *publisher) Lose(cause string, n uint64) {
	if n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offered += n
	p.lost[cause] += n
	p.lostAll[cause] += n
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run seals and sends until ctx ends; what is still unsent then goes to disk.
func (p *publisher) Run(ctx context.Context) error {
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		p.send(ctx)
	}()
	tick := time.NewTicker(batchAge)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			p.seal()
			<-sending
			return p.toDisk()
		case <-tick.C:
		case <-p.full:
		}
		p.seal()
	}
}

// seal closes the open batches: numbers, chains and signs them. Losses are told
// with the next batch that has records.
func (p *publisher) seal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	open := p.open
	p.open, p.records, p.waits = nil, 0, 0
	for i := range open {
		p.sealOne(&open[i])
	}
	if len(open) > 0 {
		signal(p.wake)
	}
}

func (p *publisher) sealOne(batch *bocage.Batch) {
	records := len(batch.Flows)/bocage.FlowEventSize + len(batch.Cadences)/bocage.CadenceSize + len(batch.Greetings) +
		len(batch.Inspections) + len(batch.Engagements)
	p.sequence++
	batch.Source, batch.Boot, batch.Sequence, batch.Previous = p.source, p.boot, p.sequence, p.previous
	batch.Sent = time.Now().UTC()
	if len(p.lost) > 0 {
		batch.Lost, p.lost = p.lost, map[string]uint64{}
	}
	giveUp := func(doing, cause string, err error) {
		p.logger.Error(doing, "sequence", batch.Sequence, "error", err)
		for cause, n := range batch.Lost {
			p.lost[cause] += n
		}
		p.lose(cause, records)
	}
	payload, err := json.Marshal(batch)
	if err == nil {
		sum := sha256.Sum256(payload)
		p.previous = sum[:]
		payload, err = p.sign(bocage.SignedBatch, payload)
	}
	if err != nil {
		giveUp("seal batch of events", "sealing", err)
		return
	}
	next := sealed{id: fmt.Sprintf("%s-%d", p.boot, batch.Sequence), data: payload, records: records, at: batch.Sent}
	if len(p.queue) < queueBatches && p.spool.empty() {
		p.queue = append(p.queue, next)
	} else if err := p.spool.put(next); err != nil {
		giveUp("spool batch of events", "spool-full", err)
	}
}

// send appends batches oldest first: the queue, then what is spooled. After a
// failure the queue goes to disk, where it outlives a killed process.
func (p *publisher) send(ctx context.Context) {
	backoff, tries := 50*time.Millisecond, 0
	for ctx.Err() == nil {
		log := p.log.Load()
		next, ok, err := p.next()
		if err != nil {
			p.logger.Error("read spooled batch", "error", err)
		}
		if !ok || log == nil {
			select {
			case <-ctx.Done():
			case <-p.wake:
			}
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, appendPatience)
		_, err = (*log).Append(attempt, p.subject, next.id, next.data)
		cancel()
		if err == nil {
			p.done(next)
			backoff, tries = 50*time.Millisecond, 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if tries++; tries >= sendTries && !passing(err) {
			p.logger.Error("batch of events given up", "batch", next.id, "bytes", len(next.data), "error", err)
			p.drop(next)
			tries = 0
			continue
		}
		p.logger.Warn("events wait", "waiting", p.waiting(), "error", err)
		if err := p.toDisk(); err != nil {
			p.logger.Error("spool waiting events", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(backoff*2, 5*time.Second)
	}
}

// passing reports whether an error says that trying again may help.
func passing(err error) bool {
	return errors.Is(err, stream.ErrFull) || errors.Is(err, stream.ErrUnavailable) || errors.Is(err, stream.ErrDenied) ||
		errors.Is(err, context.DeadlineExceeded)
}

func (p *publisher) next() (sealed, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		return p.queue[0], true, nil
	}
	return p.spool.oldest()
}

func (p *publisher) done(sent sealed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 && p.queue[0].id == sent.id {
		p.queue = slices.Delete(p.queue, 0, 1)
		return
	}
	p.spool.drop(sent.id)
}

// drop gives a batch up. A spooled one of an earlier process counts as one record.
func (p *publisher) drop(batch sealed) {
	p.done(batch)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose("unsendable", max(1, batch.records))
}

func (p *publisher) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue) + len(p.spool.names)
}

// toDisk moves the queue into the spool, where it sorts before all that came later.
func (p *publisher) toDisk() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 {
		if err := p.spool.put(p.queue[0]); err != nil {
			return err
		}
		p.queue = slices.Delete(p.queue, 0, 1)
	}
	return nil
}

// Counts returns how many records were offered and how many are lost for good.
func (p *publisher) Counts() (offered, lost uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.lostAll {
		lost += n
	}
	return p.offered, lost
}

// Losses returns how many records are lost for good, by cause.
func (p *publisher) Losses() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.lostAll)
}

// spool keeps sealed batches in files named so that they sort by age. The queue
// in memory is always older than what the running process spools.
type spool struct {
	dir    string
	limit  int64
	names  []string
	bytes  int64
	loaded bool
}

// load finds what an earlier process left.
func (s *spool) load() error {
	if s.loaded {
		return nil
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".batch" {
			_ = os.Remove(filepath.Join(s.dir, entry.Name())) // half-written by a killed process
			continue
		}
		if info, err := entry.Info(); err == nil {
			s.bytes += info.Size()
		}
		s.names = append(s.names, entry.Name())
	}
	slices.Sort(s.names)
	s.loaded = true
	return nil
}

func (s *spool) empty() bool { return s.load() == nil && len(s.names) == 0 }

func (s *spool) put(batch sealed) error {
	if err := s.load(); err != nil {
		return err
	}
	if s.bytes+int64(len(batch.data)) > s.limit {
		return fmt.Errorf("%s holds its limit of %d bytes", s.dir, s.limit)
	}
	name := fmt.Sprintf("%019d-%s.batch", batch.at.UnixNano(), batch.id)
	path := filepath.Join(s.dir, name)
	if err := writeFile(path, batch.data, 0o600); err != nil {
		return err
	}
	at, _ := slices.BinarySearch(s.names, name)
	s.names = slices.Insert(s.names, at, name)
	s.bytes += int64(len(batch.data))
	return nil
}

func (s *spool) oldest() (sealed, bool, error) {
	if err := s.load(); err != nil || len(s.names) == 0 {
		return sealed{}, false, err
	}
	data, err := os.ReadFile(filepath.Join(s.dir, s.names[0]))
	if err != nil {
		s.names = s.names[1:]
		return sealed{}, false, err
	}
	return sealed{id: spoolID(s.names[0]), data: data}, true, nil
}

func (s *spool) drop(id string) {
	if len(s.names) == 0 || spoolID(s.names[0]) != id {
		return
	}
	path := filepath.Join(s.dir, s.names[0])
	if info, err := os.Stat(path); err == nil {
		s.bytes -= info.Size()
	}
	_ = os.Remove(path)
	s.names = s.names[1:]
}

// spoolID reads the batch's id out of a file's name.
func spoolID(name string) string {
	const stamp = 19 + 1
	return name[min(stamp, len(name)) : len(name)-len(".batch")]
}

// writeFile writes a file whole or not at all, and durably.
func writeFile(path string, data []byte, mode os.FileMode) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	if _, err = temp.Write(data); err == nil {
		err = temp.Chmod(mode)
	}
	if err == nil {
		err = temp.Sync()
	}
	if closing := temp.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}
