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
	"os"
	"path/filepath"
	"slices"
	"sync"
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
)

// publisher turns an agent's events into signed, numbered batches and appends
// them to the log, in order, as long as it takes. offered = sent + waiting + lost.
type publisher struct {
	log     stream.Log
	subject string
	source  string
	sign    func(kind string, payload []byte) ([]byte, error)
	spool   spool
	logger  *slog.Logger

	mu       sync.Mutex // guards all below
	open     bocage.Batch
	records  int // in open
	offered  uint64
	lost     map[string]uint64 // since the previous batch
	lostAll  uint64
	boot     string
	sequence uint64
	previous []byte
	queue    []sealed
	wake     chan struct{}
	full     chan struct{}
}

type sealed struct {
	id      string
	data    []byte
	records int
}

// newPublisher takes events from now on; they wait until it is attached and run.
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
		lost:  map[string]uint64{}, boot: hex.EncodeToString(boot),
		wake: make(chan struct{}, 1), full: make(chan struct{}, 1),
	}, nil
}

// attach says where batches go and who signs them; before Run.
func (p *publisher) attach(log stream.Log, source string, sign func(kind string, payload []byte) ([]byte, error)) {
	p.log, p.source, p.sign = log, source, sign
}

// Flows takes flow events; it never blocks.
func (p *publisher) Flows(events []bocage.FlowEvent) {
	p.add(len(events), func(b *bocage.Batch) {
		for i := range events {
			b.Flows, _ = events[i].AppendBinary(b.Flows)
		}
	})
}

// Inspection takes one finding of the inspection engine; it never blocks.
func (p *publisher) Inspection(e bocage.InspectionEvent) {
	p.add(1, func(b *bocage.Batch) { b.Inspections = append(b.Inspections, e) })
}

// Engagement takes one contact with a decoy; it never blocks.
func (p *publisher) Engagement(e bocage.EngagementEvent) {
	p.add(1, func(b *bocage.Batch) { b.Engagements = append(b.Engagements, e) })
}

func (p *publisher) add(n int, put func(*bocage.Batch)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offered += uint64(n)
	if p.records+n > openRecords {
		p.lose("publisher-full", n)
		return
	}
	put(&p.open)
	p.records += n
	if p.records >= batchRecords {
		signal(p.full)
	}
}

// lose counts records that are given up; mu is held.
func (p *publisher) lose(cause string, n int) {
	p.lost[cause] += uint64(n)
	p.lostAll += uint64(n)
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
			return p.keep()
		case <-tick.C:
		case <-p.full:
		}
		p.seal()
	}
}

// seal closes the open batch: numbers it, chains it to the one before, signs it.
func (p *publisher) seal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.records == 0 && len(p.lost) == 0 {
		return
	}
	batch, records := p.open, p.records
	p.open, p.records = bocage.Batch{}, 0
	p.sequence++
	batch.Source, batch.Boot, batch.Sequence, batch.Previous = p.source, p.boot, p.sequence, p.previous
	batch.Sent = time.Now().UTC()
	if len(p.lost) > 0 {
		batch.Lost, p.lost = p.lost, map[string]uint64{}
	}
	payload, err := json.Marshal(&batch)
	if err == nil {
		sum := sha256.Sum256(payload)
		p.previous = sum[:]
		payload, err = p.sign(bocage.SignedBatch, payload)
	}
	if err != nil {
		p.logger.Error("seal batch of events", "sequence", batch.Sequence, "err", err)
		p.lose("sealing", records)
		return
	}
	next := sealed{id: fmt.Sprintf("%s-%d", p.boot, batch.Sequence), data: payload, records: records}
	if len(p.queue) < queueBatches && p.spool.empty() {
		p.queue = append(p.queue, next)
	} else if err := p.spool.put(next); err != nil {
		p.logger.Error("spool batch of events", "sequence", batch.Sequence, "err", err)
		p.lose("spool-full", records)
	}
	signal(p.wake)
}

// send appends batches oldest first: what is spooled from before, then the queue.
func (p *publisher) send(ctx context.Context) {
	backoff := 50 * time.Millisecond
	for ctx.Err() == nil {
		next, ok, err := p.next()
		if err != nil {
			p.logger.Error("read spooled batch", "err", err)
		}
		if !ok {
			select {
			case <-ctx.Done():
			case <-p.wake:
			}
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, appendPatience)
		_, err = p.log.Append(attempt, p.subject, next.id, next.data)
		cancel()
		if err == nil {
			p.done(next)
			backoff = 50 * time.Millisecond
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, stream.ErrDenied) {
			p.logger.Error("events refused: the identity of this agent does not allow them", "err", err)
		} else {
			p.logger.Warn("events wait", "waiting", p.waiting(), "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(backoff*2, 5*time.Second)
	}
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

func (p *publisher) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue) + len(p.spool.names)
}

// keep writes what is queued to disk, for the next process to send.
func (p *publisher) keep() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var faults []error
	for _, batch := range p.queue {
		if err := p.spool.put(batch); err != nil {
			faults = append(faults, err)
		}
	}
	p.queue = nil
	return errors.Join(faults...)
}

// Counts returns how many records were offered and how many are lost for good.
func (p *publisher) Counts() (offered, lost uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.offered, p.lostAll
}

// spool keeps sealed batches in files named so that they sort by age. The queue
// in memory is always older than what the running process spools.
type spool struct {
	dir    string
	limit  int64
	names  []string
	bytes  int64
	loaded bool
	number uint64
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
	s.number++
	name := fmt.Sprintf("%019d-%06d-%s.batch", time.Now().UnixNano(), s.number, batch.id)
	path := filepath.Join(s.dir, name)
	if err := writeFile(path, batch.data, 0o600); err != nil {
		return err
	}
	s.names = append(s.names, name)
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
	const stamp = 19 + 1 + 6 + 1
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
